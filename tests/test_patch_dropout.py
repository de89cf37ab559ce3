"""Patch dropout: which tokens are left, against a hand check and open_clip's module; exact under gradient caching."""

from __future__ import annotations

from typing import Any

import open_clip.transformer
import pytest
import torch

from miniclip.config import ModelConfig
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings
from miniclip.models import DualEncoder, create_model, resolve
from miniclip.models.vit import VisionTransformer, kept_patches
from miniclip.training.gradcache import cached_backward


def tower(dropout: float = 0.5) -> VisionTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 12, "patch_size": 4, "image_width": 16, "image_layers": 2, "image_heads": 2}
    visual = VisionTransformer(resolve(ModelConfig("tiny-vit", embed_dim=8, **sizes))).double()
    visual.patch_dropout = dropout
    return visual


def tiny(checkpointing: bool = False) -> DualEncoder:
    torch.manual_seed(0)
    image = {"image_size": 32, "image_layers": 2, "image_width": 24}
    text = {"text_layers": 1, "text_width": 16, "text_heads": 2, "vocab_size": 60}
    config = ModelConfig("tiny-vit", activation_checkpointing=checkpointing, **image, **text)  # type: ignore[arg-type]
    model = create_model(config).double()
    model.visual.patch_dropout = 0.6
    return model


IMAGE = torch.randn(5, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_number_kept_is_rounded_up() -> None:
    # 0.3 of 10 patches and 0.1 of 10 are whole numbers, though not in binary
    cases = [(9, 0.5, 5), (196, 0.5, 98), (49, 0.5, 25), (10, 0.7, 3), (10, 0.9, 1), (100, 0.29, 71), (4, 0.99, 1)]
    for patches, dropout, kept in [*cases, (9, 0, 9)]:
        assert kept_patches(patches, dropout) == kept


def test_embedding_of_the_kept_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this draw, patches 1, 3, 4, 6, 8 of the first picture and 0, 1, 2, 3, 4 of the second are left."""
    draw = torch.tensor([[0, 9, 1, 8, 7, 2, 6, 3, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1.0]])
    monkeypatch.setattr(torch, "rand", lambda *shape, device: draw)
    visual = tower()
    found = visual(IMAGE[:2])
    for row, patches in enumerate([[1, 3, 4, 6, 8], [0, 1, 2, 3, 4]]):
        x = visual.conv1(IMAGE[row : row + 1]).flatten(2).transpose(1, 2)[0]
        tokens = [visual.class_embedding + visual.positional_embedding[0]]
        tokens += [x[p] + visual.positional_embedding[1 + p] for p in patches]
        x = visual.ln_pre(torch.stack(tokens)[None])
        expected = visual.ln_post(visual.transformer(x, at=torch.zeros(1, dtype=torch.long))) @ visual.proj
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-10, atol=1e-12)


def test_selection_equals_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 patches both keep 4. open_clip draws normal numbers; here it draws as we do."""
    x = torch.randn(6, 9, 3)
    visual = tower(0.5)
    torch.manual_seed(7)
    ours = visual._without_some(x)
    torch.manual_seed(7)
    monkeypatch.setattr(torch, "randn", torch.rand)
    assert torch.equal(ours, open_clip.transformer.PatchDropout(0.5)(x))


def test_pictures_draw_for_themselves_and_all_patches_alike() -> None:
    visual = tower(0.5)
    torch.manual_seed(3)
    number = torch.arange(10.0).expand(4000, 10)[..., None]
    kept = visual._without_some(number)[..., 0]
    assert torch.equal(kept[:, 0], torch.zeros(4000))
    assert all(len(set(row)) == 6 for row in kept.tolist())
    counts = torch.bincount(kept[:, 1:].flatten().long(), minlength=10)[1:]
    # 5 of 9: mean 2222, standard deviation 31
    assert int((counts - 4000 * 5 / 9).abs().max()) < 4 * 31.5
    # of the 126 choices of 5 out of 9, nearly each comes up in 4000
    assert len({tuple(sorted(row)) for row in kept.tolist()}) > 120


def test_evaluation_and_zero_leave_all_and_draw_nothing() -> None:
    whole, dropping = tower(0.0), tower(0.5)
    before = torch.get_rng_state()
    expected = whole(IMAGE)
    assert torch.equal(dropping.eval()(IMAGE), expected)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = dropping.train()(IMAGE), dropping(IMAGE)
    assert not torch.allclose(first, expected) and not torch.allclose(second, first)
    torch.set_rng_state(before)
    assert torch.equal(dropping(IMAGE), first)  # the same seed, the same patches


@pytest.mark.parametrize("checkpointing", [False, True])
def test_cached_gradient_is_that_of_the_loss_it_reports(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes over a chunk leave out the same patches: the whole batch at once, with the chunks' draws, agrees."""

    def softmax(e: Embeddings) -> torch.Tensor:
        return LOSSES["softmax"](e.scale * e.image @ e.text.T)

    generator = torch.Generator().manual_seed(1)
    image = torch.randn(10, 3, 32, 32, dtype=torch.float64, generator=generator)
    text = torch.randint(1, 58, (10, 6), generator=generator)
    text[:, -1] = 59
    cached, whole = tiny(checkpointing), tiny()
    torch.manual_seed(5)
    loss, embeddings = cached_backward(cached, image, text, softmax, chunk=4)
    torch.manual_seed(5)
    draw = torch.cat([torch.rand(rows, 16) for rows in (4, 4, 2)])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device: draw)
        expected = softmax(whole(image, text))
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert embeddings.image.shape == (10, 256)
    for (name, ours), theirs in zip(cached.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
