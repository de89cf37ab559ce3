"""Small file systems of the tests' own, which can be full and can be copied as a power cut would leave them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, *words: str | Path) -> Iterator[Path]:
    """What `mount` with these words has at a place; the test is skipped where that is not permitted."""
    if sys.platform != "linux":
        pytest.skip("small file systems are mounted on Linux alone")
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *words, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no permission to mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def in_memory(place: Path, megabytes: int) -> Iterator[Path]:
    with mounted(place, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs") as disk:
        yield disk


def fill(disk: Path) -> Path:
    """A file that takes all the space there is left; remove it to make room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            return filler
