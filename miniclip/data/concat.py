"""Several sources as one: the pictures of the first, then those of the second, and so on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

from PIL import Image

from miniclip.common.fingerprint import digest


class Part(Protocol):
    """What is asked of each source: that it is a PairSource."""

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image: ...
    def captions(self, index: int) -> list[str]: ...
    def name(self, index: int) -> str: ...
    def column(self, name: str) -> list[Any]: ...
    def fingerprint(self) -> str: ...


class Several:
    """A PairSource of several. sizes: pictures of each, in the order of data.source."""

    def __init__(self, parts: Sequence[Part], names: Sequence[str]) -> None:
        self.parts, self.names = list(parts), list(names)
        self.sizes = [len(part) for part in parts]
        self._ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int) -> tuple[int, int]:
        """Which source a picture is of, and which picture of that. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)} asked for")
        part = bisect_right(self._ends, index)
        return part, index - self._ends[part] + self.sizes[part]

    def image(self, index: int) -> Image.Image:
        part, inside = self.place(index)
        return self.parts[part].image(inside)

    def captions(self, index: int) -> list[str]:
        part, inside = self.place(index)
        return self.parts[part].captions(inside)

    def name(self, index: int) -> str:
        part, inside = self.place(index)
        return f"{self.names[part]}: {self.parts[part].name(inside)}"

    def column(self, name: str) -> list[Any]:
        return [value for part in self.parts for value in part.column(name)]

    def fingerprint(self) -> str:
        return digest(*(part.fingerprint() for part in self.parts))
