"""One pass over the pictures and captions of a split, and what they tell: sizes, lengths, what stands there twice.

Nothing stops for a picture that cannot be read: it is counted and named. Axes: P pictures, C captions of a split.
"""

from __future__ import annotations

import hashlib
import io
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from miniclip.data.captioned import Concat, Pairs, PairSource
from miniclip.data.duplicates import bare, small_vector
from miniclip.data.images import FORMATS, BadImage, path_inside
from miniclip.data.tables.image_column import FileImages, TarImages
from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE, Tokenizer

NAMED = 1000  # entries of a list at most; the counts are of all
BLOCK = 4096  # pictures that are in the hands of the threads at a time


@dataclass(frozen=True)
class Spread:
    """Of many numbers: the lowest, three quantiles (5%, 50%, 95%), the highest, the mean."""

    lowest: float
    low: float
    median: float
    high: float
    highest: float
    mean: float

    @staticmethod
    def of(values: Sequence[float] | np.ndarray) -> Spread | None:
        """None for no values."""
        if not len(values):
            return None
        lowest, low, median, high, highest = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist()
        return Spread(lowest, low, median, high, highest, float(np.mean(values)))


@dataclass(frozen=True)
class Common:
    """A caption as it is first written, how often it stands there (but for case and punctuation), with how many
    pictures."""

    text: str
    captions: int
    pictures: int


@dataclass(frozen=True)
class SplitFigures:
    """What one split holds.

    unreadable: pictures that cannot be decoded; unreadable_named: which and why, NAMED of them at most.
    width, height: in pixels, of the file where it is at hand, else as decoded; aspect: width / height. smaller:
    pictures whose shorter side the encoder has to enlarge. sizes, formats, modes: of the files, with their number.
    file_bytes: of each. distinct_captions: as written; distinct_bare_captions: but for case and punctuation. tokens: of
    each caption, with the start and end token. lengths: tokens -> captions. truncated: captions longer than the
    context. tokens_used: different ids that stand within the context, the start and end token among them, of
    vocabulary.
    """

    split: str
    pictures: int
    unreadable: int
    unreadable_named: list[str]
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    smaller: int
    sizes: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    file_bytes: Spread | None
    captions: int
    captions_a_picture: Spread | None
    distinct_captions: int
    distinct_bare_captions: int
    tokens: Spread | None
    lengths: dict[int, int]
    truncated: int
    tokens_used: int
    vocabulary: int
    commonest: list[Common]


class Seen(NamedTuple):
    """What is kept of a picture. digest: of its pixels as decoded. size: width, height; the rest is of the file."""

    small: np.ndarray
    digest: bytes
    size: tuple[int, int]
    format: str | None = None
    mode: str | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Looked:
    """A split after the pass. seen: (P), None where the picture cannot be read, and bad says why. captions: (C) as
    written, of which first[p] to first[p + 1] belong to picture p. bare: (C) compared by. texts: (C) int64, equal for
    equal tokens within the context."""

    split: str
    source: PairSource
    seen: list[Seen | None]
    bad: list[str]
    captions: list[str]
    bare: list[str]
    first: np.ndarray
    texts: np.ndarray
    lengths: np.ndarray
    tokens_used: int

    def __len__(self) -> int:
        return len(self.seen)

    def owners(self) -> np.ndarray:
        """(C,) int64: the picture of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))


def look(
    split: str, source: PairSource, context_length: int, limit: int | None = None, progress: bool = False
) -> Looked:
    """Read the first `limit` pictures of a split, or all, with a thread for each core."""
    from tqdm import tqdm

    count = len(source) if limit is None else min(limit, len(source))
    seen: list[Seen | None] = []
    bad: list[str] = []
    bar = tqdm(total=count, desc=f"{split}: reading pictures", unit="", leave=False, disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for start in range(0, count, BLOCK):
            for result in pool.map(lambda i: _see(source, i), range(start, min(start + BLOCK, count))):
                seen.append(None if isinstance(result, BadImage) else result)
                if isinstance(result, BadImage):
                    bad.append(str(result))
                bar.update()
    own = [source.captions(i) for i in range(count)]
    captions = list(chain.from_iterable(own))
    tokenizer, room = Tokenizer(context_length), context_length - 2
    used = np.zeros(VOCAB_SIZE, dtype=bool)
    used[[START_OF_TEXT, END_OF_TEXT]] = True
    numbers: dict[bytes, int] = {}
    texts, lengths = np.empty(len(captions), dtype=np.int64), np.empty(len(captions), dtype=np.int64)
    for k, caption in enumerate(captions):
        ids = tokenizer.encode(caption)
        lengths[k] = len(ids) + 2
        kept = ids[:room]
        used[kept] = True
        texts[k] = numbers.setdefault(array("H", kept).tobytes(), len(numbers))
    return Looked(
        split=split,
        source=source,
        seen=seen,
        bad=bad,
        captions=captions,
        bare=[bare(caption) for caption in captions],
        first=np.cumsum([0, *map(len, own)]),
        texts=texts,
        lengths=lengths,
        tokens_used=int(used.sum()),
    )


def _see(source: PairSource, index: int) -> Seen | BadImage:
    try:
        picture = source.image(index)
    except BadImage as error:
        return error
    digest = hashlib.blake2b(picture.tobytes(), digest_size=16, key=repr(picture.size).encode()).digest()
    seen = Seen(small_vector(picture), digest, picture.size)
    file = _file(source, index)
    return seen if file is None else _with_header(seen, file)


def _file(source: PairSource, index: int) -> bytes | Path | None:
    """The file of a picture that can be decoded; None where there is none, as of a built-in scene."""
    if isinstance(source, Concat):
        part, inside = source.place(index)
        return _file(source.parts[part], inside)
    if not isinstance(source, Pairs):
        return None
    pictures, row = source.images, int(source.rows[index])
    if isinstance(pictures, FileImages):
        return Path(path_inside(pictures.table.roots[0], pictures.paths[row][0], pictures.name(row)))
    if isinstance(pictures, TarImages):
        return pictures.table.read(pictures.field, row)
    cell = pictures.table.cell(pictures.column, row).as_py()
    if not isinstance(cell, dict):
        return cell
    return cell["bytes"] if cell.get("bytes") is not None else None


def _with_header(seen: Seen, file: bytes | Path) -> Seen:
    """The size before a JPEG was decoded smaller, and what else the file's head says."""
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=known) as image:
            upright = (image.width > image.height) == (seen.size[0] > seen.size[1])
            size = image.size if upright else (image.height, image.width)  # a camera held on its side
            count = len(file) if isinstance(file, bytes) else file.stat().st_size
            return seen._replace(size=size, format=image.format, mode=image.mode, file_bytes=count)
    except OSError:
        return seen


def figures(looked: Looked, image_size: int, context_length: int) -> SplitFigures:
    """What the pass over one split tells."""
    seen = [one for one in looked.seen if one is not None]
    width, height = np.array([one.size for one in seen], dtype=np.float64).reshape(-1, 2).T
    lengths, counts = np.unique(looked.lengths, return_counts=True)
    return SplitFigures(
        split=looked.split,
        pictures=len(looked),
        unreadable=len(looked.bad),
        unreadable_named=looked.bad[:NAMED],
        width=Spread.of(width),
        height=Spread.of(height),
        aspect=Spread.of(width / height),
        smaller=int((np.minimum(width, height) < image_size).sum()),
        sizes=_counted(f"{w} x {h}" for w, h in (one.size for one in seen)),
        formats=_counted(one.format for one in seen if one.format),
        modes=_counted(one.mode for one in seen if one.mode),
        file_bytes=Spread.of([one.file_bytes for one in seen if one.file_bytes is not None]),
        captions=len(looked.captions),
        captions_a_picture=Spread.of(np.diff(looked.first)),
        distinct_captions=len(set(looked.captions)),
        distinct_bare_captions=len(set(looked.bare)),
        tokens=Spread.of(looked.lengths),
        lengths=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
        truncated=int((looked.lengths > context_length).sum()),
        tokens_used=looked.tokens_used,
        vocabulary=VOCAB_SIZE,
        commonest=_commonest(looked),
    )


def _commonest(looked: Looked) -> list[Common]:
    """The ten captions that stand there most often, at least twice."""
    top = [(text, n) for text, n in Counter(looked.bare).most_common(10) if n > 1]
    places: dict[str, list[int]] = {text: [] for text, _ in top}
    for k, text in enumerate(looked.bare):
        if text in places:
            places[text].append(k)
    owners = looked.owners()
    return [Common(looked.captions[places[text][0]], n, len(set(owners[places[text]].tolist()))) for text, n in top]


def _counted(words: Iterable[str]) -> dict[str, int]:
    """Each word with its number, the commonest first, NAMED of them at most."""
    return dict(Counter(words).most_common(NAMED))
