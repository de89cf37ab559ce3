"""The model that eval.best keeps: which one it is, what becomes of it at the end, and what a resume makes of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.trouble import flip_bit
from test_training import TINY, lines, result_of, run

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import EvalConfig, ModelConfig, load_config_file
from miniclip.evaluation.encode import fingerprint
from miniclip.evaluation.result import Evaluation, lower_is_better
from miniclip.evaluation.suite import evaluate, open_suite
from miniclip.evaluation.tasks import TASKS
from miniclip.metrics.bootstrap import Figure
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.training.best import Best, Choice

R10 = "retrieval/image_to_text_r10"
NAN = math.nan


def choice(value: float, figure: str = R10, fingerprint: str = "") -> Choice:
    return Choice(value, fingerprint, lower_is_better(figure.rpartition("/")[2]))


def results_with(figure: str, value: float) -> dict[str, Evaluation]:
    """What `evaluate` gives where one figure is all there is; nobody asks for an interval."""
    task, _, name = figure.rpartition("/")
    return {task: Evaluation("retrieval", task, {name: Figure(value, NAN, NAN, 1)}, {}, (), "", lambda weights: {})}


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    values = {**TINY, "optim": {"lr": 1e-2, "schedule": "constant"}}
    values["eval"] = {"size": 16, "every": 2, "best": R10, "tasks": ["retrieval"]}
    path.write_text(yaml.safe_dump(values))
    return str(path)


Weights = dict[str, torch.Tensor]
Planned = Callable[..., tuple[Any, list[Weights]]]


@pytest.fixture
def planned(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """A run up to a step whose evaluations give these figures -> its results, and the weights at each evaluation."""

    def go(values: Sequence[float], steps: int, *options: str, figure: str = R10) -> tuple[Any, list[Weights]]:
        figures, seen = iter(values), list[Weights]()

        def instead(config: Any, suite: Any, model: DualEncoder, preprocess: Any, **options: Any) -> Any:
            if "resamples" in options:
                return evaluate(config, suite, model, preprocess, **options)
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return results_with(figure, next(figures))

        monkeypatch.setattr("miniclip.evaluation.suite.evaluate", instead)
        asked = ["--eval.best", figure, "--train.max_steps", str(steps), *options]
        results = run(config_file, tmp_path / "run", *asked)
        assert next(figures, None) is None
        return results["training"]["best"], seen

    return go


def record(step: int, value: float, figure: str = R10) -> dict[str, Any]:
    return {"figure": figure, "step": step, "value": value, "fingerprint": ""}


def weights(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- what is kept


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return miniclip.create_model(ModelConfig(**TINY["model"]))


KEPT: list[tuple[str, list[float], list[int]]] = [
    (R10, [0.2, 0.6, 0.6, 0.1], [0, 1]),  # of equals the earlier
    (R10, [0.0, 0.0], [0]),  # also the worst figure is one
    (R10, [NAN, 0.2, NAN, 0.1], [1]),
    (R10, [NAN, NAN], []),
    (R10, [math.inf, 0.2], [1]),
    ("retrieval/text_to_image_median_rank", [9.0, 3.0, 3.0, 4.0], [0, 1]),
    ("retrieval/image_to_text_mean_rank", [2.0, NAN, 5.5, 1.5], [0, 3]),
    ("shape/ece", [-math.inf, 0.3], [1]),
    # the name of the task does not turn the figure round
    ("shape/top1", [0.1, 0.3, 0.05], [0, 1]),
    ("/data/flowers/top1", [0.1, 0.3, 0.05], [0, 1]),
    ("retrieval/image_to_text_map", [0.1, 0.3, 0.05], [0, 1]),
]


def test_which_is_kept(model: DualEncoder, tmp_path: Path) -> None:
    for number, (figure, values, kept) in enumerate(KEPT):
        folder = tmp_path / str(number)
        best = Best(folder, figure)
        took = [best.offer(10 * k, choice(v, figure), model, Preprocess(32)) for k, v in enumerate(values)]
        assert [k for k, taken in enumerate(took) if taken] == kept, figure
        if not kept:
            assert best.record() is None and best.load(torch.device("cpu")) is None
            assert not (folder / "best").exists()
            continue
        assert best.record() == record(10 * kept[-1], values[kept[-1]], figure)
        assert {p.name for p in (folder / "best").iterdir()} == {
            "best.json", "checksums.json", "model.json", "model.safetensors", "preprocess.json"
        }  # fmt: skip
        assert [p.name for p in folder.iterdir()] == ["best"]


def test_every_figure_has_a_direction() -> None:
    """Ranks and calibration errors fall as a model gets better, all else rises."""
    falling = {name for task in TASKS.values() for name in task.figures if lower_is_better(name)}
    ranks = {f"{way}_{rank}" for way in ("image_to_text", "text_to_image") for rank in ("median_rank", "mean_rank")}
    assert falling == {"ece"} | ranks


def test_other_figures_images_and_rubbish_are_no_rivals(model: DualEncoder, tmp_path: Path) -> None:
    (tmp_path / "best.part").mkdir()
    (tmp_path / "best.part" / "rubbish").touch()  # cut off while it was written
    best, cpu = Best(tmp_path, R10), torch.device("cpu")
    assert best.record() is None
    assert best.offer(5, choice(0.9), model, Preprocess(32)) and best.load(cpu) is not None
    assert not (tmp_path / "best.part").exists() and not (tmp_path / "best" / "rubbish").exists()
    assert not best.offer(6, choice(0.1), model, Preprocess(32))
    assert best.offer(7, choice(0.1, fingerprint="others"), model, Preprocess(32))
    other = Best(tmp_path, "shape/top1")
    assert other.record() is None and other.load(cpu) is None and Best(tmp_path, None).record() is None
    assert other.offer(8, choice(0.05), model, Preprocess(32))
    assert other.record() == record(8, 0.05, "shape/top1")


def test_a_kill_at_any_place_leaves_a_whole_model(
    model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former one or the new one, whichever of the moves and removals is the last that is done."""

    class Killed(Exception):
        pass

    for (owner, at), survived in itertools.product(((Path, "replace"), (shutil, "rmtree")), range(7)):
        folder, real, left = tmp_path / at / str(survived), getattr(owner, at), iter(range(survived))
        best = Best(folder, R10)
        assert best.offer(1, choice(0.1), model, Preprocess(32))

        def limited(*arguments: Any, real: Any = real, left: Any = left, **keywords: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(owner, at, lambda *a, limited=limited, **k: limited(*a, **k))
            best.offer(2, choice(0.2), model, Preprocess(32))
        Best(folder, R10).restore(2)  # as a resume does
        found = Best(folder, R10).record()
        assert found is not None and found["step"] in (1, 2)
        assert Best(folder, R10).load(torch.device("cpu")) is not None


# ---- in a run


def test_the_best_becomes_the_model(planned: Planned, tmp_path: Path) -> None:
    """Of four evaluations, the last step's among them, the second; the last weights are in the checkpoint alone."""
    directory = tmp_path / "run"
    best, seen = planned([0.2, 0.6, 0.6, 0.1], 7)
    results = json.loads((directory / "results.json").read_text())
    assert [line["step"] for line in lines(directory) if f"eval/{R10}" in line] == [2, 4, 6, 7]
    assert best == record(4, 0.6) == results["training"]["best"]
    assert best == json.loads((directory / "best" / "best.json").read_text())
    assert results["training"]["steps"] == 7
    assert same(weights(directory / "model"), seen[1])
    assert same(weights(directory / "model"), weights(directory / "best"))
    last = weights(directory / "checkpoints" / "step_00000007")
    assert not same(last, seen[1]) and torch.equal(last["visual.proj"], seen[3]["visual.proj"])

    # the final figures are of the model that was kept, on the test split
    model, preprocess, _ = miniclip.load(directory)
    config = load_config_file(directory / "config.yaml")
    expected = evaluate(config, open_suite(config, "test"), model, preprocess)["retrieval"]
    entry = result_of(results, "retrieval")
    figures = {name: figure["value"] for name, figure in entry["figures"].items()}
    assert figures == {name: figure.value for name, figure in expected.figures.items()}
    assert entry["model"]["fingerprint"] == fingerprint(model)
    assert entry["data"]["fingerprint"] == expected.fingerprint


def test_the_lowest_and_none(planned: Planned, tmp_path: Path) -> None:
    """Of ranks the lowest; without a figure the last step is the model."""
    figure = "retrieval/text_to_image_median_rank"
    best, seen = planned([9.0, 3.0, NAN, 4.0], 8, figure=figure)
    assert best == record(4, 3.0, figure) and same(weights(tmp_path / "run" / "model"), seen[1])
    assert [line[f"eval/{figure}"] for line in lines(tmp_path / "run") if "loss" not in line] == [9.0, 3.0, None, 4.0]
    best, seen = planned([NAN, NAN], 4, "--run.overwrite", "true")
    assert best is None and same(weights(tmp_path / "run" / "model"), seen[1])
    assert not (tmp_path / "run" / "best").exists()


def test_a_small_vocabulary_trains_the_same_and_ends_whole(config_file: str, tmp_path: Path) -> None:
    """The same losses and figures, and of the model the same token table, also for the rows no caption uses."""
    found = {}
    for name, small in (("whole", "false"), ("small", "true")):
        options = ["--optim.weight_decay", "0.5", "--optim.lr", "1e-3", "--train.small_vocabulary", small]
        results = run(config_file, tmp_path / name, *options)
        losses = [line["loss"] for line in lines(tmp_path / name) if "loss" in line]
        found[name] = losses, results["training"]["best"], result_of(results, "retrieval")
        assert same(weights(tmp_path / name / "model"), weights(tmp_path / name / "best"))
    (losses, best, ours), (expected, their_best, theirs) = found["small"], found["whole"]
    assert losses == pytest.approx(expected, rel=1e-5) and best == their_best
    assert ours["figures"] == theirs["figures"] and ours["data"] == theirs["data"]
    small, whole = (weights(tmp_path / name / "model")["token_embedding.weight"] for name in ("small", "whole"))
    assert small.shape == whole.shape and len(small) == 49408
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-6)


# ---- refused before the first step


REFUSED: list[tuple[list[str], list[str]]] = [
    (["--eval.best", "retrieval/image_to_text_r7"], ["retrieval counts", "image_to_text_r5", "text_to_image_map"]),
    (["--eval.best", "shape/top1"], ["eval.best=shape/top1: the tasks are retrieval; write TASK/FIGURE"]),
    (["--eval.best", "top1"], ["the tasks are retrieval"]),
    (["--eval.best", ""], ["the tasks are retrieval"]),
    (["--eval.every", "0"], [f"eval.best={R10} is looked at every eval.every steps", "100"]),
    (["--eval.best", "count/top5", "--eval.tasks", "[count]"], ["count has no top5; use count/top1"]),
    (["--eval.best", "relation/ece", "--eval.tasks", "[relation]"], ["relation has no ece; use relation/top1"]),
    (["--eval.best", "shape/linear", "--eval.tasks", "[shape]"], ["shape counts top1, top5, balanced_accuracy"]),
    (["--eval.best", "retrieval/top1", "--eval.tasks", "[]"], ["eval.best=retrieval/top1"]),
]


def test_refused_before_the_first_step(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in REFUSED:
        assert train_main(["--config", config_file, "--run.dir", str(tmp_path / "run"), *options]) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
        assert not (tmp_path / "run").exists()


def test_every_figure_that_may_be_named_is_counted(config_file: str, tmp_path: Path) -> None:
    """The list that eval.best is checked against, against what the evaluation gives."""
    config = load_config_file(config_file)
    config = replace(config, eval=EvalConfig(size=24, tasks=["retrieval", "shape"]))
    model = miniclip.create_model(config.model).eval()
    suite = open_suite(config, "validation")
    found = evaluate(config, suite, model, Preprocess(32))
    assert set(found["retrieval"].figures) == set(TASKS["retrieval"].figures)
    assert set(found["shape"].figures) == set(TASKS["zeroshot"].figures)


# ---- a resume, and another run in the same place


def test_a_resume_keeps_an_earlier_best(planned: Planned, tmp_path: Path) -> None:
    """By the same figure; another one begins anew, and none leaves the last step."""
    model, resume, other = tmp_path / "run" / "model", ("--run.resume", "true"), "retrieval/text_to_image_r10"
    _, first = planned([0.2, 0.6], 4)
    best, _ = planned([0.5, 0.4], 8, *resume)
    assert best == record(4, 0.6) and same(weights(model), first[1])
    best, seen = planned([0.7], 10, *resume)
    assert best == record(10, 0.7) and same(weights(model), seen[0])
    best, seen = planned([0.3, 0.1], 14, *resume, figure=other)
    assert best == record(12, 0.3, other) and same(weights(model), seen[0])
    best, seen = planned([], 15, *resume, figure="null")
    assert best is None and not seen
    assert same(weights(model), weights(tmp_path / "run" / "checkpoints" / "step_00000015"))


def test_a_discarded_future_takes_its_best_with_it(planned: Planned, tmp_path: Path) -> None:
    """Cut off after its best evaluation, a run goes on from a checkpoint before it, and to other weights."""
    directory, every = tmp_path / "run", ("--run.checkpoint_every", "4")
    _, first = planned([0.2, 0.6, 0.1, 0.9], 8, *every)
    shutil.rmtree(directory / "checkpoints" / "step_00000008")
    best, _ = planned([0.3, 0.4], 8, *every, "--run.resume", "true", "--optim.lr", "1e-4")
    assert best == record(4, 0.6) and same(weights(directory / "model"), first[1])
    assert same(weights(directory / "best"), first[1])


def test_the_best_that_checkpoints_keep(planned: Planned, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It takes its space twice for all of them; each copy comes back from another, if damaged; without any the
    choice begins anew, with a line."""
    directory, options = tmp_path / "run", ("--run.keep", "9", "--run.checkpoint_every", "2")
    _, seen = planned([0.2, 0.6, 0.5, 0.1], 8, *options)
    kept = [directory / "checkpoints" / f"step_{step:08d}" / "best" for step in (2, 4, 6, 8)]
    inodes = [(folder / "model.safetensors").stat().st_ino for folder in (*kept, directory / "best")]
    assert inodes[1] == inodes[3] and len(set(inodes)) == 4

    copies = [(directory / "best", "model.safetensors"), (kept[3], "checksums.json"), (directory / "best", "best.json")]
    for folder, name in copies:
        flip_bit(folder / name)
        best, _ = planned([0.3], 10, *options, "--run.resume", "true")
        assert best == record(4, 0.6) and same(weights(directory / "model"), seen[1])
        shutil.rmtree(directory / "checkpoints" / "step_00000010")
    assert "lost" not in caplog.text
    for folder in (directory / "best", kept[2]):
        flip_bit(folder / "model.safetensors")
    best, seen = planned([0.3], 10, *options, "--run.resume", "true")
    assert best == record(10, 0.3) and same(weights(directory / "model"), seen[0])
    assert "the best model so far is lost, and its choice begins anew" in caplog.text


def test_overwriting_deletes_what_was_kept(planned: Planned, tmp_path: Path) -> None:
    """Else the old run's model, with the better figure, would become the new one's."""
    planned([0.9, 0.8], 4)
    for folder in ("evaluation", "report"):
        (tmp_path / "run" / folder / "deeper").mkdir(parents=True)
        (tmp_path / "run" / folder / "deeper" / "results.json").touch()
    (tmp_path / "run" / "confusion_old.png").touch()
    best, seen = planned([0.1, 0.2], 4, "--run.overwrite", "true")
    assert best == record(4, 0.2) and same(weights(tmp_path / "run" / "model"), seen[1])
    for name in ("evaluation", "report", "confusion_old.png"):
        assert not (tmp_path / "run" / name).exists(), name
    planned([], 6, "--run.overwrite", "true", "--eval.every", "0", figure="null")
    assert not (tmp_path / "run" / "best").exists()
