"""How embeddings lie: closed forms, hand-worked numbers, and loops over floats."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.metrics.geometry import alignment, effective_negatives, effective_rank, modality_gap, uniformity

E1, E2, E3 = torch.eye(3, dtype=torch.float64)


def unit(n: int, e: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


# ---- alignment, modality gap


def test_alignment_by_hand() -> None:
    image = torch.stack([E1, E1, E1])
    assert alignment(image, torch.stack([E1, E2, -E1])) == pytest.approx((0 + 2 + 4) / 3, rel=1e-12)
    assert alignment(image, image) == 0


def test_alignment_is_two_less_twice_the_cosine() -> None:
    image, text = unit(9, 5), unit(9, 5, 1)
    assert alignment(image, text) == pytest.approx(2 - 2 * (image * text).sum(1).mean().item(), rel=1e-12)


def test_modality_gap_by_hand() -> None:
    assert modality_gap(torch.stack([E1, -E1]), torch.stack([E2, E2])) == pytest.approx(1, rel=1e-12)
    assert modality_gap(torch.stack([E1, E2]), torch.stack([E2, E1])) == pytest.approx(0, abs=1e-15)
    assert modality_gap(E1[None], -E1[None]) == pytest.approx(2, rel=1e-12)
    # it compares the middles: the order of the pairs does not matter
    image, text = unit(9, 5), unit(9, 5, 1)
    assert modality_gap(image, text) == pytest.approx(modality_gap(image.flip(0), text), rel=1e-12)


# ---- uniformity


def test_uniformity_closed_forms() -> None:
    assert uniformity(torch.eye(5)) == pytest.approx(-4, rel=1e-6)  # all at squared distance 2
    assert uniformity(torch.eye(5, dtype=torch.float64), t=3) == pytest.approx(-6, rel=1e-12)
    assert uniformity(torch.stack([E1, -E1])) == pytest.approx(-8, rel=1e-12)
    assert uniformity(E1.expand(4, 3)) == pytest.approx(0, abs=1e-12)
    # one pair of three coincides
    expected = math.log((1 + 2 * math.exp(-4)) / 3)
    assert uniformity(torch.stack([E1, E1, E2])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 2.0, 4000.0])
def test_uniformity_equals_a_loop(t: float) -> None:
    x = unit(8, 5)
    rows = x.tolist()
    squares = [math.dist(a, b) ** 2 for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    lowest = min(squares)  # at t = 4000 the plain sum would be 0
    expected = -t * lowest + math.log(sum(math.exp(-t * (s - lowest)) for s in squares) / len(squares))
    assert uniformity(x, t) == pytest.approx(expected, rel=1e-11)
    assert uniformity(x.flip(0), t) == pytest.approx(expected, rel=1e-11)


def test_uniformity_of_rows_that_nearly_coincide() -> None:
    """Squares of about 1e-6 between numbers of about 1, in float32: what a collapse looks like."""
    x = F.normalize(E1 + 1e-3 * unit(50, 3), dim=1)
    squares = torch.cdist(x, x)[~torch.eye(50, dtype=torch.bool)].square()
    expected = (-2 * squares).exp().mean().log().item()
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    assert uniformity(x.float()) == pytest.approx(expected, abs=2e-6)


# ---- effective rank


def test_rank_of_orthonormal_rows_or_columns() -> None:
    for n, e in ((4, 4), (3, 7), (7, 3), (1, 5)):
        q = torch.linalg.qr(torch.randn(max(n, e), min(n, e), generator=torch.Generator().manual_seed(0)).double())[0]
        assert effective_rank(q if n > e else q.T) == pytest.approx(min(n, e), rel=1e-12)


def test_rank_of_one_line() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = unit(1, 64).to(dtype).expand(100, 64)
        assert effective_rank(x) == pytest.approx(1, rel=1e-12)
        assert effective_rank(torch.cat([x, -x])) == pytest.approx(1, rel=1e-12)
        assert effective_rank(torch.zeros(4, 3, dtype=dtype)) == 1


def test_rank_by_hand() -> None:
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert effective_rank(torch.stack([3 * E1, E2])) == pytest.approx(expected, rel=1e-12)
    # nine rows of one kind and one of another have the same: the values are the roots 3 and 1
    assert effective_rank(torch.stack([E1] * 9 + [E3])) == pytest.approx(expected, rel=1e-12)


def test_rank_counts_small_values_in_float32() -> None:
    x = torch.diag(torch.tensor([1.0] + [1e-5] * 199))
    shares = [1 / 1.00199] + [1e-5 / 1.00199] * 199
    assert effective_rank(x) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)


def test_rank_equals_numpy_and_does_not_turn() -> None:
    x = unit(12, 6)
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = float(np.exp(-(shares * np.log(shares)).sum()))
    assert 1 < expected < 6
    assert effective_rank(x) == pytest.approx(expected, rel=1e-10)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())[0]
    assert effective_rank(5 * x.flip(0) @ turn) == pytest.approx(expected, rel=1e-10)


# ---- effective negatives


def perplexity(values: list[float]) -> float:
    """exp of the entropy of the softmax, of no values 0."""
    if not values:
        return 0.0
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    shares = [w / sum(weights) for w in weights]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def test_negatives_by_hand() -> None:
    logits = torch.tensor([[9.0, 1.0, 3.0], [1.0, 9.0, 1.0], [4.0, 1.0, 9.0]], dtype=torch.float64).log()
    rows, columns = effective_negatives(logits)
    quarter, fifth = 4 / 3**0.75, 5 / 4**0.8  # shares 1/4 and 3/4, 1/5 and 4/5
    assert rows.tolist() == pytest.approx([quarter, 2, fifth], rel=1e-12)
    assert columns.tolist() == pytest.approx([fifth, 2, quarter], rel=1e-12)
    # the positives do not matter, and a pair alone has no negatives
    for part, other in zip(effective_negatives(logits + 100 * torch.eye(3)), (rows, columns), strict=True):
        torch.testing.assert_close(part, other)
    assert [part.tolist() for part in effective_negatives(torch.tensor([[3.0]]))] == [[0.0], [0.0]]


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0])
def test_negatives_equal_a_loop(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(5, 8, generator=generator, dtype=torch.float64)
    positives = torch.rand(5, 8, generator=generator) < 0.3
    positives[2] = True
    matrix, yes = logits.tolist(), positives.tolist()
    rows, columns = effective_negatives(logits, positives)
    assert rows.tolist() == pytest.approx(
        [perplexity([matrix[i][j] for j in range(8) if not yes[i][j]]) for i in range(5)], rel=1e-10
    )
    assert columns.tolist() == pytest.approx(
        [perplexity([matrix[i][j] for i in range(5) if not yes[i][j]]) for j in range(8)], rel=1e-10
    )
    assert rows[2] == 0
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(effective_negatives(logits[order], positives[order])[0], rows[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_negatives_of_extremes(dtype: torch.dtype) -> None:
    wrong = 100 * (1 - 2 * torch.eye(4)).to(dtype)
    one = wrong.clone()
    one[0] = torch.tensor([0, 100, -100, -100])
    for logits in (wrong, -wrong):
        rows, columns = effective_negatives(logits)
        assert rows.dtype == torch.promote_types(dtype, torch.float32)
        assert rows.tolist() == pytest.approx([3] * 4, rel=1e-6)
        assert columns.tolist() == pytest.approx([3] * 4, rel=1e-6)
    assert effective_negatives(one)[0][0].item() == pytest.approx(1, abs=1e-6)


# ---- dtypes, what is not finite, errors


def test_half_precision_is_lifted_and_what_is_not_finite_shows() -> None:
    figures: list[Callable[[Tensor, Tensor], float]] = [alignment, modality_gap]
    figures += [lambda x, _: uniformity(x), lambda x, _: effective_rank(x)]
    for dtype in (torch.float16, torch.bfloat16):
        image, text = unit(300, 16).to(dtype), unit(300, 16, 1).to(dtype)
        for figure in figures:
            assert figure(image, text) == pytest.approx(figure(image.double(), text.double()), rel=2e-6)
    for broken in (math.nan, math.inf):
        image = unit(4, 3)
        image[1, 1] = broken
        assert not any(math.isfinite(figure(image, unit(4, 3, 1))) for figure in figures)
        assert math.isnan(uniformity(image)) and math.isnan(effective_rank(image))


def test_errors() -> None:
    x = unit(4, 3)
    for figure in (alignment, modality_gap):
        with pytest.raises(ValueError, match=r"image \(4, 3\) and text \(3, 3\) must have one shape"):
            figure(x, x[:3])
        with pytest.raises(ValueError, match="image must be"):
            figure(x[0], x[0])
    for rows in (uniformity, effective_rank):
        for wrong in (x[0], x[:0]):
            with pytest.raises(ValueError, match="x must be a matrix with entries"):
                rows(wrong)
    with pytest.raises(ValueError, match="two or more"):
        uniformity(x[:1])
    with pytest.raises(ValueError, match="logits must be a matrix with entries"):
        effective_negatives(x[0])
    for positives in (None, torch.zeros(4, 3), torch.zeros(3, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"positives must be bool of the shape of logits, \(4, 3\)"):
            effective_negatives(x, positives)
