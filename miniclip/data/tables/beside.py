"""A folder of images with a text file beside each: 0001.jpg and 0001.txt, whose lines are its captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from miniclip.common.printing import first_few
from miniclip.data.formats import extensions, looks_like_image, note_left_out
from miniclip.data.images import is_below
from miniclip.data.tables.source import SPLIT_NAMES, Source
from miniclip.data.tables.table import RecordTable
from miniclip.data.tables.texts import decode_all, lines_of

log = logging.getLogger(__name__)

LONGEST = 1 << 20  # bytes of a caption file


def accepts(source: Source) -> bool:
    return bool(texts_beside(source)) or (bool(source.below(*extensions())) and not source.has(".parquet"))


def texts_beside(source: Source) -> dict[str, str]:
    """Image without its extension -> the text file that bears its name."""
    stems = {image.rpartition(".")[0] for image in source.below(*extensions())}
    return {stem: text for text in source.below(".txt") if (stem := text.rpartition(".")[0]) in stems}


def open_tables(source: Source) -> Mapping[str, RecordTable]:
    """Sub-folders named after splits are splits, if all are. Raises ValueError if images lie beside them, or no text
    file beside an image."""
    folder, images, texts = source.path, source.below(*extensions()), texts_beside(source)
    if not texts:
        others = [name for name in source.below("") if os.sep not in name and not looks_like_image(name)]
        raise ValueError(
            f"{folder}: {len(images)} images, but nothing that says what is in them; looked for "
            "metadata.jsonl (.csv, .tsv, .json), for a text file beside each "
            f"({Path(images[0]).with_suffix('.txt')}), for tars and for Parquet files"
            + (f"; of {first_few(others)} one may be unpacked, or named as the source" if others else "")
        )
    lone = sorted(set(source.below(".txt")) - set(texts.values()))
    if lone:
        log.warning(
            "%s: text files without an image of their name, and left out: %d (%s)", folder, len(lone), first_few(lone)
        )
    note_left_out(folder, set(source.below("")) - {*images, *texts.values(), *lone})
    splits: dict[str, list[str]] = {}
    for path in images:
        splits.setdefault(path.partition(os.sep)[0], []).append(path)
    if not all(name.lower() in SPLIT_NAMES for name in splits):  # deeper folders may tell it: splits.py
        splits = {"": images}
    return {s.lower() or "train": _read(source, s and s + os.sep, paths, texts) for s, paths in splits.items()}


def _read(source: Source, split: str, images: list[str], texts: Mapping[str, str]) -> RecordTable:
    """split: the start of all these paths, which is left out of the names."""
    roots, label = source.roots(source.path / split), str(source.path / split)
    stems = [path.rpartition(".")[0] for path in images]
    places = [texts.get(stem, f"{stem}.txt").removeprefix(split) for stem in stems]
    found = [_content(roots, place) if stem in texts else None for stem, place in zip(stems, places, strict=True)]
    captions = [None if text is None else lines_of(text) for text in decode_all(found, label, places.__getitem__)]
    names = (path.removeprefix(split) for path in images)
    records = [{"file_name": n, "captions": lines} for n, lines in zip(names, captions, strict=True)]
    # the fingerprints of its images and captions tell the rest
    return RecordTable(label, records, ["file_name", "captions"], places, roots, (roots[0],))


def _content(roots: Sequence[str], name: str) -> bytes | None:
    """None if it is too long to be a caption file, or a link that leads out of all roots."""
    path = Path(roots[0], name)
    if path.is_symlink() and not is_below(os.path.realpath(path), roots):
        return None
    try:
        if not path.is_file() or path.stat().st_size > LONGEST:  # a pipe would block
            return None
        return path.read_bytes()
    except OSError:
        return None
