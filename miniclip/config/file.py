"""The configuration: frozen dataclasses <- a YAML file <- `--section.key VALUE`, checked before any long work.

Every section checks its own ranges when it is built; `load_config` turns each failure into one line that says what to
do. Nothing here imports torch, so that `train.py --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from miniclip.common.arguments import at_home, kind_words, wrong_kind
from miniclip.common.durable import whole_file
from miniclip.common.printing import did_you_mean, near_name
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
from miniclip.config.yaml_file import read_values, refuse_twice


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
            not loss.text_to_text or self.data.captions_per_image > 1,
            f"loss.text_to_text={loss.text_to_text} pairs an image's captions; set data.captions_per_image, e.g. 2",
        )
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
        for name in self.train.dropped if self.model.activation_checkpointing else ():
            drawn = f"train.{name} draws in the blocks what model.activation_checkpointing would draw anew"
            raise ConfigError(f"{drawn} in the backward pass; set one of them to 0 or false")

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
_FIRST = {name: fields(section)[0].name for name, section in SECTIONS.items()}  # an example of each


def load_config(arguments: Sequence[str] | None = None, others: Sequence[str] = ()) -> Config:
    """Command line (default sys.argv[1:]) -> checked configuration. Raises ConfigError that names the key.

    others: further options of a command, which it has taken out; a misspelt one is told.

    The command line wins over --config wherever that stands, and of several files a later one over those before.
    """
    from jsonargparse import ArgumentParser

    own = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    own.add_argument("--config", action="append", default=[])
    parser = ArgumentParser(
        prog="train.py",
        description="Train a CLIP-style model on captioned images. "
        "Start with: python train.py --config configs/shapes.yaml",
        exit_on_error=False,
        default_env=False,
    )
    about = "YAML file with the sections below, or one of those shipped, e.g. shapes; of two the later wins, "
    about += "and options of the command line over both"
    parser.add_argument("--config", action="config", help=about)
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    for action in parser._actions:
        if action.dest in SECTIONS:
            action.help = argparse.SUPPRESS  # a section in one word is not taken, see _check_words
    hints = {
        f"{name}.{key}": hint for name, section in SECTIONS.items() for key, hint in get_type_hints(section).items()
    }
    values, where, given = None, "", {}
    try:
        files, words = own.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
        for path in map(_file_of, files.config):
            where, given = f"{path}: ", read_values(path, _FIRST)
            if unknown := next((key for key in given if key not in hints), None):
                raise ConfigError(where + _unknown(unknown, hints))
            values = parser.parse_object(given, values)
        where, given = "", _check_words(words)
        values = parser.parse_args(words, values)
        for key, hint in hints.items():
            if values[key] is None and NoneType not in get_args(hint):
                raise ConfigError(f"{key} has no value; write {kind_words(hint)}, or leave it out")
            values[key] = at_home(values[key])
        sections = parser.instantiate(values)
    except argparse.ArgumentError as error:
        message = str(error)
        if stray := re.search(r"unrecognized arguments: (\S+)", message):
            raise ConfigError(_stray(stray[1], ["config", *others, *hints])) from error
        raise ConfigError(where + wrong_kind(message, hints, given)) from error
    return Config(**{name: getattr(sections, name) for name in SECTIONS})


def load_config_file(path: str | Path) -> Config:
    """The configuration that a run saved beside its results. Raises ConfigError that names the file."""
    try:
        return load_config([f"--config={path}"])
    except ConfigError as error:
        if str(path) in str(error):
            raise
        raise ConfigError(f"{path}: {error}") from error  # such as a file that was cut between two lines


def save_config(config: Config, path: str | Path) -> None:
    """Write every value, defaults included, as YAML. Raises DiskFull."""
    import yaml

    text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _unknown(key: str, known: Collection[str]) -> str:
    """What is said of a key that is none: it names the same one of another section, or the nearest."""
    names = {k: k.rpartition(".")[2] for k in known}
    section, _, name = key.replace("-", "_").lower().rpartition(".")
    name = {"learning_rate": "lr"}.get(name, name)
    if name in names.values():
        near: str | None = name
    else:
        near = near_name(key, known) if section else near_name(name, [*SECTIONS, *names.values()])
    homes = [k for k in [*SECTIONS, *known] if near in (k, names.get(k, k))]
    homes = [k for k in homes if k == f"{section}.{name}"] or homes
    if homes:
        return f"unknown key {key}; did you mean {' or '.join(homes)}?"
    choices = sorted(k for k in known if k.startswith(f"{section}."))
    listed = f"keys of this section: {', '.join(choices)}" if choices else f"sections: {', '.join(SECTIONS)}"
    return f"unknown key {key} ({listed})"


def _stray(word: str, known: Collection[str]) -> str:
    """What is said of a word on the command line that belongs to nothing."""
    key, given, _ = word.lstrip("-").partition("=")
    if word.startswith("--"):
        return _unknown(key, known)
    if key in known:
        return f"{word}: write --{word.lstrip('-')}" + " VALUE" * (not given)
    return f"{word} stands alone; write --config {word} if it is a file, or --section.key VALUE for an option"


def _check_words(words: Sequence[str]) -> dict[str, str]:
    """The values of the command line by key. Raises ConfigError for a section in one word, or a value's key twice."""
    given = {}
    for word, following in pairwise([*words, ""]):
        name, direct, value = word.partition("=")
        key, value = name[2:], value if direct else following
        if word.startswith("--") and key in SECTIONS:
            raise ConfigError(
                f"{name} is a section of options; write --{key}.KEY VALUE, e.g. --{key}.{_FIRST[key]} {value}"
            )
        if word.startswith("--") and value[:1] in ("[", "{"):
            refuse_twice(f"{name} {value}", value)
        given[key] = value
    return given


def _file_of(config: str) -> Path:
    """--config as a path: a name that is no file, without a folder or an ending, is one of the shipped files."""
    path = Path(at_home(config))
    if path.is_file() or path.name != config or path.suffix:
        return path
    # a wheel has them in the package, a clone beside it
    package = Path(__file__).parents[1]
    shipped = {path.stem: path for folder in (package, package.parent) for path in folder.glob("configs/*.yaml")}
    if config not in shipped:
        known = f"neither a file nor one of the shipped configurations {', '.join(sorted(shipped))}"
        raise ConfigError(f"--config {config}: {known}{did_you_mean(config, shipped)}")
    return shipped[config]


def smaller_training(config: Config, processes: int) -> list[str]:
    """Options that take less memory, the one that changes the least first; a resume refuses the last alone."""
    options = []
    pairs = config.train.micro_batch_size or -(-config.data.batch_size // processes)
    if pairs > 1:
        options.append(f"--train.micro_batch_size {pairs // 2}")
    if not config.model.activation_checkpointing and not config.train.dropped:
        options.append("--model.activation_checkpointing true")
    return [*options, f"--data.batch_size {max(2, config.data.batch_size // 2)}"]
