"""Images without labels or captions, of any source."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from miniclip.data.captioned import ImageSource
from miniclip.data.images import EXTENSIONS
from miniclip.data.splits import choose_split, read_parts
from miniclip.data.tables.columns import image_column as find_image_column
from miniclip.data.tables.image_column import FileImages, ImageRows, check_some_exist, images_in, images_of
from miniclip.data.tables.source import Source, images_below, split_folders


def open_images(
    path_or_name: str | Path,
    *,
    split: str = "test",
    image_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> ImageSource:
    """The images of any source, each once, whatever is said of them.

    path_or_name: a folder of images, searched to the bottom (one folder a class, or none); or what read_tables takes,
    labelled or captioned. split, name, revision, image_size: as in open_labelled.
    Raises FileNotFoundError, or ValueError that names the option to change.
    """
    source = Source(str(path_or_name))
    at_least = None if image_size is None else 2 * image_size
    if source.is_folder and not source.tables:
        root, found = source.path, source.below(*EXTENSIONS)
        if found and not source.has(".tar") and not source.has(".parquet"):
            splits = split_folders(root)
            if splits:
                root = splits[choose_split(splits, split, source.label)]
                found = images_below(root)
            return ImageRows(images_in(root, found, at_least), np.arange(len(found)))
    parts = read_parts(source.text, name, image_column, "image_column", revision)
    table, rows = parts[choose_split(parts, split, source.text)]
    images = images_of(table, find_image_column(table, image_column, "image_column"), at_least)
    rows = rows[~images.missing()[rows]]
    if isinstance(images, FileImages):  # one row a caption
        rows = np.array(list(dict(zip(images.keys(rows), rows, strict=True)).values()))
    if not len(rows):
        raise ValueError(f"{table.label}: no row has an image")
    check_some_exist(images, rows)
    return ImageRows(images, rows)
