"""Every verdict from figures that call for it, and none from healthy ones."""

from __future__ import annotations

import pytest
import torch
from support import inspecting

from miniclip.inspection.contents import History, Verdict
from miniclip.inspection.verdicts import Repeats, verdicts

HEALTHY = {
    "loss_over_chance": 0.5,
    "training_loss_over_chance": 0.3,
    "r1_image_to_text": 0.2,
    "r1_text_to_image": 0.2,
    "rank_image": 40.0,
    "rank_text": 35.0,
    "uniformity_image": -2.9,
    "uniformity_text": -3.1,
    "logit_scale": 20.0,
    "best_scale": 18.0,
    "unseen_duplicates": 0.01,
}
LOG = {
    "step": [10.0, 20.0, 30.0],
    "loss_over_chance": [1.0, 0.8, 0.4],
    "logit_scale": [14.3, 14.0, 20.0],
    "grad_norm_image": [1.0, 1.0, 0.8],
    "grad_norm_text": [0.5, 0.4, 0.3],
    "scale_clamped": [0.0, 0.0, 0.0],
}


MANY = Repeats(0.01, 100)


def judge(
    changed: dict[str, float] | None = None,
    log: dict[str, list[float]] | None = None,
    images: Repeats = MANY,
    texts: Repeats = MANY,
    history: History | None = None,
) -> list[Verdict]:
    return verdicts(HEALTHY | (changed or {}), images, texts, LOG | (log or {}), history)


def test_a_healthy_run_has_none() -> None:
    assert judge() == []
    assert judge(history=inspecting.history()) == []
    assert verdicts({k: v for k, v in HEALTHY.items() if not k.startswith("training")}, MANY, MANY, {}) == []


FLAT = [1.0, 1.01, 0.99]
LUCK = {"r1_image_to_text": 0.02, "r1_text_to_image": 0.01}
AT_CHANCE = {"loss_over_chance": 0.995, "training_loss_over_chance": 0.99} | LUCK


@pytest.mark.parametrize(
    ("kind", "changed", "log"),
    [
        ("flat", AT_CHANCE, {"loss_over_chance": FLAT}),
        ("diverged", AT_CHANCE, {"loss_over_chance": [1.0, 0.5, 1.2]}),
        ("overconfident", AT_CHANCE | {"r1_image_to_text": 0.1}, {"loss_over_chance": FLAT}),
        ("collapsed", {"rank_image": 1.2}, {}),
        ("collapsed", {"uniformity_text": -0.01}, {}),
        ("one_tower", {}, {"grad_norm_text": [0.3, 0.0, 0.0]}),
        ("one_tower", {}, {"grad_norm_image": [0.3, 1e-5, 1e-5]}),
        ("scale_clamped", {"logit_scale": 100.0}, {"scale_clamped": [0.0, 0.4, 1.0]}),
        ("scale_fallen", {"logit_scale": 1.0}, {"scale_clamped": [0.0, 0.4, 1.0]}),
        ("scale_fallen", {}, {"logit_scale": [14.3, 10.0, 6.0]}),
        ("false_negatives", {"unseen_duplicates": 0.06}, {}),
        ("overfitting", {"loss_over_chance": 1.3}, {}),
    ],
)
def test_each_illness_has_its_verdict(kind: str, changed: dict[str, float], log: dict[str, list[float]]) -> None:
    (verdict,) = judge(changed, log)
    assert verdict.kind == kind
    assert verdict.title and verdict.evidence and verdict.advice
    assert all(sentence.endswith((".", "?")) for sentence in (*verdict.evidence, *verdict.advice))


def test_constant_data_is_named_instead_of_what_follows_from_it() -> None:
    flat = {"loss_over_chance": 1.0, "training_loss_over_chance": 1.0, "rank_image": 1.0, "uniformity_image": 0.0}
    (verdict,) = judge(flat, {"loss_over_chance": FLAT}, images=Repeats(1.0, 1))
    assert verdict.kind == "constant_images" and "100 %" in verdict.evidence[0]
    flat = {"loss_over_chance": 1.0, "training_loss_over_chance": 1.0, "rank_text": 1.0, "uniformity_text": 0.0}
    (verdict,) = judge(flat, {"loss_over_chance": FLAT}, texts=Repeats(0.95, 2))
    assert verdict.kind == "constant_captions"


def test_few_different_captions_have_few_directions() -> None:
    assert judge({"rank_text": 1.9}, texts=Repeats(0.5, 2)) == []
    assert [verdict.kind for verdict in judge({"rank_text": 1.9}, texts=Repeats(0.5, 8))] == ["collapsed"]


def test_a_model_without_a_log_may_stand_at_the_clamp() -> None:
    assert verdicts(HEALTHY | {"logit_scale": 117.0}, MANY, MANY, {}) == []


def test_the_tower_that_stands_still_is_named() -> None:
    (verdict,) = judge(log={"grad_norm_text": [0.0, 0.0, 0.0]})
    assert "text encoder" in verdict.title
    (verdict,) = judge(log={"grad_norm_image": [0.0, 0.0, 0.0]})
    assert "image encoder" in verdict.title


def test_overfitting_is_dated_by_the_fixed_batch() -> None:
    history = inspecting.history()
    history.figures["loss_over_chance"] = torch.tensor([1.0, 0.6, 0.65, 0.75], dtype=torch.float64)
    (verdict,) = judge(history=history)
    assert verdict.kind == "overfitting"
    assert "step 20" in verdict.evidence[0] and "0.60" in verdict.evidence[0] and "0.75" in verdict.evidence[0]


def test_what_never_fell_is_no_overfitting() -> None:
    history = inspecting.history()
    history.figures["loss_over_chance"] = torch.tensor([1.5, 1.1, 1.4, 1.6], dtype=torch.float64)
    assert [verdict.kind for verdict in judge(history=history)] == []
    history.figures["loss_over_chance"] = torch.tensor([1.0, 0.6, 0.65, 0.75], dtype=torch.float64)
    assert judge(log={"loss_over_chance": [1.0, 0.8, 0.7]}, history=history) == []  # nor is the training any better


def test_gravest_first_and_several_at_once() -> None:
    found = judge(AT_CHANCE | {"unseen_duplicates": 0.5}, {"loss_over_chance": FLAT, "grad_norm_text": [0.0, 0.0, 0.0]})
    assert [verdict.kind for verdict in found] == ["flat", "one_tower", "false_negatives"]


def test_what_is_not_finite_does_not_count() -> None:
    nan = float("nan")
    assert judge(log={"loss_over_chance": [1.0, 0.5, nan], "grad_norm_text": [0.4, 0.4, nan]}) == []
