"""The losses: each one function of the rows of the N x M matrix of scaled similarities, and an entry of LOSSES.

Row i is an image, column j a text, `logits[i, j] = scale * cos(image_i, text_j) + bias`. Which text belongs to a row's
image, which image to a column's text: a loss asks both, and answers the second by the rows of the transpose.

A function takes (B, M) logits, float32 or float64, any rows of the matrix, and their positives: (B, M) bool with at
least one in each row, or (B,) int64, the column of each row's only one. It returns what each row contributes, (B,);
with `parts` (and bool positives), how that divides over the entries, (B, M), each row of which sums up to it. Settings
are keywords; their defaults and ranges are those of the configuration (config/loss.py). Nothing is checked here but
where LOSSES takes a whole matrix. Copies of the matrix that a gradient keeps are of 4 N M bytes each in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.config.loss import OPTIONS
from miniclip.losses.transport import sinkhorn


def softmax(logits: Tensor, positives: Tensor, parts: bool = False, *, smoothing: float) -> Tensor:
    """Cross-entropy to the positives, evenly (CLIP, arXiv:2103.00020, figure 3; several: arXiv:2004.11362, L_out).

    smoothing: share of every target spread over all columns (arXiv:1512.00567). In nats; uniform logits give ln M.
    Keeps two copies of the matrix, four with positives.
    """
    return _cross_entropy(logits, _targets(logits, positives), parts, smoothing)


def sigmoid(logits: Tensor, positives: Tensor, parts: bool = False) -> Tensor:
    """Every pair's own yes-or-no cross-entropy, softplus(-z * logit), z = +-1 (SigLIP, arXiv:2303.15343, equation 1).

    Needs a bias that starts low: -10, or -ln(N - 1), at which a row expects one positive. Keeps five copies.
    """
    log_p = F.logsigmoid(torch.where(_mask(logits, positives), logits, -logits))
    return -log_p if parts else -log_p.sum(1)


def focal(
    logits: Tensor, positives: Tensor, parts: bool = False, *, gamma: float, form: str, alpha: float | None
) -> Tensor:
    """Cross-entropy with what is known weighted down by (1 - p)^gamma (arXiv:1708.02002, equation 5).

    form: softmax, p the probability of all of a row's positives; or sigmoid, p that of each answer, and alpha the
    weight of the positives, 1 - alpha that of the negatives; None weights neither. Keeps 7 copies, sigmoid 17.
    """
    # 1 - p in log space: in the form 1 - exp(.) its gradient is 0 / 0 where p rounds to 1
    if form == "sigmoid":
        mask = _mask(logits, positives)
        signed = torch.where(mask, logits, -logits)
        values = -(gamma * F.logsigmoid(-signed)).exp() * F.logsigmoid(signed)
        if alpha is not None:
            values = values * (1 - alpha + (2 * alpha - 1) * mask.to(values.dtype))
        return values if parts else values.sum(1)
    weight = (gamma * _log_negatives(logits.log_softmax(1), positives)).exp()
    return (weight[:, None] if parts else weight) * softmax(logits, positives, parts, smoothing=0.0)


def hinge(logits: Tensor, positives: Tensor, parts: bool = False, *, margin: float, hardest: float) -> Tensor:
    """By how much negatives come within margin of the lowest positive (VSE++, arXiv:1707.05612, equations 5 and 6).

    margin: in the unit of the matrix. hardest: 0 takes the sum over the negatives, 1 the largest (in parts the first of
    equal ones), between them their mixture. Keeps five copies of the matrix, seven with hardest.
    """
    mask = _mask(logits, positives)
    lowest = logits.masked_fill(~mask, torch.finfo(logits.dtype).max).amin(1, keepdim=True)
    short = F.relu(margin + logits - lowest).masked_fill(mask, 0)
    if parts:
        top = short.argmax(1, keepdim=True)
        return (1 - hardest) * short + hardest * torch.zeros_like(short).scatter(1, top, short.gather(1, top))
    return (1 - hardest) * short.sum(1) + hardest * short.amax(1) if hardest else short.sum(1)


def decoupled(logits: Tensor, positives: Tensor, parts: bool = False) -> Tensor:
    """Cross-entropy without the positives in the denominator (DCL, arXiv:2110.06848, equation 6); no lower bound.

    Equal to softmax + log(1 - p); uniform logits give ln(M - 1). 0 in a row without negatives. Keeps three copies.
    """
    mask, negatives = _mask(logits, positives), _log_negatives(logits, positives)
    if parts:
        return torch.where(mask.all(1, keepdim=True), 0, _targets(logits, mask) * (negatives[:, None] - logits))
    attraction = logits.masked_fill(~mask, 0).sum(1) / mask.sum(1)
    return torch.where(mask.all(1), 0, negatives - attraction)


def soft(
    logits: Tensor, positives: Tensor, parts: bool = False, *, share: float, targets: Tensor | None = None
) -> Tensor:
    """Cross-entropy to soft targets (SoftCLIP, arXiv:2303.17561, equation 6); without targets, to the positives.

    targets: (B, M), 0 or more, how well text j suits image i; normalised over each row, without a gradient. share: part
    of the target that they make up; the rest lies on the positives. Keeps four copies.
    """
    if targets is None:
        return softmax(logits, positives, parts, smoothing=0.0)
    targets = targets.detach().to(logits.dtype)
    q = (1 - share) * _targets(logits, _mask(logits, positives)) + share * targets / targets.sum(1, keepdim=True)
    return _cross_entropy(logits, q, parts)


def transport(logits: Tensor, positives: Tensor, parts: bool = False, *, iterations: int) -> Tensor:
    """-log(N P_ij), P the plan of transport.py, mean over each row's positives (Shi et al., ICML 2023).

    logits: all N rows, for a row's mass depends on every other's. iterations: of Sinkhorn's algorithm; 0 is softmax.
    Keeps four copies of the matrix, and makes some more on the way.
    """
    mask = _mask(logits, positives)
    log_p = sinkhorn(logits, iterations) + math.log(len(logits))
    return -_targets(logits, mask) * log_p if parts else -log_p.masked_fill(~mask, 0).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Loss:
    """A loss of the whole matrix: the mean of its rows' and its columns', or weighted by image_to_text (softmax alone).

    on_cosines: its settings are in cosines, so training hands it the matrix with scale 1 and no bias. whole_matrix: it
    is not decided row by row, so each process needs the whole matrix.
    """

    rows: Callable[..., Tensor]
    on_cosines: bool = False
    whole_matrix: bool = False

    def __call__(
        self,
        logits: Tensor,
        positives: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
        **settings: Any,
    ) -> Tensor:
        """The loss of a matrix.

        logits: (N, M) of any float dtype, already scaled; half precision is lifted to float32. positives: (N, M) bool;
        the diagonal if left out. weights: (N,) for a square matrix, one a pair, or (N + M,), the rows' and then the
        columns'; 0 or more. reduction: mean is half the weighted mean of the rows plus half that of the columns; none
        gives (N + M,), the rows' values and then the columns', each times its weight. settings: of the function in
        rows. Raises ValueError if shapes disagree, a setting is out of range, or a row or column has no positive.
        """
        own = {o.keyword: o for o in OPTIONS.values() if o.loss == self.rows.__name__ and o.keyword}
        for keyword, option in own.items():
            option.range.check(keyword, settings.setdefault(keyword, option.default))
        if unknown := settings.keys() - own.keys() - {"targets"}:
            raise TypeError(
                f"the {self.rows.__name__} loss has no setting {min(unknown)}; it has {', '.join(own) or 'none'}"
            )
        _require(reduction in ("mean", "none"), f"unknown reduction {reduction!r}; use mean or none")
        shape = tuple(logits.shape)
        _require(len(shape) == 2 and min(shape) > 0, f"logits must be a matrix with entries; their shape is {shape}")
        n, m = shape
        if positives is None:
            _require(n == m, f"logits of shape {shape} have no diagonal; pass positives of that shape")
            positives = torch.arange(n, device=logits.device)
        else:
            _require_positives(positives, shape)
        if settings.get("targets") is not None:
            _require_targets(settings["targets"], shape)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        values = torch.cat(self.both_ways(logits, positives, **settings))
        if weights is None:
            return values if reduction == "none" else (values[:n].mean() + values[n:].mean()) / 2
        weights = _pair_weights(weights, n, m).to(values.dtype)
        values = weights * values
        if reduction == "none":
            return values
        return (values[:n].sum() / weights[:n].sum() + values[n:].sum() / weights[n:].sum()) / 2

    def both_ways(
        self, logits: Tensor, positives: Tensor, image_to_text: float = 0.5, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """Of the rows of a whole matrix, and of those of its transpose, each times twice its direction's weight.

        settings: every one of them, or parts as well; unchecked.
        """
        turned = {name: x.T if isinstance(x, Tensor) else x for name, x in settings.items()}
        by_row = self.rows(logits, positives, **settings)
        by_column = self.rows(logits.T, positives.transpose(0, -1), **turned)
        return 2 * image_to_text * by_row, 2 * (1 - image_to_text) * by_column


# by the names of the functions, in the order of the configuration
LOSSES: dict[str, Loss] = {
    "softmax": Loss(softmax),
    "sigmoid": Loss(sigmoid),
    "focal": Loss(focal),
    "hinge": Loss(hinge, on_cosines=True),
    "decoupled": Loss(decoupled),
    "soft": Loss(soft),
    "transport": Loss(transport, whole_matrix=True),
}


def _cross_entropy(logits: Tensor, q: Tensor, parts: bool, smoothing: float = 0.0) -> Tensor:
    """-q log p, q the target as from _targets."""
    if not parts:
        return F.cross_entropy(logits, q, reduction="none", label_smoothing=smoothing)
    return -((1 - smoothing) * q + smoothing / logits.shape[1]) * logits.log_softmax(1)


def _mask(logits: Tensor, positives: Tensor) -> Tensor:
    """positives as (B, M) bool."""
    if positives.dtype == torch.bool:
        return positives
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, positives[:, None], True)


def _targets(logits: Tensor, positives: Tensor) -> Tensor:
    """positives as cross_entropy takes them: the column of the only one, or (B, M) probabilities, even over several."""
    if positives.dtype != torch.bool:
        return positives
    return positives / positives.sum(1, keepdim=True).to(logits.dtype)


def _log_negatives(logits: Tensor, positives: Tensor) -> Tensor:
    """logsumexp over each row's negatives; (B,). Without any it is about the lowest number there is, not -inf."""
    return logits.masked_fill(_mask(logits, positives), torch.finfo(logits.dtype).min).logsumexp(1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_positives(positives: Tensor, shape: tuple[int, ...]) -> None:
    given = f"positives {tuple(positives.shape)} {positives.dtype} and logits {shape}"
    fits = positives.shape == shape and positives.dtype == torch.bool
    _require(fits, f"{given} must have one shape, and positives be bool")
    for axis, kind in ((1, "row"), (0, "column")):
        empty = (~positives.any(axis)).nonzero()
        if len(empty):
            raise ValueError(f"{kind} {int(empty[0])} of positives has no positive; every {kind} needs one")


def _require_targets(targets: Tensor, shape: tuple[int, ...]) -> None:
    _require(targets.shape == shape, f"targets {tuple(targets.shape)} and logits {shape} must have one shape")
    _require(
        bool((targets >= 0).all()) and all(bool((targets.sum(axis) > 0).all()) for axis in (0, 1)),
        "targets must be 0 or more, with something above 0 in every row and column",
    )


def _pair_weights(weights: Tensor, n: int, m: int) -> Tensor:
    """(N + M,)."""
    if weights.shape == (n,) and n == m:
        weights = torch.cat([weights, weights])
    wanted = f"({n},), one a pair, or ({n + m},)" if n == m else f"({n + m},), the rows' and then the columns'"
    given = f"weights {tuple(weights.shape)} do not fit logits {(n, m)}"
    _require(weights.shape == (n + m,), f"{given}; they must be {wanted}")
    _require(
        bool((weights >= 0).all()) and all(0 < float(part.sum()) < math.inf for part in (weights[:n], weights[n:])),
        "weights must be 0 or more, and not all of them 0",
    )
    return weights
