"""Embeddings -> the matrix of image-text similarities, over all processes.

Axes: B images of this process, N images of all processes, K captions for each image (text j belongs to image j // K),
M = N K texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Embeddings(NamedTuple):
    """What a training step needs; the matrix of logits is `scale * image @ text.T + bias`.

    image, text: (B, E), unit length, at least float32. scale: 0-dim, > 0. bias: 0-dim, or None for a model without one.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None

    def detach(self) -> Embeddings:
        return Embeddings(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]


def similarity_logits(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The matrix that the losses take: scale * image @ text.T + bias.

    image: (N, E) and text: (M, E) of unit length, any float dtype; scale, bias: 0-dim.
    Returns (N, M), at least float32: half precision loses the differences that a scale of 100 magnifies, so autocast is
    left.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        logits = scale.to(dtype) * (image.to(dtype) @ text.to(dtype).T)
        return logits if bias is None else logits + bias.to(dtype)


def shares(total: int, world: int) -> list[int]:
    """How many of total items each process takes: as equal as they can be, the first ones taking one more."""
    return [total // world + (rank < total % world) for rank in range(world)]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllGather(torch.autograd.Function):
    """All-gather whose gradient is exact when the processes' losses have the mean L and DDP averages the gradients.

    The gradient of a process's own rows is the sum over the processes of what each loss says of them, which is world
    size times that of L; DDP's mean over the processes takes the factor back.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        # the collective wants equal parts: fill up to the largest, and drop the filling again
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # clone: two gathers may have been handed one gradient buffer, and all_reduce works in place
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.sizes)[dist.get_rank()], None


def gather(local: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """(B, ...) of this process -> (N, ...) of all of them, in the order of the ranks; differentiable.

    sizes: B of each process; left out, they are equal. With one process the input itself comes back.
    """
    world = world_size()
    if world == 1:
        return local
    result: Tensor = _AllGather.apply(local, [len(local)] * world if sizes is None else list(sizes))
    return result


@dataclass(frozen=True)
class Positives:
    """Which texts of the global batch belong to which images, for any of its rows, without a matrix of them all.

    image: (N,) int64, equal for the same picture. text: (N, K) int64, equal for equal captions.
    """

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, kind: str, image: Tensor, text: Tensor) -> Positives:
        """Of image (N,) and text (N, K), identities as above.

        kind: diagonal (a picture and its own captions), text (equal captions, too) or identity (equal pictures, too).
        """
        own = torch.arange(len(image), device=image.device)
        if kind == "diagonal":
            return cls(own, torch.arange(text.numel(), device=text.device).view_as(text))
        return cls(own if kind == "text" else image, text)

    @property
    def captions(self) -> int:
        return self.text.shape[1]

    def only_diagonal(self) -> bool:
        """Whether every image has one text and every text one image, its own."""
        return self.captions == 1 and len(self.image.unique()) == len(self.text.unique()) == len(self.image)

    def of_images(self, rows: slice) -> Tensor:
        """(b, M) bool, images against texts: equal pictures, or any of the image's captions equal to the text."""
        same = self.image[rows, None] == self.image.repeat_interleave(self.captions)
        for captions in self.text[rows].unbind(1):
            same |= captions[:, None] == self.text.flatten()
        return same

    def of_texts(self, rows: slice) -> Tensor:
        """(b, N) bool, texts against images: the transpose of the above."""
        same = self.image.repeat_interleave(self.captions)[rows, None] == self.image
        text = self.text.flatten()[rows, None]
        for captions in self.text.unbind(1):
            same |= text == captions
        return same
