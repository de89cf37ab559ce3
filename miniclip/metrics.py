"""Retrieval and classification metrics: pure functions of plain tensors.

Axes: N images, M texts (or samples and classes), E embedding.

Ties count against the model everywhere: a collapsed model, which gives every candidate the same score, misses every
time instead of scoring 100%. A score that is not a number counts as a miss, too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of the similarity matrix that are alive at a time: 64 MB in float64.
_CHUNK_ELEMENTS = 2**23


class RetrievalRanks(NamedTuple):
    """Ranks from 1 (best), int64. image_to_text: (N,), of the best own text. text_to_image: (M,), of the own image."""

    image_to_text: Tensor
    text_to_image: Tensor


def retrieval_ranks(similarity: Tensor, positives: Tensor) -> RetrievalRanks:
    """Rank of the best own candidate of every image and of every text.

    similarity: (N, M) float. positives: (N, M) bool, true where the text belongs to the image; several a row and
    several a column are allowed. The rank is 1 + the number of foreign candidates that score at least as high as the
    best own one, so `rank <= k` says that an own candidate is among the first k, with ties counted against.
    Raises ValueError if the shapes differ, or if an image or a text has no positive.
    """
    if similarity.shape != positives.shape or similarity.ndim != 2:
        raise ValueError(
            f"similarity {tuple(similarity.shape)} and positives {tuple(positives.shape)} must both be (N, M)"
        )
    _require_positives(positives.any(1), "image (row)")
    _require_positives(positives.any(0), "text (column)")
    best_of_text = similarity.masked_fill(~positives, -torch.inf).amax(0)
    return _ranks(lambda rows: (similarity[rows], positives[rows]), best_of_text, *similarity.shape)


def retrieval_ranks_from_embeddings(image: Tensor, text: Tensor, image_of_text: Tensor) -> RetrievalRanks:
    """`retrieval_ranks` of image @ text.T, computed in chunks of rows, so that the matrix never exists at once.

    image: (N, E) float, text: (M, E) float, both unit length for cosine similarity. image_of_text: (M,) int64, the row
    of image that each text belongs to. Products are taken in float64 and rounded to float32, so that equal embeddings
    tie exactly, wherever they stand in the matrix.
    Raises ValueError if the shapes do not fit, an index is out of range, or an image has no text.
    """
    n, m = len(image), len(text)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or image_of_text.shape != (m,):
        raise ValueError(
            "expected image (N, E), text (M, E) and image_of_text (M,), "
            f"got {tuple(image.shape)}, {tuple(text.shape)} and {tuple(image_of_text.shape)}"
        )
    if m and not (int(image_of_text.min()) >= 0 and int(image_of_text.max()) < n):
        raise ValueError(f"image_of_text must lie in [0, {n}), the rows of image")
    _require_positives(torch.bincount(image_of_text, minlength=n) > 0, "image (row)")
    text64, index = text.double(), torch.arange(n, device=image.device)
    own = [
        (image[owners].double() * part).sum(1).float()
        for owners, part in zip(image_of_text.split(4096), text64.split(4096), strict=True)
    ]

    def chunk(rows: slice) -> tuple[Tensor, Tensor]:
        return (image[rows].double() @ text64.T).float(), image_of_text == index[rows, None]

    return _ranks(chunk, torch.cat(own) if own else text.new_empty(0), n, m)


def cosine_matrix(image: Tensor, text: Tensor) -> Tensor:
    """(N, E) and (M, E), unit length -> (N, M) float32, products taken as in `retrieval_ranks_from_embeddings`."""
    if len(image) == 0:
        return image.new_zeros(0, len(text))
    text64, size = text.double(), max(1, _CHUNK_ELEMENTS // max(1, len(text)))
    return torch.cat([(part.double() @ text64.T).float() for part in image.split(size)])


def _require_positives(found: Tensor, what: str) -> None:
    if not bool(found.all()):
        raise ValueError(f"{what} {int((~found).nonzero()[0])} has no positive; give every image and text at least one")


def _ranks(chunk: Callable[[slice], tuple[Tensor, Tensor]], best_of_text: Tensor, n: int, m: int) -> RetrievalRanks:
    size = max(1, _CHUNK_ELEMENTS // max(1, m))
    image_to_text, text_to_image = [], torch.ones(m, dtype=torch.int64, device=best_of_text.device)
    for start in range(0, n, size):
        similarity, positives = chunk(slice(start, start + size))
        best_of_image = similarity.masked_fill(~positives, -torch.inf).amax(1, keepdim=True)
        # "not lower" rather than "at least as high": a NaN on either side then counts against.
        image_to_text.append(1 + (~(similarity < best_of_image) & ~positives).sum(1))
        text_to_image += (~(similarity < best_of_text) & ~positives).sum(0)
    return RetrievalRanks(torch.cat(image_to_text) if image_to_text else text_to_image[:0], text_to_image)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Share of the ranks (from 1) that are at most k, in [0, 1]. Raises ValueError without ranks or if k < 1."""
    if ranks.numel() == 0 or k < 1:
        raise ValueError(f"recall at k needs at least one rank and k >= 1, got {ranks.numel()} ranks and k={k}")
    return (ranks <= k).double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """Median of the ranks, from 1; the mean of the middle two of an even number. Raises ValueError without ranks."""
    if ranks.numel() == 0:
        raise ValueError("the median needs at least one rank")
    ordered = ranks.flatten().sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]).item() / 2


def chance_recall_at_k(candidates: int, own: int, k: int) -> float:
    """Probability that k of `candidates` items, drawn without replacement, hold one of the `own` items, in [0, 1].

    Hypergeometric: 1 - C(candidates - own, k) / C(candidates, k); with own = 1 it is k / candidates.
    Raises ValueError unless 1 <= own <= candidates and k >= 1.
    """
    if not 1 <= own <= candidates or k < 1:
        raise ValueError(f"need 1 <= own <= candidates and k >= 1, got own={own}, candidates={candidates}, k={k}")
    draws = comb(candidates, min(k, candidates))
    return (draws - comb(candidates - own, min(k, candidates))) / draws


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (N, C) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if len(labels) == 0:
        raise ValueError("there is nothing to score: scores and labels are empty")
    if not (int(labels.min()) >= 0 and int(labels.max()) < scores.shape[1]):
        raise ValueError(f"labels must lie in [0, {scores.shape[1]}), the columns of scores")


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of the samples whose own class is among the k best, ties counted against, in [0, 1].

    scores: (N, C) float, labels: (N,) int64. Raises ValueError on other shapes, empty input, or labels out of range.
    """
    _check_labels(scores, labels)
    own = scores.gather(1, labels[:, None])
    # The own class is one of those that are not lower than itself: the count is its rank. NaN: see _ranks.
    ranks = (~(scores < own)).sum(1)
    return recall_at_k(ranks, k)


def predictions(scores: Tensor, labels: Tensor) -> Tensor:
    """Class with the highest score, (N,) int64; where the own class ties for it, another one of the tied classes.

    scores: (N, C) float, labels: (N,) int64. `predictions(...) == labels` is thus a hit as `top_k_accuracy` counts.
    """
    _check_labels(scores, labels)
    own = scores.gather(1, labels[:, None]).squeeze(1)
    rival, index = scores.scatter(1, labels[:, None], -torch.inf).max(1)
    return torch.where((own > rival) | (scores.shape[1] == 1), labels, index)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(C, C) int64 counts: row = true, column = predicted class. predicted, labels: (N,) int64 in [0, classes)."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def per_class_recall(confusion: Tensor) -> Tensor:
    """(C, C) counts -> (C,) float64 share of each class that was recognised; NaN for a class without samples."""
    return confusion.diagonal().double() / confusion.sum(1)


def mean_per_class_recall(confusion: Tensor) -> float:
    """(C, C) counts -> mean recall of the classes that have samples, in [0, 1] (balanced accuracy)."""
    return per_class_recall(confusion).nanmean().item()
