"""The pre-LayerNorm Transformer that both towers share.

Axes: `B` batch, `L` tokens, `T` tokens of all sequences, `D` width, `H` heads, `d` width of a head.
Parameter names are those of OpenAI's released CLIP weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miniclip.models.attention import Packed, attend, attend_packed


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation of GELU (arXiv:1606.08415, section 2) in OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def tokens_at(x: Tensor, at: Tensor, packed: Packed | None = None) -> Tensor:
    """One token a sequence. x: (B, L, D), at: (B,) in [0, L) -> (B, 1, D). Packed x: (T, D), at its rows -> (B, D)."""
    return x[at] if packed is not None else x[torch.arange(x.shape[0], device=x.device), at][:, None]


def positions_at(table: Tensor, side: int) -> Tensor:
    """Position embeddings of a grid, for a grid of another side: bicubic, antialiased, as open_clip does it.

    table: (1 + g^2, D), first that of the token that is no cell. Returns (1 + side^2, D), at side = g the table itself.
    """
    if len(table) == 1 + side**2:
        return table
    first, cells = table.split([1, len(table) - 1])
    grid = cells.T.unflatten(1, (math.isqrt(len(cells)), -1))[None]  # (h w) d -> 1 d h w
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid[0].flatten(1).T])  # 1 d h w -> (h w) d


class Attention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762, section 3.2); names and fresh values of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool, at: Tensor | None = None, packed: Packed | None = None) -> Tensor:
        """x: (B, L, D), or (T, D) if packed. With `at` (B,) only those tokens ask, and the result has as many."""
        width = x.shape[-1]
        if at is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            w_q, w_kv = self.in_proj_weight.split([width, 2 * width])
            b_q, b_kv = self.in_proj_bias.split([width, 2 * width])
            q = F.linear(tokens_at(x, at, packed), w_q, b_q)
            k, v = F.linear(x, w_kv, b_kv).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))  # ... (h d) -> ... h d
        if packed is not None:
            return self.out_proj(attend_packed(q, k, v, packed, at is not None).flatten(-2))  # t h d -> t (h d)
        mask = None
        if at is not None and causal:
            # (B, 1, 1, L): a single query cannot use is_causal, which would let it see the first key only.
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # b l h d -> b h l d
        out = attend(q, k, v, mask, is_causal=causal and at is None)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # b h l d -> b l (h d)


class Mlp(nn.Module):
    """Widen four times, activate, narrow."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor, causal: bool, at: Tensor | None = None, packed: Packed | None = None) -> Tensor:
        """x: (B, L, D), or (T, D) if packed -> the same; with `at` (B,) only those tokens, (B, 1, D) or (B, D)."""
        attended = self.attn(self.ln_1(x), causal, at, packed)
        x = (x if at is None else tokens_at(x, at, packed)) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks that returns one token a row, the only one that the last block computes."""

    def __init__(self, width: int, heads: int, layers: int, activation: str, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(
        self, x: Tensor, at: Tensor, causal: bool = False, packed: Packed | None = None, start: int = 0
    ) -> Tensor:
        """x: (B, L, D); at: (B,) int64, the token to return; causal: a token sees itself and earlier ones. -> (B, D)

        packed: x is (T, D) instead, and `at` counts in T: the last token of each sequence, which see the earlier ones.
        start: the first block, if x has been through those before.
        """
        last = len(self.resblocks) - 1
        x = self.first(x, last, causal, packed, start)
        x = run_block(self.checkpointing, self.resblocks[last], x, causal, at, packed)
        return x if packed is not None else x[:, 0]

    def first(self, x: Tensor, end: int, causal: bool = False, packed: Packed | None = None, start: int = 0) -> Tensor:
        """All tokens through the blocks from start to end, that one left out."""
        for block in self.resblocks[start:end]:
            x = run_block(self.checkpointing, block, x, causal, None, packed)
        return x


def run_block(checkpointing: bool, block: nn.Module, *inputs: Any, **options: Any) -> Tensor:
    """block(*inputs), kept in memory or recomputed in the backward pass (arXiv:1604.06174).

    options go to torch.utils.checkpoint. No block draws random numbers, so the random state need not be saved.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
    return block(*inputs)
