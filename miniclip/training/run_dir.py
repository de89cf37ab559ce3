"""The run directory: what a start may find there, and what a resume must leave unchanged."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.common.checksums import damage
from miniclip.common.durable import append, clear_parts, make_folder, whole_file
from miniclip.common.lock import Taken, alone_in
from miniclip.common.printing import first_few
from miniclip.common.runs import metric_lines
from miniclip.config import Config, ConfigError, Format, load_config_file, save_config
from miniclip.models.saved import WEIGHTS, checkpoints, read_json, step_of
from miniclip.training.replaced import REPLACED, is_aside, places, put_back, set_aside

log = logging.getLogger(__name__)

# What may change between a run and its resume; the rest decides which pairs a step sees, or what it computes.
_FREE = ("data.workers", "data.max_bad_fraction", "data.cache", "data.cache_dir", "model.activation_checkpointing")

RESULTS = "results.json"  # comes last: a run that has it for all its steps is finished
MATRICES = "matrix"  # folder of the matrices of a fixed batch
PROGRESS = "progress.json"  # of a checkpoint: step, time, and what the data were
BEST = "best"  # folder of the model that eval.best chose


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Where the state after so many steps lies."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def newest_progress(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint says in its progress.json, of those in which that is whole; empty without any."""
    for folder in reversed(checkpoints(run_dir)):
        with suppress(OSError, ValueError):
            if not damage(folder, PROGRESS.__eq__):
                return read_json(folder / PROGRESS)
    return {}


def kept_matrices(run_dir: Path) -> list[Path]:
    """The matrices of the fixed batch, in the order of their steps."""
    files = (run_dir / MATRICES).glob("step_*.safetensors")
    return sorted(path for path in files if re.fullmatch(r"step_\d{8,}", path.stem))


class Standing(NamedTuple):
    """What a run stands at before it begins or goes on. results: what results.json holds, where run.resume=auto finds
    it finished. precision: what it was computed in, None for one that begins."""

    results: dict[str, Any] | None = None
    precision: Format | None = None


def claim(config: Config, held: ExitStack) -> Standing:
    """Look at the run that the configuration names, and keep others out of it as long as held.

    Raises ConfigError if another process writes into it, and what check_run_dir does.
    """
    run_dir = Path(config.run.dir)
    check_place(run_dir)
    for folder in places(run_dir):
        try:
            held.enter_context(alone_in(folder))
        except Taken as who:
            raise ConfigError(
                f"run.dir={run_dir} is in use: {who} writes into {folder}; wait for it, stop it there, or name another "
                "directory"
            ) from who
    put_back(run_dir)
    check_run_dir(config)
    file = run_dir / "config.yaml"
    if not file.exists():
        return Standing()
    clear_parts(run_dir, run_dir / "model", run_dir / MATRICES)  # which may be what the disk is full of
    if not config.run.resume:
        return Standing()
    precision = load_config_file(file).train.precision
    results = _results(config) if config.run.resume == "auto" else None
    if results is None and (run_dir / "model" / WEIGHTS).exists() and not checkpoints(run_dir):
        raise ConfigError(
            f"{run_dir / 'model'} is of a run that has no checkpoint left to go on from; bring them back "
            f"into {run_dir / 'checkpoints'}, or begin anew with --run.overwrite true"
        )
    if results is not None:
        print(f"the run in {run_dir} is finished, nothing to do", flush=True)
    return Standing(results, None if precision == "auto" else precision)


def _results(config: Config) -> dict[str, Any] | None:
    """Of a run that is as long as the configuration asks for, and ended: a longer one may have been cut off since."""
    run_dir, length = Path(config.run.dir), config.train
    if not (run_dir / "model" / WEIGHTS).exists() or not (run_dir / RESULTS).exists():
        return None
    try:
        results = read_json(run_dir / RESULTS)
        steps, epochs = (results["training"].get(key) for key in ("steps", "epochs"))
    except (ValueError, KeyError, AttributeError):
        log.warning("%s is not the results of a training; its final evaluation is done again", run_dir / RESULTS)
        return None
    long = steps == length.max_steps if length.epochs is None else epochs == length.epochs
    newest = [step_of(folder) for folder in checkpoints(run_dir)[-1:]]
    return results if long and newest in ([], [steps]) else None


def check_place(run_dir: Path) -> None:
    """Raise ConfigError where a folder is wanted and something else is, such as a link to a disk that is not there."""
    for folder in (run_dir / "checkpoints", run_dir, *run_dir.parents):
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(
                f"{folder} is a link to {folder.readlink()}, which is not there: mount or make that, or remove the link"
            )
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file where run.dir={run_dir} has a folder; name another, or remove it")


def check_run_dir(config: Config) -> None:
    """Raise ConfigError if the directory holds a run that would be lost, or that this configuration cannot resume."""
    run_dir = Path(config.run.dir)
    begun = any((run_dir / name).exists() for name in ("metrics.jsonl", "checkpoints", "model"))
    if not (begun or is_aside(run_dir)):
        return
    if not (config.run.resume or config.run.overwrite):
        raise ConfigError(
            f"run.dir={run_dir} already holds a run; name another directory, go on with --run.resume true, "
            "or replace it with --run.overwrite true"
        )
    if config.run.overwrite:
        _check_run(run_dir)
    if config.run.resume and (run_dir / "config.yaml").exists():
        _check_unchanged(config, load_config_file(run_dir / "config.yaml"))


def _check_run(run_dir: Path) -> None:
    """Raise ConfigError unless there is a run's config.yaml; of one that was to be overwritten it lies aside."""
    aside = run_dir / REPLACED
    if aside.exists() and not is_aside(run_dir):
        raise ConfigError(f"{aside} is no run, and run.overwrite moves the run there that it replaces; rename it")
    try:
        load_config_file((aside if is_aside(run_dir) else run_dir) / "config.yaml")
    except ConfigError as error:
        raise ConfigError(
            f"run.dir={run_dir} holds other things than a run, and run.overwrite deletes runs alone: {error}"
        ) from error


def _check_unchanged(new: Config, old: Config) -> None:
    """A resume goes on with the same model, loss and batches; optimiser, length and evaluation may change."""
    now, then = flat(new.to_dict()), flat(old.to_dict())
    fixed = [key for key in now if key.startswith(("model.", "data.", "loss.")) or key == "run.seed"]
    # the data may lie elsewhere, or be called otherwise: the checkpoint knows what they are
    compared = not checkpoints(Path(new.run.dir)) or "contents" in newest_progress(Path(new.run.dir)).get("feed", {})
    free = (*_FREE, "data.source") if compared else _FREE
    changed = [key for key in fixed if key not in free and now[key] != then[key]]
    if changed:
        key, *others = changed
        more = f" (and {len(others)} other keys differ)" if others else ""
        raise ConfigError(
            f"the run in {new.run.dir} has {key}={then[key]}, not {now[key]}{more}; a resume needs the same model, "
            "data, loss and seed: change it back, or start another run"
        )


def prepare_run_dir(config: Config, first_step: int, former: Sequence[Path], left: bool = False) -> None:
    """Make the directory, move aside what an overwritten run left, former, and write config.yaml; on the main process
    alone. left: whether the evaluation of the first step is still to be done.
    """
    run_dir = Path(config.run.dir)
    if former:
        set_aside(run_dir, former)
    if is_aside(run_dir):
        print(f"the run before lies in {run_dir / REPLACED} until this one has a checkpoint", flush=True)
    make_folder(run_dir)
    save_config(config, run_dir / "config.yaml")
    _trim_metrics(run_dir / "metrics.jsonl", first_step, left, config.log.every)
    for matrix in kept_matrices(run_dir):
        if step_of(matrix) > first_step:
            matrix.unlink()


def _trim_metrics(path: Path, first_step: int, left: bool, every: int) -> None:
    """Drop the lines of what is about to be done again after the checkpoint, and what is no line, which is said."""
    lines, bad = metric_lines(path)

    def again(values: dict[str, Any]) -> bool:
        evaluated = any(key.startswith("eval/") for key in values)
        undone = evaluated and (left or not first_step)
        return values["step"] > first_step or (undone and values["step"] == first_step)

    kept = [line for line, values in lines if not again(values)]
    last = max((values["step"] for _, values in lines), default=0)
    if bad:
        log.warning("%s: damaged, left out: %s", path, first_few(bad))
    elif last + every <= first_step:
        log.warning("%s ends at step %d of the %d so far; the lines between are lost", path, last, first_step)
    if path.exists():
        with whole_file(path) as part:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def append_metrics(run_dir: Path, step: int, values: dict[str, Any]) -> None:
    """One line of metrics.jsonl; what is not finite becomes null, which JSON can say. Raises DiskFull."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    append(run_dir / "metrics.jsonl", json.dumps({"step": step, **plain}, allow_nan=False) + "\n")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; what is neither number nor string becomes JSON, as trackers want it."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        plain = value if isinstance(value, int | float | str | bool) else json.dumps(value)
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: plain}
    return result
