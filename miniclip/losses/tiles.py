"""A loss over the rows of a matrix that is never there as a whole.

Serves every loss that its rows decide, with any positives and weights. Torch's own F.linear_cross_entropy is a little
faster and smaller (benchmarks/losses.py), but newer, and knows the softmax loss without duplicates alone.

Axes: B rows (images, or texts), M columns (of the other kind), E embedding, b rows of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# logits (b, M) of the rows in the slice -> their losses (b,)
TileLoss = Callable[[Tensor, slice], Tensor]
# entries of a tile on a CPU: copies of it fit into its last cache, and its products are large enough to be fast
TILE_ENTRIES = 2**21
# on other devices memory alone sets the bound, and a small tile would wait for its launches; 64 MiB a copy
DEVICE_TILE_ENTRIES = 2**24
LEAST_ROWS = 128


def tiled_loss(
    queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, weights: Tensor, row_loss: TileLoss
) -> Tensor:
    """Sum over the rows of weights * row_loss(scale * queries @ keys.T + bias).

    queries: (B, E), keys: (M, E), of unit length; scale, bias: 0-dim; weights: (B,). Returns a scalar, at least
    float32. Memory: the gradients, and a few tiles, in place of a few matrices. The gradient is computed tile by tile
    along with the loss, so that no tile is computed twice; there is no second derivative.
    """
    wanted = any(t is not None and t.requires_grad for t in (queries, keys, scale, bias))
    differentiable = wanted and torch.is_grad_enabled()
    result: Tensor = _TiledLoss.apply(queries, keys, scale, bias, weights, row_loss, differentiable)
    return result


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        queries, keys, scale, bias, weights, row_loss, differentiable = given
        dtype = torch.promote_types(queries.dtype, torch.float32)
        ctx.dtypes = queries.dtype, keys.dtype
        queries, keys, scale, weights = (t.detach().to(dtype) for t in (queries, keys, scale, weights))
        entries = TILE_ENTRIES if queries.device.type == "cpu" else DEVICE_TILE_ENTRIES
        tile_rows = max(LEAST_ROWS, entries // len(keys))
        total = queries.new_zeros(())
        scaled = scale * queries
        to_queries, to_keys, to_bias = torch.empty_like(scaled), torch.zeros_like(keys), torch.zeros_like(scale)
        with torch.autocast(queries.device.type, enabled=False):
            for start in range(0, len(queries), tile_rows):
                part = slice(start, min(start + tile_rows, len(queries)))
                logits = scaled[part] @ keys.T
                if bias is not None:
                    logits += bias
                with torch.set_grad_enabled(differentiable):
                    loss = (weights[part] * row_loss(logits.requires_grad_(differentiable), part)).sum()
                total += loss.detach()
                if differentiable:
                    (gradient,) = torch.autograd.grad(loss, logits)
                    torch.mm(gradient, keys, out=to_queries[part])
                    to_keys.addmm_(gradient.T, scaled[part])
                    if bias is not None:
                        to_bias += gradient.sum()
        if differentiable:
            # d/d(scale * query) -> d/d scale and d/d query
            to_scale = (to_queries * queries).sum()
            ctx.save_for_backward(to_queries.mul_(scale), to_keys, to_scale, None if bias is None else to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("tiled_loss has no second derivative; leave out create_graph, or use miniclip.losses")
        to_queries, to_keys, to_scale, to_bias = ctx.saved_tensors
        sides = ((gradient * t).to(dtype) for t, dtype in zip((to_queries, to_keys), ctx.dtypes, strict=True))
        return *sides, gradient * to_scale, None if to_bias is None else gradient * to_bias, None, None, None
