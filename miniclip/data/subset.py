"""Some rows of a source: the first few, or those whose pictures can be read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from PIL import Image

from miniclip.data.images import BadImage
from miniclip.data.sources import LabelledSource, PairSource
from miniclip.printing import first_few

Source = TypeVar("Source", PairSource, LabelledSource)


class Subset:
    """Row i is row rows[i] of source, a PairSource or a LabelledSource; it is what the source is."""

    def __init__(self, source: Any, rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    @property
    def classes(self) -> list[str]:
        return cast(list[str], self.source.classes)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return cast(Image.Image, self.source.image(self.rows[index]))

    def captions(self, index: int) -> list[str]:
        return cast(list[str], self.source.captions(self.rows[index]))

    def label(self, index: int) -> int:
        return cast(int, self.source.label(self.rows[index]))

    def column(self, name: str) -> list[Any]:
        values = self.source.column(name)
        return [values[row] for row in self.rows]

    def name(self, index: int) -> str:
        return cast(str, self.source.name(self.rows[index]))


def readable(source: Source, on_bad: str) -> Source:
    """Try every picture; returns the source if all can be read, else, with on_bad=skip, the rows that can.

    Those left out are counted and named. Raises BadImage with on_bad=stop.
    """

    def error_of(row: int) -> BadImage | None:
        try:
            source.image(row)
        except BadImage as error:
            return error
        return None

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(error_of, range(len(source))))
    bad = [error for error in errors if error is not None]
    if not bad:
        return source
    if on_bad == "stop":
        raise BadImage(f"{bad[0]} (one of {len(bad)}); mend or remove it, or set on_bad to skip")
    print(f"{len(bad)} evaluation pictures cannot be read and are left out: {first_few(bad)}")
    return cast(Source, Subset(source, [row for row, error in enumerate(errors) if error is None]))
