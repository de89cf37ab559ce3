"""A loss in tiles against the same loss over the whole matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.losses import tiles
from miniclip.losses.rows import decoupled_rows, focal_rows, hinge_rows, sigmoid_rows, softmax_rows
from miniclip.losses.tiles import tiled_loss

B, M, E = 7, 9, 5  # 7 is no multiple of 3: the last tile is a short one
ROWS = [softmax_rows, sigmoid_rows, focal_rows, hinge_rows, decoupled_rows]


def inputs(dtype: torch.dtype = torch.float64, scale: float = 6.0) -> list[Tensor]:
    """queries, keys, scale, bias, weights; all but the weights want a gradient."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, E, generator=generator, dtype=torch.float64), dim=-1) for n in (B, M))
    weights = torch.rand(B, generator=generator, dtype=torch.float64)
    given = [queries, keys, torch.tensor(scale), torch.tensor(-1.5), weights]
    given = [t.to(dtype) for t in given]
    return [t.requires_grad_() for t in given[:4]] + given[4:]


def positives() -> Tensor:
    mask = torch.eye(B, M, dtype=torch.bool)
    mask[1, 4] = mask[1, 8] = mask[6, 0] = True
    return mask


def of_tile(rows: Callable[..., Tensor]) -> Callable[[Tensor, slice], Tensor]:
    return lambda logits, part: rows(logits, positives()[part])


def plain(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, weights: Tensor, rows: Any) -> Tensor:
    logits = scale * queries @ keys.T + (0 if bias is None else bias)
    return (weights * rows(logits, positives())).sum()


@pytest.mark.parametrize("size", [1, 3, None])
@pytest.mark.parametrize("rows", ROWS)
def test_value_and_gradients_are_the_matrix_ones(rows: Any, size: int | None) -> None:
    given = inputs()
    ours = tiled_loss(*given, of_tile(rows), tile_rows=size)
    theirs = plain(*given, rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    # the factor reaches the gradients that were computed on the way forward
    ours, theirs = (torch.autograd.grad(-2.5 * loss, given[:4]) for loss in (ours, theirs))
    for name, a, b in zip(("queries", "keys", "scale", "bias"), ours, theirs, strict=True):
        # the bias of softmax has no gradient but rounding
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14, msg=f"{name}: {a} {b}")
    assert theirs[2].abs() > 0.1


def test_without_bias_or_with_fixed_inputs() -> None:
    """Gradients only where they are asked for."""
    queries, keys, scale, _, weights = inputs()
    ours = tiled_loss(queries, keys.detach(), scale, None, weights, of_tile(softmax_rows), tile_rows=2)
    theirs = plain(queries, keys.detach(), scale, None, weights, softmax_rows)
    for a, b in zip(*(torch.autograd.grad(loss, (queries, scale)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=0)


@pytest.mark.parametrize("size", [2, None])
def test_gradcheck(size: int | None) -> None:
    *given, weights = inputs()
    assert torch.autograd.gradcheck(lambda *t: tiled_loss(*t, weights, of_tile(sigmoid_rows), tile_rows=size), given)


def test_every_row_is_seen_once_in_order() -> None:
    seen: list[slice] = []

    def one(logits: Tensor, part: slice) -> Tensor:
        seen.append(part)
        assert logits.shape == (part.stop - part.start, M)
        return logits.sum(1)

    tiled_loss(*inputs(), one, tile_rows=3)
    assert [(part.start, part.stop) for part in seen] == [(0, 3), (3, 6), (6, 7)]


def test_tiles_hold_a_bounded_number_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    def one(logits: Tensor, part: slice) -> Tensor:
        shapes.append(logits.shape)
        return logits.sum(1)

    monkeypatch.setattr(tiles, "TILE_ENTRIES", 4 * M + 1)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 2)
    tiled_loss(*inputs(), one)
    assert shapes == [(4, M), (3, M)]
    shapes.clear()
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 1)
    tiled_loss(*inputs(), one)
    assert shapes == [(2, M), (2, M), (2, M), (1, M)]


def no_graph(logits: Tensor, part: slice) -> Tensor:
    assert not torch.is_grad_enabled()
    return softmax_rows(logits, positives()[part])


def test_without_gradient_nothing_is_differentiated() -> None:
    given = [t.detach() for t in inputs()]
    value = tiled_loss(*given, no_graph, tile_rows=3)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain(*given, softmax_rows), rtol=1e-13, atol=0)


def test_no_grad() -> None:
    with torch.no_grad():
        value = tiled_loss(*inputs(), of_tile(softmax_rows), tile_rows=3)
        expected = plain(*inputs(), softmax_rows)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)


def test_no_grad_does_no_more_work_than_the_value() -> None:
    with torch.no_grad():
        tiled_loss(*inputs(), no_graph, tile_rows=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_inputs_are_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    given = inputs(dtype, scale=100.0)
    lifted = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = tiled_loss(*given, of_tile(softmax_rows), tile_rows=3)
    theirs = plain(*lifted, softmax_rows)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=0)
    ours, theirs = torch.autograd.grad(ours, given[:3]), torch.autograd.grad(theirs, lifted[:3])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype  # the only rounding to it is the last one
        error = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        torch.testing.assert_close(a.double(), b, rtol=error, atol=3e-6)


def test_there_is_no_second_derivative() -> None:
    """It is refused, rather than left out of a sum in silence."""
    given = inputs()
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient,) = torch.autograd.grad(
            tiled_loss(*given, of_tile(softmax_rows), tile_rows=3), given[0], create_graph=True
        )
        (gradient.square().sum() + given[0].sum()).backward()


def test_backward_twice_gives_the_gradient_twice() -> None:
    given = inputs()
    loss = tiled_loss(*given, of_tile(softmax_rows), tile_rows=3)
    loss.backward(retain_graph=True)
    first = [t.grad.clone() for t in given[:4] if t.grad is not None]
    loss.backward()
    for tensor, gradient in zip(given[:4], first, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)
    # nor have the inputs been written to
    for a, b in zip(given, inputs(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
