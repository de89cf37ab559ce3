"""A comparison's folder as it is found: plan.json, and the runs that it names, some of which may not be finished."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from miniclip.common.printing import printable
from miniclip.compare.curves import Curve, curves_of
from miniclip.compare.statistics import Seeds
from miniclip.evaluation.result import MAIN, is_number
from miniclip.models.saved import WEIGHTS, read_json
from miniclip.training.run_dir import RESULTS, metric_lines

PLAN = "plan.json"


class Variant(NamedTuple):
    """name, options: what tells it from the others. steps: that a run is given, 0 where the plan does not know. tuned:
    how an option of it was chosen, as plan.json has it. batch: pairs a step, 0 where no run has begun. parameters: of
    its model, None before a run has finished."""

    name: str
    options: dict[str, Any]
    steps: int
    step_seconds: float | None
    tuned: dict[str, Any] | None
    batch: int
    parameters: int | None


class Run(NamedTuple):
    """variant: its number. lacking: why it has no results, nothing if it has. place: its
    folder, from the comparison's. figures: by task and name,
    "retrieval/mean_r10". training: what results.json says of that. curves: by the names of metrics.jsonl."""

    variant: int
    seed: int
    place: str
    lacking: str
    figures: dict[str, float]
    training: dict[str, Any]
    curves: dict[str, Curve]


class Comparison(NamedTuple):
    """plan: as it stands. figures: of all runs, in the order in which they stand there. main: the one of each task."""

    plan: dict[str, Any]
    variants: list[Variant]
    runs: list[Run]
    figures: list[str]
    main: list[str]

    def of(self, variant: int) -> list[Run]:
        """Its finished runs."""
        return [run for run in self.runs if run.variant == variant and not run.lacking]

    def seeds(self, variant: int, figure: str) -> Seeds:
        return {run.seed: run.figures[figure] for run in self.of(variant) if figure in run.figures}

    def drawn(self, variant: int, name: str) -> list[Curve]:
        """Of the finished runs; before there is one, of those that are at work or failed."""
        runs = self.of(variant) or [run for run in self.runs if run.variant == variant]
        return [run.curves[name] for run in runs if name in run.curves]


def read_comparison(folder: Path) -> Comparison:
    """Raises FileNotFoundError without a plan, and ValueError for one that cannot be used. A run that cannot be read is
    one that has no results."""
    file = folder / PLAN
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no comparison: it holds no {PLAN}; name the --out of miniclip compare")
    plan = read_json(file)
    try:
        named = [(int(run["variant"]), int(run["seed"]), str(run["dir"]), run["error"]) for run in plan["runs"]]
        asked = [
            (printable(one["name"]), dict(one["options"]), int(one["steps"] or 0), one["step_seconds"], one["tuned"])
            for one in plan["variants"]
        ]
        runs, main = [], dict[str, None]()
        batches, parameters = [0] * len(asked), list[int | None]([None] * len(asked))
        for variant, seed, place, error in named:
            directory = folder / place
            batches[variant] = batches[variant] or _batch(directory)
            parameters[variant] = parameters[variant] or _parameters(directory)
            found = _found(directory, error, batches[variant], asked[variant][2], main)
            runs.append(Run(variant, seed, place, *found))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not the plan of a comparison ({type(error).__name__}: {error})") from error
    variants = [Variant(*one, batches[k], parameters[k]) for k, one in enumerate(asked)]
    figures = list(dict.fromkeys(figure for run in runs for figure in run.figures))
    return Comparison(plan, variants, runs, figures, [figure for figure in main if figure in figures])


def _batch(directory: Path) -> int:
    """Pairs a step; 0 before the run has begun. A run has written the file: nothing in it needs checking."""
    try:
        values = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        return int(values["data"]["batch_size"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 0


def _parameters(directory: Path) -> int | None:
    """Of the finished model, from the head of its file, in which BatchNorm's statistics and indices stand besides."""
    try:
        with safe_open(directory / "model" / WEIGHTS, framework="np") as stored:
            parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
            floats = [part for name, part in parts.items() if part.get_dtype()[0] in "FB" and "running_" not in name]
            return sum(math.prod(part.get_shape()) for part in floats)
    except (OSError, SafetensorError):
        return None


def _found(
    directory: Path, error: str | None, batch: int, steps: int, main: dict[str, None]
) -> tuple[str, dict[str, float], dict[str, Any], dict[str, Curve]]:
    """What Run has of a run that was found. main: gathers the figure that stands for each task."""
    found, _ = metric_lines(directory / "metrics.jsonl")
    lines = [values for _, values in found]
    training, figures, lacking = dict[str, Any](), dict[str, float](), printable(error or "")
    try:
        results = read_json(directory / RESULTS)
        training = results["training"]
        for entry in results["results"]:
            task, (name, of) = printable(entry["task"]), MAIN[entry["kind"]]
            values = {key: one["value"] for key, one in entry["figures"].items() if is_number(one["value"])}
            if all(key in values for key in of):
                values = {name: float(np.mean([values[key] for key in of])), **values}
            figures |= {f"{task}/{key}": float(value) for key, value in values.items()}
            main[f"{task}/{name}"] = None
        lacking = ""
    except FileNotFoundError:
        done = max((line["step"] for line in lines), default=0)
        lacking = lacking or (f"at step {done:,} of {steps:,}" if lines else "not begun")
    except (AttributeError, KeyError, TypeError, ValueError) as damage:
        training, figures = {}, {}
        lacking = printable(f"{RESULTS} is damaged ({damage}); the same command again evaluates it anew")
    return lacking, figures, training, curves_of(lines, batch)
