"""Some rows of a source: the first few, or those whose images can be read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from PIL import Image

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.common.processes import gathered, place
from miniclip.data.ahead import threads
from miniclip.data.captioned import ImageSource
from miniclip.data.images import BadCount, BadImage

log = logging.getLogger(__name__)

Source = TypeVar("Source", bound=ImageSource)


class Subset:
    """Row i is row rows[i] of source, a PairSource, a LabelledSource or any images; it is what the source is."""

    classes: list[str]
    keys: list[str]
    names: list[list[str]]
    templates: tuple[str, ...] | None
    split: str
    whole: int

    def __init__(self, source: Any, rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    def __getattr__(self, name: str) -> Any:
        if name in type(self).__annotations__:
            return getattr(self.source, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.source.image(self.rows[index])

    def captions(self, index: int) -> list[str]:
        return self.source.captions(self.rows[index])

    def label(self, index: int) -> int:
        return self.source.label(self.rows[index])

    def column(self, name: str) -> list[Any]:
        values = self.source.column(name)
        return [values[row] for row in self.rows]

    def name(self, index: int) -> str:
        return self.source.name(self.rows[index])

    def fingerprint(self) -> str:
        return digest(self.source.fingerprint(), *self.rows)


class NoneLeft(ValueError):
    """A split of which no image can be read. bad: why."""

    def __init__(self, source: Any, bad: Sequence[object]) -> None:
        split = getattr(source, "split", "")
        where = f" of split {split}" if split else ""
        super().__init__(f"none of the {len(bad)} images{where} can be read: {first_few(bad)}")


def readable(source: Source, allowed: float) -> Source:
    """Try every image; returns the source if all can be read, else the rows that can.

    Those left out are counted and named; above the allowed share of all it raises TooManyBad, and if none can be read
    NoneLeft. Every process of a group calls it, and tries its part.
    """

    def error_of(row: int) -> BadImage | None:
        try:
            source.image(row)
        except BadImage as error:
            return error
        return None

    rank, count = place()
    own = range(rank, len(source), count)
    with threads(4) as pool:
        errors = zip(own, pool.map(error_of, own), strict=True)
        found = dict(sorted(gathered([(row, str(error)) for row, error in errors if error is not None])))
    if not found:
        return source
    bad = BadCount.of(source, allowed)
    bad.add(found.values())
    if len(found) == len(source):
        raise NoneLeft(source, list(found.values()))
    if rank == 0:
        log.warning("%d evaluation images cannot be read and are left out: %s", len(bad), first_few(bad.names))
    return cast(Source, Subset(source, [row for row in range(len(source)) if row not in found]))
