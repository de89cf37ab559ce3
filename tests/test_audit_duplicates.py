"""The search for near images against all pairs; the floor of a batch against an optimiser; counts by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.data import duplicates
from miniclip.data.audit.collisions import batch_floor, expected_collisions
from miniclip.data.duplicates import THRESHOLD, bare, near_pairs, small_vector
from miniclip.losses import LOSSES

D = 768


def all_pairs(vectors: np.ndarray) -> dict[tuple[int, int], float]:
    """By 64-bit integers, one pair at a time."""
    wide = vectors.astype(np.int64)
    squares = {(i, j): int(((wide[i] - wide[j]) ** 2).sum()) for i, j in itertools.combinations(range(len(wide)), 2)}
    return {pair: math.sqrt(squared / D) for pair, squared in squares.items() if squared < THRESHOLD**2 * D}


def as_dict(vectors: np.ndarray) -> dict[tuple[int, int], float]:
    found = near_pairs(vectors.astype(np.uint8))
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert (np.diff(found.rms) >= 0).all() and len(set(pairs)) == len(pairs)
    return dict(zip(pairs, found.rms.tolist(), strict=True))


@pytest.mark.parametrize("tile", [1, 7, 1024])
def test_near_pairs_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Clusters around random images with noise of every strength on both sides of the threshold; and plain colours,
    whose means differ by as much as the whole images do."""
    monkeypatch.setattr(duplicates, "TILE", tile)
    rng = np.random.default_rng(0)
    rows = [c + rng.normal(0, scale, D) for c in rng.integers(0, 256, (25, D)) for scale in (0, 3, 4, 4.4, 5, 8)]
    vectors = np.clip(np.round(rows), 0, 255).astype(np.uint8)[rng.permutation(len(rows))]
    expected = all_pairs(vectors)
    assert len(expected) > 50 and as_dict(vectors) == pytest.approx(expected, abs=1e-12)
    plain = np.repeat([[100], [105], [106], [111], [112]], D, axis=1)
    assert as_dict(plain) == {(0, 1): 5.0, (1, 2): 1.0, (2, 3): 5.0, (3, 4): 1.0}


def test_the_threshold_is_exact_where_float32_is_not() -> None:
    """Squares of 2^24 and more: a distance one below the limit is near, the limit is not."""
    for background, step in ((0, 1), (255, -1)):
        base, at, below = np.full((3, D), background)
        at[:48] += 24 * step  # 48 x 24^2 = 768 x 6^2
        below[:47] += 24 * step
        below[47:70] += 5 * step
        squares = [int(((other - base) ** 2).sum()) for other in (at, below)]
        assert squares == [THRESHOLD**2 * D, THRESHOLD**2 * D - 1]
        assert (0, 1) not in as_dict(np.stack([base, at])) and (0, 1) in as_dict(np.stack([base, below]))


def test_too_many_near_pairs_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "TILE", 8)
    vectors = np.arange(40, dtype=np.uint8)[:, None] // 10 + np.zeros((1, D), dtype=np.uint8)
    found = near_pairs(vectors, most=50)
    assert not found.complete and 50 < len(found.first) < 40 * 39 // 2
    whole, none = near_pairs(vectors), near_pairs(vectors[:0])
    assert whole.complete and len(whole.first) == 40 * 39 // 2 and none.complete


def test_small_vector_stands_shrinking() -> None:
    """A box of 4.5 pixels, which Pillow's own is not, would put some of these apart."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        field = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(field).resize((144, 144), Image.Resampling.BICUBIC)
        for size in ((72, 72), (101, 101), (288, 200)):
            again = small_vector(image.resize(size, Image.Resampling.LANCZOS)).astype(int)
            assert np.sqrt(((again - small_vector(image)) ** 2).mean()) < THRESHOLD / 2
    assert small_vector(image).shape == (D,)


def test_bare() -> None:
    assert bare(" A dog, running! ") == bare("a dog running") != bare("a dog runs")


# ---- a batch


def test_floor_by_hand() -> None:
    for texts, images, expected in [
        ([0, 1, 2, 3], [0, 1, 2, 3], 0),
        ([0, 1, 2, 3], [0, 0, 1, 2], math.log(2) / 2),
        ([0, 0, 0, 1], [0, 0, 0, 1], 0.75 * math.log(3)),  # three rows that nothing tells apart, not nine
        ([0, 1, 0, 1], [0, 0, 1, 1], math.log(4)),  # each image with each text: nothing to learn
    ]:
        assert batch_floor(np.array(texts), np.array(images)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_floor_is_what_an_optimiser_reaches(seed: int) -> None:
    """Any number for each image with each text; equal images and equal texts have equal rows and columns."""
    rng = np.random.default_rng(seed)
    texts, images = rng.integers(0, 4, 9), rng.integers(0, 5, 9)
    table = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([table], lr=1, max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = LOSSES["softmax"](table[torch.from_numpy(images)][:, torch.from_numpy(texts)])
        loss.backward()
        return loss

    optimiser.step(step)
    reached, floor = step().item(), batch_floor(texts, images)
    # where a class holds apart, the optimum lies at infinity and is only come near to
    assert floor - 1e-6 <= reached <= floor + 2e-3
    assert floor > 0.3


def test_what_is_expected_of_a_batch_by_drawing() -> None:
    """Of all batches and all captions, in turn; two images are one, and captions stand twice with one image."""
    said, images = [[0, 1], [1, 1, 2], [0], [2, 3], [3]], np.array([0, 0, 1, 2, 1])
    texts, first = np.concatenate([np.array(s) for s in said]), np.cumsum([0, *map(len, said)])
    shared, floors = np.zeros(3), 0.0
    batches = list(itertools.combinations(range(5), 3))
    for batch in batches:
        draws = list(itertools.product(*(said[row] for row in batch)))
        weight = 1 / len(draws) / len(batches)
        for drawn in draws:
            floors += weight * batch_floor(np.array(drawn), images[list(batch)])
            for i, j in itertools.combinations(range(3), 2):
                same, seen = drawn[i] == drawn[j], images[batch[i]] == images[batch[j]]
                shared += weight * np.array([same, seen, same or seen])
    found = expected_collisions(texts, first, images, 3, batches=4000)
    assert [found[key] for key in ("same_caption", "same_picture", "either")] == pytest.approx(shared.tolist())
    assert 0 < abs(found["floor"] - floors) < 4 * found["floor_error"] < 0.05
    assert found == expected_collisions(texts, first, images, 3, batches=4000)


def test_a_batch_is_no_larger_than_the_data_and_no_smaller_than_two() -> None:
    texts, first, images = np.array([0, 0, 1]), np.arange(4), np.arange(3)
    found = expected_collisions(texts, first, images, 256)
    assert found["batch_size"] == 3 and found["chance"] == math.log(3)
    assert [found["floor"], found["floor_error"]] == pytest.approx([2 / 3 * math.log(2), 0], abs=1e-12)
    for count, size in ((1, 256), (3, 1)):
        with pytest.raises(ValueError, match="at least 2 pairs"):
            expected_collisions(texts[:count], first[: count + 1], images[:count], size)
