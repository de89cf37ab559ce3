"""The settings of a machine: they must hold, and change no figure."""

from __future__ import annotations

import copy
import os
import resource

import psutil
import pytest
import torch
from support.group import together

from miniclip import create_model
from miniclip.training.accelerator import keep_freed_memory, share_cores, tune_for_device


def threads() -> list[int]:
    found = []
    for asked, processes in ((None, 1), (None, 10_000), (3, 1)):
        share_cores(asked, processes)
        found.append(torch.get_num_threads())
    return found


def test_threads_do_not_follow_the_launcher() -> None:
    """The launchers set OMP_NUM_THREADS=1 for their children, as conftest.py does; all cores are used nevertheless."""
    cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False))
    assert together(1, threads)[0].value == [cores, 1, 3]


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


def faults() -> tuple[bool, float, float]:
    """Whether freed memory is kept, and the page faults of ten rounds of taking 64 MiB, before and after."""

    def counted(rounds: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            torch.ones(64 << 18)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    plain, kept, _ = counted(10), keep_freed_memory(), counted(20)
    return kept, plain, counted(10)


def test_freed_memory_is_kept() -> None:
    """Where glibc is, blocks that were freed come back without page faults, once the heap has grown to its size."""
    kept, plain, after = together(1, faults)[0].value
    if not kept:
        pytest.skip("another C library than glibc")
    assert after < plain / 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
    share_cores(1, 1)
