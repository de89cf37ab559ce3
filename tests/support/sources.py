"""Sources of images, captions and labels that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from miniclip.data.images import BadImage


def noise(index: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """Coarse noise, other for every index."""
    width, height = size
    pixels = np.random.default_rng(index).integers(0, 256, (height // 2 + 1, width // 2 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def coloured(index: int) -> Image.Image:
    """One colour, which tells the index (below 65,536)."""
    return Image.new("RGB", (20, 16), (index % 256, index // 256, 0))


class FakePairs:
    """A PairSource: two captions an image unless captions says others, "image 3" and a longer one.

    draw: index -> image. broken: rows whose image cannot be read, or row -> what is raised instead. columns: what
    `column` gives. read: the rows that were asked for.
    """

    def __init__(
        self,
        size: int,
        *,
        captions: Sequence[Sequence[str]] | None = None,
        draw: Callable[[int], Image.Image] = coloured,
        broken: Sequence[int] | Mapping[int, Exception] = (),
        columns: Mapping[str, Sequence[Any]] | None = None,
        version: str = "1",
    ) -> None:
        self.size, self.draw, self.broken, self.columns, self.version = size, draw, broken, columns or {}, version
        self._captions = captions
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> Image.Image:
        self.read.append(index)
        if index in self.broken:
            raise self.broken[index] if isinstance(self.broken, Mapping) else BadImage(f"row {index}: cut short")
        return self.draw(index)

    def captions(self, index: int) -> list[str]:
        if self._captions is not None:
            return list(self._captions[index])
        return [f"image {index}", f"the long and winding second caption of image number {index}"]

    def name(self, index: int) -> str:
        return f"row {index}"

    def column(self, name: str) -> list[Any]:
        if name not in self.columns:
            raise ValueError(f"no column {name}")
        return list(self.columns[name])

    def fingerprint(self) -> str:
        return f"{type(self).__name__} {self.size} {sorted(self.broken)} {self.version}"


class FakeLabelled(FakePairs):
    """A LabelledSource: image i has the label labels[i], or i modulo the number of classes."""

    def __init__(
        self,
        size: int,
        classes: Sequence[str] = ("a dog", "a cat"),
        labels: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size, **options)
        self.classes, self.labels = list(classes), labels

    def label(self, index: int) -> int:
        return index % len(self.classes) if self.labels is None else self.labels[index]
