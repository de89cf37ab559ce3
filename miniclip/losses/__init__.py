"""The N x N matrix and the losses over it."""

from __future__ import annotations

from miniclip.losses.losses import LOSSES as LOSSES
