"""A folder of images with a text file beside each: 0001.jpg and 0001.txt, whose lines are its captions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from miniclip.data.images import EXTENSIONS
from miniclip.data.tables.source import SPLIT_NAMES, Source
from miniclip.data.tables.table import RecordTable
from miniclip.data.tables.texts import like_a_list, listed

LONGEST = 1 << 20  # bytes of a caption file


def accepts(source: Source) -> bool:
    return bool(_captions(source)) or (bool(source.below(*EXTENSIONS)) and not source.has(".parquet"))


def _captions(source: Source) -> set[str]:
    """Text files that bear the name of an image beside them."""
    stems = {image.rpartition(".")[0] for image in source.below(*EXTENSIONS)}
    return {text for text in source.below(".txt") if text.rpartition(".")[0] in stems}


def open_tables(source: Source) -> Mapping[str, RecordTable]:
    """Sub-folders named after splits are splits, if all are. Raises ValueError if images lie beside them, or no text
    file beside an image."""
    folder, images, texts = source.path, source.below(*EXTENSIONS), _captions(source)
    if not texts:
        raise ValueError(
            f"{folder}: {len(images)} images, but nothing that says what is in them; looked for "
            "metadata.jsonl (.csv, .tsv), for a text file beside each "
            f"({Path(images[0]).with_suffix('.txt')}), for tars and for Parquet files"
        )
    splits: dict[str, list[str]] = {}
    for path in images:
        splits.setdefault(path.partition(os.sep)[0], []).append(path)
    if not all(name.lower() in SPLIT_NAMES for name in splits):  # deeper folders may tell it: splits.py
        splits = {"": images}
    return {s.lower() or "train": _read(folder, s and s + os.sep, paths, texts) for s, paths in splits.items()}


def _read(folder: Path, split: str, images: list[str], texts: set[str]) -> RecordTable:
    """split: the start of all these paths, which is left out of the names."""
    root, records, places = os.path.realpath(folder / split), [], []
    for path in images:
        text = path.rpartition(".")[0] + ".txt"
        places.append(text.removeprefix(split))
        captions = _lines(root, places[-1]) if text in texts else None
        records.append({"file_name": path.removeprefix(split), "captions": captions})
    # the fingerprints of its images and captions tell the rest
    return RecordTable(str(folder / split), records, ["file_name", "captions"], places, (root,), (root,))


def _lines(root: str, name: str) -> list[str] | None:
    """Lines of a caption file; None if it is not UTF-8, too long to be one, or a link that leads out of root."""
    path = Path(root, name)
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return None
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:  # a pipe would block
            return None
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return [text] if like_a_list(text) and listed(text) is not None else text.splitlines()  # it may take several lines
