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
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss, similarity_logits
from miniclip.models import DualEncoder
from miniclip.training.gradcache import cached_backward

EVERY_LOSS = [
    LossConfig(),
    LossConfig(smoothing=0.1),
    LossConfig(name="sigmoid"),
    LossConfig(name="focal"),
    LossConfig(name="focal", focal_form="sigmoid"),
    LossConfig(name="hinge"),
    LossConfig(name="hinge", hardest=1.0),
    LossConfig(name="decoupled"),
    LossConfig(name="soft"),
    LossConfig(name="transport"),
]


def tiny(image_encoder: str = "vit", **overrides: object) -> DualEncoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "text_width": 16, "text_heads": 2, "text_layers": 2}
    vit = {"image_layers": 2, "patch_size": 8, "image_width": 16, "image_heads": 2, "image_size": 16}
    resnet = {"image_layers": (1, 1, 1, 1), "image_width": 8, "image_heads": 4, "image_size": 32}
    sizes |= (vit if image_encoder == "vit" else resnet) | overrides
    config = ModelConfig(embed_dim=8, image_encoder=image_encoder, context_length=8, **sizes)  # type: ignore[arg-type]
    model = create_model(config).double()
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
    return LOSSES["softmax"](e.scale * e.image @ e.text.T)


def sigmoid(e: Any) -> torch.Tensor:
    return LOSSES["sigmoid"](e.scale * e.image @ e.text.T + e.bias)


def passes(
    model: nn.Module, image: Tensor, text: Tensor, loss_of: Callable[[Embeddings], Tensor], chunk: int
) -> tuple[nn.Module, Tensor, Embeddings, Tensor]:
    """A copy of the model after cached_backward, what that returned, and the next random number."""
    cached = copy.deepcopy(model)
    torch.manual_seed(3)
    value, embeddings = cached_backward(cached, image, text, loss_of, chunk=chunk)
    return cached, value, embeddings, torch.rand(())


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
        assert a.grad is not None and b.grad is not None, name
        error = float((a.grad - b.grad).norm() / max(b.grad.norm(), 1e-3 * total))
        assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("loss_of", [softmax, sigmoid])
def test_gradients_equal_one_pass(loss_of: Callable[[Embeddings], Tensor]) -> None:
    """Any chunk, with a short one at the end, or longer than the batch."""
    whole = tiny(logit_bias_init=-2.0 if loss_of is sigmoid else None)
    fresh, (image, text) = copy.deepcopy(whole), batch()
    loss = loss_of(e := whole(image, text))
    loss.backward()
    # the function that training uses says the same in float32
    name = "softmax" if loss_of is softmax else "sigmoid"
    assert torch.allclose(LOSSES[name](similarity_logits(*e)).double(), loss, atol=1e-6)
    for chunk in (1, 3, 5, 10, 64):
        cached, value, embeddings, _ = passes(fresh, image, text, loss_of, chunk)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        assert embeddings.image.shape == embeddings.text.shape == (10, 8)
        assert not any(t.requires_grad for t in embeddings if t is not None)
        assert_same_gradients(cached, whole, 1e-12)
    assert whole.logit_scale.grad is not None
    assert whole.logit_scale.grad.abs() > 1e-3  # a gradient that could be wrong


def test_every_loss() -> None:
    """As training takes it, of weighted pairs with duplicates and several captions an image; in bf16, too."""
    image, text = batch(captions=3)
    for config in EVERY_LOSS:
        captions = 1 if config.name == "soft" else 3
        whole, texts = tiny(logit_bias_init=-2.0 if config.pairwise else None), text[: 10 * captions]
        fresh, loss_of = copy.deepcopy(whole), objective(config, captions=captions)
        loss = loss_of(whole(image, texts))
        loss.backward()
        cached, value, embeddings, _ = passes(fresh, image, texts, loss_of, 4)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        assert embeddings.text.shape == (10 * captions, 8)
        assert_same_gradients(cached, whole, 1e-12)

        half = Autocast(fresh.float())
        cached, value, embeddings, _ = passes(half, image.float(), texts, loss_of, 4)
        assert embeddings.image.dtype == value.dtype == torch.float32
        loss, _ = in_chunks(half, image.float(), texts, loss_of, 4)
        # each chunk rounds as it would by itself; nothing is rounded once more
        torch.testing.assert_close(value, loss, rtol=1e-6, atol=0)
        assert_same_gradients(cached, half, 1e-6)
        # and it is the gradient, to the digits that bf16 leaves; hinge may find another negative the hardest
        ours, theirs = (torch.cat([p.grad.flatten().double() for p in m.parameters()]) for m in (cached, whole))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9


def with_dropout(model: DualEncoder) -> DualEncoder:
    """In both towers, and drawing a mask of its own for each."""
    model.visual.ln_post = nn.Sequential(model.visual.ln_post, nn.Dropout(0.5))  # type: ignore[assignment]
    model.ln_final = nn.Sequential(model.ln_final, nn.Dropout(0.3))  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_random_state_is_replayed(checkpointing: bool) -> None:
    """With dropout, the second pass draws the first one's masks: the gradient is that of the loss that was returned."""
    model, (image, text) = with_dropout(tiny(activation_checkpointing=checkpointing)), batch()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        plain, pixels, loss_of = copy.deepcopy(model).to(dtype), image.to(dtype), objective(LossConfig())
        cached, value, embeddings, next_draw = passes(plain, pixels, text, loss_of, 4)
        torch.manual_seed(3)
        loss, expected = in_chunks(plain, pixels, text, loss_of, 4)
        torch.testing.assert_close(value, loss, rtol=tolerance, atol=0)
        torch.testing.assert_close(embeddings.image, expected.image.detach(), rtol=0, atol=tolerance)
        torch.testing.assert_close(embeddings.text, expected.text.detach(), rtol=0, atol=tolerance)
        assert_same_gradients(cached, plain, tolerance)
        # what is drawn next is drawn as if there had been one pass
        assert torch.equal(next_draw, torch.rand(()))
    same = (image[:1].expand(10, -1, -1, -1), text[:1].expand(10, -1))
    _, _, embeddings, _ = passes(model, *same, softmax, 1)
    assert len(embeddings.image.unique(dim=0)) == 10  # masks differ from chunk to chunk


class Autocast(nn.Module):
    """The model as a precision of bf16 runs it: every forward pass in an autocast of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(*inputs)


@pytest.mark.parametrize(("frozen", "checkpointing"), [("eval", False), ("norms", True)])
def test_resnet_with_fixed_statistics(frozen: str, checkpointing: bool) -> None:
    """An image's output then depends on that image alone, so chunks are exact."""
    whole = tiny("resnet", activation_checkpointing=checkpointing)
    whole.visual(batch(8, 32)[0])  # statistics other than those of the start
    if frozen == "eval":
        whole.eval()
    else:
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    fresh, (image, text), loss_of = copy.deepcopy(whole), batch(10, 32), objective(LossConfig())
    loss = loss_of(whole(image, text))
    loss.backward()
    cached, value, _, _ = passes(fresh, image, text, loss_of, 3)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    assert_same_gradients(cached, whole, 1e-12)
    for (name, ours), theirs in zip(cached.named_buffers(), whole.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_resnet_in_training_is_the_chunks_in_one_graph(checkpointing: bool) -> None:
    """Each chunk has its own statistics in both of its passes, one function throughout; they move once a chunk."""
    plain, (image, text) = tiny("resnet", activation_checkpointing=checkpointing), batch(8, 32)
    cached, value, _, _ = passes(plain, image, text, softmax, 4)
    moved = copy.deepcopy(plain)
    loss, _ = in_chunks(plain, image, text, softmax, chunk=4)
    torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)
    assert_same_gradients(cached, plain, 1e-11)
    with torch.no_grad():
        for part in image.split(4):
            moved.visual(part)
    for (name, ours), theirs in zip(cached.named_buffers(), moved.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    bn1: Any = cached.visual.bn1  # type: ignore[union-attr]
    assert int(bn1.num_batches_tracked) == 2 and bn1.momentum == 0.1
