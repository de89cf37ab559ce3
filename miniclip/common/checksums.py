"""Checksums of a folder's files: whether a disk, or a copy, gives back what was written.

CRC-32, the cheapest that finds every flipped bit: it is there for accidents, not for people.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"
_BLOCK = 1 << 20  # bytes


def write_checksums(folder: Path) -> None:
    """Write checksums.json: size and checksum of each file in folder itself, as it stands. It is not synced."""
    sums = {path.name: _of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path, wanted: Callable[[str], bool] = bool) -> str:
    """The first file that is not as it was written, and what is wrong with it; empty if all are, or none can say.

    wanted: whether to look at the file of a name. A folder that has no checksums is taken as it is.
    """
    try:
        text = (folder / CHECKSUMS).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        sums = json.loads(text)
        for name, expected in sums.items():
            if wanted(name) and (wrong := _difference(folder / name, expected)):
                return f"{folder / name} {wrong}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / CHECKSUMS} is damaged"
    return ""


def _difference(path: Path, expected: dict[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes of {expected['bytes']}"
        return "has flipped bits" if _of(path) != expected else ""
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _of(path: Path) -> dict[str, Any]:
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return {"bytes": size, "crc32": f"{crc:08x}"}
