"""How many images may be bad before a run stops."""

from __future__ import annotations

from collections.abc import Iterable

from miniclip.common.printing import first_few


class TooManyBad(ValueError):
    """More than data.max_bad_fraction of the images cannot be used; the message counts and names them."""


class BadCount:
    """Names of what could not be used, each once, in the order of their failure.

    total: images among which they are counted. allowed: data.max_bad_fraction; 0 stops at the first.
    """

    def __init__(self, total: int, allowed: float) -> None:
        self.total, self.allowed = total, allowed
        self._names: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def add(self, names: Iterable[object]) -> None:
        """Note some, each as its message (a BadImage names its row or file). Raises TooManyBad above the share."""
        self._names.update(dict.fromkeys(map(str, names)))
        if len(self) > self.allowed * self.total:
            raise TooManyBad(
                f"{len(self)} of {self.total} images cannot be used, more than data.max_bad_fraction="
                f"{self.allowed:g} allows: {first_few(self.names)}; mend or remove them, or raise the share"
            )
