"""What each variant is given: so many steps, samples, or seconds of training.

Seconds become steps before the first run, by short trials of each variant: a run of steps can be repeated and resumed
to the bit, one that looks at a clock cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from miniclip.compare.lines import metric_lines
from miniclip.compare.runner import Job
from miniclip.config import Config, ConfigError

ROUNDS = 2  # of trials: the variants take turns, as the machine may be busier at one time than at another
_LINES = 3  # of the log for each side of the images; the first of them warms up
_EVERY = 5  # steps of a line at most


class Budget(NamedTuple):
    """kind: steps, samples, or seconds of training."""

    kind: str
    value: float


def budget_of(config: Config, steps: int | None, samples: int | None, seconds: float | None) -> tuple[Budget, bool]:
    """What was asked for, and True; or the configuration's train.max_steps, and False. Raises ConfigError."""
    asked = [Budget(k, v) for k, v in (("steps", steps), ("samples", samples), ("seconds", seconds)) if v is not None]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0].kind} and --{asked[1].kind} exclude each other; give one")
    if asked and not 0 < asked[0].value < float("inf"):
        raise ConfigError(f"--{asked[0].kind} {asked[0].value} must be above 0")
    if asked:
        return asked[0], True
    if config.train.max_steps is None:
        raise ConfigError("the configuration counts epochs; say what a run is given by --steps, --samples or --seconds")
    return Budget("steps", config.train.max_steps), False


def steps_of(budget: Budget, asked: bool, config: Config) -> int | None:
    """Of a variant; None where only a trial can tell."""
    if budget.kind == "seconds":
        return None
    if not asked:  # its own, which may be varied
        if config.train.max_steps is None:
            raise ConfigError("a variant counts epochs; use train.max_steps in all of them, or --steps")
        return config.train.max_steps
    return max(1, round(budget.value / (config.data.batch_size if budget.kind == "samples" else 1)))


def trials(name: str, config: Config, words: Sequence[str], folder: Path) -> list[Job]:
    """Short trainings of a variant that tell the time of a step, one for each round. words: of its training.

    folder: theirs begin so.
    """
    every = min(config.log.every, _EVERY)
    steps = every * _LINES * (1 + (config.train.low_image_size is not None))
    # nothing but steps, half of them at each side of the images
    quiet = ["--eval.tasks=[]", "--eval.every=0", "--eval.best=null", "--eval.guard=null", "--log.matrix_every=0"]
    quiet += ["--log.trackers=[]", "--run.checkpoint_every=0", "--train.profile_steps=0", "--train.low_share=0.5"]
    own = [*words, *quiet, f"--log.every={every}"]
    return [Job(f"trial: {name}", folder.with_name(f"{folder.name}-{k}"), steps, own) for k in range(ROUNDS)]


def step_seconds(config: Config, folders: Sequence[Path]) -> float:
    """Of a step of the run, on the average over its sides of images, by what its trials logged."""
    times: list[list[float]] = [[], []]
    for folder in folders:
        speeds = [line["samples_per_s"] for line in metric_lines(folder) if "samples_per_s" in line]
        found = [config.data.batch_size / speed for speed in speeds]
        low = found[: len(found) // 2] if config.train.low_image_size is not None else []
        for k, of_side in enumerate((low, found[len(low) :])):
            times[k] += of_side[1:]
    share = config.train.low_share if times[0] else 0.0
    return share * (median(times[0]) if times[0] else 0.0) + (1 - share) * median(times[1])


def steps_in(seconds: float, each: float) -> int:
    return max(1, round(seconds / each))
