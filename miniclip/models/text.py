"""The text tower: a causal Transformer read at the end token (arXiv:2103.00020, section 2.4).

Axes: `B` batch, `L` tokens, `D` width, `E` embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.attention import Packed, share_beginnings
from miniclip.models.cut import WHOLE, Tower
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import Tokenizer
from miniclip.models.transformer import Block, Transformer


class TextTower(Tower):
    """Token ids -> (B, E).

    The end token has the greatest id of the vocabulary, so `argmax` over a row finds it. Causal attention never looks
    at the padding behind it. packs: compute the captions' own tokens alone, sorted by length; the result is the same,
    and the host waits for the lengths.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c: Any = config  # resolved: nothing that is used here is None
        width, layers = c.text_width, c.text_layers
        self.packs = False
        self.token_embedding = nn.Embedding(c.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(c.context_length, width))
        self.transformer = Transformer(width, c.text_heads, layers, c.activation, c.activation_checkpointing)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, c.embed_dim))

        # OpenAI's code; the paper leaves the text tower's initialisation to it.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(width * 2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(width * 2 * layers) ** -0.5)

    @property
    def context_length(self) -> int:
        return len(self.positional_embedding)

    @property
    def tokenizer(self) -> TextTokenizer:
        return Tokenizer(self.context_length)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """text: (B, L) integer ids, zero padded, L <= context_length. Returns (B, E).

        normalize: unit length, in at least float32 even under autocast. Raises ValueError for another shape or L.
        """
        if text.ndim != 2 or not 1 <= text.shape[1] <= self.context_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}; give (B, L) token ids with L from 1 to context_length="
                f"{self.context_length}, as the tokenizer returns them"
            )
        if self.packs:
            features = self.ln_final(self._packed(text, text.argmax(dim=-1))) @ self.text_projection
        else:
            features = self.upper(self.lower(text, 0), 0)
        return unit_length(features) if normalize else features

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.transformer.resblocks)

    def lower(self, x: Tensor, k: int) -> Tensor:
        """x: (B, L) ids as encode_text takes them. Returns (B, L, D + 1), whose last column is 1 at a token and 0
        behind; with WHOLE (B, E)."""
        if k == WHOLE:
            return self.encode_text(x)
        own = torch.arange(x.shape[1], device=x.device) <= x.argmax(dim=-1, keepdim=True)
        x = self.token_embedding(x) + self.positional_embedding[: x.shape[1]]
        x = self.transformer.first(x, k, causal=True)
        return torch.cat([x, own[..., None].to(x.dtype)], dim=-1)

    def upper(self, x: Tensor, k: int) -> Tensor:
        """-> (B, E)."""
        if k == WHOLE:
            return x
        ends = x[..., -1].sum(dim=1).long() - 1
        return self.ln_final(self.transformer(x[..., :-1], at=ends, causal=True, start=k)) @ self.text_projection

    def _packed(self, text: Tensor, ends: Tensor) -> Tensor:
        """The end tokens' outputs, (B, D)."""
        lengths, order = (ends + 1).cpu().sort(stable=True)
        starts = F.pad(lengths.cumsum(0), (1, 0))
        runs = [(int(count), int(length)) for length, count in zip(*lengths.unique(return_counts=True), strict=True)]
        own = torch.arange(text.shape[1]) < lengths[:, None]  # (B, L), of the sorted captions
        last, row = starts[1:] - 1, None
        if text.device.type == "cpu":
            tokens, position, row = share_beginnings(text[order], own)
            last = row[last]
        else:
            chosen = (order[:, None] * text.shape[1] + torch.arange(text.shape[1]))[own].to(text.device)
            tokens, position = text.flatten()[chosen], own.nonzero()[:, 1].to(text.device)
        x = self.token_embedding(tokens) + F.embedding(position, self.positional_embedding)
        packed = Packed(runs, starts.int().to(text.device), row)
        x = self.transformer(x, at=last.to(text.device), causal=True, packed=packed)
        return x[order.argsort().to(text.device)]


def unit_length(x: Tensor) -> Tensor:
    """x: (..., E) -> the same direction with 2-norm 1, in float32, or float64 if x is that."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
