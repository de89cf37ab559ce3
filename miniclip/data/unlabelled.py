"""Pictures without labels or captions: rows of a table or files of a folder, and `open_pictures` for either."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from miniclip.data.images import EXTENSIONS, decode_image, path_inside
from miniclip.data.splits import ALIASES, Part, read_parts
from miniclip.data.subset import PictureSource
from miniclip.data.tables.columns import image_column as find_image_column
from miniclip.data.tables.folders import look_into, table_files
from miniclip.data.tables.image_column import FilePictures, Pictures, check_some_exist, picture_column
from miniclip.data.tables.patterns import SPLIT_NAMES
from miniclip.data.tables.texts import TextLists

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureRows:
    """Pictures of a table: item i is row rows[i]."""

    pictures: Pictures
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.pictures.image(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.rows[index]))


@dataclass(frozen=True)
class PictureFolder:
    """Pictures of a folder; paths are relative to root. at_least: as in decode_image."""

    root: str
    paths: TextLists
    at_least: int | None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        return decode_image(path_inside(self.root, name, name), name, at_least=self.at_least)

    def name(self, index: int) -> str:
        return self.paths[index][0]


def open_pictures(
    path_or_name: str | Path,
    *,
    split: str = "test",
    image_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> PictureSource:
    """The pictures of any source, each once, whatever is said of them.

    path_or_name: a folder of pictures, searched to the bottom (one folder a class, or none); or what read_tables takes,
    labelled or captioned. split, name, revision, image_size: as in open_labelled.
    Raises FileNotFoundError, or ValueError that names the option to change.
    """
    source = str(path_or_name)
    path = Path(source).expanduser()
    at_least = None if image_size is None else 2 * image_size
    if path.is_dir() and not table_files(path):
        found = look_into(path)
        if found.pictures and not found.tars and not found.parquet:
            return _open_folder(path, split, at_least)
    parts = read_parts(source, name, image_column, "image_column", revision)
    return _open_rows(parts[choose_split(parts, split, source)], image_column, at_least)


def choose_split(splits: Collection[str], split: str, source: str) -> str:
    """The source's own word for a split; the only one there is, with a logged note. Raises ValueError."""
    found = next((name for name in (split, *ALIASES.get(split, ())) if name in splits), None)
    if found is None and len(splits) == 1:
        found = next(iter(splits))
        log.warning("%s has the one split %r, which is used for %r", source, found, split)
    if found is None:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(splits)}")
    return found


def split_folders(root: Path) -> dict[str, Path]:
    """Split, in lower case -> sub-folder, if all sub-folders bear names of splits; else empty."""
    level = {folder.name.lower(): folder for folder in sub_folders(root)}
    return level if set(level) <= set(SPLIT_NAMES) else {}


def sub_folders(root: Path) -> list[Path]:
    """Folders right below, hidden ones left out."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _open_folder(root: Path, split: str, at_least: int | None) -> PictureFolder:
    splits = split_folders(root)
    if splits:
        root = splits[choose_split(splits, split, str(root))]
    paths = look_into(root).pictures
    if not paths:
        raise FileNotFoundError(f"{root} holds no picture ({', '.join(EXTENSIONS)})")
    return PictureFolder(os.path.realpath(root), TextLists([path] for path in paths), at_least)


def _open_rows(part: Part, wanted_image: str | None, at_least: int | None) -> PictureRows:
    table, rows = part
    pictures = picture_column(table, find_image_column(table, wanted_image, "image_column"), at_least)
    rows = rows[~pictures.missing()[rows]]
    if isinstance(pictures, FilePictures):  # one row a caption
        rows = np.array(list(dict(zip(pictures.keys(rows), rows, strict=True)).values()))
    if not len(rows):
        raise ValueError(f"{table.label}: no row has a picture")
    check_some_exist(pictures, rows)
    return PictureRows(pictures, rows)
