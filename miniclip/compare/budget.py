"""What each variant is given: so many steps, samples, or seconds of training.

Seconds become steps before the first run, by short trials of each variant: a run of steps can be repeated and resumed
to the bit, one that looks at a clock cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from miniclip.common.runs import metric_lines
from miniclip.compare.runner import Job
from miniclip.config import Config, ConfigError

ROUNDS = 2  # of trials: the variants take turns, as the machine may be busier at one time than at another
_WARMUP, _TIMED = 5, 10  # steps of a trial at each side of the images


class Budget(NamedTuple):
    """kind: steps, samples, or seconds of training."""

    kind: str
    value: float


def asked_budget(steps: int | None, samples: int | None, seconds: float | None) -> Budget | None:
    """What was asked for, if anything. Raises ConfigError."""
    asked = [Budget(k, v) for k, v in (("steps", steps), ("samples", samples), ("seconds", seconds)) if v is not None]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0].kind} and --{asked[1].kind} exclude each other; give one")
    if asked and not 0 < asked[0].value < math.inf:
        raise ConfigError(f"--{asked[0].kind} {asked[0].value} must be above 0 and finite")
    return asked[0] if asked else None


def configured_budget(config: Config) -> Budget:
    """Raises ConfigError where the configuration counts epochs."""
    if config.train.max_steps is None:
        raise ConfigError("the configuration counts epochs; say what a run is given by --steps, --samples or --seconds")
    return Budget("steps", config.train.max_steps)


def steps_of(asked: Budget | None, config: Config) -> int | None:
    """Of a variant with that configuration; None where only a trial can tell."""
    if asked is None:
        return int(configured_budget(config).value)  # its own, which may be varied
    if asked.kind == "seconds":
        return None
    return max(1, round(asked.value / (config.data.batch_size if asked.kind == "samples" else 1)))


def trials(name: str, config: Config, words: Sequence[str], folder: Path) -> list[Job]:
    """Short trainings of a variant that tell the time of a step, one for each round. words: of its training.

    folder: theirs begin so.
    """
    every = _WARMUP if config.log.every >= _WARMUP else 1  # a step that is logged takes longer
    steps = (_WARMUP + _TIMED) * (1 + (config.train.low_image_size is not None))
    # nothing but steps, half of them at each side of the images
    quiet = ["--eval.tasks=[]", "--eval.every=0", "--eval.best=null", "--eval.guard=null", "--log.matrix_every=0"]
    quiet += ["--log.trackers=[]", "--run.checkpoint_every=0", "--train.profile_steps=0", "--train.low_share=0.5"]
    own = [*words, *quiet, f"--log.every={every}"]
    return [Job(f"trial: {name}", folder.with_name(f"{folder.name}-{k}"), steps, own) for k in range(ROUNDS)]


def step_seconds(config: Config, folders: Sequence[Path]) -> float:
    """Of a step of the run, on the average over its sides of images, by what its trials logged."""
    times: list[list[float]] = [[], []]  # at the side that a trial begins and, with low_image_size, ends with
    for line in (line for folder in folders for _, line in metric_lines(folder / "metrics.jsonl")[0]):
        later, step = divmod(line["step"] - 1, _WARMUP + _TIMED)
        if step >= _WARMUP and "samples_per_s" in line:
            times[later].append(config.data.batch_size / line["samples_per_s"])
    first = median(times[0])
    return first + (1 - config.train.low_share) * (median(times[1]) - first) if times[1] else first


def steps_in(seconds: float, each: float) -> int:
    return max(1, round(seconds / each))
