"""Labelled images: folders named after classes, or a table with a label column; and images alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from miniclip.common.printing import first_few
from miniclip.data.captioned import LabelledSource
from miniclip.data.classes import find_known, name_classes, sorted_keys, spoken, wordless
from miniclip.data.folders import Layout, class_folders, read_layout
from miniclip.data.formats import extensions, note_left_out
from miniclip.data.splits import Part, choose_split, count_images, read_parts
from miniclip.data.tables.columns import image_column as find_image_column
from miniclip.data.tables.columns import label_column as find_label_column
from miniclip.data.tables.image_column import FileImages, ImageColumn, ImageRows, images_in, images_of
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.source import ALIASES, Source, files_below
from miniclip.data.tables.texts import like_a_list

log = logging.getLogger(__name__)

DATA_EXTENSIONS = (".arrow", ".zip", ".json", ".gz")


@dataclass(frozen=True)
class LabelledImages(ImageRows):
    """A LabelledSource over a table or a folder. labels: of each image a place in names.

    keys: what the source calls the classes. names: all names of each, the first being the one in `classes`. templates:
    what the CLIP paper prompts this set with, None for a set that is not one of the usual ones.
    """

    labels: np.ndarray
    keys: list[str]
    names: list[list[str]]
    templates: tuple[str, ...] | None

    @property
    def classes(self) -> list[str]:
        return [names[0] for names in self.names]

    def label(self, index: int) -> int:
        return int(self.labels[index])


def open_labelled(
    path_or_name: str | Path,
    *,
    split: str = "test",
    classnames_file: str | Path | None = None,
    classnames_by: str = "name",
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    image_size: int | None = None,
) -> LabelledSource:
    """One split of a labelled data set.

    path_or_name: a folder with one sub-folder a class, perhaps below a level of splits; or what read_tables takes.
    split: "train", "validation", "test" or the source's own word; a source with one split only is taken whole.
    classnames_file, classnames_by: what the classes are called in a prompt, see `name_classes`; without the file the
    labels, cleaned. name, revision: of a Hub set. image_size: side that the encoder takes, in pixels; large JPEGs are
    decoded smaller, as in open_source.
    The classes of the result are the sorted labels of all splits, numbers by value, or a Hub set's own order. Of a
    usual set (see classes.py) the class names and templates come by themselves.
    Raises FileNotFoundError or ValueError.
    """
    source, folder = str(path_or_name), Source(str(path_or_name))
    at_least = None if image_size is None else 2 * image_size
    if holds_folders(folder):
        keys, labels, images, told, whole = _read_folders(folder.path, split, at_least)
        rows, holds = np.arange(len(labels)), ""
    else:
        parts = read_parts(source, name, image_column, "image_column", revision)
        told = choose_split(parts, split, source)
        table, rows = chosen = parts[told]
        image = find_image_column(table, image_column, "image_column")
        whole = count_images(parts.values(), image)
        column = find_label_column(table, label_column, image)
        images, holds = images_of(table, image, at_least), f"{table.label}: {column} holds"
        keys, labels = _read_labels(list(parts.values()), chosen, column)
        _tell_repeated(table.label, images, rows, [keys[label] for label in labels])
    said = [str(key) for key in keys]
    first = dict[str, str]()
    near = [(other, key) for key in said if (other := first.setdefault(spoken(key).casefold(), key)) != key]
    if near:
        shown = "; ".join(f"{one!r} and {other!r}" for one, other in near[:5])
        log.warning("%s: classes that differ in case or white space alone, is it one? %s", source, shown)
    if lists := [key for key in said if like_a_list(key)]:
        log.warning("%s: what may be a list written as text is a class of its own: %s", source, first_few(lists))
    names, templates = _prompting(source, said, classnames_file, classnames_by)
    if names is None and not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{holds} numbers without names; give a class-names file")
    if names is None:
        names = name_classes(said, None)
        changed = [f"{key} -> {own}" for key, (own,) in zip(said, names, strict=True) if own != spoken(key)]
        if changed:
            log.warning(
                "%s: class names are cleaned for prompts: %s; --classnames says others", source, first_few(changed)
            )
    return LabelledImages(images, rows, labels, said, names, templates, split=told, whole=whole)


def open_images(path_or_name: str | Path, *, split: str = "test", image_size: int | None = None) -> ImageRows:
    """The images of any source, each once, whatever is said of them. Raises FileNotFoundError or ValueError.

    path_or_name: a folder of images, searched to the bottom (one folder a class, or none); or what read_tables takes,
    labelled or captioned. The rest as in open_labelled.
    """
    source = Source(str(path_or_name))
    at_least = None if image_size is None else 2 * image_size
    if source.below(*extensions()) and holds_folders(source):
        layout = read_layout(source.path)
        splits = {name: folders[0].parent for name, folders in layout.splits.items()} | layout.unlabelled
        told = choose_split(splits, split, source.label) if splits else ""
        folder = splits.get(told, source.path)
        found = _below([folder], source.path)[folder]
        if not found:
            raise FileNotFoundError(f"{folder} holds no image ({', '.join(extensions())})")
        return ImageRows(images_in(source.path, found, at_least), np.arange(len(found)), split=told)
    parts = read_parts(source.text, option="image_column")
    told = choose_split(parts, split, source.text)
    table, rows = parts[told]
    images = images_of(table, find_image_column(table, None, "image_column"), at_least)
    rows = rows[~images.missing()[rows]]
    if isinstance(images, FileImages):  # one row a caption
        rows = np.array(list(dict(zip(images.keys(rows), rows, strict=True)).values()))
    if not len(rows):
        raise ValueError(f"{table.label}: no row has an image")
    return ImageRows(images, rows, split=told if len(parts) > 1 else "")


def labelled_splits(path_or_name: str | Path, name: str | None = None, revision: str | None = None) -> list[str]:
    """The splits that `open_labelled` can open; of folders that are not divided the one word "all"."""
    source = Source(str(path_or_name))
    if holds_folders(source):
        return list(_labelled_layout(source.path).splits) or ["all"]
    return list(read_parts(source.text, name, revision=revision))


def holds_folders(source: Source) -> bool:
    """Whether it is a folder of images by class, rather than one with a table or other data."""
    if not source.is_folder or source.tables or _holds_shards(source):
        return False
    return bool(source.below(*extensions())) or not source.below(*DATA_EXTENSIONS)


def _holds_shards(source: Source) -> bool:
    """Whether the tars or Parquet files of a folder are its data, rather than archives beside folders of images."""
    shards = source.below(".tar", ".parquet")
    folders = {name.partition(os.sep)[0] for name in source.below(*extensions()) if os.sep in name}
    return bool(shards) and (any(os.sep in name for name in shards) or len(folders) < 2)


def _below(folders: Iterable[Path], root: Path, rest: Iterable[str] = ()) -> dict[Path, list[str]]:
    """Images below each of some folders, as paths relative to the root: links may lead to all that is below that.

    The other files are counted in the log. rest: more of them.
    """
    found, others = dict[Path, list[str]](), list(rest)
    for folder in folders:
        inside = "" if folder == root else f"{folder.relative_to(root)}{os.sep}"
        every = [inside + name for name in files_below(folder)]
        found[folder] = [name for name in every if name.lower().endswith(extensions())]
        others += set(every).difference(found[folder])
    note_left_out(root, others)
    return found


def _labelled_layout(root: Path) -> Layout:
    """As `read_layout`. Raises ValueError, too, if there are splits without classes alone."""
    layout = read_layout(root)
    if layout.unlabelled and not layout.splits:
        bare = ", ".join(str(folder.relative_to(root)) for folder in layout.unlabelled.values())
        raise ValueError(
            f"{root}: {bare} are splits by their names, and hold no folders of classes; expected one a class"
        )
    splits = {split: class_folders(folders) for split, folders in layout.splits.items()}
    return Layout(splits, layout.unlabelled, class_folders(layout.classes))


def _prompting(
    source: str, keys: Sequence[str], file: str | Path | None, by: str
) -> tuple[list[list[str]] | None, tuple[str, ...] | None]:
    """Names of the classes, None where nothing says more than the keys; and the templates of a usual set."""
    known = find_known(source, keys)
    names = name_classes(keys, file, by) if file is not None else known.names(keys) if known is not None else None
    if known is not None:
        log.warning(
            "%s is taken for %s: %s%d %s of it unless others are given (--templates simple%s)",
            *(source, known.name, "its class names, and " if file is None and names is not None else ""),
            *(len(known.templates), "template" if len(known.templates) == 1 else "templates"),
            ", --classnames FILE" if file is None else "",
        )
    if names is None and wordless(keys) and (known is None or not known.order):
        log.warning("%s: its classes are called %s; a class-names file says what they are", source, first_few(keys))
    return names, None if known is None else known.templates


def _read_folders(root: Path, split: str, at_least: int | None) -> tuple[list[str], np.ndarray, ImageColumn, str, int]:
    """What the classes are called, in order; of each image the place in it; the images; the source's word for the
    split, empty if it has none; and how many images there are in all splits."""
    layout = _labelled_layout(root)
    chosen, told = layout.classes, ""
    if layout.splits:
        bare = next((name for name in (split, *ALIASES.get(split, ())) if name in layout.unlabelled), None)
        if bare is not None:
            raise ValueError(
                f"{root} has no folders of classes in its split {bare!r} ({layout.unlabelled[bare]}), so that its "
                f"images have no labels; choose one of {', '.join(layout.splits)}, or take `eval.py classify`"
            )
        told = choose_split(layout.splits, split, str(root))
        chosen = layout.splits[told]
    if len(chosen) < 2:
        where = chosen[0].parent if chosen else root
        raise ValueError(
            f"{where} has {len(chosen)} sub-folders; expected one a class, with images in it "
            "(`eval.py classify` takes images without labels)"
        )
    folders = {folder.name: folder for folder in chosen}
    # Every split counts, so that a class which one of them lacks has the same number in all.
    keys = sorted_keys({f.name for other in layout.splits.values() for f in other} | set(folders))
    absent = [key for key in keys if key not in folders]
    if absent:
        log.warning("%s has no folder for %s, which another split has", chosen[0].parent, first_few(absent))
    loose = [file.name for file in chosen[0].parent.iterdir() if file.is_file() and not file.name.startswith(".")]
    found = _below(chosen, root, loose)
    inside = {folder.name: names for folder, names in found.items()}
    empty = next((folder for folder, names in found.items() if not names), None)
    if empty is not None:
        raise ValueError(f"class folder {empty} holds no image ({', '.join(extensions())}); fill or remove it")
    paths = [path for key in keys for path in inside.get(key, ())]
    labels = [label for label, key in enumerate(keys) for _ in inside.get(key, ())]
    others = (folder for name, folders in layout.splits.items() if name != told for folder in folders)
    whole = len(paths) + sum(len(files_below(folder, extensions())) for folder in others)
    return keys, np.array(labels), images_in(root, paths, at_least), told, whole


def _read_labels(parts: Sequence[Part], chosen: Part, column: str) -> tuple[list[Any], np.ndarray]:
    """What the classes are called in the table, in order; and the place in it of each chosen row."""
    table, rows = chosen
    names = getattr(table.dataset.features.get(column), "names", None) if isinstance(table, ArrowTable) else None
    values = _values(chosen, column)
    for row, value in zip(rows.tolist(), values, strict=True):
        good = isinstance(value, str | int) and value != "" and not isinstance(value, bool)
        if not good or (names is not None and not 0 <= value < len(names)):
            raise ValueError(
                f"{table.label}, {table.where(row)}: {column} is {value!r}, not a class; remove the row, or choose a "
                "labelled split"
            )
    if names is not None:
        return list(names), np.array(values)
    # Every split counts, so that a class which one of them lacks has the same number in all.
    found = {v for part in parts for v in _values(part, column) if isinstance(v, str | int)}
    texts, numbers = [v for v in found if isinstance(v, str)], [v for v in found if not isinstance(v, str)]
    keys = [*sorted(numbers), *sorted_keys(texts)]
    number = {key: i for i, key in enumerate(keys)}
    return keys, np.array([number[value] for value in values])


def _tell_repeated(source: str, images: ImageColumn, rows: np.ndarray, labels: Sequence[Any]) -> None:
    """Log how many images stand in several rows, as in a table with one row a box."""
    said: dict[str, list[Any]] = {}
    for key, label in zip(images.keys(rows) if isinstance(images, FileImages) else (), labels, strict=False):
        said.setdefault(key, []).append(label)
    said.pop(".", None)  # rows without a path
    often = sorted((len(set(own)), key) for key, own in said.items() if len(own) > 1)
    if often:
        key = often[-1][1]
        log.warning(
            *("%s: %d images stand in several rows, and count in each, e.g. %s as %s", source, len(often), key),
            first_few(said[key]),
        )


def _values(part: Part, column: str) -> list[Any]:
    if column not in part.table.columns:
        return []
    values = list(part.table.values(column))
    return [values[row] for row in part.rows.tolist()]
