"""Models from disk or another library, by their name on a command line: a run, a part of one, `open_clip:` or `hf:`."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from miniclip.common.arguments import at_home
from miniclip.common.checksums import damage
from miniclip.common.printing import near_name
from miniclip.common.runs import CONFIG, did_you_mean_run, run_of
from miniclip.config import ModelConfig, load_config_file
from miniclip.models import DualEncoder, architecture, create_model
from miniclip.models.foreign import TOWERS, load_tower
from miniclip.models.joined import JoinedEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import PRESETS
from miniclip.models.saved import (
    AVERAGE,
    MODEL,
    PREPROCESS,
    WEIGHTS,
    assemble,
    checkpoints,
    read_json,
    step_of,
    with_scalars,
)

_LIBRARIES = {"open_clip:": "open_clip", "hf:": "transformers_clip"}  # beginning of a name -> module of external
_KINDS = ("image", "text")
_FILES = (WEIGHTS, MODEL, PREPROCESS, CONFIG)  # each names the folder that it lies in
_TAKEN = "a run, a checkpoint in it, a folder that miniclip.save_model wrote, open_clip:ARCH:TAG or hf:NAME"


def load(checkpoint: str | Path, device: str | torch.device = "cpu") -> tuple[Any, Preprocess, Any]:
    """A model in evaluation mode, its preprocessing and its tokenizer.

    checkpoint: a run (of one that is still training, was cut off or went on after its end, the newest checkpoint), its
    model, best or checkpoints folder, one checkpoint, a model directory, or a file in one of these: a DualEncoder; of a
    checkpoint with train.ema it has the mean of the weights. A name of another library (`open_clip:ARCH:TAG`,
    `hf:NAME`): an AdaptedModel, which is called alike.
    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it cannot be read.
    """
    name = str(checkpoint)
    if library := _library(name):
        loaded: tuple[Any, Preprocess, Any] = library.load(at_home(name), device)
        return loaded
    weights, run = _find(name)
    if wrong := damage(weights.parent, (WEIGHTS, AVERAGE, MODEL, PREPROCESS).__contains__):
        raise ValueError(f"{wrong}; name another checkpoint of its run")
    config, preprocess, described = _of_run(run) if run else _of_folder(weights.parent)
    try:
        state = load_file(weights)
        if run and (mean := weights.with_name(AVERAGE)).exists():
            state |= load_file(mean)
        model = assemble(_blank(config, run or weights.parent), with_scalars(state), device)
    except (RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ValueError(f"{weights} does not hold the model of {described}: {error}") from error
    return model, preprocess, model.tokenizer


def blank_of(run: Path) -> tuple[Callable[[], DualEncoder], Preprocess, ModelConfig]:
    """What makes a run's model without its weights, its preprocessing, and its model section."""
    config, preprocess, _ = _of_run(run)
    return _blank(config, run), preprocess, load_config_file(run / CONFIG).model


def _blank(config: ModelConfig, folder: Path) -> Callable[[], DualEncoder]:
    """folder: that holds what there is of towers from elsewhere."""
    if not (config.image or config.text):
        return lambda: create_model(config)
    return lambda: JoinedEncoder(config, *(load_tower(k, folder) if getattr(config, k) else None for k in _KINDS))


def image_size_of(checkpoint: str) -> int:
    """Side of the images that the model of load takes, in pixels; no weights are read. Raises what load would."""
    if library := _library(checkpoint):
        return int(library.image_size(at_home(checkpoint)))
    weights, run = _find(checkpoint)
    return (_of_run(run) if run else _of_folder(weights.parent))[1].image_size


def _find(name: str) -> tuple[Path, Path | None]:
    """The weights, and the run that they are a checkpoint of; None where MODEL and PREPROCESS lie beside them.

    Raises FileNotFoundError, with what could be named instead.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.name in _FILES:
        path = path.parent
    if (path / MODEL).is_file():
        return path / WEIGHTS, None
    run, part = run_of(path)
    found = checkpoints(path)
    if run and part[:1] == ("checkpoints",):
        found = [path] if part[1:] else checkpoints(run)
    # FSDP's hold theirs in another form
    whole = [checkpoint / WEIGHTS for checkpoint in found if (checkpoint / WEIGHTS).is_file()]
    finished = path / "model" / WEIGHTS
    if finished.is_file() and not (whole and _went_on(path, whole[-1].parent)):
        return finished, None
    if not whole or not run:
        raise FileNotFoundError(f"{name}: {_lacking(path)}; name {_TAKEN}")
    return whole[-1], run


def _went_on(run: Path, newest: Path) -> bool:
    """Whether a run has a checkpoint of a later step than its results are of; clocks and copies change files' times."""
    try:
        steps = read_json(run / "results.json")["training"]["steps"]
        return step_of(newest) > steps
    except (OSError, ValueError, KeyError, TypeError):
        return False  # its first end was cut off after the model


def _lacking(path: Path) -> str:
    """Why there is no model at a path, and what was meant, if that can be told."""
    name, start = str(path), str(path).partition(":")[0]
    if path.is_file():
        weights = path.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
        return (
            f"weights alone do not say of what; did you mean open_clip:ARCH:{name}?" if weights else "that is no model"
        )
    if path.is_dir():
        for file, form in (("open_clip_config.json", "open_clip:local-dir"), ("config.json", "hf")):
            if (path / file).is_file():
                return f"its {file} is another library's; did you mean {form}:{name}?"
        if (path / WEIGHTS).is_file() or (not run_of(path)[0] and checkpoints(path)):
            return f"no {MODEL} beside its weights, nor the {CONFIG} of a run that they are a checkpoint of"
        did = did_you_mean_run(path)
        return f"no {WEIGHTS} there, nor in its model folder, nor in a checkpoint" + (did and f"; {did}")
    if start in PRESETS:
        did = f"did you mean open_clip:{name}{'' if ':' in name else ':TAG'}?"
    elif ":" in name and (near := near_name(start, (known[:-1] for known in _LIBRARIES))):
        did = f"did you mean {near}:{name.partition(':')[2]}?"
    else:
        did = did_you_mean_run(path)
        if not did and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            did = f"of the Hub it is hf:{name}"
    return "there is no such file or folder" + (did and f"; {did}")


def _of_folder(folder: Path) -> tuple[ModelConfig, Preprocess, str]:
    """What a model directory says of its model, and where it says it."""
    for name in (WEIGHTS, MODEL, PREPROCESS):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} does not exist; a finished model is {WEIGHTS}, {MODEL} and {PREPROCESS} in one "
                f"folder, and a checkpoint lies in the folder checkpoints of its run, beside {CONFIG}"
            )
    return *_described(folder / MODEL, folder / PREPROCESS), f"{MODEL} beside it"


def _described(model: Path, prepared: Path) -> tuple[ModelConfig, Preprocess]:
    values = read_json(model), read_json(prepared)
    try:
        layers = values[0].get("image_layers")
        config = ModelConfig(**{**values[0], "image_layers": tuple(layers) if isinstance(layers, list) else layers})
        preprocess = Preprocess.from_dict(values[1])
    except (TypeError, ValueError) as error:
        damaged = "has keys of another version, or is damaged"
        raise ValueError(f"{model} or {PREPROCESS} beside it {damaged}: {error}") from error
    if preprocess.image_size != config.image_size:
        pixels = f"{PREPROCESS} gives {preprocess.image_size} pixels, {MODEL} {config.image_size}"
        raise ValueError(f"{prepared.parent}: {pixels}")
    return config, preprocess


def _of_run(run: Path) -> tuple[ModelConfig, Preprocess, str]:
    """The same from the config of a run, which is saved resolved; of one that began from something, from files of its
    own."""
    if (run / PREPROCESS).exists():
        return *_described(run / TOWERS / MODEL, run / PREPROCESS), str(run / TOWERS / MODEL)
    config = load_config_file(run / CONFIG)
    model = architecture(config.model)
    assert model.image_size is not None
    return model, Preprocess(model.image_size, resize=config.data.resize or "crop"), str(run / CONFIG)


def _library(name: str) -> Any:
    names = [module for start, module in _LIBRARIES.items() if name.startswith(start)]
    return import_module(f"miniclip.models.external.{names[0]}") if names else None
