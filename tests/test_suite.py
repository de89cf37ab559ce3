"""What a run is evaluated on: tasks on other data, what stops it before it starts, the work of several processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.group import together
from test_training import RESNET, TINY, lines, result_of

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import load_config, load_config_file
from miniclip.data.labelled import open_labelled
from miniclip.data.scenes.source import SceneSource, SceneTask
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.suite import evaluate, open_suite, scalars
from miniclip.models.preprocess import Preprocess

CLASSES = ("blue", "green", "red")


def write_classes(folder: Path, each: int = 5) -> Path:
    """Folders of pictures by colour."""
    task = SceneTask("colour", 200, image_size=40)
    left = dict.fromkeys(CLASSES, each)
    for index in range(len(task)):
        name = task.classes[task.label(index)]
        if left.get(name):
            left[name] -= 1
            (folder / name).mkdir(parents=True, exist_ok=True)
            task.image(index).save(folder / name / f"{index}.png")
    assert not any(left.values())
    return folder


def write_captioned(folder: Path, size: int = 36) -> Path:
    """Captioned pictures, a third of them for validation, the last third for the test."""
    folder.mkdir(parents=True)
    scenes = SceneSource("test", size, image_size=40)
    rows = []
    for index in range(size):
        scenes.image(index).save(folder / f"{index}.png")
        split = ("train", "validation", "test")[3 * index // size]
        rows.append({"file_name": f"{index}.png", "captions": scenes.captions(index)[:2], "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass(frozen=True)
class Data:
    classes: Path
    captioned: Path
    names: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    names = folder / "names.txt"
    names.write_text("red\tblood\nblue\tocean\ngreen\tgrass\n")
    return Data(write_classes(folder / "colours"), write_captioned(folder / "scenes"), names)


TEMPLATES = ["a {} thing.", "something {}: that."]


def tasks_on(data: Data) -> list[str | dict[str, Any]]:
    return [
        "retrieval",
        "count",
        {"kind": "zeroshot", "data": str(data.classes), "classnames": str(data.names), "templates": TEMPLATES},
        {"kind": "retrieval", "data": str(data.captioned), "task": "others"},
        {"kind": "probe", "data": str(data.classes), "task": "probed"},
    ]


def config_file(folder: Path, evaluated: dict[str, Any], **sections: Any) -> str:
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump({**TINY, "eval": {"size": 16, **evaluated}, **sections}))
    return str(path)


def values(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures.items()}


def by_hand(directory: Path, data: Data, texts: dict[str, list[str]]) -> float:
    """top1, picture by picture: the class whose mean prompt is nearest."""
    model, preprocess, tokenizer = miniclip.load(directory)
    hits = []
    with torch.no_grad():
        prompts = []
        for name in CLASSES:
            found = model.encode_text(tokenizer(texts[name])).double()
            prompts.append((found / found.norm(dim=1, keepdim=True)).mean(0))
        classifier = torch.stack([p / p.norm() for p in prompts])
        source = open_labelled(data.classes, image_size=32)
        for index in range(len(source)):
            image = model.encode_image(preprocess(source.image(index))[None]).double()
            hits.append(int((classifier @ image[0]).argmax()) == source.label(index))
    return float(np.mean(hits))


def test_tasks_on_other_data(data: Data, tmp_path: Path) -> None:
    """Each kind beside the built-in ones: in the log, in results.json with its data and split, and on a resume."""
    path = config_file(tmp_path, {"tasks": tasks_on(data), "every": 3, "best": "others/image_to_text_mean_rank"})
    directory = tmp_path / "run"
    assert train_main(["--config", path, "--run.dir", str(directory)]) == 0
    logged = [line for line in lines(directory) if "loss" not in line]
    assert [line["step"] for line in logged] == [3, 6]
    wanted = {"retrieval/text_to_image_r10", "count/top1", "colours/top1", "others/image_to_text_mean_rank"}
    wanted |= {"probed/linear", "probed/knn", "probed/linear_balanced_accuracy"}
    assert {f"eval/{name}" for name in wanted} < set(logged[0])
    assert not any("shot" in name for name in logged[0])  # draws of a few pictures take long and say little here

    results = json.loads((directory / "results.json").read_text())
    told = [(e["kind"], e["task"], e["data"]["source"], e["data"]["split"]) for e in results["results"]]
    assert told == [
        ("retrieval", "retrieval", "shapes", "test"),
        ("zeroshot", "count", "shapes: count", "test"),
        ("zeroshot", "colours", str(data.classes), "test"),
        ("retrieval", "others", str(data.captioned), "test"),
        ("probe", "probed", str(data.classes), "test"),
    ]
    assert results["training"]["best"]["figure"] == "others/image_to_text_mean_rank"
    found = result_of(results, "colours")
    names = dict(zip(CLASSES, ("ocean", "grass", "blood"), strict=True))
    assert found["details"]["classes"] == list(names.values())
    assert [entry["template"] for entry in found["details"]["templates"]] == TEMPLATES
    texts = {c: [template.replace("{}", name) for template in TEMPLATES] for c, name in names.items()}
    assert found["figures"]["top1"]["value"] == by_hand(directory, data, texts)
    assert found["figures"]["top1"]["n"] == 15
    assert result_of(results, "others")["details"]["n_images"] == 12
    # validation and test are other pictures, where the data has both
    config = load_config_file(directory / "config.yaml")
    seen = [open_suite(config, role)["others"].data[0] for role in ("validation", "test")]  # type: ignore[arg-type]
    assert [pairs.name(0).split()[0] for pairs in seen] == ["12.png", "24.png"]  # type: ignore[union-attr]
    assert {p.name for p in directory.glob("confusion_*")} == {"confusion_count.png", "confusion_colours.png"}
    before = (directory / "config.yaml").read_text()

    # the file that the run saved starts the same run, and goes on with this one
    assert config.eval.tasks == tasks_on(data)
    arguments = ["--config", str(directory / "config.yaml"), "--run.resume", "true", "--train.max_steps", "8"]
    assert train_main(arguments) == 0
    assert [line["step"] for line in lines(directory) if "loss" in line] == list(range(1, 9))
    again = yaml.safe_load((directory / "config.yaml").read_text())
    assert again["eval"] == yaml.safe_load(before)["eval"]


def test_a_folder_alone_is_a_zero_shot_task(data: Data, tmp_path: Path) -> None:
    """A plain path, and a mapping of the path: the same figures, filed under path and name."""
    tasks = [str(data.classes), {"kind": "zeroshot", "data": str(data.classes)}]
    config = load_config(["--config", config_file(tmp_path, {"tasks": tasks}), "--train.cpu_threads", "1"])
    model = miniclip.create_model(config.model).eval()
    found = evaluate(config, open_suite(config, "test"), model, Preprocess(32))
    plain, mapped = found[str(data.classes)], found["colours"]
    assert scalar_pairs(plain) == scalar_pairs(mapped)
    assert plain.fingerprint == mapped.fingerprint
    assert f"eval/{data.classes}/top1" in scalars(found)


def scalar_pairs(result: Evaluation) -> dict[str, float]:
    """Without the intervals, which are NaN and equal nothing."""
    return {name: figure.value for name, figure in result.figures.items()}


def test_the_probe_leaves_the_test_pictures_alone(data: Data, tmp_path: Path) -> None:
    """During the training it is counted on the pictures that choose; those of the final table are not opened."""
    tasks = [{"kind": "probe", "data": str(data.classes), "task": "probed"}]
    config = load_config(["--config", config_file(tmp_path, {"tasks": tasks}), "--run.seed", "3"])
    during, after = (open_suite(config, role)["probed"].data for role in ("validation", "test"))  # type: ignore[arg-type]
    names = [[part.name(i) for i in range(len(part))] for part in (*during, *after)]
    assert names[0] == names[3] and names[1] == names[2] == names[4]
    assert not set(names[5]) & {*names[0], *names[1]}
    assert set(names[5]) | set(names[4]) | set(names[3]) == {
        str(p.relative_to(data.classes)) for p in data.classes.rglob("*.png")
    }


# ---- refused before the first step


def task(kind: str, where: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [{"kind": kind, "data": str(where), **options}]


def test_refused_before_the_first_step(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with the data of a task is said at once, though most of it is needed at the end alone."""
    empty = write_classes(tmp_path / "empty", each=2)
    (empty / "yellow").mkdir()
    one = tmp_path / "one"
    shutil.copytree(data.classes / "red", one / "red")
    twice = write_classes(tmp_path / "twice", each=2)
    for name in ("dark_red", "dark red"):
        shutil.copytree(twice / "red", twice / name)
    broken = write_classes(tmp_path / "broken", each=3)
    next((broken / "red").iterdir()).write_bytes(b"no picture")
    captioned = write_captioned(tmp_path / "captioned", 12)
    (captioned / "5.png").write_bytes(b"no picture")  # of validation
    (captioned / "9.png").write_bytes(b"no picture")  # of test
    bad_lines = tmp_path / "templates.txt"
    bad_lines.write_text("a {}.\na photo\n")
    cases: list[tuple[list[Any], list[str]]] = [
        ([str(tmp_path / "nowhere")], ["nowhere", "is neither retrieval, nor one of shape", "mapping with kind and"]),
        (task("zeroshot", tmp_path / "nowhere"), ["nowhere"]),
        (task("retrieval", tmp_path / "nowhere"), ["nowhere"]),
        (task("probe", tmp_path / "nowhere"), ["nowhere"]),
        ([str(empty)], ["empty/yellow holds no image"]),
        (task("zeroshot", empty), ["empty/yellow holds no image"]),
        (task("probe", empty), ["empty/yellow holds no image"]),
        ([str(one)], ["one has 1 sub-folder", "one a class"]),
        (task("zeroshot", twice), ["dark red"]),
        ([str(broken)], [".png", "1 of 9 images cannot be used", "data.max_bad_fraction"]),
        (task("zeroshot", broken), ["1 of 9 images cannot be used"]),
        (task("probe", broken), [".png", "images cannot be used"]),
        (task("retrieval", captioned), [".png", "1 of 4 images cannot be used"]),
        (task("probe", write_classes(tmp_path / "few", each=2)), ["has 2 images, and 3 parts need one each"]),
        (task("zeroshot", data.classes, templates="a photo"), ["'a photo'", "lacks {} for the class name"]),
        (task("zeroshot", data.classes, templates=["a {}.", "a photo"]), ["'a photo' lacks {} for the class name"]),
        (task("zeroshot", data.classes, templates=str(bad_lines)), ["templates.txt", "line 2", "lacks {}"]),
        (task("zeroshot", data.classes, templates=[]), ["the list of templates is empty"]),
        (task("zeroshot", data.classes, classnames=str(tmp_path / "no.txt")), ["no.txt"]),
        (task("retrieval", data.captioned, split="trial"), ["trial"]),
        (task("retrieval", data.captioned, caption_column="words"), ["words"]),
        (task("zeroshot", data.classes, template="a {}"), ["unknown key template of a task; did you mean templates?"]),
        (task("zeroshot", data.classes) * 2, ["two tasks are called ['colours']"]),
        (["shapes"], ["eval.tasks: 'shapes' is neither retrieval"]),
    ]
    for number, (tasks, words) in enumerate(cases):
        path = config_file(tmp_path, {"tasks": tasks, "every": 2 * (number % 2)})  # 0: none before the end
        directory = tmp_path / f"run{number}"
        assert train_main(["--config", path, "--run.dir", str(directory)]) == 2, tasks
        message = capsys.readouterr().err.strip()
        assert message.startswith("train.py: error: ") and "\n" not in message, message
        assert all(word in message for word in words), (words, message)
        assert not directory.exists(), tasks


def test_a_few_bad_pictures_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to the allowed share: a class then has fewer pictures, and the run goes on."""
    broken = write_classes(tmp_path / "broken", each=5)
    first = sorted((broken / "red").iterdir())[0]
    first.write_bytes(b"no picture")
    tasks = [str(broken), *task("probe", broken, task="probed")]
    path = config_file(tmp_path, {"tasks": tasks, "every": 3})
    assert train_main(["--config", path, "--run.dir", str(tmp_path / "run"), "--data.max_bad_fraction", "0.4"]) == 0
    assert f"1 evaluation images cannot be read and are left out: red/{first.name}" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result_of(results, str(broken))["figures"]["top1"]["n"] == 14


# ---- several processes


def one_process(directory: Path, kept: Path, role: str) -> tuple[dict[str, float], dict[str, Evaluation]]:
    torch.set_num_threads(1)
    config = load_config_file(directory / "config.yaml")
    model, preprocess, _ = miniclip.load(kept)
    found = evaluate(config, open_suite(config, role), model, preprocess)  # type: ignore[arg-type]
    return scalars(found), found


@pytest.mark.parametrize(("encoder", "processes"), [("vit", 2), ("resnet", 3)])
def test_processes_share_the_evaluation(data: Data, tmp_path: Path, processes: int, encoder: str) -> None:
    """Every figure of the log and of results.json is that of one process with the model that was kept.

    A batch holds the same pictures whatever their number, and each embedding is worked out by one of them. In another
    place in memory it may be rounded otherwise, which probabilities tell in the ninth digit; a single hit more or less
    would be 1e-3 at least. A ResNet needs the main process's running statistics on all of them: each has moved its own,
    on its own part of the batches.
    """
    best = "colours/ece"  # of the probabilities, so that any other embedding gives another figure
    sections: dict[str, Any] = {"eval": {"size": 21, "batch_size": 4, "every": 2, "best": best}}
    sections["eval"]["tasks"] = ["relation", *tasks_on(data)]
    sections["optim"] = {"lr": 1e-2}
    path = config_file(tmp_path, {}, **sections)
    directory = tmp_path / "run"
    options = ["--config", path, "--run.dir", str(directory), "--data.batch_size", "12", "--train.max_steps", "5"]
    if encoder == "resnet":
        options += RESNET[:-2]
    done = together(processes, train_main, options)
    assert [outcome.value for outcome in done] == [0] * processes, done
    assert f"{processes} x cpu" in done[0].output
    assert ["model, results and images are in" in outcome.output for outcome in done].count(True) == 1

    logged = {line.pop("step"): line for line in lines(directory) if "loss" not in line}
    assert list(logged) == [2, 4, 5]
    kept = json.loads((directory / "best" / "best.json").read_text())
    step = min(logged, key=lambda step: logged[step][f"eval/{best}"])
    assert (kept["step"], kept["value"]) == (step, logged[step][f"eval/{best}"])
    expected, _ = one_process(directory, directory / "best", "validation")
    assert logged[step] == pytest.approx(expected, rel=0, abs=1e-6)
    assert len({line[f"eval/{best}"] for line in logged.values()}) == 3

    results = json.loads((directory / "results.json").read_text())
    expected, found = one_process(directory, directory / "model", "test")
    assert {
        f"eval/{entry['task']}/{name}": value
        for entry in results["results"]
        for name, value in values(entry["figures"]).items()
    } == pytest.approx(expected, rel=0, abs=1e-6)
    for entry in results["results"]:
        assert entry["data"]["fingerprint"] == found[entry["task"]].fingerprint


STRICT = ["--data.max_bad_fraction", "0.01"]


@pytest.mark.parametrize("kind", ["retrieval", "zeroshot", "probe"])
def test_processes_agree_on_what_cannot_be_read(tmp_path: Path, kind: str) -> None:
    """Each tries a part of the pictures; one that a single process has met is left out by all, or ends all."""
    if kind == "retrieval":
        folder = write_captioned(tmp_path / "scenes", 24)
        bad = folder / "17.png"  # the second of the test's eight, so the second process's
    else:
        folder = write_classes(tmp_path / "colours", 6)
        bad = sorted((folder / "red").iterdir())[0]
    bad.write_bytes(b"no picture")
    evaluated = {"tasks": task(kind, folder, task="mine"), "every": 3}
    path = config_file(tmp_path, evaluated)
    arguments = ["--config", path, "--run.dir"]
    ended = together(2, train_main, [*arguments, str(tmp_path / "run"), "--data.max_bad_fraction", "0.3"])
    assert [code for code, _, _ in ended] == [0, 0], ended
    said = [output.count("evaluation images cannot be read and are left out") for _, output, _ in ended]
    assert said[0] >= 1 and said[1] == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    figures = result_of(results, "mine")["figures"]
    config = load_config_file(tmp_path / "run" / "config.yaml")
    model, preprocess, _ = miniclip.load(tmp_path / "run")
    alone = evaluate(config, open_suite(config, "test"), model, preprocess)["mine"]
    assert values(figures) == scalar_pairs(alone)
    assert {name: figure["n"] for name, figure in figures.items()} == {n: f.n for n, f in alone.figures.items()}
    if kind == "retrieval":
        assert result_of(results, "mine")["details"]["n_images"] == 7
    elif kind == "zeroshot":
        assert figures["top1"]["n"] == 17

    for code, _, complaints in together(2, train_main, [*arguments, str(tmp_path / "stopped"), *STRICT]):
        assert code == 2, complaints
        assert "images cannot be used" in complaints and bad.name in complaints
    assert not (tmp_path / "stopped").exists()


def test_the_split_of_other_captions(data: Data, tmp_path: Path) -> None:
    """Of a source with train, val, test and third: what the role is usually called, or the split that is named."""
    rows = [json.loads(line) for line in (data.captioned / "metadata.jsonl").read_text().splitlines()]
    folder = shutil.copytree(data.captioned, tmp_path / "captions")
    for k, row in enumerate(rows):
        row["split"] = "third" if k % 6 == 0 else {"validation": "val"}.get(row["split"], row["split"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {name: sum(row["split"] == name for row in rows) for name in ("train", "val", "test", "third")}
    for split, expected in ((None, ("val", "test")), ("train", ("train", "train")), ("third", ("third", "third"))):
        task = {"kind": "retrieval", "data": str(folder), "task": "others"} | ({"split": split} if split else {})
        config = load_config(["--config", config_file(tmp_path, {"tasks": [task]}), "--model.image_size", "32"])
        suites = [open_suite(config, "validation"), open_suite(config, "test")]
        assert [len(suite["others"].data[0]) for suite in suites] == [counts[name] for name in expected]


def test_the_best_by_the_final_pictures_is_noted(data: Data, tmp_path: Path) -> None:
    """A folder without splits is the same pictures during the training and at the end; scenes are others."""
    path = config_file(tmp_path, {"tasks": [str(data.classes) + "/", "shape"], "every": 3})
    for best, noted in ((f"{data.classes}/top1", True), ("shape/top1", False)):
        directory = tmp_path / best.split("/")[-2]
        assert train_main(["--config", path, "--run.dir", str(directory), "--eval.best", best]) == 0
        found = json.loads((directory / "results.json").read_text())["results"]
        assert [any("flatter" in note for note in entry["notes"]) for entry in found] == [noted, False]
