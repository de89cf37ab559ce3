"""Figures over images that count as often as their weights say: what a bootstrap recounts a thousand times.

Weights are (N,) float64, whole numbers from 0. What does not depend on them, sorting above all, is done once, when an
object is made. Axes: N images (n of them in the classes, m foreign, in `Detection`), C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of the values, (N,) float. NaN if no image counts."""
    return _ratio(float(values @ weights), float(weights.sum()))


class Median:
    """np.median(np.repeat(values, weights)): of an even number the mean of the middle two. NaN if no image counts."""

    def __init__(self, values: np.ndarray) -> None:  # (N,) float, no NaN
        self._order = np.argsort(values, kind="stable")
        self._values = np.asarray(values, dtype=np.float64)[self._order]

    def __call__(self, weights: np.ndarray) -> float:
        seen = np.cumsum(weights.take(self._order))
        if len(seen) == 0 or seen[-1] == 0:
            return float("nan")
        middle = ((seen[-1] - 1) // 2, seen[-1] // 2)  # counted from 0
        return float(self._values[np.searchsorted(seen, middle, side="right")].mean())


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """(C, C) float64 counts: row = true, column = predicted class. labels, predicted: (N,) int64 in [0, C)."""
    return np.bincount(labels * classes + predicted, weights, minlength=classes**2).reshape(classes, classes)


class ClassScores(NamedTuple):
    """(C,) float64 each, in [0, 1]. precision: NaN for a class that was never predicted. recall: NaN for one without
    images. f1: 2 hits / (images + predictions), NaN only if there are neither."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def mean_of_present(self, score: str) -> float:
        """Mean of a score over the classes that have images; NaN if none has. A precision of NaN counts as 0."""
        present = np.nan_to_num(self._asdict()[score][~np.isnan(self.recall)])
        return float(present.mean()) if len(present) else float("nan")


def class_scores(confusion: np.ndarray) -> ClassScores:
    """(C, C) counts of `confusion` -> scores of each class."""
    hits, images, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return ClassScores(_ratios(hits, predictions), _ratios(hits, images), _ratios(2 * hits, images + predictions))


def balanced_size(images: np.ndarray) -> float:
    """How many images, evenly over the classes that have some, a mean over classes is worth. images: (C,)."""
    images = images[images > 0]
    return float(len(images) ** 2 / (1 / images).sum())


class Calibration:
    """How well the confidence of a prediction says how often it is right, in bins of equal width on (0, 1]."""

    def __init__(self, confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> None:
        self._confidence, self._hit = np.asarray(confidence, np.float64), np.asarray(hit, np.float64)
        self._edges = np.arange(bins + 1) / bins
        self._bin = np.clip(np.searchsorted(self._edges, self._confidence, side="left") - 1, 0, bins - 1)
        self._gap = self._hit - self._confidence

    def gaps(self, weights: np.ndarray) -> np.ndarray:
        """(bins,): accuracy - mean confidence, times the share of the images. The sum of their absolute values is the
        expected calibration error (arXiv:1706.04599, eq. 3). NaN if no image counts."""
        gaps = np.bincount(self._bin, weights * self._gap, len(self._edges) - 1)
        return gaps / weights.sum() if weights.any() else np.full_like(gaps, np.nan)

    def bins(self) -> list[dict[str, float | int]]:
        """A reliability diagram: low, high, n, and mean confidence and accuracy (NaN if n is 0) of each bin."""
        n = np.bincount(self._bin, minlength=len(self._edges) - 1)
        sums = (np.bincount(self._bin, values, len(n)) for values in (self._confidence, self._hit))
        columns = (self._edges[:-1], self._edges[1:], n, *(_ratios(values, n) for values in sums))
        names = ("low", "high", "n", "confidence", "accuracy")
        return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


class Detection:
    """How well a score, higher = more familiar, tells (n,) images of the classes from (m,) foreign ones."""

    def __init__(self, inside: np.ndarray, outside: np.ndarray) -> None:
        # a NaN counts against
        inside, outside = np.where(np.isnan(inside), -np.inf, inside), np.where(np.isnan(outside), np.inf, outside)
        self._inside, self._outside = np.argsort(-inside, kind="stable"), np.argsort(outside, kind="stable")
        best_first, lowest_first = inside[self._inside], outside[self._outside]
        # of each own image, best first: how many foreign ones stand below it, and how many not above
        self._below = np.searchsorted(lowest_first, best_first, side="left")
        self._upto = np.searchsorted(lowest_first, best_first, side="right")

    def auroc(self, inside: np.ndarray, outside: np.ndarray) -> float:
        """Probability that an own image scores higher than a foreign one, ties one half (Mann-Whitney).

        inside: (n,), outside: (m,) weights. NaN if no image of either kind counts.
        """
        own, seen = inside.take(self._inside), np.cumsum(outside.take(self._outside))
        seen = np.concatenate([[0.0], seen])
        wins = seen.take(self._below) + seen.take(self._upto)
        return _ratio(float(own @ wins) / 2, float(own.sum() * seen[-1]))

    def fpr95(self, inside: np.ndarray, outside: np.ndarray) -> float:
        """Share of the foreign images at or above the highest threshold that at least 95 % of the own reach."""
        accepted, foreign = np.cumsum(inside.take(self._inside)), outside.take(self._outside)
        if accepted[-1] == 0:
            return float("nan")
        # the double nearest to 0.95 lies below it, so that rounding never asks for one more than 19 of 20
        last = np.searchsorted(accepted, 0.95 * accepted[-1], side="left")
        return _ratio(float(foreign[self._below[last] :].sum()), float(foreign.sum()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result = np.full(len(whole), np.nan)
    return np.divide(part, whole, out=result, where=whole > 0)
