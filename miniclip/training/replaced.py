"""The run that another is to take the place of: moved aside, and deleted when the new one has a checkpoint.

It lies in RUN/replaced; its checkpoints, where RUN/checkpoints is a link to another place, in a folder replaced there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from miniclip.common.durable import make_folder, remove, sync
from miniclip.config import load_config_file
from miniclip.models.saved import WEIGHTS, checkpoints

REPLACED, _MOVING = "replaced", ".replaced"  # the second while it is filled
_FOLDERS = ("checkpoints", "model", "best", "best.old", "matrix", "towers", "inspection", "evaluation", "report")
_OF_EVALUATION = ("guard.json", "examples.*", "queries.png", "confusion_*.png")
_FILES = ("config.yaml", "data.parquet", "preprocess.json", "metrics.jsonl", "results.json", "trace.json")


def written(run_dir: Path) -> list[Path]:
    """What the run in a directory has left there: the rest is its owner's."""
    config = run_dir / "config.yaml"
    project = load_config_file(config).log.project if config.exists() else "miniclip"
    names = (*_FOLDERS, *_FILES, *_OF_EVALUATION, f"{project}/**/events.out.tfevents.*", f"{project}/**/hparams.yml")
    found = [path for name in names for path in sorted(run_dir.glob(name))]
    linked = [path for path in found if path.is_symlink() and path.name == "checkpoints"]
    return [path for path in found if path not in linked] + [state for _ in linked for state in checkpoints(run_dir)]


def set_aside(run_dir: Path, paths: Sequence[Path]) -> None:
    """Move them, unless they have come to nothing and there is already a run aside that had: then they are deleted."""
    if is_aside(run_dir) and not (checkpoints(run_dir) or (run_dir / "model" / WEIGHTS).exists()):
        for path in paths:
            remove(path)
        return
    drop_replaced(run_dir)
    make_folder(run_dir / _MOVING)  # stands as long as the move is not over, see put_back
    for path in paths:
        place = next(place for place in reversed(places(run_dir)) if place in path.parents)
        target = place / _MOVING / path.relative_to(place)
        make_folder(target.parent)
        path.replace(target)
    for place in reversed(places(run_dir)):
        if (place / _MOVING).exists():
            sync(place / _MOVING)
            (place / _MOVING).replace(place / REPLACED)
            sync(place)


def put_back(run_dir: Path) -> None:
    """Undo a move that was cut off."""
    if not (run_dir / _MOVING).exists():
        return
    for place in reversed(places(run_dir)):
        for aside in (place / REPLACED, place / _MOVING):
            for path in sorted(aside.rglob("*")):  # a folder before what is in it
                target = place / path.relative_to(aside)
                if path.exists() and not target.exists():
                    path.replace(target)
            remove(aside)


def is_aside(run_dir: Path) -> bool:
    """Whether a run that was moved aside lies there; a folder of that name may be another's."""
    return (run_dir / REPLACED / "config.yaml").is_file()


def drop_replaced(run_dir: Path) -> None:
    """Delete the run that was moved aside, if there is one."""
    if not is_aside(run_dir):
        return
    for place in reversed(places(run_dir)):
        for path in (place / REPLACED).glob("*"):
            if path.name != "config.yaml":  # tells until the end what this is
                remove(path)
        remove(place / REPLACED)


def places(run_dir: Path) -> list[Path]:
    """The directory, and the folder that its checkpoints lie in if that is elsewhere."""
    states = run_dir / "checkpoints"
    return [run_dir, *[states] * states.is_symlink()]
