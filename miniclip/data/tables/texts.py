"""Text as people store it: lists written into one cell."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

log = logging.getLogger(__name__)

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LIST = re.compile(rf"(?:array\()?[\[(]\s*(?:(?:{_QUOTED}|None)[\s,]*)*[\])](?:,\s*dtype=[\w<>']+\s*\))?\)?", re.DOTALL)
_LIKE_A_LIST = re.compile(r"(?:array\()?[\[({]\s*['\"].*|\[.*\]", re.DOTALL)


class Texts(NamedTuple):
    """Of a cell. lists: "read" or "unread" if it holds a list written as text, else empty."""

    texts: list[Any]
    lists: Literal["", "read", "unread"]


def texts_of(cell: Any) -> Texts:
    """The captions of a cell: itself, those of its list, and of a list that is written as text, as JSON, Python or
    numpy print one. "[sic] a dog" is one caption, and so is what cannot be read as a list of texts."""
    texts, lists = list[Any](), set[Literal["read", "unread"]]()
    for text in cell if isinstance(cell, list) else [cell]:
        found = None
        if isinstance(text, str) and like_a_list(text):
            found = listed(text)
            lists.add("unread" if found is None else "read")
        texts += [text] if found is None else found
    return Texts(texts, max(lists, default=""))


def tell_lists(label: str, places: Mapping[str, Sequence[str]]) -> None:
    """Log where lists stand as one text. places: "read" or "unread" -> rows."""
    for how, where in places.items():
        said = "its texts are the captions" if how == "read" else "which cannot be read as one, and is one caption"
        log.warning("%s: %d rows hold a list written as text, the first %s; %s", label, len(where), where[0], said)


def listed(text: str) -> list[str | None] | None:
    """Texts of a list that is written as text; None if it is no such text."""
    text = text.strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if _LIST.fullmatch(text) is None:
            return None
        try:  # one after the other, since numpy writes no commas and Python would join them
            found = [ast.literal_eval(token) for token in re.findall(f"{_QUOTED}|None", text.split("dtype=")[0])]
        except (ValueError, SyntaxError):
            return None
    good = isinstance(found, list) and all(value is None or isinstance(value, str) for value in found)
    return found if good else None


def like_a_list(text: str) -> bool:
    """Whether it may be a list, or an object, that is written as text."""
    text = text.strip()
    return text[:1] in ("[", "(", "{", "a") and _LIKE_A_LIST.fullmatch(text) is not None
