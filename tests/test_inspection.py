"""The numbers of an inspection against autograd and hand-worked ones, from the JSON that is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import inspecting
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.inspection.build import build
from miniclip.inspection.contents import Inspection
from miniclip.inspection.numbers import WHOLE, write_numbers
from miniclip.inspection.views import best_bias, handed
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss
from miniclip.metrics.batch import FIGURES, batch_figures

TRAINED = {
    "softmax": LossConfig(smoothing=0.1, image_to_text=0.7),
    "sigmoid": LossConfig(name="sigmoid"),
    "focal": LossConfig(name="focal", focal_form="sigmoid", focal_gamma=1.5),
    "hinge": LossConfig(name="hinge", hardest=0.5, hardest_warmup=100),
    "decoupled": LossConfig(name="decoupled"),
    "soft": LossConfig(name="soft", soft_share=0.3, soft_scale=5.0),
    "transport": LossConfig(name="transport", sinkhorn_iterations=3),
}


def duplicates(n: int) -> Tensor:
    """Pairs 0 and 1 have equal captions."""
    positives = torch.eye(n, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    return positives


def numbers(inspection: Inspection, folder: Path) -> dict[str, Any]:
    write_numbers(inspection, folder / "matrix.json")
    values: dict[str, Any] = json.loads((folder / "matrix.json").read_text())
    return values


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("trained", LOSSES)
def test_json_has_the_gradients_and_losses_of_autograd(trained: str, tmp_path: Path) -> None:
    n = 12
    loss = TRAINED[trained]
    positives = duplicates(n) if trained != "softmax" else None
    bias = -7.0 if loss.pairwise else None
    values = numbers(inspecting.inspection(n, loss=loss, bias=bias, positives=positives), tmp_path)
    assert values["loss"] == trained
    assert set(values["losses"]) == set(LOSSES)
    assert [name for name, view in values["losses"].items() if view["trained"]] == [trained]
    cosine, mask = double(values["cosine"]), torch.tensor(values["positives"])
    for name, view in values["losses"].items():
        logits = (view["scale"] * cosine + (view["bias"] or 0.0)).requires_grad_()
        settings = dict(view["settings"])
        if "targets" in view:
            settings["targets"] = double(view["targets"])
        loss = LOSSES[name](logits, mask, **settings)
        (gradient,) = torch.autograd.grad(loss, logits)
        value = float(loss.detach())
        each = LOSSES[name](logits, mask, reduction="none", **settings).detach()
        assert view["value"] == pytest.approx(value, abs=1e-10)
        torch.testing.assert_close(double(view["gradient"]), gradient, rtol=0, atol=1e-10)
        torch.testing.assert_close(double(view["row_loss"]), each[:n], rtol=0, atol=1e-10)
        torch.testing.assert_close(double(view["column_loss"]), each[n:], rtol=0, atol=1e-10)
        # per pair: what the entries say adds up to the rows, the columns and the whole
        assert float(double(view["pair_loss"]).sum()) == pytest.approx(n * value, abs=1e-10)
    for probability, axis in (("row_probability", 1), ("column_probability", 0)):
        assert double(values[probability]).sum(axis).sub(1).abs().max() < 1e-12
        scaled = values["logit_scale"] * cosine
        torch.testing.assert_close(double(values[probability]), scaled.softmax(axis), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", LOSSES)
def test_the_trained_loss_is_that_of_training(trained: str) -> None:
    n, loss = 10, TRAINED[trained]
    image, text = (side.double() for side in inspecting.embeddings(n))
    bias = torch.tensor(-7.0, dtype=torch.float64) if loss.pairwise else None
    batch = GlobalBatch(Positives.of("diagonal", torch.arange(n), torch.arange(n)[:, None]))
    scale = torch.tensor(14.0, dtype=torch.float64)
    expected = float(global_loss(Embeddings(image, text, scale, bias), batch, loss, step=1000))
    found = inspecting.inspection(n, loss=loss, bias=None if bias is None else -7.0).losses[trained]
    # the matrix is rounded to float32 first, so that equal embeddings tie
    assert found.value == pytest.approx(expected, rel=1e-5)


def test_settings_that_move_are_those_of_the_step() -> None:
    loss = TRAINED["hinge"]
    image, text = inspecting.embeddings(4)
    found = [handed(loss, image, text, image @ text.T, 14.0, None, step) for step in (0, 50, 10**9)]
    assert [settings["hardest"] for _, settings in found] == [0, 0.25, 0.5]
    assert all(torch.equal(logits, image @ text.T) for logits, _ in found)  # hinge reads cosines


def test_pair_loss_by_hand() -> None:
    """Two pairs, cosines [[1, 0], [0.5, 0.5]], scale 2."""
    image = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    text = torch.eye(2)
    found = build(inspecting.sample(2), image, text, torch.eye(2, dtype=torch.bool), 2.0)
    rows = [math.log(1 + math.exp(-2)), math.log(2)]
    columns = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1))]
    view = found.losses["softmax"]
    assert view.row_loss.tolist() == pytest.approx(rows)
    assert view.column_loss.tolist() == pytest.approx(columns)
    assert view.pair_loss.diagonal().tolist() == pytest.approx(
        [(r + c) / 2 for r, c in zip(rows, columns, strict=True)]
    )
    assert float(view.pair_loss.abs().sum() - view.pair_loss.diagonal().sum()) == 0
    # 0.2 + 0.5 - 0.5 in row 1; column 0: 0.2 + 0.5 - 1 < 0; column 1: 0.2 + 0 - 0.5 < 0; row 0: 0.2 + 0 - 1 < 0
    hinge = found.losses["hinge"]
    assert hinge.pair_loss.tolist() == [pytest.approx([0, 0]), pytest.approx([0.1, 0])]
    assert hinge.gradient.tolist() == [pytest.approx([0, 0]), pytest.approx([0.25, -0.25])]
    assert (hinge.unit, hinge.scale, hinge.bias) == ("cosine", 1.0, None)


def test_a_sigmoid_loss_without_a_bias_gets_the_best_one() -> None:
    view = inspecting.inspection(16).losses["sigmoid"]
    assert view.bias is not None
    cosine = inspecting.inspection(16).cosine

    def value(bias: float) -> float:
        return float(LOSSES["sigmoid"](14.0 * cosine + bias))

    assert value(view.bias) < min(value(view.bias - 0.01), value(view.bias + 0.01))
    logits = 14.0 * cosine + best_bias(14.0 * cosine, 16)
    assert float(logits.sigmoid().sum()) == pytest.approx(16)


def test_temperature_finds_the_lowest_loss_and_the_entropies() -> None:
    found = inspecting.inspection(24)
    curves = found.temperature
    scales = curves.scales.tolist()
    assert scales == sorted(scales) and scales[0] == pytest.approx(1) and scales[-1] == pytest.approx(100)
    assert curves.learned == 14.0 and 14.0 in scales
    assert set(curves.loss) == set(LOSSES) - {"hinge"} == set(curves.best)
    for name, curve in curves.loss.items():
        view = found.losses[name]
        assert float(curve[scales.index(14.0)]) == pytest.approx(view.value, rel=1e-5)
        settings = dict(view.settings) | ({} if view.targets is None else {"targets": view.targets})
        best = curves.best[name]
        around = [
            float(LOSSES[name](scale * found.cosine + (view.bias or 0.0), found.positives, **settings))
            for scale in (best, *torch.linspace(math.log(1), math.log(100), 300).exp().tolist())
        ]
        assert around[0] <= min(around) + 1e-6
        assert float(curve.min()) == pytest.approx(around[0], abs=1e-5)
    # one scale by hand
    k = scales.index(14.0)
    for axis, entropy in ((1, curves.entropy_rows), (0, curves.entropy_columns)):
        p = (14.0 * found.cosine).softmax(axis)
        assert float(entropy[k]) == pytest.approx(float(torch.special.entr(p).sum(axis).mean()), rel=1e-4)
    # at a low scale all negatives push alike, at a high one hardly more than the hardest
    assert float(curves.negatives_rows[0]) > 20 > 4 > float(curves.negatives_rows[-1]) >= 1


def test_figures_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = batch_figures(image, text, 1.0)
    assert found["r1_image_to_text"] == 0  # both texts are equal: image 0 ties, which counts against
    assert found["r1_text_to_image"] == 0.5
    assert found["cosine_positive"] == found["cosine_negative"] == 0.5
    assert found["alignment"] == pytest.approx(1.0)  # 0 and 2
    assert found["modality_gap"] == pytest.approx(math.sqrt(0.5))
    assert found["rank_image"] == pytest.approx(2) and found["rank_text"] == pytest.approx(1, abs=1e-4)
    assert found["uniformity_text"] == pytest.approx(0, abs=1e-6)
    assert found["effective_negatives_image_to_text"] == found["effective_negatives_text_to_image"] == 1
    assert found["free_energy_image"] == pytest.approx(-(math.log(2 * math.e) + math.log(2)) / 2)
    assert found["free_energy_text"] == pytest.approx(-math.log(1 + math.e))
    assert set(found) < set(FIGURES)


def test_equal_captions_count_as_hits() -> None:
    image = torch.eye(2)
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = batch_figures(image, text, 1.0, positives=torch.ones(2, 2, dtype=torch.bool))
    assert found["r1_image_to_text"] == found["r1_text_to_image"] == 1
    assert math.isnan(found["cosine_negative"])


def test_false_negatives_are_found_and_none_in_a_clean_set(tmp_path: Path) -> None:
    n = 40
    image, text = inspecting.embeddings(n, width=64, noise=0.2)
    clean = build(inspecting.sample(n), image, text, torch.eye(n, dtype=torch.bool), 14.0)
    assert clean.false_negatives == []
    assert not any(verdict.kind == "false_negatives" for verdict in clean.verdicts)

    captions = [f"caption number {k} of a made-up picture" for k in range(n)]
    captions[7], captions[21] = "A dog runs.", "a dog  runs"
    planted = inspecting.sample(n, captions=captions)
    for source, target in ((3, 30), (11, 12)):  # the same picture saved again, and smaller in between
        planted.thumbnails[source].resize((48, 48)).save(tmp_path / "copy.jpg", quality=80)
        planted.thumbnails[target] = Image.open(tmp_path / "copy.jpg").convert("RGB").resize((64, 64))
    found = build(planted, image, text, torch.eye(n, dtype=torch.bool), 14.0)
    named = {(frozenset((cell.i, cell.j)), cell.duplicate) for cell in found.false_negatives}
    assert named == {(frozenset((7, 21)), "text"), (frozenset((3, 30)), "image"), (frozenset((11, 12)), "image")}
    share = next(figure.value for figure in found.figures if figure.name == "unseen_duplicates")
    assert share == pytest.approx(6 / n)
    verdict = next(verdict for verdict in found.verdicts if verdict.kind == "false_negatives")
    assert "15 %" in verdict.evidence[0]


def test_beyond_its_limit_the_json_leaves_the_matrices_out(tmp_path: Path) -> None:
    small = inspecting.inspection(6)
    values = numbers(small, tmp_path)
    assert values["whole"] and len(values["cosine"]) == 6
    large = numbers(inspecting.inspection(WHOLE + 1), tmp_path)
    assert not large["whole"] and "cosine" not in large
    assert all("gradient" not in view and len(view["row_loss"]) == WHOLE + 1 for view in large["losses"].values())


def test_json_has_the_rest_of_the_page(tmp_path: Path) -> None:
    found = inspecting.inspection(8, history=inspecting.history())
    values = numbers(found, tmp_path)
    assert [pair["caption"] for pair in values["pairs"]] == found.captions
    assert values["figures"]["logit_scale"] == 14.0
    assert list(values["figures"]) == [name for name in FIGURES if name in values["figures"]]
    assert values["history"]["steps"] == [0, 20, 40, 60]
    assert sorted(values["orders"]["cluster"]) == list(range(8))
    free = double(values["free_energy_of_images"])
    torch.testing.assert_close(free, -(14.0 * found.cosine).logsumexp(1))
    assert values["temperature"]["best"]["softmax"] == found.temperature.best["softmax"]


def test_what_cannot_be_looked_at_is_refused() -> None:
    image, text = inspecting.embeddings(4)
    eye = torch.eye(4, dtype=torch.bool)
    with pytest.raises(ValueError, match="one shape"):
        build(inspecting.sample(4), image, text[:3], eye, 14.0)
    with pytest.raises(ValueError, match="not finite"):
        build(inspecting.sample(4), image * math.nan, text, eye, 14.0)
    with pytest.raises(ValueError, match="not finite"):
        build(inspecting.sample(4), image, text, eye, math.inf)
