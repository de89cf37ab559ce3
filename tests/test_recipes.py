"""The recipes in the data: what they do to an image and a caption, drawn by (seed, epoch, row) and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import chisquare
from support.sources import FakePairs, noise
from test_loader import MANY
from test_streaming import samples, write_tar
from test_training import run

from miniclip.config import ConfigError
from miniclip.config.sections import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.loader import Batch, TrainingPairs, training_loader
from miniclip.data.sampler import TrainSampler
from miniclip.data.stream.stream import open_stream
from miniclip.data.strong import MAGNITUDE, OPERATIONS, Operation, StrongAugment, erase
from miniclip.data.words import Wording, special_tokens
from miniclip.models.external.hf_tokenizer import HfTokenizer
from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer

STRONG = StrongAugment(16, "resized_crop", flip=0.5, colour_jitter=0.2, randaugment=2, erasing=0.5)
WORDS = Wording(2, "length", drop=0.3, swap=0.3)
OPTIONS = {"randaugment": 2, "erasing": 0.5, "word_drop": 0.3, "word_swap": 0.3, "captions_by": "length"}
LONG = np.array([START_OF_TEXT, *range(1000, 1040), END_OF_TEXT], dtype=np.uint16)


# ---- images


@pytest.mark.parametrize("sign", [1, -1])
def test_the_operations_are_those_of_torchvision(sign: int) -> None:
    """At magnitude 9 of its 31, on photo-like and on even pixels, all of them and in its order. A shift's sign is the
    other way round here, which is drawn anyway."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import RandAugment, _apply_op

    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for image in (noise(3, (64, 64)), Image.fromarray(values)):
        space = RandAugment()._augmentation_space(31, (64, 64))
        for (name, (magnitudes, signed)), operation in zip(space.items(), OPERATIONS, strict=True):
            magnitude = float(magnitudes[9]) if magnitudes.ndim else 0.0
            theirs = _apply_op(image, name, sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None)
            ours = operation(image, -sign * MAGNITUDE if "Translate" in name else sign * MAGNITUDE)
            assert np.array_equal(np.asarray(ours), np.asarray(theirs)), name


def test_the_square_is_the_plain_one_but_for_what_is_asked() -> None:
    stored, plain = np.asarray(noise(0, (20, 18))), Augment(16)
    for seed in range(50):
        square, rng = plain.square(stored, random.Random(seed)), random.Random(seed)
        assert np.array_equal(StrongAugment(16, erasing=1e-12).square(stored, rng), square)
        strong = STRONG.square(stored, rng)
        assert strong.shape == square.shape and strong.dtype == np.uint8
        rng.seed(seed)
        assert not np.array_equal(strong, STRONG.square(stored, rng))  # another state by then
    assert STRONG.stored_side == replace(STRONG, randaugment=0).stored_side


def test_each_operation_is_drawn_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Counter[tuple[int, bool]]()

    def counting(k: int) -> Operation:
        return lambda image, m: drawn.update([(k, m > 0)]) or image

    monkeypatch.setattr("miniclip.data.strong.OPERATIONS", [counting(k) for k in range(len(OPERATIONS))])
    augment, rng, black = StrongAugment(4, "none", randaugment=3), random.Random(0), np.zeros((4, 4, 3), np.uint8)
    for _ in range(1000):
        augment.square(black, rng)
    assert drawn.total() == 3000 and len(drawn) == 28
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_erasing_draws_one_rectangle_anew() -> None:
    """Of 2 to 33 % of the area, of every shape from flat to steep, anywhere, with values of every size."""
    black, rng, shares, ratios, touched, values = np.zeros((64, 64, 3), np.uint8), random.Random(0), [], [], 0, []
    for _ in range(500):
        erased = erase(black, rng)
        rows, columns = (np.flatnonzero(erased.any((axis, 2))) for axis in (1, 0))
        height, width = (int(found[-1] - found[0]) + 1 for found in (rows, columns))
        inside = erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shares.append(height * width / 64**2)
        ratios.append(height / width)
        touched += erased.any(2)
        values.append(inside.ravel())
    assert not black.any()
    assert 0.018 < min(shares) < 0.03 and 0.31 < max(shares) < 0.34
    assert np.mean(shares) == pytest.approx((0.02 + 0.33) / 2, abs=0.02)
    assert 0.25 < min(ratios) < 0.4 and 2.5 < max(ratios) < 4 and np.median(ratios) == pytest.approx(1, abs=0.2)
    assert touched[16:48, 16:48].min() > 50 and touched.any(0).all() and touched.any(1).all()
    counts = np.bincount(np.concatenate(values), minlength=256)
    assert counts.min() > 0.9 * counts.mean() and counts.max() < 1.1 * counts.mean()


def test_the_probability_of_erasing() -> None:
    augment, rng, black = StrongAugment(8, "none", erasing=0.25), random.Random(0), np.zeros((8, 8, 3), np.uint8)
    assert 200 < sum(bool(augment.square(black, rng).any()) for _ in range(1000)) < 300


# ---- captions


def test_words_are_left_out_in_their_order() -> None:
    rng, kept = random.Random(0), 0
    for _ in range(500):
        (read,) = Wording(drop=0.2).read([LONG], rng) or []
        assert read[0] == START_OF_TEXT and read[-1] == END_OF_TEXT and read.dtype == LONG.dtype
        own = read[1:-1].astype(int)
        assert (np.diff(own) > 0).all() and set(own) <= set(range(1000, 1040))
        kept += len(own)
    assert kept / 500 == pytest.approx(32, abs=0.5)  # of 40; its standard error is 0.11
    assert Wording().read([LONG], rng) is None


def test_one_word_always_stays() -> None:
    rng, left, short = random.Random(0), Counter[int](), LONG[[0, 1, 2, 3, -1]]
    for _ in range(300):
        (read,) = Wording(drop=0.999).read([short], rng) or []
        assert len(read) == 3
        left[int(read[1])] += 1
    assert chisquare(list(left.values())).pvalue > 0.001 and len(left) == 3
    (nothing,) = Wording(drop=0.9, swap=1.0).read([LONG[[0, -1]]], rng) or []
    assert nothing.tolist() == [START_OF_TEXT, END_OF_TEXT]


def test_neighbours_change_places() -> None:
    """Each with the next, once: with probability 1 the first with the second, the third with the fourth, ..."""
    rng, moved = random.Random(0), 0
    (read,) = Wording(swap=1.0).read([LONG[[*range(6), -1]]], rng) or []
    assert read.tolist() == [START_OF_TEXT, 1001, 1000, 1003, 1002, 1004, END_OF_TEXT]
    for _ in range(500):
        (read,) = Wording(swap=0.1).read([LONG], rng) or []
        assert sorted(read) == sorted(LONG) and np.abs(read.astype(int) - LONG)[1:-1].max() <= 1
        moved += int((read != LONG).sum()) // 2
    # a swap takes two places of 40: 39 chances at most, each of 0.1, fewer by those that were taken already
    assert moved / 500 == pytest.approx(0.1 / 1.1 * 39, abs=0.3)


def test_longer_captions_are_drawn_in_proportion() -> None:
    captions, rng, first = [LONG[:n] for n in (2, 6, 12)], random.Random(0), Counter[int]()
    for _ in range(3000):
        places = Wording(5, "length").choose(captions, rng)
        assert sorted(places[:3]) == [0, 1, 2] and len({*places[3:]}) == 2
        first[places[0]] += 1
    assert chisquare([first[place] for place in range(3)], [300, 900, 1800]).pvalue > 0.001


def test_captions_count_as_equal_where_they_are_equal_as_a_whole() -> None:
    """Recipes for words change what is read, and neither the images nor which captions are one another's."""
    source = FakePairs(9, captions=[*MANY[:7], *([["a very long caption of a dog", "one"]] * 2)])
    plain, changed = (batches(source, Augment(16), wording) for wording in (Wording(2), Wording(2, drop=0.4, swap=0.2)))
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(one.text_id, other.text_id) and torch.equal(one.image, other.image)
        assert torch.equal(one.image_id, other.image_id)
        assert other.lengths == (other.text.argmax(1) + 1).tolist() and sum(other.lengths) < sum(one.lengths)
        for row, whole in zip(other.text.tolist(), one.text.tolist(), strict=True):
            assert not Counter(row) - Counter(whole) - Counter([0] * 77)


# ---- special tokens of other tokenizers


def words_between(before: str, behind: str) -> HfTokenizer:
    """A tokenizer of words with special tokens around a text."""
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    ids = {word: k for k, word in enumerate(["<s>", "</s>", "?", "dog", "the", "red", "car"])}
    words = Words(WordLevel(ids, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    single = f"{before} $A {behind}".split()
    words.post_processor = TemplateProcessing(single=single, special_tokens=[(t, ids[t]) for t in ("<s>", "</s>")])
    return HfTokenizer(words.to_str(), 12)


@pytest.mark.parametrize(("before", "behind"), [("<s>", "</s>"), ("", "</s>"), ("<s>", ""), ("<s> </s>", "</s> </s>")])
def test_special_tokens_of_a_foreign_text_tower(before: str, behind: str) -> None:
    tokenizer = words_between(before, behind)
    counts = len(before.split()), len(behind.split())
    assert special_tokens(tokenizer) == counts
    wording = Wording.of(DataConfig(word_drop=0.5), tokenizer)
    assert wording.specials == counts
    row = np.array([i for i in tokenizer("the red dog car the red").tolist()[0] if i >= 0], dtype=np.int32)
    for seed in range(20):
        (read,) = wording.read([row], random.Random(seed)) or []
        assert read[: counts[0]].tolist() == row[: counts[0]].tolist() and len(read) > sum(counts)
        assert read[len(read) - counts[1] :].tolist() == row[len(row) - counts[1] :].tolist()
        assert (read[counts[0] : len(read) - counts[1]] > 2).all()


class Odd:
    """A tokenizer of which something is unusual."""

    def __init__(self, rows: dict[str, list[int]], **attributes: Any) -> None:
        self.rows = rows
        vars(self).update(attributes)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.rows[text] + [-1] * (9 - len(self.rows[text])) for text in texts])


def test_a_tokenizer_that_does_not_tell_is_refused() -> None:
    assert special_tokens(Tokenizer()) == (1, 1) == special_tokens(Tokenizer(3))
    plain = {"": [7, 8], "dog": [7, 1, 8], "the red car": [7, 2, 3, 4, 8]}
    assert special_tokens(Odd(plain, pad=-1)) == (1, 1)
    for odd in (Odd(plain), Odd(plain | {"": [5, 8]}, pad=-1), Odd(plain | {"dog": [7, 8]}, pad=-1)):
        told = (
            "data.word_swap=0.5, but the text tower's tokenizer does not tell which tokens .* special .*; set it to 0"
        )
        with pytest.raises(ConfigError, match=told):
            Wording.of(DataConfig(word_swap=0.5), odd)
        assert Wording.of(DataConfig(captions_by="length"), odd).by == "length"


# ---- whole batches and runs


def batches(
    source: FakePairs, augment: Augment, wording: Wording, workers: int = 0, cache: bool = True, first_step: int = 0
) -> list[Batch]:
    options: dict[str, Any] = {"folder": None, "label": repr(source.captions(8)), "allowed": 1, "progress": False}
    prepared = prepare(source, augment, Tokenizer(), **options) if cache else None
    pairs = TrainingPairs(source, augment, Tokenizer(), 0, prepared, wording)
    return list(training_loader(pairs, TrainSampler(9, 4, 0, 5, first_step=first_step), workers, pin=False))


def same(one: list[Batch], other: list[Batch]) -> bool:
    assert len(one) == len(other)
    return all(all(map(torch.equal, a[:5], b[:5])) for a, b in zip(one, other, strict=True))


def test_batches_do_not_depend_on_who_makes_them() -> None:
    source = FakePairs(9, captions=MANY, draw=lambda index: noise(index, (40, 40)), version="noise")
    reference = batches(source, STRONG, WORDS)
    assert same(reference, batches(source, STRONG, WORDS, cache=False))
    assert same(reference, batches(source, STRONG, WORDS, workers=2))
    assert same(reference[3:], batches(source, STRONG, WORDS, first_step=3))
    assert len({image.numpy().tobytes() for batch in reference for image in batch.image}) == 20


def test_streams_have_the_recipes_too(tmp_path: Path) -> None:
    for split, (start, stop) in {"train": (0, 40), "validation": (40, 44), "test": (44, 48)}.items():
        write_tar(tmp_path / f"{split}-000.tar", samples(start, stop))
    config = DataConfig(source=str(tmp_path), streaming=True, batch_size=8, **OPTIONS)  # type: ignore[arg-type]

    def opened(workers: int) -> list[Batch]:
        stream = open_stream(replace(config, workers=workers), STRONG, Tokenizer(), seed=0)
        return [step.batch for step in stream.batches(0, 4)]

    alone = opened(0)
    assert same(alone, opened(1))
    plain = open_stream(replace(config, word_drop=0, word_swap=0), STRONG, Tokenizer(), seed=0)
    for batch, step in zip(alone, plain.batches(0, 4), strict=True):
        assert torch.equal(batch.text_id, step.batch.text_id) and sum(batch.lengths) < sum(step.batch.lengths)


def test_a_resumed_run_is_the_whole_one_to_the_bit(config_file: str, tmp_path: Path) -> None:
    always = ["--optim.schedule=constant", "--eval.tasks=[]"]
    options = [*always, *(f"--data.{key}={value}" for key, value in OPTIONS.items())]
    run(config_file, tmp_path / "whole", *options)
    run(config_file, tmp_path / "parts", *options, "--train.max_steps=3")
    run(config_file, tmp_path / "parts", *options, "--run.resume=true")
    run(config_file, tmp_path / "plain", *always)
    whole, parts, plain = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts", "plain")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["text_projection"], plain["text_projection"])


@pytest.mark.parametrize(
    ("tower", "option", "told"),
    [
        ("image", "--data.randaugment=1", "data.randaugment=1 draws each image anew; set data.views, e.g. to 4"),
        ("image", "--data.erasing=0.5", "data.erasing=0.5 draws each image anew; set data.views, e.g. to 4"),
        ("text", "--data.word_drop=0.5", "data.word_drop changes what it reads; set it to 0"),
        ("text", "--data.word_swap=0.5", "data.word_swap changes what it reads; set it to 0"),
    ],
)
def test_a_locked_tower_whose_input_changes_runs_in_every_step(
    config_file: str, tmp_path: Path, tower: str, option: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--model.lock_{tower}=true", "--data.augment=none", "--train.max_steps=1", "--eval.tasks=[]"]
    run(config_file, tmp_path / "run", *options, option)
    assert f"the locked {tower} tower runs in every step, since {told}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"randaugment": -1}, "data.randaugment=-1 must be 0 or more"),
        ({"erasing": 1.5}, "data.erasing=1.5 is a probability; use a value in [0, 1]"),
        ({"word_swap": -0.1}, "data.word_swap=-0.1 is a probability; use a value in [0, 1]"),
        ({"word_drop": 1.0}, "data.word_drop=1.0 is a probability; use 0 to below 1, e.g. 0.1"),
    ],
)
def test_values_that_mean_nothing_are_refused(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        DataConfig(**option)
    assert str(error.value) == told
