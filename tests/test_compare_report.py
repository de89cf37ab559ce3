"""What a comparison came to: the tables against the runs' own results, the intervals against chance, curves by hand."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from safetensors.torch import save_file
from support.browsing import NASTY, Visits
from support.reading import Words
from support.runs import finished_run

from miniclip.compare.charts import LOSS, panel, partings
from miniclip.compare.curves import Band, Curve, band, curves_of, parting
from miniclip.compare.report import show, write_report
from miniclip.compare.results import read_results
from miniclip.compare.statistics import best, paired, spread
from miniclip.evaluation.result import Evaluation, entry, header
from miniclip.metrics.bootstrap import Figure
from miniclip.models.load import load

pytest_plugins = ["support.pages"]

NAN = math.nan
TASKS: dict[str, tuple[Any, list[str]]] = {
    "retrieval": ("retrieval", ["image_to_text_r10", "text_to_image_r10", "image_to_text_median_rank"]),
    "colour": ("zeroshot", ["top1", "ece"]),
}


# The statistics


def test_a_difference_is_counted_seed_by_seed() -> None:
    apart = paired({0: 1.0, 1: 2.0, 2: 3.0, 7: 9.0}, {2: 6.0, 0: 2.0, 1: 4.0, 8: 0.0})
    assert apart is not None and apart.n == 3 and apart.value == pytest.approx(2.0)
    half = 4.302653 / math.sqrt(3)  # Student's t of 2 degrees of freedom; the deviation is 1
    assert (apart.low, apart.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    for first, second in (({0: 1.0}, {0: 3.0}), ({0: 0.1, 1: 0.2}, {0: 0.3, 1: 0.4})):  # one; no spread
        one = paired(first, second)
        assert one is not None and one.value > 0 and math.isnan(one.low) and math.isnan(one.high)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, statistics.stdev([1, 2, 4]), 3))
    assert math.isnan(spread([1.0]).sd)


@pytest.mark.parametrize("n", [3, 5])
def test_paired_intervals_cover(n: int) -> None:
    """Seeds move both variants, the second one more; the difference is 0.02, in 95 of 100 intervals."""
    draws, hits, wider = np.random.default_rng(n), 0, 0
    for _ in range(2000):
        common, own = draws.normal(0, 0.03, n), draws.normal(0, 0.01, (2, n))
        first, second = 0.4 + common + own[0], 0.42 + common + 2 * own[1]
        apart = paired(dict(enumerate(first)), dict(enumerate(second)))
        assert apart is not None
        hits += apart.low <= 0.02 <= apart.high
        wider += apart.high - apart.low > 2 * 0.03
    assert abs(hits / 2000 - 0.95) < 0.015  # three standard errors
    assert n == 3 or wider < 1000  # pairing takes away what the seeds have in common


def test_the_best_is_marked_only_where_it_beats_all() -> None:
    low, high, wide = {0: 0.1, 1: 0.12, 2: 0.11}, {0: 0.5, 1: 0.52, 2: 0.53}, {0: 0.1, 1: 0.9, 2: 0.8}
    assert best([low, high], lower=False) == 1 and best([low, high], lower=True) == 0
    assert best([low, high, wide], lower=False) is None and best([low, high, {}], lower=False) == 1
    assert best([high], lower=False) is None and best([{0: 0.1}, {0: 0.9}], lower=False) is None
    draws = np.random.default_rng(0)
    found = [best([dict(enumerate(row)) for row in draws.normal(0, 1, (3, 3))], lower=False) for _ in range(500)]
    assert sum(one is not None for one in found) < 25  # equal ones: fewer than one of 20


# The curves


def test_seconds_follow_from_the_speed() -> None:
    """8 pairs a step: 10 steps at 40 a second, 10 at 80, 20 at 80 take 2, 1 and 2 seconds."""
    lines = [
        {"step": 10, "loss": 3.0, "samples_per_s": 40.0, "slope": None},
        {"step": 15, "eval/retrieval/image_to_text_r10": 0.2, "eval/retrieval/text_to_image_r10": 0.4},
        {"step": 20, "loss": 2.0, "samples_per_s": 80.0},
        {"step": 40, "loss": 1.0, "samples_per_s": 80.0, "slope": 1.0},
        {"step": 40, "eval/a/top1": 0.5, "eval/retrieval/image_to_text_r10": 0.2},
    ]
    curves = curves_of(lines[::-1], batch=8)
    assert [curve.tolist() for curve in curves["loss"]] == [[10, 20, 40], [2.0, 3.0, 5.0], [3.0, 2.0, 1.0]]
    assert [curve.tolist() for curve in curves["eval/retrieval/mean_r10"]] == [[15], [2.5], [pytest.approx(0.3)]]
    assert curves["eval/a/top1"].seconds.tolist() == [5.0] and curves["slope"].steps.tolist() == [40]
    assert curves_of([{"step": 3, "loss": 1.0}], 8)["loss"].seconds.tolist() == [0.0]  # no speed, no time


def test_a_band_joins_curves_of_different_steps() -> None:
    first = Curve(np.array([0.0, 10, 20]), np.array([0.0, 1, 2]), np.array([4.0, 2, 0]))
    second = Curve(np.array([5.0, 15, 25]), np.array([1.0, 3, 5]), np.array([1.0, 1, 3]))
    both = band([first, second])
    assert both is not None and both.x.tolist() == [5, 10, 15, 20]
    assert both.mean.tolist() == [2, 1.5, 1, 1]  # (3 + 1) / 2, (2 + 1) / 2, (1 + 1) / 2, (0 + 2) / 2
    assert both.low.tolist() == [1, 1, 1, 0] and both.high.tolist() == [3, 2, 1, 2]
    timed = band([first, second], seconds=True)
    assert timed is not None and timed.x.tolist() == [1, 2] and timed.mean.tolist() == [1.5, 0.5]
    assert band([]) is None and band([first, Curve(np.array([30.0]), np.array([6.0]), np.array([1.0]))]) is None
    long = np.arange(5000.0)
    thinned = band([Curve(long, long, long)])
    assert thinned is not None and len(thinned.x) == 200 and np.allclose(thinned.x, thinned.mean)


PARTINGS: list[tuple[list[float], list[float], bool, float, bool]] = [
    # metric at 20, 40, ...; loss at 10, 20, ..., 100; whether lower is better -> step of the best; whether they part
    ([0.1, 0.3, 0.5, 0.4, 0.3], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False, 60, True),
    ([9.0, 5.0, 3.0, 4.0, 6.0], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], True, 60, True),
    ([0.1, 0.3, 0.5, 0.5, 0.5], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False, 60, True),  # stands still
    ([0.1, 0.2, 0.3, 0.4, 0.5], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False, 100, False),  # still better
    ([0.1, 0.2, 0.3, 0.5, 0.4], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], False, 80, False),  # once is noise
    ([0.1, 0.3, 0.5, 0.4, 0.3], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5, 0.49], False, 60, False),  # so is the loss
    ([0.1, 0.3, 0.5, 0.4, 0.3], [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.6, 0.7, 0.8, 0.9], False, 60, False),  # rises as well
]


@pytest.mark.parametrize(("metric", "loss", "lower", "step", "part"), PARTINGS)
def test_where_loss_and_metric_part(
    metric: list[float], loss: list[float], lower: bool, step: float, part: bool
) -> None:
    def line(values: list[float], every: float) -> Band:
        y = np.array(values)
        return Band(np.arange(1, len(y) + 1) * every, y, y, y)

    found = parting(line(metric, 20), line(loss, 10), lower)
    assert (found.step, found.part) == (step, part)
    assert (found.best, found.last) == (metric[int(step / 20) - 1], metric[-1])
    assert (found.loss, found.loss_last) == pytest.approx((loss[int(step / 10) - 1], loss[-1]))
    # a spike in a single line is smoothed away where many are logged
    many = np.repeat(np.array(loss), 20)
    many[int(step * 2) - 1] += 0.2
    fine = parting(line(metric, 20), Band(np.arange(1, 201) / 2, many, many, many), lower)
    assert fine.part == part


# The report


def results_of(seed: int, gain: float, steps: int) -> dict[str, Any]:
    draws, found = np.random.default_rng([seed, int(100 * gain)]), []
    for task, (kind, names) in TASKS.items():
        values = {name: float(0.4 + gain + draws.normal(0, 0.02)) for name in names}
        values |= {name: 10 * value for name, value in values.items() if "rank" in name}
        figures = {name: Figure(value, value - 0.1, value + 0.1, 50) for name, value in values.items()}
        one = Evaluation(kind, task, figures, {}, (), "0123", lambda weights: {})
        found.append(entry(one, {"name": "m", "fingerprint": "f"}, {"source": "shapes", "split": "test"}))
    best = {"figure": "colour/top1", "step": steps - 10, "value": 0.5}
    training = {"steps": steps, "train_seconds": 10.0 + seed / 7, "samples_per_s": 50.0, "bad": [], "best": best}
    return {**header("train.py"), "training": training, "results": found}


def write_run(folder: Path, seed: int, gain: float, steps: int, finished: bool = True) -> None:
    """As training leaves it: lines of metrics, and the results in the end."""
    (folder / "model").mkdir(parents=True)
    lines = []
    for step in range(10, steps + 1, 10):
        figures = {LOSS: 1 - step / 200 + gain, "grad_norm_image": 1 / step, "r1_image_to_text": step / 400}
        lines.append({"step": step, **figures, "slope_positive": -1 / step - seed / 100, "samples_per_s": 40.0})
        if step % 20 == 0:
            ways = {f"eval/retrieval/{way}_r10": 0.01 * min(step, 60) for way in ("image_to_text", "text_to_image")}
            lines.append({"step": step, **ways, "eval/colour/top1": step / 200})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        weights = {"a.weight": torch.zeros(3, 4), "bn.running_mean": torch.zeros(9), "ids": torch.zeros(5).long()}
        save_file(weights, folder / "model" / "model.safetensors")
        (folder / "results.json").write_text(json.dumps(results_of(seed, gain, steps)))


def write_plan(folder: Path, names: list[str], seeds: int, **more: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    tried = [
        {"value": 1e-3, "steps": [25, 50], "figures": [0.31, 0.42]},
        {"value": 4e-3, "steps": [25], "figures": [0.1]},
    ]
    tuned = {"key": "optim.lr", "chosen": 1e-3, "tried": tried}
    about = {"steps": 100, "step_seconds": None, "resolved": {}}
    variants = [
        {"name": name, "options": {"loss.name": name}, "tuned": tuned if not k else None, **about}
        for k, name in enumerate(names)
    ]
    pairs = [(k, seed) for k in range(len(names)) for seed in range(seeds)]
    runs = [{"variant": k, "seed": seed, "dir": f"runs/{k}-{seed}", "error": None} for k, seed in pairs]
    plan = {
        "command": "miniclip compare …",
        "time": "2026-01-31T12:00:00+00:00",
        "config": "a.yaml",
        "budget": {"kind": "samples", "value": 1600},
        "metric": "retrieval/mean_r10",
        "tune": None,
        "base": {"data.batch_size": 8},
        "variants": variants,
        "seeds": list(range(seeds)),
        "runs": runs,
        **more,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants with three seeds, of the last of which one run has failed, and one is at work."""
    folder = tmp_path_factory.mktemp("runs") / "losses"
    plan = write_plan(folder, ["softmax", "sigmoid", "hinge"], 3)
    for run in plan["runs"]:
        gain, failed = run["variant"] / 10, (run["variant"], run["seed"]) in ((2, 1), (2, 2))
        write_run(folder / run["dir"], run["seed"], gain, 50 if failed else 100, not failed)
    plan["runs"][7]["error"] = "NonFiniteLoss: loss nan\x1b[31m"
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture(scope="module")
def reported(whole: Path) -> tuple[Words, Words, str]:
    """Markdown through another one's reader, the page, and the LaTeX as it stands."""
    page, markdown, tex, _ = (path.read_text(encoding="utf-8") for path in write_report(whole))
    return Words(MarkdownIt("commonmark").enable("table").render(markdown)), Words(page), tex


def row(words: Words, heading: str, start: str) -> dict[str, str]:
    """By their columns, the cells of the line that begins so in the only table that has that heading in it."""
    found = [(table[0], line) for table in words.tables for line in table if heading in table[0] and line[0] == start]
    assert len(found) == 1, (heading, start, found)
    return dict(zip(*found[0], strict=True))


def of_runs(folder: Path, variant: int, task: str, figure: str) -> dict[int, float]:
    """Read anew from the results.json of each run."""
    found = {}
    for path in folder.glob(f"runs/{variant}-*/results.json"):
        (one,) = [one for one in json.loads(path.read_text())["results"] if one["task"] == task]
        found[int(path.parent.name[-1])] = one["figures"][figure]["value"]
    return found


def test_runs_of_a_few_steps_have_a_page(tmp_path: Path) -> None:
    """Their lines are of other steps, so that no curve counts over what all of them have."""
    for run in write_plan(tmp_path, ["a", "b"], 2)["runs"]:
        folder = tmp_path / run["dir"]
        write_run(folder, run["seed"], 0.0, 10)
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 6 + run["seed"], LOSS: 0.9, "samples_per_s": 40.0}) + "\n"
        )
    assert "loss / chance" in write_report(tmp_path)[0].read_text()


def test_the_tables_equal_the_runs_own_results(whole: Path, reported: tuple[Words, Words, str]) -> None:
    """Means, deviations and every single figure, to the digit; compare.json to the last."""
    _, page, _ = reported
    numbers = json.loads((whole / "compare.json").read_text())
    for k, name in enumerate(("softmax", "sigmoid", "hinge")):
        for task, (_, figures) in TASKS.items():
            for figure in figures:
                own = of_runs(whole, k, task, figure)
                told = numbers["variants"][k]["figures"][f"{task}/{figure}"]
                assert {int(seed): value for seed, value in told["seeds"].items()} == own
                assert told["mean"] == pytest.approx(statistics.fmean(own.values()), rel=1e-12)
                assert (told["sd"] is None) == (k == 2) == (len(own) == 1)
                assert k == 2 or told["sd"] == pytest.approx(statistics.stdev(own.values()), rel=1e-9)
        top1 = {seed: 100 * value for seed, value in of_runs(whole, k, "colour", "top1").items()}
        shown = f"{statistics.fmean(top1.values()):.1f}"
        shown += "" if k == 2 else f" ± {statistics.stdev(top1.values()):.1f}"
        tables = [table for table in page.tables if "colour, top-1 %" in table[0] and table[0][1] == "runs"]
        cells = dict(zip(*[line for line in tables[0] if line[0] in ("variant", name)], strict=True))
        assert cells["colour, top-1 %"].removesuffix(" (best)") == shown
        assert cells["runs"] == ("1 of 3" if k == 2 else "3 of 3")
        ways = [of_runs(whole, k, "retrieval", f"{way}_r10") for way in ("image_to_text", "text_to_image")]
        mean = [50 * (ways[0][seed] + ways[1][seed]) for seed in top1]
        assert cells["retrieval, mean R@10 %"].split(" ")[0] == f"{statistics.fmean(mean):.1f}"
        (table,) = [table for table in page.tables if "state" in table[0]]
        lines = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
        single = {int(line["seed"]): line["colour, top-1 %"] for line in lines if line["variant"] == name}
        assert {seed: value for seed, value in single.items() if value != "-"} == {
            s: f"{v:.1f}" for s, v in top1.items()
        }
    assert numbers["runs"][0]["training"] == json.loads((whole / "runs/0-0/results.json").read_text())["training"]


def test_differences_are_from_the_first_variant(whole: Path, reported: tuple[Words, Words, str]) -> None:
    first, second = (of_runs(whole, k, "colour", "ece") for k in (0, 1))
    apart = paired(first, second)
    assert apart is not None
    shown = " ".join(f"{100 * value:+.1f}" for value in apart[:3])
    value, low, high = shown.split(" ")
    (cells,) = [
        line
        for table in reported[1].tables
        for line in table
        if table[0] == ["variant", "top-1 %", "ECE %"] and line[0] == "sigmoid"
    ]
    assert cells[2] == f"{value} [{low}, {high}] worse"  # an error that is larger
    numbers = json.loads((whole / "compare.json").read_text())["variants"]
    assert numbers[1]["figures"]["colour/ece"]["difference"] == pytest.approx(apart._asdict())
    assert numbers[0]["figures"]["colour/ece"]["difference"] is None
    assert numbers[2]["figures"]["colour/ece"]["difference"]["low"] is None  # of one seed
    marked = [variant["name"] for variant in numbers if variant["figures"]["colour/top1"]["best"]]
    assert marked == []  # one seed of hinge says nothing, though it is highest


def test_what_each_was_given(reported: tuple[Words, Words, str]) -> None:
    _, page, _ = reported
    given = list(row(page, "parameters", "softmax").values())
    assert given == ["softmax", "100", "800", "10.1 ± 0.1", "12", "optim.lr 0.001"]
    (tried,) = [table[1:] for table in page.tables if "tried" in table[0]]
    assert tried == [
        ["softmax", "0.001", "31.0 after 25, 42.0 after 50", "chosen"],
        ["softmax", "0.004", "10.0 after 25", ""],
    ]
    assert "7 of 9 runs finished. Each is given 1,600 pairs." in page.text


def test_what_is_not_finished_is_said(reported: tuple[Words, Words, str]) -> None:
    for words in reported[:2]:
        assert "hinge, seed 1: NonFiniteLoss: loss nan [31m" in words.lines["li"]
        assert "hinge, seed 2: at step 50 of 100" in words.lines["li"]


def test_loss_and_metric_are_told_apart(reported: tuple[Words, Words, str]) -> None:
    """The metric stands still from step 60 on, the loss falls by half a per cent of chance a step."""
    cells = row(reported[1], "do they part?", "softmax")
    assert cells["best at step"] == "60" and cells["do they part?"] == "from step 60"
    assert cells["loss / chance there"] == "0.700" and cells["retrieval/mean_r10 there"] == "60.0"


def test_a_chart_draws_its_numbers(whole: Path) -> None:
    """Loss of the first variant: 1 - step / 200 from step 10 to 100, at one speed; its mark at step 60."""
    found = read_results(whole)
    drawn = panel(found, LOSS, partings(found, "eval/retrieval/mean_r10"))
    assert drawn is not None
    steps, seconds = drawn.charts
    assert steps.x[0] == (52.0, "0") and steps.x[-1] == (548.0, "100") and steps.y == seconds.y
    ticks = {float(text): place for place, text in steps.y}
    places = [tuple(map(float, pair.split(","))) for pair in steps.lines[0].points.split(" ")]
    assert [x for x, _ in places] == pytest.approx([52 + 496 * step / 100 for step in range(10, 101, 10)], abs=0.06)
    low, high = min(ticks), max(ticks)
    scale = (ticks[high] - ticks[low]) / (high - low)  # pixels a unit, upwards
    heights = [ticks[low] + scale * (1 - step / 200 - low) for step in range(10, 101, 10)]
    assert scale < 0 and [y for _, y in places] == pytest.approx(heights, abs=0.11)
    assert steps.level == pytest.approx(ticks[low] + scale * (1 - low), abs=0.11)
    assert steps.lines[0].mark == pytest.approx(52 + 496 * 0.6, abs=0.06) == seconds.lines[0].mark
    assert steps.lines[0].around and len(places) == len(steps.lines[0].dots) == 10


def test_all_formats_hold_the_same_tables(reported: tuple[Words, Words, str]) -> None:
    markdown, page, tex = reported
    assert markdown.tables == page.tables and len(page.tables) > 8
    assert read_latex(tex) == page.tables
    assert [section for section in page.headings[1] if section in markdown.headings[1]] == markdown.headings[1]


def read_latex(tex: str) -> list[list[list[str]]]:
    """The cells of every tabular, as TeX would set them."""
    signs = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">"}
    signs |= {"textbar": "|", "textquotedbl": '"'}

    def cell(text: str) -> str:
        assert not set('|<>"~^') & set(text), text  # which TeX sets as other signs
        bold = re.fullmatch(r"\\textbf\{(.*)\}", text)
        text = (bold[1] if bold else text).replace(r"$\pm$", "±").replace("$-$", "-")
        text = re.sub(r"\\([a-z]+)\{\}|\\([&%$#_{}])", lambda found: signs.get(found[1]) or found[2], text)
        return text + " (best)" * bool(bold)

    tables = re.findall(r"\\toprule\n(.*?)\\bottomrule", tex, re.DOTALL)
    lines = [[line.removesuffix(r" \\") for line in table.splitlines() if line != r"\midrule"] for table in tables]
    return [[[cell(text) for text in line.split(" & ")] for line in table] for table in lines]


def test_the_page_is_one_file_that_asks_for_nothing(whole: Path, reported: tuple[Words, Words, str]) -> None:
    text = (whole / "compare.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and not re.search(r"https?://|\son\w+=|\sstyle=|<script", text)


def test_it_can_be_written_at_any_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a run has begun, with damaged results, and with one seed of one variant."""
    plan = write_plan(tmp_path / "a", ["softmax", "sigmoid"], 1, metric="x/top1")
    plan["variants"][0]["steps"] = None  # before its time has been measured
    (tmp_path / "a" / "plan.json").write_text(json.dumps(plan))
    page = Words(write_report(tmp_path / "a")[0].read_text())
    assert "There are no results yet." in page.text and "softmax, seed 0: not begun" in page.lines["li"]
    write_run(tmp_path / "a/runs/0-0", 0, 0.1, 100)
    (tmp_path / "a/runs/0-0/results.json").write_text('{"training": {}, "results": [{"task"')
    page = Words(write_report(tmp_path / "a")[0].read_text())
    assert any("softmax, seed 0: results.json is damaged" in line for line in page.lines["li"])
    (tmp_path / "a/runs/0-0/results.json").write_text(json.dumps(results_of(0, 0.1, 100)))
    page = Words(write_report(tmp_path / "a")[0].read_text())
    value = 100 * of_runs(tmp_path / "a", 0, "colour", "top1")[0]
    (cells,) = [line for line in page.tables[0] if line[0] == "softmax"]
    assert f"{value:.1f}" in cells and "svg" in page.tags and "nan" not in page.text
    capsys.readouterr()
    show(tmp_path / "a")
    said = capsys.readouterr().out
    assert f"{value:.1f}" in said and "sigmoid, seed 0: not begun" in said


def test_refusals_name_the_plan(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no comparison: it holds no plan\.json"):
        write_report(tmp_path)
    plan = write_plan(tmp_path, ["a"], 1)
    for bad in ("[", "[]", "{}", json.dumps(plan | {"runs": [7]})):
        (tmp_path / "plan.json").write_text(bad)
        with pytest.raises(ValueError, match=r"plan\.json") as error:
            write_report(tmp_path)
        assert "\n" not in str(error.value)


def nasty(folder: Path) -> Path:
    """Names that would be markup, and more variants than there are colours."""
    names = [*NASTY, r"a_b & 100% {x} ~ ^ # $y$ \end{tabular} | `c` *d*"]
    plan = write_plan(folder, names, 2, command="<script>window.hacked=9</script>", time="</p>")
    for run in plan["runs"]:
        write_run(folder / run["dir"], run["seed"], run["variant"] / 50, 100)
    return folder


def test_names_stay_text(tmp_path: Path) -> None:
    folder = nasty(tmp_path / "<b>out|*")
    paths = write_report(folder)
    page, markdown, tex, _ = (path.read_text(encoding="utf-8") for path in paths)
    assert all(line.isprintable() for text in (page, markdown, tex) for line in text.split("\n"))
    words, read = Words(page), Words(MarkdownIt("commonmark").enable("table").render(markdown))
    assert words.tables == read.tables and words.headings[0] == read.headings[0]
    shown = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in NASTY]
    assert [line[0] for line in words.tables[0][1:-1]] == shown
    assert [[cell.replace(" (best)", "") for cell in line] for line in read_latex(tex)[0]] == words.tables[0]
    for tag in ("script", "img", "iframe", "b", "em", "strong", "pre"):
        assert tag not in words.tags and tag not in read.tags


@pytest.mark.slow
def test_a_real_run_is_read(tmp_path: Path) -> None:
    """The format is what training writes: its own seconds, its parameters, every figure that it evaluates."""
    plan = write_plan(tmp_path, ["softmax"], 1, metric="shape/top1")
    run = finished_run(tmp_path)
    plan["runs"][0]["dir"] = run.name
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    page = Words(write_report(tmp_path)[0].read_text())
    numbers, own = (json.loads(path.read_text()) for path in (tmp_path / "compare.json", run / "results.json"))
    figures = {
        f"{one['task']}/{name}": figure["value"] for one in own["results"] for name, figure in one["figures"].items()
    }
    told = {name: figure["mean"] for name, figure in numbers["variants"][0]["figures"].items()}
    assert {name: value for name, value in told.items() if name != "retrieval/mean_r10"} == figures
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert curves_of(lines, 8)["loss"].seconds[-1] == pytest.approx(own["training"]["train_seconds"], rel=1e-9)
    model = load(str(run))[0]
    assert row(page, "parameters", "softmax")["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    titles = " ".join(page.lines["h3"])
    for said in (
        "shape: top-1 %",
        "loss / chance",
        "R@1, image to text, %",
        "gradient norm, text encoder",
        "logit scale",
    ):
        assert said in titles


def test_a_browser_shows_it(visit: Visits, whole: Path, tmp_path: Path) -> None:
    """In any width, light and dark, without a complaint of its policy; and what is drawn is in the frame."""
    narrow: dict[str, Any] = {"viewport": {"width": 360, "height": 700}}
    own, other = write_report(whole)[0], write_report(nasty(tmp_path / "x"))[0]
    for path, options in ((own, {}), (own, {"color_scheme": "dark"}), (own, narrow), (other, narrow)):
        page = visit(path, order="", **options)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("typeof window.hacked") == "undefined" and visit.complaints == []
        outside = """[...document.querySelectorAll('.chart')].filter((chart) => {
            const a = chart.getBoundingClientRect(), all = [...chart.querySelectorAll('polyline, polygon, text, line')];
            return all.map((e) => e.getBoundingClientRect()).some((b) =>
                b.left < a.left - 1 || b.right > a.right + 1 || b.top < a.top - 1 || b.bottom > a.bottom + 1);
        }).length"""
        assert page.evaluate(outside) == 0 and page.evaluate("document.querySelectorAll('.chart').length") >= 12
        strokes = "new Set([...document.querySelectorAll('.panel polyline')].map(e => getComputedStyle(e).stroke)).size"
        assert page.evaluate(strokes) == (3 if path == own else 8)
