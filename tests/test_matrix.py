"""Embeddings to similarities to the loss of a batch as training takes it, in one process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.config import LossConfig
from miniclip.losses import LOSSES, matrix, tiles
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, chance_loss, gather, global_loss, shares

N, E = 13, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax-smoothing": {"smoothing": 0.2},
    "softmax-directions": {"image_to_text": 0.8},
    "sigmoid": {},
    "focal": {"focal_gamma": 1.5},
    "focal-sigmoid": {"focal_form": "sigmoid"},
    "hinge": {"margin": 0.7},
    "hinge-hardest": {"margin": 0.7, "hardest": 0.8},
    "decoupled": {},
    "soft": {"soft_scale": 3.0, "soft_share": 0.4},
    "transport": {"sinkhorn_iterations": 3},
}
KINDS = ("diagonal", "text", "identity")
every = pytest.mark.parametrize("variant", VARIANTS)


def test_every_loss_is_tried_here() -> None:
    assert {name.split("-")[0] for name in VARIANTS} == set(LOSSES)


def test_shares_add_up_and_differ_by_one_at_most() -> None:
    assert [shares(64, 3), shares(5, 4), shares(2, 3)] == [[22, 21, 21], [2, 1, 1, 1], [1, 1, 0]]
    for total, world in itertools.product(range(1, 20), range(1, 8)):
        sizes = shares(total, world)
        assert (len(sizes), sum(sizes)) == (world, total) and sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1


def test_gather_of_one_process_is_its_input() -> None:
    local = torch.randn(3, 2, requires_grad=True)
    assert gather(local, [3]) is local


# ---- positives

# images 0 and 2 are one; image 1 shares a caption with image 2, and image 3 one with nobody
IMAGE, TEXT = torch.tensor([7, 3, 7, 5]), torch.tensor([[10, 11], [12, 13], [13, 14], [15, 16]])
MASKS = {
    "diagonal": ["11......", "..11....", "....11..", "......11"],
    # the caption 13 stands under images 1 and 2
    "text": ["11......", "..111...", "...111..", "......11"],
    # and so under image 0, which is image 2
    "identity": ["11.111..", "..111...", "11.111..", "......11"],
}


def test_positives_by_hand() -> None:
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0])
    for kind, mask in MASKS.items():
        batch = GlobalBatch.gathered(kind, IMAGE, TEXT, weight, [4])
        found, expected = batch.positives, torch.tensor([[character == "1" for character in row] for row in mask])
        for rows in map(slice, (0, 0, 1, 3), (8, 1, 3, 4)):
            assert torch.equal(found.of_images(rows), expected[rows])
            assert torch.equal(found.of_texts(rows), expected.T[rows])
        assert found.captions == 2 and not found.only_diagonal()
        assert batch.weight is weight and batch.divided() == [4]
        assert GlobalBatch.gathered(kind, IMAGE, TEXT, None, [4]).weight is None


def test_copies_agree_and_nothing_else_is_said() -> None:
    """An image has each caption that any of its copies has; whether it suits another caption of that one's other image,
    nobody knows."""
    found = Positives.of("identity", torch.tensor([0, 0, 1]), torch.tensor([[0], [1], [0]]))
    expected = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    assert torch.equal(found.of_images(slice(None)), expected) and torch.equal(found.of_texts(slice(None)), expected.T)
    for captions, seed in itertools.product((1, 2, 3), range(20)):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 6, (12,), generator=generator)
        text = torch.randint(0, 9, (12, captions), generator=generator)
        known, flat = Positives.of("identity", image, text).of_images(slice(None)), text.flatten()
        edges = {(int(image[j // captions]), int(flat[j])) for j in range(len(flat))}
        for i, j in itertools.product(range(12), range(len(flat))):
            assert known[i, j] == ((int(image[i]), int(flat[j])) in edges)


def test_only_diagonal() -> None:
    eye = torch.eye(3, dtype=torch.bool)
    for image, text, expected in [
        ([1, 2, 3], [4, 5, 6], ("identity", "text", "diagonal")),
        ([1, 2, 1], [4, 5, 6], ("text", "diagonal")),
        ([1, 2, 3], [4, 5, 4], ("diagonal",)),
    ]:
        for kind in KINDS:
            found = Positives.of(kind, torch.tensor(image), torch.tensor(text)[:, None])
            assert found.only_diagonal() == torch.equal(found.of_images(slice(None)), eye) == (kind in expected)


# ---- the loss


def config(variant: str, captions: int = 1, **more: Any) -> LossConfig:
    settings = VARIANTS[variant] | more
    if variant == "soft" and captions > 1:
        settings = {"soft_share": 0.0}
    return LossConfig(name=variant.split("-")[0], **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles to a matrix of 13 rows, the last of them a short one."""
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 5 * N)
    monkeypatch.setattr(tiles, "LEAST_ROWS", 3)


def embeddings(captions: int = 1) -> Embeddings:
    generator = torch.Generator().manual_seed(captions)
    given = (torch.randn(n, E, generator=generator, dtype=torch.float64) for n in (N, N * captions))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (7.0, -2.0))
    return Embeddings(*(F.normalize(one, dim=-1).requires_grad_() for one in given), scale, bias)


def batch(kind: str, captions: int = 1, weighted: bool = False) -> GlobalBatch:
    generator = torch.Generator().manual_seed(7)
    image = torch.randint(0, 9, (N,), generator=generator)
    text = torch.randint(0, 20 * captions, (N, captions), generator=generator)
    assert len(image.unique()) < N and len(text.unique()) < N * captions
    return GlobalBatch(Positives.of(kind, image, text), torch.rand(N, generator=generator) if weighted else None)


def mask(kind: str, captions: int = 1) -> Tensor:
    """The positives once more, entry by entry."""
    known = batch("identity", captions).positives
    image, text, own = known.image.tolist(), known.text.flatten().tolist(), known.text.tolist()
    of: dict[str, Callable[[int, int], bool]] = {
        "diagonal": lambda i, j: j // captions == i,
        "text": lambda i, j: text[j] in own[i],
        "identity": lambda i, j: any(text[j] in own[k] for k in range(N) if image[k] == image[i]),
    }
    return torch.tensor([[of[kind](i, j) for j in range(N * captions)] for i in range(N)])


def on_matrix(e: Embeddings, positives: Tensor, weight: Tensor | None, config: LossConfig) -> Tensor:
    settings, logits = config.settings(), e.image @ e.text.T
    if config.name != "hinge":
        logits = e.scale * logits + (0 if e.bias is None else e.bias)
    if config.name == "soft" and config.soft_share:
        likeness = (e.image @ e.image.T + e.text @ e.text.T).detach() / 2
        settings["targets"] = (config.soft_scale * (likeness - 1)).exp()
    captions = len(e.text) // len(e.image)
    weights = None if weight is None else torch.cat([weight, weight.repeat_interleave(captions)])
    return LOSSES[config.name](logits, positives, weights, **settings)


def gradients(loss: Tensor, e: Embeddings) -> list[Tensor]:
    inputs = [t for t in e if t is not None]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def assert_same(ours: Tensor, theirs: Tensor, e: Embeddings) -> list[Tensor]:
    """Values and gradients; the gradients are returned."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    a, b = gradients(ours, e), gradients(theirs, e)
    # atol: the bias of all losses but sigmoid's has no gradient, and what is left of it is rounding
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    assert b[0].norm() > 1e-3 and b[1].norm() > 1e-3
    return a


@every
def test_is_the_loss_of_the_matrix(variant: str) -> None:
    for captions in (1, 3):
        e, loss = embeddings(captions), config(variant, captions)
        for kind in KINDS:
            assert torch.equal(batch(kind, captions).positives.of_images(slice(None)), mask(kind, captions))
            for weighted in (False, True):
                known = batch(kind, captions, weighted)
                assert_same(global_loss(e, known, loss), on_matrix(e, mask(kind, captions), known.weight, loss), e)
    e, loss, known = embeddings(), config(variant), batch("identity", weighted=True)
    bare = e._replace(bias=None)
    assert_same(global_loss(bare, known, loss), on_matrix(bare, mask("identity"), known.weight, loss), bare)
    # equal weights are no weights
    known = batch("identity")
    equal = replace(known, weight=torch.full((N,), 0.3))
    assert_same(global_loss(e, equal, loss), global_loss(e, known, loss), e)
    # a pair that weighs nothing still is a negative: it stands in the others' rows as before
    weight = (torch.arange(N) != 4).float()
    known = replace(batch("diagonal"), weight=weight)
    found = assert_same(global_loss(e, known, loss), on_matrix(e, mask("diagonal"), weight, loss), e)
    assert found[0][4].norm() > 1e-6


def test_hinge_is_on_cosines_and_warms_up() -> None:
    """Its margin is one of cosines, so scale and bias must not matter; DDP wants their gradient none the less."""
    e, known = embeddings(), batch("identity")
    loss = global_loss(e, known, config("hinge-hardest"))
    other = global_loss(e._replace(scale=3 * e.scale, bias=None), known, config("hinge-hardest"))
    torch.testing.assert_close(loss, other, rtol=0, atol=0)
    assert [float(gradient) for gradient in torch.autograd.grad(loss, e[2:])] == [0, 0]  # type: ignore[arg-type]
    rising, before = config("hinge-hardest", hardest_warmup=10), math.inf
    for step, hardest in ((0, 0.0), (5, 0.4), (10, 0.8), (1000, 0.8)):
        found = global_loss(e, known, rising, step)
        expected = global_loss(e, known, config("hinge", hardest=hardest))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
        assert found < before or step > 10
        before = found.item()


@every
def test_a_batch_that_weighs_nothing_teaches_nothing(variant: str) -> None:
    for captions in (1, 3):
        e = embeddings(captions)
        loss = global_loss(e, replace(batch("identity", captions), weight=torch.zeros(N)), config(variant, captions))
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in gradients(loss, e))


@every
def test_autocast_leaves_the_loss_in_float32(variant: str) -> None:
    low = Embeddings(*(t.detach().float() for t in embeddings() if t is not None))
    high = Embeddings(*(t.double() for t in low if t is not None))
    known = batch("identity", weighted=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = global_loss(low, known, config(variant))
    assert loss.dtype == torch.float32
    expected = on_matrix(high, mask("identity"), known.weight, config(variant))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_no_matrix_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tiled = list[int](), matrix.tiled_loss

    def watched(*given: Any) -> Tensor:
        def of(logits: Tensor, part: slice) -> Tensor:
            rows.append(len(logits))
            return given[-1](logits, part)

        return tiled(*given[:-1], of)

    monkeypatch.setattr(matrix, "tiled_loss", watched)
    monkeypatch.setattr(matrix, "similarity_logits", None)
    for variant in VARIANTS:
        if not LOSSES[config(variant).name].whole_matrix:
            global_loss(embeddings(), batch("identity", weighted=True), config(variant))
            assert max(rows) == 5, variant
            rows.clear()


@every
def test_chance_is_the_loss_of_equal_embeddings(variant: str) -> None:
    """All cosines 1; a sigmoid's bias is at the best value that it has for an untrained model."""
    equal = F.normalize(torch.ones(N, E, dtype=torch.float64), dim=-1)
    scale = torch.tensor(5.0, dtype=torch.float64)
    for captions in (1, 3):
        loss = config(variant, captions)
        e = Embeddings(equal, equal.repeat(captions, 1), scale, -math.log(N - 1) - scale)
        known = GlobalBatch(Positives.of("diagonal", torch.arange(N), torch.arange(N * captions).view(N, captions)))
        # equal embeddings are alike by 1, so that soft targets spread
        assert chance_loss(loss, N, captions) == pytest.approx(float(global_loss(e, known, loss)), rel=1e-9)
    for n in (1, 2):
        logits = torch.full((n, n), -math.log(max(1, n - 1)), dtype=torch.float64)
        expected = float(LOSSES[loss.name](logits, **loss.settings()))
        assert chance_loss(loss, n, 1) == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_chance_by_hand() -> None:
    warm = LossConfig(name="hinge", hardest=1.0, hardest_warmup=7)
    for loss, given, expected in [
        # a row has 768 texts, three of them its own; a column 256 images, one of them its own
        (LossConfig(image_to_text=0.8), (256, 3), 0.8 * math.log(768) + 0.2 * math.log(256)),
        (LossConfig(name="hinge"), (256, 1), 255 * 0.2),
        (warm, (256, 1), 255 * 0.2),
        (warm, (256, 1, 7), 0.2),
        # at -ln(N - 1), a yes costs ln N and a no ln(N / (N - 1))
        (LossConfig(name="sigmoid"), (4, 1), math.log(4) + 3 * math.log(4 / 3)),
    ]:
        assert chance_loss(loss, *given) == pytest.approx(expected, rel=1e-6)
