"""Encoding, zero-shot classification and retrieval, on tiny and on made-up models, against scikit-learn and by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

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
    precision_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from support.models import tiny_model
from support.sources import FakeLabelled, FakePairs
from torch import Tensor, nn

from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.data.subset import Subset
from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_readable, encode_texts, fingerprint
from miniclip.evaluation.prompts import fill_templates, resolve_templates
from miniclip.evaluation.result import Evaluation, difference, main_figure, to_json
from miniclip.evaluation.retrieval import PairEmbeddings, best_captions, count_retrieval, encode_pairs, retrieval
from miniclip.evaluation.zeroshot import classifier_of, embed_prompts, predict, zero_shot
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.tokenizer import Tokenizer

PREPROCESS, TOKENIZER = Preprocess(32), Tokenizer(32)
NAMES = ["red", "green", "blue"]
TEMPLATES = ["a {}", "b {}"]


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return tiny_model()


class Made(nn.Module):
    """A model and its tokenizer: image k of a fake source is embedded as image[k], a text as text(it)."""

    def __init__(self, image: Any, text: Callable[[str], Any], scale: float = 1.0) -> None:
        super().__init__()
        self.image, self.text = torch.as_tensor(image, dtype=torch.float32), text
        self.known: list[str] = []
        self.config = SimpleNamespace(embed_dim=self.image.shape[1])
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(math.log(scale))), None

    def encode_image(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (PREPROCESS.mean, PREPROCESS.std))
        red, green, _ = (255 * (image * std + mean)).mean((2, 3)).round().long().unbind(1)
        return self.image[red + 256 * green]

    def encode_text(self, text: Tensor) -> Tensor:
        return torch.tensor(np.array([self.text(self.known[k]) for k in text[:, 0]]), dtype=torch.float32)

    def tokens(self, texts: list[str]) -> Tensor:
        self.known += texts
        return torch.arange(len(self.known) - len(texts), len(self.known))[:, None]


def colour_model(**confused: str) -> Made:
    """Image k is embedded as colour k % 3, a text as the sum of those it names. confused: what a word is taken for."""

    def embed(text: str) -> np.ndarray:
        words = [confused.get(word, word) for word in re.findall(r"\w+", text)]
        return np.array([words.count(name) for name in NAMES] + [0]) + 1e-3

    return Made(np.eye(4)[np.arange(12) % 3] + [0, 0, 0, 0.01], embed)


def colours(n: int, classes: list[str] = NAMES, **options: Any) -> FakeLabelled:
    return FakeLabelled(n, classes, [k % 3 for k in range(n)], **options)


def captioned(*captions: list[str], **options: Any) -> FakePairs:
    return FakePairs(len(captions), captions=captions, **options)


def classify(made: Any, dataset: Any, *arguments: Any, **options: Any) -> Evaluation:
    return zero_shot(made, PREPROCESS, made.tokens, dataset, *arguments, **options)


def retrieve(made: Any, source: Any, **options: Any) -> Evaluation:
    return retrieval(made, PREPROCESS, made.tokens, source, **options)


def unit(vectors: Any) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# Encoding


def test_encoded_items_equal_one_at_a_time(model: DualEncoder) -> None:
    source = SceneSource("test", 7, image_size=48)
    texts = ["a long caption of a red circle", "a", "one red ring", "", "a", "long " * 60, "one red ring"]
    images = encode_images(model, source, PREPROCESS, EncodeOptions(batch_size=3))
    batched = encode_texts(model, TOKENIZER, texts, EncodeOptions(batch_size=2))
    model.eval()
    with torch.no_grad():
        one = [model.encode_image(PREPROCESS(source.image(k))[None], normalize=True) for k in range(7)]
        each = [model.encode_text(TOKENIZER([text]), normalize=True) for text in texts]
    for found, expected in ((images, one), (batched, each)):
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(7))
    assert torch.equal(batched[1], batched[4]) and torch.equal(batched[2], batched[6])
    assert encode_texts(model, TOKENIZER, []).shape == (0, 16)
    rough = encode_texts(model, TOKENIZER, texts, EncodeOptions(precision="bf16"))
    assert not torch.equal(batched, rough)
    torch.testing.assert_close(batched, rough, atol=0.05, rtol=0)
    torch.testing.assert_close(rough.norm(dim=1), torch.ones(7))


def test_towers_run_in_evaluation_mode_and_every_module_gets_its_own_back(model: DualEncoder) -> None:
    model.train()
    model.visual.eval()  # frozen statistics, say
    before = [module.training for module in model.modules()]
    encode_texts(model, TOKENIZER, ["a"])
    with pytest.raises(BadImage, match="row 0"):
        encode_images(model, colours(3, broken=[0]), PREPROCESS)
    assert [module.training for module in model.modules()] == before
    assert any(before) and not all(before) and torch.is_grad_enabled()
    seen = []

    class Spy(Made):
        def encode_image(self, image: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            return super().encode_image(image)

    for precision in ("fp32", "bf16"):
        encode_images(Spy(np.eye(2), str).train(), colours(2), PREPROCESS, EncodeOptions(precision=precision))  # type: ignore
    assert seen == [(False, False, False), (False, False, True)]


def test_unreadable_images_are_left_out_and_named() -> None:
    model: Any = colour_model()

    def read(n: int, *broken: int, most: float = 0.5) -> Any:
        return encode_readable(model, colours(n, broken=broken), PREPROCESS, EncodeOptions(2, max_bad_fraction=most))

    found = read(7, 1, 4, 5)
    assert found.rows.tolist() == [0, 2, 3, 6] and found.rows.dtype == torch.int64
    assert found.bad == [f"row {k}: cut short" for k in (1, 4, 5)]
    assert torch.equal(found.values, encode_images(model, colours(7), PREPROCESS)[found.rows])
    none = read(3, 0, 1, 2, most=1)
    assert (none.values.shape, len(none.rows), len(none.bad)) == ((0, 4), 0, 3)
    assert read(7).rows.tolist() == list(range(7))
    with pytest.raises(BadImage, match="row 1: cut short"):
        read(7, 1, 4, 5, most=0)
    with pytest.raises(BadImage, match="row 1"):  # whatever the share: this one promises all rows
        encode_images(model, colours(7, broken=[1]), PREPROCESS, EncodeOptions(max_bad_fraction=0.5))
    with pytest.raises(TooManyBad, match=r"4 of 7 .*row 1: cut short; row 4"):
        read(7, 1, 4, 5, 6)


def test_fingerprint_of_images_is_of_their_pixels_and_order(model: DualEncoder) -> None:
    first, second, third = (Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue"))

    def seen(*images: Image.Image, batch_size: int = 256, by: DualEncoder = model, **options: Any) -> str:
        source = FakePairs(len(images), draw=lambda index: images[index], **options)
        return encode_readable(by, source, PREPROCESS, EncodeOptions(batch_size, max_bad_fraction=0.5)).fingerprint

    whole = seen(first, second, third)
    assert len(whole) == 32 and {seen(first.copy(), second, third, batch_size=size) for size in (1, 2, 3)} == {whole}
    assert seen(first, second, third, by=tiny_model(1)) == whole
    touched = second.copy()
    touched.putpixel((39, 29), (0, 129, 0))  # green is (0, 128, 0)
    others = [
        seen(first, touched, third),
        seen(second, first, third),
        seen(first, second),
        seen(first, second, third, third),
        seen(first, second, third, broken=[1]),
        seen(first, second, third.resize((30, 40))),  # equal bytes in another shape
    ]
    assert len({whole, *others}) == 7


def test_fingerprint_of_a_model_is_of_every_bit() -> None:
    layers: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    whole = fingerprint(layers)
    assert len(whole) == 32
    bits = layers[0].weight.detach().view(torch.int32)

    def turn() -> None:
        bits[3, 2] ^= 1  # the last bit of the mantissa of the last weight

    statistics = [layers[1].running_mean, layers[1].running_var, layers[0].bias.detach()]
    for there, back in ((turn, turn), *((part.neg_, part.neg_) for part in statistics)):
        there()
        assert fingerprint(layers) != whole
        back()
        assert fingerprint(layers) == whole
    layers[0].weight = nn.Parameter(layers[0].weight.view(3, 4))  # the same numbers in another shape
    assert fingerprint(layers) != whole
    zeros: Any = nn.Linear(1, 1)
    zeros.load_state_dict({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)})
    assert fingerprint(zeros) != fingerprint(zeros.to(torch.bfloat16))


def test_results_do_not_depend_on_the_batch_size(model: DualEncoder) -> None:
    for count, data in ((zero_shot, SceneTask("shape", 23, image_size=32)), (retrieval, SceneSource("test", 9))):
        runs = [count(model, PREPROCESS, TOKENIZER, data, options=EncodeOptions(size)) for size in (256, 1, 5, 23)]  # type: ignore
        for found in runs[1:]:
            assert found.details.get("confusion") == runs[0].details.get("confusion")
            assert found.fingerprint == runs[0].fingerprint
            assert found.kind == "zeroshot" or found.figures == runs[0].figures


# The classifier


def test_classifier_equals_open_clip(model: DualEncoder) -> None:
    import open_clip

    names, templates = ["circle", "red star", "hoop", "crescent"], open_clip.OPENAI_IMAGENET_TEMPLATES
    expected = open_clip.build_zero_shot_classifier(model.eval(), TOKENIZER, names, templates, num_classes_per_batch=3)
    prompts = fill_templates([[name] for name in names], resolve_templates("openai80"))
    weights = classifier_of(embed_prompts(model, TOKENIZER, prompts))
    torch.testing.assert_close(weights, expected.T, atol=1e-6, rtol=0)
    # classes with different numbers of prompts
    weights = classifier_of(embed_prompts(model, TOKENIZER, [["a", "b"], ["c"]]))
    a, b, c = encode_texts(model, TOKENIZER, ["a", "b", "c"])
    torch.testing.assert_close(weights, torch.stack([nn.functional.normalize(a + b, dim=0), c]))
    with pytest.raises(ValueError, match="at least one prompt"):
        embed_prompts(model, TOKENIZER, [["a"], []])


# Zero-shot


def test_zero_shot_counts_by_hand() -> None:
    perfect = classify(colour_model(), colours(11), task="colours")
    assert set(perfect.figures) == {"top1", "balanced_accuracy", "macro_precision", "macro_f1", "ece"}
    assert (perfect["balanced_accuracy"], perfect["macro_f1"]) == (1, 1)
    for name in (
        "top1",
        "balanced_accuracy",
        "macro_precision",
        "macro_f1",
    ):  # 11 right of 11: the 12th may well be wrong
        assert perfect.figures[name] == (1, pytest.approx(11 / (11 + 1.96**2), abs=0.01), 1, 11)
    assert (perfect.groups, perfect.task, perfect.raw) == ((11,), "colours", None)
    assert perfect.details["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 3]]
    assert perfect.details["chance"] == 1 / 3 and perfect.details["classes"] == NAMES and "six" in perfect.notes[0]
    swapped = classify(colour_model(red="green", green="red"), colours(11), "a {}", task="colours")
    assert swapped["top1"] == pytest.approx(3 / 11)
    assert swapped["balanced_accuracy"] == swapped["macro_f1"] == pytest.approx(1 / 3)
    assert [row["recall"] for row in swapped.details["per_class"]] == [0, 0, 1]
    assert swapped.details["confusion"] == [[0, 4, 0], [4, 0, 0], [0, 0, 3]]
    apart = difference(perfect, swapped)["top1"]
    assert apart.value == pytest.approx(-8 / 11) and apart.low < apart.value < apart.high < 0
    # a collapsed model is not rewarded
    collapsed = classify(colour_model(red="green", blue="green"), colours(9), "a {}")
    assert collapsed["top1"] == collapsed["balanced_accuracy"] == collapsed["macro_f1"] == 0
    assert all(collapsed.details["confusion"][k][k] == 0 for k in range(3))


def test_zero_shot_has_a_top5_from_six_classes() -> None:
    classes = [*NAMES, "nothing", "at all", "here"]
    result = classify(colour_model(), colours(6, classes), "a {}")
    assert result["top1"] == result["top5"] == 1 and result.notes == ()
    assert result["balanced_accuracy"] == result["macro_f1"] == 1  # absent classes are no part of the mean
    row = to_json(result)["details"]["per_class"][3]
    assert row == {"class": "nothing", "n": 0, "precision": None, "recall": None, "f1": None}
    assert "top5" not in classify(colour_model(), colours(6, classes[:5]), "a {}").figures


Sample = tuple[Made, FakeLabelled, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def sample() -> Sample:
    """300 images of seven classes, of which the third has none; 60 foreign ones from number 300 on; two templates."""
    draws = np.random.default_rng(5)
    names = [f"c{k}" for k in range(7)]
    centres = draws.normal(size=(7, 12))
    labels = draws.choice([0, 0, 0, 1, 3, 4, 5, 6], 300)
    image = np.concatenate([centres[labels] + 1.6 * draws.normal(size=(300, 12)), draws.normal(size=(60, 12))])
    image = unit(image.astype(np.float32))
    text = {f"{word} {name}": centres[k] + draws.normal(size=12) for word in "ab" for k, name in enumerate(names)}
    text = {prompt: unit(vector.astype(np.float32)) for prompt, vector in text.items()}
    by_template = np.stack([np.stack([text[f"{word} {name}"] for name in names]) for word in "ab"])
    cosines = image @ unit(by_template.mean(0)).T
    expected = {"labels": labels, "logits": 7 * cosines, "by_template": np.einsum("ne,tce->tnc", image, by_template)}
    return Made(image, text.__getitem__, scale=7.0), FakeLabelled(300, names, labels.tolist()), expected


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_zero_shot_equals_scikit_learn(sample: Sample) -> None:
    made, dataset, expected = sample
    result = classify(made, dataset, TEMPLATES)
    labels, logits, classes = expected["labels"], expected["logits"][:300], range(7)
    predicted, confidence = logits.argmax(1), softmax(logits, axis=1).max(1)
    hit = predicted == labels
    assert 0.3 < hit.mean() < 0.9 and (predicted == 2).any()  # else little would be tested
    place = np.ceil(15 * confidence).astype(int) - 1
    gaps = [abs(hit[place == b].sum() - confidence[place == b].sum()) / 300 for b in range(15)]
    figures = {
        "top1": hit.mean(),
        "top5": top_k_accuracy_score(labels, logits, k=5, labels=classes),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "macro_precision": precision_score(labels, predicted, labels=[0, 1, 3, 4, 5, 6], average="macro"),
        "macro_f1": f1_score(labels, predicted, labels=[0, 1, 3, 4, 5, 6], average="macro"),
    }
    assert {name: result[name] for name in figures} == pytest.approx(figures, abs=1e-12)
    assert result["ece"] == pytest.approx(sum(gaps), abs=1e-6)
    assert all(figure.low < figure.value < figure.high and figure.n == 300 for figure in result.figures.values())
    assert result.details["confusion"] == confusion_matrix(labels, predicted, labels=classes).tolist()
    scores = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    rows = result.details["per_class"]
    assert [row["class"] for row in rows] == dataset.classes and math.isnan(rows[2]["recall"])
    for name, column in zip(("precision", "recall", "f1", "n"), scores, strict=True):
        assert [row[name] for row in rows] == pytest.approx(column, abs=1e-12, nan_ok=True)
    for b, row in enumerate(result.details["calibration"]):
        assert (row["low"], row["high"], row["n"]) == (b / 15, (b + 1) / 15, (place == b).sum())
        if row["n"]:
            assert row["accuracy"] == pytest.approx(hit[place == b].mean())
            assert row["confidence"] == pytest.approx(confidence[place == b].mean(), abs=1e-6)


def test_each_template_by_itself(sample: Sample) -> None:
    made, dataset, expected = sample
    found = classify(made, dataset, TEMPLATES).details["templates"]
    hits = [(scores[:300].argmax(1) == expected["labels"]).mean() for scores in expected["by_template"]]
    assert [row["template"] for row in found] == TEMPLATES and hits[0] != hits[1]
    assert [row["top1"] for row in found] == pytest.approx(hits, abs=1e-12)
    alone = classify(made, dataset, TEMPLATES[1])
    assert alone["top1"] == found[1]["top1"] and "templates" not in alone.details


def test_foreign_images_equal_scikit_learn(sample: Sample) -> None:
    made, dataset, expected = sample

    def among(foreign: int) -> Evaluation:
        return classify(made, dataset, TEMPLATES, foreign=FakePairs(foreign, draw=lambda k: dataset.draw(300 + k)))

    plain, result, logits = classify(made, dataset, TEMPLATES), among(60), expected["logits"]
    shares, inside = softmax(logits, axis=1), np.arange(360) < 300
    scores = {"max_probability": shares.max(1), "entropy": (shares * np.log(shares)).sum(1)}
    for name, score in {**scores, "free_energy": logsumexp(logits, axis=1)}.items():
        threshold = np.sort(score[:300])[::-1][285 - 1]  # 285 = 95 % of 300
        auroc, fpr = result.figures[f"auroc_{name}"], result.figures[f"fpr95_{name}"]
        assert auroc.value == pytest.approx(roc_auc_score(inside, score), abs=1e-12) and 0.5 < auroc.value < 0.99
        assert fpr.value == pytest.approx((score[300:] >= threshold).mean(), abs=1e-12) and 0 < fpr.value < 1
        assert all(figure.low <= figure.value <= figure.high and figure.n == 360 for figure in (auroc, fpr))
    # what the own images give does not change
    assert {name: result[name] for name in plain.figures} == {name: plain[name] for name in plain.figures}
    assert result.figures["top1"].n == result.figures["ece"].n == 300 and result.groups == (300, 60)
    assert str(result.details) == str(plain.details)  # NaN is not itself
    np.testing.assert_allclose(np.concatenate(result.raw), shares.max(1), atol=1e-6)
    assert len({found.fingerprint for found in (result, plain, among(59))}) == 3


def test_several_names_of_a_class() -> None:
    # By its first name alone the second class cannot be told from the first; its other names draw it to green.
    dataset: Any = colours(9, ["red", "dark red", "blue"])
    assert classify(colour_model(), dataset, "a {}")["top1"] == pytest.approx(1 / 3)
    dataset.names = [["red"], ["dark red", "green", "green grass"], ["blue", "blue sky"]]
    result = classify(colour_model(), dataset, ["a {}", "the {}"])
    assert result["top1"] == 1 and result.details["classes"] == ["red", "dark red", "blue"]
    # rows of one template: both names count in it, and only its own
    text = {
        "a x": (0, 0, 1),
        "b x": (0, 1, 0),
        "a y": (1, 0, 0),
        "b y": (0, 1, 0),
        "a z": (0, 1, 0.1),
        "b z": (1, 0, 0),
    }
    both: Any = FakeLabelled(2, ["x", "z"])
    both.names = [["x", "y"], ["z"]]
    made = Made([[1, 0, 0], [0, 1, 0]], text.__getitem__)
    assert [row["top1"] for row in classify(made, both, TEMPLATES).details["templates"]] == [1, 0]


def test_zero_shot_uses_the_prompts_of_a_task(model: DualEncoder) -> None:
    task = SceneTask("colour", 16, image_size=32)
    classifier = classifier_of(embed_prompts(model, TOKENIZER, task.class_prompts()))
    predicted = (encode_images(model, task, PREPROCESS) @ classifier.T).argmax(1)
    hits = [int(p) == task.label(k) for k, p in enumerate(predicted)]
    assert zero_shot(model, PREPROCESS, TOKENIZER, task)["top1"] == np.mean(hits)

    class Prompted(FakeLabelled):
        def class_prompts(self) -> list[list[str]]:
            return [["a green thing"], ["so red", "red"], ["blue"]]

        def prompts(self, index: int) -> list[str] | None:
            return None

    taken = classify(colour_model(), Prompted(9, NAMES))
    assert [row["recall"] for row in taken.details["per_class"]] == [0, 0, 1]
    assert classify(colour_model(), Prompted(9, NAMES), "a {}")["top1"] == 1  # templates that are given win


def test_zero_shot_with_sentences_of_each_image(model: DualEncoder) -> None:
    task = SceneTask("relation", 10, image_size=32)
    result = zero_shot(model, PREPROCESS, TOKENIZER, task, options=EncodeOptions(batch_size=4))
    hits = 0
    for k, image in enumerate(encode_images(model, task, PREPROCESS)):
        scores = encode_texts(model, TOKENIZER, task.prompts(k) or []) @ image
        hits += int(scores.argmax()) == task.label(k)
    assert 0 < hits < 10  # else this could not fail
    assert result["top1"] == hits / 10 and set(result.figures) == {"top1"} and result.figures["top1"].n == 10
    assert result.details == {"chance": 0.5} and "no confusion matrix" in result.notes[0]
    for more in ({"templates": "a {}"}, {"foreign": colours(3)}):
        with pytest.raises(ValueError, match="leave templates and foreign images out"):
            zero_shot(model, PREPROCESS, TOKENIZER, task, **more)  # type: ignore[arg-type]


def test_labels_stay_with_their_images_when_some_cannot_be_read() -> None:
    options, made = EncodeOptions(batch_size=3, max_bad_fraction=0.5), colour_model()
    result = classify(made, colours(11, broken=[0, 4]), "a {}", options=options)
    assert result["top1"] == 1 and result.details["confusion"] == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]
    assert result.figures["top1"].n == 9 and result.groups == (9,)
    assert "2 images cannot be read and are left out: row 0: cut short; row 4" in result.notes[0]
    found = classify(made, colours(11), "a {}", foreign=colours(4, broken=[2]), options=options)
    assert found.groups == (11, 3) and found.notes[0].startswith("1 images cannot be read")


def test_zero_shot_says_what_is_wrong() -> None:
    every = EncodeOptions(max_bad_fraction=1)
    for dataset, options, message in (
        (colours(0), every, "no images"),
        (colours(3, ["red"]), every, "at least two classes"),
        (colours(3, ["red", "blue", "red"]), every, "'red'"),
        (colours(3, ["red", "blue"]), every, "row 2 has label 2"),
        (colours(11, broken=[4]), EncodeOptions(), "row 4: cut short"),
        (colours(3, broken=range(3)), every, "mine: none of the 3 images can be read: row 0"),
    ):
        with pytest.raises((ValueError, BadImage), match=message):
            classify(colour_model(), dataset, task="mine", options=options)


# Retrieval


def test_retrieval_by_hand() -> None:
    # Three images, one a colour, two captions each.
    source = captioned(*([name, f"{name} image"] for name in NAMES))
    result = retrieve(colour_model(), source, task="three")
    assert [result.details[f"{part}"] for part in ("n_images", "n_texts", "shared_texts")] == [3, 6, 0]
    assert (result.kind, result.task, result.notes, result.groups) == ("retrieval", "three", (), (3,))
    for way, n in (("image_to_text", 3), ("text_to_image", 6)):
        for name in ("r1", "r5", "r10", "map"):  # three images, however many captions
            assert result.figures[f"{way}_{name}"] == (1, pytest.approx(3 / (3 + 1.96**2), abs=1e-3), 1, n)
        for name in ("median_rank", "mean_rank"):  # which have no highest that they might be
            figure = result.figures[f"{way}_{name}"]
            assert figure[::3] == (1, n) and math.isnan(figure.low) and math.isnan(figure.high)
    assert len(result.figures) == 12
    swapped = retrieve(colour_model(red="green", green="red"), source)
    # The red image has the green captions before it, and ties with the blue ones: rank 1 + 2 + 2.
    assert (swapped["image_to_text_r1"], swapped["image_to_text_median_rank"]) == (pytest.approx(1 / 3), 5)
    assert swapped.details["chance_text_to_image_r10"] == 1 and swapped.fingerprint == result.fingerprint


def test_retrieval_counts_any_own_caption() -> None:
    text = torch.tensor([[0.9, 0.1, 0.0], [0, 0.2, 0.5], [0.1, 0.6, 0.0], [0.8, 0.0, 0.1], [0.0, 0.5, 0.4]])
    result = count_retrieval(PairEmbeddings(torch.eye(3), text, list("abcde"), torch.tensor([0, 0, 1, 2, 2])))
    # image 0: own a (0.9) leads. image 1: own c (0.6) leads. image 2: own e (0.4) is behind b (0.5).
    # Precisions: b (0) has c, d and the tie e before it: (1 / 1 + 2 / 5) / 2. c is first. e is behind b, and so is d.
    # a -> 0 first; b -> 0 last (0 against 0.2 and 0.5); c -> 1 first; d -> 2 second (0.1 against 0.8); e -> 2 second.
    expected = {"image_to_text_r1": 2 / 3, "image_to_text_r5": 1, "image_to_text_map": (7 / 10 + 1 + 7 / 12) / 3}
    expected |= {"image_to_text_median_rank": 1, "image_to_text_mean_rank": 4 / 3}
    expected |= {"text_to_image_r1": 2 / 5, "text_to_image_map": (1 + 1 / 3 + 1 + 1 / 2 + 1 / 2) / 5}
    expected |= {"text_to_image_median_rank": 2, "text_to_image_mean_rank": 9 / 5}
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    # A drawn image brings its captions: of images 0 and 2, the latter twice, come a, b and twice d and e.
    drawn = result.statistic(np.array([1.0, 0.0, 2.0]))
    expected = {"image_to_text_r1": 1 / 3, "text_to_image_r1": 1 / 6, "text_to_image_mean_rank": (1 + 3 + 2 * 4) / 6}
    assert {name: drawn[name] for name in expected} == pytest.approx(expected)


def test_retrieval_figures_have_intervals() -> None:
    draws = torch.Generator().manual_seed(1)
    image, owner = torch.randn(60, 8, generator=draws), torch.arange(60).repeat_interleave(2)
    text = image[owner] + 1.2 * torch.randn(120, 8, generator=draws)
    image, text = (nn.functional.normalize(part, dim=1) for part in (image, text))
    pairs = PairEmbeddings(image, text, [f"t{k}" for k in range(120)], owner)
    result, alone = count_retrieval(pairs), count_retrieval(pairs, resamples=0)
    for name, figure in result.figures.items():
        assert figure.low <= figure.value <= figure.high and figure.low < figure.high, name
        assert figure.n == (60 if name.startswith("image") else 120)
        assert alone[name] == figure.value and math.isnan(alone.figures[name].low) == name.endswith("rank")
    recalls = [result.figures[f"image_to_text_r{k}"] for k in (1, 5, 10)]
    assert 0 < recalls[0].value < recalls[1].value < recalls[2].value < 1  # else little was tested


def test_the_main_figure_of_retrieval_is_the_mean_of_both_ways() -> None:
    """Also of images with unequal numbers of captions."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(60).repeat_interleave(torch.randint(1, 6, (60,), generator=generator))
    vectors = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    found = []
    for noise in (0.3, 0.5):
        text = vectors[owner] + noise * torch.randn(len(owner), 16, generator=generator)
        pairs = PairEmbeddings(vectors, torch.nn.functional.normalize(text, dim=1), ["t"] * len(owner), owner)
        found.append(count_retrieval(pairs, resamples=0))
    first, second = map(main_figure, found)
    ways = [(one["image_to_text_r10"] + one["text_to_image_r10"]) / 2 for one in found]
    assert [first["mean_r10"], second["mean_r10"]] == pytest.approx(ways, abs=1e-12)
    assert [list(one.figures) for one in (first, second)] == [["mean_r10"]] * 2
    apart, both = difference(first, second)["mean_r10"], difference(*found)
    assert apart.value == pytest.approx(ways[1] - ways[0], abs=1e-12) and apart.n == 60
    # no wider than the wider of the two, for the noise of their mean is at most the mean of their noises
    widths = [both[f"{way}_r10"].high - both[f"{way}_r10"].low for way in ("image_to_text", "text_to_image")]
    assert 0 < apart.high - apart.low <= 1.05 * max(widths)


def test_retrieval_chance_and_shared_captions(model: DualEncoder) -> None:
    details = retrieval(model, PREPROCESS, TOKENIZER, SceneSource("test", 30, image_size=32)).details
    assert details["n_texts"] == 150
    assert details["chance_text_to_image_r10"] == pytest.approx(10 / 30)
    assert details["chance_image_to_text_r10"] == pytest.approx(1 - math.comb(145, 10) / math.comb(150, 10))
    assert details["chance_text_to_image_r1"] == pytest.approx(1 / 30)
    assert details["chance_image_to_text_r1"] == pytest.approx(5 / 150)
    assert details["chance_image_to_text_r5"] == pytest.approx(1 - math.comb(145, 5) / math.comb(150, 5))
    source = captioned(["twice here", "twice here"], ["shared", "mine"], ["shared"])
    found = retrieval(model, PREPROCESS, TOKENIZER, source)
    assert found.details["shared_texts"] == 2 and found.notes[0].startswith("2 captions stand with more than one image")
    assert found["text_to_image_r1"] < 1  # a copy of its own caption with another image counts as wrong


def test_captions_stay_with_their_images_when_some_cannot_be_read() -> None:
    axes, options = np.eye(6), EncodeOptions(batch_size=2, max_bad_fraction=0.5)
    made: Any = Made(axes, lambda text: axes[int(text[1])])
    source = captioned(*([f"{letter}{k}" for letter in "ab"[: 1 + k % 2]] for k in range(6)), broken=[1, 3])
    pairs = encode_pairs(made, PREPROCESS, made.tokens, source, options)
    assert list(pairs.rows) == [0, 2, 4, 5] and pairs.texts == ["a0", "a2", "a4", "a5", "b5"]
    assert pairs.image_of_text.tolist() == [0, 1, 2, 3, 3]
    result = count_retrieval(pairs)
    assert result["image_to_text_r1"] == result["text_to_image_r1"] == 1 and result.groups == (4,)
    assert result.notes == ("2 images cannot be read and are left out: row 1: cut short; row 3: cut short",)
    assert retrieve(made, Subset(source, pairs.rows)).figures == result.figures


def test_retrieval_says_what_is_wrong() -> None:
    every = EncodeOptions(max_bad_fraction=1)
    for source, options, message in (
        (captioned(), every, "no images"),
        (captioned(["red"], [], ["red"]), every, r"image \(row\) 1 has no positive"),
        (captioned(["a"], ["b"], broken=[1]), EncodeOptions(), "row 1: cut short"),
        (captioned(["a"], broken=[0]), every, "none of the 1 images can be read: row 0"),
    ):
        with pytest.raises((ValueError, BadImage), match=message):
            retrieve(colour_model(), source, options=options)


def test_fingerprints_are_of_what_was_read() -> None:
    """Of images and labels; of images, captions and their owners. Neither of the model nor of the templates."""
    made: Any = colour_model()

    def labelled(n: int, labels: list[int] | None = None, by: Made = made, templates: str = "a {}") -> str:
        return classify(by, FakeLabelled(n, NAMES, labels), templates, resamples=2).fingerprint

    def pairs(*captions: list[str]) -> str:
        return encode_pairs(made, PREPROCESS, made.tokens, captioned(*captions)).fingerprint

    assert labelled(6) == labelled(6, by=colour_model(red="green"), templates="the {}")
    assert pairs(["a", "b"], ["c"]) == pairs(["a", "b"], ["c"])
    several = [labelled(6), labelled(7), labelled(6, [1, 2, 0, 1, 2, 0]), pairs(["a", "b"], ["c"])]
    several += [
        pairs(["a"], ["b", "c"]),
        pairs(["b", "a"], ["c"]),
        pairs(["a", "b"], ["d"]),
        pairs(["a", "b"], ["c"], ["c"]),
    ]
    assert len(set(several)) == len(several)


def test_best_captions_show_equal_ones_once() -> None:
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [0.0, 1.0]])
    pairs = PairEmbeddings(torch.eye(2), text, list("abbc"), torch.tensor([0, 0, 1, 1]))
    first, second = best_captions(pairs, [0, 1], 3)
    assert [(c.text, c.own) for c in first] == [("a", True), ("b", True), ("c", False)]
    assert [(c.text, c.own) for c in second] == [("c", True), ("b", True), ("a", False)] and second[2].similarity == 0


def test_scores_of_foreign_images_do_not_saturate() -> None:
    """At a scale of 100 the softmax of a sure prediction is 1 in any number format; its log-odds still say how sure."""
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.1, 0.0]])  # 80 and 50 nats above the rest
    judged = predict(cosines, torch.eye(3), 100.0)
    assert judged.confidence.tolist() == [1.0, 1.0]
    expected = [90 - math.log(math.exp(10) + 1), 60 - math.log(math.exp(10) + 1)]
    np.testing.assert_allclose(judged.log_odds.numpy(), expected, rtol=1e-6)
    assert judged.familiarity()["max_probability"][0] > judged.familiarity()["max_probability"][1]
    np.testing.assert_allclose(judged.free_energy.numpy(), -logsumexp(100 * cosines.double().numpy(), 1), rtol=1e-6)
