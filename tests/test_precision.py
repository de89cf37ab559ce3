"""What a machine computes in: the decision from faked trials, what a run remembers of it, and what the user is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_training import TINY, run

from miniclip.config import load_config_file
from miniclip.training import precision
from miniclip.training.precision import Precision, agreed, choose, for_encoding, speed_of_bf16

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    told = {**TINY, "train": {**TINY["train"], "precision": "auto"}, "eval": {"tasks": []}}
    path.write_text(yaml.safe_dump({**told, "optim": {**TINY["optim"], "warmup_steps": 0}}))
    return str(path)


def faked(monkeypatch: pytest.MonkeyPatch, *, speed: float = 1.0, cuda: bool = False, mps: bool = False) -> None:
    def cuda_has(including_emulation: bool = True) -> bool:
        return cuda or including_emulation  # torch says yes to what it only emulates, unless asked so

    monkeypatch.setattr(precision, "speed_of_bf16", lambda encoder: speed)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", cuda_has)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: mps and (major, minor) == (14, 0))


def test_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for speed, name, ratio in (
        (0.02, "fp32", "takes 50 times as long"),
        (0.9, "fp32", "takes 1.1 times as long"),
        (1.19, "fp32", "is 1.2 times as fast"),
        (1.2, "bf16", "is 1.2 times as fast"),
        (3.4, "bf16", "is 3.4 times as fast"),
    ):
        faked(monkeypatch, speed=speed)
        why = f"bf16 {ratio} on this processor"
        assert choose("auto", CPU, "resnet") == agreed("auto", CPU) == Precision(name, why)  # type: ignore[arg-type]
        assert choose("bf16", CPU, "resnet") == Precision("bf16", why, slow=speed < 1)
        assert choose("fp32", CPU, "vit") == Precision("fp32", "as asked for")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bf16 is never chosen unasked; on CUDA fp16 stands in for it, elsewhere fp32."""
    faked(monkeypatch, cuda=True, mps=True)
    assert choose("auto", CUDA) == Precision("bf16", "bf16 is native on this CUDA device")
    assert choose("auto", MPS) == Precision("bf16", "bf16 is native on this MPS device")
    faked(monkeypatch)
    assert choose("auto", CUDA) == Precision("fp16", "bf16 is emulated on this CUDA device")
    assert choose("auto", MPS) == Precision("fp32", "bf16 is emulated on this MPS device")
    assert choose("bf16", CUDA) == Precision("bf16", "bf16 is emulated on this CUDA device", slow=True)
    assert choose("fp16", CUDA).name == "fp16"
    assert [for_encoding(name) for name in ("bf16", "fp16", "fp32")] == ["bf16", "fp32", "fp32"]


def test_the_trial_compares_the_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts passes in bf16 three times, and on one that counts them a hundred times."""
    for times in (3.0, 100.0):
        seen = [(0, 0.0)]  # rows, seconds

        def linear(x: torch.Tensor, *rest: Any, times: float = times, seen: Any = seen) -> torch.Tensor:
            seen.append((len(x), times if torch.is_autocast_enabled("cpu") else 1.0))
            return x * 1.0

        def clock(seen: Any = seen) -> float:
            return sum(seconds for _, seconds in seen)

        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "linear", linear)
            patched.setattr("time.thread_time", clock)
            assert speed_of_bf16.__wrapped__("vit") == pytest.approx(1 / times)
        # so slow a format is not given the large trial
        assert max(seen)[0] == (2048 if times == 3 else 32)


def test_the_trial_leaves_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    assert 0 < speed_of_bf16.__wrapped__("resnet") < 100
    assert torch.get_num_threads() == threads


def test_a_resume_keeps_it(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    faked(monkeypatch, speed=0.02)
    run(config_file, directory, "--train.max_steps", "2")
    assert "\nfp32: bf16 takes 50 times as long on this processor\n" in capsys.readouterr().out
    assert load_config_file(directory / "config.yaml").train.precision == "fp32"

    # another machine, on which bf16 would be chosen
    faked(monkeypatch, speed=3.0)
    resume = ["--run.resume", "true"]
    run(config_file, directory, "--train.max_steps", "3", *resume)
    assert "\nfp32: as the run began\n" in capsys.readouterr().out
    assert load_config_file(directory / "config.yaml").train.precision == "fp32"
    run(config_file, directory, "--train.max_steps", "4", "--train.precision", "bf16", *resume)
    assert "\nbf16: the run began in fp32\n" in capsys.readouterr().out
    # and from now on that
    faked(monkeypatch, speed=0.02)
    run(config_file, directory, "--train.max_steps", "5", *resume)
    assert "\nbf16: as the run began\n" in capsys.readouterr().out


def test_slow_bf16_is_warned_of_once(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faked(monkeypatch, speed=0.02)
    run(config_file, tmp_path / "asked", "--train.precision", "bf16", "--train.max_steps", "1")
    (warned,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned.getMessage() == (
        "train.precision=bf16 is slow here: bf16 takes 50 times as long on this processor; use auto or fp32"
    )
    caplog.clear()
    run(config_file, tmp_path / "auto", "--train.max_steps", "1")
    faked(monkeypatch, speed=3.0)
    run(config_file, tmp_path / "fast", "--train.precision", "bf16", "--train.max_steps", "1")
    assert not caplog.records


def test_a_run_computes_in_it(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss is that of the format that was chosen, and not the other's."""
    found = {}
    for name, speed, options in (
        ("fp32", 0.1, ["--train.precision", "fp32"]),
        ("bf16", 0.1, ["--train.precision", "bf16"]),
        ("chosen", 3.0, []),
    ):
        faked(monkeypatch, speed=speed)
        run(config_file, tmp_path / name, "--train.max_steps", "1", *options)
        found[name] = (tmp_path / name / "metrics.jsonl").read_text().split('"logit_scale"')[0]
    assert found["chosen"] == found["bf16"] != found["fp32"]
