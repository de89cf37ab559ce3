"""A loss over the rows of a matrix that is never there as a whole.

Axes: B rows (images, or texts), M columns (of the other kind), E embedding, b rows of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits (b, M) of the rows in the slice -> their losses (b,)
TileLoss = Callable[[Tensor, slice], Tensor]
# entries of a tile: some copies of it fit into a processor's last cache, and its products are large enough to be fast
TILE_ENTRIES = 2**21
LEAST_ROWS = 128


def tiled_loss(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    row_loss: TileLoss,
    rows: int | None = None,
) -> Tensor:
    """Sum over the rows of weights * row_loss(scale * queries @ keys.T + bias).

    queries: (B, E), keys: (M, E), of unit length; scale, bias: 0-dim; weights: (B,). rows: of a tile; None chooses.
    Returns a scalar, at least float32. Memory: the gradients, and a few tiles, in place of a few matrices. The gradient
    is computed tile by tile along with the loss, so that no tile is computed twice; there is no second derivative.
    """
    if rows is None:
        rows = max(LEAST_ROWS, TILE_ENTRIES // len(keys))
    result: Tensor = _TiledLoss.apply(queries, keys, scale, bias, weights, row_loss, rows)
    return result


class _TiledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        weights: Tensor,
        row_loss: TileLoss,
        rows: int,
    ) -> Tensor:
        ctx.differentiable = any(ctx.needs_input_grad)
        dtype = torch.promote_types(queries.dtype, torch.float32)
        ctx.dtypes = queries.dtype, keys.dtype
        queries, keys, weights = (t.detach().to(dtype) for t in (queries, keys, weights))
        with torch.autocast(queries.device.type, enabled=False):
            return _accumulate(ctx, queries, keys, scale.to(dtype), bias, weights, row_loss, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, bias = ctx.saved_tensors
        query_dtype, key_dtype = ctx.dtypes
        return (
            (gradient * queries).to(query_dtype),
            (gradient * keys).to(key_dtype),
            gradient * scale,
            None if bias is None else gradient * bias,
            None,
            None,
            None,
        )


def _accumulate(
    ctx: Any,
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weights: Tensor,
    row_loss: TileLoss,
    rows: int,
) -> Tensor:
    total = queries.new_zeros(())
    scaled = scale * queries
    to_queries, to_keys, to_bias = torch.empty_like(scaled), torch.zeros_like(keys), torch.zeros_like(scale)
    for start in range(0, len(queries), rows):
        part = slice(start, min(start + rows, len(queries)))
        logits = scaled[part] @ keys.T
        if bias is not None:
            logits += bias
        with torch.set_grad_enabled(ctx.differentiable):
            loss = (weights[part] * row_loss(logits.requires_grad_(ctx.differentiable), part)).sum()
        total += loss.detach()
        if ctx.differentiable:
            (gradient,) = torch.autograd.grad(loss, logits)
            torch.mm(gradient, keys, out=to_queries[part])
            to_keys.addmm_(gradient.T, scaled[part])
            to_bias += gradient.sum()
    if ctx.differentiable:
        # d/d(scale * query) -> d/d scale and d/d query
        to_scale = (to_queries * queries).sum()
        ctx.save_for_backward(to_queries.mul_(scale), to_keys, to_scale, None if bias is None else to_bias)
    return total
