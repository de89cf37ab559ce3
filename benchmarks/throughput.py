"""Training throughput against open_clip's own trainer: same towers, same pictures, same batch, one after the other.

    pip install 'open_clip_torch[training]'
    python benchmarks/throughput.py --data DIR_OR_HUB_NAME [--json FILE]

Both sides are started as a user starts them: `train.py` here, `open_clip_train.main` there, each in a process of its
own, in turn, `--rounds` times. A step's time runs from the end of one step to the end of the next, the wait for data
included; the first steps of each process are left out. Decoding before the first step (data.cache here, nothing
there) does not count. Quote the ratio of medians: absolute figures differ from machine to machine and from hour to
hour. open_clip's default precision, amp, is fp16, which a CPU only emulates: name it with --precisions if you have
time.
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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from miniclip.config import DataConfig, load_config
from miniclip.models import resolve

ROOT = Path(__file__).parents[1]
SKIPPED = 3  # steps at the start of a process: the allocator, the kernels' set-up, the first batch of the workers

OPEN_CLIP = """
import sys, open_clip
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="what data.source takes; the built-in scenes if left out")
    parser.add_argument("--config", default=str(ROOT / "configs" / "flickr8k.yaml"))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "amp_bf16"], help="open_clip's --precision")
    parser.add_argument("--steps", type=int, default=12, help="steps of a process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="open_clip's loader processes")
    parser.add_argument("--json", type=Path, help="write every step's samples/s here")
    options = parser.parse_args(arguments)

    config = load_config(["--config", options.config, "--data.source", options.data])
    model, batch_size = resolve(config.model), config.data.batch_size
    found: dict[str, list[float]] = {"miniclip": [], **{f"open_clip {p}": [] for p in options.precisions}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = model.image_size
        assert size is not None
        write_csv(replace(config.data, size=max(config.data.size, batch_size * options.steps)), size, work)
        (work / "models").mkdir()
        (work / "models" / "same-towers.json").write_text(json.dumps(open_clip_model(model.__dict__)))
        for turn in range(options.rounds):
            for name in found:
                if name == "miniclip":
                    paces = run_miniclip(options, work / f"run{turn}")
                else:
                    paces = run_open_clip(name.split()[1], options, work, batch_size)
                found[name] += paces
                print(f"round {turn + 1}, {name}: median {statistics.median(paces):.1f} samples/s", flush=True)
    ours = statistics.median(found["miniclip"])
    print(f"\n{'':24}samples/s   quartiles        miniclip is")
    for name, paces in found.items():
        low, middle, high = statistics.quantiles(paces, n=4)
        print(f"{name:24}{middle:9.1f}   {low:.1f} to {high:.1f}   {ours / middle:9.2f} times as fast")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def open_clip_model(c: dict) -> dict:
    """A resolved ModelConfig in the words of open_clip's model files."""
    vision = {"image_size": c["image_size"], "layers": c["image_layers"], "width": c["image_width"]}
    heads = c["image_heads"]
    feature = c["image_width"] * (32 if c["image_encoder"] == "resnet" else 1)
    vision |= {"patch_size": c["patch_size"], "head_width": feature // heads}
    text = {"context_length": c["context_length"], "vocab_size": c["vocab_size"]}
    text |= {"width": c["text_width"], "heads": c["text_heads"], "layers": c["text_layers"]}
    return {
        "embed_dim": c["embed_dim"],
        "quick_gelu": c["activation"] == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": text,
    }


def write_csv(data: DataConfig, image_size: int, work: Path) -> None:
    """The training split as JPEG files, and a line a picture with its first caption, as open_clip reads them."""
    from miniclip.data.sources import open_source

    source = open_source(data, "train", seed=0, image_size=image_size, eval_size=1)
    with (work / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "title"])
        for index in range(len(source)):
            path = work / f"{index}.jpg"
            source.image(index).save(path, quality=95)
            rows.writerow([path, source.captions(index)[0]])


def run_miniclip(options: argparse.Namespace, run_dir: Path) -> list[float]:
    command = [sys.executable, str(ROOT / "train.py"), "--config", options.config, "--data.source", options.data]
    command += ["--run.dir", str(run_dir), "--train.max_steps", str(options.steps), "--train.epochs", "null"]
    command += ["--log.every", "1", "--log.trackers", "[]", "--log.progress", "false", "--eval.tasks", "[]"]
    finished(command)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["samples_per_s"] for line in lines if "samples_per_s" in line][SKIPPED:]


def run_open_clip(precision: str, options: argparse.Namespace, work: Path, batch_size: int) -> list[float]:
    command = [sys.executable, "-c", OPEN_CLIP, str(work / "models"), "--model", "same-towers"]
    command += ["--train-data", str(work / "train.csv"), "--dataset-type", "csv", "--csv-separator", ","]
    command += ["--batch-size", str(batch_size), "--workers", str(options.workers), "--precision", precision]
    command += ["--epochs", "1", "--log-every-n-steps", "1", "--logs", str(work / "logs"), "--device", "cpu"]
    command += ["--grad-clip-norm", "1.0", "--save-frequency", "0"]
    paces: list[float] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if match := re.search(r"Batch \(t\): [\d.]+, ([\d.e+]+)/s", line):
                paces.append(float(match[1]))
                if len(paces) == options.steps:
                    process.kill()
    if len(paces) < options.steps:
        raise SystemExit("open_clip stopped early:\n" + "".join(said[-20:]))
    return paces[SKIPPED:]


def finished(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr[-3000:]}")


if __name__ == "__main__":
    main()
