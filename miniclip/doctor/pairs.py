"""The doctor's third stage: do captions belong to their images, or are they shuffled.

Axes: N held-out pairs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from miniclip.data.loader import Batch, TrainingPairs
from miniclip.data.sampler import TrainSampler
from miniclip.doctor.data import Stage
from miniclip.doctor.trial import TOO_SLOW, Setting, Trial
from miniclip.inspection.contents import Verdict
from miniclip.losses.matrix import Embeddings

CHECK_EVERY = 10  # steps between two looks at the held-out pairs
SURE = 6.0  # deviations above chance, found twice: no chance
CHANCE = 3.0  # deviations that chance exceeds once in 700 times
FEWEST_PAIRS, FEWEST_STEPS = 32, 50  # that tell something where nothing was learnt
PERMUTATIONS = 20


@dataclass
class Course:
    """One training watched on held-out pairs. z: of the last look. loss, shuffled: of those pairs, and with their
    captions dealt out anew; over chance."""

    lr: float
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    z: float = 0.0
    loss: float = math.nan
    shuffled: float = math.nan
    finite: bool = True
    sure: bool = False


def watch(setting: Setting, pairs: TrainingPairs, held_out: Batch, lr: float, steps: int | None = None) -> Course:
    """Train as configured, at a constant rate, until the held-out pairs are surely better than chance or time is up."""
    trial, course, n, config = Trial(setting, lr), Course(lr), len(held_out.image), setting.config
    size, z = min(config.data.batch_size, len(pairs)), 0.0
    draws = TrainSampler(len(pairs), size, seed=config.run.seed, steps=2**40)

    def early() -> bool:
        return trial.steps < (steps or FEWEST_STEPS) or z > CHANCE

    title = f"{n} held-out pairs against chance at rate {lr:.2g}"
    for step, course.seconds, bar in trial.train(title, map(pairs.__getitems__, draws), early, steps):
        if not step.finite:
            course.finite = False
            break
        loss = step.loss / trial.chance(size, pairs.wording.count)
        bar.set_postfix_str(f"step {trial.steps}, loss {loss:.2f} of chance, z {z:.1f}", refresh=False)
        if trial.steps % CHECK_EVERY == 0:
            before, z = z, _z(trial.encode(held_out))
            if min(before, z) > SURE:
                break
    embeddings = trial.encode(held_out)
    course.steps, course.epochs, course.z = trial.steps, trial.steps / draws.per_epoch, _z(embeddings)
    course.sure = z > SURE and course.z > SURE
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(n), *(torch.randperm(n, generator=generator) for _ in range(PERMUTATIONS))]
    dealt = []
    for order in orders:
        text = embeddings.text[order.to(embeddings.text.device)]
        with torch.no_grad():
            dealt.append(trial.loss(embeddings._replace(text=text), held_out.image_id, held_out.text_id[order]))
    course.loss, course.shuffled = dealt[0], fmean(dealt[1:])
    return course


def _z(embeddings: Embeddings) -> float:
    return permutation_z(embeddings.image.float().cpu() @ embeddings.text.float().cpu().T)


def permutation_z(similarity: Tensor) -> float:
    """How far the mean of the diagonal lies above that of a random assignment of texts to images, in deviations of it.

    similarity: (N, N). Exact mean and variance over all N! permutations (Hoeffding 1951), so that equal captions or
    images need no care. 0 where all assignments are the same.
    """
    s = similarity.double()
    centred = s - s.mean(0, keepdim=True) - s.mean(1, keepdim=True) + s.mean()
    variance = float(centred.square().sum()) / max(1, len(s) - 1)  # of the sum
    return float(centred.diagonal().sum()) / math.sqrt(variance) if variance > 1e-20 * len(s) else 0.0


def check_pairs(setting: Setting, pairs: TrainingPairs, held_out: Batch, fits: bool) -> Stage:
    """Whether what is learnt of the training pairs tells whose caption is whose among held-out ones.

    fits: whether the configuration is known to learn at all; without that, nothing learnt says nothing.
    """
    n, lr, title = len(held_out.image), setting.config.optim.lr, "captions belong to their images"
    figures: dict[str, Any] = {"held_out_pairs": n}
    if n < FEWEST_PAIRS or len(held_out.text_id.unique()) < 2:
        note = f"{n} held-out pairs are too few, or too much the same, to tell whether captions are shuffled."
        return Stage("pairs", title, figures, [], [note], told=False)
    main = watch(setting, pairs, held_out, lr)
    runs, verdicts, notes = [main], [], []
    if not main.finite or (fits and main.z < CHANCE and main.steps >= FEWEST_STEPS):
        # a rate that only a few pairs put up with looks like shuffled pairs, too
        runs.append(watch(setting, pairs, held_out, lr / 10, main.steps if main.finite else None))
        verdicts.append(_no_pairs(main, runs[1], n))
    elif main.z < CHANCE:
        notes.append(TOO_SLOW)
    elif main.z < SURE:
        notes.append("Captions fit their images better than by chance, but not by much; more --seconds says more.")
    figures |= {f"at_rate_{run.lr:.2g}": _course(run) for run in runs}
    return Stage("pairs", title, figures, verdicts, notes, [asdict(run) for run in runs], TOO_SLOW not in notes)


def _course(run: Course) -> str:
    loss = f", loss {run.loss:.2f} of chance ({run.shuffled:.2f} with captions shuffled)"
    return (
        f"{run.z:.1f} deviations above chance{loss if math.isfinite(run.loss + run.shuffled) else ''} "
        f"after {run.steps} steps ({run.epochs:.1f} epochs) in {run.seconds:.1f} s"
        f"{'' if run.finite else ', then no number'}"
    )


def _no_pairs(main: Course, control: Course, n: int) -> Verdict:
    evidence = [f"{n} held-out pairs at optim.lr={run.lr:.2g}: {_course(run)}" for run in (main, control)]
    if control.sure or not main.finite:
        advice = f"Set optim.lr to {control.lr:.2g}, or try values between that and {main.lr:.2g}."
        return Verdict("rate_too_high", "the learning rate is too high", evidence, [advice])
    evidence.append(f"{SURE:.0f} deviations and more are expected")
    look = "Look at the example pairs: does row i of the captions belong to row i of the images (sorting, joins)?"
    more = "If they do, the data is hard or small for this model: give it more time (--seconds)."
    return Verdict("shuffled", "the captions say nothing about their images beyond chance", evidence, [look, more])
