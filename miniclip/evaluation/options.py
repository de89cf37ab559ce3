"""What the commands of eval.py share: their checks, the data they open, the device."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from miniclip.config import load_config_file

if TYPE_CHECKING:
    import torch

    from miniclip.data.sources import PairSource
    from miniclip.data.transforms import Preprocess
    from miniclip.evaluation.encode import TextTokenizer, TwoTowers


def pairs_of(arguments: argparse.Namespace, image_size: int, limit: int | None = None) -> PairSource:
    """The captioned pictures that --data and its companions name, the first limit of them."""
    from miniclip.config import DataConfig
    from miniclip.data.sources import open_split
    from miniclip.data.subset import Subset

    columns = arguments.caption_column
    caption_column = columns[0] if columns and len(columns) == 1 else columns
    data = {"source": arguments.data, "name": arguments.name, "revision": arguments.revision, "size": arguments.size}
    data |= {"image_column": arguments.image_column, "caption_column": caption_column}
    data |= {"max_bad_fraction": arguments.max_bad_fraction}
    source = open_split(
        DataConfig(**data), arguments.split, seed=arguments.seed, image_size=image_size, eval_size=arguments.size
    )
    if len(source) == 0:
        raise ValueError(f"{arguments.data}: the split {arguments.split} holds no pictures")
    if limit is not None:
        source = Subset(source, range(min(limit, len(source))))
    return source


OPEN_CLIP, TRANSFORMERS = "open_clip:", "hf:"


def load_model(checkpoint: str, device: torch.device) -> tuple[TwoTowers, Preprocess, TextTokenizer]:
    """A run, a model directory, or a model of open_clip or transformers.

    Of a run that went on after its end, the newest checkpoint.
    """
    if checkpoint.startswith(OPEN_CLIP):
        from miniclip.interop.open_clip import load_open_clip

        return load_open_clip(checkpoint, device)
    if checkpoint.startswith(TRANSFORMERS):
        from miniclip.interop.transformers_clip import load_transformers

        return load_transformers(checkpoint, device)
    from miniclip.checkpoint import WEIGHTS, checkpoint_weights, load, load_unfinished

    finished = _finished(checkpoint)
    newest = max((path.stat().st_mtime for path in checkpoint_weights(Path(checkpoint))), default=0.0)
    if finished is None or (finished / WEIGHTS).stat().st_mtime < newest:
        return load_unfinished(checkpoint, device)
    return load(checkpoint, device)


def _finished(directory: str) -> Path | None:
    """Folder of the finished model in a run or model directory."""
    from miniclip.checkpoint import WEIGHTS

    return next((f for f in (Path(directory), Path(directory) / "model") if (f / WEIGHTS).is_file()), None)


def image_size_of(directory: str) -> int:
    """Side of the pictures that the model of a --checkpoint takes, in pixels; no weights are read."""
    if directory.startswith(OPEN_CLIP):
        from miniclip.interop.open_clip import open_clip_image_size

        return open_clip_image_size(directory)
    if directory.startswith(TRANSFORMERS):
        from miniclip.interop.transformers_clip import transformers_image_size

        return transformers_image_size(directory)
    from miniclip.checkpoint import PREPROCESS, WEIGHTS, checkpoint_weights

    folder = _finished(directory)
    if folder is None and checkpoint_weights(Path(directory)) and (Path(directory) / "config.yaml").is_file():
        size = load_config_file(Path(directory) / "config.yaml").model.image_size
        assert size is not None  # a run saves its config resolved
        return size
    if folder is None:
        raise FileNotFoundError(
            f"{directory}: no {WEIGHTS} there, nor in its model folder, nor a checkpoint; name the "
            "directory of a run, or one that miniclip.save_model wrote"
        )
    try:
        return int(json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))["image_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / PREPROCESS} does not say which image_size the model takes: {error}") from error


@contextmanager
def together(name: str) -> Iterator[torch.device]:
    """The device of this process; those that torchrun or `accelerate launch` started form a group, to share the work.

    name: --device. Raises ValueError if it cannot be used, or is a device by number for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield device_of(name)
        return
    import torch
    from accelerate import PartialState

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {name}: each of several processes has a device of its own; use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda cannot be used here: there is no GPU; use auto or cpu")
    # the others wait while the main process fits, draws and writes
    state = PartialState(cpu=name == "cpu" or not torch.cuda.is_available(), timeout=timedelta(hours=6))
    if not state.is_main_process:
        logging.getLogger("miniclip").setLevel(logging.ERROR)  # notes on the data come once, not once a process
    try:
        yield state.device
    finally:
        state.destroy_process_group()


def device_of(name: str) -> torch.device:
    """What --device names; auto takes a GPU if there is one. Raises ValueError if it cannot be used."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); use auto or cpu") from error
    return device
