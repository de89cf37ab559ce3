"""One process, several processes, micro-batches, and both: one gradient and one training, for every loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.global_batch_worker import CASES, CLIP, MICRO, Result, runs, train
from support.launching import ROOT, torchrun
from test_training import TINY
from torch import Tensor

from miniclip.cli.train import train_main

DTYPES = [torch.float32, torch.float64]
# float32 is off by the order of its sums; in float64 no error of the method would pass
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@cache
def plain(name: str, dtype: torch.dtype) -> Result:
    """One process, the whole batch at once: what all others must equal."""
    torch.set_num_threads(1)
    return train(CASES[name], None, dtype)


def parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By name; queries, keys and values apart, for the gradient of a key's bias is mathematically 0."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "in_proj" in name:
            result |= {f"{name} {part}": t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return result


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Norm of the difference over the norm."""
    difference, norm = (
        torch.stack([t.norm() for t in tensors]).norm()
        for tensors in ([a - b for a, b in zip(ours, theirs, strict=True)], theirs)
    )
    return float(difference / norm) if difference else 0.0


def by_part(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Errors of the image tower, the text tower, scale and bias."""
    assert ours.keys() == theirs.keys()
    grouped: dict[str, list[str]] = {}
    for name in ours:
        part = name if name.startswith("logit") else "image" if name.startswith("visual.") else "text"
        grouped.setdefault(part, []).append(name)
    return {part: error([ours[n] for n in names], [theirs[n] for n in names]) for part, names in grouped.items()}


def by_parameter(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Errors of every parameter, but for the keys' biases: their gradient is rounding, of which AdamW makes steps."""
    ours, theirs = parts(ours), parts(theirs)
    return {name: error([ours[name]], [theirs[name]]) for name in ours if not name.endswith("in_proj_bias k")}


def assert_same_training(ours: Result, theirs: Result, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    for what in ("gradient", "weights"):
        a, b = getattr(ours, what), getattr(theirs, what)
        for part, found in by_part(a, b).items():
            assert found <= tolerance, f"{what} of {part}: {found:.1e}"
        # where a parameter has few entries, their rounding does not average out
        for name, found in by_parameter(a, b).items():
            assert found <= 2 * tolerance, f"{what} of {name}: {found:.1e}"
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance)
    # of weights that differ by rounding already
    assert ours.norms == pytest.approx(theirs.norms, rel=10 * tolerance)
    assert min(theirs.norms) > 2 * CLIP, "this case does not clip"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_equal_the_whole_batch(name: str, dtype: torch.dtype) -> None:
    assert_same_training(train(CASES[name], MICRO[1], dtype), plain(name, dtype), dtype)


class Launched:
    """Results of worker processes, started once for each number of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[int, dict[tuple[torch.dtype, int | None, str], Result]] = {}

    def of(self, world: int) -> dict[tuple[torch.dtype, int | None, str], Result]:
        if world not in self.found:
            self.found[world] = self._run(world)
        return self.found[world]

    def _run(self, world: int) -> dict[tuple[torch.dtype, int | None, str], Result]:
        rendezvous, result = self.folder / f"rendezvous{world}", self.folder / f"result{world}"
        worker = str(Path(__file__).with_name("support") / "global_batch_worker.py")
        processes = [
            subprocess.Popen(
                [sys.executable, worker, str(rank), str(world), str(rendezvous), str(result)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]
        try:
            deadline = time.monotonic() + 600
            while any(process.poll() is None for process in processes):
                assert time.monotonic() < deadline, "the processes wait for one another"
                assert not any(process.poll() for process in processes), "a process failed; see its traceback above"
                time.sleep(0.05)
            assert [process.returncode for process in processes] == [0] * world
        finally:
            for process in processes:
                process.kill()
                process.wait()
        loaded = torch.load(result, weights_only=False)
        return {key: Result(*value) for key, value in loaded.items()}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched(tmp_path_factory.mktemp("processes"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("world", "dtype", "micro"),
    [
        pytest.param(world, dtype, micro, id=f"{world}-{'micro' if micro else 'whole'}-{dtype}")
        for world in (2, 3)
        for dtype, micro in runs(world)
    ],
)
def test_processes_equal_one(launched: Launched, world: int, dtype: torch.dtype, micro: int | None, name: str) -> None:
    assert_same_training(launched.of(world)[dtype, micro, name], plain(name, dtype), dtype)


COMMAND_LINE = {
    **TINY,
    "model": {**TINY["model"], "image_size": 16, "patch_size": 8},
    "data": {"source": "shapes", "size": 100, "batch_size": 64},
    "optim": {**TINY["optim"], "grad_clip": 0.1},
    "eval": {"size": 16, "tasks": []},
}


# of the whole batch: the loss, what is looked at beside it, and the parts of the gradient
FIGURES = (
    "loss",
    "r1_image_to_text",
    "cosine_positive",
    "alignment",
    "rank_image",
    "grad_norm_image",
    "grad_norm_text",
)


def trained(folder: Path, processes: int, options: list[str]) -> tuple[dict[str, Tensor], list[float]]:
    """Final weights and some figures of each step of a run that the command line starts, here or in torchrun."""
    arguments = ["--run.dir", str(folder), *options]
    if processes == 1:
        assert train_main(arguments) == 0
    else:
        result = torchrun(processes, ROOT / "train.py", arguments)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"{processes} x cpu" in result.stdout
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    assert min(step["grad_norm"] for step in steps) > 2 * 0.1, "the gradient is not clipped"
    return load_file(folder / "model" / "model.safetensors"), [step[name] for step in steps for name in FIGURES]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "transport"])
def test_command_line(loss: str, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(COMMAND_LINE))
    options = ["--config", str(config), "--loss.name", loss]
    expected, figures = trained(tmp_path / "plain", 1, options)
    for processes, micro in ((1, "16"), (2, "null"), (2, "8"), (3, "null")):
        folder = tmp_path / f"{processes}-{micro}"
        found, logged = trained(folder, processes, [*options, "--train.micro_batch_size", micro])
        assert logged == pytest.approx(figures, rel=5e-6)
        for part, off in by_part(found, expected).items():
            assert off <= 1e-6, f"{folder.name}: {part} {off:.1e}"
        # the biases start at 0, and their norm is that of the few steps that they took
        for name, off in by_parameter(found, expected).items():
            assert off <= 1e-5, f"{folder.name}: {name} {off:.1e}"
