"""Settings that change how fast a step is, and not what it computes."""

from __future__ import annotations

import ctypes
import os

import torch

from miniclip.models import DualEncoder

# mallopt's parameters in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def tune_for_device(model: DualEncoder, device: torch.device, compiled: bool) -> None:
    """Memory format, length groups, allocator and compiler for the device that the model will run on."""
    if model.config.image_encoder == "resnet":
        model.visual.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
        # on a GPU the host would have to wait for the lengths
        model.length_groups = 4
    if compiled:
        model.visual.compile()
        model.transformer.compile(dynamic=True)


def share_cores(threads: int | None, processes: int) -> None:
    """Threads of this process: as many as asked for, or its share of the cores that it may run on.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1, which would leave all cores but one idle. A second thread
    on one core does not help the arithmetic here, so only physical cores count.
    """
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    torch.set_num_threads(threads or max(1, cores // processes))


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, so that the next step's tensors need no fresh pages from the kernel.

    By default glibc hands every big block back when it is freed and asks for it again a moment later; clearing those
    pages takes more time than a small model's arithmetic. The process then stays at its peak size until it ends.
    Returns False, and changes nothing, where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
