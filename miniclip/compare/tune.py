"""The best value of one option for each variant, by successive halving (Jamieson & Talwalkar, arXiv:1502.07943).

All values train for a quarter of the steps, the better half of them again for half; each such training is a whole one,
its schedule included. The figure is one of the validation split after the last step; the seed is none of those that are
compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from miniclip.common.printing import did_you_mean
from miniclip.common.runs import metric_lines
from miniclip.compare.grid import SEEDS_BELOW, folder_name, plain_value, split_values, word
from miniclip.compare.plan import Given
from miniclip.compare.runner import Job
from miniclip.config import Config, ConfigError

SEED = SEEDS_BELOW  # of tuning; that of its validation scenes is the next
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PARTS = (4, 2)  # of the steps, one after the other
_WAYS = ("image_to_text", "text_to_image")
_MEANS = ("mean_r1", "mean_r5", "mean_r10")
T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """A figure of the validation split, e.g. unseen/top1; retrieval/mean_r10 is the mean of R@10 both ways."""

    task: str
    figure: str

    def __str__(self) -> str:
        return f"{self.task}/{self.figure}"

    @property
    def parts(self) -> list[str]:
        """What it is the mean of, by the names of the log."""
        if self.figure in _MEANS:
            return [f"eval/{self.task}/{way}_{self.figure.removeprefix('mean_')}" for way in _WAYS]
        return [f"eval/{self}"]

    def last(self, folder: Path) -> float | None:
        """Its value in the last evaluation of a run; None without one, or if it is not finite there."""
        lines = [line for _, line in metric_lines(folder / "metrics.jsonl")[0] if self.parts[0] in line]
        values = [lines[-1].get(part) for part in self.parts] if lines else [None]
        found = [value for value in values if value is not None]
        return sum(found) / len(found) if len(found) == len(values) else None


def metric_of(config: Config, asked: str | None) -> Metric:
    """--metric, or eval.best, or the figure that stands for the first task. Raises ConfigError for one that is none."""
    from miniclip.evaluation.result import MAIN
    from miniclip.evaluation.tasks import TASKS

    kinds = {name: kind for name, (kind, _) in _tasks(config).items()}
    if config.eval.tasks == []:
        raise ConfigError("eval.tasks is empty, and nothing would tell which is better; name a task, e.g. [retrieval]")
    first = next(iter(kinds))
    text = asked or config.eval.best or f"{first}/{MAIN[kinds[first]][0]}"
    name, _, figure = text.rpartition("/")
    whose = "--metric" if asked else "eval.best"
    if name not in kinds:
        near = did_you_mean(name, kinds)
        raise ConfigError(f"{whose} {text}: the tasks are {', '.join(kinds)}; write TASK/FIGURE{near}")
    known = [*TASKS[kinds[name]].figures, *(_MEANS if kinds[name] == "retrieval" else ())]
    if figure not in known:
        raise ConfigError(f"{whose} {text}: {name} counts {', '.join(known)}{did_you_mean(figure, known)}")
    return Metric(name, figure)


def _tasks(config: Config) -> dict[str, tuple[str, Any]]:
    """Kind of each task by its name, and how the configuration writes it."""
    from miniclip.data.scenes.source import TASKS as SCENES

    default = ["retrieval", *(SCENES if config.data.source == "shapes" else ())]
    found: dict[str, tuple[str, Any]] = {}
    for raw, task in zip(config.eval.tasks or default, config.eval.own_tasks or default, strict=True):
        if isinstance(task, str):
            found[task.rstrip("/")] = ("retrieval" if task == "retrieval" else "zeroshot", raw)
        else:
            found[task.label] = (task.kind, raw)
    return found


def tuned_values(text: str, config: Config) -> tuple[str, list[Any]]:
    """`optim.lr=1e-3,2e-3` -> its key and values; `optim.lr` takes the configured one's quarter to fourfold.

    Raises ConfigError.
    """
    key, _, listed = text.partition("=")
    section, _, name = key.partition(".")
    if listed:
        values = [plain_value(one) for one in split_values(listed)]
    else:
        found = config.to_dict().get(section, {}).get(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or not found:
            raise ConfigError(f"--tune {key}: list the values, e.g. --tune {key or 'optim.lr'}=1e-3,2e-3")
        values = [type(found)(float(f"{found * factor:.6g}")) for factor in FACTORS]
    told = [json.dumps(one) for one in values]
    if len(set(told)) < len(told) or "" in values:
        raise ConfigError(f"--tune {text}: each value is to be there once")
    return key, values


@dataclass
class _Tried:
    """A value; what came of it after so many steps."""

    value: Any
    folder: str
    steps: list[int]
    figures: list[float | None]


def tune(
    given: Given,
    config: Config,
    key: str,
    values: Sequence[Any],
    metric: Metric,
    base: Sequence[str],
    folder: Path,
) -> Generator[list[Job], None, None]:
    """Set `tuned` and the chosen option of a variant; yields the trainings of each round, which are to have ended then.

    base: the words that the variants share. folder: of the trainings begins so. Raises ValueError where no value came
    to a figure.
    """
    from miniclip.evaluation.result import lower_is_better

    falls, tried = lower_is_better(metric.figure), list[_Tried]()
    for value in values:
        name = folder_name(word(value), [one.folder for one in tried])
        tried.append(_Tried(value, name, [], []))
    left = tried
    for part in PARTS:
        if len(left) > 1:
            steps = max(1, (given.steps or 0) // part)
            jobs = []
            for one in left:
                own = folder.with_name(f"{folder.name}-{key}={one.folder}-{steps}")
                jobs.append(_job(given, config, f"{key}={word(one.value)}", own, steps, metric, base))
            yield jobs
            for one, job in zip(left, jobs, strict=True):
                one.steps.append(steps)
                one.figures.append(metric.last(job.folder))
            left = better_half(left, lambda one: one.figures[-1], falls)
    if len(values) > 1 and left[0].figures[-1] is None:
        raise ValueError(f"{given.name}: no value of {key} came to {metric}; see the logs in {folder.parent}")
    told = [{"value": one.value, "steps": one.steps, "figures": one.figures} for one in tried]
    given.tuned = {"key": key, "chosen": left[0].value, "tried": told}
    given.options[key] = left[0].value


def better_half(tried: Sequence[T], figure: Callable[[T], float | None], falls: bool) -> list[T]:
    """The best first, two of four and of three; one without a figure is the worst, and of equals the first better.

    falls: whether lower is better.
    """

    def place(one: T) -> float:
        value = figure(one)
        return math.inf if value is None else value if falls else -value

    return sorted(tried, key=place)[: (len(tried) + 1) // 2]


def _job(
    given: Given, config: Config, option: str, folder: Path, steps: int, metric: Metric, base: Sequence[str]
) -> Job:
    _, task = _tasks(config)[metric.task]
    # eval.best, so that the last step is evaluated on the validation split; no other task has a say
    own = [f"--{option}", f"--run.seed={SEED}", f"--eval.every={steps}", f"--eval.tasks={json.dumps([task])}"]
    own += [f"--eval.best={metric.parts[0].removeprefix('eval/')}", "--eval.guard=null", "--log.matrix_every=0"]
    own += ["--log.trackers=[]", "--run.keep=1", "--train.profile_steps=0"]
    return Job(f"tuning: {given.name}, {option}", folder, steps, [*base, *given.words, *own])
