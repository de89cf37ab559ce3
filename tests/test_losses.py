"""The losses: against loops over Python floats and other libraries, by hand, and what all of them have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from miniclip.config.loss import OPTIONS
from miniclip.losses import LOSSES

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
LN = math.log
Settings = dict[str, Any]

# every loss as it comes, and each of its settings; targets stands for a matrix that `filled` draws
VARIANTS: list[tuple[str, Settings]] = [(name, {}) for name in LOSSES] + [
    ("softmax", {"smoothing": 0.1}),
    ("softmax", {"image_to_text": 0.7}),
    ("focal", {"gamma": 0.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"form": "sigmoid"}),
    ("focal", {"form": "sigmoid", "alpha": 0.7, "gamma": 0.5}),
    ("focal", {"form": "sigmoid", "alpha": None, "gamma": 0.5}),
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


def draw(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups(rows: list[int], columns: list[int]) -> Tensor:
    """(N, M) bool: the pairs whose two numbers are equal."""
    return torch.tensor(rows)[:, None] == torch.tensor(columns)


PAIRS = groups([0, 1, 0, 2, 2, 3], [0, 1, 0, 2, 2, 3])
CAPTIONS = groups([0, 1, 2, 3], [0, 0, 1, 2, 2, 2, 3])  # 4 images, 7 texts
POSITIVES = [
    torch.eye(6, dtype=torch.bool),
    PAIRS,
    CAPTIONS,
    CAPTIONS.T,
    torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool),  # a row without negatives
]


def filled(name: str, settings: Settings, logits: Tensor) -> Settings:
    """All settings that the loss of these rows takes."""
    own = {option.keyword: option.default for option in OPTIONS.values() if option.loss == name and option.keyword}
    drawn = {"targets": draw(*logits.shape, seed=9).abs()} if settings.get("targets") else {}
    return own | settings | drawn


def directions(settings: Settings) -> tuple[float, float, Settings]:
    """Twice the weight of the rows and of the columns, and what both of them take."""
    rest = {key: value for key, value in settings.items() if key != "image_to_text"}
    share = settings.get("image_to_text", 0.5)
    return 2 * share, 2 * (1 - share), rest


def moved(settings: Settings, change: Callable[[Tensor], Tensor]) -> Settings:
    """With another arrangement of the targets."""
    return {key: change(value) if isinstance(value, Tensor) else value for key, value in settings.items()}


# ---- each entry of a row by the definition, as loops over floats that share nothing with the code


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def softmax_entry(row: list[float], yes: set[int], j: int, smoothing: float = 0.0) -> float:
    target = (1 - smoothing) * (j in yes) / len(yes) + smoothing / len(row)
    return target * (log_sum(row) - row[j])


def sigmoid_entry(row: list[float], yes: set[int], j: int) -> float:
    return math.log1p(math.exp(-row[j] if j in yes else row[j]))


def focal_entry(row: list[float], yes: set[int], j: int, gamma: float, form: str, alpha: float | None) -> float:
    if form == "softmax":
        unknown = sum(math.exp(x - log_sum(row)) for k, x in enumerate(row) if k not in yes)
        return unknown**gamma * softmax_entry(row, yes, j)
    p = 1 / (1 + math.exp(-row[j] if j in yes else row[j]))
    weight = 1.0 if alpha is None else alpha if j in yes else 1 - alpha
    return -weight * (1 - p) ** gamma * math.log(p)


def hinge_entry(row: list[float], yes: set[int], j: int, margin: float, hardest: float) -> float:
    lowest = min(row[k] for k in yes)
    short = {k: max(0.0, margin - lowest + x) for k, x in enumerate(row) if k not in yes}
    if j in yes:
        return 0.0
    first = min(k for k in short if short[k] == max(short.values()))
    return (1 - hardest) * short[j] + hardest * short[j] * (j == first)


def decoupled_entry(row: list[float], yes: set[int], j: int) -> float:
    no = [x for k, x in enumerate(row) if k not in yes]
    return (log_sum(no) - row[j]) / len(yes) if no and j in yes else 0.0


def soft_entry(row: list[float], yes: set[int], j: int, share: float, targets: list[float] | None = None) -> float:
    if targets is None:
        return softmax_entry(row, yes, j)
    target = (1 - share) * (j in yes) / len(yes) + share * targets[j] / sum(targets)
    return target * (log_sum(row) - row[j])


def transport_entry(plan: list[float], yes: set[int], j: int) -> float:
    return -math.log(plan[j]) / len(yes) if j in yes else 0.0


def plan_by_loop(matrix: list[list[float]], iterations: int) -> list[list[float]]:
    """N times the Sinkhorn plan, by multiplications of the kernel (Cuturi's algorithm 1), not by logarithms."""
    n, m = len(matrix), len(matrix[0])
    plan = [[math.exp(x) for x in row] for row in matrix]
    for step in range(2 * iterations or 1):
        if iterations and step % 2 == 0:
            sums = [sum(plan[i][j] for i in range(n)) for j in range(m)]
            plan = [[row[j] / sums[j] / m for j in range(m)] for row in plan]
        else:
            plan = [[x / sum(row) / n for x in row] for row in plan]
    return [[n * x for x in row] for row in plan]


ORACLES: dict[str, Callable[..., float]] = {
    "softmax": softmax_entry,
    "sigmoid": sigmoid_entry,
    "focal": focal_entry,
    "hinge": hinge_entry,
    "decoupled": decoupled_entry,
    "soft": soft_entry,
    "transport": transport_entry,
}


def by_loop(name: str, logits: Tensor, positives: Tensor, settings: Settings) -> Tensor:
    """(N, M), the parts of the rows."""
    settings, matrix = dict(settings), logits.tolist()
    targets = settings.pop("targets", None)
    if name == "transport":
        matrix, settings = plan_by_loop(matrix, **settings), {}
    values = []
    for i, row in enumerate(matrix):
        own = settings if targets is None else settings | {"targets": targets[i].tolist()}
        yes = {j for j, is_yes in enumerate(positives[i].tolist()) if is_yes}
        values.append([ORACLES[name](row, yes, j, **own) for j in range(len(row))])
    return torch.tensor(values, dtype=torch.float64)


def test_every_loss_has_an_oracle_and_every_setting_a_variant() -> None:
    assert set(ORACLES) == set(LOSSES)
    tried = {(name, key) for name, settings in VARIANTS for key, value in settings.items()}
    assert tried >= {(option.loss, option.keyword) for option in OPTIONS.values() if option.keyword}


@variants
def test_parts_rows_and_columns_equal_the_definition(name: str, settings: Settings) -> None:
    for positives in POSITIVES:
        logits = draw(*positives.shape, seed=1)
        full, given = filled(name, settings, logits), settings and filled(name, settings, logits)
        by_row, by_column = LOSSES[name].both_ways(logits, positives, parts=True, **full)
        to_text, to_image, rest = directions(full)
        rows = to_text * by_loop(name, logits, positives, rest)
        columns = to_image * by_loop(name, logits.T, positives.T, moved(rest, _t))
        close(by_row, rows)
        close(by_column, columns)
        expected = torch.cat([rows.sum(1), columns.sum(1)])
        close(LOSSES[name](logits, positives, reduction="none", **given), expected)
        close(torch.cat(LOSSES[name].both_ways(logits, positives, **full)), expected)
    # a column for each row's only positive, instead of a mask
    logits, columns = draw(3, 5, seed=3), torch.tensor([4, 0, 2])
    rows = partial(LOSSES[name].rows, logits, **directions(filled(name, settings, logits))[2])
    torch.testing.assert_close(rows(columns), rows(F.one_hot(columns, 5).bool()), rtol=1e-12, atol=1e-14)


def _t(matrix: Tensor) -> Tensor:
    return matrix.T


@variants
def test_parts_sum_to_the_rows_at_any_spread(name: str, settings: Settings) -> None:
    for positives in POSITIVES:
        for spread in (0.0, 3.0, 50.0):
            logits = draw(*positives.shape, seed=2, spread=spread).clamp(-100, 100)
            rows = partial(LOSSES[name].rows, logits, positives, **directions(filled(name, settings, logits))[2])
            assert rows(parts=True).isfinite().all()
            close(rows(parts=True).sum(1), rows(), rtol=1e-12)


@variants
def test_any_rows_of_the_matrix(name: str, settings: Settings) -> None:
    """What tiles and processes rely on: no row knows of another, but in a loss of the whole matrix."""
    logits = draw(6, 6, seed=2)
    full = directions(filled(name, settings, logits))[2]
    for parts in (False, True):
        whole = LOSSES[name].rows(logits, PAIRS, parts, **full)
        some = [
            LOSSES[name].rows(logits[a:b], PAIRS[a:b], parts, **moved(full, lambda t, a=a, b=b: t[a:b]))
            for a, b in ((0, 1), (1, 4), (4, 6))
        ]
        if LOSSES[name].whole_matrix and full["iterations"]:
            assert not torch.allclose(whole, torch.cat(some), rtol=1e-3)
        else:
            close(whole, torch.cat(some))


# ---- worked by hand


def test_by_hand() -> None:
    """exp(logits) = [[4, 1], [2, 3]], so p = 4/5 and 3/5 in the rows, 2/3 and 3/4 in the columns."""
    logits = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log()
    # targets sum to 4 and 2 in the rows, 2 and 4 in the columns: their transpose alone would be no distribution
    targets = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    soft_rows = 0.7 * LN(4 / 5) + 0.3 * LN(1 / 5) + 0.2 * LN(2 / 5) + 0.8 * LN(3 / 5)
    soft_columns = 0.8 * LN(2 / 3) + 0.2 * LN(1 / 3) + 0.3 * LN(1 / 4) + 0.7 * LN(3 / 4)
    for name, settings, expected in [
        ("softmax", {}, LN(25 / 6) / 4),
        ("softmax", {"image_to_text": 1.0}, LN(25 / 12) / 2),
        ("softmax", {"image_to_text": 0.0}, LN(2) / 2),
        ("softmax", {"image_to_text": 0.75}, (3 * LN(25 / 12) + LN(2)) / 8),
        # a tenth spread over both: 0.95 and 0.05
        ("softmax", {"smoothing": 0.1}, -(0.95 * LN(6 / 25) + 0.05 * LN(1 / 5 * 2 / 5 * 1 / 3 * 1 / 4)) / 4),
        # yes with 4/5 and 3/4, no with 1/2 and 1/3
        ("sigmoid", {}, LN(5 / 4 * 2 * 3 * 4 / 3) / 2),
        ("focal", {}, (LN(5 / 4) / 25 + 4 / 25 * LN(5 / 3) + LN(3 / 2) / 9 + LN(4 / 3) / 16) / 4),
        (
            "focal",
            {"form": "sigmoid"},
            (0.25 * LN(5 / 4) / 25 + 0.75 * LN(2) / 4 + 0.75 * 4 / 9 * LN(3) + 0.25 * LN(4 / 3) / 16) / 2,
        ),
        ("decoupled", {}, LN(1 / 4 * 2 / 3 * 2 / 4 * 1 / 3) / 4),
        ("soft", {"targets": targets, "share": 0.4}, -(soft_rows + soft_columns) / 4),
        # at the end x/(1/2 - x) is the root of the cross ratio 6 (test_transport.py); after one iteration not yet
        ("transport", {"iterations": 60}, LN(1 + 6**-0.5)),
        ("transport", {"iterations": 1}, LN(11 / 8 * 13 / 9 * 3 / 2 * 4 / 3) / 4),
    ]:
        assert LOSSES[name](logits, **settings).item() == pytest.approx(expected, rel=1e-12), (name, settings)


def test_hinge_by_hand() -> None:
    hinge = LOSSES["hinge"]
    cosines = torch.tensor([[0.5, 0.4, 0.5], [0.1, 0.2, 0.3], [0.0, -0.2, 0.9]], dtype=torch.float64)
    rows, columns = [0.1 + 0.2, 0.1 + 0.3, 0], [0, 0.4, 0]
    close(hinge(cosines, reduction="none"), torch.tensor(rows + columns, dtype=torch.float64))
    for hardest, expected in ((0.0, 1.1 / 6), (1.0, (0.2 + 0.3 + 0.4) / 6), (0.5, 1.0 / 6)):
        assert hinge(cosines, hardest=hardest).item() == pytest.approx(expected, rel=1e-12)
    # of a textbook
    scores = torch.tensor([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]], dtype=torch.float64)
    of = partial(hinge.rows, scores, torch.eye(3, dtype=torch.bool), margin=1.0)
    close(of(hardest=0.0), torch.tensor([2.9, 0.0, 12.9], dtype=torch.float64))
    close(of(hardest=1.0), torch.tensor([2.9, 0.0, 6.6], dtype=torch.float64))
    close(of(True, hardest=0.0), torch.tensor([[0, 2.9, 0], [0, 0, 0], [6.3, 6.6, 0]], dtype=torch.float64))
    close(of(True, hardest=1.0)[2], torch.tensor([0, 6.6, 0], dtype=torch.float64))
    # of equal hardest ones the first has the share
    row, true = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64), F.one_hot(torch.tensor([1]), 4).bool()
    parts = hinge.rows(row, true, parts=True, margin=0.5, hardest=0.4)
    close(parts[0], torch.tensor([1.5, 0, 0.9, 0.9], dtype=torch.float64))


def test_what_softmax_sees_and_hinge_does_not() -> None:
    scores = torch.tensor([[10.0, 9.0, 9.0], [10.0, -100.0, -100.0]], dtype=torch.float64)
    true = torch.tensor([0, 0])
    found = LOSSES["softmax"].rows(scores, true, smoothing=0.0)
    assert found.tolist() == pytest.approx([LN(1 + 2 / math.e), 0], rel=1e-12)
    assert found[0].item() == pytest.approx(0.5514, abs=5e-5)
    assert LOSSES["hinge"].rows(scores, true, margin=1.0, hardest=0.0).tolist() == [0, 0]
    seven_tenths = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert LOSSES["softmax"].rows(seven_tenths, true[:1], smoothing=0.0).item() == pytest.approx(-LN(0.7), rel=1e-12)


def test_where_the_sigmoid_loss_starts() -> None:
    n = 256

    def start(logit: float) -> float:
        row = torch.full((1, n), logit, dtype=torch.float64)
        return LOSSES["sigmoid"].rows(row, torch.tensor([0])).item()

    assert start(-10.0) == pytest.approx(10.0, abs=0.02)
    assert start(-10.0) == pytest.approx(10 + n * math.log1p(math.exp(-10)), rel=1e-12)
    best = start(-LN(n - 1))
    assert best == pytest.approx(LN(n) + 1, abs=0.01)
    assert best == pytest.approx(LN(n) + (n - 1) * LN(n / (n - 1)), rel=1e-12)
    assert all(start(-LN(n - 1) + step) > best for step in (-0.1, 0.1))


# ---- other libraries


def embeddings(n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    image, text = F.normalize(draw(2, n, 5, seed=seed), dim=-1)
    return image, text


def test_softmax_and_sigmoid_equal_open_clip() -> None:
    image, text = embeddings()
    scale, bias = torch.tensor([14.3, -7.5], dtype=torch.float64)
    close(LOSSES["softmax"](scale * image @ text.T), ClipLoss()(image, text, scale))
    close(LOSSES["sigmoid"](scale * image @ text.T + bias), SigLipLoss()(image, text, scale, bias))


@pytest.mark.parametrize("alpha", [0.25, 0.7, None])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_equals_torchvision(alpha: float | None, gamma: float) -> None:
    for positives in POSITIVES[:2]:
        logits, their_alpha = draw(6, 6), -1 if alpha is None else alpha
        theirs = sigmoid_focal_loss(logits, positives.double(), their_alpha, gamma, reduction="sum") / 6
        close(LOSSES["focal"](logits, positives, form="sigmoid", gamma=gamma, alpha=alpha), theirs)


def test_duplicates_equal_supervised_contrastive() -> None:
    image, text = embeddings(6, seed=3)
    # labels are cloned below: theirs returns 0 where it is handed the same tensor twice
    labels = torch.tensor([0, 1, 0, 2, 2, 3])
    theirs = SupConLoss(temperature=1 / 14.3)
    both = [theirs(a, labels, ref_emb=b, ref_labels=labels.clone()) for a, b in ((image, text), (text, image))]
    for name in ("softmax", "soft"):
        close(LOSSES[name](14.3 * image @ text.T, PAIRS), sum(both) / 2)


# ---- limits


def test_losses_that_become_one_another() -> None:
    for positives in (PAIRS, CAPTIONS):
        logits = draw(*positives.shape)
        of: dict[str, Any] = {name: partial(loss, logits, positives) for name, loss in LOSSES.items()}
        softmax, sigmoid = of["softmax"](), of["sigmoid"]()
        close(of["focal"](gamma=0.0), softmax)
        close(of["focal"](gamma=0.0, form="sigmoid", alpha=None), sigmoid)
        close(of["focal"](gamma=0.0, form="sigmoid", alpha=0.5), sigmoid / 2)
        close(of["soft"](), softmax)
        close(of["soft"](targets=positives.float(), share=0.6), softmax)
        close(of["soft"](targets=torch.rand(positives.shape), share=0.0), softmax)
        close(of["transport"](iterations=0), softmax)
    close(LOSSES["hinge"](draw(2, 2), hardest=1.0), LOSSES["hinge"](draw(2, 2)))
    softmax, decoupled = (LOSSES[name](draw(6, 6), reduction="none") for name in ("softmax", "decoupled"))
    close(decoupled, softmax + torch.log(-torch.expm1(-softmax)), rtol=1e-9)  # p near 1 costs the identity a digit


def test_a_batch_of_one_and_large_gaps() -> None:
    one = torch.tensor([[3.0]], dtype=torch.float64)
    for name, loss in LOSSES.items():
        assert loss(one).item() == pytest.approx(math.log1p(math.exp(-3)) if name == "sigmoid" else 0, abs=1e-15)
    # right by 100: nothing left to learn, but decoupled has no floor; wrong by 100: linear
    right = torch.where(torch.eye(4, dtype=torch.bool), 100.0, 0.0).double()
    assert LOSSES["softmax"](right).item() == pytest.approx(0, abs=1e-30)
    assert LOSSES["decoupled"](right).item() == pytest.approx(LN(3) - 100, rel=1e-12)
    for name, expected in (("softmax", 100 + LN(3)), ("focal", 100 + LN(3)), ("hinge", 3 * 100.2)):
        assert LOSSES[name](-right).item() == pytest.approx(expected, rel=1e-12)


# ---- what all of them have in common: a loss that is added to LOSSES is tested here


def value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, *given: Any, **more: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, *given, **more)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@variants
def test_gradcheck(name: str, settings: Settings) -> None:
    for given in ((), (PAIRS[:4, :4],), (CAPTIONS, torch.arange(11.0), "none")):
        shape = (4, 7) if len(given) > 1 else (4, 4)
        logits = draw(*shape, seed=sum(shape), spread=1.0).requires_grad_()
        loss = partial(LOSSES[name], **filled(name, settings, logits))
        assert torch.autograd.gradcheck(lambda x, loss=loss, given=given: loss(x, *given), (logits,))


@variants
def test_reductions_and_weights(name: str, settings: Settings) -> None:
    for positives in (PAIRS, CAPTIONS):
        n, m = positives.shape
        logits = draw(n, m)
        loss = partial(LOSSES[name], logits, positives, **filled(name, settings, logits))
        values = loss(reduction="none")
        close(loss(), (values[:n].sum() / n + values[n:].sum() / m) / 2)
        # 2 counts a row twice, 0 not at all
        for weights in (torch.arange(1.0, n + m + 1), torch.tensor([2, 0] + (n + m - 4) * [1] + [0, 2])):
            close(loss(weights, "none"), weights * values)
            rows, columns = (
                sum(w * v for w, v in zip(*part, strict=True)) / sum(part[0])
                for part in ((weights[:n].tolist(), values[:n]), (weights[n:].tolist(), values[n:]))
            )
            close(loss(weights), (rows + columns) / 2)
    # one weight a pair counts in both directions; without positives they are the diagonal
    logits, weights = draw(6, 6), torch.tensor([1.0, 2, 1, 1, 0, 5])
    loss = partial(LOSSES[name], logits, **filled(name, settings, logits))
    for reduction in ("mean", "none"):
        both = torch.cat([weights, weights])
        torch.testing.assert_close(
            loss(None, weights, reduction), loss(POSITIVES[0], both, reduction), rtol=1e-12, atol=0
        )


def test_targets_are_normalised_and_have_no_gradient() -> None:
    logits, targets = draw(4, 7).requires_grad_(), draw(4, 7, seed=1).exp().requires_grad_()
    value = LOSSES["soft"](logits, CAPTIONS, targets=targets)
    value.backward()
    assert targets.grad is None
    assert logits.grad is not None
    close(LOSSES["soft"](logits, CAPTIONS, targets=5 * targets), value)


@variants
def test_half_precision_is_lifted(name: str, settings: Settings) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half = draw(6, 6, seed=6).to(dtype)
        loss = partial(LOSSES[name], positives=PAIRS, **filled(name, settings, half))
        for reduction in ("mean", "none"):
            value = loss(half, reduction=reduction)
            assert value.dtype == torch.float32
            assert torch.equal(value, loss(half.float(), reduction=reduction))
        exact, gradient = value_and_gradient(loss, half.double())
        assert exact.dtype == torch.float64
        torch.testing.assert_close(loss(half).double(), exact, rtol=1e-5, atol=1e-6)
        found = value_and_gradient(loss, half)[1]
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), gradient, rtol=2e-2, atol=1e-4)


@variants
def test_extreme_logits_are_finite(name: str, settings: Settings) -> None:
    for positives in (POSITIVES[0], PAIRS, CAPTIONS, torch.ones(3, 5, dtype=torch.bool)):
        loss = partial(LOSSES[name], positives=positives, **filled(name, settings, positives))
        for logits in (
            torch.where(positives, 100.0, -100.0),
            torch.where(positives, -100.0, 100.0),
            torch.full(positives.shape, 100.0),
            torch.full(positives.shape, -100.0),
            100 * draw(*positives.shape).sign().float(),
        ):
            for dtype in (torch.float32, torch.bfloat16):
                value, gradient = value_and_gradient(loss, logits.to(dtype))
                assert value.isfinite()
                assert gradient.isfinite().all()
            torch.testing.assert_close(loss(logits).double(), loss(logits.double()), rtol=1e-5, atol=1e-4)


@variants
def test_duplicates(name: str, settings: Settings) -> None:
    """Those of perfect towers are left alone."""
    if "targets" in settings:
        return  # which say for themselves what is alike
    loss = partial(LOSSES[name], **settings)
    logits = torch.where(PAIRS, 100.0, -100.0).double()
    gradient = value_and_gradient(loss, logits, PAIRS)[1]
    if name == "decoupled":  # it has no lower bound: every positive is pulled on, by 1/k a row and column
        k = PAIRS.sum(1, keepdim=True).double()
        close(gradient[PAIRS], (-1 / k / 6).expand(6, 6)[PAIRS])
        close(gradient[~PAIRS], (1 / (6 - k) / 12 + 1 / (6 - k.T) / 12)[~PAIRS])
    elif "smoothing" in settings:
        assert gradient.abs().max() > 1e-3
    else:
        assert gradient.abs().max() < 1e-14
    # taken for negatives, duplicates are pushed apart
    assert value_and_gradient(loss, logits)[1][0, 2] > 1e-3


# ---- errors


@pytest.mark.parametrize("name", LOSSES)
def test_errors(name: str) -> None:
    def fails(message: str, *args: Any, **keywords: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            LOSSES[name](*args, **keywords)

    zeros, wide, yes = torch.zeros(2, 2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    fails("unknown reduction 'sum'; use mean or none", zeros, reduction="sum")
    fails("logits must be a matrix with entries; their shape is (2, 2, 2)", torch.zeros(2, 2, 2))
    fails("logits must be a matrix with entries; their shape is (0, 0)", torch.zeros(0, 0))
    fails("logits of shape (2, 3) have no diagonal; pass positives of that shape", wide)
    fails("positives (2, 3) torch.bool and logits (2, 2) must have one shape, and positives be bool", zeros, yes)
    fails("positives (2, 2) torch.int64 and logits", zeros, torch.eye(2).long())
    empty = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool)
    fails("row 1 of positives has no positive; every row needs one", zeros, empty)
    fails("column 1 of positives has no positive; every column needs one", zeros, empty.T)
    wanted = "weights (3,) do not fit logits (2, 2); they must be (2,), one a pair, or (4,)"
    fails(wanted, zeros, weights=torch.ones(3))
    wanted = "weights (2,) do not fit logits (2, 3); they must be (5,), the rows' and then the columns'"
    fails(wanted, wide, yes, torch.ones(2))
    for weights in ([-1.0, 3], [0.0, 0], [1.0, 1, 0, 0], [math.nan, 1]):
        fails("weights must be 0 or more, and not all of them 0", zeros, weights=torch.tensor(weights))
    for other in ("other", "parts") if name == "softmax" else ("other", "parts", "image_to_text"):
        with pytest.raises(TypeError, match=f"the {name} loss has no setting {other}; it has"):
            LOSSES[name](zeros, **{other: 1})
    if name == "soft":
        fails("targets (3, 2) and logits (2, 3) must have one shape", wide, yes, targets=torch.ones(3, 2))
        for targets in ([[1.0, -1], [0, 1]], [[0.0, 0], [1, 1]], [[0.0, 1], [0, 1]]):
            fails("something above 0 in every row and column", zeros, targets=torch.tensor(targets))


def test_settings_out_of_range() -> None:
    for option in OPTIONS.values():
        for value in ("neither",) if option.default == "softmax" else (-1, math.nan):
            if option.keyword:
                with pytest.raises(
                    ValueError, match=rf"^{option.keyword}={value} must {re.escape(option.range.words)}$"
                ):
                    LOSSES[option.loss](torch.zeros(2, 2), **{option.keyword: value})
