"""The pre-LayerNorm Transformer that both towers share.

Axes: `B` batch, `L` tokens, `T` tokens of all sequences, `D` width, `H` heads, `d` width of a head.
Parameter names are those of OpenAI's released CLIP weights.
"""

from __future__ import annotations

import inspect
import math
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HALF = (torch.bfloat16, torch.float16)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the approximation of GELU (arXiv:1606.08415, section 2) in OpenAI's weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def tokens_at(x: Tensor, at: Tensor, packed: Packed | None = None) -> Tensor:
    """One token a sequence. x: (B, L, D), at: (B,) in [0, L) -> (B, 1, D). Packed x: (T, D), at its rows -> (B, D)."""
    return x[at] if packed is not None else x[torch.arange(len(x), device=x.device), at][:, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head. q: (B, H, L, d); k, v: (B, H, L', d). Returns q's shape and dtype.

    On a CPU, half precision is widened: going backward, its kernel takes several times as long as that of float32.
    """
    if q.device.type == "cpu" and q.dtype in HALF:
        with torch.autocast("cpu", enabled=False):
            wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal)
        return wide.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


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


def attend_once(q: Tensor, x: Tensor, key: tuple[Tensor, Tensor], value: tuple[Tensor, Tensor]) -> Tensor:
    """Attention where each row has one query, keys and values being linear in x: the same, without making them.

    q: (B, H, d); x: (B, L, D); key, value: weight (H d, D) and bias (H d,) of the projections. Returns (B, H d).
    q (W x) = (q W) x and sum p (W x) = W (sum p x): one row goes through a projection in place of L.
    """
    heads = q.shape[1]
    (w_k, b_k), (w_v, b_v) = ([t.unflatten(0, (heads, -1)) for t in projection] for projection in (key, value))
    q = q * q.shape[-1] ** -0.5
    asked = torch.einsum("bhd,hde->bhe", q, w_k)
    # the bias adds the same to all logits of a query and changes nothing; DDP wants every parameter in the graph
    logits = asked @ x.transpose(1, 2) + (q * b_k).sum(-1, keepdim=True)
    seen = logits.softmax(dim=-1) @ x
    return (torch.einsum("bhe,hde->bhd", seen, w_v) + b_v).flatten(1)


class Packed(NamedTuple):
    """Sequences one behind the other without padding, the shorter ones first.

    runs: (how many, how long) of each stretch of sequences of one length. starts: (B + 1,) int32, where each begins,
    and the end. row: (T,) int64, which of x's rows each token has, as sequences that begin alike share rows; else None.
    """

    runs: list[tuple[int, int]]
    starts: Tensor
    row: Tensor | None = None


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packed: Packed, single: bool) -> Tensor:
    """Causal attention within each sequence. k, v: (T, H, d); q: (T, H, d), or, if single, (B, H, d), of the last ones.

    With packed.row, (rows of x, H, d) in place of (T, H, d). Returns q's shape and dtype. Sequences of one length go
    together; on a GPU in half precision all of them do, where torch and the GPU have a kernel for it.
    """
    if q.device.type == "cuda" and q.dtype in HALF and (varlen := _varlen_attention(q.device)) is not None:
        longest = packed.runs[-1][1]
        first = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) if single else packed.starts
        window = (-1, -1) if single else (-1, 0)
        return varlen(q, k, v, first, packed.starts, 1 if single else longest, longest, window_size=window)
    if q.device.type == "cpu" and q.dtype in HALF:
        with torch.autocast("cpu", enabled=False):
            return attend_packed(q.float(), k.float(), v.float(), packed, single).to(q.dtype)
    if packed.row is not None:
        own = packed._replace(row=None)
        rows, (k, v) = len(k), (t.index_select(0, packed.row) for t in (k, v))
        if single:
            return attend_packed(q, k, v, own, single)
        out = attend_packed(q.index_select(0, packed.row), k, v, own, single)
        place = torch.arange(len(out))
        return out.index_select(0, place.new_zeros(rows).scatter_reduce_(0, packed.row, place, "amax"))
    sizes = [count * length for count, length in packed.runs]
    asked = [count for count, _ in packed.runs] if single else sizes
    parts = []
    for (count, _), *run in zip(packed.runs, q.split(asked), k.split(sizes), v.split(sizes), strict=True):
        q, k, v = (t.unflatten(0, (count, -1)).transpose(1, 2) for t in run)  # (b l) h d -> b h l d
        parts.append(attend(q, k, v, is_causal=not single).transpose(1, 2).flatten(0, 1))  # b h l d -> (b l) h d
    return torch.cat(parts)


@cache
def _varlen_attention(device: torch.device) -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # the first releases know no window, and the kernel wants an Ampere or later
    known = "window_size" in inspect.signature(varlen_attn).parameters
    return varlen_attn if known and torch.cuda.get_device_capability(device) >= (8, 0) else None


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
