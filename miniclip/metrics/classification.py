"""Classification metrics: pure functions of the (N, C) scores of N images for C classes and their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (N, C) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if len(labels) == 0:
        raise ValueError("there is nothing to score: scores and labels are empty")
    if not (int(labels.min()) >= 0 and int(labels.max()) < scores.shape[1]):
        raise ValueError(f"labels must lie in [0, {scores.shape[1]}), the columns of scores")


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the own class of each sample, from 1, ties counted against, (N,) int64.

    scores: (N, C) float, labels: (N,) int64. Raises ValueError on other shapes, empty input, or labels out of range.
    """
    _check_labels(scores, labels)
    own = scores.gather(1, labels[:, None])
    # The own class is one of those that are not lower than itself: the count is its rank. NaN: see _count.
    return (~(scores < own)).sum(1)


def predictions(scores: Tensor, labels: Tensor) -> Tensor:
    """Class with the highest score, (N,) int64; where the own class ties for it, another one of the tied classes.

    scores: (N, C) float, labels: (N,) int64. `predictions(...) == labels` is thus a rank of 1.
    """
    _check_labels(scores, labels)
    own = scores.gather(1, labels[:, None]).squeeze(1)
    rival, index = scores.scatter(1, labels[:, None], -torch.inf).max(1)
    return torch.where((own > rival) | (scores.shape[1] == 1), labels, index)
