"""Training throughput against open_clip's own trainer: same towers, same JPEG files, same batch, one after the other.

    pip install 'open_clip_torch[training]'
    python benchmarks/throughput.py --data DIR_OR_HUB_NAME [--models tiny-resnet ...] [--json FILE]

Both sides are started as a user starts them: `train.py` here, `open_clip_train.main` there, each in a process of its
own, in turn, `--rounds` times. Both have the whole vocabulary, a context of 77 tokens and no patch dropout, the same
optimiser and rate, and squares of 90 to 100 % of the area. A step's time runs from the end of one step to the end of
the next, the wait for data included; the first steps of each process are left out. Quote the ratio of medians: absolute
figures differ from machine to machine and from hour to hour.

Before the first step, once for a data set, miniclip decodes and shrinks the pictures into its cache, which does not
count; each run prints how much of its time was training. open_clip decodes each picture whenever it comes up.

--precision is that of both sides: auto takes bf16 where the processor is fast in it, else fp32. open_clip's own
default, amp, is fp16, which a CPU only emulates, and is left out. ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 in
the environment takes AVX-512 and bf16 from both sides, as on a processor without them.

--curve STEPS compares the losses along longer runs of both instead.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from machine import machine

from miniclip.config import DataConfig, ModelConfig
from miniclip.models import resolve

ROOT = Path(__file__).parents[1]
SKIPPED = 2  # steps at the start of a process: the allocator, the kernels' set-up, the first batch of the workers
LEARNING_RATE, DECAY, BETAS, EPS, WARMUP = 5e-4, 0.2, (0.9, 0.98), 1e-6, 10
LARGEST = 10_000  # pixels: no picture is decoded at less than its size

OPEN_CLIP = """
import sys, open_clip
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""
# what its users can ask for
FLAGS = {
    "fp32": ["--precision", "fp32"],
    "fp32 compiled": ["--precision", "fp32", "--torchcompile"],
    "amp_bf16": ["--precision", "amp_bf16"],
    "amp_bf16 compiled": ["--precision", "amp_bf16", "--torchcompile"],
    "pure_bf16": ["--precision", "pure_bf16"],
}


@dataclass(frozen=True)
class Case:
    """Two towers and a batch. steps: of a process. compiled: open_clip runs with --torchcompile, too."""

    model: dict[str, Any]
    batch_size: int
    steps: int
    rounds: int
    compiled: bool = True

    def flags(self, precision: str) -> tuple[str, ...]:
        """Keys of FLAGS: what open_clip's users can ask for in a precision."""
        plain = {"fp32": "fp32", "bf16": "amp_bf16"}[precision]
        return (plain, f"{plain} compiled") if self.compiled else (plain,)


TINY_VIT = {"embed_dim": 256, "image_encoder": "vit", "image_size": 64, "image_width": 256, "image_layers": 6}
TINY_VIT |= {"image_heads": 4, "patch_size": 8, "text_width": 256, "text_heads": 4, "text_layers": 6}
CASES = {
    "tiny-resnet": Case({"preset": "tiny-resnet"}, 256, 14, 3),
    "tiny-vit": Case(TINY_VIT, 256, 10, 2),
    "ViT-B-32": Case({"preset": "ViT-B-32"}, 256, 5, 2, compiled=False),
}


class Step(NamedTuple):
    """samples a second, seconds of it waiting for data, loss."""

    pace: float
    waited: float
    loss: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes", help="what data.source takes; the built-in scenes if left out")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of both sides")
    parser.add_argument("--flags", nargs="+", choices=FLAGS, help="of open_clip, in place of those of the precision")
    parser.add_argument("--rounds", type=int, help="in place of the case's own")
    parser.add_argument("--steps", type=int, help="of a process, in place of the case's own")
    parser.add_argument("--pictures", type=int, default=6000, help="how many are trained on")
    parser.add_argument("--workers", type=int, default=2, help="open_clip's loader processes")
    parser.add_argument("--curve", type=int, metavar="STEPS", help="compare the losses along runs of so many steps")
    parser.add_argument("--json", type=Path, help="write every step here")
    options = parser.parse_args(arguments)

    import torch

    from miniclip.training.precision import choose

    print(machine(), flush=True)
    found: dict[str, dict[str, list[Step]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_files(options.data, options.pictures, work)
        for name in options.models:
            case = CASES[name]
            encoder = resolve(ModelConfig(**case.model)).image_encoder
            precision = choose(options.precision, torch.device("cpu"), encoder).name
            trial = Trial(name, case, precision, options.curve or options.steps or case.steps, options.workers, work)
            flags = options.flags or case.flags(precision)[: 1 if options.curve else None]
            rounds = 1 if options.curve else options.rounds or case.rounds
            found[name] = compare(trial, flags, rounds)
            (print_curve if options.curve else print_table)(name, found[name])
    if options.json:
        write_json(options.json, found)


def write_json(path: Path, found: dict[str, dict[str, list[Step]]]) -> None:
    values = {
        model: {side: [step._asdict() for step in steps] for side, steps in sides.items()}
        for model, sides in found.items()
    }
    path.write_text(json.dumps(values, indent=1) + "\n")


def write_files(data: str, pictures: int, work: Path, lines: int = 0) -> None:
    """Pictures as JPEG files of full size, and tables of them as both sides read them: a line and a caption each.

    lines: that the training table has at least, by starting over.
    """
    from miniclip.data.captioned import open_source

    for split, count in (("train", pictures), ("validation", 16), ("test", 16)):
        config = DataConfig(source=data, size=count)
        source = open_source(config, split, seed=0, image_size=64 if data == "shapes" else LARGEST, eval_size=count)
        with (work / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["filepath", "title"])
            last = min(count, len(source))
            for index in range(last):
                path = work / f"{split}{index}.jpg"
                source.image(index).save(path, quality=95)
                rows.writerow([path, source.captions(index)[0]])
            for index in range(last, lines if split == "train" else 0):
                rows.writerow([work / f"train{index % last}.jpg", source.captions(index % last)[0]])


@dataclass(frozen=True)
class Trial:
    """What both sides run."""

    name: str
    case: Case
    precision: str
    steps: int
    workers: int
    work: Path
    device: str = "cpu"

    @property
    def environment(self) -> dict[str, str]:
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return {**os.environ, **hidden, "PYTHONUNBUFFERED": "1"}

    def miniclip(self, turn: int) -> list[Step]:
        run_dir = self.work / f"run-{self.name}-{turn}"
        options = {f"model.{key}": value for key, value in self.case.model.items()}
        options |= {"run.dir": run_dir, "data.source": self.work, "data.batch_size": self.case.batch_size}
        options |= {"data.augment": "resized_crop", "data.crop_scale": "[0.9, 1.0]", "data.cache_dir": self.work}
        options |= {"optim.lr": LEARNING_RATE, "optim.weight_decay": DECAY, "optim.betas": list(BETAS)}
        options |= {"optim.eps": EPS, "optim.warmup_steps": WARMUP, "optim.schedule": "constant"}
        options |= {
            "train.precision": self.precision,
            "train.max_steps": self.steps,
            "log.every": 1,
            "log.trackers": "[]",
        }
        options |= {"log.progress": "false", "eval.tasks": "[]", "run.checkpoint_every": 0}
        start = time.perf_counter()
        options |= {"data.workers": 0 if self.device == "cpu" else self.workers}
        command = [sys.executable, str(ROOT / "train.py"), *(f"--{key}={value}" for key, value in options.items())]
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        if result.returncode:
            raise SystemExit(f"{' '.join(command)}\n{result.stderr[-3000:]}")
        whole = time.perf_counter() - start
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "samples_per_s" in line]
        trained = sum(self.case.batch_size / line["samples_per_s"] for line in lines)
        print(f"  miniclip: {trained:.1f} s of {whole:.1f} s were training", flush=True)
        return [Step(line["samples_per_s"], line["data_wait"], line["loss"]) for line in lines]

    def open_clip(self, turn: int, flags: str) -> list[Step]:
        command = open_clip_command(
            self.work, self.name, ModelConfig(**self.case.model), flags, self.case.batch_size, self.workers, self.device
        )
        command += ["--epochs", "1000", "--save-frequency", "0", "--lr-scheduler", "const"]
        command += ["--lr", str(LEARNING_RATE), "--wd", str(DECAY), "--eps", str(EPS), "--warmup", str(WARMUP)]
        command += ["--beta1", str(BETAS[0]), "--beta2", str(BETAS[1])]
        steps: list[Step] = []
        said: list[str] = []
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, env=self.environment, **pipes) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                pattern = r"Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+), ([\d.e+]+)/s.* Loss: ([\d.]+) \("
                if match := re.search(pattern, line):
                    data, step, pace, loss = map(float, match.groups())
                    steps.append(Step(pace, data / step if step else 0.0, loss))
                    if len(steps) == self.steps:
                        process.kill()
        if len(steps) < self.steps:
            raise SystemExit("open_clip stopped early:\n" + "".join(said[-20:]))
        return steps


def open_clip_command(
    work: Path, name: str, model: ModelConfig, flags: str, batch_size: int, workers: int, device: str = "cpu"
) -> list[str]:
    """open_clip's trainer on work/train.csv, a line of its log a step; its model file, name among others, is written.

    flags: a key of FLAGS.
    """
    models = work / "models"
    models.mkdir(exist_ok=True)
    (models / f"same-{name}.json").write_text(json.dumps(open_clip_model(asdict(resolve(model)))))
    command = [sys.executable, "-c", OPEN_CLIP, str(models), "--model", f"same-{name}", *FLAGS[flags]]
    command += ["--train-data", str(work / "train.csv"), "--dataset-type", "csv", "--csv-separator", ","]
    command += ["--batch-size", str(batch_size), "--workers", str(workers), "--device", device]
    return [*command, "--log-every-n-steps", "1", "--logs", str(work / "logs"), "--grad-clip-norm", "1.0"]


def open_clip_model(c: dict[str, Any]) -> dict[str, Any]:
    """The fields of a resolved ModelConfig in the words of open_clip's model files."""
    vision = {"image_size": c["image_size"], "layers": c["image_layers"], "width": c["image_width"]}
    feature = c["image_width"] * (32 if c["image_encoder"] == "resnet" else 1)
    vision |= {"patch_size": c["patch_size"], "head_width": feature // c["image_heads"]}
    text = {"context_length": c["context_length"], "vocab_size": c["vocab_size"]}
    text |= {"width": c["text_width"], "heads": c["text_heads"], "layers": c["text_layers"]}
    return {
        "embed_dim": c["embed_dim"],
        "quick_gelu": c["activation"] == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": text,
    }


def compare(trial: Trial, flags: Sequence[str], rounds: int) -> dict[str, list[Step]]:
    """Side -> its steps, those of all rounds but the first few of each."""
    found: dict[str, list[Step]] = {"miniclip": [], **{f"open_clip {name}": [] for name in flags}}
    for turn in range(rounds):
        for side in found:
            print(f"{trial.name}, round {turn + 1} of {rounds}: {side}", flush=True)
            steps = trial.miniclip(turn) if side == "miniclip" else trial.open_clip(turn, side.split(" ", 1)[1])
            found[side] += steps[SKIPPED:]
    return found


def print_table(name: str, found: dict[str, list[Step]]) -> None:
    ours = statistics.median(step.pace for step in found["miniclip"])
    print(f"\n{name:28}samples/s   quartiles        waiting   loss   miniclip is")
    for side, steps in found.items():
        low, middle, high = statistics.quantiles([step.pace for step in steps], n=4)
        waited, loss = statistics.median(s.waited for s in steps), statistics.fmean(s.loss for s in steps)
        share = f"{ours / middle:9.2f} times as fast"
        print(f"{side:28}{middle:9.1f}   {f'{low:.1f} to {high:.1f}':17}{waited:6.1%}  {loss:6.3f}{share}")
    print(flush=True)


def print_curve(name: str, found: dict[str, list[Step]]) -> None:
    print(f"\n{name}: mean loss in eighths of the run, and how far a single step lies from its neighbours")
    for side, steps in found.items():
        losses = [step.loss for step in steps]
        parts = [losses[len(losses) * i // 8 : len(losses) * (i + 1) // 8] for i in range(8)]
        apart = statistics.fmean(abs(a - b) for a, b in itertools.pairwise(losses))
        print(f"{side:28}{' '.join(f'{statistics.fmean(part):.3f}' for part in parts)}   +- {apart:.3f}")
    print(flush=True)


if __name__ == "__main__":
    main()
