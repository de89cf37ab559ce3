"""eval.py from the command line to its tables, files and messages, with tiny untrained models."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from miniclip.cli.eval import main
from miniclip.data.labelled import open_labelled
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.data.unlabelled import open_images
from miniclip.evaluation.encode import EncodeOptions, fingerprint
from miniclip.evaluation.result import Evaluation, difference, to_json
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.zeroshot import zero_shot
from miniclip.metrics.retrieval import recall_at_k, retrieval_ranks_from_embeddings
from miniclip.models import create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import load, save_model

ROOT = Path(__file__).parent.parent
CLASSES = ("red", "light_green", "blue")


def save_tiny(directory: Path, seed: int, image_size: int, width: int = 32) -> str:
    torch.manual_seed(seed)
    small = {"embed_dim": 16, "image_width": width, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "vocab_size": 49408, "context_length": 32}
    model = create_model("tiny-vit", image_size=image_size, **small, **text)
    save_model(directory, model, Preprocess(image_size))
    return str(directory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("checkpoint"), 0, 32)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model as checkpoint, elsewhere."""
    return save_tiny(tmp_path_factory.mktemp("copied"), 0, 32)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("larger"), 1, 48)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "run" / "model", 1, 32)
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    return tmp_path / "run"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two pictures each in test, of six in train and of one in validation."""
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


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Zero-shot


def test_zero_shot_on_a_task_equals_python(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--size", "24", "--seed", "3"]
    result = evaluated(tmp_path / "out", *arguments)
    model, preprocess, tokenizer = load(checkpoint)
    expected = zero_shot(model, preprocess, tokenizer, SceneTask("shape", 24, 3, 32), task="shape")
    assert {name: result[name] for name in to_json(expected)} == to_json(expected)
    assert result["model"] == {"name": checkpoint, "fingerprint": fingerprint(model)}
    assert result["data"] == {"source": "shapes: shape", "split": "test", "fingerprint": expected.fingerprint}
    figure = result["figures"]["top1"]
    assert figure["n"] == 24 and figure["low"] <= figure["value"] <= figure["high"]
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


def test_zero_shot_on_folders_with_class_names(
    checkpoint: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\tred thing\nlight_green\tpale green | mint\nblue\tblue thing\n")
    base = ["zeroshot", "--checkpoint", checkpoint, "--dataset", str(folders)]
    first = evaluated(tmp_path / "a", *base)
    assert "light green" in capsys.readouterr().out
    assert first["details"]["classes"] == ["blue", "light green", "red"] and first["figures"]["top1"]["n"] == 6
    assert first["data"]["source"] == str(folders) and "templates" not in first["details"]
    more = ["--classnames", str(names), "--templates", "a {}", "one {}", "--precision", "bf16"]
    second = evaluated(tmp_path / "b", *base, *more)
    assert second["details"]["classes"] == ["blue thing", "pale green", "red thing"]
    assert [row["template"] for row in second["details"]["templates"]] == ["a {}", "one {}"]
    assert second["data"] == first["data"] and second["model"] == first["model"]
    assert "templates.png" in names_in(tmp_path / "b")
    model, preprocess, tokenizer = load(checkpoint)
    source = open_labelled(folders, classnames_file=names, image_size=32)
    options = EncodeOptions(precision="bf16")
    expected = zero_shot(model, preprocess, tokenizer, source, ["a {}", "one {}"], task=folders.name, options=options)
    assert {name: second[name] for name in to_json(expected)} == to_json(expected)


def test_templates_from_a_file(checkpoint: str, folders: Path, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("x {}\n\ny {}\n")
    base = ["zeroshot", "--checkpoint", checkpoint, "--data", str(folders), "--templates"]
    found = evaluated(tmp_path / "out", *base, str(tmp_path / "templates.txt"))
    assert [row["template"] for row in found["details"]["templates"]] == ["x {}", "y {}"]


def test_foreign_pictures(
    checkpoint: str, folders: Path, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--data", str(folders), "--foreign", str(foreign)]
    found = evaluated(tmp_path / "out", *arguments)
    strangers = open_images(foreign, image_size=32)
    assert len(strangers) == 4
    source = open_labelled(folders, image_size=32)
    expected = zero_shot(*load(checkpoint), source, foreign=strangers, task=folders.name)
    assert {name: found[name] for name in to_json(expected)} == to_json(expected)
    assert found["figures"]["auroc_free_energy"]["n"] == 10 and found["figures"]["top1"]["n"] == 6
    assert found["data"]["fingerprint"] == expected.fingerprint
    assert names_in(tmp_path / "out") == {"results.json", "confusion.png", "calibration.png", "foreign.png"}
    assert "FPR@95" in capsys.readouterr().out


def test_precision_and_batch_size_reach_the_towers(
    checkpoint: str, captioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: Any, options: EncodeOptions, **keywords: Any) -> Evaluation:
        seen.append((options.batch_size, options.precision, options.max_bad_fraction, options.shared))
        return zero_shot(*arguments, options=options, **keywords)

    monkeypatch.setattr("miniclip.evaluation.zeroshot.zero_shot", spy)
    base = ["zeroshot", "--checkpoint", checkpoint, "--task", "count", "--size", "6"]
    more = ["--precision", "bf16", "--batch_size", "5", "--max_bad_fraction", "0.25"]
    assert main(base) == 0 and main([*base, *more]) == 0
    assert seen == [(256, "fp32", 0, True), (5, "bf16", 0.25, True)]


def test_relation_has_two_sentences_a_picture(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--task", "relation", "--size", "6"]
    found = evaluated(tmp_path / "out", *arguments)
    assert set(found["figures"]) == {"top1"} and found["details"] == {"chance": 0.5}
    assert names_in(tmp_path / "out") == {"results.json"}
    assert "50.0" in capsys.readouterr().out


# Several models


def test_a_model_does_not_differ_from_its_copy(
    checkpoint: str, copied: str, folders: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {
        "zeroshot": ["--task", "shape", "--size", "20"],
        "retrieval": ["--data", str(captioned), "--caption_column", "captions"],
        "probe": ["--data", str(folders), "--shots"],
    }
    for command, arguments in wanted.items():
        out = tmp_path / command
        assert main([command, "--checkpoint", checkpoint, "--compare", copied, *arguments, "--out", str(out)]) == 0
        written = results(out)
        first, second = written["results"]
        assert [first["model"]["name"], second["model"]["name"]] == [checkpoint, copied]
        assert {**first, "model": 0} == {**second, "model": 0}
        assert first["model"]["fingerprint"] == second["model"]["fingerprint"]
        (apart,) = written["differences"]
        assert (apart["of"], apart["than"], apart["task"]) == (copied, checkpoint, first["task"])
        assert len(apart["figures"]) >= 2 and set(apart["figures"]) <= set(first["figures"])
        assert all((f["value"], f["low"], f["high"]) == (0, 0, 0) for f in apart["figures"].values())
        assert "compare.png" in names_in(out)
        assert f"difference from {checkpoint}" in capsys.readouterr().out


def test_differences_of_several_models(
    checkpoint: str, copied: str, larger: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["zeroshot", "--checkpoint", checkpoint, "--compare", larger, copied]
    assert main([*base, "--task", "shape", "--size", "30", "--out", str(tmp_path / "a")]) == 0
    written = results(tmp_path / "a")
    assert [result["model"]["name"] for result in written["results"]] == [checkpoint, larger, copied]
    assert [apart["of"] for apart in written["differences"]] == [larger, copied]
    # Each model sees scenes of its own size: 48 pixels for the larger.
    first, second = (zero_shot(*load(m), SceneTask("shape", 30, 0, s)) for m, s in ((checkpoint, 32), (larger, 48)))
    assert written["results"][1]["details"]["confusion"] == second.details["confusion"]
    assert first["top1"] != second["top1"]  # else the difference would say nothing
    expected = difference(first, second)
    for name, figure in written["differences"][0]["figures"].items():
        assert figure == expected[name]._asdict()
    assert written["differences"][0]["figures"]["top1"]["value"] == second["top1"] - first["top1"]
    fingerprints = [result["model"]["fingerprint"] for result in written["results"]]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    out = capsys.readouterr().out
    assert checkpoint in out and larger in out


# Retrieval


def test_retrieval_on_the_scenes_equals_python(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["retrieval", "--checkpoint", checkpoint, "--data", "shapes", "--size", "20", "--seed", "2"]
    result = evaluated(tmp_path / "out", *arguments)
    expected = retrieval(*load(checkpoint), SceneSource("test", 20, 2, 32), task="shapes")
    assert {name: result[name] for name in to_json(expected)} == to_json(expected)
    assert result["data"] == {"source": "shapes", "split": "test", "fingerprint": expected.fingerprint}
    assert result["figures"]["image_to_text_r1"]["n"] == 20 and result["figures"]["text_to_image_map"]["n"] == 100
    assert names_in(tmp_path / "out") == {"results.json", "examples.png", "queries.png", "examples.html"}
    with Image.open(tmp_path / "out" / "examples.png") as image:
        assert image.format == "PNG" and image.width > 800
    out = capsys.readouterr().out
    assert "image -> text" in out and "text -> image" in out


def test_retrieval_on_a_folder(checkpoint: str, captioned: Path, tmp_path: Path) -> None:
    base = ["retrieval", "--checkpoint", checkpoint, "--data", str(captioned)]

    def sizes(*more: str) -> tuple[int, int]:
        details = evaluated(tmp_path / "out", *base, *more)["details"]
        return details["n_images"], details["n_texts"]

    assert sizes("--caption_column", "captions") == (5, 10)
    assert sizes("--caption_column", "captions", "other") == (5, 15)
    assert sizes("--caption_column", "other", "--limit", "2") == (2, 2)
    assert sizes("--caption_column", "captions", "--limit", "99", "--image_column", "file_name") == (5, 10)
    assert sizes("--caption_column", "captions", "--split", "train") == (3, 6)


# Probe and report


def test_probe_on_folders(checkpoint: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert names_in(tmp_path / "out") == {"results.json", "shots.png"}
    assert "linear" in capsys.readouterr().out
    again = evaluated(tmp_path / "again", *arguments)
    assert again == found
    assert evaluated(tmp_path / "none", *arguments[:5], "--shots")["details"]["shots"] == []


def test_report_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def write_report(run: Path) -> tuple[Path, Path]:
        asked.append(run)
        return run / "report.md", run / "report.html"

    monkeypatch.setattr("miniclip.evaluation.report.write.write_report", write_report)
    assert main(["report", str(tmp_path)]) == 0 and asked == [tmp_path]
    out = capsys.readouterr().out
    assert str(tmp_path / "report.html") in out and str(tmp_path / "report.md") in out


def test_report_of_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("eval.py: error: ") and err.count("\n") == 1 and "none" in err


# Where the files go


def test_a_run_keeps_its_evaluations(run_directory: Path, folders: Path, captioned: Path) -> None:
    run = str(run_directory)
    assert main(["zeroshot", "--checkpoint", run, "--task", "shape", "--size", "6"]) == 0
    assert main(["zeroshot", "--checkpoint", run, "--data", str(folders), "--split", "validation"]) == 0
    assert main(["retrieval", "--checkpoint", run, "--data", str(captioned), "--caption_column", "other"]) == 0
    assert main(["probe", "--checkpoint", run, "--data", str(folders), "--shots"]) == 0
    name = folders.name
    wanted = {"zeroshot-shape", f"zeroshot-{name}-validation", f"retrieval-{captioned.name}", f"probe-{name}"}
    assert names_in(run_directory / "evaluation") == wanted
    assert all((run_directory / "evaluation" / folder / "results.json").is_file() for folder in wanted)
    first = results(run_directory / "evaluation" / f"zeroshot-{name}-validation")["results"][0]
    assert first["data"]["split"] == "validation" and first["figures"]["top1"]["n"] == 3


def test_a_second_evaluation_takes_the_place_of_the_first(run_directory: Path) -> None:
    for seed in ("1", "2"):
        arguments = ["zeroshot", "--checkpoint", str(run_directory), "--task", "shape", "--size", "6", "--seed", seed]
        assert main(arguments) == 0
    assert names_in(run_directory / "evaluation") == {"zeroshot-shape"}
    assert "--seed 2" in results(run_directory / "evaluation" / "zeroshot-shape")["command"]


def test_a_model_that_is_no_run_leaves_nothing(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = names_in(Path(checkpoint))
    assert main(["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--size", "6"]) == 0
    assert names_in(Path(checkpoint)) == before and "results.json" not in capsys.readouterr().out


@pytest.mark.parametrize("source", ["..", "a b/c$d", ".hidden"])
def test_names_of_folders_are_tame(source: str, run_directory: Path, folders: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / source
    target.parent.mkdir(parents=True, exist_ok=True)
    if source == "..":
        target = folders / "test" / ".." / "test" / ".."
    else:
        target.symlink_to(folders)
    assert main(["zeroshot", "--checkpoint", str(run_directory), "--data", str(target)]) == 0
    (found,) = (run_directory / "evaluation").iterdir()
    assert found.name == {"..": "zeroshot-data", "a b/c$d": "zeroshot-c_d", ".hidden": "zeroshot-hidden"}[source]


def test_an_unwritable_target_is_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so a mode would not do
    target = str(tmp_path / "a" / "b")
    assert main(["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--out", target]) == 2
    assert "no permission" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# What is refused


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    for name in ("load", "load_unfinished"):
        monkeypatch.setattr(f"miniclip.models.saved.{name}", loaded)
    monkeypatch.setattr("miniclip.models.load.load_model", loaded)
    yield


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says on stderr."""
    try:
        code = main(words)
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("eval.py: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("zeroshot --checkpoint {none} --task shape", "none: no model.safetensors"),
        ("zeroshot --checkpoint {ok} --compare {none} --task shape", "none: no model.safetensors"),
        ("zeroshot --checkpoint {ok} --data {none}", "none"),
        ("zeroshot --checkpoint {ok} --data {folders} --templates photo", "lacks {{}}"),
        ("zeroshot --checkpoint {ok} --data {folders} --templates {bad}", "bad.txt, line 2"),
        ("zeroshot --checkpoint {ok} --data {folders} --templates", "expected at least one argument"),
        ("zeroshot --checkpoint {ok} --data {folders} --classnames {twice}", "twice.txt, line 3"),
        ("zeroshot --checkpoint {ok} --data {folders} --classnames {none}", "none"),
        ("zeroshot --checkpoint {ok} --data {folders} --classnames {short}", "short.txt has 2 names for 3 classes"),
        ("zeroshot --checkpoint {ok} --data {folders} --split nosuch", "nosuch"),
        ("zeroshot --checkpoint {ok} --data {folders} --foreign {none}", "none"),
        ("zeroshot --checkpoint {ok} --data {folders} --foreign {empty}", "empty: no "),
        ("zeroshot --checkpoint {ok} --data {hollow}", "hollow/b holds no image"),
        ("zeroshot --checkpoint {ok} --data {single}", "single has 1 sub-folders"),
        ("zeroshot --checkpoint {ok} --task relation --templates simple", "leave --templates and --foreign out"),
        ("zeroshot --checkpoint {ok} --task relation --foreign {folders}", "leave --templates and --foreign out"),
        ("zeroshot --checkpoint {ok} --task shape --classnames {bad}", "--classnames belongs to --data"),
        ("zeroshot --checkpoint {ok} --task shape --label_column x --name y", "--label_column, --name belongs"),
        ("zeroshot --checkpoint {ok} --task shape --out {bad}", "bad.txt is a file; name a folder"),
        ("zeroshot --checkpoint {ok} --task shape --out {bad}/deep/er", "bad.txt is a file; name a folder"),
        ("zeroshot --checkpoint {ok} --compare {ok} --task shape", "name the same model twice"),
        ("zeroshot --checkpoint {ok} --compare {tmp} {tmp} --task shape", "name the same model twice"),
        ("zeroshot --checkpoint {ok} {ok} --task shape", "unrecognized arguments"),
        ("zeroshot --checkpoint {ok} --task shape --device warp", "--device warp cannot be used"),
        ("zeroshot --checkpoint {ok} --task no", "invalid choice: 'no'"),
        ("zeroshot --checkpoint {ok} --task shape --size 0", "0 must be at least 1"),
        ("zeroshot --checkpoint {ok} --task shape --max_bad_fraction 1.5", "must lie in [0, 1]"),
        ("zeroshot --checkpoint {ok} --task shape --data {tmp}", "not allowed with argument"),
        ("zeroshot --checkpoint {ok} --task shape --json {tmp}/a.json", "unrecognized arguments: --json"),
        ("zeroshot --checkpoint {ok}", "required"),
        ("retrieval --checkpoint {ok} --data {none}", "none"),
        ("retrieval --checkpoint {ok} --data {empty}", "empty"),
        ("retrieval --checkpoint {ok} --data shapes --split nosuch", "nosuch"),
        ("retrieval --checkpoint {ok} --data {captioned} --caption_column no", "no"),
        ("retrieval --checkpoint {ok} --compare {ok} --data shapes", "name the same model twice"),
        ("probe --checkpoint {ok} --data {none}", "none"),
        ("probe --checkpoint {ok} --data {folders} --shots 0", "0 must be at least 1"),
        ("probe --checkpoint {ok} --data {folders} --classnames {twice}", "twice.txt, line 3"),
        ("probe --checkpoint {ok} --data {untested}", "needs the splits train and test, and it has test, validation"),
        ("probe --checkpoint {ok} --data {folders}/test", "class 'blue' has 2 images, and 3 parts need one each"),
        ("probe --checkpoint {ok} --data {folders} --out {bad}", "bad.txt is a file; name a folder"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_errors_are_one_line_before_the_model_loads(
    arguments: str,
    message: str,
    checkpoint: str,
    folders: Path,
    captioned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {name: tmp_path / name for name in ("none", "empty", "hollow", "single", "untested")}
    paths |= {name: tmp_path / f"{name}.txt" for name in ("bad", "twice", "short")}
    paths["bad"].write_text("a {}\na photo\n")
    paths["twice"].write_text("red\tcrimson\nblue\tazure\nlight_green\tCrimson\n")
    paths["short"].write_text("crimson\nazure\n")
    for folder in ("empty", "hollow/b"):
        (tmp_path / folder).mkdir(parents=True)
    for picture in ("hollow/a", "single/a", "untested/test/a", "untested/validation/a"):
        paint(tmp_path / picture / "0.png", 0)
        paint(tmp_path / picture.replace("/a", "/c") / "0.png", 1) if "untested" in picture else None
    words = arguments.format(ok=checkpoint, tmp=tmp_path, folders=folders, captioned=captioned, **paths).split()
    before = set(tmp_path.rglob("*"))
    assert message.replace("{{}}", "{}") in refused(words, capsys)
    assert set(tmp_path.rglob("*")) == before


def test_a_broken_model_is_one_line_too(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.json", "preprocess.json"):
        (tmp_path / name).write_text((Path(checkpoint) / name).read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    words = ["zeroshot", "--checkpoint", str(tmp_path), "--task", "shape"]
    assert str(tmp_path / "model.safetensors") in refused(words, capsys)
    (tmp_path / "preprocess.json").write_text("[]")
    assert "preprocess.json" in refused(words, capsys)


def test_weights_of_another_shape_than_model_json(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "wide", 0, 32, width=48)
    (tmp_path / "wide" / "model.json").write_text((Path(checkpoint) / "model.json").read_text())
    words = ["zeroshot", "--task", "shape", "--size", "6", "--out", str(tmp_path / "out")]
    line = refused([*words, "--checkpoint", str(tmp_path / "wide")], capsys)
    assert f"{tmp_path / 'wide' / 'model.safetensors'} does not hold the model of model.json" in line
    assert "size mismatch" in line and not (tmp_path / "out").exists()


@pytest.fixture
def damaged(tmp_path: Path, folders: Path, captioned: Path) -> tuple[Path, Path]:
    """Labelled folders and captioned pictures, one picture of each cut short."""
    labelled, pairs = tmp_path / "labelled", tmp_path / "pairs"
    for k, name in enumerate(CLASSES):
        for number in range(3):
            paint(labelled / name / f"{number}.png", 10 * number + k)
    pairs.mkdir()
    lines = []
    for k in range(5):
        paint(pairs / f"{k}.png", 70 + k)
        lines.append(json.dumps({"file_name": f"{k}.png", "text": f"number {k}", "split": "test"}))
    (pairs / "metadata.jsonl").write_text("\n".join(lines))
    for picture in (labelled / "red" / "1.png", pairs / "2.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    return labelled, pairs


def test_an_unreadable_picture_is_named(
    checkpoint: str, damaged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled, pairs = damaged
    model = ["--checkpoint", checkpoint, "--out", str(tmp_path / "out")]
    assert "red/1.png" in refused(["zeroshot", "--data", str(labelled), *model], capsys)
    assert "2.png" in refused(["retrieval", "--data", str(pairs), *model], capsys)
    assert not (tmp_path / "out").exists()
    few = ["--max_bad_fraction", "0.05"]
    assert "1 of 9 pictures" in refused(["zeroshot", "--data", str(labelled), *model, *few], capsys)


def test_unreadable_pictures_may_be_left_out(
    checkpoint: str, damaged: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled, pairs = damaged
    some = ["--checkpoint", checkpoint, "--max_bad_fraction", "0.5"]
    found = evaluated(tmp_path / "a", "zeroshot", "--data", str(labelled), *some)
    assert found["figures"]["top1"]["n"] == 8
    assert "1 images cannot be read and are left out: " in found["notes"][0] and "red/1.png" in found["notes"][0]
    assert "red/1.png" in capsys.readouterr().out
    pairs_found = evaluated(tmp_path / "b", "retrieval", "--data", str(pairs), *some)
    assert pairs_found["details"]["n_images"] == 4 and "2.png" in pairs_found["notes"][0]
    assert "0.png" in (tmp_path / "b" / "examples.html").read_text()
    probed = evaluated(tmp_path / "c", "probe", "--data", str(labelled), "--shots", "--draws", "1", *some)
    assert any("red/1.png" in note for note in probed["notes"])

    # the same as without the pictures
    (labelled / "red" / "1.png").unlink()
    (pairs / "2.png").unlink()
    lines = (pairs / "metadata.jsonl").read_text().splitlines()
    (pairs / "metadata.jsonl").write_text("\n".join(lines[:2] + lines[3:]))
    again = evaluated(tmp_path / "d", "zeroshot", "--data", str(labelled), "--checkpoint", checkpoint)
    assert again["figures"] == found["figures"] and again["details"] == found["details"]
    assert again["notes"] == found["notes"][1:]
    again = evaluated(tmp_path / "e", "retrieval", "--data", str(pairs), "--checkpoint", checkpoint)
    assert again["figures"] == pairs_found["figures"] and again["details"] == pairs_found["details"]


# The program


@pytest.mark.parametrize("command", [[], ["zeroshot"], ["retrieval"], ["probe"], ["report"]])
def test_help_needs_no_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom miniclip.cli.eval import main\n"
        f"try:\n    main({[*command, '--help']!r})\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout


def test_a_terminal_without_the_letters_still_gets_its_table(checkpoint: str, folders: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\trouge\nlight_green\tvert pâle 🟢\nblue\tbleu\n", encoding="utf-8")
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--data", str(folders), "--classnames", str(names)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "vert p?le" in done.stdout


def test_a_model_of_open_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    owner = torch.arange(6).repeat_interleave(5)
    ranks = retrieval_ranks_from_embeddings(image, text, owner)
    figures = found["figures"]
    assert figures["text_to_image_median_rank"]["value"] == ranks.text_to_image.double().quantile(0.5)
    assert figures["image_to_text_r1"]["value"] == recall_at_k(ranks.image_to_text, 1)
    assert found["model"]["name"] == name and len(found["model"]["fingerprint"]) == 32
    assert main(["zeroshot", "--task", "shape", "--checkpoint", name, "--size", "6"]) == 0
    capsys.readouterr()
    assert "ViT-S-32-alt" in refused(
        ["retrieval", "--data", "shapes", "--checkpoint", "open_clip:ViT-S-32-alt"], capsys
    )


def test_the_script_runs() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "eval.py"), *arguments], capture_output=True, text=True, check=False
        )

    done = run("--help")
    assert done.returncode == 0 and "zeroshot" in done.stdout and done.stderr == ""
    done = run("zeroshot", "--checkpoint", "none", "--task", "shape")
    assert done.stdout == ""
    assert done.returncode == 2 and done.stderr.startswith("eval.py: error: none: no model")


def test_a_model_that_cannot_be_read_costs_nothing_of_the_others(
    checkpoint: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:1000])
    out = tmp_path / "out"
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--compare", str(broken), "--data", str(folders)]
    assert main([*arguments, "--out", str(out)]) == 2
    assert [entry["model"]["name"] for entry in results(out)["results"]] == [checkpoint]
    assert "broken" in capsys.readouterr().err


def test_pictures_of_an_evaluation_before_do_not_stay(
    checkpoint: str, folders: Path, foreign: Path, captioned: Path, tmp_path: Path
) -> None:
    base = ["zeroshot", "--checkpoint", checkpoint, "--data", str(folders), "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert main([*base, "--foreign", str(foreign), "--templates", "a {}", "one {}"]) == 0
    assert {"foreign.png", "templates.png"} < names_in(tmp_path / "out")
    assert main(base) == 0
    assert names_in(tmp_path / "out") == {"mine.txt", "results.json", "confusion.png", "calibration.png"}


def test_a_model_without_a_number_still_has_results(
    checkpoint: str, folders: Path, foreign: Path, tmp_path: Path
) -> None:
    model, preprocess, _ = load(checkpoint)
    torch.nn.init.constant_(model.text_projection, math.nan)
    save_model(tmp_path / "nan", model, preprocess)
    out = tmp_path / "out"
    arguments = ["zeroshot", "--checkpoint", str(tmp_path / "nan"), "--data", str(folders), "--foreign", str(foreign)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert results(out)["results"][0]["figures"]["top1"]["value"] == 0
    assert "foreign.png" not in names_in(out)
