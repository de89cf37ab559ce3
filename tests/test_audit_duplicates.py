"""The search for near pictures against all pairs; the floor of a batch against an optimiser; counts by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import hypergeom

from miniclip.data import duplicates
from miniclip.data.audit.collisions import batch_floor, expected_collisions
from miniclip.data.duplicates import THRESHOLD, bare, near_pairs, small_vector
from miniclip.losses import LOSSES

D = 768


def all_pairs(vectors: np.ndarray) -> dict[tuple[int, int], float]:
    """By 64-bit integers, one pair at a time."""
    wide = vectors.astype(np.int64)
    found = {}
    for i, j in itertools.combinations(range(len(wide)), 2):
        squared = int(((wide[i] - wide[j]) ** 2).sum())
        if squared < THRESHOLD**2 * vectors.shape[1]:
            found[i, j] = math.sqrt(squared / vectors.shape[1])
    return found


def as_dict(vectors: np.ndarray, **options: int) -> dict[tuple[int, int], float]:
    found = near_pairs(vectors, **options)
    assert (np.diff(found.rms) >= 0).all()
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, found.rms.tolist(), strict=True))


@pytest.mark.parametrize("tile", [1, 7, 64, 1024])
def test_near_pairs_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Clusters around random pictures with noise of every strength on both sides of the threshold."""
    monkeypatch.setattr(duplicates, "TILE", tile)
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (25, D))
    rows = [c + rng.normal(0, scale, D) for c in centres for scale in (0, 3, 4, 4.4, 5, 8)]
    vectors = np.clip(np.round(rows), 0, 255).astype(np.uint8)[rng.permutation(len(rows))]
    expected = all_pairs(vectors)
    assert len(expected) > 50
    found = as_dict(vectors)
    assert found.keys() == expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-12) for pair in expected)


def test_the_threshold_is_exact_where_float32_is_not() -> None:
    """Squares of 2^24 and more: a distance one below the limit is near, the limit is not."""
    limit = int(THRESHOLD**2 * D)
    for background in (0, 255):
        base = np.full(D, background, dtype=np.uint8)
        at, below = base.astype(int), base.astype(int)
        step = 1 if background == 0 else -1
        at[:48] += 24 * step  # 48 x 24^2 = 768 x 6^2
        below[:47] += 24 * step
        below[47:70] += 5 * step
        below = below.astype(np.uint8)
        at = at.astype(np.uint8)
        assert int(((at.astype(int) - base) ** 2).sum()) == limit
        assert int(((below.astype(int) - base) ** 2).sum()) == limit - 1
        assert (0, 1) not in as_dict(np.stack([base, at]))
        assert (0, 1) in as_dict(np.stack([base, below]))


@pytest.mark.parametrize("tile", [1, 1024])
def test_means_at_the_edge_of_the_window(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    """Plain colours: the mean differs by as much as the whole picture does."""
    monkeypatch.setattr(duplicates, "TILE", tile)
    vectors = np.repeat(np.array([[100], [105], [106], [111], [112]], dtype=np.uint8), D, axis=1)
    assert as_dict(vectors) == {(0, 1): 5.0, (1, 2): 1.0, (2, 3): 5.0, (3, 4): 1.0}


def test_too_many_near_pairs_are_cut_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "TILE", 8)
    vectors = np.arange(40, dtype=np.uint8)[:, None] // 10 + np.zeros((1, D), dtype=np.uint8)
    found = near_pairs(vectors, most=50)
    assert not found.complete
    assert 50 < len(found.first) < 40 * 39 // 2
    assert near_pairs(vectors).complete
    assert len(near_pairs(vectors).first) == 40 * 39 // 2
    assert near_pairs(np.zeros((0, D), dtype=np.uint8)).complete


def test_small_vector_stands_shrinking() -> None:
    """A box of 4.5 pixels, which Pillow's own is not, would put some of these apart."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        field = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(field).resize((144, 144), Image.Resampling.BICUBIC)
        for size in ((72, 72), (101, 101), (288, 200)):
            again = small_vector(picture.resize(size, Image.Resampling.LANCZOS)).astype(int)
            assert np.sqrt(((again - small_vector(picture)) ** 2).mean()) < THRESHOLD / 2
    assert small_vector(picture).shape == (D,)


def test_bare() -> None:
    assert bare(" A dog, running! ") == bare("a dog running") != bare("a dog runs")


# ---- a batch


def test_floor_by_hand() -> None:
    rows = np.arange(4)
    assert batch_floor(rows, rows) == 0.0
    assert batch_floor(np.array([0, 0, 1, 2]), rows) == pytest.approx(math.log(2) / 2)
    assert batch_floor(rows, np.array([0, 0, 1, 2])) == pytest.approx(math.log(2) / 2)
    assert batch_floor(np.array([0, 0, 0, 0]), rows) == pytest.approx(math.log(4))
    # the very same pair three times is three rows that nothing tells apart, not nine
    assert batch_floor(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1])) == pytest.approx(0.75 * math.log(3))
    # each picture with each text: nothing to learn
    assert batch_floor(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(math.log(4))


@pytest.mark.parametrize("seed", range(4))
def test_floor_is_what_an_optimiser_reaches(seed: int) -> None:
    """Any number for each picture with each text; equal pictures and equal texts have equal rows and columns."""
    rng = np.random.default_rng(seed)
    texts, images = rng.integers(0, 4, 9), rng.integers(0, 5, 9)
    table = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([table], lr=1, max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        logits = table[torch.from_numpy(images)][:, torch.from_numpy(texts)]
        return LOSSES["softmax"](logits)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(step)
    reached, floor = loss().item(), batch_floor(texts, images)
    # where a class holds apart, the optimum lies at infinity and is only come near to
    assert floor - 1e-6 <= reached <= floor + 2e-3
    assert floor > 0.3


def test_thirty_captions_at_256() -> None:
    """About 2.2 nats; exactly, by the hypergeometric distribution of a row's copies."""
    count = 6000
    found = expected_collisions(np.arange(count) % 30, np.arange(count + 1), np.arange(count), 256)
    others = np.arange(256)
    exact = float((hypergeom.pmf(others, count - 1, count // 30 - 1, 255) * np.log1p(others)).sum())
    assert exact == pytest.approx(2.2, abs=0.02)
    assert 0 < found.floor_error < 0.002
    assert abs(found.floor - exact) < 4 * found.floor_error
    assert found.chance == math.log(256)
    share = (count // 30 - 1) / (count - 1)
    assert found.same_caption == pytest.approx(256 * 255 / 2 * share)
    assert found.same_picture == 0


def test_expected_pairs_by_hand() -> None:
    """Four pictures say a or b, a, c, a; pictures 1 and 3 are one. Of six batches, all are as likely.

    Captions shared: 0-1 and 0-3 in half the draws, 1-3 always; so 2 / 6. Pictures: 1-3, 1 / 6; and both at once.
    """
    texts, first = np.array([0, 1, 0, 2, 0]), np.array([0, 2, 3, 4, 5])
    found = expected_collisions(texts, first, np.array([0, 1, 2, 1]), 2, batches=4000)
    assert found.same_caption == pytest.approx(2 / 6)
    assert found.same_picture == pytest.approx(1 / 6)
    assert found.either == pytest.approx(2 / 6)
    # ln 2 where a caption is shared, whether the picture is as well or not
    assert abs(found.floor - math.log(2) * 2 / 6) < 4 * found.floor_error


def test_expected_pairs_by_drawing() -> None:
    """Of all batches and all captions, in turn."""
    said = [[0, 1], [1, 1, 2], [0], [2, 3], [3]]
    images = [0, 0, 1, 2, 1]
    texts, first = np.concatenate([np.array(s) for s in said]), np.cumsum([0, *map(len, said)])
    totals = np.zeros(3)
    batches = list(itertools.combinations(range(5), 3))
    for batch in batches:
        draws = list(itertools.product(*(said[row] for row in batch)))
        for drawn in draws:
            for i, j in itertools.combinations(range(3), 2):
                same, seen = drawn[i] == drawn[j], images[batch[i]] == images[batch[j]]
                totals += np.array([same, seen, same or seen]) / len(draws) / len(batches)
    found = expected_collisions(texts, first, np.array(images), 3, batches=2)
    assert [found.same_caption, found.same_picture, found.either] == pytest.approx(totals.tolist())


def test_batches_are_the_same_each_time_and_no_larger_than_the_data() -> None:
    texts, first, images = np.array([0, 0, 1]), np.arange(4), np.arange(3)
    found = expected_collisions(texts, first, images, 256)
    assert found.batch_size == 3
    assert found.floor == pytest.approx(2 / 3 * math.log(2))
    assert found.floor_error == pytest.approx(0, abs=1e-12)
    assert found == expected_collisions(texts, first, images, 256)
    for count, size in ((1, 256), (3, 1)):
        with pytest.raises(ValueError, match="at least 2 pairs"):
            expected_collisions(texts[:count], first[: count + 1], images[:count], size)
