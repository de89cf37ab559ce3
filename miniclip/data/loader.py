"""Pairs -> batches: the random square of an image, the draw of its captions, and the loader that brings them along.

Every random choice derives from (seed, epoch, row), so that it does not matter which process makes it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniclip.data.augment import Augment
from miniclip.data.cache.store import Prepared, Unusable, token_rows
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage
from miniclip.data.sampler import Draw, TrainSampler, mix, number_of
from miniclip.data.words import ONE, Wording
from miniclip.data.workers import LOADING
from miniclip.models.protocols import TextTokenizer, padding_of

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """image: uint8 (B, 3, S, S), in memory channels last. look: float32 (B, 1 or 4), as recolour takes it.
    text: int64 (B K, L), K captions for each image, no longer than the longest. image_id (B,), text_id (B, K): int64,
    equal for the same row of the source (in a stream: the same bytes), and for captions of equal tokens, whole. weight:
    float32 (B,), or None if all are the same. lengths: tokens in each row of text. bad: why images were replaced."""

    image: Tensor
    look: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    weight: Tensor | None
    lengths: list[int]
    bad: list[str]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in self))  # type: ignore[arg-type]


class Example(NamedTuple):
    """One image of a batch. square: uint8 (S, S, 3). captions: (length,) each, without padding. read: what the text
    encoder sees of them, if not all."""

    square: np.ndarray
    look: list[float]
    captions: list[np.ndarray]
    image_id: int
    read: list[np.ndarray] | None = None

    @classmethod
    def draw(
        cls, stored: np.ndarray, rows: list[np.ndarray], image_id: int, augment: Augment, wording: Wording, seed: int
    ) -> Example:
        """One presentation. rows: of token ids, all that an image has."""
        rng = random.Random(seed)
        square, look = augment.square(stored, rng), augment.look(rng)
        chosen = [rows[place] for place in wording.choose(rows, rng)]
        return cls(square, look, chosen, image_id, wording.read(chosen, rng))


def collate(examples: Sequence[Example], weight: Tensor | None, bad: list[str], pad: int = 0) -> Batch:
    """Examples, at least one -> their batch. pad: what stands behind a shorter caption."""
    captions = [caption for example in examples for caption in example.captions]
    read = [caption for example in examples for caption in example.read or example.captions]
    text = np.full((len(read), max(map(len, read))), pad, dtype=np.int64)
    for row, caption in zip(text, read, strict=True):
        row[: len(caption)] = caption
    return Batch(
        torch.from_numpy(np.stack([example.square for example in examples])).permute(0, 3, 1, 2),  # b h w c -> b c h w
        torch.tensor([example.look for example in examples]),
        torch.from_numpy(text),
        torch.tensor([example.image_id for example in examples]),
        # captions that differ in their spaces alone, or past the text encoder's context, are equal
        torch.tensor([number_of(caption.tobytes()) for caption in captions]).view(len(examples), -1),
        weight,
        list(map(len, read)),
        bad,
    )


@dataclass(eq=False)
class TrainingPairs(Dataset[Batch]):
    """A source with its random transform and draw of captions, out of a cache or read as they come up. weights:
    (len(source),) float32, of the images, or None."""

    source: PairSource
    augment: Augment
    tokenizer: TextTokenizer
    seed: int
    prepared: Prepared | None = None
    wording: Wording = ONE
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        self.rows = np.arange(len(self.source)) if self.prepared is None else self.prepared.rows

    def __len__(self) -> int:
        return len(self.rows)

    def vocabulary(self) -> Tensor:
        """The token ids that the captions use, ascending, int64."""
        if self.prepared is not None:
            return torch.from_numpy(self.prepared.vocabulary())
        rows = (row for i in range(len(self)) for row in token_rows(self.tokenizer, self.source.captions(i)))
        return torch.tensor(sorted({token for row in rows for token in row.tolist()}))

    def __getitems__(self, draws: list[Draw]) -> Batch:
        bad: list[str] = []
        examples = [self._example(draw, bad) for draw in draws]
        found = [example.image_id for example in examples]
        weights = None if self.weights is None else self.weights[found]
        return collate(examples, weights, bad, padding_of(self.tokenizer))

    def _example(self, draw: Draw, bad: list[str]) -> Example:
        at = draw[1]
        if self.prepared is not None:
            stored, captions = self.stored(self.prepared, at), self.prepared.tokens(at)
        else:
            stored, at = self._image(at, bad)
            captions = token_rows(self.tokenizer, self.source.captions(at))
        return Example.draw(stored, captions, int(self.rows[at]), self.augment, self.wording, mix(self.seed, *draw))

    def stored(self, prepared: Prepared, at: int) -> np.ndarray:
        """An image of the cache, or, where it is damaged, the image itself."""
        try:
            return prepared.image(at)
        except Unusable as error:
            log.warning("%s; it is decoded anew each time", error)
            return np.asarray(self.augment.store(self.source.image(int(self.rows[at]))))

    def _image(self, index: int, bad: list[str]) -> tuple[np.ndarray, int]:
        """The image at index, or the next one that can be read, and where that one stands."""
        for distance in range(len(self)):
            found = (index + distance) % len(self)
            try:
                return np.asarray(self.augment.store(self.source.image(found))), found
            except BadImage as error:
                bad.append(str(error))
        raise BadImage("no image of the training split can be read; check data.source and data.image_column")


def training_loader(pairs: Dataset[Batch], sampler: TrainSampler, workers: int, pin: bool) -> DataLoader[Batch]:
    """The loader of a run; a batch is built whole, in a worker or, with workers=0, in the training process."""
    return DataLoader(pairs, batch_sampler=sampler, pin_memory=pin, num_workers=workers, **LOADING)
