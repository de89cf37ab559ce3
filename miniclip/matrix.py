"""Embeddings -> the N x N matrix of image-text similarities, over all processes.

Axes: B pairs of this process, N pairs of all processes, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def similarity_logits(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The matrix that the losses take: scale * image @ text.T + bias.

    image: (N, E) and text: (M, E) of unit length, any float dtype; scale, bias: 0-dim.
    Returns (N, M) float32: half precision loses the differences that a scale of 100 magnifies, so autocast is left.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = scale.float() * (image.float() @ text.float().T)
        return logits if bias is None else logits + bias.float()


class _AllGather(torch.autograd.Function):
    """All-gather whose gradient is exact when every process computes the same loss and DDP averages the gradients.

    Each process holds the whole loss L, so the sum over the processes of dL/d(gathered) is world size times too large,
    which DDP's mean over processes takes back.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # clone: two gathers may have been handed one gradient buffer, and all_reduce works in place
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(local: Tensor) -> Tensor:
    """(B, ...) of this process -> (N, ...) of all of them, in the order of the ranks; differentiable.

    Every process must bring the same B. With one process the input itself comes back.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    result: Tensor = _AllGather.apply(local)
    return result


def positives_of(image_ids: Tensor, text_ids: Tensor) -> Tensor | None:
    """Which texts of a batch describe which images.

    image_ids, text_ids: (N,) int64; pairs with an equal image, or an equal text, are positives of one another.
    Returns (N, N) bool, or None where only the diagonal is positive, which the losses compute faster.
    """
    same = (image_ids[:, None] == image_ids) | (text_ids[:, None] == text_ids)
    return same if int(same.sum()) > len(same) else None
