"""Work that several processes share: each does every count-th part, and all get the whole.

Without a process group there is one process, and everything here hands its input back. What is shared must be called by
every process; the others wait for one that is at work as long as it lives.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
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
    """Call decide on the main process alone; every process returns what it returned, or raises what it raised."""
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


def check_shared(folder: Path, seconds: float) -> None:
    """Raise ValueError that names the hosts whose processes do not see what the main one writes into its folder.

    seconds: that what is written on one host may take to be seen on the others.
    """
    if place()[1] == 1:
        return

    def write() -> str:
        # a name that no host remembers as absent; as a part of a killed start, the next one removes it
        mark = folder / f"{uuid.uuid4().hex}.part"
        mark.mkdir()
        return mark.name

    mark, deadline = folder / from_main(write), time.monotonic() + seconds
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = gathered([] if mark.exists() else [f"rank {place()[0]} ({socket.gethostname()})"])
    if place()[0] == 0:
        mark.rmdir()
    if blind:
        raise ValueError(
            f"run.dir={folder} is another folder for {', '.join(blind)} than for rank 0; name one that all hosts share"
        )


def check_same(values: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first key, and the process, where another has not what the main process has."""
    everyone = gathered([(socket.gethostname(), dict(values))])
    _, ours = everyone[0]
    for rank, (host, theirs) in enumerate(everyone):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"rank {rank} ({host}) has {key}={theirs.get(key)}, and rank 0 has {ours.get(key)}; "
                    "start all of them with the same command, code and data"
                )
