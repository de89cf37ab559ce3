"""What a run leaves on disk: the model that can be loaded with nothing else, and the state to go on from.

    model/model.safetensors  model/model.json  model/preprocess.json      the finished model
    checkpoints/step_00000500/                                            weights, optimiser, random states, step

Weights are read as safetensors, optimiser and random states (and with FSDP the weights of a checkpoint) through
Accelerate with `weights_only=True`: nothing that is read here can run code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniclip.arguments import out_of_memory
from miniclip.config import ModelConfig, load_config_file
from miniclip.data.transforms import Preprocess
from miniclip.models import DualEncoder, create_model
from miniclip.processes import place
from miniclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS, MODEL, PREPROCESS = "model.safetensors", "model.json", "preprocess.json"


def save_model(
    directory: str | Path, model: DualEncoder, preprocess: Preprocess, state: dict[str, Tensor] | None = None
) -> Path:
    """Write weights, model config and preprocessing into directory; state takes the place of the model's own weights.

    The weights come last and under their final name only when they are whole, so a directory that has them is complete.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / WEIGHTS).unlink(missing_ok=True)  # another model's weights beside this one's config would mislead
    _write_json(directory / MODEL, asdict(model.config))
    _write_json(directory / PREPROCESS, preprocess.to_dict())
    state = with_scalars(model.state_dict() if state is None else state)
    weights = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    part = directory / (WEIGHTS + ".part")
    save_file(weights, part, metadata={"format": "pt"})
    part.replace(directory / WEIGHTS)
    return directory


def load(directory: str | Path, device: str | torch.device = "cpu") -> tuple[DualEncoder, Preprocess, Tokenizer]:
    """A run directory or its model directory -> the model in evaluation mode, its preprocessing and its tokenizer.

    Raises FileNotFoundError if a file is missing and ValueError if one does not fit, both naming it.
    """
    directory = Path(directory)
    if not (directory / WEIGHTS).exists() and (directory / "model").is_dir():
        directory = directory / "model"
    for name in (WEIGHTS, MODEL, PREPROCESS):
        if not (directory / name).exists():
            raise FileNotFoundError(
                f"{directory / name} does not exist; name a run directory that has finished, or a directory "
                f"with {WEIGHTS}, {MODEL} and {PREPROCESS}"
            )
    try:
        values = _read_json(directory / MODEL)
        layers = values.get("image_layers")
        config = ModelConfig(**{**values, "image_layers": tuple(layers) if isinstance(layers, list) else layers})
        preprocess = Preprocess.from_dict(_read_json(directory / PREPROCESS))
    except TypeError as error:
        raise ValueError(
            f"{directory / MODEL} or {PREPROCESS} beside it has keys of another version: {error}"
        ) from error
    if preprocess.image_size != config.image_size:
        raise ValueError(f"{directory}: {PREPROCESS} gives {preprocess.image_size} pixels, {MODEL} {config.image_size}")
    try:
        model = assemble(config, load_file(directory / WEIGHTS), device)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{directory / WEIGHTS} does not hold the model of {MODEL} beside it: {error}") from error
    return model, preprocess, Tokenizer(context_length=_known(config.context_length))


def load_unfinished(
    run_dir: str | Path, device: str | torch.device = "cpu"
) -> tuple[DualEncoder, Preprocess, Tokenizer]:
    """What `load` gives, from the newest checkpoint of a run that is still training or was cut off.

    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it cannot be read.
    """
    run_dir = Path(run_dir)
    found = checkpoint_weights(run_dir)
    if not found or not (run_dir / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{run_dir} holds neither a model nor a checkpoint with {WEIGHTS}; name the directory of a run, or one "
            "that miniclip.save_model wrote"
        )
    config = load_config_file(run_dir / "config.yaml")
    try:
        model = assemble(config.model, with_scalars(load_file(found[-1])), device)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{found[-1]} does not hold the model of {run_dir / 'config.yaml'}: {error}") from error
    preprocess = Preprocess(_known(config.model.image_size), resize=config.data.resize)
    return model, preprocess, Tokenizer(context_length=model.context_length)


def assemble(config: ModelConfig, state: dict[str, Tensor], device: str | torch.device) -> DualEncoder:
    """The model of a config with these weights, in evaluation mode; no initial weights are drawn.

    Raises RuntimeError if they are another model's.
    """
    with torch.device("meta"):
        model = create_model(config)
    # copies: where safetensors leaves a weight its address may be odd, and a product of it is rounded otherwise
    model.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)
    model.requires_grad_(True)
    return model.to(device).eval()


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
    for _, value in sorted(model.state_dict(keep_vars=True).items()):
        dist.broadcast(value.data, 0)
    return model


def with_scalars(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the 0-dim logit_scale and logit_bias, which flatten_scalars_ gives the shape (1,) for FSDP."""
    return {k: v.reshape(()) if k in ("logit_scale", "logit_bias") else v for k, v in state.items()}


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("the model config lacks image_size or context_length; it was not written by miniclip")
    return value


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
        _write_json(part / "progress.json", progress._replace(feed=dict(progress.feed))._asdict())
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
        for old in _checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, run_dir: Path) -> Progress:
    """Put the newest checkpoint's state into what the accelerator has prepared; without a checkpoint, nothing.

    Raises ValueError that names the checkpoint if it is damaged or another model's.
    """
    found = _checkpoints(run_dir)
    if not found:
        return Progress()
    try:
        accelerator.load_state(str(found[-1]))
        _check_optimizer(accelerator)
        return Progress(**_read_json(found[-1] / "progress.json"))
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


def checkpoint_weights(run_dir: Path) -> list[Path]:
    """Files of weights in a run's checkpoints, in the order of their steps; FSDP's hold theirs in another form."""
    return [path / WEIGHTS for path in _checkpoints(run_dir) if (path / WEIGHTS).is_file()]


def _checkpoints(run_dir: Path) -> list[Path]:
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(p for p in folders if p.is_dir() and re.fullmatch(r"step_\d{8,}", p.name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
