"""How a row's loss divides over its entries: for each function of rows.py one that returns the parts of its sum.

Keys and settings are those of ROWS. `logits` is (B, M) float32 or float64, `positives` (B, M) bool with at least one in
each row; returned is (B, M), whose sums over the rows are what the row loss returns, in its unit. Nothing is checked
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.losses.rows import FocalForm, focal_rows, log_negatives, sigmoid_rows, target_rows
from miniclip.losses.transport import sinkhorn


def softmax_entries(logits: Tensor, positives: Tensor, smoothing: float = 0.0) -> Tensor:
    """-q_ij log p_ij, q the target: even over the positives, smoothing of it over all columns; 0 where q is."""
    q = (1 - smoothing) * target_rows(logits, positives) + smoothing / logits.shape[1]
    return -q * logits.log_softmax(1)


def sigmoid_entries(logits: Tensor, positives: Tensor) -> Tensor:
    """Each pair's own binary cross-entropy."""
    return sigmoid_rows(*_each_alone(logits, positives)).view(logits.shape)


def focal_entries(
    logits: Tensor,
    positives: Tensor,
    gamma: float = 2.0,
    form: FocalForm = "softmax",
    alpha: float | None = 0.25,
) -> Tensor:
    """softmax_entries times the weight of the row, or each pair's own weighted binary cross-entropy."""
    if form == "sigmoid":
        return focal_rows(*_each_alone(logits, positives), gamma, form, alpha).view(logits.shape)
    known = log_negatives(logits.log_softmax(1), positives)
    return (gamma * known).exp()[:, None] * softmax_entries(logits, positives)


def hinge_entries(logits: Tensor, positives: Tensor, margin: float = 0.2, hardest: float = 0.0) -> Tensor:
    """By how much each negative comes within margin of the lowest positive; 0 for the positives.

    hardest: share of the value that lies on the largest of them alone; of equal ones, on the first.
    """
    lowest = logits.masked_fill(~positives, torch.inf).amin(1, keepdim=True)
    short = F.relu(margin + logits - lowest).masked_fill(positives, 0)
    top = short.argmax(1, keepdim=True)
    return (1 - hardest) * short + hardest * torch.zeros_like(short).scatter(1, top, short.gather(1, top))


def decoupled_entries(logits: Tensor, positives: Tensor) -> Tensor:
    """For each positive, q_ij times what it lacks to the logsumexp of the negatives; 0 in a row without negatives."""
    lacking = log_negatives(logits, positives)[:, None] - logits
    return torch.where(positives.all(1, keepdim=True), 0, target_rows(logits, positives) * lacking)


def soft_entries(logits: Tensor, positives: Tensor, targets: Tensor | None = None, share: float = 0.2) -> Tensor:
    """-q_ij log p_ij, q the target: (1 - share) of it on the positives, share as in targets (B, M)."""
    if targets is None:
        return softmax_entries(logits, positives)
    targets = targets.detach().to(logits.dtype)
    q = (1 - share) * target_rows(logits, positives) + share * targets / targets.sum(1, keepdim=True)
    return -q * logits.log_softmax(1)


def transport_entries(logits: Tensor, positives: Tensor, iterations: int = 5) -> Tensor:
    """-log(N P_ij) of the Sinkhorn plan P that ends on the rows, over the row's number of positives; on these alone.

    logits: (N, M), all of them, as for transport_rows.
    """
    return -target_rows(logits, positives) * (sinkhorn(logits, iterations) + math.log(len(logits)))


# settings are keywords, the same as those of the row loss
ENTRIES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_entries,
    "sigmoid": sigmoid_entries,
    "focal": focal_entries,
    "hinge": hinge_entries,
    "decoupled": decoupled_entries,
    "soft": soft_entries,
    "transport": transport_entries,
}


def _each_alone(logits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Every entry as a row of one column: such a row's loss is the entry's."""
    return logits.reshape(-1, 1), positives.reshape(-1, 1)
