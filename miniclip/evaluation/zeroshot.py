"""Zero-shot classification (CLIP, arXiv:2103.00020, section 3.1): the class whose prompts lie nearest to the picture.

Axes: N pictures, C classes, T templates, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.evaluation.encode import DEFAULT, EncodeOptions, Pictures, encode_some, encode_texts, left_out
from miniclip.evaluation.prompts import (
    PromptedSource,
    brings_sentences,
    check_classes,
    fill_templates,
    names_of,
    resolve_templates,
    templates_of,
)
from miniclip.evaluation.result import Evaluation
from miniclip.losses.energy import free_energy
from miniclip.metrics import classification
from miniclip.metrics import retrieval as metrics
from miniclip.metrics.bootstrap import RESAMPLES, Recount, with_intervals
from miniclip.metrics.weighted import Calibration, Detection, balanced_accuracy, class_scores, confusion, macro_f1, mean
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers

if TYPE_CHECKING:
    from miniclip.data.captioned import LabelledSource

_CHUNK_ELEMENTS = 2**22  # of the (N, C) scores that are alive at a time


class Judged(NamedTuple):
    """What the scores say of each picture, (N,) each; the logits are scale * cosines.

    rank: of the own class, from 1, ties counted against; 0 without labels. predicted: class with the highest score,
    another one where the own class ties for it. confidence: highest probability of the softmax. log_odds: of that
    probability; it goes on where float32 rounds the probability to 1. entropy: of the softmax, free_energy: -logsumexp
    of the logits, all three in nats.
    """

    rank: Tensor
    predicted: Tensor
    confidence: Tensor
    log_odds: Tensor
    entropy: Tensor
    free_energy: Tensor

    def familiarity(self) -> dict[str, np.ndarray]:
        """Scores that should be higher for pictures of the classes than for foreign ones."""
        scores = {"free_energy": -self.free_energy, "max_probability": self.log_odds, "entropy": -self.entropy}
        return {name: score.numpy() for name, score in scores.items()}


def build_classifier(
    model: TwoTowers,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[str]],
    options: EncodeOptions = DEFAULT,
) -> Tensor:
    """C lists of prompts -> (C, E) float32, unit length: mean of each class's unit vectors (CLIP, section 3.1.4)."""
    if not prompts or not all(prompts):
        raise ValueError("every class needs at least one prompt")
    return _mean_of(_embed(model, tokenizer, prompts, options))


def judge(image: Tensor, classifier: Tensor, scale: float, labels: Tensor | None = None) -> Judged:
    """(N, E) pictures and (C, E) classes, unit length -> what their cosines say. labels: (N,) int64, if there are any.

    Cosines are taken as in `metrics.cosine_matrix`, so that equal embeddings tie exactly.
    """
    size = max(1, _CHUNK_ELEMENTS // len(classifier))
    parts = []
    for start in range(0, len(image), size):
        cosines = metrics.cosine_matrix(image[start : start + size], classifier)
        logits = scale * cosines.double()
        logs, (top, best) = logits.log_softmax(1), logits.max(1)
        log_odds = top - logits.scatter(1, best[:, None], -torch.inf).logsumexp(1)
        predicted, rank = cosines.argmax(1), torch.zeros(len(cosines), dtype=torch.int64)
        if labels is not None:
            own = labels[start : start + size]
            predicted, rank = classification.predictions(cosines, own), classification.class_ranks(cosines, own)
        entropy = -(logs.exp() * logs).sum(1)
        parts.append(Judged(rank, predicted, log_odds.sigmoid(), log_odds, entropy, free_energy(logits)[0]))
    return Judged(*map(torch.cat, zip(*parts, strict=True)))


def zero_shot(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    dataset: LabelledSource,
    templates: str | Sequence[str] | None = None,
    *,
    foreign: Pictures | None = None,
    task: str = "zero-shot",
    options: EncodeOptions = DEFAULT,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Classify every picture of dataset by prompts and count.

    templates: see `resolve_templates`; None takes the data set's own prompts if it is a PromptedSource, else what
    `templates_of` knows of it. foreign: pictures of none of the classes; free energy (arXiv:2010.03759), highest
    probability (arXiv:1610.02136) and entropy are then scored by how well they tell those apart.
    Figures: top1, top5 (from six classes on), balanced_accuracy, macro_f1, ece; auroc_* and fpr95_* with foreign. With
    prompts that change from picture to picture there are no classes to speak of, and top1 is all.
    Raises ValueError if there is no picture, fewer than two classes, two classes of one name, or a label out of range.
    """
    if len(dataset) == 0:
        raise ValueError(f"{task}: the data set holds no pictures")
    check_classes(task, dataset.classes)
    labels = labels_of(dataset, task)
    own = dataset if isinstance(dataset, PromptedSource) else None
    if own is not None and brings_sentences(own):
        if templates is not None or foreign is not None:
            raise ValueError(f"{task}: each picture brings its own sentences; leave templates and foreign pictures out")
        return _by_sentences(model, preprocess, tokenizer, dataset, own, labels, task, options, resamples)

    chosen: tuple[str, ...] = ()
    if templates is None and own is not None:
        prompts = own.class_prompts()
    else:
        chosen = templates_of(dataset) if templates is None else resolve_templates(templates)
        prompts = fill_templates(names_of(dataset), chosen)
    by_class = _embed(model, tokenizer, prompts, options)
    scale = float(model.logit_scale.detach().exp())
    images = encode_some(model, dataset, preprocess, options, task)
    labels = labels[images.rows]
    classifier = _mean_of(by_class)
    judged = judge(images.values, classifier, scale, labels)
    strangers = None
    groups: tuple[int, ...] = (len(labels),)
    seen = digest(images.fingerprint, labels.numpy().tobytes())
    notes = left_out(images.bad)
    if foreign is not None:
        others = encode_some(model, foreign, preprocess, options, f"{task}, foreign pictures")
        strangers = judge(others.values, classifier, scale)
        groups, seen = (*groups, len(others.values)), digest(seen, others.fingerprint)
        notes += left_out(others.bad)
    if len(dataset.classes) <= 5:
        notes.append(f"no top-5: it says little with {len(dataset.classes)} classes, and needs six")
    recount = _recount(judged, labels.numpy(), len(dataset.classes), strangers)
    figures = with_intervals(
        recount, groups, {name: len(labels) for name in ("top1", "top5", *_CLASS_FIGURES)}, resamples=resamples
    )
    details = _details(judged, labels, dataset.classes)
    if len(chosen) > 1:
        details["templates"] = _by_template(images.values, by_class, chosen, labels)
    raw = () if strangers is None else (judged.confidence.numpy(), strangers.confidence.numpy())
    return Evaluation("zeroshot", task, figures, details, tuple(notes), seen, recount, groups, raw)


def _embed(
    model: TwoTowers, tokenizer: TextTokenizer, prompts: Sequence[Sequence[str]], options: EncodeOptions
) -> list[Tensor]:
    """Unit vectors of each class's prompts."""
    embeddings = encode_texts(model, tokenizer, [text for texts in prompts for text in texts], options)
    return list(embeddings.split([len(texts) for texts in prompts]))


def _mean_of(by_class: Sequence[Tensor]) -> Tensor:
    return F.normalize(torch.stack([part.mean(0) for part in by_class]), dim=-1)


def labels_of(dataset: LabelledSource, task: str) -> Tensor:
    """(N,) int64 places in dataset.classes. Raises ValueError that names a picture whose label is none of them."""
    labels = torch.tensor([dataset.label(index) for index in range(len(dataset))])
    if not bool(((labels >= 0) & (labels < len(dataset.classes))).all()):
        bad = int(((labels < 0) | (labels >= len(dataset.classes))).nonzero()[0])
        raise ValueError(
            f"{task}: {dataset.name(bad)} has label {int(labels[bad])}; there are {len(dataset.classes)} classes"
        )
    return labels


def _by_sentences(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    dataset: LabelledSource,
    own: PromptedSource,
    labels: Tensor,
    task: str,
    options: EncodeOptions,
    resamples: int,
) -> Evaluation:
    """top1 among the sentences that each picture brings."""
    n, c = len(dataset), len(dataset.classes)
    texts = [text for index in range(n) for text in own.prompts(index) or ()]
    if len(texts) != n * c:
        raise ValueError(f"{task}: every picture must bring {c} sentences, one for each of {list(dataset.classes)}")
    images = encode_some(model, dataset, preprocess, options, task)
    candidates = encode_texts(model, tokenizer, texts, options).view(n, c, -1)[images.rows]  # (n c) e -> n c e
    cosines = torch.einsum("ne,nce->nc", images.values.double(), candidates.double()).float()
    hit = (classification.class_ranks(cosines, labels[images.rows]) == 1).double().numpy()

    def recount(weights: np.ndarray) -> dict[str, float]:
        return {"top1": mean(hit, weights)}

    notes = ("no confusion matrix: the sentences change from picture to picture", *left_out(images.bad))
    figures = with_intervals(recount, (len(hit),), resamples=resamples)
    seen = digest(images.fingerprint, labels[images.rows].numpy().tobytes(), *texts)
    return Evaluation("zeroshot", task, figures, {"chance": 1 / c}, notes, seen, recount, (len(hit),))


_CLASS_FIGURES = ("balanced_accuracy", "macro_f1", "ece")


def _recount(judged: Judged, labels: np.ndarray, classes: int, strangers: Judged | None) -> Recount:
    rank, predicted = judged.rank.numpy(), judged.predicted.numpy()
    hits = {f"top{k}": (rank <= k).astype(np.float64) for k in ((1, 5) if classes > 5 else (1,))}
    calibration = Calibration(judged.confidence.numpy(), hits["top1"])
    detections = {}
    if strangers is not None:
        theirs = strangers.familiarity()
        detections = {name: Detection(own, theirs[name]) for name, own in judged.familiarity().items()}

    def recount(weights: np.ndarray) -> dict[str, float]:
        here, there = weights[: len(labels)], weights[len(labels) :]
        scores = class_scores(confusion(labels, predicted, classes, here))
        figures = {name: mean(hit, here) for name, hit in hits.items()}
        figures |= {"balanced_accuracy": balanced_accuracy(scores), "macro_f1": macro_f1(scores)}
        figures["ece"] = calibration.error(here)
        for name, detection in detections.items():
            figures[f"auroc_{name}"] = detection.auroc(here, there)
            figures[f"fpr95_{name}"] = detection.fpr95(here, there)
        return figures

    return recount


def _details(judged: Judged, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    own, predicted = labels.numpy(), judged.predicted.numpy()
    counts = confusion(own, predicted, len(classes), np.ones(len(own)))
    scores = zip(classes, counts.sum(1).tolist(), *(part.tolist() for part in class_scores(counts)), strict=True)
    names = ("class", "n", "precision", "recall", "f1")
    hit = (judged.rank.numpy() == 1).astype(np.float64)
    return {
        "chance": 1 / len(classes),
        "classes": list(classes),
        "per_class": [dict(zip(names, (name, int(n), *rest), strict=True)) for name, n, *rest in scores],
        "confusion": counts.astype(np.int64).tolist(),
        "calibration": Calibration(judged.confidence.numpy(), hit).bins(),
    }


def _by_template(
    image: Tensor, by_class: Sequence[Tensor], templates: Sequence[str], labels: Tensor
) -> list[dict[str, str | float]]:
    """top1 of each template by itself; the rows [t::T] of a class are those of template t."""
    found: list[dict[str, str | float]] = []
    for t, template in enumerate(templates):
        classifier = _mean_of([part[t :: len(templates)] for part in by_class])
        hits = sum(
            int((classification.class_ranks(metrics.cosine_matrix(part, classifier), own) == 1).sum())
            for part, own in zip(image.split(4096), labels.split(4096), strict=True)
        )
        found.append({"template": template, "top1": hits / len(labels)})
    return found
