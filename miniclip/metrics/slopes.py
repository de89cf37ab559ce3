"""How hard a loss pulls at the positives of a matrix and pushes at its negatives: its slope at the entries.

Axes: N pairs, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.losses import LOSSES
from miniclip.losses.matrix import likeness


def handed(
    config: LossConfig, image: Tensor, text: Tensor, cosine: Tensor, scale: float, bias: float | None, step: int
) -> tuple[Tensor, dict[str, Any]]:
    """The matrix (N, N) of these embeddings as training hands it to the loss at a step, and its settings.

    image, text: (N, E), unit length; the soft loss's targets come from them. cosine: (N, N), of the two.
    """
    settings = config.settings(step)
    if LOSSES[config.name].on_cosines:
        return cosine, settings
    if config.name == "soft":
        settings["targets"] = likeness(image, text, slice(None), config.soft_scale)
    return scale * cosine + (bias or 0.0), settings


def slopes(
    logits: Tensor, positives: Tensor, config: LossConfig, settings: dict[str, Any], weight: Tensor | None = None
) -> Tensor:
    """N times d loss / d entry, (N, N): half of what a row's own loss has there, and half of what its column's has.

    logits, settings: of `handed`. positives: (N, N) bool. weight: (N,), of the pairs, or None. So the slope of a pair
    does not fall as N grows: softmax has (p - 1 + p' - 1) / 2 at a lone positive, (p + p') / 2 at a negative.
    """
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        values = LOSSES[config.name](logits, positives, reduction="none", **settings)
        if weight is not None:  # to the mean 1; of pairs that weigh nothing nothing is learnt
            values = values * (weight / torch.where((mean := weight.mean()) > 0, mean, 1)).repeat(2)
        (gradient,) = torch.autograd.grad(values.sum() / 2, logits)
    return gradient


def slope_figures(slope: Tensor, positives: Tensor) -> dict[str, float]:
    """Mean and standard deviation (of these entries, by their number) over both kinds; NaN for a kind without any.

    slope: of `slopes`.
    """
    figures = {}
    for kind, values in (("positive", slope[positives]), ("negative", slope[~positives])):
        mean = values.double().mean()
        figures[f"slope_{kind}"] = float(mean)
        figures[f"slope_{kind}_sd"] = float((values.double() - mean).square().mean().sqrt())
    return figures
