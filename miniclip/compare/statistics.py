"""What runs of several seeds tell of a variant, and of its difference from another.

A seed draws the weights that a run begins with and the order of its pairs, so that runs of one seed have much in
common: differences are counted seed by seed, and Student's t interval (1908) of their mean covers the true one in 95 of
100 comparisons even of three seeds, as far as the differences spread like a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from miniclip.metrics.bootstrap import Figure

Seeds = Mapping[int, float]  # seed -> a figure of its run


class Spread(NamedTuple):
    """Of n values. sd: their standard deviation, over n - 1; NaN for one value."""

    mean: float
    sd: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without a value."""
    if not values:
        raise ValueError("there is no value to take the mean of")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), sd, len(values))


def paired(first: Seeds, second: Seeds) -> Figure | None:
    """second - first over the seeds that both have, with the 95 % interval of its mean; None without such a seed.

    There is no interval (NaN) for one seed, nor where all differences are equal: figures that are counted over few
    images often are, and tell nothing then of how other seeds would differ.
    """
    from scipy.stats import t

    apart = [second[seed] - first[seed] for seed in first if seed in second]
    if not apart:
        return None
    mean, sd, n = spread(apart)
    if not sd > 1e-12 * max(map(abs, apart)):
        return Figure(mean, math.nan, math.nan, n)
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Figure(mean, mean - half, mean + half, n)


def best(variants: Sequence[Seeds], lower: bool) -> int | None:
    """The variant that is better than every other one that has a value, by the interval of each difference; or None.

    lower: whether lower is better. No interval is widened for the number of variants: all of them have to agree.
    """
    sign = -1 if lower else 1
    known = [k for k, values in enumerate(variants) if values]

    def beats(k: int, other: int) -> bool:
        apart = paired(variants[other], variants[k])
        return apart is not None and min(sign * apart.low, sign * apart.high) > 0  # NaN is not

    found = [k for k in known if all(beats(k, other) for other in known if other != k)]
    return found[0] if len(known) > 1 and found else None
