"""Pictures for the tests of other libraries' models."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Photos:
    """Noise at several sizes, also smaller than the square."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        width, height = self.sizes[index]
        noise = np.random.default_rng(index).integers(0, 256, (height // 2 + 1, width // 2 + 1, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


PHOTOS = Photos([(50, 37), (37, 50), (20, 91), (32, 32), (201, 200), (333, 77), (64, 64)])


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)
