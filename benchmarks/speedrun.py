"""How fast a model is had that reaches a fixed figure: three seeds, of which all must reach it.

    python benchmarks/speedrun.py scenes
    python benchmarks/speedrun.py flickr8k --data DIR_OR_HUB_NAME
    python benchmarks/speedrun.py flickr8k --data DIR_OR_HUB_NAME --open_clip 2

Track scenes: configs/shapes.yaml; zero-shot top-1 on combinations of shape and colour that training leaves out, 95 %.
Track flickr8k: configs/flickr8k.yaml, from scratch; R@10 on the validation split, mean of both ways, 25 %, at the best
of the evaluations on the way, whose weights the run keeps; the test split is looked at once, with those.

What counts is the time from the start of the process, with nothing prepared, to the first step, and that of all steps,
without evaluations and checkpoints. Prints a row of LEADERBOARD.md; the exit code is 0 if every seed has reached the
figure. ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 in the environment imitates a processor without AVX-512 and
bf16. Other options (--train.max_steps 800) go to train.py.

--open_clip E runs E epochs of open_clip's own trainer instead, once: the preset that the configuration names, all of an
image's captions, the configuration's crops, batch and warm-up, AdamW at 1e-3 by a cosine, bf16 where it is fast. Its
seconds are those of its steps, the wait for its loader included; the figure is counted by this project's evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import machine
from throughput import LARGEST, open_clip_command

from miniclip import create_model
from miniclip.config import ModelConfig, load_config
from miniclip.data.captioned import open_source
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model
from miniclip.training.precision import choose

ROOT = Path(__file__).parents[1]


class Track(NamedTuple):
    """figures: their mean is to reach the bar. best: they are of the validation split, at the step that was kept."""

    config: str
    figures: tuple[str, ...]
    bar: float
    best: bool


TRACKS = {
    "scenes": Track("shapes", ("unseen/top1",), 0.95, False),
    "flickr8k": Track("flickr8k", ("retrieval/image_to_text_r10", "retrieval/text_to_image_r10"), 0.25, True),
}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def one(track: Track, seed: int, folder: Path, options: list[str]) -> dict[str, float]:
    """A run, with a cache of its own: what it took, in seconds, and what it came to."""
    config = str(ROOT / "configs" / f"{track.config}.yaml")
    command = [sys.executable, str(ROOT / "train.py"), "--config", config, "--run.dir", str(folder), *options]
    command += ["--run.seed", str(seed), "--data.cache_dir", str(folder.parent / f"cache-{seed}")]
    started = time.time()
    subprocess.run([*command, "--log.trackers", "[]"], check=True)
    # which a run writes when its data are there, right before its first step
    prepared = (folder / "config.yaml").stat().st_mtime - started
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    test = {f"{e['task']}/{name}": value["value"] for e in results["results"] for name, value in e["figures"].items()}
    found, training = {"prepared": prepared, "training": results["training"]["train_seconds"]}, results["training"]
    if track.best:
        step = training["best"]["step"]
        chosen = next(x for x in lines(folder) if x["step"] == step and f"eval/{track.figures[0]}" in x)
        found["figure"] = statistics.mean(chosen[f"eval/{name}"] for name in track.figures)
        found["test"] = statistics.mean(test[name] for name in track.figures)
    else:
        found["figure"] = statistics.mean(test[name] for name in track.figures)
    return found | {"seconds": prepared + found["training"]}


def open_clip(track: Track, epochs: int, data: list[str], folder: Path) -> dict[str, float]:
    """What open_clip's trainer takes, in seconds, and comes to."""
    config = load_config(["--config", str(ROOT / "configs" / f"{track.config}.yaml"), *data])
    source = open_source(config.data, "train", image_size=LARGEST)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title"])
        for index in range(len(source)):
            path = folder / f"{index}.jpg"
            source.image(index).save(path, quality=95)
            rows.writerows([path, caption] for caption in source.captions(index))
    model = ModelConfig(preset=config.model.preset)
    precision = "amp_bf16" if choose("auto", torch.device("cpu"), "resnet").name == "bf16" else "fp32"
    command = open_clip_command(folder, track.config, model, precision, config.data.batch_size, workers=2)
    command += ["--epochs", str(epochs), "--name", "run", "--save-most-recent"]
    command += ["--lr", "1e-3", "--wd", "0.2", "--warmup", str(config.optim.warmup_steps)]
    command += ["--aug-cfg", f"scale=({config.data.crop_scale[0]}, {config.data.crop_scale[1]})"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = sum(float(t) for t in re.findall(r"Batch \(t\): ([\d.]+)", said.stdout + said.stderr))
    state = torch.load(folder / "logs" / "run" / "checkpoints" / "epoch_latest.pt", weights_only=True)["state_dict"]
    trained = create_model(model)
    trained.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    size = trained.config.image_size or 0
    save_model(folder / "model", trained, Preprocess(size, resize=config.data.resize or "crop"))
    found = {"seconds": seconds}
    for split, name in (("validation", "figure"), ("test", "test")):
        out = folder / split
        words = ["retrieval", "--checkpoint", str(folder / "model"), "--data", config.data.label, "--split", split]
        subprocess.run([sys.executable, str(ROOT / "eval.py"), *words, "--out", str(out)], check=True)
        figures = json.loads((out / "results.json").read_text())["results"][0]["figures"]
        found[name] = statistics.mean(figures[f.rpartition("/")[2]]["value"] for f in track.figures)
    return found


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("--data", help="Flickr8k, if it lies here")
    parser.add_argument("--open_clip", type=int, metavar="EPOCHS", help="its trainer in place of this project's")
    parser.add_argument("--seeds", type=int, default=3, help="0 to this (default: 3)")
    parser.add_argument("--what", default="", help="what has changed, for the row")
    parser.add_argument("--out", help="folder in which the runs stay (default: none)")
    options, rest = parser.parse_known_args()
    track, runs = TRACKS[options.track], []
    rest += ["--data.source", options.data] if options.data else []
    with tempfile.TemporaryDirectory() as folder:
        if options.open_clip:
            print(json.dumps(open_clip(track, options.open_clip, rest, Path(folder))))
            return 0
        out = Path(options.out or folder)
        for seed in range(options.seeds):
            runs.append(one(track, seed, out / f"{options.track}-{seed}", rest))
            print(json.dumps({"seed": seed, **{name: round(value, 4) for name, value in runs[-1].items()}}), flush=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    seconds, steps, figures = ([run[name] for run in runs] for name in ("seconds", "training", "figure"))
    passed = sum(figure >= track.bar for figure in figures)
    row = [
        time.strftime("%Y-%m-%d"),
        options.what,
        f"{spread(seconds, 0)} ({spread(steps, 0)})",
        spread([100 * x for x in figures], 1),
    ]
    row += [spread([100 * run["test"] for run in runs], 1)] if track.best else []
    print("\n| " + " | ".join([*row, f"{passed} of {len(runs)}", commit.stdout.strip()]) + " |")
    print(f"{machine()}, {os.environ.get('ATEN_CPU_CAPABILITY', 'all of its instructions')}")
    return 0 if passed == len(runs) else 1


if __name__ == "__main__":
    raise SystemExit(main())
