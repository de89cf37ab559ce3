"""A tiny run that is finished, with all that a run may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from miniclip.cli.train import run
from miniclip.config import load_config

TINY: dict[str, Any] = {
    "model": {"image_encoder": "vit", "embed_dim": 8, "image_size": 32, "patch_size": 16, "image_width": 16}
    | {"image_layers": 1, "image_heads": 2, "text_width": 16, "text_heads": 2, "text_layers": 1},
    "data": {"source": "shapes", "size": 40, "batch_size": 8},
    "train": {"max_steps": 6, "precision": "fp32", "cpu_threads": 1},
    "eval": {"size": 16, "every": 2, "tasks": ["retrieval", "shape"], "best": "retrieval/image_to_text_r10"},
    "log": {"every": 1, "trackers": [], "progress": False, "matrix_every": 3},
    "run": {"checkpoint_every": 2},
}


def finished_run(root: Path) -> Path:
    """Of six steps; its file of options is root/tiny.yaml."""
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run(load_config(["--config", str(root / "tiny.yaml"), "--run.dir", str(root / "run")]))
    return root / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
