"""Results as tables and JSON: what stands in them, and that names from data may not steer a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from miniclip.common.console import open_console, show_table, write_json
from miniclip.common.printing import printable
from miniclip.evaluation.result import Evaluation, difference, entry, header, lower_is_better, to_json, words_of
from miniclip.evaluation.tables import (
    calibration_table,
    chance,
    class_tables,
    evaluation_tables,
    print_differences,
    print_evaluations,
    show,
)
from miniclip.metrics.bootstrap import Figure, Share, Statistic

NAN = math.nan


def evaluation(kind: Any, figures: dict[str, Figure], details: dict[str, Any], *notes: str) -> Evaluation:
    return Evaluation(kind, "colours", figures, details, notes, "f00d", lambda weights: {})


def per_class(*rows: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(("class", "n", "precision", "recall", "f1"), row, strict=True)) for row in rows]


def swapped_colours(**more: Any) -> Evaluation:
    """Eleven images of three colours of which red and green change places."""
    figures = {
        "top1": Figure(3 / 11, 0.0, 0.545, 11),
        "balanced_accuracy": Figure(1 / 3, 0.3, 0.4, 11),
        "macro_f1": Figure(0.123, 0.1, 0.2, 11),
        "ece": Figure(0.0456, 0.01, 0.1, 11),
    }
    names, right = ["red", "[green]", "blue", "no"], [(4, 0.0, 0.0, 0.0)] * 2 + [(3, 1.0, 1.0, 1.0), (0, NAN, NAN, 0)]
    rows = per_class(*((name, *of) for name, of in zip(names, right, strict=True)))
    confusion = [[0, 4, 0, 0], [4, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]
    details = {"chance": 0.25, "classes": names, "per_class": rows, "confusion": confusion, **more}
    return evaluation("zeroshot", figures, details, "no top-5: it needs six")


def found_pairs() -> Evaluation:
    ways = {
        "image_to_text": {"r1": 0.11, "r5": 0.22, "r10": 0.33, "median_rank": 7.5, "mean_rank": 12.34, "map": 0.155},
        "text_to_image": {"r1": 0.44, "r5": 0.55, "r10": 0.66, "median_rank": 4, "mean_rank": 5.67, "map": 0.5},
    }
    n = {"image_to_text": 100, "text_to_image": 500}
    figures = {f"{w}_{key}": Figure(v, v - 0.1, v + 0.1, n[w]) for w, found in ways.items() for key, v in found.items()}
    chances = {"chance_image_to_text_r10": 0.077, "chance_text_to_image_r10": 0.1}
    return evaluation("retrieval", figures, chances, "8 captions stand with more than one image")


def printed(function: Any, *arguments: Any) -> list[str]:
    """The lines, with one space between words."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("COLUMNS", "200")
        function(*arguments)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_zero_shot_table() -> None:
    lines = printed(print_evaluations, {"runs/[red]x": swapped_colours()})
    both = printed(print_evaluations, {"runs/[red]x": swapped_colours(), "b": swapped_colours()}, "title")
    assert "runs/[red]x 11 4 27.3 [0.0, 54.5] - 33.3 12.3 4.6 25.0" in lines
    # what red is taken for, where everything is right, and a class without images
    classes = {"red 4 0.0 0.0 0.0 [green] (4)", "blue 3 100.0 100.0 100.0", "no 0 - - 0.0"}
    assert classes <= {*lines} and not classes & {*both}  # the classes of one of several would stand for neither
    # a row each, and notes once
    assert [line.split()[0] for line in both if "27.3" in line] == ["runs/[red]x", "b"] and both[0] == "title"
    assert lines.count("no top-5: it needs six") == both.count("no top-5: it needs six") == 1
    relation = evaluation("zeroshot", {"top1": Figure(0.6, 0.5, 0.7, 10)}, {"chance": 0.5})
    assert "relation 10 - 60.0 [50.0, 70.0] - - - - 50.0" in printed(print_evaluations, {"relation": relation})
    (table,) = evaluation_tables([("a", swapped_colours())], intervals=True)  # where there is room
    cells = "a|11|4|27.3 [0.0, 54.5] (chance 25.0)|-|33.3 [30.0, 40.0] (chance 25.0)|12.3 [10.0, 20.0]"
    assert table.rows == [tuple(cells.split("|"))]
    assert calibration_table([("a", swapped_colours()), ("b", found_pairs())]).rows == [("a", "11", "4.6 [1.0, 10.0]")]


def test_chance_stands_beside_each_figure_that_has_one() -> None:
    """5 of 8 classes by chance; a probe's figures are all shares of the right ones; an old file lacks R@1."""
    figures = {name: Figure(0.5, NAN, NAN, 40) for name in ("top1", "top5", "balanced_accuracy", "macro_f1", "ece")}
    eight = evaluation("zeroshot", figures, {"chance": 1 / 8, "classes": list("abcdefgh")})
    pairs, probe = found_pairs(), evaluation("probe", {"knn": Figure(0.5, 0.4, 0.6, 9)}, {"chance": 0.1})
    pairs.details["chance_text_to_image_r5"] = 0.05
    tables = evaluation_tables([("a", eight), ("b", pairs), ("c", probe)], intervals=True)
    half = "50.0 (chance 12.5)"
    recalls = [
        ("11.0 [1.0, 21.0]", "22.0 [12.0, 32.0]", "33.0 [23.0, 43.0] (chance 7.7)"),
        ("44.0 [34.0, 54.0]", "55.0 [45.0, 65.0] (chance 5.0)", "66.0 [56.0, 76.0] (chance 10.0)"),
    ]
    assert [table.rows for table in tables] == [
        [("a", "40", "8", half, "50.0 (chance 62.5)", half, "50.0")],
        [
            ("b", "image -> text", "100", *recalls[0], "7.5 [7.4, 7.6]", "12.3 [12.2, 12.4]", "15.5 [5.5, 25.5]"),
            ("", "text -> image", "500", *recalls[1], "4 [3.9, 4.1]", "5.7 [5.6, 5.8]", "50.0 [40.0, 60.0]"),
        ],
        [("c", "9", "50.0 [40.0, 60.0] (chance 10.0)")],
    ]
    assert not any("chance" in column for table in tables for column in table.columns)
    three = evaluation("zeroshot", figures, {"chance": 1 / 3, **swapped_colours().details})
    assert chance(three, "top5") == 1 and chance(three, "fpr95_entropy") == 0.95 and chance(three, "ece") is None
    assert class_tables(three)[0].title == "by class (chance 25.0 %)"


def test_tables_of_other_kinds() -> None:
    first = evaluation("probe", {"linear": Figure(0.5, 0.4, 0.6, 20), "knn": Figure(0.25, 0.2, 0.3, 20)}, {})
    second = evaluation("probe", {"linear": Figure(1, 1, 1, 20), "linear_2_shot": Figure(0.75, 0.7, 0.8, 20)}, {})
    templates = [{"template": f"{'abcdefgh'[k]} {{}}", "top1": k / 10} for k in range(8)]
    scored = swapped_colours(templates=templates)
    for k, score in enumerate(("free_energy", "max_probability", "entropy")):
        scored.figures[f"auroc_{score}"] = Figure(0.8 + k / 100, 0.7, 0.9, 15)
        scored.figures[f"fpr95_{score}"] = Figure(0.4, 0.3, 0.5, 15)
    lines = printed(print_evaluations, {"runs/a": found_pairs(), "runs/b": found_pairs(), "x": first, "y": second})
    assert lines.count("text -> image 500 44.0 55.0 66.0 [56.0, 76.0] 4 5.7 50.0 10.0") == 2
    lines += printed(print_evaluations, {"z": scored})
    pairs = [f"0.8{k}0 [0.700, 0.900] 40.0 [30.0, 50.0]" for k in range(3)]
    assert {*lines} >= {
        "runs/a image -> text 100 11.0 22.0 33.0 [23.0, 43.0] 7.5 12.3 15.5 7.7",
        "8 captions stand with more than one image",
        # a column for whatever one of them has
        "images linear % knn % linear 2 shot %",
        "x 20 50.0 [40.0, 60.0] 25.0 [20.0, 30.0] -",
        "y 20 100.0 [100.0, 100.0] - 75.0 [70.0, 80.0]",
        # the mean of 0 ... 0.7 is 0.35, the sample deviation sqrt(0.42 / 7)
        "mean ± deviation 35.0 ± 24.5",
        "all together 27.3",
        f"z {pairs[0]} {pairs[1]} {pairs[2]}",
    }
    assert [line[0] for line in lines if line[1:4] == " {}"] == ["h", "g", "f", "c", "b", "a"]  # the best, the worst


def test_differences_are_starred_where_their_interval_leaves_out_0() -> None:
    figures = {"top1": Figure(0.1, 0.02, 0.2, 9), "ece": Figure(-0.05, -0.1, 0.0, 9), "top5": Figure(0, 0, 0, 9)}
    lines = printed(print_differences, {"runs/b": figures}, "runs/[a]")
    assert "runs/b +10.0 [+2.0, +20.0] * -5.0 [-10.0, 0.0] 0.0 [0.0, 0.0]" in lines
    assert lines[0].startswith("difference from runs/[a],")


def test_figures_as_people_read_them() -> None:
    for name, figure, interval, expected in [
        ("top1", Figure(0.1234, 0.1, 0.2, 9), True, "12.3 [10.0, 20.0]"),
        ("top1", Figure(0.1234, 0.1, 0.2, 9), False, "12.3"),
        ("top1", Figure(0.1234, NAN, NAN, 9), True, "12.3"),
        ("top1", None, True, "-"),
        ("image_to_text_median_rank", Figure(7.5, 3, 10.0625, 9), True, "7.5 [3, 10.1]"),
        ("text_to_image_mean_rank", Figure(1234.56, 1, 2, 9), False, "1234.6"),
        ("auroc_entropy", Figure(0.98765, NAN, NAN, 9), True, "0.988"),
        ("ece", Figure(NAN, 0, 1, 9), False, "-"),
    ]:
        assert show(name, figure, interval) == expected
    lower = ["image_to_text_median_rank", "text_to_image_mean_rank", "ece", "fpr95_entropy"]
    higher = ["top1", "image_to_text_r10", "auroc_entropy", "text_to_image_map", "linear", "macro_f1"]
    assert [name for name in lower + higher if lower_is_better(name)] == lower
    names = ["image_to_text_r10", "text_to_image_map", "linear_16_shot", "fpr95_free_energy", "macro_f1"]
    words = ["image to text R@10", "text to image mAP", "linear 16 shot", "FPR@95 free energy", "macro F1"]
    assert list(map(words_of, names)) == words


def test_of_many_classes_the_ends_are_shown() -> None:
    for count, shown in (
        (20, list(range(20))),
        (21, [*range(20, 10, -1), *range(9, -1, -1)]),
        (40, [*range(39, 29, -1), *range(9, -1, -1)]),
        (55, list(range(14, -1, -1))),  # the others have no images, and no F1
    ):
        f1 = [NAN if count == 55 and k > 14 else k / 50 for k in range(count)]
        rows = per_class(*((f"{k}", 10, 0.5, 0.4, f1[k]) for k in range(count)))
        confusion = [[5 if i == j else 2 if j == (i + 1) % count else 0 for j in range(count)] for i in range(count)]
        (table,) = class_tables(evaluation("zeroshot", {}, {"per_class": rows, "confusion": confusion}))
        assert [int(row[0]) for row in table.rows] == shown
        assert table.rows[shown.index(8)] == ("8", "10", "40.0", "50.0", "16.0", "9 (2)")


def test_the_means_of_the_classes_stand_below_them() -> None:
    figures = {"balanced_accuracy": Figure(0.45, 0.3, 0.6, 20), "macro_precision": Figure(0.7, 0.5, 0.8, 20)}
    figures["macro_f1"] = Figure(0.5, 0.4, 0.7, 20)
    rows = per_class(("cat", 15, 0.9, 0.8, 0.8), ("dog", 5, 0.5, 0.1, 0.2))
    (table,) = class_tables(evaluation("zeroshot", figures, {"per_class": rows, "confusion": [[12, 3], [4, 1]]}))
    assert table.rows[-1] == ("mean of the classes", "20", "45.0", "70.0", "50.0", "")
    assert table.columns[2:5] == ("recall %", "precision %", "F1 %")


# JSON


def test_no_word_is_broken_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a table of each kind, with long names: parts of a path, figures and intervals stand whole."""
    run, other = "/home/somebody/experiments/flickr8k-of-2024/runs/vit-small-patch16", "open_clip:ViT-B-32:laion2b_s34b"
    classes = ["Chrysanthemum maximum (Shasta daisy)", "antidisestablishmentarianism", "a class", "no"]
    found = swapped_colours(classes=classes)
    for row, name in zip(found.details["per_class"], classes, strict=True):
        row["class"] = name
    found.details["templates"] = [{"template": f"{'a very ' * 20}good photo of {k}", "top1": 0.5} for k in range(3)]
    names = ("top1", "top5", "balanced_accuracy", "ece", "macro_f1")
    apart = {name: Figure(-0.123, -0.234, 0.345, 100) for name in names}
    caption = "The commonest caption of all , which stands there twice"
    rows = [["train and validation", f"photos/{'deep/' * 12}a.jpg", "b.jpg", caption]]
    monkeypatch.setenv("COLUMNS", "80")
    console = open_console()
    assert console.width == 80
    print_evaluations({run: found, other: found_pairs()}, f"zeroshot: {run}, test")
    print_evaluations({run: found})
    print_differences({other: apart, run: apart}, run)
    show_table(console, "the same caption in two splits", ["in", "image", "twin", "caption"], rows)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    words = {*re.split(r"\s+|(?<=[/:])", shown)}
    wanted = {word for text in (run, other, *classes, caption, *rows[0][1:]) for word in re.split(r" |(?<=[/:])", text)}
    assert wanted <= words and {"balanced", "median", "precision", "direction"} <= words, (wanted - words, shown)
    assert all(unit in shown for unit in ("[0.0, 54.5]", "[23.0, 43.0]", "[-23.4, +34.5]", "R@10 %", "image -> text"))


def test_a_word_longer_than_a_line_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=40)
    show_table(console, "", ["", "value"], [["x" * 90, "1.5"], ["漢字" * 30, "2.5"]])
    shown = capsys.readouterr().out
    assert shown.count("…") == 2 and "1.5" in shown and "2.5" in shown


def test_json_is_plain_and_whole(tmp_path: Path) -> None:
    result = swapped_colours()
    result.figures["none"] = Figure(NAN, NAN, math.inf, 11)
    file = tmp_path / "results.json"
    written = {**header("eval.py made up"), "results": [entry(result, {"name": "m"}, {"source": "s"})]}
    write_json(file, written)
    read = json.loads(file.read_text())
    assert read["command"] == "eval.py made up" and read["time"].endswith("+00:00")
    assert torch.__version__.startswith(read["versions"]["torch"]) and read["versions"]["miniclip"]
    (found,) = read["results"]
    assert found == {"model": {"name": "m"}, "data": {"source": "s", "fingerprint": "f00d"}, **to_json(result)}
    assert set(found) == {"model", "data", "kind", "task", "figures", "details", "notes"}
    assert found["figures"]["top1"] == {"value": 3 / 11, "low": 0.0, "high": 0.545, "n": 11}
    assert found["figures"]["none"] == {"value": None, "low": None, "high": None, "n": 11}
    assert found["details"]["per_class"][3] == {"class": "no", "n": 0, "precision": None, "recall": None, "f1": 0}
    assert found["details"]["confusion"][0] == [0, 4, 0, 0] and found["notes"] == ["no top-5: it needs six"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"loss": math.nan})
    assert json.loads(file.read_text()) == read
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_only_what_saw_the_same_images_is_compared() -> None:
    hit = Statistic({"top1": Share.of(np.array([True, False]))})
    first, second = (Evaluation("zeroshot", "t", {}, {}, (), "", hit, (n,)) for n in (3, 2))
    with pytest.raises(ValueError, match=r"t: counted on \(3,\) and on \(2,\) images"):
        difference(first, second)
    apart = difference(second, second)["top1"]
    assert apart.value == 0 and apart.low < 0 < apart.high  # two images without a difference prove none


def test_names_may_not_steer_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printable("a\x1b[2J\x9b31mb\nc\td\u202e\udcff é 猫") == "a [2J 31mb c d é 猫"
    names = ("\x1b]0;title\x07[red]", "dark\udcff")
    rows = per_class(*((name, 1, 0.5, 1.0, 0.7) for name in names))
    details = {"chance": 0.5, "classes": list(names), "per_class": rows, "confusion": [[1, 0], [1, 0]]}
    result = evaluation("zeroshot", {"top1": Figure(0.5, 0.0, 1.0, 2)}, details, "\x1b[2J note")
    print_evaluations({"\x1b[2J run": result})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "[red]" in shown
    write_json(tmp_path / "r.json", {"names": names})
    assert "\\udcff" in (tmp_path / "r.json").read_text()
