"""Many short lists of strings, packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from miniclip.common.fingerprint import digest


class TextLists:
    """An Arrow array of lists: small, and shared by forked workers without copies.

    Of bytes, since Arrow's strings hold no lone surrogates, and names of files may.
    """

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        import pyarrow as pa

        encoded = ([text.encode("utf-8", "surrogatepass") for text in texts] for texts in lists)
        self._lists: Any = pa.array(encoded, pa.large_list(pa.large_binary()))

    def __len__(self) -> int:
        return len(self._lists)

    def __getitem__(self, index: int) -> list[str]:
        return [text.decode("utf-8", "surrogatepass") for text in self._lists[index].as_py()]

    def firsts(self) -> list[str]:
        """The first text of each list, all at once; there has to be one in each."""
        texts = self._lists.values.to_pylist()
        return [texts[i].decode("utf-8", "surrogatepass") for i in self._lists.offsets.to_pylist()[:-1]]

    def fingerprint(self) -> str:
        _, ends, blob = self._lists.values.buffers()
        parts = (self._lists.offsets.to_numpy(), ends, blob)
        return digest(*(b"" if part is None else memoryview(part).tobytes() for part in parts))
