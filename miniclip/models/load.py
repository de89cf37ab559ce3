"""Models from disk or another library, by their name on a command line: a run, a folder, `open_clip:` or `hf:`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from miniclip.config import Config, ModelConfig, load_config_file
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import MODEL, PREPROCESS, WEIGHTS, assemble, checkpoints, read_json, with_scalars
from miniclip.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from miniclip.models.protocols import TextTokenizer, TwoTowers

_LIBRARIES = {"open_clip:": "open_clip", "hf:": "transformers_clip"}  # beginning of a name -> module of external
Loaded = tuple[DualEncoder, Preprocess, Tokenizer]


def load(directory: str | Path, device: str | torch.device = "cpu") -> Loaded:
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
    return _loaded(directory / WEIGHTS, f"{MODEL} beside it", config, preprocess, device)


def load_unfinished(run_dir: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """What `load` gives, from the newest checkpoint of a run that is still training or was cut off.

    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it cannot be read.
    """
    weights, config = _unfinished(Path(run_dir))
    preprocess = Preprocess(_image_size(config), resize=config.data.resize)
    return _loaded(weights, str(Path(run_dir) / "config.yaml"), config.model, preprocess, device)


def _loaded(
    weights: Path, described: str, config: ModelConfig, preprocess: Preprocess, device: str | torch.device
) -> Loaded:
    try:
        model = assemble(config, with_scalars(load_file(weights)), device)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not hold the model of {described}: {error}") from error
    return model, preprocess, Tokenizer(context_length=model.context_length)


def load_model(checkpoint: str, device: torch.device) -> tuple[TwoTowers, Preprocess, TextTokenizer]:
    """A run, a model directory, or a model of open_clip or transformers.

    Of a run that went on after its end, the newest checkpoint.
    """
    if library := _library(checkpoint):
        loaded: tuple[TwoTowers, Preprocess, TextTokenizer] = library.load(checkpoint, device)
        return loaded
    finished = _finished(checkpoint)
    newest = max((path.stat().st_mtime for path in _checkpoint_weights(Path(checkpoint))), default=0.0)
    if finished is None or (finished / WEIGHTS).stat().st_mtime < newest:
        return load_unfinished(checkpoint, device)
    return load(checkpoint, device)


def image_size_of(checkpoint: str) -> int:
    """Side of the images that the model of load_model takes, in pixels; no weights are read."""
    if library := _library(checkpoint):
        return int(library.image_size(checkpoint))
    folder = _finished(checkpoint)
    if folder is None:
        return _image_size(_unfinished(Path(checkpoint))[1])
    try:
        return int(read_json(folder / PREPROCESS)["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / PREPROCESS} does not say which image_size the model takes: {error}") from error


def _library(checkpoint: str) -> Any:
    names = [name for start, name in _LIBRARIES.items() if checkpoint.startswith(start)]
    return import_module(f"miniclip.models.external.{names[0]}") if names else None


def _unfinished(run_dir: Path) -> tuple[Path, Config]:
    """The newest checkpoint's weights and the run's config."""
    found, file = _checkpoint_weights(run_dir), run_dir / "config.yaml"
    if not found or not file.is_file():
        raise FileNotFoundError(
            f"{run_dir}: no {WEIGHTS} there, nor in its model folder, nor in a checkpoint; name the directory of a "
            "run, or one that miniclip.save_model wrote"
        )
    return found[-1], load_config_file(file)


def _image_size(config: Config) -> int:
    assert config.model.image_size is not None  # a run saves its config resolved
    return config.model.image_size


def _finished(directory: str) -> Path | None:
    """Folder of the finished model in a run or model directory."""
    return next((f for f in (Path(directory), Path(directory) / "model") if (f / WEIGHTS).is_file()), None)


def _checkpoint_weights(run_dir: Path) -> list[Path]:
    """Files of weights in a run's checkpoints, in the order of their steps; FSDP's hold theirs in another form."""
    return [path / WEIGHTS for path in checkpoints(run_dir) if (path / WEIGHTS).is_file()]
