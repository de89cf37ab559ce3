"""Bands of curves as the numbers of small charts, which the page draws in SVG; no markup is made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from miniclip.compare.curves import Band, Curve, Parting, band, parting
from miniclip.compare.results import Results
from miniclip.evaluation.result import is_share, lower_is_better, words_of
from miniclip.metrics.batch import FIGURES

WIDTH, HEIGHT = 560, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36  # margins
FRAME = {"left": _LEFT, "right": WIDTH - _RIGHT, "top": _TOP, "bottom": HEIGHT - _BOTTOM}
_WIDE = 30.0  # times the least: from there on a scale of equal ratios shows more
Place = Callable[[float], float]
_DOTS = 40  # points of a curve, of more of which none is marked
LOSS = "loss_over_chance"
_TRAINING = (
    *(LOSS, "r1_image_to_text", "r1_text_to_image", "grad_norm_image", "grad_norm_text"),
    *("slope_positive", "slope_positive_sd", "slope_negative", "slope_negative_sd", "logit_scale"),
    *("effective_negatives_image_to_text", "effective_negatives_text_to_image"),
)


class Line(NamedTuple):
    """One variant. points, around: x,y of the mean, and of the band's outline, as SVG's polygon takes them. dots: x, y
    of points of few. mark: x of where loss and metric part, or None."""

    variant: int
    points: str
    around: str
    dots: list[tuple[float, float]]
    mark: float | None


class Chart(NamedTuple):
    """x, y: place and text of ticks. level: y of a line across, or None."""

    over: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    lines: list[Line]
    level: float | None


class Panel(NamedTuple):
    """One figure over steps and over seconds, on one vertical scale."""

    title: str
    text: str
    charts: list[Chart]


def partings(found: Results, metric: str) -> dict[int, Parting]:
    """By variant, of those that have logged the metric (a name of metrics.jsonl) and the loss."""
    bands = {k: (band(found.drawn(k, metric)), band(found.drawn(k, LOSS))) for k in range(len(found.names))}
    falls = lower_is_better(metric)
    return {k: parting(ahead, loss, falls) for k, (ahead, loss) in bands.items() if ahead and loss}


def metric_of(found: Results) -> str | None:
    """The name in metrics.jsonl of the validation figure that is looked at, or None if none was logged."""
    names = [found.plan.metric, *found.main]
    known = set(logged(found))
    return next((f"eval/{name}" for name in names if f"eval/{name}" in known), None)


def logged(found: Results) -> list[str]:
    return list(dict.fromkeys(name for run in found.runs for name in run.curves))


def training_panels(found: Results, skipped: Sequence[str]) -> list[Panel]:
    """Of the batches, without those that are skipped."""
    panels = [panel(found, name, {}) for name in _TRAINING if name not in skipped]
    return [one for one in panels if one]


def panel(found: Results, name: str, marks: dict[int, Parting]) -> Panel | None:
    """Of one name of metrics.jsonl; None if no run has it. marks: by variant, where loss and metric part."""
    curves = [found.drawn(k, name) for k in range(len(found.names))]
    if not any(curves):
        return None
    title, text, factor = _told(name)
    both = [_chart(curves, factor, seconds, name, marks) for seconds in (False, True)]
    return Panel(title, text, both)


def _told(name: str) -> tuple[str, str, float]:
    """Heading, how to read it, and what values are multiplied by."""
    if name.startswith("eval/"):
        task, _, figure = name.removeprefix("eval/").rpartition("/")
        share, low = is_share(figure), "; lower is better" if lower_is_better(figure) else ""
        return f"{task}: {words_of(figure)}" + " %" * share, f"On validation{low}.", 100.0 if share else 1.0
    label, unit, text = FIGURES.get(name, [name.replace("_", " "), "", ""])
    return f"{label}, {unit}" if unit and unit != label else label, text, 100.0 if unit == "%" else 1.0


def _chart(
    curves: Sequence[Sequence[Curve]], factor: float, seconds: bool, name: str, marks: dict[int, Parting]
) -> Chart:
    from matplotlib.ticker import LogLocator, MaxNLocator

    bands = {k: of for k, own in enumerate(curves) if (of := band(own, seconds))}
    # both charts of a panel have the scale of all values
    values = np.concatenate([curve.values for own in curves for curve in own]) * factor
    low, high, last = values.min(), values.max(), max((of.x[-1] for of in bands.values()), default=0.0)
    level = 1.0 if name == LOSS else None
    if level is not None:
        low, high = min(low, level), max(high, level)
    log = low > 0 and high > _WIDE * low and factor == 1
    if log:
        ticks = LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,)).tick_values(low, high)
        ticks = [t for t in ticks if low <= t <= high] or [low, high]
    else:
        ticks = list(MaxNLocator(5).tick_values(low, high if high > low else low + 1))
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    across = [t for t in MaxNLocator(6, integer=not seconds).tick_values(0, last) if 0 <= t <= last]

    def x(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * value / (last or 1), 1)

    def y(value: float) -> float:
        a, b, c = (math.log(v) for v in (value, low, high)) if log else (value, low, high)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (a - b) / ((c - b) or 1), 1)

    lines = [_line(k, of, curves[k], factor, x, y, marks.get(k), seconds) for k, of in bands.items()]
    return Chart(
        "seconds of training" if seconds else "steps",
        [(x(t), f"{t:,.6g}") for t in across],
        [(y(t), f"{t:.4g}") for t in ticks],
        lines,
        None if level is None else y(level),
    )


def _line(
    k: int, of: Band, curves: Sequence[Curve], factor: float, x: Place, y: Place, mark: Parting | None, seconds: bool
) -> Line:
    mean, low, high = (
        [(x(a), y(b * factor)) for a, b in zip(of.x, values, strict=True)] for values in (of.mean, of.low, of.high)
    )
    around = _points([*low, *high[::-1]]) if len(curves) > 1 else ""
    at = None
    if mark and mark.part:
        steps = float(mark.step)
        clock = [np.interp(steps, curve.steps, curve.seconds) for curve in curves]
        at = x(float(np.mean(clock)) if seconds else steps)
    return Line(k, _points(mean), around, mean if len(mean) <= _DOTS else [], at)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:g},{b:g}" for a, b in places)
