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

from miniclip.losses import LOSSES
from miniclip.losses.transport import sinkhorn, wasserstein

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
shapes = pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 7), (7, 4), (1, 3)])
BY_HAND = torch.tensor([[4.0, 1.0], [2.0, 3.0]], dtype=torch.float64).log()
# scaling keeps the cross ratio 4 * 3 / (1 * 2) = 6 = (x / (1/2 - x))^2
X = 0.5 * math.sqrt(6) / (1 + math.sqrt(6))


def cosines(n: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(k, 5, generator=generator, dtype=torch.float64), dim=1) for k in (n, m))
    return image @ text.T


def even(k: int) -> Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


def pot(cosine: Tensor, scale: float, iterations: int, stop: float = 0.0) -> Tensor:
    margins, cost = (np.full(k, 1 / k) for k in cosine.shape), 1 - cosine.numpy()
    return torch.from_numpy(ot.sinkhorn(*margins, cost, 1 / scale, numItermax=iterations, stopThr=stop, warn=False))


@shapes
def test_plan_equals_pot(n: int, m: int) -> None:
    cosine = cosines(n, m)
    for iterations in (1, 2, 5, 17):
        close(sinkhorn(14.3 * cosine, iterations).exp(), pot(cosine, 14.3, iterations))
    # converged: both marginals; another iteration changes nothing, and a constant for each row and column neither
    plan = sinkhorn(5 * cosine, 300).exp()
    close(plan, pot(cosine, 5, 5000, stop=1e-16))
    close(plan.sum(1), even(n))
    close(plan.sum(0), even(m))
    close(sinkhorn(5 * cosine, 301).exp(), plan)
    shift = 3 * torch.arange(n)[:, None] - 2.5 * torch.arange(m)
    close(sinkhorn(5 * cosine + shift, 300).exp(), plan)
    few = wasserstein(cosine, 14.3, iterations=4).item()
    assert few == pytest.approx(float((pot(cosine, 14.3, 4) * (1 - cosine)).sum()), rel=1e-10)
    theirs = ot.sinkhorn2(*(np.full(k, 1 / k) for k in (n, m)), 1 - cosine.numpy(), 1 / 5, stopThr=1e-16, warn=False)
    assert wasserstein(cosine, 5, iterations=300).item() == pytest.approx(float(theirs), rel=1e-10)


def test_rows_have_their_mass_and_columns_near_it() -> None:
    logits = 14.3 * cosines(5, 8)
    plans = [sinkhorn(logits, k).exp() for k in (0, 1, 5, 50)]
    for plan in plans:
        close(plan.sum(1), even(5))
    misses = [(plan.sum(0) - 1 / 8).abs().sum().item() for plan in plans]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 10 * misses[-1]
    close(plans[0].log(), logits.log_softmax(1) - math.log(5))  # no iteration is the softmax
    with pytest.raises(ValueError, match="iterations=-1 must be 0 or more"):
        sinkhorn(logits, -1)


def test_two_by_two_by_hand() -> None:
    close(sinkhorn(BY_HAND, 60).exp(), torch.tensor([[X, 0.5 - X], [0.5 - X, X]], dtype=torch.float64))
    close(sinkhorn(BY_HAND, 1).exp(), torch.tensor([[8 / 22, 3 / 22], [4 / 26, 9 / 26]], dtype=torch.float64))
    expected = X * (2 - math.log(4 * 3) / 10) + (0.5 - X) * (2 - math.log(2) / 10)
    assert wasserstein(BY_HAND / 10, 10.0).item() == pytest.approx(expected, rel=1e-12)
    # equal clouds at a high scale cost nothing, opposite ones 2
    assert wasserstein(torch.eye(3, dtype=torch.float64), 100.0).item() == pytest.approx(0, abs=1e-12)
    assert wasserstein(-torch.ones(3, 3, dtype=torch.float64), 100.0).item() == pytest.approx(2, rel=1e-12)


def test_gradients_through_the_iterations() -> None:
    logits, scale = cosines(3, 4).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    for iterations in (1, 3):
        assert torch.autograd.gradcheck(lambda x, k=iterations: sinkhorn(4 * x, k), (logits,))
    assert torch.autograd.gradcheck(lambda c, s: wasserstein(c, s, iterations=3), (logits, scale))


def test_loss_is_the_plan_of_pot() -> None:
    cosine = cosines(6, 6, seed=2)
    for iterations in (1, 5):
        plans = (pot(c.contiguous(), 14.3, iterations) for c in (cosine, cosine.T))
        values = LOSSES["transport"](14.3 * cosine, reduction="none", iterations=iterations)
        close(values, torch.cat([-(6 * plan.diagonal()).log() for plan in plans]))
    # both directions converge to the same
    values = LOSSES["transport"](8 * cosine, reduction="none", iterations=1000)
    close(values[:6], values[6:])


def test_wasserstein_tends_to_the_earth_movers_distance() -> None:
    cosine = cosines(6, 6, seed=6)
    exact = ot.emd2(even(6).numpy(), even(6).numpy(), 1 - cosine.numpy())
    for scale in (10.0, 50.0, 200.0):
        # the entropy of a plan of two even margins lies between ln 6 and 2 ln 6
        above = wasserstein(cosine, scale, iterations=1000).item() - exact
        assert 0 < above < math.log(6) / scale
    close(wasserstein(cosine, 0.0), (1 - cosine).mean())  # without scale everything goes everywhere
