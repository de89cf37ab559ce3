"""The slope of every loss at the entries of the matrix: by hand, by finite differences, and by what training moves."""

from __future__ import annotations

import math

import pytest
import torch
from support import inspecting
from test_inspection import TRAINED
from torch import Tensor

import miniclip
from miniclip.config import LossConfig
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss
from miniclip.metrics.slopes import handed, slope_figures, slopes
from miniclip.training.diagnostics import step_figures


def of(logits: Tensor, loss: LossConfig, positives: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    positives = torch.eye(len(logits)).bool() if positives is None else positives
    return slopes(logits, positives, loss, loss.settings(), weight)


def logged_of(embeddings: Embeddings, batch: GlobalBatch, loss: LossConfig, step: int) -> dict[str, float]:
    """The log's figures, of towers without a gradient."""
    model = miniclip.create_model("tiny-vit", vocab_size=9, text_layers=1)
    return step_figures(model, 1.0, embeddings, batch, loss, step)


def test_softmax_and_sigmoid_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    rows = [1 / (1 + math.exp(-gap)) for gap in (1.0, 1.5)]  # probability of the own text
    columns = [1 / (1 + math.exp(-gap)) for gap in (0.5, 2.0)]
    own = [(p - 1 + q - 1) / 2 for p, q in zip(rows, columns, strict=True)]
    other = [(1 - rows[0] + 1 - columns[1]) / 2, (1 - rows[1] + 1 - columns[0]) / 2]
    assert of(logits, LossConfig()).flatten().tolist() == pytest.approx([own[0], other[0], other[1], own[1]], abs=1e-12)
    figures = slope_figures(of(logits, LossConfig()), torch.eye(2).bool())
    half = abs(own[0] - own[1]) / 2  # the deviation of two numbers from their mean
    assert figures["slope_positive"] == pytest.approx(sum(own) / 2) and figures["slope_positive_sd"] == pytest.approx(
        half
    )
    assert figures["slope_negative"] == pytest.approx(-sum(own) / 2)  # N - 1 = 1 of them a row, and a row's sum is 0
    sigmoid = of(logits, LossConfig(name="sigmoid"))
    torch.testing.assert_close(sigmoid, logits.sigmoid() - torch.eye(2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TRAINED)
def test_slope_is_n_times_the_change_of_the_loss(name: str) -> None:
    n, loss = 5, TRAINED[name]
    image, text = (side.double() for side in inspecting.embeddings(n))
    positives = torch.eye(n).bool()
    positives[1, 3] = positives[3, 1] = True
    logits, settings = handed(loss, image, text, image @ text.T, 5.0, -1.0, 50)
    found, h = slopes(logits, positives, loss, settings), 1e-6

    def value(i: int, j: int, by: float) -> float:
        moved = logits.clone()
        moved[i, j] += by
        return float(LOSSES[loss.name](moved, positives, **settings))

    expected = [[n * (value(i, j, h) - value(i, j, -h)) / (2 * h) for j in range(n)] for i in range(n)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_training_step_moves_the_images_by_these_slopes(name: str, weighted: bool) -> None:
    """What global_loss, in its tiles, does to the embeddings: scale / N * slope @ texts; and the log's figures."""
    n, loss, scale = 12, TRAINED[name], torch.tensor(7.0, dtype=torch.float64)
    image, text = (side.double() for side in inspecting.embeddings(n))
    bias = scale.new_tensor(-2.0) if loss.pairwise else None
    weight = torch.arange(1.0, n + 1).double() if weighted else None
    number = torch.arange(n)
    batch = GlobalBatch(Positives.of("text", number, (number % (n - 2))[:, None]), weight)  # two captions twice
    embeddings = Embeddings(image.requires_grad_(), text, scale, bias)
    (gradient,) = torch.autograd.grad(global_loss(embeddings, batch, loss, 50), image)
    positives = batch.positives.of_images(slice(None))
    assert int(positives.sum()) == n + 4
    logits, settings = handed(
        loss, image.detach(), text, image.detach() @ text.T, 7.0, -2.0 if loss.pairwise else None, 50
    )
    slope = slopes(logits, positives, loss, settings, weight)
    factor = 1.0 if name == "hinge" else 7.0
    torch.testing.assert_close(gradient, factor / n * slope @ text, rtol=1e-9, atol=1e-12)
    logged = logged_of(embeddings, batch, loss, 50)
    expected = slope_figures(slope, positives)
    assert {key: logged[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    assert logged["slope_positive"] < 0 < logged["slope_negative"]


def test_slope_of_a_pair_does_not_hang_on_the_batch() -> None:
    """Pairs that the others do not see, four times as many: N times as small in the loss, alike in the slope."""
    few = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    many = torch.full((8, 8), -200.0)
    for k in range(0, 8, 2):
        many[k : k + 2, k : k + 2] = few
    assert torch.allclose(of(many, LossConfig())[2:4, 2:4], of(few, LossConfig()), atol=1e-6)


def test_several_captions_and_pairs_that_weigh_nothing() -> None:
    image, text = inspecting.embeddings(6)
    number = torch.arange(6)
    positives = Positives.of("diagonal", number, torch.arange(12).view(6, 2))
    embeddings = Embeddings(image, text.repeat_interleave(2, 0), torch.tensor(7.0), None)
    found = logged_of(embeddings, GlobalBatch(positives), LossConfig(), 0)  # each image with its first caption
    expected = slope_figures(of(7 * image @ text.T, LossConfig()), torch.eye(6).bool())
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
    nothing = of(7 * image @ text.T, LossConfig(), weight=torch.zeros(6))
    assert not nothing.any()
    all_positive = slope_figures(nothing, torch.ones(6, 6).bool())
    assert math.isnan(all_positive["slope_negative"]) and math.isnan(all_positive["slope_negative_sd"])
