"""What stands twice: pictures and captions of one split, or of two, where they are leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from miniclip.data.audit.figures import NAMED, Looked
from miniclip.data.duplicates import near_pairs


@dataclass(frozen=True)
class Twin:
    """A picture of the second split that stands in the first as well (in one split: before it): row, and file or row
    as messages name it. rms: of the small pictures, 0 to 255 (see duplicates.small_vector); identical: as decoded."""

    row: int
    name: str
    twin_row: int
    twin_name: str
    rms: float
    identical: bool


@dataclass(frozen=True)
class Echo:
    """A caption of the second split that stands in the first as well (in one split: with an earlier picture), but for
    case and punctuation."""

    caption: str
    row: int
    name: str
    twin_row: int
    twin_name: str


@dataclass(frozen=True)
class Shared:
    """What two splits share; or, if they are the same one, what stands in it twice.

    identical_pairs: pairs of pictures equal in every pixel as decoded; near_pairs: others that differ in no more than
    their encoding. second_pictures: pictures of the second split with such a twin in the first (in one split: with
    any). twins: each of them with the nearest, worst first (in one split: one less for each group).
    second_captions: captions of the second split that stand in the first (in one split: with another picture). echoes:
    one for each of those texts, the longest first.
    Lists end at NAMED.
    """

    first: str
    second: str
    identical_pairs: int
    near_pairs: int
    second_pictures: int
    twins: list[Twin]
    second_captions: int
    echoes: list[Echo]


def compare(splits: Sequence[Looked]) -> tuple[list[Shared], bool]:
    """Each split with itself and with those after it; false if there were more near pairs than are kept."""
    pictures = _Pictures(splits)
    captions = [_by_text(split) for split in splits]
    shared = []
    for s, t in combinations_with_replacement(range(len(splits)), 2):
        first, second = splits[s], splits[t]
        identical, near = pictures.pairs(s, t)
        count, twins = pictures.twins(s, t)
        said, echoes = _echoes(captions[s], captions[t], s == t)
        shared.append(
            Shared(
                first=first.split,
                second=second.split,
                identical_pairs=identical,
                near_pairs=near,
                second_pictures=count,
                twins=[
                    Twin(row, second.source.name(row), other, first.source.name(other), max(0.0, rms), rms < 0)
                    for row, other, rms in twins[:NAMED]
                ],
                second_captions=said,
                echoes=[
                    Echo(second.captions[k], row, second.source.name(row), other, first.source.name(other))
                    for k, row, other in echoes[:NAMED]
                ],
            )
        )
    return shared, pictures.complete


class _Pictures:
    """The pictures of all splits, each kind (equal pixels) once. Axes: K kinds, S splits.

    kinds[s]: (P) of split s, -1 where it cannot be read. count, earliest: (K, S), how often a kind is in a split, and
    its first row there. pairs of kinds that are near: source, target, rms, both ways round, nearest first.
    """

    def __init__(self, splits: Sequence[Looked]) -> None:
        numbers: dict[bytes, int] = {}
        small: list[np.ndarray] = []
        self.kinds = []
        for split in splits:
            kinds = np.full(len(split), -1, dtype=np.int64)
            for row, seen in enumerate(split.seen):
                if seen is not None:
                    kinds[row] = numbers.setdefault(seen.digest, len(numbers))
                    if kinds[row] == len(small):
                        small.append(seen.small)
            self.kinds.append(kinds)
        self.count = np.zeros((len(small), len(splits)), dtype=np.int64)
        self.earliest = np.full((len(small), len(splits)), -1, dtype=np.int64)
        for s, kinds in enumerate(self.kinds):
            rows = np.flatnonzero(kinds >= 0)
            np.add.at(self.count[:, s], kinds[rows], 1)
            self.earliest[kinds[rows[::-1]], s] = rows[::-1]  # of several, the last one written stays
        found = near_pairs(np.stack(small) if small else np.zeros((0, 1), dtype=np.uint8))
        self.complete = found.complete
        order = np.argsort(np.concatenate([found.rms, found.rms]), kind="stable")
        self.source = np.concatenate([found.first, found.second])[order]
        self.target = np.concatenate([found.second, found.first])[order]
        self.rms = np.concatenate([found.rms, found.rms])[order]

    def pairs(self, s: int, t: int) -> tuple[int, int]:
        """Number of identical pairs, and of near ones, one picture in s and the other in t."""
        ours, theirs = self.count[:, s], self.count[:, t]
        near = int((ours[self.source] * theirs[self.target]).sum())
        if s == t:
            return int((ours * (ours - 1)).sum()) // 2, near // 2
        return int((ours * theirs).sum()), near

    def twins(self, s: int, t: int) -> tuple[int, list[tuple[int, int, float]]]:
        """How many pictures of t have a twin in s, and (row in t, row in s, rms), worst first; rms -1: identical."""
        here = self.count[self.target, s] > 0
        near = np.zeros(len(self.count), dtype=bool)
        near[self.source[here]] = True
        identical = self.count[:, s] > (1 if s == t else 0)
        kinds = self.kinds[t]
        has = np.append(near | identical, False)[kinds]  # kind -1 is the last entry
        if s == t:
            here &= self.earliest[self.target, s] < self.earliest[self.source, s]
        nearest, distance = np.full(len(self.count), -1, dtype=np.int64), np.full(len(self.count), np.inf)
        # of several, the last one written stays: the nearest
        nearest[self.source[here][::-1]] = self.target[here][::-1]
        distance[self.source[here][::-1]] = self.rms[here][::-1]
        twins = []
        for row in np.flatnonzero(has).tolist():
            kind = kinds[row]
            first = int(self.earliest[kind, s])
            if first >= 0 and not (s == t and first == row):
                twins.append((row, first, -1.0))
            elif nearest[kind] >= 0:
                twins.append((row, int(self.earliest[nearest[kind], s]), float(distance[kind])))
        twins.sort(key=lambda twin: twin[2])
        return int(has.sum()), twins


def readable_parts(split: Looked) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What collisions.expected_collisions takes, of the pictures that can be read."""
    there = np.array([seen is not None for seen in split.seen], dtype=bool)
    numbers: dict[bytes, int] = {}
    kinds = [numbers.setdefault(seen.digest, len(numbers)) for seen in split.seen if seen is not None]
    first = np.cumsum(np.append(0, np.diff(split.first)[there]))
    return split.texts[there[split.owners()]], first, np.array(kinds, dtype=np.int64)


Texts = dict[str, list[tuple[int, int]]]


def _by_text(split: Looked) -> Texts:
    """What a caption is compared by -> (caption, picture) of each place it stands at."""
    places: Texts = {}
    for k, (text, owner) in enumerate(zip(split.bare, split.owners().tolist(), strict=True)):
        places.setdefault(text, []).append((k, owner))
    return places


def _echoes(first: Texts, second: Texts, same: bool) -> tuple[int, list[tuple[int, int, int]]]:
    """How many captions of second stand in first, and (caption, picture, picture of first) for each text."""
    count, echoes = 0, []
    for text in sorted(second, key=len, reverse=True):
        places = second[text]
        if same:
            twin = places[0][1]
            caption, owner = next(((k, p) for k, p in places if p != twin), (-1, -1))
            if owner < 0:
                continue
        elif text in first:
            twin, (caption, owner) = first[text][0][1], places[0]
        else:
            continue
        count += len(places)
        echoes.append((caption, owner, twin))
    return count, echoes
