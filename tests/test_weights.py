"""Weights of images: by hand, from each kind of file, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.files import cells, write_csv, write_images, write_jsonl, write_parquet

from miniclip.config import ConfigError, DataConfig
from miniclip.data.captioned import PairSource, open_source
from miniclip.data.subset import Subset
from miniclip.data.weights import class_weights, image_weights

FORMS = ("csv", "jsonl", "parquet")
EIGHTY_TEN_TEN = [*("a" * 80), *("b" * 10), *("c" * 10)]


def config_of(folder: Path, form: str, values: Sequence[Any], weights: str = "column", **others: Any) -> DataConfig:
    """An image for each value, which stands in the column `w`; a None is an empty cell."""
    names = [f"{i}.png" for i in range(len(values))]
    if form == "parquet":
        columns = {"image": cells(len(values)), "text": names, "w": list(values)}
        source = str(Path(write_parquet(folder / "data" / "test.parquet", columns)).parent)
    else:
        write_images(folder, len(values))
        rows = [{"image": n, "text": n, "split": "test", "w": v} for n, v in zip(names, values, strict=True)]
        file = folder / f"list.{form}"
        source = write_jsonl(file, rows) if form == "jsonl" else write_csv(file, [rows[0], *(r.values() for r in rows)])
    return DataConfig(source=source, **{"weights": weights, "weight_column": "w"} | others)  # type: ignore[arg-type]


def opened(config: DataConfig) -> PairSource:
    return open_source(config, "test")


def weights_of(config: DataConfig) -> list[float]:
    found = image_weights(opened(config), config)
    assert found is not None and found.dtype == torch.float32 and found.shape == (len(opened(config)),)
    return found.tolist()


def test_classes_by_hand() -> None:
    # 100/80 and 100/10, and their logarithms
    for kind, common, rare in (("inverse", 1.25, 10.0), ("log", 0.2231435513, 2.302585093)):
        assert class_weights(EIGHTY_TEN_TEN, kind) == pytest.approx([common] * 80 + [rare] * 20, rel=1e-9)
        # the order of the items is theirs
        assert class_weights(["c", *EIGHTY_TEN_TEN[:-1]], kind)[:2] == pytest.approx([rare, common], rel=1e-9)
    assert class_weights(["a"] * 3, "inverse") == [1, 1, 1] and class_weights(["a"] * 3, "log") == [0, 0, 0]
    classes = [*"aaaaabbbcdd"]  # inverse weights give every class the same total
    found = class_weights(classes, "inverse")
    for name in "abcd":
        assert math.fsum(w for c, w in zip(classes, found, strict=True) if c == name) == pytest.approx(11, rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_classes_and_numbers_of_a_file_have_mean_1(tmp_path: Path, form: str) -> None:
    # over the means 3 and (80 ln 1.25 + 20 ln 10) / 100 = 0.639032
    for kind, common, rare in (("inverse", 1.25 / 3, 10 / 3), ("log", 0.349190, 3.603240)):
        found = weights_of(config_of(tmp_path / kind, form, EIGHTY_TEN_TEN, kind))
        assert found == pytest.approx([common] * 80 + [rare] * 20, rel=2e-6)
        assert sum(found) / 100 == pytest.approx(1, rel=1e-6)
    # classes may be numbers
    assert weights_of(config_of(tmp_path / "n", form, [7, 7, 7, 0], "inverse")) == pytest.approx([2 / 3] * 3 + [2])
    given = {"a": ([3, 0, 1, 4], [1.5, 0, 0.5, 2]), "b": ([0.5, 1e-3, 2.499],) * 2, "c": ([1e300, 3e300], [0.5, 1.5])}
    if form != "parquet":
        given["text"] = (["1e1", " 2.50 ", "7.5", "0"], [2, 0.5, 1.5, 0])
    if form == "jsonl":
        given["bool"] = ([True, False], [2, 0])
    for name, (values, expected) in given.items():
        assert weights_of(config_of(tmp_path / name, form, values)) == pytest.approx(expected), name


def test_without_weights_there_are_none(tmp_path: Path) -> None:
    config = config_of(tmp_path, "jsonl", [1, 2], "none", weight_column=None)
    assert image_weights(opened(config), config) is None
    assert image_weights(open_source(DataConfig(size=3), "train"), DataConfig(size=3)) is None


def test_frequencies_are_those_of_the_split(tmp_path: Path) -> None:
    """Two thirds of the file are b, but the images that are trained on are half a, half b."""
    config = config_of(tmp_path, "jsonl", [*"aabbbb"], "inverse")
    for rows, expected in (([5, 0, 1, 2], [1, 1, 1, 1]), ([5, 0, 2, 3], [2 / 3, 2, 2 / 3, 2 / 3])):
        found = image_weights(Subset(opened(config), rows), config)
        assert found is not None and found.tolist() == pytest.approx(expected)


def refused(config: DataConfig) -> str:
    with pytest.raises(ValueError) as error:
        image_weights(opened(config), config)
    return str(error.value)


def test_bad_weights_and_missing_classes_name_their_row(tmp_path: Path) -> None:
    bad = {
        "csv": ["", "heavy", "-1", "nan", "inf", "-inf", "1,5"],
        "jsonl": [None, -0.5, [1], {"w": 1}],
        "parquet": [None, -2.0, math.inf],
    }
    where = {"csv": ("list.csv line", 2), "jsonl": ("list.jsonl line", 1), "parquet": ("test row", 0)}
    for form, (place, first) in where.items():
        for i, value in enumerate(bad[form]):
            said = f"2.png ({place} {first + 2}): w holds {value!r}; a weight is a number of 0 or more"
            assert refused(config_of(tmp_path / form / str(i), form, [1.0, 2.0, value, 4.0])) == said
        for kind in ("inverse", "log"):
            said = f"1.png ({place} {first + 1}): w is empty; data.weights={kind} needs a class"
            assert refused(config_of(tmp_path / form / kind, form, ["a", None, "b"], kind)) == said
        listed = "image, text, w" if form == "parquet" else "image, text, split, w"
        said = refused(config_of(tmp_path / form / "column", form, [1, 2], weight_column="weihgt"))
        assert said.endswith(f" has no column weihgt (data.weight_column), but {listed}")
    config = config_of(tmp_path, "jsonl", [1, 2, 3])
    file = Path(config.sources[0])
    file.write_text(file.read_text().replace(', "w": 2', ""))
    assert refused(config).startswith("1.png (list.jsonl line 2): w holds None")


def test_nothing_but_zeros_is_refused(tmp_path: Path) -> None:
    for kind, values, first in (("column", ["0", "0.0"], "'0'"), ("log", ["cat", "cat"], "'cat'")):
        config = config_of(tmp_path / kind, "csv", values, kind)
        said = f"data.weights={kind}: every image weighs 0 by w, whose first value is {first}; use another column, or "
        assert refused(config) == said + "data.weights=none"
        with pytest.raises(ConfigError):
            image_weights(opened(config), config)


@pytest.mark.parametrize(("column", "tail"), [("colour", "none"), ("shape", "none"), ("colour", "power")])
def test_the_scenes_have_no_columns_but_the_shape_of_a_tail(column: str, tail: str) -> None:
    config = DataConfig(size=3, weights="inverse", weight_column=column, tail=tail)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"no column {column} .*with data\.tail they have shape"):
        image_weights(open_source(config, "train"), config)
