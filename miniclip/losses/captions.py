"""The captions' own matrix, beside the one of images and texts: an image's captions find each other among all others.

They say the same thing in other words, and so teach the text tower what words mean without a single image. Within one
kind: arXiv:2202.10401 (its intra-modal term, there of captions and images that are changed at random); the form with
several positives: arXiv:2004.11362, L_out.

Axes: N images of all processes, K captions for each (text j belongs to image j // K), M = N K texts, b rows of a tile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from miniclip.common.processes import place
from miniclip.config import LossConfig
from miniclip.losses.losses import softmax
from miniclip.losses.matrix import Embeddings, GlobalBatch, chance_loss, gather, global_loss
from miniclip.losses.tiles import tiled_loss


def training_loss(embeddings: Embeddings, batch: GlobalBatch, config: LossConfig, step: int = 0) -> Tensor:
    """What training minimises: global_loss and text_to_text times captions_loss; arguments and result as theirs."""
    loss = global_loss(embeddings, batch, config, step)
    return loss + config.text_to_text * captions_loss(embeddings, batch, config) if config.text_to_text else loss


def training_chance(config: LossConfig, n: int, captions: int, step: int = 0) -> float:
    """What training_loss is while a model tells nothing apart; see chance_loss."""
    chance = chance_loss(config, n, captions, step)
    return chance + config.text_to_text * math.log(n * captions - 1) if config.text_to_text else chance


def captions_loss(embeddings: Embeddings, batch: GlobalBatch, config: LossConfig) -> Tensor:
    """Cross-entropy of each caption to the others of its image, evenly, among all captions but itself.

    Of the matrix scale * text @ text.T; without a bias, and with the softmax loss's smoothing. Positives and weights
    are those of the images: a caption that an image shares with another is one of both. Needs two captions or more for
    each image. Returns a scalar whose mean over the processes is the loss, as global_loss does.
    """
    positives, sizes = batch.positives, batch.divided()
    captions, rank = positives.captions, place()[0]
    text = gather(embeddings.text, [size * captions for size in sizes])
    weights = batch.normalized(torch.promote_types(text.dtype, torch.float32))
    own = weights.split(sizes)[rank].repeat_interleave(captions) / captions
    offset, numbers = sum(sizes[:rank]) * captions, torch.arange(len(text), device=text.device)

    def of_tile(logits: Tensor, part: slice) -> Tensor:
        first, last = part.start + offset, part.stop + offset
        rows, image = numbers[first:last], first // captions
        mates = positives.of_images(slice(image, (last - 1) // captions + 1))[rows // captions - image]
        others = numbers[:-1] + (numbers[:-1] >= rows[:, None])  # all columns but the row's own
        return softmax(logits.gather(1, others), mates.gather(1, others), smoothing=config.smoothing)

    return len(sizes) * tiled_loss(embeddings.text, text, embeddings.scale, None, own, of_tile)
