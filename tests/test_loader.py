"""Which pairs make up a step: no repeats, every process its share, the same after a resume, bad images named."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, product
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from scipy.stats import chisquare
from support.sources import FakePairs, noise

from miniclip.data.ahead import ahead
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainingPairs, training_loader
from miniclip.data.sampler import Draw, TrainSampler, apportion
from miniclip.data.words import Wording
from miniclip.models.tokenizer import Tokenizer

MANY = [[f"photo {row} {letter}" for letter in "abcde"] for row in range(9)]


def pairs_of(
    source: FakePairs, cache: bool = True, augment: Augment | None = None, captions: int = 1, **options: Any
) -> TrainingPairs:
    augment, prepared, wording = augment or Augment(16, flip=0.5), None, Wording(captions)
    if cache:
        label = repr((source.fingerprint(), [source.captions(row) for row in range(len(source))]))
        prepared = prepare(source, augment, Tokenizer(), folder=None, label=label, allowed=1, progress=False)
    return TrainingPairs(source, augment, Tokenizer(), prepared=prepared, wording=wording, **{"seed": 0, **options})


def load(source: TrainingPairs, workers: int = 0, steps: int = 5, **options: Any) -> list[Batch]:
    sampler = TrainSampler(len(source), 4, seed=source.seed, steps=steps, **options)
    return list(training_loader(source, sampler, workers, pin=False))


def shared(world: int, *arguments: Any, **options: Any) -> list[list[Draw]]:
    """The global batches as several processes share them."""
    parts = [list(TrainSampler(*arguments, **options, rank=rank, world=world)) for rank in range(world)]
    for step in zip(*parts, strict=True):
        sizes = [len(part) for part in step]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
    return [list(chain(*step)) for step in zip(*parts, strict=True)]


def texts_of(batch: Batch) -> list[list[str]]:
    """The captions of each image, read back from the tokens: row j belongs to image j // K."""
    texts = [Tokenizer().decode([t for t in tokens if 0 < t < 49406]).strip() for tokens in batch.text.tolist()]
    captions = len(texts) // len(batch.image_id)
    return [texts[i : i + captions] for i in range(0, len(texts), captions)]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one[:5], two[:5], strict=True)
    )


# ---- the sampler


def test_an_epoch_has_every_row_at_most_once() -> None:
    batches = list(TrainSampler(23, 5, seed=1, steps=400))
    epochs = [batches[i : i + 4] for i in range(0, 400, 4)]
    for epoch, part in enumerate(epochs):
        assert {e for batch in part for e, _ in batch} == {epoch}
        assert len({row for batch in part for _, row in batch}) == 20
    assert [row for batch in epochs[0] for _, row in batch] != [row for batch in epochs[1] for _, row in batch]
    assert {row for batch in batches for _, row in batch} == set(range(23))  # what one epoch drops, others bring


def test_processes_and_resumes_share_the_same_batches() -> None:
    for batch_size, world in ((6, 3), (64, 3), (7, 4), (5, 5), (9, 1)):
        rows = 2 * batch_size + 1
        mixed = {"sizes": [batch_size, batch_size + 1], "mixing": [1, 2]}
        for kind in ({}, {"draw_weights": torch.arange(1.0, rows + 1)}, mixed):
            options: dict[str, Any] = {"seed": 2, "steps": 11, **kind}
            whole = list(TrainSampler(rows, batch_size, **options))
            for first_step in (0, 2, 3, 7, 10):
                assert shared(world, rows, batch_size, first_step=first_step, **options) == whole[first_step:]


def test_errors_name_the_numbers() -> None:
    refused: list[tuple[int, int, dict[str, Any], str]] = [
        (4, 5, {}, r"4 usable images, data\.batch_size is 5; use a batch of at most 4"),
        (1, 2, {}, r"^the training split has 1 usable .* it needs at least 2$"),
        *((10, 2, {"sizes": s, "mixing": [1, 1]}, "mixing takes one size") for s in ([4, 5], [10], [10, 0])),
        (10, 2, {"draw_weights": torch.zeros(10)}, "not all of them 0"),
    ]
    for rows, batch_size, options, told in refused:
        with pytest.raises(ValueError, match=told):
            TrainSampler(rows, batch_size, seed=0, steps=1, **options)


def drawn_rows(rows: int, batch_size: int, **options: Any) -> list[int]:
    return [draw[1] for batch in TrainSampler(rows, batch_size, **options) for draw in batch]


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    """20,000 draws; weights 0 to 4 by turns, so that a row of weight w is drawn 10 w times on average."""
    weights = np.arange(1000) % 5
    drawn = drawn_rows(1000, 100, seed=1, steps=200, draw_weights=torch.from_numpy(weights).float())
    rows = np.bincount(drawn, minlength=1000)
    assert not rows[weights == 0].any()
    by_weight = np.bincount(weights, rows)[1:]
    assert chisquare(by_weight, 2000 * np.arange(1, 5)).statistic < 11.34  # 3 degrees of freedom, 1%
    # 799 degrees of freedom: 799 +- 40. Draws without replacement would be far below it, unfair ones far above.
    assert 680 < chisquare(rows[weights > 0], 10 * weights[weights > 0]).statistic < 920


def test_weighted_draws_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights 0, 1, 0, 3, 0 divide [0, 1) at 1/4 between rows 1 and 3; the borders fall to no row of weight 0."""
    uniform = torch.tensor([0, 0.2499, 0.25, 0.6, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda size, **_: uniform[:size])
    weights = torch.tensor([0.0, 1, 0, 3, 0])
    assert drawn_rows(5, 5, seed=0, steps=1, draw_weights=weights) == [1, 1, 3, 3, 3]
    monkeypatch.undo()
    for alone in (0, 2, 5):
        assert set(drawn_rows(6, 3, seed=0, steps=50, draw_weights=0.3 * torch.eye(6)[alone])) == {alone}


def test_the_weighted_order_is_a_function_of_seed_and_epoch() -> None:
    weights = torch.tensor([1.0, 0, 3, 2, 5, 1, 1, 8, 0.5, 2, 2, 4])

    def order(batch_size: int = 4, seed: int = 1, times: float = 1) -> list[Draw]:
        sampler = TrainSampler(12, batch_size, seed, 60 // batch_size, draw_weights=times * weights)
        return [draw for batch in sampler for draw in batch]

    torch.manual_seed(1)
    first = order()
    torch.manual_seed(2)
    assert order() == order(batch_size=6) == order(batch_size=12) == order(times=4) == first
    assert [(epoch, place) for epoch, _, place in first] == [(e, p) for e in range(5) for p in range(12)]
    epochs = [[row for e, row, _ in first if e == epoch] for epoch in range(5)]
    assert len(set(map(tuple, epochs))) == 5
    assert [row for _, row, _ in order(seed=2)] != [row for _, row, _ in first]
    assert any(len(set(epoch)) < 12 for epoch in epochs)  # draws with replacement


def test_each_source_has_epochs_of_its_own() -> None:
    """10 rows and 30 rows, half and half: the first source comes round three times as often."""
    drawn = list(TrainSampler(40, 8, seed=3, steps=15, sizes=[10, 30], mixing=[0.5, 0.5]))
    assert {(len(batch), sum(row < 10 for _, row in batch)) for batch in drawn} == {(8, 4)}
    wanted = {*product(range(6), range(10)), *product(range(2), range(10, 40))}
    assert Counter(chain(*drawn)) == dict.fromkeys(wanted, 1)
    # the last process does not get the last source
    assert len({tuple(row < 10 for _, row in batch) for batch in drawn}) > 5


def test_shares_of_sources_add_up_and_never_fall() -> None:
    for mixing in ([1, 1], [0.7, 0.2, 0.1], [3, 2, 2, 1], [0.01, 0.99], [0.3, 0.3, 0.2, 0.15, 0.05]):
        counts = np.array([apportion(total, mixing) for total in range(2000)])
        assert (counts.sum(1) == np.arange(2000)).all() and (np.diff(counts, axis=0) >= 0).all()
        exact = np.outer(np.arange(2000), np.array(mixing) / sum(mixing))
        assert np.abs(counts - exact).max() <= (len(mixing) - 1) / 2 + 1e-9
    assert [apportion(total, [1, 1]) for total in (1, 2, 3)] == [[1, 0], [1, 1], [2, 1]]  # halves go up
    assert [apportion(total, [0.5, 0.25, 0.25]) for total in (1, 2, 4)] == [[1, 0, 0], [1, 1, 0], [2, 1, 1]]
    assert apportion(3 * 10**12 + 1, [1, 2]) == [10**12, 2 * 10**12 + 1]


# ---- what a batch holds


def test_batches_do_not_depend_on_cache_workers_or_resume() -> None:
    fake = FakePairs(9, captions=[*MANY[:8], ["one <end_of_text> two!"]])
    for captions, draw_weights in ((1, None), (3, None), (1, torch.arange(9.0))):
        source, options = pairs_of(fake, captions=captions), {"draw_weights": draw_weights}
        reference = load(source, **options)
        assert same(reference, load(pairs_of(fake, cache=False, captions=captions), **options))
        assert same(reference, load(source, workers=2, **options))
        assert same(reference[3:], load(source, first_step=3, **options))
        assert not same(reference, load(pairs_of(fake, captions=captions, seed=1), **options))


def test_uneven_shares_make_up_the_batch_of_one_process() -> None:
    """Of 4 images with 2 captions each, three processes take 2, 1 and 1: pixels, captions, identities and weights."""
    source = pairs_of(FakePairs(9), captions=2, weights=torch.arange(9.0))
    for draw_weights in (None, torch.arange(1.0, 10)):
        (whole,) = load(source, steps=1, draw_weights=draw_weights)
        parts = [load(source, steps=1, rank=rank, world=3, draw_weights=draw_weights)[0] for rank in range(3)]
        assert [len(part.image_id) for part in parts] == [2, 1, 1]
        for name in ("image", "image_id", "text_id", "weight"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        texts = [row[row > 0].tolist() for part in parts for row in part.text]  # each is padded to its own longest
        assert texts == [row[row > 0].tolist() for row in whole.text]


def test_captions_are_equal_where_their_tokens_are() -> None:
    for caption, different in (("caption {0}", 2), ("image {1} \ud83d", 4)):  # half an emoji, too
        captions = [[caption.format(row % 2, row)] for row in range(4)]
        (batch,) = load(pairs_of(FakePairs(4, captions=captions)), steps=1)
        rows = batch.image_id % different
        assert torch.equal(batch.text_id == batch.text_id.T, rows[:, None] == rows)


@pytest.mark.parametrize("captions", [2, 5, 7, 12])
def test_no_caption_comes_twice_before_all_had_their_turn(captions: int) -> None:
    drawn: Counter[tuple[int, str]] = Counter()
    pairs: set[tuple[str, int]] = set()
    orders = set()
    for batch in load(pairs_of(FakePairs(9, captions=MANY), cache=captions < 7, captions=captions), steps=100):
        assert batch.text.shape[0] == 4 * captions and batch.text_id.shape == (4, captions)
        for row, own_ids, texts in zip(batch.image_id.tolist(), batch.text_id.tolist(), texts_of(batch), strict=True):
            letters = "".join(text[-1] for text in texts)
            assert texts == [f"photo {row} {letter}" for letter in letters]
            assert all(len({*letters[i : i + 5]}) == len(letters[i : i + 5]) for i in range(0, captions, 5))
            pairs.update(zip(texts, own_ids, strict=True))
            drawn.update(enumerate(letters))
            orders.add(letters)
    # equal captions have equal identities, and different ones different
    assert len(pairs) == len({text for text, _ in pairs}) == len({own for _, own in pairs}) == 9 * 5
    # 400 draws: each of 5 letters comes 80 times at each place, give or take 8
    assert min(drawn.values()) > 40 and max(drawn.values()) < 120 and len(drawn) == 5 * captions
    assert len(orders) > 15


def seed_of(*numbers: int) -> int:
    """Written out once more: the upper 63 bits of BLAKE2b's first 8 bytes, of the numbers in decimal."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def test_one_caption_is_drawn_by_choice() -> None:
    """Transform, then random.choice, from a generator seeded with (seed, epoch, row): the draws of every release."""
    source, augment = FakePairs(9, captions=MANY), Augment(16, flip=0.5)
    choices = set()
    draws = TrainSampler(9, 4, seed=5, steps=6)
    for batch, wanted in zip(load(pairs_of(source, seed=5), steps=6), draws, strict=True):
        assert batch.image.dtype == torch.uint8 and batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.image_id.tolist() == [row for _, row in wanted] and batch.weight is None
        assert batch.lengths == (batch.text.argmax(1) + 1).tolist() and batch.text.shape[1] == max(batch.lengths) < 77
        for i, (epoch, row) in enumerate(wanted):
            rng = random.Random(seed_of(5, epoch, row))
            square = augment.square(np.asarray(augment.store(source.image(row))), rng)
            assert torch.equal(batch.image[i], torch.from_numpy(np.array(square)).permute(2, 0, 1))
            assert batch.look[i].tolist() == augment.look(rng)
            choices.add(text := rng.choice(MANY[row]))
            assert texts_of(batch)[i] == [text]
    assert {text[-1] for text in choices} == set("abcde")


@pytest.mark.parametrize("cache", [True, False])
def test_a_row_that_comes_twice_is_seen_in_two_ways(cache: bool) -> None:
    fake = FakePairs(9, captions=MANY, draw=lambda index: noise(index, (40, 40)), version="noise")
    source = pairs_of(fake, cache, Augment(16, "resized_crop"), captions=2)
    batches = load(source, steps=10, draw_weights=torch.eye(9)[6])
    assert all(batch.image_id.tolist() == [6] * 4 for batch in batches)
    assert len({image.numpy().tobytes() for batch in batches for image in batch.image}) == 40
    texts = [tuple(texts) for batch in batches for texts in texts_of(batch)]
    assert len({*texts}) > 12 and len({*texts[:8]}) > 2  # of 20 ordered pairs; within one epoch, too
    assert same(batches, load(source, steps=10, draw_weights=torch.eye(9)[6]))


# ---- bad images, and weights


@pytest.mark.parametrize("cache", [True, False])
def test_weights_are_those_of_the_images_in_the_batch_and_bad_ones_named(cache: bool) -> None:
    """Also where others are left out of the cache, or are replaced as they come up."""
    weights = torch.arange(1.0, 10) ** 2
    for broken in ((), (0,), (8,), (3, 4), (0, 1, 2, 5, 8)):
        source = pairs_of(FakePairs(9, broken=broken), cache, captions=2, weights=weights)
        assert len(source) == (9 - len(broken) if cache else 9)
        seen: set[int] = set()
        batches = load(source, steps=12)
        for batch in batches:
            assert batch.weight is not None and batch.weight.dtype == torch.float32
            shown = batch.image[:, 0, 0, 0].tolist()  # the red of an image is its row
            assert batch.image_id.tolist() == shown
            assert torch.equal(batch.weight, weights[shown])
            assert [[int(text.split()[-1]) for text in texts] for texts in texts_of(batch)] == [[r, r] for r in shown]
            seen.update(shown)
        assert seen == set(range(9)) - set(broken)
        named = source.prepared.bad if source.prepared is not None else [name for b in batches for name in b.bad]
        assert set(named) == {f"row {row}: cut short" for row in broken}


def test_the_sampler_goes_by_the_images_that_are_left() -> None:
    """An image that is left out of the cache moves the ones after it: rows says which weights remain."""
    weights = torch.tensor([0.0, 2, 9, 0, 1, 0, 0, 0, 0])
    source = pairs_of(FakePairs(9, broken=(0, 2)), weights=weights)
    batches = load(source, steps=20, draw_weights=weights[source.rows])
    drawn = Counter(row for batch in batches for row in batch.image_id.tolist())
    assert set(drawn) == {1, 4} and 40 < drawn[1] < 66  # 53.3 +- 4.2 of 80


def test_all_bad() -> None:
    with pytest.raises(BadImage, match="no image of the training split"):
        load(pairs_of(FakePairs(4, broken=(0, 1, 2, 3)), cache=False), steps=1)


# ---- its processes

HANGING = """
import sys, time
from torch.utils.data import DataLoader
from miniclip.data.workers import LOADING, batches_of

class Items:
    def __len__(self):
        return 100

    def __getitem__(self, at):
        if at > 3 and sys.argv[1] == "read":
            time.sleep(3600)
        return "more than a pipe holds" * 20_000

loader = DataLoader(Items(), batch_size=None, num_workers=2, **LOADING)
batches = batches_of(loader)
next(batches)
print("begun", flush=True)
if sys.argv[1] == "pipe":
    time.sleep(3600)
batches.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "read"])
def test_no_worker_outlives_the_training(kind: str) -> None:
    """Killed with -9 while its workers wait for room in a pipe, or ended while they wait for what they read."""
    words = [sys.executable, "-c", HANGING, kind]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        if kind == "pipe":
            process.kill()
        assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=120)[1]
    assert process.returncode == (0 if kind == "read" else -signal.SIGKILL)


# ---- reading ahead


def test_reading_ahead_keeps_the_order_and_brings_errors_in_their_place() -> None:
    assert [list(ahead(iter(range(n)))) for n in (100, 1)] == [[*range(100)], [0]]

    def items() -> Iterator[int]:
        yield from (1, 2)
        raise BadImage("row 3: cut short")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(BadImage, match="row 3"):
        next(found)
    assert list(found) == []


def test_no_more_is_read_than_the_depth_and_closing_ends_the_thread() -> None:
    taken: list[int] = []
    threads = threading.active_count()
    found = ahead(taken.append(i) or i for i in range(1000))  # type: ignore[func-returns-value]
    assert next(found) == 0
    deadline = time.monotonic() + 10
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 4  # handed out, and three ahead
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
