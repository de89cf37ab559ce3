"""Captioned pictures from anywhere, as one kind of object: `open_source` gives a `PairSource` for a split.

One item is one picture with all of its captions, so that splits go by picture. Labelled pictures: labelled.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few, one_line
from miniclip.config import DataConfig
from miniclip.data.bad_images import BadCount, TooManyBad
from miniclip.data.concat import Several
from miniclip.data.splits import Part, carve, read_parts, resolve_splits
from miniclip.data.tables.columns import caption_columns, image_column, value_column
from miniclip.data.tables.image_column import FilePictures, Pictures, check_some_exist, picture_column
from miniclip.data.tables.reading import is_hub
from miniclip.data.tables.table import Table
from miniclip.data.tables.texts import TextLists

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

    def fingerprint(self) -> str:
        """Changes when the pictures, the captions or their order would be others; the same in every process.

        Files are told by their path, size and time of change, and not opened.
        """


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


class NoCaptions(TooManyBad):
    """Pictures without a caption, and nothing else amiss."""


@dataclass(frozen=True)
class Pairs:
    """A PairSource over a table: picture i is row rows[i] of it."""

    pictures: Pictures
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

    def fingerprint(self) -> str:
        return digest(
            type(self.pictures).__name__,
            self.table.fingerprint(),
            self.pictures.fingerprint(self.rows.tolist()),
            self.pictures.at_least,  # a JPEG is decoded to another size
            self.rows.astype("<i8").tobytes(),
            self.texts.fingerprint(),
        )


def open_split(
    config: DataConfig, split: str, *, seed: int = 0, image_size: int = 64, eval_size: int = 1000
) -> PairSource:
    """`open_source` for a split called train, validation or test, or by the source's own word for one."""
    if split not in ("train", "validation", "test") and config.source != "shapes":
        config, split = replace(config, test_split=split), "test"
    return open_source(config, split, seed=seed, image_size=image_size, eval_size=eval_size)


def open_source(
    config: DataConfig, split: str, *, seed: int = 0, image_size: int = 64, eval_size: int = 1000
) -> PairSource:
    """One split of data.source; of several sources, one after the other, a Several.

    split: train, validation or test; data.train_split and its kin say what the source calls them. image_size: side that
    the encoder takes, in pixels; a JPEG at least four times as large is decoded smaller, to no less than twice that.
    seed, eval_size: of the built-in scenes alone.
    A missing split is carved off the training split by a hash of the picture (see splits.py), with a logged note.
    Raises FileNotFoundError, or ValueError that names the option to change; TooManyBad if more rows than
    data.max_bad_fraction have no picture or no caption, and NoCaptions, which is one, if it is the captions alone.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; use train, validation or test")
    if config.source == "shapes":
        from miniclip.data.scenes.source import SceneSource

        size = config.size if split == "train" else eval_size
        return SceneSource(split, size, seed=seed, image_size=image_size)
    if config.revision is not None and not any(map(is_hub, config.sources)):
        raise ValueError(
            f"data.revision={config.revision} is for data sets of the Hub, and data.source={config.source} lies here; "
            "leave it out"
        )
    found = {one: _open(replace(config, source=one, mixing=None), split, image_size) for one in config.sources}
    if len(config.sources) == 1:
        return found[config.sources[0]]
    return Several([found[one] for one in config.sources], config.sources)


def _open(config: DataConfig, split: str, image_size: int) -> Pairs:
    (source,) = config.sources
    parts = read_parts(source, config.name, config.image_column, revision=config.revision)
    name, missing = resolve_splits(parts, config, split)
    table = parts[name].table
    pictures = picture_column(table, image_column(table, config.image_column), 2 * image_size)
    rows, captions = _by_picture(parts[name], pictures, config)
    if missing:
        chosen = carve(pictures.keys(rows.tolist()), missing)[split]
        rows, captions = rows[chosen], [captions[i] for i in chosen]
        log.warning(
            "%s has no split for %s: pictures of %r are set aside by a hash of the picture, and %d are left for %s",
            *(source, " or ".join(missing), name, len(rows), split),
        )
    check_some_exist(pictures, rows)
    return Pairs(pictures, rows, TextLists(captions), table)


def _by_picture(part: Part, pictures: Pictures, config: DataConfig) -> tuple[np.ndarray, list[list[str]]]:
    """First row of each picture, and its captions; rows with the same path are one picture."""
    table = part.table
    image = image_column(table, config.image_column)
    columns = caption_columns(table, config.caption_column, image)
    wanted = np.zeros(len(table), dtype=bool)
    wanted[part.rows] = True
    missing = pictures.missing()
    keys = pictures.keys(range(len(table))) if isinstance(pictures, FilePictures) else None
    position: dict[str, int] = {}
    rows: list[int] = []
    captions: list[list[str]] = []
    no_picture: list[int] = []
    odd: dict[int, str] = {}
    blank: list[int] = []
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
            blank.append(0)
        for column, value in zip(columns, values, strict=True):
            texts = value if isinstance(value, list) else [value]
            good = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
            captions[place] += good
            blank[place] += len(texts) - len(good)
            if len(good) < len(texts):
                strange = next((text for text in texts if text is not None and not isinstance(text, str)), None)
                but = f", but {one_line(repr(strange), 40)}" if strange is not None else ""
                odd[place] = f"no text in column {column}{but}"
    bad = dict.fromkeys(no_picture, f"no picture in column {image}")
    silent = {
        row: odd.get(place, f"no text in column {', '.join(columns)}")
        for place, (row, texts) in enumerate(zip(rows, captions, strict=True))
        if not texts
    }
    _report(part, config.max_bad_fraction, bad | silent, TooManyBad if no_picture else NoCaptions)
    beside = sum(count for count, texts in zip(blank, captions, strict=True) if texts)
    if beside:
        log.warning("%s: %d captions are empty or no text; their pictures have others", table.label, beside)
    kept = [i for i, texts in enumerate(captions) if texts]
    if not kept:
        error = NoCaptions if silent else ValueError
        raise error(f"{table.label}: no row has both a picture and a caption ({', '.join(columns)})")
    return np.array([rows[i] for i in kept]), [captions[i] for i in kept]


def _report(part: Part, allowed: float, bad: dict[int, str], error: type[TooManyBad]) -> None:
    """Name the rows that are left out, and why. Raises error if they are more than allowed."""
    table = part.table
    count = BadCount(len(part.rows), allowed)
    try:
        count.add(f"{table.where(row)}: {bad[row]}" for row in sorted(bad))
    except TooManyBad as found:
        raise error(f"{table.label}: {found}") from None
    if bad:
        more = "; …" if len(bad) > 5 else ""
        log.warning(
            "%s: %d of %d rows are skipped: %s%s", table.label, len(bad), count.total, first_few(count.names), more
        )
