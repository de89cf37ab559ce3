"""The settings of a machine: they must hold, and change no figure."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from miniclip import create_model
from miniclip.training.accelerator import keep_freed_memory, share_cores, tune_for_device

ROOT = Path(__file__).parents[1]


def test_threads_do_not_follow_the_launcher() -> None:
    """The launchers set OMP_NUM_THREADS=1 for their children; all cores are used nevertheless."""
    code = (
        "import torch; from miniclip.training.accelerator import share_cores; "
        "share_cores({}, {}); print(torch.get_num_threads())"
    )

    def threads(asked: int | None, processes: int) -> int:
        command = [sys.executable, "-c", code.format(asked, processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return int(
            subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        )

    import psutil

    cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False))
    assert threads(None, 1) == cores
    assert threads(None, 10_000) == 1
    assert threads(3, 1) == 3


@pytest.mark.parametrize("preset", ["tiny-resnet", "tiny-vit"])
def test_tuning_changes_no_result(preset: str) -> None:
    torch.manual_seed(0)
    plain = create_model(preset, vocab_size=100, text_layers=2, context_length=16)
    tuned = copy.deepcopy(plain)
    tune_for_device(tuned, torch.device("cpu"), compiled=False)
    assert tuned.packs
    image = torch.randn(6, 3, 64, 64)
    text = torch.randint(1, 98, (6, 16))
    text[range(6), [3, 15, 7, 9, 4, 12]] = 99
    for ours, theirs in zip(tuned(image, text)[:2], plain(image, text)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_freed_memory_is_kept() -> None:
    """Where glibc is, blocks that were freed come back without page faults, once the heap has grown to its size."""
    code = (
        "import resource, torch\n"
        "from miniclip.training.accelerator import keep_freed_memory\n"
        "torch.set_num_threads(1)\n"
        "def faults(rounds):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(rounds): torch.ones(64 << 18)\n"
        "    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds\n"
        "plain, kept = faults(10), keep_freed_memory(); faults(20); print(kept, plain, faults(10))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    kept, plain, after = shown.split()
    if kept == "False":
        pytest.skip("another C library than glibc")
    assert float(after) < float(plain) / 4, shown


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
    share_cores(1, 1)
