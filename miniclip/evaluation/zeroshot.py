"""Zero-shot classification (CLIP, arXiv:2103.00020, section 3.1): the class whose prompts lie nearest to the image.

Axes: N images, C classes, T templates, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.data.captioned import LabelledSource
from miniclip.evaluation.encode import DEFAULT, EncodeOptions, Images, encode_readable, encode_texts
from miniclip.evaluation.prompts import (
    PromptedSource,
    brings_sentences,
    check_classes,
    check_prompts,
    names_of,
    prompts_of,
)
from miniclip.evaluation.result import Evaluation
from miniclip.losses.energy import free_energy
from miniclip.metrics.bootstrap import RESAMPLES, Gaps, Share, Statistic, with_intervals
from miniclip.metrics.classification import class_ranks, predictions
from miniclip.metrics.retrieval import cosine_matrix
from miniclip.metrics.weighted import Calibration, Detection, balanced_size, class_scores, confusion
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers

_CHUNK_ELEMENTS = 2**22  # of the (N, C) scores that are alive at a time
_MACRO = {"balanced_accuracy": "recall", "macro_precision": "precision", "macro_f1": "f1"}
_CLASS_FIGURES = ("top1", "top5", *_MACRO, "ece")


class Predictions(NamedTuple):
    """What the scores say of each image, (N,) each; the logits are scale * cosines.

    rank: of the own class, from 1, ties counted against; 0 without labels. predicted: class with the highest score,
    another one where the own class ties for it. confidence: highest probability. log_odds: of it, which go on where
    float32 rounds it to 1. entropy: of the softmax, free_energy: -logsumexp of the logits, all three in nats.
    """

    rank: Tensor
    predicted: Tensor
    confidence: Tensor
    log_odds: Tensor
    entropy: Tensor
    free_energy: Tensor

    def familiarity(self) -> dict[str, np.ndarray]:
        """Scores that should be higher for images of the classes than for foreign ones."""
        scores = {"free_energy": -self.free_energy, "max_probability": self.log_odds, "entropy": -self.entropy}
        return {name: score.numpy() for name, score in scores.items()}


def embed_prompts(
    model: TwoTowers, tokenizer: TextTokenizer, prompts: Sequence[Sequence[str]], options: EncodeOptions = DEFAULT
) -> list[Tensor]:
    """C lists of prompts -> the unit vectors of each, (prompts of the class, E) float32."""
    if not prompts or not all(prompts):
        raise ValueError("every class needs at least one prompt")
    embeddings = encode_texts(model, tokenizer, [text for texts in prompts for text in texts], options)
    return list(embeddings.split([len(texts) for texts in prompts]))


def classifier_of(by_class: Sequence[Tensor]) -> Tensor:
    """What `embed_prompts` gives -> (C, E) float32, unit length: the mean of each class (CLIP, section 3.1.4)."""
    return F.normalize(torch.stack([part.mean(0) for part in by_class]), dim=-1)


def predict(image: Tensor, classifier: Tensor, scale: float, labels: Tensor | None = None) -> Predictions:
    """(N, E) images and (C, E) classes, unit length -> what their cosines say. labels: (N,) int64, if there are any."""
    size = max(1, _CHUNK_ELEMENTS // len(classifier))
    parts = []
    for start in range(0, len(image), size):
        cosines = cosine_matrix(image[start : start + size], classifier)
        logits = scale * cosines.double()
        logs, (top, best) = logits.log_softmax(1), logits.max(1)
        log_odds = top - logits.scatter(1, best[:, None], -torch.inf).logsumexp(1)
        predicted, rank = cosines.argmax(1), torch.zeros(len(cosines), dtype=torch.int64)
        if labels is not None:
            own = labels[start : start + size]
            predicted, rank = predictions(cosines, own), class_ranks(cosines, own)
        entropy = -(logs.exp() * logs).sum(1)
        parts.append(Predictions(rank, predicted, log_odds.sigmoid(), log_odds, entropy, free_energy(logits)[0]))
    return Predictions(*map(torch.cat, zip(*parts, strict=True)))


def zero_shot(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    dataset: LabelledSource,
    templates: str | Sequence[str] | None = None,
    *,
    foreign: Images | None = None,
    task: str = "zero-shot",
    options: EncodeOptions = DEFAULT,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Classify every image of dataset by prompts and count.

    templates: see `resolve_templates`; None takes the data set's own prompts or `templates_of`. foreign: images of none
    of the classes; free energy (arXiv:2010.03759), highest probability (arXiv:1610.02136) and entropy are then scored
    by how well they tell those apart.
    Figures: top1, top5 (from six classes on), balanced_accuracy, macro_precision, macro_f1, ece; auroc_* and fpr95_*
    with foreign. With prompts that change from image to image top1 is all.
    Raises ValueError if there is no image, fewer than two classes, two classes of one name or prompt, or a label out of
    range.
    """
    if len(dataset) == 0:
        raise ValueError(f"{task}: the data set holds no images")
    check_classes(task, dataset)
    check_prompts(task, dataset, templates, tokenizer)
    sentences = dataset if isinstance(dataset, PromptedSource) and brings_sentences(dataset) else None
    if sentences and (templates is not None or foreign is not None):
        raise ValueError(f"{task}: each image brings its own sentences; leave templates and foreign images out")
    labels, classes = labels_of(dataset, task), dataset.classes
    images = encode_readable(model, dataset, preprocess, options, task)
    labels, notes, raw = labels[images.rows], images.notes, None
    groups: tuple[int, ...] = (len(labels),)
    read = [images.fingerprint, labels.numpy().tobytes()]
    if sentences:
        texts = [text for index in range(len(dataset)) for text in sentences.prompts(index) or ()]
        candidates = encode_texts(model, tokenizer, texts, options)
        candidates = candidates.view(len(dataset), len(classes), -1)[images.rows]  # (n c) e -> n c e
        cosines = torch.einsum("ne,nce->nc", images.values.double(), candidates.double()).float()
        statistic = Statistic({"top1": Share.of((class_ranks(cosines, labels) == 1).numpy())})
        notes.insert(0, "no confusion matrix: the sentences change from image to image")
        figures, chance = with_intervals(statistic, groups), {"chance": 1 / len(classes)}
        return Evaluation("zeroshot", task, figures, chance, tuple(notes), digest(*read, *texts), statistic, groups)

    prompts, chosen = prompts_of(dataset, templates)
    by_class = embed_prompts(model, tokenizer, prompts, options)
    classifier, scale = classifier_of(by_class), float(model.logit_scale.detach().exp())
    found, ood, seen = predict(images.values, classifier, scale, labels), None, digest(*read)
    if foreign is not None:
        others = encode_readable(model, foreign, preprocess, options, f"{task}, foreign images")
        ood = predict(others.values, classifier, scale)
        groups, seen = (*groups, len(others.values)), digest(seen, others.fingerprint)
        notes, raw = notes + others.notes, (found.confidence.numpy(), ood.confidence.numpy())
    keys: list[str] | None = getattr(dataset, "keys", None)  # what the data call the classes
    if keys is not None:
        shown = [f"{key} -> {name}" for key, name in zip(keys, classes, strict=True)]
        rest = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
        notes.append(f"{task}: what the prompts call the classes: {first_few(shown)}{rest}")
    if len(classes) <= 5:
        notes.append(f"no top-5: it says little with {len(classes)} classes, and needs six")
    statistic, details = _counted(found, labels.numpy(), classes, ood)
    for row, key, names in zip(details["per_class"], keys or (), names_of(dataset), strict=False):
        row.update(folder=key, names=names)
    figures = with_intervals(statistic, groups, dict.fromkeys(_CLASS_FIGURES, len(labels)), resamples=resamples)
    if len(chosen) > 1:
        details["templates"] = []
        parts = list(zip(images.values.split(4096), labels.split(4096), strict=True))
        for t, template in enumerate(chosen):
            # the rows [t::T] of a class are those of template t
            one = classifier_of([texts_of[t :: len(chosen)] for texts_of in by_class])
            hits = sum(int((class_ranks(cosine_matrix(part, one), own) == 1).sum()) for part, own in parts)
            details["templates"].append({"template": template, "top1": hits / len(labels)})
    return Evaluation("zeroshot", task, figures, details, tuple(notes), seen, statistic, groups, raw)


def labels_of(dataset: LabelledSource, task: str) -> Tensor:
    """(N,) int64 places in dataset.classes. Raises ValueError that names an image whose label is none of them."""
    labels = torch.tensor([dataset.label(index) for index in range(len(dataset))])
    for index in ((labels < 0) | (labels >= len(dataset.classes))).nonzero().flatten().tolist():
        there_are = f"there are {len(dataset.classes)} classes"
        raise ValueError(f"{task}: {dataset.name(index)} has label {int(labels[index])}; {there_are}")
    return labels


def _counted(
    found: Predictions, labels: np.ndarray, classes: Sequence[str], ood: Predictions | None
) -> tuple[Statistic, dict[str, Any]]:
    """The figures under weights of the images, and the details."""
    rank, predicted = found.rank.numpy(), found.predicted.numpy()
    shares = {f"top{k}": Share.of(rank <= k) for k in ((1, 5) if len(classes) > 5 else (1,))}
    calibration, theirs = Calibration(found.confidence.numpy(), rank <= 1), {} if ood is None else ood.familiarity()
    detections = {name: Detection(own, theirs[name]) for name, own in found.familiarity().items() if theirs}

    def rates(weights: np.ndarray) -> dict[str, float]:
        here, there = weights[: len(labels)], weights[len(labels) :]
        scores = class_scores(confusion(labels, predicted, len(classes), here))
        figures = {name: scores.mean_of_present(score) for name, score in _MACRO.items()}
        for name, detection in detections.items():
            figures[f"auroc_{name}"] = detection.auroc(here, there)
            figures[f"fpr95_{name}"] = detection.fpr95(here, there)
        return figures

    counts = confusion(labels, predicted, len(classes), np.ones(len(labels)))
    # a class weighs the same with few images as with many
    sizes = dict.fromkeys(_MACRO, balanced_size(counts.sum(1)))
    ece = Gaps(lambda weights: calibration.gaps(weights[: len(labels)]), "top1")
    statistic = Statistic(shares, rates, gaps={"ece": ece}, sizes=sizes)
    columns = (counts.sum(1).astype(np.int64), *class_scores(counts))
    rows = zip(classes, *(column.tolist() for column in columns), strict=True)
    return statistic, {
        "chance": 1 / len(classes),
        "classes": list(classes),
        "per_class": [dict(zip(("class", "n", "precision", "recall", "f1"), row, strict=True)) for row in rows],
        "confusion": counts.astype(np.int64).tolist(),
        "calibration": calibration.bins(),
    }
