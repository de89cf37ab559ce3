"""Classifiers on frozen image embeddings: logistic regression on all or a few images a class, and nearest neighbours.

The linear probe follows CLIP (arXiv:2103.00020, appendix A.3): L-BFGS, the strength of the L2 penalty chosen on the
validation images by a search that halves its step. Axes: N images, E embedding, F figures.
"""

from __future__ import annotations

import logging
import statistics
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.common.processes import place
from miniclip.data.captioned import LabelledSource
from miniclip.data.subset import Subset
from miniclip.data.tables.source import ALIASES
from miniclip.evaluation.encode import DEFAULT, Encoded, EncodeOptions, encode_readable
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.zeroshot import labels_of
from miniclip.metrics.bootstrap import RESAMPLES, Share, Statistic, with_intervals
from miniclip.metrics.weighted import balanced_size
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TwoTowers

log = logging.getLogger(__name__)

ROLES = ("train", "validation", "test")
NEIGHBOURS = (1, 5, 10, 20, 50, 100)
# CLIP, appendix A.3: C from 1e-6 to 1e6 in eighths of a decade, 1000 steps of L-BFGS at most.
_EIGHTHS = 96
_MAX_STEPS = 1000
# Entries of the training features: in a smaller fit BLAS's threads mostly wait for each other, up to 20 times as long.
_WORTH_THREADS = 2**23
_TOLERANCE = 1e-6  # of the gradient: scikit-learn's 1e-4 is loose on vectors of length 1


class Labelled(NamedTuple):
    """features: (N, E) float32, unit length. labels: (N,) int64, places in the list of classes."""

    features: Tensor | np.ndarray
    labels: Tensor | np.ndarray


def open_parts(
    open_split: Callable[[str], LabelledSource], splits: Sequence[str], data: str, seed: int = 0
) -> list[LabelledSource]:
    """Images to fit on, to choose on and to count on: train, validation, test, out of the splits that the data have.

    What is missing is divided off, each class in proportion, with a logged note: validation is a fifth of train, and
    takes the place of a test split that is not there; one split alone is cut into three, 60:20:20. Raises ValueError if
    there are several splits and they are others, or a class has too few images.
    """

    def divided(split: str, *shares: float) -> list[LabelledSource]:
        source = open_split(split)
        return [Subset(source, p.tolist()) for p in divide(labels_of(source, data), shares, seed, source.classes)]

    if len(splits) == 1:
        log.warning("%s has the one split %r: 60 %% is fitted on, 20 %% chosen on, 20 %% tested on", data, splits[0])
        return divided(splits[0], 0.6, 0.2, 0.2)
    known = (next((name for name in (role, *ALIASES[role]) if name in splits), None) for role in ROLES)
    train, validation, test = known
    tested = test or validation
    if train is None or tested is None:
        lacks = f"{data}: a probe needs the splits train and test, and it has {', '.join(splits)}"
        raise ValueError(f"{lacks}; rename them, or give data with one split, which is then divided")
    if test is not None and validation is not None:
        return [open_split(name) for name in (train, validation, test)]
    lacking = "validation" if test else "test"
    log.warning("%s has no %s split: a fifth of train chooses the penalty, %r is tested on", data, lacking, tested)
    return [*divided(train, 0.8, 0.2), open_split(tested)]


def probe_model(
    model: TwoTowers,
    preprocess: Preprocess,
    parts: Sequence[LabelledSource],
    task: str,
    *,
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    options: EncodeOptions = DEFAULT,
    **settings: Any,
) -> Evaluation:
    """Embed parts (train, validation, test; the last two may be one, which flatters) and probe; settings: see `probe`.

    Raises ValueError unless the parts have the same classes, and if none of a part's images can be read.
    """
    classes = parts[0].classes
    encoded: dict[int, tuple[Encoded, Tensor]] = {}
    for role, part in zip(ROLES, parts, strict=True):
        if list(part.classes) != list(classes):
            raise ValueError(f"{task}: {role} has the classes {first_few(part.classes)}, train {first_few(classes)}")
    for part in {id(part): part for part in parts}.values():
        images = encode_readable(model, part, preprocess, options, task)
        encoded[id(part)] = images, labels_of(part, task)[images.rows]
    if options.shared and place()[0]:
        shots = ()  # the processes have shared the images; the same fits in each would only hold each other up
    found = [encoded[id(part)] for part in parts]
    train, validation, test = (Labelled(images.values, labels) for images, labels in found)
    settings["fingerprint"] = digest(*(part for images, y in found for part in (images.fingerprint, y.tolist())))
    settings["notes"] = [note for images, _ in encoded.values() for note in images.notes]
    return probe(train, validation, test, classes, task, shots=shots, progress=options.progress, **settings)


def divide(labels: Tensor, shares: Sequence[float], seed: int, classes: Sequence[str]) -> list[np.ndarray]:
    """Split images at random, each class in proportion: one sorted array of row numbers for each share.

    labels: (N,) integers, places in classes. shares: positive, sum to 1. Raises ValueError if a class has fewer images
    than there are parts, each of which gets at least one.
    """
    found, draws = labels.numpy(), np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(found):
        rows = np.flatnonzero(found == label)
        if len(rows) < len(shares):
            few = f"class {classes[label]!r} has {len(rows)} images, and {len(shares)} parts need one each"
            raise ValueError(f"{few}; add images, leave the class out, or bring splits of your own")
        # whole numbers of at least 1 that sum to n, as near to the shares as that allows
        n, exact = len(rows), len(rows) * np.asarray(shares)
        counts = np.maximum(np.floor(exact), 1)
        while counts.sum() < n:
            counts[np.argmax(exact - counts)] += 1
        while counts.sum() > n:
            counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
        ends = np.cumsum(counts.astype(np.int64))[:-1]
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
    """Fit on train, choose on validation, count on test. The validation images are never fitted.

    linear: logistic regression; C is the one with the best validation accuracy, of equals the smallest. Embeddings are
    centred and divided by the root mean square of their distances from the training mean ("spread" in the details),
    which changes nothing but the unit of C: on embeddings as they are, scikit-learn's C is C / spread**2.
    linear_balanced_accuracy: the mean of its recall over the classes that have test images.
    linear_K_shot: mean accuracy over draws of K training images a class, each with a C of its own, chosen on all of
    validation, which flatters. A draw's K images are among those of a larger K.
    knn: majority of the k nearest by cosine, of equals the lowest label; k is the one of NEIGHBOURS with the best
    validation accuracy, of equals the largest.

    notes: what its notes begin with. Raises ValueError for features that are not of length 1, fewer than two classes to
    train on, and a class with validation or test images but none to train on.
    """
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    splits = {"training": train, "validation": validation, "test": test}
    x = {split: _unit(images.features, f"{task}, {split}") for split, images in splits.items()}
    y = {split: np.asarray(images.labels) for split, images in splits.items()}
    counts = {split: np.bincount(labels, minlength=len(classes)) for split, labels in y.items()}
    said = [*notes, *_notes(task, classes, counts, shots)]
    filled = [shot for shot in sorted(set(shots)) if shot <= counts["training"].max()]
    steps = 2 + draws * len(filled)
    bar = tqdm(total=steps, desc=f"probe {task}", leave=False, disable=not progress)
    with bar, threadpool_limits(1 if x["training"].size < _WORTH_THREADS else None):
        k, neighbour_accuracy, neighbours = _nearest(x, y)
        bar.update()
        # not below the rounding of float32, where all images have one embedding
        spread = max(float(np.sqrt(x["training"].var(axis=0).sum())), 1e-6)
        x = {split: features / spread for split, features in x.items()}

        def fit(rows: np.ndarray | slice) -> _Fit:
            bar.update()
            return _choose(x["training"][rows], y["training"][rows], x["validation"], y["validation"])

        linear = fit(slice(None))
        said += _convergence_notes("linear", [linear])
        # A figure is a row of hits, summed over `repeats` classifiers, over repeats * N.
        hits = {"linear": linear.predict(x["test"]) == y["test"], "knn": neighbours == y["test"]}
        repeats = dict.fromkeys(hits, 1)
        curve = []
        orders = [np.random.default_rng([seed, draw]).permutation(len(y["training"])) for draw in range(draws)]
        for shot in filled:
            fits = [fit(_first_of_each(y["training"], order, shot)) for order in orders]
            drawn = [one.predict(x["test"]) == y["test"] for one in fits]
            hits[f"linear_{shot}_shot"], repeats[f"linear_{shot}_shot"] = np.sum(drawn, axis=0), draws
            shares = [float(hit.mean()) for hit in drawn]
            spread_of = statistics.stdev(shares) if draws > 1 else None
            point = {"shots": shot, "mean": sum(shares) / draws, "std": spread_of, "draws": shares}
            curve.append(point | {"C": [one.C for one in fits]})
            said += _convergence_notes(f"{shot}-shot", fits)

    def balanced(weights: np.ndarray) -> dict[str, float]:
        images, right = np.bincount(y["test"], weights), np.bincount(y["test"], weights * hits["linear"])
        return {"linear_balanced_accuracy": float((right[images > 0] / images[images > 0]).mean())}

    by_image = {name: Share.of(row / repeats[name]) for name, row in hits.items()}
    sizes = {"linear_balanced_accuracy": balanced_size(counts["test"])}
    statistic = Statistic(by_image, balanced, sizes=sizes)
    details = {
        "classes": list(classes),
        "chance": 1 / len(classes),
        **{f"n_{role}": len(labels) for role, labels in zip(ROLES, y.values(), strict=True)},
        "shots": curve,
        "C": linear.C,
        "spread": spread,
        "k": k,
        "validation": {"linear": linear.accuracy, "knn": neighbour_accuracy},
    }
    groups = (len(y["test"]),)
    figures = with_intervals(statistic, groups, resamples=resamples)
    return Evaluation("probe", task, figures, details, tuple(said), fingerprint, statistic, groups)


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
    models: dict[int, Any] = {}  # by eighths of a decade above 1e-6
    accuracy: dict[int, float] = {}
    stopped = []

    def fit(*eighths: int) -> int:
        """The best of all so far."""
        for eighth in eighths:
            if eighth in models or not 0 <= eighth <= _EIGHTHS:
                continue
            model = LogisticRegression(tol=_TOLERANCE, max_iter=_MAX_STEPS, warm_start=True)
            if models:  # from the nearest solution, which takes about three quarters of the steps
                model = copy(models[min(models, key=lambda other, here=eighth: abs(other - here))])  # type: ignore[misc]
            model.set_params(C=float(10 ** (eighth / 8 - 6)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a note says it
                warnings.filterwarnings("ignore", "The number of unique classes is greater")  # so it is with one shot
                model.fit(x, y)
            if model.n_iter_.max() >= _MAX_STEPS:
                stopped.append(model.C)
            models[eighth] = model
            accuracy[eighth] = float((model.predict(x_validation) == y_validation).mean())
        return max(accuracy, key=lambda eighth: (accuracy[eighth], -eighth))

    best = fit(*range(0, _EIGHTHS + 1, 16))
    for step in (8, 4, 2, 1):
        best = fit(best - step, best + step)
    return _Fit(models[best], mean, models[best].C, accuracy[best], len(models), tuple(stopped))


def _nearest(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> tuple[int, float, np.ndarray]:
    """The chosen k, its validation accuracy, and the labels it gives to the test images."""
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


def _unit(features: Tensor | np.ndarray, where: str) -> np.ndarray:
    """In float64, of length 1 beyond the rounding of float32."""
    found = np.asarray(features, np.float64)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))
    if len(bad):
        wrong = f"the embedding in row {bad[0]} has length {lengths[bad[0], 0]:.3g} instead of 1"
        every = f"as have {len(bad)} of {len(found)} in all"
        raise ValueError(f"{where}: {wrong}, {every}; normalise them, or look for NaN in the model")
    return found / lengths


def _notes(task: str, classes: Sequence[str], counts: dict[str, np.ndarray], shots: Sequence[int]) -> list[str]:
    """On classes without images, on shots that no class can fill, and on classes with fewer images."""
    sizes = counts["training"]
    for split in ("validation", "test"):
        wanted = np.flatnonzero((sizes == 0) & (counts[split] > 0))
        if len(wanted):
            has = f"{task}: class {classes[wanted[0]]!r} has {counts[split][wanted[0]]} {split} images"
            why = f"none to train on, so it could never be predicted ({len(wanted)} such classes)"
            raise ValueError(f"{has} and {why}; leave it out, or give it training images")
    if (sizes > 0).sum() < 2:
        raise ValueError(f"{task}: fewer than two classes have training images; a probe needs two")
    notes = []
    for split, found in counts.items():
        if len(absent := np.flatnonzero(found == 0)):
            example = f"e.g. {classes[absent[0]]!r}"
            notes.append(f"{len(absent)} of {len(classes)} classes have no {split} images, {example}")
    for shot in sorted(set(shots)):
        few = int(((sizes > 0) & (sizes < shot)).sum())
        if shot > sizes.max():
            notes.append(f"no {shot}-shot: no class has {shot} training images, the most is {sizes.max()}")
        elif few:
            notes.append(f"{shot}-shot: {few} of {len(sizes)} classes have fewer training images and give them all")
    return notes


def _convergence_notes(name: str, fits: Sequence[_Fit]) -> list[str]:
    stopped = [strength for fit in fits for strength in fit.stopped]
    tried, chosen = sum(fit.tried for fit in fits), sum(fit.C in fit.stopped for fit in fits)
    note = f"{name}: {len(stopped)} of {tried} fits stopped before they converged "
    return [f"{note}(C from {min(stopped):.2g} to {max(stopped):.2g}); {chosen} of them were chosen"] if stopped else []
