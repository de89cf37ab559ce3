"""--device: what the commands of eval.py run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from miniclip.config import TrainConfig

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

    from miniclip.common.peers import group

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {name}: each of several processes has a device of its own; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda cannot be used here: there is no GPU; use auto or cpu")
    with group(name == "cpu" or not torch.cuda.is_available(), TrainConfig.timeout) as state:
        yield state.device


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
