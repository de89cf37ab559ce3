"""Sinkhorn's plan against POT's, the marginals, the limits, and a 2 x 2 plan in closed form."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import ot
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.losses import softmax_loss, transport_loss
from miniclip.losses.transport import sinkhorn, wasserstein

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
SHAPES = [(6, 6), (4, 7), (7, 4), (1, 3)]


def cosines(n: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(k, 5, generator=generator, dtype=torch.float64), dim=1) for k in (n, m))
    return image @ text.T


def even(k: int) -> np.ndarray:
    return np.full(k, 1 / k)


def pot(cosine: Tensor, scale: float, iterations: int, stop: float = 0.0) -> Tensor:
    n, m = cosine.shape
    plan = ot.sinkhorn(even(n), even(m), 1 - cosine.numpy(), 1 / scale, numItermax=iterations, stopThr=stop, warn=False)
    return torch.from_numpy(plan)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [1, 2, 5, 17])
def test_plan_equals_pot_after_as_many_iterations(shape: tuple[int, int], iterations: int) -> None:
    cosine = cosines(*shape)
    close(sinkhorn(14.3 * cosine, iterations).exp(), pot(cosine, 14.3, iterations))


@pytest.mark.parametrize("shape", SHAPES)
def test_plan_equals_pot_at_convergence(shape: tuple[int, int]) -> None:
    cosine = cosines(*shape, seed=1)
    plan = sinkhorn(10 * cosine, 1500).exp()
    close(plan, pot(cosine, 10, 20_000, stop=1e-16))
    n, m = shape
    close(plan.sum(1), torch.full((n,), 1 / n, dtype=torch.float64))
    close(plan.sum(0), torch.full((m,), 1 / m, dtype=torch.float64))
    # another iteration changes nothing, and a constant for each row and column neither
    close(sinkhorn(10 * cosine, 1501).exp(), plan)
    shift = 3 * torch.arange(n)[:, None] - 2.5 * torch.arange(m)
    close(sinkhorn(10 * cosine + shift, 1500).exp(), plan)


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_rows_have_their_mass_and_columns_near_it(iterations: int) -> None:
    logits = 14.3 * cosines(5, 8)
    plan = sinkhorn(logits, iterations).exp()
    close(plan.sum(1), torch.full((5,), 1 / 5, dtype=torch.float64))
    misses = [(sinkhorn(logits, k).exp().sum(0) - 1 / 8).abs().sum().item() for k in (0, 1, 5, 50)]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 10 * misses[-1]


def test_no_iteration_is_the_softmax() -> None:
    logits = 5 * cosines(4, 6)
    close(sinkhorn(logits, 0), logits.log_softmax(1) - math.log(4))
    with pytest.raises(ValueError, match="iterations=-1 must be 0 or more"):
        sinkhorn(logits, -1)


def test_two_by_two_by_hand() -> None:
    """exp(logits) = [[4, 1], [2, 3]]; scaling keeps the cross ratio 4 * 3 / (1 * 2) = 6 = (x / (1/2 - x))^2."""
    logits = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log()
    x = 0.5 * math.sqrt(6) / (1 + math.sqrt(6))
    close(sinkhorn(logits, 60).exp(), torch.tensor([[x, 0.5 - x], [0.5 - x, x]], dtype=torch.float64))
    close(sinkhorn(logits, 1).exp(), torch.tensor([[8 / 22, 3 / 22], [4 / 26, 9 / 26]], dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 3])
def test_gradient_through_the_iterations(iterations: int) -> None:
    logits = (4 * cosines(3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, iterations), (logits,))


@pytest.mark.parametrize("iterations", [1, 5])
def test_loss_is_the_plan_of_pot(iterations: int) -> None:
    cosine = cosines(6, 6, seed=2)
    rows, columns = (pot(c.contiguous(), 14.3, iterations) for c in (cosine, cosine.T))
    values = transport_loss(14.3 * cosine, reduction="none", iterations=iterations)
    close(values, torch.cat([-(6 * plan.diagonal()).log() for plan in (rows, columns)]))
    close(transport_loss(14.3 * cosine, iterations=iterations), values.mean())


def test_loss_converges_to_the_same_from_both_sides() -> None:
    values = transport_loss(8 * cosines(6, 6, seed=3), reduction="none", iterations=1000)
    close(values[:6], values[6:])


def test_loss_without_iterations_is_softmax() -> None:
    logits = 14.3 * cosines(6, 6, seed=4)
    close(transport_loss(logits, iterations=0), softmax_loss(logits))
    with pytest.raises(ValueError, match="iterations=-2 must be 0 or more"):
        transport_loss(logits, iterations=-2)


# ---- what moving costs


@pytest.mark.parametrize("shape", SHAPES)
def test_wasserstein_equals_pot(shape: tuple[int, int]) -> None:
    n, m = shape
    cosine = cosines(n, m, seed=5)
    cost = 1 - cosine.numpy()
    few = wasserstein(cosine, 14.3, iterations=4).item()
    assert few == pytest.approx(float((pot(cosine, 14.3, 4).numpy() * cost).sum()), rel=1e-10)
    theirs = ot.sinkhorn2(even(n), even(m), cost, 1 / 10, numItermax=20_000, stopThr=1e-16, warn=False)
    assert wasserstein(cosine, 10, iterations=1500).item() == pytest.approx(float(theirs), rel=1e-10)


def test_wasserstein_tends_to_the_earth_movers_distance() -> None:
    cosine = cosines(6, 6, seed=6)
    exact = ot.emd2(even(6), even(6), 1 - cosine.numpy())
    for scale in (10.0, 50.0, 200.0):
        # the entropy of a plan of two even margins lies between ln 6 and 2 ln 6
        above = wasserstein(cosine, scale, iterations=3000).item() - exact
        assert 0 < above < math.log(6) / scale
    # and without scale everything goes everywhere
    close(wasserstein(cosine, 0.0), (1 - cosine).mean())


def test_wasserstein_by_hand() -> None:
    cosine = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log() / 10
    x = 0.5 * math.sqrt(6) / (1 + math.sqrt(6))
    expected = x * (2 - math.log(4 * 3) / 10) + (0.5 - x) * (2 - math.log(2) / 10)
    assert wasserstein(cosine, 10.0).item() == pytest.approx(expected, rel=1e-12)
    # equal clouds at a high scale cost nothing, opposite ones 2
    assert wasserstein(torch.eye(3, dtype=torch.float64), 100.0).item() == pytest.approx(0, abs=1e-12)
    assert wasserstein(-torch.ones(3, 3, dtype=torch.float64), 100.0).item() == pytest.approx(2, rel=1e-12)


def test_wasserstein_has_a_gradient_for_scale_and_cosine() -> None:
    cosine = cosines(3, 4, seed=7).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, s: wasserstein(c, s, iterations=3), (cosine, scale))
