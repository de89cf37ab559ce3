"""Gradient caching against one pass over the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniclip import create_model
from miniclip.config import LossConfig, ModelConfig
from miniclip.losses import sigmoid_loss, softmax_loss
from miniclip.losses.matrix import Embeddings, Positives, similarity_logits
from miniclip.losses.objective import GlobalBatch, global_loss
from miniclip.models import DualEncoder
from miniclip.training.gradcache import cached_backward

EVERY_LOSS = {
    "softmax": LossConfig(),
    "smoothing": LossConfig(smoothing=0.1),
    "sigmoid": LossConfig(name="sigmoid"),
    "focal": LossConfig(name="focal"),
    "focal-sigmoid": LossConfig(name="focal", focal_form="sigmoid"),
    "hinge": LossConfig(name="hinge"),
    "hinge-hardest": LossConfig(name="hinge", hardest=1.0),
    "decoupled": LossConfig(name="decoupled"),
    "soft": LossConfig(name="soft"),
    "transport": LossConfig(name="transport"),
}
every_loss = pytest.mark.parametrize("config", EVERY_LOSS.values(), ids=EVERY_LOSS)


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
    model = create_model(ModelConfig(**config)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        # at first all captions are nearly one, so that their gradients cancel, and with them float32's digits
        model.token_embedding.weight.mul_(50)
    return model


def batch(size: int = 10, side: int = 16, captions: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(size, 3, side, side, dtype=torch.float64, generator=generator)
    text = torch.randint(1, 48, (size * captions, 6), generator=generator)
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


def objective(config: LossConfig, size: int = 10, captions: int = 1) -> Callable[[Embeddings], Tensor]:
    """The loss as training takes it, of weighted pairs with duplicates among them."""
    generator = torch.Generator().manual_seed(2)
    image_id = torch.randint(0, 7, (size,), generator=generator)
    text_id = torch.randint(0, 8 * captions, (size, captions), generator=generator)
    known = GlobalBatch(Positives.of("identity", image_id, text_id), torch.rand(size, generator=generator))
    return lambda embeddings: global_loss(embeddings, known, config)


def in_chunks(
    model: nn.Module, image: Tensor, text: Tensor, loss_of: Callable[[Embeddings], Tensor], chunk: int
) -> tuple[Tensor, Embeddings]:
    """What cached_backward stands for: the chunks one after the other in one graph, in as much memory as it takes."""
    captions = len(text) // len(image)
    chunks = zip(image.split(chunk), text.split(chunk * captions), strict=True)
    found = [model(images, texts) for images, texts in chunks]
    joined = (torch.cat([getattr(e, name) for e in found]) for name in ("image", "text"))
    embeddings = Embeddings(*joined, found[0].scale, found[0].bias)
    loss = loss_of(embeddings)
    loss.backward()
    return loss.detach(), embeddings


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    """Relative to the norm of each parameter's gradient, or to a thousandth of the whole one's where that is more."""
    total = torch.stack([p.grad.norm() for p in theirs.parameters() if p.grad is not None]).norm()
    assert total > 0.01
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if not b.requires_grad:
            assert a.grad is None
            continue
        assert a.grad is not None, name
        assert b.grad is not None, name
        error = float((a.grad - b.grad).norm() / max(b.grad.norm(), 1e-3 * total))
        assert error <= tolerance, f"{name}: {error:.1e}"


dtypes = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])


@pytest.mark.parametrize("captions", [1, 3])
@every_loss
def test_every_loss(config: LossConfig, captions: int) -> None:
    """Exact for any chunk, with a short one at the end, and with several captions an image."""
    if config.name == "soft" and captions > 1:
        config = LossConfig(name="soft", soft_share=0.0)
    whole = tiny(logit_bias_init=-2.0 if config.pairwise else None)
    cached = copy.deepcopy(whole)
    image, text = batch(captions=captions)
    loss_of = objective(config, captions=captions)
    loss = loss_of(whole(image, text))
    loss.backward()
    value, embeddings = cached_backward(cached, image, text, loss_of, chunk=4)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    assert embeddings.text.shape == (10 * captions, 8)
    assert not any(t.requires_grad for t in embeddings if t is not None)
    assert_same_gradients(cached, whole, 1e-12)


def with_dropout(model: DualEncoder) -> DualEncoder:
    """In both towers, and drawing a mask of its own for each."""
    model.visual.ln_post = nn.Sequential(model.visual.ln_post, nn.Dropout(0.5))  # type: ignore[assignment]
    model.ln_final = nn.Sequential(model.ln_final, nn.Dropout(0.3))  # type: ignore[assignment]
    return model


@dtypes
@pytest.mark.parametrize("checkpointing", [False, True])
@every_loss
def test_random_state_is_replayed(
    config: LossConfig, checkpointing: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """With dropout, the second pass draws the first one's masks: the gradient is that of the loss that was returned."""
    bias = -2.0 if config.pairwise else None
    model = with_dropout(tiny(logit_bias_init=bias, activation_checkpointing=checkpointing)).to(dtype)
    plain = copy.deepcopy(model)
    image, text = batch()
    torch.manual_seed(3)
    value, embeddings = cached_backward(model, image.to(dtype), text, objective(config), chunk=4)
    ours_next = torch.rand(())
    torch.manual_seed(3)
    loss, expected = in_chunks(plain, image.to(dtype), text, objective(config), chunk=4)
    torch.testing.assert_close(value, loss, rtol=tolerance, atol=0)
    torch.testing.assert_close(embeddings.image, expected.image.detach(), rtol=0, atol=tolerance)
    torch.testing.assert_close(embeddings.text, expected.text.detach(), rtol=0, atol=tolerance)
    assert_same_gradients(model, plain, tolerance)
    # what is drawn next is drawn as if there had been one pass
    assert torch.equal(ours_next, torch.rand(()))


def test_dropout_masks_differ_from_chunk_to_chunk() -> None:
    model = with_dropout(tiny())
    image, text = batch()
    same = (image[:1].expand(10, -1, -1, -1), text[:1].expand(10, -1))
    _, embeddings = cached_backward(model, *same, softmax, chunk=1)
    assert len(embeddings.image.unique(dim=0)) == 10


class Autocast(nn.Module):
    """The model as a precision of bf16 runs it: every forward pass in an autocast of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(*inputs)


@pytest.mark.parametrize("checkpointing", [False, True])
@every_loss
def test_bf16(config: LossConfig, checkpointing: bool) -> None:
    """Each chunk rounds as it would by itself; nothing is rounded once more."""
    bias = -2.0 if config.pairwise else None
    model = Autocast(tiny(logit_bias_init=bias, activation_checkpointing=checkpointing).float())
    plain = copy.deepcopy(model)
    image, text = batch()
    value, embeddings = cached_backward(model, image.float(), text, objective(config), chunk=4)
    loss, _ = in_chunks(plain, image.float(), text, objective(config), chunk=4)
    assert embeddings.image.dtype == value.dtype == torch.float32
    torch.testing.assert_close(value, loss, rtol=1e-6, atol=0)
    assert_same_gradients(model, plain, 1e-6)
    exact = copy.deepcopy(plain.model).double()  # type: ignore[union-attr, operator]
    exact.zero_grad()
    objective(config)(exact(image, text)).backward()
    # and it is the gradient, to the digits that bf16 leaves; hinge may find another negative the hardest
    ours, theirs = (torch.cat([p.grad.flatten().double() for p in m.parameters()]) for m in (model, exact))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9


@pytest.mark.parametrize("frozen", ["eval", "norms"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_resnet_with_fixed_statistics(frozen: str, checkpointing: bool) -> None:
    """A picture's output then depends on that picture alone, so chunks are exact."""
    whole = tiny("resnet", activation_checkpointing=checkpointing)
    whole.visual(batch(8, 32)[0])  # statistics other than those of the start
    if frozen == "eval":
        whole.eval()
    else:
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    cached = copy.deepcopy(whole)
    image, text = batch(10, 32)
    loss_of = objective(LossConfig())
    loss = loss_of(whole(image, text))
    loss.backward()
    value, _ = cached_backward(cached, image, text, loss_of, chunk=3)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    assert_same_gradients(cached, whole, 1e-12)
    for (name, ours), theirs in zip(cached.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_resnet_in_training_is_the_chunks_in_one_graph() -> None:
    """Each chunk has its own statistics in both of its passes: not the whole batch's, but one function throughout."""
    cached = tiny("resnet")
    plain = copy.deepcopy(cached)
    image, text = batch(8, 32)
    value, _ = cached_backward(cached, image, text, softmax, chunk=4)
    loss, _ = in_chunks(plain, image, text, softmax, chunk=4)
    torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)
    assert_same_gradients(cached, plain, 1e-11)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batch_norm_statistics_move_once_a_chunk(checkpointing: bool) -> None:
    cached = tiny("resnet", activation_checkpointing=checkpointing)
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
