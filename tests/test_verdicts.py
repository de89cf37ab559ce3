"""Every verdict from figures that call for it, and none from healthy ones."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import torch
from support import inspecting

from miniclip.inspection.contents import History, Summary, Verdict
from miniclip.inspection.verdicts import Repeats, summary, verdicts

HEALTHY = {"loss_over_chance": 0.5, "training_loss_over_chance": 0.3, "r1_image_to_text": 0.2, "r1_text_to_image": 0.2}
HEALTHY |= {"rank_image": 40.0, "rank_text": 35.0, "uniformity_image": -2.9, "uniformity_text": -3.1}
HEALTHY |= {"logit_scale": 20.0, "best_scale": 18.0, "unseen_duplicates": 0.01, "r1_chance": 0.01, "side": 64.0}
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
TRAINED = "training_loss_over_chance"
WORSE = {"loss_over_chance": 1.05, TRAINED: 0.97}
GONE = (0.0, 0.5, 0.2, 0.05)
LUCK = {"r1_image_to_text": 0.01, "r1_text_to_image": 0.01}


def past(*loss_over_chance: float, hits: tuple[float, ...] = ()) -> History:
    history = inspecting.history(32)
    history.figures["loss_over_chance"] = torch.tensor(loss_over_chance, dtype=torch.float64)
    history.figures["loss"] = history.figures["loss_over_chance"]
    if hits:
        history.figures["r1_image_to_text"] = history.figures["r1_text_to_image"] = torch.tensor(hits)
    return history


def sides(side: int) -> dict[str, list[float]]:
    return {"pixels_per_s": [NAN, 7.3 * side**2], "samples_per_s": [NAN, 7.3]}


def judge(changed: dict[str, float], log: dict[str, list[float]], without: str = "", **more: Any) -> list[Verdict]:
    given = {"images": MANY, "texts": MANY} | more
    figures = {name: value for name, value in (HEALTHY | changed).items() if name != without}
    return verdicts(figures, log=LOG | log, **given)


def test_a_healthy_run_has_none() -> None:
    for changed, log, more in (
        ({}, {}, {}),
        ({}, {}, {"history": inspecting.history()}),
        # what never fell is no over-fitting, nor is it if the training is not any better
        ({}, {}, {"history": past(1.5, 1.1, 1.4, 1.6)}),
        ({}, {"loss_over_chance": [1.0, 0.8, 0.7]}, {"history": past(1.0, 0.6, 0.65, 0.75)}),
        # nor is what batches of eight differ by a loss of what was learnt
        ({}, {"loss_over_chance": [1, 0.9, 0.7, 0.8, 0.5, 0.9, 0.4, 0.7, 0.3, 0.8, 0.4, 0.7]}, {}),
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
        ("false_negatives", "6.0 %", {"unseen_duplicates": 0.06}, {}, {}),
        ("overfitting", "0.30 on training pairs, 1.30 on these", {"loss_over_chance": 1.3}, {}, {}),
        # also where only the log knows of the training pairs, or they are not known well, or the gap is wide
        ("overfitting", "0.40 on the batches of the last", {"loss_over_chance": 1.16}, {}, {"without": TRAINED}),
        ("overfitting", "0.90 on training pairs, 1.16", {"loss_over_chance": 1.16, TRAINED: 0.9}, {}, {}),
        ("overfitting", "0.30 on training pairs, 0.85", {"loss_over_chance": 0.85}, {}, {}),
        (
            "overfitting",
            "lowest at step 0, 1.00; at its end it is 1.40",
            WORSE,
            {},
            {"history": past(1, 1.1, 1.2, 1.4)},
        ),
        # also where these pairs are those of the training, if nothing of the fixed batch is found either
        (
            "overfitting",
            "at its end it is 1.40",
            {},
            {},
            {"history": past(1, 1.1, 1.2, 1.4, hits=(0, 0.03, 0.05, 0.03))},
        ),
        # which nobody knows of images that are larger than those it was trained on so far; as large ones do not matter
        ("smaller_images", "had 32 pixels a side, these have 64", {"loss_over_chance": 1.16}, sides(32), {}),
        ("smaller_images", "is 0.50 of its chance", LUCK, sides(32), {}),
        ("overfitting", "1.16 on these", {"loss_over_chance": 1.16}, sides(64), {}),
        ("flat", "", AT_CHANCE, FLAT | sides(32), {}),
        # of the training's own pairs, too; or of a fixed batch that nothing is known of any more
        (
            "diverged",
            "had been down to 0.40; it ended at 0.95",
            {},
            {"loss_over_chance": [1, 0.4, 0.4, 0.5, 0.9, 0.95]},
            {},
        ),
        (
            "diverged",
            "lowest at step 20, 0.50; at its end it is 40.00",
            {},
            {},
            {"history": past(1, 0.5, 3, 40, hits=GONE)},
        ),
        (
            "diverged",
            "at its end it is 1.20",
            {},
            {"loss_over_chance": [1.0, 0.95, 1.14]},
            {"history": past(1, 0.5, 0.9, 1.2)},
        ),
        ("not_finite", "loss of these pairs is infinite or no number", {"loss_over_chance": NAN}, {}, {}),
        ("not_finite", "log 2 of 3 losses are no number, first at step 20", {}, {"loss": [1.0, NAN, math.inf]}, {}),
        (
            "not_finite",
            "fixed batch 1 of 4 losses are no number, first at step 60",
            {},
            {},
            {"history": past(1, 0.5, 0.4, NAN)},
        ),
        ("chance", "R@1 is 1.0 %, by chance 1.0 %: that may be luck", LUCK, {}, {}),
        ("chance", "that may be luck", LUCK, {}, {"history": past(1, 1.1, 1.2, 1.4, hits=(0, 0.03, 0.05, 0.03))}),
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


def test_good_is_only_what_was_looked_at_and_is_good() -> None:
    def say(changed: dict[str, float], log: dict[str, list[float]], history: History | None = None) -> Summary:
        figures = HEALTHY | changed
        return summary(verdicts(figures, MANY, MANY, log, history), figures, log, history)

    assert say({}, LOG, inspecting.history()) == (
        "good",
        "Nothing stands out",
        "R@1 is 20 %, by chance 1.0 %",
        "Loss / chance is 0.50 on these pairs, 0.30 on training pairs; also looked at: 3 lines of the training's log, "
        "4 matrices of its fixed batch.",
    )
    assert say({}, {}).text.endswith("there is no log of the training.") and say({}, {}).tone == "good"
    bad = say({"loss_over_chance": 1.16, TRAINED: 0.19}, LOG)
    assert (bad.tone, bad.title) == ("bad", "The model is learning its pairs by heart")
    assert bad.text == "Loss / chance is 0.19 on training pairs, 1.16 on these."
    few = say({"r1_image_to_text": 0.5, "r1_text_to_image": 0.5, "r1_chance": 0.25}, LOG)
    assert few[:3] == ("unsure", "Too few pairs to tell", "R@1 is 50 %, by chance 25 %")
    # a pairwise loss on fewer pairs than its bias is for
    unlike = say({"loss_over_chance": 1.3, TRAINED: 1.25}, LOG)
    assert unlike.tone == "unsure" and "but by its hits" in unlike.title
    # of all figures that may be: what is not good is not green
    losses, hits = (0.2, 0.9, 1.0, 1.16, 5, NAN), (0, 0.02, 0.3)
    for held_out, trained, hit, end in itertools.product(losses, losses, hits, (0.1, 1.1)):
        recall = {"r1_image_to_text": hit, "r1_text_to_image": hit}
        said = say({"loss_over_chance": held_out, TRAINED: trained} | recall, {"loss_over_chance": [1.0, end]})
        assert said.tone != "good" or (held_out < 0.98 and hit > 0.03), said
