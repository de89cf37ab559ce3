"""Captioned pictures from anywhere, as one kind of object: `open_source` gives a `PairSource` for a split.

One item is one picture with all of its captions, so that splits go by picture. Labelled pictures: labelled.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from miniclip.config import DataConfig
from miniclip.data.columns import caption_columns, image_column, value_column
from miniclip.data.pictures import CellPictures, FilePictures, TextLists, check_some_exist, picture_column
from miniclip.data.splits import Part, carve, read_parts, resolve_splits
from miniclip.data.tables import Table

log = logging.getLogger(__name__)


class PairSource(Protocol):
    """Captioned pictures of one split; what training and retrieval read."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image:
        """RGB picture. Raises BadImage if it cannot be read."""

    def captions(self, index: int) -> list[str]:
        """At least one caption, in the data set's order. The picture is not touched."""

    def name(self, index: int) -> str:
        """File or row, for messages."""

    def column(self, name: str) -> list[Any]:
        """What a column says of each picture, in its first row. Raises ValueError that names the columns there are."""


class LabelledSource(Protocol):
    """Pictures with a class each; what zero-shot classification and probes read."""

    @property
    def classes(self) -> list[str]:
        """What label i is called in a prompt."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image:
        """RGB picture. Raises BadImage if it cannot be read."""

    def label(self, index: int) -> int:
        """Position in classes."""

    def name(self, index: int) -> str:
        """File or row, for messages."""


class NoCaptions(ValueError):
    """Pictures without a caption."""


@dataclass(frozen=True)
class Pairs:
    """A PairSource over a table: picture i is row rows[i] of it."""

    pictures: FilePictures | CellPictures
    rows: np.ndarray
    texts: TextLists
    table: Table

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.pictures.image(int(self.rows[index]))

    def captions(self, index: int) -> list[str]:
        return self.texts[index]

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.rows[index]))

    def column(self, name: str) -> list[Any]:
        values = list(self.table.values(value_column(self.table, name, "data.weight_column")))
        return [values[row] for row in self.rows]


def open_source(
    config: DataConfig, split: str, *, seed: int = 0, image_size: int = 64, eval_size: int = 1000
) -> PairSource:
    """One split of data.source.

    split: train, validation or test; data.train_split and its kin say what the source calls them. image_size: side that
    the encoder takes, in pixels; a JPEG at least four times as large is decoded smaller, to no less than twice that.
    seed, eval_size: of the built-in scenes alone.
    A missing split is carved off the training split by a hash of the picture (see splits.py), with a logged note.
    Raises FileNotFoundError, or ValueError that names the option to change; with on_bad=stop also for a picture without
    a caption.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; use train, validation or test")
    if config.source == "shapes":
        from miniclip.data.shapes import SceneSource

        size = config.size if split == "train" else eval_size
        return SceneSource(split, size, seed=seed, image_size=image_size)  # type: ignore[arg-type]
    parts = read_parts(config.source, config.name, config.image_column)
    name, missing = resolve_splits(parts, config, split)
    table = parts[name].table
    pictures = picture_column(table, image_column(table, config.image_column), 2 * image_size)
    rows, captions = _by_picture(parts[name], pictures, config)
    if missing:
        chosen = carve(pictures.keys(rows.tolist()), missing)[split]
        rows, captions = rows[chosen], [captions[i] for i in chosen]
        log.warning(
            "%s has no split for %s: pictures of %r are set aside by a hash of the picture, and %d are left for %s",
            *(config.source, " or ".join(missing), name, len(rows), split),
        )
    check_some_exist(pictures, rows)
    return Pairs(pictures, rows, TextLists(captions), table)


def _by_picture(
    part: Part, pictures: FilePictures | CellPictures, config: DataConfig
) -> tuple[np.ndarray, list[list[str]]]:
    """First row of each picture, and its captions; rows with the same path are one picture."""
    table = part.table
    columns = caption_columns(table, config.caption_column, image_column(table, config.image_column))
    wanted = np.zeros(len(table), dtype=bool)
    wanted[part.rows] = True
    missing = pictures.missing()
    keys = pictures.keys(range(len(table))) if isinstance(pictures, FilePictures) else None
    position: dict[str, int] = {}
    rows: list[int] = []
    captions: list[list[str]] = []
    no_picture: list[int] = []
    blank = 0
    for row, values in enumerate(zip(*(table.values(c) for c in columns), strict=True)):
        if not wanted[row]:
            continue
        if missing[row]:
            no_picture.append(row)
            continue
        place = len(rows) if keys is None else position.setdefault(keys[row], len(rows))
        if place == len(rows):
            rows.append(row)
            captions.append([])
        for column, value in zip(columns, values, strict=True):
            for text in _texts(value, column, table, row):
                if text is not None and (text := text.strip()):
                    captions[place].append(text)
                else:
                    blank += 1
    silent = [row for row, texts in zip(rows, captions, strict=True) if not texts]
    _report(table, config.on_bad, no_picture, "no picture")
    _report(table, config.on_bad, silent, "no caption", NoCaptions)
    if blank > len(silent):
        log.warning("%s: %d empty captions were left out beside others of the same picture", table.label, blank)
    kept = [i for i, texts in enumerate(captions) if texts]
    if not kept:
        error = NoCaptions if silent else ValueError
        raise error(f"{table.label}: no row has both a picture and a caption ({', '.join(columns)})")
    return np.array([rows[i] for i in kept]), [captions[i] for i in kept]


def _texts(value: Any, column: str, table: Table, row: int) -> Sequence[str | None]:
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"{table.label}, {table.where(row)}: {column} holds {text!r}; expected text or a list of text"
            )
    return texts


def _report(table: Table, on_bad: str, rows: Sequence[int], problem: str, error: type[ValueError] = ValueError) -> None:
    if not rows:
        return
    named = ", ".join(table.where(row) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    message = f"{table.label}: {len(rows)} of {len(table)} rows have {problem}: {named}"
    if on_bad == "stop":
        raise error(f"{message}; mend or remove them, or set data.on_bad to skip")
    log.warning("%s; skipped", message)
