"""The captions' own matrix beside the one of images and texts."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn import functional as F

from miniclip.config import LossConfig
from miniclip.losses import tiles
from miniclip.losses.captions import captions_loss, training_chance, training_loss
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, chance_loss, global_loss

N, K, E, SCALE = 7, 3, 5, 6.0
# images 0 and 3 are one; images 1 and 5 share a caption
IMAGE = torch.tensor([4, 1, 2, 4, 6, 8, 9])
TEXT = torch.arange(N * K).view(N, K).clone()
TEXT[5, 2] = TEXT[1, 0]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that end between the captions of an image, the last of them a short one."""
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 4 * N * K)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 4)


def embeddings() -> Embeddings:
    generator = torch.Generator().manual_seed(3)
    rows = (torch.randn(n, E, generator=generator, dtype=torch.float64) for n in (N, N * K))
    image, text = (F.normalize(each, dim=1).requires_grad_() for each in rows)
    return Embeddings(image, text, torch.tensor(SCALE, dtype=torch.float64, requires_grad=True), None)


def batch(kind: str, weight: Tensor | None = None) -> GlobalBatch:
    return GlobalBatch(Positives.of(kind, IMAGE, TEXT), weight)


def test_is_supervised_contrastive_learning_with_images_as_labels() -> None:
    e = embeddings()
    text = e.text.detach().requires_grad_()  # which theirs brings to unit length itself
    ours = captions_loss(e._replace(text=F.normalize(text, dim=1)), batch("diagonal"), LossConfig())
    theirs = SupConLoss(temperature=1 / SCALE)(text, torch.arange(N).repeat_interleave(K))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    a, b = (torch.autograd.grad(loss, text)[0] for loss in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["diagonal", "text", "identity"])
def test_entry_by_entry(kind: str) -> None:
    """With duplicates, weights and smoothing; values and the gradients of texts and scale."""
    e, weight = embeddings(), torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 1.0], dtype=torch.float64)
    of = batch(kind).positives.of_images(slice(None)).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(N * K):
        others = [j for j in range(N * K) if j != i]
        log_p = (e.scale * torch.stack([e.text[i] @ e.text[j] for j in others])).log_softmax(0)
        mates = [place for place, j in enumerate(others) if of[i // K][j]]
        assert len(mates) >= K - 1
        value = -0.8 * log_p[mates].mean() - 0.2 * log_p.mean()
        total = total + weight[i // K] / weight.sum() / K * value
    ours = captions_loss(e, batch(kind, weight), LossConfig(smoothing=0.2))
    torch.testing.assert_close(ours, total, rtol=1e-12, atol=0)
    a, b = (torch.autograd.grad(loss, [e.text, e.scale]) for loss in (ours, total))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    # the same caption under two images is one of both; copies of an image share all of theirs
    assert sum(map(sum, of)) == N * K + {"diagonal": 0, "text": 2, "identity": 2 + 2 * K}[kind]


def test_is_added_to_the_loss_of_images_and_texts() -> None:
    e, known = embeddings(), batch("identity")
    for name in ("softmax", "sigmoid", "hinge"):
        plain, both = LossConfig(name=name), LossConfig(name=name, text_to_text=0.25)
        expected = global_loss(e, known, plain) + 0.25 * captions_loss(e, known, plain)
        torch.testing.assert_close(training_loss(e, known, both), expected, rtol=1e-14, atol=0)
        assert torch.equal(training_loss(e, known, plain), global_loss(e, known, plain))
    off = batch("identity", torch.zeros(N))
    assert training_loss(e, off, LossConfig(text_to_text=1.0)).item() == 0


def test_chance_is_the_loss_of_equal_embeddings() -> None:
    equal = F.normalize(torch.ones(N, E, dtype=torch.float64), dim=-1)
    e = Embeddings(equal, equal.repeat(K, 1), torch.tensor(SCALE, dtype=torch.float64), None)
    for smoothing in (0.0, 0.1):
        config = LossConfig(text_to_text=0.5, smoothing=smoothing)
        found = float(training_loss(e, batch("diagonal"), config))
        assert training_chance(config, N, K) == pytest.approx(found, rel=1e-12)
        assert found == pytest.approx(chance_loss(config, N, K) + 0.5 * math.log(N * K - 1))
