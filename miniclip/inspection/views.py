"""One matrix under every loss, and at other temperatures: values and gradients from the library's own losses.

Everything is float64. Axes: N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.inspection.contents import LossView, Temperature
from miniclip.losses import LOSSES
from miniclip.losses.matrix import chance_loss
from miniclip.metrics.geometry import effective_negatives
from miniclip.metrics.slopes import handed

_SCALES = 25  # points of the temperature curves, evenly spaced in the logarithm
_EQUAL = 1e-12  # losses that differ by less, or by that share of them, differ by rounding
END = 2**62  # the step at which settings that move along the training have arrived


def loss_views(
    image: Tensor,
    text: Tensor,
    cosine: Tensor,
    positives: Tensor,
    scale: float,
    bias: float | None,
    trained: LossConfig | None,
) -> dict[str, LossView]:
    """The matrix under each of LOSSES: `trained`, if known, with its own settings, the others with the defaults.

    image, text: (N, E) float64, unit length; the soft loss's targets come from them. cosine: (N, N) float64. positives:
    (N, N) bool. scale, bias: the model's; a sigmoid loss that finds no bias gets the best one for this matrix.
    """
    views, n = {}, len(positives)
    for name, loss in LOSSES.items():
        config = trained if trained and trained.name == name else LossConfig(name=name)  # type: ignore[arg-type]
        own_bias = None if loss.on_cosines else bias
        if config.pairwise and bias is None:
            own_bias = best_bias(scale * cosine, int(positives.sum()))
        logits, settings = handed(config, image, text, cosine, scale, own_bias, END)
        logits = logits.detach()
        by_row, by_column = loss.both_ways(logits, positives, parts=True, **settings)
        values = loss(logits.requires_grad_(), positives, reduction="none", **settings)
        value = values.mean()  # as many rows as columns
        (gradient,) = torch.autograd.grad(value, logits)
        values = values.detach()
        views[name] = LossView(
            trained=config is trained,
            settings={key: setting for key, setting in settings.items() if key != "targets"},
            scale=1.0 if loss.on_cosines else scale,
            bias=own_bias,
            unit="cosine" if loss.on_cosines else "nats",
            row_loss=values[:n],
            column_loss=values[n:],
            pair_loss=(by_row + by_column.T) / 2,
            gradient=gradient,
            targets=settings.get("targets"),
            value=float(value.detach()),
            chance=chance_loss(config, n, 1, END),
        )
    return views


def loss_figures(
    image: Tensor,
    text: Tensor,
    positives: Tensor,
    scale: float,
    bias: float | None,
    config: LossConfig,
    step: int = END,
) -> dict[str, float]:
    """The loss of these pairs as training computes it at a step, and over its chance value; axes as in loss_views."""
    logits, settings = handed(config, image, text, image @ text.T, scale, bias, step)
    value = float(LOSSES[config.name](logits, positives, **settings))
    # decoupled's chance is ln(N - 1) = 0 for two pairs: avoid 0/0
    return {"loss": value, "loss_over_chance": value / (chance_loss(config, len(image), 1, step) or 1)}


def best_bias(logits: Tensor, positives: int) -> float:
    """The bias at which the matrix expects as many positives as there are: there the sigmoid loss is lowest.

    logits: (N, M) without a bias. positives: at least 1, fewer than N M (else a bias of plus infinity would be best).
    """
    low, high = -float(logits.max()) - 50.0, -float(logits.min()) + 50.0
    for _ in range(60):
        middle = (low + high) / 2
        too_many = float((logits + middle).sigmoid().sum()) > positives
        low, high = (low, middle) if too_many else (middle, high)
    return (low + high) / 2


def temperature(cosine: Tensor, positives: Tensor, learned: float, losses: Mapping[str, LossView]) -> Temperature:
    """What the probabilities and the losses of LossViews do as the scale moves, from 1 to 100 or as far as needed."""
    from scipy.optimize import minimize_scalar

    low, high = math.log(min(1.0, learned)), math.log(max(100.0, learned))

    @cache
    def value(name: str, log_scale: float) -> float:
        view = losses[name]
        settings = view.settings if view.targets is None else view.settings | {"targets": view.targets}
        return float(LOSSES[name](math.exp(log_scale) * cosine + (view.bias or 0.0), positives, **settings))

    scaled = [name for name in losses if not LOSSES[name].on_cosines]
    grid = [low + (high - low) * k / (_SCALES - 1) for k in range(_SCALES)]
    best = {}  # logarithms, but for the infinities
    for name in scaled:
        values = [value(name, at) for at in grid]
        equal = _EQUAL * max(1, abs(min(values)))
        # the last of the lowest: a loss that tends to a bound reaches it by rounding before the end
        k = max(i for i in range(_SCALES) if values[i] <= min(values) + equal)
        around = (grid[max(k - 1, 0)], grid[min(k + 1, _SCALES - 1)])
        found = minimize_scalar(partial(value, name), bounds=around, method="bounded", options={"xatol": 5e-3})
        # the search keeps inside its bounds, and the lowest may lie on one
        best[name] = float(found.x) if float(found.fun) < values[k] - equal else grid[k]
        if best[name] in (low, high):
            flat = max(values) <= min(values) + equal
            best[name] = math.nan if flat else math.copysign(math.inf, best[name] - low - (high - low) / 2)
    points = sorted({*grid, math.log(learned), *filter(math.isfinite, best.values())})
    curves = []
    for at in points:
        logits = math.exp(at) * cosine
        log_p = [logits.log_softmax(axis) for axis in (1, 0)]
        entropies = [float(-(each.exp() * each).sum(axis).mean()) for each, axis in zip(log_p, (1, 0), strict=True)]
        curves.append([*entropies, *(float(side.mean()) for side in effective_negatives(logits, positives))])
    double = partial(torch.tensor, dtype=torch.float64)
    return Temperature(
        # the learned one as it was given, not to the last bit of its logarithm
        double([learned if at == math.log(learned) else math.exp(at) for at in points]),
        learned,
        {name: math.exp(at) if math.isfinite(at) else at for name, at in best.items()},
        {name: double([value(name, at) for at in points]) for name in scaled},
        *double(curves).T,
    )
