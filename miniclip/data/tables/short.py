"""What a file that ends before its time lacks: tars and Parquet files that were cut, or are damaged in the middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from miniclip.common.fingerprint import file_size
from miniclip.data.images import Lost
from miniclip.data.tables.source import is_url
from miniclip.data.tables.table import base_of

MOST_ZEROS = 1 << 20  # bytes at the end of a tar, which is filled up to the size of its blocks
_ASKED = 8  # neighbours of a file that says nothing of itself


def lost(text: str, name: str, names: Sequence[str], rows: int, at: int | None = None) -> Lost:
    """What a file lacks of which rows samples can be read, behind a text. at: bytes of them, if not all of the file.

    What it should have held is told by itself (a Parquet file), by what img2dataset (NNNNN_stats.json) or open_clip
    (sizes.json) writes beside it, or by its neighbours: a Parquet file holds as many as one of them, a tar as many more
    as the largest of them is larger. Where nothing tells, it holds half of them. names: itself and its neighbours.
    """
    held = _known_rows(name)
    if held is None and name.endswith(".parquet"):
        held = next((told for other in names[:_ASKED] if (told := _known_rows(other)) is not None), None)
    elif held is None:
        size, largest = (max(0, *map(file_size, some)) for some in ([name], names))
        at = size if at is None else at
        if largest > size or rows * (size - at) > 2 * at:  # not only what the last samples take that are cut
            held = round(rows * largest / at) if at else None
    images = max(1, rows if held is None else held - rows)
    many = f": about {images} samples are lost" if images > 1 else ""
    return Lost(text + many, images, (rows + images) * len(names))


def ends_early(name: str) -> bool:
    """Whether a file here may end before a tar or a Parquet file does; nothing but a few places of it are looked at."""
    if is_url(name) or not Path(name).is_file():
        return False
    with Path(name).open("rb") as file:
        first, size = file.read(6), file.seek(0, 2)
        file.seek(-min(512, size), 2)
        last = file.read()
        file.seek(max(0, size - MOST_ZEROS - 512))
        nothing = size > MOST_ZEROS and not file.read(512).strip(b"\0")
    if name.endswith(".parquet"):
        return last[-4:] not in (b"PAR1", b"PARE")
    # a tar ends in a block of zeros, and in not too many; of an empty file there is none
    return name.endswith(".tar") and not compressed(first) and (size % 512 != 0 or last != bytes(512) or nothing)


def compressed(first: bytes) -> bool:
    """first: six bytes of a file."""
    return first.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _known_rows(name: str) -> int | None:
    with suppress(Exception):  # whatever is not there, or says something else
        if name.endswith(".parquet") and not is_url(name):
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(name).num_rows)
    path = Path(name)
    with suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads(path.with_name(f"{path.stem}_stats.json").read_bytes())["successes"])
    with suppress(OSError, ValueError, TypeError, KeyError):
        return int(json.loads(path.with_name("sizes.json").read_bytes())[base_of(name)])
    return None
