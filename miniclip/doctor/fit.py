"""The doctor's second stage: can the configuration learn a few pairs by heart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from statistics import fmean
from typing import Any

import torch

from miniclip.data.loader import Batch
from miniclip.doctor.data import Stage
from miniclip.doctor.trial import TOO_SLOW, Setting, Trial
from miniclip.inspection.contents import Verdict
from miniclip.losses.matrix import Positives
from miniclip.metrics.retrieval import recall_at_k, retrieval_ranks
from miniclip.training.learning import locked_cut

FITS = 0.9  # R@1 in the batch, both ways
FEWEST_STEPS = 100  # that tell something where nothing was learnt
PATIENCE = 300  # steps in which the loss has to fall by FALL
FALL, FAR = 0.02, 0.4  # of the loss at chance
STILL = 1e-6  # relative change below which weights count as unmoved


@dataclass
class Fit:
    """One training on a fixed batch. start, end: loss / chance. change, gradient: of each tower, the relative change of
    its weights and its largest gradient norm. outcome: fits, time (is up), stalled or not finite."""

    lr: float
    steps: int = 0
    seconds: float = 0.0
    start: float = math.nan
    end: float = math.nan
    falling: bool = False
    r1_image_to_text: float = 0.0
    r1_text_to_image: float = 0.0
    change: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=lambda: {"image": 0.0, "text": 0.0})
    outcome: str = "time"


def overfit(setting: Setting, batch: Batch, lr: float, steps: int | None = None) -> Fit:
    """Train on one batch of pairs, a caption each, until each finds its own, or nothing more is to be expected.

    steps: as many at most, for a comparison with a training of that length.
    """
    trial, fit = Trial(setting, lr), Fit(lr)
    # equal images are one image here, wherever they lie
    image_id = torch.tensor([hash(image.numpy().tobytes()) for image in batch.image])
    batch = trial.on_features(batch, locked_cut(trial.learner.model, setting.config.model))
    positives = Positives.of("identity", image_id, batch.text_id).of_images(slice(None))
    chance, losses = trial.chance(len(positives)), list[float]()
    best, best_step = math.inf, 0

    def early() -> bool:
        return trial.steps < (steps or FEWEST_STEPS) or _falling(losses)

    title = f"learning {len(positives)} pairs by heart at rate {lr:.2g}"
    for step, fit.seconds, bar in trial.train(title, repeat(batch), early, steps, watched=True):
        if not step.finite:
            fit.outcome = "not finite"
            break
        losses.append(step.loss / chance)
        fit.gradient = {tower: max(norm, step.figures[f"grad_norm_{tower}"]) for tower, norm in fit.gradient.items()}
        ranks = retrieval_ranks((step.embeddings.image @ step.embeddings.text.T).float().cpu(), positives)
        fit.r1_image_to_text = recall_at_k(ranks.image_to_text, 1)
        fit.r1_text_to_image = recall_at_k(ranks.text_to_image, 1)
        bar.set_postfix_str(f"step {trial.steps}, loss {losses[-1]:.2f} of chance", refresh=False)
        if losses[-1] < best - FALL:
            best, best_step = losses[-1], trial.steps
        if min(fit.r1_image_to_text, fit.r1_text_to_image) >= FITS:
            fit.outcome = "fits"
            break
        if trial.steps - best_step >= PATIENCE:
            fit.outcome = "stalled"
            break
    fit.steps, fit.change = trial.steps, trial.change()
    fit.falling = fit.outcome == "time" and _falling(losses)
    if losses:
        fit.start, fit.end = losses[0], fmean(losses[-min(10, max(1, len(losses) // 5)) :])
    return fit


def _falling(losses: Sequence[float]) -> bool:
    """Whether the last fifth lies below the one before."""
    tail = len(losses) // 5
    return tail > 0 and fmean(losses[-tail:]) < fmean(losses[-2 * tail : -tail]) - FALL


def check_fit(setting: Setting, batch: Batch) -> Stage:
    """Whether the configuration learns the batch by heart; if not, whether it does at lower rates."""
    lr = setting.config.optim.lr
    main = overfit(setting, batch, lr)
    model = setting.config.model
    runs, verdict = [main], _one_tower(main, {"image": model.lock_image is True, "text": model.lock_text is True})
    if verdict is None and main.outcome != "fits":
        for share in (10, 100):
            runs.append(overfit(setting, batch, lr / share, None if main.outcome == "not finite" else main.steps))
            if runs[-1].outcome == "fits":
                break
        verdict = _no_fit(main, runs[1:], locked=bool(model.lock_image or model.lock_text))
    figures: dict[str, Any] = {"pairs": len(batch.image), **{f"at_rate_{run.lr:.2g}": _told(run) for run in runs}}
    for what in ("change", "gradient"):
        figures |= {f"{what}_of_{tower}_tower": value for tower, value in getattr(main, what).items()}
    told = verdict is None or verdict.kind != "no_overfit" or main.steps >= FEWEST_STEPS
    verdicts, notes = [verdict] if verdict and told else [], [] if told else [TOO_SLOW]
    title, found = f"learns {len(batch.image)} pairs by heart", [asdict(run) for run in runs]
    return Stage("overfit", title, figures, verdicts, notes, found, told)


def _told(run: Fit) -> str:
    end = {"fits": "learnt by heart", "stalled": "no longer falling", "not finite": "then no number"}
    still = "time is up" + ", still falling" * run.falling
    loss = "" if math.isnan(run.end) else f"loss {run.start:.2f} -> {run.end:.2f} of chance, "  # no step was finite
    return (
        f"{loss}R@1 {run.r1_image_to_text:.0%} and "
        f"{run.r1_text_to_image:.0%} after {run.steps} steps in {run.seconds:.1f} s: {end.get(run.outcome, still)}"
    )


def _one_tower(run: Fit, locked: dict[str, bool]) -> Verdict | None:
    """Of a tower that does not learn beside one that does, unless it is locked."""
    still = [tower for tower in run.change if run.change[tower] < STILL or run.gradient[tower] == 0]
    if len(still) != 1 or run.steps == 0:
        return None
    (tower,), (other,) = still, run.change.keys() - still
    if locked[tower]:
        return None
    evidence = [
        f"in {run.steps} steps the weights of the {tower} encoder changed by {run.change[tower]:.1e} of their length, "
        f"those of the other by {run.change[other]:.1e}",
        f"its largest gradient norm was {run.gradient[tower]:.1e}",
    ]
    advice = "Look for requires_grad=False, a detach or no_grad before the loss, and at the optimiser's parameters."
    return Verdict("one_tower", f"the {tower} encoder is not learning", evidence, [advice])


def _no_fit(main: Fit, controls: Sequence[Fit], locked: bool) -> Verdict:
    """main: at the configured rate, which did not fit; controls: at lower rates. locked: whether part of it is."""
    evidence = [f"at optim.lr={run.lr:.2g}: {_told(run)}" for run in (main, *controls)]
    broken = main.outcome == "not finite"
    far_below = (1 if broken else main.end) - FAR
    better = [run for run in controls if run.outcome == "fits" or (run.outcome != "not finite" and run.end < far_below)]
    if better:
        best = min(better, key=lambda run: (run.outcome != "fits", run.end))
        advice = f"Set optim.lr to {best.lr:.2g} or lower; a few pairs bear a higher rate than a long run."
        return Verdict("rate_too_high", "the learning rate is too high", evidence, [advice])
    if broken:
        advice = "Try train.precision=fp32 and a far lower optim.lr; look for a division by what may be zero."
        return Verdict("not_finite", "the loss becomes infinite or no number, at lower rates, too", evidence, [advice])
    advice = "Try a larger model or a higher optim.lr; look at the pairs, and at whether the model was changed."
    if locked:
        less = "lock less (model.lock_image, model.lock_text), or take model.projection=mlp"
        advice = f"Too little may learn: {less}, or a higher optim.lr; look at the pairs."
    if main.falling:
        advice = "The loss was still falling: give it more time (--seconds), or a larger model or a higher optim.lr."
    return Verdict("no_overfit", "the model does not learn a few pairs by heart", evidence, [advice])
