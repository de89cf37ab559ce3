"""The curves of several runs: over steps and over seconds of training, with the band of the seeds, and where the loss
parts from the metric.

Axes: P points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from miniclip.evaluation.result import MAIN, is_number

POINTS = 200  # of a band at most: more than a chart can show
WINDOW = 0.1  # of the steps: what the loss is smoothed over
FALL = 0.05  # of the loss: less than that is no fall
_, _R10 = MAIN["retrieval"]


class Curve(NamedTuple):
    """One figure of one run. steps, seconds (of training, without evaluation and checkpoints), values: (P,)."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


class Band(NamedTuple):
    """One figure of a variant, (P,) each. low, high: the least and the most of its seeds."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Parting(NamedTuple):
    """From a step on the loss falls and the metric gets no better. best, last: the metric there and in the end.
    loss, loss_last: the smoothed loss over chance there and in the end. part: whether it falls."""

    step: float
    best: float
    last: float
    loss: float
    loss_last: float
    part: bool


def curves_of(lines: Sequence[dict[str, Any]], batch: int) -> dict[str, Curve]:
    """The figures in the lines of metrics.jsonl by name, and the mean of R@10 both ways, without what is no number.

    The log has no clock: the seconds of a line follow from the pairs since the line before and samples_per_s. batch:
    pairs a step.
    """
    found: dict[str, dict[float, float]] = {}
    for line in sorted(lines, key=lambda line: line["step"]):
        tasks = [name.removesuffix(_R10[0]) for name in line if name.endswith(f"/{_R10[0]}")]
        ways: dict[str, list[Any]] = {task: [line.get(task + way) for way in _R10] for task in tasks}
        means = {f"{task}mean_r10": sum(both) / 2 for task, both in ways.items() if all(map(is_number, both))}
        for name, value in (line | means).items():
            if is_number(value) and name != "step":
                found.setdefault(name, {})[line["step"]] = value
    speeds = {step: speed for step, speed in found.get("samples_per_s", {}).items() if speed > 0}
    ends = np.array([0, *speeds], dtype=float)
    clock = np.concatenate([[0.0], np.cumsum(np.diff(ends) * batch / np.array([*speeds.values()]))])
    curves = {}
    for name, values in found.items():
        steps = np.array([*values], dtype=float)
        curves[name] = Curve(steps, np.interp(steps, ends, clock), np.array([*values.values()], dtype=float))
    return curves


def band(curves: Sequence[Curve], seconds: bool = False) -> Band | None:
    """Over steps or seconds, where all curves have values; between its points a curve is straight. None without any."""
    over = [(curve.seconds if seconds else curve.steps, curve.values) for curve in curves]
    if not over:
        return None
    first, last = max(x[0] for x, _ in over), min(x[-1] for x, _ in over)
    x = np.unique(np.concatenate([[first, last], *(x for x, _ in over)]))
    x = x[(x >= first) & (x <= last)]
    if not len(x):  # one ends before another begins
        return None
    if len(x) > POINTS:
        x = np.linspace(first, last, POINTS)
    y = np.stack([np.interp(x, own, values) for own, values in over])
    return Band(x, y.mean(0), y.min(0), y.max(0))


def parting(metric: Band, loss: Band, lower: bool) -> Parting:
    """Of a validation metric (lower: whether lower is better) and the training loss over chance, both over steps.

    They part at the step of the metric's best value, if at least two later evaluations are no better, and the loss
    falls after it by more than FALL of what it is there. The loss is smoothed: a mean over WINDOW of all steps.
    """
    k = int(np.argmin(metric.mean) if lower else np.argmax(metric.mean))  # of equals the first
    half = WINDOW / 2 * (loss.x[-1] - loss.x[0])

    def smooth(step: float) -> float:
        # a line is logged now and then: the window holds at least the nearest one
        near = np.abs(loss.x - step)
        return float(loss.mean[near <= max(half, near.min())].mean())

    there, last = smooth(float(metric.x[k])), smooth(float(loss.x[-1]))
    part = len(metric.x) - 1 - k >= 2 and last < (1 - FALL) * there
    return Parting(float(metric.x[k]), float(metric.mean[k]), float(metric.mean[-1]), there, last, part)
