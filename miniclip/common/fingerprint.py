"""A short name for the state of data, the same in every process: it changes when what would be read changes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def digest(*parts: object) -> str:
    """32 hexadecimal digits of the parts in their order: bytes as they are, all else as str."""
    seen = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        seen.update(len(data).to_bytes(8, "little"))  # so that ("ab", "c") is not ("a", "bc")
        seen.update(data)
    return seen.hexdigest()


def stamp(path: str | Path) -> str:
    """Size and time of change of a file, "absent" if it cannot be looked at; it is not opened."""
    try:
        found = os.stat(path)  # noqa: PTH116, as Path takes twice the time, for every image
    except (OSError, ValueError):  # a null byte in the path
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns}"


def file_size(path: str | Path) -> int:
    """In bytes; -1 of a file that cannot be looked at, such as one far away."""
    found = stamp(path)
    return -1 if found == "absent" else int(found.split()[0])
