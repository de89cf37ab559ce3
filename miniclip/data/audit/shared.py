"""What stands twice: images and captions of one split, or of two, where they are leaks.

Axes: S splits, P images of one; K kinds of images, those equal in every pixel as decoded being one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from miniclip.data.audit.figures import NAMED, Look, Seen
from miniclip.data.duplicates import near_pairs


def kinds_of(splits: Sequence[Look]) -> tuple[list[np.ndarray], np.ndarray]:
    """Of each split (P,) int64, the kind of each image, -1 where it cannot be read; and (K, D) uint8, small vectors."""
    numbers: dict[bytes, int] = {}
    small: dict[int, np.ndarray] = {}
    kinds = []
    for split in splits:
        kinds.append(np.full(len(split.seen), -1, dtype=np.int64))
        for row, seen in enumerate(split.seen):
            if isinstance(seen, Seen):
                kinds[-1][row] = numbers.setdefault(seen.digest, len(numbers))
                small[kinds[-1][row]] = seen.small
    return kinds, np.stack(list(small.values())) if small else np.zeros((0, 1), dtype=np.uint8)


def readable(split: Look) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What expected_collisions takes, of the images that can be read."""
    kinds = kinds_of([split])[0][0]
    first = np.cumsum(np.append(0, np.diff(split.first)[kinds >= 0]))
    return split.texts[(kinds >= 0)[split.owners()]], first, kinds[kinds >= 0]


def compare(splits: Sequence[Look]) -> tuple[list[dict[str, Any]], bool]:
    """Each split with itself and with those after it; false if there were more near pairs than are kept.

    Plain values, under the names of the audit's JSON. The second split's images and captions are told against the
    first's, or, in one split, against those before them. Lists end at NAMED.
    """
    kinds, small = kinds_of(splits)
    near, k = near_pairs(small), len(small)
    # links between kinds: first of each to itself, at rms -1, then the near ones both ways round, nearest first
    order = np.argsort(np.tile(near.rms, 2), kind="stable")
    source = np.append(np.arange(k), np.append(near.first, near.second)[order])
    target = np.append(np.arange(k), np.append(near.second, near.first)[order])
    rms = np.append(np.full(k, -1.0), np.tile(near.rms, 2)[order])
    count = [np.bincount(one[one >= 0], minlength=k) for one in kinds]
    earliest = [np.full(k, len(one)) for one in kinds]  # the first row of each kind, or P
    for one, rows in zip(kinds, earliest, strict=True):
        np.minimum.at(rows, one[one >= 0], np.flatnonzero(one >= 0))

    shared = []
    for s, t in combinations_with_replacement(range(len(splits)), 2):
        first, second, same = splits[s], splits[t], s == t
        others = count[s][target] - (same & (source == target))  # images of the first split at the end of a link
        pairs = count[t][source] * others
        linked = np.zeros(k + 1, dtype=bool)  # the last one is kind -1
        linked[source[others > 0]] = True
        # in one split each image is named with one before it, so that one less is named for each group
        named = (others > 0) & (rms >= 0) & (not same or earliest[s][target] < earliest[s][source])
        backwards = np.flatnonzero(named)[::-1]
        nearest = dict(zip(source[backwards].tolist(), backwards.tolist(), strict=True))  # the last one stays
        twins = []
        for row, kind in enumerate(kinds[t].tolist()):
            identical = kind >= 0 and count[s][kind] and not (same and earliest[s][kind] == row)
            link = kind if identical else nearest.get(kind, -1)
            if link >= 0:
                twins.append((link, row, int(earliest[s][target[link]])))
        twins.sort(key=lambda twin: rms[twin[0]])
        said, echoes = _echoes(first, second)
        shared.append(
            {
                "first": first.split,
                "second": second.split,
                # pairs of images equal in every pixel as decoded, and others that differ in no more than their encoding
                "identical_pairs": int(pairs[:k].sum()) // (1 + same),
                "near_pairs": int(pairs[k:].sum()) // (1 + same),
                "second_pictures": int(linked[kinds[t]].sum()),  # with a twin in the first (in one split: with any)
                # each of them with the nearest, worst first; rms of the small images, 0 to 255
                "twins": [
                    {**_places(first, second, row, twin), "rms": max(0.0, float(rms[link])), "identical": link < k}
                    for link, row, twin in twins[:NAMED]
                ],
                "second_captions": said,  # that stand in the first (in one split: with another image)
                "echoes": [{"caption": caption, **_places(first, second, *rows)} for caption, *rows in echoes[:NAMED]],
            }
        )
    return shared, near.complete


def _places(first: Look, second: Look, row: int, twin: int) -> dict[str, Any]:
    names = {"name": second.source.name(row), "twin_row": twin, "twin_name": first.source.name(twin)}
    return {"row": row, **names}


def _echoes(first: Look, second: Look) -> tuple[int, list[tuple[str, int, int]]]:
    """How many captions of second stand in first, and of each such text (caption, image, image of first), the longest
    first. Captions are equal but for case and punctuation."""
    known = dict(zip(reversed(first.bare), reversed(first.owners().tolist()), strict=True))  # where it first stands
    found: dict[str, tuple[str, int, int]] = {}
    for caption, text, owner in zip(second.captions, second.bare, second.owners().tolist(), strict=True):
        if text in known and not (first is second and known[text] == owner):
            found.setdefault(text, (caption, owner, known[text]))
    return sum(text in found for text in second.bare), [found[text] for text in sorted(found, key=len, reverse=True)]
