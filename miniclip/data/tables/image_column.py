"""The image column of a table: its images by row, decoded one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.common.fingerprint import digest, stamp
from miniclip.data.images import EXTENSIONS, BadImage, decode_image, leaves_folder, path_inside
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.source import near_file
from miniclip.data.tables.table import RecordTable, Table
from miniclip.data.tables.tars import TarTable
from miniclip.data.tables.texts import TextLists


@dataclass(frozen=True)
class FileImages:
    """Images given as paths relative to the folder of their table. at_least: as in decode_image.

    missing: bool (rows of the table,), where there is no image at all; nothing is decoded.
    keys: what tells the images of some rows apart, stable over machines and the order of rows.
    fingerprint: of the image files of some rows; those inside a table are told by the table's own.
    """

    table: Table
    paths: TextLists
    at_least: int | None

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        return decode_image(path_inside(self.table.roots[0], self.paths[row][0], name), name, at_least=self.at_least)

    def name(self, row: int) -> str:
        where = self.table.where(row)
        return f"{self.paths[row][0]} ({where})" if where else self.paths[row][0]

    def missing(self) -> np.ndarray:
        return np.array([not path for path in self.paths.firsts()], dtype=bool)

    def keys(self, rows: Iterable[int]) -> list[str]:
        root = self.table.roots[0]
        paths = (os.path.normpath(self.paths[row][0]) for row in rows)
        return [os.path.relpath(path, root) if path[:1] in ("/", "\\") else path for path in paths]

    def fingerprint(self, rows: Iterable[int]) -> str:
        paths = self.paths.firsts()
        return _stamps(self.table.roots[0], (paths[row] for row in rows))


@dataclass(frozen=True)
class CellImages:
    """Images in an Arrow column: encoded bytes, or the path of the file that the `datasets` library extracted.

    The same methods as FileImages.
    """

    table: ArrowTable
    column: str
    at_least: int | None

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        cell = self.table.cell(self.column, row).as_py()
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is None:
            if path is None:
                raise BadImage(f"{name}: the row has no image")
            data = self._allowed(path, name)
        return decode_image(data, name, at_least=self.at_least)

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
            fields = [_field(chunk, name) for name in ("bytes", "path")]
            gone = [np.asarray(values.is_null()) for values in fields if values is not None]
            parts.append(np.all(gone, axis=0) | np.asarray(chunk.is_null()))
        return np.concatenate(parts)

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Paths if they tell the images apart (some data sets call every image image.jpg), else contents."""
        cells = [self.table.cell(self.column, row) for row in rows]
        paths = [str(path.as_py() or "") if (path := _field(cell, "path")) is not None else "" for cell in cells]
        # The part of an absolute path that differs between machines is dropped.
        paths = [Path(path).name if Path(path).is_absolute() else path for path in paths]
        if all(paths) and len(set(paths)) == len(paths):
            return paths
        return [_contents(_field(cell, "bytes"), path) for cell, path in zip(cells, paths, strict=True)]

    def fingerprint(self, rows: Iterable[int]) -> str:
        paths: list[str | None] = []
        for chunk in self.table.chunks(self.column):
            data, files = _field(chunk, "bytes"), _field(chunk, "path")
            inside = np.zeros(len(chunk), dtype=bool) if data is None else np.asarray(data.is_valid())
            if files is None or inside.all():
                paths += [None] * len(chunk)
            else:
                paths += [None if i else p for i, p in zip(inside, files.to_pylist(), strict=True)]
        return _stamps(self.table.roots[0], (path for row in rows if (path := paths[row]) is not None))


@dataclass(frozen=True)
class TarImages:
    """Images that are members of tars. The same methods as FileImages."""

    table: TarTable
    field: str
    at_least: int | None

    def image(self, row: int) -> Image.Image:
        name = self.name(row)
        try:
            data = self.table.read(self.field, row)
        except OSError as error:
            raise BadImage(f"{name}: cannot be read ({error})") from error
        if data is None:
            raise BadImage(f"{name}: the sample has no image")
        return decode_image(data, name, at_least=self.at_least)

    def name(self, row: int) -> str:
        return self.table.where(row)

    def missing(self) -> np.ndarray:
        return self.table.fields[self.field][:, 1] < 0

    def keys(self, rows: Iterable[int]) -> list[str]:
        rows = list(rows)
        keys = [self.table.key(row) for row in rows]
        # each tar may count its samples from 0
        return keys if len(set(keys)) == len(keys) else [self.table.where(row) for row in rows]

    def fingerprint(self, rows: Iterable[int]) -> str:
        return ""


ImageColumn = FileImages | CellImages | TarImages


@dataclass(frozen=True)
class ImageRows:
    """Images of a column: item i is row rows[i] of the table."""

    images: ImageColumn
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.images.image(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))


def images_of(table: Table, column: str, at_least: int | None = None) -> ImageColumn:
    """The images of a column; where it holds no text, there is none. Raises ValueError if a path leads out of the
    table's folder."""
    if isinstance(table, TarTable):
        return TarImages(table, column, at_least)
    if isinstance(table, ArrowTable) and table.kind(column) == "image":
        return CellImages(table, column, at_least)
    paths: list[list[str]] = []
    for row, path in enumerate(table.values(column)):
        path = path.strip() if isinstance(path, str) else ""
        if path and leaves_folder(table.roots[0], path):
            raise ValueError(
                f"{table.label}, {table.where(row)}: {path!r} leads out of {table.roots[0]}; "
                "keep the images inside the folder of their table"
            )
        paths.append([path])
    return FileImages(table, TextLists(paths), at_least)


def images_in(folder: Path, paths: Sequence[str], at_least: int | None) -> ImageColumn:
    """Files of a folder. Raises FileNotFoundError if there are none."""
    if not paths:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(EXTENSIONS)})")
    table = RecordTable(str(folder), [], [], [""] * len(paths), (os.path.realpath(folder),))
    return FileImages(table, TextLists([path] for path in paths), at_least)


def check_some_exist(images: ImageColumn, rows: np.ndarray) -> None:
    """Eight listed files are looked up: if none is there, the paths are meant from elsewhere."""
    if not isinstance(images, FileImages) or not len(rows):
        return
    sample = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
    root = images.table.roots[0]
    if not any((Path(root) / images.paths[row][0]).exists() for row in sample.tolist()):
        raise FileNotFoundError(
            f"{images.name(int(sample[0]))} was not found below {root}, nor were {len(sample) - 1} others; "
            f"paths in {images.table.label} are taken from its own folder"
            f"{near_file(Path(root) / images.paths[int(sample[0])][0])}"
        )


def _field(value: Any, name: str) -> Any:
    """Field of a {bytes, path} struct, as an array or a scalar; a plain binary column is all bytes. None if absent."""
    if not hasattr(value.type, "get_field_index"):
        return value if name == "bytes" else None
    if value.type.get_field_index(name) < 0:
        return None
    return value.field(name) if hasattr(value, "field") else value[name]


def _contents(data: Any, path: str) -> str:
    buffer = data.as_buffer() if data is not None and data.is_valid else None
    if buffer is None:
        return path
    # Head and length: equal images always share a key; at worst two different ones share it too, and stay together.
    return f"{len(buffer)}:{hashlib.blake2b(memoryview(buffer)[:65536], digest_size=16).hexdigest()}"


def _stamps(root: str, paths: Iterable[str]) -> str:
    return digest(root, "\0".join(f"{path} {stamp(f'{root}/{path}' if path[:1] != '/' else path)}" for path in paths))
