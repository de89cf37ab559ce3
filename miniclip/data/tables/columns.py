"""Which column of a table holds the images, and which hold the captions or the label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from miniclip.common.printing import did_you_mean
from miniclip.data.tables.table import Kind, Table

IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "file_name", "filename", "filepath"),
    *("file_path", "image_path", "img_path", "image_file", "image_name", "path", "file"),
)
ADDRESS_NAMES = ("url", "image_url", "img_url", "image_link", "link")  # which say what to fetch
# Each tier is looked at only if the ones before it are absent.
CAPTION_NAMES = (
    ("captions", "caption", "text", "texts", "sentences", "sentence", "txt"),
    ("description", "descriptions", "alt_text", "prompt", "title", "comment"),
)
CAPTION_FAMILY = re.compile(r"(captions?|texts?|sentences?|txt|comments?|descriptions?)[ _-]?(\d+)", re.IGNORECASE)
LABEL_NAMES = (
    *("label", "labels", "class", "class_name", "classname", "category"),
    *("fine_label", "coarse_label", "target", "cls"),
)


def image_column(table: Table, wanted: str | None, option: str = "data.image_column") -> str:
    """Column of the images: the one asked for, else the only one of image type, else one with a usual name."""
    if wanted is not None:
        return _checked(table, [wanted], ("image", "text"), "images or paths", option)[0]
    found, first = [c for c in table.columns if table.kind(c) == "image"], "image"
    if not found:
        found = [c for c in _named(table.columns, IMAGE_NAMES) if "." not in c and table.kind(c) == "text"]
        found = found or [c for c in table.columns if c.lower() in ADDRESS_NAMES and table.kind(c) == "text"]
        first = "file_name"  # the imagefolder format's own name
    return first if first in found else _the_one(table, found, "image", option)


def caption_columns(table: Table, wanted: str | Sequence[str] | None, image: str) -> list[str]:
    """Columns of the captions: those asked for, else one with a usual name, else a family (caption_0, …)."""
    option = "data.caption_column"
    if wanted is not None:
        columns = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
        if not columns:
            raise ValueError(f"{option} is an empty list; name a column, or leave the option out")
        return _checked(table, columns, ("text", "texts"), "text or lists of text", option)
    every = [c for c in table.columns if c != image and table.kind(c) in ("text", "texts")]
    texts, nested = [c for c in every if "." not in c], [c for c in every if "." in c]
    family = {c: match for c in texts if (match := CAPTION_FAMILY.fullmatch(c))}
    usual = _named(texts, CAPTION_NAMES[0])
    if family and not usual and len({match[1] for match in family.values()}) == 1:
        return sorted(family, key=lambda c: int(family[c][2]))
    # a field inside an object counts only if no column of its own does
    tiers = [(texts, names) for names in CAPTION_NAMES[1:]] + [(nested, names) for names in CAPTION_NAMES]
    found = [*family, *usual] or next((f for where, names in tiers if (f := _named(where, names))), [])
    return [_the_one(table, found, "caption", option)]


def label_column(table: Table, wanted: str | None, image: str) -> str:
    """Column of the class."""
    if wanted is not None:
        return value_column(table, wanted, "label_column")
    found = [c for c in _named(table.columns, LABEL_NAMES) if c != image and table.kind(c) in ("text", "other")]
    if [image] == table.columns:
        raise ValueError(
            f"{table.label} holds images alone; if folders inside a tar are the classes, unpack it, and name the folder"
        )
    return _the_one(table, found, "label", "label_column")


def value_column(table: Table, wanted: str, option: str) -> str:
    """Column of a number or a class for each row."""
    return _checked(table, [wanted], ("text", "other"), "numbers or classes", option)[0]


def _named(columns: Iterable[str], names: Sequence[str]) -> list[str]:
    return [c for c in columns if c.lower().rpartition(".")[2] in names]


def _the_one(table: Table, found: list[str], what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    problem = f"{', '.join(found)} could each be the {what} column" if found else f"no {what} column was recognised"
    raise ValueError(f"{table.label}: {problem}; set {option} to one of its columns: {', '.join(table.columns)}")


def _checked(table: Table, columns: list[str], kinds: Sequence[Kind], what: str, option: str) -> list[str]:
    have = ", ".join(table.columns)
    for column in columns:
        if column not in table.columns:
            near = did_you_mean(column, table.columns)
            raise ValueError(f"{table.label} has no column {column} ({option}), but {have}{near}")
        if table.kind(column) not in kinds:
            raise ValueError(f"{table.label}: {option}={column} does not hold {what}; the columns are {have}")
    return columns
