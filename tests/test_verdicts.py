"""Every verdict from figures that call for it, and none from healthy ones."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from support import inspecting

from miniclip.inspection.contents import History, Verdict
from miniclip.inspection.verdicts import Repeats, verdicts

HEALTHY = {"loss_over_chance": 0.5, "training_loss_over_chance": 0.3, "r1_image_to_text": 0.2, "r1_text_to_image": 0.2}
HEALTHY |= {"rank_image": 40.0, "rank_text": 35.0, "uniformity_image": -2.9, "uniformity_text": -3.1}
HEALTHY |= {"logit_scale": 20.0, "best_scale": 18.0, "unseen_duplicates": 0.01}
LOG = {
    "step": [10.0, 20.0, 30.0],
    "loss_over_chance": [1.0, 0.8, 0.4],
    "logit_scale": [14.3, 14.0, 20.0],
    "grad_norm_image": [1.0, 1.0, 0.8],
    "grad_norm_text": [0.5, 0.4, 0.3],
    "scale_clamped": [0.0, 0.0, 0.0],
}
MANY = Repeats(0.01, 100)
FLAT = {"loss_over_chance": [1.0, 1.01, 0.99]}
AT_CHANCE = {"loss_over_chance": 0.995, "training_loss_over_chance": 0.99}
AT_CHANCE |= {"r1_image_to_text": 0.02, "r1_text_to_image": 0.01}
SURE = {"r1_image_to_text": 0.1}
CLAMPED = {"scale_clamped": [0.0, 0.4, 1.0]}
NAN = math.nan


def past(*loss_over_chance: float) -> History:
    history = inspecting.history()
    history.figures["loss_over_chance"] = torch.tensor(loss_over_chance, dtype=torch.float64)
    return history


def judge(changed: dict[str, float], log: dict[str, list[float]], **more: Any) -> list[Verdict]:
    given = {"images": MANY, "texts": MANY} | more
    return verdicts(HEALTHY | changed, log=LOG | log, **given)


def test_a_healthy_run_has_none() -> None:
    for changed, log, more in (
        ({}, {}, {}),
        ({}, {}, {"history": inspecting.history()}),
        # what never fell is no over-fitting, nor is it if the training is not any better
        ({}, {}, {"history": past(1.5, 1.1, 1.4, 1.6)}),
        ({}, {"loss_over_chance": [1.0, 0.8, 0.7]}, {"history": past(1.0, 0.6, 0.65, 0.75)}),
        # few different captions have few directions
        ({"rank_text": 1.9}, {}, {"texts": Repeats(0.5, 2)}),
        # what is not finite does not count
        ({}, {"loss_over_chance": [1.0, 0.5, NAN], "grad_norm_text": [0.4, 0.4, NAN]}, {}),
    ):
        assert judge(changed, log, **more) == []
    # without a log nobody knows of a clamp, nor without training pairs what those lose
    unknown = {k: v for k, v in HEALTHY.items() if not k.startswith("training")} | {"logit_scale": 117.0}
    assert verdicts(unknown, MANY, MANY, {}) == []


def test_each_illness_has_its_verdict_gravest_first() -> None:
    alike = {"loss_over_chance": 1.0, "training_loss_over_chance": 1.0}
    one_image = alike | {"rank_image": 1.0, "uniformity_image": 0.0}
    one_text = alike | {"rank_text": 1.0, "uniformity_text": 0.0}
    still, crept = {"grad_norm_text": [0.3, 0.0, 0.0]}, {"grad_norm_image": [0.3, 1e-5, 1e-5]}
    overfit = {"history": past(1.0, 0.6, 0.65, 0.75)}
    cases: list[tuple[str, str, dict[str, float], dict[str, list[float]], dict[str, Any]]] = [
        ("flat", "", AT_CHANCE, FLAT, {}),
        ("diverged", "", AT_CHANCE, {"loss_over_chance": [1.0, 0.5, 1.2]}, {}),
        ("overconfident", "", AT_CHANCE | {"r1_image_to_text": 0.1}, FLAT, {}),
        ("collapsed", "images", {"rank_image": 1.2}, {}, {}),
        ("collapsed", "texts", {"uniformity_text": -0.01}, {}, {}),
        ("collapsed", "texts", {"rank_text": 1.9}, {}, {"texts": Repeats(0.5, 8)}),
        # a loss that falls on to an end, or does not look at the scale, has no best one
        ("overconfident", "20.0; 100 or more would be best.", AT_CHANCE | SURE | {"best_scale": math.inf}, FLAT, {}),
        ("overconfident", "20.0; 1 or less would be best.", AT_CHANCE | SURE | {"best_scale": -math.inf}, FLAT, {}),
        ("overconfident", "The logit scale is 20.0.", AT_CHANCE | SURE | {"best_scale": NAN}, FLAT, {}),
        ("scale_clamped", "lowest at 100 or more", {"logit_scale": 100.0, "best_scale": math.inf}, CLAMPED, {}),
        ("scale_clamped", "in 100 % of the last", {"logit_scale": 100.0, "best_scale": NAN}, CLAMPED, {}),
        ("one_tower", "text encoder", {}, still, {}),
        ("one_tower", "image encoder", {}, crept, {}),
        ("scale_clamped", "", {"logit_scale": 100.0}, CLAMPED, {}),
        ("scale_fallen", "lower clamp", {"logit_scale": 1.0}, CLAMPED, {}),
        ("scale_fallen", "falling", {}, {"logit_scale": [14.3, 10.0, 6.0]}, {}),
        ("false_negatives", "6 %", {"unseen_duplicates": 0.06}, {}, {}),
        ("overfitting", "1.30 on these", {"loss_over_chance": 1.3}, {}, {}),
        # dated by the fixed batch
        ("overfitting", "lowest at step 20, 0.60; at its end it is 0.75", {}, {}, overfit),
        # constant data is named instead of what follows from it
        ("constant_images", "100 %", one_image, FLAT, {"images": Repeats(1.0, 1)}),
        ("constant_captions", "95 %", one_text, FLAT, {"texts": Repeats(0.95, 2)}),
        ("flat one_tower false_negatives", "", AT_CHANCE | {"unseen_duplicates": 0.5}, FLAT | still, {}),
    ]
    for kinds, named, changed, log, more in cases:
        found = judge(changed, log, **more)
        assert [verdict.kind for verdict in found] == kinds.split()
        assert named in f"{found[0].title} {found[0].evidence}"
        for verdict in found:
            assert verdict.title and verdict.evidence and verdict.advice
            assert not re.search(r"\b(nan|inf)\b", " ".join([verdict.title, *verdict.evidence, *verdict.advice]))
            assert all(sentence.endswith((".", "?")) for sentence in (*verdict.evidence, *verdict.advice))
