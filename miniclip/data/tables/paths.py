"""What an image column says in words: the files that it names, or what it holds instead."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from miniclip.common.printing import first_few, one_line
from miniclip.data.formats import extensions, looks_like_image
from miniclip.data.images import leaves_folder
from miniclip.data.tables.source import files_below, is_url, told_split
from miniclip.data.tables.table import Table

log = logging.getLogger(__name__)

_ENCODED = re.compile(r"(data:image/|/9j/|iVBORw0KG|R0lGOD|UklGR)[\w+/=;,:.-]{40,}\s*")  # data addresses, and base64
LONG = 60  # characters, of which base64 has more
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def paths_in(table: Table, column: str) -> list[str]:
    """Of each row the path of its image, relative to the table's folder or absolute; empty where there is none.

    Names that are not there are sought in the folders below, such as images/, and a note says where they were found.
    Raises ValueError that names the first row if the column holds something else, or a path leads out of the folder.
    """
    root, paths = table.roots[0], list[str]()
    named: bool | None = None  # whether \ is a letter in names; the first tells, since a look at millions takes hours
    for row, value in enumerate(table.values(column)):
        path = value.strip() if isinstance(value, str) else ""
        if (":" in path or path[:1] in ("/", "\\") or len(path) > LONG) and (problem := _problem(path)):
            raise ValueError(f"{table.label}, {table.where(row)}: column {column!r} {problem}")
        if "\\" in path:
            named = os.path.exists(f"{root}/{path}") if named is None else named  # noqa: PTH110
            path = path if named else path.replace("\\", "/")
        if path and leaves_folder(table.roots, path):
            raise ValueError(
                f"{table.label}, {table.where(row)}: {path!r} leads out of {root}; "
                "keep the images inside the folder of their table"
            )
        paths.append(path)
    return _found_below(root, paths, table.label)


def _problem(path: str) -> str:
    if _WINDOWS.match(path):
        return (
            f"holds paths of a Windows machine ({one_line(path, 60)}); write them relative to the folder of the table"
        )
    if is_url(path):
        return (
            f"holds addresses ({one_line(path, 60)}); fetch the images first, e.g. with img2dataset, whose tars can be "
            "read, and name the files"
        )
    if _ENCODED.match(path):
        return (
            f"holds images as text ({one_line(path, 30)}); write them to files and name those, or to Parquet as bytes"
        )
    return ""


def _found_below(root: str, paths: Sequence[str], label: str) -> list[str]:
    """The paths, or if eight of them are not there, those of the files below root that end in them; of images, if the
    paths have no endings."""
    named = [path for path in paths if path]
    some = named[:: max(1, len(named) // 8)]
    if not some or any(os.path.exists(f"{root}/{path}") for path in some):  # noqa: PTH110, which raises for a long name
        return list(paths)
    wanted = {os.path.normpath(path) for path in named}
    last = {os.path.basename(path) for path in wanted}  # noqa: PTH119, for the time
    fits, found = dict[str, list[str]](), dict[str, str]()
    bare = not any(map(looks_like_image, some))
    for file in files_below(Path(root), extensions() if bare else ("",)):
        name = file.rpartition(".")[0] if bare else file
        if name.rpartition(os.sep)[2] not in last:
            continue
        for start in (0, *(slash.end() for slash in re.finditer(re.escape(os.sep), name))):
            if name[start:] in wanted:
                fits.setdefault(name[start:], []).append(file)
    split = told_split(Path(label).stem)  # of train.csv
    for end, files in fits.items():
        own = [file for file in files if split in map(told_split, file.split(os.sep)[:-1])] if len(files) > 1 else files  # noqa: PTH206
        if len(own) != 1:
            raise ValueError(f"{label}: {end} is {' or '.join(files)}; write the folder before the names")
        found[end] = own[0]
    if found:
        where = sorted({file[: file.rindex(end)] or "its folder" for end, file in found.items()})
        shown = f"{first_few(where).replace('; ', ', ')}{', by names without endings' if bare else ''}"
        log.warning("%s: its images are those in %s", label, shown)
    return [found.get(os.path.normpath(path), path) if path else path for path in paths]
