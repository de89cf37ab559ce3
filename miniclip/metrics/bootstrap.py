"""95 % intervals of figures that are counted over images, and of their differences between two models.

What other images of the same kind would have given; nothing of another seed. Every method holds at the edges, where a
plain bootstrap of 200 hits in 200 says [1, 1], and its value lies inside:

- shares (top-k, recall at k): Wilson's score interval (1927). What one image brings counts as a cluster, so that n is
  the effective one by the clusters' variance (Kish, 1965; Korn and Graubard, 1998), as `effective_size` has it.
- their differences: Agresti and Min's interval of matched pairs (2005), over the same clusters.
- other figures in [0, 1]: the same two, with the variance that the bootstrap (Efron and Tibshirani, 1993) finds.
- sums of absolute values (calibration error), which noise makes larger: the bootstrap's noise around smaller and larger
  errors of the same shape; kept are those that explain the value. Their differences: from end to end of both.
- ranks: percentiles of the bootstrap; none where all resamples are equal, which says nothing of rarer ranks.

Axes: N images that are drawn. A resample is a weight an image, how often it was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Z = 1.959963984540054  # of the normal distribution, 95 % two-sided
RESAMPLES = 1000

# (N,) float64 weights of the images, whole numbers that sum to N -> figures by name
Counted = Callable[[np.ndarray], Mapping[str, float]]


class Figure(NamedTuple):
    """One result. low, high: its 95 % interval, NaN if there is none. n: what it was counted over."""

    value: float
    low: float
    high: float
    n: int


class Share(NamedTuple):
    """(n,) each, of the first n that are drawn: what an image adds to the share, in [0, whole], and what it could."""

    part: np.ndarray
    whole: np.ndarray

    @classmethod
    def of(cls, hits: np.ndarray, image: np.ndarray | None = None) -> Share:
        """hits: in [0, 1]; of images, or of what belongs to them, image saying which (each has some)."""
        if image is None:
            return cls(hits.astype(np.float64), np.ones(len(hits)))
        return cls(np.bincount(image, hits), np.bincount(image).astype(np.float64))

    def mean(self, weights: np.ndarray) -> float:
        weights = weights[: len(self.part)]
        whole = float(self.whole @ weights)
        return float(self.part @ weights) / whole if whole else float("nan")

    def clusters(self) -> float:
        """How many images, were all of one size, would tell as much (Kish)."""
        return float(self.whole.sum() ** 2 / np.square(self.whole).sum())

    def influence(self) -> np.ndarray:
        """(n,): by how much each image moves the share, to first order; the squares sum up to its variance."""
        whole = self.whole.sum()
        return (self.part - self.part.sum() / whole * self.whole) / whole


class Gaps(NamedTuple):
    """A sum of |gaps|. gaps: weights -> (B,). share: whose excess over what was expected the gaps are the parts of, so
    that the figure is no less than that excess."""

    gaps: Callable[[np.ndarray], np.ndarray]
    share: str


def _nothing(weights: np.ndarray) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Statistic:
    """Figures by name, under weights of the images. shares, gaps: see there. rates: others in [0, 1]. ranks: from 1.
    sizes: of a rate, how many images it is worth; else the smallest group."""

    shares: Mapping[str, Share] = field(default_factory=dict)
    rates: Counted = _nothing
    ranks: Counted = _nothing
    gaps: Mapping[str, Gaps] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, weights: np.ndarray) -> dict[str, float]:
        found = {name: share.mean(weights) for name, share in self.shares.items()} | dict(self.rates(weights))
        found |= {name: float(np.abs(gap.gaps(weights)).sum()) for name, gap in self.gaps.items()}
        return found | dict(self.ranks(weights))


def with_intervals(
    statistic: Statistic,
    groups: Sequence[int],
    counts: Mapping[str, int] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Figure]:
    """Every figure of statistic with its interval; without resamples, shares alone have one.

    groups: sizes of the parts that are drawn separately, whose sum is N. counts: what a figure was counted over, where
    that is not N.
    """
    ones, found = np.ones(sum(groups)), _resampled(statistic, groups, resamples, seed)
    values, ends = statistic(ones), dict[str, tuple[float, float]]()
    for name, share in statistic.shares.items():
        ends[name] = score_interval(values[name], float(np.square(share.influence()).sum()), share.clusters())
    for name, gap in statistic.gaps.items():
        if name in found and math.isfinite(values[name]):
            here, excess = gap.gaps(ones), float(gap.gaps(ones).sum()) - values[gap.share]
            low, high = gap_interval(here, found[name])
            ends[name] = low, max(high, *(abs(excess + end) for end in ends[gap.share]))
    ranks = statistic.ranks(ones)
    for name, resampled in ((name, found[name]) for name in found.keys() - statistic.gaps.keys()):
        n = statistic.sizes.get(name, min(groups))
        rank, of = name in ranks, values[name]
        ends[name] = percentiles(of, resampled) if rank else score_interval(of, float(np.var(resampled)), n)
    return _figures(values, ends, counts, len(ones))


def differences(
    first: Statistic, second: Statistic, groups: Sequence[int], counts: Mapping[str, int] | None = None
) -> dict[str, Figure]:
    """second - first of each figure that both have, with the interval of the difference on the same drawn images."""

    def less(one: Counted, other: Counted) -> Counted:
        def difference(weights: np.ndarray) -> dict[str, float]:
            then, now = one(weights), other(weights)
            return {name: now[name] - value for name, value in then.items() if name in now}

        return difference

    apart = Statistic(rates=less(first.rates, second.rates), ranks=less(first.ranks, second.ranks))
    ones, found = np.ones(sum(groups)), _resampled(apart, groups, RESAMPLES, 0)
    values, ends = less(first, second)(ones), dict[str, tuple[float, float]]()
    for name in (name for name in first.shares if name in second.shares):
        share, other = first.shares[name], second.shares[name]
        variance = float(np.square(other.influence() - share.influence()).sum())
        ends[name] = paired_interval(values[name], variance, share.clusters())
    ranks = apart.ranks(ones)
    for name, resampled in found.items():
        n = first.sizes.get(name, min(groups))
        rank, of = name in ranks, values[name]
        ends[name] = percentiles(of, resampled) if rank else paired_interval(of, float(np.var(resampled)), n)
    if both := first.gaps.keys() & second.gaps.keys():
        one, two = (with_intervals(Statistic(s.shares, gaps=s.gaps), groups) for s in (first, second))
        for name in both:
            (_, was_low, was_high, _), (_, low, high, _) = one[name], two[name]
            ends[name] = low - was_high, high - was_low
    return _figures(values, ends, counts, len(ones))


def score_interval(value: float, variance: float, n: float) -> tuple[float, float]:
    """Wilson's of a value in [0, 1] from n images, for as many independent ones as its variance tells of.

    For that, one image that has all and one that has nothing are added: where the value is 0 or 1, and the variance
    with it, that leaves n, and where there are many images it changes nothing.
    """
    p = (n * value + 1) / (n + 2)
    with_two = ((n * n * variance + n * value**2 + 1) / (n + 2) - p * p) / (n + 2)
    n = p * (1 - p) / with_two * n / (n + 2)
    centre, half = value + Z * Z / (2 * n), Z * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    return (
        max(0.0, min(value, (centre - half) / (1 + Z * Z / n))),  # within rounding
        min(1.0, max(value, (centre + half) / (1 + Z * Z / n))),
    )


def paired_interval(value: float, variance: float, n: float) -> tuple[float, float]:
    """Agresti and Min's of a difference in [-1, 1] over n images: half an image of each kind is added, which has a
    width where the two models never differ."""
    centre = n * value / (n + 2)
    half = Z * math.sqrt(((n * n * variance + n * value**2 + 1) / (n + 2) - centre**2) / (n + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def percentiles(value: float, found: np.ndarray) -> tuple[float, float]:
    """Of resamples, with the value inside; NaN where they are all equal."""
    low, high = np.percentile(found, (2.5, 97.5))
    return (min(value, float(low)), max(value, float(high))) if np.ptp(found) else (math.nan, math.nan)


def gap_interval(gaps: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Of the sum of |gaps|, (B,); drawn: (R, B), of resamples.

    Noise makes the sum larger, and in a resample once more. So the noise of the resamples is put around gaps that are
    a share of those found: from the smallest share that explains the value, 0 for a calibrated model, to the largest.
    """
    from scipy.optimize import brentq

    value, noise = float(np.abs(gaps).sum()), drawn - gaps
    if value == 0:
        return 0.0, 0.0

    def excess(share: float, percent: float) -> float:
        return float(np.percentile(np.abs(share * gaps + noise).sum(1), percent)) - value

    low = 0.0 if excess(0, 97.5) >= 0 else brentq(excess, 0, 1, (97.5,)) if excess(1, 97.5) > 0 else 1.0
    beyond = 2 + float(np.abs(noise).sum(1).max()) / value  # where even the resample with the most noise is larger
    high = brentq(excess, 1, beyond, (2.5,)) if excess(1, 2.5) < 0 else 1.0
    return low * value, high * value


def _resampled(statistic: Statistic, groups: Sequence[int], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Of the resamples, what is no share: the finite rates and ranks, (R,) each, and the gaps, (R, B).

    Equal groups and seed draw equal images, so that two models are paired.
    """
    draws, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    bare = not {**statistic.rates(ones := np.ones(sum(groups))), **statistic.ranks(ones), **statistic.gaps}
    for _ in range(0 if bare else resamples):
        weights = [np.bincount(draws.integers(0, size, size), minlength=size) for size in groups]
        drawn = np.concatenate(weights).astype(np.float64)
        gaps = {name: gap.gaps(drawn) for name, gap in statistic.gaps.items()}
        rows.append({**statistic.rates(drawn), **statistic.ranks(drawn), **gaps})
    found = {name: np.asarray([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    finite = {name: x if name in statistic.gaps else x[np.isfinite(x)] for name, x in found.items()}
    return {name: x for name, x in finite.items() if len(x)}


def _figures(
    values: Mapping[str, float], ends: Mapping[str, tuple[float, float]], counts: Mapping[str, int] | None, n: int
) -> dict[str, Figure]:
    none, counts = (math.nan, math.nan), counts or {}
    known = {name: ends.get(name, none) if math.isfinite(value) else none for name, value in values.items()}
    return {name: Figure(float(v), *known[name], counts.get(name, n)) for name, v in values.items()}
