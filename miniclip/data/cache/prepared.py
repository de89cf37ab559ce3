"""The prepared cache: images decoded and shrunk once, captions tokenised once, in files that are mapped into memory.

A part of a store (store.py) becomes visible by one rename, when it is on the disk: whatever ends a build early, the
next goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout

from miniclip.common.cores import allowed_cores
from miniclip.common.durable import DiskFull, free_space, make_folder, means_full, put_in_place
from miniclip.common.peers import check
from miniclip.common.printing import one_line
from miniclip.data.ahead import in_order, threads
from miniclip.data.augment import Augment
from miniclip.data.cache.store import ALL, Arrays, Prepared, Unusable, load_part, part_name, save_part, token_rows
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadCount, BadImage
from miniclip.models.protocols import TextTokenizer, key_of

log = logging.getLogger(__name__)

FORMAT = 2  # of the files; a change makes every older store another one
PART = 4096  # images in a part, at least
MOST_PARTS = 512  # each is a mapped file, and a process may open about a thousand
SAMPLED = 100  # images that are stored before the size of the whole is estimated
ADVICE = "set data.cache_dir to another folder, or data.cache to false"


def cache_folder(folder: str | Path | None) -> Path:
    """data.cache_dir, or what MINICLIP_CACHE names, or ~/.cache/miniclip."""
    return Path(folder or os.environ.get("MINICLIP_CACHE") or "~/.cache/miniclip").expanduser()


def prepare(
    source: PairSource,
    augment: Augment,
    tokenizer: TextTokenizer,
    *,
    folder: str | Path | None,
    label: str,
    allowed: float,
    progress: bool,
) -> Prepared:
    """The store of a source, built if there is none, or if its files or settings have changed.

    folder: data.cache_dir. label: what tells this source and split from others, for the key and for messages.
    allowed: data.max_bad_fraction. Of several processes that want the same store, one builds it and the others wait.
    Raises TooManyBad; ValueError with advice if the folder cannot be written, DiskFull if the disk is too small.
    """
    # image_size, too: a large JPEG is decoded smaller, as far as that size allows
    key = [FORMAT, label, augment.image_size, augment.stored_side, augment.kind, augment.resize, key_of(tokenizer)]
    if augment.kind == "none" and augment.preprocess is not None:
        key.append(repr(augment.preprocess))
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).hexdigest()
    directory = cache_folder(folder) / digest
    # what one Pillow cannot read another can
    stamp = f"{source.fingerprint()}, {len(source)} pictures, Pillow {PIL.__version__}"
    bad = BadCount.of(source, allowed)
    try:
        prepared = Prepared(directory, stamp)  # finished stores need no lock: they may lie where nobody can write
    except Unusable:
        prepared = _Build(source, augment, tokenizer, directory, stamp, one_line(label, 80), bad, progress).alone()
    bad.add(prepared.bad)
    return prepared


@dataclass
class _Build:
    """One go at a store: the parts that are there are kept, the others are made.

    missing: images that this build decodes. sizes: bytes of the first of them.
    """

    source: PairSource
    augment: Augment
    tokenizer: TextTokenizer
    directory: Path
    stamp: str
    label: str
    bad: BadCount
    progress: bool
    missing: int = 0
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.part = max(PART, math.ceil(len(self.source) / MOST_PARTS))
        every = range(len(self.source))
        self.parts = [every[start : start + self.part] for start in every[:: self.part]]

    def alone(self) -> Prepared:
        """Build while no other process does; if another has just done so, its store."""
        with _writing(self.directory):
            make_folder(self.directory.parent)
            lock = FileLock(self.directory.with_suffix(".lock"))
            with self._bar("waiting for another run that prepares these images", delay=1.0) as bar:
                while not lock.is_locked:
                    try:
                        lock.acquire(timeout=0.5)
                    except Timeout:
                        check()
                        done = sum((self.directory / part_name(i)).is_dir() for i in range(len(self.parts)))
                        bar.n = min(done * self.part, len(self.source))
                        bar.refresh()
        try:
            return Prepared(self.directory, self.stamp)
        except Unusable as error:
            self._build(str(error))
            return Prepared(self.directory, self.stamp)
        finally:
            lock.release()

    def _bar(self, title: str, **options: Any) -> Any:
        from tqdm import tqdm

        return tqdm(total=len(self.source), desc=title, unit="", leave=False, disable=not self.progress, **options)

    def _build(self, problem: str) -> None:
        """problem: why the store that is there cannot be used."""
        parts: dict[int, tuple[dict[str, Any], Arrays]] = {}
        for i, rows in enumerate(self.parts):
            try:
                parts[i] = load_part(self.directory / part_name(i), self.stamp, len(rows))
            except Unusable as error:
                problem = problem or str(error)
        keep = {part_name(i) for i in parts}
        with _writing(self.directory):
            make_folder(self.directory)
            for path in list(self.directory.iterdir()):
                if path.name not in keep:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        if problem:
            log.warning("%s %s; preparing again", self.label, problem)
        done = sum(about["rows"] for about, _ in parts.values())
        self.missing = len(self.source) - done
        with self._bar("preparing images", initial=done) as bar, threads(allowed_cores()) as pool:
            for i, rows in enumerate(self.parts):
                if i in parts:
                    self.bad.add(parts[i][0]["bad"])
                    continue
                with self._new(part_name(i)) as temporary:
                    parts[i] = self._make(temporary, rows, pool, bar.update)
        ordered = [parts[i] for i in range(len(self.parts))]
        abouts = [about for about, _ in ordered]
        if not any(len(arrays.places) for _, arrays in ordered):
            raise BadImage(f"{self.label}: no image can be read; check data.source and data.image_column")
        whole = Arrays(*map(np.concatenate, zip(*(arrays for _, arrays in ordered), strict=True))).summed()
        about = {"stamp": self.stamp, "label": self.label, "part": self.part}  # the label for people who tidy up
        about |= {"pixels": [a["pixels"] for a in abouts], "bad": [name for a in abouts for name in a["bad"]]}
        with self._new(ALL) as temporary, _writing(self.directory):
            save_part(temporary, about, whole)

    def _make(
        self, path: Path, rows: range, pool: ThreadPoolExecutor, update: Callable[[int], Any]
    ) -> tuple[dict[str, Any], Arrays]:
        places, captions, bad = list[tuple[int, ...]](), list[list[str]](), list[str]()
        at = 0
        with _writing(self.directory):
            # unbuffered: closing must write nothing, or a full disk would raise once more, without the advice
            file = (path / "pixels").open("wb", buffering=0)
        with file:
            for row, found in zip(rows, in_order(pool, self._read, rows, 4 * allowed_cores()), strict=True):
                update(1)
                if isinstance(found, BadImage):
                    self.bad.add([found])
                    bad.append(str(found))
                    continue
                height, width, pixels, texts = found
                places.append((row, at, height, width, zlib.crc32(pixels)))
                captions.append(texts)
                at += len(pixels)
                with _writing(self.directory):
                    left = memoryview(pixels)
                    while left:
                        left = left[file.write(left) :]
                self._check_space(len(pixels))
        tokenised = token_rows(self.tokenizer, [text for texts in captions for text in texts])
        counts, lengths = (np.array(list(map(len, found)), dtype=np.int64) for found in (captions, tokenised))
        tokens = np.concatenate([np.zeros(0, dtype=tokenised[0].dtype if tokenised else np.uint16), *tokenised])
        arrays = Arrays(np.array(places, dtype=np.int64).reshape(-1, 5), counts, lengths, tokens)
        about = {"stamp": self.stamp, "rows": len(rows), "pixels": at, "bad": bad}
        with _writing(self.directory):
            save_part(path, about, arrays)
        return about, arrays

    def _read(self, row: int) -> tuple[int, int, bytes, list[str]] | BadImage:
        try:
            image = self.augment.store(self.source.image(row))
        except BadImage as error:
            return error
        return image.height, image.width, image.tobytes(), self.source.captions(row)

    def _check_space(self, size: int) -> None:
        """The first images tell what all of them take; raises DiskFull before it is."""
        if len(self.sizes) == SAMPLED:
            return
        self.sizes.append(size)
        needed, free = sum(self.sizes) / SAMPLED * self.missing, free_space(self.directory)
        if len(self.sizes) == SAMPLED and needed > free:
            takes = f"preparing {self.missing} images takes about {needed / 1e9:.1f} GB"
            raise DiskFull(f"{takes}, and {free / 1e9:.1f} GB are free in {self.directory.parent}; {ADVICE}")

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """A folder to fill; it gets its name when it is complete."""
        path = self.directory / f"{name}.unfinished"
        try:
            with _writing(self.directory):
                path.mkdir()
            yield path
            with _writing(self.directory):
                put_in_place(path, self.directory / name)
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Errors of the disk, with advice."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if means_full(error) else ValueError
        raise kind(f"the prepared images cannot be written to {directory.parent}: {error}; {ADVICE}") from error
