"""The loss of the global batch: what each process computes of it, exact for any number of processes.

A loss that its rows decide is computed by each process for its own images against all texts and for its own texts
against all images, in tiles; no process holds more than a strip of the matrix. The transport loss needs the whole
matrix, which every process then computes from the gathered embeddings.

Axes: B images of this process, N of all processes, K captions for each image, M = N K texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.losses.matrix import Embeddings, Positives, gather, shares, similarity_logits, world_size
from miniclip.losses.rows import NEEDS_MATRIX, ON_COSINES, ROWS, RowLoss, chance_value
from miniclip.losses.tiles import tiled_loss


@dataclass(frozen=True)
class GlobalBatch:
    """What the loss knows of a batch besides its embeddings, gathered from all processes.

    positives: see matrix.Positives. weight: (N,) float32, or None where all pairs weigh the same. sizes: images of each
    process; None if they are divided as matrix.shares does.
    """

    positives: Positives
    weight: Tensor | None = None
    sizes: list[int] | None = None

    @classmethod
    def gathered(
        cls, kind: str, image_id: Tensor, text_id: Tensor, weight: Tensor | None, sizes: list[int]
    ) -> GlobalBatch:
        """From this process's (B,) image_id, (B, K) text_id and (B,) weight. kind: as in Positives.of."""
        image, text = gather(image_id, sizes), gather(text_id, sizes)
        return cls(Positives.of(kind, image, text), None if weight is None else gather(weight, sizes), sizes)

    def divided(self) -> list[int]:
        """Images of each process."""
        return self.sizes or shares(len(self.positives.image), world_size())


def global_loss(embeddings: Embeddings, batch: GlobalBatch, config: LossConfig, step: int = 0) -> Tensor:
    """The loss of the whole batch, given this process's embeddings of its part.

    embeddings: image (B, E), text (B K, E). batch: of all processes. step: for losses that change along the training.
    Returns a scalar whose *mean over the processes* is the loss, and whose gradients, averaged over the processes as
    DDP and FSDP do, are its gradient. With one process it is the loss.
    """
    n, captions = len(batch.positives.image), batch.positives.captions
    world = world_size()
    sizes = batch.divided()
    rank = dist.get_rank() if world > 1 else 0
    start = sum(sizes[:rank])
    if config.name in ON_COSINES:
        # zero times, rather than without them: DDP wants every parameter in the graph
        bias = None if embeddings.bias is None else 0 * embeddings.bias
        embeddings = embeddings._replace(scale=0 * embeddings.scale + 1, bias=bias)
    # where each entry of the matrix counts by itself, the columns sum up to what the rows do: only texts are needed
    rows_suffice = config.pairwise and batch.weight is None
    image = embeddings.image if rows_suffice else gather(embeddings.image, sizes)
    text = gather(embeddings.text, [size * captions for size in sizes])
    dtype = torch.promote_types(image.dtype, torch.float32)
    weights = torch.ones(n, dtype=dtype, device=image.device) if batch.weight is None else batch.weight.to(dtype)
    # a batch whose pairs all weigh nothing teaches nothing
    weights = weights / torch.where((total := weights.sum()) > 0, total, 1)
    rows = partial(ROWS[config.name], **config.settings(step))
    if config.name in NEEDS_MATRIX:
        logits = similarity_logits(image, text, embeddings.scale, embeddings.bias)
        positives = batch.positives.of_images(slice(None))
        by_images = (weights * rows(logits, positives)).sum()
        return (by_images + (_of_texts(weights, captions) * rows(logits.T, positives.T)).sum()) / 2

    diagonal = batch.positives.only_diagonal()
    soft = config.name == "soft" and config.soft_share > 0

    def of_direction(
        queries: Tensor, keys: Tensor, offset: int, weights: Tensor, positives: Callable[[slice], Tensor]
    ) -> Tensor:
        """Weighted sum over this process's rows, the queries, of which the first is row offset of all."""

        def of_tile(logits: Tensor, part: slice) -> Tensor:
            where = slice(part.start + offset, part.stop + offset)
            found = torch.arange(where.start, where.stop, device=logits.device) if diagonal else positives(where)
            if soft:
                return rows(logits, found, targets=likeness(image, text, where, config.soft_scale))
            return rows(logits, found)

        return tiled_loss(queries, keys, embeddings.scale, embeddings.bias, weights, of_tile)

    own = weights.split(sizes)[rank]
    by_images = of_direction(embeddings.image, text, start, own, batch.positives.of_images)
    if rows_suffice:
        return world / 2 * (1 + 1 / captions) * by_images
    of_texts = batch.positives.of_texts
    by_texts = of_direction(embeddings.text, image, start * captions, _of_texts(own, captions), of_texts)
    return world / 2 * (by_images + by_texts)


def chance_loss(config: LossConfig, n: int, captions: int, step: int = 0) -> float:
    """What the loss is while a model tells nothing apart, for a batch of n images at a step: the height of a flat line.

    For a batch without duplicates, which change it a little.
    """
    rows: RowLoss = partial(ROWS[config.name], **config.settings(step))
    return chance_value(rows, n, captions)


def _of_texts(weights: Tensor, captions: int) -> Tensor:
    """A picture's weight, divided among its captions."""
    return weights.repeat_interleave(captions) / captions


def likeness(image: Tensor, text: Tensor, rows: slice, scale: float) -> Tensor:
    """The soft loss's targets, (b, N) in [0, 1]: how alike pair i of the rows and pair j are, image and text together.

    By the mean of the cosine of the two images and that of the two texts; 1 for a pair and itself.

    Without a gradient, for a target that moves with the prediction would make all embeddings equal.
    """
    image, text = image.detach(), text.detach()
    return (scale * ((image[rows] @ image.T + text[rows] @ text.T) / 2 - 1)).exp()
