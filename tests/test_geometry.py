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


def rows(*each: Tensor) -> Tensor:
    return torch.stack(each)


def unit(n: int, e: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def turned(n: int, e: int, seed: int = 0) -> Tensor:
    """(n, e), its rows orthonormal, or its columns if there are more rows."""
    drawn = torch.randn(max(n, e), min(n, e), generator=torch.Generator().manual_seed(seed))
    q = torch.linalg.qr(drawn.double())[0]
    return q if n > e else q.T


def test_figures_by_hand() -> None:
    # singular values 3 and 1: shares 3/4 and 1/4
    three_to_one = math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    for found, expected in (
        (alignment(rows(E1, E1, E1), rows(E1, E2, -E1)), (0 + 2 + 4) / 3),
        (alignment(rows(E1, E2), rows(E1, E2)), 0),
        (modality_gap(rows(E1, -E1), rows(E2, E2)), 1),
        (modality_gap(rows(E1, E2), rows(E2, E1)), 0),
        (modality_gap(E1[None], -E1[None]), 2),
        (uniformity(torch.eye(5, dtype=torch.float64)), -4),  # all at squared distance 2
        (uniformity(rows(E1, -E1)), -8),
        (uniformity(E1.expand(4, 3)), 0),
        (uniformity(rows(E1, E1, E2)), math.log((1 + 2 * math.exp(-4)) / 3)),  # one pair of three coincides
        *((effective_rank(turned(n, e)), min(n, e)) for n, e in ((4, 4), (3, 7), (7, 3), (1, 5))),
        (effective_rank(torch.zeros(4, 3)), 1),
        (effective_rank(rows(3 * E1, E2)), three_to_one),
        (effective_rank(rows(*[E1] * 9, E3)), three_to_one),  # the values are the roots 3 and 1
    ):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_what_holds_for_any_embeddings() -> None:
    image, text, turn = unit(9, 5), unit(9, 5, 1), turned(5, 5, 1)
    assert alignment(image, text) == pytest.approx(2 - 2 * (image * text).sum(1).mean().item(), rel=1e-12)
    # the gap compares the middles: the order of the pairs does not matter
    assert modality_gap(image, text) == pytest.approx(modality_gap(image.flip(0), text), rel=1e-12)
    points = image.tolist()
    squares = [math.dist(a, b) ** 2 for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
    expected = math.log(sum(math.exp(-2 * square) for square in squares) / len(squares))
    assert [uniformity(image), uniformity(image.flip(0))] == pytest.approx([expected] * 2, rel=1e-11)
    values = np.linalg.svd(image.numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = float(np.exp(-(shares * np.log(shares)).sum()))
    assert 1 < expected < 5
    assert [effective_rank(image), effective_rank(5 * image.flip(0) @ turn)] == pytest.approx([expected] * 2, rel=1e-10)


def test_uniformity_of_rows_that_nearly_coincide() -> None:
    """Squares of about 1e-6 between numbers of about 1, in float32: what a collapse looks like."""
    x = F.normalize(E1 + 1e-3 * unit(50, 3), dim=1)
    squares = torch.cdist(x, x)[~torch.eye(50, dtype=torch.bool)].square()
    expected = (-2 * squares).exp().mean().log().item()
    assert uniformity(x) == pytest.approx(expected, rel=1e-9)
    assert uniformity(x.float()) == pytest.approx(expected, abs=2e-6)


def test_rank_of_one_line_and_of_small_values() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = unit(1, 64).to(dtype).expand(100, 64)
        for line in (x, torch.cat([x, -x])):
            assert effective_rank(line) == pytest.approx(1, rel=1e-12)
    shares = [1 / 1.00199] + [1e-5 / 1.00199] * 199
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(torch.diag(torch.tensor([1.0] + [1e-5] * 199))) == pytest.approx(expected, rel=1e-6)


def perplexity(values: list[float]) -> float:
    """exp of the entropy of the softmax, of no values 0."""
    weights = [math.exp(v - max(values)) for v in values]
    shares = [w / sum(weights) for w in weights]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0)) if values else 0.0


def test_negatives_by_hand() -> None:
    logits = torch.tensor([[9.0, 1.0, 3.0], [1.0, 9.0, 1.0], [4.0, 1.0, 9.0]], dtype=torch.float64).log()
    eye = torch.eye(3, dtype=torch.bool)
    quarter, fifth = 4 / 3**0.75, 5 / 4**0.8  # shares 1/4 and 3/4, 1/5 and 4/5
    for raised in (logits, logits + 100 * eye):  # the positives do not matter
        by_image, by_text = effective_negatives(raised, eye)
        assert by_image.tolist() == pytest.approx([quarter, 2, fifth], rel=1e-12)
        assert by_text.tolist() == pytest.approx([fifth, 2, quarter], rel=1e-12)
    alone = effective_negatives(torch.tensor([[3.0]]), eye[:1, :1])  # a pair has no negatives
    assert [side.tolist() for side in alone] == [[0.0], [0.0]]


def test_negatives_equal_a_loop() -> None:
    for spread in (0.0, 1.0, 10.0):
        generator = torch.Generator().manual_seed(0)
        logits = spread * torch.randn(5, 8, generator=generator, dtype=torch.float64)
        positives = torch.rand(5, 8, generator=generator) < 0.3
        positives[2] = True
        by_image, by_text = effective_negatives(logits, positives)
        for found, axes in ((by_image, (logits, positives)), (by_text, (logits.T, positives.T))):
            own = zip(*(side.tolist() for side in axes), strict=True)
            expected = [perplexity([v for v, yes in zip(*row, strict=True) if not yes]) for row in own]
            assert found.tolist() == pytest.approx(expected, rel=1e-10)
        assert by_image[2] == 0
        order = torch.tensor([3, 0, 4, 1, 2])
        torch.testing.assert_close(effective_negatives(logits[order], positives[order])[0], by_image[order])


def test_negatives_of_extremes() -> None:
    eye = torch.eye(4, dtype=torch.bool)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        wrong = 100 * (1 - 2 * torch.eye(4)).to(dtype)
        for logits in (wrong, -wrong):
            for side in effective_negatives(logits, eye):
                assert side.dtype == torch.promote_types(dtype, torch.float32)
                assert side.tolist() == pytest.approx([3] * 4, rel=1e-6)
        wrong[0] = torch.tensor([0, 100, -100, -100])
        assert effective_negatives(wrong, eye)[0][0].item() == pytest.approx(1, abs=1e-6)


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
    x, shapes = unit(4, 3), r"image \(4, 3\) and text \(3, 3\) must have one shape"
    cases: list[tuple[Callable[..., object], list[Tensor], str]] = []
    for pairs in (alignment, modality_gap):
        cases += [(pairs, [x, x[:3]], shapes), (pairs, [x[0], x[0]], "image must be")]
    for figure in (uniformity, effective_rank):
        cases += [(figure, [wrong], "x must be a matrix with entries") for wrong in (x[0], x[:0])]
    cases += [(uniformity, [x[:1]], "two or more")]
    cases += [(effective_negatives, [x[0], x[0] > 0], "logits must be a matrix with entries")]
    for positives in (torch.zeros(4, 3), torch.zeros(3, 4, dtype=torch.bool)):
        cases += [(effective_negatives, [x, positives], r"positives must be bool of the shape of logits, \(4, 3\)")]
    for refusing, given, said in cases:
        with pytest.raises(ValueError, match=said):
            refusing(*given)
