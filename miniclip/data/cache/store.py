"""The files of a prepared cache, and how they are mapped into memory.

A store is one folder: numbered parts (pixels one after another, and small arrays that say where each image lies), and
"all", written last, with the small arrays of the whole. Everything is raw bytes, JSON and .npy without pickles.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miniclip.common.fingerprint import digest
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import END_OF_TEXT

ALL = "all"


class Unusable(ValueError):
    """A store, or a part of one, that must be prepared anew. The message is empty if there is none."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Unusable:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Unusable(f"was prepared, but the files are damaged ({error})") from error


class Arrays(NamedTuple):
    """places: int64 (images, 5), row of the source, start in the pixels of its part, height, width, their CRC-32.
    captions: int64, number of each image. lengths: int64, of each caption, in tokens. tokens: uint16 or int32. In
    "all", captions and lengths are running sums that start with 0."""

    places: np.ndarray
    captions: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray

    def summed(self) -> Arrays:
        """The running sums of a part."""
        start = np.zeros(1, dtype=np.int64)
        captions, lengths = (np.concatenate([start, counts.cumsum()]) for counts in (self.captions, self.lengths))
        return self._replace(captions=captions, lengths=lengths)

    def check_sums(self) -> None:
        _check(len(self.captions) == len(self.places) + 1, "captions and images differ in number")
        _check(int(self.captions[-1]) == len(self.lengths) - 1, "the captions do not add up")
        _check(int(self.lengths[-1]) == len(self.tokens), "the tokens do not add up")


class Prepared:
    """A finished store, mapped read-only. Cheap to pickle: a process that unpickles it maps the files itself.

    stamp: what the store must have been made from. rows: int64 (images,), the position in the source of each image that
    could be read, ascending. bad: why the others could not. Raises Unusable.
    """

    @_refusing()
    def __init__(self, directory: Path, stamp: str) -> None:
        self.directory, self._stamp = directory, stamp
        about, self._arrays = _load(directory / ALL, stamp, mapped=True)
        self._arrays.check_sums()
        self.bad: list[str] = about["bad"]
        self._part: int = about["part"]
        # All at once: were a file opened only when it is needed, another run could have replaced it by then.
        self._pixels: list[mmap.mmap | bytes] = []
        for i, size in enumerate(about["pixels"]):
            with (directory / part_name(i) / "pixels").open("rb") as file:
                _check(os.fstat(file.fileno()).st_size == size, "its pixels have another size")
                # nothing cannot be mapped
                self._pixels.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
        self.rows = np.ascontiguousarray(self._arrays.places[:, 0])

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3) RGB, read-only, as Augment.store gave it; the pixels stay in the file. Raises Unusable."""
        row, start, height, width, written = self._arrays.places[index].tolist()
        found = np.ndarray((height, width, 3), np.uint8, self._pixels[row // self._part], start)
        if zlib.crc32(found.data) != written:
            raise Unusable(
                f"{self.directory / part_name(row // self._part)}: image {row} is damaged; delete that folder"
            )
        return found

    def captions(self, index: int) -> range:
        """The captions of an image, by their numbers among all."""
        return range(*self._arrays.captions[index : index + 2].tolist())

    def tokens(self, index: int) -> list[np.ndarray]:
        """token_rows of the captions of an image, read-only."""
        return self.rows_of(self.captions(index))

    def rows_of(self, captions: range) -> list[np.ndarray]:
        """token_rows of some captions, read-only."""
        ends = self._arrays.lengths[captions.start : captions.stop + 1].tolist()
        return [self._arrays.tokens[a:b] for a, b in pairwise(ends)]

    @property
    def ends(self) -> np.ndarray:
        """int64: the running sum of the captions' lengths in tokens, from 0 on."""
        return self._arrays.lengths

    def digests(self) -> tuple[str, str]:
        """What changes with any image of it, and what with any caption; where they came from does not matter."""
        places, _, lengths, tokens = self._arrays
        return digest(places.tobytes()), digest(lengths.tobytes(), tokens.dtype, tokens.tobytes())

    def vocabulary(self) -> np.ndarray:
        """The token ids in use, ascending, int64."""
        return np.unique(self._arrays.tokens).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.directory, self._stamp)


def token_rows(tokenizer: TextTokenizer, captions: Sequence[str]) -> list[np.ndarray]:
    """Of each caption (length,): what the tokenizer gives, without the padding; uint16 if that is 0, else int32."""
    ids = tokenizer(list(captions)).numpy()
    if getattr(tokenizer, "pad", None) != 0:
        return [row[row >= 0] for row in ids.astype(np.int32)]
    # up to the last end token, and not the first, which a caption may spell out; nor the zeros, since 0 is also "!"
    lengths = ids.shape[1] - (ids[:, ::-1] == END_OF_TEXT).argmax(axis=1)
    return [row[:length] for row, length in zip(ids.astype(np.uint16), lengths.tolist(), strict=True)]


def part_name(part: int) -> str:
    return f"{part:03d}"


def save_part(path: Path, about: dict[str, Any], arrays: Arrays) -> None:
    checks = {}
    for name, array in arrays._asdict().items():
        # by way of memory: into a file, np.save takes no notice of a full disk
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        (path / f"{name}.npy").write_bytes(buffer.getbuffer())
        checks[name] = zlib.crc32(np.ascontiguousarray(array).data)
    (path / "about.json").write_text(json.dumps({**about, "checks": checks}), encoding="ascii")


@_refusing()
def load_part(path: Path, stamp: str, rows: int) -> tuple[dict[str, Any], Arrays]:
    """A finished part that was made of so many rows of the source. Raises Unusable."""
    about, arrays = _load(path, stamp, mapped=False)
    _check(about["rows"] == rows == len(arrays.places) + len(about["bad"]), "images are missing")
    pixels = int((arrays.places[:, 2] * arrays.places[:, 3] * 3).sum())
    _check((path / "pixels").stat().st_size == pixels == about["pixels"], "its pixels have another size")
    arrays.summed().check_sums()
    return about, arrays


def _load(path: Path, stamp: str, mapped: bool) -> tuple[dict[str, Any], Arrays]:
    """What save_part has written."""
    if not path.is_dir():
        raise Unusable
    about = json.loads((path / "about.json").read_text(encoding="ascii"))
    if about["stamp"] != stamp:
        raise Unusable("has changed since it was prepared")
    files = (np.load(path / f"{name}.npy", "r" if mapped else None, allow_pickle=False) for name in Arrays._fields)
    arrays = Arrays(*map(np.asarray, files))  # a memmap is slow to slice
    _check([a.ndim for a in arrays] == [2, 1, 1, 1] and arrays.places.shape[1] == 5, "an array has another shape")
    right = all(a.dtype == np.int64 for a in arrays[:3]) and arrays.tokens.dtype in (np.uint16, np.int32)
    _check(right, "an array has another type")
    for name, array in arrays._asdict().items():
        _check(zlib.crc32(np.ascontiguousarray(array).data) == about["checks"][name], f"{name}.npy has other values")
    return about, arrays


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)
