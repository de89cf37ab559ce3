"""A tiny run that is finished, with all that a run may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from test_training import TINY

from miniclip.cli.train import run
from miniclip.config import load_config

EVERYTHING: dict[str, Any] = {
    **TINY,
    "eval": {"size": 16, "every": 2, "tasks": ["retrieval", "shape"], "best": "retrieval/image_to_text_r10"},
    "log": {**TINY["log"], "matrix_every": 3},
    "run": {"checkpoint_every": 2},
}


def finished_run(root: Path) -> Path:
    """Of six steps; its file of options is root/tiny.yaml."""
    (root / "tiny.yaml").write_text(yaml.safe_dump(EVERYTHING))
    run(load_config(["--config", str(root / "tiny.yaml"), "--run.dir", str(root / "run")]))
    return root / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
