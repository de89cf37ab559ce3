"""Cost of a checkpoint, and of training with many of them, in this tree and in another one.

    git worktree add ../before COMMIT
    python benchmarks/checkpoint.py --before ../before [--models tiny-resnet ViT-B-32] [--folder DIR]

A process of its own for each tree and round, in turn. held: seconds that the loop waits for a checkpoint; on disk:
seconds until the disk has it and its name, which the former way never waits for. Steps: from the start of one step to
that of another with a checkpoint after every --every steps between, so that what a checkpoint takes from the steps
beside it counts, too; quote the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def checkpoints_of(model: str, folder: Path, count: int) -> dict[str, Any]:
    """Seconds and bytes of some checkpoints of a model after one step of its optimiser."""
    import torch
    from accelerate import Accelerator

    import miniclip
    from miniclip.common.stopping import Stopping
    from miniclip.config import OptimConfig
    from miniclip.training import checkpoint
    from miniclip.training.optim import build_optimizer

    accelerator, learnt = Accelerator(cpu=True), miniclip.create_model(model)
    learnt, optimizer = accelerator.prepare(learnt, build_optimizer(learnt, OptimConfig()))
    for parameter in learnt.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    found: dict[str, Any] = {"held": [], "on disk": []}
    (folder / "checkpoints").mkdir(parents=True)
    former: Any = getattr(checkpoint, "save_checkpoint", None)
    writer = None if former else checkpoint.Checkpoints(accelerator, folder, 2, Stopping())
    for step in range(1, count + 1):
        os.sync()  # what other rounds left
        start, progress = time.perf_counter(), checkpoint.Progress(step)
        writer.save(progress) if writer else former(accelerator, folder, progress, 2)
        found["held"].append(time.perf_counter() - start)
        if writer:
            writer.wait()
            found["on disk"].append(time.perf_counter() - start)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    found["bytes"] = [sum(file.stat().st_size for file in newest.iterdir())]
    return found


def steps_of(model: str, folder: Path, every: int, steps: int, batch_size: int) -> dict[str, Any]:
    """Seconds a step with a checkpoint after every few of them."""
    from miniclip.cli.train import run
    from miniclip.config import load_config
    from miniclip.training.loop import Loop

    begun, step = [], Loop._step

    def timed(loop: Loop, *arguments: Any) -> Any:
        begun.append(time.perf_counter())
        return step(loop, *arguments)

    Loop._step = timed  # type: ignore[method-assign]
    options = {"model.preset": model, "data.source": "shapes", "data.size": 8 * batch_size, "eval.tasks": "[]"}
    options |= {"data.batch_size": batch_size, "train.max_steps": steps, "run.dir": folder, "log.trackers": "[]"}
    options |= {"run.checkpoint_every": every, "log.progress": "false", "optim.warmup_steps": 0}
    run(load_config([word for key, value in options.items() for word in (f"--{key}", str(value))]))
    return {"step": [(begun[-1] - begun[every]) / (len(begun) - 1 - every)]}


def child(tree: Path, what: str, model: str, folder: Path, *numbers: int) -> dict[str, Any]:
    """One of the two functions above, in a process that imports the package of a tree."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        words = [sys.executable, __file__, "--child", what, model, f"{place}/run", *map(str, numbers)]
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a tree of the package to compare with")
    parser.add_argument("--models", nargs="+", default=["tiny-resnet", "ViT-B-32"])
    parser.add_argument("--folder", type=Path, help="on the disk to write to")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=5, help="steps a checkpoint")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(arguments)
    from machine import machine

    print(machine(), flush=True)
    trees, found = {"before": options.before.resolve(), "now": ROOT}, dict[str, dict[str, dict[str, list[float]]]]()
    for model in options.models:
        found[model] = {name: {} for name in trees}
        # a large one in less time
        batch, steps = (64, options.steps) if model.startswith("tiny") else (16, options.every * 3 + 1)
        for number in range(options.rounds):
            for name in sorted(trees, reverse=bool(number % 2)):
                for what, numbers in (("checkpoints", [4]), ("steps", [options.every, steps, batch])):
                    for key, values in child(trees[name], what, model, options.folder, *numbers).items():
                        found[model][name].setdefault(key, []).extend(values)
        for name, figures in found[model].items():
            some = {key: (statistics.median(v), min(v), max(v)) for key, v in figures.items() if v}
            told = (f"{key} {middle:.4g} ({low:.4g} to {high:.4g})" for key, (middle, low, high) in some.items())
            print(f"{model} {name}: {', '.join(told)}", flush=True)
        pace = [statistics.median(found[model][name]["step"]) for name in trees]
        print(f"{model}: a step takes {pace[1] / pace[0]:.3f} of what it took before", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, name, place, *rest = sys.argv[2:]
        print(json.dumps({"checkpoints": checkpoints_of, "steps": steps_of}[kind](name, Path(place), *map(int, rest))))
    else:
        main()
