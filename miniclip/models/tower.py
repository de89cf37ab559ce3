"""What every image tower is: its class stands in `presets.TOWERS`, and nothing else in the project knows it by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from miniclip.config import ConfigError, ModelConfig

WHOLE = -1  # in place of the number of a block: behind all of them


class Tower(nn.Module):
    """A stack of blocks that can be cut before any of them: upper(lower(x, k), k) is forward(x) for each k.

    blocks: in their order; empty where they are not known, and then k is WHOLE.
    """

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return []

    def lower(self, x: Tensor, k: int) -> Tensor:
        """What goes into block k, or, with WHOLE, what comes out of the tower."""
        raise NotImplementedError

    def upper(self, x: Tensor, k: int) -> Tensor:
        """The tower's output from what lower gave."""
        raise NotImplementedError


class ImageTower(Tower):
    """Images -> (B, E); made of a resolved ModelConfig, by `TOWERS[config.image_encoder](config)`.

    memory_format: of weights and input, the fastest. has_patches: whether it takes `patch_size`, and `patch_dropout`,
    the share of the patches that it leaves out in training mode.
    """

    memory_format: ClassVar[torch.memory_format] = torch.preserve_format
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
