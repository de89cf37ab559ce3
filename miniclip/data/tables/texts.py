"""Many short lists of strings, packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from miniclip.common.fingerprint import digest


class TextLists:
    """Many short lists of strings in two arrays and one blob: small, and shared by forked workers without copies."""

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        encoded: list[bytes] = []
        counts = [0]
        for texts in lists:
            encoded.extend(text.encode("utf-8", "surrogatepass") for text in texts)
            counts.append(len(encoded))
        self._first = np.array(counts, dtype=np.int64)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._blob = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> list[str]:
        first, last = self._first[index], self._first[index + 1]
        ends = self._ends[first : last + 1].tolist()
        return [self._blob[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(ends)]

    def firsts(self) -> list[str]:
        """The first text of each list, all at once; there has to be one in each."""
        ends = self._ends.tolist()
        return [self._blob[ends[i] : ends[i + 1]].decode("utf-8", "surrogatepass") for i in self._first[:-1].tolist()]

    def fingerprint(self) -> str:
        return digest(self._first.tobytes(), self._ends.tobytes(), self._blob)
