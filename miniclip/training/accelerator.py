"""The machine: the accelerator, and settings that change how fast a step is, but not what it computes."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from miniclip.common.cores import whole_cores
from miniclip.common.peers import group
from miniclip.common.printing import did_you_mean
from miniclip.config import Config, ConfigError
from miniclip.config.sections import require
from miniclip.models import DualEncoder, tower_of
from miniclip.training.precision import Precision, agreed

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

log = logging.getLogger(__name__)

# mallopt's parameters in glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def check_possible(config: Config) -> None:
    """Raise ConfigError for what this machine, or the resolved model of config, cannot do."""
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a GPU; use auto or fp32 on a CPU")
    if config.model.activation_checkpointing and config.model.image and config.model.text:
        raise ConfigError("model.activation_checkpointing is for this project's own encoders; set it to false")
    if config.train.small_vocabulary and (config.model.text or config.model.text_width is None):
        own = "train.small_vocabulary is for this project's own text encoder, and that of"
        raise ConfigError(f"{own} {config.model.text or config.model.init} is not; set it to false")
    if config.model.image or config.model.image_encoder is None:
        for name in ("patch_dropout", "low_image_size"):
            if getattr(config.train, name):
                own = f"train.{name} is for this project's own image encoders"
                raise ConfigError(f"{own}, and that of {config.model.image or config.model.init} is not; leave it out")
        return
    tower = tower_of(config.model)
    if config.train.patch_dropout and not tower.has_patches:
        raise ConfigError(
            f"train.patch_dropout={config.train.patch_dropout} drops patches, which a ResNet does not have; use a ViT, "
            "e.g. model.preset=tiny-vit, or set it to 0"
        )
    low, full, stride = config.train.low_image_size, config.model.image_size, tower.stride(config.model)
    if low is not None and (low % stride or low >= (full or 0)):
        raise ConfigError(
            f"train.low_image_size={low} must be a multiple of {stride}, by which this image encoder divides the side, "
            f"below model.image_size={full}; or set it to null"
        )


def form_group(config: Config) -> AbstractContextManager[PartialState]:
    """The processes that were started together can tell each other things until the context ends."""
    return group(_cpu_asked_for(), config.train.timeout)


def _cpu_asked_for() -> bool:
    """Without a device, torchrun's processes form a group only if the CPU is asked for."""
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not has_device


def build_accelerator(config: Config) -> tuple[Accelerator, Precision]:
    """Accelerate, with nothing of its launcher's environment that would change the run unasked, and its precision.

    On a CPU it also gives this process its threads, and warns where bf16 is asked for and slow. config: with its model
    resolved. Raises ConfigError for a tracker that is not installed, processes that form no group, and engines other
    than DDP and FSDP.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import DistributedType, LoggerType

    processes = int(os.environ.get("WORLD_SIZE", 1))
    AcceleratorState._reset_state()  # of an earlier run in this process, which may have had another precision
    state = PartialState(cpu=_cpu_asked_for())
    if state.device.type == "cpu":
        share_cores(config.train.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)))
    encoder = config.model.image_encoder or "resnet"  # of a foreign one nothing is known: what convolutions say holds
    precision = agreed(config.train.precision, state.device, encoder)
    if precision.name == "fp16" and config.train.precision == "auto" and os.environ.get("ACCELERATE_USE_FSDP"):
        precision = precision._replace(name="fp32")  # FSDP scales no loss
    if precision.slow and state.is_main_process:
        log.warning("train.precision=bf16 is slow here: %s; use auto or fp32", precision.why)
    known = LoggerType.list()
    for name in config.log.trackers:
        require(name in known, f"log.trackers: {name} is not one of {', '.join(known)}{did_you_mean(name, known)}")
    accelerator = Accelerator(
        mixed_precision="no" if precision.name == "fp32" else precision.name,
        cpu=_cpu_asked_for(),
        log_with=config.log.trackers or None,
        project_dir=config.run.dir,
        dynamo_backend="no",  # train.compile decides
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
    return accelerator, precision


def check_sharding(config: Config, accelerator: Accelerator, shares: Iterable[Sequence[int]] = ()) -> None:
    """Raise ConfigError for what FSDP cannot do. shares: pairs of each process in some steps, where they are known."""
    if accelerator.distributed_type != "FSDP":
        return
    processes = accelerator.num_processes
    if config.optim.name == "muon":
        raise ConfigError("optim.name=muon takes whole matrices, which FSDP divides; use adamw, or DDP")
    if config.train.small_vocabulary:
        raise ConfigError(
            "train.small_vocabulary does not go with FSDP, which shares the token table out already; set it to false"
        )
    if config.data.batch_size % processes:
        raise ConfigError(
            f"FSDP wants equal shares: data.batch_size={config.data.batch_size} must be a multiple of {processes}"
        )
    if any(len(set(sizes)) > 1 for sizes in shares):
        raise ConfigError(
            f"FSDP wants equal shares, and the lanes of this stream are not a multiple of {processes}; "
            "use another number of processes or of shards, DDP, or data.streaming=false"
        )


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
    model.visual.to(memory_format=model.visual.memory_format)
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
    torch.set_num_threads(threads or max(1, whole_cores() // processes))


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
