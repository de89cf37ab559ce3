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
from miniclip.inspection.views import best_bias
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss
from miniclip.metrics.batch import FIGURES, batch_figures
from miniclip.metrics.slopes import handed

TRAINED = {
    "softmax": LossConfig(smoothing=0.1, image_to_text=0.7),
    "sigmoid": LossConfig(name="sigmoid"),
    "focal": LossConfig(name="focal", focal_form="sigmoid", focal_gamma=1.5),
    "hinge": LossConfig(name="hinge", hardest=0.5, hardest_warmup=100),
    "decoupled": LossConfig(name="decoupled"),
    "soft": LossConfig(name="soft", soft_share=0.3, soft_scale=5.0),
    "transport": LossConfig(name="transport", sinkhorn_iterations=3),
}


def numbers(inspection: Inspection, folder: Path) -> dict[str, Any]:
    write_numbers(inspection, folder / "matrix.json")
    values: dict[str, Any] = json.loads((folder / "matrix.json").read_text())
    return values


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("trained", LOSSES)
def test_json_has_the_gradients_and_losses_of_autograd(trained: str, tmp_path: Path) -> None:
    n, loss = 12, TRAINED[trained]
    positives = torch.eye(n, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = trained != "softmax"  # equal captions
    bias = -7.0 if loss.pairwise else None
    values = numbers(inspecting.inspection(n, loss=loss, bias=bias, positives=positives), tmp_path)
    assert values["loss"] == trained and set(values["losses"]) == set(LOSSES)
    assert [name for name, view in values["losses"].items() if view["trained"]] == [trained]
    cosine, mask = double(values["cosine"]), torch.tensor(values["positives"])
    assert torch.equal(mask, positives)
    for name, view in values["losses"].items():
        logits = (view["scale"] * cosine + (view["bias"] or 0.0)).requires_grad_()
        settings = view["settings"] | ({"targets": double(view["targets"])} if "targets" in view else {})
        mean = LOSSES[name](logits, mask, **settings)
        (gradient,) = torch.autograd.grad(mean, logits)
        each, value = LOSSES[name](logits, mask, reduction="none", **settings).detach(), float(mean.detach())
        assert view["value"] == pytest.approx(value, abs=1e-10)
        for key, ours in (("gradient", gradient), ("row_loss", each[:n]), ("column_loss", each[n:])):
            torch.testing.assert_close(double(view[key]), ours, rtol=0, atol=1e-10)
        # per pair: what the entries say adds up to the rows, the columns and the whole
        assert float(double(view["pair_loss"]).sum()) == pytest.approx(n * value, abs=1e-10)
    for probability, axis in (("row_probability", 1), ("column_probability", 0)):
        scaled = values["logit_scale"] * cosine
        torch.testing.assert_close(double(values[probability]), scaled.softmax(axis), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", LOSSES)
def test_the_trained_loss_is_that_of_training(trained: str) -> None:
    n, loss = 10, TRAINED[trained]
    image, text = (side.double() for side in inspecting.embeddings(n))
    bias = -7.0 if loss.pairwise else None
    batch = GlobalBatch(Positives.of("diagonal", torch.arange(n), torch.arange(n)[:, None]))
    embeddings = Embeddings(image, text, double(14.0), None if bias is None else double(bias))
    expected = float(global_loss(embeddings, batch, loss, step=1000))
    # the matrix is rounded to float32 first, so that equal embeddings tie
    assert inspecting.inspection(n, loss=loss, bias=bias).losses[trained].value == pytest.approx(expected, rel=1e-5)


def test_settings_that_move_are_those_of_the_step() -> None:
    image, text = inspecting.embeddings(4)
    found = [handed(TRAINED["hinge"], image, text, image @ text.T, 14.0, None, step) for step in (0, 50, 10**9)]
    assert [settings["hardest"] for _, settings in found] == [0, 0.25, 0.5]
    assert all(torch.equal(logits, image @ text.T) for logits, _ in found)  # hinge reads cosines


def test_pair_loss_by_hand() -> None:
    """Two pairs, cosines [[1, 0], [0.5, 0.5]], scale 2."""
    image = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = build(inspecting.sample(2), image, torch.eye(2), torch.eye(2, dtype=torch.bool), 2.0)
    rows, column, view = [math.log(1 + math.exp(-2)), math.log(2)], math.log(1 + math.exp(-1)), found.losses["softmax"]
    assert view.row_loss.tolist() == pytest.approx(rows) and view.column_loss.tolist() == pytest.approx([column] * 2)
    halves = [(row + column) / 2 for row in rows]
    assert view.pair_loss.tolist() == [[pytest.approx(halves[0]), 0], [0, pytest.approx(halves[1])]]
    # 0.2 + 0.5 - 0.5 in row 1; column 0: 0.2 + 0.5 - 1 < 0; column 1: 0.2 + 0 - 0.5 < 0; row 0: 0.2 + 0 - 1 < 0
    hinge = found.losses["hinge"]
    assert hinge.pair_loss.tolist() == [pytest.approx([0, 0]), pytest.approx([0.1, 0])]
    assert hinge.gradient.tolist() == [pytest.approx([0, 0]), pytest.approx([0.25, -0.25])]
    assert (hinge.unit, hinge.scale, hinge.bias) == ("cosine", 1.0, None)
    sigmoid = found.losses["sigmoid"]  # whose entries are the same both ways
    torch.testing.assert_close(sigmoid.pair_loss.sum(1), sigmoid.row_loss)
    torch.testing.assert_close(sigmoid.pair_loss.sum(0), sigmoid.column_loss)


def test_a_sigmoid_loss_without_a_bias_gets_the_best_one() -> None:
    found = inspecting.inspection(16)
    bias, logits = found.losses["sigmoid"].bias, 14.0 * found.cosine
    assert bias is not None
    here, lower, higher = (float(LOSSES["sigmoid"](logits + bias + off)) for off in (0, -0.01, 0.01))
    assert here < min(lower, higher)
    assert float((logits + best_bias(logits, 16)).sigmoid().sum()) == pytest.approx(16)


def test_temperature_finds_the_lowest_loss_and_the_entropies() -> None:
    found = inspecting.inspection(24)
    curves = found.temperature
    scales = curves.scales.tolist()
    assert scales == sorted(scales) and [scales[0], scales[-1]] == pytest.approx([1, 100])
    assert curves.learned == 14.0
    k = scales.index(14.0)
    assert set(curves.loss) == set(LOSSES) - {"hinge"} == set(curves.best)
    for name, curve in curves.loss.items():
        view = found.losses[name]
        assert float(curve[k]) == pytest.approx(view.value, rel=1e-5)
        settings = view.settings | ({} if view.targets is None else {"targets": view.targets})
        chosen = min(curves.best[name], 100.0)  # infinite if the loss falls on
        best, *others = (
            float(LOSSES[name](scale * found.cosine + (view.bias or 0.0), found.positives, **settings))
            for scale in (chosen, *torch.linspace(0, math.log(100), 300).exp().tolist())
        )
        assert best <= min(others) + 1e-6
        assert float(curve.min()) == pytest.approx(best, abs=1e-5)
    for axis, entropy in ((1, curves.entropy_of_rows), (0, curves.entropy_of_columns)):
        p = (14.0 * found.cosine).softmax(axis)
        assert float(entropy[k]) == pytest.approx(float(torch.special.entr(p).sum(axis).mean()), rel=1e-4)
    # at a low scale all negatives push alike, at a high one hardly more than the hardest
    first, last = curves.effective_negatives_of_rows[[0, -1]].tolist()
    assert first > 20 > 4 > last >= 1


def test_a_loss_that_falls_on_to_an_end_has_no_best_scale(tmp_path: Path) -> None:
    """Pairs at right angles to all others: only soft targets ask for a little of the negatives. The losses tend to
    their bounds, which rounding reaches far before the last scale."""
    n = 16
    text_of = {"apart": torch.eye(n), "swapped": torch.eye(n).roll(1, 0), "one point": torch.eye(n)[:1].repeat(n, 1)}
    for kind, end in (("apart", math.inf), ("swapped", -math.inf), ("one point", math.nan)):
        image = text_of[kind] if kind == "one point" else torch.eye(n)
        pairs = inspecting.sample(n, captions=[f"caption {k}" for k in range(n)])
        for bias in (None, -10.0):
            found = build(pairs, image, text_of[kind], torch.eye(n, dtype=torch.bool), 14.0, bias)
            for name, best in found.temperature.best.items():
                if kind == "one point" and name == "sigmoid":  # which the scale lifts to the height that it wants
                    bias = found.losses[name].bias or 0.0
                    assert best + bias == pytest.approx(-math.log(n - 1), rel=1e-2)
                elif kind == "apart" and name == "soft":
                    # where a positive's share of the probability is its share of the target
                    beside = 0.2 * (n - 1) * math.exp(-20) / (1 + (n - 1) * math.exp(-20))
                    assert best == pytest.approx(math.log((n - 1) * (1 - beside) / beside), rel=1e-2)
                else:
                    assert best == pytest.approx(end, nan_ok=True), (kind, name, bias)
            best = found.temperature.best[found.loss]
            values = numbers(found, tmp_path)
            assert values["temperature"]["best"]["softmax"] is None
            assert values["figures"]["best_scale"] == (best if math.isfinite(best) else None)


def test_figures_by_hand() -> None:
    """Two images at right angles, and one text twice."""
    image, text = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    apart = {
        "r1_image_to_text": 0,  # both texts are equal: image 0 ties, which counts against
        "r1_text_to_image": 0.5,
        "cosine_positive": 0.5,
        "cosine_negative": 0.5,
        "alignment": 1,  # 0 and 2
        "uniformity_image": -4,
        "uniformity_text": 0,
        "modality_gap": math.sqrt(0.5),
        "rank_image": 2,
        "rank_text": 1,
        "effective_negatives_image_to_text": 1,
        "effective_negatives_text_to_image": 1,
        "free_energy_image": -(math.log(2 * math.e) + math.log(2)) / 2,
        "free_energy_text": -math.log(1 + math.e),
    }
    found = batch_figures(image, text, 1.0, None, torch.eye(2, dtype=torch.bool))
    assert found == pytest.approx(apart, abs=1e-6) and set(found) < set(FIGURES)
    # equal captions count as hits
    found = batch_figures(image, text, 1.0, None, torch.ones(2, 2, dtype=torch.bool))
    assert found["r1_image_to_text"] == found["r1_text_to_image"] == 1 and math.isnan(found["cosine_negative"])


def test_false_negatives_are_found_and_none_in_a_clean_set(tmp_path: Path) -> None:
    n = 40
    image, text = inspecting.embeddings(n, width=64, noise=0.2)
    captions = [f"caption number {k} of a made-up image" for k in range(n)]
    captions[7], captions[21] = "A dog runs.", "a dog  runs"
    planted = inspecting.sample(n, captions=captions)
    for source, target in ((3, 30), (11, 12)):  # the same image saved again, and smaller in between
        planted.thumbnails[source].resize((48, 48)).save(tmp_path / "copy.jpg", quality=80)
        planted.thumbnails[target] = Image.open(tmp_path / "copy.jpg").convert("RGB").resize((64, 64))
    clean, found = (build(s, image, text, torch.eye(n).bool(), 14.0) for s in (inspecting.sample(n), planted))
    assert clean.false_negatives == [] and "false_negatives" not in [verdict.kind for verdict in clean.verdicts]
    named = {(min(cell[:2]), max(cell[:2]), cell.duplicate) for cell in found.false_negatives}
    assert named == {(7, 21, "text"), (3, 30, "image"), (11, 12, "image")}
    share = next(figure.value for figure in found.figures if figure.name == "unseen_duplicates")
    assert share == pytest.approx(6 / n)
    verdict = next(verdict for verdict in found.verdicts if verdict.kind == "false_negatives")
    assert "15 %" in verdict.evidence[0]


def test_json_has_the_rest_of_the_page(tmp_path: Path) -> None:
    found = inspecting.inspection(8, history=inspecting.history())
    values = numbers(found, tmp_path)
    assert values["whole"] and len(values["cosine"]) == 8
    assert [pair["caption"] for pair in values["pairs"]] == found.captions
    assert values["figures"]["logit_scale"] == 14.0
    assert list(values["figures"]) == [name for name in FIGURES if name in values["figures"]]
    assert values["history"]["steps"] == [0, 20, 40, 60] and "cosines" not in values["history"]
    assert sorted(values["orders"]["cluster"]) == list(range(8))
    torch.testing.assert_close(double(values["free_energy_of_images"]), -(14.0 * found.cosine).logsumexp(1))
    assert values["temperature"]["best"]["softmax"] == found.temperature.best["softmax"]
    large = numbers(inspecting.inspection(WHOLE + 1), tmp_path)  # beyond its limit it leaves the matrices out
    assert not large["whole"] and "cosine" not in large
    assert all("gradient" not in view and len(view["row_loss"]) == WHOLE + 1 for view in large["losses"].values())


def test_what_cannot_be_looked_at_is_refused() -> None:
    image, text = inspecting.embeddings(4)
    broken = image * math.nan
    cases = [("one shape", image, text[:3], 14.0), ("not finite", broken, text, 14.0)]
    for said, one, other, scale in [*cases, ("not finite", image, text, math.inf)]:
        with pytest.raises(ValueError, match=said):
            build(inspecting.sample(4), one, other, torch.eye(4, dtype=torch.bool), scale)
