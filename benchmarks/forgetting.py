"""What fine-tuning on new data costs on the old: a trained model goes on by each way of not forgetting.

    python benchmarks/forgetting.py --base RUN [RUN ...] --old DATA --new DATA --out DIR [--steps 150] [--png FILE]

One base run for each seed. Every way trains as many steps on --new; both figures are the mean of R@10 of the two
directions on the test splits. The weights of WiSE-FT are chosen on the validation splits. What is done stays in --out,
so a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMON = [
    "--data.batch_size",
    "128",
    "--data.augment",
    "resized_crop",
    "--data.flip",
    "0.5",
    "--optim.warmup_steps",
    "20",
    "--optim.weight_decay",
    "0.1",
    "--log.progress",
    "false",
    "--log.trackers",
    "[]",
    "--log.matrix_every",
    "0",
]
WAYS: dict[str, list[str]] = {
    "all weights": ["--optim.lr", "3e-4"],
    "image tower locked": ["--optim.lr", "3e-4", "--model.lock_image", "true"],
    "layer decay 0.6": ["--optim.lr", "3e-4", "--optim.layer_decay", "0.6"],
    "image locked, text by LoRA": ["--optim.lr", "1e-3", "--model.lock_image", "true", "--model.lora_text", "8"],
}


def run(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")


def figure(model: Path, data: str, folder: Path) -> float:
    """Mean R@10 of the two directions on the test split, in per cent."""
    results = folder / "results.json"
    if not results.exists():
        run("eval.py", "retrieval", "--checkpoint", str(model), "--data", data, "--split", "test", "--out", str(folder))
    figures = json.loads(results.read_text(encoding="utf-8"))["results"][0]["figures"]
    return 50 * sum(figures[f"{way}_r10"]["value"] for way in ("image_to_text", "text_to_image"))


def of_base(base: Path, seed: int, asked: Any) -> dict[str, tuple[float, float]]:
    """(new, old) of each way, and of the base itself."""
    models = {"before": base}
    for way, options in WAYS.items():
        models[way] = asked.out / f"{way.replace(' ', '-')}-{seed}"
        if not (models[way] / "results.json").exists():
            own = ["--model.init", str(base), "--data.source", asked.new, "--data.validation_split", "val"]
            own += ["--run.dir", str(models[way]), "--run.seed", str(seed), "--run.resume", "auto"]
            run("train.py", *own, "--train.max_steps", str(asked.steps), *COMMON, *options)
    mixed = asked.out / f"wise-ft-{seed}"
    models["WiSE-FT of all weights"] = mixed / "model"
    if not (mixed / "model").exists():
        ends = ["--from", str(base), "--to", str(models["all weights"]), "--alphas", "0:1:0.1", "--out", str(mixed)]
        kinds = ("--task", asked.new, "val"), ("--keep", asked.old, "validation")
        tasks = [w for key, data, split in kinds for w in (key, f"{{kind: retrieval, data: {data}, split: {split}}}")]
        run("eval.py", "interpolate", *ends, *tasks)
    places = {way: asked.out / "figures" / f"{way.replace(' ', '-')}-{seed}" for way in models}
    both = (asked.new, asked.old)
    return {way: tuple(figure(models[way], d, places[way] / f"{k}") for k, d in enumerate(both)) for way in models}  # type: ignore[misc]


def draw(found: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    _, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for number, (way, points) in enumerate(found.items()):
        new, old = zip(*points, strict=True)
        axes.scatter(old, new, s=14, alpha=0.4, color=f"C{number}")
        axes.scatter(statistics.fmean(old), statistics.fmean(new), s=70, marker="D", color=f"C{number}", label=way)
    axes.set_xlabel("what it could before: R@10 in %, mean of both directions")
    axes.set_ylabel("what it was to learn: likewise")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    plt.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, nargs="+", required=True)
    for name in ("--old", "--new"):
        parser.add_argument(name, required=True, help="captioned images, as data.source takes them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--png", type=Path)
    asked = parser.parse_args()
    asked.out = asked.out.absolute()
    runs = [of_base(base.absolute(), seed, asked) for seed, base in enumerate(asked.base)]
    found = {way: [one[way] for one in runs] for way in runs[0]}
    print("| | new: R@10 (%) | old: R@10 (%) |\n|---|---|---|")
    for way, points in found.items():
        columns = ([point[k] for point in points] for k in (0, 1))
        print(
            f"| {way} | "
            + " | ".join(f"{statistics.fmean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns)
            + " |"
        )
    (asked.out / "forgetting.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if asked.png:
        draw(found, asked.png)


if __name__ == "__main__":
    main()
