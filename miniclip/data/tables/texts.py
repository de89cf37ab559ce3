"""Text as people store it: in older encodings, and lists written into one cell."""

from __future__ import annotations

import ast
import codecs
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from miniclip.common.printing import one_line

log = logging.getLogger(__name__)

# UTF-32 before UTF-16, whose mark is the beginning of its own
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
UNKNOWN = "unknown"
# what captions are found in; of all that there are, short texts fit too many
SEVERAL = ("cp932", "euc_jp", "gb18030", "big5", "cp949")  # bytes a letter
OLDER = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp874", *SEVERAL)
ENOUGH = 1 << 20  # bytes that tell an encoding
_CENTRAL = re.compile(r"[šžŠŽ]|[^\W\d_][¹³º¿¾¼]")  # as they look in Windows-1252


def read_text(file: Path) -> str:
    """Line ends as they are. Raises ValueError for what is no text."""
    data = file.read_bytes()
    if unicode_of(data)[1]:
        (text,) = decode_all([data], str(file), lambda _: "the whole file")
        lines = [text]
    else:  # by lines, so that one which was pasted from elsewhere does not spoil the others
        lines = decode_all(data.split(b"\n"), str(file), lambda line: f"line {line + 1}")
    if None in lines:
        raise ValueError(f"{file} is not text in an encoding that can be told; save it as UTF-8")
    return "\n".join(line for line in lines if line is not None)


def decode_all(items: Sequence[bytes | None], label: str, where: Callable[[int], str]) -> list[str | None]:
    """`decoded`, with a logged line for each encoding. where(index): what it calls a text."""
    found = decoded(items)
    for kind in sorted({kind for _, kind in found} - {"", "utf-8", "utf-8-sig"}):
        places = [i for i, (_, one) in enumerate(found) if one == kind]
        first, shown = where(places[0]), one_line(found[places[0]][0] or repr(items[places[0]]), 60)
        how = f"read as {spoken(kind)}, not UTF-8" if kind != UNKNOWN else "left out, not UTF-8 nor what can be told"
        count = f"{len(places)} text{'s' if len(places) > 1 else ''}"
        log.warning("%s: %s %s; the first: %s, %s", label, count, how, first, shown)
    return [text for text, _ in found]


def decoded(items: Sequence[bytes | None]) -> list[tuple[str | None, str]]:
    """Text and encoding of each of one data set, None and "" for what is none. All that is not Unicode is taken to be
    in one older encoding, found from all of it together."""
    found = [(None, "") if item is None else unicode_of(item) for item in items]
    marked = tuple(MARKS)
    other = {i: item for i, item in enumerate(items) if item and found[i][0] is None and not item.startswith(marked)}
    wide = next((kind for _, kind in found if kind in ("utf-16-le", "utf-16-be")), None)
    if wide is not None and all(_decodes(item, wide) for item in other.values()):
        encoding: str | None = wide  # a short text may hold too few zero bytes
    else:
        other = {i: item for i, item in other.items() if b"\0" not in item}
        encoding = _older(b"\n".join(other.values())) if other else None
        accidents = {i: item for i, item in enumerate(items) if item and found[i][1] == "utf-8" and not item.isascii()}
        if encoding in SEVERAL and len(accidents) < len(other):  # one letter or two may be good UTF-8
            other |= {i: item for i, item in accidents.items() if _decodes(item, encoding)}
    for i, item in other.items():
        found[i] = (item.decode(encoding), encoding) if encoding else (None, UNKNOWN)
    return found


def unicode_of(data: bytes) -> tuple[str | None, str]:
    """Text and encoding of UTF-8, or of UTF-16 or UTF-32 that a mark or their zero bytes tell; (None, "") of text
    in another, (None, UNKNOWN) of what is no text."""
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        even, odd = data[::2].count(0), data[1::2].count(0)
        if max(even, odd) > max(4 * min(even, odd), len(data) / 40, 1):
            encoding = "utf-16-be" if even > odd else "utf-16-le"
    try:
        return data.decode(encoding), encoding
    except UnicodeDecodeError:
        return None, "" if encoding == "utf-8" and b"\0" not in data else UNKNOWN


def spoken(encoding: str) -> str:
    return encoding.replace("cp125", "Windows-125").replace("utf-", "UTF-")


def _older(data: bytes) -> str | None:
    """Windows-1252 unless another says clearly more, or its letters are another's."""
    from charset_normalizer import from_bytes

    high = data.translate(None, bytes(range(128)))
    if len(high) >= 40 and not high.translate(None, bytes(range(0xE0, 0xFB))):
        return "cp1255"  # Hebrew's letters alone; Cyrillic and Greek have more
    sample = data[: data.find(b"\n", ENOUGH) + 1 or None]
    foreign = re.findall(rb"[^\s,;\"]*[\x80-\xff][^\t\r\n,;\"]*", sample)  # without the names and keys around it
    for text in (sample, b"\n".join(foreign)):
        matches = [match for match in from_bytes(text, cp_isolation=list(OLDER)) if _decodes(data, match.encoding)]
        if matches:
            break
    else:
        return None
    best = matches[0]
    western = any("cp1252" in m.could_be_from_charset and m.coherence >= best.coherence for m in matches)
    if western and _decodes(data, "cp1252"):
        western_text = data.decode("cp1252")
        letters = set(western_text)
        central = any(m.encoding == "cp1250" for m in matches) and _CENTRAL.search(western_text)
        turkish = letters & set("ýþðÝÞÐ") and not letters & set("áéíóúæ")  # Icelandic has those, too
        return "cp1250" if central else "cp1254" if turkish else "cp1252"
    return best.encoding


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


# ---- lists written as text

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LIST = re.compile(rf"(?:array\()?[\[(]\s*(?:(?:{_QUOTED}|None)[\s,]*)*[\])](?:,\s*dtype=[\w<>']+\s*\))?\)?", re.DOTALL)
_BEGINNINGS = ("[", "(", "{", "array(")
_LIKE_A_LIST = re.compile(r"(?:array\()?[\[({]\s*['\"].*|\[.*\]", re.DOTALL)


class Texts(NamedTuple):
    """Of a cell. lists: "read" or "unread" if it holds a list written as text, else empty."""

    texts: list[Any]
    lists: Literal["", "read", "unread"]


def texts_of(cell: Any) -> Texts:
    """The captions of a cell: itself, those of its list, and of a list that is written as text, as JSON, Python or
    numpy print one. "[sic] a dog" is one caption, and so is what cannot be read as a list of texts."""
    if isinstance(cell, str) and not cell.lstrip().startswith(_BEGINNINGS):
        return Texts([cell], "")  # nearly every caption
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
        what = "a list written as text is read as its captions"
        if how == "unread":
            what = "what may be a list written as text is read as one caption"
        rows = "rows" if len(where) > 1 else "row"
        log.warning("%s: %s in %d %s, the first %s", label, what, len(where), rows, where[0])


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


def lines_of(text: str) -> list[str]:
    """The captions of a file: its lines, but a list that is written as text may take several."""
    return [text] if like_a_list(text) and listed(text) is not None else text.splitlines()


def like_a_list(text: str) -> bool:
    """Whether it may be a list, or an object, that is written as text."""
    text = text.strip()
    return text.startswith(_BEGINNINGS) and _LIKE_A_LIST.fullmatch(text) is not None
