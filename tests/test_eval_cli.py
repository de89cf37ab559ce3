"""eval.py from the command line to its tables, files and messages, with tiny untrained models."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.launching import ROOT
from support.models import save_tiny

from miniclip.cli.eval import main
from miniclip.cli.main import main as miniclip_main
from miniclip.config.eval_section import OPTIONS
from miniclip.data.labelled import open_images, open_labelled
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.evaluation.encode import EncodeOptions, fingerprint
from miniclip.evaluation.result import Evaluation, difference, header, to_json
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.tasks import TASKS
from miniclip.evaluation.zeroshot import zero_shot
from miniclip.metrics.retrieval import recall_at_k, retrieval_ranks_from_embeddings
from miniclip.models.load import load
from miniclip.models.saved import save_model

CLASSES = ("red", "light_green", "blue")
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, the same elsewhere, and another that takes larger images."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny(root / "one"), save_tiny(root / "copied"), save_tiny(root / "larger", 1, 48)]


@pytest.fixture(scope="module")
def checkpoint(models: list[str]) -> str:
    return models[0]


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "run" / "model", 1)
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    return tmp_path / "run"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two images each in test, of six in train and of one in validation."""
    root = tmp_path_factory.mktemp("folders")
    for split, count in (("test", 2), ("train", 6), ("validation", 1)):
        for k, name in enumerate(CLASSES):
            for number in range(count):
                paint(root / split / name / f"{number}.png", 100 * len(split) + 10 * number + k)
    return root


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    for number in range(4):
        paint(root / f"{number}.png", 5000 + number)
    return root


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    lines = []
    for split, count in (("train", 3), ("validation", 1), ("test", 5)):
        for k in range(count):
            Image.new("RGB", (40, 30), (40 * k, 99, 20)).save(root / f"{split}{k}.png")
            row = {"file_name": f"{split}{k}.png", "captions": [f"first {k}", f"second {split} {k}"], "split": split}
            lines.append(json.dumps({**row, "other": f"other {k}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def evaluated(folder: Path, *arguments: str) -> dict[str, Any]:
    """The only result of a command that writes to folder."""
    assert main([*arguments, "--out", str(folder), "--device", "cpu"]) == 0
    (result,) = results(folder)["results"]
    assert isinstance(result, dict)
    return result


def equal(found: dict[str, Any], expected: Evaluation) -> bool:
    wanted = to_json(expected)
    return {name: found[name] for name in wanted} == wanted


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Zero-shot


def test_zero_shot_on_a_task_equals_python(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--size", "24", "--seed", "3"]
    result = evaluated(tmp_path / "out", *arguments)
    model, preprocess, tokenizer = load(checkpoint)
    expected = zero_shot(model, preprocess, tokenizer, SceneTask("shape", 24, 3, 32), task="shape")
    assert equal(result, expected) and result["figures"]["top1"]["n"] == 24
    assert result["model"] == {"name": checkpoint, "fingerprint": fingerprint(model)}
    assert result["data"] == {"source": "shapes: shape", "split": "test", "fingerprint": expected.fingerprint}
    written = results(tmp_path / "out")
    assert set(written) == {"command", "time", "versions", "precision", "results", "differences"}
    assert written["precision"] == "fp32" and written["differences"] == []
    assert written["command"] == " ".join(["eval.py", *arguments, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert torch.__version__.startswith(written["versions"]["torch"]) and "miniclip" in written["versions"]
    assert names_in(tmp_path / "out") == {"results.json", "confusion.png", "calibration.png"}
    with Image.open(tmp_path / "out" / "confusion.png") as image:
        assert image.format == "PNG"
    captured = capsys.readouterr()
    assert "zeroshot: shapes: shape, test" in captured.out and f"{100 * expected['top1']:.1f}" in captured.out
    assert "crescent" in captured.out and str(tmp_path / "out") in captured.out and captured.err == ""


def test_zero_shot_on_folders(checkpoint: str, folders: Path, foreign: Path, tmp_path: Path, capsys: Shown) -> None:
    """Names of the classes, templates on the command line and from a file, foreign images; files of before go."""
    out, base = tmp_path / "out", ["zeroshot", "--checkpoint", checkpoint, "--dataset", str(folders)]
    first = evaluated(out, *base)
    (out / "mine.txt").touch()
    assert "light green" in capsys.readouterr().out
    assert first["details"]["classes"] == ["blue", "light green", "red"] and first["figures"]["top1"]["n"] == 6
    assert first["data"]["source"] == str(folders) and "templates" not in first["details"]

    names = tmp_path / "names.txt"
    names.write_text("red\tred thing\nlight_green\tpale green | mint\nblue\tblue thing\n")
    given = ["--classnames", str(names), "--precision", "bf16", "--foreign", str(foreign)]
    second = evaluated(out, *base, *given, "--templates", "a {}", "one {}")
    assert names_in(out) >= {"mine.txt", "templates.png", "foreign.png"}
    assert second["details"]["classes"] == ["blue thing", "pale green", "red thing"]
    source, strangers = (
        open_labelled(folders, classnames_file=names, image_size=32),
        open_images(foreign, image_size=32),
    )
    options: Any = {"task": folders.name, "options": EncodeOptions(precision="bf16"), "foreign": strangers}
    assert equal(second, zero_shot(*load(checkpoint), source, ["a {}", "one {}"], **options))
    assert second["figures"]["auroc_free_energy"]["n"] == 10 and second["figures"]["top1"]["n"] == 6
    assert "FPR@95" in capsys.readouterr().out

    (tmp_path / "templates.txt").write_text("x {}\n\ny {}\n")
    third = evaluated(out, *base, "--templates", str(tmp_path / "templates.txt"))
    assert [row["template"] for row in third["details"]["templates"]] == ["x {}", "y {}"]
    assert third["data"] == first["data"] != second["data"] and third["model"] == first["model"]
    assert names_in(out) == {"mine.txt", "results.json", "confusion.png", "calibration.png", "templates.png"}


def test_options_reach_the_towers(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*arguments: Any, options: EncodeOptions, **keywords: Any) -> Evaluation:
        seen.append((options.batch_size, options.precision, options.max_bad_fraction, options.shared))
        return zero_shot(*arguments, options=options, **keywords)

    monkeypatch.setattr("miniclip.evaluation.zeroshot.zero_shot", spy)
    base = ["zeroshot", "--checkpoint", checkpoint, "--task", "count", "--size", "6"]
    more = ["--precision", "bf16", "--batch_size", "5", "--max_bad_fraction", "0.25"]
    assert main(base) == 0 and main([*base, *more]) == 0
    assert seen == [(256, "fp32", 0, True), (5, "bf16", 0.25, True)]


def test_relation_has_two_sentences_an_image(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--task", "relation", "--size", "6"]
    found = evaluated(tmp_path / "out", *arguments)
    assert set(found["figures"]) == {"top1"} and found["details"] == {"chance": 0.5}
    assert names_in(tmp_path / "out") == {"results.json"} and "50.0" in capsys.readouterr().out


# Several models


def test_a_model_does_not_differ_from_its_copy(
    models: list[str], folders: Path, captioned: Path, tmp_path: Path, capsys: Shown
) -> None:
    wanted = {
        "zeroshot": ["--task", "shape", "--size", "20"],
        "retrieval": ["--data", str(captioned), "--caption_column", "captions"],
        "probe": ["--data", str(folders), "--shots"],
    }
    for command, arguments in wanted.items():
        out = tmp_path / command
        assert main([command, "--checkpoint", models[0], "--compare", models[1], *arguments, "--out", str(out)]) == 0
        written = results(out)
        first, second = written["results"]
        assert [first["model"]["name"], second["model"]["name"]] == models[:2]
        assert {**first, "model": 0} == {**second, "model": 0}
        assert first["model"]["fingerprint"] == second["model"]["fingerprint"]
        (apart,) = written["differences"]
        assert (apart["of"], apart["than"], apart["task"]) == (models[1], models[0], first["task"])
        assert len(apart["figures"]) >= 2 and set(apart["figures"]) <= set(first["figures"])
        assert all((f["value"], f["low"], f["high"]) == (0, 0, 0) for f in apart["figures"].values())
        assert "compare.png" in names_in(out) and f"difference from {models[0]}" in capsys.readouterr().out


def test_differences_of_several_models(models: list[str], tmp_path: Path, capsys: Shown) -> None:
    base = ["zeroshot", "--checkpoint", models[0], "--compare", models[2], models[1]]
    assert main([*base, "--task", "shape", "--size", "30", "--out", str(tmp_path)]) == 0
    written = results(tmp_path)
    assert [result["model"]["name"] for result in written["results"]] == [models[0], models[2], models[1]]
    assert [apart["of"] for apart in written["differences"]] == [models[2], models[1]]
    # Each model sees scenes of its own size: 48 pixels for the larger.
    first, second = (zero_shot(*load(m), SceneTask("shape", 30, 0, s)) for m, s in ((models[0], 32), (models[2], 48)))
    assert written["results"][1]["details"]["confusion"] == second.details["confusion"]
    assert first["top1"] != second["top1"]  # else the difference would say nothing
    expected = difference(first, second)
    assert expected["top1"].value == second["top1"] - first["top1"]
    assert all(f == expected[name]._asdict() for name, f in written["differences"][0]["figures"].items())
    fingerprints = [result["model"]["fingerprint"] for result in written["results"]]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    out = capsys.readouterr().out
    assert models[0] in out and models[2] in out


def test_a_model_that_cannot_be_read_costs_nothing_of_the_others(
    checkpoint: str, tmp_path: Path, capsys: Shown
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:1000])
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--compare", str(broken), "--task", "shape", "--size", "6"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert [entry["model"]["name"] for entry in results(tmp_path / "out")["results"]] == [checkpoint]
    assert "broken" in capsys.readouterr().err


# Retrieval


def test_retrieval_equals_python(checkpoint: str, captioned: Path, tmp_path: Path, capsys: Shown) -> None:
    base = ["retrieval", "--checkpoint", checkpoint, "--data"]
    result = evaluated(tmp_path / "out", *base, "shapes", "--size", "20", "--seed", "2")
    expected = retrieval(*load(checkpoint), SceneSource("test", 20, 2, 32), task="shapes")
    assert equal(result, expected)
    assert result["data"] == {"source": "shapes", "split": "test", "fingerprint": expected.fingerprint}
    assert result["figures"]["image_to_text_r1"]["n"] == 20 and result["figures"]["text_to_image_map"]["n"] == 100
    assert names_in(tmp_path / "out") >= {"results.json", "examples.html"}
    out = capsys.readouterr().out
    assert "image -> text" in out and "text -> image" in out

    for more, images, texts in (
        ("captions", 5, 10),
        ("captions other", 5, 15),
        ("other --limit 2", 2, 2),
        ("captions --limit 99 --image_column file_name", 5, 10),
        ("captions --split train", 3, 6),
    ):
        details = evaluated(tmp_path / "out", *base, str(captioned), "--caption_column", *more.split())["details"]
        assert (details["n_images"], details["n_texts"]) == (images, texts), more


# Probe and report


def test_probe_on_folders(checkpoint: str, folders: Path, tmp_path: Path, capsys: Shown) -> None:
    arguments = ["probe", "--checkpoint", checkpoint, "--data", str(folders), "--shots", "1", "3", "--draws", "2"]
    found = evaluated(tmp_path / "out", *arguments)
    assert found["kind"] == "probe" and found["task"] == folders.name
    assert {"linear", "knn", "linear_1_shot", "linear_3_shot"} <= set(found["figures"])
    for figure in found["figures"].values():
        assert figure["n"] == 6 and 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    details = found["details"]
    assert [details[f"n_{part}"] for part in ("train", "validation", "test")] == [18, 3, 6]
    assert details["classes"] == ["blue", "light green", "red"]
    assert [(row["shots"], len(row["draws"])) for row in details["shots"]] == [(1, 2), (3, 2)]
    for row in details["shots"]:
        assert found["figures"][f"linear_{row['shots']}_shot"]["value"] == pytest.approx(row["mean"])
    assert found["data"]["source"] == str(folders) and len(found["data"]["fingerprint"]) == 32
    assert names_in(tmp_path / "out") == {"results.json", "shots.png"} and "linear" in capsys.readouterr().out
    assert evaluated(tmp_path / "again", *arguments) == found
    assert evaluated(tmp_path / "none", *arguments[:5], "--shots")["details"]["shots"] == []


def test_report_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("eval.py: error: ") and err.count("\n") == 1 and "none" in err
    written = lambda run: (run / "report.md", run / "report.html")  # noqa: E731
    monkeypatch.setattr("miniclip.evaluation.report.write.write_report", written)
    assert main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "report.html") in out and str(tmp_path / "report.md") in out


# Where the files go


def test_a_run_keeps_its_evaluations(run_directory: Path, folders: Path, captioned: Path, tmp_path: Path) -> None:
    run = ["--checkpoint", str(run_directory)]
    for seed in ("1", "2"):  # the second takes the place of the first
        assert main(["zeroshot", *run, "--task", "shape", "--size", "6", "--seed", seed]) == 0
    assert main(["zeroshot", *run, "--data", str(folders), "--split", "validation"]) == 0
    assert main(["retrieval", *run, "--data", str(captioned), "--caption_column", "other"]) == 0
    assert main(["probe", *run, "--data", str(folders), "--shots"]) == 0
    name = folders.name
    wanted = {"zeroshot-shape", f"zeroshot-{name}-validation", f"retrieval-{captioned.name}", f"probe-{name}"}
    written = run_directory / "evaluation"
    assert names_in(written) == wanted and all((written / f / "results.json").is_file() for f in wanted)
    assert "--seed 2" in results(written / "zeroshot-shape")["command"]
    first = results(written / f"zeroshot-{name}-validation")["results"][0]
    assert first["data"]["split"] == "validation" and first["figures"]["top1"]["n"] == 3
    # whatever the data is called
    for source, tame in (("a b/c$d", "zeroshot-c_d"), (".hidden", "zeroshot-hidden")):
        target = tmp_path / "data" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(folders)
        assert main(["zeroshot", *run, "--data", str(target)]) == 0 and (written / tame).is_dir()
    assert main(["zeroshot", *run, "--data", str(folders / "test" / ".." / "test" / "..")]) == 0
    assert names_in(written) == {*wanted, "zeroshot-c_d", "zeroshot-hidden", "zeroshot-data"}


def test_a_model_that_is_no_run_leaves_nothing(checkpoint: str, capsys: Shown) -> None:
    before = names_in(Path(checkpoint))
    assert main(["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--size", "6"]) == 0
    assert names_in(Path(checkpoint)) == before and "results.json" not in capsys.readouterr().out


# What is refused


def refused(words: list[str], capsys: Shown) -> str:
    """The one line that a command says on stderr."""
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "", words
    assert captured.err.startswith("eval.py: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


REFUSED = """
zeroshot --checkpoint {none} --task shape -> none: no model.safetensors
zeroshot --checkpoint {ok} --compare {none} --task shape -> none: no model.safetensors
zeroshot --checkpoint {ok} --data {none} -> none
zeroshot --checkpoint {ok} --data {folders} --templates photo -> lacks {{}}
zeroshot --checkpoint {ok} --data {folders} --templates {bad} -> bad.txt, line 2
zeroshot --checkpoint {ok} --data {folders} --templates -> expected at least one argument
zeroshot --checkpoint {ok} --data {folders} --classnames {twice} -> twice.txt, line 3
zeroshot --checkpoint {ok} --data {folders} --classnames {none} -> none
zeroshot --checkpoint {ok} --data {folders} --classnames {short} -> short.txt has 2 names for 3 classes
zeroshot --checkpoint {ok} --data {folders} --split nosuch -> nosuch
zeroshot --checkpoint {ok} --data {folders} --foreign {none} -> none
zeroshot --checkpoint {ok} --data {folders} --foreign {empty} -> empty: no
zeroshot --checkpoint {ok} --data {hollow} -> hollow/b holds no
zeroshot --checkpoint {ok} --data {single} -> single has 1 sub-folders
zeroshot --checkpoint {ok} --task relation --templates simple -> leave --templates and --foreign out
zeroshot --checkpoint {ok} --task relation --foreign {folders} -> leave --templates and --foreign out
zeroshot --checkpoint {ok} --task shape --classnames {bad} -> --classnames belongs to --data
zeroshot --checkpoint {ok} --task shape --label_column x --name y -> --label_column, --name belongs
zeroshot --checkpoint {ok} --task shape --out {bad} -> bad.txt is a file; name a folder
zeroshot --checkpoint {ok} --task shape --out {bad}/deep/er -> bad.txt is a file; name a folder
zeroshot --checkpoint {ok} --compare {ok} --task shape -> name the same model twice
zeroshot --checkpoint {ok} --compare {tmp} {tmp} --task shape -> name the same model twice
zeroshot --checkpoint {ok} {ok} --task shape -> unrecognized arguments
zeroshot --checkpoint {ok} --task shape --device warp -> --device warp cannot be used
zeroshot --checkpoint {ok} --task no -> invalid choice: 'no' (choose from shape, colour
zeroshot --checkpoint {ok} --task shape --size 0 -> --size 0 must be at least 1; see eval.py zeroshot --help
zeroshot --checkpoint {ok} --task shape --seed -1 -> --seed -1 must be at least 0
zeroshot --checkpoint {ok} --task shape --batch_size 0 -> batch_size=0 must be at least 1
zeroshot --checkpoint {ok} --task shape --precision fp8 -> 'fp32', 'bf16'
zeroshot --checkpoint {ok} --task shape --max_bad_fraction 1.5 -> must lie in [0, 1]
zeroshot --checkpoint {ok} --task shape --data {tmp} -> not allowed with argument
zeroshot --checkpoint {ok} --task shape --json {tmp}/a.json -> unrecognized arguments: --json
zeroshot --checkpoint {ok} -> required
zeroshot --task shape -> required: --checkpoint; see eval.py zeroshot --help
retrieval --checkpoint {ok} --data {none} -> none
retrieval --checkpoint {ok} --data {empty} -> empty
retrieval --checkpoint {ok} --data shapes --split nosuch -> nosuch
retrieval --checkpoint {ok} --data shapes --limit 0 -> --limit 0 must be at least 1
retrieval --checkpoint {ok} --data {captioned} --caption_column no -> no
retrieval --checkpoint {ok} --compare {ok} --data shapes -> name the same model twice
probe --checkpoint {ok} --data {none} -> none
probe --checkpoint {ok} --data {folders} --shots 0 -> 0 must be at least 1
probe --checkpoint {ok} --data {folders} --draws 0 -> --draws 0 must be at least 1
probe --checkpoint {ok} --data {folders} --split test -> unrecognized arguments: --split
probe --checkpoint {ok} --data {folders} --classnames {twice} -> twice.txt, line 3
probe --checkpoint {ok} --data {untested} -> needs the splits train and test, and it has test, validation
probe --checkpoint {ok} --data {folders}/test -> class 'blue' has 2 images, and 3 parts need one each
probe --checkpoint {ok} --data {folders} --out {bad} -> bad.txt is a file; name a folder
report -> required: run; see eval.py report --help
nosuch -> invalid choice: 'nosuch'"""


def test_errors_are_one_line_before_the_model_loads(
    checkpoint: str,
    folders: Path,
    captioned: Path,
    tmp_path: Path,
    capsys: Shown,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    for name in ("load", "load_unfinished", "load_model"):
        monkeypatch.setattr(f"miniclip.models.load.{name}", loaded)
    paths = {name: tmp_path / name for name in ("none", "empty", "hollow", "single", "untested")}
    paths |= {name: tmp_path / f"{name}.txt" for name in ("bad", "twice", "short")}
    paths["bad"].write_text("a {}\na photo\n")
    paths["twice"].write_text("red\tcrimson\nblue\tazure\nlight_green\tCrimson\n")
    paths["short"].write_text("crimson\nazure\n")
    for folder in ("empty", "hollow/b"):
        (tmp_path / folder).mkdir(parents=True)
    for image in ("hollow/a", "single/a", "untested/test/a", "untested/test/c", "untested/validation/a"):
        paint(tmp_path / image / "0.png", 0)
    paint(tmp_path / "untested/validation/c/0.png", 1)
    before = set(tmp_path.rglob("*"))
    for case in REFUSED.strip().splitlines():
        words, message = case.format(ok=checkpoint, tmp=tmp_path, folders=folders, captioned=captioned, **paths).split(
            " -> "
        )
        assert message in refused(words.split(), capsys), case
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so a mode would not do
    target = str(tmp_path / "a" / "b")
    words = ["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--out", target]
    assert "no permission" in refused(words, capsys)
    assert set(tmp_path.rglob("*")) == before


def test_a_broken_model_is_one_line_too(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    for name in ("model.json", "preprocess.json"):
        (tmp_path / name).write_text((Path(checkpoint) / name).read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    words = [
        "zeroshot",
        "--checkpoint",
        str(tmp_path),
        "--task",
        "shape",
        "--size",
        "6",
        "--out",
        str(tmp_path / "out"),
    ]
    assert str(tmp_path / "model.safetensors") in refused(words, capsys)
    save_tiny(tmp_path / "wide", 0, 32, width=48)  # of another shape than model.json says
    shutil.copy(tmp_path / "wide" / "model.safetensors", tmp_path)
    line = refused(words, capsys)
    assert f"{tmp_path / 'model.safetensors'} does not hold the model of model.json" in line
    assert "size mismatch" in line and not (tmp_path / "out").exists()
    (tmp_path / "preprocess.json").write_text("[]")
    assert "preprocess.json" in refused(words, capsys)


def test_unreadable_images_are_named_or_left_out(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    labelled, pairs = tmp_path / "labelled", tmp_path / "pairs"
    for k, name in enumerate(CLASSES):
        for number in range(3):
            paint(labelled / name / f"{number}.png", 10 * number + k)
    for k in range(5):
        paint(pairs / f"{k}.png", 70 + k)
    lines = [json.dumps({"file_name": f"{k}.png", "text": f"number {k}", "split": "test"}) for k in range(5)]
    (pairs / "metadata.jsonl").write_text("\n".join(lines))
    for image in (labelled / "red" / "1.png", pairs / "2.png"):
        image.write_bytes(image.read_bytes()[:60])

    model = ["--checkpoint", checkpoint, "--out", str(tmp_path / "out")]
    assert "red/1.png" in refused(["zeroshot", "--data", str(labelled), *model], capsys)
    assert "2.png" in refused(["retrieval", "--data", str(pairs), *model], capsys)
    few = ["--max_bad_fraction", "0.05"]
    assert "1 of 9" in refused(["zeroshot", "--data", str(labelled), *model, *few], capsys)
    assert not (tmp_path / "out").exists()

    some = ["--checkpoint", checkpoint, "--max_bad_fraction", "0.5"]
    found = evaluated(tmp_path / "a", "zeroshot", "--data", str(labelled), *some)
    assert "1 images cannot be read and are left out: " in found["notes"][0] and "red/1.png" in found["notes"][0]
    assert found["figures"]["top1"]["n"] == 8 and "red/1.png" in capsys.readouterr().out
    pairs_found = evaluated(tmp_path / "b", "retrieval", "--data", str(pairs), *some)
    assert pairs_found["details"]["n_images"] == 4 and "2.png" in pairs_found["notes"][0]
    assert "0.png" in (tmp_path / "b" / "examples.html").read_text()
    probed = evaluated(tmp_path / "c", "probe", "--data", str(labelled), "--shots", "--draws", "1", *some)
    assert any("red/1.png" in note for note in probed["notes"])

    # the same as without the images
    (labelled / "red" / "1.png").unlink()
    (pairs / "2.png").unlink()
    (pairs / "metadata.jsonl").write_text("\n".join(lines[:2] + lines[3:]))
    again = evaluated(tmp_path / "d", "zeroshot", "--data", str(labelled), "--checkpoint", checkpoint)
    assert all(again[name] == found[name] for name in ("figures", "details")) and again["notes"] == found["notes"][1:]
    again = evaluated(tmp_path / "e", "retrieval", "--data", str(pairs), "--checkpoint", checkpoint)
    assert all(again[name] == pairs_found[name] for name in ("figures", "details"))


def test_a_model_without_a_number_still_has_results(
    checkpoint: str, folders: Path, foreign: Path, tmp_path: Path
) -> None:
    model, preprocess, _ = load(checkpoint)
    torch.nn.init.constant_(model.text_projection, math.nan)
    save_model(tmp_path / "nan", model, preprocess)
    base = ["--checkpoint", str(tmp_path / "nan"), "--data", str(folders), "--foreign", str(foreign)]
    assert evaluated(tmp_path / "out", "zeroshot", *base)["figures"]["top1"]["value"] == 0
    assert "foreign.png" not in names_in(tmp_path / "out")


def test_a_model_of_open_clip(tmp_path: Path, capsys: Shown) -> None:
    """Its figures are those of its own code: scenes are squares of the model's size, so nothing is resized."""
    torch.manual_seed(3)
    theirs = open_clip.create_model("ViT-S-32-alt")
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    theirs.eval()
    name = f"open_clip:ViT-S-32-alt:{tmp_path / 'weights.pt'}"
    found = evaluated(tmp_path / "out", "retrieval", "--data", "shapes", "--checkpoint", name, "--size", "6")
    source = SceneSource("test", 6, image_size=224)
    preprocess = open_clip.image_transform(224, is_train=False)
    texts = [text for k in range(6) for text in source.captions(k)]
    with torch.no_grad():
        image = theirs.encode_image(torch.stack([preprocess(source.image(k)) for k in range(6)]), normalize=True)
        text = theirs.encode_text(open_clip.tokenize(texts), normalize=True)
    ranks = retrieval_ranks_from_embeddings(image, text, torch.arange(6).repeat_interleave(5))
    figures = found["figures"]
    assert figures["text_to_image_median_rank"]["value"] == np.median(ranks.text_to_image)
    assert figures["image_to_text_r1"]["value"] == recall_at_k(ranks.image_to_text, 1)
    assert found["model"]["name"] == name and len(found["model"]["fingerprint"]) == 32
    capsys.readouterr()
    words = ["retrieval", "--data", "shapes", "--checkpoint", "open_clip:ViT-S-32-alt"]
    assert "ViT-S-32-alt" in refused(words, capsys)


# The program


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom miniclip.cli.eval import main\n"
        "for command in ([], ['zeroshot'], ['retrieval'], ['probe'], ['matrix'], ['audit'], ['report']):\n"
        "    try: main([*command, '--help'])\n    except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout and "usage: eval.py zeroshot" in done.stdout
    for task in TASKS.values():  # every option is there and explained
        for field in fields(task):
            assert not field.init or f"--{field.name} " in done.stdout


def test_the_command_miniclip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/miniclip", *words])
        try:
            code = miniclip_main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, "".join(capsys.readouterr())

    for words, begin in (
        ("eval report none", "miniclip eval: error: none"),
        (
            "eval zeroshot --task shape",
            "miniclip eval: error: the following arguments are required: --checkpoint; see mi",
        ),
        ("audit --data none/at/all", "miniclip: error: "),
        ("train --config shape", "miniclip train: error: --config shape: neither a file nor one of"),
        ("doctor --config shape", "doctor: error: --config shape: neither"),
        ("", "usage: miniclip COMMAND"),
        ("nosuch", "usage: miniclip COMMAND"),
    ):
        code, said = run(*words.split())
        assert code == 2 and said.startswith(begin), said
    assert header(None)["command"] == "miniclip nosuch"
    assert run("--help")[0] == run("train", "--help")[0] == run("eval", "probe", "--help")[0] == 0
    assert header(None)["command"] == "miniclip eval probe --help"


def test_the_configuration_knows_the_evaluations_and_their_options() -> None:
    assert set(OPTIONS) == set(TASKS)
    for kind, options in OPTIONS.items():
        assert set(options) <= {field.name for field in fields(TASKS[kind]) if field.init}


def test_the_script_runs_on_a_terminal_without_the_letters(checkpoint: str, folders: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\trouge\nlight_green\tvert pâle 🟢\nblue\tbleu\n", encoding="utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "eval.py"), "zeroshot", "--checkpoint", *arguments]
        ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=ascii_only)

    done = run(checkpoint, "--data", str(folders), "--classnames", str(names))
    assert done.returncode == 0 and "vert p?le" in done.stdout, done.stderr
    done = run("none", "--task", "shape")
    assert done.returncode == 2 and done.stderr.startswith("eval.py: error: none: no model") and done.stdout == ""
