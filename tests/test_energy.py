"""The energy view: the identities that tie it to the softmax loss, and numbers by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from miniclip.losses import softmax_loss
from miniclip.losses.energy import energy, free_energy, log_partition

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)


def draw(n: int, m: int) -> torch.Tensor:
    return 3 * torch.randn(n, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_by_hand() -> None:
    logits = torch.tensor([[4.0, 1.0, 5.0], [2.0, 3.0, 1.0]], dtype=torch.float64).log()
    rows, columns = log_partition(logits)
    close(rows.exp(), torch.tensor([10.0, 6.0], dtype=torch.float64))
    close(columns.exp(), torch.tensor([6.0, 4.0, 6.0], dtype=torch.float64))
    images, texts = free_energy(logits)
    assert images.tolist() == pytest.approx([-math.log(10), -math.log(6)], rel=1e-12)
    assert texts.tolist() == pytest.approx([-math.log(6), -math.log(4), -math.log(6)], rel=1e-12)
    assert energy(logits)[0, 2].item() == pytest.approx(-math.log(5), rel=1e-12)


def test_softmax_is_energy_less_free_energy() -> None:
    logits = draw(6, 6)
    values = softmax_loss(logits, reduction="none")
    pairs = energy(logits).diagonal()
    images, texts = free_energy(logits)
    close(values[:6], pairs - images)
    close(values[6:], pairs - texts)
    close((-energy(logits) + images[:, None]).exp().sum(1), torch.ones(6, dtype=torch.float64))


def test_free_energy_is_the_soft_minimum() -> None:
    logits = draw(4, 7)
    for found, axis in zip(free_energy(logits), (1, 0), strict=True):
        lowest = energy(logits).amin(axis)
        assert (found <= lowest).all()
        assert (found >= lowest - math.log(logits.shape[axis])).all()
    # as the scale grows it is the minimum itself
    close(free_energy(1e4 * logits)[0] / 1e4, energy(logits).amin(1))


def test_gradient_of_the_partition_is_the_softmax() -> None:
    logits = draw(3, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(log_partition(logits)[0].sum(), logits)
    close(gradient, logits.softmax(1))
    assert torch.autograd.gradcheck(lambda x: torch.cat(free_energy(x)), (logits,))


@pytest.mark.parametrize("value", [1000.0, -1000.0])
def test_large_logits_do_not_overflow(value: float) -> None:
    rows, columns = log_partition(torch.full((3, 2), value))
    torch.testing.assert_close(rows, torch.full((3,), value + math.log(2)))
    torch.testing.assert_close(columns, torch.full((2,), value + math.log(3)))
