"""The Vision Transformer as an image tower (arXiv:2010.11929, with CLIP's extra LayerNorm: arXiv:2103.00020, 2.4).

Axes: `B` batch, `L` tokens (class token first), `D` width, `E` embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miniclip.config import ConfigError, ModelConfig
from miniclip.models.cut import WHOLE
from miniclip.models.tower import ImageTower, check_divides, is_size
from miniclip.models.transformer import Transformer, positions_at


class VisionTransformer(ImageTower):
    """Patches -> tokens -> Transformer -> the class token -> (B, E).

    patch_dropout: in training mode each image goes through the Transformer with `kept_patches` of its patches, drawn
    from torch's generator, and the class token (FLIP, arXiv:2212.00794); in [0, 1), 0 keeps all. Evaluation keeps all.
    """

    has_patches = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c: Any = config  # resolved: nothing is None
        width = c.image_width
        tokens, std = (c.image_size // c.patch_size) ** 2 + 1, width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=c.patch_size, stride=c.patch_size, bias=False)
        self.class_embedding = nn.Parameter(std * torch.randn(width))
        self.positional_embedding = nn.Parameter(std * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, c.image_heads, c.image_layers, c.activation, c.activation_checkpointing)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(std * torch.randn(width, c.embed_dim))

    @staticmethod
    def stride(config: ModelConfig) -> int:
        return config.patch_size or 0

    @staticmethod
    def check(config: ModelConfig) -> None:
        c: Any = config
        if not is_size(c.image_layers):
            raise ConfigError(f"model.image_layers={c.image_layers!r} must be one whole number for a vit, e.g. 12")
        if not is_size(c.patch_size):
            raise ConfigError(f"model.patch_size={c.patch_size!r} must be a whole number of at least 1")
        check_divides("image_size", c.image_size, "patch_size", c.patch_size)
        check_divides("image_width", c.image_width, "image_heads", c.image_heads)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.resblocks)

    def lower(self, x: Tensor, k: int) -> Tensor:
        """x: (B, 3, S, S) float, normalised, S any multiple of patch_size. Returns (B, L, D), or (B, E)."""
        if k == WHOLE:
            return self.forward(x)
        x = self.conv1(x)
        positions = positions_at(self.positional_embedding, x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # b d h w -> b (h w) d
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + positions
        if self.training and self.patch_dropout:
            x = self._without_some(x)
        return self.transformer.first(self.ln_pre(x), k)

    def upper(self, x: Tensor, k: int) -> Tensor:
        """-> (B, E), not normalised."""
        if k == WHOLE:
            return x
        class_token = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return self.ln_post(self.transformer(x, at=class_token, start=k)) @ self.proj

    def _without_some(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, 1 + kept, D): the class token, and patches in random order, which attention ignores."""
        rows, patches = len(x), x.shape[1] - 1
        draw = torch.rand(rows, patches, device=x.device)
        kept = 1 + draw.topk(kept_patches(patches, self.patch_dropout), dim=1).indices
        tokens = torch.cat([kept.new_zeros(rows, 1), kept], dim=1)
        return x[torch.arange(rows, device=x.device)[:, None], tokens]


def kept_patches(patches: int, dropout: float) -> int:
    """How many of an image's patches are left, rounded up; at least 1."""
    # rounded first: 0.7 of 10 leave 3, not the 4 of 3.0000000000000004
    return max(1, math.ceil(round((1 - dropout) * patches, 6)))
