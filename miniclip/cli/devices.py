"""--device: what the commands of eval.py run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def together(name: str) -> Iterator[torch.device]:
    """The device of this process; those that torchrun or `accelerate launch` started form a group, to share the work.

    name: --device. Raises ValueError if it cannot be used.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device_of(name)
        return
    import torch
    from accelerate import PartialState

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {name}: each of several processes has a device of its own; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda cannot be used here: there is no GPU; use auto or cpu")
    # the others wait while the main process fits, draws and writes
    state = PartialState(cpu=name == "cpu" or not torch.cuda.is_available(), timeout=timedelta(hours=6))
    try:
        yield state.device
    finally:
        state.destroy_process_group()


def device_of(name: str) -> torch.device:
    """What --device names; auto takes a GPU if there is one. Raises ValueError if it cannot be used."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); use auto or cpu") from error
    return device
