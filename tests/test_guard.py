"""eval.guard: what it counts against the models by themselves, what is said of a fall, what a resume still knows."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.group import together
from test_suite import task, write_captioned, write_colours
from test_training import TINY, lines, run

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import Config, ConfigError, EvalConfig, load_config, load_config_file
from miniclip.evaluation.guard import Guard
from miniclip.evaluation.result import Evaluation, difference, main_figure
from miniclip.evaluation.suite import evaluate, open_tasks
from miniclip.metrics.bootstrap import Figure, Share, Statistic
from miniclip.models.preprocess import Preprocess

FIGURES = {"shape": "top1", "colours": "top1", "others": "mean_r10", "probed": "linear"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled and captioned images, and a model that has learnt those of the training split."""
    folder = tmp_path_factory.mktemp("made")
    write_colours(folder / "colours")
    write_captioned(folder / "scenes", 90)
    values = {**TINY, "data": {"source": str(folder / "scenes"), "batch_size": 30, "augment": "none"}}
    values |= {"optim": {"lr": 1e-2, "warmup_steps": 5}, "eval": {"tasks": []}}
    (folder / "first.yaml").write_text(yaml.safe_dump(values))
    run(str(folder / "first.yaml"), folder / "first", "--train.max_steps", "100")
    return folder


@pytest.fixture
def tuned(made: Path, tmp_path: Path) -> str:
    """A run that begins from it, at a rate that destroys it, with a guard of every kind."""
    shutil.copytree(made / "first" / "model", tmp_path / "start")
    colours, others = made / "colours", {"task": "others", "split": "train"}
    guard = ["shape", *task("zeroshot", colours), *task("retrieval", made / "scenes", **others)]
    guard += task("probe", colours, task="probed")
    values = {**TINY, "model": {"init": str(tmp_path / "start")}, "optim": {"lr": 0.1, "schedule": "constant"}}
    values["eval"] = {"size": 16, "tasks": ["retrieval"], "every": 2, "guard": guard, "guard_margin": 0}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "tuned.yaml")


def counted(config: Config, directory: Path, role: Any) -> dict[str, Evaluation]:
    model, preprocess, tokenizer = miniclip.load(directory)
    suite = open_tasks(config, config.eval.guarded_tasks, role, tokenizer)
    return {name: main_figure(one) for name, one in evaluate(config, suite, model, preprocess).items()}


def guarded(directory: Path) -> dict[int, dict[str, float]]:
    """By step, what the log says of the guard."""
    lacking = (line for line in lines(directory) if "loss" not in line)
    own = {line["step"]: {k: v for k, v in line.items() if "guard" in k} for line in lacking}
    return {step: line for step, line in own.items() if line}


def test_before_and_after_are_those_of_the_models_themselves(
    tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """On validation images along the training, on test images at both ends, with the difference of equal images."""
    directory = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        results = run(tuned, directory, "--eval.best", "retrieval/image_to_text_r10")
    config, shown = load_config_file(directory / "config.yaml"), capsys.readouterr().out
    assert results == json.loads((directory / "results.json").read_text())
    assert list(results["guard"]) == list(FIGURES) and [e["task"] for e in results["results"]] == ["retrieval"]
    first, last = (counted(config, tmp_path / name, "test") for name in ("start", "run"))
    for name, told in results["guard"].items():
        ((figure, value),) = last[name].figures.items()
        assert figure == FIGURES[name] == told["figure"] and told["margin"] == 0
        assert (told["before"], told["after"]) == (first[name][figure], value.value)
        assert told["data"]["fingerprint"] == last[name].fingerprint and told["data"]["split"] in ("test", "train")
        apart = difference(first[name], last[name])[figure]
        assert told["difference"] == apart._asdict() and told["beyond"] == (apart.value < 0)
    assert "eval.guard: what must not be lost" in shown and "lost" in shown and "mean R@10" in shown

    logged = guarded(directory)
    assert list(logged) == [0, 2, 4, 6]
    validation = counted(config, tmp_path / "start", "validation")
    assert logged[0] == {f"eval/guard/{name}/{FIGURES[name]}": one[FIGURES[name]] for name, one in validation.items()}
    assert [line for line in lines(directory) if line["step"] == 0] == [{"step": 0, **logged[0]}]
    keys = {name: f"eval/guard/{name}/{figure}" for name, figure in FIGURES.items()}
    fallen = {name for name, key in keys.items() if min(line[key] for line in logged.values()) < logged[0][key]}
    said = [record.getMessage() for record in caplog.records if "has lost" in record.getMessage()]
    assert "others" in fallen and logged[0]["eval/guard/others/mean_r10"] > 0.5
    assert {name for name in FIGURES if any(f", {name} has lost " in one for one in said)} == fallen


def test_images_that_are_the_same_for_both_are_encoded_once(
    tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[list[str]]()

    def noted(config: Config, suite: Any, *rest: Any, **options: Any) -> Any:
        asked.append(list(suite))
        return evaluate(config, suite, *rest, **options)

    monkeypatch.setattr("miniclip.evaluation.guard.evaluate", noted)
    run(tuned, tmp_path / "run", "--eval.every", "6")
    assert asked == [list(FIGURES), ["shape", "probed"], list(FIGURES)]
    asked.clear()
    run(tuned, tmp_path / "ends", "--eval.every", "0")
    assert asked == [list(FIGURES), [], list(FIGURES)] and not guarded(tmp_path / "ends")


def test_a_resume_knows_what_was_before_the_first_step(tuned: str, tmp_path: Path) -> None:
    """Also without what it began from; a new start counts anew, an overwritten run's file goes with it."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tuned, whole)
    run(tuned, broken, "--train.max_steps", "3")
    kept = (broken / "guard.json").read_bytes()
    shutil.rmtree(tmp_path / "start")
    run(tuned, broken, "--run.resume", "true")
    assert (broken / "guard.json").read_bytes() == kept == (whole / "guard.json").read_bytes()
    first, second = (json.loads((folder / "results.json").read_text())["guard"] for folder in (whole, broken))
    assert first == second and guarded(whole) == guarded(broken)


def test_what_is_lost_of_the_figures_before_is_said(
    tuned: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is damaged, and a task that was not there when the run began: no loss can be told, and no more."""
    directory, options = tmp_path / "run", ["--run.resume", "true", "--train.max_steps"]
    run(tuned, directory, "--eval.guard", "[shape]", "--train.max_steps", "2")
    found = run(tuned, directory, *options, "4")["guard"]
    assert found["shape"]["before"] is not None and {found[name]["before"] for name in ("colours", "others")} == {None}
    assert "colours, others, probed was not counted on these images before the first step" in caplog.text
    (directory / "guard.json").write_text('{"test": 3}')
    caplog.clear()
    found = run(tuned, directory, *options, "6")["guard"]
    assert {one["before"] for one in found.values()} == {None} and "guard.json cannot be used" in caplog.text


def test_a_stop_before_the_first_step_counts_it_again(
    tuned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> Any:
        raise Killed

    directory = tmp_path / "run"
    arguments = ["--config", tuned, "--run.resume", "auto", "--run.dir", str(directory)]
    with monkeypatch.context() as patch:
        patch.setattr("miniclip.evaluation.guard.evaluate", stopped)
        assert train_main(arguments) == 143
    assert "stopped after step 0 of 6; nothing was saved" in capsys.readouterr().err
    assert not (directory / "guard.json").exists()
    # and killed behind it
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("miniclip.training.loop.Loop._step", killed)
        train_main(arguments)
    assert [line["step"] for line in lines(directory)] == [0]
    assert train_main(arguments) == 0
    assert [line["step"] for line in lines(directory)].count(0) == 1
    run(tuned, tmp_path / "whole")
    assert guarded(directory) == guarded(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_count_what_one_does(tuned: str, tmp_path: Path) -> None:
    options = ["--config", tuned, "--eval.batch_size", "4", "--train.max_steps", "2", "--run.dir"]
    assert train_main([*options, str(tmp_path / "one")]) == 0
    ended = together(2, train_main, [*options, str(tmp_path / "two")])
    assert [one.value for one in ended] == [0, 0], ended
    kept = [json.loads((tmp_path / name / "guard.json").read_text()) for name in ("one", "two")]
    assert kept[0] == kept[1]
    found = json.loads((tmp_path / "two" / "results.json").read_text())["guard"]
    assert found.keys() == FIGURES.keys() and all(one["before"] is not None for one in found.values())
    assert ["eval.guard: what must not be lost" in one.output for one in ended].count(True) == 1


def planned(name: str, hits: Sequence[int]) -> dict[str, Evaluation]:
    share = Share.of(np.array(hits))
    figures = {"top1": Figure(share.mean(np.ones(len(hits))), 0, 1, len(hits))}
    return {name: Evaluation("zeroshot", name, figures, {}, (), "seen", Statistic({"top1": share}), (len(hits),))}


def test_a_fall_is_said_once_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of ten images: 8 right before, then 7, which the margin lets pass, 5, 4, 8, 6."""
    options = ["--run.dir", str(tmp_path), "--train.max_steps", "1", "--model.image_size", "32", "--eval.every", "1"]
    config = load_config([*options, "--eval.guard", "[shape]", "--eval.guard_margin", "0.1"])
    guard, rights = Guard(config, miniclip.models.tokenizer.Tokenizer()), iter([8, 8, 7, 5, 4, 8, 6, 4, 6])
    assert "the model begins from random weights" in caplog.text

    def given(config: Config, suite: Any, *rest: Any, **options: Any) -> Any:
        return planned("shape", [k < right for k in range(10)]) if suite and (right := next(rights)) else {}

    monkeypatch.setattr("miniclip.evaluation.guard.evaluate", given)
    model: Any = None
    said = list[int]()
    for step in range(7):
        caplog.clear()
        guard.look(step, model, Preprocess(32), lambda: None)
        said += [step] * len(caplog.records)
        if step == 2:
            assert caplog.messages == [
                "eval.guard: at step 2, shape has lost 30.0 points of top-1 %: 50.0, and 80.0 before the first step"
            ]
    assert said == [2, 5]
    told = guard.end(model, Preprocess(32))["shape"]
    # Agresti and Min's interval of two discordant images in ten, by hand
    centre, half = 10 * -0.2 / 12, 1.959964 * np.sqrt(((2 + 10 * 0 + 1) / 12 - (10 * -0.2 / 12) ** 2) / 12)
    assert told["beyond"] and told["difference"]["value"] == pytest.approx(-0.2)
    assert [told["difference"][k] for k in ("low", "high")] == pytest.approx([centre - half, centre + half])


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ([{"kind": "zeroshot", "data": "x", "template": "a {}"}], "eval.guard: unknown key template of a task"),
        (["shape", "shape"], "eval.guard: two tasks are called ['shape']"),
    ],
)
def test_what_the_configuration_refuses(guard: list[Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        EvalConfig(guard=guard)
    assert str(error.value).startswith(said)


def test_what_the_data_refuse(tuned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first step, by the option's name."""
    for wanted, said in (("nowhere", "'nowhere' is neither retrieval, nor one of"), (str(tmp_path), "")):
        code = train_main(["--config", tuned, "--run.dir", str(tmp_path / "run"), "--eval.guard", f"[{wanted}]"])
        error = capsys.readouterr().err
        assert code == 2 and f"eval.guard: {said}" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
