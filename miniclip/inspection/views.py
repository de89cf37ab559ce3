"""One matrix under every loss, and at other temperatures: values and gradients from the library's own losses.

Everything is float64 but the curves over the temperature, which are computed in float32. Axes: N pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.inspection.contents import LossView, Temperature
from miniclip.inspection.pair_loss import ENTRIES
from miniclip.losses import LOSSES
from miniclip.losses.objective import chance_loss, likeness
from miniclip.losses.rows import ON_COSINES
from miniclip.metrics.geometry import effective_negatives

_SCALES = 25  # points of the temperature curves, evenly spaced in the logarithm
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
    views = {}
    for name in LOSSES:
        known = trained if trained is not None and trained.name == name else None
        config = known or LossConfig(name=name)  # type: ignore[arg-type]
        if config.pairwise and bias is None:
            own_bias: float | None = best_bias(scale * cosine, int(positives.sum()))
        else:
            own_bias = None if name in ON_COSINES else bias
        handed = Handed.of(config, image, text, cosine, scale, own_bias)
        views[name] = replace(_view(config, handed, positives), bias=own_bias, trained=known is not None)
    return views


class Handed(NamedTuple):
    """What a loss of LOSSES is called with. logits: (N, N). scale: what the cosines were multiplied by."""

    logits: Tensor
    settings: dict[str, Any]
    scale: float

    @classmethod
    def of(
        cls,
        config: LossConfig,
        image: Tensor,
        text: Tensor,
        cosine: Tensor,
        scale: float,
        bias: float | None,
        step: int = END,
    ) -> Handed:
        """The matrix of these embeddings as training hands it to the loss; axes as in loss_views."""
        settings = config.settings(step)
        if config.name in ON_COSINES:
            return cls(cosine, settings, 1.0)
        if config.name == "soft":
            settings["targets"] = likeness(image, text, slice(None), config.soft_scale)
        return cls(scale * cosine + (bias or 0.0), settings, scale)


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
    handed = Handed.of(config, image, text, image @ text.T, scale, bias, step)
    value = float(LOSSES[config.name](handed.logits, positives, **handed.settings))
    # decoupled's chance is 0 for two pairs
    return {"loss": value, "loss_over_chance": value / (chance_loss(config, len(image), 1, step) or 1)}


def _view(config: LossConfig, handed: Handed, positives: Tensor) -> LossView:
    n, settings = len(positives), handed.settings
    logits = handed.logits.detach().requires_grad_()
    values = LOSSES[config.name](logits, positives, reduction="none", **settings)
    value = values.mean()  # as many rows as columns
    (gradient,) = torch.autograd.grad(value, logits)
    logits, values = logits.detach(), values.detach()
    targets = settings.get("targets")
    turned = settings if targets is None else {**settings, "targets": targets.T}
    entries = ENTRIES[config.name]
    by_row = entries(logits, positives, **settings)
    by_column = entries(logits.T, positives.T, **turned).T
    return LossView(
        settings={key: setting for key, setting in settings.items() if key != "targets"},
        scale=handed.scale,
        bias=None,
        trained=False,
        value=float(value.detach()),
        chance=chance_loss(config, n, 1, END),
        row_loss=values[:n],
        column_loss=values[n:],
        pair_loss=(by_row + by_column) / 2,
        gradient=gradient,
        unit="cosine" if config.name in ON_COSINES else "nats",
        targets=targets,
    )


def best_bias(logits: Tensor, positives: int) -> float:
    """The bias at which the matrix expects as many positives as there are: there the sigmoid loss is lowest.

    logits: (N, M) without a bias. positives: at least 1, fewer than N M (else a bias of plus infinity would be best).
    """
    low, high = -float(logits.max()) - 50.0, -float(logits.min()) + 50.0
    for _ in range(60):
        middle = (low + high) / 2
        if float((logits + middle).sigmoid().sum()) > positives:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def temperature(cosine: Tensor, positives: Tensor, learned: float, losses: Mapping[str, LossView]) -> Temperature:
    """What the probabilities and the losses of LossViews do as the scale moves, from 1 to 100 or as far as needed."""
    from scipy.optimize import minimize_scalar

    cosine = cosine.float()
    low, high = math.log(min(1.0, learned)), math.log(max(100.0, learned))

    @cache
    def value(name: str, log_scale: float) -> float:
        view = losses[name]
        settings: dict[str, Any] = dict(view.settings)
        if view.targets is not None:
            settings["targets"] = view.targets.float()
        return float(LOSSES[name](math.exp(log_scale) * cosine + (view.bias or 0.0), positives, **settings))

    scaled = [name for name in losses if name not in ON_COSINES]
    grid = [low + (high - low) * k / (_SCALES - 1) for k in range(_SCALES)]
    best = {}
    for name in scaled:
        values = [value(name, at) for at in grid]
        k = values.index(min(values))
        around = (grid[max(k - 1, 0)], grid[min(k + 1, _SCALES - 1)])
        found = minimize_scalar(partial(value, name), bounds=around, method="bounded", options={"xatol": 5e-3})
        # the search keeps inside its bounds, and the lowest may lie on one
        best[name] = float(found.x) if float(found.fun) < values[k] else grid[k]
    points = sorted({*grid, math.log(learned), *best.values()})
    curves = []
    for at in points:
        logits = math.exp(at) * cosine
        rows, columns = effective_negatives(logits, positives)
        curves.append((_entropy(logits, 1), _entropy(logits, 0), float(rows.mean()), float(columns.mean())))
    entropy_rows, entropy_columns, negatives_rows, negatives_columns = torch.tensor(curves, dtype=torch.float64).T
    return Temperature(
        # the learned one as it was given, not to the last bit of its logarithm
        scales=torch.tensor(
            [learned if at == math.log(learned) else math.exp(at) for at in points], dtype=torch.float64
        ),
        learned=learned,
        loss={name: torch.tensor([value(name, at) for at in points], dtype=torch.float64) for name in scaled},
        best={name: math.exp(at) for name, at in best.items()},
        entropy_rows=entropy_rows,
        entropy_columns=entropy_columns,
        negatives_rows=negatives_rows,
        negatives_columns=negatives_columns,
    )


def _entropy(logits: Tensor, axis: int) -> float:
    """Mean entropy of the softmax along an axis, in nats."""
    log_p = logits.log_softmax(axis)
    return float(-(log_p.exp() * log_p).sum(axis).mean())
