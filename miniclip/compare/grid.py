"""The variants of a comparison: every combination of what is varied, each read as a training would read it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from miniclip.common.printing import did_you_mean
from miniclip.config import SECTIONS, Config, ConfigError, load_config

SEEDS_BELOW = 1_000_000  # larger ones are those of tuning
# what a comparison sets in each run; its length is the budget's
_OWN = ("run.dir", "run.resume", "run.overwrite")
_LENGTH = ("train.max_steps", "train.epochs")


@dataclass(frozen=True)
class Variant:
    """One point of the grid. options: what sets it apart; under "config" a file that is laid over the first.
    config: all of it."""

    name: str
    options: dict[str, Any]
    config: Config


def axes_of(base: Sequence[str], vary: Sequence[str], budget: bool) -> dict[str, list[Any]]:
    """Each key that is varied, with its values.

    base: words of a training that all runs share. vary: KEY=VALUE,VALUE each. budget: whether the length of the runs is
    given otherwise. Raises ConfigError.
    """
    known = ["config", *(f"{name}.{field.name}" for name, section in SECTIONS.items() for field in fields(section))]
    given = {word[2:].partition("=")[0] for word in base if word.startswith("--")}
    axes: dict[str, list[Any]] = {}
    for text in vary:
        key, values = _axis(text)
        if key in axes:
            raise ConfigError(f"--vary {key} is there twice; list its values in one")
        axes[key] = values
    for key in axes:
        if key not in known:  # which a parser might take for the beginning of another
            raise ConfigError(f"--vary {key}: no such key{did_you_mean(key, known)}")
        if key in given and key != "config":
            raise ConfigError(f"--{key} is given and varied; leave one of them out")
    for key in [*given, *axes]:
        if key in _OWN or (key in axes and key.startswith("run.")):
            raise ConfigError(f"{key} is the comparison's own: it gives each run a folder in --out, and --seeds a seed")
        if budget and key in _LENGTH:
            raise ConfigError(f"{key} is the length of a run, and so are --steps, --samples and --seconds; give one")
    return axes


def variants_of(base: Sequence[str], axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every combination, in the order of the values. Raises ConfigError that names one that no training would take."""
    found = []
    for values in itertools.product(*axes.values()):
        options = dict(zip(axes, values, strict=True))
        name = ", ".join(f"{key}={word(value)}" for key, value in options.items())
        found.append(Variant(name or "as configured", options, _loaded(name, [*base, *words(options)])))
    return found


def seeds_of(text: str, first: int) -> list[int]:
    """`3` -> first, first + 1, first + 2; `0,4,7` -> those. Raises ConfigError."""
    try:
        listed = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds {text}: write how many, e.g. 3, or which, e.g. 0,4,7") from None
    seeds = listed if "," in text else list(range(first, first + listed[0]))
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < SEEDS_BELOW for seed in seeds):
        raise ConfigError(f"--seeds {text}: there must be at least one, each once, in [0, {SEEDS_BELOW:,})")
    return seeds


def words(options: dict[str, Any]) -> list[str]:
    """As the command line of a training takes them."""
    return [f"--{key}={word(value)}" for key, value in options.items()]


def word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain_value(text: str) -> Any:
    """A number, true, false, null or a list as JSON writes it; all else is text."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text
    return text if isinstance(value, str) else value


def split_values(text: str) -> list[str]:
    """At commas outside of brackets: `[0.9,0.98],[0.9,0.99]` has two."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def flat_config(config: Config) -> dict[str, Any]:
    """{"optim.lr": 0.001, ...}: of what a run computes, not of where it lies and what it writes down."""
    sections = {name: own for name, own in config.to_dict().items() if name not in ("run", "log")}
    return {f"{section}.{key}": value for section, own in sections.items() for key, value in own.items()}


def folder_name(name: str, taken: Collection[str]) -> str:
    """A name for a folder, of letters, digits and =.,+- alone, that none of those taken has."""
    plain = re.sub(r"[^\w.,=+-]+", "_", name.replace(", ", ","))[:100].strip("._") or "run"
    return next(one for k in itertools.count(1) if (one := plain + f"_{k}" * (k > 1)) not in taken)


def _axis(text: str) -> tuple[str, list[Any]]:
    key, _, listed = text.partition("=")
    parts = split_values(listed)
    if not key or not all(parts):
        raise ConfigError(f"--vary {text}: write KEY=VALUE,VALUE, e.g. --vary loss.name=softmax,sigmoid")
    values = [plain_value(part) for part in parts]
    told = [json.dumps(value) for value in values]
    twice = [word(value) for value, one in zip(values, told, strict=True) if told.count(one) > 1]
    if twice:
        raise ConfigError(f"--vary {key}: {twice[0]} is there twice")
    return key.lstrip("-"), values


def _loaded(name: str, arguments: Sequence[str]) -> Config:
    try:
        return load_config(arguments, OPTIONS)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if name else str(error)) from error


def _no_number(name: str) -> None:
    raise ValueError(name)


# of the command, of which a misspelt one is told by its right name
OPTIONS = ("vary", "seeds", "out", "jobs", "steps", "samples", "seconds", "tune", "metric", "launch", "list")
