"""The machine: the accelerator, and settings that change how fast a step is, but not what it computes."""

from __future__ import annotations

import ctypes
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from miniclip.config import Config, ConfigError
from miniclip.models import DualEncoder

if TYPE_CHECKING:
    from accelerate import Accelerator

# mallopt's parameters in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def check_possible(config: Config) -> None:
    """Raise ConfigError for what this machine, or the resolved model of config, cannot do."""
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if config.train.patch_dropout and config.model.image_encoder != "vit":
        raise ConfigError(
            f"train.patch_dropout={config.train.patch_dropout} drops patches, which a ResNet does not have; use a ViT, "
            "e.g. model.preset=tiny-vit, or set it to 0"
        )


def build_accelerator(config: Config) -> Accelerator:
    """Accelerate, with nothing of its launcher's environment that would change the run unasked.

    Raises ConfigError for a tracker that is not installed, processes that form no group, and engines other than DDP and
    FSDP.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import DistributedType

    processes = int(os.environ.get("WORLD_SIZE", 1))
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    AcceleratorState._reset_state()  # of an earlier run in this process, which may have had another precision
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.train.precision],
        # without a device, torchrun's processes form a group only if the CPU is asked for
        cpu=processes > 1 and not has_device,
        log_with=config.log.trackers or None,
        project_dir=config.run.dir,
        dynamo_backend="no",  # train.compile decides
        # the others wait while the main process evaluates
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    missing = set(config.log.trackers) - {"all", *(str(tracker.value) for tracker in get_available_trackers())}
    if missing:
        raise ConfigError(f"log.trackers: {sorted(missing)[0]} is not installed; pip install it, or leave it out")
    if accelerator.num_processes != processes:
        raise ConfigError(f"{processes} processes were started, but {accelerator.num_processes} form a group")
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError("gradient accumulation breaks the loss over the batch; use train.micro_batch_size instead")
    engines = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if accelerator.distributed_type not in engines:
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported; run `accelerate config` and choose DDP or FSDP"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        tune_fsdp(accelerator)
    return accelerator


def tune_fsdp(accelerator: Accelerator) -> None:
    """Make FSDP compute what DDP does. Raises ConfigError for its first version, whose parameters lose their shapes."""
    if not accelerator.is_fsdp2:
        raise ConfigError("FSDP needs its version 2; add --fsdp_version 2, or fsdp_version: 2 to Accelerate's config")
    if accelerator.mixed_precision == "fp16":
        raise ConfigError("train.precision=fp16 does not go with FSDP; use bf16")
    plugin = accelerator.state.fsdp_plugin
    # the launcher's default, which fails on parameters that stand outside of sub-modules
    plugin.cpu_ram_efficient_loading = False
    # float32 parameters under autocast, as with DDP: in bf16 the logit scale would move in steps of half a per cent
    plugin.mixed_precision_policy = None
    # one file that `weights_only` can read, and a resume on another number of processes
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # else those of the former type stay
    plugin.set_state_dict_type("FULL_STATE_DICT")


def tune_for_device(model: DualEncoder, device: torch.device, compiled: bool) -> None:
    """Memory format, packed captions, allocator and compiler for the device that the model will run on."""
    if model.config.image_encoder == "resnet":
        model.visual.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
    if compiled:
        model.visual.compile()
    model.packs = True


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
