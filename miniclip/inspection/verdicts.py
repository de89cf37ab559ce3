"""What stands out, in words: the evidence, and what to try; and in a sentence what was looked at, and how it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from miniclip.inspection.contents import History, Summary, Verdict
from miniclip.training.diagnostics import at_clamp

FLAT = 0.98  # loss / chance from which on nothing has been learnt
GAP = 0.5  # loss / chance of these pairs above that of training pairs: those are known by heart
COLLAPSED_RANK = 2.0  # directions
COLLAPSED_UNIFORMITY = -0.1  # nats; all cosines of one side about 0.975
SAME = 0.9  # share of equal images or captions that makes them constant
DUPLICATES = 0.05  # share of pairs with a false negative
STILL_TOWER = 1e-3  # gradient norm over that of the other tower
FALLEN = 0.5  # scale over where it began
RISEN = 0.1  # loss / chance above where it was lowest, or above that of training pairs
LOST = 0.2  # the same, of the training itself
STRAY = 3.0  # and by so many times as much as its batches differ: few small ones rise by more without any cause

NEAR_CHANCE = 3.0  # R@1 over its chance up to which it may be luck
FEWEST = 0.1  # chance of R@1 from which on it says little
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

    figures: by the names of FIGURES, of pairs that were not trained on, and r1_chance, what R@1 is by chance, and side,
    of the images in pixels. images, texts: of those pairs. log: metrics.jsonl, name -> values, or empty.
    """
    broken = [*_broken(figures, log, history)]
    found = [*_collapse(figures, images, texts), *_tower(log), *_scale(figures, log)]
    for repeats, kind, name in ((images, "constant_images", "image"), (texts, "constant_captions", "caption")):
        if repeats.share >= SAME:  # a loss at chance is no wonder then
            evidence = f"{_percent(repeats.share)} of the pairs share one {name}."
            advice = f"Look at the {name} column that the config's data section names, and at a few rows of the data."
            return [*broken, Verdict(kind, f"Nearly all pairs have the same {name}", [evidence], [advice]), *found]
    learning = [*_diverged(figures["loss_over_chance"], log, history)] or [*_overfitting(figures, log, history)]
    learning = learning or [*_learning(figures, log)]
    if learning and learning[0].kind in ("overfitting", "overconfident", "chance"):
        learning = [*_smaller(learning[0].evidence[0], figures["side"], log)] or learning
    return [*broken, *learning, *found, *_duplicates(figures["unseen_duplicates"])]


def summary(found: list[Verdict], figures: Mapping[str, float], log: Log, history: History | None = None) -> Summary:
    """found: the verdicts on the same. Good is only what was looked at and is good."""
    held_out, hits = figures["loss_over_chance"], _hits(figures)
    if found:
        return Summary("bad", found[0].title, hits, found[0].evidence[0])
    trained, lines = figures.get("training_loss_over_chance"), len(_finite(log, "loss_over_chance"))
    text = f"Loss / chance is {held_out:.2f} on these pairs"
    text += f", {trained:.2f} on training pairs" if trained is not None else ""
    course = [f"{lines} lines of the training's log"] * (lines > 0)
    course += [f"{len(history.steps)} matrices of its fixed batch"] if history else []
    text += f"; also looked at: {', '.join(course)}." if course else "; there is no log of the training."
    if _lucky(figures):
        return Summary("unsure", "Too few pairs to tell", hits, text)
    if held_out > FLAT:
        return Summary("unsure", "No better than chance by its loss, but by its hits", hits, text)
    return Summary("good", "Nothing stands out", hits, text)


def _hits(figures: Mapping[str, float]) -> str:
    return f"R@1 is {_percent(_recall(figures))}, by chance {_percent(figures['r1_chance'])}"


def _lucky(figures: Mapping[str, float]) -> bool:
    """Whether R@1 may be luck."""
    return bool(_recall(figures) <= NEAR_CHANCE * figures["r1_chance"])


def _recall(figures: Mapping[str, Any]) -> Any:
    """R@1, mean of both directions."""
    return (figures["r1_image_to_text"] + figures["r1_text_to_image"]) / 2


def _broken(figures: Mapping[str, float], log: Log, history: History | None) -> Iterator[Verdict]:
    """Of losses that are no number."""
    evidence = []
    if not math.isfinite(figures["loss_over_chance"]):
        evidence.append("The loss of these pairs is infinite or no number.")
    kept = [] if history is None else history.figures["loss"].tolist()
    for what, steps, losses in (
        ("the training's log", log.get("step", []), log.get("loss", [])),
        ("the run's fixed batch", history.steps if history else [], kept),
    ):
        if lost := [step for step, loss in zip(steps, losses, strict=False) if not math.isfinite(loss)]:
            share = f"In {what} {len(lost)} of {len(losses)} losses are no number"
            evidence.append(f"{share}, first at step {lost[0]:.0f}, last at step {lost[-1]:.0f}.")
    if evidence:
        advice = ["Lower optim.lr, lengthen optim.warmup_steps, or use train.precision=fp32."]
        advice.append("Go on from a checkpoint before that, or begin anew.")
        yield Verdict("not_finite", "The loss is no number", evidence, advice)


def _diverged(held_out: float, log: Log, history: History | None) -> Iterator[Verdict]:
    """Of what was known of the training's own pairs, or of the fixed batch, and is not any more."""
    course, turned, evidence = _course(log), _turned(history), []
    chance = min([held_out, *course[-1:]]) > FLAT  # these pairs say so, too
    if course and course[-1] > min(course) + LOST + (0 if chance else STRAY * _noise(log)):
        evidence.append(
            f"Loss / chance of the training had been down to {min(course):.2f}; it ended at {course[-1]:.2f}."
        )
    # else the training knows its own pairs all the better
    lost = turned and turned.lowest < FLAT < turned.end and (turned.forgotten or course[-1:] > [turned.end - RISEN])
    if turned and (evidence or lost):
        evidence += turned.words
    if evidence:
        advice = ["Lower optim.lr, or lengthen optim.warmup_steps: the training has diverged."]
        yield Verdict("diverged", "The model has lost what it had learnt", evidence, advice)


def _learning(figures: Mapping[str, float], log: Log) -> Iterator[Verdict]:
    """Of a model that nothing else is wrong with."""
    held_out, course = figures["loss_over_chance"], _course(log)
    learnt = course[-1] if course else figures.get("training_loss_over_chance")
    flat = held_out > FLAT and not (learnt is not None and learnt <= FLAT)
    evidence = [f"The loss of these pairs is {held_out:.2f} of its chance value."]
    if course:
        evidence.append(f"That of the last training steps was {course[-1]:.2f}.")
    if not _lucky(figures):
        if not flat:
            return
        evidence.append(f"But {_hits(figures)}.")
        best = _best(figures)
        evidence.append(f"The logit scale is {figures['logit_scale']:.1f}{best and f'; {best} would be best'}.")
        advice = ["It knows something of these pairs, and is far too sure of it: see what the temperature does."]
        advice.append("Were the pairs that it was trained on like these? If so, it has learnt those by heart.")
        yield Verdict("overconfident", "The model is confident and often wrong", evidence, advice)
    elif flat or figures["r1_chance"] <= FEWEST:
        advice = [
            "Run `python -m miniclip.doctor` with this config: it tries to overfit 128 pairs, at lower rates too, and "
            "tells shuffled pairs, constant images and empty captions.",
            "Open a few pairs below: does each caption describe its picture?",
            "Try a tenth of optim.lr." if flat else "Train longer, and on pairs like these.",
        ]
        evidence.append(f"{_hits(figures)}: that may be luck.")
        if flat:
            yield Verdict("flat", "The loss is flat at chance: nothing is told apart", evidence, advice)
        else:
            yield Verdict("chance", "The model hardly tells these pairs apart", evidence, advice)


def _smaller(evidence: str, side: float, log: Log) -> Iterator[Verdict]:
    """Of a training that is still at train.low_image_size, in place of what would be said of another."""
    pixels, samples = _finite(log, "pixels_per_s"), _finite(log, "samples_per_s")
    seen = round(math.sqrt(pixels[-1] / samples[-1])) if pixels and samples and samples[-1] else side
    if seen < side:
        found = f"Those of its last steps had {seen} pixels a side, these have {side:.0f}."
        advice = "Look again when it has taken steps at full size (train.low_image_size, train.low_share)."
        yield Verdict(
            "smaller_images", "So far the training saw smaller images than these", [found, evidence], [advice]
        )


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
    course, held_out = _course(log), figures["loss_over_chance"]
    end = course[-1] if course else None
    trained, which = figures.get("training_loss_over_chance"), "training pairs"
    if trained is None:
        trained, which = end, "the batches of the last training steps"
    evidence = []
    if trained is not None and held_out - trained > (RISEN if held_out > FLAT else GAP):
        evidence.append(f"Loss / chance is {trained:.2f} on {which}, {held_out:.2f} on these.")
    turned = _turned(history)
    # what never fell was not learnt, unless these pairs say so, too (of a pairwise loss the fixed batch is too small),
    # or are known when nothing of it is; and what the training does not know any better is no over-fitting
    known = turned and (turned.lowest < FLAT or held_out > FLAT or (turned.at_luck and not _lucky(figures)))
    if turned and known and (end is None or end < turned.end - RISEN):
        evidence += turned.words
    if evidence:
        advice = [
            "Stop earlier; use more data, more augmentation (data.augment, data.flip, data.colour_jitter) or more "
            "optim.weight_decay; or train a smaller model.",
            "If it never fell on these pairs, are the captions shuffled? `python -m miniclip.doctor` tells.",
        ]
        yield Verdict("overfitting", "The model is learning its pairs by heart", evidence, advice)


class Turned(NamedTuple):
    """A fixed batch whose loss / chance rises again: at its lowest, at its end, and that in sentences.

    at_luck: whether R@1, too, is at chance in the end. forgotten: and was not before."""

    lowest: float
    end: float
    at_luck: bool
    forgotten: bool
    words: list[str]


def _turned(history: History | None) -> Turned | None:
    if history is None:
        return None
    kept = [(value, k) for k, value in enumerate(history.figures["loss_over_chance"].tolist()) if math.isfinite(value)]
    if not kept or kept[-1][0] <= min(kept)[0] + RISEN:
        return None
    (lowest, at), (end, _) = min(kept), kept[-1]
    recall = _recall(history.figures).tolist()
    best, luck = max(recall), NEAR_CHANCE / len(history.captions)
    words = [
        f"Loss / chance of the run's fixed batch was lowest at step {history.steps[at]}, {lowest:.2f}; at its end it "
        f"is {end:.2f}.",
        f"Its R@1 was highest at step {history.steps[recall.index(best)]}, {_percent(best)}; at the end it is "
        f"{_percent(recall[-1])}. Where R@1 still rises, only the certainty is too high.",
    ]
    return Turned(lowest, end, recall[-1] <= luck, recall[-1] <= luck < best, words)


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


def _course(log: Log) -> list[float]:
    """Loss / chance of the training: medians of its tenths, the last of them last; empty without a log."""
    values = _finite(log, "loss_over_chance")
    width = max(1, len(values) // 10)
    return [median(values[k : k + width]) for k in range(len(values) % width, len(values), width)]


def _noise(log: Log) -> float:
    """By how much a point of that course may be off: the usual step between lines, less where it is of several."""
    values = _finite(log, "loss_over_chance")
    steps = [abs(b - a) for a, b in pairwise(values)]
    return median(steps) / math.sqrt(max(1, len(values) // 10)) if steps else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.{1 if share < 0.095 else 0}f} %"
