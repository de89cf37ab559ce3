"""Text that comes from data, on its way to a terminal or a picture."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """One line without control characters: an escape sequence in a file name must not reach a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def one_line(text: str, limit: int) -> str:
    """Printable text, cut with an ellipsis to `limit` characters."""
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def first_few(names: Sequence[object]) -> str:
    """The first five of what may be many, printable, to name in a message."""
    return printable("; ".join(map(str, names[:5])))
