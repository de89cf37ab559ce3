"""Suspects: planted duplicates are found and clean sets are clean; the lists against loops over floats."""

from __future__ import annotations

import io
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from miniclip.data.scenes.source import SceneSource
from miniclip.inspection.contents import Cell, Duplicate
from miniclip.inspection.suspects import (
    THRESHOLD,
    count_false_negatives,
    false_negatives,
    hardest_negatives,
    same_images,
    same_texts,
    unseen_duplicates,
    worst_positives,
)


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def halved(picture: Image.Image) -> Image.Image:
    w, h = picture.size
    return picture.resize((w // 2, h // 2), Image.Resampling.LANCZOS).resize((w, h), Image.Resampling.BICUBIC)


def scenes(n: int, size: int = 96, seed: int = 0) -> list[Image.Image]:
    source = SceneSource("train", n, seed=seed, image_size=size)
    return [source.image(i) for i in range(n)]


def pairs_of(same: Tensor) -> set[tuple[int, int]]:
    """Those that hold, i < j; it must be symmetric, with the diagonal."""
    assert same.dtype == torch.bool
    assert torch.equal(same, same.T)
    assert same.diagonal().all()
    return {(i, j) for i, j in same.nonzero().tolist() if i < j}


# ---- texts


# ---- texts and images


def test_texts_are_the_same_but_for_case_spaces_punctuation_and_writing() -> None:
    groups = [
        ["A dog, running!", "  a_dog\trunning\n", "A DOG RUNNING."],
        ["T-shirt", "t shirt"],
        ["caf\u00e9", "CAFE\u0301"],  # one letter, and a letter with its accent
        ["cafe"],
        ["\uff12 dogs", "2 dogs"],  # a wide digit
        ["3 dogs"],
        ["\ufb01sh", "fish"],  # a ligature
        ["Stra\u00dfe", "STRASSE"],
        ["I love it \u2764\ufe0f", "I love it"],
        ["", " ... "],
        ["a"],
        ["dog and cat"],
        ["cat and dog"],
        ["\u0915\u0940"],  # Hindi: the letter is the same, its vowel is a mark
        ["\u0915\u093e"],
    ]
    captions = [caption for group in groups for caption in group]
    places = [k for k, group in enumerate(groups) for _ in group]
    expected = {(i, j) for i, j in combinations(range(len(captions)), 2) if places[i] == places[j]}
    assert pairs_of(same_texts(captions)) == expected


def test_the_distance_is_the_root_mean_square() -> None:
    """Plain colours of a known distance, on both sides of the threshold; the same of a single channel."""
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    under, over = math.ceil(THRESHOLD) - 1, math.floor(THRESHOLD) + 1
    for step, same in ((0, True), (under, True), (over, False)):
        assert bool(same_images([grey, Image.new("RGB", (64, 64), (100 + step,) * 3)])[0, 1]) == same
    for step in range(20):
        other = Image.new("RGB", (64, 64), (100, 100 - step, 100))
        assert bool(same_images([grey, other])[0, 1]) == (step / math.sqrt(3) < THRESHOLD)


def test_encoded_again_is_the_same() -> None:
    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(10)]
    images = scenes(30) + [Image.fromarray(f).resize((96, 96), Image.Resampling.BICUBIC) for f in fields]
    again = [jpeg(p, q) for q in (60, 75, 95) for p in images] + [jpeg(halved(p), 60) for p in images]
    expected = {(i, j) for i, j in combinations(range(200), 2) if i % 40 == j % 40}
    assert pairs_of(same_images(images + again)) == expected


def test_different_scenes_are_different() -> None:
    assert pairs_of(same_images(scenes(1200, 64))) == set()


def test_the_nearest_scenes_are_different() -> None:
    """The three closest pairs of 5,000: 8.9 to 9.8 apart."""
    source = SceneSource("train", 5000)
    pictures = [source.image(i) for i in (1587, 1651, 3904, 3955, 1516, 4865)]
    assert pairs_of(same_images(pictures)) == set()


def test_changed_pictures_are_others() -> None:
    picture = scenes(1)[0]
    others = [ImageOps.mirror(picture), ImageOps.invert(picture), picture.convert("L").convert("RGB")]
    assert pairs_of(same_images([picture, *others])) == set()


# ---- the lists, worked by hand

NONE = torch.eye(3, dtype=torch.bool)
COSINE = torch.tensor([[0.5, 0.75, 0.25], [0.625, 0.25, 0.375], [0.0, 0.5, 0.375]], dtype=torch.float64)


def marked(*pairs: tuple[int, int]) -> Tensor:
    same = torch.eye(3, dtype=torch.bool)
    for i, j in pairs:
        same[i, j] = same[j, i] = True
    return same


def test_false_negatives_by_hand() -> None:
    assert false_negatives(COSINE, NONE, NONE, NONE) == [Cell(0, 1, 0.75, 0.25), Cell(2, 1, 0.5, 0.125)]
    assert false_negatives(COSINE, NONE, marked((0, 2)), NONE) == [
        Cell(0, 2, 0.25, -0.25, "text"),
        Cell(0, 1, 0.75, 0.25),
        Cell(2, 1, 0.5, 0.125),
    ]
    assert false_negatives(COSINE, NONE, marked((0, 2)), marked((2, 0), (1, 2)), limit=2) == [
        Cell(2, 1, 0.5, 0.125, "image"),
        Cell(0, 2, 0.25, -0.25, "both"),
    ]
    # a collapsed model gives every entry the same value; of a duplicate's two entries then the first
    flat = torch.full((3, 3), 0.5)
    assert false_negatives(flat, NONE, NONE, NONE) == []
    assert false_negatives(flat, NONE, NONE, marked((2, 1))) == [Cell(1, 2, 0.5, 0.0, "image")]


def test_a_positive_is_listed_only_as_a_duplicate() -> None:
    positives = marked((0, 1))
    assert false_negatives(COSINE, positives, NONE, NONE) == [Cell(2, 1, 0.5, 0.125)]
    assert false_negatives(COSINE, positives, marked((0, 1)), NONE) == [
        Cell(2, 1, 0.5, 0.125),
        Cell(0, 1, 0.75, 0.25, "text", positive=True),
    ]


def test_worst_positives_by_hand() -> None:
    assert worst_positives(COSINE, NONE) == [
        Cell(1, 1, 0.25, -0.5, positive=True),
        Cell(0, 0, 0.5, -0.25, positive=True),
        Cell(2, 2, 0.375, -0.125, positive=True),
    ]
    assert worst_positives(COSINE, marked((0, 1)), limit=2) == [
        Cell(1, 1, 0.25, -0.25, positive=True),
        Cell(2, 2, 0.375, -0.125, positive=True),
    ]
    # pair 0 has no negative left
    assert [cell.i for cell in worst_positives(COSINE, marked((0, 1), (0, 2)))] == [1, 2]


def test_unseen_duplicates_by_hand() -> None:
    assert unseen_duplicates(NONE, NONE, NONE) == 0
    assert unseen_duplicates(NONE, marked((0, 1)), NONE) == pytest.approx(2 / 3)
    assert unseen_duplicates(NONE, marked((0, 1)), marked((0, 2))) == 1
    assert unseen_duplicates(marked((0, 1)), marked((0, 1)), marked((0, 2))) == pytest.approx(2 / 3)
    assert unseen_duplicates(marked((0, 1)), marked((0, 1)), NONE) == 0


def test_a_positive_one_way_only_is_a_negative_still() -> None:
    one_way = NONE.clone()
    one_way[0, 1] = True
    assert unseen_duplicates(one_way, marked((0, 1)), NONE) == pytest.approx(2 / 3)
    assert false_negatives(COSINE, one_way, marked((0, 1)), NONE)[0] == Cell(0, 1, 0.75, 0.25, "text")


# ---- the lists, by loops


def draw(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)

    def some(share: float) -> Tensor:
        upper = np.triu(rng.random((n, n)) < share, 1)
        return torch.from_numpy(upper | upper.T | np.eye(n, dtype=bool))

    cosine = torch.from_numpy(rng.uniform(-1, 1, (n, n)))
    return cosine, some(0.2), some(0.15), some(0.15)


def kind_of(text: bool, image: bool) -> Duplicate | None:
    return "both" if text and image else "text" if text else "image" if image else None


@pytest.mark.parametrize(("seed", "limit"), [(0, 3), (1, 10), (2, 200), (3, 200)])
def test_lists_equal_a_loop(seed: int, limit: int) -> None:
    n = 8
    tensors = draw(n, seed)
    c, yes, text, image = (tensor.tolist() for tensor in tensors)

    def cell(i: int, j: int) -> Cell:
        margin = c[i][j] - max(c[i][i], c[j][j])
        return Cell(i, j, c[i][j], margin, kind_of(text[i][j], image[i][j]), yes[i][j])

    suspects = []
    for i, j in combinations(range(n), 2):
        found = max((cell(i, j), cell(j, i)), key=lambda one: one.margin)
        if found.duplicate or (found.margin > 0 and not found.positive):
            suspects.append(found)
    suspects.sort(key=lambda one: (2 * one.positive if one.duplicate else 1, -one.cosine))
    assert len(suspects) > 10
    assert false_negatives(*tensors, limit=limit) == suspects[:limit]
    assert count_false_negatives(*tensors) == sum(not one.positive for one in suspects)

    negatives = [cell(i, j) for i in range(n) for j in range(n) if not yes[i][j]]
    assert hardest_negatives(*tensors, limit=limit) == sorted(negatives, key=lambda one: -one.margin)[:limit]

    positives = []
    for i in range(n):
        rivals = [c[i][j] for j in range(n) if not yes[i][j]] + [c[j][i] for j in range(n) if not yes[j][i]]
        positives.append(Cell(i, i, c[i][i], c[i][i] - max(rivals), positive=True))
    assert worst_positives(*tensors[:2], limit=limit) == sorted(positives, key=lambda one: one.margin)[:limit]

    unseen = [
        any(i != j and (text[i][j] or image[i][j]) and not (yes[i][j] and yes[j][i]) for j in range(n))
        for i in range(n)
    ]
    assert unseen_duplicates(*tensors[1:]) == pytest.approx(sum(unseen) / n)


# ---- a built set


def test_planted_duplicates_are_found_and_no_others() -> None:
    """80 scenes; 6 pictures come again in another encoding, 6 captions in another spelling, 2 pairs in both."""
    n = 80
    pictures, captions = scenes(n), [f"Scene {i}: a thing, and another one" for i in range(n)]
    again = [lambda p: jpeg(p, 60), lambda p: jpeg(p, 90), halved, lambda p: p.copy()]
    images = {(k, 40 + k) for k in range(8)}
    texts = {(k, 40 + k) for k in range(6, 14)}
    clean = pictures.copy(), captions.copy()
    for i, j in images:
        pictures[j] = again[i % 4](pictures[i])
    for i, j in texts:
        captions[j] = captions[i].upper().replace(":", " -").replace(",", "") + "!"
    # a model that tells all pairs apart: nothing but the duplicates stands out
    cosine = torch.full((n, n), 0.1).fill_diagonal_(0.5)
    positives = torch.eye(n, dtype=torch.bool)

    found = false_negatives(cosine, positives, same_texts(captions), same_images(pictures))
    assert {(cell.i, cell.j): cell.duplicate for cell in found} == {
        pair: kind_of(pair in texts, pair in images) for pair in images | texts
    }
    assert len(found) == 14
    assert not any(cell.positive for cell in found)
    assert unseen_duplicates(positives, same_texts(captions), same_images(pictures)) == 28 / n
    seen = same_texts(captions) | same_images(pictures)
    assert all(cell.positive for cell in false_negatives(cosine, seen, same_texts(captions), same_images(pictures)))

    same = same_texts(clean[1]), same_images(clean[0])
    assert false_negatives(cosine, positives, *same) == []
    assert unseen_duplicates(positives, *same) == 0
