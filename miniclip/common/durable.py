"""Files and folders that outlive a power cut: they get their names when they are whole, and on the disk.

What a write leaves unfinished ends in .part, and the next write of the same name clears it away.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from miniclip.common.stopping import Passing

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPARE = 1 << 20  # bytes; with fewer free, a write that failed without a cause failed for want of them


class DiskFull(Passing, OSError):
    """A disk, or a share of it, has no room for what was to be written. The message names both, and what is free."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to, with any library; then that file takes the place of `path`, synced, as readable as others.

    Whatever ends the write, path holds what it held or all of the new. Raises DiskFull.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with _of_disk(path):
        try:
            part.unlink(missing_ok=True)
            part.touch()
            mode = part.stat().st_mode  # libraries make private files
            yield part
            part.chmod(mode)
            sync(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `path`, synced with all that is in it. Raises DiskFull.

    A process that is killed while one takes the other's place leaves the former as .old.
    """
    part, old = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.old")
    with _of_disk(path):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            put_in_place(part, path, old)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def put_in_place(part: Path, path: Path, old: Path) -> None:
    """Sync the folder part and give it the name of path; what that named is called old until it is done."""
    sync_tree(part)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    part.replace(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    folder = path.is_dir()
    if folder and os.name == "nt":  # which opens no folders
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """The files and folders in a folder, then itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def free_space(folder: Path) -> int:
    """Bytes that this user may still write at a path, whether it exists or not."""
    standing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(standing).free


@contextmanager
def _of_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        # torch and safetensors tell of it in their own ways, or not at all
        full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
        if not full and (isinstance(error, ValueError) or free_space(path.parent) > _SPARE):
            raise
        free = free_space(path.parent) / 1e6
        raise DiskFull(f"no space left to write {path} ({free:.1f} MB free there); make room") from error
