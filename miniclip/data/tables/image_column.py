"""The image column of a table: its images by row, decoded one at a time."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.common.fingerprint import digest, stamp
from miniclip.data.formats import extensions
from miniclip.data.images import BadImage, decode_image, path_inside, roots_of
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.paths import paths_in
from miniclip.data.tables.source import near_file
from miniclip.data.tables.table import RecordTable, Table, TextLists
from miniclip.data.tables.tars import TarTable

PIECE = 4096  # bytes in the middle of an image
LOOKED_AT = 1000  # files of a data set whose sizes are compared on a resume


@dataclass(frozen=True)
class ImageColumn(ABC):
    """at_least: as in decode_image.

    encoded: an image's bytes or path; raises BadImage. missing: (rows of the table,) bool, where there is no image.
    keys: what tells the images of some rows apart, stable over machines and the order of rows.
    """

    table: Any
    at_least: int | None

    @abstractmethod
    def encoded(self, row: int, name: str) -> bytes | str: ...
    @abstractmethod
    def missing(self) -> np.ndarray: ...
    @abstractmethod
    def keys(self, rows: Iterable[int]) -> list[str]: ...
    def path(self, row: int) -> str:
        """For messages; empty if there is none."""
        return ""

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        return decode_image(self.encoded(row, name), name, at_least=self.at_least)

    def name(self, row: int) -> str:
        path, where = self.path(row), self.table.where(row)
        return f"{path} ({where})" if path and where else path or where

    def fingerprint(self, rows: Iterable[int]) -> str:
        """Of the image files of some rows; those inside a table are told by the table's own."""
        return ""

    def names(self, rows: np.ndarray) -> list[str]:
        """What tells the images apart for a person, wherever they lie."""
        return self.keys(rows.tolist())

    @abstractmethod
    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Bytes of each, int64; -1 where no file is opened to tell."""

    def piece(self, row: int) -> tuple[int, bytes] | None:
        """Bytes of an image, and PIECE of them from its middle; None if there is no image."""
        try:
            with open(self.encoded(row, ""), "rb", buffering=0) as file:  # noqa: PTH123
                size = os.fstat(file.fileno()).st_size
                file.seek(size // 2)
                return size, file.read(PIECE)
        except (BadImage, OSError):
            return None

    @abstractmethod
    def contents(self, rows: np.ndarray) -> str:
        """The same for a copy of the images elsewhere: of their sizes, and of the paths below their folder."""


@dataclass(frozen=True)
class FileImages(ImageColumn):
    """Images given as paths relative to the folder of their table."""

    paths: TextLists

    def encoded(self, row: int, name: str) -> str:
        return path_inside(self.table.roots, self.paths[row][0], name)

    def path(self, row: int) -> str:
        return self.paths[row][0]

    def missing(self) -> np.ndarray:
        return np.array([not path for path in self.paths.firsts()], dtype=bool)

    def keys(self, rows: Iterable[int]) -> list[str]:
        root, every = self.table.roots[0], self.paths.firsts()
        paths = (os.path.normpath(every[row]) for row in rows)
        return [os.path.relpath(path, root) if path[:1] in ("/", "\\") else path for path in paths]

    def fingerprint(self, rows: Iterable[int]) -> str:
        paths = self.paths.firsts()
        return _stamps(self.table.roots[0], (paths[row] for row in rows))

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), -1)

    def contents(self, rows: np.ndarray) -> str:
        root, paths = self.table.roots[0], self.keys(rows.tolist())
        return digest("\0".join(paths), *_sizes(root, paths))

    def check_some_exist(self, rows: np.ndarray) -> None:
        """Eight listed files are looked up: if none is there, the paths are meant from elsewhere."""
        root, sample = self.table.roots[0], rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)].tolist()
        files = [Path(root) / self.paths[row][0] for row in sample]
        if files and not any(map(os.path.exists, files)):  # for which a name may be too long
            raise FileNotFoundError(
                f"{self.name(sample[0])} was not found below {root}, nor were {len(sample) - 1} others; "
                f"paths in {self.table.label} are taken from its own folder{near_file(files[0])}"
            )


@dataclass(frozen=True)
class CellImages(ImageColumn):
    """Images in an Arrow column: encoded bytes, or the path of the file that the `datasets` library extracted."""

    column: str

    def encoded(self, row: int, name: str) -> bytes | str:
        cell = self.table.cell(self.column, row).as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is not None:
            return data
        if path is None:
            raise BadImage(f"{name}: the row has no image")
        return path_inside(self.table.roots, path, name)

    def path(self, row: int) -> str:
        return Path(self._stored(row)).name

    def _stored(self, row: int) -> str:
        path = _field(self.table.cell(self.column, row), "path")
        return "" if path is None else path.as_py() or ""

    def missing(self) -> np.ndarray:
        parts = [np.zeros(0, dtype=bool)]
        for chunk in self.table.chunks(self.column):
            fields = [_field(chunk, name) for name in ("bytes", "path")]
            gone = [np.asarray(values.is_null()) for values in fields if values is not None]
            parts.append(np.all(gone, axis=0) | np.asarray(chunk.is_null()))
        return np.concatenate(parts)

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Paths if they tell the images apart (some data sets call every image image.jpg), else contents."""
        rows = list(rows)
        # The part of an absolute path that differs between machines is dropped.
        paths = [Path(path).name if Path(path).is_absolute() else path for path in map(self._stored, rows)]
        if all(paths) and len(set(paths)) == len(paths):
            return paths
        cells = (_field(self.table.cell(self.column, row), "bytes") for row in rows)
        return [_contents(cell) or path for cell, path in zip(cells, paths, strict=True)]

    def fingerprint(self, rows: Iterable[int]) -> str:
        paths: list[str | None] = []
        for chunk in self.table.chunks(self.column):
            data, files = _field(chunk, "bytes"), _field(chunk, "path")
            outside = np.ones(len(chunk), dtype=bool) if data is None else np.asarray(data.is_null())
            if files is None or not outside.any():
                paths += [None] * len(chunk)
            else:
                paths += [path if out else None for out, path in zip(outside, files.to_pylist(), strict=True)]
        return _stamps(self.table.roots[0], (path for row in rows if (path := paths[row]) is not None))

    def names(self, rows: np.ndarray) -> list[str]:
        files = [_field(chunk, "path") for chunk in self.table.chunks(self.column)]
        if all(file is not None for file in files):
            paths = [path for file in files for path in file.to_pylist()]
            found = [Path(paths[row] or "").name for row in rows]
            if all(found) and len(set(found)) == len(found):
                return found
        return [self.table.where(row) for row in rows]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        from pyarrow.compute import binary_length, fill_null

        parts = [np.zeros(0, dtype=np.int64)]
        for chunk in self.table.chunks(self.column):
            data = _field(chunk, "bytes")  # of which the offsets alone are read
            none = np.full(len(chunk), -1)
            parts.append(none if data is None else np.asarray(fill_null(binary_length(data), -1)).astype(np.int64))
        return np.concatenate(parts)[rows]

    def piece(self, row: int) -> tuple[int, bytes] | None:
        data = _field(self.table.cell(self.column, row), "bytes")
        if data is None or not data.is_valid:
            return super().piece(row)
        buffer = data.as_buffer()
        return buffer.size, buffer.slice(buffer.size // 2, min(PIECE, buffer.size - buffer.size // 2)).to_pybytes()

    def contents(self, rows: np.ndarray) -> str:
        lengths = self.sizes(rows)
        outside = [self._stored(row) for row in rows[lengths < 0].tolist()]
        names = "\0".join(Path(path).name for path in outside)
        return digest(lengths.tobytes(), names, *_sizes(self.table.roots[0], outside))


@dataclass(frozen=True)
class TarImages(ImageColumn):
    """Images that are members of tars."""

    column: str

    def encoded(self, row: int, name: str) -> bytes:
        try:
            data = self.table.read(self.column, row)
        except OSError as error:
            raise BadImage(f"{name}: cannot be read ({error})") from error
        if data is None:
            raise BadImage(f"{name}: the sample has no image")
        return data

    def missing(self) -> np.ndarray:
        return self.table.fields[self.column][:, 1] < 0

    def keys(self, rows: Iterable[int]) -> list[str]:
        rows = list(rows)
        keys = [self.table.keys[row][0] for row in rows]
        # each tar may count its samples from 0
        return keys if len(set(keys)) == len(keys) else [self.table.where(row) for row in rows]

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.table.fields[self.column][rows, 1]

    def piece(self, row: int) -> tuple[int, bytes] | None:
        offset, size = self.table.fields[self.column][row].tolist()
        try:
            with open(self.table.files[self.table.shard[row]], "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(offset + size // 2)
                return size, file.read(min(PIECE, size - size // 2))
        except OSError:
            return None

    def contents(self, rows: np.ndarray) -> str:
        return digest("\0".join(self.keys(rows.tolist())), self.sizes(rows).tobytes())


@dataclass(frozen=True)
class ImageRows:
    """Images of a column: item i is row rows[i] of the table. Raises FileNotFoundError if their files lie elsewhere.

    split: that they are. whole: images of the source, all splits together; 0 if that is not known.
    """

    images: ImageColumn
    rows: np.ndarray
    split: str = field(default="", kw_only=True)
    whole: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.images, FileImages):
            self.images.check_some_exist(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.images.image(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def file(self, index: int) -> str:
        """For a table of images: the path of a file, and the name of what lies inside one."""
        return self.images.path(int(self.rows[index])) if isinstance(self.images, FileImages) else self.name(index)


def images_of(table: Table, column: str, at_least: int | None = None) -> ImageColumn:
    """The images of a column; where it holds no text, there is none. Raises what `paths_in` does."""
    if isinstance(table, TarTable):
        return TarImages(table, at_least, column)
    if isinstance(table, ArrowTable) and table.kind(column) == "image":
        return CellImages(table, at_least, column)
    return FileImages(table, at_least, TextLists([path] for path in paths_in(table, column)))


def images_in(folder: Path, paths: Sequence[str], at_least: int | None) -> ImageColumn:
    """Files of a folder. Raises FileNotFoundError if there are none."""
    if not paths:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(extensions())}); name a folder that does")
    table = RecordTable(str(folder), [], [], [""] * len(paths), roots_of(folder))
    return FileImages(table, at_least, TextLists([path] for path in paths))


def _field(value: Any, name: str) -> Any:
    """Field of a {bytes, path} struct, as an array or a scalar; a plain binary column is all bytes. None if absent."""
    if not hasattr(value.type, "get_field_index"):
        return value if name == "bytes" else None
    if value.type.get_field_index(name) < 0:
        return None
    return value.field(name) if hasattr(value, "field") else value[name]


def _contents(data: Any) -> str:
    """data: Arrow's bytes. Empty if there are none."""
    if data is None or not data.is_valid:
        return ""
    buffer = data.as_buffer()
    # Head and length: equal images always share a key; at worst two different ones share it too, and stay together.
    return f"{len(buffer)}:{hashlib.blake2b(memoryview(buffer)[:65536], digest_size=16).hexdigest()}"


def _stamps(root: str, paths: Iterable[str]) -> str:
    return digest(root, "\0".join(f"{path} {stamp(f'{root}/{path}' if path[:1] != '/' else path)}" for path in paths))


def _sizes(root: str, paths: Sequence[str]) -> list[str]:
    """Of as many files as are looked at in no time also where there are millions, evenly over all."""
    some = np.unique(np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths))).astype(int)).tolist()
    return [stamp(Path(root) / paths[k]).split()[0] for k in some]
