"""Weighted figures against scikit-learn, naive loops, numbers worked by hand, and images that are really repeated."""

from __future__ import annotations

from itertools import product
from math import exp, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    precision_score,
    roc_auc_score,
    roc_curve,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion

from miniclip.metrics import weighted

# Few levels: many ties.
VALUE = st.integers(-3, 3).map(float)
TIMES = st.integers(0, 4)
IMAGES = st.lists(st.tuples(VALUE, TIMES), min_size=1, max_size=12)
CASES = settings(max_examples=60, deadline=None)


def columns(rows: list[tuple]) -> list[np.ndarray]:
    return [np.array(column) for column in zip(*rows, strict=True)]


def drawn(size: int, seed: int) -> np.ndarray:
    """Weights of one bootstrap resample: some are 0."""
    return np.bincount(np.random.default_rng(seed).integers(0, size, size), minlength=size).astype(np.float64)


@CASES
@given(IMAGES)
def test_mean_and_median_equal_those_of_repeated_images(rows: list[tuple[float, int]]) -> None:
    values, times = columns(rows)
    mean, median = weighted.mean(values, times.astype(float)), weighted.Median(values)(times.astype(float))
    if times.sum():
        repeated = np.repeat(values, times)
        assert mean == pytest.approx(np.mean(repeated), abs=1e-14) and median == np.median(repeated)
    else:
        assert isnan(mean) and isnan(median)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_class_scores_equal_sklearn() -> None:
    """The first class is never predicted, the sixth has no images, the last has neither."""
    for seed in range(3):
        draws, classes = np.random.default_rng(seed), range(7)
        labels = draws.integers(0, 5, 400)
        predicted = np.where(draws.random(400) < 0.6, labels, draws.integers(0, 6, 400)).clip(1)
        weights = drawn(400, seed) if seed else np.ones(400)
        counts = weighted.confusion(labels, predicted, 7, weights)
        assert np.array_equal(counts, sklearn_confusion(labels, predicted, labels=classes, sample_weight=weights))
        scores, options = weighted.class_scores(counts), {"sample_weight": weights, "zero_division": np.nan}
        expected = precision_recall_fscore_support(labels, predicted, labels=classes, **options)
        np.testing.assert_allclose(scores, expected[:3], atol=1e-15)
        assert np.isnan(scores).tolist() == [[k in own for k in classes] for own in ((0, 6), (5, 6), (6,))]
        balanced = balanced_accuracy_score(labels, predicted, sample_weight=weights)
        assert scores.mean_of_present("recall") == pytest.approx(balanced, abs=1e-14)
        macro = f1_score(labels, predicted, labels=range(5), average="macro", **options)
        assert scores.mean_of_present("f1") == pytest.approx(macro, abs=1e-14)
        options["zero_division"] = 0
        macro = precision_score(labels, predicted, labels=range(5), average="macro", **options)
        assert scores.mean_of_present("precision") == pytest.approx(macro, abs=1e-14)
    nothing = weighted.class_scores(np.zeros((2, 2)))
    assert isnan(nothing.mean_of_present("recall")) and isnan(nothing.mean_of_present("f1"))


def test_calibration_by_hand() -> None:
    # Bins (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1]. The edge 1/2 belongs to the second; 0 goes to the first.
    calibration = weighted.Calibration(np.array([0.0, 0.5, 0.375, 1.0, 0.875]), np.array([0, 1, 0, 1, 0]), bins=4)
    first, second, third, fourth = calibration.bins()
    assert first == {"low": 0.0, "high": 0.25, "n": 1, "confidence": 0.0, "accuracy": 0.0}
    assert second == {"low": 0.25, "high": 0.5, "n": 2, "confidence": 7 / 16, "accuracy": 1 / 2}
    assert third["n"] == 0 and isnan(third["confidence"]) and isnan(third["accuracy"])
    assert fourth == {"low": 0.75, "high": 1.0, "n": 2, "confidence": 15 / 16, "accuracy": 1 / 2}
    assert np.isnan(calibration.gaps(np.zeros(5))).all()
    over = np.array([1.0000001, 1.0], dtype=np.float32)  # as a softmax in float32 may say
    assert weighted.Calibration(over, np.array([True, True])).bins()[-1]["n"] == 2


@CASES
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), TIMES), min_size=1, max_size=30))
def test_calibration_equals_a_naive_loop(rows: list[tuple[int, bool, int]]) -> None:
    # Thirtieths: half of them lie on an edge of the fifteen bins.
    thirtieths, hit, times = columns(rows)
    if times.sum() == 0:
        return
    error = 0.0
    for b in range(15):
        held = [(t / 30, h) for t, h, k in rows for _ in range(k) if 2 * b < t <= 2 * b + 2 or b == t == 0]
        if held:
            confidence, accuracy = (sum(part) / len(held) for part in zip(*held, strict=True))
            error += len(held) / times.sum() * abs(accuracy - confidence)
    gaps = weighted.Calibration(thirtieths / 30, hit).gaps(times.astype(float))
    assert len(gaps) == 15 and np.abs(gaps).sum() == pytest.approx(error, abs=1e-14)


def test_detection_equals_sklearn() -> None:
    for seed, levels in product(range(4), (4, 10**9)):
        draws = np.random.default_rng(seed)
        inside, outside = (np.round(draws.normal(mean, 1, n) * levels / 4) for mean, n in ((1, 300), (0, 170)))
        detection = weighted.Detection(inside, outside)
        truth, scores = np.repeat([1, 0], [300, 170]), np.concatenate([inside, outside])
        for own, foreign in ((np.ones(300), np.ones(170)), (drawn(300, seed), drawn(170, seed + 9))):
            weights = np.concatenate([own, foreign])
            auroc = roc_auc_score(truth, scores, sample_weight=weights)
            assert detection.auroc(own, foreign) == pytest.approx(auroc, abs=1e-12)
            fpr, tpr, _ = roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
            expected = fpr[np.flatnonzero(tpr >= 0.95 - 1e-12)[0]]
            assert 0 < expected < 1 and detection.fpr95(own, foreign) == pytest.approx(expected, abs=1e-12)


@CASES
@given(IMAGES, IMAGES)
def test_detection_counts_pairs(own: list[tuple[float, int]], foreign: list[tuple[float, int]]) -> None:
    (inside, a), (outside, b) = columns(own), columns(foreign)
    detection, weights = weighted.Detection(inside, outside), (a.astype(float), b.astype(float))
    if a.sum() == 0 or b.sum() == 0:
        assert isnan(detection.auroc(*weights)) and isnan(detection.fpr95(*weights))
        return
    left, right = np.repeat(inside, a).tolist(), np.repeat(outside, b).tolist()
    wins = [(x > y) + (x == y) / 2 for x in left for y in right]
    assert detection.auroc(*weights) == pytest.approx(sum(wins) / len(wins), abs=1e-14)
    threshold = max(t for t in left if 100 * sum(x >= t for x in left) >= 95 * len(left))
    assert detection.fpr95(*weights) == pytest.approx(sum(y >= threshold for y in right) / len(right), abs=1e-14)


def test_95_percent_of_a_multiple_of_twenty_is_a_whole_number() -> None:
    for n in range(20, 2000, 20):
        last_accepted = n - 19 * n // 20 + 1
        detection = weighted.Detection(np.arange(n, 0, -1.0), np.array([last_accepted, last_accepted - 0.5]))
        assert detection.fpr95(np.ones(n), np.ones(2)) == 1 / 2


def test_a_score_that_is_no_number_counts_against() -> None:
    nan, ones = float("nan"), np.ones(2)
    assert weighted.Detection(np.array([1.0, nan]), np.array([0.0, -exp(9)])).auroc(ones, ones) == 0.5
    lost = weighted.Detection(np.array([1.0, 2.0]), np.array([0.0, nan]))
    assert lost.auroc(ones, ones) == lost.fpr95(ones, ones) == 0.5
    collapsed = weighted.Detection(np.full(2, nan), np.full(2, nan))
    assert collapsed.auroc(ones, ones) == 0 and collapsed.fpr95(ones, ones) == 1
    assert isnan(weighted.Calibration(np.array([nan, 0.5]), np.array([0, 1])).gaps(ones).sum())
