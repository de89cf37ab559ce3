"""A training split that is read in order, shard by shard, for data that do not fit on the disk.

Position p of a pool of shards is the next sample of lane p modulo its lanes (lanes.py), and step s takes the positions
from s B on, B the global batch. So a batch does not depend on the number of processes and loader workers, nor on where
a run was stopped: the cursors of the lanes are all that there is to remember.

With data.mixing each source is a pool of its own; without it the shards of all sources make up one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.images import BadImage, decode_image
from miniclip.data.loader import Batch, Example, as_it_is, collate, ignore_signals, make_example, token_rows
from miniclip.data.sampler import apportion, mix, number_of
from miniclip.data.stream.lanes import START, Cursor, Drawn, Group, Lane, Pool
from miniclip.data.stream.shards import Sample, Shard, training_shards
from miniclip.models.tokenizer import Tokenizer

HOPELESS = 1000  # bad samples in a row, after which no step would ever be full


class StreamBatch(NamedTuple):
    """cursors: lane -> position after this batch, for the lanes of this process. seen: pairs of all processes since the
    start of the run. epoch: the one that the slowest lane of this process is in."""

    batch: Batch
    cursors: dict[int, Cursor]
    seen: int
    epoch: int


class _Part(NamedTuple):
    """What one worker brings to a batch. places: in the global batch, ascending; without any, batch is None."""

    batch: Batch | None
    places: list[int]
    bad: list[str]
    cursors: dict[int, Cursor]
    epoch: int


class TrainStream:
    """This process's share of every global batch. lanes: of all processes; a checkpoint holds a cursor for each."""

    def __init__(
        self,
        pools: Sequence[Sequence[Shard]],
        augment: Augment,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        buffer: int,
        captions: int = 1,
        mixing: Sequence[float] = (),
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        """pools: shards that are drawn from alike. mixing: share of every batch for each pool.

        Raises ValueError if there is not a lane for each worker, or not a pair for each process.
        """
        self.augment, self.tokenizer = augment, tokenizer
        self.batch_size, self.seed, self.captions, self.mixing = batch_size, seed, captions, list(mixing) or [1.0]
        self.rank, self.world, self.workers, self.pin = rank, world, workers, pin
        share = max(1, buffer // len(pools))
        self.pools = [Pool(shards, seed=seed, number=i, buffer=share) for i, shards in enumerate(pools)]
        self.firsts = [0, *accumulate(pool.lanes for pool in self.pools)]
        self.lanes = self.firsts.pop()
        if len(self.mixing) != len(self.pools):
            raise ValueError(f"{len(self.mixing)} shares for {len(self.pools)} pools of shards; give one for each")
        readers = world * max(1, workers)
        if readers > self.lanes:
            shards = sum(map(len, pools))
            raise ValueError(
                f"{world} processes with {workers} workers each are more than the {self.lanes} lanes into which "
                f"{shards} shards are dealt; use data.workers={self.lanes // world}, fewer processes, or more shards"
            )
        # those of one pool come round after as many steps; of several, nearly all that can happen does in 2,000
        for step in range(min(self.lanes, 100) if len(pools) == 1 else 2000 if world > 1 else 0):
            self.shares_at(step)

    @property
    def layout(self) -> str:
        """Changes when cursors of before mean something else: with the seed, the buffer or the names of the shards."""
        names = [shard.name.rsplit("/", 1)[-1] for pool in self.pools for shard in pool.shards]
        sizes = [(pool.lanes, pool.block, len(pool.shards)) for pool in self.pools]
        return f"{mix(self.seed, number_of(repr((names, sizes)).encode())):016x}"

    def shares_at(self, step: int) -> list[int]:
        """Pairs of each process in a step. Raises ValueError if one has none."""
        counts = np.zeros(self.world, dtype=np.int64)
        for pool, first, (start, stop) in zip(self.pools, self.firsts, self._positions(step), strict=True):
            owners = (first + np.arange(start, stop) % pool.lanes) % self.world
            counts += np.bincount(owners, minlength=self.world)
        if counts.min() < 1:
            raise ValueError(
                f"data.batch_size={self.batch_size} leaves process {int(counts.argmin())} of {self.world} without a "
                f"pair in step {step}; use at least {2 * self.world * len(self.pools)}, or fewer processes"
            )
        return [int(count) for count in counts]

    def batches(
        self, first_step: int, steps: int, cursors: Mapping[int, Cursor] | None = None
    ) -> Iterator[StreamBatch]:
        """From first_step until steps. cursors: as of first_step, of the lanes of all processes; none at the start.

        Raises ValueError if they are of other data, StreamLost if the network fails.
        """
        if cursors is None:
            cursors = dict.fromkeys(range(self.lanes), START)
        if cursors.keys() != set(range(self.lanes)):
            raise ValueError(
                f"the checkpoint knows the positions of {len(cursors)} lanes, and the data have {self.lanes}; go on "
                "with the shards that the run began with, or start a new run"
            )
        parts: Iterator[_Part] = iter(
            DataLoader(
                _Reader(self, first_step, steps, cursors),
                batch_size=None,
                collate_fn=as_it_is,
                worker_init_fn=ignore_signals,
                num_workers=self.workers,
            )
        )
        for step in range(first_step, steps):
            mine = [next(parts) for _ in range(max(1, self.workers))]
            epoch = min(part.epoch for part in mine)
            after = {lane: cursor for part in mine for lane, cursor in part.cursors.items()}
            yield StreamBatch(_merge(mine, self.pin), after, (step + 1) * self.batch_size, epoch)

    def _positions(self, step: int) -> list[tuple[int, int]]:
        """Of each pool, its positions in a step."""
        start, stop = (apportion(s * self.batch_size, self.mixing) for s in (step, step + 1))
        return list(zip(start, stop, strict=True))

    def parts(
        self, worker: int, workers: int, first_step: int, steps: int, cursors: Mapping[int, Cursor]
    ) -> Iterator[_Part]:
        """What a worker brings to each step."""
        lanes = self._own_lanes(worker, workers, cursors)
        try:
            for step in range(first_step, steps):
                yield self._part(lanes, step)
        finally:
            for lane in lanes.values():
                lane.group.close()

    def _part(self, lanes: Mapping[int, Lane], step: int) -> _Part:
        examples: list[Example] = []
        places: list[int] = []
        bad: list[str] = []
        place = 0
        for pool, first, (start, stop) in zip(self.pools, self.firsts, self._positions(step), strict=True):
            for position in range(start, stop):
                lane = lanes.get(first + position % pool.lanes)
                if lane is not None:
                    examples.append(self._next(lane, bad))
                    places.append(place)
                place += 1
        batch = collate(examples, None, []) if examples else None
        after = {number: lane.cursor for number, lane in lanes.items()}
        return _Part(batch, places, bad, after, min(lane.epoch for lane in lanes.values()))

    def _own_lanes(self, worker: int, workers: int, cursors: Mapping[int, Cursor]) -> dict[int, Lane]:
        lanes: dict[int, Lane] = {}
        groups: dict[tuple[int, int], Group] = {}
        for number in range(self.rank, self.lanes, self.world)[worker::workers]:
            which = max(i for i, first in enumerate(self.firsts) if first <= number)
            pool, local = self.pools[which], number - self.firsts[which]
            key = which, local % pool.groups
            group = groups.setdefault(key, Group(pool, key[1]))
            turn, start, done = cursors[number]
            lanes[number] = Lane(local, group, (turn, start, done))
        return lanes

    def _next(self, lane: Lane, bad: list[str]) -> Example:
        for _ in range(HOPELESS):
            drawn = lane.take(bad)
            try:
                return self._example(lane.pool.number, drawn)
            except BadImage as error:
                bad.append(str(error))
        raise BadImage(
            f"{HOPELESS} samples in a row cannot be used, the last: {bad[-1]}; check data.image_column and "
            "data.caption_column"
        )

    def _example(self, pool: int, drawn: Drawn) -> Example:
        """Raises BadImage if the sample cannot be used."""
        sample = drawn.sample
        texts = usable_captions(sample)
        if sample.picture is None:
            raise BadImage(f"{sample.name}: holds no picture")
        # as open_source does: a JPEG may be decoded at twice the side, no more is used
        image = decode_image(sample.picture, sample.name, at_least=2 * self.augment.image_size)
        stored = np.asarray(self.augment.store(image))
        rng = random.Random(mix(self.seed, pool, drawn.epoch, drawn.shard, drawn.row))
        tokens = token_rows(self.tokenizer, texts)
        return make_example(stored, tokens, picture_id(sample.picture), self.augment, self.captions, rng)


class _Reader(IterableDataset[_Part]):
    def __init__(self, stream: TrainStream, first_step: int, steps: int, cursors: Mapping[int, Cursor]) -> None:
        self.stream, self.first_step, self.steps, self.cursors = stream, first_step, steps, cursors

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if info is not None:
            import fsspec.asyn  # type: ignore[import-untyped]

            fsspec.asyn.reset_lock()  # the thread that the parent reads URLs with has not been forked
        yield from self.stream.parts(worker, workers, self.first_step, self.steps, self.cursors)


def open_stream(
    config: DataConfig,
    augment: Augment,
    tokenizer: Tokenizer,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> TrainStream:
    """The training split of a configuration. Raises ValueError or FileNotFoundError that names the option to change."""
    pools = training_shards(config)
    return TrainStream(
        pools if config.mixing else [[shard for shards in pools for shard in shards]],
        augment,
        tokenizer,
        batch_size=config.batch_size,
        seed=seed,
        buffer=config.shuffle_buffer,
        captions=config.captions_per_image,
        mixing=config.mixing or (),
        rank=rank,
        world=world,
        workers=config.workers,
        pin=pin,
    )


def usable_captions(sample: Sample) -> list[str]:
    """Captions that are text and not blank. Raises BadImage if there is none."""
    cells = [text for cell in sample.captions for text in (cell if isinstance(cell, list) else [cell])]
    texts = [text.strip() for text in cells if isinstance(text, str) and text.strip()]
    if not texts:
        other = next((c for c in cells if c is not None and not isinstance(c, str)), None)
        raise BadImage(
            f"{sample.name}: " + ("no caption" if other is None else f"the caption is {other!r:.80}, not text")
        )
    return texts


def picture_id(data: bytes) -> int:
    """In [0, 2^63), equal for equal bytes."""
    return number_of(data) & (2**63 - 1)


def _merge(parts: Sequence[_Part], pin: bool) -> Batch:
    """The parts of all workers, as one worker alone would have brought them."""
    bad = [name for part in parts for name in part.bad]
    full = [(part.batch, part.places) for part in parts if part.batch is not None]
    if len(full) == 1 and not pin:
        return full[0][0]._replace(bad=bad)
    batches = [batch for batch, _ in full]
    order = np.argsort(np.concatenate([places for _, places in full]))
    where = np.empty_like(order)
    where[order] = np.arange(len(order))
    rows = torch.from_numpy(order)
    width = max(batch.text.shape[1] for batch in batches)
    text = torch.cat([torch.nn.functional.pad(batch.text, (0, width - batch.text.shape[1])) for batch in batches])

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        found = torch.cat(list(tensors))[rows]
        return found.pin_memory() if pin else found

    shape = (len(order), *batches[0].image.permute(0, 2, 3, 1).shape[1:])
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)  # b h w c, each copied once to its place
    start = 0
    for batch in batches:
        size = len(batch.image)
        pixels[torch.from_numpy(where[start : start + size])] = batch.image.permute(0, 2, 3, 1)
        start += size
    captions = len(text) // len(order)
    ordered = text.view(len(order), captions, width)[rows].flatten(0, 1)
    lengths = np.concatenate([batch.lengths for batch in batches]).reshape(len(order), captions)[order]
    return Batch(
        pixels.permute(0, 3, 1, 2),
        joined([batch.look for batch in batches]),
        ordered.pin_memory() if pin else ordered,
        joined([batch.image_id for batch in batches]),
        joined([batch.text_id for batch in batches]),
        None,
        lengths.flatten().tolist(),
        bad,
    )
