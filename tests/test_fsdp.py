"""Sharded parameters: two processes that really hold half of each, against one process that holds them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from support.closeness import by_parameter
from support.fsdp_train import sharded_train
from support.group import together
from support.launching import torchrun
from test_training import TINY

import miniclip
from miniclip.cli.train import run as train
from miniclip.config import ConfigError, ModelConfig, load_config, load_config_file
from miniclip.evaluation.suite import evaluate, open_suite, scalars
from miniclip.inspection.history import read_history
from miniclip.models import create_model
from miniclip.training.accelerator import tune_fsdp


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "loss": {"name": "sigmoid"}}))
    return str(path)


FSDP_TRAIN = Path(__file__).parent / "support" / "fsdp_train.py"
# what `accelerate launch --use_fsdp --fsdp_version 2` sets
LAUNCHER = {"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_SYNC_MODULE_STATES": "true"}


def options_of(config_file: str, directory: Path, options: Sequence[str]) -> list[str]:
    return ["--config", config_file, "--run.dir", str(directory), *options]


def sharded(config_file: str, directory: Path, *options: str) -> None:
    for outcome in together(2, sharded_train, options_of(config_file, directory, options), variables=LAUNCHER):
        assert outcome.value == 0, outcome.complaints


def whole(config_file: str, directory: Path, *options: str) -> None:
    train(load_config(options_of(config_file, directory, options)))


def logged_by(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (first, second))
    # biases that began at 0 a few steps ago are rounded to 2e-6 of themselves
    for name, off in by_parameter(ours, theirs).items():
        assert off <= 4e-6, name


@pytest.mark.slow
def test_sharded_equals_one_process(config_file: str, tmp_path: Path) -> None:
    """Also evaluated and its matrix kept on the way, which takes the whole model out of the shards."""
    options = ("--eval.tasks", "[retrieval]", "--eval.every", "3", "--log.matrix_every", "3")
    whole(config_file, tmp_path / "one", *options)
    result = torchrun(2, FSDP_TRAIN, options_of(config_file, tmp_path / "two", options), LAUNCHER, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 x cpu" in result.stdout
    sharded(config_file, tmp_path / "micro", *options, "--train.micro_batch_size", "2")
    for name in ("two", "micro"):
        assert_same_run(tmp_path / name, tmp_path / "one")


def assert_same_run(sharded: Path, whole: Path) -> None:
    assert_same_weights(sharded, whole)
    figures = ("loss", "grad_norm", "grad_norm_image", "grad_norm_text", "cosine_positive", "rank_text", "logit_scale")
    for name in (*figures, "eval/retrieval/text_to_image_r10"):
        found, expected = ([line[name] for line in logged_by(d) if name in line] for d in (sharded, whole))
        assert expected and found == pytest.approx(expected, rel=1e-5)
    ours, theirs = read_history(sharded), read_history(whole)
    assert ours is not None and theirs is not None and ours.steps == theirs.steps == [0, 3, 6]
    torch.testing.assert_close(ours.cosines.float(), theirs.cosines.float(), rtol=0, atol=2e-3)
    assert miniclip.load(sharded)[0].logit_scale.shape == ()


def test_sharded_run_keeps_the_best(config_file: str, tmp_path: Path) -> None:
    """The kept model is whole, and one process finds the figures with it that two found with their shares."""
    options = ["--eval.tasks", "[retrieval, shape]", "--eval.every", "2", "--eval.best", "shape/ece"]
    two = tmp_path / "two"
    sharded(config_file, two, *options, "--train.max_steps", "5", "--optim.lr", "1e-2")
    logged = {line.pop("step"): line for line in logged_by(two) if "loss" not in line}
    assert list(logged) == [2, 4, 5]
    step = min(logged, key=lambda step: logged[step]["eval/shape/ece"])
    results = json.loads((two / "results.json").read_text())
    found = results["training"]["best"]
    assert (found["figure"], found["step"], found["value"]) == ("shape/ece", step, logged[step]["eval/shape/ece"])
    best, model = (load_file(two / name / "model.safetensors") for name in ("best", "model"))
    assert best.keys() == model.keys() and all(torch.equal(best[name], model[name]) for name in best)
    config = load_config_file(two / "config.yaml")
    loaded, preprocess, _ = miniclip.load(two)
    tested = {f"eval/{e['task']}/{k}": f["value"] for e in results["results"] for k, f in e["figures"].items()}
    # rounding shows in the probabilities alone; a single hit would be 1e-3 at least
    for role, found in (("validation", logged[step]), ("test", tested)):
        expected = scalars(evaluate(config, open_suite(config, role), loaded, preprocess))  # type: ignore[arg-type]
        assert found == pytest.approx(expected, rel=0, abs=1e-6)


def test_sharded_run_resumes(config_file: str, tmp_path: Path) -> None:
    options = ["--eval.tasks", "[]", "--optim.schedule", "constant"]
    sharded(config_file, tmp_path / "broken", *options, "--train.max_steps", "4")
    with pytest.raises(
        ValueError, match="step_00000004 was written with FSDP, and is read with FSDP alone: start it as"
    ):
        whole(config_file, tmp_path / "broken", *options, "--run.resume", "true")
    sharded(config_file, tmp_path / "broken", *options, "--run.resume", "true")
    whole(config_file, tmp_path / "whole", *options)
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


def test_sharded_bf16_equals_one_process(config_file: str, tmp_path: Path) -> None:
    """Accelerate leaves autocast out for FSDP; then the losses would be float32's, a thousandth off."""
    bf16 = ["--eval.tasks", "[]", "--train.precision", "bf16"]
    sharded(config_file, tmp_path / "two", *bf16)
    whole(config_file, tmp_path / "one", *bf16)
    whole(config_file, tmp_path / "fp32", "--eval.tasks", "[]")
    two, one, fp32 = (logged_by(tmp_path / name)[0]["loss"] for name in ("two", "one", "fp32"))
    assert two == pytest.approx(one, rel=1e-6) and abs(two - fp32) > 1e-4


def test_sharded_wants_equal_shares(config_file: str, tmp_path: Path) -> None:
    """Every forward pass gathers parameters from all processes, so all need the same number of micro-batches."""
    options = options_of(config_file, tmp_path / "odd", ("--data.batch_size", "7"))
    for outcome in together(2, sharded_train, options, variables=LAUNCHER):
        assert outcome.value == 2 and "data.batch_size=7 must be a multiple of 2" in outcome.complaints


def test_checkpoints_are_one_readable_file() -> None:
    """Also refused: the first version, whose parameters have no shapes, and fp16."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    settings = {"is_fsdp2": True, "mixed_precision": "bf16", "state": SimpleNamespace(fsdp_plugin=plugin)}
    tune_fsdp(SimpleNamespace(**settings))  # type: ignore[arg-type]
    assert "FULL" in plugin.state_dict_type.name and "Full" in type(plugin.optim_state_dict_config).__name__
    assert plugin.mixed_precision_policy is None
    for name, value, told in (("mixed_precision", "fp16", "fp16 does not go"), ("is_fsdp2", False, "--fsdp_v")):
        with pytest.raises(ConfigError, match=told):
            tune_fsdp(SimpleNamespace(**{**settings, name: value}))  # type: ignore[arg-type]


def test_flat_scalars_change_nothing() -> None:
    config = ModelConfig(preset="tiny-vit", vocab_size=60, logit_bias_init=-3.0, image_layers=1, text_layers=1)
    model = create_model(config)
    image, text = torch.rand(2, 3, 64, 64), torch.tensor([[1, 59], [2, 59]])
    before = model(image, text)
    model.flatten_scalars_()
    after = model(image, text)
    assert model.logit_scale.shape == model.logit_bias.shape == (1,)  # type: ignore[union-attr]
    assert after.scale.shape == after.bias.shape == () and all(map(torch.equal, before, after))
