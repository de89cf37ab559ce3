"""The energy view: the identities that tie it to the softmax loss, and numbers by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from miniclip.losses import LOSSES
from miniclip.losses.energy import free_energy

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)


def test_by_hand_and_of_large_logits() -> None:
    images, texts = free_energy(torch.tensor([[4.0, 1.0, 5.0], [2.0, 3.0, 1.0]], dtype=torch.float64).log())
    assert images.tolist() == pytest.approx([-math.log(10), -math.log(6)], rel=1e-12)
    assert texts.tolist() == pytest.approx([-math.log(6), -math.log(4), -math.log(6)], rel=1e-12)
    for value in (1000.0, -1000.0):
        images, texts = free_energy(torch.full((3, 2), value))
        torch.testing.assert_close(images, torch.full((3,), -value - math.log(2)))
        torch.testing.assert_close(texts, torch.full((2,), -value - math.log(3)))


def test_softmax_is_energy_less_free_energy() -> None:
    logits = 3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    images, texts = free_energy(logits)
    values = LOSSES["softmax"](logits, reduction="none")
    close(values, torch.cat([-logits.diagonal() - images, -logits.diagonal() - texts]))
    close(torch.autograd.grad(images.sum(), logits)[0], -logits.softmax(1))
    # a soft minimum of the energies: the minimum itself as the scale grows
    for found, axis in ((images, 1), (texts, 0)):
        above = (-logits).amin(axis) - found
        assert above.min() >= 0 and above.max() <= math.log(6)
    close(free_energy(1e4 * logits)[0] / 1e4, (-logits).amin(1))
