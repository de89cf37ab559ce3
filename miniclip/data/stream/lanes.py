"""The order of a stream: shards over lanes, and the blocks of samples within which a lane shuffles.

The shards of an epoch are permuted, and the epochs follow one another as one endless row of shards. Lanes are dealt
these shards in turn, and the samples of the run are dealt from the lanes in turn. How many lanes there are depends on
the data alone, so the order does not depend on who reads them. A lane that has finished its shard takes its next one
without asking the others: the end of an epoch is blurred, but every epoch has every sample once.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from miniclip.common.stopping import UNREACHED, Passing
from miniclip.data.images import Lost
from miniclip.data.sampler import mix
from miniclip.data.tables.short import ends_early, lost
from miniclip.data.tables.table import Sample, Shard, Unordered, reason

log = logging.getLogger(__name__)

FEWEST, MOST = 24, 96  # lanes; with fewer shards than FEWEST, several lanes share one
BARREN = 50  # shards in a row without a sample, after which a lane gives up

# A lane's position: its how-manieth shard, where the block begins in it, how many samples of the block are handed out
Cursor = tuple[int, int, int]
START: Cursor = (0, 0, 0)


class StreamLost(Passing, ConnectionError):
    """The network failed; nothing says that the data are bad."""

    @classmethod
    def check(cls, name: str, error: Exception) -> None:
        """Raise one if that is what an error means: of a file that is not there, it is not."""
        by_network = type(error).__module__.split(".")[0] in ("aiohttp", "httpx", "httpcore", "requests", "urllib3")
        by_network = by_network or isinstance(error, ConnectionError | TimeoutError)
        by_network = by_network or getattr(error, "errno", None) in UNREACHED
        if by_network and not isinstance(error, FileNotFoundError):
            advice = "run.resume=true goes on from the last checkpoint"
            raise cls(f"{name}: the connection was lost ({reason(error)}); {advice}") from error


class Drawn(NamedTuple):
    """A sample with its place in the data: epoch, shard and row."""

    epoch: int
    shard: int
    row: int
    sample: Sample


def beyond(name: str, shards: Sequence[Shard], rows: int, error: Exception) -> Lost:
    """What a shard lacks that cannot be read beyond so many samples. shards: all of them. Raises StreamLost."""
    StreamLost.check(name, error)
    text = f"{name}: cannot be read beyond sample {rows} ({reason(error)})"
    return lost(text, name, [shard.name for shard in shards], rows, getattr(error, "at", None))


def cut_short(shards: Sequence[Shard]) -> list[Lost]:
    """What those of a pool lack that end early, as `beyond` says it when they are read: so they are, to be counted."""
    found = list[Lost]()
    for shard in shards:
        rows = 0
        try:
            for _ in shard.read() if ends_early(shard.name) else ():
                rows += 1
        except (MemoryError, Unordered):
            raise
        except Exception as error:
            found.append(beyond(shard.name, shards, rows, error))
    return found


def lane_count(shards: int) -> int:
    return min(shards, MOST) if shards >= FEWEST else shards * -(-FEWEST // shards)


class Pool:
    """Shards that are drawn from alike. number: tells several pools apart. buffer: samples of all blocks together.
    sharing: lanes that share a shard; each takes every sharing-th sample of it. groups: lanes that do not."""

    def __init__(self, shards: Sequence[Shard], *, seed: int, number: int, buffer: int) -> None:
        self.shards, self.seed, self.number = shards, seed, number
        self.lanes = lane_count(len(shards))
        self.sharing = max(1, self.lanes // len(shards))
        self.groups = self.lanes // self.sharing
        self.block = max(1, buffer // self.lanes)

    def place(self, group: int, turn: int) -> tuple[int, int]:
        """Epoch and index of the turn-th shard of a group."""
        epoch, place = divmod(turn * self.groups + group, len(self.shards))
        return epoch, _permutation(mix(self.seed, self.number, epoch), len(self.shards))[place]

    def block_length(self, lane: int, start: int) -> int:
        """Of the block from a start on. The first ones in a shard differ, so that not all lanes read at once."""
        return self.block if start else 1 + (self.block - 1) * (lane + 1) // self.lanes


@lru_cache(8)
def _permutation(seed: int, count: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).sample(range(count), count))


class _Pass:
    """One pass over a shard for those of its lanes that this process has. starts: share -> sample to begin with."""

    def __init__(self, shard: Shard, pool: Pool, starts: dict[int, int]) -> None:
        self.samples, self.name, self.sharing, self.starts = shard.read(), shard.name, pool.sharing, starts
        self.shards = pool.shards
        self.queues: dict[int, deque[tuple[int, Sample]]] = {share: deque() for share in starts}
        self.row = 0
        self.error: Lost | None = None

    def next(self, share: int) -> tuple[int, Sample] | None:
        """Row and sample; None after the last. Raises StreamLost."""
        queue = self.queues[share]
        while not queue:
            sample = self._read()
            if sample is None:
                return None
            place, owner = divmod(self.row, self.sharing)
            if owner in self.queues and place >= self.starts[owner]:
                self.queues[owner].append((self.row, sample))
            self.row += 1
        return queue.popleft()

    def _read(self) -> Sample | None:
        try:
            return next(self.samples, None)
        except (MemoryError, Unordered):
            raise
        except Exception as error:  # of tarfile, pyarrow, fsspec, zlib and more
            self.error = beyond(self.name, self.shards, self.row, error)
            log.warning("%s; going on with the next shard", self.error)
            return None


class Group:
    """The lanes of this process that read the same shards, and their passes over those."""

    def __init__(self, pool: Pool, number: int) -> None:
        self.pool, self.number = pool, number
        self.lanes: list[Lane] = []
        self._passes: dict[int, _Pass] = {}

    def a_pass(self, turn: int) -> _Pass:
        if turn not in self._passes:
            # a lane that has left the shard takes no part; one that has yet to come begins at its start
            starts = {lane.share: lane.start if lane.turn == turn else 0 for lane in self.lanes if lane.turn <= turn}
            shard = self.pool.shards[self.pool.place(self.number, turn)[1]]
            self._passes[turn] = _Pass(shard, self.pool, starts)
        return self._passes[turn]

    def close(self, turn: float = math.inf) -> None:
        """Let go of the files before a turn: pyarrow can hang when the interpreter ends with readers open."""
        for done in [one for one in self._passes if one < turn]:
            self._passes.pop(done).samples.close()


class Lane:
    """An endless row of samples, from a cursor on."""

    def __init__(self, number: int, group: Group, cursor: Cursor = START) -> None:
        self.number, self.group, self.pool = number, group, group.pool
        self.share = number // group.pool.groups
        self.turn, self.start, self.done = cursor
        self._block: list[tuple[int, Sample] | None] | None = None
        self._last = False  # whether the shard ends with the block
        self._barren = 0
        group.lanes.append(self)

    @property
    def cursor(self) -> Cursor:
        return self.turn, self.start, self.done

    @property
    def epoch(self) -> int:
        return self.pool.place(self.group.number, self.turn)[0]

    def take(self, bad: list[str]) -> Drawn:
        """The next sample. bad: gains what cannot be read on. Raises StreamLost, or ValueError after BARREN shards."""
        while True:
            block = self._block = self._fill(bad) if self._block is None else self._block
            if self.done < len(block):
                entry, block[self.done] = block[self.done], None  # its bytes are freed with the batch
                assert entry is not None
                self.done += 1
                return Drawn(*self.pool.place(self.group.number, self.turn), *entry)
            self._block, self.start, self.done = None, self.start + len(block), 0
            if self._last:
                self.turn, self.start = self.turn + 1, 0
                self.group.close(min(lane.turn for lane in self.group.lanes))

    def _fill(self, bad: list[str]) -> list[tuple[int, Sample] | None]:
        samples, block = self.group.a_pass(self.turn), list[tuple[int, Sample] | None]()
        length = self.pool.block_length(self.number, self.start)
        while len(block) < length and (entry := samples.next(self.share)) is not None:
            block.append(entry)
        self._last = len(block) < length
        # one lane reports for all, and not again when a resumed run reads the block once more
        if self._last and samples.error is not None and self.share == 0 and self.done == 0:
            bad.append(samples.error)
        self._barren = 0 if block or self.start else self._barren + 1
        if self._barren == BARREN:
            few = f"{samples.name} has too few samples for the {self.pool.sharing} lanes that share it"
            none = f"{BARREN} shards in a row gave no sample, the last: {samples.error or few}"
            raise ValueError(f"{none}; check data.source, or set data.streaming to false")
        random.Random(mix(self.pool.seed, self.pool.number, self.number, self.turn, self.start)).shuffle(block)
        return block
