"""Which run a path belongs to, a run being a directory with a config.yaml, and what it wrote down on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from miniclip.common.printing import near_name

CONFIG = "config.yaml"
_PARTS = (CONFIG, "model", "best", "checkpoints")  # what a model may be loaded from


def run_of(name: str | Path) -> tuple[Path | None, tuple[str, ...]]:
    """The run that a path is or lies in, and the names below it: ("checkpoints", "step_00000004"), none for the run.

    (None, ()) for what is not there, and in a run for what no model is loaded from.
    """
    path = Path(name).expanduser()
    for whole in (path.absolute(), path.resolve()):  # as it is written, then behind links
        for run in (whole, *whole.parents)[:4]:
            part = whole.relative_to(run).parts
            if (not part or part[0] in _PARTS) and (run / CONFIG).is_file() and whole.exists():
                return _as(path, run), part
    return None, ()


def apart(part: tuple[str, ...]) -> tuple[str, ...]:
    """Of run_of's names the one that tells a model from the finished one of its run, for the files of its figures."""
    return tuple(name for name in part if name in ("best", "checkpoints") or name.startswith("step_"))[-1:]


def did_you_mean_run(path: Path) -> str:
    """What to name in place of a path that is no run: the one around it, the newest in it, a near name; or nothing."""
    whole = path.absolute()
    if around := next((parent for parent in whole.parents if (parent / CONFIG).is_file()), None):
        return f"did you mean {_as(path, around)}?"
    if runs := sorted(whole.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime):
        return f"did you mean a run in it, such as {path / runs[-1].parent.name}?"
    if whole.exists():
        return ""
    standing = next(parent for parent in whole.parents if parent.is_dir())
    near = near_name(
        whole.relative_to(standing).parts[0], (entry.name for entry in standing.iterdir() if entry.is_dir())
    )
    return f"did you mean {_as(path, standing / near)}?" if near else ""


def metric_lines(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """Of metrics.jsonl, if there is one, each line that tells of a step, as it stands and as values; and "line N" for
    the others.

    A last line without its end, which is being written or was cut off, is in neither.
    """
    found, bad = [], []
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()
            values = json.loads(text)
            if not isinstance(values["step"], int):
                raise TypeError
            found.append((text, values))
        except (ValueError, KeyError, TypeError, RecursionError):
            bad.append(f"line {number}")
    return found, bad


def _as(given: Path, found: Path) -> Path:
    """found, absolute as given is, or relative."""
    return found if given.is_absolute() else Path(os.path.relpath(found))
