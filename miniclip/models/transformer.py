"""The pre-LayerNorm Transformer that both towers share.

Axes: `B` batch, `L` tokens, `D` width, `H` heads. Parameter names are those of OpenAI's released CLIP weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation of GELU (arXiv:1606.08415, section 2) in OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def make_activation(name: str) -> nn.Module:
    """'gelu' or 'quick_gelu' as a module. Raises ValueError for another name."""
    if name == "gelu":
        return nn.GELU()
    if name == "quick_gelu":
        return QuickGELU()
    raise ValueError(f"activation {name!r} is unknown; use 'gelu' or 'quick_gelu'")


def tokens_at(x: Tensor, at: Tensor) -> Tensor:
    """One token a row. x: (B, L, D); at: (B,) int64 positions in [0, L). Returns (B, D)."""
    return x[torch.arange(len(x), device=x.device), at]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head. q: (B, H, L, d); k, v: (B, H, L', d). Returns q's shape and dtype.

    On a CPU, half precision is widened: torch's half-precision kernel there takes several times as long to go
    backward as its float32 one.
    """
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal)
        return wide.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


class Attention(nn.Module):
    """Multi-head self-attention (arXiv:1706.03762, section 3.2); parameters as nn.MultiheadAttention names them.

    The fresh values are that module's too: Xavier-uniform input projection and zero biases.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, causal: bool, at: Tensor | None = None) -> Tensor:
        """x: (B, L, D). With `at` (B,) only those tokens ask, and the result is (B, 1, D); otherwise (B, L, D)."""
        width = x.shape[-1]
        if at is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
            mask = None
        else:
            w_q, w_kv = self.in_proj_weight.split([width, 2 * width])
            b_q, b_kv = self.in_proj_bias.split([width, 2 * width])
            q = F.linear(tokens_at(x, at)[:, None], w_q, b_q)
            k, v = F.linear(x, w_kv, b_kv).chunk(2, dim=-1)
            # (B, 1, 1, L): a single query cannot use is_causal, which would let it see the first key only.
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None] if causal else None
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # b l (h d) -> b h l d
        out = attend(q, k, v, mask, is_causal=causal and at is None)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # b h l d -> b l (h d)


class Mlp(nn.Module):
    """Widen four times, activate, narrow."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = make_activation(activation)
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

    def forward(self, x: Tensor, causal: bool, at: Tensor | None = None) -> Tensor:
        """x: (B, L, D) -> (B, L, D), or (B, 1, D) with only the tokens `at` (B,)."""
        attended = self.attn(self.ln_1(x), causal, at)
        x = (x if at is None else tokens_at(x, at)[:, None]) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks that returns one token a row.

    Both towers read a single token, so the last block computes that token alone: the same values, and nearly the whole
    cost of a block saved.
    """

    def __init__(self, width: int, heads: int, layers: int, activation: str, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, at: Tensor, causal: bool = False) -> Tensor:
        """x: (B, L, D); at: (B,) int64, the token to return; causal: a token sees itself and earlier ones. -> (B, D)"""
        last = len(self.resblocks) - 1
        for index, block in enumerate(self.resblocks):
            x = run_block(self.checkpointing, block, x, causal, at if index == last else None)
        return x[:, 0]


def run_block(checkpointing: bool, block: nn.Module, *inputs: Any, **options: Any) -> Tensor:
    """block(*inputs), kept in memory or recomputed in the backward pass (arXiv:1604.06174).

    options go to torch.utils.checkpoint. No block draws random numbers, so the random state need not be saved.
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
    return block(*inputs)
