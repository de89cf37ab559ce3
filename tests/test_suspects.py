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
from miniclip.inspection.suspects import THRESHOLD, same_images, same_texts, suspects, unseen_duplicates


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def halved(image: Image.Image) -> Image.Image:
    w, h = image.size
    return image.resize((w // 2, h // 2), Image.Resampling.LANCZOS).resize((w, h), Image.Resampling.BICUBIC)


def scenes(n: int, size: int = 96) -> list[Image.Image]:
    source = SceneSource("train", n, seed=0, image_size=size)
    return [source.image(i) for i in range(n)]


def pairs_of(same: Tensor) -> set[tuple[int, int]]:
    """Those that hold, i < j; it must be symmetric, with the diagonal."""
    assert same.dtype == torch.bool and torch.equal(same, same.T) and same.diagonal().all()
    return {(i, j) for i, j in same.nonzero().tolist() if i < j}


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
        *(["a"], ["dog and cat"], ["cat and dog"]),
        *(["\u0915\u0940"], ["\u0915\u093e"]),  # Hindi: the letter is the same, its vowel is a mark
    ]
    places = [k for k, group in enumerate(groups) for _ in group]
    expected = {(i, j) for i, j in combinations(range(len(places)), 2) if places[i] == places[j]}
    assert pairs_of(same_texts([caption for group in groups for caption in group])) == expected


def test_the_distance_is_the_root_mean_square() -> None:
    """Plain colours of a known distance, on both sides of the threshold; the same of a single channel."""
    grey = Image.new("RGB", (64, 64), (100, 100, 100))
    colours = [((100 + step,) * 3, step) for step in (0, math.ceil(THRESHOLD) - 1, math.floor(THRESHOLD) + 1)]
    colours += [((100, 100 - step, 100), step / math.sqrt(3)) for step in range(20)]
    for colour, distance in colours:
        assert bool(same_images([grey, Image.new("RGB", (64, 64), colour)])[0, 1]) == (distance < THRESHOLD)


def test_encoded_again_is_the_same() -> None:
    rng = np.random.default_rng(0)
    fields = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(10)]
    images = scenes(30) + [Image.fromarray(f).resize((96, 96), Image.Resampling.BICUBIC) for f in fields]
    again = [jpeg(p, q) for q in (60, 75, 95) for p in images] + [jpeg(halved(p), 60) for p in images]
    expected = {(i, j) for i, j in combinations(range(200), 2) if i % 40 == j % 40}
    assert pairs_of(same_images(images + again)) == expected


def test_other_images_are_different() -> None:
    """Scenes, the three closest pairs of 5,000 (8.9 to 9.8 apart), and what is made of one image."""
    source, first = SceneSource("train", 5000), scenes(1)[0]
    made = [first, ImageOps.mirror(first), ImageOps.invert(first), first.convert("L").convert("RGB")]
    nearest = [source.image(i) for i in (1587, 1651, 3904, 3955, 1516, 4865)]
    assert all(pairs_of(same_images(images)) == set() for images in (scenes(1200, 64), nearest, made))


# ---- the lists, worked by hand

NONE = torch.eye(3, dtype=torch.bool)
COSINE = torch.tensor([[0.5, 0.75, 0.25], [0.625, 0.25, 0.375], [0.0, 0.5, 0.375]], dtype=torch.float64)


def marked(*pairs: tuple[int, int]) -> Tensor:
    same = NONE.clone()
    for i, j in pairs:
        same[i, j] = same[j, i] = True
    return same


def test_false_negatives_by_hand() -> None:
    """A model that takes wrong texts for better ones, so that nothing but duplicates is said."""
    one_way = NONE.clone()
    one_way[0, 1] = True  # which is a negative still
    flat = torch.full((3, 3), 0.5)  # a collapsed model; of a duplicate's two entries then the first
    text = Cell(0, 1, 0.75, 0.25, "text")
    both = [Cell(2, 1, 0.5, 0.125, "image"), Cell(0, 2, 0.25, -0.25, "both")]
    for cosine, positives, same_text, same_image, found in (
        (COSINE, NONE, NONE, NONE, []),
        (COSINE, NONE, marked((0, 2)), NONE, [Cell(0, 2, 0.25, -0.25, "text")]),
        (COSINE, NONE, marked((0, 2)), marked((2, 0), (1, 2)), both),
        (flat, NONE, NONE, NONE, []),
        (flat, NONE, NONE, marked((2, 1)), [Cell(1, 2, 0.5, 0.0, "image")]),
        # a positive is listed only as a duplicate
        (COSINE, marked((0, 1)), NONE, NONE, []),
        (COSINE, marked((0, 1)), marked((0, 1)), NONE, [text._replace(positive=True)]),
        (COSINE, one_way, marked((0, 1)), NONE, [text]),
    ):
        got = suspects(cosine, positives, same_text, same_image)
        assert got.false_negatives == found
        assert suspects(cosine, positives, same_text, same_image, (1, 1)).false_negatives == found[:1]
        assert got.suspicion.startswith("Beside duplicates nothing is suspected: this model does not tell")


def test_what_comes_near_the_right_pairs_is_suspected() -> None:
    """Leads over the best rival of 0.125, 0.125, 0.625, 0.625, 0.625: half of the usual one is the bar, 0.3125."""
    eye, cosine = torch.eye(5, dtype=torch.bool), torch.full((5, 5), 0.125, dtype=torch.float64).fill_diagonal_(0.75)
    assert suspects(cosine, eye, eye, eye).false_negatives == []
    cosine[0, 1], cosine[1, 0] = 0.625, 0.5
    found = suspects(cosine, eye, eye, eye)
    assert found.false_negatives == [Cell(0, 1, 0.625, -0.125)] and found.suspected_false_negatives == 1
    assert "within 0.31 of both right pairs" in found.suspicion and "stays 0.62 below" in found.suspicion
    # leads of -0.25, -0.25, 0.125, 0.625, 0.625, which are too uneven to allow anything below the right pairs
    cosine[0, 1], cosine[2, 0] = 1.0, 0.625
    found = suspects(cosine, eye, eye, eye)
    assert found.false_negatives == [Cell(0, 1, 1.0, 0.25)]
    assert "above both right pairs" in found.suspicion and "a usual pair, 0.75" in found.suspicion


def made(n: int, noise: float, seed: int, planted: int) -> tuple[Tensor, set[tuple[int, int]]]:
    """Cosines of a model that knows the pairs but for noise; of each planted pair another is about the same thing."""
    generator = torch.Generator().manual_seed(seed)
    things = torch.randn(n, 64, generator=generator)
    things[n - planted :] = things[:planted]
    sides = (things + noise * torch.randn(n, 64, generator=generator) for _ in range(2))
    image, text = (torch.nn.functional.normalize(side, dim=1).double() for side in sides)
    return image @ text.T, {(k, n - planted + k) for k in range(planted)}


@pytest.mark.parametrize("n", [32, 256])
def test_a_model_that_tells_pairs_apart_suspects_what_is_planted_and_another_nothing(n: int) -> None:
    eye = torch.eye(n, dtype=torch.bool)
    # what the bar was before: above both right pairs
    above = lambda c: int((c > torch.maximum(c.diagonal()[:, None], c.diagonal())).sum())  # noqa: E731
    for seed in range(4):
        for noise in (0.05, 0.3, 0.5):
            cosine, planted = made(n, noise, seed, n // 10)
            found = suspects(cosine, eye, eye, eye)
            assert {(min(c.i, c.j), max(c.i, c.j)) for c in found.false_negatives} == planted
            assert found.suspected_false_negatives == n // 10
        weak, random = (made(n, noise, seed, 0)[0] for noise in (2.5, 1e6))
        assert above(weak) > n and above(random) > 4 * n
        for cosine in (weak, random):
            found = suspects(cosine, eye, eye, eye)
            assert found.suspected_false_negatives == 0 and "does not tell half of these pairs apart" in found.suspicion


def test_what_is_said_of_a_model_that_gives_all_the_same() -> None:
    said = suspects(torch.ones(4, 4), *[torch.eye(4).bool()] * 3).suspicion
    assert "(they stand 0.00 or more below a rival)" in said  # not -0.00


def test_worst_positives_by_hand() -> None:
    def worst(positives: Tensor) -> list[Cell]:
        return suspects(COSINE, positives, NONE, NONE).worst_positives

    rows = [(1, 0.25, -0.5), (0, 0.5, -0.25), (2, 0.375, -0.125)]
    assert worst(NONE) == [Cell(i, i, cosine, margin, positive=True) for i, cosine, margin in rows]
    assert [(cell.i, cell.margin) for cell in worst(marked((0, 1)))[:2]] == [(1, -0.25), (2, -0.125)]
    assert [cell.i for cell in worst(marked((0, 1), (0, 2)))] == [1, 2]  # pair 0 has no negative left


def test_unseen_duplicates_by_hand() -> None:
    one_way = NONE.clone()
    one_way[0, 1] = True
    for positives, same_text, same_image, pairs in (
        (NONE, NONE, NONE, 0),
        (NONE, marked((0, 1)), NONE, 2),
        (NONE, marked((0, 1)), marked((0, 2)), 3),
        (marked((0, 1)), marked((0, 1)), marked((0, 2)), 2),
        (marked((0, 1)), marked((0, 1)), NONE, 0),
        (one_way, marked((0, 1)), NONE, 2),
    ):
        assert unseen_duplicates(positives, same_text, same_image) == pytest.approx(pairs / 3)


# ---- the lists, by loops


def draw(n: int, seed: int, told: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """told: how much higher right pairs are."""
    rng = np.random.default_rng(seed)

    def some(share: float) -> Tensor:
        upper = np.triu(rng.random((n, n)) < share, 1)
        return torch.from_numpy(upper | upper.T | np.eye(n, dtype=bool))

    cosine = torch.from_numpy(rng.uniform(-1, 1, (n, n)) + told * np.eye(n))
    return cosine, some(0.2), some(0.15), some(0.15)


def kind_of(text: bool, image: bool) -> Duplicate | None:
    return "both" if text and image else "text" if text else "image" if image else None


def test_lists_equal_a_loop() -> None:
    n, bars = 8, set()
    for seed, limit, told in ((0, 3, 0), (1, 10, 0.9), (2, 200, 1.0), (3, 200, 0), (5, 200, 1.1), (6, 200, 2)):
        tensors = draw(n, seed, told)
        c, yes, text, image = (tensor.tolist() for tensor in tensors)

        def cell(i: int, j: int, c: list = c, yes: list = yes, text: list = text, image: list = image) -> Cell:
            margin = c[i][j] - max(c[i][i], c[j][j])
            return Cell(i, j, c[i][j], margin, kind_of(text[i][j], image[i][j]), yes[i][j])

        other = [[j for j in range(n) if not (yes[i][j] or text[i][j] or image[i][j])] for i in range(n)]
        leads = [c[i][i] - max(max(c[i][j], c[j][i]) for j in other[i]) for i in range(n) if other[i]]
        usual, high = np.quantile(leads, [0.5, 0.75]).tolist()
        bar = min(0, max(-usual / 2, 2.5 * (high - usual) - usual)) if usual > 0 else math.inf
        bars.add("none" if bar == math.inf else "below" if bar < 0 else "above")
        middle = sorted(c[i][i] for i in range(n))[(n - 1) // 2]
        listed = []
        for i, j in combinations(range(n), 2):
            one = max((cell(i, j), cell(j, i)), key=lambda one: one.margin)
            if one.duplicate or (c[one.i][one.j] > max(c[i][i], c[j][j], middle) + bar and not one.positive):
                listed.append(one)
        listed.sort(key=lambda one: (2 * one.positive if one.duplicate else 1, -one.cosine))
        negatives = [cell(i, j) for i in range(n) for j in range(n) if not yes[i][j]]
        positives = []
        for i in range(n):
            rivals = [c[i][j] for j in range(n) if not yes[i][j]] + [c[j][i] for j in range(n) if not yes[j][i]]
            positives.append(Cell(i, i, c[i][i], c[i][i] - max(rivals), positive=True))
        assert len(listed) > 5
        found = suspects(*tensors, limits=(limit, limit))
        assert found == (
            listed[:limit],
            sum(not one.positive for one in listed),
            found.suspicion,
            sorted(negatives, key=lambda one: -one.margin)[:limit],
            sorted(positives, key=lambda one: one.margin)[:limit],
        )
        alike = [[j for j in range(n) if i != j and (text[i][j] or image[i][j])] for i in range(n)]
        unseen = [any(not (yes[i][j] and yes[j][i]) for j in alike[i]) for i in range(n)]
        assert unseen_duplicates(*tensors[1:]) == pytest.approx(sum(unseen) / n)
    assert bars == {"none", "below", "above"}


def test_planted_duplicates_are_found_and_no_others() -> None:
    """80 scenes; 6 images come again in another encoding, 6 captions in another spelling, 2 pairs in both."""
    n = 80
    images, captions = scenes(n), [f"Scene {i}: a thing, and another one" for i in range(n)]
    # a model that tells all pairs apart: nothing but the duplicates stands out
    cosine, eye = torch.full((n, n), 0.1).fill_diagonal_(0.5), torch.eye(n, dtype=torch.bool)
    same = same_texts(captions), same_images(images)
    assert suspects(cosine, eye, *same).false_negatives == [] and unseen_duplicates(eye, *same) == 0

    again = [lambda p: jpeg(p, 60), lambda p: jpeg(p, 90), halved, lambda p: p.copy()]
    of_images, of_texts = {(k, 40 + k) for k in range(8)}, {(k, 40 + k) for k in range(6, 14)}
    for i, j in of_images:
        images[j] = again[i % 4](images[i])
    for i, j in of_texts:
        captions[j] = captions[i].upper().replace(":", " -").replace(",", "") + "!"
    same = same_texts(captions), same_images(images)
    found = suspects(cosine, eye, *same).false_negatives
    planted = {pair: kind_of(pair in of_texts, pair in of_images) for pair in of_images | of_texts}
    assert {(cell.i, cell.j): cell.duplicate for cell in found} == planted and len(found) == 14
    assert not any(cell.positive for cell in found) and unseen_duplicates(eye, *same) == 28 / n
    assert all(cell.positive for cell in suspects(cosine, same[0] | same[1], *same).false_negatives)
