"""Text that comes from data, on its way to a terminal or a picture."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters: an escape sequence in a file name must not reach a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
