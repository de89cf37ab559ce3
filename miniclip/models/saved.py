"""What a run leaves on disk: the model that can be loaded with nothing else, and the state to go on from.

    model/model.safetensors  model/model.json  model/preprocess.json      the finished model
    checkpoints/step_00000500/                                            weights, optimiser, random states, step

Weights are safetensors, which run no code when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from miniclip.common.console import write_json
from miniclip.common.durable import make_folder, sync, whole_file
from miniclip.models import DualEncoder
from miniclip.models.foreign import TOWERS, save_towers
from miniclip.models.lora import merged
from miniclip.models.preprocess import Preprocess

WEIGHTS, MODEL, PREPROCESS = "model.safetensors", "model.json", "preprocess.json"
AVERAGE = "average.safetensors"  # of a checkpoint: the running mean of what learns, with train.ema


def save_model(
    directory: str | Path, model: DualEncoder, preprocess: Preprocess, state: dict[str, Tensor] | None = None
) -> Path:
    """Write weights, model config and preprocessing into directory; state takes the place of the model's own weights.

    The weights get their name last, so a directory that has them is complete; a model that lay there stays until then.
    Raises DiskFull.
    """
    directory = Path(directory)
    make_folder(directory)
    state = with_scalars(model.state_dict() if state is None else state)
    with whole_file(directory / WEIGHTS) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, part, metadata={"format": "pt"})
        sync(part)  # so that three names change at once: these words beside another model's weights would mislead
        write_json(directory / MODEL, asdict(model.config))
        write_json(directory / PREPROCESS, preprocess.to_dict())
        save_towers(directory, {"image": model.image_tower, "text": model.text_tower})
    return directory


def save_start(run_dir: Path, model: DualEncoder, preprocess: Preprocess) -> None:
    """Write into a run what its checkpoints do not say of a model that began from something. Raises DiskFull."""
    make_folder(run_dir / TOWERS)
    write_json(run_dir / TOWERS / MODEL, asdict(model.config))
    write_json(run_dir / PREPROCESS, preprocess.to_dict())
    save_towers(run_dir, {"image": model.image_tower, "text": model.text_tower})


def assemble(blank: Callable[[], DualEncoder], state: dict[str, Tensor], device: str | torch.device) -> DualEncoder:
    """The model that blank makes with these weights, in evaluation mode; no initial weights are drawn.

    Raises RuntimeError if they are another model's.
    """
    with torch.device("meta"):
        model = blank()
    # copies: where safetensors leaves a weight its address may be odd, and a product of it is rounded otherwise
    model.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)
    model.requires_grad_(True)
    return model.to(device).eval()


def with_scalars(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a training as the model has them that leaves it: low-rank updates merged, and logit_scale and
    logit_bias 0-dim, which flatten_scalars_ gives the shape (1,) for FSDP."""
    return {k: v.reshape(()) if k in ("logit_scale", "logit_bias") else v for k, v in merged(state).items()}


def checkpoints(run_dir: Path) -> list[Path]:
    """Those of a run, in the order of their steps."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(p for p in folders if p.is_dir() and re.fullmatch(r"step_\d{8,}", p.name))


def step_of(path: Path) -> int:
    """Of a checkpoint, or of another file that is called step_00000500."""
    return int(path.stem.removeprefix("step_"))


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError that names a file which holds no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8 among them
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return values
