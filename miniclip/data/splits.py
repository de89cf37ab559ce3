"""Which images are for training, validation and test, when the source says so and when it does not."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miniclip.common.printing import did_you_mean
from miniclip.config import DataConfig
from miniclip.data.tables.columns import image_column
from miniclip.data.tables.image_column import FileImages, images_of
from miniclip.data.tables.kinds import read_tables
from miniclip.data.tables.paths import paths_in
from miniclip.data.tables.source import ALIASES, SPLIT_NAMES, splits_of
from miniclip.data.tables.table import Table
from miniclip.data.tables.tars import TarTable

log = logging.getLogger(__name__)

LIKE_SPLIT = ("set", "subset", "partition", "data_split", "phase", "fold")
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
    named: tuple[str, ...] = (),
) -> dict[str, Part]:
    """Split name -> rows, by the source's own splits; or if it has one only, by a column called "split" (or "set", …),
    else by the folders of the images.

    Raises what read_tables does, and ValueError if a row names no split, or an image lies in two.
    """
    tables = read_tables(source, name, revision, named)
    only = next(iter(tables.values()))
    if len(tables) > 1:
        _tell_shared(source, tables, wanted_image, option)
        return {split: Part(table, np.arange(len(table))) for split, table in tables.items()}
    column = split_column(only)
    if column is None:
        told = _told_by_folders(only, wanted_image, option) or {next(iter(tables)): list(range(len(only)))}
        return {split: Part(only, np.array(numbers)) for split, numbers in told.items()}
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(only.values(column)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{only.label}, {only.where(row)}: column {column!r} is empty; name a split in every row")
        word = value.strip()
        rows.setdefault(word.lower() if word.lower() in SPLIT_NAMES else word, []).append(row)
    images = images_of(only, image_column(only, wanted_image, option))
    seen: dict[str, str] = {}
    for split, numbers in rows.items() if isinstance(images, FileImages) else ():
        for row, key in zip(numbers, images.keys(numbers), strict=True):
            if seen.setdefault(key, split) != split:
                raise ValueError(
                    f"{only.label}: {images.name(row)} is in split {split!r} and in {seen[key]!r}; "
                    "keep all rows of an image in one split"
                )
    return {split: Part(only, np.array(numbers)) for split, numbers in rows.items()}


def _tell_shared(source: str, tables: Mapping[str, Table], wanted: str | None, option: str) -> None:
    """Log which image files the tables of two splits name."""
    try:
        columns = {split: image_column(table, wanted, option) for split, table in tables.items()}
        named = {
            split: {value for value in table.values(columns[split]) if isinstance(value, str) and value.strip()}
            for split, table in tables.items()
            if table.kind(columns[split]) == "text"
        }
        for pair in combinations(named, 2):
            files: list[set[str]] = []
            for split in pair if not named[pair[0]].isdisjoint(named[pair[1]]) else ():  # the same names, at least
                table, images = tables[split], images_of(tables[split], columns[split])
                files.append({str(Path(table.roots[0], key)) for key in images.keys(range(len(table)))})
            if both := sorted(set.intersection(*files)) if files else ():
                log.warning("%s: %d images are both in %s and in %s, e.g. %s", source, len(both), *pair, both[0])
    except ValueError:  # raised again where the images are needed
        return


def split_column(table: Table) -> str | None:
    """A text column called "split"; or one with a like name, or inside an object, that holds names of splits alone."""
    own = next((c for c in table.columns if c.lower() == "split"), None)
    if own is not None and table.kind(own) == "text":
        return own
    like = [c for c in table.columns if c != own and c.lower().rpartition(".")[2] in ("split", *LIKE_SPLIT)]
    words = {c: (str(value).strip().lower() for value in table.values(c)) for c in like if table.kind(c) == "text"}
    found = next((c for c, said in words.items() if all(word in SPLIT_NAMES for word in said)), None)
    if own is not None and found is None:
        log.warning("%s: column %r holds no words, and tells no splits", table.label, own)
    return found


def _told_by_folders(table: Table, wanted: str | None, option: str) -> dict[str, list[int]]:
    """Split -> rows, where the folders of the images' files, or of members of a tar, tell it; else empty.

    Raises what `splits_of` does.
    """
    try:
        column = image_column(table, wanted, option)
    except ValueError:  # raised again where the images are needed
        return {}
    if isinstance(table, TarTable):
        paths = table.keys.firsts()
    elif table.kind(column) == "text":
        paths = [_relative(path, table.roots[0]) for path in paths_in(table, column)]
    else:
        return {}
    told = splits_of(filter(None, paths), table.label)
    rows: dict[str, list[int]] = {}
    split = next(iter(told.values()), "")
    for row, path in enumerate(paths if told else ()):
        split = told[path.rpartition("/")[0]] if path else split  # a row without an image counts as bad
        rows.setdefault(split, []).append(row)
    return rows


def _relative(path: str, root: str) -> str:
    if path[:1] == "/":
        return os.path.relpath(path, root)
    return os.path.normpath(path) if path and ("./" in path or "//" in path) else path


def count_images(parts: Iterable[Part], column: str) -> int:
    """Images of some splits, by the column that holds them; in a split an image that several rows name is one."""
    total, read = 0, dict[int, list[Any]]()  # a table that several splits share is read once
    for table, rows in parts:
        if column not in table.columns or table.kind(column) == "image":
            total += len(rows)
            continue
        if id(table) not in read:
            read[id(table)] = list(table.values(column))
        total += len({str(read[id(table)][row]).strip() for row in rows.tolist()})
    return total


def choose_split(splits: Collection[str], split: str, source: str) -> str:
    """The source's own word for a split; the only one there is, with a logged note. Raises ValueError."""
    for name in (split, *ALIASES.get(split, ())):
        if name in splits:
            return name
    if len(splits) > 1:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(splits)}")
    (only,) = splits
    log.warning("%s has the one split %r, which is taken whole", source, only)
    return only


def resolve_splits(splits: Collection[str], config: DataConfig, role: str) -> tuple[str, list[str]]:
    """Split of the source that holds the role, and the roles that have to be carved off it (empty: none).

    Usual other names of a split count while its option is at its default. Raises ValueError that lists the splits.
    """
    asked = {r: str(getattr(config, f"{r}_split")) for r in ALIASES}
    names = {r: (name, *(ALIASES[r] if name == r else ())) for r, name in asked.items()}
    found = {r: next((name for name in names[r] if name in splits), None) for r in ALIASES}
    if role != "train" and found[role] not in (None, found["train"]):
        return str(found[role]), []
    have, pool = ", ".join(splits), found["train"]

    def absent(role: str, rest: str) -> ValueError:
        return ValueError(
            f"data.source={config.source} has no split {asked[role]!r}, but {have}; set data.{role}_split to one of "
            f"them{rest}{did_you_mean(asked[role], splits)}"
        )

    if pool is None and asked["train"] == "train" and len(splits) == 1 and not any(found.values()):
        pool = next(iter(splits))  # one split under a name of its own, such as "all"
    if pool is None and role != "train" and asked[role] == role and len(splits) == 1:
        return choose_split(splits, role, config.label), []
    if pool is None:
        raise absent(role, "")
    for other in ("validation", "test"):
        if found[other] == pool:
            if asked[other] != other:
                raise ValueError(
                    f"data.{other}_split and data.train_split both name {pool!r}: its figures would be of images "
                    f"seen in training; the source has {have}; leave data.{other}_split out to set some images aside"
                )
            found[other] = None
        elif found[other] is None and asked[other] != other:
            raise absent(other, f", or leave it out to set some images of {pool!r} aside")
    return pool, [r for r in ("validation", "test") if found[r] is None]


class OneImage(ValueError):
    """All rows have the same image."""


def carve(keys: Sequence[str], missing: Sequence[str]) -> dict[str, np.ndarray]:
    """Role -> positions, for the training split and those carved off it: 5% each, at least 1 and at most 5000 images.

    The order of the images' hashes decides, so neither the order of the rows nor the machine matters; equal keys go
    together. Raises OneImage if all are the same one, ValueError if there are too few.
    """
    where: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        where.setdefault(key, []).append(position)
    if len(where) == 1 < len(keys):
        raise OneImage(f"all {len(keys)} images are the same one; check data.image_column")
    if len(where) <= len(missing):
        raise ValueError(f"{len(where)} images are too few to set some aside for {' and '.join(missing)}; add more")
    order = sorted(where, key=lambda key: hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    count = min(max(round(SHARE * len(order)), 1), LARGEST)
    pieces = {role: order[i * count : (i + 1) * count] for i, role in enumerate(missing)}
    pieces["train"] = order[len(missing) * count :]
    return {role: np.array(sorted(p for key in piece for p in where[key])) for role, piece in pieces.items()}
