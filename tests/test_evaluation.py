"""Encoding, zero-shot classification, retrieval and their reports, on tiny and on made-up models."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from miniclip.console import write_json
from miniclip.data.shapes import SceneSource, scene_task
from miniclip.data.transforms import Preprocess
from miniclip.evaluation import pictures
from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.evaluation.pictures import confusion_png, example_sheet, write_examples
from miniclip.evaluation.tables import print_retrieval, print_zero_shot, to_json
from miniclip.evaluation.retrieval import (
    PairEmbeddings,
    RankedCaption,
    RetrievalResult,
    best_captions,
    count_retrieval,
    encode_pairs,
    retrieval,
)
from miniclip.evaluation.zeroshot import build_classifier, fill_templates, resolve_templates, zero_shot
from miniclip.models import DualEncoder, create_model
from miniclip.tokenizer import Tokenizer

SIDE = 32
PREPROCESS = Preprocess(SIDE)
NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    small = {"embed_dim": 16, "image_width": 32, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "context_length": 40}
    return create_model("tiny-vit", image_size=SIDE, **small, **text)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(40)


class Colours:
    """Pure red, green and blue pictures in turn: a LabelledSource and a PairSource. captions: of every picture."""

    def __init__(self, n: int, captions: Sequence[str] | None = None, classes: Sequence[str] = NAMES) -> None:
        self.n, self.texts, self.classes = n, captions, list(classes)

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (40, 30), [(255, 0, 0), (0, 255, 0), (0, 0, 255)][index % 3])

    def label(self, index: int) -> int:
        return index % 3

    def captions(self, index: int) -> list[str]:
        return list(self.texts) if self.texts is not None else [f"{NAMES[index % 3]} {index}"]

    def name(self, index: int) -> str:
        return f"picture {index}"


class ColourModel(nn.Module):
    """Embeds a picture as its mean colour, and a text as the sum of the axes of the colours that it names.

    confused: a colour word and the one that it is taken for.
    """

    def __init__(self, tokenizer: Tokenizer, confused: dict[str, str] | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(embed_dim=4)
        self.anchor = nn.Parameter(torch.zeros(()))
        meant = {name: (confused or {}).get(name, name) for name in NAMES}
        self.axes = {tokenizer.encode(name)[0]: NAMES.index(meant[name]) for name in NAMES}

    def encode_image(self, image: Tensor) -> Tensor:
        mean = torch.tensor(PREPROCESS.mean).view(3, 1, 1)
        std = torch.tensor(PREPROCESS.std).view(3, 1, 1)
        return torch.cat([(image * std + mean).mean((2, 3)).round(), torch.full((len(image), 1), 0.01)], 1)

    def encode_text(self, text: Tensor) -> Tensor:
        result = torch.full((len(text), 4), 1e-3)
        for row, ids in enumerate(text.tolist()):
            for token in ids:
                if token in self.axes:
                    result[row, self.axes[token]] += 1
        return result


def colour_model(tokenizer: Tokenizer, **confused: str) -> DualEncoder:
    return cast(DualEncoder, ColourModel(tokenizer, confused))


# Encoding


def test_encoded_images_equal_one_at_a_time(model: DualEncoder) -> None:
    source = SceneSource("test", 7, image_size=48)
    batched = encode_images(model, source, PREPROCESS, EncodeOptions(batch_size=3))
    model.eval()
    with torch.no_grad():
        one = [model.encode_image(PREPROCESS(source.image(k))[None], normalize=True) for k in range(7)]
    assert batched.dtype == torch.float32 and not batched.requires_grad
    torch.testing.assert_close(batched, torch.cat(one), atol=1e-5, rtol=0)
    torch.testing.assert_close(batched.norm(dim=1), torch.ones(7))


def test_encoded_texts_keep_their_order(model: DualEncoder, tokenizer: Tokenizer) -> None:
    texts = [
        "a long caption of a red circle near a blue star",
        "a",
        "one red ring",
        "",
        "a",
        "long " * 60,
        "one red ring",
    ]
    batched = encode_texts(model, tokenizer, texts, EncodeOptions(batch_size=2))
    model.eval()
    with torch.no_grad():
        one = torch.cat([model.encode_text(tokenizer([text]), normalize=True) for text in texts])
    torch.testing.assert_close(batched, one, atol=1e-5, rtol=0)
    assert torch.equal(batched[1], batched[4]) and torch.equal(batched[2], batched[6])
    assert encode_texts(model, tokenizer, []).shape == (0, 16)


def test_encoding_leaves_the_mode_of_every_module(model: DualEncoder, tokenizer: Tokenizer) -> None:
    model.train()
    model.visual.eval()  # frozen statistics, say
    before = [module.training for module in model.modules()]

    class Spy(Colours):
        def image(self, index: int) -> Image.Image:
            raise OSError("picture 0 cannot be read")

    encode_texts(model, tokenizer, ["a"])
    with pytest.raises(OSError, match="picture 0"):
        encode_images(model, Spy(3), PREPROCESS)
    assert [module.training for module in model.modules()] == before
    assert any(before) and not all(before)
    assert torch.is_grad_enabled()


def test_towers_run_in_evaluation_mode(tokenizer: Tokenizer) -> None:
    seen = []

    class Spy(ColourModel):
        def encode_image(self, image: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return super().encode_image(image)

    spy = Spy(tokenizer).train()
    encode_images(cast(DualEncoder, spy), Colours(2), PREPROCESS)
    encode_images(cast(DualEncoder, spy), Colours(2), PREPROCESS, EncodeOptions(precision="bf16"))
    assert seen == [(False, False, False), (False, False, True)]


def test_bf16_is_close_and_unit_length(model: DualEncoder, tokenizer: Tokenizer) -> None:
    exact = encode_texts(model, tokenizer, ["a red circle", "one blue star"])
    rough = encode_texts(model, tokenizer, ["a red circle", "one blue star"], EncodeOptions(precision="bf16"))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0)
    torch.testing.assert_close(rough.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"precision": "fp8"}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EncodeOptions(**wrong)


# Templates and the classifier


def test_templates_by_name_and_by_hand() -> None:
    assert resolve_templates("simple") == ("a photo of a {}.",)
    assert resolve_templates("one {} here") == ("one {} here",)
    assert resolve_templates(["a {}", "the {}"]) == ("a {}", "the {}")
    eighty = resolve_templates("openai80")
    assert len(eighty) == 80 and eighty[0] == "a bad photo of a {}." and all("{}" in t for t in eighty)


def test_templates_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a {}.\n\n  the {} of {name}  \n")
    assert resolve_templates(str(file)) == ("a {}.", "the {} of {name}")
    assert fill_templates(["x{0}"], resolve_templates(str(file))) == [["a x{0}.", "the x{0} of {name}"]]
    file.write_text("a {}\n\na photo\n")
    with pytest.raises(ValueError, match=r"templates\.txt, line 3.*lacks \{\}"):
        resolve_templates(str(file))
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no template"):
        resolve_templates(str(file))
    with pytest.raises(FileNotFoundError, match=r"lacks \{\}"):
        resolve_templates(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="template 2"):
        resolve_templates(["a {}", "b"])
    with pytest.raises(ValueError, match="empty"):
        resolve_templates([])


def test_classifier_equals_open_clip(model: DualEncoder, tokenizer: Tokenizer) -> None:
    import open_clip

    names = ["circle", "red star", "hoop", "crescent"]
    expected = open_clip.build_zero_shot_classifier(
        model.eval(), tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=3
    ).T
    weights = build_classifier(model, tokenizer, fill_templates(names, resolve_templates("openai80")))
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_classifier_takes_classes_with_different_numbers_of_prompts(model: DualEncoder, tokenizer: Tokenizer) -> None:
    weights = build_classifier(model, tokenizer, [["a", "b"], ["c"]])
    each = encode_texts(model, tokenizer, ["a", "b", "c"])
    torch.testing.assert_close(weights[0], nn.functional.normalize(each[0] + each[1], dim=0))
    torch.testing.assert_close(weights[1], each[2])
    with pytest.raises(ValueError, match="at least one prompt"):
        build_classifier(model, tokenizer, [["a"], []])


# Zero-shot


def test_zero_shot_counts_by_hand(tokenizer: Tokenizer) -> None:
    perfect = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(11), task="colours")
    assert (perfect.top1, perfect.mean_per_class_recall, perfect.top5, perfect.n) == (1.0, 1.0, None, 11)
    assert perfect.confusion == ((4, 0, 0), (0, 4, 0), (0, 0, 3))
    assert perfect.chance == 1 / 3 and "six" in perfect.notes[0]
    model = colour_model(tokenizer, red="green", green="red")
    swapped = zero_shot(model, PREPROCESS, tokenizer, Colours(11), "a {}", task="colours")
    assert swapped.top1 == pytest.approx(3 / 11)
    assert swapped.mean_per_class_recall == pytest.approx(1 / 3)
    assert swapped.per_class_recall == (0, 0, 1)
    assert swapped.confusion == ((0, 4, 0), (4, 0, 0), (0, 0, 3))


def test_zero_shot_does_not_reward_a_collapsed_model(tokenizer: Tokenizer) -> None:
    model = colour_model(tokenizer, red="green", blue="green")
    result = zero_shot(model, PREPROCESS, tokenizer, Colours(9), "a {}")
    assert result.top1 == 0 and result.confusion is not None
    assert sum(result.confusion[k][k] for k in range(3)) == 0


def test_zero_shot_has_a_top5_from_six_classes(tokenizer: Tokenizer) -> None:
    classes = [*NAMES, "nothing", "at all", "here"]
    result = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(6, classes=classes), "a {}")
    assert result.top1 == 1 and result.top5 == 1 and result.notes == ()
    assert result.per_class_recall == (1, 1, 1, None, None, None)


def test_zero_shot_uses_the_prompts_of_a_task(model: DualEncoder, tokenizer: Tokenizer) -> None:
    task = scene_task("colour", 16, image_size=SIDE)
    result = zero_shot(model, PREPROCESS, tokenizer, task)
    classifier = build_classifier(model, tokenizer, task.class_prompts())
    predicted = (encode_images(model, task, PREPROCESS) @ classifier.T).argmax(1)
    assert result.top1 == np.mean([int(p) == task.label(k) for k, p in enumerate(predicted)])

    class Prompted(Colours):
        def class_prompts(self) -> list[list[str]]:
            return [["a green thing"], ["so red", "red"], ["blue"]]

        def prompts(self, index: int) -> list[str] | None:
            return None

    assert zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Prompted(9)).per_class_recall == (0, 0, 1)
    # Templates that are given win.
    assert zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Prompted(9), "a {}").top1 == 1


def test_zero_shot_with_sentences_of_each_picture(model: DualEncoder, tokenizer: Tokenizer) -> None:
    task = scene_task("relation", 10, image_size=SIDE)
    result = zero_shot(model, PREPROCESS, tokenizer, task, task="relation", options=EncodeOptions(batch_size=4))
    images = encode_images(model, task, PREPROCESS)
    hits = 0
    for k in range(10):
        scores = encode_texts(model, tokenizer, cast(list[str], task.prompts(k))) @ images[k]
        hits += int(scores.argmax()) == task.label(k)
    assert 0 < hits < 10  # else this could not fail
    assert result.top1 == hits / 10 and result.chance == 0.5
    assert result.confusion is None and result.mean_per_class_recall is None and result.notes
    with pytest.raises(ValueError, match="leave the templates out"):
        zero_shot(model, PREPROCESS, tokenizer, task, "a {}")


def test_zero_shot_says_what_is_wrong(tokenizer: Tokenizer) -> None:
    model = colour_model(tokenizer)
    with pytest.raises(ValueError, match="no pictures"):
        zero_shot(model, PREPROCESS, tokenizer, Colours(0))
    with pytest.raises(ValueError, match="at least two classes"):
        zero_shot(model, PREPROCESS, tokenizer, Colours(3, classes=["red"]))
    with pytest.raises(ValueError, match="'red'"):
        zero_shot(model, PREPROCESS, tokenizer, Colours(3, classes=["red", "blue", "red"]))
    with pytest.raises(ValueError, match="picture 2 has label 2"):
        zero_shot(model, PREPROCESS, tokenizer, Colours(3, classes=["red", "blue"]))


# Retrieval


def test_retrieval_by_hand(tokenizer: Tokenizer) -> None:
    # Three pictures, one a colour, two captions each.
    class Two(Colours):
        def captions(self, index: int) -> list[str]:
            return [NAMES[index], f"{NAMES[index]} picture"]

    result = retrieval(colour_model(tokenizer), PREPROCESS, tokenizer, Two(3))
    assert (result.n_images, result.n_texts, result.shared_texts) == (3, 6, 0)
    assert result.image_to_text_r1 == result.text_to_image_r1 == 1
    assert result.image_to_text_median_rank == result.text_to_image_median_rank == 1
    swapped = retrieval(colour_model(tokenizer, red="green", green="red"), PREPROCESS, tokenizer, Two(3))
    assert swapped.image_to_text_r1 == swapped.text_to_image_r1 == pytest.approx(1 / 3)
    # The red picture has the green captions before it, and ties with the blue ones: rank 1 + 2 + 2.
    assert (swapped.image_to_text_r5, swapped.image_to_text_median_rank) == (1, 5)
    assert swapped.text_to_image_median_rank == 3  # a red caption: green picture first, and a tie with the blue one
    assert swapped.chance_text_to_image_r10 == 1


def test_retrieval_counts_any_own_caption() -> None:
    image = torch.eye(3)
    text = torch.tensor([[0.9, 0.1, 0.0], [0, 0.2, 0.5], [0.1, 0.6, 0.0], [0.8, 0.0, 0.1], [0.0, 0.5, 0.4]])
    pairs = PairEmbeddings(image, text, list("abcde"), torch.tensor([0, 0, 1, 2, 2]))
    result = count_retrieval(pairs)
    # image 0: own a (0.9) leads. image 1: own c (0.6) leads. image 2: own e (0.4) is behind b (0.5).
    assert result.image_to_text_r1 == pytest.approx(2 / 3) and result.image_to_text_r5 == 1
    # a -> 0 first; b -> 0 last (0 against 0.2 and 0.5); c -> 1 first; d -> 2 second (0.1 against 0.8); e -> 2 second.
    assert result.text_to_image_r1 == pytest.approx(2 / 5)
    assert (result.image_to_text_median_rank, result.text_to_image_median_rank) == (1, 2)


def test_retrieval_chance_and_shared_captions(model: DualEncoder, tokenizer: Tokenizer) -> None:
    result = retrieval(model, PREPROCESS, tokenizer, SceneSource("test", 30, image_size=SIDE))
    assert result.n_texts == 150
    assert result.chance_text_to_image_r10 == pytest.approx(10 / 30)
    assert result.chance_image_to_text_r10 == pytest.approx(1 - math.comb(145, 10) / math.comb(150, 10))

    class Shared(Colours):
        def captions(self, index: int) -> list[str]:
            return [["twice here", "twice here"], ["shared", "mine"], ["shared"]][index]

    assert retrieval(model, PREPROCESS, tokenizer, Shared(3)).shared_texts == 2
    with pytest.raises(ValueError, match="no pictures"):
        retrieval(model, PREPROCESS, tokenizer, Colours(0))


def test_best_captions_show_equal_ones_once() -> None:
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    pairs = PairEmbeddings(torch.eye(2), text, ["a", "b", "b", "c"], torch.tensor([0, 0, 1, 1]))
    ranked = best_captions(pairs, [0, 1], 2)
    assert [[(c.text, c.own) for c in row] for row in ranked] == [
        [("a", True), ("b", True)],
        [("c", True), ("b", True)],
    ]
    assert best_captions(pairs, [1], 3)[0][2] == RankedCaption("a", 0.0, False)


# Reports


def printed(function: Any, *arguments: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    function(*arguments, console=Console(file=out, width=160))
    return out.getvalue()


def test_tables_hold_the_figures(tokenizer: Tokenizer) -> None:
    model = colour_model(tokenizer, red="green", green="red")
    result = zero_shot(model, PREPROCESS, tokenizer, Colours(11), "a {}", task="colours")
    text = printed(print_zero_shot, {"runs/[red]x": result})
    assert "runs/[red]x" in text and "27.3" in text and "33.3" in text and "needs six" in text
    assert "green (4)" in text and "blue (3)" not in text  # what red is taken for; blue is right
    pairs = RetrievalResult(100, 500, 0.11, 0.22, 0.33, 7.5, 0.44, 0.55, 0.66, 4, 0.077, 0.1, 8)
    rows = [line.split() for line in printed(print_retrieval, {"runs/a": pairs, "runs/b": pairs}).splitlines()]
    assert ["runs/a", "image", "->", "text", "100", "500", "11.0", "22.0", "33.0", "7.5", "7.7"] in rows
    assert rows.count(["text", "->", "image", "500", "100", "44.0", "55.0", "66.0", "4", "10.0"]) == 2
    assert any(row[:2] == ["8", "captions"] for row in rows)


def test_json_is_plain_and_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    classes = [*NAMES, "nothing", "at all", "here"]
    result = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(6, classes=classes), "a {}")
    file = tmp_path / "result.json"
    write_json(file, to_json(result))
    read = json.loads(file.read_text())
    assert read["top1"] == 1 and read["confusion"][0] == [2, 0, 0, 0, 0, 0] and read["per_class_recall"][3] is None
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"loss": math.nan})
    assert json.loads(file.read_text()) == read
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


AWKWARD = [
    "$x^2$ costs $5",
    "$\\frac$",
    "two\nlines\tand \x00 more",
    "🦊 fox 日本",
    "x" * 500,
    "",
    "[b]_{\\frac",
    "<i>&amp;",
    "ok",
]


@pytest.mark.parametrize("classes", [AWKWARD, AWKWARD * 4, AWKWARD * 16])
def test_confusion_picture_takes_any_name(classes: list[str], tmp_path: Path) -> None:
    rows = [[int(i == j) * 9 + int(j == 0) for j in range(len(classes))] for i in range(len(classes))]
    rows[1] = [0] * len(classes)  # a class without pictures
    confusion_png(rows, classes, tmp_path / "confusion", title="$a^b$ [x")
    with Image.open(tmp_path / "confusion") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert image.format == "PNG" and min(image.size) > 400 and max(image.size) < 4000
    assert (pixels == (8, 48, 107)).all(2).any()  # the darkest blue: a class that is always right


def test_confusion_colours_are_shares_of_the_row(tmp_path: Path) -> None:
    confusion_png([[10, 0], [10, 10]], ["first", "second"], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        dark = (np.asarray(image.convert("RGB")) == (8, 48, 107)).all(2)
    dark[:, int(0.8 * image.width) :] = False  # the colour bar
    rows = dark.nonzero()[0]
    assert len(rows) and rows.max() < image.height / 2  # the first class alone is always right


def test_own_captions_carry_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []
    monkeypatch.setattr(pictures, "_draw_tick", lambda draw, x, y: ticks.append(y))
    ranked = [RankedCaption("a", 0.5, True), RankedCaption("b", 0.4, False), RankedCaption("c", 0.3, True)]
    example_sheet([Image.new("RGB", (9, 9))], [ranked], tmp_path / "sheet.png")
    assert len(ticks) == 3  # two of them, and the legend


def test_example_sheet_takes_any_caption(tmp_path: Path) -> None:
    ranked = [[RankedCaption(text, 0.5, False) for text in AWKWARD[k : k + 3]] for k in range(3)]
    images = [Image.new("RGB", size, "red") for size in ((300, 10), (3, 400), (64, 64))]
    example_sheet(images, ranked, tmp_path / "plain.png", title="$t$")
    own = [[caption._replace(own=True) for caption in row] for row in ranked]
    example_sheet(images, own, tmp_path / "own.png", title="$t$")
    green = []
    for name in ("plain.png", "own.png"):
        with Image.open(tmp_path / name) as image:
            green.append(int((np.asarray(image.convert("RGB")) == (17, 122, 67)).all(2).sum()))
    assert 0 < green[0] < 0.1 * green[1]  # only the legend's tick, against own captions
    with pytest.raises(ValueError, match="at least one"):
        example_sheet([], [], tmp_path / "none.png")


def test_examples_are_spread_over_the_source(model: DualEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shown = []

    class Spy(SceneSource):
        def image(self, index: int) -> Image.Image:
            shown.append(index)
            return super().image(index)

    source = Spy("test", 12, image_size=SIDE)
    pairs = encode_pairs(model, PREPROCESS, tokenizer, source)
    shown.clear()
    write_examples(source, pairs, tmp_path / "examples.png", count=4)
    assert shown == [0, 3, 6, 9] and (tmp_path / "examples.png").stat().st_size > 1000
    write_examples(source, pairs, tmp_path / "examples.png", count=99)
