"""Weighted figures against scikit-learn, naive loops, numbers worked by hand, and images that are really repeated."""

from __future__ import annotations

import warnings
from math import exp, isnan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score, roc_curve
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
    if times.sum() == 0:
        assert isnan(mean) and isnan(median)
        return
    repeated = np.repeat(values, times)
    assert mean == pytest.approx(np.mean(repeated), abs=1e-14)
    assert median == np.median(repeated)


def test_mean_and_median_by_hand() -> None:
    values = np.array([5.0, 1.0, 3.0])
    assert weighted.mean(values, np.ones(3)) == 3 and weighted.Median(values)(np.ones(3)) == 3
    assert weighted.mean(values, np.array([1.0, 3, 0])) == 2
    assert weighted.Median(values)(np.array([1.0, 1, 0])) == 3  # of 1 and 5
    assert weighted.Median(values)(np.array([1.0, 3, 0])) == 1
    assert isnan(weighted.Median(np.zeros(0))(np.zeros(0)))


def guesses(seed: int, images: int = 400, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions; the last class has no images, the first is never predicted."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes - 1, images)
    predicted = np.where(draws.random(images) < 0.6, labels, draws.integers(0, classes, images))
    return labels, np.where(predicted == 0, 1, predicted)


@pytest.mark.parametrize(("seed", "ones"), [(0, True), (1, False), (2, False)])
def test_class_scores_equal_sklearn(seed: int, ones: bool) -> None:
    labels, predicted = guesses(seed)
    weights = np.ones(len(labels)) if ones else drawn(len(labels), seed)
    counts = weighted.confusion(labels, predicted, 6, weights)
    expected = sklearn_confusion(labels, predicted, labels=range(6), sample_weight=weights)
    assert np.array_equal(counts, expected)
    scores = weighted.class_scores(counts)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(6), sample_weight=weights, zero_division=np.nan
    )
    np.testing.assert_allclose(scores.precision, precision, atol=1e-15)
    np.testing.assert_allclose(scores.recall, recall, atol=1e-15)
    np.testing.assert_allclose(scores.f1, f1, atol=1e-15)
    assert isnan(scores.precision[0]) and isnan(scores.recall[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a predicted class has no images: on purpose
        balanced = balanced_accuracy_score(labels, predicted, sample_weight=weights)
    assert scores.mean_of_present("recall") == pytest.approx(balanced, abs=1e-14)
    macro = f1_score(labels, predicted, labels=range(5), average="macro", sample_weight=weights, zero_division=np.nan)
    assert scores.mean_of_present("f1") == pytest.approx(macro, abs=1e-14)


def test_class_scores_by_hand() -> None:
    # Class 2 has images but no hit, class 3 neither images nor predictions, class 4 predictions alone.
    counts = np.zeros((5, 5))
    counts[0, 0], counts[0, 1], counts[1, 1], counts[2, 0], counts[1, 4] = 3, 1, 2, 4, 2
    scores = weighted.class_scores(counts)
    np.testing.assert_allclose(scores.precision, [3 / 7, 2 / 3, np.nan, np.nan, 0], atol=1e-15)
    np.testing.assert_allclose(scores.recall, [3 / 4, 2 / 4, 0, np.nan, np.nan], atol=1e-15)
    np.testing.assert_allclose(scores.f1, [6 / 11, 4 / 7, 0, np.nan, 0], atol=1e-15)
    assert scores.mean_of_present("recall") == pytest.approx(1.25 / 3, abs=1e-15)
    assert scores.mean_of_present("f1") == pytest.approx((6 / 11 + 4 / 7) / 3, abs=1e-15)
    nothing = weighted.class_scores(np.zeros((2, 2)))
    assert isnan(nothing.mean_of_present("recall")) and isnan(nothing.mean_of_present("f1"))
    zeros = np.zeros(3, dtype=np.int64)  # one class
    alone = weighted.class_scores(weighted.confusion(zeros, zeros, 1, np.array([2.0, 0, 1])))
    assert [part.tolist() for part in alone] == [[1], [1], [1]]


def test_calibration_by_hand() -> None:
    # Bins (0, 1/4], (1/4, 1/2], (1/2, 3/4], (3/4, 1]. The edge 1/2 belongs to the second; 0 goes to the first.
    calibration = weighted.Calibration(np.array([0.0, 0.5, 0.375, 1.0, 0.875]), np.array([0, 1, 0, 1, 0]), bins=4)
    # First: hit 0, confidence 0. Second: accuracy 1/2, confidence 7/16, two images. Fourth: 1/2, 15/16, two.
    assert calibration.error(np.ones(5)) == (2 / 5) * (1 / 16) + (2 / 5) * (7 / 16)
    # The fourth image three times: accuracy 3/4, confidence 3.875 / 4.
    assert calibration.error(np.array([1.0, 1, 1, 3, 1])) == (2 / 7) * (1 / 16) + (4 / 7) * (3.875 / 4 - 3 / 4)
    first, second, third, fourth = calibration.bins()
    assert first == {"low": 0.0, "high": 0.25, "n": 1, "confidence": 0.0, "accuracy": 0.0}
    assert second == {"low": 0.25, "high": 0.5, "n": 2, "confidence": 7 / 16, "accuracy": 1 / 2}
    assert third["n"] == 0 and isnan(third["confidence"]) and isnan(third["accuracy"])
    assert fourth == {"low": 0.75, "high": 1.0, "n": 2, "confidence": 15 / 16, "accuracy": 1 / 2}
    assert isnan(calibration.error(np.zeros(5)))
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
    assert weighted.Calibration(thirtieths / 30, hit).error(times.astype(float)) == pytest.approx(error, abs=1e-14)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [4, 10**9])
def test_detection_equals_sklearn(seed: int, levels: int) -> None:
    draws = np.random.default_rng(seed)
    inside, outside = draws.normal(1, 1, 300), draws.normal(0, 1, 170)
    inside, outside = (np.round(scores * levels / 4) for scores in (inside, outside))
    detection = weighted.Detection(inside, outside)
    for own, foreign in ((np.ones(300), np.ones(170)), (drawn(300, seed), drawn(170, seed + 9))):
        truth, scores = np.repeat([1, 0], [300, 170]), np.concatenate([inside, outside])
        weights = np.concatenate([own, foreign])
        assert detection.auroc(own, foreign) == pytest.approx(
            roc_auc_score(truth, scores, sample_weight=weights), abs=1e-12
        )
        fpr, tpr, _ = roc_curve(truth, scores, sample_weight=weights, drop_intermediate=False)
        expected = fpr[np.flatnonzero(tpr >= 0.95 - 1e-12)[0]]
        assert 0 < expected < 1
        assert detection.fpr95(own, foreign) == pytest.approx(expected, abs=1e-12)


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


def test_detection_by_hand() -> None:
    # Twenty own images, 20 down to 1: nineteen are 95 %, so the threshold is 2, and 1.5 is refused.
    own = np.arange(20, 0, -1.0)
    detection = weighted.Detection(own, np.array([2.0, 1.5, 30.0, 0.0]))
    assert detection.fpr95(np.ones(20), np.ones(4)) == 2 / 4
    assert detection.fpr95(np.ones(20), np.array([1.0, 5, 0, 2])) == 1 / 8
    # 2.0: eighteen above, one tie; 1.5: nineteen; 30: none; 0: all
    assert detection.auroc(np.ones(20), np.ones(4)) == (18.5 + 19 + 0 + 20) / 80
    # 95 % of a multiple of twenty is a whole number
    for n in range(20, 2000, 20):
        last_accepted = n - 19 * n // 20 + 1
        detection = weighted.Detection(np.arange(n, 0, -1.0), np.array([last_accepted, last_accepted - 0.5]))
        assert detection.fpr95(np.ones(n), np.ones(2)) == 1 / 2


def test_a_score_that_is_no_number_counts_against() -> None:
    nan = float("nan")
    ones = np.ones(2)
    assert weighted.Detection(np.array([1.0, nan]), np.array([0.0, -exp(9)])).auroc(ones, ones) == 0.5
    assert weighted.Detection(np.array([1.0, 2.0]), np.array([0.0, nan])).auroc(ones, ones) == 0.5
    assert weighted.Detection(np.array([1.0, 2.0]), np.array([0.0, nan])).fpr95(ones, ones) == 0.5
    collapsed = weighted.Detection(np.full(2, nan), np.full(2, nan))
    assert collapsed.auroc(ones, ones) == 0 and collapsed.fpr95(ones, ones) == 1
    assert isnan(weighted.Calibration(np.array([nan, 0.5]), np.array([0, 1])).error(ones))
    for own, foreign in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"got {own} own and {foreign} foreign"):
            weighted.Detection(np.zeros(own), np.zeros(foreign))
