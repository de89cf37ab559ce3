"""Folders of labelled images as the world unpacks them: which are splits, which are classes, and which neither."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from miniclip.common.printing import first_few
from miniclip.data.formats import extensions
from miniclip.data.tables.source import SPLIT_NAMES, TABLE_EXTENSIONS, sub_folders, told_split

log = logging.getLogger(__name__)

_WRAPPERS = ("images", "image", "imgs", "img", "data", "dataset")
_TABLES = tuple(extension for extension in TABLE_EXTENSIONS if extension != ".txt")
_UNLABELLED = re.compile(r"(.*[\W_])?(un-?label+ed|unsup\w*|pred|predict|predictions?|submission)([\W_].*)?")
_PART = re.compile(r"(.*[\W_])?(fold|split|part|subset|batch)[\W_]?\d+")


class Layout(NamedTuple):
    """splits: split -> its folders of classes. unlabelled: split -> folder of images without classes.
    classes: the folders of classes where there are no splits."""

    splits: dict[str, list[Path]]
    unlabelled: dict[str, Path]
    classes: list[Path]


def read_layout(folder: Path) -> Layout:
    """Look at the names of the folders, and at the folders in them, down to the classes.

    Splits are folders whose names tell different ones (see `told_split`), and in which lie folders of classes; or one
    such, and folders of the same classes beside it. A folder that holds but one other is passed. What is left out is
    logged, and so are classes whose names tell a split.
    Raises ValueError that names the folders if they can be read in two ways.
    """
    root, level = _passed(folder, _holds_all)
    told = {f: split for f in level if (split := told_split(f.name)) is not None}
    below = {f: _passed(f, _same_level)[1] for f in level}
    classes = {f: {inside.name for inside in below[f]} for f in level}

    def like(f: Path, others: Iterable[Path]) -> bool:
        return any(classes[f] & classes[other] for other in others if other != f)

    held = [f for f in told if below[f]]
    blank = [f for f in level if f not in told and not below[f] and _UNLABELLED.fullmatch(f.name.lower())]
    rest = [f for f in level if f not in told and f not in blank]
    kin = [f for f in rest if like(f, held)]
    odd = [f for f in rest if f not in kin]
    several, alike = len(set(told.values())) > 1, any(like(f, [*held, *kin]) for f in held)
    if held:
        if odd and not (several or alike or any(below[f] for f in odd)):
            raise ValueError(
                f"{held[0]} holds folders, as a split does ({_names(below[held[0]])}), and those beside it hold none "
                f"({_names(odd)}); put all classes into splits, or give that class a name that tells no split"
            )
        if len(kin) > 1 and not several:
            raise ValueError(
                f"{held[0]} and the folders beside it ({_names(kin)}) hold the same ({_names(below[held[0]])}): "
                "either are they splits, or classes; name one split as the data, or that class otherwise"
            )
        divided = alike or not (any(below[f] for f in odd) if several else odd or len(told) > 1)
    else:
        divided = several and (not rest or len({f.name.lower() for f in told} & set(SPLIT_NAMES)) > 1)
    if level and all(_PART.fullmatch(f.name.lower()) and like(f, level) for f in level):
        divided, kin, odd = True, level, []
    if not divided:
        if told:
            log.warning("%s: taken for a class, like the folders beside it: %s", root, _names(told))
        return Layout({}, {}, level)
    if odd:
        log.warning("%s: no split as the folders beside it, and left out: %s", root, _names(odd))
    if kin:
        log.warning("%s: taken for splits, since they hold the same folders: %s", root, _names(kin))
    often = Counter(told.values())
    called = {f: told[f] if often.get(told.get(f, "")) == 1 else f.name.lower() for f in (*told, *kin, *blank)}
    # test/unknown/ beside train/cat/, as some loaders want it, names no class either
    bare = {f for f in called if len(below[f]) < 2 and len(called) > 1 and not like(f, level)}
    splits = {name: below[f] for f, name in called.items() if f not in bare}
    return Layout(splits, {name: f for f, name in called.items() if f in bare}, [])


def _passed(folder: Path, through: Callable[[Path, Path], bool]) -> tuple[Path, list[Path]]:
    """Down through folders that hold nothing but another one, as long as it is to be gone through; and its folders."""
    while len(inside := _labelled(every := sub_folders(folder))) == 1 and through(folder, inside[0]):
        if any(file.suffix.lower() in extensions() for file in folder.iterdir()):
            break
        if inside != every:
            log.warning("%s: no class, and left out: %s", folder, _names(set(every) - set(inside)))
        folder = inside[0]
    return folder, every


def _labelled(folders: list[Path]) -> list[Path]:
    """Without those that are called unlabelled, and hold no folders."""
    return [f for f in folders if not _UNLABELLED.fullmatch(f.name.lower()) or sub_folders(f)]


def _holds_all(_: Path, inside: Path) -> bool:
    """Whether the one folder of another is but a folder around all; one that tells a split is, if it holds splits."""
    below = sub_folders(inside)
    return bool(below) and (told_split(inside.name) is None or _several(f.name for f in below))


def _several(names: Iterable[str]) -> bool:
    """Whether names of folders tell different splits."""
    return len({told_split(name) for name in names} - {None}) > 1


def _same_level(outside: Path, inside: Path) -> bool:
    """Whether a folder says no more than the one around it: seg_train/seg_train, test/images."""
    name, split = inside.name.lower(), told_split(inside.name)
    return name in (outside.name.lower(), *_WRAPPERS) or split == told_split(outside.name) is not None


def class_folders(folders: list[Path]) -> list[Path]:
    """Those of a level that are classes. Raises ValueError where their insides speak against it."""
    kept = _labelled(folders)
    if len(kept) < len(folders):
        log.warning("%s: no class, and left out: %s", folders[0].parent, _names(set(folders) - set(kept)))
        folders = kept
    held = {f: os.listdir(f) for f in folders}  # noqa: PTH208, since there may be a million
    tables = {f: n for f in folders for n in held[f] if n.lower().endswith(_TABLES) and not n.startswith(".")}
    if 0 < len(tables) < len(folders):  # one in each folder says something of the class
        where, name = next(iter(tables.items()))
        raise ValueError(f"{where / name}: a table beside images by class; name {where} as the data, or take it out")
    names, inside = {f.name for f in folders}, {f: {b.name for b in sub_folders(f)} for f in folders}
    if folders and _several(names) and all(map(told_split, names)):
        raise ValueError(f"{folders[0].parent} holds splits ({_words(names)}), where classes were expected")
    for folder, below in inside.items():
        if below and _several(splits := [f.name for f in _passed(folder, _same_level)[1]]):
            advice = "name it as the data, or put all classes into the splits"
            raise ValueError(f"{folder} holds splits ({_words(splits)}), so that it is no class; {advice}")
        again = below & (names - {folder.name})
        if 2 * len(again) > len(below):
            raise ValueError(
                f"{folder} holds the folders {_words(again)}, and so does {folder.parent}: unpacked into itself, or a "
                "split beside classes; remove one of the two, or name the right one as the data"
            )
    if len(folders) > 1 and (around := [f for f in folders if f.name.lower() in _WRAPPERS]):  # images/ and masks/
        beside = _names(set(folders) - {around[0]})
        raise ValueError(
            f"{around[0]} is no class by its name, nor are then the folders beside it ({beside}); name it as the data, "
            "or call that class otherwise"
        )
    if len(folders) > 1 and len(common := set.intersection(*inside.values())) > 1:
        log.warning(
            *("%s: its folders (%s) are taken for the classes, and hold the same folders each (%s)", folders[0].parent),
            *(_names(folders), _words(common)),
        )
    elif deep := [f for f, below in inside.items() if len(below) > 1]:
        log.warning(
            *("%s: the folders inside a class count as that class, e.g. %s (%s)", folders[0].parent, deep[0].name),
            _words(inside[deep[0]]),
        )
    return folders


def _names(folders: Iterable[Path]) -> str:
    return _words(f.name for f in folders)


def _words(names: Iterable[str]) -> str:
    return first_few(sorted(names)).replace("; ", ", ")
