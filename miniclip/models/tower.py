"""What every image tower is: its class stands in `presets.TOWERS`, and nothing else in the project knows it by name."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from miniclip.config import ConfigError, ModelConfig
from miniclip.models.cut import Tower


class ImageTower(Tower):
    """Images -> (B, E); made of a resolved ModelConfig, by `TOWERS[config.image_encoder](config)`.

    memory_format: of weights and input, the fastest. has_patches: whether it takes `patch_size`, and `patch_dropout`,
    the share of the patches that it leaves out in training mode.
    """

    memory_format: torch.memory_format = torch.preserve_format
    has_patches: ClassVar[bool] = False
    patch_dropout: float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(self.lower(x, 0), 0)

    @staticmethod
    def stride(config: ModelConfig) -> int:
        """Pixels of which every image side that the tower takes is a multiple; config is resolved."""
        raise NotImplementedError

    @staticmethod
    def check(config: ModelConfig) -> None:
        """Raise ConfigError for sizes of the image tower that do not fit together; none of them is None."""
        raise NotImplementedError


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_divides(name: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        near = max(1, round(value / divisor)) * divisor
        raise ConfigError(f"model.{name}={value} is not divisible by {by}={divisor}; the nearest that is: {near}")
