"""Pairs -> batches: the random square of a picture, the draw of its captions, and the loader that brings them along.

Every random choice derives from (seed, epoch, row), so that it does not matter which process makes it.
"""

from __future__ import annotations

import queue
import random
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from miniclip.common.stopping import CODES
from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.cache.store import Prepared
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage
from miniclip.data.sampler import Draw, TrainBatches, mix, number_of
from miniclip.models.tokenizer import Tokenizer, caption_lengths

T = TypeVar("T")


class Batch(NamedTuple):
    """image: uint8 (B, 3, S, S), in memory channels last. look: float32 (B, 1 or 4), as recolour takes it.
    text: int64 (B K, L), K captions for each picture, no longer than the longest. image_id (B,), text_id (B, K): int64,
    equal for the same row of the source (pictures in files: the same file), and for captions of equal tokens. weight:
    float32 (B,), or None if all are the same. lengths: tokens of each caption. bad: names of pictures that could not be
    read and were replaced."""

    image: Tensor
    look: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    weight: Tensor | None
    lengths: list[int]
    bad: list[str]

    def to(self, device: torch.device) -> Batch:
        """All tensors on a device, copied while the host goes on."""
        moved = [x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in self]
        return Batch(*moved)  # type: ignore[arg-type]


class Example(NamedTuple):
    """One picture of a batch. square: uint8 (S, S, 3). captions: uint16 (length,) each, without padding."""

    square: np.ndarray
    look: list[float]
    captions: list[np.ndarray]
    image_id: int


def make_example(
    stored: np.ndarray, captions: Sequence[np.ndarray], image_id: int, augment: Augment, count: int, rng: random.Random
) -> Example:
    """The random choices of one presentation: square, look, and count of the captions."""
    return Example(augment.square(stored, rng), augment.look(rng), draw_captions(captions, count, rng), image_id)


def collate(examples: Sequence[Example], weight: Tensor | None, bad: list[str]) -> Batch:
    """Examples, at least one -> their batch."""
    pixels = torch.from_numpy(np.stack([example.square for example in examples]))
    captions = [caption for example in examples for caption in example.captions]
    text = np.zeros((len(captions), max(map(len, captions))), dtype=np.int64)
    for row, caption in zip(text, captions, strict=True):
        row[: len(caption)] = caption
    return Batch(
        pixels.permute(0, 3, 1, 2),  # b h w c -> b c h w
        torch.tensor([example.look for example in examples]),
        torch.from_numpy(text),
        torch.tensor([example.image_id for example in examples]),
        # what the text encoder sees: captions that differ in their spaces alone, or past its context, are equal
        torch.tensor([number_of(caption.tobytes()) for caption in captions]).view(len(examples), -1),
        weight,
        [len(caption) for caption in captions],
        bad,
    )


def draw_captions(captions: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """count captions, none of them twice before all have had their turn."""
    drawn: list[T] = []
    while len(drawn) < count:
        drawn += rng.sample(captions, min(len(captions), count - len(drawn)))
    return drawn


def token_rows(tokenizer: Tokenizer, captions: Sequence[str]) -> list[np.ndarray]:
    """Of each caption uint16 (length,): start token, ids, end token, cut to the context."""
    tokens = tokenizer(captions)
    lengths = caption_lengths(tokens).tolist()
    rows = tokens.numpy().astype(np.uint16)
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


class TrainingPairs(Dataset[Batch]):
    """A source with its random transform and its draw of captions, out of a prepared cache or read as they come up."""

    def __init__(
        self,
        source: PairSource,
        augment: Augment,
        tokenizer: Tokenizer,
        *,
        seed: int,
        prepared: Prepared | None = None,
        captions: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        """captions: of each picture in a batch. weights: (len(source),) float32, of the pictures, or None."""
        self.source, self.augment, self.tokenizer, self.seed = source, augment, tokenizer, seed
        self.prepared, self.captions, self.weights = prepared, captions, weights
        self.rows = np.arange(len(source)) if prepared is None else prepared.rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def draw_weights(self) -> Tensor | None:
        """The weights of the rows that are left, as TrainBatches takes them."""
        return None if self.weights is None else self.weights[self.rows]

    def vocabulary(self) -> Tensor:
        """The token ids that the captions use, ascending, int64; without a cache all are tokenised for it."""
        if self.prepared is not None:
            return torch.from_numpy(self.prepared.vocabulary())
        used: set[int] = set()
        for row in range(len(self)):
            for ids in token_rows(self.tokenizer, self.source.captions(row)):
                used.update(ids.tolist())
        return torch.tensor(sorted(used))

    def __getitems__(self, draws: list[Draw]) -> Batch:
        bad: list[str] = []
        examples = [self._example(draw, bad) for draw in draws]
        found = [example.image_id for example in examples]
        return collate(examples, None if self.weights is None else self.weights[found], bad)

    def _example(self, draw: Draw, bad: list[str]) -> Example:
        rng = random.Random(mix(self.seed, *draw))
        if self.prepared is not None:
            at = draw[1]
            stored, captions = self.prepared.picture(at), self.prepared.tokens(at)
        else:
            stored, at = self._picture(draw[1], bad)
            captions = token_rows(self.tokenizer, self.source.captions(at))
        return make_example(stored, captions, int(self.rows[at]), self.augment, self.captions, rng)

    def _picture(self, index: int, bad: list[str]) -> tuple[np.ndarray, int]:
        """The picture at index, or the next one that can be read, and where that one stands."""
        for distance in range(len(self)):
            found = (index + distance) % len(self)
            try:
                return np.asarray(self.augment.store(self.source.image(found))), found
            except BadImage as error:
                bad.append(str(error))
        raise BadImage("no picture of the training split can be read; check data.source and data.image_column")


def training_loader(pairs: TrainingPairs, batches: TrainBatches, config: DataConfig, pin: bool) -> DataLoader[Batch]:
    """The loader of a run; a batch is built whole, in a worker or, with workers=0, in the training process."""
    return DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=as_it_is,
        worker_init_fn=ignore_signals,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=pin,
    )


def as_it_is(batch: Any) -> Any:
    return batch


def ignore_signals(worker: int) -> None:
    """For a loader's process: a terminal or a scheduler signals all processes of a run, which has a step to finish.

    The training process ends its loaders when it ends, and they end by themselves once it is gone.
    """
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)


class Ahead(Generic[T]):
    """An iterator that a thread of its own keeps a few items ahead; what it raises is raised here, in its place."""

    def __init__(self, items: Iterable[T], depth: int = 2) -> None:
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put((True, item)):
                    return
            self._put((False, StopIteration()))
        except BaseException as error:  # whatever it is, the consumer has to hear of it
            self._put((False, error))

    def _put(self, entry: tuple[bool, Any]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        good, item = self._queue.get()
        if good:
            return item
        self.close()
        raise item

    def close(self) -> None:
        """End the thread and wait for it; items that it has read ahead are lost.

        Python ends a thread that comes back to it while the process ends, and inside torch that aborts the process.
        """
        self._closed.set()
        self._thread.join()
