"""Intervals on cases whose answer is known, and how often they hold the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from miniclip.metrics import weighted
from miniclip.metrics.bootstrap import RESAMPLES, Figure, Gaps, Share, Statistic, Z, differences, with_intervals

Counted = Callable[[np.ndarray], dict[str, float]]


def rank_mean(values: np.ndarray) -> Statistic:
    return Statistic(ranks=lambda weights: {"mean": weighted.mean(values, weights)})


def rate(values: np.ndarray) -> Statistic:
    """A share that is not said to be one."""
    return Statistic(rates=lambda weights: {"mean": weighted.mean(values, weights)})


def hits(n: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(np.float64)


def share_of(part: np.ndarray, captions: int) -> Share:
    """part: own captions found, of as many an image."""
    return Share(part.astype(np.float64), np.full(len(part), float(captions)))


def wilson(hits: int, n: int) -> list[float]:
    """Where the share lies Z standard errors of the true share from it."""
    p = hits / n
    return sorted(np.roots([1 + Z * Z / n, -2 * p - Z * Z / n, p * p]).real.tolist())


def test_a_plain_share_has_wilsons_interval() -> None:
    for n, k in ((200, 0), (200, 200), (200, 2), (50, 49), (1, 1), (11, 0), (1000, 471)):
        figure = with_intervals(Statistic({"top1": Share.of(np.arange(n) < k)}), [n])["top1"]
        assert (
            figure[:3] == pytest.approx((k / n, *wilson(k, n)), abs=1e-9) and figure.low <= figure.value <= figure.high
        )
    assert wilson(0, 200) == pytest.approx([0, 0.01885], abs=1e-5)  # as in the textbooks
    # captions of an image that are right or wrong together are one; where nothing varies, nobody knows
    together = np.repeat(np.arange(200) < 3, 5)
    for part, k in ((together, 3), (np.zeros(1000), 0), (np.ones(1000), 200)):
        share = Share.of(part, np.repeat(np.arange(200), 5))
        assert with_intervals(Statistic({"r1": share}), [200])["r1"][1:3] == pytest.approx(wilson(k, 200), abs=1e-9)
    # independent ones are five
    share = share_of(np.random.default_rng(0).binomial(5, 0.5, 5000), 5)
    found, expected = with_intervals(Statistic({"r1": share}), [5000])["r1"], wilson(int(share.part.sum()), 25000)
    assert found[1:3] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    # an image with most of the captions is most of what is known
    share = Share(np.array([1000.0, *[1] * 9]), np.array([1000.0, *[1] * 9]))
    assert with_intervals(Statistic({"r1": share}), [10])["r1"].low == pytest.approx(wilson(1, 1)[0], abs=0.01)


def captions_found(rng: np.random.Generator, p: float, captions: int, alike: float, n: int = 200) -> np.ndarray:
    """Of n images; alike: the correlation of two captions of an image."""
    each = rng.beta(p * (1 - alike) / alike, (1 - p) * (1 - alike) / alike, n) if 0 < alike < 1 else np.full(n, p)
    return rng.binomial(captions, each)


def test_a_plain_share_holds_the_truth_as_often_as_it_says() -> None:
    """Over all that 200 images may give, by their probability."""
    found = [with_intervals(Statistic({"top1": Share.of(np.arange(200) < k)}), [200])["top1"] for k in range(201)]
    for p in (0.01, 0.03, 0.5, 0.97):
        held = [k for k, figure in enumerate(found) if figure.low <= p <= figure.high]
        assert 0.94 < binom.pmf(held, 200, p).sum() < 0.97


@pytest.mark.parametrize(("captions", "alike"), [(5, 0.0), (5, 0.3), (5, 0.7)])
def test_shares_hold_the_truth_as_often_as_they_say(captions: int, alike: float) -> None:
    rng = np.random.default_rng(0)
    for p in (0.01, 0.03, 0.5, 0.97):
        held, widths = 0, 0.0
        for _ in range(1500):
            statistic = Statistic({"r1": share_of(captions_found(rng, p, captions, alike), captions)})
            figure = with_intervals(statistic, [200])["r1"]
            held += figure.low <= p <= figure.high
            widths += figure.high - figure.low
        assert held >= 0.93 * 1500, (p, held)
        # no wider than of as many independent captions as these are worth, but where hardly any is found
        worth, independent = wilson(round(p * 10**5), 10**5), 200 * captions / (1 + (captions - 1) * alike)
        assert widths / 1500 < 1.1 * (worth[1] - worth[0]) * math.sqrt(10**5 / independent) + 0.012


@pytest.mark.parametrize(("captions", "alike"), [(1, 0.0), (5, 0.3)])
def test_differences_hold_the_truth_as_often_as_they_say(captions: int, alike: float) -> None:
    """Of two models, the second of which is wrong where the first is, and now and then besides."""
    rng, n = np.random.default_rng(1), 200
    for p, lost in itertools.product((0.03, 0.5, 0.97), (0.01, 0.2)):
        held = 0
        for _ in range(800):
            first = captions_found(rng, p, captions, alike)
            second = rng.binomial(first, 1 - lost)
            figure = differences(
                *(Statistic({"r1": share_of(part, captions)}) for part in (first, second)), [n], {"r1": n * captions}
            )["r1"]
            assert figure.low <= figure.value <= figure.high and figure.low < figure.high and figure.n == n * captions
            held += figure.low <= -p * lost <= figure.high
        assert held >= 0.92 * 800, (p, lost, held)
    # no image on which they differ: Agresti and Min's interval of 0, 0 of 200
    one = Statistic({"top1": Share.of(hits(200, 0.7))})
    figure = differences(one, one, [200])["top1"]
    assert figure[:3] == pytest.approx((0, -Z / 202, Z / 202), abs=1e-12)


def test_other_rates_are_as_wide_as_shares() -> None:
    """By the bootstrap's variance: a percentile of 1,000 resamples has a standard error of 4 % of the half-width."""
    for k, n in ((0, 60), (60, 60), (2, 60), (30, 60), (190, 200)):
        values = (np.arange(n) < k).astype(np.float64)
        figure = with_intervals(rate(values), [n])["mean"]
        assert figure[1:3] == pytest.approx(wilson(k, n), abs=0.06 * np.subtract(*wilson(k, n)[::-1]))
        assert figure.low <= figure.value <= figure.high
        apart = differences(rate(values), rate(values), [n])["mean"]
        assert apart[:3] == pytest.approx((0, -Z / (n + 2), Z / (n + 2)), abs=1e-12)
    # a mean over classes is worth no more than its smallest class lets it
    assert weighted.balanced_size(np.array([990, 10, 0])) == pytest.approx(4 / (1 / 990 + 1 / 10))
    statistic = Statistic(rates=rate(np.ones(1000)).rates, sizes={"mean": 39.6})
    assert with_intervals(statistic, [1000])["mean"].low == pytest.approx(39.6 / (39.6 + Z * Z), abs=1e-9)


def calibration_of(confidence: np.ndarray, hit: np.ndarray) -> Statistic:
    gaps = weighted.Calibration(confidence, hit).gaps
    return Statistic({"top1": Share.of(hit)}, gaps={"ece": Gaps(gaps, "top1")})


@pytest.mark.parametrize("n", [100, 300])
def test_the_calibration_error_holds_the_truth_as_often_as_it_says(n: int) -> None:
    """Of a calibrated model, whose bins are off by chance alone; and of others, at half the confidence above 1/2."""
    rng, grid = np.random.default_rng(0), np.linspace(0.2, 1, 400_001)
    for slope in (1.0, 0.9, 0.5):
        truth = float(np.abs(weighted.Calibration(grid, slope * grid).gaps(np.ones(len(grid)))).sum())
        held = widths = 0.0
        for seed in range(40):
            confidence = rng.uniform(0.2, 1, n)
            statistic = calibration_of(confidence, rng.random(n) < slope * confidence)
            figure = with_intervals(statistic, [n], resamples=200, seed=seed)["ece"]
            assert figure.low <= figure.value <= figure.high
            held += figure.low <= truth + 1e-9 and truth <= figure.high
            widths += figure.high - figure.low
        assert held >= 36 and widths / 40 < 2.5 / math.sqrt(n), (slope, held)


def test_the_calibration_error_at_the_edges_and_between_models() -> None:
    # sure and always right: there may be errors that 200 images do not show
    sure = calibration_of(np.ones(200), np.ones(200, bool))
    assert with_intervals(sure, [200])["ece"][:3] == pytest.approx((0, 0, 1 - wilson(200, 200)[0]))
    assert math.isnan(with_intervals(sure, [200], resamples=0)["ece"].low)
    nothing = calibration_of(np.array([math.nan, 0.5]), np.array([False, True]))
    assert np.isnan(with_intervals(nothing, [2])["ece"][:3]).all()
    # half the confidence is too much by 0.3, and no resample of either model counts its noise twice
    rng = np.random.default_rng(0)
    confidence, luck = rng.uniform(0.2, 1, 400), rng.random(400)
    good, bad = (calibration_of(confidence, luck < slope * confidence) for slope in (1.0, 0.5))
    figure = differences(good, bad, [400])["ece"]
    assert figure.low < figure.value < figure.high and figure.low < 0.3 < figure.high
    assert differences(good, good, [400])["ece"].value == 0


def test_weights_are_draws_with_replacement_within_each_group() -> None:
    seen: list[np.ndarray] = []

    def ranks(weights: np.ndarray) -> dict[str, float]:
        seen.append(weights)
        return {"first": weights[0], "b": 2.0}

    found = with_intervals(Statistic(ranks=ranks), [40, 5, 1], {"b": 20})  # b is counted over other than what is drawn
    # what no resample moves has no interval: it says nothing of ranks that are rarer
    assert found["first"] == (1, 0, 3, 46) and found["b"][::3] == (2, 20) and math.isnan(found["b"].low)
    seen = [weights for weights in seen if not (weights == 1).all()]  # the plain figures
    assert len(seen) == RESAMPLES
    sums = np.add.reduceat(np.stack(seen), [0, 40, 45], axis=1)
    assert (sums == [40, 5, 1]).all() and seen[0].dtype == np.float64
    drawn = np.stack(seen)[:, :40]
    # Each weight is Binomial(40, 1/40): mean 1, variance 0.975; 40,000 values.
    assert drawn.var() == pytest.approx(0.975, abs=0.03)
    # Its mean over the resamples has a standard deviation of 0.031: no image is preferred.
    assert abs(drawn.mean(0) - 1).max() < 0.13


def test_percentiles_of_ranks_by_hand() -> None:
    # One draw of two images is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4: the percentiles are the ends.
    assert with_intervals(rank_mean(np.array([0.0, 1.0])), [2])["mean"] == Figure(0.5, 0.0, 1.0, 2)
    # Without resamples there is a value and no interval, but of shares.
    both = Statistic({"top1": Share.of(np.ones(3))}, ranks=rank_mean(np.arange(3.0)).ranks)
    found = with_intervals(both, [3], resamples=0)
    assert found["mean"].value == 1 and math.isnan(found["mean"].low) and found["top1"].low > 0


def test_equal_seeds_draw_the_same_images_whatever_is_counted() -> None:
    values = hits(60, 0.5)
    first = with_intervals(rank_mean(values), [60], seed=3)["mean"]
    calls = iter(range(10**6))

    def another(weights: np.ndarray) -> dict[str, float]:
        np.random.default_rng(next(calls)).random()  # what a statistic draws for itself does not matter
        return {"other": float(weights.max()), "mean": weighted.mean(1 - values, weights)}

    second = with_intervals(Statistic(ranks=another), [60], seed=3)["mean"]
    assert second[1:3] == pytest.approx((1 - first.high, 1 - first.low), abs=1e-12)
    assert with_intervals(rank_mean(values), [60], seed=3)["mean"] == first
    normal = np.random.default_rng(0).normal(size=60)
    one, two = (with_intervals(rank_mean(normal), [60], seed=seed)["mean"] for seed in (3, 4))
    assert one.value == two.value and one.low != two.low


def test_a_difference_is_second_minus_first_of_what_both_have() -> None:
    values = np.random.default_rng(0).normal(size=70)
    spread = values + np.random.default_rng(1).normal(size=70)
    figure = differences(rank_mean(values), rank_mean(spread), [70])["mean"]
    half = Z * np.std(spread - values) / math.sqrt(70)  # of the differences, not of either
    mean = (spread - values).mean()
    assert figure[:3] == pytest.approx((mean, mean - half, mean + half), abs=0.1 * half)
    first, second = ({"a": 0.5, "b": 0.25}, {"b": 0.5, "c": 1.0})
    apart = differences(Statistic(rates=lambda w: first), Statistic(rates=lambda w: second), [3])
    assert list(apart) == ["b"] and apart["b"].value == 0.25


def test_resamples_without_a_figure_are_passed_over() -> None:
    # Only where the first image is drawn is there a figure, and then it is the weight of the second.
    nan, inf = float("nan"), float("inf")
    seen = {"now and then": lambda w: w[1] if w[0] else nan, "never": lambda w: nan, "endless": lambda w: inf}
    found = with_intervals(Statistic(ranks=lambda w: {name: float(of(w)) for name, of in seen.items()}), [5])
    assert found["now and then"].value == 1 and 0 <= found["now and then"].low < found["now and then"].high <= 4
    assert np.isnan([*found["never"][:3], *found["endless"][1:3]]).all()
