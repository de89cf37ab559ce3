"""Classification metrics: pure functions of the (N, C) scores of N images for C classes and their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Rank of the own class of each sample, from 1, ties counted against, (N,) int64. labels: (N,) int64 in [0, C)."""
    own = scores.gather(1, labels[:, None])
    # The own class is one of those that are not lower than itself: the count is its rank. NaN: see _count.
    return (~(scores < own)).sum(1)


def predictions(scores: Tensor, labels: Tensor) -> Tensor:
    """Class with the highest score, (N,) int64; where the own class ties for it, another one: it is own at rank 1."""
    own = scores.gather(1, labels[:, None]).squeeze(1)
    rival, index = scores.scatter(1, labels[:, None], -torch.inf).max(1)
    return torch.where((own > rival) | (scores.shape[1] == 1), labels, index)
