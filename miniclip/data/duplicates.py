"""When two captions or two images are the same, and the search for all such images among many.

Axes: N images, each compared as D = SIDE * SIDE * 3 values.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np
import regex
from PIL import Image

# Images are compared as squares of this side, by the root mean square of the differences of the values, 0 to 255.
# Measured on 1,000 photos of Flickr8k (144 x 144), against themselves as JPEG of quality 60 to 95, or halved: at most
# 2.1; halved and then quality 60: at most 5.1. Two different ones of all 8,000 are at least 13.2 apart, of 2,000 of
# CIFAR-10 16.9, of 5,000 built-in scenes 8.9; of 1,644 emoji only variants of one lie below. What JPEG makes of
# drawings of 64 pixels is more: quality 75 at most 4.4, quality 60 at most 5.7.
SIDE = 16
THRESHOLD = 6.0

TILE = 1024  # images whose distances are worked out at a time
MOST_PAIRS = 1_000_000


def bare(caption: str) -> str:
    """What is left without case, spaces, punctuation, or how Unicode writes a letter: letters with marks, digits."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    return "".join(regex.findall(r"\p{L}\p{M}*|\p{N}", folded))


def small_vector(image: Image.Image) -> np.ndarray:
    """RGB image of any size -> (D,) uint8, squashed to SIDE x SIDE; near if the RMS difference is below THRESHOLD.

    Bicubic, not a box: at 4.5 pixels a cell Pillow's box is uneven, and a halved image up to 8.2 from itself.
    """
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).reshape(-1)


class NearPairs(NamedTuple):
    """Pairs of images, nearest first. first, second: (P,) int64, first < second. rms: (P,) float64.
    complete: false if the search stopped because there were more than it keeps."""

    first: np.ndarray
    second: np.ndarray
    rms: np.ndarray
    complete: bool


def near_pairs(vectors: np.ndarray, most: int = MOST_PAIRS) -> NearPairs:
    """All pairs of rows of (N, D) uint8 whose root mean square difference is below THRESHOLD.

    Exact, in tiles: memory grows with N, not with its square. Means further apart than THRESHOLD exclude a pair, so
    that in the order of the means each row is compared with those that follow it closely. Stops beyond `most` pairs.
    """
    means = vectors.mean(1, dtype=np.float64)
    order = np.argsort(means, kind="stable")
    means = means[order]
    # D products of integers of at most 128 x 128 add up to less than 2^24: float32 sums them without rounding
    x = vectors[order].astype(np.float32) - 128
    squares, limit = np.square(x).sum(1), vectors.shape[1] * THRESHOLD**2
    found, total, complete = [np.zeros((3, 0), dtype=np.int64)], 0, True
    for start in range(0, len(x), TILE):
        rows = slice(start, start + TILE)
        last = int(np.searchsorted(means, means[rows][-1] + THRESHOLD, side="right"))
        for left in range(start, last, TILE):
            if total > most:
                complete = False
                break
            columns = slice(left, min(left + TILE, last))
            # |a|^2 + |b|^2 - 2 ab; with the product first, what comes below 2^24 has never been above
            distances = (x[rows] @ x[columns].T * -2 + squares[rows, None]) + squares[columns]
            i, j = (distances < limit).nonzero()
            distance, i, j = distances[i, j].astype(np.int64), i + start, j + left
            once = i < j  # of each pair at least one order is in a tile
            pairs = np.sort(np.stack([order[i[once]], order[j[once]]]), axis=0)
            found.append(np.concatenate([pairs, distance[None, once]]))
            total += int(once.sum())
    first, second, distance = np.concatenate(found, axis=1)
    ranks = np.lexsort((second, first, distance))
    rms = np.sqrt(distance[ranks] / max(1, vectors.shape[1]))
    return NearPairs(first[ranks], second[ranks], rms, complete)
