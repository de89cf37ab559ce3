"""Architectures as pure data, and `resolve`, which completes and checks a `ModelConfig` with them.

The sizes are those of CLIP (arXiv:2103.00020, tables 19 and 20), in the order they have in `ModelConfig`.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, fields, replace
from typing import Any

from miniclip.config import ConfigError, ModelConfig

_QUICKGELU = "-quickgelu"
RESNET_STRIDE = 32  # the stem and the three strided stages shrink the side by 2 five times

_SMALL_TEXT = {"text_width": 256, "text_heads": 4, "text_layers": 4}

# image_heads of a ResNet are those of its attention pooling: 32 * image_width channels in heads of 64.
PRESETS: dict[str, dict[str, Any]] = {
    "RN50": {
        "embed_dim": 1024,
        "image_encoder": "resnet",
        "image_size": 224,
        "image_width": 64,
        "image_layers": (3, 4, 6, 3),
        "image_heads": 32,
        "text_width": 512,
        "text_heads": 8,
        "text_layers": 12,
    },
    "RN101": {
        "embed_dim": 512,
        "image_encoder": "resnet",
        "image_size": 224,
        "image_width": 64,
        "image_layers": (3, 4, 23, 3),
        "image_heads": 32,
        "text_width": 512,
        "text_heads": 8,
        "text_layers": 12,
    },
    "RN50x4": {
        "embed_dim": 640,
        "image_encoder": "resnet",
        "image_size": 288,
        "image_width": 80,
        "image_layers": (4, 6, 10, 6),
        "image_heads": 40,
        "text_width": 640,
        "text_heads": 10,
        "text_layers": 12,
    },
    "ViT-B-32": {
        "embed_dim": 512,
        "image_encoder": "vit",
        "image_size": 224,
        "image_width": 768,
        "image_layers": 12,
        "image_heads": 12,
        "patch_size": 32,
        "text_width": 512,
        "text_heads": 8,
        "text_layers": 12,
    },
    "ViT-B-16": {
        "embed_dim": 512,
        "image_encoder": "vit",
        "image_size": 224,
        "image_width": 768,
        "image_layers": 12,
        "image_heads": 12,
        "patch_size": 16,
        "text_width": 512,
        "text_heads": 8,
        "text_layers": 12,
    },
    "ViT-L-14": {
        "embed_dim": 768,
        "image_encoder": "vit",
        "image_size": 224,
        "image_width": 1024,
        "image_layers": 24,
        "image_heads": 16,
        "patch_size": 14,
        "text_width": 768,
        "text_heads": 12,
        "text_layers": 12,
    },
    "ViT-S-16": {
        "embed_dim": 384,
        "image_encoder": "vit",
        "image_size": 224,
        "image_width": 384,
        "image_layers": 12,
        "image_heads": 6,
        "patch_size": 16,
        "text_width": 384,
        "text_heads": 6,
        "text_layers": 12,
    },
    "ViT-S-32": {
        "embed_dim": 384,
        "image_encoder": "vit",
        "image_size": 224,
        "image_width": 384,
        "image_layers": 12,
        "image_heads": 6,
        "patch_size": 32,
        "text_width": 384,
        "text_heads": 6,
        "text_layers": 12,
    },
    "tiny-resnet": {
        "embed_dim": 256,
        "image_encoder": "resnet",
        "image_size": 64,
        "image_width": 32,
        "image_layers": (1, 1, 1, 1),
        "image_heads": 16,
        **_SMALL_TEXT,
    },
    "tiny-vit": {
        "embed_dim": 256,
        "image_encoder": "vit",
        "image_size": 64,
        "image_width": 192,
        "image_layers": 6,
        "image_heads": 3,
        "patch_size": 8,
        **_SMALL_TEXT,
    },
}

# What every CLIP shares, filled in even without a preset.
DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "activation": "gelu",
    "logit_scale_init": math.log(1 / 0.07),  # CLIP section 2.5
}

_SIZES = (
    "embed_dim",
    "image_size",
    "image_width",
    "image_heads",
    "context_length",
    "vocab_size",
    "text_width",
    "text_heads",
    "text_layers",
)


def nearest(name: str, choices: list[str]) -> str:
    """The end of an error message: the closest choice, if there is one, and all of them."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(choices)}"


def _preset_fields(name: str) -> dict[str, Any]:
    base = name.removesuffix(_QUICKGELU)
    if base not in PRESETS:
        raise ConfigError(f"model.preset={name!r} is unknown; {nearest(base, list(PRESETS))}")
    # OpenAI's released weights were trained with QuickGELU; the suffix is how such weights are named elsewhere.
    return {**PRESETS[base], **({"activation": "quick_gelu"} if base != name else {})}


def resolve(config: ModelConfig) -> ModelConfig:
    """Fill every field that is None from the preset and the defaults, then check that the sizes fit together.

    A field that `config` sets wins over the preset. Resolving twice changes nothing. `patch_size` stays None for a
    ResNet, and `logit_bias_init` None means a model without a bias.
    Raises ConfigError for an unknown preset, for missing fields (all of them named) and for sizes that do not fit.
    """
    base = {**DEFAULTS, **(_preset_fields(config.preset) if config.preset is not None else {})}
    given = {name: value for name, value in asdict(config).items() if value is not None}
    filled = {**base, **given}
    if isinstance(filled.get("image_layers"), list):
        filled["image_layers"] = tuple(filled["image_layers"])

    optional = {"preset", "logit_bias_init", "activation_checkpointing"}
    if filled.get("image_encoder") != "vit":
        optional.add("patch_size")
    missing = [f.name for f in fields(ModelConfig) if f.name not in filled and f.name not in optional]
    if missing:
        listed = ", ".join(f"model.{name}" for name in missing)
        raise ConfigError(f"{listed} must be set, or model.preset must name one of {', '.join(PRESETS)}")
    _check(filled)
    return replace(config, **filled)


def image_stride(config: ModelConfig) -> int:
    """Pixels of which every image side that the image encoder takes is a multiple; config is resolved."""
    return config.patch_size or RESNET_STRIDE


def _check(c: dict[str, Any]) -> None:
    for name in _SIZES:
        if not _is_size(c[name]):
            raise ConfigError(f"model.{name}={c[name]!r} must be a whole number of at least 1")
    if isinstance(c.get("logit_bias_init"), str):
        raise ConfigError(
            "model.logit_bias_init=balanced depends on the batch of a training run; write the number here"
        )
    if c["activation"] not in ("gelu", "quick_gelu"):
        raise ConfigError(f"model.activation={c['activation']!r} must be 'gelu' or 'quick_gelu'")
    if c["image_encoder"] == "vit":
        _check_vit(c)
    elif c["image_encoder"] == "resnet":
        _check_resnet(c)
    else:
        raise ConfigError(f"model.image_encoder={c['image_encoder']!r} must be 'vit' or 'resnet'")
    _divides("text_width", c["text_width"], "text_heads", c["text_heads"])


def _check_vit(c: dict[str, Any]) -> None:
    if not _is_size(c["image_layers"]):
        raise ConfigError(f"model.image_layers={c['image_layers']!r} must be one whole number for a vit, e.g. 12")
    if not _is_size(c["patch_size"]):
        raise ConfigError(f"model.patch_size={c['patch_size']!r} must be a whole number of at least 1")
    _divides("image_size", c["image_size"], "patch_size", c["patch_size"])
    _divides("image_width", c["image_width"], "image_heads", c["image_heads"])


def _check_resnet(c: dict[str, Any]) -> None:
    layers = c["image_layers"]
    if not (isinstance(layers, tuple) and len(layers) == 4 and all(map(_is_size, layers))):
        raise ConfigError(
            f"model.image_layers={layers!r} must be four whole numbers of at least 1 for a resnet, e.g. [3, 4, 6, 3]"
        )
    if "patch_size" in c:
        raise ConfigError(f"model.patch_size={c['patch_size']} has no meaning for a resnet; leave it out")
    if c["image_width"] % 2:
        raise ConfigError(
            f"model.image_width={c['image_width']} must be even: the resnet's stem starts with half of it"
        )
    _divides("image_size", c["image_size"], "the resnet's stride", RESNET_STRIDE)
    _divides("image_width * 32", c["image_width"] * 32, "image_heads", c["image_heads"])


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _divides(name: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        near = max(1, round(value / divisor)) * divisor
        raise ConfigError(f"model.{name}={value} is not divisible by {by}={divisor}; the nearest that is: {near}")
