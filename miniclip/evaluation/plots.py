"""Figures -> PNG: confusion, templates, calibration, k-shot curves, models side by side, a run over its steps.

Colours: Okabe and Ito's, which people who are colour-blind can tell apart; models differ in their markers as well.
Names come from data: one printable line of each, in which a $ is a dollar, not the start of a formula.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from miniclip.common.durable import whole_file
from miniclip.common.printing import one_line
from miniclip.evaluation.result import is_number, is_rank, lower_is_better, words_of
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

_INK, _FAINT, _GRID, _BAND = "#1c2430", "#67717f", "#dde3ea", "#f3f5f8"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#1c2430", "#56b4e9", "#e69f00", "#8b9099")
_MARKERS = "os^DvPX*"
_NAMED_CLASSES = 100  # more names than this would be smaller than print
_COUNTED_CLASSES = 20
_ENDS = 20  # of many templates, how many of the best and of the worst are shown
_DOTS = 60  # points of a curve, of more of which the dots are smaller
_TRAINING = {
    "loss": "loss, nats",
    "loss_over_chance": "loss over that of chance",
    "logit_scale": "logit scale",
    "lr": "learning rate",
    "samples_per_s": "pairs per second",
}

_STYLE: dict[Any, Any] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _FAINT, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8,
    "text.parse_math": False,
}  # fmt: skip


@contextmanager
def _drawing(path: str | Path, title: str, width: float, height: float) -> Iterator[Sheet]:
    """A sheet of so many inches, saved with its title when everything is drawn."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as New
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(_STYLE):
        sheet = New(figsize=(width, height), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))  # inches
        yield sheet
        lines = wrap(one_line(title, 160), max(20, int(width * 9)))
        sheet.suptitle("\n".join(lines), fontsize=12, color=_INK)
        _save(sheet, path)


def _save(sheet: Sheet, path: str | Path) -> None:
    with warnings.catch_warnings(), whole_file(path) as part:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an emoji becomes a box
        sheet.savefig(part, format="png")


def _look(k: int) -> dict[str, Any]:
    return {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[k % len(_MARKERS)]}


def _legend(of: Any, handles: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """Names as they are: matplotlib would leave out one that begins with _."""
    legend = of.legend(handles, ["-"] * len(handles), **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(one_line(name, 60))


def _readable(name: str) -> str:
    return one_line(words_of(name), 60)


def confusion_png(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Draw C x C counts (row = true class): colour is the share of the row; up to 20 classes also show the counts."""
    from matplotlib.colors import PowerNorm

    counts, c = np.asarray(confusion, dtype=np.int64), len(classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(4 + 0.42 * c, 22) if c <= _NAMED_CLASSES else 12
    with _drawing(path, title, size + 1, size) as sheet:
        axes = sheet.add_subplot()
        # the root of the share, so that a confusion of one in fifty can still be seen
        shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        sheet.colorbar(shown, ax=axes, label="share of the true class", fraction=0.046, pad=0.02)
        axes.set(xlabel="predicted class", ylabel="true class", xticks=[], yticks=[])
        axes.grid(visible=False)
        if c <= _NAMED_CLASSES:
            text: dict[str, Any] = {"fontsize": 9 if c <= 40 else 7}
            names = [one_line(name, 24) for name in classes]
            axes.set_xticks(range(c), names, rotation=90, **text)
            axes.set_yticks(range(c), names, **text)
        if c <= _COUNTED_CLASSES:
            for i, j in np.argwhere(counts):
                colour = "white" if shares[i, j] > 0.3 else _INK
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)


def templates_png(templates: Sequence[Mapping[str, Any]], together: float, path: str | Path, title: str) -> None:
    """Accuracy of each template, {"template", "top1"}, best first, and of all together as a line.

    Of more than 40 only the best and the worst 20 are shown. Raises ValueError without templates.
    """
    ordered = sorted(templates, key=lambda one: one["top1"])
    if not ordered:
        raise ValueError("there are no templates to draw; evaluate with two or more")
    values = np.asarray([100 * one["top1"] for one in ordered])
    mean, deviation, n = values.mean(), values.std(ddof=1), len(ordered)
    shown = np.arange(n) if n <= 2 * _ENDS else np.r_[:_ENDS, n - _ENDS : n]
    with _drawing(path, title, 9, 1.6 + 0.24 * len(shown)) as sheet:
        axes = sheet.add_subplot()
        axes.axvspan(mean - deviation, mean + deviation, color=_BAND, zorder=0)
        axes.axvline(mean, color=_FAINT, linestyle=":", zorder=1, label=f"mean {mean:.1f} %")
        axes.axvline(100 * together, color=_COLOURS[1], zorder=1, label=f"all together {100 * together:.1f} %")
        axes.plot(values[shown], range(len(shown)), "o", color=_COLOURS[0], markersize=5, zorder=3)
        named = [one_line(ordered[k]["template"], 60) for k in shown]
        axes.set_yticks(range(len(shown)), named, fontsize=8)
        left_out = f"\n{n - len(shown)} more between" if n > len(shown) else ""
        spread = f"from {values.min():.1f} to {values.max():.1f}, standard deviation {deviation:.1f} (band)"
        axes.set_xlabel(f"top-1 accuracy, %; {spread}{left_out}")
        axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def calibration_png(bins: Sequence[Mapping[str, Any]], ece: float | None, path: str | Path, title: str) -> None:
    """Reliability diagram of {"low", "high", "n", "confidence", "accuracy"} bins, and how many images each holds."""
    filled = [one for one in bins if one["n"]]
    lefts, widths = [one["low"] for one in filled], [one["high"] - one["low"] for one in filled]
    confidence, accuracy, counts = ([one[key] for one in filled] for key in ("confidence", "accuracy", "n"))
    with _drawing(path, title, 6, 6.8) as sheet:
        top, below = sheet.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        for axes, heights, colour in ((top, accuracy, "#a9cfe6"), (below, counts, _FAINT)):
            axes.bar(lefts, heights, widths, align="edge", color=colour, edgecolor="white", zorder=2)
        top.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1.2, zorder=3, label="calibrated")
        top.vlines(confidence, accuracy, confidence, color=_COLOURS[1], linewidth=2, zorder=4, label="gap")
        top.plot(confidence, accuracy, "o", color=_COLOURS[0], markersize=5, zorder=5, label="mean of a bin")
        top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy: share that is right")
        said = f"expected calibration error {100 * ece:.1f} %" if ece is not None and is_number(ece) else None
        top.legend(fontsize=9, loc="upper left", title=said, alignment="left")
        below.set(xlabel="confidence: probability of the chosen class", ylabel="images")
        below.margins(y=0.15)


def shots_png(curve: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Accuracy against training images a class, {"shots", "mean", "std"}, with the deviation of the draws as a band.

    shots may be "full", which stands at the right. Raises ValueError if there is no point.
    """
    if not curve:
        raise ValueError("there are no shots to draw")
    points = sorted(curve, key=lambda one: (one["shots"] == "full", one["shots"]))
    x = [math.log2(one["shots"]) for one in points if one["shots"] != "full"]
    x += [x[-1] + 1.2 if x else 0.0] * (len(points) - len(x))
    mean, std = (100 * np.asarray([one[key] for one in points], dtype=float) for key in ("mean", "std"))
    with _drawing(path, title, 7.5, 5) as sheet:
        axes = sheet.add_subplot()
        axes.fill_between(x, mean - std, mean + std, color=_COLOURS[0], alpha=0.15, linewidth=0)
        axes.errorbar(x, mean, std, color=_COLOURS[0], marker="o", markersize=6, capsize=3, elinewidth=1)
        axes.set_xticks(x, [str(one["shots"]) for one in points])
        axes.set(xlabel="training images a class", ylabel="top-1 accuracy, %; band: standard deviation of the draws")


def compare_png(results: Mapping[str, Mapping[str, Figure]], path: str | Path, title: str) -> None:
    """Each share of each model, in per cent, with its 95 % interval: a row a figure.

    Raises ValueError if no model has a figure.
    """
    names = list(dict.fromkeys(name for figures in results.values() for name in figures))
    if not names:
        raise ValueError("there are no figures to compare")
    # a model takes a sixth of an inch, so that its value can stand beside it
    with _drawing(path, title, 7.2, 1.5 + (0.17 * len(results) + 0.22) * len(names)) as sheet:
        axes = sheet.add_subplot()
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 7}
        handles = []
        for k, figures in enumerate(results.values()):
            look = _look(k)
            handles += axes.plot([], [], **look, markersize=6, linewidth=1.6)
            for y, name in enumerate(names):
                place = y + (k - (len(results) - 1) / 2) * 0.8 / len(results)
                value, low, high = (100 * x for x in figures.get(name, (math.nan,) * 3)[:3])
                if is_number(value):
                    axes.plot([low, high], [place, place], color=look["color"], linewidth=1.6, zorder=3)
                    axes.plot([value], [place], **look, markersize=5, zorder=4)
                    axes.annotate(f"{value:,.1f}", (1, place), (4, 0), va="center", color=_INK, **beside)
        for y in range(0, len(names), 2):
            axes.axhspan(y - 0.5, y + 0.5, color=_BAND, zorder=0)
        told = [_readable(name) + "\N{NO-BREAK SPACE}↓" * lower_is_better(name) for name in names]
        axes.set_yticks(range(len(names)), ["\n".join(wrap(name, 26)) for name in told])
        axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="%, 95 % interval; ↓ lower is better")
        axes.grid(visible=False, axis="y")
        _legend(sheet, handles, list(results), loc="outside lower left", ncols=2, fontsize=9)


Curves = Mapping[str, Mapping[float, Figure]]  # a task -> share of the second model -> its figure, in [0, 1]


def interpolation_png(new: Curves, kept: Curves, chosen: float, path: str | Path, title: str) -> None:
    """Weights between two models: every task over the share of the second, and what is new against what is kept.

    chosen: a share, which is marked. Without kept the second panel is left out. Raises ValueError without new.
    """
    if not new:
        raise ValueError("there is no new task to draw")
    with _drawing(path, title, 11.5 if kept else 6.2, 4.8) as sheet:
        over, *beside = sheet.subplots(1, 2 if kept else 1, squeeze=False)[0]
        handles = []
        for k, (curve, line) in enumerate([(c, "-") for c in new.values()] + [(c, "--") for c in kept.values()]):
            shares = sorted(curve)
            value, low, high = (100 * np.asarray([curve[share][j] for share in shares]) for j in range(3))
            over.fill_between(shares, low, high, color=_COLOURS[k % len(_COLOURS)], alpha=0.12, linewidth=0)
            handles += over.plot(shares, value, linestyle=line, linewidth=1.6, markersize=4, **_look(k))
        over.axvline(chosen, color=_FAINT, linestyle=":", linewidth=1.2)
        over.set(xlabel="alpha: share of the fine-tuned weights; dotted: the chosen one")
        over.set_ylabel("%; band: 95 % interval")
        _legend(over, handles, [f"new: {name}" for name in new] + [f"kept: {name}" for name in kept], loc="best")
        for axes in beside:
            shares = sorted(next(iter(new.values())))
            y, x = (100 * np.mean([[c[share].value for share in shares] for c in of.values()], 0) for of in (new, kept))
            axes.plot(x, y, color=_COLOURS[0], linewidth=1.6, marker="o", markersize=4)
            at = shares.index(chosen)
            axes.plot(x[at], y[at], color=_COLOURS[1], marker="*", markersize=14, linestyle="")
            for j in sorted({0, at, len(shares) - 1}):
                told = f"alpha {shares[j]:g}"
                axes.annotate(told, (x[j], y[j]), (7, 5), textcoords="offset points", fontsize=8, color=_INK)
            axes.margins(0.14)
            axes.set(xlabel="what is kept, %" + " (mean)" * (len(kept) > 1))
            axes.set(ylabel="what is new, %" + " (mean)" * (len(new) > 1))


def curves_png(lines: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """The lines of a run's metrics.jsonl over its steps: loss, scale, learning rate, speed, and every evaluation.

    None is a gap. Raises ValueError if no line holds a figure.
    """
    from matplotlib.ticker import MaxNLocator

    lines = sorted((line for line in lines if "step" in line), key=lambda line: line["step"])
    found = dict.fromkeys(key for line in lines for key, value in line.items() if is_number(value))
    panels = {heading: [key] for key, heading in _TRAINING.items() if key in found}
    for key in found:
        if key.startswith("eval/"):
            panels.setdefault(_panel(key), []).append(key)
    if not panels:
        raise ValueError("metrics.jsonl holds no figure to draw yet; train longer, or lower log.every")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    first, last = lines[0]["step"], lines[-1]["step"]
    margin = 0.02 * (last - first) or 0.5
    with _drawing(path, title, 5.2 * columns, 0.5 + 3.5 * rows) as sheet:
        for k, (heading, keys) in enumerate(panels.items()):
            axes = sheet.add_subplot(rows, columns, k + 1)
            _curves(axes, lines, keys)
            axes.set_title("\n".join(wrap(one_line(heading, 110), 56)), fontsize=10, loc="left")
            axes.set_xlabel("step", fontsize=8)
            axes.set_xlim(first - margin, last + margin)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.tick_params(labelsize=8)


def _panel(key: str) -> str:
    """What figures share a panel: one task, one direction, one unit, and one sense of better."""
    task, _, figure = key.removeprefix("eval/").rpartition("/")
    found = re.match("image_to_text|text_to_image", figure)
    way = f", {found[0].replace('_', ' ')}" if found else ""
    unit = "rank" if is_rank(figure) else "%"
    return f"{task or 'evaluation'}{way}, {unit}" + (" (lower is better)" if lower_is_better(figure) else "")


def _curves(axes: Axes, lines: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    handles = []
    for k, key in enumerate(keys):
        evaluated = key.startswith("eval/")
        x = [line["step"] for line in lines if key in line]
        y = np.asarray([line[key] if is_number(line[key]) else np.nan for line in lines if key in line], dtype=float)
        y *= 100 if evaluated and not is_rank(key) else 1
        # dots, as a point between gaps has no line
        look = _look(k) if len(x) <= _DOTS else {**_look(k), "marker": "."}
        handles += axes.plot(x, y, linewidth=1.4, markersize=4 if evaluated else 3, **look)
    if keys[0] == "loss_over_chance":
        axes.axhline(1, color=_FAINT, linestyle=":", linewidth=1)
    if len(keys) > 1:
        short = [re.sub(r"^(image_to_text|text_to_image)_", "", key.rpartition("/")[2]) for key in keys]
        _legend(axes, handles, list(map(_readable, short)))


Scores = Sequence[float] | np.ndarray


def foreign_png(inside: Scores, outside: Scores, path: str | Path, title: str, *, score: str = "score") -> None:
    """Histograms of a score for images of the classes and for foreign ones; what is not finite is left out.

    score: its name and unit, for the axis. Raises ValueError if either has no finite value.
    """
    both = [np.asarray(values, dtype=float) for values in (inside, outside)]
    own, foreign = (values[np.isfinite(values)] for values in both)
    if not len(own) or not len(foreign):
        raise ValueError(f"a histogram needs scores of both kinds; got {len(own)} own and {len(foreign)} foreign")
    edges = np.histogram_bin_edges(np.concatenate([own, foreign]), 40)
    with _drawing(path, title, 7.5, 4.2) as sheet:
        axes = sheet.add_subplot()
        for values, name, colour in ((own, "of the classes", _COLOURS[0]), (foreign, "foreign", _COLOURS[1])):
            style: dict[str, Any] = {"bins": edges, "weights": np.full(len(values), 100 / len(values)), "color": colour}
            axes.hist(values, histtype="stepfilled", alpha=0.25, **style)
            axes.hist(values, histtype="step", linewidth=1.5, label=f"{name} ({len(values):,})", **style)
            axes.axvline(float(np.median(values)), color=colour, linestyle="--", linewidth=1)
        axes.set_xlabel(one_line(f"{score}; dashed: median", 90))
        axes.set_ylabel("% of the images")
        axes.legend(fontsize=9)
