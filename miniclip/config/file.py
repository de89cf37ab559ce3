"""The configuration: frozen dataclasses <- a YAML file <- `--section.key VALUE`, checked before any long work.

Every section checks its own ranges when it is built; `load_config` turns each failure into one line that says what to
do. Nothing here imports torch, so that `train.py --help` answers at once.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from miniclip.common.printing import did_you_mean
from miniclip.config.eval_section import EvalConfig
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
    require,
)


@dataclass(frozen=True)
class Config:
    """The whole of a run."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    log: LogConfig

    def __post_init__(self) -> None:
        loss, bias = self.loss, self.model.logit_bias_init
        single = "loss.name=soft compares captions one by one; use data.captions_per_image=1, or loss.soft_share=0"
        require(loss.name != "soft" or not loss.soft_share or self.data.captions_per_image == 1, single)
        require(
            bias is None or loss.pairwise,
            f"model.logit_bias_init={bias} has no meaning for loss.name={loss.name}: a number added to every logit "
            "changes nothing there; leave it out",
        )
        require(
            self.data.weights_for == "loss" or loss.positives == "identity",
            f"data.weights_for=sampler draws an image several times in a batch, and loss.positives={loss.positives} "
            "would push it away from its own captions; use loss.positives=identity",
        )

    def with_start(self) -> Config:
        """Fill in where logit scale and bias of a sigmoid loss start: 10 and -10 (arXiv:2303.15343, section 3.2)."""
        scale, bias = self.model.logit_scale_init, self.model.logit_bias_init
        if self.loss.pairwise:
            scale = math.log(10) if scale is None else scale
            bias = -10.0 if bias is None else bias
        if bias == "balanced":
            bias = -math.log(self.data.batch_size - 1)
        return replace(self, model=replace(self.model, logit_scale_init=scale, logit_bias_init=bias))

    def with_precision(self, precision: Format) -> Config:
        """With the number format that train.precision=auto came to."""
        return replace(self, train=replace(self.train, precision=precision))

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of plain values: what YAML and trackers take."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


SECTIONS: dict[str, type] = {f.name: globals()[str(f.type)] for f in fields(Config)}


def load_config(arguments: Sequence[str] | None = None) -> Config:
    """Command line (default sys.argv[1:]) -> checked configuration. Raises ConfigError that names the key."""
    from jsonargparse import ArgumentError, ArgumentParser

    words = list(sys.argv[1:] if arguments is None else arguments)
    for k, word in enumerate(words):
        if k and words[k - 1] == "--config":
            words[k] = _file_of(word)
        elif word.startswith("--config="):
            words[k] = f"--config={_file_of(word.removeprefix('--config='))}"
    parser = ArgumentParser(
        prog="train.py",
        description="Train a CLIP-style model on captioned images. "
        "Start with: python train.py --config configs/shapes.yaml",
        exit_on_error=False,
        default_env=False,
    )
    about = "YAML file with the sections below, or one of those shipped, e.g. shapes"
    parser.add_argument("--config", action="config", help=about)
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    try:
        sections = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ConfigError(_advice(str(error))) from error
    return Config(**{name: getattr(sections, name) for name in SECTIONS})


def load_config_file(path: str | Path) -> Config:
    """The configuration that a run saved beside its results."""
    return load_config(["--config", str(path)])


def save_config(config: Config, path: str | Path) -> None:
    """Write every value, defaults included, as YAML."""
    import yaml

    Path(path).write_text(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _advice(message: str) -> str:
    """The parser's message, with the nearest known name where one was not known."""
    known = {f"{name}.{f.name}" for name, section in SECTIONS.items() for f in fields(section)}
    words = r"Group '([\w.]+)' does not accept option '([\w.]+)'|Option '([\w.]+)' is not accepted"
    match = re.search(words, message) or re.search(r"unrecognized arguments: --([\w.]+)", message)
    if match is None:
        return message
    key = ".".join(filter(None, match.groups()))
    choices = sorted(k for k in known if k.startswith(key.split(".")[0] + "."))
    listed = f"keys of this section: {', '.join(choices)}" if choices else f"sections: {', '.join(SECTIONS)}"
    return f"unknown key {key}{did_you_mean(key, known)} ({listed})"


def _file_of(config: str) -> str:
    """--config as a path: a name that is no file, without a folder or an ending, is one of the shipped files."""
    if Path(config).is_file() or Path(config).name != config or Path(config).suffix:
        return config
    # a wheel has them in the package, a clone beside it
    package = Path(__file__).parents[1]
    shipped = {path.stem: path for folder in (package, package.parent) for path in folder.glob("configs/*.yaml")}
    if config not in shipped:
        known = f"neither a file nor one of the shipped configurations {', '.join(sorted(shipped))}"
        raise ConfigError(f"--config {config}: {known}{did_you_mean(config, shipped)}")
    return str(shipped[config])


def smaller_training(config: Config, processes: int) -> list[str]:
    """Options that take less memory, the one that changes the least first; a resume refuses the last alone."""
    options = []
    pairs = config.train.micro_batch_size or -(-config.data.batch_size // processes)
    if pairs > 1:
        options.append(f"--train.micro_batch_size {pairs // 2}")
    if not config.model.activation_checkpointing:
        options.append("--model.activation_checkpointing true")
    return [*options, f"--data.batch_size {max(2, config.data.batch_size // 2)}"]
