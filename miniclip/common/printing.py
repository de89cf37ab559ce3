"""Text that comes from data, on its way to a terminal or an image."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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


def near_name(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, whatever its case; None if none is near."""
    by_case = {name.casefold(): name for name in reversed(list(names))}
    near = difflib.get_close_matches(word.casefold(), by_case, n=1, cutoff=0.5)
    return by_case[near[0]] if near else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """An end for a message that names the one that was probably meant; or nothing."""
    near = near_name(word, names)
    return f"; did you mean {near}?" if near is not None else ""
