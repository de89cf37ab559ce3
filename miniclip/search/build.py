"""Images -> their index; and again, when images have come, gone or changed.

What is encoded goes to DIR/parts every few seconds. To go on after a kill and to update are the same: of what the index
and the parts know by path and stamp nothing is read. Any other file is read, and encoded unless its hash is known, be
it under another name. Several processes encode every so many-th of those images, and write parts of their own, which
the main one puts together.
Axes: N images, E embedding.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniclip.common.arguments import check_folder
from miniclip.common.durable import make_folder, remove
from miniclip.common.fingerprint import digest
from miniclip.common.lock import LOCK, Taken, alone_in
from miniclip.common.printing import first_few
from miniclip.common.processes import check_same, from_main, gathered, place
from miniclip.data.ahead import in_order, threads
from miniclip.data.images import BadCount, BadImage, decode_image
from miniclip.evaluation.encode import EncodeOptions, encoding, model_device, unit
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TwoTowers
from miniclip.search.pictures import Pictures
from miniclip.search.store import (
    IMAGES,
    PARTS,
    VECTORS,
    About,
    check_weights,
    embeddings_of,
    read_about,
    read_images,
    to_table,
    write_about,
    write_images,
)
from miniclip.search.vectors import APPROXIMATE_FROM, build, has_graphs

log = logging.getLogger(__name__)

SECONDS = 10.0  # between two parts: the work that a kill may cost
_OF_BYTES = ("hash", "size", "width", "height")  # columns that hang on what the file holds alone
_UNREAD = ""  # stamp of what could not be read at all, so that it is tried again


@dataclass(frozen=True)
class Changes:
    """How an index differs from the one before, in images. gone: of the source. bad: what is wrong with those that are
    not in it. encoded: in this call, which took so many seconds."""

    new: int
    changed: int
    gone: int
    kept: int
    bad: list[str]
    encoded: int
    seconds: float


class _Look(NamedTuple):
    """What there is to say of an image. pixels: (3, S, S) uint8; None if it is bad, or known by its hash."""

    at: int
    hash: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    pixels: Tensor | None = None
    wrong: str | None = None


class _Work(NamedTuple):
    """stamps: of all pictures. todo: those of which nothing is known. hashes: of the images that were encoded."""

    stamps: list[str]
    todo: list[int]
    hashes: set[str]


def build_index(
    model: TwoTowers, preprocess: Preprocess, pictures: Pictures, about: About, folder: Path, options: EncodeOptions
) -> Changes:
    """Write the index of all pictures into a folder, which may hold one of the same source and model; every process
    calls. options.max_bad_fraction: share of the images that may be unreadable.

    Raises TooManyBad above it, and ValueError or OSError with one line if the folder cannot be used.
    """
    check_same({"images": digest(*pictures.paths)})  # which they call by their places
    with ExitStack() as held:
        work = from_main(lambda: _begin(held, pictures, about, folder))
        began, (rank, count) = time.monotonic(), place()
        found = gathered([_encode(model, preprocess, pictures, work, work.todo[rank::count], folder, options)])
        seconds = time.monotonic() - began
        return from_main(lambda: _conclude(pictures, about, folder, work.stamps, options, sum(found), seconds))


def _begin(held: ExitStack, pictures: Pictures, about: About, folder: Path) -> _Work:
    """Have the folder for oneself while the stack lasts, and see what is to be done."""
    check_folder("--out", folder)
    try:
        held.enter_context(alone_in(folder))
    except Taken as taken:
        raise ValueError(f"--out {folder}: {taken} writes into it; wait for that, or name another folder") from taken
    former = read_about(folder)
    if former is None and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"--out {folder} holds something else; name a new folder")
    if former is None or not any((folder / name).exists() for name in (IMAGES, PARTS)):
        write_about(folder, about)
    else:
        check_weights(folder, former, about.fingerprint)
        if former.source != about.source and (folder / IMAGES).exists() and Path(former.root).exists():
            raise ValueError(f"--out {folder} is the index of {former.source}; name another folder for {about.source}")
    known, stamps = _Known(folder), pictures.stamps()
    keys = enumerate(zip(pictures.paths, stamps, strict=True))
    return _Work(stamps, [i for i, key in keys if key not in known.good and key not in known.bad], set(known.rows))


class _Known:
    """What the index and the parts in a folder say.

    good: path and stamp -> hash, of images that can be read. bad: the same -> why it cannot. rows: hash -> row of the
    tables, one after the other, with what hangs on it. index: the table that was finished, former: its path -> hash.
    """

    def __init__(self, folder: Path) -> None:
        about, index = read_about(folder), folder / IMAGES
        files = [*[index] * index.exists(), *sorted((folder / PARTS).glob("*.parquet"))]
        self.tables = [read_images(file) for file in files]
        self.index = self.tables[0] if index.exists() else None
        self.good, self.rows, self.former = dict[tuple[str, str], str](), dict[str, int](), dict[str, str]()
        self.bad = {(path, stamp): wrong for path, stamp, wrong in (about.bad if about else ())}
        row = 0
        for file, table in zip(files, self.tables, strict=True):
            wrong = [None] * len(table) if file == index else table["wrong"].to_pylist()
            columns = (table[name].to_pylist() for name in ("path", "stamp", "hash", "width"))
            for path, stamp, hash, width, why in zip(*columns, wrong, strict=True):
                if why is None:
                    self.good[path, stamp] = hash
                else:
                    self.bad[path, stamp] = why
                if width:
                    self.rows[hash] = row
                if file == index:
                    self.former[path] = hash
                row += 1

    def values(self, hashes: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Columns of images, and their embeddings."""
        rows = [self.rows[hash] for hash in hashes]
        columns = {name: np.concatenate([np.asarray(t[name]) for t in self.tables])[rows] for name in _OF_BYTES}
        return columns, np.concatenate([embeddings_of(table) for table in self.tables])[rows]


class _Part:
    """What was seen since the last part was written."""

    def __init__(self, folder: Path, pictures: Pictures, stamps: Sequence[str]) -> None:
        self.folder, self.pictures, self.stamps = folder / PARTS, pictures, stamps
        self.looks, self.values, self.since = list[_Look](), list[np.ndarray](), time.monotonic()

    def add(self, looks: Sequence[_Look], values: np.ndarray) -> None:
        """values: (looks, E), zero where there is no embedding."""
        self.looks += [one._replace(pixels=None) for one in looks]
        self.values.append(values)
        if time.monotonic() - self.since >= SECONDS:
            self.write()

    def write(self) -> None:
        if not self.looks:
            return
        columns: dict[str, list[Any]] = {name: [getattr(one, name) for one in self.looks] for name in _OF_BYTES}
        columns |= {"path": [self.pictures.paths[one.at] for one in self.looks]}
        columns |= {"stamp": [self.stamps[one.at] if one.hash else _UNREAD for one in self.looks]}
        columns |= {"caption": [None] * len(self.looks), "row": [one.at for one in self.looks]}
        make_folder(self.folder)
        table = to_table(columns | {"wrong": [one.wrong for one in self.looks]}, np.concatenate(self.values))
        write_images(self.folder / f"{uuid.uuid4().hex}.parquet", table)
        self.looks, self.values, self.since = [], [], time.monotonic()


def _encode(
    model: TwoTowers,
    preprocess: Preprocess,
    pictures: Pictures,
    work: _Work,
    own: Sequence[int],
    folder: Path,
    options: EncodeOptions,
) -> int:
    """Look at some of the pictures, and write parts of what is found -> how many were encoded."""
    (_, count), device, encoded = place(), model_device(model), 0
    bad, part = BadCount(len(pictures), options.max_bad_fraction), _Part(folder, pictures, work.stamps)

    def look(index: int) -> _Look:
        name, hash, data = pictures.paths[index], "", b""
        try:
            data = pictures.read(index)
            hash = hashlib.blake2b(data, digest_size=16).hexdigest()
            if hash in work.hashes:
                return _Look(index, hash, len(data))
            image = decode_image(data, name, at_least=2 * preprocess.image_size)
            width, height = image.info["file"]["size"]
            if (image.width < image.height) != (width < height):  # it was turned upright
                width, height = height, width
            return _Look(index, hash, len(data), width, height, preprocess.to_uint8(image))
        except BadImage as error:
            return _Look(index, hash, len(data), wrong=str(error))

    cores = max(2, min(16, (os.cpu_count() or 2) // count))
    # decoding releases the interpreter's lock, so that threads read ahead while the model is at work
    with threads(cores) as pool, encoding(model, options, len(own), "images") as advance:
        looks = in_order(pool, look, own, 2 * options.batch_size)
        try:
            while batch := list(islice(looks, options.batch_size)):
                seen = [one for one in batch if one.pixels is not None]
                values = torch.zeros(len(batch), int(model.config.embed_dim or 0))
                if seen:
                    pixels = torch.stack([one.pixels for one in seen if one.pixels is not None]).to(device)
                    found = unit(model.encode_image(preprocess.normalize(pixels)))
                    for one, length in zip(seen, found.norm(dim=-1).tolist(), strict=True):
                        if not abs(length - 1) < 1e-3:  # none of zeros, infinity and NaN has a direction
                            raise ValueError(f"{pictures.paths[one.at]}: what the model makes of it points nowhere")
                    values[[one.pixels is not None for one in batch]] = found
                part.add(batch, values.numpy())
                encoded += len(seen)
                bad.add(one.wrong for one in batch if one.wrong is not None)
                advance(len(batch))
        finally:
            part.write()
    return encoded


def _conclude(
    pictures: Pictures,
    about: About,
    folder: Path,
    stamps: Sequence[str],
    options: EncodeOptions,
    encoded: int,
    seconds: float,
) -> Changes:
    """Put the index in the place of the one before."""
    known, rows, hashes, bad = _Known(folder), list[int](), list[str](), list[list[str]]()
    for row, (path, stamp) in enumerate(zip(pictures.paths, stamps, strict=True)):
        if (hash := known.good.get((path, stamp))) is not None:
            rows.append(row)
            hashes.append(hash)
            continue
        told = next((mark for mark in (stamp, _UNREAD) if (path, mark) in known.bad), None)
        if told is None:
            raise OSError(f"--out {folder} lacks what another process wrote there; name a folder that all hosts share")
        bad.append([path, told, known.bad[path, told]])
    wrong = [why for _, _, why in bad]
    if not rows:
        raise ValueError(f"none of the {len(pictures)} images can be read: {first_few(wrong)}")
    BadCount(len(pictures), options.max_bad_fraction).add(wrong)
    columns, embeddings = known.values(hashes)
    told_of: dict[str, Any] = {"path": [pictures.paths[row] for row in rows], "stamp": [stamps[row] for row in rows]}
    told_of |= {"caption": [pictures.captions[row] for row in rows], "row": rows}
    before = None if known.index is None else embeddings_of(known.index)
    if before is None or not np.array_equal(before, embeddings):
        remove(folder / VECTORS)  # before the table that it is not of
    write_images(folder / IMAGES, to_table(columns | told_of, embeddings))
    write_about(folder, replace(about, bad=bad))
    if len(rows) >= APPROXIMATE_FROM and has_graphs() and not (folder / VECTORS).exists():
        log.warning("%s: %s images, among which a graph leads the search; it takes a while", folder, f"{len(rows):,}")
        build(embeddings, folder / VECTORS)
    remove(folder / PARTS)
    pairs = [(known.former.get(path), hash) for path, hash in zip(told_of["path"], hashes, strict=True)]
    new, kept = sum(before is None for before, _ in pairs), sum(before == hash for before, hash in pairs)
    gone = len(known.former.keys() - set(pictures.paths))
    return Changes(new, len(pairs) - new - kept, gone, kept, wrong, encoded, seconds)
