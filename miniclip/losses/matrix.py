"""The N x N matrix of a run: embeddings -> similarities -> the loss, exact for any number of processes.

Axes: B images of this process, N images of all processes, K captions for each image (text j belongs to image j // K),
M = N K texts, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from miniclip.common.processes import place
from miniclip.config import LossConfig
from miniclip.losses.losses import LOSSES
from miniclip.losses.tiles import tiled_loss


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
    Returns (N, M), at least float32, autocast or not: half precision loses differences that a scale of 100 magnifies.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        logits = scale.to(dtype) * (image.to(dtype) @ text.to(dtype).T)
        return logits if bias is None else logits + bias.to(dtype)


def shares(total: int, world: int) -> list[int]:
    """How many of total items each process takes: as equal as they can be, the first ones taking one more."""
    return [total // world + (rank < total % world) for rank in range(world)]


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


def gather(local: Tensor, sizes: Sequence[int]) -> Tensor:
    """(B, ...) of this process -> (N, ...) of all of them, in the order of the ranks; differentiable.

    sizes: B of each process. With one process the input itself comes back.
    """
    return local if place()[1] == 1 else _AllGather.apply(local, sizes)


@dataclass(frozen=True)
class Positives:
    """Which texts of the global batch belong to which images, for any of its rows, without a matrix of them all.

    A text belongs to an image if some row of the batch has both: copies of an image share their captions, and copies of
    a caption their images. No further: two images of one caption need not suit each other's other captions.
    image: (N,) int64, numbers from 0, equal for the same image. text: (N, K) int64, so for equal captions.
    """

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, kind: str, image: Tensor, text: Tensor) -> Positives:
        """kind: diagonal (an image and its own captions), text (and equal captions) or identity (and equal images)."""
        own = torch.arange(len(image), device=image.device)
        if kind == "diagonal":
            return cls(own, torch.arange(text.numel(), device=text.device).view_as(text))
        image, text = (x.unique(return_inverse=True)[1] for x in (image, text))
        return cls(own if kind == "text" else image, text)

    @property
    def captions(self) -> int:
        return self.text.shape[1]

    def only_diagonal(self) -> bool:
        """Whether every image has one text and every text one image, its own."""
        return self.captions == 1 and len(self.image.unique()) == len(self.text.unique()) == len(self.image)

    def of_images(self, rows: slice) -> Tensor:
        """(b, M) bool, images against texts."""
        image, texts = self.image[rows], self.text.flatten()
        row, copy = (image[:, None] == self.image).nonzero(as_tuple=True)
        has = torch.zeros(len(texts), len(image), dtype=torch.bool, device=image.device)  # rows: fast to look up
        has[self.text[copy], row[:, None]] = True
        return has[texts].T.contiguous()

    def of_texts(self, rows: slice) -> Tensor:
        """(b, N) bool, texts against images: the transpose of the above."""
        texts = self.text.flatten()
        row, copy = (texts[rows, None] == texts).nonzero(as_tuple=True)
        has = torch.zeros(len(self.image), len(texts[rows]), dtype=torch.bool, device=texts.device)
        has[self.image[copy // self.captions], row] = True
        return has[self.image].T.contiguous()


@dataclass(frozen=True)
class GlobalBatch:
    """What the loss knows of a batch besides its embeddings, gathered from all processes.

    weight: (N,) float32, or None where all pairs weigh the same. sizes: images of each process; None as in `shares`.
    """

    positives: Positives
    weight: Tensor | None = None
    sizes: list[int] | None = None

    @classmethod
    def gathered(
        cls, kind: str, image_id: Tensor, text_id: Tensor, weight: Tensor | None, sizes: list[int]
    ) -> GlobalBatch:
        """From this process's (B,) image_id, (B, K) text_id and (B,) weight. kind: as in Positives.of."""
        positives = Positives.of(kind, gather(image_id, sizes), gather(text_id, sizes))
        return cls(positives, None if weight is None else gather(weight, sizes), sizes)

    def divided(self) -> list[int]:
        """Images of each process."""
        return self.sizes or shares(len(self.positives.image), place()[1])

    def normalized(self, dtype: torch.dtype) -> Tensor:
        """(N,), the weights over their sum; a batch whose pairs all weigh nothing teaches nothing."""
        weight = torch.ones_like(self.positives.image) if self.weight is None else self.weight
        weight = weight.to(dtype)
        return weight / torch.where((total := weight.sum()) > 0, total, 1)


def global_loss(embeddings: Embeddings, batch: GlobalBatch, config: LossConfig, step: int = 0) -> Tensor:
    """The loss of the whole batch, given this process's embeddings of its part.

    embeddings: image (B, E), text (B K, E). batch: of all processes. step: for losses that change along the training.
    Returns a scalar whose *mean over the processes* is the loss, and whose gradients, averaged over the processes as
    DDP and FSDP do, are its gradient. With one process it is the loss.

    Each process computes, in tiles, the rows of its own images against all texts and those of its own texts against
    all images; none holds more than a strip of the matrix. A loss that rows do not decide every process computes from
    the gathered embeddings.
    """
    loss, settings = LOSSES[config.name], config.settings(step)
    share = settings.pop("image_to_text", 0.5)
    positives, captions, sizes = batch.positives, batch.positives.captions, batch.divided()
    text_sizes = [size * captions for size in sizes]
    rank = place()[0]
    if loss.on_cosines:
        # zero times, rather than without them: DDP wants every parameter in the graph
        bias = None if embeddings.bias is None else 0 * embeddings.bias
        embeddings = embeddings._replace(scale=0 * embeddings.scale + 1, bias=bias)
    # where each entry of the matrix counts by itself, the columns sum up to what the rows do: only texts are needed
    rows_suffice = config.pairwise and batch.weight is None
    image = embeddings.image if rows_suffice else gather(embeddings.image, sizes)
    text = gather(embeddings.text, text_sizes)
    weights = batch.normalized(torch.promote_types(image.dtype, torch.float32))
    text_weights = weights.repeat_interleave(captions) / captions

    if loss.whole_matrix:
        logits = similarity_logits(image, text, embeddings.scale, embeddings.bias)
        by_row, by_column = loss.both_ways(logits, positives.of_images(slice(None)), share, **settings)
        return ((weights * by_row).sum() + (text_weights * by_column).sum()) / 2

    diagonal = positives.only_diagonal()
    soft = config.name == "soft" and config.soft_share > 0

    def own_rows(
        queries: Tensor, keys: Tensor, sizes: list[int], weights: Tensor, positives: Callable[[slice], Tensor]
    ) -> Tensor:
        """Weighted sum over this process's rows, the queries, of which each process has as many as sizes says."""
        offset = sum(sizes[:rank])

        def of_tile(logits: Tensor, part: slice) -> Tensor:
            where = slice(part.start + offset, part.stop + offset)
            found = torch.arange(where.start, where.stop, device=logits.device) if diagonal else positives(where)
            targets = {"targets": likeness(image, text, where, config.soft_scale)} if soft else {}
            return loss.rows(logits, found, **settings, **targets)

        return tiled_loss(queries, keys, embeddings.scale, embeddings.bias, weights.split(sizes)[rank], of_tile)

    by_images = own_rows(embeddings.image, text, sizes, weights, positives.of_images)
    if rows_suffice:
        return len(sizes) / 2 * (1 + 1 / captions) * by_images
    by_texts = own_rows(embeddings.text, image, text_sizes, text_weights, positives.of_texts)
    return len(sizes) * (share * by_images + (1 - share) * by_texts)


def likeness(image: Tensor, text: Tensor, rows: slice, scale: float) -> Tensor:
    """The soft loss's targets, (b, N) in [0, 1]: how alike pair i of the rows and pair j are, 1 for a pair and itself.

    By the mean of the cosine of the two images and that of the two texts. Without a gradient, for a target that moves
    with the prediction would make all embeddings equal.
    """
    image, text = image.detach(), text.detach()
    return (scale * ((image[rows] @ image.T + text[rows] @ text.T) / 2 - 1)).exp()


def chance_loss(config: LossConfig, n: int, captions: int, step: int = 0) -> float:
    """What the loss is while a model tells nothing apart, for a batch of n images at a step: the height of a flat line.

    For a batch without duplicates, which change it a little. The one value of all logits is -ln(n - 1), the best there
    is for the sigmoid loss, which alone notices it.
    """
    rows, settings = LOSSES[config.name].rows, config.settings(step)
    share = settings.pop("image_to_text", 0.5)
    logits = torch.full((1, n * captions), -math.log(max(1, n - 1)), dtype=torch.float64)
    texts, images = (torch.arange(k)[None] < own for k, own in ((n * captions, captions), (n, 1)))
    by_image, by_text = float(rows(logits, texts, **settings)), float(rows(logits[:, :n], images, **settings))
    return share * by_image + (1 - share) * by_text
