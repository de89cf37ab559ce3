"""Captioned images from anywhere, as one kind of object: `open_source` gives a `PairSource` for a split.

One item is one image with all of its captions, so that splits go by image. Labelled images: labelled.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few, one_line
from miniclip.config import DataConfig
from miniclip.config.sections import require
from miniclip.data.images import BadCount, BadImage, TooManyBad
from miniclip.data.splits import Part, carve, count_images, read_parts, resolve_splits
from miniclip.data.tables.columns import caption_columns, image_column, value_column
from miniclip.data.tables.hub import is_hub
from miniclip.data.tables.image_column import FileImages, ImageColumn, ImageRows, images_of
from miniclip.data.tables.source import folders_of
from miniclip.data.tables.table import Table, TextLists
from miniclip.data.tables.tars import TarTable
from miniclip.data.tables.texts import tell_lists, texts_of

log = logging.getLogger(__name__)


class ImageSource(Protocol):
    """Images, with captions, labels or nothing."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image:
        """RGB image. Raises BadImage if it cannot be read."""

    def name(self, index: int) -> str:
        """File or row, for messages."""


class PairSource(ImageSource, Protocol):
    """Captioned images of one split; what training and retrieval read."""

    def captions(self, index: int) -> list[str]:
        """At least one, in the data set's order. The image is not touched."""

    def column(self, name: str) -> list[Any]:
        """What a column says of each image, in its first row. Raises ValueError that names the columns there are."""

    def fingerprint(self) -> str:
        """Changes when the images, the captions or their order would be others; the same in every process.

        Files are told by their path, size and time of change, and not opened.
        """


class LabelledSource(ImageSource, Protocol):
    """Images with a class each; what zero-shot classification and probes read."""

    @property
    def classes(self) -> list[str]:
        """What label i is called in a prompt."""

    def label(self, index: int) -> int:
        """Position in classes."""


class NoCaptions(TooManyBad):
    """Images without a caption, and nothing else amiss."""


@dataclass(frozen=True)
class Pairs(ImageRows):
    """A PairSource over a table: image i is row rows[i] of it."""

    texts: TextLists
    table: Table

    def captions(self, index: int) -> list[str]:
        return self.texts[index]

    def column(self, name: str) -> list[Any]:
        values = list(self.table.values(value_column(self.table, name, "data.weight_column")))
        return [values[row] for row in self.rows]

    def fingerprint(self) -> str:
        return digest(
            type(self.images).__name__,
            self.table.fingerprint(),
            self.images.fingerprint(self.rows.tolist()),
            self.images.at_least,  # a JPEG is decoded to another size
            self.rows.astype("<i8").tobytes(),
            self.texts.fingerprint(),
        )


class Concat:
    """A PairSource of several: the images of the first, then those of the second, and so on. sizes: images of each."""

    def __init__(self, parts: Sequence[Pairs], names: Sequence[str]) -> None:
        self.parts, self.names, self.sizes = parts, names, [len(part) for part in parts]
        self.split, self.whole = parts[0].split, sum(part.whole for part in parts)

    def __len__(self) -> int:
        return sum(self.sizes)

    def _place(self, index: int) -> tuple[str, PairSource, int]:
        """The source of an image, and which of its images that is. Raises IndexError."""
        inside = index
        for name, part, size in zip(self.names, self.parts, self.sizes, strict=True):
            if 0 <= inside < size:
                return name, part, inside
            inside -= size
        raise IndexError(f"image {index} of {len(self)} asked for")

    def image(self, index: int) -> Image.Image:
        name, part, inside = self._place(index)
        try:
            return part.image(inside)
        except BadImage as error:
            raise BadImage(f"{name}: {error}") from None  # two sources may call their images alike

    def captions(self, index: int) -> list[str]:
        _, part, inside = self._place(index)
        return part.captions(inside)

    def name(self, index: int) -> str:
        name, part, inside = self._place(index)
        return f"{name}: {part.name(inside)}"

    def column(self, name: str) -> list[Any]:
        return [value for part in self.parts for value in part.column(name)]

    def fingerprint(self) -> str:
        return digest(*(part.fingerprint() for part in self.parts))


def contents(source: PairSource) -> dict[str, Any]:
    """What a copy of the data has in common with it, wherever it lies: not its place, nor when files were changed."""
    if isinstance(source, Pairs):
        return {
            "images": len(source),
            "captions": source.texts.fingerprint(),
            "files": source.images.contents(source.rows),
        }
    if isinstance(source, Concat):
        parts = [contents(part) for part in source.parts]
        return {"images": len(source)} | {key: digest(*(p[key] for p in parts)) for key in ("captions", "files")}
    return {"images": len(source), "captions": source.fingerprint()}


def check_enough(data: DataConfig, images: int) -> None:
    """Raise ConfigError if the training split has too few images for a batch."""
    said = f"{data.label} has {images} images in split {data.train_split!r}, fewer than data.batch_size="
    require(images >= data.batch_size, f"{said}{data.batch_size}; use a batch of at most {images}, or more data")


def open_split(config: DataConfig, split: str, **options: int) -> PairSource:
    """`open_source` for a split called train, validation or test, or by the source's own word for one."""
    if split not in ("train", "validation", "test") and config.source != "shapes":
        config, split = replace(config, test_split=split), "test"
    return open_source(config, split, **options)


def open_source(
    config: DataConfig, split: str, *, seed: int = 0, image_size: int = 64, eval_size: int = 1000
) -> PairSource:
    """One split of data.source, train, validation or test; of several sources, one after the other, a Concat.

    image_size: side that the encoder takes, in pixels; a JPEG at least four times as large is decoded smaller, to no
    less than twice that. seed, eval_size: of the built-in scenes alone. A missing split is carved off the training
    split (see splits.py), with a logged note.
    Raises FileNotFoundError, or ValueError that names the option to change; TooManyBad if more rows than
    data.max_bad_fraction have no image or no caption, and NoCaptions, which is one, if it is the captions alone.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}; use train, validation or test")
    if config.source == "shapes":
        from miniclip.data.scenes.source import SceneSource

        # what is evaluated has all shapes alike
        size, tail = (config.size, config.tail) if split == "train" else (eval_size, "none")
        return SceneSource(split, size, seed=seed, image_size=image_size, tail=tail)
    if config.revision is not None and not any(map(is_hub, config.sources)):
        raise ValueError(
            f"data.revision={config.revision} is for data sets of the Hub, and data.source={config.source} lies here; "
            "leave it out"
        )
    named = folders_of(config.sources)
    alone = {one: replace(config, source=one, mixing=None) for one in config.sources}
    found = {one: _open(own, one, split, image_size, named) for one, own in alone.items()}
    if len(config.sources) == 1:
        return found[config.sources[0]]
    return Concat([found[one] for one in config.sources], config.sources)


def _open(config: DataConfig, source: str, split: str, image_size: int, named: tuple[str, ...]) -> Pairs:
    parts = read_parts(source, config.name, config.image_column, revision=config.revision, named=named)
    name, missing = resolve_splits(parts, config, split)
    table = parts[name].table
    column = image_column(table, config.image_column)
    images = images_of(table, column, 2 * image_size)
    rows, captions = _by_image(parts, name, images, column, config)
    if missing:
        pieces = carve(images.keys(rows.tolist()), missing)
        log.warning(  # the same words for each split, so that they are said once
            "%s has no split for %s: by a hash of the images of %r %d are set aside for %s, and %d are left for train",
            *(source, " or ".join(missing), name, len(pieces[missing[0]]), " and for ".join(missing)),
            len(pieces["train"]),
        )
        rows, captions = rows[pieces[split]], [captions[i] for i in pieces[split]]
    whole = count_images(parts.values(), column)
    return Pairs(images, rows, TextLists(captions), table, split=split if missing else name, whole=whole)


def _by_image(
    parts: Mapping[str, Part], split: str, images: ImageColumn, image: str, config: DataConfig
) -> tuple[np.ndarray, list[list[str]]]:
    """First row of each image, and its captions; rows with the same path are one image. image: its column."""
    part, table = parts[split], parts[split].table
    columns = caption_columns(table, config.caption_column, image)
    wanted = np.zeros(len(table), dtype=bool)
    wanted[part.rows] = True
    missing = images.missing()
    keys: Sequence[Any] = images.keys(range(len(table))) if isinstance(images, FileImages) else range(len(table))
    first: dict[Any, int] = {}  # key -> first row, in their order
    captions: dict[int, list[str]] = {}  # by first row
    blank, odd = Counter[int](), dict[int, str]()  # by first row, captions that are none, and what is there instead
    bad: dict[int, str] = {}
    written: dict[str, list[int]] = {}  # rows with a list in one text
    for at, values in enumerate(zip(*(table.values(c) for c in columns), strict=True)):
        if not wanted[at]:
            continue
        if missing[at]:
            bad[at] = f"no image in column {image}"
            continue
        row = first.setdefault(keys[at], at)
        own = captions.setdefault(row, [])
        for column, value in zip(columns, values, strict=True):
            texts, lists = texts_of(value)
            if lists:
                written.setdefault(lists, []).append(at)
            for text in texts:
                if isinstance(text, str) and text.strip():
                    own.append(text.strip())
                    continue
                blank[row] += 1
                other = "" if text is None or isinstance(text, str) else f", but {one_line(repr(text), 40)}"
                if other or row not in odd:
                    odd[row] = f"no text in column {column}{other}"
    tell_lists(f"{table.label}, {', '.join(columns)}", {how: list(map(table.where, at)) for how, at in written.items()})
    lost = table.lost if isinstance(table, TarTable) else ()
    error = TooManyBad if bad or lost else NoCaptions
    for row, own in captions.items():
        if not own:
            bad[row] = odd.get(row, f"no text in column {', '.join(columns)}")
    total = sum(len(one.rows) for one in parts.values()) + sum(one.images for one in lost)
    count = BadCount(total, config.max_bad_fraction, split)
    skipped = [f"{table.where(row)}: {bad[row]}" for row in sorted(bad)]
    try:
        count.add([*lost, *skipped])
    except TooManyBad as found:
        raise error(f"{table.label}: {found}") from None
    if bad:
        named = first_few(skipped) + ("; …" if len(bad) > 5 else "")
        log.warning("%s: %d of %d rows are skipped: %s", table.label, len(bad), len(part.rows), named)
    beside = sum(number for row, number in blank.items() if row not in bad)
    if beside:
        log.warning("%s: %d captions are empty or no text; their images have others", table.label, beside)
    kept = [row for row in captions if row not in bad]
    if not kept:
        raise (NoCaptions if captions else ValueError)(
            f"{table.label}: no row has both an image and a caption ({', '.join(columns)})"
        )
    mute = [(row, text) for row in kept for text in captions[row] if not any(map(str.isalpha, text))]
    if mute:
        where, text = table.where(mute[0][0]), one_line(repr(mute[0][1]), 40)
        log.warning("%s: %d captions hold no letter, the first %s: %s", table.label, len(mute), where, text)
    return np.array(kept), [captions[row] for row in kept]
