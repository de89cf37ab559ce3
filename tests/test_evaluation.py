"""Encoding, zero-shot classification and retrieval, on tiny and on made-up models, against scikit-learn and by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from support.sources import FakePairs
from torch import Tensor, nn

from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.data.subset import Subset
from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_readable, encode_texts, fingerprint
from miniclip.evaluation.prompts import fill_templates, resolve_templates
from miniclip.evaluation.result import difference, to_json
from miniclip.evaluation.retrieval import (
    PairEmbeddings,
    RankedCaption,
    best_captions,
    count_retrieval,
    encode_pairs,
    retrieval,
)
from miniclip.evaluation.zeroshot import classifier_of, embed_prompts, predict, zero_shot
from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TwoTowers
from miniclip.models.tokenizer import Tokenizer

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
    """Pure red, green and blue images in turn: a LabelledSource and a PairSource, and what is asked of them.

    names: all names of each class. lost: rows that cannot be read.
    """

    def __init__(
        self,
        n: int,
        classes: Sequence[str] = NAMES,
        names: list[list[str]] | None = None,
        lost: Sequence[int] = (),
    ) -> None:
        self.n, self.classes, self.lost = n, list(classes), lost
        if names is not None:
            self.names, self.classes = names, [own[0] for own in names]

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> Image.Image:
        if index in self.lost:
            raise BadImage(f"image {index} cannot be read")
        return Image.new("RGB", (40, 30), [(255, 0, 0), (0, 255, 0), (0, 0, 255)][index % 3])

    def label(self, index: int) -> int:
        return index % 3

    def captions(self, index: int) -> list[str]:
        return [f"{NAMES[index % 3]} {index}"]

    def name(self, index: int) -> str:
        return f"image {index}"

    def column(self, name: str) -> list[Any]:
        raise ValueError(name)

    def fingerprint(self) -> str:
        return "colours"


class ColourModel(nn.Module):
    """Embeds a image as its mean colour, and a text as the sum of the axes of the colours that it names.

    confused: a colour word and the one that it is taken for.
    """

    def __init__(self, tokenizer: Tokenizer, confused: dict[str, str] | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(embed_dim=4)
        self.logit_scale = nn.Parameter(torch.zeros(()))
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


class Made(nn.Module):
    """A model and its tokenizer, with an embedding chosen for each image of `Numbered` and for each text."""

    def __init__(self, image: Any, text: Mapping[str, Any], scale: float = 1.0) -> None:
        super().__init__()
        self.image = torch.as_tensor(image, dtype=torch.float32)
        self.row_of = {name: row for row, name in enumerate(text)}
        self.text = torch.stack([torch.as_tensor(vector, dtype=torch.float32) for vector in text.values()])
        self.config = SimpleNamespace(embed_dim=self.image.shape[1])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.logit_bias = None

    def encode_image(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (PREPROCESS.mean, PREPROCESS.std))
        red, green, _ = (255 * (image * std + mean)).mean((2, 3)).round().long().unbind(1)
        return self.image[red + 256 * green]

    def encode_text(self, text: Tensor) -> Tensor:
        return self.text[text[:, 0]]

    def tokens(self, texts: list[str]) -> Tensor:
        return torch.tensor([[self.row_of[text]] for text in texts])


class Numbered:
    """Pictures whose colour is their number; first: of the first."""

    def __init__(self, labels: Sequence[int], classes: Sequence[str] = (), first: int = 0) -> None:
        self.labels, self.classes, self.first = labels, list(classes), first

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        number = self.first + index
        return Image.new("RGB", (SIDE, SIDE), (number % 256, number // 256, 0))

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"number {index}"


def made_zero_shot(made: Made, dataset: Numbered, *arguments: Any, **options: Any) -> Any:
    return zero_shot(cast(TwoTowers, made), PREPROCESS, made.tokens, cast(Any, dataset), *arguments, **options)


def unit(vectors: Any) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


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
    rough = encode_texts(model, tokenizer, texts, EncodeOptions(precision="bf16"))
    assert not torch.equal(batched, rough)
    torch.testing.assert_close(batched, rough, atol=0.05, rtol=0)
    torch.testing.assert_close(rough.norm(dim=1), torch.ones(7))


def test_towers_run_in_evaluation_mode_and_every_module_gets_its_own_back(
    model: DualEncoder, tokenizer: Tokenizer
) -> None:
    model.train()
    model.visual.eval()  # frozen statistics, say
    before = [module.training for module in model.modules()]
    encode_texts(model, tokenizer, ["a"])
    with pytest.raises(BadImage, match="image 0"):
        encode_images(model, Colours(3, lost=[0]), PREPROCESS)
    assert [module.training for module in model.modules()] == before
    assert any(before) and not all(before) and torch.is_grad_enabled()
    seen = []

    class Spy(ColourModel):
        def encode_image(self, image: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return super().encode_image(image)

    spy = cast(DualEncoder, Spy(tokenizer).train())
    encode_images(spy, Colours(2), PREPROCESS)
    encode_images(spy, Colours(2), PREPROCESS, EncodeOptions(precision="bf16"))
    assert seen == [(False, False, False), (False, False, True)]


def test_options_are_checked() -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"batch_size": 0}, {"precision": "fp8"}, {"max_bad_fraction": 1.5})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EncodeOptions(**wrong)


def test_unreadable_images_are_left_out_and_named(tokenizer: Tokenizer) -> None:
    model = colour_model(tokenizer)
    options = EncodeOptions(batch_size=2, max_bad_fraction=0.5)
    found = encode_readable(model, Colours(7, lost=[1, 4, 5]), PREPROCESS, options)
    assert found.rows.tolist() == [0, 2, 3, 6] and found.rows.dtype == torch.int64
    whole = encode_images(model, Colours(7), PREPROCESS)
    assert torch.equal(found.values, whole[found.rows])
    assert found.bad == [f"image {k} cannot be read" for k in (1, 4, 5)]
    with pytest.raises(BadImage, match="image 1 cannot be read"):
        encode_readable(model, Colours(7, lost=[1, 4, 5]), PREPROCESS, EncodeOptions(batch_size=2))
    with pytest.raises(BadImage, match="image 1 "):  # whatever the share: this one promises all rows
        encode_images(model, Colours(7, lost=[1]), PREPROCESS, options)
    with pytest.raises(TooManyBad, match=r"4 of 7 .*image 1 cannot be read; image 4"):
        encode_readable(model, Colours(7, lost=[1, 4, 5, 6]), PREPROCESS, options)
    none = encode_readable(model, Colours(3, lost=range(3)), PREPROCESS, EncodeOptions(max_bad_fraction=1))
    assert none.values.shape == (0, 4) and len(none.rows) == 0 and len(none.bad) == 3
    assert encode_readable(model, Colours(7), PREPROCESS, options).rows.tolist() == list(range(7))


def test_fingerprint_of_images_is_of_their_pixels_and_order(tokenizer: Tokenizer) -> None:
    model = colour_model(tokenizer)
    first, second, third = (Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue"))

    def seen(*images: Image.Image, batch_size: int = 256, by: DualEncoder = model) -> str:
        source = FakePairs(len(images), draw=lambda index: images[index])
        return encode_readable(by, source, PREPROCESS, EncodeOptions(batch_size)).fingerprint

    whole = seen(first, second, third)
    assert len(whole) == 32 and {seen(first.copy(), second, third, batch_size=size) for size in (1, 2, 3)} == {whole}
    touched = second.copy()
    touched.putpixel((39, 29), (0, 129, 0))  # green is (0, 128, 0)
    others = [
        seen(first, touched, third),
        seen(second, first, third),
        seen(first, second),
        seen(first, second, third, third),
        seen(first, second, third.resize((30, 40))),  # equal bytes in another shape
    ]
    assert len({whole, *others}) == 6
    lost = encode_readable(model, Colours(3, lost=[1]), PREPROCESS, EncodeOptions(max_bad_fraction=1))
    assert lost.fingerprint != encode_readable(model, Colours(3), PREPROCESS).fingerprint
    assert seen(first, second, third, by=colour_model(tokenizer, red="green")) == whole


def test_fingerprint_of_a_model_is_of_every_bit() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def seen() -> str:
        return fingerprint(cast(TwoTowers, layers))

    whole = seen()
    assert len(whole) == 32 and seen() == whole
    with torch.no_grad():
        bits = layers[0].weight.view(torch.int32)
        bits[3, 2] ^= 1  # the last bit of the mantissa of the last weight
        assert seen() != whole
        bits[3, 2] ^= 1
        assert seen() == whole
        for name in ("running_mean", "running_var"):
            statistic = getattr(layers[1], name)
            statistic[1] += 1
            assert seen() != whole
            statistic[1] -= 1
        assert seen() == whole
        layers[0].bias.neg_()
        assert seen() != whole
        layers[0].bias.neg_()
        layers[0].weight = nn.Parameter(layers[0].weight.view(3, 4))  # the same numbers in another shape
        assert seen() != whole
    ones = nn.Linear(1, 1)
    ones.load_state_dict({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)})
    assert fingerprint(cast(TwoTowers, ones)) != fingerprint(cast(TwoTowers, ones.to(torch.bfloat16)))
    assert fingerprint(cast(TwoTowers, ones)) == fingerprint(cast(TwoTowers, ones))


def test_results_do_not_depend_on_the_batch_size(model: DualEncoder, tokenizer: Tokenizer) -> None:
    task, source = SceneTask("shape", 23, image_size=SIDE), SceneSource("test", 9, image_size=SIDE)
    whole, pairs = (f(model, PREPROCESS, tokenizer, s) for f, s in ((zero_shot, task), (retrieval, source)))
    for size in (1, 5, 23):
        options = EncodeOptions(batch_size=size)
        found = zero_shot(model, PREPROCESS, tokenizer, task, options=options)
        assert found.details["confusion"] == whole.details["confusion"] and found.fingerprint == whole.fingerprint
        again = retrieval(model, PREPROCESS, tokenizer, source, options=options)
        assert again.figures == pairs.figures and again.fingerprint == pairs.fingerprint


# The classifier


def test_classifier_equals_open_clip(model: DualEncoder, tokenizer: Tokenizer) -> None:
    import open_clip

    names = ["circle", "red star", "hoop", "crescent"]
    expected = open_clip.build_zero_shot_classifier(
        model.eval(), tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=3
    ).T
    weights = classifier_of(
        embed_prompts(model, tokenizer, fill_templates([[name] for name in names], resolve_templates("openai80")))
    )
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    # classes with different numbers of prompts
    weights = classifier_of(embed_prompts(model, tokenizer, [["a", "b"], ["c"]]))
    each = encode_texts(model, tokenizer, ["a", "b", "c"])
    torch.testing.assert_close(weights[0], nn.functional.normalize(each[0] + each[1], dim=0))
    torch.testing.assert_close(weights[1], each[2])
    with pytest.raises(ValueError, match="at least one prompt"):
        embed_prompts(model, tokenizer, [["a"], []])


# Zero-shot


def test_zero_shot_counts_by_hand(tokenizer: Tokenizer) -> None:
    perfect = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(11), task="colours")
    assert set(perfect.figures) == {"top1", "balanced_accuracy", "macro_f1", "ece"}
    assert (perfect["top1"], perfect["balanced_accuracy"], perfect["macro_f1"]) == (1, 1, 1)
    assert perfect.figures["top1"] == (1, 1, 1, 11) and perfect.groups == (11,) and perfect.task == "colours"
    assert perfect.details["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 3]]
    assert perfect.details["chance"] == 1 / 3 and perfect.details["classes"] == NAMES and "six" in perfect.notes[0]
    assert "templates" not in perfect.details and perfect.raw is None
    model = colour_model(tokenizer, red="green", green="red")
    swapped = zero_shot(model, PREPROCESS, tokenizer, Colours(11), "a {}", task="colours")
    assert swapped["top1"] == pytest.approx(3 / 11)
    assert swapped["balanced_accuracy"] == swapped["macro_f1"] == pytest.approx(1 / 3)
    assert [row["recall"] for row in swapped.details["per_class"]] == [0, 0, 1]
    assert swapped.details["confusion"] == [[0, 4, 0], [4, 0, 0], [0, 0, 3]]
    assert swapped.fingerprint == perfect.fingerprint  # of the data alone
    apart = difference(perfect, swapped)["top1"]
    assert apart.value == pytest.approx(-8 / 11) and apart.low < apart.value < apart.high < 0
    # a collapsed model is not rewarded
    model = colour_model(tokenizer, red="green", blue="green")
    collapsed = zero_shot(model, PREPROCESS, tokenizer, Colours(9), "a {}")
    assert collapsed["top1"] == collapsed["balanced_accuracy"] == collapsed["macro_f1"] == 0
    assert all(collapsed.details["confusion"][k][k] == 0 for k in range(3))


def test_zero_shot_has_a_top5_from_six_classes(tokenizer: Tokenizer) -> None:
    classes = [*NAMES, "nothing", "at all", "here"]
    result = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(6, classes=classes), "a {}")
    assert result["top1"] == result["top5"] == 1 and result.notes == ()
    assert result["balanced_accuracy"] == result["macro_f1"] == 1  # absent classes are no part of the mean
    rows = to_json(result)["details"]["per_class"]
    assert [row["recall"] for row in rows] == [1, 1, 1, None, None, None]
    assert rows[3] == {"class": "nothing", "n": 0, "precision": None, "recall": None, "f1": None}
    five = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(6, classes=classes[:5]), "a {}")
    assert "top5" not in five.figures and "five" not in five.notes


@pytest.fixture(scope="module")
def sample() -> tuple[Made, Numbered, dict[str, np.ndarray]]:
    """300 images of seven classes, of which the third has none; 60 foreign ones from number 300 on; two templates."""
    draws = np.random.default_rng(5)
    names = [f"c{k}" for k in range(7)]
    centres = draws.normal(size=(7, 12))
    labels = draws.choice([0, 0, 0, 1, 3, 4, 5, 6], 300)
    image = np.concatenate([centres[labels] + 1.6 * draws.normal(size=(300, 12)), draws.normal(size=(60, 12))])
    image = unit(image.astype(np.float32))
    text = {f"{word} {name}": centres[k] + draws.normal(size=12) for word in "ab" for k, name in enumerate(names)}
    text = {prompt: unit(vector.astype(np.float32)) for prompt, vector in text.items()}
    made = Made(image, text, scale=7.0)
    by_template = np.stack([np.stack([text[f"{word} {name}"] for name in names]) for word in "ab"])
    cosines = image @ unit(by_template.mean(0)).T
    expected = {"labels": labels, "logits": 7 * cosines, "by_template": np.einsum("ne,tce->tnc", image, by_template)}
    return made, Numbered(labels.tolist(), names), expected


TEMPLATES = ["a {}", "b {}"]


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_zero_shot_equals_scikit_learn(sample: tuple[Made, Numbered, dict[str, np.ndarray]]) -> None:
    made, dataset, expected = sample
    result = made_zero_shot(made, dataset, TEMPLATES)
    labels, logits = expected["labels"], expected["logits"][:300]
    predicted = logits.argmax(1)
    assert 0.3 < (predicted == labels).mean() < 0.9 and (predicted == 2).any()  # else little would be tested
    assert result["top1"] == pytest.approx((predicted == labels).mean(), abs=1e-12)
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)), abs=1e-12)
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    present = [0, 1, 3, 4, 5, 6]
    assert result["macro_f1"] == pytest.approx(f1_score(labels, predicted, labels=present, average="macro"), abs=1e-12)
    assert result.details["confusion"] == confusion_matrix(labels, predicted, labels=range(7)).tolist()
    scores = precision_recall_fscore_support(labels, predicted, labels=range(7), zero_division=np.nan)
    for row, precision, recall, f1, n in zip(result.details["per_class"], *scores, strict=True):
        assert row["n"] == n and row["precision"] == pytest.approx(precision, abs=1e-12, nan_ok=True)
        assert row["recall"] == pytest.approx(recall, abs=1e-12, nan_ok=True)
        assert row["f1"] == pytest.approx(f1, abs=1e-12, nan_ok=True)
    assert [row["class"] for row in result.details["per_class"]] == dataset.classes
    absent = result.details["per_class"][2]
    assert (absent["n"], absent["precision"], absent["f1"]) == (0, 0, 0) and math.isnan(absent["recall"])

    confidence, hit = softmax(logits, axis=1).max(1), predicted == labels
    place = np.ceil(15 * confidence).astype(int) - 1
    gaps = [abs(hit[place == b].sum() - confidence[place == b].sum()) / 300 for b in range(15)]
    assert result["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    for b, row in enumerate(result.details["calibration"]):
        assert (row["low"], row["high"], row["n"]) == (b / 15, (b + 1) / 15, (place == b).sum())
        if row["n"]:
            assert row["accuracy"] == pytest.approx(hit[place == b].mean())
            assert row["confidence"] == pytest.approx(confidence[place == b].mean(), abs=1e-6)
    for figure in result.figures.values():
        assert figure.low < figure.value < figure.high and figure.n == 300


def test_each_template_by_itself(sample: tuple[Made, Numbered, dict[str, np.ndarray]]) -> None:
    made, dataset, expected = sample
    found = made_zero_shot(made, dataset, TEMPLATES).details["templates"]
    hits = [(scores[:300].argmax(1) == expected["labels"]).mean() for scores in expected["by_template"]]
    assert [row["template"] for row in found] == TEMPLATES and hits[0] != hits[1]
    assert [row["top1"] for row in found] == pytest.approx(hits, abs=1e-12)
    alone = [made_zero_shot(made, dataset, [template]) for template in TEMPLATES]
    assert [row["top1"] for row in found] == [result["top1"] for result in alone]
    assert all("templates" not in result.details for result in alone)


def test_foreign_images_equal_scikit_learn(sample: tuple[Made, Numbered, dict[str, np.ndarray]]) -> None:
    made, dataset, expected = sample
    plain, foreign = made_zero_shot(made, dataset, TEMPLATES), Numbered([0] * 60, first=300)
    result = made_zero_shot(made, dataset, TEMPLATES, foreign=foreign)
    logits = expected["logits"]
    shares = softmax(logits, axis=1)
    scores = {
        "free_energy": logsumexp(logits, axis=1),
        "max_probability": shares.max(1),
        "entropy": (shares * np.log(shares)).sum(1),
    }
    inside = np.arange(360) < 300
    for name, score in scores.items():
        auroc, fpr = result[f"auroc_{name}"], result[f"fpr95_{name}"]
        assert auroc == pytest.approx(roc_auc_score(inside, score), abs=1e-12) and 0.5 < auroc < 0.99
        threshold = np.sort(score[:300])[::-1][285 - 1]  # 285 = 95 % of 300
        assert fpr == pytest.approx((score[300:] >= threshold).mean(), abs=1e-12) and 0 < fpr < 1
        for figure in (result.figures[f"auroc_{name}"], result.figures[f"fpr95_{name}"]):
            assert figure.low <= figure.value <= figure.high and figure.n == 360
    # what the own images give does not change
    assert {name: result[name] for name in plain.figures} == {name: plain[name] for name in plain.figures}
    assert result.figures["top1"].n == result.figures["ece"].n == 300 and result.groups == (300, 60)
    assert result.details == plain.details or str(result.details) == str(plain.details)  # NaN is not itself
    np.testing.assert_allclose(result.raw[0], shares[:300].max(1), atol=1e-6)
    np.testing.assert_allclose(result.raw[1], shares[300:].max(1), atol=1e-6)
    assert result.fingerprint != plain.fingerprint
    fewer = made_zero_shot(made, dataset, TEMPLATES, foreign=Numbered([0] * 59, first=300))
    assert fewer.fingerprint not in (result.fingerprint, plain.fingerprint)


def test_calibration_error_by_hand() -> None:
    # log 3 times the cosines: (1, 0) has the logits (log 3, 0), so 3 / 4; (0.6, 0.8) has 3^0.2 / (1 + 3^0.2)
    sure, unsure = 0.75, 3**0.2 / (1 + 3**0.2)
    made = Made([[1, 0]] * 4 + [[0.6, 0.8]] * 2, {"east": [1, 0], "north": [0, 1]}, scale=math.log(3))
    result = made_zero_shot(made, Numbered([0, 0, 1, 1, 1, 1], ["east", "north"]), "{}")
    assert result["top1"] == pytest.approx(4 / 6)
    assert result["ece"] == pytest.approx((4 * (sure - 0.5) + 2 * (1 - unsure)) / 6, abs=1e-6)
    filled = [row for row in result.details["calibration"] if row["n"]]
    assert [(row["n"], row["accuracy"]) for row in filled] == [(2, 1), (4, 0.5)]
    assert [row["confidence"] for row in filled] == pytest.approx([unsure, sure], abs=1e-6)
    assert [row["low"] for row in filled] == [8 / 15, 11 / 15]


def test_several_names_of_a_class(tokenizer: Tokenizer) -> None:
    # By its first name alone the second class cannot be told from the first; its other names draw it to green.
    names = [["red"], ["dark red", "green", "green grass"], ["blue", "blue sky"]]
    dataset = Colours(9, names=names)
    result = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, dataset, ["a {}", "the {}"])
    assert result["top1"] == 1 and result.details["classes"] == ["red", "dark red", "blue"]
    assert [row["top1"] for row in result.details["templates"]] == [1, 1]
    first = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Colours(9, classes=dataset.classes), "a {}")
    assert first["top1"] == pytest.approx(1 / 3)
    # rows of one template: both names count in it, and only its own
    made = Made(
        [[1, 0, 0], [0, 1, 0]],
        {"a x": [0, 0, 1], "b x": [0, 1, 0], "a y": [1, 0, 0], "b y": [0, 1, 0], "a z": [0, 1, 0.1], "b z": [1, 0, 0]},
    )
    both = Numbered([0, 1], ["x", "z"])
    both.names = [["x", "y"], ["z"]]  # type: ignore[attr-defined]
    assert [row["top1"] for row in made_zero_shot(made, both, TEMPLATES).details["templates"]] == [1, 0]


def test_zero_shot_uses_the_prompts_of_a_task(model: DualEncoder, tokenizer: Tokenizer) -> None:
    task = SceneTask("colour", 16, image_size=SIDE)
    result = zero_shot(model, PREPROCESS, tokenizer, task)
    classifier = classifier_of(embed_prompts(model, tokenizer, task.class_prompts()))
    predicted = (encode_images(model, task, PREPROCESS) @ classifier.T).argmax(1)
    assert result["top1"] == np.mean([int(p) == task.label(k) for k, p in enumerate(predicted)])

    class Prompted(Colours):
        def class_prompts(self) -> list[list[str]]:
            return [["a green thing"], ["so red", "red"], ["blue"]]

        def prompts(self, index: int) -> list[str] | None:
            return None

    taken = zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Prompted(9))
    assert [row["recall"] for row in taken.details["per_class"]] == [0, 0, 1]
    # Templates that are given win.
    assert zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, Prompted(9), "a {}")["top1"] == 1


def test_zero_shot_with_sentences_of_each_image(model: DualEncoder, tokenizer: Tokenizer) -> None:
    task = SceneTask("relation", 10, image_size=SIDE)
    result = zero_shot(model, PREPROCESS, tokenizer, task, task="relation", options=EncodeOptions(batch_size=4))
    images = encode_images(model, task, PREPROCESS)
    hits = 0
    for k in range(10):
        scores = encode_texts(model, tokenizer, cast(list[str], task.prompts(k))) @ images[k]
        hits += int(scores.argmax()) == task.label(k)
    assert 0 < hits < 10  # else this could not fail
    assert result["top1"] == hits / 10 and set(result.figures) == {"top1"} and result.figures["top1"].n == 10
    assert result.details == {"chance": 0.5} and "no confusion matrix" in result.notes[0]
    for more in ({"templates": "a {}"}, {"foreign": Colours(3)}):
        with pytest.raises(ValueError, match="leave templates and foreign images out"):
            zero_shot(model, PREPROCESS, tokenizer, task, **more)


def test_labels_stay_with_their_images_when_some_cannot_be_read(tokenizer: Tokenizer) -> None:
    options = EncodeOptions(batch_size=3, max_bad_fraction=0.5)
    model = colour_model(tokenizer)
    result = zero_shot(model, PREPROCESS, tokenizer, Colours(11, lost=[0, 4]), "a {}", options=options)
    assert result["top1"] == 1 and result.details["confusion"] == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]
    assert result.figures["top1"].n == 9 and result.groups == (9,)
    assert "2 images cannot be read and are left out: image 0 cannot be read; image 4" in result.notes[0]
    foreign = Colours(4, lost=[2])
    found = zero_shot(model, PREPROCESS, tokenizer, Colours(11), "a {}", foreign=foreign, options=options)
    assert found.groups == (11, 3) and found.notes[0].startswith("1 images cannot be read")
    with pytest.raises(BadImage, match="image 4 cannot be read"):
        zero_shot(model, PREPROCESS, tokenizer, Colours(11, lost=[4]), "a {}")
    with pytest.raises(ValueError, match="colours: none of the 3 images can be read: image 0"):
        every = EncodeOptions(max_bad_fraction=1)
        zero_shot(model, PREPROCESS, tokenizer, Colours(3, lost=range(3)), "a {}", task="colours", options=every)


def test_zero_shot_fingerprint_is_of_images_and_labels(tokenizer: Tokenizer) -> None:
    class Shifted(Colours):
        def label(self, index: int) -> int:
            return (index + 1) % 3

    def seen(dataset: Any, templates: str = "a {}") -> str:
        return zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, dataset, templates, resamples=2).fingerprint

    assert seen(Colours(6)) == seen(Colours(6), "the {}")
    assert len({seen(Colours(6)), seen(Colours(7)), seen(Shifted(6))}) == 3


def test_zero_shot_says_what_is_wrong(tokenizer: Tokenizer) -> None:
    for dataset, message in (
        (Colours(0), "no images"),
        (Colours(3, classes=["red"]), "at least two classes"),
        (Colours(3, classes=["red", "blue", "red"]), "'red'"),
        (Colours(3, classes=["red", "blue"]), "image 2 has label 2"),
    ):
        with pytest.raises(ValueError, match=message):
            zero_shot(colour_model(tokenizer), PREPROCESS, tokenizer, dataset)


# Retrieval


def test_retrieval_by_hand(tokenizer: Tokenizer) -> None:
    # Three images, one a colour, two captions each.
    class Two(Colours):
        def captions(self, index: int) -> list[str]:
            return [NAMES[index], f"{NAMES[index]} image"]

    result = retrieval(colour_model(tokenizer), PREPROCESS, tokenizer, Two(3), task="three")
    assert (result.details["n_images"], result.details["n_texts"], result.details["shared_texts"]) == (3, 6, 0)
    assert result.kind == "retrieval" and result.task == "three" and result.notes == ()
    for way, n in (("image_to_text", 3), ("text_to_image", 6)):
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank", "map"):
            assert result.figures[f"{way}_{name}"] == (1, 1, 1, n)
    assert len(result.figures) == 12 and result.groups == (3,)
    swapped = retrieval(colour_model(tokenizer, red="green", green="red"), PREPROCESS, tokenizer, Two(3))
    assert swapped["image_to_text_r1"] == swapped["text_to_image_r1"] == pytest.approx(1 / 3)
    # The red image has the green captions before it, and ties with the blue ones: rank 1 + 2 + 2.
    assert (swapped["image_to_text_r5"], swapped["image_to_text_median_rank"]) == (1, 5)
    assert swapped["image_to_text_mean_rank"] == pytest.approx(11 / 3)
    # Its captions have the precisions 1 / 5 and 2 / 6.
    assert swapped["image_to_text_map"] == pytest.approx((1 + 2 * (1 / 5 + 2 / 6) / 2) / 3)
    assert swapped["text_to_image_median_rank"] == 3  # a red caption: green image first, and a tie with the blue one
    assert swapped["text_to_image_map"] == pytest.approx((2 + 4 / 3) / 6)
    assert swapped.details["chance_text_to_image_r10"] == 1
    assert swapped.fingerprint == result.fingerprint


def test_retrieval_counts_any_own_caption() -> None:
    image = torch.eye(3)
    text = torch.tensor([[0.9, 0.1, 0.0], [0, 0.2, 0.5], [0.1, 0.6, 0.0], [0.8, 0.0, 0.1], [0.0, 0.5, 0.4]])
    pairs = PairEmbeddings(image, text, list("abcde"), torch.tensor([0, 0, 1, 2, 2]))
    result = count_retrieval(pairs)
    # image 0: own a (0.9) leads. image 1: own c (0.6) leads. image 2: own e (0.4) is behind b (0.5).
    assert result["image_to_text_r1"] == pytest.approx(2 / 3) and result["image_to_text_r5"] == 1
    # image 0: a is first, b (0) has c, d and the tie e before it: (1 / 1 + 2 / 5) / 2. image 1: c is first.
    # image 2: e is behind b, and so is d: (1 / 2 + 2 / 3) / 2.
    assert result["image_to_text_map"] == pytest.approx((7 / 10 + 1 + 7 / 12) / 3)
    # a -> 0 first; b -> 0 last (0 against 0.2 and 0.5); c -> 1 first; d -> 2 second (0.1 against 0.8); e -> 2 second.
    assert result["text_to_image_r1"] == pytest.approx(2 / 5)
    assert (result["image_to_text_median_rank"], result["text_to_image_median_rank"]) == (1, 2)
    assert result["image_to_text_mean_rank"] == pytest.approx(4 / 3)
    assert result["text_to_image_mean_rank"] == pytest.approx(9 / 5)
    assert result["text_to_image_map"] == pytest.approx((1 + 1 / 3 + 1 + 1 / 2 + 1 / 2) / 5)
    # A drawn image brings its captions: of images 0 and 2, the latter twice, come a, b and twice d and e.
    drawn = result.statistic(np.array([1.0, 0.0, 2.0]))
    assert drawn["image_to_text_r1"] == pytest.approx(1 / 3) and drawn["text_to_image_r1"] == pytest.approx(1 / 6)
    assert drawn["text_to_image_mean_rank"] == pytest.approx((1 + 3 + 2 * (2 + 2)) / 6)


def test_retrieval_figures_have_intervals() -> None:
    draws = torch.Generator().manual_seed(1)
    image, owner = torch.randn(60, 8, generator=draws), torch.arange(60).repeat_interleave(2)
    text = image[owner] + 1.2 * torch.randn(120, 8, generator=draws)
    normal = nn.functional.normalize
    pairs = PairEmbeddings(normal(image, dim=1), normal(text, dim=1), [f"t{k}" for k in range(120)], owner)
    result = count_retrieval(pairs)
    for name, figure in result.figures.items():
        assert figure.low <= figure.value <= figure.high and figure.low < figure.high, name
        assert figure.n == (60 if name.startswith("image") else 120)
    for way in ("image_to_text", "text_to_image"):
        assert 0 < result[f"{way}_r1"] < result[f"{way}_r5"] < result[f"{way}_r10"] < 1  # else little was tested
    # about as wide as that of a share over 60 images
    recall = result.figures["image_to_text_r5"]
    half = 1.96 * math.sqrt(recall.value * (1 - recall.value) / 60)
    assert (recall.high - recall.low) / 2 == pytest.approx(half, rel=0.25)
    assert count_retrieval(pairs, resamples=0).figures["text_to_image_r1"].value == result["text_to_image_r1"]
    assert math.isnan(count_retrieval(pairs, resamples=0).figures["text_to_image_r1"].low)


def test_retrieval_chance_and_shared_captions(model: DualEncoder, tokenizer: Tokenizer) -> None:
    result = retrieval(model, PREPROCESS, tokenizer, SceneSource("test", 30, image_size=SIDE))
    assert result.details["n_texts"] == 150
    assert result.details["chance_text_to_image_r10"] == pytest.approx(10 / 30)
    chance = 1 - math.comb(145, 10) / math.comb(150, 10)
    assert result.details["chance_image_to_text_r10"] == pytest.approx(chance)

    class Shared(Colours):
        def captions(self, index: int) -> list[str]:
            return [["twice here", "twice here"], ["shared", "mine"], ["shared"]][index]

    found = retrieval(model, PREPROCESS, tokenizer, Shared(3))
    assert found.details["shared_texts"] == 2 and found.notes[0].startswith("2 captions stand with more than one image")
    # a copy of its own caption with another image counts as wrong
    assert found["text_to_image_r1"] < 1
    with pytest.raises(ValueError, match="no images"):
        retrieval(model, PREPROCESS, tokenizer, Colours(0))

    class Silent(Colours):
        def captions(self, index: int) -> list[str]:
            return [] if index == 1 else ["red"]

    with pytest.raises(ValueError, match=r"image \(row\) 1 has no positive"):
        retrieval(colour_model(tokenizer), PREPROCESS, tokenizer, Silent(3))


def test_captions_stay_with_their_images_when_some_cannot_be_read() -> None:
    class Captioned(Numbered):
        def captions(self, index: int) -> list[str]:
            return [f"{letter}{index}" for letter in "ab"[: 1 + index % 2]]  # one or two

        def image(self, index: int) -> Image.Image:
            if index in (1, 3):
                raise BadImage(f"number {index} cannot be read")
            return super().image(index)

    axes = np.eye(6)
    made = Made(axes, {f"{letter}{k}": axes[k] for k in range(6) for letter in "ab"})
    source, model = cast(Any, Captioned([0] * 6)), cast(TwoTowers, made)
    options = EncodeOptions(batch_size=2, max_bad_fraction=0.5)
    pairs = encode_pairs(model, PREPROCESS, made.tokens, source, options)
    assert list(pairs.rows) == [0, 2, 4, 5] and pairs.texts == ["a0", "a2", "a4", "a5", "b5"]
    assert pairs.image_of_text.tolist() == [0, 1, 2, 3, 3]
    result = count_retrieval(pairs)
    assert result["image_to_text_r1"] == result["text_to_image_r1"] == 1 and result.groups == (4,)
    assert result.notes == (
        "2 images cannot be read and are left out: number 1 cannot be read; number 3 cannot be read",
    )
    alone = retrieval(model, PREPROCESS, made.tokens, cast(Any, Subset(source, pairs.rows)))
    assert alone.figures == result.figures
    with pytest.raises(BadImage, match="number 1 cannot be read"):
        retrieval(model, PREPROCESS, made.tokens, source)
    with pytest.raises(ValueError, match="none of the 1 images can be read: number 1"):
        only = cast(Any, Subset(source, [1]))
        retrieval(model, PREPROCESS, made.tokens, only, options=EncodeOptions(max_bad_fraction=1))


def test_retrieval_fingerprint_is_of_images_captions_and_owners(tokenizer: Tokenizer) -> None:
    class Owned(Colours):
        def __init__(self, *captions: list[str]) -> None:
            super().__init__(len(captions))
            self.owned = captions

        def captions(self, index: int) -> list[str]:
            return self.owned[index]

    def seen(*captions: list[str]) -> str:
        return encode_pairs(colour_model(tokenizer), PREPROCESS, tokenizer, Owned(*captions)).fingerprint

    whole = seen(["a", "b"], ["c"])
    assert whole == seen(["a", "b"], ["c"])
    others = [seen(["a"], ["b", "c"]), seen(["b", "a"], ["c"]), seen(["a", "b"], ["d"]), seen(["a", "b"], ["c"], ["c"])]
    assert len({whole, *others}) == 5


def test_best_captions_show_equal_ones_once() -> None:
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    pairs = PairEmbeddings(torch.eye(2), text, ["a", "b", "b", "c"], torch.tensor([0, 0, 1, 1]))
    ranked = best_captions(pairs, [0, 1], 2)
    assert [[(c.text, c.own) for c in row] for row in ranked] == [
        [("a", True), ("b", True)],
        [("c", True), ("b", True)],
    ]
    assert best_captions(pairs, [1], 3)[0][2] == RankedCaption("a", 0.0, False)


def test_scores_of_foreign_images_do_not_saturate() -> None:
    """At a scale of 100 the softmax of a sure prediction is 1 in any number format; its log-odds still say how sure."""
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.1, 0.0]])  # 80 and 50 nats above the rest
    judged = predict(torch.cat([cosines, torch.zeros(2, 0)], 1), torch.eye(3), 100.0)
    assert judged.confidence.tolist() == [1.0, 1.0]
    expected = [90 - math.log(math.exp(10) + 1), 60 - math.log(math.exp(10) + 1)]
    np.testing.assert_allclose(judged.log_odds.numpy(), expected, rtol=1e-6)
    assert judged.familiarity()["max_probability"][0] > judged.familiarity()["max_probability"][1]
    logits = (100.0 * cosines.double()).numpy()
    np.testing.assert_allclose(judged.free_energy.numpy(), -logsumexp(logits, 1), rtol=1e-6)
