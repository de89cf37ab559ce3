"""How attention is computed where not every query, key or token of a padded batch is needed: the same results, faster.

Axes: `B` batch, `L` tokens, `T` tokens of all sequences, `D` width, `H` heads, `d` width of a head.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head. q: (B, H, L, d); k, v: (B, H, L', d). Returns q's shape and dtype.

    On a CPU, half precision is widened: going backward, its kernel takes several times as long as that of float32.
    """
    if q.device.type == "cpu" and q.dtype in HALF:
        with torch.autocast("cpu", enabled=False):
            wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal)
        return wide.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


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


def share_beginnings(text: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each beginning of a caption once, however many captions have it: in causal attention it is the same in all.

    text: (B, L) integer ids; own: (B, L) bool, those that count, a caption's first ones. Returns token and position
    (R,) of the last token of each beginning, and (T,), which of them stands at each of text[own].
    """
    captions, of = text.masked_fill(~own, -1).unique(dim=0, return_inverse=True)
    # sorted word by word: what a caption shares with any earlier one, it shares with the one before
    new = torch.ones_like(captions, dtype=torch.bool)
    new[1:] = (captions[1:] != captions[:-1]).cumsum(1) > 0
    new &= captions >= 0
    row = torch.zeros_like(captions)
    row[new] = torch.arange(int(new.sum()))
    return captions[new], new.nonzero()[:, 1], row.cummax(0).values[of][own]
