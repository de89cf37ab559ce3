"""Every image of a source, for an index: what it is called, what is said of it, and where it lies."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.common.fingerprint import stamp
from miniclip.data.formats import extensions
from miniclip.data.images import BadImage, decode_image, path_inside, roots_of
from miniclip.data.labelled import holds_folders, open_images
from miniclip.data.splits import Part, choose_split, read_parts
from miniclip.data.tables.beside import texts_beside
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.data.tables.image_column import FileImages, ImageColumn, ImageRows, images_in, images_of
from miniclip.data.tables.source import Source, files_below
from miniclip.data.tables.texts import texts_of

log = logging.getLogger(__name__)

_MOST = 1 << 30  # bytes of a file, which is read whole; 64 Mpx of 16 bits with four channels are half of it


@dataclass(frozen=True)
class Pictures:
    """Images of one split or of all, each once, by their place in it.

    root: the folder that paths are relative to. paths: of a file below it; of an image inside a table or a tar what its
    source calls it. captions: the first of each, None where there is none.
    """

    parts: list[ImageRows]
    root: Path
    paths: list[str]
    captions: list[str | None]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))

    def _place(self, index: int) -> tuple[ImageColumn, int]:
        k = bisect_right(self._ends, index)
        part = self.parts[k]
        return part.images, int(part.rows[index - self._ends[k] + len(part)])

    @property
    def files(self) -> bool:
        """Whether each is a file of its own."""
        return all(isinstance(part.images, FileImages) for part in self.parts)

    def stamps(self) -> list[str]:
        """What changes with an image, and costs no look at its bytes: of a file its own size and time of change, of
        what lies inside a table those of the table."""
        found = list[str]()
        for part in self.parts:
            if isinstance(part.images, FileImages):
                start = len(found)
                found += [stamp(self.root / path) for path in self.paths[start : start + len(part)]]
            else:
                found += [part.images.table.fingerprint()] * len(part)
        return found

    def read(self, index: int) -> bytes:
        """The image as it is stored. Raises BadImage."""
        images, row = self._place(index)
        if isinstance(images, FileImages) and _storable(path := images.path(row)) != path:
            raise BadImage(f"{self.paths[index]}: its name is not UTF-8; rename it")
        value = images.encoded(row, self.paths[index])
        return value if isinstance(value, bytes) else read_file(value, self.paths[index])

    def image(self, index: int, at_least: int | None = None) -> Image.Image:
        """As `decode_image`. Raises BadImage."""
        return decode_image(self.read(index), self.paths[index], at_least=at_least)


def open_pictures(source: str, split: str | None = None) -> Pictures:
    """A folder of images, searched to the bottom, with or without texts beside them; or any other source of images.

    split: one of the source's, else all of them together. Raises FileNotFoundError or ValueError.
    """
    asked = Source(source)
    root = Path(os.path.abspath(asked.folder or "."))  # noqa: PTH100, as links stay in it
    try:
        found = _of_tables(source, split) if not holds_folders(asked) or texts_beside(asked) else None
    except (ValueError, FileNotFoundError) as error:
        if split is not None or not asked.below(*extensions()):
            raise
        log.warning("%s; all images below %s are taken, without captions", error, asked.path)
        found = None
    if found is None:
        if split is None:
            names = files_below(asked.path, extensions())
            rows = ImageRows(images_in(asked.path, names, None), np.arange(len(names)))
        else:
            rows = open_images(source, split=split)
        found = {"": (rows, [None] * len(rows))}
    found = {name: (rows, captions) for name, (rows, captions) in found.items() if len(rows)}
    if not found:
        raise ValueError(f"{source}: no row has an image")
    paths = {name: _paths(rows, root) for name, (rows, _) in found.items()}
    if len({path for own in paths.values() for path in own}) < sum(map(len, paths.values())):
        paths = {name: [f"{name}/{path}" for path in own] for name, own in paths.items()}
    every = [_storable(path) for own in paths.values() for path in own]
    return Pictures([rows for rows, _ in found.values()], root, every, [c for _, own in found.values() for c in own])


def _of_tables(source: str, split: str | None) -> dict[str, tuple[ImageRows, list[str | None]]]:
    parts = read_parts(source, option="image_column")
    chosen = parts if split is None else {(name := choose_split(parts, split, source)): parts[name]}
    return {name: _of_table(part) for name, part in chosen.items()}


def read_file(path: str | Path, name: str) -> bytes:
    """The bytes of an image. Raises BadImage that begins with its name."""
    try:
        if not Path(path).is_file():  # a pipe or a device would block
            raise BadImage(f"{name}: no such file: {path}")
        with Path(path).open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > _MOST:
                raise BadImage(f"{name}: more than {_MOST:,} bytes, which is no image")
            return file.read()
    except OSError as error:
        raise BadImage(f"{name}: cannot be read ({error.strerror})") from error


def inside(root: Path, path: str) -> Path:
    """The real place of a file below the root; links are followed. Raises BadImage if it lies elsewhere, and
    FileNotFoundError if the whole folder is gone."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}, the folder of the images, is not there; bring it back, or index them anew")
    return Path(path_inside(roots_of(root), path, path))


def _of_table(part: Part) -> tuple[ImageRows, list[str | None]]:
    """The images of a table, and the first caption of each."""
    table, rows = part
    column = image_column(table, None, "image_column")
    images = images_of(table, column)
    rows = rows[~images.missing()[rows]]
    keys: list[Any] = images.keys(range(len(table))) if isinstance(images, FileImages) else list(range(len(table)))
    first = dict[Any, int]()  # one row a caption: those of the same file are one image
    for row in rows.tolist():
        first.setdefault(keys[row], row)
    captions = dict[Any, str]()
    try:
        columns = caption_columns(table, None, column)
    except ValueError:  # there are none, or nobody can tell which they are
        columns = []
    for key, *values in zip(keys, *map(table.values, columns), strict=True):
        for text in (text for value in values for text in texts_of(value).texts):
            if isinstance(text, str) and text.strip():
                captions.setdefault(key, _storable(text.strip()))
    return ImageRows(images, np.array(list(first.values()), dtype=np.int64)), [captions.get(key) for key in first]


def _storable(text: str) -> str:
    """Parquet's texts are UTF-8, which names of files and what stands in JSON may not be."""
    return text.encode("utf-8", "backslashreplace").decode()


def _paths(rows: ImageRows, root: Path) -> list[str]:
    if not isinstance(rows.images, FileImages):
        return rows.images.names(rows.rows)
    own, real = rows.images.table.roots[0], os.path.realpath(root)
    keys = rows.images.keys(rows.rows.tolist())
    return keys if own == real else [os.path.relpath(f"{own}/{key}", real) for key in keys]
