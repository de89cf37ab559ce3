"""CLIP's modified ResNet (arXiv:2103.00020, section 2.4): ResNet-D's stem, antialiased strides, attention pooling.

Axes: `B` batch, `D` channels, `E` embedding. Works in either memory format; channels_last is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.config import ConfigError, ModelConfig
from miniclip.models.attention import attend_once
from miniclip.models.batchnorm import frozen_statistics
from miniclip.models.cut import WHOLE
from miniclip.models.tower import ImageTower, check_divides, is_size
from miniclip.models.transformer import positions_at, run_block

EXPANSION = 4
STRIDE = 32  # the stem and the three strided stages shrink the side by 2 five times


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual; a stride is an average pool before a convolution of stride 1."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        channels_out = channels * EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        # A zero gamma starts every block as the identity.
        nn.init.zeros_(self.bn3.weight)

        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential()
            # "-1" keeps the numbers of the two modules with parameters where they were before the pool was added.
            self.downsample.add_module("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity())
            self.downsample.add_module("0", nn.Conv2d(channels_in, channels_out, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels_in, h, w) -> (B, 4 channels, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


class AttentionPool(nn.Module):
    """One multi-head attention whose only query is the mean of the image's cells."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        std = width**-0.5
        self.positional_embedding = nn.Parameter(std * torch.randn(side**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D, side, side), of any side -> (B, E)."""
        positions = positions_at(self.positional_embedding, x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # b d h w -> b (h w) d
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + positions
        # The other tokens' outputs are never read, so they ask no query.
        q = self.q_proj(x[:, 0]).unflatten(-1, (self.heads, -1))  # b (h d) -> b h d
        key, value = ((linear.weight, linear.bias) for linear in (self.k_proj, self.v_proj))
        return self.c_proj(attend_once(q, x, key, value))


class ModifiedResNet(ImageTower):
    """Stem -> four stages -> attention pooling -> (B, E)."""

    memory_format = torch.channels_last

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c: Any = config  # resolved: only patch_size is None
        width, layers = c.image_width, c.image_layers  # blocks in each of the four stages
        self.checkpointing = c.activation_checkpointing
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = _stage(width * 16, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(c.image_size // STRIDE, width * 32, c.image_heads, c.embed_dim)

    @staticmethod
    def stride(config: ModelConfig) -> int:
        return STRIDE

    @staticmethod
    def check(config: ModelConfig) -> None:
        c: Any = config
        layers = c.image_layers
        if not (isinstance(layers, tuple) and len(layers) == 4 and all(map(is_size, layers))):
            four = "four whole numbers of at least 1 for a resnet, e.g. [3, 4, 6, 3]"
            raise ConfigError(f"model.image_layers={layers!r} must be {four}")
        if c.patch_size is not None:
            raise ConfigError(f"model.patch_size={c.patch_size} has no meaning for a resnet; leave it out")
        if c.image_width % 2:
            raise ConfigError(f"model.image_width={c.image_width} must be even: the resnet's stem has half of it")
        check_divides("image_size", c.image_size, "the resnet's stride", STRIDE)
        check_divides("image_width * 32", c.image_width * 32, "image_heads", c.image_heads)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(chain(self.layer1, self.layer2, self.layer3, self.layer4))

    def lower(self, x: Tensor, k: int) -> Tensor:
        """x: (B, 3, S, S) float, normalised, S any multiple of 32. Returns (B, D, h, w), or (B, E)."""
        if k == WHOLE:
            return self.forward(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return self._through(self.blocks[:k], self.avgpool(x))

    def upper(self, x: Tensor, k: int) -> Tensor:
        """-> (B, E), not normalised."""
        return x if k == WHOLE else self.attnpool(self._through(self.blocks[k:], x))

    def _through(self, blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
        for block in blocks:
            x = _recomputed(block, x) if self.checkpointing else block(x)
        return x


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    return nn.Sequential(first, *(Bottleneck(channels * EXPANSION, channels) for _ in range(blocks - 1)))


# torch.compile cannot trace a context_fn; these blocks then run uncompiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    return run_block(True, block, x, context_fn=lambda: (nullcontext(), frozen_statistics(block)))
