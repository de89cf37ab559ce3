"""Batches of which the images, the captions or both are features of a locked tower.

Which caption, and which of the stored views of an image, is drawn comes from (seed, epoch, row), as elsewhere.
Axes: B batch, K captions of each image, L tokens, D width.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from miniclip.data.cache.features import Features
from miniclip.data.cache.store import Prepared
from miniclip.data.loader import Batch, Example, TrainingPairs, collate
from miniclip.data.sampler import Draw, mix
from miniclip.models.protocols import padding_of

_NO_SQUARE = np.zeros((0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Views:
    """What is stored of an image: `count` random presentations (data.views), or, with None, the image, and with flip
    also its mirror image."""

    count: int | None
    flip: float

    def __len__(self) -> int:
        return self.count or (2 if self.flip else 1)

    def look(self, pairs: TrainingPairs, at: int, view: int) -> tuple[np.ndarray, list[float]]:
        """Square and look (see Augment) of a view of the image at a place."""
        assert pairs.prepared is not None
        stored = pairs.stored(pairs.prepared, at)
        if self.count is None:
            return stored, [-1.0 if view else 1.0]
        rng = random.Random(mix(pairs.seed, int(pairs.rows[at]), view, len(self)))
        return pairs.augment.square(stored, rng), pairs.augment.look(rng)

    def draw(self, pairs: TrainingPairs, rng: random.Random) -> int:
        """A view for a step; without `count` what Augment draws, so that the step is the one without features."""
        return rng.randrange(self.count) if self.count else int(pairs.augment.look(rng)[0] < 0)


@dataclass(eq=False)
class FeaturePairs(Dataset[Batch]):
    """TrainingPairs, of a cache, with features in place of images or captions.

    images: those of every view of an image, one image after the other. texts: those of every caption, (captions, D), or
    of every token, (tokens, D + 1).
    """

    pairs: TrainingPairs
    views: Views
    images: Features | None
    texts: Features | None

    def __post_init__(self) -> None:
        assert self.pairs.prepared is not None
        self.prepared: Prepared = self.pairs.prepared
        self.rows = self.pairs.rows

    def __len__(self) -> int:
        return len(self.pairs)

    def vocabulary(self) -> Tensor:
        return self.pairs.vocabulary()

    def __getitems__(self, draws: list[Draw]) -> Batch:
        """Batch.image: float32 (B, ...), and Batch.text: float32 (B K, D) or (B K, L, D + 1), as Tower.upper takes
        them."""
        pairs, examples, viewed, said = self.pairs, list[Example](), list[int](), list[int]()
        for draw in draws:
            at, rng = draw[1], random.Random(mix(pairs.seed, *draw))
            if self.images is None:
                square = pairs.augment.square(pairs.stored(self.prepared, at), rng)
                look = pairs.augment.look(rng)
            else:
                square, look = _NO_SQUARE, []
                viewed.append(at * len(self.views) + self.views.draw(pairs, rng))
            numbers, tokens = self.prepared.captions(at), self.prepared.tokens(at)
            chosen = pairs.wording.choose(tokens, rng)
            said += [numbers[place] for place in chosen]
            captions = [tokens[place] for place in chosen]
            read = None if self.texts is not None else pairs.wording.read(captions, rng)
            examples.append(Example(square, look, captions, int(self.rows[at]), read))
        weights = None if pairs.weights is None else pairs.weights[[example.image_id for example in examples]]
        batch = collate(examples, weights, [], padding_of(pairs.tokenizer))
        if self.images is not None:
            batch = batch._replace(image=self.images[np.array(viewed)])
        if self.texts is not None:
            batch = batch._replace(text=self._of_captions(said))
        return batch

    def _of_captions(self, numbers: Sequence[int]) -> Tensor:
        assert self.texts is not None
        chosen = np.array(numbers)
        if len(self.texts) == len(self.prepared.ends) - 1:
            return self.texts[chosen]
        starts, lengths = self.prepared.ends[chosen], np.diff(self.prepared.ends)[chosen]
        own = np.arange(lengths.max()) < lengths[:, None]  # (B K, L)
        values = torch.zeros(*own.shape, *self.texts.shape)
        values[torch.from_numpy(own)] = self.texts[(starts[:, None] + np.arange(own.shape[1]))[own]]
        return values
