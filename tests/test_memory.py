"""Memory that runs out: one line that says what takes less, for that error alone."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import lines

import miniclip.cli.eval
import miniclip.doctor.main
from miniclip.cli.eval import main
from miniclip.cli.train import train_main
from miniclip.config import load_config, smaller_training
from miniclip.training import loop


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


FULL: list[Callable[..., Any]] = [
    lambda *_: torch.empty(10**15),
    lambda *_: np.empty(10**15),
    raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 512 MiB free.\nSee")),
    raising(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB).")),
]


def test_train_says_what_takes_less(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for full in FULL:
        monkeypatch.setattr(loop.Loop, "_step", full)
        options = ["--config", config_file, "--eval.tasks", "[]", "--run.overwrite", "true"]
        assert train_main([*options, "--run.dir", str(tmp_path / "run")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("train.py: error: out of memory (") and told.count("\n") == 1
        advice = "use --train.micro_batch_size 4, --model.activation_checkpointing true, --data.batch_size 4, or "
        assert advice in told and "go on" not in told


def test_a_saved_run_goes_on_with_less(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = loop.Loop._step

    def full(self: Any, number: int, *rest: Any) -> Any:
        return torch.empty(10**15) if number == 4 else step(self, number, *rest)

    options = ["--config", config_file, "--eval.tasks", "[]", "--run.checkpoint_every", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_step", full)
        assert train_main([*options, "--run.dir", str(tmp_path / "my run")]) == 2
    command = shlex.split(capsys.readouterr().err.partition("go on with: ")[2])
    assert command[-2:] == ["--train.micro_batch_size", "4"]
    assert train_main([*command[1:], "--model.activation_checkpointing", "true"]) == 0
    assert [line["step"] for line in lines(tmp_path / "my run")] == [1, 2, 3, 4, 5, 6]


def test_other_errors_are_left_alone(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Loop, "_step", raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train_main(["--config", config_file, "--run.dir", str(tmp_path / "run")])


def test_what_is_left_to_make_smaller(config_file: str) -> None:
    micro, recompute = ["--train.micro_batch_size", "1"], ["--model.activation_checkpointing", "true"]
    batch = "--data.batch_size 4"
    for options, processes, smaller in (
        ([], 3, [" ".join(micro), " ".join(recompute), batch]),
        (micro, 1, [" ".join(recompute), batch]),
        ([*micro, *recompute], 1, [batch]),
    ):
        assert smaller_training(load_config(["--config", config_file, *options]), processes) == smaller


def test_eval_and_doctor(config_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @functools.wraps(miniclip.cli.eval.evaluate)  # whose options are the parameters
    def full(*_: Any, **__: Any) -> None:
        torch.empty(10**15)

    monkeypatch.setattr(miniclip.cli.eval, "evaluate", full)
    assert main(["retrieval", "--checkpoint", "run", "--data", "shapes"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("eval.py: error: out of memory (") and "; use --batch_size 128, or" in told
    monkeypatch.setattr(miniclip.doctor.main, "examine", FULL[0])
    assert miniclip.doctor.main.doctor_main(["--config", config_file]) == 2
    told = capsys.readouterr().err
    assert told.startswith("doctor: error: out of memory (") and "; use --train.micro_batch_size 4, " in told
