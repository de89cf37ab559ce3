"""How a row's loss divides: against a loop over Python floats for each entry, against the row losses, and by hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_rows import draw, groups

from miniclip.inspection.pair_loss import ENTRIES, hinge_entries
from miniclip.losses import LOSSES
from miniclip.losses.rows import NEEDS_MATRIX, ROWS

close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13)
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in ROWS] + [
    ("softmax", {"smoothing": 0.1}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"form": "sigmoid"}),
    ("focal", {"form": "sigmoid", "alpha": 0.7, "gamma": 0.5}),
    ("focal", {"form": "sigmoid", "alpha": None}),
    ("hinge", {"margin": 1.5}),
    ("hinge", {"margin": 1.5, "hardest": 0.3}),
    ("hinge", {"margin": 1.5, "hardest": 1.0}),
    ("soft", {"share": 0.4, "targets": True}),
    ("soft", {"share": 1.0, "targets": True}),
    ("transport", {"iterations": 0}),
    ("transport", {"iterations": 1}),
]
variants = pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=["-".join([n, *(f"{k}={v}" for k, v in s.items())]) for n, s in VARIANTS]
)


POSITIVES = {
    "diagonal": torch.eye(6, dtype=torch.bool),
    "duplicates": groups([0, 1, 0, 2, 2, 2], [0, 1, 0, 2, 2, 2]),
    "captions": groups([0, 1, 2], [0, 0, 1, 1, 1, 2, 2]),
    "images": groups([0, 0, 1, 1, 1, 2, 2], [0, 1, 2]),
    "row without negatives": torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool),
}
kinds = pytest.mark.parametrize("kind", POSITIVES)


def with_targets(settings: dict[str, Any], shape: torch.Size) -> dict[str, Any]:
    return settings | {"targets": draw(*shape, seed=9).abs()} if settings.get("targets") else settings


# ---- each entry by the definition, in floats: row, its positives, place -> value


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def softmax_entry(row: list[float], yes: set[int], j: int, smoothing: float = 0.0) -> float:
    target = (1 - smoothing) * (j in yes) / len(yes) + smoothing / len(row)
    return target * (log_sum(row) - row[j])


def sigmoid_entry(row: list[float], yes: set[int], j: int) -> float:
    return math.log1p(math.exp(-row[j] if j in yes else row[j]))


def focal_entry(
    row: list[float], yes: set[int], j: int, gamma: float = 2.0, form: str = "softmax", alpha: float | None = 0.25
) -> float:
    if form == "softmax":
        unknown = sum(math.exp(x - log_sum(row)) for k, x in enumerate(row) if k not in yes)
        return unknown**gamma * softmax_entry(row, yes, j)
    p = 1 / (1 + math.exp(-row[j] if j in yes else row[j]))
    weight = 1.0 if alpha is None else alpha if j in yes else 1 - alpha
    return -weight * (1 - p) ** gamma * math.log(p)


def hinge_entry(row: list[float], yes: set[int], j: int, margin: float = 0.2, hardest: float = 0.0) -> float:
    lowest = min(row[k] for k in yes)
    short = {k: max(0.0, margin - lowest + x) for k, x in enumerate(row) if k not in yes}
    if j in yes:
        return 0.0
    first = min(k for k in short if short[k] == max(short.values()))
    return (1 - hardest) * short[j] + hardest * short[j] * (j == first)


def decoupled_entry(row: list[float], yes: set[int], j: int) -> float:
    no = [x for k, x in enumerate(row) if k not in yes]
    return (log_sum(no) - row[j]) / len(yes) if no and j in yes else 0.0


def soft_entry(row: list[float], yes: set[int], j: int, suits: list[float] | None = None, share: float = 0.2) -> float:
    if suits is None:
        return softmax_entry(row, yes, j)
    return ((1 - share) * (j in yes) / len(yes) + share * suits[j] / sum(suits)) * (log_sum(row) - row[j])


def transport_entry(plan: list[float], yes: set[int], j: int) -> float:
    return -math.log(plan[j]) / len(yes) if j in yes else 0.0


def plan_by_loop(matrix: list[list[float]], iterations: int = 5) -> list[list[float]]:
    """N times the Sinkhorn plan, by multiplications of the kernel."""
    n, m = len(matrix), len(matrix[0])
    plan = [[math.exp(x) for x in row] for row in matrix]
    for step in range(2 * iterations or 1):
        if iterations and step % 2 == 0:
            sums = [sum(plan[i][j] for i in range(n)) for j in range(m)]
            plan = [[row[j] / sums[j] / m for j in range(m)] for row in plan]
        else:
            plan = [[x / sum(row) / n for x in row] for row in plan]
    return [[n * x for x in row] for row in plan]


BY_LOOP: dict[str, Callable[..., float]] = {
    "softmax": softmax_entry,
    "sigmoid": sigmoid_entry,
    "focal": focal_entry,
    "hinge": hinge_entry,
    "decoupled": decoupled_entry,
    "soft": soft_entry,
    "transport": transport_entry,
}


@variants
@kinds
def test_entries_equal_the_definition(name: str, settings: dict[str, Any], kind: str) -> None:
    positives = POSITIVES[kind]
    logits = draw(*positives.shape, seed=1)
    settings = with_targets(settings, positives.shape)
    values = ENTRIES[name](logits, positives, **settings)
    targets = settings.pop("targets", None) if name == "soft" else None
    matrix = plan_by_loop(logits.tolist(), **settings) if name == "transport" else logits.tolist()
    expected = []
    for i, row in enumerate(matrix):
        yes = {j for j, is_yes in enumerate(positives[i].tolist()) if is_yes}
        own = {} if name == "transport" else dict(settings)
        if targets is not None:
            own["suits"] = targets[i].tolist()
        expected.append([BY_LOOP[name](row, yes, j, **own) for j in range(len(row))])
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-13)


@variants
@kinds
@pytest.mark.parametrize("spread", [0.0, 3.0, 50.0])
def test_rows_sum_to_the_row_loss(name: str, settings: dict[str, Any], kind: str, spread: float) -> None:
    positives = POSITIVES[kind]
    logits = draw(*positives.shape, seed=2, spread=spread).clamp(-100, 100)
    settings = with_targets(settings, positives.shape)
    values = ENTRIES[name](logits, positives, **settings)
    assert values.shape == logits.shape
    assert values.isfinite().all()
    close(values.sum(1), ROWS[name](logits, positives, **settings))


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    wrong = (100 * (1 - 2 * torch.eye(4))).to(dtype)
    settings = with_targets(settings, wrong.shape)
    for logits in (wrong, -wrong):
        values = ENTRIES[name](logits, torch.eye(4, dtype=torch.bool), **settings)
        assert values.dtype == dtype
        assert values.isfinite().all()


@variants
def test_both_ways_make_the_loss(name: str, settings: dict[str, Any]) -> None:
    positives = POSITIVES["duplicates"]
    logits = draw(6, 6, seed=3)
    settings = with_targets(settings, logits.shape)
    turned = settings | {"targets": settings["targets"].T} if "targets" in settings else settings
    pairs = (ENTRIES[name](logits, positives, **settings) + ENTRIES[name](logits.T, positives.T, **turned).T) / 2
    close(pairs.sum() / 6, LOSSES[name](logits, positives, **settings))


@variants
def test_entries_move_with_the_rows_and_columns(name: str, settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(4)
    rows, columns = torch.randperm(6, generator=generator), torch.randperm(6, generator=generator)
    positives = POSITIVES["duplicates"]
    logits = draw(6, 6, seed=5)
    settings = with_targets(settings, logits.shape)
    moved = settings | {"targets": settings["targets"][rows][:, columns]} if "targets" in settings else settings
    values = ENTRIES[name](logits[rows][:, columns], positives[rows][:, columns], **moved)
    close(values, ENTRIES[name](logits, positives, **settings)[rows][:, columns])


@pytest.mark.parametrize(
    ("name", "settings"), [(n, s) for n, s in VARIANTS if n not in NEEDS_MATRIX and "targets" not in s]
)
def test_any_rows_of_the_matrix(name: str, settings: dict[str, Any]) -> None:
    positives, logits = POSITIVES["duplicates"], draw(6, 6, seed=6)
    entries = partial(ENTRIES[name], **settings)
    parts = torch.cat([entries(logits[a:b], positives[a:b]) for a, b in ((0, 1), (1, 4), (4, 6))])
    close(parts, entries(logits, positives))


def test_settings_are_those_of_the_row_loss() -> None:
    assert list(ENTRIES) == list(ROWS)
    for name, entries in ENTRIES.items():
        own, rows = (
            {k: (v.default, v.annotation, v.kind) for k, v in inspect.signature(f).parameters.items()}
            for f in (entries, ROWS[name])
        )
        assert own == rows, name


# ---- by hand: one row, two columns of probability 1/4 and 3/4, the first is true


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("softmax", {}, [math.log(4), 0]),
        ("softmax", {"smoothing": 0.5}, [0.75 * math.log(4), 0.25 * math.log(4 / 3)]),
        ("sigmoid", {}, [math.log(2), math.log(4)]),
        ("focal", {}, [0.75**2 * math.log(4), 0]),
        ("focal", {"form": "sigmoid"}, [0.25 * 0.25 * math.log(2), 0.75 * 0.75**2 * math.log(4)]),
        ("hinge", {}, [0, 0.2 + math.log(3)]),
        ("decoupled", {}, [math.log(3), 0]),
        ("soft", {"targets": torch.tensor([[0.0, 2.0]])}, [0.8 * math.log(4), 0.2 * math.log(4 / 3)]),
        ("transport", {"iterations": 0}, [math.log(4), 0]),
    ],
)
def test_by_hand(name: str, settings: dict[str, Any], expected: list[float]) -> None:
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    values = ENTRIES[name](logits, torch.tensor([[True, False]]), **settings)
    assert values[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_hinge_of_a_textbook() -> None:
    scores = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=torch.float64)
    true = torch.eye(3, dtype=torch.bool)
    close(
        hinge_entries(scores, true, margin=1.0),
        torch.tensor([[0, 2.9, 0], [0, 0, 0], [6.3, 6.6, 0]], dtype=torch.float64),
    )
    close(hinge_entries(scores, true, margin=1.0, hardest=1.0)[2], torch.tensor([0, 6.6, 0], dtype=torch.float64))


def test_of_equal_hardest_ones_the_first_has_the_share() -> None:
    row = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    true = torch.tensor([[False, True, False, False]])
    close(hinge_entries(row, true, margin=0.5, hardest=0.4)[0], torch.tensor([1.5, 0, 0.9, 0.9], dtype=torch.float64))
