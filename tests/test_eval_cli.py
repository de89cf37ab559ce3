"""eval.py from the command line to its tables, files and messages, with tiny untrained models."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from support.files import write_classes, write_csv, write_image, write_images, write_jsonl
from support.launching import ROOT
from support.models import save_tiny, tiny_model

from miniclip.cli.eval import main
from miniclip.cli.main import main as miniclip_main
from miniclip.config.eval_section import OPTIONS
from miniclip.data.labelled import open_images, open_labelled
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.evaluation.encode import EncodeOptions, fingerprint
from miniclip.evaluation.result import Evaluation, difference, header, to_json
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.tasks import TASKS
from miniclip.evaluation.zeroshot import classifier_of, embed_prompts, zero_shot
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model

CLASSES = ("red", "light_green", "blue")
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, the same elsewhere, and another that takes larger images."""
    root = tmp_path_factory.mktemp("models")
    return [save_tiny(root / "one"), save_tiny(root / "copied"), save_tiny(root / "larger", 1, 48)]


@pytest.fixture
def checkpoint(models: list[str]) -> str:
    return models[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two images each in test, of six in train and of one in validation."""
    root = tmp_path_factory.mktemp("folders")
    for split, first, count in (("test", 0, 2), ("train", 100, 6), ("validation", 200, 1)):
        numbers = {name: range(first + 70 * k, first + 70 * k + count) for k, name in enumerate(CLASSES)}
        write_classes(root / split, **numbers)
    return root


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    rows = []
    for split, count in (("train", 3), ("validation", 1), ("test", 5)):
        for k, name in enumerate(write_images(root, count, split + "{}.png")):
            row = {"file_name": name, "captions": [f"first {k}", f"second {split} {k}"], "split": split}
            rows.append({**row, "other": f"other {k}"})
    write_jsonl(root / "metadata.jsonl", rows)
    return root


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def evaluated(folder: Path, words: str, *more: str) -> dict[str, Any]:
    """The only result of a command that writes to folder."""
    assert main([*words.split(), *more, "--out", str(folder), "--device", "cpu"]) == 0
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
    out, words = tmp_path / "out", f"zeroshot --checkpoint {checkpoint} --task shape --size 24 --seed 3"
    result = evaluated(out, words)
    model, preprocess, tokenizer = load(checkpoint)
    expected = zero_shot(model, preprocess, tokenizer, SceneTask("shape", 24, 3, 32), task="shape")
    assert equal(result, expected) and result["figures"]["top1"]["n"] == 24
    assert result["model"] == {"name": checkpoint, "fingerprint": fingerprint(model)}
    assert result["data"] == {"source": "shapes: shape", "split": "test", "fingerprint": expected.fingerprint}
    written = results(out)
    assert set(written) == {"command", "time", "versions", "precision", "results", "differences"}
    assert written["precision"] == "fp32" and written["differences"] == []
    assert written["command"] == f"eval.py {words} --out {out} --device cpu"
    assert torch.__version__.startswith(written["versions"]["torch"]) and "miniclip" in written["versions"]
    assert names_in(out) == {"results.json", "confusion.png", "calibration.png"}
    assert Image.open(out / "confusion.png").format == "PNG"
    shown, complaints = capsys.readouterr()
    for word in ("zeroshot: shapes: shape, test", f"{100 * expected['top1']:.1f}", "crescent", str(out)):
        assert word in shown
    assert complaints == ""
    # relation has two sentences an image
    found = evaluated(tmp_path / "relation", f"zeroshot --checkpoint {checkpoint} --task relation --size 6")
    assert set(found["figures"]) == {"top1"} and found["details"] == {"chance": 0.5}
    assert names_in(tmp_path / "relation") == {"results.json"} and "50.0" in capsys.readouterr().out


def test_zero_shot_on_folders(checkpoint: str, folders: Path, tmp_path: Path, capsys: Shown) -> None:
    """Names of the classes, templates on the command line and from a file, foreign images; files of before go."""
    out, base = tmp_path / "out", f"zeroshot --checkpoint {checkpoint} --dataset {folders}"
    first = evaluated(out, base)
    (out / "mine.txt").touch()
    assert "light green" in capsys.readouterr().out
    assert first["details"]["classes"] == ["blue", "light green", "red"] and first["figures"]["top1"]["n"] == 6
    assert first["data"]["source"] == str(folders) and "templates" not in first["details"]

    names, file, foreign = tmp_path / "names.txt", tmp_path / "templates.txt", tmp_path / "foreign"
    write_images(foreign, 4)
    names.write_text("red\tred thing\nlight_green\tpale green | mint\nblue\tblue thing\n")
    given = f" --classnames {names} --precision bf16 --foreign {foreign} --templates"
    second = evaluated(out, base + given, "a {}", "one {}")
    assert names_in(out) >= {"mine.txt", "templates.png", "foreign.png"}
    assert second["details"]["classes"] == ["blue thing", "pale green", "red thing"]
    called = [(row["folder"], row["names"]) for row in second["details"]["per_class"]]
    assert called == [("blue", ["blue thing"]), ("light_green", ["pale green", "mint"]), ("red", ["red thing"])]
    shown = " ".join(capsys.readouterr().out.split())
    assert "what the prompts call the classes: blue -> blue thing; light_green -> pale green; red -> red" in shown
    assert shown.count("light_green -> pale green") == 2  # once beside its figures
    source = open_labelled(folders, classnames_file=names, image_size=32)
    options: Any = {"task": folders.name, "options": EncodeOptions(precision="bf16")}
    options["foreign"] = open_images(foreign, image_size=32)
    assert equal(second, zero_shot(*load(checkpoint), source, ["a {}", "one {}"], **options))
    assert second["figures"]["auroc_free_energy"]["n"] == 10 and second["figures"]["top1"]["n"] == 6
    assert "FPR@95" in shown

    file.write_text("x {}\n\ny {}\n")
    third = evaluated(out, f"{base} --templates {file}")
    assert [row["template"] for row in third["details"]["templates"]] == ["x {}", "y {}"]
    assert third["data"] == first["data"] != second["data"] and third["model"] == first["model"]
    assert names_in(out) == {"mine.txt", "results.json", "confusion.png", "calibration.png", "templates.png"}


def test_options_reach_the_towers(checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    """A model that is no run gets no files."""
    seen = []

    def spy(*arguments: Any, options: EncodeOptions, **keywords: Any) -> Evaluation:
        seen.append((options.batch_size, options.precision, options.max_bad_fraction, options.shared))
        return zero_shot(*arguments, options=options, **keywords)

    monkeypatch.setattr("miniclip.evaluation.zeroshot.zero_shot", spy)
    before = names_in(Path(checkpoint))
    for more in ("", " --precision bf16 --batch_size 5 --max_bad_fraction 0.25"):
        assert main(f"zeroshot --checkpoint {checkpoint} --task count --size 6{more}".split()) == 0
    assert seen == [(256, "fp32", 0.01, True), (5, "bf16", 0.25, True)]
    assert names_in(Path(checkpoint)) == before and "results.json" not in capsys.readouterr().out


# Images without labels


def test_classify(checkpoint: str, folders: Path, tmp_path: Path, capsys: Shown) -> None:
    """The table says what zero-shot finds on the same images, and claims nothing."""
    data, out, names = tmp_path / "photos", tmp_path / "out", tmp_path / "names.txt"
    for place, file in enumerate(sorted((folders / "test").rglob("*.png"))):
        data.mkdir(exist_ok=True)
        (data / f'{place}, "x".png').write_bytes(file.read_bytes())
    (data / "z.png").write_bytes(b"no image")
    names.write_text("blue\nlight green | mint\nred\n<b>\na\nb\nc\n")
    base = ["classify", "--checkpoint", checkpoint, "--data", str(data), "--classnames", str(names), "--out", str(out)]
    assert "z.png" in refused(base, capsys) and not out.exists()
    assert main([*base, "--max_bad_fraction", "0.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "photos: 6 images" in said
        and "over these 7 classes" in said
        and "no labels, so nothing here says how often this is right" in said
    )
    assert "1 images cannot be read and have no class: z.png" in said and "(even: 14.3 %)" in said

    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [*(f'{k}, "x".png' for k in range(6)), "z.png"]
    assert list(rows[0])[:5] == ["file", "class", "probability", "class_2", "probability_2"] and len(rows[0]) == 11
    assert not rows[6]["class"] and not rows[6]["probability_5"]
    model, preprocess, tokenizer = load(checkpoint)
    prompts = [[f"a photo of a {name}." for name in line.split(" | ")] for line in names.read_text().splitlines()]
    classes = classifier_of(embed_prompts(model, tokenizer, prompts)).double()
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(data / row["file"])) for row in rows[:6]])
        images = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1).double()
        expected = (model.logit_scale.double().exp() * images @ classes.T).softmax(1).sort(descending=True)
    written = ["blue", "light green", "red", "<b>", "a", "b", "c"]
    for row, chances, order in zip(rows, *expected, strict=False):
        shares = [float(row[f"probability{k}"]) for k in ("", "_2", "_3", "_4", "_5")]
        assert shares == pytest.approx(chances[:5].tolist(), abs=2e-3) and shares == sorted(shares, reverse=True)
        assert row["class"] == written[order[0]]
    page = (out / "predictions.html").read_text()
    assert "nothing here says how often" in page and "&lt;b&gt;" in page and "0, &#34;x&#34;.png" in page
    assert "holds other results; name another" in refused(base, capsys)
    names.write_text("cat\nCat\n")
    assert "line 2: the name 'Cat' stands in line 1 already" in refused([*base[:-1], str(tmp_path / "new")], capsys)
    write_csv(tmp_path / "l.csv", [("path", "split"), (data / "z.png", "train"), (data / '1, "x".png', "test")])
    names.write_text("cat\ndog\n")
    base = [*base[:4], str(tmp_path / "l.csv"), *base[5:-1], str(tmp_path / "new")]
    assert main(base) == 0 and "l.csv: 1 images of its split test" in " ".join(capsys.readouterr().out.split())
    assert f'\n"{data}/1, ""x"".png",' in (tmp_path / "new" / "predictions.csv").read_text()  # and no line of the table
    said = refused(["zeroshot", "--checkpoint", checkpoint, "--data", str(data)], capsys)
    assert "has 0 sub-folders" in said and "`eval.py classify` takes images without labels" in said


# Several models


def test_a_model_does_not_differ_from_its_copy(
    models: list[str], folders: Path, captioned: Path, tmp_path: Path, capsys: Shown
) -> None:
    for command in (
        "zeroshot --task shape --size 20",
        f"retrieval --data {captioned} --caption_column captions",
        f"probe --data {folders} --shots",
    ):
        out = tmp_path / command.split()[0]
        assert main([*command.split(), "--checkpoint", models[0], "--compare", models[1], "--out", str(out)]) == 0
        written = results(out)
        first, second = written["results"]
        assert [first["model"]["name"], second["model"]["name"]] == models[:2]
        assert {**first, "model": 0} == {**second, "model": 0}
        assert first["model"]["fingerprint"] == second["model"]["fingerprint"]
        (apart,) = written["differences"]
        assert (apart["of"], apart["than"], apart["task"]) == (models[1], models[0], first["task"])
        assert len(apart["figures"]) >= 2 and set(apart["figures"]) <= set(first["figures"])
        # of a sample: another one might tell them apart
        assert all(f["value"] == 0 for f in apart["figures"].values())
        assert all(f["low"] is None or f["low"] == -f["high"] < 0 for f in apart["figures"].values())
        assert "compare.png" in names_in(out) and f"difference from {models[0]}" in capsys.readouterr().out


def test_differences_of_several_models(models: list[str], tmp_path: Path) -> None:
    names = [models[0], models[2], models[1]]
    base = ["zeroshot", "--checkpoint", names[0], "--compare", *names[1:]]
    assert main([*base, "--task", "shape", "--size", "30", "--out", str(tmp_path)]) == 0
    written = results(tmp_path)
    assert [result["model"]["name"] for result in written["results"]] == names
    assert [apart["of"] for apart in written["differences"]] == names[1:]
    # Each model sees scenes of its own size: 48 pixels for the larger.
    first, second = (zero_shot(*load(m), SceneTask("shape", 30, 0, s)) for m, s in zip(names, (32, 48), strict=False))
    assert written["results"][1]["details"]["confusion"] == second.details["confusion"]
    assert first["top1"] != second["top1"]  # else the difference would say nothing
    expected = difference(first, second)
    assert all(f == expected[name]._asdict() for name, f in written["differences"][0]["figures"].items())
    fingerprints = [result["model"]["fingerprint"] for result in written["results"]]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


# Retrieval


def test_retrieval_equals_python(checkpoint: str, captioned: Path, tmp_path: Path, capsys: Shown) -> None:
    base = f"retrieval --checkpoint {checkpoint} --data"
    result = evaluated(tmp_path / "out", f"{base} shapes --size 20 --seed 2")
    expected = retrieval(*load(checkpoint), SceneSource("test", 20, 2, 32), task="shapes")
    assert equal(result, expected)
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
        details = evaluated(tmp_path / more, f"{base} {captioned} --caption_column {more}")["details"]
        assert (details["n_images"], details["n_texts"]) == (images, texts), more


# Probe and report


def test_probe_on_folders(checkpoint: str, folders: Path, tmp_path: Path, capsys: Shown) -> None:
    base = f"probe --checkpoint {checkpoint} --data {folders} --shots"
    found = evaluated(tmp_path / "out", f"{base} 1 3 --draws 2")
    assert found["kind"] == "probe" and found["task"] == folders.name
    assert {"linear", "knn", "linear_1_shot", "linear_3_shot"} <= set(found["figures"])
    for figure in found["figures"].values():
        assert figure["n"] == 6 and 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    details = found["details"]
    assert [details[f"n_{part}"] for part in ("train", "validation", "test")] == [18, 3, 6]
    assert details["classes"] == ["blue", "light green", "red"]
    assert [(row["shots"], len(row["draws"])) for row in details["shots"]] == [(1, 2), (3, 2)]
    assert found["data"]["source"] == str(folders) and len(found["data"]["fingerprint"]) == 32
    assert names_in(tmp_path / "out") == {"results.json", "shots.png"} and "linear" in capsys.readouterr().out
    assert evaluated(tmp_path / "again", f"{base} 1 3 --draws 2") == found
    assert evaluated(tmp_path / "none", base)["details"]["shots"] == []


def test_report_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    assert "none" in refused(["report", str(tmp_path / "none")], capsys)
    written = lambda run: (run / "report.md", run / "report.html")  # noqa: E731
    monkeypatch.setattr("miniclip.evaluation.report.write.write_report", written)
    assert main(["report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "report.html") in out and str(tmp_path / "report.md") in out


def test_a_run_keeps_its_evaluations(folders: Path, captioned: Path, tmp_path: Path) -> None:
    run, name = tmp_path / "run", folders.name
    save_tiny(run / "model", 1)
    (run / "config.yaml").write_text("{}\n")
    oddly = [tmp_path / "a b" / "c$d", tmp_path / ".hidden"]  # whatever the data is called
    for link in oddly:
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folders)
    for command, more in (
        ("zeroshot --task shape --size 6 --seed 1", []),
        ("zeroshot --task shape --size 6 --seed 2", []),  # of other scenes
        (f"zeroshot --data {folders} --split validation", []),
        (f"retrieval --data {captioned} --caption_column other", []),
        (f"probe --data {folders} --shots", []),
        *(("zeroshot --data", [str(link)]) for link in oddly),
        (f"zeroshot --data {folders}/test/../test/..", []),
    ):
        assert main([*command.split(), *more, "--checkpoint", str(run)]) == 0
    written = run / "evaluation"
    wanted = {"zeroshot-shape", f"zeroshot-{name}-validation", f"retrieval-{captioned.name}", f"probe-{name}"}
    assert names_in(written) == {*wanted, "zeroshot-c_d", "zeroshot-hidden", f"zeroshot-{name}", "zeroshot-shape-2"}
    assert all((written / folder / "results.json").is_file() for folder in wanted)
    assert "--seed 2" in results(written / "zeroshot-shape-2")["command"]
    first = results(written / f"zeroshot-{name}-validation")["results"][0]
    assert first["data"]["split"] == "validation" and first["figures"]["top1"]["n"] == 3


def test_no_results_are_replaced_in_silence(tmp_path: Path, capsys: Shown) -> None:
    run, written = tmp_path / "run", tmp_path / "run" / "evaluation"
    save_tiny(run / "model", 1)
    (run / "config.yaml").write_text("{}\n")
    for number, name in enumerate(("x/test", "y/test", "z/x/test")):
        write_classes(tmp_path / name, **{c: [70 * k + number, 70 * k + 9] for k, c in enumerate(CLASSES)})

    def asked(data: str, *more: str) -> str:
        capsys.readouterr()
        assert main(["zeroshot", "--checkpoint", str(run), "--data", str(tmp_path / data), *more]) == 0
        return capsys.readouterr().out

    for data in ("x/test", "y/test", "z/x/test"):
        assert "in place of" not in asked(data)
    assert names_in(written) == {"zeroshot-x-test", "zeroshot-y-test", "zeroshot-x-test-2"}
    first = results(written / "zeroshot-x-test")
    assert first["results"][0]["data"]["source"].endswith(f"{tmp_path.name}/x/test")
    # the same once more takes its own place, and says so; other prompts do not
    assert f"in place of the results of {first['time']} (eval.py zeroshot" in " ".join(asked("x/test").split())
    asked("z/x/test")
    assert len(names_in(written)) == 3
    asked("x/test", "--templates", "the {}")
    assert names_in(written) == {"zeroshot-x-test", "zeroshot-y-test", "zeroshot-x-test-2", "zeroshot-x-test-3"}
    (written / "zeroshot-y-test" / "results.json").write_text("{")
    asked("y/test")
    assert (written / "zeroshot-y-test" / "results.json").read_text() == "{" and "zeroshot-y-test-2" in names_in(
        written
    )

    # where the user says: results of another evaluation, and of a training, stay
    out = tmp_path / "out"
    assert "in place of" not in asked("x/test", "--out", str(out))
    assert "in place of the results of" in asked("x/test", "--out", str(out), "--templates", "the {}")
    base, before = ["--checkpoint", str(run), "--out"], (out / "results.json").read_text()
    for words in (
        ["zeroshot", "--data", str(tmp_path / "y/test"), *base, str(out)],
        ["probe", "--data", str(tmp_path / "x/test"), *base, str(out)],
    ):
        assert f"--out {out} holds other results (of 20" in refused(words, capsys)
    assert (out / "results.json").read_text() == before
    asking = ["zeroshot", "--task", "shape", *base]
    assert "is a run, and its results.json tells of the training" in refused([*asking, str(run)], capsys)
    (tmp_path / "old").mkdir()
    for text, words in (('{"training": {}}', "is a run, and its results.json"), ("[1]", "holds other results; name")):
        (tmp_path / "old" / "results.json").write_text(text)
        assert words in refused([*asking, str(tmp_path / "old")], capsys)
        assert (tmp_path / "old" / "results.json").read_text() == text


# What is refused


def refused(words: list[str], capsys: Shown) -> str:
    """The one line that a command says on stderr."""
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "", words
    assert captured.err.startswith("eval.py: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


REFUSED = """
zeroshot --checkpoint {none} --task shape -> none: there is no such file or folder
zeroshot --checkpoint {ok} --compare {none} --task shape -> none: there is no such file or folder
zeroshot --checkpoint {ok} --data {none} -> none
zeroshot --checkpoint {ok} --data {folders} --templates {bad} -> bad.txt, line 2
zeroshot --checkpoint {ok} --data {folders} --templates -> --templates lacks its value; see
zeroshot --checkpoint {ok} --data {folders} --classnames {twice} -> twice.txt, line 3
zeroshot --checkpoint {ok} --data {folders} --split nosuch -> nosuch
zeroshot --checkpoint {ok} --data {folders} --foreign {none} -> none
zeroshot --checkpoint {ok} --data {folders} --foreign {empty} -> empty: no
zeroshot --checkpoint {ok} --data {single} -> single has 1 sub-folders
zeroshot --checkpoint {ok} --task relation --templates simple -> leave --templates and --foreign out
zeroshot --checkpoint {ok} --task relation --foreign {folders} -> leave --templates and --foreign out
zeroshot --checkpoint {ok} --task shape --classnames {bad} -> --classnames belongs to --data
zeroshot --checkpoint {ok} --task shape --label_column x --name y -> --label_column, --name belongs
zeroshot --checkpoint {ok} --task shape --out {bad} -> bad.txt is a file; name a folder
zeroshot --checkpoint {ok} --task shape --out {bad}/deep/er -> bad.txt is a file; name a folder
zeroshot --checkpoint {ok} --compare {ok} --task shape -> name the same model twice
zeroshot --checkpoint {ok} --compare {tmp} {tmp} --task shape -> name the same model twice
zeroshot --checkpoint {ok} {ok} --task shape -> stands alone; write the option
zeroshot --checkpoint {ok} --task shape --device warp -> --device warp cannot be used
zeroshot --checkpoint {ok} --task shap -> relation; did you mean shape?
zeroshot --checkpoint {ok} --task shape --seed -1 -> --seed -1 must be at least 0
zeroshot --checkpoint {ok} --task shape --batch_size 0 -> batch_size=0 must be at least 1
zeroshot --checkpoint {ok} --task shape --precision fp8 -> fp8 is not one of auto, fp32, bf16
zeroshot --checkpoint {ok} --task shape --max_bad_fraction 1.5 -> must lie in [0, 1]
zeroshot --checkpoint {ok} --task shape --data {tmp} -> not allowed with argument
zeroshot --checkpoint {ok} -> required
zeroshot --task shape -> required: --checkpoint; see eval.py zeroshot --help
retrieval --checkpoint {ok} --data {none} -> none
retrieval --checkpoint {ok} --data shapes --split nosuch -> nosuch
retrieval --checkpoint {ok} --data shapes --limit 0 -> --limit 0 must be at least 1; see eval.py retrieval --help
retrieval --checkpoint {ok} --data {captioned} --caption_column no -> no
probe --checkpoint {ok} --data {none} -> none
probe --checkpoint {ok} --data {folders} --shots 0 -> 0 must be at least 1
probe --checkpoint {ok} --data {folders} --draws 0 -> --draws 0 must be at least 1
probe --checkpoint {ok} --data {folders} --split test -> --split is no option here
probe --checkpoint {ok} --data {untested} -> needs the splits train and test, and it has test, validation
probe --checkpoint {ok} --data {folders}/test -> class 'blue' has 2 images, and 3 parts need one each
report -> required: run; see eval.py report --help
report --run {ok} -> --run is no option here; leave the word out; see eval.py report --help
--checkpoint {ok} zeroshot --task shape -> the command comes first: eval.py zeroshot --checkpoint
zeroshot --checkpont {ok} --task shape -> --checkpont is no option here; did you mean --checkpoint?
zeroshot --checkpont={ok} --task shape -> --checkpont is no option here; did you mean --checkpoint?
zeroshot --checkpoint {ok} --task shape --batchsize 8 -> did you mean --batch_size?
zeroshot --checkpoint {ok} --task shape --config x -> --config is no option here; see
zeroshot --checkpoint {ok} --task shape --batch_size many -> --batch_size many is not a whole number
zeroshot --checkpoint {ok} --task shape --max_bad_fraction x -> --max_bad_fraction x is not a number
probe --checkpoint {ok} --data {folders} --shots 1 a -> --shots a is not a whole number
matrix --checkpoint {ok} --positives txt -> --positives txt is not one of diagonal, text, identity
matrix --checkpoint {ok} --size -> --size lacks its value; see eval.py matrix --help
audit --data -> --data lacks its value; see eval.py audit --help
zeroshto --task shape -> zeroshto is no command; did you mean zeroshot?
--checkpoint x -> name a command; choose from zeroshot, retrieval
nosuch -> nosuch is no command; choose from zeroshot, retrieval"""


def test_errors_are_one_line_before_the_model_loads(
    checkpoint: str, folders: Path, captioned: Path, tmp_path: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("miniclip.models.load.load", loaded)
    places = {name: tmp_path / name for name in ("none", "empty", "single", "untested")}
    twice = "red\tcrimson\nblue\tazure\nlight_green\tCrimson\n"
    for name, text in (("bad", "a {}\na photo\n"), ("twice", twice)):
        places[name] = tmp_path / f"{name}.txt"
        places[name].write_text(text)
    places["empty"].mkdir()
    untested = (f"untested/{split}/{name}" for split in ("test", "validation") for name in "ac")
    for k, folder in enumerate(("single/a", *untested)):
        write_image(tmp_path / folder / "0.png", k)
    places |= {"tmp": tmp_path, "folders": folders, "captioned": captioned}
    before = set(tmp_path.rglob("*"))
    for case in REFUSED.strip().splitlines():
        words, message = case.format(ok=checkpoint, **places).split(" -> ")
        said = refused(words.split(), capsys)
        assert message in said and not re.search(r"Literal|Expected a |Union|Parser key|<class", said), (case, said)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so a mode would not do
    words = f"zeroshot --checkpoint {checkpoint} --task shape --out {tmp_path}/a/b"
    assert "no permission" in refused(words.split(), capsys)
    assert set(tmp_path.rglob("*")) == before


def test_the_home_of_the_user(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every path, also where no shell spells it out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(checkpoint, tmp_path / "model")
    task = ["--task", "shape", "--size", "6"]
    assert main(["zeroshot", "--checkpoint=~/model", *task, "--out=~/out", "--device", "cpu"]) == 0
    assert (tmp_path / "out" / "results.json").is_file()
    assert main(["zeroshot", "--checkpoint=~/model", *task, "--compare", f"{tmp_path}/model"]) == 2  # one and the same


def test_a_broken_model(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    """It is named in a line, and costs nothing of the others."""
    broken, out = shutil.copytree(checkpoint, tmp_path / "broken"), tmp_path / "out"
    weights, task = broken / "model.safetensors", f"--task shape --size 6 --out {out}"
    words = f"zeroshot --checkpoint {broken} {task}".split()
    weights.write_bytes(b"nonsense")
    assert str(weights) in refused(words, capsys)
    save_tiny(tmp_path / "wide", width=48)  # of another shape than model.json says
    shutil.copy(tmp_path / "wide" / "model.safetensors", weights)
    line = refused(words, capsys)
    assert f"{weights} does not hold the model of model.json" in line and "size mismatch" in line
    (broken / "preprocess.json").write_text("[]")
    assert "preprocess.json" in refused(words, capsys) and not out.exists()
    shutil.copy(Path(checkpoint) / "preprocess.json", broken)
    weights.write_bytes((Path(checkpoint) / "model.safetensors").read_bytes()[:1000])
    assert main(f"zeroshot --checkpoint {checkpoint} --compare {broken} {task}".split()) == 2
    assert [entry["model"]["name"] for entry in results(out)["results"]] == [checkpoint]
    assert "broken" in capsys.readouterr().err


def test_unreadable_images_are_named_or_left_out(checkpoint: str, tmp_path: Path, capsys: Shown) -> None:
    labelled, pairs, out = tmp_path / "labelled", tmp_path / "pairs", tmp_path / "out"
    write_classes(labelled, **{name: range(70 * k, 70 * k + 3) for k, name in enumerate(CLASSES)})
    rows = [{"file_name": name, "text": f"of {name}", "split": "test"} for name in write_images(pairs, 5)]
    write_jsonl(pairs / "metadata.jsonl", rows)
    for image in (labelled / "red" / "1.png", pairs / "2.png"):
        image.write_bytes(image.read_bytes()[:45])
    base, own = (f"--checkpoint {checkpoint} --data {data}" for data in (labelled, pairs))
    for words, message in (
        (f"zeroshot {base}", "1 of 9 images cannot be used, more than --max_bad_fraction=0.01 allows"),
        (f"retrieval {own} --caption_column txt", "no column txt (--caption_column)"),
        (f"retrieval {own} --split tset", "set --split to one of"),
        (f"zeroshot {base} --max_bad_fraction 0", "red/1.png"),
        (f"retrieval {own}", "2.png"),
        (f"zeroshot {base} --max_bad_fraction 0.05", "1 of 9"),
    ):
        assert message in refused(f"{words} --out {out}".split(), capsys) and not out.exists()

    found = evaluated(out, f"zeroshot {base} --max_bad_fraction 0.5")
    assert (
        found["notes"][0].startswith("1 images cannot be read and are left out: ") and "red/1.png" in found["notes"][0]
    )
    assert found["figures"]["top1"]["n"] == 8 and "red/1.png" in capsys.readouterr().out
    probed = evaluated(tmp_path / "probed", f"probe {base} --shots --draws 1 --max_bad_fraction 0.5")
    assert any("red/1.png" in note for note in probed["notes"])
    (labelled / "red" / "1.png").unlink()  # the same as without the image
    again = evaluated(tmp_path / "again", f"zeroshot {base}")
    assert all(again[name] == found[name] for name in ("figures", "details")) and again["notes"] == found["notes"][1:]
    found = evaluated(tmp_path / "pages", f"retrieval --checkpoint {checkpoint} --data {pairs} --max_bad_fraction 0.5")
    assert found["details"]["n_images"] == 4 and "2.png" in found["notes"][0]
    assert "of 0.png" in (tmp_path / "pages" / "examples.html").read_text()


def test_a_model_without_a_number_still_has_results(folders: Path, tmp_path: Path) -> None:
    model = tiny_model()
    torch.nn.init.constant_(model.text_projection, math.nan)
    save_model(tmp_path / "nan", model, Preprocess(32))
    words = f"zeroshot --checkpoint {tmp_path}/nan --data {folders} --foreign {folders}/test/red"
    found = evaluated(tmp_path / "out", words)
    assert found["figures"]["top1"]["value"] == 0 and "foreign.png" not in names_in(tmp_path / "out")


def test_a_model_of_open_clip(tmp_path: Path, capsys: Shown) -> None:
    torch.manual_seed(3)
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), tmp_path / "weights.pt")
    words, name = "retrieval --data shapes --checkpoint", f"open_clip:ViT-S-32-alt:{tmp_path / 'weights.pt'}"
    found = evaluated(tmp_path / "out", f"{words} {name} --size 6")
    model = load(name)
    assert equal(found, retrieval(*model, SceneSource("test", 6, image_size=224), task="shapes"))
    assert found["model"]["name"] == name and len(found["model"]["fingerprint"]) == 32
    capsys.readouterr()
    assert "ViT-S-32-alt" in refused([*words.split(), "open_clip:ViT-S-32-alt"], capsys)


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

    missing = "the following arguments are required: --checkpoint; see miniclip eval zeroshot --help"
    for words, begin in (
        ("eval report none", "miniclip eval: error: none"),
        ("eval zeroshot --task shape", f"miniclip eval: error: {missing}"),
        ("audit --data none/at/all", "miniclip: error: "),
        ("train --config shape", "miniclip train: error: --config shape: neither a file nor one of"),
        ("doctor --config shape", "doctor: error: --config shape: neither"),
        ("", "usage: miniclip COMMAND"),
        ("trian", "miniclip: error: trian is no command; did you mean train?\nusage: miniclip COMMAND"),
        ("xyzzy", "miniclip: error: xyzzy is no command\nusage: miniclip COMMAND"),
    ):
        code, said = run(*words.split())
        assert code == 2 and said.startswith(begin), said
    assert header(None)["command"] == "miniclip xyzzy"
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
    assert done.returncode == 2 and done.stderr.startswith("eval.py: error: none: there is no") and done.stdout == ""
