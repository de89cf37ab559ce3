"""The configuration: every option with its meaning, default and range; the file, and `--section.key VALUE`."""

from __future__ import annotations

from miniclip.config.eval_section import EvalConfig, EvalTask
from miniclip.config.file import SECTIONS, Config, load_config, load_config_file, save_config, smaller_training
from miniclip.config.loss import LossConfig
from miniclip.config.sections import (
    ConfigError,
    DataConfig,
    Format,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

__all__ = [
    "SECTIONS",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "EvalTask",
    "Format",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "load_config_file",
    "save_config",
    "smaller_training",
]
