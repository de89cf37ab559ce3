"""The loss of a batch as training takes it, in one process, against the functions of the whole matrix."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from miniclip.config import LossConfig
from miniclip.losses import LOSSES, objective, tiles
from miniclip.losses.matrix import Embeddings, Positives
from miniclip.losses.objective import GlobalBatch, chance_loss, global_loss

N, E = 13, 6
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax-smoothing": {"smoothing": 0.2},
    "sigmoid": {},
    "focal": {"focal_gamma": 1.5},
    "focal-sigmoid": {"focal_form": "sigmoid"},
    "hinge": {"margin": 0.7},
    "hinge-hardest": {"margin": 0.7, "hardest": 0.8},
    "decoupled": {},
    "soft": {"soft_scale": 3.0, "soft_share": 0.4},
    "transport": {"sinkhorn_iterations": 3},
}


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


def embeddings(captions: int = 1, n: int = N) -> Embeddings:
    generator = torch.Generator().manual_seed(captions)

    def unit(rows: int) -> Tensor:
        rows_ = torch.randn(rows, E, generator=generator, dtype=torch.float64)
        return F.normalize(rows_, dim=-1).requires_grad_()

    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (7.0, -2.0))
    return Embeddings(unit(n), unit(n * captions), scale, bias)


def batch(kind: str, captions: int, weighted: bool) -> GlobalBatch:
    generator = torch.Generator().manual_seed(7)
    image = torch.randint(0, 9, (N,), generator=generator)
    text = torch.randint(0, 20 * captions, (N, captions), generator=generator)
    assert len(image.unique()) < N
    assert len(text.unique()) < N * captions
    weight = torch.rand(N, generator=generator) if weighted else None
    return GlobalBatch(Positives.of(kind, image, text), weight)


def mask(kind: str, captions: int) -> Tensor:
    """The positives once more, entry by entry."""
    known = batch("identity", captions, False).positives
    result = torch.zeros(N, N * captions, dtype=torch.bool)
    for i in range(N):
        for j in range(N * captions):
            own = j // captions == i
            same_text = bool((known.text[i] == known.text.flatten()[j]).any())
            same_image = bool(known.image[i] == known.image[j // captions])
            result[i, j] = {"diagonal": own, "text": own or same_text, "identity": same_image or same_text}[kind]
    return result


def on_matrix(e: Embeddings, positives: Tensor, weight: Tensor | None, config: LossConfig, step: int = 0) -> Tensor:
    settings = config.settings(step)
    if config.name == "hinge":
        logits = e.image @ e.text.T
    else:
        logits = e.scale * e.image @ e.text.T + (0 if e.bias is None else e.bias)
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


def assert_equal_gradients(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for name, a, b in zip(Embeddings._fields, ours, theirs, strict=False):
        # atol: the bias of all losses but sigmoid's has no gradient, and what is left of it is rounding
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14, msg=f"{name}: {a} {b}")


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("kind", ["diagonal", "text", "identity"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_the_loss_of_the_matrix(variant: str, weighted: bool, kind: str, captions: int) -> None:
    e, known, loss = embeddings(captions), batch(kind, captions, weighted), config(variant, captions)
    ours = global_loss(e, known, loss)
    theirs = on_matrix(e, mask(kind, captions), known.weight, loss)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    theirs_gradients = gradients(theirs, e)
    assert_equal_gradients(gradients(ours, e), theirs_gradients)
    assert theirs_gradients[0].norm() > 1e-3
    assert theirs_gradients[1].norm() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_model_without_bias(variant: str) -> None:
    e, known = embeddings()._replace(bias=None), batch("identity", 1, True)
    ours, theirs = (
        global_loss(e, known, config(variant)),
        on_matrix(e, mask("identity", 1), known.weight, config(variant)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert_equal_gradients(gradients(ours, e), gradients(theirs, e))


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_weights_are_no_weights(variant: str) -> None:
    e, known = embeddings(), batch("identity", 1, False)
    equal = GlobalBatch(known.positives, torch.full((N,), 0.3))
    ours, theirs = global_loss(e, equal, config(variant)), global_loss(e, known, config(variant))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert_equal_gradients(gradients(ours, e), gradients(theirs, e))


@pytest.mark.parametrize("kind", ["diagonal", "identity"])
def test_unique_pairs_need_no_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without duplicates the short cut gives what the mask gives."""
    known = GlobalBatch(Positives.of(kind, torch.arange(N) * 3, torch.arange(N)[:, None] + 100))
    e = embeddings()
    short = global_loss(e, known, LossConfig())
    torch.testing.assert_close(short, on_matrix(e, torch.eye(N, dtype=torch.bool), None, LossConfig()))
    monkeypatch.setattr(Positives, "only_diagonal", lambda self: False)
    torch.testing.assert_close(short, global_loss(e, known, LossConfig()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("variant", ["hinge", "hinge-hardest"])
def test_hinge_is_on_cosines(variant: str) -> None:
    """Its margin is one of cosines, so scale and bias must not matter; DDP wants their gradient none the less."""
    e, known = embeddings(), batch("identity", 1, False)
    loss = global_loss(e, known, config(variant))
    other = global_loss(e._replace(scale=3 * e.scale, bias=None), known, config(variant))
    torch.testing.assert_close(loss, other, rtol=0, atol=0)
    loss.backward()
    assert e.bias is not None
    for parameter in (e.scale, e.bias):
        assert parameter.grad is not None
        assert float(parameter.grad) == 0


def test_hinge_warms_up() -> None:
    e, known = embeddings(), batch("identity", 1, False)
    loss = config("hinge-hardest", hardest_warmup=10)
    at = {step: global_loss(e, known, loss, step) for step in (0, 5, 10, 1000)}
    for step, hardest in ((0, 0.0), (5, 0.4), (10, 0.8), (1000, 0.8)):
        expected = global_loss(e, known, config("hinge", hardest=hardest))
        torch.testing.assert_close(at[step], expected, rtol=1e-14, atol=0)
    assert at[0] > at[5] > at[10]


def test_soft_targets_have_no_gradient() -> None:
    """The gradient by differences with the targets held still; with them moving it is another one."""
    e, known, loss = embeddings(), batch("identity", 1, False), config("soft")
    target = (loss.soft_scale * ((e.image @ e.image.T + e.text @ e.text.T).detach() / 2 - 1)).exp()
    logits = e.scale.detach() * e.image @ e.text.detach().T
    held = LOSSES["soft"](logits, mask("identity", 1), targets=target, share=loss.soft_share)
    ours, theirs = gradients(global_loss(e, known, loss), e)[0], torch.autograd.grad(held, e.image)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)

    def value(image: Tensor) -> float:
        with torch.no_grad():
            return float(global_loss(e._replace(image=image), known, loss))

    step = torch.zeros_like(e.image)
    step[0, 0] = 1e-6
    moving = (value(e.image + step) - value(e.image - step)) / 2e-6
    assert abs(moving - float(ours[0, 0])) > 1e-4


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_that_weighs_nothing_teaches_nothing(variant: str, captions: int) -> None:
    e = embeddings(captions)
    known = GlobalBatch(batch("identity", captions, False).positives, torch.zeros(N))
    loss = global_loss(e, known, config(variant, captions))
    assert loss.item() == 0
    for gradient in gradients(loss, e):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pair_that_weighs_nothing_still_is_a_negative(variant: str) -> None:
    """Its own rows count nothing; in the others' rows it stands as before."""
    e, known = embeddings(), batch("diagonal", 1, False)
    weight = torch.ones(N)
    weight[4] = 0
    gradient = gradients(global_loss(e, GlobalBatch(known.positives, weight), config(variant)), e)
    values = on_matrix(e, mask("diagonal", 1), weight, config(variant))
    assert_equal_gradients(gradient, gradients(values, e))
    assert gradient[0][4].norm() > 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_leaves_the_loss_in_float32(variant: str) -> None:
    low = Embeddings(*(t.detach().float() for t in embeddings() if t is not None))
    high = Embeddings(*(t.double() for t in low if t is not None))
    known = batch("identity", 1, True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = global_loss(low, known, config(variant))
    assert loss.dtype == torch.float32
    expected = on_matrix(high, mask("identity", 1), known.weight, config(variant))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "transport"])
def test_no_matrix_is_made(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    tiled = objective.tiled_loss

    def watched(queries: Tensor, keys: Tensor, scale: Tensor, bias: Any, weights: Tensor, of_tile: Any) -> Tensor:
        def of(logits: Tensor, part: slice) -> Tensor:
            nonlocal largest
            largest = max(largest, len(logits))
            value: Tensor = of_tile(logits, part)
            return value

        return tiled(queries, keys, scale, bias, weights, of)

    monkeypatch.setattr(objective, "tiled_loss", watched)
    monkeypatch.setattr(objective, "similarity_logits", None)
    global_loss(embeddings(), batch("identity", 1, True), config(variant))
    assert largest == 5


def test_gathered_in_one_process() -> None:
    image, text, weight = torch.tensor([4, 4, 6]), torch.tensor([[1], [2], [2]]), torch.tensor([1.0, 2.0, 0.0])
    known = GlobalBatch.gathered("text", image, text, weight, [3])
    assert known.positives.of_images(slice(None)).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert known.weight is not None
    assert known.weight.tolist() == [1, 2, 0]
    assert GlobalBatch.gathered("text", image, text, None, [3]).weight is None


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_chance_is_the_loss_of_equal_embeddings(variant: str, captions: int) -> None:
    """All cosines 1; a sigmoid's bias is at the best value that it has for an untrained model."""
    loss = config(variant, captions)
    equal = F.normalize(torch.ones(N, E, dtype=torch.float64), dim=-1)
    scale = torch.tensor(5.0, dtype=torch.float64)
    e = Embeddings(equal, equal.repeat(captions, 1), scale, -math.log(N - 1) - scale)
    known = GlobalBatch(Positives.of("diagonal", torch.arange(N), torch.arange(N * captions).view(N, captions)))
    if variant == "soft" and captions == 1:
        # equal embeddings are alike by 1, so that the targets spread
        assert float(global_loss(e, known, loss)) == pytest.approx(math.log(N))
    expected = float(global_loss(e, known, loss, step=loss.hardest_warmup))
    assert chance_loss(loss, N, captions, loss.hardest_warmup) == pytest.approx(expected, rel=1e-9)


def test_chance_by_hand() -> None:
    assert chance_loss(LossConfig(), 256, 1) == pytest.approx(math.log(256))
    # a row has 768 texts, three of them its own; a column 256 images, one of them its own
    assert chance_loss(LossConfig(), 256, 3) == pytest.approx((math.log(768) + math.log(256)) / 2)
    assert chance_loss(LossConfig(name="decoupled"), 256, 1) == pytest.approx(math.log(255))
    assert chance_loss(LossConfig(name="hinge"), 256, 1) == pytest.approx(255 * 0.2, rel=1e-5)
    warm = LossConfig(name="hinge", hardest=1.0, hardest_warmup=7)
    assert chance_loss(warm, 256, 1) == pytest.approx(255 * 0.2)
    assert chance_loss(warm, 256, 1, step=7) == pytest.approx(0.2)
    # at -ln(N - 1), a yes costs ln N and a no ln(N / (N - 1))
    assert chance_loss(LossConfig(name="sigmoid"), 4, 1) == pytest.approx(math.log(4) + 3 * math.log(4 / 3))
