"""Bootstrap 95 % intervals of figures that are counted over images, and of their differences between two models.

The bootstrap (Efron and Tibshirani, 1993, ch. 13): the images are drawn anew with replacement, every figure is counted
again, and the interval runs between the 2.5th and the 97.5th percentile. A resample is a weight an image (how often it
was drawn), so figures that are no means need no formula of their own; scipy's would want one statistic a figure. It
says what other images of the same kind would have given, and nothing of another seed. Axes: N images that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# (N,) float64 weights of the images, whole numbers that sum to N -> every figure by name
Statistic = Callable[[np.ndarray], Mapping[str, float]]
RESAMPLES = 1000


class Figure(NamedTuple):
    """One result. low, high: its 95 % interval, NaN if there is none. n: what it was counted over."""

    value: float
    low: float
    high: float
    n: int


def with_intervals(
    statistic: Statistic,
    groups: Sequence[int],
    counts: Mapping[str, int] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Figure]:
    """Every figure of statistic with its interval.

    groups: sizes of the parts that are drawn separately, whose sum is N. counts: what a figure was counted over, where
    that is not N. Equal groups and seed draw equal resamples, so that the figures of two models are paired.
    """
    n, draws = sum(groups), np.random.default_rng(seed)
    whole = statistic(np.ones(n))
    drawn: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(resamples):
        weights = [np.bincount(draws.integers(0, size, size), minlength=size) for size in groups]
        for name, value in statistic(np.concatenate(weights).astype(np.float64)).items():
            drawn[name].append(value)
    figures = {}
    for name, value in whole.items():
        finite = np.asarray([v for v in drawn[name] if np.isfinite(v)])
        low, high = np.percentile(finite, (2.5, 97.5)) if len(finite) else (np.nan, np.nan)
        figures[name] = Figure(float(value), float(low), float(high), (counts or {}).get(name, n))
    return figures


def differences(
    first: Statistic, second: Statistic, groups: Sequence[int], counts: Mapping[str, int] | None = None
) -> dict[str, Figure]:
    """second - first of each figure that both have, with the interval of the difference on the same drawn images."""

    def difference(weights: np.ndarray) -> dict[str, float]:
        then, now = first(weights), second(weights)
        return {name: now[name] - value for name, value in then.items() if name in now}

    return with_intervals(difference, groups, counts)
