"""The picture column of a table: its pictures by row, decoded one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.data.images import BadImage, decode_image, leaves_folder, path_inside
from miniclip.data.tables import ArrowTable, Table


class TextLists:
    """Many short lists of strings in two arrays and one blob: small, and shared by forked workers without copies."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        encoded: list[bytes] = []
        counts = [0]
        for texts in lists:
            encoded.extend(text.encode("utf-8", "surrogatepass") for text in texts)
            counts.append(len(encoded))
        self._first = np.array(counts, dtype=np.int64)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._blob = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> list[str]:
        first, last = self._first[index], self._first[index + 1]
        ends = self._ends[first : last + 1].tolist()
        return [self._blob[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]


@dataclass(frozen=True)
class FilePictures:
    """Pictures given as paths relative to the folder of their table. at_least: as in decode_image.

    missing: bool (rows of the table,), where there is no picture at all; nothing is decoded.
    keys: what tells the pictures of some rows apart, stable over machines and the order of rows.
    """

    table: Table
    paths: TextLists
    at_least: int | None

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        return decode_image(path_inside(self.table.roots[0], self.paths[row][0], name), name, at_least=self.at_least)

    def name(self, row: int) -> str:
        return f"{self.paths[row][0]} ({self.table.where(row)})"

    def missing(self) -> np.ndarray:
        return np.array([not self.paths[row][0] for row in range(len(self.paths))], dtype=bool)

    def keys(self, rows: Iterable[int]) -> list[str]:
        root = self.table.roots[0]
        paths = (os.path.normpath(self.paths[row][0]) for row in rows)
        return [os.path.relpath(path, root) if path[:1] in ("/", "\\") else path for path in paths]


@dataclass(frozen=True)
class CellPictures:
    """Pictures in an Arrow column: encoded bytes, or the path of the file that the `datasets` library extracted.

    The same methods as FilePictures.
    """

    table: ArrowTable
    column: str
    at_least: int | None

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        cell = self.table.cell(self.column, row).as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is not None:
            return decode_image(data, name, at_least=self.at_least)
        if path is not None:
            return decode_image(self._allowed(path, name), name, at_least=self.at_least)
        raise BadImage(f"{name}: the row has no picture")

    def _allowed(self, path: str, name: str) -> str:
        for root in self.table.roots[1:]:
            try:
                return path_inside(root, path, name)
            except BadImage:
                continue
        return path_inside(self.table.roots[0], path, name)

    def name(self, row: int) -> str:
        path = _field(self.table.cell(self.column, row), "path")
        path = path.as_py() if path is not None else None
        return f"{Path(path).name} ({self.table.where(row)})" if path else self.table.where(row)

    def missing(self) -> np.ndarray:
        parts = [np.zeros(0, dtype=bool)]
        for chunk in self.table.chunks(self.column):
            gone = np.ones(len(chunk), dtype=bool)
            for name in ("bytes", "path"):
                values = _field(chunk, name)
                if values is not None:
                    gone &= np.asarray(values.is_null())
            parts.append(gone | np.asarray(chunk.is_null()))
        return np.concatenate(parts)

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Paths if they tell the pictures apart (some data sets call every picture image.jpg), else contents."""
        rows = list(rows)
        cells = [self.table.cell(self.column, row) for row in rows]
        paths = [str(path.as_py() or "") if (path := _field(cell, "path")) is not None else "" for cell in cells]
        # The part of an absolute path that differs between machines is dropped.
        paths = [Path(path).name if Path(path).is_absolute() else path for path in paths]
        if all(paths) and len(set(paths)) == len(paths):
            return paths
        return [_contents(_field(cell, "bytes"), path) for cell, path in zip(cells, paths, strict=True)]


def picture_column(table: Table, column: str, at_least: int | None = None) -> FilePictures | CellPictures:
    """The pictures of a column. Raises ValueError if a path leads out of the table's folder, or is not text."""
    if isinstance(table, ArrowTable) and table.kind(column) == "image":
        return CellPictures(table, column, at_least)
    paths: list[list[str]] = []
    for row, path in enumerate(table.values(column)):
        if path is not None and not isinstance(path, str):
            raise ValueError(f"{table.label}, {table.where(row)}: {column} is {path!r}, expected a path")
        path = path.strip() if path else ""
        if path and leaves_folder(table.roots[0], path):
            raise ValueError(
                f"{table.label}, {table.where(row)}: {path!r} leads out of {table.roots[0]}; "
                "keep the pictures inside the folder of their table"
            )
        paths.append([path])
    return FilePictures(table, TextLists(paths), at_least)


def check_some_exist(pictures: FilePictures | CellPictures, rows: np.ndarray) -> None:
    """Eight listed files are looked up: if none is there, the paths are meant from elsewhere."""
    if isinstance(pictures, CellPictures) or not len(rows):
        return
    sample = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
    root = pictures.table.roots[0]
    if not any((Path(root) / pictures.paths[row][0]).exists() for row in sample.tolist()):
        raise FileNotFoundError(
            f"{pictures.name(int(sample[0]))} was not found below {root}, nor were {len(sample) - 1} others; "
            f"paths in {pictures.table.label} are taken from its own folder"
        )


def _field(value: Any, name: str) -> Any:
    """Field of a {bytes, path} struct, as an array or a scalar; a plain binary column is all bytes. None if absent."""
    fields = {value.type.field(i).name for i in range(value.type.num_fields)}
    if not fields:
        return value if name == "bytes" else None
    if name not in fields:
        return None
    return value.field(name) if hasattr(value, "field") else value[name]


def _contents(data: Any, path: str) -> str:
    buffer = data.as_buffer() if data is not None and data.is_valid else None
    if buffer is None:
        return path
    # Head and length: equal pictures always share a key; at worst two different ones share it too, and stay together.
    return f"{len(buffer)}:{hashlib.blake2b(memoryview(buffer)[:65536], digest_size=16).hexdigest()}"
