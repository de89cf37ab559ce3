"""Figures -> PNG: templates, calibration, k-shot curves, models side by side, a run over its steps, foreign pictures.

Colours: Okabe and Ito's, which people who are colour-blind can tell apart; models differ in their markers as well.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from miniclip.common.printing import one_line
from miniclip.evaluation.result import is_rank, lower_is_better, words_of
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

_INK, _FAINT, _GRID, _BAND = "#1c2430", "#67717f", "#dde3ea", "#f3f5f8"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#1c2430", "#56b4e9", "#e69f00", "#8b9099")
_MARKERS = "os^DvPX*"
_BESIDE: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "va": "center",
    "color": _INK,
    "fontsize": 7,
}
_NAMED_TEMPLATES = 40  # more of them would be smaller than print
_ENDS = 6  # of more templates, how many of the best and of the worst are named
_DOTS = 60  # points of a curve up to which each gets a dot


def templates_png(templates: Sequence[Mapping[str, Any]], together: float, path: str | Path, title: str) -> None:
    """Accuracy of each template, {"template", "top1"}, best first, and of all together as a line.

    Of more than 40 only the best and the worst six are named. Raises ValueError without templates.
    """
    ordered = sorted(templates, key=lambda one: one["top1"])
    if not ordered:
        raise ValueError("there are no templates to draw; evaluate with two or more")
    n, values = len(ordered), np.asarray([100 * one["top1"] for one in ordered])
    named = np.ones(n, dtype=bool)
    if n > _NAMED_TEMPLATES:
        named[_ENDS:-_ENDS] = False
    # those without a name stand closer together
    rows = np.cumsum(np.where(named, 1.0, 14 / n))
    figure = _sheet(9, 1.6 + 0.24 * float(rows[-1] - rows[0] + 1))
    axes = _tidy(figure.add_subplot())
    axes.axvspan(values.mean() - values.std(ddof=1), values.mean() + values.std(ddof=1), color=_BAND, zorder=0)
    axes.axvline(values.mean(), color=_FAINT, linestyle=":", zorder=1, label=f"mean {values.mean():.1f} %")
    axes.axvline(100 * together, color=_COLOURS[1], zorder=1, label=f"all together {100 * together:.1f} %")
    axes.plot(values, rows, "o", color=_COLOURS[0], markersize=5, zorder=3)
    axes.hlines(rows[named], 0, values[named], color=_GRID, linewidth=0.8, zorder=0.5)
    reach = [*values, 100 * together]
    edge = max(0.06 * (max(reach) - min(reach)), 0.5)
    axes.set_xlim(min(reach) - edge, max(reach) + edge)
    ticks = [(rows[k], ordered[k]["template"]) for k in np.flatnonzero(named)]
    if n > _NAMED_TEMPLATES:
        ticks.append((rows[n // 2], f"… {n - 2 * _ENDS} more …"))
    axes.set_yticks([y for y, _ in ticks], [one_line(text, 60) for _, text in ticks], fontsize=8, parse_math=False)
    axes.set_ylim(rows[0] - 0.8, rows[-1] + 0.8)
    axes.tick_params(axis="y", length=0)
    spread = f"from {values.min():.1f} to {values.max():.1f}, standard deviation {values.std(ddof=1):.1f} (band)"
    axes.set_xlabel(f"top-1 accuracy, %; {spread}")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    _save(figure, path, title)


def calibration_png(bins: Sequence[Mapping[str, Any]], ece: float | None, path: str | Path, title: str) -> None:
    """Reliability diagram of {"low", "high", "n", "confidence", "accuracy"} bins, and how many pictures each holds."""
    figure = _sheet(6, 6.8)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    filled = [one for one in bins if one["n"]]
    for axes, key, colour in ((top, "accuracy", "#a9cfe6"), (below, "n", _FAINT)):
        _tidy(axes)
        lefts, widths = [one["low"] for one in filled], [one["high"] - one["low"] for one in filled]
        heights = [one[key] for one in filled]
        axes.bar(lefts, heights, widths, align="edge", color=colour, edgecolor="white", linewidth=0.8, zorder=2)
    top.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1.2, zorder=3, label="calibrated")
    confidence, accuracy = ([one[key] for one in filled] for key in ("confidence", "accuracy"))
    top.vlines(confidence, accuracy, confidence, color=_COLOURS[1], linewidth=2, zorder=4, label="gap")
    top.plot(confidence, accuracy, "o", color=_COLOURS[0], markersize=5, zorder=5, label="mean of a bin")
    top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy: share that is right")
    said = f"expected calibration error {100 * ece:.1f} %" if ece is not None and math.isfinite(ece) else None
    top.legend(frameon=False, fontsize=9, loc="upper left", title=said, alignment="left")
    below.set(xlabel="confidence: probability of the chosen class", ylabel="pictures")
    below.margins(y=0.15)
    _save(figure, path, title)


def shots_png(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str) -> None:
    """Accuracy against training pictures a class, with the standard deviation of the draws as a band.

    curves: by model, {"shots", "mean", "std"}; shots may be "full", which stands at the right. Raises ValueError if
    there is no point.
    """
    curves = {model: curve for model, curve in curves.items() if curve}
    numbers = sorted({one["shots"] for curve in curves.values() for one in curve if one["shots"] != "full"})
    full = any(one["shots"] == "full" for curve in curves.values() for one in curve)
    if not numbers and not full:
        raise ValueError("there are no shots to draw")
    last = math.log2(numbers[-1]) + 1.2 if numbers else 0.0
    figure = _sheet(7.5, 5)
    axes = _tidy(figure.add_subplot())
    handles = []
    for k, curve in enumerate(curves.values()):
        colour, marker = _look(k)
        points = sorted(
            (math.inf if one["shots"] == "full" else one["shots"], one["mean"], one["std"]) for one in curve
        )
        x = [last if shots == math.inf else math.log2(shots) for shots, _, _ in points]
        mean, std = (100 * np.asarray(values, dtype=float) for values in list(zip(*points, strict=True))[1:])
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        axes.errorbar(x, mean, std, color=colour, linestyle="none", capsize=3, linewidth=1)
        handles += axes.plot(x, mean, color=colour, marker=marker, markersize=6)
    ticks = [(math.log2(shots), str(shots)) for shots in numbers] + [(last, "full")] * full
    axes.set_xticks([x for x, _ in ticks], [label for _, label in ticks])
    axes.set_xlabel("training pictures a class")
    axes.set_ylabel("top-1 accuracy, %; band: standard deviation of the draws")
    _legend(axes, handles, list(curves))
    _save(figure, path, title)


def compare_png(results: Mapping[str, Mapping[str, Figure]], path: str | Path, title: str) -> None:
    """Each figure of each model with its 95 % interval: a row a figure; shares in per cent, ranks on their own axis.

    Raises ValueError if no model has a figure.
    """
    names = list(dict.fromkeys(name for figures in results.values() for name in figures))
    parts = [part for part in ([n for n in names if not is_rank(n)], [n for n in names if is_rank(n)]) if part]
    if not parts:
        raise ValueError("there are no figures to compare")
    # a model takes a sixth of an inch, so that its value can stand beside it
    row = 0.17 * len(results) + 0.22
    figure = _sheet(7.2 * len(parts), 1.5 + row * max(map(len, parts)), 130)
    handles: list[Any] = []
    for column, part in enumerate(parts):
        axes = _tidy(figure.add_subplot(1, len(parts), column + 1))
        handles = _forest(axes, results, part)
    legend = figure.legend(handles, ["-"] * len(handles), loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    _label(legend, list(results))
    _save(figure, path, title)


def _forest(axes: Axes, results: Mapping[str, Mapping[str, Figure]], names: Sequence[str]) -> list[Any]:
    ranks, handles = is_rank(names[0]), []
    step = 0.8 / len(results)
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=_BAND, zorder=0)
    for k, figures in enumerate(results.values()):
        colour, marker = _look(k)
        (handle,) = axes.plot([], [], color=colour, marker=marker, markersize=6, linewidth=1.6)
        handles.append(handle)
        for y, name in enumerate(names):
            if name not in figures or not _number(figures[name].value):
                continue
            unit, place = 1 if ranks else 100, y + (k - (len(results) - 1) / 2) * step
            value, ends = unit * figures[name].value, [figures[name].low, figures[name].high]
            if all(map(_number, ends)):
                axes.plot([unit * end for end in ends], [place, place], color=colour, linewidth=1.6, zorder=3)
            axes.plot([value], [place], marker=marker, color=colour, markersize=5, zorder=4)
            axes.annotate(f"{value:,.1f}", (1, place), (4, 0), **_BESIDE)
    axes.set_yticks(range(len(names)), ["\n".join(wrap(_readable(name), 26)) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("rank, 95 % interval" if ranks else "%, 95 % interval")
    if ranks:
        shown = [x for figures in results.values() for name in names if name in figures for x in figures[name][:3]]
        finite = [x for x in shown if _number(x)]
        if finite and max(finite) > 20 * min(finite) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
    return handles


def curves_png(lines: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """The lines of a run's metrics.jsonl over its steps: loss, scale, learning rate, pace, and every evaluation.

    None is a gap. Raises ValueError if no line holds a figure.
    """
    from matplotlib.ticker import MaxNLocator

    lines = sorted((line for line in lines if "step" in line), key=lambda line: line["step"])
    panels: dict[str, list[str]] = {}
    for key, heading in _TRAINING.items():
        if any(line.get(key) is not None for line in lines):
            panels[heading] = [key]
    evaluated = [key for line in lines for key, value in line.items() if key.startswith("eval/") and _number(value)]
    for key in dict.fromkeys(evaluated):
        panels.setdefault(_panel(key), []).append(key)
    if not panels:
        raise ValueError(
            "metrics.jsonl holds no figure to draw: the run has not logged a step; train longer, or lower log.every"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    margin = 0.02 * (lines[-1]["step"] - lines[0]["step"]) or 0.5
    figure = _sheet(5.2 * columns, 0.5 + 3.5 * rows, 120)
    for k, (heading, keys) in enumerate(panels.items()):
        axes = _tidy(figure.add_subplot(rows, columns, k + 1))
        _curves(axes, lines, keys)
        axes.set_title("\n".join(wrap(one_line(heading, 110), 56)), fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("step", fontsize=8)
        axes.set_xlim(lines[0]["step"] - margin, lines[-1]["step"] + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(labelsize=8)
    _save(figure, path, title)


_TRAINING = {
    "loss": "loss, nats",
    "loss_over_chance": "loss over that of chance",
    "logit_scale": "logit scale",
    "lr": "learning rate",
    "samples_per_s": "pairs per second",
}


def _curves(axes: Axes, lines: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    handles = []
    for k, key in enumerate(keys):
        own = [(line["step"], line[key]) for line in lines if key in line]
        evaluated = key.startswith("eval/")
        percent = 100 if evaluated and not is_rank(key) else 1
        x = np.asarray([step for step, _ in own])
        y = percent * np.asarray([value if _number(value) else np.nan for _, value in own], dtype=float)
        colour, marker = _look(k)
        # a line needs two neighbours; a point between gaps would not be seen
        present = np.pad(np.isfinite(y), 1)
        lonely = present[1:-1] & ~present[:-2] & ~present[2:]
        dots = np.flatnonzero(lonely if len(x) > _DOTS else present[1:-1])
        size: dict[str, Any] = {"marker": marker, "markersize": 4 if evaluated else 3, "markevery": dots.tolist()}
        handles += axes.plot(x, y, color=colour, linewidth=1.4, **size)
    if keys[0] == "loss_over_chance":
        axes.axhline(1, color=_FAINT, linestyle=":", linewidth=1)
    if len(keys) > 1:
        short = [re.sub(r"^(image_to_text|text_to_image)_", "", key.rpartition("/")[2]) for key in keys]
        _legend(axes, handles, [_readable(name, arrow=False) for name in short])


Scores = Sequence[float] | np.ndarray


def foreign_png(inside: Scores, outside: Scores, path: str | Path, title: str, *, score: str = "score") -> None:
    """Histograms of a score for pictures of the classes and for foreign ones; what is not finite is left out.

    score: its name and unit, for the axis. Raises ValueError if either has no finite value.
    """
    both = [np.asarray(values, dtype=float) for values in (inside, outside)]
    both = [values[np.isfinite(values)] for values in both]
    if not all(map(len, both)):
        raise ValueError(f"a histogram needs scores of both kinds; got {len(both[0])} own and {len(both[1])} foreign")
    edges = np.histogram_bin_edges(np.concatenate(both), 40)
    figure = _sheet(7.5, 4.2)
    axes = _tidy(figure.add_subplot())
    for k, (values, name) in enumerate(zip(both, ("of the classes", "foreign"), strict=True)):
        style: dict[str, Any] = {"bins": edges, "weights": np.full(len(values), 100 / len(values))}
        axes.hist(values, histtype="stepfilled", color=_COLOURS[k], alpha=0.25, **style)
        axes.hist(values, histtype="step", color=_COLOURS[k], linewidth=1.5, label=f"{name} ({len(values):,})", **style)
        axes.axvline(float(np.median(values)), color=_COLOURS[k], linestyle="--", linewidth=1)
    axes.set_xlabel(one_line(f"{score}; dashed: median", 90), parse_math=False)
    axes.set_ylabel("% of the pictures")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path, title)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _panel(key: str) -> str:
    """What figures share a panel: one task, one direction, one unit, and one sense of better."""
    task, _, figure = key.removeprefix("eval/").rpartition("/")
    found = re.match("image_to_text|text_to_image", figure)
    way = f", {found[0].replace('_', ' ')}" if found else ""
    unit = "rank" if is_rank(figure) else "%"
    return f"{task or 'evaluation'}{way}, {unit}" + (" (lower is better)" if lower_is_better(figure) else "")


def _readable(name: str, arrow: bool = True) -> str:
    """ "image_to_text_r10" -> "image to text R@10"; an arrow down where lower is better."""
    return one_line(words_of(name), 60) + ("\N{NO-BREAK SPACE}↓" if arrow and lower_is_better(name) else "")


def _look(k: int) -> tuple[str, str]:
    return _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]


def _sheet(width: float, height: float, dpi: int = 150) -> Sheet:
    from matplotlib.figure import Figure as New
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return New(figsize=(width, height), dpi=dpi, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))  # inches


def _tidy(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    _label(axes.legend(handles, ["-"] * len(handles), frameon=False, fontsize=8), names)


def _label(legend: Any, names: Sequence[str]) -> None:
    """Names as they are: matplotlib would leave out one that begins with _, and take $ for a formula."""
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(one_line(name, 60))
        text.set_parse_math(False)


def _save(figure: Sheet, path: str | Path, title: str) -> None:
    lines = wrap(one_line(title, 160), max(20, int(figure.get_figwidth() * 9)))
    figure.suptitle("\n".join(lines), fontsize=12, color=_INK, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an emoji becomes a box
        figure.savefig(path, format="png")
