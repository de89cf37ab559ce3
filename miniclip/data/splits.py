"""Which pictures are for training, validation and test, when the source says so and when it does not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miniclip.config import DataConfig
from miniclip.data.tables.columns import image_column
from miniclip.data.tables.image_column import FilePictures, picture_column
from miniclip.data.tables.patterns import near_name
from miniclip.data.tables.reading import read_tables
from miniclip.data.tables.table import Table

ROLES = ("train", "validation", "test")
ALIASES = {"train": ("training",), "validation": ("val", "valid", "dev"), "test": ("testing", "eval")}
SHARE = 0.05
LARGEST = 5000


class Part(NamedTuple):
    """Rows of a table that make up a split."""

    table: Table
    rows: np.ndarray  # int64


def read_parts(
    source: str,
    name: str | None = None,
    wanted_image: str | None = None,
    option: str = "data.image_column",
    revision: str | None = None,
) -> dict[str, Part]:
    """Split name -> rows, by the source's own splits or, if it has one only, by a column called "split".

    Raises what read_tables does, and ValueError if a row names no split, or a picture lies in two.
    """
    tables = read_tables(source, name, revision)
    only = next(iter(tables.values()))
    column = next((c for c in only.columns if c.lower() == "split" and only.kind(c) == "text"), None)
    if len(tables) > 1 or column is None:
        return {split: Part(table, np.arange(len(table))) for split, table in tables.items()}
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(only.values(column)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{only.label}, {only.where(row)}: column {column!r} is empty; name a split in every row")
        rows.setdefault(value.strip(), []).append(row)
    pictures = picture_column(only, image_column(only, wanted_image, option))
    if isinstance(pictures, FilePictures):
        _check_apart(pictures, rows)
    return {split: Part(only, np.array(numbers)) for split, numbers in rows.items()}


def _check_apart(pictures: FilePictures, rows: dict[str, list[int]]) -> None:
    seen: dict[str, str] = {}
    for split, numbers in rows.items():
        for row, key in zip(numbers, pictures.keys(numbers), strict=True):
            if seen.setdefault(key, split) != split:
                raise ValueError(
                    f"{pictures.table.label}: {pictures.name(row)} is in split {split!r} and in {seen[key]!r}; "
                    "keep all rows of a picture in one split"
                )


def find_split(parts: dict[str, Part], role: str, name: str) -> str | None:
    """Name under which the source has a split; its usual other names count while the option is at its default."""
    names = (name, *ALIASES.get(role, ())) if name == role else (name,)
    return next((n for n in names if n in parts), None)


def resolve_splits(parts: dict[str, Part], config: DataConfig, role: str) -> tuple[str, list[str]]:
    """Split of the source that holds the role, and the roles that have to be carved off it (empty: none).

    Raises ValueError that lists the splits there are.
    """
    asked = {r: str(getattr(config, f"{r}_split")) for r in ROLES}
    found = {r: find_split(parts, r, asked[r]) for r in ROLES}
    if role != "train" and found[role] is not None and found[role] != found["train"]:
        return str(found[role]), []
    have = ", ".join(parts)
    pool = found["train"]
    if pool is None and asked["train"] == "train" and len(parts) == 1 and not any(found.values()):
        pool = next(iter(parts))  # one split under a name of its own, such as "all"
    if pool is None:
        raise ValueError(
            f"data.source={config.source} has no split {asked['train']!r}{_near(asked['train'], parts)}; "
            f"it has {have}; set data.train_split to one of them"
        )
    for other in ("validation", "test"):
        if found[other] == pool:
            if asked[other] != other:
                raise ValueError(
                    f"data.{other}_split and data.train_split both name {pool!r}: its figures would be of pictures "
                    f"seen in training; the source has {have}; leave data.{other}_split out to set some pictures aside"
                )
            found[other] = None
        elif found[other] is None and asked[other] != other:
            raise ValueError(
                f"data.source={config.source} has no split {asked[other]!r}{_near(asked[other], parts)}, but {have}; "
                f"set data.{other}_split to one of them, or leave it out to set some pictures of {pool!r} aside"
            )
    return pool, [r for r in ("validation", "test") if found[r] is None]


class OnePicture(ValueError):
    """All rows have the same picture."""


def carve(keys: Sequence[str], missing: Sequence[str]) -> dict[str, np.ndarray]:
    """Role -> positions, for the training split and those carved off it: 5% each, at least 1 and at most 5000 pictures.

    The order of the pictures' hashes decides, so neither the order of the rows nor the machine matters; equal keys go
    together. Raises OnePicture if all are the same one, ValueError if there are too few.
    """
    where: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        where.setdefault(key, []).append(position)
    if len(where) == 1 < len(keys):
        raise OnePicture(f"all {len(keys)} pictures are the same one; check data.image_column")
    if len(where) <= len(missing):
        raise ValueError(f"{len(where)} pictures are too few to set some aside for {' and '.join(missing)}; add more")
    order = sorted(where, key=lambda key: hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    count = min(max(round(SHARE * len(order)), 1), LARGEST)
    pieces = {role: order[i * count : (i + 1) * count] for i, role in enumerate(missing)}
    pieces["train"] = order[len(missing) * count :]
    return {role: np.array(sorted(p for key in piece for p in where[key])) for role, piece in pieces.items()}


def _near(name: str, parts: dict[str, Part]) -> str:
    near = near_name(name, parts)
    return f" (did you mean {near}?)" if near is not None else ""
