"""Files and folders that outlive a power cut: they get their names when they are whole, and on the disk.

What a write leaves unfinished ends in .part, and the next write of the same name clears it away.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from miniclip.common.stopping import FULL, Passing

_SPARE = 1 << 20  # bytes; with fewer free, a write that failed without a cause failed for want of them


class DiskFull(Passing, OSError):
    """A disk, or a share of it, has no room for what was to be written. The message names both, and what is free."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path of the same name to write to, with any library; that file then takes the place of `path`, synced.

    Whatever ends the write, path holds what it held or all of the new, as readable as other files; a link is replaced,
    not followed. What is no file, such as /dev/stdout or a pipe, is itself what is written to. Raises DiskFull.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(f"{path.name}.part")
    remove(part)
    with removed_on_failure(part, path):
        part.mkdir()  # a folder, for some libraries put files of their own beside what they write
        new = part / path.name
        new.touch()
        mode = new.stat().st_mode  # and some make it private
        yield new
        if new.stat().st_mode != mode:
            new.chmod(mode)
        sync(new)
        new.replace(path)
        shutil.rmtree(part)
        sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `path`, synced with all that is in it. Raises DiskFull.

    A process that is killed while one takes the other's place leaves the former as .old.
    """
    part = path.with_name(f"{path.name}.part")
    remove(part)
    with removed_on_failure(part, path):
        make_folder(part)
        yield part
        put_in_place(part, path)


def put_in_place(part: Path, path: Path) -> None:
    """Sync the folder part and give it the name of path; what that named is called .old until it is done."""
    old = path.with_name(f"{path.name}.old")
    sync_tree(part)
    if path.exists():  # else the only one is old, of a process that was killed here
        remove(old)
        path.replace(old)
    part.replace(path)
    sync(path.parent)
    remove(old)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, all of it or nothing; only the name of a new one is synced. Raises DiskFull."""
    with disk_full_named(path), path.open("ab", buffering=0) as file:
        size, left = file.tell(), memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise
        if not size:
            sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder that may exist, and those above it that do not, so that the disk holds their names."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # which opens no folders
        return
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # some network disks sync no folders, and one may be written to but not read
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def sync_tree(folder: Path) -> None:
    """The files and folders in a folder, then itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def remove(path: Path) -> None:
    """A file or folder, if it is there; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def clear_parts(*folders: Path) -> None:
    """Remove what writes into these folders left when they were cut off, which lies in folders."""
    for folder in folders:
        for part in folder.glob("*.part"):
            shutil.rmtree(part, ignore_errors=True)


def free_space(folder: Path) -> int:
    """Bytes that this user may still write at a path, whether it exists or not."""
    standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(standing).free


def means_full(error: BaseException | None) -> bool:
    """Whether the system says that there is no room left on a disk."""
    return getattr(error, "errno", None) in FULL


@contextmanager
def removed_on_failure(part: Path, path: Path) -> Iterator[None]:
    """Around what fills part, a file or folder that is to become path: cleared away after a failure.

    Raises DiskFull where the failure is for want of space, whatever a library makes of that.
    """
    try:
        yield
    except BaseException as error:
        # safetensors has words for it alone, and torch only says that it failed
        told = means_full(error) or any(os.strerror(number) in str(error) for number in FULL)
        full = told or (isinstance(error, RuntimeError) and free_space(part) < _SPARE)  # asked before there is room
        remove(part)
        if full:
            raise _full(path) from error
        raise


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Around what libraries write at path: raises DiskFull where their error says that it is full.

    One in a thread of theirs is not printed, for the next call raises it.
    """
    former = threading.excepthook
    threading.excepthook = lambda told: None if means_full(told.exc_value) else former(told)
    try:
        yield
    except Exception as error:
        # what comes after it, such as an end of files that were never begun, says less
        chain = list(_chain(error))
        if told := [one for one in chain if isinstance(one, DiskFull)]:
            raise told[-1] from None
        found = [one for one in chain if means_full(one)]
        if found and not isinstance(error, Passing):  # such as of shared memory, which is no disk
            place = getattr(found[-1], "filename", None)
            if not place and free_space(path) > _SPARE:
                raise DiskFull(f"{found[-1]}, but on that of {path}: look for temporary and cached files") from error
            raise _full(Path(place or path)) from error
        raise
    finally:
        threading.excepthook = former


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def _full(path: Path) -> DiskFull:
    return DiskFull(f"no space left to write {path} ({free_space(path) / 1e6:.1f} MB free there); make room")
