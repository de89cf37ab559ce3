"""The losses: pure functions of the N x M matrix of scaled similarities.

Row i is an image, column j a text, `logits[i, j] = scale * cos(image_i, text_j) + bias`. `positives[i, j]` says that
text j describes image i; left out, it is the diagonal. Several captions of one image, and equal captions, are
positives: counted as negatives they put a floor under the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_loss(logits: Tensor, positives: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Symmetric cross-entropy over rows and columns (CLIP, arXiv:2103.00020, figure 3).

    logits: (N, M) float32, already scaled. positives: (N, M) bool; a row's (column's) target spreads evenly over its
    positives (supervised contrastive, arXiv:2004.11362). smoothing: share of every target that is spread over all
    candidates (arXiv:1512.00567), in [0, 1).
    Returns a scalar in nats; uniform logits give ln N. Raises ValueError if a row or column has no positive.
    """
    if positives is None:
        _require_square(logits)
        target = torch.arange(len(logits), device=logits.device)
        rows = F.cross_entropy(logits, target, label_smoothing=smoothing)
        return (rows + F.cross_entropy(logits.T, target, label_smoothing=smoothing)) / 2
    _require_positives(logits, positives)
    weights = positives.to(logits.dtype)
    rows = F.cross_entropy(logits, weights / weights.sum(1, keepdim=True), label_smoothing=smoothing)
    weights = weights.T
    return (rows + F.cross_entropy(logits.T, weights / weights.sum(1, keepdim=True), label_smoothing=smoothing)) / 2


def sigmoid_loss(logits: Tensor, positives: Tensor | None = None) -> Tensor:
    """Every pair of the matrix as its own yes-or-no question (SigLIP, arXiv:2303.15343, equation 1).

    logits: (N, M) float32, scaled and biased. positives: (N, M) bool.
    Returns the sum over the matrix of softplus(-z * logit), z = +1 for positives and -1 otherwise, divided by N, in
    nats.
    Raises ValueError if a row or column has no positive.
    """
    if positives is None:
        _require_square(logits)
        positives = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    _require_positives(logits, positives)
    return F.softplus(torch.where(positives, -logits, logits)).sum() / len(logits)


def _require_square(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no diagonal; pass positives of that shape")


def _require_positives(logits: Tensor, positives: Tensor) -> None:
    if positives.shape != logits.shape:
        raise ValueError(f"positives {tuple(positives.shape)} and logits {tuple(logits.shape)} must have one shape")
    for axis, kind in ((1, "row"), (0, "column")):
        empty = ~positives.any(axis)
        if empty.any():
            raise ValueError(f"{kind} {int(empty.nonzero()[0])} of positives has no positive; every {kind} needs one")


LOSSES: dict[str, Callable[..., Tensor]] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
