"""Models: `create_model("ViT-B-32")` or `create_model(ModelConfig(...))`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from miniclip.common.printing import did_you_mean
from miniclip.config import ConfigError, ModelConfig
from miniclip.models.clip import DualEncoder
from miniclip.models.presets import PRESETS, TOWERS, architecture, resolve, tower_of

__all__ = ["PRESETS", "TOWERS", "DualEncoder", "architecture", "create_model", "resolve", "tower_of"]


def create_model(preset: str | ModelConfig, **overrides: Any) -> DualEncoder:
    """A freshly initialised model in training mode, on torch's default device.

    preset: a name from PRESETS, with "-quickgelu" behind it for QuickGELU, or a whole ModelConfig.
    overrides: fields of ModelConfig that win over it. torch.manual_seed before the call makes the weights reproducible.
    Raises ConfigError for an unknown preset or field and for sizes that do not fit together.
    """
    names = [f.name for f in fields(ModelConfig)]
    for name in overrides:
        if name not in names:
            raise ConfigError(f"model.{name} does not exist{did_you_mean(name, names)}; known: {', '.join(names)}")
    config = ModelConfig(preset=preset) if isinstance(preset, str) else preset
    return DualEncoder(replace(config, **overrides))
