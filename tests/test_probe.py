"""The probe against scikit-learn itself, and by hand."""

from __future__ import annotations

import functools
import json
import math
import statistics
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from support.sources import FakeLabelled

import miniclip.evaluation.probe as probing
from miniclip.evaluation.probe import Labelled, divide, open_parts, probe
from miniclip.evaluation.result import Evaluation, to_json

NAMES = ("ant", "bee", "cow", "dog")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clouds(n: int, seed: int, noise: float, classes: int = 4, width: int = 12) -> Labelled:
    """Unit vectors about one centre a class; the centres are the same for every seed."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.eye(width)[:classes] * 0.5 + 0.3
    return Labelled(unit(centres[labels] + noise * draws.normal(size=(n, width))), labels)


def angles(*pairs: tuple[float, int]) -> Labelled:
    degrees = np.radians([degree for degree, _ in pairs])
    return Labelled(unit(np.stack([np.cos(degrees), np.sin(degrees)], 1)), np.array([label for _, label in pairs]))


def run(train: Labelled, validation: Labelled, test: Labelled, **options: Any) -> Evaluation:
    classes = options.pop("classes", NAMES)
    return probe(train, validation, test, classes, "toy", **{"shots": (), **options})


def hits(result: Evaluation, figure: str) -> np.ndarray:
    """(N,): what each test image counts alone."""
    return np.array([result.statistic(row)[figure] for row in np.eye(result.groups[0])])


NOISY = TRAIN, VALIDATION, TEST = clouds(90, 1, 0.45), clouds(150, 2, 0.45), clouds(200, 3, 0.45)


@pytest.fixture(scope="module")
def curve() -> Evaluation:
    return run(*NOISY, shots=(1, 2, 4), draws=4)


def reference(C: float) -> LogisticRegression:
    """scikit-learn on the embeddings as they are, to a tolerance far below the probe's."""
    return LogisticRegression(C=C, tol=1e-9, max_iter=20000).fit(np.asarray(TRAIN.features, np.float64), TRAIN.labels)


def test_linear_equals_scikit_learn_on_the_embeddings_as_they_are(curve: Evaluation) -> None:
    spread = curve.details["spread"]
    predicted = reference(curve.details["C"] / spread**2).predict(TEST.features)
    np.testing.assert_array_equal(hits(curve, "linear"), predicted == TEST.labels)
    assert curve["linear"] == np.mean(predicted == TEST.labels)
    assert math.isclose(curve["linear_balanced_accuracy"], balanced_accuracy_score(TEST.labels, predicted))
    centred = TRAIN.features - TRAIN.features.mean(0)
    assert math.isclose(spread, np.sqrt((centred**2).sum(1).mean()), rel_tol=1e-5)


def test_c_is_chosen_on_validation_by_halving(curve: Evaluation) -> None:
    @functools.cache
    def scores(eighth: int) -> tuple[float, float]:
        """On validation, and on train."""
        model = reference(10 ** (eighth / 8 - 6) / curve.details["spread"] ** 2)
        return model.score(VALIDATION.features, VALIDATION.labels), model.score(TRAIN.features, TRAIN.labels)

    seen = [0, 16, 32, 48, 64, 80, 96]
    for step in (8, 4, 2, 1):
        centre = max(seen, key=lambda place: (scores(place)[0], -place))
        seen += [place for place in (centre - step, centre + step) if 0 <= place <= 96]
    chosen = max(seen, key=lambda place: (scores(place)[0], -place))
    assert math.isclose(curve.details["C"], 10 ** (chosen / 8 - 6))
    assert curve.details["validation"]["linear"] == scores(chosen)[0]
    # the case is one where another rule would choose otherwise
    best_on_train = max(seen, key=lambda place: scores(place)[1])
    assert scores(best_on_train)[1] > scores(chosen)[1] and scores(best_on_train)[0] < scores(chosen)[0]


def test_the_test_images_choose_nothing(curve: Evaluation) -> None:
    other = run(TRAIN, VALIDATION, Labelled(TEST.features, (np.asarray(TEST.labels) + 1) % 4), shots=(2,), draws=4)
    for key in ("C", "k", "validation", "spread"):
        assert other.details[key] == curve.details[key]
    assert other.details["shots"][0]["C"] == curve.details["shots"][1]["C"]
    assert other["linear"] < 0.4 < curve["linear"]


# 5 degrees is a image of class 1 among those of class 0
FIVE = angles((0, 0), (4, 0), (8, 0), (5, 1), (60, 1))


def test_nearest_neighbours_by_hand() -> None:
    for validation, k, share in (
        (angles((5.2, 0), (1, 0)), 5, 0.5),  # all five vote 3 : 2 for class 0, so 60 degrees is lost
        (angles((5.2, 1), (60, 1)), 1, 0.75),  # the nearest: 5.1 degrees is lost
        (angles((0, 0), (4, 0)), 5, 0.5),  # both ks are right: the larger
    ):
        result = run(FIVE, validation, angles((0, 0), (5.1, 0), (58, 1), (70, 1)), classes=NAMES[:2])
        assert (result.details["k"], result["knn"], result.details["validation"]["knn"]) == (k, share, 1)


def test_nearest_neighbours_equal_scikit_learn(curve: Evaluation) -> None:
    scores, hit = {}, {}
    for k in (1, 5, 10, 20, 50):  # 100 is more than the 90 images
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(TRAIN.features, TRAIN.labels)
        scores[k] = model.score(VALIDATION.features, VALIDATION.labels)
        hit[k] = model.predict(TEST.features) == TEST.labels
    best = max(scores, key=lambda k: (scores[k], k))
    assert (curve.details["k"], curve.details["validation"]["knn"]) == (best, scores[best])
    np.testing.assert_array_equal(hits(curve, "knn"), hit[best])
    assert len({found.tobytes() for found in hit.values()}) == 5


def test_clusters_apart_are_told_apart() -> None:
    result = run(clouds(40, 1, 0.01), clouds(20, 2, 0.01), clouds(30, 3, 0.01), shots=(1, 2), draws=2)
    assert set(result.figures) == {"linear", "linear_balanced_accuracy", "knn", "linear_1_shot", "linear_2_shot"}
    z2 = 1.959963984540054**2
    for figure in result.figures.values():  # 30 right of 30, by Wilson
        assert (figure.value, figure.high, figure.n) == (1, 1, 30) and figure.low == pytest.approx(
            30 / (30 + z2), abs=0.01
        )
    assert result.details["C"] == 1e-6  # every C is right, down to the strongest penalty
    assert (result.notes, result.kind, result.groups, result.details["chance"]) == ((), "probe", (30,), 0.25)
    with warnings.catch_warnings():  # many classes of one image bring none
        warnings.simplefilter("error")
        parts = [clouds(48, seed, 0.01, classes=24, width=24) for seed in (1, 2, 3)]
        assert run(*parts, classes=[str(k) for k in range(24)], shots=(1,), draws=1)["linear_1_shot"] == 1
    for entry in ((1.0, 0.0, 0.0), (1 / 3, 2 / 3, 2 / 3)):  # embeddings that are all equal: the most frequent class
        same = Labelled(np.full((10, 3), entry, np.float32), np.array([0, 1, 1, 1, 1, 1, 1, 2, 2, 3]))
        result = run(same, same, same, shots=(1,), draws=2)
        assert (result["linear"], result["linear_balanced_accuracy"]) == (0.6, 0.25)


def test_the_strongest_penalty_is_solved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_EIGHTHS", 0)  # 1e-6 alone
    x, y = TRAIN.features[:88], TRAIN.labels[:88]
    # To first order a weight is C times the sum of (one - share) times image, and the intercepts undo the centre.
    means = np.stack([x[y == label].mean(0) for label in range(4)])
    predicted = ((TEST.features - x.mean(0)) @ (means - x.mean(0)).T).argmax(1)
    result = run(Labelled(x, y), VALIDATION, TEST)
    assert result.details["C"] == 1e-6
    np.testing.assert_array_equal(hits(result, "linear"), predicted == TEST.labels)


def test_the_curve_is_mean_and_spread_over_draws(curve: Evaluation) -> None:
    for row in curve.details["shots"]:
        assert len(row["draws"]) == len(row["C"]) == 4
        assert math.isclose(row["std"], statistics.stdev(row["draws"]))
        assert math.isclose(row["mean"], statistics.mean(row["draws"]))
        assert math.isclose(curve[f"linear_{row['shots']}_shot"], row["mean"])
        assert len(set(row["draws"])) > 1
    assert [row["shots"] for row in curve.details["shots"]] == [1, 2, 4]
    assert curve["linear_1_shot"] < curve["linear_4_shot"] < curve["linear"]
    # intervals contain the value and are about as wide as a share has it
    for name, figure in curve.figures.items():
        assert figure.low < figure.value < figure.high, name
        assert figure.n == 200
    value = curve["linear"]
    normal = 2 * 1.96 * math.sqrt(value * (1 - value) / 200)
    assert abs(curve.figures["linear"].high - curve.figures["linear"].low - normal) < 0.2 * normal


def test_the_draws_hold_so_many_of_each_class_and_lie_in_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[set[bytes], list[int]]] = []
    choose = probing._choose

    def watched(x: np.ndarray, y: np.ndarray, *validation: np.ndarray) -> Any:
        assert len(validation[1]) == 150
        fitted.append(({row.tobytes() for row in x}, np.bincount(y, minlength=4).tolist()))
        return choose(x, y, *validation)

    monkeypatch.setattr(probing, "_choose", watched)
    kept = np.flatnonzero((np.asarray(TRAIN.labels) != 2) | (np.arange(90) < 12))  # 3 of "cow"
    train = Labelled(TRAIN.features[kept], TRAIN.labels[kept])
    result = run(train, VALIDATION, TEST, shots=(8, 2, 99), draws=3, notes=["first"])
    full, *drawn = fitted
    assert full[1] == [23, 23, 3, 22]
    assert [counts for _, counts in drawn] == [[2, 2, 2, 2]] * 3 + [[8, 8, 3, 8]] * 3
    assert all(few <= more for (few, _), (more, _) in zip(drawn[:3], drawn[3:], strict=True))
    assert all(rows <= full[0] for rows, _ in drawn)
    assert drawn[0][0] != drawn[1][0]
    assert result.notes == (
        "first",
        "8-shot: 1 of 4 classes have fewer training images and give them all",
        "no 99-shot: no class has 99 training images, the most is 23",
    )
    assert "linear_99_shot" not in result.figures


def test_equal_seeds_give_equal_results(curve: Evaluation) -> None:
    again = run(*(Labelled(*map(torch.as_tensor, part)) for part in NOISY), shots=(2,), draws=4)
    assert again.details["shots"] == curve.details["shots"][1:2]
    assert all(again.figures[name] == curve.figures[name] for name in again.figures)
    other = run(*NOISY, shots=(2,), draws=4, seed=1)
    assert other.details["shots"] != again.details["shots"] and other["linear"] == again["linear"]


def test_neither_the_order_of_the_training_images_nor_a_narrow_cone_changes_anything(curve: Evaluation) -> None:
    def squeezed(part: Labelled) -> Labelled:
        lifted = np.full((len(part.features), 1), math.sqrt(1 - 0.01**2))
        return Labelled(np.concatenate([0.01 * np.asarray(part.features, np.float64), lifted], 1), part.labels)

    order = np.random.default_rng(5).permutation(90)
    # a draw of everything is the full probe
    other = run(Labelled(TRAIN.features[order], TRAIN.labels[order]), VALIDATION, TEST, shots=(23,), draws=2)
    assert other.details["shots"][0]["draws"] == [other["linear"]] * 2
    assert other.details["shots"][0]["C"] == [other.details["C"]] * 2
    cone = run(*map(squeezed, NOISY))
    assert math.isclose(cone.details["spread"], 0.01 * curve.details["spread"], rel_tol=1e-6)
    assert other.details["C"] == cone.details["C"] == curve.details["C"]
    np.testing.assert_array_equal(hits(other, "knn"), hits(curve, "knn"))
    for found in (other, cone):
        np.testing.assert_array_equal(hits(found, "linear"), hits(curve, "linear"))


def test_balanced_accuracy_leaves_out_a_class_without_test_images() -> None:
    train, validation = clouds(40, 1, 0.01), clouds(20, 2, 0.01)
    rows = [0, 4, 1, 5]  # of ant, ant, bee, bee
    test = Labelled(clouds(8, 3, 0.01).features[rows], np.array([0, 0, 0, 1]))
    result = run(train, validation, test, classes=("ant", "bee", "cow", "dog", "eel"))
    assert result["linear"] == 3 / 4
    assert math.isclose(result["linear_balanced_accuracy"], (2 / 3 + 1) / 2)
    assert result.statistic(np.array([1.0, 0, 3, 0]))["linear_balanced_accuracy"] == 1 / 4  # "bee" was not drawn
    assert result.notes == (
        "1 of 5 classes have no training images, e.g. 'eel'",
        "1 of 5 classes have no validation images, e.g. 'eel'",
        "3 of 5 classes have no test images, e.g. 'cow'",
    )


def test_fits_that_stop_early_are_noted_and_not_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_MAX_STEPS", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(*NOISY, shots=(2,), draws=2)
    assert [note.split(":")[0] for note in result.notes] == ["linear", "2-shot"]
    assert "fits stopped before they converged (C from" in result.notes[0]


def test_one_draw_has_no_spread_and_everything_is_plain() -> None:
    result = run(*NOISY, shots=(1,), draws=1, fingerprint="abc", resamples=1)
    details = result.details
    assert details["shots"][0]["std"] is None
    assert json.loads(json.dumps(to_json(result), allow_nan=False))["details"] == details
    assert [details[f"n_{part}"] for part in ("train", "validation", "test")] == [90, 150, 200]
    assert result.fingerprint == "abc" and all(low <= value <= high for value, low, high, _ in result.figures.values())


def test_bad_input_is_named() -> None:
    good = clouds(8, 1, 0.1)
    nan = Labelled(np.where(np.arange(8)[:, None] == 5, np.nan, good.features), good.labels)
    long = Labelled(np.where(np.arange(8)[:, None] >= 6, 3 * good.features, good.features), good.labels)
    few, one = Labelled(good.features[:3], good.labels[:3]), Labelled(good.features, good.labels * 0)
    for parts, message in (
        ((nan, good, good), "toy, training: the embedding in row 5 has length nan"),
        ((good, good, long), "toy, test: the embedding in row 6 has length 3 instead of 1, as have 2 of 8"),
        ((few, good, good), "class 'dog' has 2 validation images and none"),
        ((one, one, one), "fewer than two classes have training images"),
    ):
        with pytest.raises(ValueError, match=message):
            run(*parts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=1, max_size=5), st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_divide_keeps_every_class_in_proportion(sizes: list[int], weights: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    shares = np.array(weights) / sum(weights)
    parts = divide(torch.from_numpy(labels), shares.tolist(), 0, "abcde")
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    counts = np.stack([np.bincount(labels[part], minlength=len(sizes)) for part in parts])
    assert counts.sum(0).tolist() == sizes and counts.min() >= 1
    # off by an image from rounding, and by as many more as the other parts were raised to one
    assert (np.abs(counts - shares[:, None] * np.array(sizes)) < len(shares)).all()


def test_divide_by_hand() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20 + [3] * 3)
    parts, again, other = (divide(labels, (0.6, 0.2, 0.2), seed, NAMES) for seed in (0, 0, 1))
    assert all(map(np.array_equal, parts, again)) and not any(map(np.array_equal, parts, other))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[6, 12, 0, 1], [2, 4, 0, 1], [2, 4, 0, 1]]
    with pytest.raises(ValueError, match="class 'bee' has 2 images, and 3 parts need one each"):
        divide(torch.tensor([0, 0, 0, 1, 1]), (0.8, 0.1, 0.1), 0, NAMES)


def test_parts_of_what_a_source_has() -> None:
    for splits, expected in (
        ({"train": 40, "val": 10, "test": 20}, ["train 40", "val 10", "test 20"]),
        ({"training": 40, "testing": 20}, ["training 32", "training 8", "testing 20"]),
        ({"train": 40, "validation": 10}, ["train 32", "train 8", "validation 10"]),
        ({"all": 40}, ["all 24", "all 8", "all 8"]),
    ):
        sources = {split: FakeLabelled(size, ("a", "b")) for split, size in splits.items()}
        parts = open_parts(lambda split: sources[split], list(splits), "made up")  # noqa: B023
        split_of = {id(source): split for split, source in sources.items()}
        origin = [(split_of[id(getattr(part, "source", part))], part) for part in parts]
        assert [f"{split} {len(part)}" for split, part in origin] == expected
        rows = [(split, row) for split, part in origin for row in getattr(part, "rows", range(len(part)))]
        assert len(set(rows)) == len(rows)  # no image in two parts
    with pytest.raises(ValueError, match="needs the splits train and test, and it has test, validation"):
        open_parts(lambda split: FakeLabelled(4), ["test", "validation"], "made up")
