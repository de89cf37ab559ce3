"""What each row of the matrix contributes to a loss: functions of (B, M) logits, any rows of the whole matrix.

A loss asks two questions, which text belongs to a row's image and which image to a column's text; every loss but
transport answers each of them row by row (of the matrix, and of its transpose). So a process needs only its own rows
(objective.py), and those only a few at a time (tiles.py); losses.py has the losses of a whole matrix.

`positives` is (B, M) bool, with at least one in each row, or (B,) int64, the column of each row's only one. Logits are
float32 or float64. Nothing is checked here: losses.py does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.losses.transport import sinkhorn

RowLoss = Callable[[Tensor, Tensor], Tensor]
FocalForm = Literal["softmax", "sigmoid"]


def softmax_rows(logits: Tensor, positives: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each row to its positives, evenly; (B,), in nats. smoothing: share spread over all columns."""
    return F.cross_entropy(logits, target_rows(logits, positives), reduction="none", label_smoothing=smoothing)


def sigmoid_rows(logits: Tensor, positives: Tensor) -> Tensor:
    """Sum over each row of the binary cross-entropies, a yes for the positives, a no for the others; (B,), in nats."""
    return -F.logsigmoid(_signed(logits, positives)).sum(1)


def focal_rows(
    logits: Tensor,
    positives: Tensor,
    gamma: float = 2.0,
    form: FocalForm = "softmax",
    alpha: float | None = 0.25,
) -> Tensor:
    """softmax_rows or sigmoid_rows with what is already known weighted down by (1 - p)^gamma; (B,)."""
    # 1 - p in log space: in the form 1 - exp(.) its gradient is 0 / 0 where p rounds to 1
    if form == "sigmoid":
        signed = _signed(logits, positives)
        values = -(gamma * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)
        if alpha is not None:
            values = values * (1 - alpha + (2 * alpha - 1) * _mask(logits, positives).to(values.dtype))
        return values.sum(1)
    log_p = logits.log_softmax(1)
    known = log_negatives(log_p, positives)  # log(1 - p), p the probability of all positives together
    return (gamma * known).exp() * softmax_rows(logits, positives)


def hinge_rows(logits: Tensor, positives: Tensor, margin: float = 0.2, hardest: float = 0.0) -> Tensor:
    """By how much each row's negatives come within margin of its lowest positive: their sum, or the largest; (B,).

    hardest: 0 takes the sum, 1 the largest, between them their mixture.
    """
    mask = _mask(logits, positives)
    lowest = logits.masked_fill(~mask, torch.finfo(logits.dtype).max).amin(1, keepdim=True)
    short = F.relu(margin + logits - lowest).masked_fill(mask, 0)
    if not hardest:
        return short.sum(1)
    return (1 - hardest) * short.sum(1) + hardest * short.amax(1)


def decoupled_rows(logits: Tensor, positives: Tensor) -> Tensor:
    """softmax_rows without the positives in the denominator; (B,), below 0 too. A row without negatives gives 0."""
    mask = _mask(logits, positives)
    attraction = logits.masked_fill(~mask, 0).sum(1) / mask.sum(1)
    return torch.where(mask.all(1), 0, log_negatives(logits, positives) - attraction)


def soft_rows(logits: Tensor, positives: Tensor, targets: Tensor | None = None, share: float = 0.2) -> Tensor:
    """Cross-entropy of each row to (1 - share) of its positives and share of targets (B, M), normalised; (B,)."""
    if targets is None:
        return softmax_rows(logits, positives)
    targets = targets.detach().to(logits.dtype)
    q = (1 - share) * target_rows(logits, _mask(logits, positives)) + share * targets / targets.sum(1, keepdim=True)
    return F.cross_entropy(logits, q, reduction="none")


def transport_rows(logits: Tensor, positives: Tensor, iterations: int = 5) -> Tensor:
    """-log(N P_ij) of the Sinkhorn plan P that ends on the rows, mean over each row's positives; (N,).

    logits: (N, M), all of them: every row's mass depends on every other's.
    """
    mask = _mask(logits, positives)
    log_p = sinkhorn(logits, iterations) + math.log(len(logits))
    return -log_p.masked_fill(~mask, 0).sum(1) / mask.sum(1)


# settings are keywords, the same as those of the loss
ROWS: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_rows,
    "sigmoid": sigmoid_rows,
    "focal": focal_rows,
    "hinge": hinge_rows,
    "decoupled": decoupled_rows,
    "soft": soft_rows,
    "transport": transport_rows,
}
# not decided row by row: every process needs the whole matrix
NEEDS_MATRIX = frozenset({"transport"})
# losses whose settings are in cosines: training hands them the matrix with scale 1 and no bias
ON_COSINES = frozenset({"hinge"})


def chance_value(rows: RowLoss, n: int, captions: int = 1) -> float:
    """What a loss is where nothing is told apart: n images, captions texts for each, all logits equal.

    The one value of all logits is -ln(n - 1), the best there is for the sigmoid loss, which alone notices it.
    """
    logits = torch.full((1, n * captions), -math.log(max(1, n - 1)), dtype=torch.float64)
    texts = torch.arange(n * captions)[None] < captions
    images = torch.arange(n)[None] < 1
    return (float(rows(logits, texts)) + float(rows(logits[:, :n], images))) / 2


def _mask(logits: Tensor, positives: Tensor) -> Tensor:
    """positives as (B, M) bool."""
    if positives.dtype == torch.bool:
        return positives
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, positives[:, None], True)


def target_rows(logits: Tensor, positives: Tensor) -> Tensor:
    """positives as cross_entropy takes them: the column of the only one, or (B, M) probabilities, even over several."""
    if positives.dtype != torch.bool:
        return positives
    return positives / positives.sum(1, keepdim=True).to(logits.dtype)


def _signed(logits: Tensor, positives: Tensor) -> Tensor:
    return torch.where(_mask(logits, positives), logits, -logits)


def log_negatives(logits: Tensor, positives: Tensor) -> Tensor:
    """logsumexp over each row's negatives; (B,). Without any it is about the lowest number there is, not -inf."""
    return logits.masked_fill(_mask(logits, positives), torch.finfo(logits.dtype).min).logsumexp(1)
