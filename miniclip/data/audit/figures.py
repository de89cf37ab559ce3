"""One pass over the images and captions of a split, and what they tell: sizes, lengths, what is unreadable.

Nothing stops for an image that cannot be read: it is counted and named. Axes: P images, C captions of a split.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from miniclip.data.ahead import threads
from miniclip.data.captioned import PairSource
from miniclip.data.duplicates import bare, small_vector
from miniclip.data.images import BadImage
from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE, Tokenizer

NAMED = 1000  # entries of a list at most; the counts are of all
BLOCK = 4096  # images that are in the hands of the threads at a time


class Seen(NamedTuple):
    """What is kept of an image. digest: of its pixels as decoded. size: width, height, of the file where there is one.
    file: as in decode_image."""

    small: np.ndarray
    digest: bytes
    size: tuple[int, int]
    file: dict[str, Any] | None


class Look(NamedTuple):
    """A split after the pass.

    seen: the images, or why one cannot be read; of the first ones, if not all were decoded. captions: (C) as written,
    of which first[p] to first[p + 1] belong to image p. bare: (C) as they are compared. texts: (C,) int64, equal for
    equal tokens within the context; ids: those tokens of each text, without start and end, the bytes of int32.
    lengths: (C,) int64, tokens with start and end, before the cut.
    """

    split: str
    source: PairSource
    seen: list[Seen | BadImage]
    captions: list[str]
    bare: list[str]
    first: np.ndarray
    texts: np.ndarray
    ids: list[bytes]
    lengths: np.ndarray

    def owners(self) -> np.ndarray:
        """(C,) int64: the image of each caption."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))


def look(
    split: str,
    source: PairSource,
    context_length: int,
    images: int | None = None,
    progress: bool = False,
    tokenizer: Any = None,
) -> Look:
    """Read the captions of a split, and its images, or the first so many, with a thread for each core. tokenizer: that
    has `encode`; CLIP's if left out."""
    from tqdm import tqdm

    count = len(source) if images is None else min(images, len(source))
    seen: list[Seen | BadImage] = []
    bar = tqdm(total=count, desc=f"{split}: reading images", unit="", leave=False, disable=not progress)
    with bar, threads(os.cpu_count() or 2) as pool:
        for start in range(0, count, BLOCK):
            for one in pool.map(partial(_see, source), range(start, min(start + BLOCK, count))):
                seen.append(one)
                bar.update()
    own = [source.captions(i) for i in range(len(source))]
    captions, first = list(chain.from_iterable(own)), np.cumsum([0, *map(len, own)])
    encode, numbers = (tokenizer or Tokenizer(context_length)).encode, dict[bytes, int]()
    specials = getattr(tokenizer, "specials", 2)
    texts, lengths = np.empty((2, len(captions)), dtype=np.int64)
    for k, caption in enumerate(captions):
        ids = array("i", encode(caption))
        lengths[k] = len(ids) + specials
        texts[k] = numbers.setdefault(ids[: context_length - specials].tobytes(), len(numbers))
    return Look(split, source, seen, captions, list(map(bare, captions)), first, texts, list(numbers), lengths)


def _see(source: PairSource, index: int) -> Seen | BadImage:
    try:
        image = source.image(index)
    except BadImage as error:
        return error
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest()
    file = image.info.get("file")
    width, height = file["size"] if file else image.size
    if (width > height) != (image.width > image.height):  # it was turned: the camera lay on its side
        width, height = height, width
    return Seen(small_vector(image), digest, (width, height), file)


def figures(look: Look, image_size: int, context_length: int) -> dict[str, Any]:
    """What one split holds: plain values, under the names of the audit's JSON."""
    seen = [one for one in look.seen if isinstance(one, Seen)]
    bad = [str(one) for one in look.seen if isinstance(one, BadImage)]
    files = [one.file for one in seen if one.file]
    width, height = np.array([one.size for one in seen], dtype=np.float64).reshape(-1, 2).T
    lengths, counts = np.unique(look.lengths, return_counts=True)
    used = np.unique(np.frombuffer(b"".join(look.ids), dtype=np.int32))
    return {
        "split": look.split,
        "pictures": len(look.seen),
        "unreadable": len(bad),
        "unreadable_named": bad[:NAMED],
        # in pixels, of the file where it is at hand, else as decoded
        "width": _spread(width),
        "height": _spread(height),
        "aspect": _spread(width / height),
        "smaller": int((np.minimum(width, height) < image_size).sum()),  # the encoder would enlarge them
        "sizes": _counted(f"{w} x {h}" for w, h in (one.size for one in seen)),
        "formats": _counted(file["format"] for file in files),
        "modes": _counted(file["mode"] for file in files),
        "file_bytes": _spread([file["bytes"] for file in files]),
        "captions": len(look.captions),
        "captions_a_picture": _spread(np.diff(look.first)),
        "distinct_captions": len(set(look.captions)),
        "distinct_bare_captions": len(set(look.bare)),  # but for case and punctuation
        "tokens": _spread(look.lengths),
        "lengths": dict(zip(lengths.tolist(), counts.tolist(), strict=True)),  # tokens -> captions
        "truncated": int((look.lengths > context_length).sum()),
        # within the context
        "tokens_used": len({START_OF_TEXT, END_OF_TEXT}.union(used.tolist())),
        "vocabulary": VOCAB_SIZE,
        "commonest": _commonest(look),
    }


def _commonest(look: Look) -> list[dict[str, Any]]:
    """The ten captions that stand there most often (but for case and punctuation), at least twice."""
    common, owners = [], look.owners()
    for text, count in Counter(look.bare).most_common(10):
        if count > 1:
            places = [k for k, one in enumerate(look.bare) if one == text]
            images = len(set(owners[places].tolist()))
            common.append({"text": look.captions[places[0]], "captions": count, "pictures": images})
    return common


def _spread(values: Any) -> dict[str, float] | None:
    """None for no values."""
    if not len(values):
        return None
    names = ("lowest", "low", "median", "high", "highest")
    quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return {**dict(zip(names, quantiles, strict=True)), "mean": float(np.mean(values))}


def _counted(words: Iterable[str]) -> dict[str, int]:
    """Each word with its number, the commonest first, NAMED of them at most."""
    return dict(Counter(words).most_common(NAMED))
