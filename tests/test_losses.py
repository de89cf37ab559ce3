"""Losses of a whole matrix: by hand, against other libraries in float64, and what all of them have in common."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from pytorch_metric_learning.losses import SupConLoss
from test_rows import draw, groups, variants
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from miniclip.losses import (
    LOSSES,
    decoupled_loss,
    focal_loss,
    hinge_loss,
    sigmoid_loss,
    soft_loss,
    softmax_loss,
    transport_loss,
)

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
every = pytest.mark.parametrize("name", LOSSES)
PAIRS = groups([0, 1, 0, 2, 2, 3], [0, 1, 0, 2, 2, 3])
CAPTIONS = groups([0, 1, 2, 3], [0, 0, 1, 2, 2, 2, 3])  # 4 images, 7 texts
BY_HAND = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log()
LN = math.log


def embeddings(n: int = 7, e: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    image, text = F.normalize(draw(2, n, e, seed=seed), dim=-1)
    return image, text


def value_and_gradient(name: str, logits: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = LOSSES[name](logits, *args, **settings)
    return value.detach(), torch.autograd.grad(value, logits)[0]


# ---- worked by hand: exp(logits) = [[4, 1], [2, 3]], so p = 4/5 and 3/5 in the rows, 2/3 and 3/4 in the columns


def test_softmax_by_hand() -> None:
    assert softmax_loss(BY_HAND).item() == pytest.approx(LN(25 / 6) / 4, rel=1e-12)
    # a tenth spread over both: 0.95 and 0.05
    smooth = -(0.95 * LN(4 / 5 * 3 / 5 * 2 / 3 * 3 / 4) + 0.05 * LN(1 / 5 * 2 / 5 * 1 / 3 * 1 / 4)) / 4
    assert softmax_loss(BY_HAND, smoothing=0.1).item() == pytest.approx(smooth, rel=1e-12)


def test_sigmoid_by_hand() -> None:
    # yes with 4/5 and 3/4, no with 1/2 and 1/3
    assert sigmoid_loss(BY_HAND).item() == pytest.approx(LN(5 / 4 * 2 * 3 * 4 / 3) / 2, rel=1e-12)


def test_focal_by_hand() -> None:
    softmax = (LN(5 / 4) / 25 + 4 / 25 * LN(5 / 3) + LN(3 / 2) / 9 + LN(4 / 3) / 16) / 4
    assert focal_loss(BY_HAND).item() == pytest.approx(softmax, rel=1e-12)
    sigmoid = (0.25 * LN(5 / 4) / 25 + 0.75 * LN(2) / 4 + 0.75 * 4 / 9 * LN(3) + 0.25 * LN(4 / 3) / 16) / 2
    assert focal_loss(BY_HAND, form="sigmoid").item() == pytest.approx(sigmoid, rel=1e-12)


def test_hinge_by_hand() -> None:
    cosines = torch.tensor([[0.5, 0.4, 0.5], [0.1, 0.2, 0.3], [0.0, -0.2, 0.9]], dtype=torch.float64)
    rows, columns = [0.1 + 0.2, 0.1 + 0.3, 0], [0, 0.4, 0]
    close(hinge_loss(cosines, reduction="none"), torch.tensor(rows + columns, dtype=torch.float64))
    assert hinge_loss(cosines).item() == pytest.approx(1.1 / 6, rel=1e-12)
    assert hinge_loss(cosines, hardest=1.0).item() == pytest.approx((0.2 + 0.3 + 0.4) / 6, rel=1e-12)
    assert hinge_loss(cosines, hardest=0.5).item() == pytest.approx(1.0 / 6, rel=1e-12)


def test_decoupled_by_hand() -> None:
    assert decoupled_loss(BY_HAND).item() == pytest.approx(LN(1 / 4 * 2 / 3 * 2 / 4 * 1 / 3) / 4, rel=1e-12)


def test_soft_by_hand() -> None:
    """Targets sum to 4 and 2 in the rows, 2 and 4 in the columns: their transpose alone would be no distribution."""
    targets = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    rows = 0.7 * LN(4 / 5) + 0.3 * LN(1 / 5) + 0.2 * LN(2 / 5) + 0.8 * LN(3 / 5)
    columns = 0.8 * LN(2 / 3) + 0.2 * LN(1 / 3) + 0.3 * LN(1 / 4) + 0.7 * LN(3 / 4)
    assert soft_loss(BY_HAND, targets=targets, share=0.4).item() == pytest.approx(-(rows + columns) / 4, rel=1e-12)


def test_transport_by_hand() -> None:
    # at the end x/(1/2 - x) is the root of the cross ratio 6 (test_transport.py); after one iteration not yet
    assert transport_loss(BY_HAND, iterations=60).item() == pytest.approx(LN(1 + 6**-0.5), rel=1e-12)
    once = LN(11 / 8 * 13 / 9 * 3 / 2 * 4 / 3) / 4
    assert transport_loss(BY_HAND, iterations=1).item() == pytest.approx(once, rel=1e-12)


# ---- other libraries


def test_softmax_equals_open_clip() -> None:
    image, text = embeddings()
    close(softmax_loss(14.3 * image @ text.T), ClipLoss()(image, text, torch.tensor(14.3, dtype=torch.float64)))


def test_sigmoid_equals_open_clip() -> None:
    image, text = embeddings(seed=1)
    scale, bias = torch.tensor([10.0, -7.5], dtype=torch.float64)
    close(sigmoid_loss(scale * image @ text.T + bias), SigLipLoss()(image, text, scale, bias))


def test_softmax_equals_cross_entropy() -> None:
    logits, weights = draw(7, 7), torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = [(matrix, torch.arange(7)) for matrix in (logits, logits.T)]
    smooth = sum(F.cross_entropy(x, y, label_smoothing=0.1) for x, y in both) / 2
    close(softmax_loss(logits, smoothing=0.1), smooth)
    close(softmax_loss(logits, weights=weights), sum(F.cross_entropy(x, y, weight=weights) for x, y in both) / 2)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.15 brings it")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_equals_linear_cross_entropy(smoothing: float) -> None:
    image, text = embeddings(seed=2)
    both = [(14.3 * image, text), (14.3 * text, image)]
    theirs = sum(F.linear_cross_entropy(x, w, torch.arange(7), label_smoothing=smoothing) for x, w in both) / 2
    close(softmax_loss(14.3 * image @ text.T, smoothing=smoothing), theirs)


@pytest.mark.parametrize("alpha", [0.25, 0.7, None])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_equals_torchvision(alpha: float | None, gamma: float) -> None:
    for logits, positives in ((draw(6, 6), PAIRS), (draw(6, 6), torch.eye(6, dtype=torch.bool))):
        their_alpha = -1 if alpha is None else alpha
        theirs = sigmoid_focal_loss(logits, positives.double(), their_alpha, gamma, reduction="sum") / 6
        close(focal_loss(logits, positives, form="sigmoid", gamma=gamma, alpha=alpha), theirs)


def test_hinge_equals_multi_margin() -> None:
    logits, target = draw(6, 6, spread=0.4), torch.arange(6)
    for values, matrix in zip(hinge_loss(logits, reduction="none").split(6), (logits, logits.T), strict=True):
        # theirs divides by the number of classes
        close(values, 6 * F.multi_margin_loss(matrix, target, p=1, margin=0.2, reduction="none"))


def test_decoupled_is_cross_entropy_plus_what_is_left() -> None:
    logits = draw(6, 6)
    values = decoupled_loss(logits, reduction="none")
    for found, matrix in zip(values.split(6), (logits, logits.T), strict=True):
        ce = F.cross_entropy(matrix, torch.arange(6), reduction="none")
        close(found, ce + torch.log(-torch.expm1(-ce)), rtol=1e-9)  # p near 1 costs the identity a digit
        others = torch.stack([torch.cat([row[:i], row[i + 1 :]]) for i, row in enumerate(matrix)])
        close(found, ce + others.logsumexp(1) - matrix.logsumexp(1))


@pytest.mark.parametrize("loss", [softmax_loss, soft_loss])
def test_duplicates_equal_supervised_contrastive(loss: Any) -> None:
    image, text = embeddings(6, seed=3)
    # labels are cloned below: theirs returns 0 where it is handed the same tensor twice
    labels = torch.tensor([0, 1, 0, 2, 2, 3])
    theirs = SupConLoss(temperature=1 / 14.3)
    both = [theirs(a, labels, ref_emb=b, ref_labels=labels.clone()) for a, b in ((image, text), (text, image))]
    close(loss(14.3 * image @ text.T, PAIRS), sum(both) / 2)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_soft_equals_cross_entropy_to_probabilities(share: float) -> None:
    logits, targets = draw(4, 7), draw(4, 7, seed=1).exp()
    values = soft_loss(logits, CAPTIONS, reduction="none", targets=targets, share=share)
    for found, x, yes, t in zip(values.split([4, 7]), *((a, a.T) for a in (logits, CAPTIONS, targets)), strict=True):
        q = share * F.normalize(t, p=1, dim=1) + (1 - share) * F.normalize(yes.double(), p=1, dim=1)
        close(found, F.cross_entropy(x, q, reduction="none"))
        close(found, -(q * x.log_softmax(1)).sum(1))


# ---- limits


def test_equal_logits() -> None:
    n, c = 9, -1.3
    logits = torch.full((n, n), c, dtype=torch.float64)
    yes, no = math.log1p(math.exp(-c)), math.log1p(math.exp(c))
    p = 1 / (1 + math.exp(-c))
    expected = [
        (softmax_loss(logits), LN(n)),
        (softmax_loss(logits, smoothing=0.1), LN(n)),
        (softmax_loss(logits, groups([0, 0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 3, 4, 5, 6, 7])), LN(n)),
        (sigmoid_loss(logits), yes + (n - 1) * no),
        (focal_loss(logits), (8 / 9) ** 2 * LN(n)),
        (focal_loss(logits, form="sigmoid"), 0.25 * (1 - p) ** 2 * yes + 0.75 * p**2 * (n - 1) * no),
        (hinge_loss(logits), 0.2 * (n - 1)),
        (hinge_loss(logits, hardest=1.0), 0.2),
        (decoupled_loss(logits), LN(n - 1)),
        (soft_loss(logits, targets=torch.rand(n, n)), LN(n)),
        (transport_loss(logits), LN(n)),
    ]
    assert [found.item() for found, _ in expected] == pytest.approx([value for _, value in expected], rel=1e-12)


@pytest.mark.parametrize("positives", [PAIRS, CAPTIONS], ids=["pairs", "captions"])
def test_losses_that_become_one_another(positives: Tensor) -> None:
    logits = draw(*positives.shape)
    softmax, sigmoid = softmax_loss(logits, positives), sigmoid_loss(logits, positives)
    close(focal_loss(logits, positives, gamma=0.0), softmax)
    close(focal_loss(logits, positives, gamma=0.0, form="sigmoid", alpha=None), sigmoid)
    close(focal_loss(logits, positives, gamma=0.0, form="sigmoid", alpha=0.5), sigmoid / 2)
    close(soft_loss(logits, positives), softmax)
    close(soft_loss(logits, positives, targets=positives.float(), share=0.6), softmax)
    close(soft_loss(logits, positives, targets=torch.rand(positives.shape), share=0.0), softmax)
    close(transport_loss(logits, positives, iterations=0), softmax)
    close(hinge_loss(draw(2, 2), hardest=1.0), hinge_loss(draw(2, 2)))


def test_a_batch_of_one_and_large_gaps() -> None:
    one = torch.tensor([[3.0]], dtype=torch.float64)
    for name in ("softmax", "focal", "hinge", "decoupled", "soft", "transport"):
        assert LOSSES[name](one).item() == pytest.approx(0, abs=1e-15)
    assert sigmoid_loss(one).item() == pytest.approx(math.log1p(math.exp(-3)), rel=1e-12)
    # right by 100: nothing left to learn, but decoupled has no floor; wrong by 100: linear
    right = torch.where(torch.eye(4, dtype=torch.bool), 100.0, 0.0).double()
    assert softmax_loss(right).item() == pytest.approx(0, abs=1e-30)
    assert decoupled_loss(right).item() == pytest.approx(LN(3) - 100, rel=1e-12)
    assert softmax_loss(-right).item() == pytest.approx(100 + LN(3), rel=1e-12)
    assert focal_loss(-right).item() == pytest.approx(100 + LN(3), rel=1e-12)
    assert hinge_loss(-right).item() == pytest.approx(3 * 100.2, rel=1e-12)


# ---- what all of them have in common: a loss that is added to LOSSES is tested here


@variants
def test_gradcheck(name: str, settings: dict[str, Any]) -> None:
    loss = partial(LOSSES[name], **settings)
    logits = draw(4, 4, seed=3, spread=1.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradcheck(lambda x: loss(x, PAIRS[:4, :4]), (logits,))
    wide = draw(4, 7, seed=4, spread=1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, CAPTIONS, torch.arange(11.0), "none"), (wide,))


@variants
def test_diagonal_is_the_default(name: str, settings: dict[str, Any]) -> None:
    logits = draw(6, 6)
    for ours, explicit in zip(
        value_and_gradient(name, logits, **settings),
        value_and_gradient(name, logits, torch.eye(6, dtype=torch.bool), **settings),
        strict=True,
    ):
        torch.testing.assert_close(ours, explicit, rtol=1e-12, atol=1e-15)


@variants
@pytest.mark.parametrize("positives", [PAIRS, CAPTIONS], ids=["pairs", "captions"])
def test_reductions_and_weights(name: str, settings: dict[str, Any], positives: Tensor) -> None:
    n, m = positives.shape
    logits, loss = draw(n, m), partial(LOSSES[name], **settings)
    values = loss(logits, positives, reduction="none")
    assert values.shape == (n + m,)
    close(loss(logits, positives), (values[:n].sum() / n + values[n:].sum() / m) / 2)

    weights = torch.arange(1.0, n + m + 1)
    close(loss(logits, positives, weights, "none"), weights * values)
    rows = sum(weights[i] * values[i] for i in range(n)) / sum(range(1, n + 1))
    columns = sum(weights[n + j] * values[n + j] for j in range(m)) / sum(range(n + 1, n + m + 1))
    close(loss(logits, positives, weights), (rows + columns) / 2)
    close(loss(logits, positives, torch.full((n + m,), 3)), loss(logits, positives))
    # 2 counts a row twice, 0 not at all
    twice, without = torch.ones(n + m), torch.ones(n + m)
    twice[1] = twice[n + 2] = 2
    without[1] = without[n + 2] = 0
    v, w = values[:n].tolist(), values[n:].tolist()
    expected = (sum([*v, v[1]]) / (n + 1) + sum([*w, w[2]]) / (m + 1)) / 2
    assert loss(logits, positives, twice).item() == pytest.approx(expected, rel=1e-10)
    expected = ((sum(v) - v[1]) / (n - 1) + (sum(w) - w[2]) / (m - 1)) / 2
    assert loss(logits, positives, without).item() == pytest.approx(expected, rel=1e-10)


@variants
def test_one_weight_a_pair_counts_in_both_directions(name: str, settings: dict[str, Any]) -> None:
    logits, weights, loss = draw(6, 6), torch.tensor([1.0, 2, 1, 1, 0, 5]), partial(LOSSES[name], **settings)
    for reduction in ("mean", "none"):
        close(loss(logits, None, weights, reduction), loss(logits, None, torch.cat([weights, weights]), reduction))
    v = loss(logits, reduction="none").tolist()
    expected = sum(a[0] + 2 * a[1] + a[2] + a[3] + 5 * a[5] for a in (v[:6], v[6:])) / 20
    assert loss(logits, weights=weights).item() == pytest.approx(expected, rel=1e-10)


@variants
def test_order_does_not_matter(name: str, settings: dict[str, Any]) -> None:
    loss, generator = partial(LOSSES[name], **settings), torch.Generator().manual_seed(5)
    pi, sigma = torch.randperm(4, generator=generator), torch.randperm(7, generator=generator)
    logits = draw(4, 7)
    values = loss(logits, CAPTIONS, reduction="none")
    moved = [x[pi][:, sigma] for x in (logits, CAPTIONS)]
    close(loss(*moved, reduction="none"), torch.cat([values[:4][pi], values[4:][sigma]]))
    close(loss(*moved), loss(logits, CAPTIONS))
    # pairs that move together keep their diagonal
    square, together = logits[:, :4], logits[pi][:, pi]
    close(loss(together), loss(square))
    close(loss(together, reduction="none"), loss(square, reduction="none").view(2, 4)[:, pi].flatten())


@variants
def test_images_and_texts_may_change_places(name: str, settings: dict[str, Any]) -> None:
    logits, loss = draw(6, 6), partial(LOSSES[name], **settings)
    close(loss(logits.T), loss(logits))
    close(loss(logits.T, reduction="none"), loss(logits, reduction="none").roll(6))
    close(loss(draw(4, 7).T, CAPTIONS.T), loss(draw(4, 7), CAPTIONS))


def test_targets_move_with_the_matrix() -> None:
    logits, targets, pi = draw(5, 5), draw(5, 5, seed=1).exp(), torch.tensor([3, 0, 4, 1, 2])
    value = soft_loss(logits, targets=targets)
    close(soft_loss(logits[pi][:, pi], targets=targets[pi][:, pi]), value)
    close(soft_loss(logits.T, targets=targets.T), value)
    assert not torch.allclose(soft_loss(logits, targets=targets.T), value)


def test_targets_are_normalised_and_have_no_gradient() -> None:
    logits, targets = draw(4, 7).requires_grad_(), draw(4, 7, seed=1).exp().requires_grad_()
    value = soft_loss(logits, CAPTIONS, targets=targets)
    value.backward()
    assert targets.grad is None
    assert logits.grad is not None
    close(soft_loss(logits, CAPTIONS, targets=5 * targets), value)
    assert torch.autograd.gradcheck(lambda x: soft_loss(x, CAPTIONS, targets=targets), (logits,))


@variants
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    half = draw(6, 6, seed=6).to(dtype)
    for reduction in ("mean", "none"):
        value = LOSSES[name](half, PAIRS, reduction=reduction, **settings)
        assert value.dtype == torch.float32
        assert torch.equal(value, LOSSES[name](half.float(), PAIRS, reduction=reduction, **settings))
    exact, gradient = value_and_gradient(name, half.double(), PAIRS, **settings)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(LOSSES[name](half, PAIRS, **settings).double(), exact, rtol=1e-5, atol=1e-6)
    found = value_and_gradient(name, half, PAIRS, **settings)[1]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), gradient, rtol=2e-2, atol=1e-4)


@variants
@pytest.mark.parametrize("kind", ["right", "wrong", "high", "low", "mixed"])
def test_extreme_logits_are_finite(name: str, settings: dict[str, Any], kind: str) -> None:
    for positives in (torch.eye(6, dtype=torch.bool), PAIRS, CAPTIONS, torch.ones(3, 5, dtype=torch.bool)):
        logits = {
            "right": torch.where(positives, 100.0, -100.0),
            "wrong": torch.where(positives, -100.0, 100.0),
            "high": torch.full(positives.shape, 100.0),
            "low": torch.full(positives.shape, -100.0),
            "mixed": 100 * draw(*positives.shape).sign().float(),
        }[kind]
        for dtype in (torch.float32, torch.bfloat16):
            value, gradient = value_and_gradient(name, logits.to(dtype), positives, **settings)
            assert value.isfinite()
            assert gradient.isfinite().all()
        exact = LOSSES[name](logits.double(), positives, **settings)
        torch.testing.assert_close(LOSSES[name](logits, positives, **settings).double(), exact, rtol=1e-5, atol=1e-4)


@variants
def test_duplicates_of_perfect_towers_are_left_alone(name: str, settings: dict[str, Any]) -> None:
    logits = torch.where(PAIRS, 100.0, -100.0).double()
    gradient = value_and_gradient(name, logits, PAIRS, **settings)[1]
    if name == "decoupled":  # it has no lower bound: every positive is pulled on, by 1/k a row and column
        k = PAIRS.sum(1, keepdim=True).double()
        close(gradient[PAIRS], (-1 / k / 6).expand(6, 6)[PAIRS])
        close(gradient[~PAIRS], (1 / (6 - k) / 12 + 1 / (6 - k.T) / 12)[~PAIRS])
    elif "smoothing" in settings:
        assert gradient.abs().max() > 1e-3
    else:
        assert gradient.abs().max() < 1e-14
    # taken for negatives, duplicates are pushed apart
    assert value_and_gradient(name, logits, **settings)[1][0, 2] > 1e-3


@variants
def test_duplicates_count_alike(name: str, settings: dict[str, Any]) -> None:
    """Pairs 0 and 2 are one picture with one caption, so are 3 and 4: equal rows must have equal values."""
    logits = draw(4, 4, seed=7)[torch.tensor([0, 1, 0, 2, 2, 3])][:, torch.tensor([0, 1, 0, 2, 2, 3])]
    rows, columns = LOSSES[name](logits, PAIRS, reduction="none", **settings).split(6)
    for values in (rows, columns):
        close(values[[0, 3]], values[[2, 4]])


# ---- errors


@every
def test_errors(name: str) -> None:
    loss, zeros = LOSSES[name], torch.zeros(2, 2)

    def fails(message: str, *args: Any, **keywords: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            loss(*args, **keywords)

    fails("unknown reduction 'sum'; use mean or none", zeros, reduction="sum")
    fails("logits must be a matrix with entries; their shape is (2, 2, 2)", torch.zeros(2, 2, 2))
    fails("logits must be a matrix with entries; their shape is (0, 0)", torch.zeros(0, 0))
    fails("logits of shape (2, 3) have no diagonal; pass positives of that shape", torch.zeros(2, 3))
    fails(
        "positives (2, 3) torch.bool and logits (2, 2) must have one shape, and positives be bool",
        zeros,
        torch.ones(2, 3, dtype=torch.bool),
    )
    fails("positives (2, 2) torch.int64 and logits", zeros, torch.eye(2).long())
    empty = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool)
    fails("row 1 of positives has no positive; every row needs one", zeros, empty)
    fails("column 1 of positives has no positive; every column needs one", zeros, empty.T)

    wanted = "weights (3,) do not fit logits (2, 2); they must be (2,), one a pair, or (4,)"
    fails(wanted, zeros, weights=torch.ones(3))
    wide, yes = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    wanted = "weights (2,) do not fit logits (2, 3); they must be (5,), the rows' and then the columns'"
    fails(wanted, wide, yes, torch.ones(2))
    for weights in ([-1.0, 3], [0.0, 0], [1.0, 1, 0, 0], [math.nan, 1]):
        fails("weights must be 0 or more, and not all of them 0", zeros, weights=torch.tensor(weights))


def test_errors_of_targets() -> None:
    with pytest.raises(ValueError, match=re.escape("targets (3, 2) and logits (2, 3) must have one shape")):
        soft_loss(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), targets=torch.ones(3, 2))
    yes = torch.ones(2, 2, dtype=torch.bool)
    for targets in ([[1.0, -1], [0, 1]], [[0.0, 0], [1, 1]], [[0.0, 1], [0, 1]]):
        with pytest.raises(ValueError, match="something above 0 in every row and column"):
            soft_loss(torch.zeros(2, 2), yes, targets=torch.tensor(targets))


def test_unknown_form() -> None:
    with pytest.raises(ValueError, match="unknown form 'sigmod'; use softmax or sigmoid"):
        focal_loss(torch.zeros(2, 2), form="sigmod")  # type: ignore[arg-type]
