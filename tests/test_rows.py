"""What a row contributes: worked by hand, and against a loop over Python floats for each loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from miniclip.losses import LOSSES
from miniclip.losses.rows import NEEDS_MATRIX, ROWS, chance_value, focal_rows, hinge_rows, sigmoid_rows, softmax_rows

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)

# every loss as it comes, and each of its settings once
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in LOSSES] + [
    ("softmax", {"smoothing": 0.1}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"form": "sigmoid"}),
    ("focal", {"form": "sigmoid", "alpha": 0.7}),
    ("focal", {"form": "sigmoid", "gamma": 0.5, "alpha": None}),
    ("hinge", {"margin": 1.5, "hardest": 0.3}),
    ("hinge", {"margin": 1.5, "hardest": 1.0}),
    ("transport", {"iterations": 0}),
    ("transport", {"iterations": 1}),
]
variants = pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=["-".join([n, *(f"{k}={v}" for k, v in s.items())]) for n, s in VARIANTS]
)


def draw(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups(rows: list[int], columns: list[int]) -> Tensor:
    """(N, M) bool: the pairs whose two numbers are equal."""
    return torch.tensor(rows)[:, None] == torch.tensor(columns)


# ---- the definitions, as loops over floats that share nothing with the code: row, its positives -> value


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def softmax_by_loop(row: list[float], yes: set[int], smoothing: float = 0.0) -> float:
    total = 0.0
    for j, logit in enumerate(row):
        target = (1 - smoothing) * (j in yes) / len(yes) + smoothing / len(row)
        total += target * (log_sum(row) - logit)
    return total


def sigmoid_by_loop(row: list[float], yes: set[int]) -> float:
    return sum(math.log1p(math.exp(-x if j in yes else x)) for j, x in enumerate(row))


def focal_by_loop(
    row: list[float], yes: set[int], gamma: float = 2.0, form: str = "softmax", alpha: float | None = 0.25
) -> float:
    if form == "softmax":
        unknown = sum(math.exp(x - log_sum(row)) for j, x in enumerate(row) if j not in yes)
        return unknown**gamma * softmax_by_loop(row, yes)
    total = 0.0
    for j, logit in enumerate(row):
        p = 1 / (1 + math.exp(-logit))
        p = p if j in yes else 1 - p
        weight = 1.0 if alpha is None else alpha if j in yes else 1 - alpha
        total -= weight * (1 - p) ** gamma * math.log(p)
    return total


def hinge_by_loop(row: list[float], yes: set[int], margin: float = 0.2, hardest: float = 0.0) -> float:
    lowest = min(row[j] for j in yes)
    short = [max(0.0, margin - lowest + x) for j, x in enumerate(row) if j not in yes] or [0.0]
    return (1 - hardest) * sum(short) + hardest * max(short)


def decoupled_by_loop(row: list[float], yes: set[int]) -> float:
    no = [x for j, x in enumerate(row) if j not in yes]
    return log_sum(no) - sum(row[j] for j in yes) / len(yes) if no else 0.0


def transport_by_loop(matrix: list[list[float]], yes: list[set[int]], iterations: int = 5) -> list[float]:
    """By multiplications of the kernel itself (Cuturi's algorithm 1), not by logarithms."""
    n, m = len(matrix), len(matrix[0])
    plan = [[math.exp(x) for x in row] for row in matrix]
    for step in range(2 * iterations or 1):
        if iterations and step % 2 == 0:
            sums = [sum(plan[i][j] for i in range(n)) for j in range(m)]
            plan = [[plan[i][j] / sums[j] / m for j in range(m)] for i in range(n)]
        else:
            plan = [[x / sum(row) / n for x in row] for row in plan]
    return [-sum(math.log(n * plan[i][j]) for j in yes[i]) / len(yes[i]) for i in range(n)]


def by_row(loop: Callable[..., float]) -> Callable[..., list[float]]:
    return lambda matrix, yes, **settings: [loop(row, y, **settings) for row, y in zip(matrix, yes, strict=True)]


BY_LOOP: dict[str, Callable[..., list[float]]] = {
    "softmax": by_row(softmax_by_loop),
    "sigmoid": by_row(sigmoid_by_loop),
    "focal": by_row(focal_by_loop),
    "hinge": by_row(hinge_by_loop),
    "decoupled": by_row(decoupled_by_loop),
    "soft": by_row(softmax_by_loop),
    "transport": transport_by_loop,
}
POSITIVES = {
    "diagonal": torch.eye(6, dtype=torch.bool),
    "duplicates": groups([0, 1, 0, 2, 2, 2], [0, 1, 0, 2, 2, 2]),
    "captions": groups([0, 1, 2], [0, 0, 1, 1, 1, 2, 2]),
    "row without negatives": torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool),
}


@variants
@pytest.mark.parametrize("kind", POSITIVES)
def test_rows_and_columns_equal_the_definition(name: str, settings: dict[str, Any], kind: str) -> None:
    positives = POSITIVES[kind]
    logits = draw(*positives.shape, seed=1)
    values = LOSSES[name](logits, positives, reduction="none", **settings)
    expected = []
    for matrix, yes in ((logits, positives), (logits.T, positives.T)):
        sets = [{j for j, is_yes in enumerate(row) if is_yes} for row in yes.tolist()]
        expected += BY_LOOP[name](matrix.tolist(), sets, **settings)
    close(values, torch.tensor(expected, dtype=torch.float64))


# ---- the design's worked numbers


def test_hinge_of_a_textbook() -> None:
    scores = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=torch.float64)
    values = hinge_rows(scores, torch.arange(3), margin=1.0)
    close(values, torch.tensor([2.9, 0.0, 12.9], dtype=torch.float64))
    assert values.mean().item() == pytest.approx(5.27, abs=5e-3)
    close(
        hinge_rows(scores, torch.arange(3), margin=1.0, hardest=1.0), torch.tensor([2.9, 0.0, 6.6]).double(), rtol=1e-7
    )


def test_what_softmax_sees_and_hinge_does_not() -> None:
    scores = torch.tensor([[10.0, 9.0, 9.0], [10.0, -100.0, -100.0]], dtype=torch.float64)
    true = torch.tensor([0, 0])
    assert softmax_rows(scores, true).tolist() == pytest.approx([0.5514, 0], abs=5e-5)
    assert softmax_rows(scores, true)[0].item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-12)
    assert hinge_rows(scores, true, margin=1.0).tolist() == [0, 0]


def test_cross_entropy_of_seven_tenths() -> None:
    value = softmax_rows(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log(), torch.tensor([0])).item()
    assert value == pytest.approx(-math.log(0.7), rel=1e-12)
    assert value == pytest.approx(0.357, abs=5e-4)


def test_where_the_sigmoid_loss_starts() -> None:
    n, true = 256, torch.tensor([0])
    start = sigmoid_rows(torch.full((1, n), -10.0, dtype=torch.float64), true).item()
    assert start == pytest.approx(10.0, abs=0.02)
    assert start == pytest.approx(10 + n * math.log1p(math.exp(-10)), rel=1e-12)
    best = sigmoid_rows(torch.full((1, n), -math.log(n - 1), dtype=torch.float64), true).item()
    assert best == pytest.approx(math.log(n) + 1, abs=0.01)
    assert best == pytest.approx(math.log(n) + (n - 1) * math.log(n / (n - 1)), rel=1e-12)
    nearby = [-math.log(n - 1) + step for step in (-0.1, 0.1)]
    assert all(sigmoid_rows(torch.full((1, n), x, dtype=torch.float64), true).item() > best for x in nearby)


# ---- what the tiles and the processes rely on


@variants
def test_any_rows_of_the_matrix(name: str, settings: dict[str, Any]) -> None:
    rows = partial(ROWS[name], **settings)
    logits = draw(6, 6, seed=2)
    positives = POSITIVES["duplicates"]
    whole = rows(logits, positives)
    parts = torch.cat([rows(logits[a:b], positives[a:b]) for a, b in ((0, 1), (1, 4), (4, 6))])
    if name in NEEDS_MATRIX and settings != {"iterations": 0}:
        assert not torch.allclose(whole, parts, rtol=1e-3)
    else:
        close(whole, parts)


@variants
def test_columns_instead_of_a_mask(name: str, settings: dict[str, Any]) -> None:
    logits, columns = draw(3, 5, seed=3), torch.tensor([4, 0, 2])
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[torch.arange(3), columns] = True
    rows = partial(ROWS[name], **settings)
    torch.testing.assert_close(rows(logits, columns), rows(logits, mask), rtol=1e-12, atol=1e-14)


def test_settings_are_those_of_the_loss() -> None:
    assert list(ROWS) == list(LOSSES)
    assert set(ROWS) >= NEEDS_MATRIX
    shared = {"logits", "positives", "weights", "reduction"}
    for name, rows in ROWS.items():
        own, loss = (
            {k: (v.default, v.annotation) for k, v in inspect.signature(f).parameters.items() if k not in shared}
            for f in (rows, LOSSES[name])
        )
        assert own == loss, name


@variants
@pytest.mark.parametrize(("n", "captions"), [(1, 1), (2, 1), (7, 1), (4, 5), (1, 3)])
def test_chance_is_the_loss_of_a_constant_matrix(name: str, settings: dict[str, Any], n: int, captions: int) -> None:
    positives = groups(list(range(n)), [i for i in range(n) for _ in range(captions)])
    logits = torch.full(positives.shape, -math.log(max(1, n - 1)), dtype=torch.float64)
    expected = LOSSES[name](logits, positives, **settings).item()
    assert chance_value(partial(ROWS[name], **settings), n, captions) == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_chance_by_hand() -> None:
    assert chance_value(softmax_rows, 256) == pytest.approx(math.log(256), rel=1e-6)
    assert chance_value(softmax_rows, 4, captions=5) == pytest.approx((math.log(20) + math.log(4)) / 2, rel=1e-6)
    assert chance_value(partial(hinge_rows, margin=0.5), 9) == pytest.approx(4, rel=1e-6)
    assert chance_value(partial(focal_rows, gamma=1.0), 4) == pytest.approx(0.75 * math.log(4), rel=1e-6)
    assert chance_value(sigmoid_rows, 4) == pytest.approx(math.log(4) + 3 * math.log(4 / 3), rel=1e-6)
