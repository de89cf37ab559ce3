"""A loss in tiles against the same loss over the whole matrix; test_matrix.py has every loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.losses import LOSSES, tiles
from miniclip.losses.tiles import tiled_loss

B, M, E = 7, 9, 5  # 7 is no multiple of 3: the last tile is a short one
POSITIVES = torch.eye(B, M, dtype=torch.bool)
POSITIVES[1, 4] = POSITIVES[1, 8] = POSITIVES[6, 0] = True
SOFTMAX = partial(LOSSES["softmax"].rows, smoothing=0.0)
SIGMOID = LOSSES["sigmoid"].rows
Rows = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(params=[1, 3, 100])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a tile."""
    monkeypatch.setattr(tiles, "TILE_ENTRIES", request.param * M)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 1)
    return int(request.param)


def inputs(dtype: torch.dtype = torch.float64, scale: float = 6.0) -> list[Tensor]:
    """queries, keys, scale, bias, weights; all but the weights want a gradient."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, E, generator=generator, dtype=torch.float64), dim=-1) for n in (B, M))
    weights = torch.rand(B, generator=generator, dtype=torch.float64)
    given = [t.to(dtype) for t in (queries, keys, torch.tensor(scale), torch.tensor(-1.5), weights)]
    return [t.requires_grad_() for t in given[:4]] + given[4:]


def of_tile(rows: Rows) -> Callable[[Tensor, slice], Tensor]:
    return lambda logits, part: rows(logits, POSITIVES[part])


def plain(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, weights: Tensor, rows: Rows) -> Tensor:
    return (weights * rows(scale * queries @ keys.T + (0 if bias is None else bias), POSITIVES)).sum()


@pytest.mark.parametrize("rows", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_value_and_gradients_are_the_matrix_ones(rows: Rows, size: int) -> None:
    given = inputs()
    ours, theirs = tiled_loss(*given, of_tile(rows)), plain(*given, rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    # the factor reaches the gradients that were computed on the way forward
    ours, theirs = (torch.autograd.grad(-2.5 * loss, given[:4]) for loss in (ours, theirs))
    # atol: the bias of softmax has no gradient but rounding
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)
    assert theirs[2].abs() > 0.1
    # gradients only where they are asked for
    queries, keys, scale, _, weights = inputs()
    given = [queries, keys.detach(), scale, None, weights]
    losses = tiled_loss(*given, of_tile(rows)), plain(*given, rows)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (queries, scale)) for loss in losses), rtol=1e-11, atol=0)


def test_every_row_is_seen_once_in_tiles_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[int, int]]()

    def one(logits: Tensor, part: slice) -> Tensor:
        assert logits.shape == (part.stop - part.start, M)
        seen.append((part.start, part.stop))
        return logits.sum(1)

    monkeypatch.setattr(tiles, "LEAST_ROWS", 2)
    for entries in (4 * M + 1, 1):
        monkeypatch.setattr(tiles, "TILE_ENTRIES", entries)
        tiled_loss(*inputs(), one)
    assert seen == [(0, 4), (4, 7), (0, 2), (2, 4), (4, 6), (6, 7)]


def test_without_gradient_nothing_is_differentiated(size: int) -> None:
    def no_graph(logits: Tensor, part: slice) -> Tensor:
        assert not torch.is_grad_enabled()
        return SOFTMAX(logits, POSITIVES[part])

    with torch.no_grad():
        values = [tiled_loss(*inputs(), no_graph)]
    values.append(tiled_loss(*(t.detach() for t in inputs()), no_graph))
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(values, [plain(*inputs(), SOFTMAX).detach()] * 2, rtol=1e-13, atol=0)


def test_low_precision_inputs_are_computed_in_float32(size: int) -> None:
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)):
        given = inputs(dtype, scale=100.0)
        lifted = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
        theirs = plain(*lifted, SOFTMAX)
        expected = torch.autograd.grad(theirs, lifted[:3])
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                ours = tiled_loss(*given, of_tile(SOFTMAX))
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=0)
            found = torch.autograd.grad(ours, given[:3])
            assert {gradient.dtype for gradient in found} == {dtype}  # the only rounding to it is the last one
            torch.testing.assert_close([g.double() for g in found], list(expected), rtol=error, atol=3e-6)


def test_there_is_no_second_derivative() -> None:
    """It is refused, rather than left out of a sum in silence."""
    given = inputs()
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient,) = torch.autograd.grad(tiled_loss(*given, of_tile(SOFTMAX)), given[0], create_graph=True)
        (gradient.square().sum() + given[0].sum()).backward()


def test_backward_twice_gives_the_gradient_twice() -> None:
    given = inputs()
    loss = tiled_loss(*given, of_tile(SOFTMAX))
    once = torch.autograd.grad(loss, given[:4], retain_graph=True)
    for _ in range(2):
        loss.backward(retain_graph=True)
    torch.testing.assert_close([t.grad for t in given[:4]], [2 * gradient for gradient in once])
    # nor have the inputs been written to
    torch.testing.assert_close(given, inputs(), rtol=0, atol=0)
