"""A weight for each image, for data in which some classes are much rarer than others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniclip.config import ConfigError, DataConfig
from miniclip.data.captioned import PairSource


def class_weights(classes: Sequence[str], kind: str) -> list[float]:
    """Weight of each of N items by the n of its class: N / n (kind inverse) or ln(N / n) (kind log)."""
    counts = Counter(classes)
    ratios = {name: len(classes) / count for name, count in counts.items()}
    return [ratios[c] if kind == "inverse" else math.log(ratios[c]) for c in classes]


def image_weights(source: PairSource, config: DataConfig) -> Tensor | None:
    """data.weights for each image of a source: (len(source),) float32, of mean 1, or None. Raises ValueError."""
    if config.weight_column is None:
        return None
    column, values = config.weight_column, source.column(config.weight_column)
    of_classes = config.weights != "column"
    weights = class_weights(list(map(str, values)), config.weights) if of_classes else list(map(_number, values))
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if of_classes and (value is None or value == "" or value != value):  # the last is NaN
            raise ValueError(f"{source.name(i)}: {column} is empty; data.weights={config.weights} needs a class")
        if not 0 <= weight < math.inf:
            raise ValueError(f"{source.name(i)}: {column} holds {value!r}; a weight is a number of 0 or more")
    total = math.fsum(weights)
    if not total > 0:
        nothing = f"every image weighs 0 by {column}, whose first value is {values[0]!r}"
        raise ConfigError(f"data.weights={config.weights}: {nothing}; use another column, or data.weights=none")
    return torch.tensor(weights, dtype=torch.float64).mul_(len(weights) / total).float()


def _number(value: Any) -> float:
    """A CSV holds its numbers as text. NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
