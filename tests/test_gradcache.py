"""Gradient caching against one pass over the whole batch."""

import copy

import pytest
import torch

from miniclip import create_model
from miniclip.config import ModelConfig
from miniclip.gradcache import cached_backward
from miniclip.losses import sigmoid_loss, softmax_loss
from miniclip.matrix import similarity_logits
from miniclip.models import DualEncoder, Embeddings


def tiny(image_encoder: str = "vit", **overrides: object) -> DualEncoder:
    torch.manual_seed(0)
    vit = {"image_layers": 2, "patch_size": 8, "image_width": 16, "image_heads": 2, "image_size": 16}
    resnet = {"image_layers": (1, 1, 1, 1), "image_width": 8, "image_heads": 4, "image_size": 32}
    config = {
        "embed_dim": 8,
        "image_encoder": image_encoder,
        "context_length": 8,
        "vocab_size": 50,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 2,
        **(vit if image_encoder == "vit" else resnet),
        **overrides,
    }
    return create_model(ModelConfig(**config)).double()  # type: ignore[arg-type]


def batch(size: int = 10, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(size, 3, side, side, dtype=torch.float64, generator=generator)
    text = torch.randint(1, 48, (size, 6), generator=generator)
    text[:, -1] = 49
    return image, text


def softmax(e: Embeddings) -> torch.Tensor:
    # In float64, where an error of the method cannot hide behind rounding.
    return softmax_loss(e.scale * e.image @ e.text.T)


def sigmoid(e: Embeddings) -> torch.Tensor:
    assert e.bias is not None
    return sigmoid_loss(e.scale * e.image @ e.text.T + e.bias)


@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("loss_of", [softmax, sigmoid])
def test_gradients_equal_one_pass(chunk: int, loss_of) -> None:  # type: ignore[no-untyped-def]
    whole = tiny(logit_bias_init=-2.0 if loss_of is sigmoid else None)
    cached = copy.deepcopy(whole)
    image, text = batch()
    loss = loss_of(whole(image, text))
    loss.backward()
    value, embeddings = cached_backward(cached, image, text, loss_of, chunk=chunk)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    assert embeddings.image.shape == (10, 8)
    for (name, ours), theirs in zip(cached.named_parameters(), whole.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    assert whole.logit_scale.grad is not None
    assert whole.logit_scale.grad.abs() > 1e-3  # a gradient that could be wrong


def test_random_state_is_replayed() -> None:
    """With dropout, the second pass draws the first one's masks: the gradient is that of the loss that was returned."""
    model = tiny()
    model.visual.ln_post = torch.nn.Sequential(model.visual.ln_post, torch.nn.Dropout(0.5))  # type: ignore[assignment]
    image, text = batch()
    torch.manual_seed(3)
    value, first = cached_backward(model, image, text, softmax, chunk=4)
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.manual_seed(3)
    parts = [model(i, t) for i, t in zip(image.split(4), text.split(4), strict=True)]
    whole = Embeddings(
        torch.cat([p.image for p in parts]), torch.cat([p.text for p in parts]), parts[0].scale, parts[0].bias
    )
    torch.testing.assert_close(first.image, whole.image.detach())
    loss = softmax(whole)
    loss.backward()
    torch.testing.assert_close(value, loss.detach())
    for ours, theirs in zip(gradient, (p.grad for p in model.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_batch_norm_statistics_move_once_a_chunk() -> None:
    cached = tiny("resnet")
    plain = copy.deepcopy(cached)
    image, text = batch(8, 32)
    cached_backward(cached, image, text, softmax, chunk=4)
    with torch.no_grad():
        for part in image.split(4):
            plain.visual(part)
    for (name, ours), theirs in zip(cached.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert int(cached.visual.bn1.num_batches_tracked) == 2  # type: ignore[union-attr,arg-type]
    assert cached.visual.bn1.momentum == 0.1  # type: ignore[union-attr]


def test_float32_matrix_agrees() -> None:
    """The function that training uses, not its float64 twin above."""
    model, (image, text) = tiny(), batch()
    e = model(image, text)
    assert torch.allclose(softmax_loss(similarity_logits(*e)).double(), softmax(e), atol=1e-6)
