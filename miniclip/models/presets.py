"""Architectures as pure data, and `resolve`, which completes and checks a `ModelConfig` with them.

The sizes are those of CLIP (arXiv:2103.00020, tables 19 and 20). All heads are 64 channels wide.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

from miniclip.common.printing import did_you_mean
from miniclip.config import ConfigError, ModelConfig
from miniclip.models.resnet import ModifiedResNet
from miniclip.models.tower import ImageTower, check_divides, is_size
from miniclip.models.transformer import ACTIVATIONS
from miniclip.models.vit import VisionTransformer

# model.image_encoder -> its class; another tower takes a line here, and its name among the config's choices
TOWERS: dict[str, type[ImageTower]] = {"resnet": ModifiedResNet, "vit": VisionTransformer}

_QUICKGELU = "-quickgelu"
_HEAD = 64


def _text(width: int, layers: int = 12) -> dict[str, Any]:
    return {"text_width": width, "text_heads": width // _HEAD, "text_layers": layers}


def _resnet(embed_dim: int, size: int, width: int, layers: tuple[int, ...], text: dict[str, Any]) -> dict[str, Any]:
    heads = 32 * width // _HEAD  # those of its attention pooling, which is 32 times as wide as the stem
    image = {"image_size": size, "image_width": width, "image_layers": layers, "image_heads": heads}
    return {"embed_dim": embed_dim, "image_encoder": "resnet", **image, **text}


def _vit(embed_dim: int, patch: int, width: int, layers: int, text: dict[str, Any], size: int = 224) -> dict[str, Any]:
    image = {"image_size": size, "image_width": width, "image_layers": layers, "image_heads": width // _HEAD}
    return {"embed_dim": embed_dim, "image_encoder": "vit", **image, "patch_size": patch, **text}


PRESETS: dict[str, dict[str, Any]] = {
    "RN50": _resnet(1024, 224, 64, (3, 4, 6, 3), _text(512)),
    "RN101": _resnet(512, 224, 64, (3, 4, 23, 3), _text(512)),
    "RN50x4": _resnet(640, 288, 80, (4, 6, 10, 6), _text(640)),
    "ViT-B-32": _vit(512, 32, 768, 12, _text(512)),
    "ViT-B-16": _vit(512, 16, 768, 12, _text(512)),
    "ViT-L-14": _vit(768, 14, 1024, 24, _text(768)),
    "ViT-S-16": _vit(384, 16, 384, 12, _text(384)),
    "ViT-S-32": _vit(384, 32, 384, 12, _text(384)),
    "tiny-resnet": _resnet(256, 64, 32, (1, 1, 1, 1), _text(256, 4)),
    "tiny-vit": _vit(256, 8, 192, 6, _text(256, 4), size=64),
}

# What every CLIP shares, filled in even without a preset.
DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "activation": "gelu",
    "logit_scale_init": math.log(1 / 0.07),  # CLIP section 2.5
}

_SIZES = ["embed_dim", "image_size", "image_width", "image_heads", "context_length", "vocab_size"]
_SIZES += ["text_width", "text_heads", "text_layers"]


# of a tower that stands in model.image or model.text the model says these itself
_IMAGE = ("image_encoder", "image_width", "image_layers", "image_heads", "patch_size")
_TEXT = ("text_width", "text_heads", "text_layers", "vocab_size")
ARCHITECTURE = ("embed_dim", "image_size", *_IMAGE, "context_length", *_TEXT, "activation", "logit_scale_init")
_LEARNING = ("init", "lock_image", "lock_text", "lora_image", "lora_text", "lora_targets")


def _preset_fields(name: str) -> dict[str, Any]:
    base = name.removesuffix(_QUICKGELU)
    if base not in PRESETS:
        known = f"; known: {', '.join(PRESETS)}"
        raise ConfigError(f"model.preset={name!r} is unknown{did_you_mean(base, PRESETS)}{known}")
    # OpenAI's released weights were trained with QuickGELU; the suffix is how such weights are named elsewhere.
    return {**PRESETS[base], **({"activation": "quick_gelu"} if base != name else {})}


def resolve(config: ModelConfig) -> ModelConfig:
    """Fill every field that is None from the preset and the defaults, then check that the sizes fit together.

    A field that `config` sets wins over the preset. Resolving twice changes nothing. `patch_size` stays None for a
    ResNet, and so do the sizes of a tower that comes from elsewhere; `logit_bias_init` None means a model without a
    bias.
    Raises ConfigError for an unknown preset, for missing fields (all of them named) and for sizes that do not fit.
    """
    base = {**DEFAULTS, **(_preset_fields(config.preset) if config.preset is not None else {})}
    given = {name: value for name, value in asdict(config).items() if value is not None}
    elsewhere = (*(_IMAGE if config.image else ()), *(_TEXT if config.text else ()))
    for name in filter(given.__contains__, elsewhere):
        kind = "image" if name in _IMAGE else "text"
        raise ConfigError(f"model.{name}={given[name]}: model.{kind} brings its own sizes; leave one of the two out")
    filled = {name: value for name, value in {**base, **given}.items() if name not in elsewhere}
    if isinstance(filled.get("image_layers"), list):
        filled["image_layers"] = tuple(filled["image_layers"])
    tower = TOWERS.get(filled.get("image_encoder", ""))
    optional = {*elsewhere, *(() if tower is not None and tower.has_patches else ("patch_size",))}
    needed = [name for name in ARCHITECTURE if name not in optional]
    missing = [name for name in needed if name not in filled]
    if missing:
        listed = ", ".join(f"model.{name}" for name in missing)
        raise ConfigError(f"{listed} must be set, or model.preset must name one of {', '.join(PRESETS)}")
    for name in _SIZES:
        if name in filled and not is_size(filled[name]):
            raise ConfigError(f"model.{name}={filled[name]!r} must be a whole number of at least 1")
    if isinstance(filled.get("logit_bias_init"), str):
        raise ConfigError("model.logit_bias_init=balanced depends on the batch of a training run; write the number")
    if filled["activation"] not in ACTIVATIONS:
        raise ConfigError(f"model.activation={filled['activation']!r} must be 'gelu' or 'quick_gelu'")
    if tower is None and not config.image:
        known = " or ".join(repr(name) for name in reversed(TOWERS))
        raise ConfigError(f"model.image_encoder={filled['image_encoder']!r} must be {known}")
    config = replace(config, **filled)
    if not config.image and tower is not None:
        tower.check(config)
    if not config.text:
        check_divides("text_width", filled["text_width"], "text_heads", filled["text_heads"])
    return config


def architecture(config: ModelConfig) -> ModelConfig:
    """What a model is, without where it began and what of it learns."""
    kept = {f.name: getattr(config, f.name) for f in fields(ModelConfig) if f.name not in _LEARNING}
    return ModelConfig(**kept)


def tower_of(config: ModelConfig) -> type[ImageTower]:
    """The class of a resolved config's image tower."""
    assert config.image_encoder is not None
    return TOWERS[config.image_encoder]
