"""Any model by its name on a command line: a run, a model directory, `open_clip:` or `hf:`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from miniclip.config import load_config_file

if TYPE_CHECKING:
    import torch

    from miniclip.models.preprocess import Preprocess
    from miniclip.models.protocols import TextTokenizer, TwoTowers


OPEN_CLIP, TRANSFORMERS = "open_clip:", "hf:"


def load_model(checkpoint: str, device: torch.device) -> tuple[TwoTowers, Preprocess, TextTokenizer]:
    """A run, a model directory, or a model of open_clip or transformers.

    Of a run that went on after its end, the newest checkpoint.
    """
    if checkpoint.startswith(OPEN_CLIP):
        from miniclip.models.external.open_clip import load_open_clip

        return load_open_clip(checkpoint, device)
    if checkpoint.startswith(TRANSFORMERS):
        from miniclip.models.external.transformers_clip import load_transformers

        return load_transformers(checkpoint, device)
    from miniclip.models.saved import WEIGHTS, checkpoint_weights, load, load_unfinished

    finished = _finished(checkpoint)
    newest = max((path.stat().st_mtime for path in checkpoint_weights(Path(checkpoint))), default=0.0)
    if finished is None or (finished / WEIGHTS).stat().st_mtime < newest:
        return load_unfinished(checkpoint, device)
    return load(checkpoint, device)


def _finished(directory: str) -> Path | None:
    """Folder of the finished model in a run or model directory."""
    from miniclip.models.saved import WEIGHTS

    return next((f for f in (Path(directory), Path(directory) / "model") if (f / WEIGHTS).is_file()), None)


def image_size_of(directory: str) -> int:
    """Side of the pictures that the model of a --checkpoint takes, in pixels; no weights are read."""
    if directory.startswith(OPEN_CLIP):
        from miniclip.models.external.open_clip import open_clip_image_size

        return open_clip_image_size(directory)
    if directory.startswith(TRANSFORMERS):
        from miniclip.models.external.transformers_clip import transformers_image_size

        return transformers_image_size(directory)
    from miniclip.models.saved import PREPROCESS, WEIGHTS, checkpoint_weights

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
