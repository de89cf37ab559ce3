"""The report of a run: what it says against what was put in, both formats against each other, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from support.browsing import NASTY, Visits
from support.reading import Words

from miniclip.config import Config, load_config, load_config_file, save_config
from miniclip.data.scenes.source import SceneSource
from miniclip.evaluation import plots
from miniclip.evaluation.galleries import write_sheets
from miniclip.evaluation.report.write import write_report
from miniclip.evaluation.result import Evaluation, entry, figures_json, header
from miniclip.evaluation.retrieval import PairEmbeddings
from miniclip.metrics.bootstrap import Figure
from miniclip.models import create_model, resolve
from miniclip.training.run_dir import append_metrics

pytest_plugins = ["support.pages"]

NAN = math.nan
LOADED: dict[str, Config] = {}  # text of a configuration -> itself


def evaluation(kind: Any, task: str, figures: dict[str, Figure], details: dict[str, Any], *notes: str) -> Evaluation:
    return Evaluation(kind, task, figures, details, notes, "0123456789abcdef", lambda weights: {})


def zero_shot(task: str = "flowers", names: Sequence[str] = ("a", "b", "c"), *notes: str) -> Evaluation:
    """Class k is right in k + 1 images of 10, and the others are taken for the next class."""
    c = len(names)
    rows = [{"class": n, "n": 10, "precision": 0.5, "recall": 0.1 + k / 10, "f1": 0.4} for k, n in enumerate(names)]
    counts = [[k + 1 if j == k else 9 - k if j == (k + 1) % c else 0 for j in range(c)] for k in range(c)]
    figures = {"top1": Figure(0.8125, 0.79, 0.8312, 480), "ece": Figure(0.0321, NAN, NAN, 480)}
    details = {"chance": 1 / 3, "classes": list(names), "per_class": rows, "confusion": counts}
    return evaluation("zeroshot", task, figures, details, *notes)


def retrieved() -> Evaluation:
    found = {"r1": (0.31, 0.25, 0.35), "r10": (0.4, 0.25, 0.35), "median_rank": (4.0, 3.0, 5.5), "map": (0.5, 0.4, 0.6)}
    ways = {"image_to_text": 100, "text_to_image": 500}
    figures = {f"{way}_{name}": Figure(*of, n) for way, n in ways.items() for name, of in found.items()}
    return evaluation("retrieval", "retrieval", figures, {"chance_image_to_text_r10": 0.0966})


def results(command: str, *found: Evaluation, model: str = "runs/first", **more: Any) -> dict[str, Any]:
    about = {"name": model, "fingerprint": f"weights of {model}"}, {"source": "flowers", "split": "test"}
    return {**header(command), **more, "results": [entry(one, *about) for one in found]}


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), "teal").save(path, "PNG")


@cache
def configured(*arguments: str) -> Config:
    config = load_config(["--model.preset", "tiny-vit", "--train.max_steps", "120", *arguments])
    return replace(config, model=resolve(config.model))


def new_run(directory: Path, lines: int = 12, *arguments: str) -> Path:
    """A run that is at work: a configuration and some lines of metrics."""
    directory.mkdir(parents=True, exist_ok=True)
    save_config(configured(*arguments), directory / "config.yaml")
    for k in range(1, lines + 1):
        append_metrics(directory, 10 * k, {"loss": 5 / k, "loss_over_chance": 1 / k, "logit_scale": 14.0 + k})
        if k % 4 == 0:
            figures = {"eval/flowers/top1": 0.05 * k, "eval/retrieval/image_to_text_median_rank": 100.0 / k}
            append_metrics(directory, 10 * k, figures)
    return directory


def reported(run: Path) -> tuple[Words, Words, str]:
    """Markdown through another one's reader of GitHub's dialect, the page, and the page as it stands."""
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(run))
    return Words(MarkdownIt("commonmark").enable("table").render(markdown)), Words(page), page


def row(words: Words, start: str) -> list[str]:
    """The only line of all tables that begins with these cells."""
    cells = start.split("|")
    found = [line for table in words.tables for line in table if line[: len(cells)] == cells]
    assert len(found) == 1, (start, found)
    return found[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing curves takes seconds, parsing a configuration a fifth of one; `both`, which comes before, does it."""
    curves, load = plots.curves_png, load_config_file

    def curves_png(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
        (draw(path) if lines else curves(lines, path, title))

    def loaded(path: Path) -> Config:
        if (text := path.read_text(encoding="utf-8")) not in LOADED:
            LOADED[text] = load(path)
        return LOADED[text]

    monkeypatch.setattr(plots, "curves_png", curves_png)
    monkeypatch.setattr("miniclip.config.load_config_file", loaded)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished, evaluated in every way, with all images."""
    run = new_run(tmp_path_factory.mktemp("runs") / "first")
    best = {"figure": "flowers/image_to_text_r1", "step": 80, "value": 0.4321}
    training = {"steps": 120, "train_seconds": 754.2, "samples_per_s": 40.7, "bad": ["broken.jpg"], "best": best}
    own = results("train.py --config a.yaml", zero_shot("shape", "abc", "no top-5"), retrieved(), training=training)
    compared = results("eval.py zeroshot --data flowers", zero_shot())
    compared["results"] += results("", zero_shot(), model="runs/second")["results"]
    gains = {"top1": (0.0375, 0.01, 0.06), "ece": (0.02, 0.01, 0.03), "macro_f1": (0.01, -0.01, 0.03)}
    gained = figures_json({name: Figure(*of, 480) for name, of in {**gains, "top5": (0.01, NAN, NAN)}.items()})
    compared["differences"] = [{"of": "runs/second", "than": "runs/first", "task": "flowers", "figures": gained}]
    accuracies = {"linear": Figure(0.9, 0.85, 0.95, 60), "knn": Figure(0.85, 0.8, 0.9, 60)}
    probed = results("eval.py probe", evaluation("probe", "flowers", accuracies, {"chance": 0.5}))
    for folder, values in ((run, own), (run / "evaluation/flowers", compared), (run / "evaluation/probe", probed)):
        write(folder / "results.json", values)
    for name in ("confusion_shape", "examples", "inspection/matrix", "evaluation/flowers/f", "evaluation/probe/s"):
        draw(run / f"{name}.png")
    for name in ("examples.html", "inspection/report.html"):
        (run / name).write_text("<!DOCTYPE html>", encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def both(whole: Path) -> tuple[Words, Words, str]:
    return reported(whole)


def test_both_formats_say_the_same(both: tuple[Words, Words, str]) -> None:
    markdown, page, _ = both
    assert markdown.tables == page.tables and len(page.tables) > 10
    assert markdown.headings == page.headings and page.headings[0] == ["first"]
    assert page.headings[1][:4] == ["Results", "Pictures", "Differences between models", "Training"]
    assert markdown.lines["li"] == page.lines["li"] and len(markdown.sources) == len(page.sources) == 6


def test_what_it_says(both: tuple[Words, Words, str]) -> None:
    """Every task with intervals and chance; model and folder in the name, as there are several of both."""
    _, page, _ = both
    for start in (
        "shape, runs/first|480|3|81.2 [79.0, 83.1] (chance 33.3)|-|-|-",
        "flowers, runs/second, flowers|480|3|81.2 [79.0, 83.1] (chance 33.3)",
        "retrieval, runs/first|image -> text|100|31.0 [25.0, 35.0]|-|40.0 [25.0, 35.0] (chance 9.7)",
        "flowers, runs/first, probe|60|90.0 [85.0, 95.0] (chance 50.0)|85.0 [80.0, 90.0] (chance 50.0)",
        "shape, runs/first|480|3.2",
        # a larger error is worse; an interval that holds 0, or none, says nothing
        "runs/second|+3.8 [+1.0, +6.0] better|+2.0 [+1.0, +3.0] worse|+1.0 [-1.0, +3.0]|+1.0",
        f"parameters|{sum(p.numel() for p in create_model('tiny-vit').parameters()):,}",
        "weights|of step 80, the best flowers/image to text R@1 on validation: 43.2",
        "seconds|754.2",
        "pairs a second|40.7",
        "unreadable images|1",
        "at step 120|loss 0.4167, loss over chance 0.08333, logit scale 26",  # 5 / 12
        "last validation, %: flowers|top-1 60.0",
        "last validation, %: retrieval|image to text median rank 8.3",
        "training|shape|flowers|test|0123456789abcdef",
    ):
        row(page, start)
    assert any(["b", "10", "20.0", "50.0", "40.0", "c (8)"] in table for table in page.tables)
    assert "shape, runs/first: no top-5" in page.lines["li"]
    for said in ("Finished: 120 steps.", "preset tiny-vit, embed dim 256, ", "max steps 120, "):
        assert said in page.text
    assert "batch size 256" in row(page, "data")[1] and row(page, "optimiser")[1].startswith("name adamw, lr 0.001, ")


def test_where_it_comes_from(whole: Path, both: tuple[Words, Words, str]) -> None:
    markdown, page, written = both
    commands, weights, _ = page.tables[-3:]
    asked = {"training": "train.py --config a.yaml", "evaluation/flowers": "eval.py zeroshot --data flowers"}
    assert {line[0]: line[2] for line in commands[1:]} == {**asked, "evaluation/probe": "eval.py probe"}
    values = json.loads((whole / "results.json").read_text(encoding="utf-8"))
    assert commands[1][1] == values["time"]
    assert {f"{name} {version}" for name, version in values["versions"].items()} == set(commands[1][3].split(", "))
    assert weights[1:] == [[name, f"weights of {name}"] for name in ("runs/first", "runs/second")]
    assert all((whole / "report" / source).is_file() for source in markdown.sources)
    shown = {"../confusion_shape.png", "../evaluation/probe/s.png", "../inspection/matrix.png"}
    assert {"curves.png", *shown} <= set(markdown.sources)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    links = re.findall(r'<a href="([^"#]+)"', written)
    assert links == ["../examples.html", "../inspection/report.html"] == markdown.links
    first = [path.read_bytes() for path in write_report(whole)]
    assert first == [path.read_bytes() for path in write_report(whole)]  # the same each time


def test_pictures_come_before_the_calibration(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    draw(run / "evaluation" / "flowers" / "calibration.png")
    markdown, page, text = reported(run)
    parts = page.headings[1]
    assert markdown.headings[1] == parts and parts[4:6] == ["Classes and templates", "Calibration"]
    places = [text.index(f'alt="{name}"') for name in ("examples.png", "report/curves.png")]
    assert places == sorted(places) and places[-1] < text.index("ECE %") > text.index(
        "evaluation/flowers/calibration.png"
    )
    assert text.index("ECE %") > text.index('class="number">recall %')


def test_the_examples_of_a_retrieval_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its own page shows them: the same images, captions, marks and cosines; a stranger's page may hold anything."""
    run, source = new_run(tmp_path / "run"), SceneSource("test", size=12, image_size=32)
    texts = [f"<b>{text}" for k in range(12) for text in source.captions(k)[:2]]
    image, owner = torch.eye(12), torch.arange(24) // 2
    noise = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
    pairs = PairEmbeddings(image, torch.nn.functional.normalize(image[owner] + noise, dim=1), texts, owner)
    write_sheets(source, pairs, run, title="here")
    _, page, text = reported(run)
    sheet = Words((run / "examples.html").read_text())
    assert [image["src"] for image in page.images[:4]] == [image["src"] for image in sheet.images[:4]]
    assert [image["alt"] for image in page.images[:4]] == [source.name(k) for k in (0, 2, 3, 5)]
    shown = [" ".join(line.split()) for line in page.lines["li"]]
    assert shown == [" ".join(line.split()) for line in sheet.lines["li"][:20]] and len(shown) == 20
    assert text.count('<li class="own">') == sum("✓" in line for line in shown) > 0
    assert "own caption: rank" in text and "<b>an" not in text and "examples.html" in text

    for bad in ("https://a.b/c.jpg", "data:image/svg+xml;base64,AAAA", "data:image/jpeg;base64,AAAA"):
        evil = (
            f'<article class="example"><img src="{bad}"><ol><li><span class="text"><script></script>x</span></li></ol>'
        )
        (run / "examples.html").write_text(evil)
        _, page, text = reported(run)
        assert bad not in text and "examples.html: " in page.lines["li"][-1] and "<script" not in text


def test_training_data_are_marked_as_such(tmp_path: Path) -> None:
    """By a split of that name, or the source that the model was trained on; not the run's own held-out split."""
    run = new_run(tmp_path / "run", 3, "--data.source", "photos/", "--data.test_split", "mine")
    cases: list[tuple[str, str, str, str]] = [
        # kind, source, split -> the mark
        ("retrieval", "photos", "test", ""),
        ("retrieval", "photos", "mine", ""),
        ("retrieval", "photos/", "train", "training data"),
        ("zeroshot", str(Path.cwd() / "photos"), "train", "training data"),
        ("zeroshot", "photos/train", "test", "training data"),
        ("zeroshot", "photos/*.parquet", "all", "source of the training"),
        ("retrieval", "photos/a.csv", "all", "source of the training"),
        ("probe", "photos", "test", "source of the training"),
        ("retrieval", "others", "train", "training split"),
        ("zeroshot", "others/seg_train", "test", "training split"),
        ("zeroshot", "others", "test", ""),
        ("zeroshot", "photos2", "all", ""),
        ("zeroshot", "shapes: shape", "test", ""),
    ]
    made = {"zeroshot": zero_shot, "retrieval": retrieved}
    probed = evaluation("probe", "flowers", {"knn": Figure(0.5, 0.4, 0.6, 9)}, {"chance": 0.5})
    for k, (kind, source, split, _) in enumerate(cases):
        values = results("eval.py", made[kind]() if kind in made else probed)
        values["results"][0]["data"] |= {"source": source, "split": split}
        values["results"][0]["task"] = f"t{k}"
        write(run / "evaluation" / f"{k:02}" / "results.json", values)
        draw(run / "evaluation" / f"{k:02}" / "x.png")
    markdown, page, text = reported(run)
    assert markdown.tables == page.tables
    names = [line[0] for table in page.tables for line in table]
    for k, (*case, mark) in enumerate(cases):
        assert f"t{k}, {k:02}" + f" ({mark})" * bool(mark) in names, case
    for sentence in ("Training data: the model was", "Training split: what", "Source of the training: unless"):
        assert text.count(sentence) == 1
    shutil.rmtree(run / "evaluation")
    assert "Training data" not in reported(run)[2]


def test_what_became_of_the_guard(tmp_path: Path) -> None:
    """Of a run at work what the log says, of a finished one before and after; and what is damaged is left out."""
    run = new_run(tmp_path / "run", 4)
    for step, top1, r10 in ((0, 0.8, 0.5), (20, 0.6, 0.5), (40, 0.7, 0.55)):
        append_metrics(run, step, {"eval/guard/cifar10/top1": top1, "eval/guard/a|b/mean_r10": r10})
    _, page, _ = reported(run)
    assert page.headings[1][:2] == ["Results", "What must not be lost"] and "guard/" not in page.text
    assert row(page, "cifar10") == ["cifar10", "top-1 %", "80.0", "60.0 (step 20)", "70.0 (step 40)"]
    assert ["a|b", "mean R@10 %", "50.0", "50.0 (step 0)", "55.0 (step 40)"] in [r for t in page.tables for r in t]

    apart = {"value": -0.1, "low": -0.15, "high": -0.05, "n": 400}
    lost = {"figure": "top1", "before": 0.8, "after": 0.7, "difference": apart, "margin": 0.02, "beyond": True}
    new = {"figure": "mean_r10", "before": None, "after": 0.55, "difference": None, "margin": 0.02, "beyond": False}
    guard: dict[str, Any] = {"cifar10": lost, "new": new}
    write(run / "results.json", results("x", zero_shot(), training={"steps": 120}, guard=guard))
    markdown, page, _ = reported(run)
    assert markdown.tables == page.tables
    assert row(page, "cifar10|top-1 %|80.0|70.0")[4:] == ["-10.0 [-15.0, -5.0] *", "lost"]
    assert row(page, "new")[1:] == ["mean R@10 %", "-", "55.0", "-", "-"]
    assert "Lost more than the margin of 2.0 points: cifar10." in page.text
    guard["cifar10"] |= {"beyond": False}
    write(run / "results.json", results("x", zero_shot(), guard=guard))
    assert "Nothing that was counted before the first step fell by more than" in reported(run)[1].text
    for bad in (7, {"cifar10": 7}, {"cifar10": {**lost, "difference": 3}}):
        write(run / "results.json", results("x", zero_shot(), guard=bad))
        assert "results.json, guard: damaged" in reported(run)[1].lines["li"][-1]


# Whatever state it is in


def test_a_run_is_reported_at_any_time(tmp_path: Path) -> None:
    for lines, finished, expected in [
        (12, {"steps": 120}, "Finished: 120 steps"),
        (5, {}, "Not finished: step 50 of 120, logged 20"),
        (5, {"steps": 40}, "step 50 of 120, .* It had finished 40 steps before"),
        (0, {}, "Not finished: no step has been logged yet."),
    ]:
        run = new_run(tmp_path / f"{lines} {len(finished)}", lines)
        if finished:
            write(run / "results.json", results("x", zero_shot(), training=finished))
        markdown, page, _ = reported(run)
        assert re.search(expected, page.text) and re.search(expected, markdown.text)
        assert "Left out" not in page.headings[1]
        assert ("There are no results yet." in page.text) == (not finished)
        assert ("%: flowerstop-1 20.0" in page.text) == (lines == 5)  # of the last validation
        assert ("curves.png" in markdown.sources) == (lines > 0) == (run / "report" / "curves.png").exists()


def test_a_run_by_epochs_tells_its_epoch(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 0, "--train.max_steps", "null", "--train.epochs", "3")
    append_metrics(run, 70, {"loss": 1.0, "epoch": 1.75})
    assert "step 70, epoch 1.75 of 3" in reported(run)[1].text
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").touch()
    assert "Finished: there is a model" in reported(run)[1].text


DAMAGES: list[tuple[str, Any, str]] = [
    # file, what stands in it (None: it is gone) or what stands where in results.json, what is said of it
    ("evaluation/probe/results.json", '{"results": [', "probe/results.json: damaged"),
    ("evaluation/probe/results.json", "[" * 100_000, "probe/results.json: damaged"),
    ("evaluation/probe/results.json", None, "evaluation/probe/results.json: no file"),
    ("config.yaml", "model: {preset: tiny-vit, nonsense: 1}", "config.yaml: damaged"),
    ("config.yaml", "\x01: [", "config.yaml: "),
    ("examples.png", "no image", "examples.png: damaged"),
    ("", ("results", {}), 'results.json: no list of "results"'),
    ("", ("results", 0, 7), "results.json, results[0]: damaged"),
    ("", ("results", 0, "kind", "x"), "results[0]: kind is none of zeroshot, retrieval, probe"),
    ("", ("results", 1, "figures", {}), "results.json, results[1]: no figures"),
    ("", ("results", 0, "figures", "top5", 3), "results.json, results[0]: damaged"),
    ("", ("results", 0, "details", "per_class", 1, {"class": "b", "n": 3}), "results[0]: damaged (KeyError: 'recall')"),
    ("", ("results", 0, "details", "confusion", [[1]]), "results.json, results[0]: damaged"),
]


def test_what_is_damaged_is_named_and_the_rest_stands(whole: Path, tmp_path: Path) -> None:
    for k, (file, damage, said) in enumerate(DAMAGES):
        run = Path(shutil.copytree(whole, tmp_path / f"{k}"))
        if file:
            (run / file).unlink() if damage is None else (run / file).write_text(damage, encoding="utf-8")
        else:
            values = holder = json.loads((run / "results.json").read_text(encoding="utf-8"))
            for key in damage[:-2]:
                holder = holder[key]
            holder[damage[-2]] = damage[-1]
            write(run / "results.json", values)
        for words in reported(run)[:2]:
            assert words.headings[1][-1] == "Left out" and said in words.text, said
            cells = [cell for table in words.tables for line in table for cell in line]
            assert sum(cell.startswith(("81.2 [79.0, 83.1]", "90.0 [85.0, 95.0]")) for cell in cells) >= 2


def test_every_damaged_result_leaves_a_report(whole: Path, tmp_path: Path) -> None:
    """Any value anywhere may be replaced by any other."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    draws = random.Random(0)
    others: list[Any] = [None, True, -1, 1e400, "x", "", [], {}, [[]], [None], {"a": 1}, 10**400, "<b>|", NAN]

    def places(value: Any) -> list[tuple[Any, Any]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [found for key, inner in items for found in ((value, key), *places(inner))]

    for path in (run / "results.json", run / "evaluation" / "flowers" / "results.json"):
        original = path.read_text(encoding="utf-8")
        for _ in range(6):
            values = json.loads(original)
            for holder, key in draws.sample(places(values), 12):
                holder[key] = draws.choice(others)
            path.write_text(json.dumps(values), encoding="utf-8")
            assert "90.0 [85.0, 95.0]" in reported(run)[1].text
        path.write_text(original, encoding="utf-8")


def test_damaged_lines_of_metrics_are_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", 3)
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('[1]\n{"loss": 1}\n{"step": 40, "loss": "x", "lr": NaN, "mfu": 1e400}\n')
        lines.write("junk\n" * 7 + '{"step": 5')
    page = reported(run)[1]
    assert "metrics.jsonl, line 4, 5, 7, 8, 9, ... (10 lines): not JSON with a step, or still being" in page.text
    assert "step 40 of 120" in page.text
    assert row(page, "at step 30")[1].startswith("loss 1.667,")  # of the last line that has one


def test_what_is_no_run_is_refused_with_advice(tmp_path: Path) -> None:
    new_run(tmp_path / "run", 0)
    new_run(tmp_path / "runs" / "second", 0)
    none = "name the directory that train.py wrote"
    told = {"plain": none, "run/model": f"did you mean {tmp_path / 'run'}?", "nowhere": none}
    told["runs"] = f"did you mean a run in it, such as {tmp_path / 'runs' / 'second'}?"
    for folder, advice in told.items():
        if folder != "nowhere":
            (tmp_path / folder).mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"is no run: it holds no config\.yaml; ") as error:
            write_report(tmp_path / folder)
        assert advice in str(error.value) and "\n" not in str(error.value)


# What is not trusted


def test_nothing_is_read_from_outside(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    draw(tmp_path / "secret.png")
    write(tmp_path / "out" / "evil" / "results.json", results("secret command", zero_shot()))
    for name in ("examples.png", "results.json"):
        (run / name).unlink()
    (run / "examples.png").symlink_to(tmp_path / "secret.png")
    (run / "confusion_up.png").symlink_to("../secret.png")
    (run / "results.json").symlink_to(tmp_path / "out" / "evil" / "results.json")
    (run / "evaluation" / "linked").symlink_to(tmp_path / "out" / "evil")
    os.mkfifo(run / "confusion_pipe.png")  # would wait for ever
    (run / "page.html").symlink_to(tmp_path / "secret.png")
    markdown, page, written = reported(run)
    for name in ("examples.png", "confusion_up.png", "results.json", "evaluation/linked/results.json"):
        assert f"{name}: a link leads out of the run" in page.text
    assert "confusion_pipe.png: no file" in page.text
    assert "secret command" not in page.text and "page.html" not in written
    assert not any("examples" in source or "_up" in source or "linked" in source for source in markdown.sources)
    other = new_run(tmp_path / "other")
    (other / "evaluation").symlink_to(tmp_path / "out")
    page = reported(other)[1]
    assert "evaluation: a link leads out of the run" in page.text and "evil" not in page.text


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    run, other, mine, away = (tmp_path / name for name in ("run", "other", "mine", "away"))
    mine.write_text("mine", encoding="utf-8")
    (new_run(run) / "report").mkdir()
    for name in ("report.md", "report.html", "curves.png"):
        (run / "report" / name).symlink_to(mine)
    write_report(run)
    assert mine.read_text(encoding="utf-8") == "mine"
    away.mkdir()
    (new_run(other) / "report").symlink_to(away)
    with pytest.raises(ValueError, match="leads out of the run"):
        write_report(other)
    assert not list(away.iterdir())


def test_only_pngs_of_a_sane_size_go_in(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(run / "examples.png", "JPEG")
    Image.new("1", (9000, 9000)).save(run / "confusion_large.png", "PNG")  # 81 Mpx in a few kB
    Image.new("1", (20000, 20000)).save(run / "confusion_bomb.png", "PNG")
    draw(run / "confusion_cut.png")
    cut = (run / "confusion_cut.png").read_bytes()
    (run / "confusion_cut.png").write_bytes(cut[: len(cut) // 2])
    (run / "confusion_heavy.png").write_bytes(cut + bytes(9 * 2**20))
    (run / "confusion_folder.png").mkdir()
    Image.new("L", (9000, 9000)).save(run / "large.jpg")
    large = b64encode((run / "large.jpg").read_bytes()).decode()
    (run / "examples.html").write_text(f'<article class="example"><img src="data:image/jpeg;base64,{large}">')
    markdown, page, _ = reported(run)
    assert markdown.sources == ["curves.png"] and len(page.sources) == 1
    for said in (
        "examples.png: damaged (UnidentifiedImageError",
        "confusion_large.png: 9000 x 9000 pixels are too many",
        "confusion_bomb.png: damaged (Decompression",
        "confusion_cut.png: damaged",
        "confusion_heavy.png: larger than 8 MiB",
        "confusion_folder.png: no file",
        "examples.html: 9000 x 9000 pixels are too many",
    ):
        assert said in page.text


MARKS = ["# heading", "- item", "1. first", "--- ", "\\](x) [\\", "C#", "```", "/a/b [1, 2]", "a | b || c \\| d \\"]
MARKS += ["[link](javascript:hack) ![x](http://127.0.0.1/y.png) <http://127.0.0.1>", "&lt;b&gt; &#124; $x$ [^1] [ ]"]
NAMES = [*NASTY, *MARKS, "_a_ __b__ *c* **d** `e` ``f`` ~~g~~ a_b_c"]


def nasty_run(directory: Path) -> Path:
    """Every text that a run takes from data and from its user is one of NAMES."""
    new_run(directory, 3, "--data.source", NAMES[0])
    values = results(NAMES[1], training={"steps": 30, "<b>|": 7})
    for k, name in enumerate(NAMES):
        about = {"name": name, "fingerprint": str(k)}, {"source": name, "split": name}
        one = entry(zero_shot(name, NAMES[k:] or NAMES, name), *about)
        one["details"]["templates"] = [{"template": name, "top1": 0.5}, {"template": NAMES[k - 1], "top1": 0.75}]
        values["results"].append(one)
        found = {"of": name, "than": name, "task": name, "figures": {name: one["figures"]["top1"]}}
        values.setdefault("differences", []).append(found)
    values["versions"] |= {"<i>": "<b>|", "x": "`"}
    write(directory / "results.json", values)
    folder = directory / "evaluation" / "'\"><script>window.hacked=6<|script> [x](y) | 100%25"
    write(folder / "results.json", {**results("```", zero_shot("x", NAMES)), "time": "<script>"})
    draw(folder / "confusion.png")
    (folder / "javascript:window.hacked=7;.html").write_text("x", encoding="utf-8")
    draw(directory / "confusion_<img src=x onerror=window.hacked=8>|](x)\x1b[31m\u202e.png")
    (directory / "metrics.jsonl").open("a").write('{"step": 40, "eval/<b>|/*top1*": 0.5}\n')
    return directory


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    run = nasty_run(tmp_path / "<b>run|*")
    markdown, page, _ = reported(run)
    for path in write_report(run):
        assert all(line.isprintable() for line in path.read_text(encoding="utf-8").split("\n"))
    # on one line, without what no terminal or page should be given
    shown = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in NAMES]
    assert markdown.tables == page.tables and markdown.headings == page.headings
    assert page.headings[0] == ["<b>run|*"]
    named = [f"{name}, {name}" for name in shown]
    named[0] += " (source of the training)"
    assert [line[0] for line in page.tables[0][1:-1]] == named
    assert {line[0] for table in page.tables if table[0][0] == "class" for line in table[1:]} == set(shown)
    assert page.lines["li"] == markdown.lines["li"] and len(page.lines["li"]) == len(shown)  # notes
    assert all(f"{name}: {own}" in page.lines["li"] for name, own in zip(named, shown, strict=True))
    for tag in ("script", "svg", "iframe", "object", "form", "base", "i", "b", "em", "strong", "del", "hr", "pre"):
        assert tag not in page.tags and tag not in markdown.tags
    for words in (markdown, page):
        links = [link for link in words.links if not link.startswith(("#part-", "data:,"))]
        assert [(run / "report" / unquote(link)).resolve() for link in links] == list(run.glob("evaluation/*/*.html"))
    found = [(run / "report" / unquote(source)).resolve() for source in markdown.sources]
    assert sorted(found) == sorted(run.rglob("*.png")) and len(page.sources) == len(found) == 3


def test_the_page_is_one_file_that_asks_for_nothing(both: tuple[Words, Words, str]) -> None:
    _, page, text = both
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    sources = r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/]{43}='"
    assert re.fullmatch(sources + "; base-uri 'none'; form-action 'none'", policy)
    assert text.index("Content-Security-Policy") < text.index("<style")
    assert not re.search(r"https?://|\son\w+=|\sstyle=", text)
    assert not {"script", "iframe", "object", "form", "base"} & set(page.tags)


def test_a_browser_shows_it_and_runs_nothing_of_the_data(visit: Visits, whole: Path, tmp_path: Path) -> None:
    narrow: dict[str, Any] = {"viewport": {"width": 360, "height": 700}}
    own, nasty = write_report(whole)[1], write_report(nasty_run(tmp_path / "run"))[1]
    dark = {"color_scheme": "dark"}
    for path, options in ((own, {}), (own, dark), (own, narrow), (nasty, narrow)):
        page = visit(path, order="", **options)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.images.length") == (6 if path == own else 3)
        ink, paper = page.evaluate(
            "['color', 'backgroundColor'].map(name => Number(getComputedStyle(document.body)[name].match(/\\d+/)[0]))"
        )
        assert ink > paper + 150 if options.get("color_scheme") else paper > ink + 150
        assert page.evaluate("typeof window.hacked") == "undefined" and visit.complaints == []
