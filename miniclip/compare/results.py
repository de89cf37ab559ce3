"""A comparison as it is found: its plan, and what has come of the runs, some of which may not be finished."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from miniclip.common.printing import printable
from miniclip.common.runs import metric_lines
from miniclip.compare.curves import Curve, curves_of
from miniclip.compare.plan import PLAN, Plan, load_plan
from miniclip.compare.statistics import Seeds
from miniclip.evaluation.result import MAIN, is_number
from miniclip.models.saved import WEIGHTS, read_json
from miniclip.training.run_dir import RESULTS


class Outcome(NamedTuple):
    """What came of a run. variant: its number. lacking: why it has no results, nothing if it has. figures: by task and
    name, "retrieval/mean_r10". training: what results.json says of that. curves: by the names of metrics.jsonl.
    parameters: of the finished model, None without one."""

    variant: int
    seed: int
    dir: str
    lacking: str
    figures: dict[str, float]
    training: dict[str, Any]
    curves: dict[str, Curve]
    parameters: int | None


class Results(NamedTuple):
    """names: of the variants, printable. figures: of all runs, in the order in which they stand there. main: the one
    of each task."""

    plan: Plan
    names: list[str]
    runs: list[Outcome]
    figures: list[str]
    main: list[str]

    def of(self, variant: int) -> list[Outcome]:
        """Its finished runs."""
        return [run for run in self.runs if run.variant == variant and not run.lacking]

    def seeds(self, variant: int, figure: str) -> Seeds:
        return {run.seed: run.figures[figure] for run in self.of(variant) if figure in run.figures}

    def drawn(self, variant: int, name: str) -> list[Curve]:
        """Of the finished runs; before there is one, of those that are at work or failed."""
        runs = self.of(variant) or [run for run in self.runs if run.variant == variant]
        return [run.curves[name] for run in runs if name in run.curves]

    def batch(self, variant: int) -> int:
        """Pairs a step."""
        own = self.plan.variants[variant]
        return int({**self.plan.base, **own.resolved, **own.options}["data.batch_size"])


def read_results(folder: Path) -> Results:
    """Raises FileNotFoundError without a plan, and ValueError for one that is damaged. A run that cannot be read is one
    that has no results."""
    plan = load_plan(folder)
    if plan is None:
        raise FileNotFoundError(f"{folder} is no comparison: it holds no {PLAN}; name the --out of miniclip compare")
    found = Results(plan, [printable(one.name) for one in plan.variants], [], [], [])
    for run in plan.runs:
        directory, steps = folder / run.dir, plan.variants[run.variant].steps
        lines = [line for _, line in metric_lines(directory / "metrics.jsonl")[0]]
        training, figures, main, lacking = dict[str, Any](), dict[str, float](), list[str](), ""
        try:
            training, figures, main = _read(directory)
        except FileNotFoundError:
            done = f"at step {max(line['step'] for line in lines):,} of {steps:,}" if lines else "not begun"
            lacking = printable(run.error or done)
        except (AttributeError, KeyError, TypeError, ValueError) as damage:
            lacking = printable(f"{RESULTS} is damaged ({damage}); the same command again evaluates it anew")
        curves = curves_of(lines, found.batch(run.variant))
        outcome = (figures, training, curves, _parameters(directory))
        found.runs.append(Outcome(run.variant, run.seed, run.dir, lacking, *outcome))
        found.figures.extend(name for name in figures if name not in found.figures)
        found.main.extend(name for name in main if name in figures and name not in found.main)
    return found


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, float], list[str]]:
    """Of results.json: what it says of the training, all figures, and the main one of each task."""
    results, figures, main = read_json(directory / RESULTS), dict[str, float](), []
    for entry in results["results"]:
        task, (name, of) = printable(entry["task"]), MAIN[entry["kind"]]
        values = {key: float(one["value"]) for key, one in entry["figures"].items() if is_number(one["value"])}
        if all(key in values for key in of):
            values = {name: float(np.mean([values[key] for key in of])), **values}
        figures |= {f"{task}/{key}": value for key, value in values.items()}
        main.append(f"{task}/{name}")
    return dict(results["training"]), figures, main


def _parameters(directory: Path) -> int | None:
    """From the head of the model's file, in which BatchNorm's statistics and indices stand besides."""
    try:
        with safe_open(directory / "model" / WEIGHTS, framework="np") as stored:
            parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (no dict)
            floats = [part for name, part in parts.items() if part.get_dtype()[0] in "FB" and "running_" not in name]
            return sum(math.prod(part.get_shape()) for part in floats)
    except (OSError, SafetensorError):
        return None
