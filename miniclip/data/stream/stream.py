"""A training split that is read in order, shard by shard, for data that do not fit on the disk.

Position p of a pool of shards is the next sample of lane p modulo its lanes (lanes.py), and step s takes the positions
from s B on, B the global batch. So a batch does not depend on the number of processes and loader workers, nor on where
a run was stopped: the lanes' cursors are all there is to remember. With data.mixing each source is a pool of its own.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.cache.store import token_rows
from miniclip.data.images import BadImage, decode_image
from miniclip.data.loader import Batch, Example, collate
from miniclip.data.sampler import apportion, mix, number_of
from miniclip.data.stream.lanes import START, Cursor, Drawn, Group, Lane, Pool
from miniclip.data.stream.shards import training_shards
from miniclip.data.tables.table import Sample, Shard
from miniclip.data.tables.texts import texts_of
from miniclip.data.words import ONE, Wording
from miniclip.data.workers import LOADING, batches_of
from miniclip.models.protocols import TextTokenizer

HOPELESS = 1000  # bad samples in a row, after which no step would ever be full


class StreamBatch(NamedTuple):
    """cursors: lane -> position after this batch, for the lanes of this process. epoch: of its slowest lane."""

    batch: Batch
    cursors: dict[int, Cursor]
    epoch: int


class _Part(NamedTuple):
    """What one worker brings to a batch. places: in the global batch, ascending; without any, batch is None."""

    batch: Batch | None
    places: list[int]
    bad: list[str]
    cursors: dict[int, Cursor]
    epoch: int


@dataclass(eq=False)
class TrainStream:
    """This process's share of every global batch.

    shards: in pools that are drawn from alike. mixing: share of every batch for each pool. lanes: of all processes.
    Raises ValueError if there is not a lane for each worker, or not a pair for each process.
    """

    shards: Sequence[Sequence[Shard]]
    augment: Augment
    tokenizer: TextTokenizer
    batch_size: int
    seed: int
    buffer: int
    wording: Wording = ONE
    mixing: Sequence[float] = (1.0,)
    rank: int = 0
    world: int = 1
    workers: int = 0
    pin: bool = False

    def __post_init__(self) -> None:
        count = len(self.shards)
        buffer = max(1, self.buffer // count)
        self.pools = [Pool(one, seed=self.seed, number=i, buffer=buffer) for i, one in enumerate(self.shards)]
        *self.firsts, self.lanes = accumulate((pool.lanes for pool in self.pools), initial=0)
        if self.world * max(1, self.workers) > self.lanes:
            readers, dealt = f"{self.world} processes with {self.workers} workers each", sum(map(len, self.shards))
            lanes = f"the {self.lanes} lanes into which {dealt} shards are dealt"
            advice = f"use data.workers={self.lanes // self.world}, fewer processes, or more shards"
            raise ValueError(f"{readers} are more than {lanes}; {advice}")
        # those of one pool come round after as many steps; of several, nearly all that can happen does in 2,000
        for step in range(min(self.lanes, 100) if count == 1 else 2000 if self.world > 1 else 0):
            self.shares_at(step)

    @property
    def layout(self) -> str:
        """Changes when cursors of before mean something else: with the seed, the buffer or the names of the shards."""
        names = [shard.name.rsplit("/", 1)[-1] for pool in self.pools for shard in pool.shards]
        sizes = [(pool.lanes, pool.block, len(pool.shards)) for pool in self.pools]
        return f"{mix(self.seed, number_of(repr((names, sizes)).encode())):016x}"

    def lanes_at(self, step: int) -> np.ndarray:
        """The lane of each pair in a step's global batch."""
        starts, stops = (apportion(s * self.batch_size, self.mixing) for s in (step, step + 1))
        ranges = zip(self.pools, self.firsts, starts, stops, strict=True)
        return np.concatenate([first + np.arange(start, stop) % pool.lanes for pool, first, start, stop in ranges])

    def shares_at(self, step: int) -> list[int]:
        """Pairs of each process in a step. Raises ValueError if one has none."""
        counts = np.bincount(self.lanes_at(step) % self.world, minlength=self.world)
        if counts.min() < 1:
            lacking = f"process {int(counts.argmin())} of {self.world} without a pair in step {step}"
            advice = f"use at least {2 * self.world * len(self.pools)}, or fewer processes"
            raise ValueError(f"data.batch_size={self.batch_size} leaves {lacking}; {advice}")
        return counts.tolist()

    def batches(
        self, first_step: int, steps: int, cursors: Mapping[int, Cursor] | None = None
    ) -> Iterator[StreamBatch]:
        """From first_step until steps. cursors: as of first_step, of all processes' lanes.

        Raises StreamLost, BadImage where nothing is usable, Unordered, and WorkerLost.
        """
        cursors = dict.fromkeys(range(self.lanes), START) if cursors is None else cursors
        reader = _Reader(self, first_step, steps, cursors)
        parts = batches_of(DataLoader(reader, batch_size=None, num_workers=self.workers, **LOADING))
        for _ in range(first_step, steps):
            mine = [next(parts) for _ in range(max(1, self.workers))]
            after = {lane: cursor for part in mine for lane, cursor in part.cursors.items()}
            yield StreamBatch(_merge(mine, self.pin), after, min(part.epoch for part in mine))

    def own_lanes(self, worker: int, workers: int, cursors: Mapping[int, Cursor]) -> dict[int, Lane]:
        """Number -> lane, of those that a worker of this process reads."""
        lanes: dict[int, Lane] = {}
        groups: dict[tuple[int, int], Group] = {}
        for number in range(self.rank, self.lanes, self.world)[worker::workers]:
            which = bisect(self.firsts, number) - 1
            pool, local = self.pools[which], number - self.firsts[which]
            group = groups.setdefault((which, local % pool.groups), Group(pool, local % pool.groups))
            lanes[number] = Lane(local, group, cursors[number])
        return lanes

    def part(self, lanes: Mapping[int, Lane], step: int) -> _Part:
        """What those lanes bring to a step."""
        bad, numbers = list[str](), self.lanes_at(step).tolist()
        places = [place for place, number in enumerate(numbers) if number in lanes]
        examples = [self._next(lanes[numbers[place]], bad) for place in places]
        batch = collate(examples, None, []) if examples else None
        after = {number: lane.cursor for number, lane in lanes.items()}
        return _Part(batch, places, bad, after, min(lane.epoch for lane in lanes.values()))

    def _next(self, lane: Lane, bad: list[str]) -> Example:
        for _ in range(HOPELESS):
            try:
                return self._example(lane.pool.number, lane.take(bad))
            except BadImage as error:
                bad.append(str(error))
        advice = "check data.image_column and data.caption_column"
        raise BadImage(f"{HOPELESS} samples in a row cannot be used, the last: {bad[-1]}; {advice}")

    def _example(self, pool: int, drawn: Drawn) -> Example:
        """Raises BadImage if the sample cannot be used."""
        sample = drawn.sample
        texts = usable_captions(sample)
        if sample.image is None:
            raise BadImage(f"{sample.name}: holds no image")
        # as open_source does: a JPEG may be decoded at twice the side, no more is used
        image = decode_image(sample.image, sample.name, at_least=2 * self.augment.image_size)
        stored, rows = np.asarray(self.augment.store(image)), token_rows(self.tokenizer, texts)
        seed = mix(self.seed, pool, drawn.epoch, drawn.shard, drawn.row)
        return Example.draw(stored, rows, image_id(sample.image), self.augment, self.wording, seed)


@dataclass
class _Reader(IterableDataset[_Part]):
    """What a worker brings to each step."""

    stream: TrainStream
    first_step: int
    steps: int
    cursors: Mapping[int, Cursor]

    def __iter__(self) -> Iterator[_Part]:
        worker, workers = 0, 1
        if (info := get_worker_info()) is not None:
            import fsspec.asyn  # type: ignore[import-untyped]

            fsspec.asyn.reset_lock()  # the thread that the parent reads URLs with has not been forked
            worker, workers = info.id, info.num_workers
        lanes = self.stream.own_lanes(worker, workers, self.cursors)
        try:
            for step in range(self.first_step, self.steps):
                yield self.stream.part(lanes, step)
        finally:
            for lane in lanes.values():
                lane.group.close()


def open_stream(
    config: DataConfig, augment: Augment, tokenizer: TextTokenizer, *, seed: int, **share: Any
) -> TrainStream:
    """The training split of a configuration; share: rank, world and pin. Raises ValueError or FileNotFoundError."""
    pools = training_shards(config)
    shards = pools if config.mixing else [[shard for shards in pools for shard in shards]]
    share |= {"mixing": config.mixing or (1.0,), "workers": config.workers, "wording": Wording.of(config, tokenizer)}
    return TrainStream(shards, augment, tokenizer, config.batch_size, seed, config.shuffle_buffer, **share)


def usable_captions(sample: Sample) -> list[str]:
    """Captions that are text and not blank. Raises BadImage if there is none."""
    cells = [text for cell in sample.captions for text in texts_of(cell).texts]
    texts = [text.strip() for text in cells if isinstance(text, str) and text.strip()]
    if not texts:
        other = next((c for c in cells if c is not None and not isinstance(c, str)), None)
        said = "no caption" if other is None else f"the caption is {other!r:.80}, not text"
        if isinstance(other, bytes):  # what encoding it is in, other samples would have to tell
            said = f"the caption is not UTF-8 ({other[:60]!r}); data.streaming=false converts it"
        raise BadImage(f"{sample.name}: {said}")
    return texts


def image_id(data: bytes) -> int:
    return number_of(data) & (2**63 - 1)


def _merge(parts: Sequence[_Part], pin: bool) -> Batch:
    """The parts of all workers, as one worker alone would have brought them."""
    bad = [name for part in parts for name in part.bad]
    batches = [part.batch for part in parts if part.batch is not None]
    if len(batches) == 1 and not pin:
        return batches[0]._replace(bad=bad)
    places = [part.places for part in parts if part.places]
    ranks = np.concatenate(places).argsort().argsort()
    rows = torch.from_numpy(ranks).split(list(map(len, places)))
    width = max(batch.text.shape[1] for batch in batches)

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        found = [tensor.unflatten(0, (len(row), -1)) for row, tensor in zip(rows, tensors, strict=True)]
        whole = torch.empty((len(ranks), *found[0].shape[1:]), dtype=found[0].dtype, pin_memory=pin)
        for row, tensor in zip(rows, found, strict=True):
            whole[row] = tensor
        return whole.flatten(0, 1)

    return Batch(
        joined(batch.image.permute(0, 2, 3, 1) for batch in batches).permute(0, 3, 1, 2),  # channels last in memory
        joined(batch.look for batch in batches),
        joined(pad(batch.text, (0, width - batch.text.shape[1])) for batch in batches),
        joined(batch.image_id for batch in batches),
        joined(batch.text_id for batch in batches),
        None,
        joined(torch.tensor(batch.lengths) for batch in batches).tolist(),
        bad,
    )
