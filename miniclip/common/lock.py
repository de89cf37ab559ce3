"""Folders that one process writes into: a second one is told who does.

The lock is the kernel's, on FOLDER/.lock, and goes with its process however that ends; the file says whose it is.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from miniclip.common.durable import make_folder

LOCK = ".lock"
LEASE = 120  # seconds; a server of NFS keeps the locks of a host that has died for 90

log = logging.getLogger(__name__)


class Taken(RuntimeError):
    """Another process writes into the folder. The message is who: process, host and since when."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A context that no other process enters for the same folder, which is made, and goes again if it is left empty.

    Raises Taken. Windows has no such lock; a disk that has none is named in a warning.
    """
    made, handle = [path for path in (folder, *folder.absolute().parents) if not path.exists()], None
    try:
        make_folder(folder)
        handle = None if os.name == "nt" else _locked(folder / LOCK)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
            os.close(handle)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _locked(file: Path) -> int:
    """The handle that holds the lock. The process must open the file nowhere else: closing it there ends the lock."""
    import fcntl

    deadline, here = time.monotonic() + LEASE, socket.gethostname()
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # lockf, not flock: that one would live on with workers that were forked, after the death of this process
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                who = os.read(handle, 1000).decode(errors="replace").strip() or "another process"
                os.close(handle)
                if f" on {here} " in who or time.monotonic() > deadline:
                    raise Taken(who) from error
                log.warning(
                    "%s writes into %s: waiting up to %d s, in case that host has died", who, file.parent, LEASE
                )
                time.sleep(1)
                continue
            log.warning("%s cannot be locked (%s): see to it that no second run starts there", file, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), file.stat()):
                break
        os.close(handle)  # one that ended in between has taken the file along
    with suppress(OSError):  # a full disk: the first thing that matters says so
        os.ftruncate(handle, 0)
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        os.write(handle, f"process {os.getpid()} on {here} since {now}\n".encode())
    return handle
