"""The losses: pure functions of the N x M matrix of scaled similarities.

Row i is an image, column j a text, `logits[i, j] = scale * cos(image_i, text_j) + bias`. `positives[i, j]` says that
text j describes image i; left out, it is the diagonal. Several captions of one image, and equal captions, are
positives: counted as negatives they put a floor under the loss.

Each is the mean of a row loss (rows.py) over the rows of the matrix and over those of its transpose.

Memory: a copy of the matrix takes 4 N M bytes in float32, 1.1 GB for N = M = 16,384; each loss says how many of
them its gradient keeps. Training takes all but transport in tiles instead (objective.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from miniclip.losses.rows import (
    FocalForm,
    RowLoss,
    decoupled_rows,
    focal_rows,
    hinge_rows,
    sigmoid_rows,
    soft_rows,
    softmax_rows,
    transport_rows,
)

Reduction = Literal["mean", "none"]


def softmax_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Symmetric cross-entropy over rows and columns (CLIP, arXiv:2103.00020, figure 3).

    logits: (N, M) of any float dtype, already scaled; half precision is lifted to float32. positives: (N, M) bool; a
    row's (column's) target spreads evenly over its positives (supervised contrastive, arXiv:2004.11362, L_out).
    weights: (N,) for a square matrix, one a pair, or (N + M,), the rows' and then the columns'; 0 or more.
    reduction: mean is half the weighted mean of the rows plus half that of the columns; none gives (N + M,), the rows'
    values and then the columns', each times its weight.
    smoothing: share of every target that is spread over all candidates (arXiv:1512.00567), in [0, 1).
    Returns nats; uniform logits give ln N. Keeps two copies of the matrix, four with positives. Raises ValueError if
    the shapes disagree, a setting is out of range, or a row or column has no positive. The other losses share these
    arguments.
    """
    _require(0 <= smoothing < 1, f"smoothing={smoothing} must lie in [0, 1)")
    return _both_ways(partial(softmax_rows, smoothing=smoothing), logits, positives, weights, reduction)


def sigmoid_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Every pair of the matrix as its own yes-or-no question (SigLIP, arXiv:2303.15343, equation 1).

    Sum over the matrix of softplus(-z * logit), z = +1 for positives and -1 otherwise, divided by N, in nats; for a
    rectangle, by the harmonic mean of N and M. Needs a bias that starts low: -10, or -ln(N - 1), at which a row expects
    as many positives as it has. Keeps five copies of the matrix. Arguments and errors: softmax_loss.
    """
    return _both_ways(sigmoid_rows, logits, positives, weights, reduction)


def focal_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    gamma: float = 2.0,
    form: FocalForm = "softmax",
    alpha: float | None = 0.25,
) -> Tensor:
    """Cross-entropy with easy pairs weighted down (focal loss, arXiv:1708.02002, equation 5).

    form: softmax, (1 - p)^gamma times the row's cross-entropy, p the probability of all its positives; or sigmoid,
    alpha_t (1 - p_t)^gamma times each pair's. gamma: 0 or more; 0 is the loss without focus. alpha: in [0, 1], of the
    sigmoid form alone: weight of the positives, 1 - alpha that of the negatives; None weights neither.
    Keeps seven copies of the matrix, 17 in the sigmoid form. Arguments and errors: softmax_loss.
    """
    _require(form in ("softmax", "sigmoid"), f"unknown form {form!r}; use softmax or sigmoid")
    _require(0 <= gamma < math.inf, f"gamma={gamma} must be 0 or more")
    _require(alpha is None or 0 <= alpha <= 1, f"alpha={alpha} must lie in [0, 1], or be None")
    rows = partial(focal_rows, gamma=gamma, form=form, alpha=alpha)
    return _both_ways(rows, logits, positives, weights, reduction)


def hinge_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    margin: float = 0.2,
    hardest: float = 0.0,
) -> Tensor:
    """Every positive must beat every negative by a margin (multi-class SVM; VSE++, arXiv:1707.05612, equations 5, 6).

    A row's value is the sum of max(0, margin - lowest positive + negative) over its negatives (hardest = 0), the
    largest of those (hardest = 1), or their mixture. margin: in the unit of the matrix; 0.2 belongs to cosines, and
    training passes those. Keeps five copies of the matrix, seven with hardest. Arguments and errors: softmax_loss.
    """
    _require(0 <= margin < math.inf, f"margin={margin} must be 0 or more")
    _require(0 <= hardest <= 1, f"hardest={hardest} must lie in [0, 1]")
    return _both_ways(partial(hinge_rows, margin=margin, hardest=hardest), logits, positives, weights, reduction)


def decoupled_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy without the positive in the denominator (DCL, arXiv:2110.06848, equation 6).

    Equal to softmax_loss + log(1 - p), so it has no lower bound; uniform logits give ln(N - 1), and small batches
    lose less gradient. A row without any negative counts 0. Keeps three copies of the matrix. Arguments and errors:
    softmax_loss.
    """
    return _both_ways(decoupled_rows, logits, positives, weights, reduction)


def soft_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    targets: Tensor | None = None,
    share: float = 0.2,
) -> Tensor:
    """Cross-entropy to soft targets (SoftCLIP, arXiv:2303.17561, equation 6; supervised contrastive without targets).

    targets: (N, M), 0 or more: how well text j suits image i, as a matter of degree. It has no gradient, and is
    normalised over each row for the rows and over each column for the columns. share: part of the target that it
    makes up, in [0, 1]; the rest lies on the positives. Keeps four copies of the matrix. Arguments and errors:
    softmax_loss.
    """
    _require(0 <= share <= 1, f"share={share} must lie in [0, 1]")
    if targets is None:
        return _both_ways(soft_rows, logits, positives, weights, reduction)
    shapes = f"targets {tuple(targets.shape)} and logits {tuple(logits.shape)}"
    _require(targets.shape == logits.shape, f"{shapes} must have one shape")
    _require(
        bool((targets >= 0).all()) and all(bool((targets.sum(axis) > 0).all()) for axis in (0, 1)),
        "targets must be 0 or more, with something above 0 in every row and column",
    )
    rows, columns = (partial(soft_rows, targets=t, share=share) for t in (targets, targets.T))
    return _both_ways(rows, logits, positives, weights, reduction, columns=columns)


def transport_loss(
    logits: Tensor,
    positives: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    iterations: int = 5,
) -> Tensor:
    """Negative log of the mass that an optimal transport plan moves between positives, in nats.

    The plan moves images to texts at a cost of 1 - cosine with entropic regularisation 1/scale, each image and each
    text having the same mass; the loss is -mean log(N P_ii), the inverse optimal transport view of contrastive learning
    (Shi et al., ICML 2023), averaged over the plan that ends on the rows and the one that ends on the columns.
    iterations: of Sinkhorn's algorithm (see sinkhorn); 0 is softmax_loss. Needs the whole matrix at once, in training
    too, keeps four copies of it, and makes some more on the way.
    Arguments and errors: softmax_loss.
    """
    return _both_ways(partial(transport_rows, iterations=iterations), logits, positives, weights, reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_loss,
    "sigmoid": sigmoid_loss,
    "focal": focal_loss,
    "hinge": hinge_loss,
    "decoupled": decoupled_loss,
    "soft": soft_loss,
    "transport": transport_loss,
}


def _both_ways(
    rows: RowLoss,
    logits: Tensor,
    positives: Tensor | None,
    weights: Tensor | None,
    reduction: Reduction,
    columns: RowLoss | None = None,
) -> Tensor:
    """rows over the matrix, columns (by default rows, too) over its transpose, and the reduction of both."""
    _require(reduction in ("mean", "none"), f"unknown reduction {reduction!r}; use mean or none")
    shape = tuple(logits.shape)
    _require(logits.ndim == 2 and logits.numel() > 0, f"logits must be a matrix with entries; their shape is {shape}")
    n, m = logits.shape
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if positives is None:
        _require(n == m, f"logits of shape {shape} have no diagonal; pass positives of that shape")
        row_positives = column_positives = torch.arange(n, device=logits.device)
    else:
        _require_positives(logits, positives)
        row_positives, column_positives = positives, positives.T
    values = torch.cat([rows(logits, row_positives), (columns or rows)(logits.T, column_positives)])
    if weights is None:
        return values if reduction == "none" else (values[:n].mean() + values[n:].mean()) / 2
    weights = _pair_weights(weights, n, m).to(values.dtype)
    if reduction == "none":
        return weights * values
    return (_weighted_mean(values[:n], weights[:n]) + _weighted_mean(values[n:], weights[n:])) / 2


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values).sum() / weights.sum()


def _pair_weights(weights: Tensor, n: int, m: int) -> Tensor:
    if weights.shape == (n,) and n == m:
        weights = torch.cat([weights, weights])
    if weights.shape != (n + m,):
        wanted = f"({n},), one a pair, or ({n + m},)" if n == m else f"({n + m},), the rows' and then the columns'"
        raise ValueError(f"weights {tuple(weights.shape)} do not fit logits {(n, m)}; they must be {wanted}")
    _require(
        bool((weights >= 0).all()) and all(0 < float(part.sum()) < math.inf for part in (weights[:n], weights[n:])),
        "weights must be 0 or more, and not all of them 0",
    )
    return weights


def _require_positives(logits: Tensor, positives: Tensor) -> None:
    if positives.shape != logits.shape or positives.dtype != torch.bool:
        raise ValueError(
            f"positives {tuple(positives.shape)} {positives.dtype} and logits {tuple(logits.shape)} must have one "
            "shape, and positives be bool"
        )
    for axis, kind in ((1, "row"), (0, "column")):
        empty = ~positives.any(axis)
        if empty.any():
            raise ValueError(f"{kind} {int(empty.nonzero()[0])} of positives has no positive; every {kind} needs one")
