"""train.py with FSDP on the CPU: started by torchrun, for Accelerate itself offers it for GPUs alone."""

from __future__ import annotations

import os
import sys

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from miniclip.cli.train import train_main
from miniclip.config import Config
from miniclip.training import accelerator as machine
from miniclip.training import run
from miniclip.training.precision import Precision

build_accelerator = machine.build_accelerator


def sharded(config: Config) -> tuple[Accelerator, Precision]:
    accelerator, precision = build_accelerator(config)
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    machine.tune_fsdp(accelerator)
    return accelerator, precision


def sharded_train(arguments: list[str] | None = None) -> int:
    run.build_accelerator = sharded
    return train_main(arguments)


if __name__ == "__main__":
    code = sharded_train()
    # Without Python's own end: torch's caches for sharded tensors keep the destroyed process group, so that gloo's
    # threads live on, and one that lets go of a tensor while Python ends aborts the process (pytorch/pytorch#190489).
    # A group on a GPU has no such threads, and DDP lets go of its group.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
