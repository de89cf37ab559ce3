"""Plots of evaluations: what is drawn equals what was given, nothing is cut off, and any name will do."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miniclip.evaluation import plots
from miniclip.evaluation.plots import (
    calibration_png,
    compare_png,
    confusion_png,
    curves_png,
    foreign_png,
    shots_png,
    templates_png,
)
from miniclip.metrics.bootstrap import Figure

NAMES = [
    "runs/a",
    "_b $\\frac$",
    "open_clip:ViT-B-32/laion2b",
    "日本 🦊",
    "two\nlines \x1b[31m",
    "long-" * 40,
    "",
    "$\\frac",
]
RETRIEVAL = [
    f"{way}_{figure}"
    for way in ("image_to_text", "text_to_image")
    for figure in ("r1", "r5", "r10", "map", "median_rank", "mean_rank")
]
NAN = float("nan")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved, which are checked: no warning, nothing cut off."""
    figures: list[Any] = []
    save = plots._save

    def keep(figure: Any, path: str | Path) -> None:
        figures.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(figure, path)
        with Image.open(path) as image:
            assert image.format == "PNG" and max(image.size) < 4000
        check_whole(figure)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def check_whole(figure: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        needed = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert needed.x0 >= 0 and needed.y0 >= 0 and needed.x1 <= width and needed.y1 <= height, (needed, width, height)


def lines_of(axes: Any, style: str = "-") -> list[tuple[list[float], list[float]]]:
    return [
        (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.lines
        if line.get_linestyle() == style and len(line.get_xdata())
    ]


def test_templates(drawn: list[Any], tmp_path: Path) -> None:
    given = [{"template": f"{name} {{}}", "top1": top1} for name, top1 in zip("abc", (0.5, 0.75, 0.25), strict=True)]
    templates_png(given, 0.8, tmp_path / "x.png", "t")
    axes = drawn[0].axes[0]
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    assert dots.get_xdata().tolist() == [25, 50, 75] and dots.get_ydata().tolist() == [0, 1, 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c {}", "a {}", "b {}"]  # from below
    assert "from 25.0 to 75.0, standard deviation 25.0" in axes.get_xlabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean 50.0 %", "all together 80.0 %"]
    assert ([80.0, 80.0], [0.0, 1.0]) in lines_of(axes)
    with pytest.raises(ValueError, match="no templates"):
        templates_png([], 0.5, tmp_path / "x.png", "t")


@pytest.mark.parametrize("n", [2, 40, 41, 200])
def test_templates_of_any_number(n: int, drawn: list[Any], tmp_path: Path) -> None:
    given = [{"template": f"{NAMES[k % len(NAMES)]} {k} {{}}", "top1": 0.5 + 0.001 * k} for k in range(n)]
    templates_png(given, 0.3, tmp_path / "x.png", NAMES[5])
    axes = drawn[0].axes[0]
    assert len(axes.get_yticklabels()) == min(n, 40)
    dots = next(line for line in axes.lines if line.get_marker() == "o").get_xdata()
    shown = [50 + 0.1 * k for k in range(n) if k < 20 or k >= n - 20]
    assert dots.tolist() == pytest.approx(shown)
    assert axes.get_xlabel().endswith(f"\n{n - 40} more between") == (n > 40)
    templates_png([given[0]] * 2, 0.5, tmp_path / "x.png", "equal")


def test_calibration(drawn: list[Any], tmp_path: Path) -> None:
    bins = [
        {"low": 0.0, "high": 0.5, "n": 4, "confidence": 0.375, "accuracy": 0.25},
        {"low": 0.5, "high": 0.75, "n": 0, "confidence": None, "accuracy": None},
        {"low": 0.75, "high": 1.0, "n": 12, "confidence": 0.875, "accuracy": 1.0},
    ]
    calibration_png(bins, 0.1234, tmp_path / "x.png", NAMES[1])
    top, below = drawn[0].axes
    assert [(p.get_x(), p.get_width(), p.get_height()) for p in top.patches] == [(0, 0.5, 0.25), (0.75, 0.25, 1)]
    assert [p.get_height() for p in below.patches] == [4, 12]
    dots = next(line for line in top.lines if line.get_marker() == "o")
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([0.375, 0.875], [0.25, 1.0])
    gaps = [segment.tolist() for segment in top.collections[0].get_segments()]
    assert gaps == [[[0.375, 0.25], [0.375, 0.375]], [[0.875, 1.0], [0.875, 0.875]]]
    assert top.get_legend().get_title().get_text() == "expected calibration error 12.3 %"
    for ece in (None, NAN):
        calibration_png(bins[1:2], ece, tmp_path / "x.png", "no picture")


def test_shots(drawn: list[Any], tmp_path: Path) -> None:
    full = {"shots": "full", "mean": 0.9, "std": None}
    curve = [full, *({"shots": k, "mean": 0.5 + k / 100, "std": 0.02} for k in (4, 1, 16))]
    shots_png(curve, tmp_path / "x.png", NAMES[1])
    axes = drawn[0].axes[0]
    line = next(line for line in axes.lines if line.get_linestyle() == "-")
    assert list(line.get_xdata())[:3] == [0, 2, 4] and line.get_xdata()[3] > 5
    assert line.get_ydata().tolist() == pytest.approx([51, 54, 66, 90])
    band = axes.collections[0].get_paths()[0].vertices
    assert sorted(set(band[:, 1].round(6))) == [49, 52, 53, 56, 64, 68]  # the mean and 2 either way
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4", "16", "full"]
    shots_png([full], tmp_path / "x.png", "t")
    with pytest.raises(ValueError, match="no shots"):
        shots_png([], tmp_path / "x.png", "t")


def test_compare(drawn: list[Any], tmp_path: Path) -> None:
    a = {"top1": Figure(0.5, 0.4, 0.625, 9)}
    b = {"top1": Figure(0.75, NAN, NAN, 9), "ece": Figure(NAN, NAN, NAN, 0)}
    compare_png({"_a": a, "$b": b}, tmp_path / "x.png", "t")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["top-1", "ECE\N{NO-BREAK SPACE}↓"]
    found = [line for line in lines_of(axes) if not math.isnan(line[0][0])]
    assert found == [([40, 62.5], [-0.2, -0.2]), ([50], [-0.2]), ([75], [0.2])]
    assert [text.get_text() for text in axes.texts] == ["50.0", "75.0"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["_a", "$b"]
    for models, names in ((1, ["top1"]), (8, ["top1", "ece"]), (2, list("abcdefghijkl"))):
        results = {name: {key: Figure(0.5, 0.4, 0.6, 9) for key in names} for name in NAMES[:models]}
        compare_png(results, tmp_path / "x.png", "t")
        handles = drawn[-1].legends[0].legend_handles
        assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == models
        (axes,) = drawn[-1].axes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            boxes = [text.get_window_extent() for text in axes.texts]
        tops = sorted((box.y0, box.y1) for box in boxes)
        assert all(lower[1] <= upper[0] + 1 for lower, upper in pairwise(tops))  # values apart
    with pytest.raises(ValueError, match="no figures"):
        compare_png({"a": {}}, tmp_path / "x.png", "t")


def test_curves(drawn: list[Any], tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": None if step == 3 else 1 / step, "lr": 0.1, "logit_scale": 14.0, "mfu": 0.5}
        for step in range(1, 101)
    ]
    evaluated = {f"eval/retrieval/{name}": 3.5 if "rank" in name else 0.25 for name in RETRIEVAL}
    lines.insert(50, {"step": 50, **evaluated, "eval/un/seen/top1": 0.5, "eval/un/seen/ece": 0.125})
    lines.append(
        {"step": 100, "eval/retrieval/text_to_image_r1": None, "eval/un/seen/top1": 0.75, "eval/old_top1": 1.0}
    )
    curves_png(lines, tmp_path / "x.png", NAMES[1])
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert list(panels) == [
        "loss, nats",
        "logit scale",
        "learning rate",
        "retrieval, image to text, %",
        "retrieval, image to text, rank (lower is better)",
        "retrieval, text to image, %",
        "retrieval, text to image, rank (lower is better)",
        "un/seen, %",
        "un/seen, % (lower is better)",
        "evaluation, %",
    ]
    loss = panels["loss, nats"].lines[0]
    assert loss.get_xdata().tolist() == list(range(1, 101))
    assert [k for k, y in enumerate(loss.get_ydata()) if math.isnan(y)] == [2] and loss.get_ydata()[9] == 0.1
    assert loss.get_marker() == "." and panels["un/seen, %"].lines[0].get_marker() == "o"  # of many points, and of few
    assert lines_of(panels["un/seen, %"]) == [([50, 100], [50, 75])]
    assert lines_of(panels["un/seen, % (lower is better)"]) == [([50], [12.5])]
    assert lines_of(panels["retrieval, image to text, rank (lower is better)"]) == [([50], [3.5])] * 2
    first = panels["retrieval, text to image, %"].lines[0]
    assert first.get_ydata()[0] == 25 and math.isnan(first.get_ydata()[1])
    legend = panels["retrieval, text to image, %"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["R@1", "R@5", "R@10", "mAP"]
    assert len({axes.get_xlim() for axes in drawn[0].axes}) == 1


def test_curves_of_short_runs(drawn: list[Any], tmp_path: Path) -> None:
    curves_png([{"step": 1, "loss": 2.0}], tmp_path / "x.png", "one line")
    (line,) = drawn[0].axes[0].lines
    assert line.get_marker() == "o"  # a line of one point would not be seen
    for nothing in ([], [{"step": 1}], [{"step": 1, "loss": None, "eval/a/top1": None}], [{"loss": 1.0}]):
        with pytest.raises(ValueError, match=r"metrics\.jsonl holds no figure"):
            curves_png(nothing, tmp_path / "x.png", "none")


def test_foreign(drawn: list[Any], tmp_path: Path) -> None:
    inside, outside = [1.0, 2.0, 2.0, 5.0, NAN], np.asarray([4.0, math.inf, 6.0])
    foreign_png(inside, outside, tmp_path / "x.png", "t", score="energy, $nats")
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["of the classes (4)", "foreign (2)"]
    highest = [patch.get_xy()[:, 1].max() for patch in axes.patches]
    assert highest == [50, 50, 50, 50]  # two of four, one of two
    assert [x[0] for x, _ in lines_of(axes, "--")] == [2, 5]  # medians
    assert axes.get_xlabel() == "energy, $nats; dashed: median"
    foreign_png([1.0] * 3, [1.0], tmp_path / "x.png", "collapsed")
    with pytest.raises(ValueError, match="4 own and 0 foreign"):
        foreign_png(inside, [NAN], tmp_path / "x.png", "t")


@pytest.mark.parametrize("n", [2, 9, 36, 144])
def test_confusion(n: int, drawn: list[Any], tmp_path: Path) -> None:
    """Colours are shares of the row, also of a class without images; names are as they are, or none."""
    classes = (NAMES * 18)[:n]
    counts = [[int(i == j) * 9 + int(j == 0) for j in range(n)] for i in range(n)]
    counts[1] = [0] * n
    confusion_png(counts, classes, tmp_path / "x.png", "$a^b$ [x")
    axes = drawn[0].axes[0]
    shares = np.asarray(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    assert np.allclose(axes.images[0].get_array(), shares)
    assert [text.get_text() for text in axes.texts] == [str(c) for row in counts for c in row if c and n <= 20]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == [plots.one_line(name, 24) for name in classes if n <= 100]
