"""The state to go on from: weights, optimiser, random states and step, in RUN/checkpoints/step_00000500/.

Optimiser and random states (and with FSDP the weights) are read through Accelerate with `weights_only=True`: nothing
that is read here can run code.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from miniclip.common.arguments import out_of_memory
from miniclip.common.console import write_json
from miniclip.common.peers import meet
from miniclip.common.processes import place
from miniclip.config import ModelConfig
from miniclip.models import DualEncoder, create_model
from miniclip.models.saved import assemble, checkpoints, read_json, with_scalars
from miniclip.training.step import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator


def whole_model(learner: Learner, wanted: bool) -> DualEncoder | None:
    """The model as it stands; every process calls it. With FSDP it is put together where it is wanted, else None."""
    if learner.accelerator.distributed_type != "FSDP":
        return learner.model
    state = learner.accelerator.get_state_dict(learner.prepared)
    return assemble(learner.config.model, with_scalars(state), learner.accelerator.device) if wanted else None


def handed_out(model: DualEncoder | None, config: ModelConfig, device: torch.device) -> DualEncoder:
    """The main process's model on every process, running statistics included; the others may bring None.

    config: of the model. Every process calls it; where there is one, the model itself comes back.
    """
    if place()[1] == 1:
        assert model is not None
        return model
    if model is None:
        with torch.device("meta"):  # which draws no random numbers
            model = create_model(config)
        model = model.to_empty(device=device).eval()
    meet()
    for _, value in sorted(model.state_dict(keep_vars=True).items()):
        dist.broadcast(value.data, 0)
    return model


class Progress(NamedTuple):
    """How far a run has come. seconds, samples: of all its steps so far, those before a resume included. feed: where a
    stream of data stands, by plain values. clamped: whether the logit scale was, in each step since the last line of
    the log."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    feed: Mapping[str, Any] = MappingProxyType({})
    clamped: Sequence[bool] = ()


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the state after so many steps lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(accelerator: Accelerator, run_dir: Path, progress: Progress, keep: int) -> Path:
    """Write the state after progress.step steps; every process calls it. Older ones than the newest `keep` are removed.

    The directory gets its final name when it is whole: a process killed halfway leaves the last checkpoint untouched.
    """
    final = checkpoint_folder(run_dir, progress.step)
    part = final.with_suffix(".part")
    if accelerator.is_main_process:
        for left_over in final.parent.glob("*.part"):
            shutil.rmtree(left_over)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(part / "progress.json", progress._replace(feed=dict(progress.feed))._asdict())
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
        for old in checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, run_dir: Path) -> Progress:
    """Put the newest checkpoint's state into what the accelerator has prepared; without a checkpoint, nothing.

    Raises ValueError that names the checkpoint if it is damaged or another model's.
    """
    found = checkpoints(run_dir)
    if not found:
        return Progress()
    try:
        accelerator.load_state(str(found[-1]))
        _check_optimizer(accelerator)
        return Progress(**read_json(found[-1] / "progress.json"))
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{found[-1]} cannot be loaded into this model ({str(error).splitlines()[0]}); "
            "keep the run's model config, or delete that directory to go on from the one before"
        ) from error


def _check_optimizer(accelerator: Accelerator) -> None:
    # torch would say so only in the first step, without the cause
    for optimizer in accelerator._optimizers:
        for parameter, state in optimizer.state.items():
            if state["exp_avg"].shape != parameter.shape:
                raise ValueError(
                    f"its optimiser has a parameter of shape {tuple(state['exp_avg'].shape)} where this run has "
                    f"{tuple(parameter.shape)}: train.small_vocabulary or the captions of the data are others"
                )
