"""Zero-shot classification (CLIP, arXiv:2103.00020, section 3.1): the class whose prompts lie nearest to the picture.

Axes: N pictures, C classes, T templates, E embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip import metrics
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.encode import (
    DEFAULT,
    EncodeOptions,
    TextTokenizer,
    TwoTowers,
    encode_images,
    encode_texts,
)

if TYPE_CHECKING:
    from miniclip.data.sources import LabelledSource

SIMPLE_TEMPLATES = ("a photo of a {}.",)


@runtime_checkable
class PromptedSource(Protocol):
    """A LabelledSource that brings its own prompts, as the built-in tasks do."""

    def class_prompts(self) -> list[list[str]]:
        """One list of prompts a class."""
        ...

    def prompts(self, index: int, /) -> list[str] | None:
        """The texts that picture `index` is to be told apart by, its label being a place in the list; or None."""
        ...


@dataclass(frozen=True)
class ZeroShotResult:
    """Shares lie in [0, 1]. Ties between classes count against (miniclip.metrics).

    n: pictures. top5: None with fewer than six classes. chance: expected top-1 of a uniform guess, 1 / C.
    per_class_recall: None for a class without pictures. confusion: C rows of C counts, row = true class.
    With prompts that change from picture to picture there are no classes to speak of: mean_per_class_recall,
    per_class_recall and confusion are None, and classes names the places in the list. notes: what is missing, and why.
    """

    task: str
    n: int
    classes: tuple[str, ...]
    top1: float
    top5: float | None
    mean_per_class_recall: float | None
    chance: float
    per_class_recall: tuple[float | None, ...] | None
    confusion: tuple[tuple[int, ...], ...] | None
    notes: tuple[str, ...]


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """What a user writes -> templates, each with {} where the class name goes.

    "simple": "a photo of a {}."; "openai80": the 80 of CLIP for ImageNet, from open_clip; any other string is a
    template if it holds {}, else a file with one template a line (blank lines are skipped); a sequence lists templates.
    Raises FileNotFoundError or ValueError, the latter naming the file and line, if a template lacks {}.
    """
    if not isinstance(templates, str):
        if not templates:
            raise ValueError('the list of templates is empty; give at least one, e.g. "a photo of a {}."')
        return tuple(_checked(template, f"template {k}") for k, template in enumerate(templates, 1))
    if templates == "simple":
        return SIMPLE_TEMPLATES
    if templates == "openai80":
        try:
            from open_clip import OPENAI_IMAGENET_TEMPLATES
        except ImportError as error:
            raise ValueError("the templates openai80 come from open_clip; pip install open_clip_torch") from error
        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if "{}" in templates:
        return (templates,)
    path = Path(templates)
    if not path.is_file():
        raise FileNotFoundError(
            f"templates {templates!r}: no such file, and not a template, since it lacks {{}} for the class name; "
            'use simple, openai80, a file, or e.g. "a photo of a {}."'
        )
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    found = tuple(_checked(line.strip(), f"{path}, line {number}") for number, line in lines if line.strip())
    if not found:
        raise ValueError(f"{path} holds no template; write one a line, e.g. a photo of a {{}}.")
    return found


def _checked(template: str, where: str) -> str:
    if "{}" not in template:
        raise ValueError(f"{where}: {template!r} lacks {{}} for the class name; write e.g. 'a photo of a {{}}.'")
    return template


def fill_templates(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """C class names and T templates -> C lists of T prompts."""
    # Not str.format, which would stumble over other braces in either.
    return [[template.replace("{}", name) for template in templates] for name in classes]


def build_classifier(
    model: TwoTowers,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[str]],
    options: EncodeOptions = DEFAULT,
) -> Tensor:
    """C lists of prompts -> (C, E) float32, unit length: mean of each class's unit vectors (CLIP, section 3.1.4)."""
    if not prompts or not all(prompts):
        raise ValueError("every class needs at least one prompt")
    embeddings = encode_texts(model, tokenizer, [text for texts in prompts for text in texts], options)
    means = [part.mean(0) for part in embeddings.split([len(texts) for texts in prompts])]
    return F.normalize(torch.stack(means), dim=-1)


def check_classes(task: str, classes: Sequence[str]) -> None:
    """Raise ValueError if there are fewer than two classes, or two of one name."""
    if len(classes) < 2:
        raise ValueError(f"{task}: zero-shot classification needs at least two classes, got {list(classes)}")
    repeated = sorted(name for name, count in Counter(classes).items() if count > 1)
    if repeated:
        raise ValueError(
            f"{task}: {len(repeated)} class names stand for more than one class, e.g. {repeated[0]!r}, and prompts "
            "cannot tell those apart; name the classes differently, or merge them"
        )


def zero_shot(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    dataset: LabelledSource,
    templates: str | Sequence[str] | None = None,
    *,
    task: str = "zero-shot",
    options: EncodeOptions = DEFAULT,
) -> ZeroShotResult:
    """Classify every picture of dataset by prompts and count.

    templates: see `resolve_templates`; None takes the data set's own prompts if it is a PromptedSource, else "simple".
    Raises ValueError if there is no picture, fewer than two classes, two classes of one name, or a label out of range.
    """
    n, classes = len(dataset), tuple(dataset.classes)
    if n == 0:
        raise ValueError(f"{task}: the data set holds no pictures")
    check_classes(task, classes)
    own = dataset if isinstance(dataset, PromptedSource) else None
    varying = own is not None and own.prompts(0) is not None
    if varying and templates is not None:
        raise ValueError(f"{task}: each picture brings its own sentences; leave the templates out")
    labels = torch.tensor([dataset.label(index) for index in range(n)])
    if not bool(((labels >= 0) & (labels < len(classes))).all()):
        bad = int(((labels < 0) | (labels >= len(classes))).nonzero()[0])
        raise ValueError(f"{task}: {dataset.name(bad)} has label {int(labels[bad])}; there are {len(classes)} classes")

    if own is not None and varying:
        texts = [text for index in range(n) for text in own.prompts(index) or ()]
        if len(texts) != n * len(classes):
            raise ValueError(
                f"{task}: every picture must bring {len(classes)} sentences, one for each of {list(classes)}"
            )
        candidates = encode_texts(model, tokenizer, texts, options).view(n, len(classes), -1)  # (n c) e -> n c e
        images = encode_images(model, dataset, preprocess, options)
        scores = torch.einsum("ne,nce->nc", images.double(), candidates.double()).float()
        notes = ("no confusion matrix: the sentences change from picture to picture",)
        return ZeroShotResult(task, n, classes, *_accuracies(scores, labels), None, 1 / len(classes), None, None, notes)

    if templates is None and own is not None:
        prompts = own.class_prompts()
    else:
        prompts = fill_templates(classes, resolve_templates("simple" if templates is None else templates))
    classifier = build_classifier(model, tokenizer, prompts, options)
    scores = metrics.cosine_matrix(encode_images(model, dataset, preprocess, options), classifier)
    confusion = metrics.confusion_matrix(metrics.predictions(scores, labels), labels, len(classes))
    top1, top5 = _accuracies(scores, labels)
    missing = f"no top-5: it says little with {len(classes)} classes, and needs six"
    return ZeroShotResult(
        task=task,
        n=n,
        classes=classes,
        top1=top1,
        top5=top5,
        mean_per_class_recall=metrics.mean_per_class_recall(confusion),
        chance=1 / len(classes),
        per_class_recall=tuple(None if r != r else r for r in metrics.per_class_recall(confusion).tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        notes=() if top5 is not None else (missing,),
    )


def _accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float | None]:
    top5 = metrics.top_k_accuracy(scores, labels, 5) if scores.shape[1] > 5 else None
    return metrics.top_k_accuracy(scores, labels, 1), top5
