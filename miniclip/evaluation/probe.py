"""Classifiers on frozen image embeddings: logistic regression on all or a few pictures a class, and nearest neighbours.

The linear probe follows CLIP (arXiv:2103.00020, appendix A.3): L-BFGS, the strength of the L2 penalty chosen on the
validation pictures by a search that halves its step. Axes: N pictures, E embedding, F figures.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniclip.evaluation.result import Evaluation
from miniclip.metrics.bootstrap import RESAMPLES, with_intervals

NEIGHBOURS = (1, 5, 10, 20, 50, 100)
# CLIP, appendix A.3: C from 1e-6 to 1e6 in eighths of a decade, 1000 steps of L-BFGS at most.
_EIGHTHS = 96
_MAX_STEPS = 1000
# Entries of the training features. A step of a smaller fit is so short that BLAS's threads mostly wait for each other:
# 1,200 x 256 on two cores, one of them busy, took more than 20 times as long with two threads as with one.
_WORTH_THREADS = 2**23
# Of the gradient. scikit-learn's 1e-4 is loose on vectors of length 1, and changed which C was chosen.
_TOLERANCE = 1e-6


class Labelled(NamedTuple):
    """features: (N, E) float32, unit length. labels: (N,) integers, places in the list of classes."""

    features: Tensor | np.ndarray
    labels: Tensor | np.ndarray


def divide(
    labels: Tensor | np.ndarray, shares: Sequence[float], seed: int, *, classes: Sequence[str] = ()
) -> list[np.ndarray]:
    """Split pictures at random, each class in proportion: one sorted array of row numbers for each share.

    labels: (N,) integers. shares: positive, sum to 1. classes: names for messages. Every part gets at least one picture
    of every class. Raises ValueError if a class has fewer pictures than there are parts, or for other shares.
    """
    if len(shares) == 0 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares {list(shares)} must be above 0 and sum to 1, e.g. 0.8 0.1 0.1")
    found = _numpy(labels)
    if len(found) == 0:
        raise ValueError("there are no pictures to divide")
    draws = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    values, starts = np.unique(np.sort(found), return_index=True)
    for label, rows in zip(values, np.split(np.argsort(found, kind="stable"), starts[1:]), strict=True):
        if len(rows) < len(shares):
            name = repr(classes[label]) if label < len(classes) else str(label)
            raise ValueError(
                f"class {name} has {len(rows)} pictures, and {len(shares)} parts need one each; add pictures, leave "
                "the class out, or bring splits of your own"
            )
        ends = np.cumsum(_allot(len(rows), shares))[:-1]
        for part, chosen in zip(parts, np.split(draws.permutation(rows), ends), strict=True):
            part.append(chosen)
    return [np.sort(np.concatenate(part)) for part in parts]


def probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    classes: Sequence[str],
    task: str,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    draws: int = 5,
    seed: int = 0,
    fingerprint: str = "",
    notes: Sequence[str] = (),
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> Evaluation:
    """Fit on train, choose on validation, count on test. The validation pictures are never fitted.

    linear: logistic regression; C is the one with the best validation accuracy, of equals the smallest (the strongest
    penalty). Embeddings are centred and divided by the root mean square of their distances from the training mean
    ("spread" in the details). The intercept is free, so that changes nothing but the unit of C, which then suits every
    width and the narrow cones that CLIP's embeddings lie in: on them as they are, scikit-learn's C is C / spread**2.
    linear_balanced_accuracy: the mean of its recall over the classes that have test pictures.
    linear_K_shot: mean accuracy over draws of K training pictures a class, each with a C of its own, chosen on all of
    validation; that is more than K pictures a class, so it flatters. A draw's K pictures are among those of a larger K.
    knn: majority of the k nearest by cosine, of equals the lowest label; k is the one of NEIGHBOURS with the best
    validation accuracy, of equals the largest.

    shots, draws: at least 1. notes: what its notes begin with. resamples: of the intervals. Equal seeds give equal
    results. Raises ValueError for fewer than two classes, an empty split, features that are not finite or not of length
    1, a label out of range, and a class with validation or test pictures but none to train on, since it could never be
    predicted.
    """
    if draws < 1 or any(shot < 1 for shot in shots):
        raise ValueError(f"draws={draws} and shots={list(shots)} must be at least 1")
    if len(classes) < 2:
        raise ValueError(f"{task}: a probe needs at least two classes, got {list(classes)}")
    splits = {"training": train, "validation": validation, "test": test}
    x, y = {}, {}
    for split, pictures in splits.items():
        x[split], y[split] = _checked(pictures, f"{task}, {split}", len(classes))
    if len({features.shape[1] for features in x.values()}) > 1:
        raise ValueError(f"{task}: embeddings of several widths, {[features.shape[1] for features in x.values()]}")
    counts = {split: np.bincount(labels, minlength=len(classes)) for split, labels in y.items()}
    filled, shot_notes = _fillable(shots, counts["training"])
    said = [*notes, *_class_notes(task, classes, counts), *shot_notes]

    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    threads = 1 if x["training"].size < _WORTH_THREADS else None
    with (
        threadpool_limits(threads),
        tqdm(total=2 + draws * len(filled), desc=f"probe {task}", leave=False, disable=not progress) as bar,
    ):
        k, neighbour_accuracy, neighbours = _nearest(x, y)
        bar.update()
        # not below the rounding of float32, where all pictures have one embedding
        spread = max(float(np.sqrt(x["training"].var(axis=0).sum())), 1e-6)
        x = {split: features / spread for split, features in x.items()}
        linear = _choose(x["training"], y["training"], x["validation"], y["validation"])
        bar.update()
        said += _convergence_notes("linear", [linear])
        # A figure is a row of hits, summed over `repeats` classifiers, over repeats * N.
        hits = {"linear": linear.predict(x["test"]) == y["test"], "knn": neighbours == y["test"]}
        repeats = dict.fromkeys(hits, 1)
        curve = []
        orders = [np.random.default_rng([seed, draw]).permutation(len(y["training"])) for draw in range(draws)]
        for shot in filled:
            fits = []
            for order in orders:
                rows = _first_of_each(y["training"], order, shot)
                fits.append(_choose(x["training"][rows], y["training"][rows], x["validation"], y["validation"]))
                bar.update()
            drawn = [fit.predict(x["test"]) == y["test"] for fit in fits]
            hits[f"linear_{shot}_shot"], repeats[f"linear_{shot}_shot"] = np.sum(drawn, axis=0), draws
            shares = [float(hit.mean()) for hit in drawn]
            spread_over_draws = statistics.stdev(shares) if draws > 1 else None
            strengths = [fit.C for fit in fits]
            curve.append(
                {"shots": shot, "mean": sum(shares) / draws, "std": spread_over_draws, "draws": shares, "C": strengths}
            )
            said += _convergence_notes(f"{shot}-shot", fits)

    rows_of_hits = np.stack([row.astype(np.float64) for row in hits.values()])  # f n
    divisors = np.asarray(list(repeats.values()))

    def recount(weights: np.ndarray) -> dict[str, float]:
        figures = dict(zip(hits, (rows_of_hits @ weights / (divisors * weights.sum())).tolist(), strict=True))
        pictures = np.bincount(y["test"], weights)
        right = np.bincount(y["test"], weights * hits["linear"])
        balanced = float((right[pictures > 0] / pictures[pictures > 0]).mean())
        return {"linear": figures.pop("linear"), "linear_balanced_accuracy": balanced, **figures}

    details = {
        "classes": list(classes),
        "chance": 1 / len(classes),
        **{f"n_{split}": len(y[name]) for split, name in zip(("train", "validation", "test"), y, strict=True)},
        "shots": curve,
        "C": linear.C,
        "spread": spread,
        "k": k,
        "validation": {"linear": linear.accuracy, "knn": neighbour_accuracy},
    }
    groups = (len(y["test"]),)
    return Evaluation(
        kind="probe",
        task=task,
        figures=with_intervals(recount, groups, resamples=resamples),
        details=details,
        notes=tuple(said),
        fingerprint=fingerprint,
        recount=recount,
        groups=groups,
    )


class _Fit(NamedTuple):
    """The chosen regression. accuracy: on validation. tried: fits in the search. stopped: C of those cut short."""

    model: Any
    mean: np.ndarray
    C: float
    accuracy: float
    tried: int
    stopped: tuple[float, ...]

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.model.predict(x - self.mean)


def _choose(x: np.ndarray, y: np.ndarray, x_validation: np.ndarray, y_validation: np.ndarray) -> _Fit:
    """Every second decade first, then both sides of the best so far, in steps that halve down to an eighth decade."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # At small C the weights are below the tolerance, and a mean that the intercept has to make up for would stay in.
    mean = x.mean(axis=0)
    x, x_validation = x - mean, x_validation - mean
    models: dict[int, Any] = {}
    accuracy: dict[int, float] = {}
    stopped = []

    def fit(place: int) -> None:
        if place in models or not 0 <= place <= _EIGHTHS:
            return
        strength = _strength(place)
        if models:  # from the nearest solution, which takes about three quarters of the steps
            model = copy(models[min(models, key=lambda other: abs(other - place))]).set_params(C=strength)
        else:
            model = LogisticRegression(C=strength, tol=_TOLERANCE, max_iter=_MAX_STEPS, warm_start=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes is greater")  # so it is with one shot
            model.fit(x, y)
        for warning in caught:
            if issubclass(warning.category, ConvergenceWarning):
                stopped.append(strength)
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        models[place] = model
        accuracy[place] = float((model.predict(x_validation) == y_validation).mean())

    def best() -> int:
        return max(accuracy, key=lambda place: (accuracy[place], -place))

    for place in range(0, _EIGHTHS + 1, 16):
        fit(place)
    for step in (8, 4, 2, 1):
        centre = best()
        fit(centre - step)
        fit(centre + step)
    chosen = best()
    return _Fit(models[chosen], mean, _strength(chosen), accuracy[chosen], len(models), tuple(stopped))


def _strength(place: int) -> float:
    return float(10 ** (place / 8 - 6))


def _nearest(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> tuple[int, float, np.ndarray]:
    """The chosen k, its validation accuracy, and the labels it gives to the test pictures."""
    from scipy.stats import mode
    from sklearn.neighbors import KNeighborsClassifier

    candidates = [k for k in NEIGHBOURS if k <= len(y["training"])]
    # Euclidean, which orders vectors of length 1 as the cosine does, has the faster search.
    index = KNeighborsClassifier(algorithm="brute", metric="euclidean").fit(x["training"], y["training"])

    def vote(split: str, ks: Sequence[int]) -> list[np.ndarray]:
        labels = y["training"][index.kneighbors(x[split], max(ks), return_distance=False)]
        return [mode(labels[:, :k], axis=1).mode.ravel() for k in ks]

    accuracy = [float((found == y["validation"]).mean()) for found in vote("validation", candidates)]
    best, k = max(zip(accuracy, candidates, strict=True))
    return k, best, vote("test", [k])[0]


def _first_of_each(labels: np.ndarray, order: np.ndarray, shot: int) -> np.ndarray:
    """The first `shot` rows of each class in that order; all of a class that has fewer."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    return by_class[np.arange(len(labels)) - np.repeat(starts, sizes) < shot]


def _allot(n: int, shares: Sequence[float]) -> np.ndarray:
    """Whole numbers of at least 1 that sum to n, as near to the shares as that allows."""
    exact = n * np.asarray(shares)
    counts = np.maximum(np.floor(exact), 1)
    while counts.sum() < n:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > n:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts.astype(np.int64)


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().numpy()


def _checked(pictures: Labelled, where: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    features, labels = _numpy(torch.as_tensor(pictures.features).double()), _numpy(pictures.labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{where}: needs (N, E) features and (N,) whole-numbered labels, got {features.shape} and {labels.shape} "
            f"{labels.dtype}"
        )
    if len(labels) == 0:
        raise ValueError(f"{where}: there are no pictures")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))
    if len(bad):
        raise ValueError(
            f"{where}: the embedding in row {bad[0]} has length {lengths[bad[0], 0]:.3g} instead of 1, as have "
            f"{len(bad)} of {len(labels)} in all; normalise them, or look for NaN in the model"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(bad):
        raise ValueError(f"{where}: row {bad[0]} has label {labels[bad[0]]}; there are {n_classes} classes")
    return features / lengths, labels


def _class_notes(task: str, classes: Sequence[str], counts: dict[str, np.ndarray]) -> list[str]:
    lacking = counts["training"] == 0
    for split in ("validation", "test"):
        wanted = np.flatnonzero(lacking & (counts[split] > 0))
        if len(wanted):
            name, n = classes[wanted[0]], counts[split][wanted[0]]
            raise ValueError(
                f"{task}: class {name!r} has {n} {split} pictures and none to train on, so it could never be predicted "
                f"({len(wanted)} such classes); leave it out, or give it training pictures"
            )
    if len(classes) - lacking.sum() < 2:
        raise ValueError(f"{task}: fewer than two classes have training pictures; a probe needs two")
    return [
        f"{len(absent)} of {len(classes)} classes have no {split} pictures, e.g. {classes[absent[0]]!r}"
        for split, found in counts.items()
        if len(absent := np.flatnonzero(found == 0))
    ]


def _fillable(shots: Sequence[int], sizes: np.ndarray) -> tuple[list[int], list[str]]:
    """The shots that at least one class can fill, ascending, and notes on the others and on classes with fewer."""
    filled, notes = [], []
    for shot in sorted(set(shots)):
        few = int(((sizes > 0) & (sizes < shot)).sum())
        if shot > sizes.max():
            notes.append(f"no {shot}-shot: no class has {shot} training pictures, the most is {sizes.max()}")
            continue
        filled.append(shot)
        if few:
            notes.append(f"{shot}-shot: {few} of {len(sizes)} classes have fewer training pictures and give them all")
    return filled, notes


def _convergence_notes(name: str, fits: Sequence[_Fit]) -> list[str]:
    stopped = [strength for fit in fits for strength in fit.stopped]
    if not stopped:
        return []
    chosen = sum(fit.C in fit.stopped for fit in fits)
    return [
        f"{name}: {len(stopped)} of {sum(fit.tried for fit in fits)} fits stopped before they converged "
        f"(C from {min(stopped):.2g} to {max(stopped):.2g}); {chosen} of them were chosen"
    ]
