"""Plots of evaluations: what is drawn equals what was given, nothing is cut off, and any name will do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miniclip.evaluation import plots
from miniclip.metrics.bootstrap import Figure

NAMES = ["runs/a", "_b $\\frac$", "open_clip:ViT-B-32/laion2b", "日本 🦊", "two\nlines \x1b[31m", "long-" * 40]
NAMES += ["", "$\\frac"]
NAN = float("nan")
Draw = Callable[..., Any]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Draw:
    """Calls a function with what is given, a path and a title; returns the figure: no warning, nothing cut off."""
    figures, save = list[Any](), plots._save

    def keep(figure: Any, path: Path) -> None:
        figures.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(figure, path)
        with Image.open(path) as image:
            assert image.format == "PNG" and max(image.size) < 4000

    def draw(function: Any, *given: Any, title: str = "t", **more: Any) -> Any:
        function(*given, tmp_path / "x.png", title, **more)
        figure = figures.pop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            box = figure.get_tightbbox()  # inches
        width, height = figure.get_size_inches()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, (box, width, height)
        return figure

    monkeypatch.setattr(plots, "_save", keep)
    return draw


def points(line: Any) -> tuple[list[float], list[float]]:
    return list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))


def lines_of(axes: Any, style: str = "-") -> list[tuple[list[float], list[float]]]:
    return [points(line) for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


def dots_of(axes: Any) -> tuple[list[float], list[float]]:
    return points(next(line for line in axes.lines if line.get_marker() == "o"))


def words(labels: Iterable[Any]) -> list[str]:
    return [label.get_text() for label in labels]


def test_templates(draw: Draw) -> None:
    given = [{"template": f"{name} {{}}", "top1": top1} for name, top1 in zip("abc", (0.5, 0.75, 0.25), strict=True)]
    axes = draw(plots.templates_png, given, 0.8).axes[0]
    assert dots_of(axes) == ([25, 50, 75], [0, 1, 2])
    assert words(axes.get_yticklabels()) == ["c {}", "a {}", "b {}"]  # from below
    assert "from 25.0 to 75.0, standard deviation 25.0" in axes.get_xlabel()
    assert words(axes.get_legend().get_texts()) == ["mean 50.0 %", "all together 80.0 %"]
    assert ([80.0, 80.0], [0.0, 1.0]) in lines_of(axes)
    for n in (2, 40, 41, 200):
        given = [{"template": f"{NAMES[k % 8]} {k} {{}}", "top1": 0.5 + 0.001 * k} for k in range(n)]
        axes = draw(plots.templates_png, given, 0.3, title=NAMES[5]).axes[0]
        assert len(axes.get_yticklabels()) == min(n, 40)
        assert dots_of(axes)[0] == pytest.approx([50 + 0.1 * k for k in range(n) if k < 20 or k >= n - 20])
        assert axes.get_xlabel().endswith(f"\n{n - 40} more between") == (n > 40)
    draw(plots.templates_png, [given[0]] * 2, 0.5, title="equal")


def test_calibration(draw: Draw) -> None:
    names = "low", "high", "n", "confidence", "accuracy"
    values = (0.0, 0.5, 4, 0.375, 0.25), (0.5, 0.75, 0, None, None), (0.75, 1.0, 12, 0.875, 1.0)
    bins = [dict(zip(names, one, strict=True)) for one in values]
    top, below = draw(plots.calibration_png, bins, 0.1234, title=NAMES[1]).axes
    assert [(p.get_x(), p.get_width(), p.get_height()) for p in top.patches] == [(0, 0.5, 0.25), (0.75, 0.25, 1)]
    assert [p.get_height() for p in below.patches] == [4, 12]
    assert dots_of(top) == ([0.375, 0.875], [0.25, 1.0])
    gaps = [segment.tolist() for segment in top.collections[0].get_segments()]
    assert gaps == [[[0.375, 0.25], [0.375, 0.375]], [[0.875, 1.0], [0.875, 0.875]]]
    assert top.get_legend().get_title().get_text() == "expected calibration error 12.3 %"
    for ece in (None, NAN):
        draw(plots.calibration_png, bins[1:2], ece)


def test_shots(draw: Draw) -> None:
    full = {"shots": "full", "mean": 0.9, "std": None}
    curve = [full, *({"shots": k, "mean": 0.5 + k / 100, "std": 0.02} for k in (4, 1, 16))]
    axes = draw(plots.shots_png, curve, title=NAMES[1]).axes[0]
    x, y = lines_of(axes)[0]
    assert x[:3] == [0, 2, 4] and x[3] > 5 and y == pytest.approx([51, 54, 66, 90])
    band = axes.collections[0].get_paths()[0].vertices
    assert sorted(set(band[:, 1].round(6))) == [49, 52, 53, 56, 64, 68]  # the mean and 2 either way
    assert words(axes.get_xticklabels()) == ["1", "4", "16", "full"]
    draw(plots.shots_png, [full])


def test_compare(draw: Draw) -> None:
    a = {"top1": Figure(0.5, 0.4, 0.625, 9)}
    b = {"top1": Figure(0.75, NAN, NAN, 9), "ece": Figure(NAN, NAN, NAN, 0)}
    figure = draw(plots.compare_png, {"_a": a, "$b": b})
    (axes,) = figure.axes
    assert words(axes.get_yticklabels()) == ["top-1", "ECE\N{NO-BREAK SPACE}↓"]
    found = [line for line in lines_of(axes) if not math.isnan(line[0][0])]
    assert found == [([40, 62.5], [-0.2, -0.2]), ([50], [-0.2]), ([75], [0.2])]
    assert words(axes.texts) == ["50.0", "75.0"] and words(figure.legends[0].get_texts()) == ["_a", "$b"]
    for models, names in ((1, ["top1"]), (8, ["top1", "ece"]), (2, list("abcdefghijkl"))):
        figure = draw(plots.compare_png, {name: dict.fromkeys(names, a["top1"]) for name in NAMES[:models]})
        handles = figure.legends[0].legend_handles
        assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == models
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        tops = sorted((box.y0, box.y1) for box in boxes)
        assert all(lower[1] <= upper[0] + 1 for lower, upper in pairwise(tops))  # values apart


def test_curves(draw: Draw) -> None:
    steady = {"lr": 0.1, "logit_scale": 14.0, "mfu": 0.5}
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": None if step == 3 else 1 / step, **steady} for step in range(1, 101)
    ]
    figures = {"r1": 0.25, "r5": 0.25, "r10": 0.25, "map": 0.25, "median_rank": 3.5, "mean_rank": 3.5}
    ways = "image_to_text", "text_to_image"
    evaluated = {f"eval/retrieval/{way}_{name}": value for way in ways for name, value in figures.items()}
    lines.insert(50, {"step": 50, **evaluated, "eval/un/seen/top1": 0.5, "eval/un/seen/ece": 0.125})
    last = {"eval/retrieval/text_to_image_r1": None, "eval/un/seen/top1": 0.75, "eval/old_top1": 1.0}
    figure = draw(plots.curves_png, [*lines, {"step": 100, **last}], title=NAMES[1])
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    retrieval = [f"retrieval, {way}, " for way in ("image to text", "text to image")]
    assert list(panels) == [
        *("loss, nats", "logit scale", "learning rate"),
        *(start + unit for start in retrieval for unit in ("%", "rank (lower is better)")),
        *("un/seen, %", "un/seen, % (lower is better)", "evaluation, %"),
    ]
    loss = panels["loss, nats"].lines[0]
    x, y = points(loss)
    assert x == list(range(1, 101)) and y[9] == 0.1 and [k for k in range(100) if math.isnan(y[k])] == [2]
    assert loss.get_marker() == "." and panels["un/seen, %"].lines[0].get_marker() == "o"  # of many points, and of few
    assert lines_of(panels["un/seen, %"]) == [([50, 100], [50, 75])]
    assert lines_of(panels["un/seen, % (lower is better)"]) == [([50], [12.5])]
    assert lines_of(panels["retrieval, image to text, rank (lower is better)"]) == [([50], [3.5])] * 2
    first = points(panels["retrieval, text to image, %"].lines[0])[1]
    assert first[0] == 25 and math.isnan(first[1])
    assert words(panels["retrieval, text to image, %"].get_legend().get_texts()) == ["R@1", "R@5", "R@10", "mAP"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    (line,) = draw(plots.curves_png, [{"step": 1, "loss": 2.0}]).axes[0].lines
    assert line.get_marker() == "o"  # a line of one point would not be seen


def test_foreign(draw: Draw) -> None:
    inside, outside = [1.0, 2.0, 2.0, 5.0, NAN], np.asarray([4.0, math.inf, 6.0])
    axes = draw(plots.foreign_png, inside, outside, score="energy, $nats").axes[0]
    assert words(axes.get_legend().get_texts()) == ["of the classes (4)", "foreign (2)"]
    assert [patch.get_xy()[:, 1].max() for patch in axes.patches] == [50] * 4  # two of four, one of two
    assert [x[0] for x, _ in lines_of(axes, "--")] == [2, 5]  # medians
    assert axes.get_xlabel() == "energy, $nats; dashed: median"
    draw(plots.foreign_png, [1.0] * 3, [1.0])


@pytest.mark.parametrize("n", [2, 9, 36, 144])
def test_confusion(n: int, draw: Draw) -> None:
    """Colours are shares of the row, also of a class without images; names are as they are, or none."""
    classes = (NAMES * 18)[:n]
    counts = [[int(i == j) * 9 + int(j == 0) for j in range(n)] for i in range(n)]
    counts[1] = [0] * n
    axes = draw(plots.confusion_png, counts, classes, title="$a^b$ [x").axes[0]
    shares = np.asarray(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    assert np.allclose(axes.images[0].get_array(), shares)
    assert words(axes.texts) == [str(c) for row in counts for c in row if c and n <= 20]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert words(labels) == [plots.one_line(name, 24) for name in classes if n <= 100]


def test_nothing_to_draw(draw: Draw) -> None:
    empty = [], [{"step": 1}], [{"step": 1, "loss": None, "eval/a/top1": None}], [{"loss": 1.0}]
    for said, function, given in [
        ("no templates", plots.templates_png, ([], 0.5)),
        ("no shots", plots.shots_png, ([],)),
        ("no figures", plots.compare_png, ({"a": {}},)),
        ("4 own and 0 foreign", plots.foreign_png, ([1.0, 2.0, 2.0, 5.0, NAN], [NAN])),
        *((r"metrics\.jsonl holds no figure", plots.curves_png, (lines,)) for lines in empty),
    ]:
        with pytest.raises(ValueError, match=said):
            draw(function, *given)
