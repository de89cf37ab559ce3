"""Labelled pictures for zero-shot classification: folders named after classes, or a table with a label column."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.data.arrow import ArrowTable
from miniclip.data.columns import image_column, label_column
from miniclip.data.folders import table_files
from miniclip.data.images import EXTENSIONS, decode_image, path_inside
from miniclip.data.patterns import SPLIT_NAMES
from miniclip.data.pictures import Pictures, check_some_exist, picture_column
from miniclip.data.sources import LabelledSource
from miniclip.data.splits import Part, find_split, read_parts
from miniclip.data.texts import TextLists

log = logging.getLogger(__name__)

DATA_EXTENSIONS = (".parquet", ".arrow", ".tar", ".zip", ".json", ".gz")


@dataclass(frozen=True)
class LabelledRows:
    """A LabelledSource over a table: item i is row rows[i]."""

    pictures: Pictures
    rows: np.ndarray
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.pictures.image(int(self.rows[index]))

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.rows[index]))


@dataclass(frozen=True)
class LabelledFolder:
    """A LabelledSource over one folder a class; paths are relative to root."""

    root: str
    paths: TextLists
    labels: np.ndarray
    classes: list[str]
    at_least: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        return decode_image(path_inside(self.root, name, name), name, at_least=self.at_least)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return self.paths[index][0]


def open_labelled(
    path_or_name: str | Path,
    *,
    split: str = "test",
    classnames_file: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> LabelledSource:
    """One split of a labelled data set.

    path_or_name: a folder with one sub-folder a class, perhaps below a level of splits; or what read_tables takes: a
    CSV or JSONL file, or a folder with one (file_name, label), Parquet files, tars, a Hub name. name, revision: of a
    Hub set.
    split: "train", "validation", "test" or the source's own word; a source with one split only is taken whole.
    classnames_file: what the classes are called in a prompt: lines `folder<TAB>phrase` or a JSON object; or lines or a
    JSON list with the names alone. Those go by name if they equal the labels, else by order: sorted folders or labels,
    or a Hub set's own order. Without the file, underscores in the labels become spaces.
    image_size: side that the encoder takes, in pixels; large JPEGs are then decoded smaller, as in open_source.
    The classes of the result are sorted labels, or in the Hub set's order. Raises FileNotFoundError or ValueError.
    """
    path = Path(path_or_name).expanduser()
    at_least = None if image_size is None else 2 * image_size
    if path.is_dir() and not table_files(path) and not _holds_data(path):
        return _open_folders(path, split, classnames_file, at_least)
    parts = read_parts(str(path_or_name), name, image_column, "image_column", revision)
    chosen = _pick(parts, split, str(path_or_name))
    return _open_rows(parts, chosen, classnames_file, image_column, label_column, at_least)


def _holds_data(folder: Path) -> bool:
    inside = [folder, folder / "data"]
    return any(p.suffix.lower() in DATA_EXTENSIONS for f in inside if f.is_dir() for p in f.iterdir() if p.is_file())


def _pick(parts: dict[str, Part], split: str, source: str) -> str:
    found = find_split(parts, split, split)
    if found is None and len(parts) == 1:
        found = next(iter(parts))
        log.warning("%s has the one split %r, which is used for %r", source, found, split)
    if found is None:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(parts)}")
    return found


def _open_folders(root: Path, split: str, classnames_file: str | Path | None, at_least: int | None) -> LabelledFolder:
    level = {p.name.lower(): p for p in _folders(root)}
    splits = {n: Part(None, np.zeros(0)) for n in level if n in SPLIT_NAMES}  # type: ignore[arg-type]
    if splits and len(splits) == len(level):
        root = level[_pick(splits, split, str(root))]
    folders = _folders(root)
    if len(folders) < 2:
        raise ValueError(f"{root} has {len(folders)} sub-folders; expected one a class, with pictures in it")
    paths: list[list[str]] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        before = len(paths)
        for where, below, files in os.walk(folder):
            below.sort()
            names = sorted(f for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith("."))
            paths.extend([os.path.relpath(Path(where) / f, root)] for f in names)
        if len(paths) == before:
            raise ValueError(f"class folder {folder} holds no picture ({', '.join(EXTENSIONS)}); fill or remove it")
        labels.extend([label] * (len(paths) - before))
    classes = name_classes([f.name for f in folders], classnames_file)
    return LabelledFolder(os.path.realpath(root), TextLists(paths), np.array(labels), classes, at_least)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def _open_rows(
    parts: dict[str, Part],
    split: str,
    classnames_file: str | Path | None,
    wanted_image: str | None,
    wanted_label: str | None,
    at_least: int | None,
) -> LabelledRows:
    table, rows = parts[split]
    image = image_column(table, wanted_image, "image_column")
    column = label_column(table, wanted_label, image)
    pictures = picture_column(table, image, at_least)
    names = table.class_names(column) if isinstance(table, ArrowTable) else None
    values = list(table.values(column))
    for row in rows.tolist():
        _check_label(values[row], None if names is None else len(names), f"{table.label}, {table.where(row)}", column)
    if names is None:
        # Every split counts, so that a class which one of them lacks has the same number in all.
        found = {v for part in parts.values() for v in _labels_of(part, column)}
        keys: list[Any] = sorted(found, key=lambda v: (isinstance(v, str), v))
        if classnames_file is None and not all(isinstance(k, str) for k in keys):
            raise ValueError(f"{table.label}: {column} holds numbers without names; give a class-names file")
        number = {key: i for i, key in enumerate(keys)}
        labels = [number[values[row]] for row in rows.tolist()]
        names = [str(key) for key in keys]
    else:
        labels = [values[row] for row in rows.tolist()]
    check_some_exist(pictures, rows)
    return LabelledRows(pictures, rows, np.array(labels), name_classes(names, classnames_file))


def _labels_of(part: Part, column: str) -> set[Any]:
    if column not in part.table.columns:
        return set()
    values = list(part.table.values(column))
    return {v for row in part.rows.tolist() if isinstance(v := values[row], str | int)}


def _check_label(value: Any, classes: int | None, where: str, column: str) -> None:
    good = isinstance(value, str | int) and value != "" and not isinstance(value, bool)
    if not good or (classes is not None and not 0 <= value < classes):
        raise ValueError(f"{where}: {column} is {value!r}, not a class; remove the row, or choose a labelled split")


def name_classes(keys: Sequence[str], file: str | Path | None) -> list[str]:
    """Folder names or labels -> names for prompts, in the same order.

    Raises FileNotFoundError if there is no such file, ValueError that lists the classes it lacks and has too many.
    """
    if file is None:
        return [_spoken(key) for key in keys]
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"class-names file {path} does not exist")
    names = _read_names(path)
    if isinstance(names, list):
        if set(map(_spoken, names)) & set(map(_spoken, keys)):
            names = {_spoken(name): name for name in names}
            keys = [_spoken(key) for key in keys]
        elif len(names) == len(keys):
            return names
        else:
            raise ValueError(f"{path} has {len(names)} names for {len(keys)} classes: {_short(keys)}")
    missing, extra = [k for k in keys if k not in names], [n for n in names if n not in keys]
    if missing or extra:
        problems = [f"lacks {_short(missing)}"] * bool(missing) + [f"names {_short(extra)} without pictures"] * bool(
            extra
        )
        raise ValueError(f"{path} {' and '.join(problems)}; it has to name the {len(keys)} classes, each once")
    return [names[key] for key in keys]


def _read_names(path: Path) -> list[str] | dict[str, str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        flat = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(flat, list) or not flat or not all(isinstance(v, str) and v.strip() for v in flat):
            raise ValueError(f"{path}: expected a list of names, or an object of folder: name")
        return value
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty; write one class a line")
    if not any("\t" in line for line in lines):
        return [line.strip() for line in lines]
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, tab, name = line.partition("\t")
        if not tab or not name.strip() or key.strip() in names:
            raise ValueError(f"{path}, entry {number}: {line!r}; write `folder<TAB>name`, each folder once")
        names[key.strip()] = name.strip()
    return names


def _spoken(key: str) -> str:
    return key.replace("_", " ").strip()


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
