"""Bootstrap intervals on cases whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

import numpy as np
import pytest

from miniclip.metrics import weighted
from miniclip.metrics.bootstrap import RESAMPLES, Figure, differences, with_intervals

Statistic = Callable[[np.ndarray], dict[str, float]]


def mean_of(values: np.ndarray) -> Statistic:
    return lambda weights: {"mean": weighted.mean(values, weights)}


def hits(n: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(np.float64)


def test_the_interval_of_a_share_is_near_the_normal_one() -> None:
    for share in (0.1, 0.5, 0.8):
        values = hits(2000, share)
        figure = with_intervals(mean_of(values), [2000], resamples=4000, seed=1)["mean"]
        p = values.mean()
        half = 1.96 * np.sqrt(p * (1 - p) / 2000)
        assert figure.value == p and figure.n == 2000
        # A percentile of 4,000 resamples has a standard error of 2.2 % of the half-width; a 90 % one is off by 16 %.
        assert figure[1:3] == pytest.approx((p - half, p + half), abs=0.08 * half)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        figure = with_intervals(mean_of(hits(150, 0.4, seed)), [150], resamples=300, seed=seed)["mean"]
        held += figure.low <= 0.4 <= figure.high
    assert 180 <= held <= 199  # 190 expected; the standard deviation is 3


def test_percentiles_by_hand() -> None:
    # One draw of two images is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4: the percentiles are the ends.
    assert with_intervals(mean_of(np.array([0.0, 1.0])), [2])["mean"] == Figure(0.5, 0.0, 1.0, 2)
    # Without resamples there is a value and no interval.
    alone = with_intervals(mean_of(np.array([0.0, 1.0])), [2], resamples=0)["mean"]
    assert alone.value == 0.5 and isnan(alone.low) and isnan(alone.high)
    # A constant has no width.
    assert with_intervals(mean_of(np.full(50, 0.25)), [50])["mean"] == Figure(0.25, 0.25, 0.25, 50)
    assert with_intervals(mean_of(np.ones(1)), [1])["mean"] == Figure(1.0, 1.0, 1.0, 1)


def test_weights_are_draws_with_replacement_within_each_group() -> None:
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> dict[str, float]:
        seen.append(weights)
        return {"sum": weights.sum(), "b": 2.0}

    found = with_intervals(statistic, [40, 5, 1], {"b": 20})  # b is counted over other than what is drawn
    assert found == {"sum": Figure(46.0, 46.0, 46.0, 46), "b": Figure(2.0, 2.0, 2.0, 20)}
    assert len(seen) == 1 + RESAMPLES
    assert np.array_equal(seen[0], np.ones(46))  # the plain figure first
    sums = np.add.reduceat(np.stack(seen), [0, 40, 45], axis=1)
    assert (sums == [40, 5, 1]).all() and seen[1].dtype == np.float64
    drawn = np.stack(seen[1:])[:, :40]
    # Each weight is Binomial(40, 1/40): mean 1, variance 0.975; 40,000 values.
    assert drawn.var() == pytest.approx(0.975, abs=0.03)
    # Its mean over the resamples has a standard deviation of 0.031: no image is preferred.
    assert abs(drawn.mean(0) - 1).max() < 0.13


def test_equal_seeds_draw_the_same_images_whatever_is_counted() -> None:
    values = hits(60, 0.5)
    first = with_intervals(mean_of(values), [60], seed=3)["mean"]
    calls = iter(range(10**6))

    def another(weights: np.ndarray) -> dict[str, float]:
        np.random.default_rng(next(calls)).random()  # what a statistic draws for itself does not matter
        return {"other": float(weights.max()), "mean": weighted.mean(1 - values, weights)}

    second = with_intervals(another, [60], seed=3)["mean"]
    assert second[1:3] == pytest.approx((1 - first.high, 1 - first.low), abs=1e-12)
    assert with_intervals(mean_of(values), [60], seed=3)["mean"] == first
    normal = np.random.default_rng(0).normal(size=60)
    one, two = (with_intervals(mean_of(normal), [60], seed=seed)["mean"] for seed in (3, 4))
    assert one.value == two.value and one.low != two.low


def test_a_difference_is_second_minus_first_of_what_both_have() -> None:
    values = np.random.default_rng(0).normal(size=70)
    assert differences(mean_of(values), mean_of(values), [70])["mean"] == Figure(0.0, 0.0, 0.0, 70)
    figure = differences(mean_of(values), mean_of(values + 0.5), [70])["mean"]
    # Each image is better by the same: whatever is drawn, so is the mean.
    assert figure[:3] == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)
    found = differences(lambda w: {"a": 1.0, "b": 2.0}, lambda w: {"b": 5.0, "c": 6.0}, [3])
    assert found == {"b": Figure(3.0, 3.0, 3.0, 3)}


def test_pairing_narrows_the_interval() -> None:
    draws = np.random.default_rng(0)
    first = hits(1000, 0.6)
    second = np.where(draws.random(1000) < 0.9, first, 1 - first)  # right and wrong mostly on the same images
    paired = differences(mean_of(first), mean_of(second), [1000])["mean"]

    def apart(weights: np.ndarray) -> dict[str, float]:
        return {"mean": weighted.mean(second, weights[1000:]) - weighted.mean(first, weights[:1000])}

    unpaired = with_intervals(apart, [1000, 1000])["mean"]
    assert paired.value == pytest.approx(unpaired.value, abs=1e-12)
    # The width goes with the deviation of what is drawn: of the differences here, of both shares there.
    expected = np.std(second - first) / np.sqrt(np.var(first) + np.var(second))
    assert expected < 0.6
    ratio = (paired.high - paired.low) / (unpaired.high - unpaired.low)
    assert ratio == pytest.approx(expected, rel=0.15)


def test_resamples_without_a_figure_are_passed_over() -> None:
    # Only where the first image is drawn is there a figure, and then it is 2.
    nan, inf = float("nan"), float("inf")
    found = with_intervals(lambda w: {"now and then": 2.0 if w[0] else nan, "never": nan, "endless": inf}, [5])
    assert found["now and then"] == Figure(2.0, 2.0, 2.0, 5)
    assert np.isnan([*found["never"][:3], *found["endless"][1:3]]).all()
