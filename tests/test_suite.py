"""What a run is evaluated on: tasks on other data, what stops it before it starts, the work of several processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from support.files import write_classes, write_image, write_images, write_jsonl
from support.group import together
from test_training import RESNET, TINY, lines, result_of

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import ConfigError, load_config, load_config_file
from miniclip.data.labelled import open_labelled
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.suite import evaluate, open_suite, scalars
from miniclip.models.preprocess import Preprocess

CLASSES = ("blue", "green", "red")


def write_colours(folder: Path, each: int = 5) -> Path:
    return write_classes(folder, **{name: range(70 * k, 70 * k + each) for k, name in enumerate(CLASSES)})


def write_captioned(folder: Path, size: int = 36) -> Path:
    """Captioned images, a third of them for validation, the last third for the test."""
    rows = []
    for k, name in enumerate(write_images(folder, size)):
        split = ("train", "validation", "test")[3 * k // size]
        rows.append({"file_name": name, "captions": [f"a {k} one", f"thing {k}"], "split": split})
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


class Data(NamedTuple):
    classes: Path
    captioned: Path
    names: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    names = folder / "names.txt"
    names.write_text("red\tblood\nblue\tocean\ngreen\tgrass\n")
    return Data(write_colours(folder / "colours"), write_captioned(folder / "scenes"), names)


def test_a_task_without_the_split_names_the_option_and_what_to_write(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_colours(tmp_path / "colours" / split, 2)
    config = load_config(["--train.max_steps=1", "--model.image_size=32", f"--eval.tasks=[{tmp_path}/colours]"])
    with pytest.raises(ConfigError) as error:
        open_suite(config, "validation")
    said = "colours has no split 'validation'; choose one of test, train; tell a split, e.g. {kind: zeroshot, data: "
    assert str(error.value).startswith("eval.tasks: ") and said in str(error.value)


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


def by_hand(directory: Path, data: Data, texts: list[list[str]]) -> float:
    """top1, image by image: the class whose mean prompt is nearest."""
    model, preprocess, tokenizer = miniclip.load(directory)
    source, unit = open_labelled(data.classes, image_size=32), torch.nn.functional.normalize
    with torch.no_grad():
        prompts = [unit(model.encode_text(tokenizer(own)).double(), dim=1).mean(0) for own in texts]
        images = [model.encode_image(preprocess(source.image(k))[None])[0].double() for k in range(len(source))]
    nearest = [int((unit(torch.stack(prompts), dim=1) @ image).argmax()) for image in images]
    return float(np.mean([k == source.label(row) for row, k in enumerate(nearest)]))


def test_tasks_on_other_data(data: Data, tmp_path: Path) -> None:
    """Each kind beside the built-in ones: in the log, in results.json with its data and split, and on a resume."""
    path = config_file(tmp_path, {"tasks": tasks_on(data), "every": 3, "best": "others/image_to_text_mean_rank"})
    directory = tmp_path / "run"
    assert train_main(["--config", path, "--run.dir", str(directory)]) == 0
    logged = [line for line in lines(directory) if "loss" not in line]
    assert [line["step"] for line in logged] == [3, 6]
    wanted = {"retrieval/text_to_image_r10", "count/top1", "colours/top1", "others/image_to_text_map", "probed/knn"}
    assert {f"eval/{name}" for name in wanted} < set(logged[0])
    assert not any("shot" in name for name in logged[0])  # draws of a few images take long and say little here

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
    found, names = result_of(results, "colours"), ["ocean", "grass", "blood"]
    assert found["details"]["classes"] == names
    assert [entry["template"] for entry in found["details"]["templates"]] == TEMPLATES
    texts = [[template.replace("{}", name) for template in TEMPLATES] for name in names]
    assert found["figures"]["top1"]["value"] == by_hand(directory, data, texts)
    assert found["figures"]["top1"]["n"] == 15
    assert result_of(results, "others")["details"]["n_images"] == 12
    # validation and test are other images, where the data has both
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
    tasks = [str(data.classes), *task("zeroshot", data.classes)]
    config = load_config(["--config", config_file(tmp_path, {"tasks": tasks})])
    found = evaluate(config, open_suite(config, "test"), miniclip.create_model(config.model).eval(), Preprocess(32))
    plain, mapped = found[str(data.classes)], found["colours"]
    assert scalar_pairs(plain) == scalar_pairs(mapped)
    assert plain.fingerprint == mapped.fingerprint
    assert f"eval/{data.classes}/top1" in scalars(found)


def scalar_pairs(result: Evaluation) -> dict[str, float]:
    """Without the intervals, which are NaN and equal nothing."""
    return {name: figure.value for name, figure in result.figures.items()}


def test_the_probe_leaves_the_test_images_alone(data: Data, tmp_path: Path) -> None:
    """During the training it is counted on the images that choose; those of the final table are not opened."""
    config = load_config(["--config", config_file(tmp_path, {"tasks": task("probe", data.classes)}), "--run.seed", "3"])
    during, after = (open_suite(config, role)["colours"].data for role in ("validation", "test"))  # type: ignore[arg-type]
    names = [{part.name(i) for i in range(len(part))} for part in (*during, *after)]
    assert names[0] == names[3] and names[1] == names[2] == names[4]
    assert not names[5] & (names[0] | names[1])
    every = {str(path.relative_to(data.classes)) for path in data.classes.rglob("*.png")}
    assert names[5] | names[4] | names[3] == every


# ---- refused before the first step


def task(kind: str, where: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [{"kind": kind, "data": str(where), **options}]


def test_refused_before_the_first_step(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with the data of a task is said at once, though most of it is needed at the end alone."""
    empty = write_colours(tmp_path / "empty", each=2)
    (empty / "yellow").mkdir()
    one = write_classes(tmp_path / "one", red=range(3))
    twice = write_classes(tmp_path / "twice", blue=[1], **{"dark_red": [2], "dark red": [3]})
    long = "of a very long name that goes on and on and has no end " * 8
    cut, order = (tmp_path / f"{name}.txt" for name in ("cut", "order"))
    cut.write_text(f"red\t{long} rose\nblue\t{long} sky\ngreen\tgrass\n")
    order.write_text("rose\nsky\ngrass\n")
    halves = write_classes(tmp_path / "halves" / "seg_train", red=[1], blue=[2])
    write_image(halves.parent / "seg_test" / "3.png", 3)
    broken = write_colours(tmp_path / "broken", each=3)
    captioned = write_captioned(tmp_path / "captioned", 12)  # 5 is of validation, 9 of test
    for bad in (next((broken / "red").iterdir()), captioned / "5.png", captioned / "9.png"):
        bad.write_bytes(b"no image")
    bad_lines = tmp_path / "templates.txt"
    bad_lines.write_text("a {}.\na photo\n")
    cases: list[tuple[list[Any], list[str]]] = [
        ([str(tmp_path / "nowhere")], ["nowhere", "is neither retrieval, nor one of shape", "mapping with kind and"]),
        *((task(kind, tmp_path / "nowhere"), ["nowhere"]) for kind in ("zeroshot", "retrieval", "probe")),
        *((tasks, ["empty/yellow holds no image"]) for tasks in ([str(empty)], task("probe", empty))),
        ([str(one)], ["one has 1 sub-folder", "one a class"]),
        (task("zeroshot", twice), ["dark red"]),
        (task("zeroshot", data.classes, classnames=str(cut)), ["'blue' and 'red' have prompts of the same tokens"]),
        (task("zeroshot", data.classes, classnames=str(order)), ["none of its names", "blue -> rose, green -> sky"]),
        ([str(halves.parent)], ["no folders of classes in its split 'test'", "seg_test"]),
        ([str(broken)], [".png", "1 of 9 images cannot be used", "data.max_bad_fraction"]),
        (task("probe", broken), [".png", "images cannot be used"]),
        (task("retrieval", captioned), [".png", "1 of 12 images cannot be used (split test)"]),
        (task("probe", write_colours(tmp_path / "few", each=2)), ["has 2 images, and 3 parts need one each"]),
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


# ---- several processes


def alone(directory: Path, kept: Path, role: Any) -> dict[str, Evaluation]:
    """Of one process."""
    torch.set_num_threads(1)
    config = load_config_file(directory / "config.yaml")
    model, preprocess, _ = miniclip.load(kept)
    return evaluate(config, open_suite(config, role), model, preprocess)


@pytest.mark.parametrize(("encoder", "processes"), [("vit", 2), ("resnet", 3)])
def test_processes_share_the_evaluation(data: Data, tmp_path: Path, processes: int, encoder: str) -> None:
    """Every figure of the log and of results.json is that of one process with the model that was kept.

    A batch holds the same images whatever their number, and each embedding is worked out by one of them. In another
    place in memory it may be rounded otherwise, which probabilities tell in the ninth digit; a single hit more or less
    would be 1e-3 at least. A ResNet needs the main process's running statistics on all of them: each has moved its own,
    on its own part of the batches.
    """
    best = "colours/ece"  # of the probabilities, so that any other embedding gives another figure
    evaluated = {"size": 21, "batch_size": 4, "every": 2, "best": best, "tasks": ["relation", *tasks_on(data)]}
    path, directory = config_file(tmp_path, evaluated, optim={"lr": 1e-2}), tmp_path / "run"
    options = ["--config", path, "--run.dir", str(directory), "--data.batch_size", "12", "--train.max_steps", "5"]
    done = together(processes, train_main, options + (RESNET[:-2] if encoder == "resnet" else []))
    assert [outcome.value for outcome in done] == [0] * processes, done
    assert f"{processes} x cpu" in done[0].output
    assert ["model, results and images are in" in outcome.output for outcome in done].count(True) == 1

    logged = {line.pop("step"): line for line in lines(directory) if "loss" not in line}
    assert list(logged) == [2, 4, 5]
    kept = json.loads((directory / "best" / "best.json").read_text())
    step = min(logged, key=lambda step: logged[step][f"eval/{best}"])
    assert (kept["step"], kept["value"]) == (step, logged[step][f"eval/{best}"])
    expected = scalars(alone(directory, directory / "best", "validation"))
    assert logged[step] == pytest.approx(expected, rel=0, abs=1e-6)
    assert len({line[f"eval/{best}"] for line in logged.values()}) == 3

    results = json.loads((directory / "results.json").read_text())["results"]
    found = alone(directory, directory / "model", "test")
    figures = [
        (f"eval/{entry['task']}/{f}", value) for entry in results for f, value in values(entry["figures"]).items()
    ]
    assert dict(figures) == pytest.approx(scalars(found), rel=0, abs=1e-6)
    assert all(entry["data"]["fingerprint"] == found[entry["task"]].fingerprint for entry in results)


@pytest.mark.parametrize("kind", ["retrieval", "zeroshot", "probe"])
def test_processes_agree_on_what_cannot_be_read(tmp_path: Path, kind: str) -> None:
    """Each tries a part of the images; one that a single process has met is left out by all, or ends all."""
    if kind == "retrieval":
        folder = write_captioned(tmp_path / "scenes", 24)
        bad = folder / "17.png"  # the second of the test's eight, so the second process's
    else:
        folder = write_colours(tmp_path / "colours", 6)
        bad = min((folder / "red").iterdir())
    bad.write_bytes(b"no image")
    path, directory = config_file(tmp_path, {"tasks": task(kind, folder, task="mine"), "every": 3}), tmp_path / "run"
    arguments = ["--config", path, "--run.dir"]
    ended = together(2, train_main, [*arguments, str(directory), "--data.max_bad_fraction", "0.3"])
    assert [code for code, _, _ in ended] == [0, 0], ended
    named = [
        complaints.count(f"1 evaluation images cannot be read and are left out: {bad.relative_to(folder)}")
        for _, _, complaints in ended
    ]
    assert named == [1, 0]
    result = result_of(json.loads((directory / "results.json").read_text()), "mine")
    expected = alone(directory, directory, "test")["mine"]
    told = {name: (figure["value"], figure["n"]) for name, figure in result["figures"].items()}
    assert told == {name: (figure.value, figure.n) for name, figure in expected.figures.items()}
    if kind != "probe":
        assert expected.groups == (7 if kind == "retrieval" else 17,)

    stopped = tmp_path / "stopped"
    for code, _, complaints in together(2, train_main, [*arguments, str(stopped), "--data.max_bad_fraction", "0.01"]):
        assert code == 2, complaints
        assert "images cannot be used" in complaints and bad.name in complaints
    assert not stopped.exists()


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


def test_the_best_by_the_final_images_is_noted(data: Data, tmp_path: Path) -> None:
    """A folder without splits is the same images during the training and at the end; scenes are others."""
    path = config_file(tmp_path, {"tasks": [str(data.classes) + "/", "shape"], "every": 3})
    for best, noted in ((f"{data.classes}/top1", True), ("shape/top1", False)):
        directory = tmp_path / best.split("/")[-2]
        assert train_main(["--config", path, "--run.dir", str(directory), "--eval.best", best]) == 0
        found = json.loads((directory / "results.json").read_text())["results"]
        assert [any("flatter" in note for note in entry["notes"]) for entry in found] == [noted, False]
