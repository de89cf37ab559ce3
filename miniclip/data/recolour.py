"""The part of the random transform that is done to a whole batch, on the device that trains.

Axes: B batch, S side of the square that the image encoder takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, which Pillow greys images with


def shrink(pixels: Tensor, side: int) -> Tensor:
    """(B, 3, S, S) -> float32 (B, 3, side, side), each pixel the mean of those that it covers; as it is if side = S."""
    return pixels if side == pixels.shape[-1] else F.interpolate(pixels.float(), (side, side), mode="area")


def recolour(pixels: Tensor, looks: Tensor) -> Tensor:
    """Mirror squares and change their colours, as Pillow's ImageEnhance does, without its rounding to whole values.

    pixels: uint8 (B, 3, S, S). looks: float32 (B, 1 or 4), of `Augment.look`. Returns 0 to 255: uint8 if only mirrored,
    else float32.
    """
    mirror, *factors = looks[:, :, None, None, None].unbind(1)
    pixels = torch.where(mirror < 0, pixels.flip(-1), pixels)
    if not factors:
        return pixels
    brightness, contrast, saturation = factors
    x = pixels.float()
    grey = torch.tensor(GREY, device=x.device).view(3, 1, 1)
    x = x.mul_(brightness).clamp_(0, 255)
    mean = (x * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 255)
    mean = (x * grey).sum(1, keepdim=True)
    return x.sub_(mean).mul_(saturation).add_(mean).clamp_(0, 255)
