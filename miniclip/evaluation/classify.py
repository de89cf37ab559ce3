"""Images without labels: what a model takes them for, as a table and a page. How often it is right, nothing here says.

Axes: N images, C classes, E embedding.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from miniclip.data.captioned import LabelledSource
from miniclip.data.labelled import LabelledImages
from miniclip.evaluation.encode import DEFAULT, EncodeOptions, encode_readable
from miniclip.evaluation.galleries import write_predictions
from miniclip.evaluation.prompts import Templates, check_classes, check_prompts, prompts_of
from miniclip.evaluation.zeroshot import classifier_of, embed_prompts
from miniclip.metrics.retrieval import cosine_matrix
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers

TOP = 5
_CHUNK = 4096  # images whose scores are alive at a time


class Predictions(NamedTuple):
    """rows: (n,) int64, the images that could be read. classes, probabilities: (n, at most 5), most probable first;
    a softmax over the C classes of scale * cosine. bad: what is wrong with each of the other images."""

    rows: Tensor
    classes: Tensor
    probabilities: Tensor
    bad: list[str]


def classify(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    source: LabelledSource,
    templates: Templates | None = None,
    options: EncodeOptions = DEFAULT,
) -> Predictions:
    """The most probable classes of every image. Raises ValueError for classes that prompts cannot tell apart."""
    check_classes("classify", source)
    check_prompts("classify", source, templates, tokenizer)
    classifier = classifier_of(embed_prompts(model, tokenizer, prompts_of(source, templates)[0], options))
    images = encode_readable(model, source, preprocess, options, "classify")
    scale, k = float(model.logit_scale.detach().exp()), min(TOP, len(classifier))
    parts = [(scale * cosine_matrix(x, classifier).double()).softmax(1).topk(k) for x in images.values.split(_CHUNK)]
    probabilities, classes = (torch.cat(part) for part in zip(*parts, strict=True))
    return Predictions(images.rows, classes, probabilities, images.bad)


def write_classified(source: LabelledImages, found: Predictions, folder: Path, title: str) -> None:
    """Write predictions.csv, a row an image, those that cannot be read without a class, and predictions.html."""
    by_row = dict(zip(found.rows.tolist(), zip(found.classes, found.probabilities, strict=True), strict=True))
    count = found.classes.shape[1]
    heads = ["class", "probability", *(f"{word}_{k}" for k in range(2, count + 1) for word in ("class", "probability"))]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["file", *heads])
        for row in range(len(source)):
            best = zip(*(x.tolist() for x in by_row[row]), strict=True) if row in by_row else ()
            table.writerow([source.file(row), *(v for c, p in best for v in (source.classes[c], f"{p:.6f}"))])
    page = folder / "predictions.html"
    write_predictions(source, found.rows.tolist(), found.classes, found.probabilities, page, title=title)


def summary(source: LabelledSource, found: Predictions) -> tuple[list[tuple[str, str, str]], str]:
    """A row for each class that was found, the commonest first: name, images, mean probability in per cent; and what
    the probabilities do not say."""
    first, sure = found.classes[:, 0], found.probabilities[:, 0]
    counts = torch.bincount(first, minlength=len(source.classes))
    order: Sequence[int] = counts.argsort(descending=True, stable=True).tolist()
    rows = [
        (source.classes[c], f"{int(counts[c]):,}", f"{100 * float(sure[first == c].mean()):.1f}")
        for c in order
        if counts[c]
    ]
    even, unsure = 100 / len(source.classes), 100 * float((sure < 0.5).double().mean())
    return rows, (
        "There are no labels, so nothing here says how often this is right. The probabilities are the model's own, "
        f"over these {len(source.classes)} classes alone: an image of none of them gets one, too. Their mean is "
        f"{100 * float(sure.mean()):.1f} % (even: {even:.1f} %); {unsure:.0f} % of the images have less than 50 %."
    )
