"""The Vision Transformer as an image tower (arXiv:2010.11929, with CLIP's extra LayerNorm: arXiv:2103.00020, 2.4).

Axes: `B` batch, `L` tokens (class token first), `D` width, `E` embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.models.transformer import Transformer


class VisionTransformer(nn.Module):
    """Patches -> tokens -> Transformer -> the class token -> (B, E).

    image_size must be divisible by patch_size, width by heads.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        activation: str,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        tokens = (image_size // patch_size) ** 2 + 1
        std = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(std * torch.randn(width))
        self.positional_embedding = nn.Parameter(std * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, layers, activation, checkpointing)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(std * torch.randn(width, embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, image_size, image_size) float, normalised. Returns (B, E), not normalised."""
        x = self.conv1(image).flatten(2).transpose(1, 2)  # b d h w -> b (h w) d
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        class_token = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = self.transformer(self.ln_pre(x), at=class_token)
        return self.ln_post(x) @ self.proj
