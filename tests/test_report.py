"""The report of a run: what it says against what was put in, both formats against each other, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from support.browsing import NASTY, Visits

from miniclip.config import load_config, save_config
from miniclip.evaluation import plots
from miniclip.evaluation.report.write import write_report
from miniclip.evaluation.result import Evaluation, entry, figures_json, header
from miniclip.metrics.bootstrap import Figure
from miniclip.models import create_model, resolve
from miniclip.training.run_dir import append_metrics

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["support.pages"]

DASH = "–"
MODEL = {"name": "runs/first", "fingerprint": "a1b2c3d4e5f60718"}
DATA = {"source": "flowers", "split": "test"}


def nothing(_: np.ndarray) -> Mapping[str, float]:
    return {}


def evaluation(kind: Any, task: str, figures: dict[str, Figure], details: dict[str, Any], *notes: str) -> Evaluation:
    return Evaluation(kind, task, figures, details, notes, "0123456789abcdef", nothing)


def zero_shot(task: str = "flowers", classes: int = 3, names: list[str] | None = None, **more: Any) -> Evaluation:
    """Class k is right in k + 1 pictures of 10, and the others are taken for the next class."""
    names = names or [f"class {k}" for k in range(classes)]
    rows = []
    for k, name in enumerate(names):
        rows.append({"class": name, "n": 10, "precision": 0.5, "recall": (k + 1) / 10, "f1": (k + 1) / (10 + classes)})
    confusion = [[0] * len(names) for _ in names]
    for k in range(len(names)):
        confusion[k][k], confusion[k][(k + 1) % len(names)] = k + 1, 9 - k
    figures = {
        "top1": Figure(0.8125, 0.79, 0.8312, 480),
        "balanced_accuracy": Figure(0.75, 0.7, 0.8, 480),
        "ece": Figure(0.0321, math.nan, math.nan, 480),
    }
    details = {
        "chance": 1 / 3,
        "classes": names,
        "per_class": rows,
        "confusion": confusion,
        "calibration": [
            {"low": 0.0, "high": 0.5, "n": 0, "confidence": math.nan, "accuracy": math.nan},
            {"low": 0.5, "high": 1.0, "n": 480, "confidence": 0.7, "accuracy": 0.8125},
        ],
    }
    made = evaluation("zeroshot", task, figures, details, "no top-5: it says little with 3 classes, and needs six")
    return replace(made, **more)


def foreign(result: Evaluation) -> Evaluation:
    found = {}
    for k, score in enumerate(("free_energy", "max_probability", "entropy")):
        found[f"auroc_{score}"] = Figure(0.9 - k / 100, 0.88, 0.92, 700)
        found[f"fpr95_{score}"] = Figure(0.2 + k / 100, 0.1, 0.3, 700)
    templates = [{"template": f"a photo of a {{}}, {k}.", "top1": share} for k, share in enumerate((0.5, 0.7, 0.9))]
    return replace(result, figures={**result.figures, **found}, details={**result.details, "templates": templates})


def retrieved() -> Evaluation:
    figures = {}
    for way, n in (("image_to_text", 100), ("text_to_image", 500)):
        for k, name in enumerate(("r1", "r5", "r10", "map")):
            figures[f"{way}_{name}"] = Figure(0.3 + k / 10, 0.25 + k / 10, 0.35 + k / 10, n)
        figures[f"{way}_median_rank"] = Figure(4.0, 3.0, 5.0, n)
        figures[f"{way}_mean_rank"] = Figure(1234.56, 1100.0, 1400.0, n)
    details = {
        "n_images": 100,
        "n_texts": 500,
        "chance_image_to_text_r10": 0.0966,
        "chance_text_to_image_r10": 0.1,
        "shared_texts": 2,
    }
    return evaluation("retrieval", "retrieval", figures, details, "2 captions stand with more than one image")


def probed() -> Evaluation:
    figures = {
        "linear": Figure(0.9, 0.85, 0.95, 60),
        "linear_balanced_accuracy": Figure(0.88, 0.8, 0.93, 60),
        "knn": Figure(0.85, 0.8, 0.9, 60),
        "linear_1_shot": Figure(0.5, 0.45, 0.55, 60),
        "linear_16_shot": Figure(0.8, 0.75, 0.85, 60),
    }
    shots = [
        {"shots": 1, "mean": 0.5, "std": 0.1, "draws": [0.4, 0.5, 0.6], "C": [1.0, 1.0, 1.0]},
        {"shots": 16, "mean": 0.8, "std": None, "draws": [0.8], "C": [1.0]},
    ]
    details = {
        "classes": ["a", "b"],
        "chance": 0.5,
        "n_train": 120,
        "n_validation": 30,
        "shots": shots,
        "C": 1.0,
        "k": 5,
    }
    return evaluation("probe", "flowers", figures, details)


def results(command: str, *found: Evaluation, **more: Any) -> dict[str, Any]:
    return {**header(command), **more, "results": [entry(one, MODEL, DATA) for one in found]}


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")


def picture(path: Path, size: tuple[int, int] = (60, 40), colour: str = "teal") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")


def new_run(directory: Path, lines: int = 12, *arguments: str) -> Path:
    """A run that is at work: a configuration and some lines of metrics."""
    options = ["--model.preset", "tiny-vit", "--train.max_steps", "120", "--run.dir", str(directory), *arguments]
    config = load_config(options)
    directory.mkdir(parents=True, exist_ok=True)
    save_config(replace(config, model=resolve(config.model)), directory / "config.yaml")
    for k in range(1, lines + 1):
        append_metrics(
            directory,
            10 * k,
            {
                "loss": 5 / k,
                "loss_over_chance": 1 / k,
                "logit_scale": 14.0 + k,
                "lr": 1e-3 * k / 12,
                "samples_per_s": 300.0,
            },
        )
        if k % 4 == 0:
            figures = {"eval/flowers/top1": 0.05 * k, "eval/retrieval/image_to_text_median_rank": 100.0 / k}
            append_metrics(directory, 10 * k, figures)
    return directory


def whole_run(directory: Path) -> Path:
    """Finished, evaluated in every way, with all pictures."""
    new_run(directory)
    training = {"steps": 120, "train_seconds": 754.2, "samples_per_s": 40.7, "bad": ["broken.jpg"]}
    write(
        directory / "results.json",
        results("train.py --config a.yaml", zero_shot("shape"), retrieved(), training=training),
    )
    (directory / "model").mkdir()
    (directory / "model" / "model.safetensors").touch()
    folder = directory / "evaluation"
    first = results("eval.py zeroshot --checkpoint runs/first --data flowers", foreign(zero_shot(classes=25)))
    second = {"name": "runs/second", "fingerprint": "ffff000011112222"}
    better = replace(zero_shot(classes=25), figures={"top1": Figure(0.85, 0.83, 0.87, 480)})
    first["results"].append(entry(better, second, DATA))
    gain = {
        "top1": Figure(0.0375, 0.01, 0.06, 480),
        "ece": Figure(0.02, 0.01, 0.03, 480),
        "macro_f1": Figure(0.01, -0.01, 0.03, 480),
    }
    first["differences"] = [
        {"of": "runs/second", "than": "runs/first", "task": "flowers", "figures": figures_json(gain)}
    ]
    write(folder / "flowers" / "results.json", first)
    write(folder / "probe" / "results.json", results("eval.py probe --checkpoint runs/first", probed()))
    for name in ("confusion_shape.png", "examples.png", "inspection/matrix.png"):
        picture(directory / name)
    for name in ("confusion", "templates", "calibration", "foreign", "compare"):
        picture(folder / "flowers" / f"{name}.png")
    picture(folder / "probe" / "shots.png")
    for name in ("examples.html", "inspection/report.html"):
        (directory / name).write_text("<!DOCTYPE html>", encoding="utf-8")
    return directory


class Words(HTMLParser):
    """Tables of a page as lists of cells, its headings, its pictures, and all of its text and tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._cell: list[str] | None = None
        self.lines: dict[str, list[str]] = {"li": [], "pre": [], "p": []}
        self._heading = False
        self._line = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
        elif tag in ("h1", "h2", "h3"):
            self._heading = True
            self.headings.append("")
        elif tag in self.lines:
            self._line = tag
            self.lines[tag].append("")
        elif tag in ("img", "a"):
            known = dict(attributes)
            (self.sources if tag == "img" else self.links).append(known.get("src") or known.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None
        if tag in ("h1", "h2", "h3"):
            self._heading = False
        if tag == self._line:
            self._line = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)
        if self._heading:
            self.headings[-1] += data
        if self._line:
            self.lines[self._line][-1] += data


def rendered(markdown: str) -> Words:
    """Through another one's reader of GitHub's dialect."""
    return Words(MarkdownIt("commonmark").enable("table").render(markdown))


def reported(run: Path) -> tuple[Words, Words, str, str]:
    """Markdown and page, as they are understood and as they stand."""
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(run))
    return rendered(markdown), Words(page), markdown, page


def row(words: Words, *start: str) -> list[str]:
    """The only line of all tables that begins so."""
    found = [line for table in words.tables for line in table if tuple(line[: len(start)]) == start]
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes seconds; `both`, which comes before this, has the real ones."""
    draw = plots.curves_png

    def curves_png(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
        if lines:
            picture(path)
        else:
            draw(lines, path, title)

    monkeypatch.setattr(plots, "curves_png", curves_png)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def both(whole: Path) -> tuple[Words, Words, str, str]:
    return reported(whole)


def test_both_formats_say_the_same(both: tuple[Words, Words, str, str]) -> None:
    markdown, page, _, _ = both
    tables = [[line for line in table if any(line)] for table in markdown.tables]  # facts have an empty line on top
    assert tables == page.tables
    assert len(tables) > 10
    assert markdown.headings == page.headings
    assert len(markdown.sources) == len(page.sources) == 10


def test_the_headline_comes_first(both: tuple[Words, Words, str, str]) -> None:
    _, page, _, _ = both
    assert page.headings[:2] == ["first", "Training"]
    head = page.tables[0]
    assert head[0] == ["", "task", "model", "value", "95 % interval", "n", "chance", "from"]
    assert head[1] == ["zero-shot top-1 %", "shape", "runs/first", "81.2", "[79.0, 83.1]", "480", "33.3", "training"]
    assert ["image to text R@1 %", "retrieval", "runs/first", "30.0", "[25.0, 35.0]", "100", DASH, "training"] in head
    assert ["text to image R@1 %", "retrieval", "runs/first", "30.0", "[25.0, 35.0]", "500", DASH, "training"] in head
    probe = ["nearest neighbours %", "flowers", "runs/first", "85.0", "[80.0, 90.0]", "60", "50.0", "evaluation/probe"]
    assert head[-1] == probe
    assert "Finished: 120 steps in 12 min 34 s, 41 pairs a second;" in page.text


def test_the_training_is_told(both: tuple[Words, Words, str, str]) -> None:
    _, page, _, _ = both
    size = sum(p.numel() for p in create_model("tiny-vit").parameters())
    assert ["model", f"tiny-vit, {size / 1e6:.1f} M parameters ({size:,})"] in page.tables[1]
    assert row(page, "batch")[1] == "256 pairs"
    assert row(page, "time")[1] == "12 min 34 s"
    assert row(page, "unreadable pictures")[1] == "1"
    assert row(page, "optimiser")[1].startswith("AdamW, learning rate 0.001, ")
    assert row(page, "loss, nats")[1] == "0.4167"  # 5 / 12
    assert row(page, "flowers", "top-1 %")[2:] == ["60.0", "120"]
    assert row(page, "retrieval", "image to text median rank")[2:] == ["8.3", "120"]


def test_each_kind_has_its_tables(both: tuple[Words, Words, str, str]) -> None:
    _, page, _, _ = both
    assert row(page, "shape", "runs/first", "480") == [
        "shape", "runs/first", "480", "81.2 [79.0, 83.1]", "75.0 [70.0, 80.0]", "3.2", "33.3", "training"
    ]  # fmt: skip
    assert row(page, "flowers", "runs/second", "480")[3:6] == ["85.0 [83.0, 87.0]", DASH, DASH]
    # of 0.5, 0.7 and 0.9: mean 0.7, standard deviation sqrt(0.08 / 2) = 0.2
    assert row(page, "flowers", "runs/first", "90.0 (a photo of a {}, 2.)")[3:7] == [
        "50.0 (a photo of a {}, 0.)", "3", "70.0", "20.0"
    ]  # fmt: skip
    assert row(page, "flowers", "runs/first", "max probability")[3:6] == [
        "0.890 [0.880, 0.920]", "21.0 [10.0, 30.0]", "700"
    ]  # fmt: skip
    assert row(page, "retrieval", "image to text", "500", "100")[4:] == [
        "30.0 [25.0, 35.0]", "40.0 [35.0, 45.0]", "50.0 [45.0, 55.0]", "60.0 [55.0, 65.0]", "4 [3, 5]",
        "1,234.6 [1,100, 1,400]", "9.7",
    ]  # fmt: skip
    assert row(page, "retrieval", "text to image", "100", "500")[-1] == "10.0"
    assert row(page, "flowers", "120", "30")[3:5] == ["60", "90.0 [85.0, 95.0]"]
    assert row(page, "flowers", "1") == ["flowers", "1", "50.0 [45.0, 55.0]", "10.0", "40.0, 50.0, 60.0"]
    assert row(page, "flowers", "16") == ["flowers", "16", "80.0 [75.0, 85.0]", DASH, "80.0"]
    for command in ("train.py --config a.yaml", "eval.py probe --checkpoint runs/first"):
        assert command in page.text
    assert "shape: no top-5: it says little with 3 classes, and needs six" in page.text
    for fingerprint in ("a1b2c3d4e5f60718", "ffff000011112222", "0123456789abcdef"):
        assert fingerprint in page.text


def test_differences_know_what_is_better(both: tuple[Words, Words, str, str]) -> None:
    _, page, _, _ = both
    start = ("runs/second", "runs/first", "flowers")
    assert row(page, *start, "top-1 %")[4:] == ["+3.8", "[+1.0, +6.0]", "better"]
    assert row(page, *start, "ECE %")[4:] == ["+2.0", "[+1.0, +3.0]", "worse"]  # a larger error
    assert row(page, *start, "macro F1 %")[4:] == ["+1.0", "[-1.0, +3.0]", "open"]


def test_of_many_classes_the_ends_are_shown(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for count, shown in (
        (20, list(range(20))),
        (21, [*range(20, 10, -1), *range(9, -1, -1)]),
        (40, [*range(39, 29, -1), *range(9, -1, -1)]),
    ):
        write(run / "results.json", results("x", zero_shot(classes=count)))
        _, page, _, _ = reported(run)
        (table,) = (table for table in page.tables if table[0][:2] == ["class", "most often taken for"])
        assert [line[0] for line in table[1:]] == [f"class {k}" for k in shown]
    assert row(page, "class 8")[1] == "class 9 (1)"  # not "class 8 (9)"
    assert row(page, "class 3")[1:] == ["class 4 (6)", "10", "50.0", "40.0", "8.0"]  # f1 4 / 50


def test_empty_bins_are_left_out(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write(run / "results.json", results("x", zero_shot()))
    _, page, _, _ = reported(run)
    assert row(page, "50.0 to 100.0")[1:] == ["480", "70.0", "81.2", "+11.3"]  # 0.8125 - 0.7
    assert not any(line[:1] == ["0.0 to 50.0"] for table in page.tables for line in table)


def test_pictures_stand_in_both(whole: Path, both: tuple[Words, Words, str, str]) -> None:
    markdown, page, _, written = both
    assert all((whole / "report" / source).is_file() for source in markdown.sources)
    assert markdown.sources[0] == "curves.png"
    assert {"../confusion_shape.png", "../evaluation/probe/shots.png", "../inspection/matrix.png"} <= set(
        markdown.sources
    )
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    links = re.findall(r'<a href="([^"#]+)"', written)
    assert links == ["../examples.html", "../inspection/report.html"]
    assert all((whole / "report" / link).is_file() for link in links)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, "Finished: 120 steps"),
        ({"lines": 5}, "Not finished: step 50 of 120, logged 20"),
        ({"lines": 0}, "Not finished: no step has been logged yet."),
    ],
)  # fmt: skip
def test_a_run_is_reported_at_any_time(tmp_path: Path, change: dict[str, int], expected: str) -> None:
    run = new_run(tmp_path / "run", **change)
    if not change:
        write(run / "results.json", results("x", zero_shot(), training={"steps": 120, "train_seconds": 1.0}))
    markdown, page, _, _ = reported(run)
    assert expected in page.text and expected in markdown.text
    assert "Left out" not in page.headings
    # without results the last validation is the headline
    first = ["flowers", "top-1 %", "20.0", "40"] if change.get("lines") else None
    assert page.tables[0][1:2] == [first] if first else True
    assert ("There are no results yet." in page.text) == (change.get("lines") == 0)
    assert ("curves.png" in markdown.sources) == (change.get("lines") != 0) == (run / "report" / "curves.png").exists()


def test_a_resumed_run_is_not_finished(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 5)
    write(run / "results.json", results("x", zero_shot(), training={"steps": 40}))
    assert "Not finished: step 50 of 120" in reported(run)[1].text
    assert "It had finished 40 steps before" in reported(run)[1].text


def test_the_chosen_weights_are_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    best = {"figure": "my_task/image_to_text_r1", "step": 80, "value": 0.4321}
    write(run / "results.json", results("x", zero_shot(), training={"steps": 120, "best": best}))
    _, page, _, _ = reported(run)
    assert row(page, "weights")[1] == "of step 80, the best my_task/image to text R@1 % on validation: 43.2"


def test_a_run_by_epochs_tells_its_epoch(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 0, "--train.max_steps", "null", "--train.epochs", "3")
    append_metrics(run, 70, {"loss": 1.0, "epoch": 1.75})
    assert "step 70, epoch 1.75 of 3" in reported(run)[1].text


def break_json(run: Path) -> None:
    (run / "evaluation" / "flowers" / "results.json").write_text('{"results": [', encoding="utf-8")


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        path = run / "results.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    "damage, said",
    [
        (break_json, "evaluation/flowers/results.json: not JSON"),
        (lambda run: (run / "evaluation/probe/results.json").unlink(), "evaluation/probe/results.json: does not exist"),
        (lambda run: (run / "evaluation/probe/results.json").write_text("[]"), "not an object with results"),
        (lambda run: (run / "evaluation/probe/results.json").write_text("[" * 100_000), "results.json: not JSON"),
        (edit(lambda v: v.pop("results")), 'results.json: no list of "results"'),
        (
            edit(lambda v: v["results"].insert(0, 7)),
            "results.json, results[0]: kind is none of zeroshot, retrieval, probe",
        ),
        (edit(lambda v: v["results"][0].pop("kind")), "results.json, results[0]: kind is none of"),
        (edit(lambda v: v["results"][1].pop("figures")), "results.json, results[1]: no figures"),
        (edit(lambda v: v["results"][0]["figures"].update(top5=3)), "results.json, results[0], top5: no value"),
        (
            edit(lambda v: v["results"][0]["details"].update(per_class="x")),
            "results[0], details.per_class: not a list of",
        ),
        (
            edit(lambda v: v["results"][0]["details"]["per_class"][1].pop("f1")),
            "results[0], details.per_class: not a list",
        ),
        (edit(lambda v: v["results"][0]["details"]["confusion"].pop()), "details.confusion: not 3 x 3 whole numbers"),
        (
            lambda run: (run / "config.yaml").write_text("model: {preset: tiny-vit, nonsense: 1}"),
            "config.yaml: unknown key",
        ),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe: ["), "config.yaml: "),
        (lambda run: (run / "examples.png").write_bytes(b"no picture"), "examples.png: no PNG"),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_stands(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    run = whole_run(tmp_path / "run")
    damage(run)
    markdown, page, _, _ = reported(run)
    for words in (markdown, page):
        assert words.headings[-1] == "Left out"
        assert said in words.text
        assert any("75.0 [70.0, 80.0]" in line or "85.0" in line for table in words.tables for line in table)


def test_every_damaged_result_leaves_a_report(tmp_path: Path) -> None:
    """Any value anywhere may be replaced by any other."""
    run = whole_run(tmp_path / "run")
    path = run / "evaluation" / "flowers" / "results.json"
    original = path.read_text(encoding="utf-8")
    draws = random.Random(0)
    others: list[Any] = [None, True, -1, 1e400, "x", "", [], {}, [[]], [None], {"a": 1}, 10**400, "<b>|", float("nan")]

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [found for key, inner in items for found in ((value, key), *places(inner))]

    for _ in range(10):
        values = json.loads(original)
        for holder, key in draws.sample(places(values), 12):
            holder[key] = draws.choice(others)
        path.write_text(json.dumps(values), encoding="utf-8")
        _, page, _, _ = reported(run)
        assert "shape" in page.tables[0][1]


def test_damaged_lines_of_metrics_are_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 3)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(
            '[1]\n{"loss": 1}\n{"step": 40, "loss": "x", "lr": NaN, "logit_scale": 3}\n' + "junk\n" * 7 + '{"step": 5'
        )
    _, page, _, _ = reported(run)
    assert "metrics.jsonl, line 4, 5: no step" in page.text
    assert "metrics.jsonl, line 7, 8, 9, 10, 11, ... (7 lines): not JSON" in page.text
    assert "metrics.jsonl, line 14: not JSON, or still being written" in page.text
    assert "step 40 of 120" in page.text
    assert "at step 30" in page.text and row(page, "loss, nats")[1] == "1.667"  # of the last line that has one


def test_figures_that_are_none_are_dashes(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    result = replace(
        zero_shot(), figures={"top1": Figure(math.nan, math.nan, math.nan, 0), "ece": Figure(0.5, 0.1, 0.7, 9)}
    )
    write(run / "results.json", results("x", result))
    _, page, _, _ = reported(run)
    assert page.tables[0][1] == ["zero-shot top-1 %", "flowers", DASH, DASH, DASH, "33.3"]
    assert row(page, "flowers", DASH) == ["flowers", DASH, DASH, "50.0 [10.0, 70.0] (n 9)", "33.3"]


@pytest.mark.parametrize("folder", ["plain", "run/model", "runs"])
def test_what_is_no_run_is_refused_with_advice(tmp_path: Path, folder: str) -> None:
    new_run(tmp_path / "run", 0)
    new_run(tmp_path / "runs" / "second", 0)
    (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=r"is no run: it holds no config\.yaml; ") as error:
        write_report(tmp_path / folder)
    advice = {"plain": "name the directory that train.py wrote", "run/model": f"did you mean {tmp_path / 'run'}?"}
    assert advice.get(folder, f"name one of the runs in it, e.g. {tmp_path / 'runs' / 'second'}") in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="is no run"):
        write_report(tmp_path / "nowhere")


def test_nothing_is_read_from_outside(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    picture(tmp_path / "secret.png", colour="red")
    write(tmp_path / "out" / "evil" / "results.json", results("secret command", zero_shot()))
    (run / "examples.png").unlink()
    (run / "examples.png").symlink_to(tmp_path / "secret.png")
    (run / "confusion_up.png").symlink_to("../secret.png")
    (run / "results.json").unlink()
    (run / "results.json").symlink_to(tmp_path / "out" / "evil" / "results.json")
    (run / "evaluation" / "linked").symlink_to(tmp_path / "out" / "evil")
    (run / "evaluation" / "inside.png").symlink_to(run / "confusion_shape.png")
    os.mkfifo(run / "confusion_pipe.png")  # would wait for ever
    (run / "page.html").symlink_to(tmp_path / "secret.png")
    markdown, page, _, written = reported(run)
    for name in ("examples.png", "confusion_up.png", "results.json", "evaluation/linked/results.json"):
        assert f"{name}: a link leads out of the run" in page.text
    assert "confusion_pipe.png: no file" in page.text
    assert "secret command" not in page.text and "page.html" not in written
    assert not any("examples" in source or "_up" in source or "linked" in source for source in markdown.sources)


def test_an_evaluation_folder_outside_is_not_looked_into(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (tmp_path / "out" / "evil").mkdir(parents=True)
    (run / "evaluation").symlink_to(tmp_path / "out")
    _, page, _, _ = reported(run)
    assert "evaluation: a link leads out of the run" in page.text and "evil" not in page.text


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (run / "report").mkdir()
    for name in ("report.md", "report.html", "curves.png"):
        (run / "report" / name).symlink_to(tmp_path / "mine")
    write_report(run)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"
    other = new_run(tmp_path / "other")
    (tmp_path / "away").mkdir()
    (other / "report").symlink_to(tmp_path / "away")
    with pytest.raises(ValueError, match="leads out of the run"):
        write_report(other)
    assert not list((tmp_path / "away").iterdir())


def test_only_pngs_of_a_sane_size_go_in(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(run / "examples.png", "JPEG")
    Image.new("1", (9000, 9000)).save(run / "confusion_large.png", "PNG")  # 81 Mpx in a few kB
    Image.new("1", (20000, 20000)).save(run / "confusion_bomb.png", "PNG")
    picture(run / "confusion_cut.png", (300, 300))
    cut = (run / "confusion_cut.png").read_bytes()
    (run / "confusion_cut.png").write_bytes(cut[: len(cut) // 2])
    (run / "confusion_folder.png").mkdir()
    markdown, page, _, _ = reported(run)
    assert markdown.sources == ["curves.png"] and len(page.sources) == 1
    assert "examples.png: no PNG" in page.text
    assert "confusion_large.png: cannot be decoded (ValueError: 9000 x 9000 pixels are too many)" in page.text
    assert "confusion_bomb.png: cannot be decoded (Decompression" in page.text
    assert "confusion_cut.png: cannot be decoded" in page.text
    assert "confusion_folder.png: no file" in page.text


def test_a_large_picture_is_made_smaller(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1200, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").save(run / "examples.png")
    assert (run / "examples.png").stat().st_size > 6_000_000
    _, page, _, _ = reported(run)
    assert page.sources[1].startswith("data:image/jpeg;base64,")
    assert 100_000 < len(page.sources[1]) <= 1.5e6 * 4 / 3 + 40


NAMES = [
    *NASTY,
    "a | b || c \\| d \\",
    "[link](javascript:hack) ![x](http://127.0.0.1/y.png) <http://127.0.0.1>",
    "# heading",
    "- item",
    "1. first",
    "--- ",
    "_a_ __b__ *c* **d** `e` ``f`` ~~g~~ a_b_c",
    "&lt;b&gt; &#124; $x$ [^1] [ ]",
    "\\](x) [\\",
    "C#",
    "```",
    "/a/b [1, 2]",
]


def shown_as(name: str) -> str:
    """On one line, without what no terminal or page should be given."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def nasty_run(directory: Path) -> Path:
    """Every text that a run takes from data and from its user is one of NAMES."""
    new_run(directory, 3, "--data.source", NAMES[0])
    values: dict[str, Any] = results(NAMES[1], training={"steps": 30, "<b>|": "*x*"})
    for k, name in enumerate(NAMES):
        one = entry(
            zero_shot(task=name, notes=(name,), names=NAMES[k:] or NAMES),
            {"name": name, "fingerprint": str(k)},
            {"source": name, "split": name},
        )
        one["details"]["templates"] = [{"template": name, "top1": 0.5}, {"template": NAMES[k - 1], "top1": 0.75}]
        one["figures"][name] = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}
        values["results"].append(one)
        found = {"of": name, "than": name, "task": name, "figures": {name: one["figures"][name]}}
        values.setdefault("differences", []).append(found)
    values["versions"] |= {"<i>": "<b>|", "x": "`"}
    write(directory / "results.json", values)
    folder = directory / "evaluation" / "'\"><script>window.hacked=6<|script> [x](y) | 100%25"
    write(folder / "results.json", {**results("```", zero_shot(names=NAMES)), "time": "<script>"})
    picture(folder / "confusion.png")
    (folder / "javascript:window.hacked=7;.html").write_text("x", encoding="utf-8")
    picture(directory / "confusion_<img src=x onerror=window.hacked=8>|](x).png")
    (directory / "metrics.jsonl").open("a").write('{"step": 40, "eval/<b>|/*top1*": 0.5}\n')
    return directory


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    run = nasty_run(tmp_path / "<b>run|*")
    markdown, page, _, _ = reported(run)
    shown = set(map(shown_as, NAMES))
    tables = [[line for line in table if any(line)] for table in markdown.tables]
    assert tables == page.tables
    assert markdown.headings == page.headings and page.headings[0] == "<b>run|*"
    assert {line[1] for line in page.tables[0]} >= shown  # tasks
    assert {
        cell for table in page.tables if table[0][:1] == ["class"] for line in table[1:] for cell in line[:1]
    } <= shown
    assert set(page.lines["li"]) >= {f"{name}: {name}" for name in shown}  # notes
    assert markdown.lines["li"] == page.lines["li"]
    commands = [line.rstrip("\n") for line in markdown.lines["pre"]]
    assert commands == page.lines["pre"] and set(commands) == {shown_as(NAMES[1]), "```"}
    for tag in ("script", "svg", "iframe", "object", "form", "base", "i", "b", "em", "strong", "del", "hr"):
        assert tag not in page.tags
        assert tag not in markdown.tags or tag == "strong"  # titles of tables
    pages = list(run.glob("evaluation/*/*.html"))
    for words in (markdown, page):
        links = [link for link in words.links if not link.startswith("#part-")]
        assert [(run / "report" / unquote(link)).resolve() for link in links] == pages
    found = [(run / "report" / unquote(source)).resolve() for source in markdown.sources]
    assert sorted(found) == sorted(run.rglob("*.png")) and len(page.sources) == len(found) == 3


def test_the_page_is_one_file_that_asks_for_nothing(both: tuple[Words, Words, str, str]) -> None:
    _, page, _, text = both
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert len(policy) == 1
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'",
        policy[0],
    )
    assert text.index("Content-Security-Policy") < text.index("<style")
    assert not re.search(r"https?://", text)
    assert not {"script", "iframe", "object", "form", "base"} & set(page.tags)
    assert not re.search(r"\son\w+=|\sstyle=", text)


def test_it_is_the_same_each_time(whole: Path) -> None:
    first = [path.read_bytes() for path in write_report(whole)]
    assert first == [path.read_bytes() for path in write_report(whole)]


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 700}}])
def test_a_browser_shows_it(visit: Visits, whole: Path, options: dict[str, Any]) -> None:
    page = visit(write_report(whole)[1], **options)
    assert fits(page)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 10
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)[0]")
        for name in ("color", "backgroundColor")
    )
    assert ink > paper + 150 if options.get("color_scheme") else paper > ink + 150
    assert visit.complaints == []


def test_a_browser_runs_nothing_of_the_data(visit: Visits, tmp_path: Path) -> None:
    page = visit(write_report(nasty_run(tmp_path / "run"))[1], viewport={"width": 360, "height": 700})
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert fits(page)
    assert visit.complaints == []
