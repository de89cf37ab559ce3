"""What stands out, in words: the evidence, and what to try. Nothing stands out in a healthy run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import NamedTuple

from torch import Tensor

from miniclip.inspection.contents import History, Verdict
from miniclip.training.diagnostics import at_clamp

FLAT = 0.98  # loss / chance from which on nothing has been learnt
LEARNT = 0.6  # loss / chance of pairs that are known by heart
COLLAPSED_RANK = 2.0  # directions
COLLAPSED_UNIFORMITY = -0.1  # nats; all cosines of one side about 0.975
SAME = 0.9  # share of equal images or captions that makes them constant
DUPLICATES = 0.05  # share of pairs with a false negative
STILL_TOWER = 1e-3  # gradient norm over that of the other tower
FALLEN = 0.5  # scale over where it began
RISEN = 0.1  # loss / chance of the fixed batch above its lowest

NEAR_CHANCE = 3.0  # R@1 over 1/N up to which it may be luck
TELLING = 8  # different images or captions that the rank of their embeddings says something about

Log = Mapping[str, list[float]]


class Repeats(NamedTuple):
    """Of the images, or of the captions, of the pairs. share: in the largest group of equal ones. distinct: groups."""

    share: float
    distinct: int

    @classmethod
    def of(cls, same: Tensor) -> Repeats:
        """same: (N, N) bool, symmetric, which are equal."""
        return cls(float(same.sum(1).max()) / len(same), int((~same.tril(-1).any(1)).sum()))


def verdicts(
    figures: Mapping[str, float], images: Repeats, texts: Repeats, log: Log, history: History | None = None
) -> list[Verdict]:
    """What the figures of the pairs and the log of the training say, gravest first.

    figures: by the names of FIGURES, of pairs that were not trained on. images, texts: of those pairs. log:
    metrics.jsonl, name -> values, or empty.
    """
    found = [*_collapse(figures, images, texts), *_tower(log), *_scale(figures, log)]
    for repeats, kind, name in ((images, "constant_images", "image"), (texts, "constant_captions", "caption")):
        if repeats.share >= SAME:  # a loss at chance is no wonder then
            evidence = f"{_percent(repeats.share)} of the pairs share one {name}."
            advice = f"Look at the {name} column that the config's data section names, and at a few rows of the data."
            return [Verdict(kind, f"Nearly all pairs have the same {name}", [evidence], [advice]), *found]
    found = [*_learning(figures, images.distinct, log), *found, *_duplicates(figures["unseen_duplicates"])]
    return [*found, *_overfitting(figures, log, history)]


def _learning(figures: Mapping[str, float], n: int, log: Log) -> Iterator[Verdict]:
    held_out, trained = figures["loss_over_chance"], _end(log, "loss_over_chance")
    learnt = trained if trained is not None else figures.get("training_loss_over_chance")
    if held_out <= FLAT or (learnt is not None and learnt <= FLAT):
        return
    evidence = [f"The loss of these pairs is {held_out:.2f} of its chance value."]
    if trained is not None:
        evidence.append(f"So was that of the last training steps: {trained:.2f}.")
    lowest = min(_finite(log, "loss_over_chance"), default=math.inf)
    recall = (figures["r1_image_to_text"] + figures["r1_text_to_image"]) / 2
    if lowest < FLAT - RISEN:
        evidence.append(f"It had been down to {lowest:.2f} before.")
        advice = ["Lower optim.lr, or lengthen optim.warmup_steps: the training has diverged."]
        yield Verdict("diverged", "The model has lost what it had learnt", evidence, advice)
    elif recall > NEAR_CHANCE / n:
        evidence.append(f"But R@1 is {_percent(recall)}, {recall * n:.0f} times as much as by chance.")
        best = _best(figures)
        evidence.append(f"The logit scale is {figures['logit_scale']:.1f}{best and f'; {best} would be best'}.")
        advice = ["It knows something of these pairs, and is far too sure of it: see what the temperature does."]
        advice.append("Were the pairs that it was trained on like these? If so, it has learnt those by heart.")
        yield Verdict("overconfident", "The model is confident and often wrong", evidence, advice)
    else:
        advice = [
            "Run `python -m miniclip.doctor` with this config: it tries to overfit 128 pairs, at lower rates too, and "
            "tells shuffled pairs, constant images and empty captions.",
            "Open a few pairs below: does each caption describe its picture?",
            "Try a tenth of optim.lr.",
        ]
        yield Verdict("flat", "The loss is flat at chance: nothing is told apart", evidence, advice)


def _collapse(figures: Mapping[str, float], images: Repeats, texts: Repeats) -> Iterator[Verdict]:
    evidence = []
    for side, of in (("image", images), ("text", texts)):
        rank, spread = figures[f"rank_{side}"], figures[f"uniformity_{side}"]
        few = of.distinct >= TELLING and rank < COLLAPSED_RANK
        if of.share < SAME and (few or spread > COLLAPSED_UNIFORMITY):
            evidence += [f"The {side}s use {rank:.1f} directions; their uniformity is {spread:.2f} (0 is one point)."]
    if evidence:
        advice = ["Lower optim.lr, or lengthen optim.warmup_steps."]
        advice.append("With loss.name=hinge, begin with loss.hardest=0, or set loss.hardest_warmup.")
        advice.append("With a frozen or pretrained encoder, check that its pictures are normalised as it expects.")
        yield Verdict("collapsed", "The embeddings have collapsed", evidence, advice)


def _tower(log: Log) -> Iterator[Verdict]:
    image, text = _end(log, "grad_norm_image"), _end(log, "grad_norm_text")
    if image is None or text is None or image == text:
        return
    name, own, other = ("image", image, text) if image < text else ("text", text, image)
    if own <= STILL_TOWER * other:
        evidence = [f"Its gradient norm was {own:.1e} in the last steps, that of the other encoder {other:.1e}."]
        advice = ["Are its parameters frozen (requires_grad), or detached on the way to the loss?"]
        advice.append(f"Is what it reads constant? Look at the {name}s of the pairs below.")
        yield Verdict("one_tower", f"The {name} encoder is not learning", evidence, advice)


def _scale(figures: Mapping[str, float], log: Log) -> Iterator[Verdict]:
    scale, clamped, scales = figures["logit_scale"], _end(log, "scale_clamped"), _finite(log, "logit_scale")
    # without a log nobody knows of a clamp: published models stand at 100 and above
    if at_clamp(scale) and clamped:
        evidence = [f"The logit scale is {scale:.1f}."]
        evidence.append(f"It stood at the clamp in {_percent(clamped)} of the last steps.")
        if scale > 2:
            evidence += [f"The loss of these pairs would be lowest at {best}." for best in [_best(figures)] if best]
            advice = ["Usual after long training on much data; on little data the model is learning it by heart."]
            advice.append("Stop earlier, augment more, or add label smoothing (loss.smoothing).")
            yield Verdict("scale_clamped", "The logit scale stands at its upper clamp", evidence, advice)
        else:
            advice = ["Nothing is gained by telling pairs apart: look for shuffled pairs and for false negatives."]
            yield Verdict("scale_fallen", "The logit scale has fallen to its lower clamp", evidence, advice)
    elif scales and scales[-1] < FALLEN * scales[0]:
        evidence = [f"It went from {scales[0]:.1f} to {scales[-1]:.1f}."]
        advice = ["A flat matrix costs less than a wrong one: look for wrong captions and for false negatives."]
        advice.append("Lower optim.lr, or lengthen optim.warmup_steps.")
        yield Verdict("scale_fallen", "The logit scale is falling", evidence, advice)


def _duplicates(share: float) -> Iterator[Verdict]:
    if share > DUPLICATES:
        shown = f"{_percent(share)} of the pairs have a duplicate that counts as a negative; the list below names them."
        advice = [
            "loss.positives=text or identity makes captions of equal tokens positives.",
            "Captions that differ in punctuation alone, and copies of a picture under other names, stay negatives: "
            "merge them in the data.",
        ]
        yield Verdict("false_negatives", "The loss pushes duplicates apart", [shown], advice)


def _overfitting(figures: Mapping[str, float], log: Log, history: History | None) -> Iterator[Verdict]:
    evidence = []
    trained, held_out = figures.get("training_loss_over_chance"), figures["loss_over_chance"]
    if trained is not None and trained < LEARNT and held_out > FLAT:
        evidence.append(f"Loss / chance is {trained:.2f} on training pairs, {held_out:.2f} on these.")
    if history is not None:
        curve, end = history.figures["loss_over_chance"].tolist(), _end(log, "loss_over_chance")
        lowest = min(curve)
        # what never fell was not learnt, and what the training does not know any better is no over-fitting
        if lowest < FLAT and curve[-1] > lowest + RISEN and (end is None or end < curve[-1] - RISEN):
            step = history.steps[curve.index(lowest)]
            recall = (history.figures["r1_image_to_text"] + history.figures["r1_text_to_image"]) / 2
            best = int(recall.argmax())
            evidence += [
                f"Loss / chance of the run's fixed batch was lowest at step {step}, {lowest:.2f}; at its end it is "
                f"{curve[-1]:.2f}.",
                f"Its R@1 was highest at step {history.steps[best]}, {_percent(float(recall[best]))}; at the end it is "
                f"{_percent(float(recall[-1]))}. Where R@1 still rises, only the certainty is too high.",
            ]
    if evidence:
        advice = [
            "Stop earlier; use more data, more augmentation (data.augment, data.flip, data.colour_jitter) or more "
            "optim.weight_decay; or train a smaller model.",
            "If it never fell on these pairs, are the captions shuffled? `python -m miniclip.doctor` tells.",
        ]
        yield Verdict("overfitting", "The model is learning its pairs by heart", evidence, advice)


def _best(figures: Mapping[str, float]) -> str:
    """The best scale in words, which is none where the loss does not depend on it."""
    best, learned = figures["best_scale"], figures["logit_scale"]
    if math.isinf(best):  # to an end of the temperature's curve
        return f"{max(100.0, learned):.0f} or more" if best > 0 else f"{min(1.0, learned):.2g} or less"
    return "" if math.isnan(best) else f"{best:.1f}"


def _finite(log: Log, name: str) -> list[float]:
    return [value for value in log.get(name, []) if math.isfinite(value)]


def _end(log: Log, name: str) -> float | None:
    """Median of the last tenth of the lines, at least one; None without any."""
    values = _finite(log, name)
    return median(values[-max(1, len(values) // 10) :]) if values else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
