"""Pairs -> batches: which rows make up a step, which caption of a picture is drawn, and the pictures' cache.

Every random choice of a step derives from (seed, epoch, row), never from a worker's state: a run that is killed and
resumed, or repeated with another number of workers, sees the same batches.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from miniclip.config import DataConfig
from miniclip.data.images import BadImage
from miniclip.data.sources import PairSource
from miniclip.data.transforms import Augment
from miniclip.matrix import shares
from miniclip.tokenizer import Tokenizer, trim_padding

# one presentation of one picture: (epoch, row), and its place in the epoch where a row may come several times
Draw = tuple[int, ...]
SAMPLED = 100  # pictures that are stored before the size of the cache is estimated


class Batch(NamedTuple):
    """image: uint8 (B, 3, S, S). text: int64 (B K, L), K captions for each picture, no longer than the longest.
    image_id (B,), text_id (B, K): int64, equal for the same row of the source (pictures in files: the same file), and
    for captions of equal tokens. weight: float32 (B,), or None if all are the same. bad: names of pictures that could
    not be read and were replaced."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    weight: Tensor | None
    bad: list[str]


class TrainBatches(Sampler[list[Draw]]):
    """This process's share of every global batch, epoch after epoch, from any step on.

    Each epoch is a new permutation of the rows; what is left over after the last whole batch is dropped, since
    filling it up would repeat pairs, which are then false negatives of one another. With draw_weights (rows,), an epoch
    is as many independent draws instead, each row as likely as its weight.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        draw_weights: Tensor | None = None,
    ) -> None:
        if rows < batch_size:
            advice = f"use a batch of at most {rows}, or more data" if rows > 1 else "it needs at least 2"
            raise ValueError(
                f"the training split has {rows} usable pictures, data.batch_size is {batch_size}; {advice}"
            )
        if batch_size < world:
            raise ValueError(f"data.batch_size={batch_size} leaves some of {world} processes without a pair; raise it")
        if draw_weights is not None and (len(draw_weights) != rows or not float(draw_weights.sum()) > 0):
            raise ValueError(f"draw_weights must be {rows} numbers, and not all of them 0")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.steps, self.first_step, self.rank, self.world = steps, first_step, rank, world
        self.per_epoch = rows // batch_size
        self.draw_weights = draw_weights

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        sizes = shares(self.batch_size, self.world)
        offset = sum(sizes[: self.rank])
        order, order_epoch = torch.empty(0, dtype=torch.long), -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
                order, order_epoch = self._order(generator), epoch
            start = position * self.batch_size + offset
            rows = order[start : start + sizes[self.rank]].tolist()
            if self.draw_weights is None:
                yield [(epoch, row) for row in rows]
            else:
                yield [(epoch, row, start + i) for i, row in enumerate(rows)]

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.draw_weights is None:
            return torch.randperm(self.rows, generator=generator)
        # not torch.multinomial, which takes no more than 2^24 rows
        cumulative = self.draw_weights.double().cumsum(0)
        draws = torch.rand(self.rows, generator=generator, dtype=torch.float64) * cumulative[-1]
        return torch.searchsorted(cumulative, draws, right=True)


class TrainingPairs(Dataset[Batch]):
    """A source with its cache, its random transform and its draw of one caption a picture."""

    def __init__(
        self,
        source: PairSource,
        augment: Augment,
        tokenizer: Tokenizer,
        *,
        seed: int,
        cache: bool,
        on_bad: str,
        captions: int = 1,
        weights: Tensor | None = None,
        progress: bool = False,
    ) -> None:
        """captions: of each picture in a batch. weights: (len(source),) float32, of the pictures, or None."""
        self.captions, self.weights = captions, weights
        self.source, self.augment, self.tokenizer = source, augment, tokenizer
        self.seed, self.on_bad = seed, on_bad
        self.rows = list(range(len(source)))
        self.bad: list[str] = []
        self.pictures: list[Image.Image] = []
        self.texts: list[list[str]] = []
        if cache:
            self._fill_cache(progress)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def draw_weights(self) -> Tensor | None:
        """The weights of the rows that are left, as TrainBatches takes them."""
        return None if self.weights is None else self.weights[self.rows]

    def _fill_cache(self, progress: bool) -> None:
        from tqdm import tqdm

        def read(row: int) -> Image.Image | BadImage:
            try:
                return self.augment.store(self.source.image(row))
            except BadImage as error:
                return error

        rows: list[int] = []
        size = 0  # bytes
        with ThreadPoolExecutor(4) as pool:
            results = pool.map(read, self.rows)
            for row, picture in enumerate(
                tqdm(results, total=len(self.rows), desc="reading pictures", unit="", leave=False, disable=not progress)
            ):
                if isinstance(picture, BadImage):
                    self._refuse(picture, self.bad)
                    continue
                rows.append(row)
                self.pictures.append(picture)
                size += picture.width * picture.height * 3
                if len(rows) == SAMPLED:
                    self._check_memory(size)
                self.texts.append(self.source.captions(row))
        self.rows = rows

    def _check_memory(self, sampled: int) -> None:
        """The first pictures tell what all of them take; raises ValueError before the machine swaps."""
        import psutil

        needed, free = sampled / SAMPLED * len(self.rows), psutil.virtual_memory().available
        if needed > free:
            raise ValueError(
                f"data.cache would keep {len(self.rows)} pictures in {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
                "memory are free; set data.cache to false, and data.workers to a few"
            )

    def _refuse(self, error: BadImage, bad: list[str]) -> None:
        """Stop with advice, or note the name in bad, as on_bad says."""
        if self.on_bad == "stop":
            raise BadImage(f"{error}; mend or remove it, or set data.on_bad to skip") from error
        bad.append(str(error))

    def _picture(self, index: int, bad: list[str]) -> tuple[Image.Image, int]:
        """The picture at index, or the next one that can be read, and where that one stands."""
        if self.pictures:
            return self.pictures[index], index
        for distance in range(len(self.rows)):
            found = (index + distance) % len(self.rows)
            try:
                return self.source.image(self.rows[found]), found
            except BadImage as error:
                self._refuse(error, bad)
        raise BadImage("no picture of the training split can be read; check data.source and data.image_column")

    def __getitems__(self, draws: list[Draw]) -> Batch:
        images: list[Tensor] = []
        captions: list[str] = []
        found: list[int] = []
        bad: list[str] = []
        for draw in draws:
            rng = random.Random(_mix(self.seed, *draw))
            picture, position = self._picture(draw[1], bad)
            texts = self.texts[position] if self.pictures else self.source.captions(self.rows[position])
            images.append(self.augment(picture, rng))
            captions += _draw(texts, self.captions, rng)
            found.append(self.rows[position])
        tokens = self.tokenizer(captions)
        return Batch(
            torch.stack(images),
            trim_padding(tokens),
            torch.tensor(found),
            # what the text encoder sees: captions that differ in their spaces alone, or past its context, are equal
            torch.tensor([_hash(row.tobytes()) for row in tokens.numpy()]).view(len(found), -1),
            None if self.weights is None else self.weights[found],
            bad,
        )

    def __getitem__(self, draw: Draw) -> Batch:
        return self.__getitems__([draw])


def _draw(texts: list[str], count: int, rng: random.Random) -> list[str]:
    """count captions, none of them twice before all have had their turn."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(texts, min(len(texts), count - len(drawn)))
    return drawn


def training_loader(pairs: TrainingPairs, batches: TrainBatches, config: DataConfig, pin: bool) -> DataLoader[Batch]:
    """The loader of a run; a batch is built whole, in a worker or, with workers=0, in the training process."""
    return DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=pin,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _mix(*numbers: int) -> int:
    """A seed from several numbers: equal only for equal numbers. In [0, 2^63)."""
    return (_hash(b",".join(str(number).encode() for number in numbers)) >> 1) & (2**63 - 1)


def _hash(data: bytes) -> int:
    """A number in [-2^63, 2^63) that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)
