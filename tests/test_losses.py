"""Losses against open_clip, torch's own primitives and numbers worked by hand."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from miniclip.losses import LOSSES, sigmoid_loss, softmax_loss
from miniclip.matrix import positives_of, similarity_logits


def embeddings(n: int = 7, e: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [F.normalize(torch.randn(n, e, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)]
    return draw[0].float(), draw[1].float()


def test_softmax_equals_open_clip() -> None:
    image, text = embeddings()
    scale = torch.tensor(14.3)
    theirs = ClipLoss()(image, text, scale)
    torch.testing.assert_close(softmax_loss(similarity_logits(image, text, scale)), theirs, rtol=1e-6, atol=0)


def test_sigmoid_equals_open_clip() -> None:
    image, text = embeddings()
    scale, bias = torch.tensor(10.0), torch.tensor(-7.5)
    theirs = SigLipLoss()(image, text, scale, bias)
    torch.testing.assert_close(sigmoid_loss(similarity_logits(image, text, scale, bias)), theirs, rtol=1e-5, atol=0)


def test_softmax_by_hand() -> None:
    # Rows: e/(e+1) and 1/2; columns: e/(e+1) and 1/2.
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    expected = (-math.log(math.e / (math.e + 1)) + math.log(2)) / 2
    assert softmax_loss(logits).item() == pytest.approx(expected, rel=1e-6)
    # Not symmetric: rows give ln(1+1/e) and ln 2, columns ln 2 and ln(1+1/e) ... with an entry moved.
    logits = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    rows = (math.log(1 + math.exp(3)) + math.log(2)) / 2
    columns = (math.log(2) + math.log(1 + math.exp(3))) / 2
    assert softmax_loss(logits).item() == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_sigmoid_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    expected = sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, -3.0)) / 2
    assert sigmoid_loss(logits).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_uniform_logits_give_ln_n(smoothing: float) -> None:
    assert softmax_loss(torch.zeros(256, 256), smoothing=smoothing).item() == pytest.approx(math.log(256), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_diagonal_positives_change_nothing(smoothing: float) -> None:
    logits = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    explicit = softmax_loss(logits, torch.eye(6, dtype=torch.bool), smoothing)
    torch.testing.assert_close(softmax_loss(logits, smoothing=smoothing), explicit, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigmoid_loss(logits), sigmoid_loss(logits, torch.eye(6, dtype=torch.bool)))


def test_duplicates_share_the_target() -> None:
    """Rows 0 and 1 are one picture, and the towers are perfect: the loss is the targets' own entropy, ln 2."""
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    logits = torch.where(positives, 100.0, 0.0)
    assert softmax_loss(logits, positives).item() == pytest.approx(2 / 3 * math.log(2), rel=1e-5)
    # Taken for negatives, they cost the same but the gradient pushes them apart.
    logits.requires_grad_()
    softmax_loss(logits, positives).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_rectangular_softmax() -> None:
    """Two images with two captions each, against the definition written out."""
    logits = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    positives = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    rows = -sum(logits[i].log_softmax(0)[j] / 2 for i in range(2) for j in range(4) if positives[i, j]) / 2
    columns = -sum(logits[:, j].log_softmax(0)[j // 2] for j in range(4)) / 4
    torch.testing.assert_close(softmax_loss(logits, positives), (rows + columns) / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 2] = positives[2, 0] = True
    assert torch.autograd.gradcheck(LOSSES[name], (logits,))
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, positives), (logits,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [100.0, -100.0])
def test_extreme_logits_are_finite_and_transposable(name: str, sign: float) -> None:
    logits = (sign * torch.eye(5)).requires_grad_()
    loss = LOSSES[name](logits)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(LOSSES[name](logits.T), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_errors(name: str) -> None:
    with pytest.raises(ValueError, match="no diagonal"):
        LOSSES[name](torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one shape"):
        LOSSES[name](torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool))
    positives = torch.tensor([[1, 1], [0, 0]], dtype=torch.bool)
    with pytest.raises(ValueError, match="row 1 of positives"):
        LOSSES[name](torch.zeros(2, 2), positives)
    with pytest.raises(ValueError, match="column 1 of positives"):
        LOSSES[name](torch.zeros(2, 2), positives.T.contiguous())


def test_positives_of() -> None:
    image_ids, text_ids = torch.tensor([4, 7, 4, 9]), torch.tensor([1, 2, 3, 2])
    found = positives_of(image_ids, text_ids)
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    assert found is not None
    assert torch.equal(found, expected)
    assert positives_of(torch.arange(4), torch.arange(4)) is None


def test_matrix_is_float32_under_autocast() -> None:
    image, text = embeddings(16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = similarity_logits(image, text, torch.tensor(100.0))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * image @ text.T, rtol=0, atol=1e-4)
