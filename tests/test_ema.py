"""train.ema: what leaves the training is a running mean of the weights, and the training itself is the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.group import together
from support.trouble import flip_bit
from test_fsdp import assert_same_weights, sharded
from test_training import RESNET, lines, run

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import load_config, load_config_file
from miniclip.evaluation.suite import evaluate, open_suite, scalars
from miniclip.models.lora import merged
from miniclip.models.saved import read_json
from miniclip.models.start import open_start
from miniclip.training.checkpoint import checkpoint_folder

EMA = ["--train.ema", "0.6", "--optim.lr", "1e-2", "--eval.tasks", "[]", "--optim.schedule", "constant"]
STATISTICS = ("running_mean", "running_var")
EACH = ["--run.checkpoint_every", "1", "--run.keep", "9"]
Weights = dict[str, torch.Tensor]


def weights(folder: Path, name: str = "model") -> Weights:
    return load_file(folder / f"{name}.safetensors")


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [[], RESNET], ids=["vit", "resnet"])
def test_what_leaves_is_the_mean(config_file: str, tmp_path: Path, options: list[str]) -> None:
    """By hand from the weights of every step, statistics of BatchNorm among them, which the mean does not change."""
    directory, plain = tmp_path / "run", tmp_path / "plain"
    evaluated = ["--eval.every", "2", "--eval.tasks", "[shape]", "--eval.best", "shape/ece"]
    run(config_file, directory, *EMA, *EACH, *evaluated, *options)
    run(config_file, plain, *EMA, *EACH, *options, "--train.ema", "0")
    config = load_config_file(directory / "config.yaml")
    torch.manual_seed(config.run.seed)
    mean: Weights = {name: value.double() for name, value in open_start(config).make().state_dict().items()}
    suite = open_suite(config, "validation")
    kept, best = weights(directory / "best"), read_json(directory / "best" / "best.json")["step"]
    for step in range(1, 7):
        checkpoint = checkpoint_folder(directory, step)
        now = weights(checkpoint)
        assert same(now, weights(checkpoint_folder(plain, step)))
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in now.items():
            mean[name] = decay * mean[name] + (1 - decay) * value.double() if value.is_floating_point() else value
        model, preprocess, _ = miniclip.load(checkpoint)
        found = model.state_dict()
        for name, value in found.items():
            torch.testing.assert_close(value.double(), mean[name].double(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(found["logit_scale"], now["logit_scale"])
        if step % 2 == 0:
            expected = scalars(evaluate(config, suite, model, preprocess))
            figures = next(line for line in lines(directory) if line["step"] == step and "eval/shape/ece" in line)
            assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
            if step == best:
                assert same(kept, found)
    assert same(weights(directory / "model"), kept)


@pytest.mark.parametrize("options", [[], RESNET], ids=["vit", "resnet"])
def test_resume_equals_an_unbroken_run(config_file: str, tmp_path: Path, options: list[str]) -> None:
    run(config_file, tmp_path / "whole", *EMA, *options)
    run(config_file, tmp_path / "parts", *EMA, *options, "--train.max_steps", "4")
    run(config_file, tmp_path / "parts", *EMA, *options, "--run.resume", "true")
    whole, parts = (tmp_path / name / "checkpoints" / "step_00000006" for name in ("whole", "parts"))
    assert same(weights(whole, "average"), weights(parts, "average")) and same(weights(whole), weights(parts))
    assert same(weights(whole.parents[1] / "model"), weights(parts.parents[1] / "model"))


LOCKED = ["--model.lock_image", "true", *RESNET]
LOW_RANK = ["--model.lora_image", "2", "--model.lora_text", "2"]


@pytest.mark.parametrize("options", [LOCKED, LOW_RANK], ids=["locked", "lora"])
def test_of_what_learns(config_file: str, tmp_path: Path, options: list[str]) -> None:
    """Nothing else is in it: what is locked stays what it was, statistics included; updates are merged on leaving."""
    begun = ["--train.max_steps", "3", *EMA, "--train.ema", "0"]
    run(config_file, tmp_path / "begun", *begun, *(RESNET if options is LOCKED else []))
    more = [*EMA, *options, "--eval.every", "2", "--eval.tasks", "[shape]", "--model.init", str(tmp_path / "begun")]
    run(config_file, tmp_path / "whole", *more)
    run(config_file, tmp_path / "parts", *more, "--train.max_steps", "4")
    run(config_file, tmp_path / "parts", *more, "--run.resume", "true")
    before, whole, parts = (weights(tmp_path / name / "model") for name in ("begun", "whole", "parts"))
    last = checkpoint_folder(tmp_path / "whole", 6)
    mean = weights(last, "average")
    assert same(whole, parts) and same(whole, miniclip.load(last)[0].state_dict()) and before.keys() == whole.keys()
    if options is LOCKED:
        tower = [name for name in before if name.startswith("visual.")]
        assert all(torch.equal(before[name], whole[name]) for name in tower)
        assert any(name.endswith("running_mean") for name in tower)
        assert {name for name in mean if name.startswith("visual.")} == {n for n in tower if n.endswith(STATISTICS)}
    else:
        assert all("lora_" in name or name == "logit_scale" for name in mean)
        assert same(whole, merged(weights(last) | mean))
    model, preprocess, _ = miniclip.load(checkpoint_folder(tmp_path / "parts", 4))
    config = load_config_file(tmp_path / "whole" / "config.yaml")
    expected = scalars(evaluate(config, open_suite(config, "validation"), model, preprocess))
    (found,) = [line for line in lines(tmp_path / "whole") if line["step"] == 4 and "loss" not in line]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_a_small_vocabulary_has_a_whole_mean(config_file: str, tmp_path: Path) -> None:
    """Also of the token rows that no caption uses, which weight decay alone moves, and after a resume."""
    decayed = [*EMA, "--optim.weight_decay", "0.5"]
    run(config_file, tmp_path / "whole", *decayed)
    run(config_file, tmp_path / "small", *decayed, "--train.small_vocabulary", "true", "--train.max_steps", "4")
    run(config_file, tmp_path / "small", *decayed, "--train.small_vocabulary", "true", "--run.resume", "true")
    whole, small = (weights(tmp_path / name / "model")["token_embedding.weight"] for name in ("whole", "small"))
    torch.testing.assert_close(small, whole, rtol=1e-5, atol=1e-7)


def test_begun_and_left_on_the_way(config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume may begin a mean, at the weights that it stands at, or leave it; a damaged one is not gone on from."""
    directory, resume = tmp_path / "run", ["--run.resume", "true"]
    run(config_file, directory, *EMA, "--train.ema", "0", "--train.max_steps", "2")
    before = weights(directory / "model")
    run(config_file, directory, *EMA, *resume, "--train.max_steps", "3")
    at_three, mean = (weights(checkpoint_folder(directory, 3), name) for name in ("model", "average"))
    for name, value in mean.items():
        torch.testing.assert_close(value, before[name].lerp(at_three[name], 1 - 4 / 13))
    assert same(weights(directory / "model"), at_three | mean)
    shutil.copytree(directory, tmp_path / "other")
    run(config_file, tmp_path / "other", *EMA, *resume, "--train.ema", "0", "--train.max_steps", "4")
    last = checkpoint_folder(tmp_path / "other", 4)
    assert not (last / "average.safetensors").exists()
    assert same(weights(tmp_path / "other" / "model"), weights(last))

    flip_bit(file := checkpoint_folder(directory, 3) / "average.safetensors")
    with pytest.raises(ValueError, match=r"average\.safetensors .*name another checkpoint"):
        miniclip.load(file.parent)
    shutil.rmtree(checkpoint_folder(directory, 2), ignore_errors=True)
    arguments = ["--config", config_file, "--run.dir", str(directory), *EMA, *resume]
    assert train_main(arguments) == 2 and str(file) in capsys.readouterr().err


def two(config_file: str, directory: Path, *options: str) -> None:
    arguments = ["--config", config_file, "--run.dir", str(directory), *options]
    for outcome in together(2, train_main, arguments):
        assert outcome.value == 0, outcome.complaints


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [two, sharded], ids=["ddp", "fsdp"])
def test_two_processes_are_one(config_file: str, tmp_path: Path, distributed: Any) -> None:
    """With a resume between; the shards of a mean are whole in what is kept."""
    options = [*EMA, "--optim.lr", "1e-3", "--eval.every", "3", "--eval.tasks", "[retrieval]"]
    run(config_file, tmp_path / "one", *options)
    distributed(config_file, tmp_path / "two", *options, "--train.max_steps", "4")
    distributed(config_file, tmp_path / "two", *options, "--run.resume", "true")
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    last = weights(checkpoint_folder(tmp_path / "one", 6))
    assert not torch.allclose(weights(tmp_path / "two" / "model")["visual.proj"], last["visual.proj"], atol=1e-4)
    found, expected = (
        [line["eval/retrieval/text_to_image_r10"] for line in lines(tmp_path / name) if "loss" not in line]
        for name in ("two", "one")
    )
    assert len(found) == 1 and found == pytest.approx(expected)


def test_refused(config_file: str) -> None:
    with pytest.raises(ValueError, match=r"train\.ema=1\.0 must lie in \[0, 1\)"):
        load_config(["--config", config_file, "--train.ema", "1"])
