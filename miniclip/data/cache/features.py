"""What a locked tower makes of the data, worked out once, in files that are mapped into memory.

    FOLDER/values       float32, row after row; those of a part count from when the part is marked
    FOLDER/0007.done    CRC-32 of a part, from when it is on the disk
    FOLDER/about.json   what it is, for people who tidy up

FOLDER is named by all that the values depend on, so that it cannot be out of date. Whatever ends the work, the next
goes on from the parts that are marked, and any number of processes that see the folder share the others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from miniclip.common.durable import DiskFull, free_space, make_folder, means_full, sync, whole_file
from miniclip.common.fingerprint import digest
from miniclip.common.peers import check
from miniclip.data.cache.prepared import cache_folder

log = logging.getLogger(__name__)

FORMAT = 1  # of the files; a change makes every older folder another one
PART = 512  # items in a part, at least
MOST_PARTS = 2048
ADVICE = "set data.cache_dir to another folder, or data.cache to false"
_VALUES = "values"


class Features:
    """(rows, *shape) float32, mapped read-only; cheap to pickle: a process that unpickles it maps the file itself."""

    def __init__(self, file: Path, rows: int, shape: Sequence[int]) -> None:
        self._given = file, rows, tuple(shape)
        self._values = np.asarray(np.memmap(file, np.float32, "r", shape=(rows, *shape)))

    def __len__(self) -> int:
        return len(self._values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row."""
        return self._given[2]

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """rows: (n,) integers -> (n, *shape), a copy."""
        return torch.from_numpy(self._values[rows])

    def __reduce__(self) -> tuple[Any, ...]:
        return Features, self._given


def worked_out(
    make: Callable[[range, Callable[[int], object]], Tensor],
    ends: np.ndarray,
    shape: Sequence[int],
    *,
    key: Sequence[object],
    folder: str | Path | None,
    label: str,
    progress: bool,
) -> tuple[Features, float]:
    """The features that key names, and the seconds that this process needed for those that were not there.

    make: some items, and what is to be told how many more are done -> (their rows, *shape) float32. ends: (items + 1,)
    integers, the row that each item begins with, and the end. key: all that the features depend on. folder:
    data.cache_dir. label: for messages. Every process that shares the folder may call it at once, and each takes the
    parts that no other is at. Raises DiskFull or ValueError, with advice, if the folder cannot be written.
    """
    directory = cache_folder(folder) / "features" / digest(FORMAT, *key, ends.tobytes(), *shape)
    work = _Work(directory, label, ends, 4 * math.prod(shape))
    with _writing(directory):
        work.check()
    began = time.monotonic()
    if missing := work.missing():
        with _writing(directory):
            work.begin()
        _share(work, make, progress)
    return Features(directory / _VALUES, int(ends[-1]), shape), time.monotonic() - began if missing else 0.0


def _share(work: _Work, make: Callable[..., Tensor], progress: bool) -> None:
    from tqdm import tqdm

    total = len(work.ends) - 1
    with tqdm(total=total, desc=work.label, unit="", leave=False, disable=not progress, smoothing=0.1) as bar:
        while missing := work.missing():
            found = False
            for part in missing:
                with work.claimed(part) as free:
                    if free:
                        bar.n = total - sum(len(work.parts[i]) for i in work.missing())
                        bar.refresh()
                        values = make(work.parts[part], bar.update)
                        with _writing(work.directory):
                            work.keep(part, values)
                        found = True
            if not found:  # the rest is in other hands; should one of them be lost, its part is free again
                check()
                time.sleep(0.2)
    work.tidy()


class _Work:
    """The parts of one folder. ends: as in worked_out. width: bytes of a row. parts: the items of each. spans: where
    its bytes begin and end."""

    def __init__(self, directory: Path, label: str, ends: np.ndarray, width: int) -> None:
        self.directory, self.label, self.ends = directory, label, ends
        every, size = range(len(ends) - 1), max(PART, math.ceil((len(ends) - 1) / MOST_PARTS))
        self.parts = [every[start : start + size] for start in every[::size]]
        self.spans = [(int(ends[part.start]) * width, int(ends[part.stop]) * width) for part in self.parts]

    def missing(self) -> list[int]:
        return [part for part in range(len(self.spans)) if not self._mark(part).exists()]

    def check(self) -> None:
        """Let go of parts that are not as they were written."""
        wrong = [p for p in range(len(self.spans)) if self._mark(p).exists() and not self._is_whole(p)]
        if wrong:
            log.warning("%s: %d parts in %s are damaged; made again", self.label, len(wrong), self.directory)
        for part in wrong:
            self._mark(part).unlink(missing_ok=True)

    def _is_whole(self, part: int) -> bool:
        start, end = self.spans[part]
        try:
            data = np.memmap(self.directory / _VALUES, np.uint8, "r", start, (end - start,))
            return self._mark(part).read_bytes() == _sum(data.data)
        except (OSError, ValueError):  # a file that is too short
            return False

    def begin(self) -> None:
        """Make the file, if there is room for what is missing."""
        needed = sum(end - start for start, end in (self.spans[part] for part in self.missing()))
        free = free_space(self.directory)
        if needed > free:
            takes = f"{self.label} take {needed / 1e9:.2g} GB"
            raise DiskFull(f"{takes}, and {free / 1e9:.2g} GB are free in {self.directory.parent}; {ADVICE}")
        make_folder(self.directory)
        if not (self.directory / "about.json").exists():
            about = {"label": self.label, "bytes": self.spans[-1][1], "made": time.strftime("%Y-%m-%d")}
            (self.directory / "about.json").write_text(json.dumps(about), encoding="utf-8")
        with (self.directory / _VALUES).open("ab") as file:
            if os.fstat(file.fileno()).st_size != self.spans[-1][1]:
                file.truncate(self.spans[-1][1])

    @contextmanager
    def claimed(self, part: int) -> Iterator[bool]:
        """Whether nobody else is at a part, nor has done it; nobody else gets it while the context lasts."""
        lock = FileLock(self.directory / f"{part:04d}.lock")
        with _writing(self.directory), suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield lock.is_locked and not self._mark(part).exists()
        finally:
            lock.release()

    def keep(self, part: int, values: Tensor) -> None:
        data = np.ascontiguousarray(values.numpy(), dtype=np.float32).reshape(-1).view(np.uint8).data
        start, end = self.spans[part]
        if len(data) != end - start:
            raise AssertionError(f"part {part} has {len(data)} bytes, not {end - start}")
        # written, not by way of the mapped file: a full disk is then an error, and not the end of the process
        with (self.directory / _VALUES).open("r+b", buffering=0) as file:
            file.seek(start)
            left = data
            while left:
                left = left[file.write(left) :]
        sync(self.directory / _VALUES)
        with whole_file(self._mark(part)) as new:
            new.write_bytes(_sum(data))

    def tidy(self) -> None:
        for lock in self.directory.glob("*.lock"):
            with suppress(OSError):
                lock.unlink()

    def _mark(self, part: int) -> Path:
        return self.directory / f"{part:04d}.done"


def _sum(data: memoryview) -> bytes:
    return b"%d\n" % zlib.crc32(data)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Errors of the disk, with advice."""
    try:
        yield
    except DiskFull as error:
        raise error if ADVICE in str(error) else DiskFull(f"{error}; or {ADVICE}") from error
    except OSError as error:
        kind = DiskFull if means_full(error) else ValueError
        raise kind(f"features cannot be written to {directory.parent}: {error}; {ADVICE}") from error
