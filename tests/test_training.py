"""The loop, from the outside: processes that are really started, killed and resumed, and files that are left behind."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import miniclip
from miniclip.cli.train import run as training_run
from miniclip.cli.train import train_main
from miniclip.config import ConfigError, load_config
from miniclip.losses.losses import LOSSES, Loss
from miniclip.training.loop import Loop, NonFiniteLoss

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "model": {
        "embed_dim": 8,
        "image_encoder": "vit",
        "image_size": 32,
        "patch_size": 16,
        "image_width": 16,
        "image_layers": 1,
        "image_heads": 2,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 1,
    },
    "data": {"source": "shapes", "size": 40, "batch_size": 8},
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "train": {"max_steps": 6, "precision": "fp32", "cpu_threads": 1},
    "eval": {"size": 16},
    "log": {"every": 1, "trackers": [], "progress": False},
}


def run(config_file: str, directory: Path, *options: str) -> dict[str, Any]:
    return training_run(load_config(["--config", config_file, "--run.dir", str(directory), *options]))


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def result_of(results: dict[str, Any], task: str) -> dict[str, Any]:
    """What results.json holds of a task."""
    (found,) = [entry for entry in results["results"] if entry["task"] == task]
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_run_directory(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(config_file, tmp_path / "run", "--log.trackers", "[tensorboard]", "--eval.every", "3")
    directory = tmp_path / "run"
    assert {p.name for p in directory.iterdir()} >= {
        "config.yaml", "metrics.jsonl", "checkpoints", "model", "results.json",
        "examples.html", "confusion_shape.png",
    }  # fmt: skip
    assert list(directory.rglob("events.out.tfevents.*"))
    steps = lines(directory)
    losses = [line["loss"] for line in steps if "loss" in line]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["loss_over_chance"] == pytest.approx(losses[0] / math.log(8))
    assert steps[0]["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert [line["lr"] for line in steps if "lr" in line][:2] == [5e-4, 1e-3]
    # without a choice among them, the final tables stand for the last step's evaluation
    (evaluated,) = [line for line in steps if "loss" not in line]
    assert evaluated["step"] == 3
    assert {"eval/retrieval/text_to_image_r10", "eval/shape/top1", "eval/relation/top1"} < set(evaluated)
    assert results == json.loads((directory / "results.json").read_text())
    assert set(results) == {"command", "time", "versions", "training", "results"}
    assert results["training"]["best"] is None
    tasks = ["retrieval", "shape", "colour", "unseen", "unseen_all", "count", "relation"]
    assert [entry["task"] for entry in results["results"]] == tasks
    assert {entry["model"]["name"] for entry in results["results"]} == {str(directory)}
    found = result_of(results, "retrieval")
    assert found["details"]["n_images"] == 16
    assert found["data"].keys() == {"source", "split", "fingerprint"} and found["data"]["split"] == "test"
    figure = found["figures"]["text_to_image_r10"]
    assert figure["low"] <= figure["value"] <= figure["high"] and figure["n"] == found["details"]["n_texts"]
    shown = capsys.readouterr().out
    assert "zero-shot" in shown and "retrieval" in shown

    model, preprocess, tokenizer = miniclip.load(directory)
    assert (model.config.image_size, preprocess.image_size, tokenizer.context_length) == (32, 32, 77)
    assert not model.training
    moved = shutil.move(directory / "model", tmp_path / "elsewhere")
    again, _, _ = miniclip.load(moved)
    text = miniclip.tokenize(["a red circle"])
    assert torch.equal(model.encode_text(text), again.encode_text(text))


def test_same_seed_same_run_other_seed_other_run(config_file: str, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(config_file, tmp_path / name, "--run.seed", seed, "--eval.tasks", "[]", "--train.max_steps", "2")
    a, b, c = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["visual.proj"], c["visual.proj"])


def test_learns_a_batch_by_heart(config_file: str, tmp_path: Path) -> None:
    """The first thing to try when a loss stays at ln N: a few pairs, many times."""
    options = ["--data.size", "8", "--train.max_steps", "200", "--optim.lr", "5e-3", "--data.augment", "none"]
    run(config_file, tmp_path / "run", *options, "--eval.tasks", "[]")
    assert lines(tmp_path / "run")[-1]["loss"] < 0.1


RESNET = ["--model.image_encoder", "resnet", "--model.image_layers", "[1,1,1,1]", "--model.patch_size", "null"]
RESNET += ["--train.precision", "bf16"]


DROPOUT = ["--train.patch_dropout", "0.5"]


@pytest.mark.parametrize(
    "options", [DROPOUT, [*DROPOUT, "--train.micro_batch_size", "3"], RESNET], ids=["vit fp32", "cached", "resnet bf16"]
)
def test_resume_equals_an_unbroken_run(
    config_file: str, tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second epoch and taken up again: the same weights to the bit, each step once, and
    the same patches left out, on a busy core, whatever else draws between the steps and with the random states lost."""
    once = ["--eval.tasks", "[]", "--optim.schedule", "constant", "--data.size", "24", *options]
    run(config_file, tmp_path / "whole", *once)
    between = Loop._between
    monkeypatch.setattr(Loop, "_between", lambda loop, done: (torch.rand(done), between(loop, done)))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            run(config_file, tmp_path / "parts", *once, "--train.max_steps", "4")
            for states in (tmp_path / "parts" / "checkpoints" / "step_00000004").glob("random_states*"):
                states.unlink()
            run(config_file, tmp_path / "parts", *once, "--run.resume", "true")
        finally:
            busy.kill()
    training = json.loads((tmp_path / "parts" / "results.json").read_text())["training"]
    assert training["train_seconds"] > 0
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]
    ours, theirs = lines(tmp_path / "parts"), lines(tmp_path / "whole")
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


@pytest.mark.slow
def test_killed_and_resumed(config_file: str, tmp_path: Path) -> None:
    """kill -9 between two checkpoints, in the real script: it goes on from the last one as if nothing had been, and
    the finished model is the best of all the evaluations."""
    directory = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), "--config", config_file, "--run.dir", str(directory)]
    command += ["--run.checkpoint_every", "5", "--eval.every", "3", "--eval.best", "shape/ece"]
    command += ["--eval.tasks", "[shape]", "--optim.schedule", "constant", "--train.max_steps", "2000"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (list(directory.glob("checkpoints/step_*[0-9]")) and (directory / "best" / "best.json").exists()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = sorted(p.name for p in directory.glob("checkpoints/step_*[0-9]"))
    assert not (directory / "model").exists()
    (directory / "checkpoints" / "step_00000999.part").mkdir()  # a checkpoint that was cut off while it was written

    steps = int(found[-1].removeprefix("step_")) + 7
    command[-1] = str(steps)
    result = subprocess.run(
        [*command, "--run.resume", "true"], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert f"resuming {directory} at step {steps - 7}" in result.stdout
    assert [line["step"] for line in lines(directory) if "loss" in line] == list(range(1, steps + 1))
    assert not list(directory.glob("checkpoints/*.part"))
    whole = ["--optim.schedule", "constant", "--train.max_steps", str(steps), "--eval.tasks", "[]"]
    run(config_file, tmp_path / "whole", *whole)
    weights = f"checkpoints/step_{steps:08d}/model.safetensors"
    ours, theirs = (load_file(d / weights) for d in (directory, tmp_path / "whole"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)

    figures = {line["step"]: line["eval/shape/ece"] for line in lines(directory) if "eval/shape/ece" in line}
    best = json.loads((directory / "results.json").read_text())["training"]["best"]
    step = min(figures, key=lambda step: (figures[step], step))
    assert max(figures) == steps and (best["step"], best["value"]) == (step, figures[step])
    kept, finished = (load_file(directory / name / "model.safetensors") for name in ("best", "model"))
    assert all(torch.equal(kept[name], finished[name]) for name in kept)


def test_what_is_not_finite_stops_at_that_step(config_file: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A learning rate throws the weights so far that the next step breaks; what had been saved before stays. A finite
    loss can have an infinite gradient, and that step is not taken. Weights that are not finite are not saved."""
    directory, twice = tmp_path / "run", ["--eval.tasks", "[]", "--train.max_steps", "2"]
    run(config_file, directory, *twice)
    resumed = ["--optim.lr", "1e30", "--optim.grad_clip", "0", "--run.resume", "true", "--run.checkpoint_every", "1"]
    with pytest.raises(NonFiniteLoss, match=r"step \d+.*Lower optim\.lr.*--run\.resume true"):
        run(config_file, directory, *resumed)
    for path in (directory / "checkpoints").glob("*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    far = ["--train.max_steps", "1", "--optim.lr", "1e38", "--optim.weight_decay", "1e4"]
    with pytest.raises(NonFiniteLoss, match="the weights are not finite after step 1"):
        run(config_file, tmp_path / "far", *far)
    assert not (tmp_path / "far" / "model").exists()
    monkeypatch.setitem(LOSSES, "softmax", Loss(lambda logits, positives, smoothing: (logits * 0).sqrt().sum(1)))
    with pytest.raises(NonFiniteLoss, match=r"loss 0\.0, gradient norm nan at step 1"):
        run(config_file, tmp_path / "broken")
    assert not (tmp_path / "broken" / "checkpoints").exists()


def test_what_stands_in_the_directory(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another run, a resume of another model, data, loss or seed, and a damaged checkpoint are refused untouched."""
    arguments = ["--config", config_file, "--run.dir", str(tmp_path / "run"), "--eval.tasks", "[]"]
    run(config_file, tmp_path / "run", "--eval.tasks", "[]", "--train.max_steps", "2")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    resume = ["--run.resume", "true"]
    for options, words in (
        ([], "already holds a run"),
        ([*resume, "--data.batch_size", "4"], "has data.batch_size=8, not 4"),
        ([*resume, "--run.seed", "1"], "has run.seed=0, not 1"),
        ([*resume, "--model.text_layers", "2"], "has model.text_layers=1, not 2"),
        ([*resume, "--loss.name", "hinge"], "has loss.name=softmax, not hinge"),
        ([*resume, "--train.max_steps", "1"], "stands at step 2"),
    ):
        assert train_main([*arguments, *options]) == 2
        assert words in capsys.readouterr().err
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    broken = tmp_path / "run" / "checkpoints" / "step_00000002" / "optimizer.bin"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert train_main([*arguments, *resume]) == 2
    assert f"{broken} has 1000 bytes of " in capsys.readouterr().err


def test_resume_takes_the_new_optimiser_options_and_epochs(config_file: str, tmp_path: Path) -> None:
    options = ["--eval.tasks", "[]", "--optim.weight_decay", "0.7", "--optim.betas", "[0.5, 0.6]"]
    run(config_file, tmp_path / "run", "--eval.tasks", "[]", "--train.max_steps", "2")
    length = ["--train.max_steps", "null", "--train.epochs", "1.2"]
    run(config_file, tmp_path / "run", *options, "--run.resume", "true", *length)
    last = lines(tmp_path / "run")[-1]
    assert last["step"] == 6 and last["epoch"] == pytest.approx(1.2)
    state = torch.load(tmp_path / "run/checkpoints/step_00000006/optimizer.bin", weights_only=True)
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.7, 0.0]
    assert {tuple(group["betas"]) for group in state["param_groups"]} == {(0.5, 0.6)}


REFUSED = [
    ("--data.size 5", "has 5 images in split 'train', fewer than data.batch_size=8"),
    ("--data.batch_size 1", "data.batch_size=1"),
    ("--train.precision fp16", "train.precision=fp16 needs a GPU"),
    ("--model.preset ViT-B-23", "ViT-B-32"),
    ("--model.text_heads 3", "text_heads"),
    ("--data.source /no/such/folder", "/no/such/folder"),
    ("--eval.tasks [shapes]", "eval.tasks: 'shapes'"),
    ("--eval.tasks [shap]", "did you mean shape?"),
    ("--log.trackers [tensorbord]", "tensorbord is not one of all, aim, tensorboard"),
]


def test_refused_before_training(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in REFUSED:
        assert train_main(["--config", config_file, "--run.dir", str(tmp_path / "run"), *options.split()]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_overwrite_deletes_runs_alone(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is no run is refused; in one that is, what the run did not write stays."""
    for name in ("miniclip", "model"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "mine.txt").touch()
    assert train_main(["--config", config_file, "--run.dir", str(tmp_path / "work"), "--run.overwrite", "true"]) == 2
    assert "holds other things than a run" in capsys.readouterr().err
    assert len(list((tmp_path / "work").rglob("mine.txt"))) == 2
    options = ["--eval.tasks", "[]", "--train.max_steps", "2", "--log.trackers", "[tensorboard]"]
    run(config_file, tmp_path / "run", *options)
    (tmp_path / "run" / "notes.txt").touch()
    (tmp_path / "run" / "miniclip" / "mine.txt").touch()
    first = set((tmp_path / "run").rglob("events.out.tfevents.*"))
    run(config_file, tmp_path / "run", *options, "--run.overwrite", "true")
    assert (tmp_path / "run" / "notes.txt").exists()
    assert (tmp_path / "run" / "miniclip" / "mine.txt").exists()
    assert not first & set((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


def test_evaluation_folders_are_read_before_training(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from miniclip.data.scenes.source import SceneTask

    task, classes = SceneTask("colour", 16), tmp_path / "classes"
    for index in range(16):
        (folder := classes / task.classes[task.label(index)]).mkdir(parents=True, exist_ok=True)
        task.image(index).save(folder / f"{index}.png")
    (classes / "red" / "0.png").write_bytes(b"no image")

    def start(name: str, *options: str) -> int:
        given = ["--config", config_file, "--eval.tasks", f"[{classes}]", "--run.dir", str(tmp_path / name), *options]
        return train_main(given)

    assert start("stopped") == 2 and "0.png" in capsys.readouterr().err and not (tmp_path / "stopped").exists()
    assert start("run", "--data.max_bad_fraction", "0.2") == 0
    (found,) = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert found["task"] == found["data"]["source"] == str(classes)
    assert found["figures"]["top1"]["n"] == 15
    assert len(list((tmp_path / "run").glob("confusion_*.png"))) == 1
    for name in ("dark_red", "dark red"):
        (classes / name).mkdir()
        task.image(1).save(classes / name / "1.png")
    assert start("same", "--data.max_bad_fraction", "0.2") == 2 and "dark red" in capsys.readouterr().err


def test_trains_on_a_folder_of_images(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real files with a corrupt one among them, skipped and named, down to results.json."""
    from miniclip.data.scenes.source import SceneSource

    folder, rows, scenes = tmp_path / "images", [], SceneSource("train", 30, image_size=40)
    folder.mkdir()
    for index in range(30):
        scenes.image(index).save(folder / f"{index}.png")
        split = "train" if index < 20 else "validation" if index < 25 else "test"
        rows.append({"file_name": f"{index}.png", "captions": scenes.captions(index), "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "3.png").write_bytes(b"no image")
    (folder / "27.png").write_bytes((folder / "27.png").read_bytes()[:100])
    results = run(config_file, tmp_path / "run", "--data.source", str(folder), "--data.max_bad_fraction", "0.2")
    assert "3.png" in " ".join(results["training"]["bad"])
    assert result_of(results, "retrieval")["details"]["n_images"] == 4
    assert lines(tmp_path / "run")[-1]["bad_pictures"] == 1
    arguments = ["--config", config_file, "--data.source", str(folder), "--run.dir", str(tmp_path / "other")]
    for where in (["--data.workers", "1", "--data.cache", "false"], []):
        (folder / "27.png").write_bytes((folder / "26.png").read_bytes())
        assert train_main([*arguments, "--run.overwrite", "true", *where]) == 2
        message = capsys.readouterr().err
        assert message.startswith("train.py: error: ") and "3.png" in message and message.count("\n") == 1


def test_a_trace_of_some_steps(config_file: str, tmp_path: Path) -> None:
    run(config_file, tmp_path / "run", "--train.profile_steps", "1", "--eval.tasks", "[]")
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("ProfilerStep#3") == 1 and "aten::addmm" in names
    with pytest.raises(ConfigError, match="6 are left; set it to at most 3"):
        run(config_file, tmp_path / "short", "--train.profile_steps", "4", "--eval.tasks", "[]")


def test_patches_can_be_dropped_from_a_vit_alone(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--train.patch_dropout", "0.5", "--eval.tasks", "[]"]
    resnet = str(ROOT / "configs" / "shapes.yaml")
    assert train_main(["--config", resnet, "--run.dir", str(tmp_path / "no"), *options]) == 2
    assert "a ResNet does not have" in capsys.readouterr().err
    run(config_file, tmp_path / "some", *options)
    run(config_file, tmp_path / "all", "--eval.tasks", "[]")
    some, whole = ([line["loss"] for line in lines(tmp_path / name)] for name in ("some", "all"))
    assert some != whole
