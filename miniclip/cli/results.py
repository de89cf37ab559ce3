"""The folder of a command's results: it gets them when they are whole and on the disk, and loses nothing but its own.

They are made in a hidden folder, which a killed command leaves to the next one to clear away. names: of the record, by
which a folder is known, and of the files beside it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from miniclip.common.arguments import check_folder
from miniclip.common.durable import make_folder, remove, removed_on_failure, sync, sync_tree
from miniclip.common.printing import first_few
from miniclip.common.runs import CONFIG

Standing = dict[str, Any]  # what a record holds
Mine = Callable[[Standing], bool]  # whether new results may take the place of those


def check_out(folder: Path, names: Sequence[str], mine: Mine) -> None:
    """Raise ValueError or OSError if --out cannot be written to, or holds anything but results that are mine."""
    check_folder("--out", folder)
    before = _record(folder / names[0])
    if (folder / CONFIG).is_file() or "training" in before:
        raise ValueError(f"--out {folder} is a run, and its results.json tells of the training; name another folder")
    if before and not mine(before):
        told = f" (of {before['time']}: {before['command']})" if {"time", "command"} <= before.keys() else ""
        raise ValueError(f"--out {folder} holds other results{told}; name another folder, or remove those")
    others = sorted(path.name for path in folder.glob("[!.]*"))
    if others and not before:
        raise ValueError(f"--out {folder} holds other things ({first_few(others)}); name a folder for the results")


def put_results(
    folder: Path, others: Iterable[Path], names: Sequence[str], mine: Mine, write: Callable[[Path], None]
) -> tuple[Path, Standing]:
    """Put what write makes into the first of folder and the others that is free, or whose record is mine.

    Returns that place, and what the record there held. Of two commands at once each finds what the other has put there.
    Raises ValueError if no place is left, and DiskFull.
    """
    make_folder(folder.parent)
    home = folder if folder.is_dir() else folder.parent  # a folder may be a disk of its own
    part = home / f".{folder.name}.{secrets.token_hex(4)}.unfinished"
    with ExitStack() as held, removed_on_failure(part, folder):
        with locked(folder.parent):
            for left_over in home.glob(".*.unfinished"):
                with locked(left_over, wait=False) as dead:
                    if dead:
                        remove(left_over)
            part.mkdir()
            held.enter_context(locked(part, wait=False))
        write(part)
        sync_tree(part)
        with locked(folder.parent):
            for place in chain([folder], others):
                before = _record(place / names[0])
                ours = {*names, *(path.name for path in part.iterdir())}
                if mine(before) if before else not any((place / name).exists() for name in ours):
                    _move(part, place, names)
                    return place, before
        raise ValueError(f"{folder} holds other results by now; name another folder")


def _record(path: Path) -> Standing:
    """The JSON object in a file; empty if there is no file, and {"time": None} if it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) and values else {"time": None}


def _move(part: Path, place: Path, names: Sequence[str]) -> None:
    """The record goes first and comes last: without it a folder does not look finished."""
    if place.is_dir():
        for name in names:
            remove(place / name)
        for path in sorted(part.iterdir(), key=lambda path: path.name == names[0]):
            path.replace(place / path.name)
        sync(place)
        part.rmdir()
    else:
        part.rename(place)
    sync(place.parent)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Whether no other process has the folder now, as far as the disk can tell; it goes free with the process."""
    if os.name == "nt":
        yield False
        return
    import fcntl

    with ExitStack() as held:
        try:
            held.callback(os.close, handle := os.open(folder, os.O_RDONLY))
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except OSError:  # another has it, has just removed it, or the disk knows no locks
            free = False
        yield free
