"""Sinkhorn's plan and the distance against POT's, their marginals and limits; test_losses.py has the loss."""

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


def cosines(n: int, m: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(k, 5, generator=generator, dtype=torch.float64), dim=1) for k in (n, m))
    return image @ text.T


def even(k: int) -> Tensor:
    return torch.full((k,), 1 / k, dtype=torch.float64)


def pot(cosine: Tensor, scale: float, iterations: int, stop: float = 0.0) -> Tensor:
    margins, cost = (np.full(k, 1 / k) for k in cosine.shape), 1 - cosine.numpy()
    return torch.from_numpy(ot.sinkhorn(*margins, cost, 1 / scale, numItermax=iterations, stopThr=stop, warn=False))


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 7), (7, 4), (1, 3)])
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
    for scale, iterations in ((14.3, 4), (5, 300)):
        theirs = float((pot(cosine, scale, iterations) * (1 - cosine)).sum())
        assert wasserstein(cosine, scale, iterations=iterations).item() == pytest.approx(theirs, rel=1e-10)


def test_rows_have_their_mass_and_columns_near_it() -> None:
    logits = 14.3 * cosines(5, 8)
    plans = [sinkhorn(logits, k).exp() for k in (0, 1, 5, 50)]
    close([plan.sum(1) for plan in plans], [even(5)] * 4)
    misses = [(plan.sum(0) - 1 / 8).abs().sum().item() for plan in plans]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 10 * misses[-1]
    close(plans[0].log(), logits.log_softmax(1) - math.log(5))  # no iteration is the softmax
    with pytest.raises(ValueError, match="iterations=-1 must be 0 or more"):
        sinkhorn(logits, -1)


def test_gradients_and_directions() -> None:
    cosine, scale = cosines(3, 4).requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, s: wasserstein(c, s, iterations=3), (cosine, scale))
    # both directions of the loss converge to the same
    values = LOSSES["transport"](8 * cosines(6, 6, seed=2), reduction="none", iterations=1000)
    close(values[:6], values[6:])


def test_wasserstein_tends_to_the_earth_movers_distance() -> None:
    cosine = cosines(6, 6, seed=6)
    exact = ot.emd2(even(6).numpy(), even(6).numpy(), 1 - cosine.numpy())
    for scale in (10.0, 50.0, 200.0):
        # the entropy of a plan of two even margins lies between ln 6 and 2 ln 6
        above = wasserstein(cosine, scale, iterations=1000).item() - exact
        assert 0 < above < math.log(6) / scale
    close(wasserstein(cosine, 5.0), wasserstein(cosine, 5.0, iterations=1000))  # so many as there are by default do
    close(wasserstein(cosine, 0.0), (1 - cosine).mean())  # without scale everything goes everywhere
    # equal clouds cost nothing, opposite ones 2
    for cosine, cost in ((torch.eye(3).double(), 0), (-torch.ones(3, 3).double(), 2)):
        assert wasserstein(cosine, 100.0).item() == pytest.approx(cost, rel=1e-12, abs=1e-12)
