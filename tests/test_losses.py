"""The losses: against loops over Python floats and other libraries, by hand, and what all of them have in common."""

from __future__ import annotations

import itertools
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

# settings beside the default ones; targets stands for a matrix that `filled` draws
VARIED: dict[str, list[Settings]] = {
    "softmax": [{"smoothing": 0.1}, {"image_to_text": 0.7}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"form": "sigmoid"}]
    + [{"form": "sigmoid", "alpha": alpha, "gamma": 0.5} for alpha in (0.7, None)],
    "hinge": [{"margin": 1.5}, {"margin": 1.5, "hardest": 0.3}, {"margin": 1.5, "hardest": 1.0}],
    "soft": [{"share": 0.4, "targets": True}, {"share": 1.0, "targets": True}],
    "transport": [{"iterations": 0}, {"iterations": 1}],
}
VARIANTS = [(name, settings) for name in LOSSES for settings in ({}, *VARIED.get(name, []))]
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
LONELY = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)  # a row without negatives
ONE = torch.ones(1, 1, dtype=torch.bool)
POSITIVES = [torch.eye(6, dtype=torch.bool), PAIRS, CAPTIONS, CAPTIONS.T, LONELY, ONE]


def filled(name: str, settings: Settings, logits: Tensor) -> Settings:
    """All settings that the loss of these rows takes."""
    own = {option.keyword: option.default for option in OPTIONS.values() if option.loss == name and option.keyword}
    drawn = {"targets": draw(*logits.shape, seed=9).abs()} if settings.get("targets") else {}
    return own | settings | drawn


def of_rows(name: str, settings: Settings, logits: Tensor) -> Settings:
    """The settings without the share of the directions."""
    return {key: value for key, value in filled(name, settings, logits).items() if key != "image_to_text"}


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


ENTRIES = [softmax_entry, sigmoid_entry, focal_entry, hinge_entry, decoupled_entry, soft_entry, transport_entry]
ORACLES: dict[str, Callable[..., float]] = {entry.__name__.removesuffix("_entry"): entry for entry in ENTRIES}


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
    to_text = 2 * settings.get("image_to_text", 0.5)
    for positives, spread in itertools.product(POSITIVES, (0.0, 3.0, 50.0)):
        logits = draw(*positives.shape, seed=1, spread=spread).clamp(-100, 100)
        full, rest = filled(name, settings, logits), of_rows(name, settings, logits)
        rows = to_text * by_loop(name, logits, positives, rest)
        columns = (2 - to_text) * by_loop(name, logits.T, positives.T, moved(rest, torch.t))
        close(LOSSES[name].both_ways(logits, positives, parts=True, **full), (rows, columns))
        values = LOSSES[name](logits, positives, reduction="none", **(full if settings else {}))
        close(values, torch.cat([rows.sum(1), columns.sum(1)]))
        of = partial(LOSSES[name].rows, logits, positives, **rest)
        close(of(parts=True).sum(1), of(), rtol=1e-12)
    # a column for each row's only positive, instead of a mask
    logits, numbers = draw(3, 5, seed=3), torch.tensor([4, 0, 2])
    of = partial(LOSSES[name].rows, logits, **of_rows(name, settings, logits))
    close(of(numbers), of(F.one_hot(numbers, 5).bool()), rtol=1e-12, atol=1e-14)


@variants
def test_any_rows_of_the_matrix(name: str, settings: Settings) -> None:
    """What tiles and processes rely on: no row knows of another, but in a loss of the whole matrix."""
    logits, rows = draw(6, 6, seed=2), LOSSES[name].rows
    full = of_rows(name, settings, logits)
    for parts in (False, True):
        whole, some = rows(logits, PAIRS, parts, **full), list[Tensor]()
        for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
            some.append(rows(logits[part], PAIRS[part], parts, **moved(full, lambda t, part=part: t[part])))
        if LOSSES[name].whole_matrix and full["iterations"]:
            assert not torch.allclose(whole, torch.cat(some), rtol=1e-3)
        else:
            close(whole, torch.cat(some))


# ---- worked by hand; open_clip, torchvision and POT (test_transport.py) stand for the others


def test_by_hand() -> None:
    """exp(logits) = [[4, 1], [2, 3]], so p = 4/5 and 3/5 in the rows, 2/3 and 3/4 in the columns."""
    logits = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log()
    # targets sum to 4 and 2 in the rows, 2 and 4 in the columns: their transpose alone would be no distribution
    targets = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    soft_rows = 0.7 * LN(4 / 5) + 0.3 * LN(1 / 5) + 0.2 * LN(2 / 5) + 0.8 * LN(3 / 5)
    soft_columns = 0.8 * LN(2 / 3) + 0.2 * LN(1 / 3) + 0.3 * LN(1 / 4) + 0.7 * LN(3 / 4)
    for name, settings, expected in [
        ("focal", {}, (LN(5 / 4) / 25 + 4 / 25 * LN(5 / 3) + LN(3 / 2) / 9 + LN(4 / 3) / 16) / 4),
        ("hinge", {"margin": 1.0}, (1 - LN(3 / 2) + 1 - LN(2)) / 4),
        ("decoupled", {}, LN(1 / 4 * 2 / 3 * 2 / 4 * 1 / 3) / 4),
        ("soft", {"targets": targets, "share": 0.4}, -(soft_rows + soft_columns) / 4),
    ]:
        assert LOSSES[name](logits, **settings).item() == pytest.approx(expected, rel=1e-12), (name, settings)


def test_the_sigmoid_loss_is_lowest_at_the_balanced_bias() -> None:
    n = 256
    logits = [torch.full((1, n), -LN(n - 1) + step, dtype=torch.float64) for step in (0, -0.1, 0.1)]
    best, *others = (LOSSES["sigmoid"].rows(row, torch.tensor([0])).item() for row in logits)
    assert best == pytest.approx(LN(n) + (n - 1) * LN(n / (n - 1)), rel=1e-12) and min(others) > best


# ---- other libraries


def embeddings(n: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    image, text = F.normalize(draw(2, n, 5, seed=seed), dim=-1)
    return image, text


def test_softmax_and_sigmoid_equal_open_clip() -> None:
    image, text = embeddings()
    scale, bias = torch.tensor([14.3, -7.5], dtype=torch.float64)
    close(LOSSES["softmax"](scale * image @ text.T), ClipLoss()(image, text, scale))
    close(LOSSES["sigmoid"](scale * image @ text.T + bias), SigLipLoss()(image, text, scale, bias))


def test_focal_equals_torchvision() -> None:
    logits = draw(6, 6)
    for alpha, gamma, positives in itertools.product((0.25, 0.7, None), (0.5, 2.0), POSITIVES[:2]):
        theirs = sigmoid_focal_loss(logits, positives.double(), -1 if alpha is None else alpha, gamma, reduction="sum")
        close(LOSSES["focal"](logits, positives, form="sigmoid", gamma=gamma, alpha=alpha), theirs / 6)


def test_duplicates_equal_supervised_contrastive() -> None:
    image, text = embeddings(6, seed=3)
    labels = torch.tensor([0, 1, 0, 2, 2, 3])
    theirs = partial(SupConLoss(temperature=1 / 14.3), labels=labels, ref_labels=labels.clone())  # itself would give 0
    both = [theirs(image, ref_emb=text), theirs(text, ref_emb=image)]
    for name in ("softmax", "soft"):
        close(LOSSES[name](14.3 * image @ text.T, PAIRS), sum(both) / 2)


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
        # 2 counts a row twice, 0 not at all
        for weights in (torch.ones(n + m), torch.arange(1.0, n + m + 1), torch.tensor([2, *[0, 1] * (n + m)])[: n + m]):
            close(loss(weights, "none"), weights * values)
            halves = [(weights[part].tolist(), values[part]) for part in (slice(n), slice(n, None))]
            rows, columns = (sum(w * v for w, v in zip(*half, strict=True)) / sum(half[0]) for half in halves)
            close(loss(weights), (rows + columns) / 2)
        close(loss(), loss(torch.ones(n + m)))
    # one weight a pair counts in both directions; without positives they are the diagonal
    logits, weights = draw(6, 6), torch.tensor([1.0, 2, 1, 1, 0, 5])
    loss = partial(LOSSES[name], logits, **filled(name, settings, logits))
    for reduction in ("mean", "none"):
        long = loss(POSITIVES[0], torch.cat([weights, weights]), reduction)
        close(loss(None, weights, reduction), long, rtol=1e-12, atol=0)


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
        close(loss(half).double(), exact, rtol=1e-5, atol=1e-6)
        found = value_and_gradient(loss, half)[1]
        assert found.dtype == dtype
        close(found.double(), gradient, rtol=2e-2, atol=1e-4)


@variants
def test_extreme_logits_are_finite(name: str, settings: Settings) -> None:
    for positives in (POSITIVES[0], PAIRS, CAPTIONS, torch.ones(3, 5, dtype=torch.bool)):
        loss = partial(LOSSES[name], positives=positives, **filled(name, settings, positives))
        right, ones = torch.where(positives, 100.0, -100.0), torch.full(positives.shape, 100.0)
        for logits in (right, -right, ones, -ones, 100 * draw(*positives.shape).sign().float()):
            for dtype in (torch.float32, torch.bfloat16):
                value, gradient = value_and_gradient(loss, logits.to(dtype))
                assert value.isfinite() and gradient.isfinite().all()
            close(loss(logits).double(), loss(logits.double()), rtol=1e-5, atol=1e-4)


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
    zeros, wide, yes = torch.zeros(2, 2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    empty = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool)
    cases: list[tuple[str, tuple[Any, ...]]] = [  # logits, positives, weights, reduction
        ("unknown reduction 'sum'; use mean or none", (zeros, None, None, "sum")),
        ("logits must be a matrix with entries; their shape is (2, 2, 2)", (torch.zeros(2, 2, 2),)),
        ("logits must be a matrix with entries; their shape is (0, 0)", (torch.zeros(0, 0),)),
        ("logits of shape (2, 3) have no diagonal; pass positives of that shape", (wide,)),
        ("positives (2, 3) torch.bool and logits (2, 2) must have one shape, and positives be bool", (zeros, yes)),
        ("positives (2, 2) torch.int64 and logits", (zeros, torch.eye(2).long())),
        ("row 1 of positives has no positive; every row needs one", (zeros, empty)),
        ("column 1 of positives has no positive; every column needs one", (zeros, empty.T)),
        ("(3,) do not fit logits (2, 2); they must be (2,), one a pair, or (4,)", (zeros, None, torch.ones(3))),
        ("(2,) do not fit logits (2, 3); they must be (5,), the rows' and then the", (wide, yes, torch.ones(2))),
    ]
    for weights in ([-1.0, 3], [0.0, 0], [1.0, 1, 0, 0], [math.nan, 1]):
        cases.append(("weights must be 0 or more, and not all of them 0", (zeros, None, torch.tensor(weights))))
    for message, given in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            LOSSES[name](*given)
    for other in ("other", "parts") if name == "softmax" else ("other", "parts", "image_to_text"):
        with pytest.raises(TypeError, match=f"the {name} loss has no setting {other}; it has"):
            LOSSES[name](zeros, **{other: 1})


def test_settings_out_of_range() -> None:
    for option in OPTIONS.values():
        for value in ("neither",) if option.default == "softmax" else (-1, math.nan):
            if option.keyword:
                said = rf"^{option.keyword}={value} must {re.escape(option.range.words)}$"
                with pytest.raises(ValueError, match=said):
                    LOSSES[option.loss](torch.zeros(2, 2), **{option.keyword: value})
    soft, yes = LOSSES["soft"], torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape("targets (3, 2) and logits (2, 3) must have one shape")):
        soft(torch.zeros(2, 3), yes, targets=torch.ones(3, 2))
    for targets in ([[1.0, -1], [0, 1]], [[0.0, 0], [1, 1]], [[0.0, 1], [0, 1]]):
        with pytest.raises(ValueError, match="something above 0 in every row and column"):
            soft(torch.zeros(2, 2), targets=torch.tensor(targets))
