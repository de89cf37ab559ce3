"""The N x N matrix and the losses over it."""

from __future__ import annotations

from miniclip.losses.losses import (
    LOSSES,
    decoupled_loss,
    focal_loss,
    hinge_loss,
    sigmoid_loss,
    soft_loss,
    softmax_loss,
    transport_loss,
)

__all__ = [
    "LOSSES",
    "decoupled_loss",
    "focal_loss",
    "hinge_loss",
    "sigmoid_loss",
    "soft_loss",
    "softmax_loss",
    "transport_loss",
]
