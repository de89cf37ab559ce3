"""Trainings that are started to be troubled: their processes, and file systems that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil


def until(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait for a condition; whether it came."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.002)
    return bool(found)


@contextmanager
def full(folder: Path, spare: int) -> Iterator[None]:
    """Leave so many bytes free on a file system, until the context ends."""
    filler = folder / "filler"
    try:
        with filler.open("wb") as file, suppress(OSError):  # others write, too
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(folder).free - spare))
        yield
    finally:
        filler.unlink(missing_ok=True)


def mount(folder: Path, megabytes: int) -> None:
    """A file system in memory, at a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def flip_bit(file: Path, bit: int | None = None) -> None:
    """As a disk does it: in the file itself, by whatever names; without a number, one in the middle."""
    content = bytearray(file.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    with file.open("r+b") as stream:
        stream.write(content)


class Start:
    """One start of train.py, alone or by a launcher. log: the file that takes what it writes."""

    def __init__(self, words: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log, self._mark = log, uuid.uuid4().hex
        given: dict[str, Any] = {"env": {**environment, "SOAK": self._mark}, "start_new_session": True}
        with log.open("w") as file:
            self.process = psutil.Popen(words, stdout=file, stderr=file, **given)

    def ended(self, seconds: float = 0) -> bool:
        return until(lambda: self.process.poll() is not None, seconds)

    def alive(self) -> list[psutil.Process]:
        """Every process that descends from it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SOAK") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        return [self.process] if "--nproc_per_node" not in self.process.args else _children(self.process)

    def workers(self) -> list[psutil.Process]:
        """Those of their loaders."""
        return [worker for rank in self.ranks() for worker in _children(rank)]

    def kill(self) -> None:
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()


def _children(process: psutil.Process) -> list[psutil.Process]:
    """Without Python's own helpers."""
    with suppress(psutil.Error):
        return [p for p in process.children() if any(word.endswith("train.py") for word in p.cmdline())]
    return []
