"""What lies in a folder of data: a table of its pictures, tars, or a text file beside each picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from miniclip.common.fingerprint import digest
from miniclip.data.images import EXTENSIONS
from miniclip.data.tables.patterns import SPLIT_NAMES
from miniclip.data.tables.table import TABLE_EXTENSIONS, FileTable

LONGEST = 1 << 20  # bytes of a caption file


class Contents(NamedTuple):
    """Files below a folder, as sorted paths relative to it; hidden ones and links to folders are left out."""

    pictures: list[str]
    captions: list[str]  # text files that bear the name of a picture beside them
    tars: list[str]
    parquet: list[str]


@dataclass(frozen=True)
class CaptionFolder(FileTable):
    """Pictures of a folder, with the lines of the text file beside each."""

    def where(self, row: int) -> str:
        return str(Path(self.records[row]["file_name"]).with_suffix(".txt"))

    def fingerprint(self) -> str:
        return digest(self.roots[0])  # its pictures and captions tell the rest


def look_into(folder: Path) -> Contents:
    """All that is below a folder; nothing is opened."""
    found = Contents([], [], [], [])
    for where, below, files in os.walk(folder):
        below[:] = sorted(d for d in below if not d.startswith((".", "__MACOSX")))
        inside = Path(where).relative_to(folder)
        stems = set()
        texts = []
        for name in sorted(f for f in files if not f.startswith(".")):
            stem, dot, suffix = name.rpartition(".")
            path = str(inside / name)
            match (dot + suffix).lower():
                case ".tar":
                    found.tars.append(path)
                case ".parquet":
                    found.parquet.append(path)
                case ".txt":
                    texts.append((stem, path))
                case kind if kind in EXTENSIONS:
                    stems.add(stem)
                    found.pictures.append(path)
        found.captions.extend(path for stem, path in texts if stem in stems)
    return found


def table_files(folder: Path) -> dict[str, Path]:
    """Split name -> CSV, TSV or JSONL file of a folder; empty if it has none. Raises ValueError where it is unclear."""
    own = _only_table(folder)
    if own is not None:
        return own
    below: dict[str, Path] = {}
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in SPLIT_NAMES):
        found = _only_table(child)
        if found is not None:
            below[child.name.lower()] = next(iter(found.values()))
    return below


def _only_table(folder: Path) -> dict[str, Path] | None:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_EXTENSIONS and p.suffix.lower() != ".txt")
    named = [p for p in files if p.stem == "metadata"] or [p for p in files if p.stem == "labels"] or files
    if not named:
        return None
    if len(named) == 1:
        return {"train": named[0]}
    by_split = {p.stem.lower(): p for p in named}
    if set(by_split) <= set(SPLIT_NAMES) and len(by_split) == len(named):
        return by_split
    raise ValueError(f"{folder} holds several tables: {', '.join(p.name for p in named)}; name one as the source")


def caption_folders(folder: Path, contents: Contents) -> dict[str, CaptionFolder]:
    """Split -> pictures with the text files beside them. Sub-folders named after splits are splits, if all are.

    Raises ValueError if pictures lie in such folders and beside them.
    """
    splits: dict[str, list[str]] = {}
    for path in contents.pictures:
        first = path.split(os.sep, 1)[0]
        splits.setdefault(first if os.sep in path and first.lower() in SPLIT_NAMES else "", []).append(path)
    if "" in splits and len(splits) > 1:
        named = ", ".join(sorted(s for s in splits if s))
        raise ValueError(
            f"{folder}: pictures lie in folders of splits ({named}) and outside of them, e.g. {splits[''][0]}; "
            "move those into a split, or name one folder as the source"
        )
    texts = set(contents.captions)
    if "" in splits:
        return {"train": _caption_folder(folder, contents.pictures, texts)}
    found: dict[str, CaptionFolder] = {}
    for name, paths in splits.items():
        below = {text.removeprefix(name + os.sep) for text in texts if text.startswith(name + os.sep)}
        found[name.lower()] = _caption_folder(folder / name, [p.split(os.sep, 1)[1] for p in paths], below)
    return found


def _caption_folder(folder: Path, pictures: list[str], texts: set[str]) -> CaptionFolder:
    root = os.path.realpath(folder)
    records = []
    for path in pictures:
        text = path.rpartition(".")[0] + ".txt"
        records.append({"file_name": path, "captions": _lines(root, text) if text in texts else None})
    return CaptionFolder(folder, records, ["file_name", "captions"], [], (root,))


def _lines(root: str, name: str) -> list[str] | None:
    """Lines of a caption file; None if it is not UTF-8, too long to be one, or a link that leads out of root."""
    path = Path(root, name)
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return None
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:  # a pipe would block
            return None
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
