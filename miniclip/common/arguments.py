"""What the commands share: how they refuse, and what they ask of their arguments before the long work."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from miniclip.common.printing import one_line, printable

# how torch on a CPU and the system, CUDA and MPS say it
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong. program: what that line begins with."""

    program = ""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.program}: error: {printable(message)}; see {self.prog} --help\n")


def exit_code(program: str, action: Callable[[], None], less_memory: str = "use a smaller set, or more memory") -> int:
    """Run a command: 0, 2 after one line on stderr for what cannot be done as asked, or 130 if it was interrupted.

    less_memory: what to do where memory runs out.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a caption that the terminal cannot show costs no results
    try:
        with advised(less_memory):
            action()
    except (ValueError, OSError, MemoryError) as error:
        print(f"{program}: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def out_of_memory(error: Exception) -> bool:
    """Whether that is what it says, of the machine's memory or its device's."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return said or isinstance(error, MemoryError)


@contextmanager
def advised(less_memory: str) -> Iterator[None]:
    """Where memory runs out, of the machine or of its device, raise MemoryError with one line of advice."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise MemoryError(f"out of memory ({one_line(str(error), 150)}); {less_memory}") from error


def check_output(option: str, target: str) -> None:
    """Raise ValueError or OSError if a file cannot be written there; option: what the message calls it."""
    path = Path(target)
    if path.is_dir():
        raise ValueError(f"{option} {target} is a folder; name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {target}: the folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{option} {target}: no permission to write there")


def check_folder(option: str, folder: Path) -> None:
    """Raise ValueError or OSError if files cannot be written into that folder, or it cannot be made there."""
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    if not standing.is_dir():
        raise ValueError(f"{option} {folder}: {standing} is a file; name a folder")
    if not os.access(standing, os.W_OK):
        raise PermissionError(f"{option} {folder}: no permission to write in {standing}")


def share(text: str) -> float:
    """An argparse type, of numbers from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} must lie in [0, 1]")
    return value


def at_least(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """An argparse type, of integers from lowest to highest."""

    def number(text: str) -> int:
        value = int(text)
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} must be at least {lowest}")
        if highest is not None and value > highest:
            raise argparse.ArgumentTypeError(f"{value} must be at most {highest}")
        return value

    return number
