"""The numbers of small runs, held against golden.json: losses, weights, tables and a matrix, by command lines alone.

To add the entry of another kind of machine, or to replace all entries (--anew): python tests/test_golden.py [--anew]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_name("golden.json")
TIMED = {"time", "command", "versions", "samples_per_s", "tokens_per_s", "pixels_per_s", "data_wait", "mfu"}
TIMED |= {"memory_peak_gb", "train_seconds"}
# what another rounding may turn over as a whole: digests, and what is sorted or picked by a figure
EXACT_ONLY = re.compile(
    r"/(weights|orders|verdicts|temperature|best|best_scale|pair_loss|suspected_false_negatives|false_negatives"
    r"|hardest_negatives|worst_positives|model/fingerprint)$"
)
# without AVX-512, or without any vectors, nothing moved by more than 1e-4 of its size, and no rank or count, except
# for the ResNet's gradients: a ReLU that turns moves their norm by 1e-2
ROUNDING, GRADIENTS = 1e-3, 5e-2

TOWERS = {"embed_dim": 16, "image_size": 32, "context_length": 24, "text_width": 16, "text_heads": 2, "text_layers": 1}
COMMON: dict[str, Any] = {
    "optim": {"lr": 5e-4, "warmup_steps": 4},
    "log": {"every": 1, "trackers": [], "progress": False, "matrix_every": 10, "matrix_size": 8},
}
TRAIN = {"max_steps": 20, "precision": "fp32", "cpu_threads": 1}
VIT = {"image_encoder": "vit", "patch_size": 8, "image_width": 16, "image_layers": 1, "image_heads": 2}
RESNET = {"image_encoder": "resnet", "image_width": 8, "image_layers": [1, 1, 1, 1], "image_heads": 4}
SCENES = COMMON | {
    "model": TOWERS | VIT | {"logit_bias_init": "balanced"},
    "data": {"source": "shapes", "size": 80, "batch_size": 16},
    "loss": {"name": "sigmoid"},
    "train": TRAIN | {"micro_batch_size": 8, "patch_dropout": 0.25, "low_image_size": 16, "low_share": 0.25},
    "eval": {"size": 32, "every": 10, "tasks": ["retrieval", "shape", "count", "relation"]},
}
PHOTOS = COMMON | {
    "model": TOWERS | RESNET,
    "data": {"source": "photos", "batch_size": 16, "captions_per_image": 2, "max_bad_fraction": 0.1}
    | {"augment": "resized_crop", "flip": 0.5, "colour_jitter": 0.3},
    "train": TRAIN | {"small_vocabulary": True},
    "eval": {"every": 10, "best": "retrieval/text_to_image_mean_rank"},
}


def write_photos(folder: Path) -> None:
    """Coarse patterns with two or three captions each, some of them equal, one image unreadable."""
    folder.mkdir()
    noise, rows = np.random.default_rng(0), []
    for k in range(56):
        hue = k % 4
        blocks = noise.integers(0, 2, (3, 3, 3)) * 100 + 155 * (np.arange(3) == hue)
        Image.fromarray(blocks.astype(np.uint8).repeat(14, 0).repeat(12, 1)).save(folder / f"{k}.png")
        name = ("red", "green", "blue", "grey")[hue]
        captions = [f"picture {k} of {name} blocks", f"a {name} one", f"number {k}, a photo"][: 2 + k // 4 % 2]
        split = "train" if k < 32 else "validation" if k < 40 else "test"
        rows.append({"file_name": f"{k}.png", "captions": captions, "split": split})
    (folder / "9.png").write_bytes(b"no picture")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbers(folder: Path) -> dict[str, Any]:
    """Run everything in an empty folder; what came out, by name."""
    write_photos(folder / "photos")
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MINICLIP_CACHE": "cache", "MPLBACKEND": "Agg"}
    variables |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, config in (("scenes", SCENES), ("patterns", PHOTOS)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    for line in (
        "train.py --config scenes.yaml --run.dir scenes",
        "train.py --config patterns.yaml --run.dir patterns",
        "eval.py matrix --checkpoint patterns --size 8 --precision fp32",
        "eval.py retrieval --checkpoint patterns --data photos --split train --max_bad_fraction 0.1 --precision fp32",
        "eval.py zeroshot --checkpoint scenes --task colour --size 32 --precision fp32",
    ):
        script, *options = line.split()
        command = [sys.executable, str(ROOT / script), *options]
        subprocess.run(command, cwd=folder, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = {}
    for run in ("scenes", "patterns"):
        for step in map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines()):
            for key in step.keys() - TIMED:
                found.setdefault(f"{run}/metrics/{key}", []).append(step[key])
        weights = load_file(folder / run / "model" / "model.safetensors")
        found[f"{run}/weights"] = {k: hashlib.sha256(w.tobytes()).hexdigest() for k, w in weights.items()}
        found[f"{run}/norms"] = {k: math.sqrt(np.square(w, dtype=float).sum()) for k, w in weights.items()}
        for path in sorted((folder / run).rglob("results.json")):
            for key, value in json.loads(path.read_text()).items():
                found[f"{path.relative_to(folder).parent}/{key}"] = value
    for key, value in json.loads((folder / "patterns" / "inspection" / "matrix.json").read_text()).items():
        found[f"matrix/{key}"] = value
    return {name: kept(value) for name, value in found.items() if name.rsplit("/", 1)[-1] not in TIMED}


def kept(value: Any) -> Any:
    """Without what differs from time to time: a float64 dot product hangs, at its end, on where its arrays lie."""
    if isinstance(value, dict):
        return {k: kept(v) for k, v in value.items() if k not in TIMED}
    if isinstance(value, list):
        return [kept(v) for v in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def digests(found: dict[str, Any]) -> dict[str, str]:
    return {k: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:12] for k, v in found.items()}


def kind() -> str:
    """What the last bits hang on."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if Path("/proc/cpuinfo").exists() else []
    about = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    processor = [about.get(key, "") for key in ("model name", "cpu family", "model")]
    capability = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", "")]
    return " | ".join([*processor, torch.__version__, *capability])


def coarse(value: Any, name: str = "") -> Any:
    """To seven digits, without what is only held exactly."""
    if isinstance(value, dict):
        return {k: coarse(v, f"{name}/{k}") for k, v in value.items() if not EXACT_ONLY.search(f"{name}/{k}")}
    if isinstance(value, list):
        return [coarse(v, name) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two of them differ by more than the rounding of another machine."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            line
            for k in sorted(one.keys() | other.keys())
            for line in differences(one.get(k, "nothing"), other.get(k, "nothing"), f"{name}/{k}")
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for k, (a, b) in pairs for line in differences(a, b, f"{name}/{k}")]
    rounding = GRADIENTS if "grad_norm" in name else ROUNDING
    numeric = isinstance(one, float) and isinstance(other, float)
    same = math.isclose(one, other, rel_tol=rounding, abs_tol=2e-4) if numeric else one == other
    return [] if same else [f"{name}: {one} in golden.json, now {other}"]


@pytest.mark.slow
def test_the_numbers_are_those_of_golden_json(tmp_path: Path) -> None:
    """To the bit on a kind of machine that is recorded there, elsewhere within rounding."""
    found, golden = numbers(tmp_path.resolve()), json.loads(GOLDEN.read_text())
    apart = differences(golden["values"], coarse(found))
    assert not apart, "\n".join(apart[:20])
    if kind() in golden["kinds"]:
        recorded, now = dict(zip(golden["names"], golden["kinds"][kind()], strict=True)), digests(found)
        changed = [name for name in sorted(recorded.keys() | now.keys()) if recorded.get(name) != now.get(name)]
        assert not changed, f"within rounding, but not the same to the bit: {', '.join(changed)}"


def record(anew: bool) -> None:
    """Write this machine's entry."""
    with tempfile.TemporaryDirectory() as folder:
        found = numbers(Path(folder).resolve())
    names = sorted(found)
    golden = {"names": names, "kinds": {}, "values": coarse(found)} if anew else json.loads(GOLDEN.read_text())
    assert golden["names"] == names and not differences(golden["values"], coarse(found)), "other numbers; see --anew"
    golden["kinds"][kind()] = [digests(found)[name] for name in names]
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    record("--anew" in sys.argv[1:])
