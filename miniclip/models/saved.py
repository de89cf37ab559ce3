"""What a run leaves on disk: the model that can be loaded with nothing else, and the state to go on from.

    model/model.safetensors  model/model.json  model/preprocess.json      the finished model
    checkpoints/step_00000500/                                            weights, optimiser, random states, step

Weights are read as safetensors, optimiser and random states (and with FSDP the weights of a checkpoint) through
Accelerate with `weights_only=True`: nothing that is read here can run code.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from miniclip.config import ModelConfig, load_config_file
from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    pass

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
    write_json(directory / MODEL, asdict(model.config))
    write_json(directory / PREPROCESS, preprocess.to_dict())
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
        values = read_json(directory / MODEL)
        layers = values.get("image_layers")
        config = ModelConfig(**{**values, "image_layers": tuple(layers) if isinstance(layers, list) else layers})
        preprocess = Preprocess.from_dict(read_json(directory / PREPROCESS))
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


def with_scalars(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the 0-dim logit_scale and logit_bias, which flatten_scalars_ gives the shape (1,) for FSDP."""
    return {k: v.reshape(()) if k in ("logit_scale", "logit_bias") else v for k, v in state.items()}


def _known(value: int | None) -> int:
    if value is None:
        raise ValueError("the model config lacks image_size or context_length; it was not written by miniclip")
    return value


def checkpoint_weights(run_dir: Path) -> list[Path]:
    """Files of weights in a run's checkpoints, in the order of their steps; FSDP's hold theirs in another form."""
    return [path / WEIGHTS for path in checkpoints(run_dir) if (path / WEIGHTS).is_file()]


def checkpoints(run_dir: Path) -> list[Path]:
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(p for p in folders if p.is_dir() and re.fullmatch(r"step_\d{8,}", p.name))


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return values


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
