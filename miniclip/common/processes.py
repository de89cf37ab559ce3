"""Work that several processes share: each does every count-th part, and all get the whole.

Without a process group there is one process, and everything here hands its input back. What is shared must be called by
every process; the others wait for one that is at work as long as it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from miniclip.common.peers import meet

T = TypeVar("T")


def place() -> tuple[int, int]:
    """(rank, count) of this process among those that torchrun or `accelerate launch` started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def total(part: Tensor, device: torch.device) -> Tensor:
    """Sum over the processes, in place of part, on the device that part is on; device: where processes meet.

    Parts that are zero wherever another process has written come back bit for bit.
    """
    if place()[1] == 1:
        return part
    meet()
    met = part.to(device)
    dist.all_reduce(met)
    return part.copy_(met)


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other by rank; they travel pickled, among processes of one run."""
    if place()[1] == 1:
        return values
    meet()
    parts: list[Any] = [None] * place()[1]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def from_main(decide: Callable[[], T]) -> T:
    """What decide returns on the main process, which alone calls it, or raises there: the same in every process."""
    told: list[Any] = [None, None]
    if place()[0] == 0:
        try:
            told[0] = decide()
        except Exception as error:
            told[1] = error
    if place()[1] > 1:
        meet()
        dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    value: T = told[0]
    return value
