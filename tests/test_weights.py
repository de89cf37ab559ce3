"""Weights of pictures: by hand, from each kind of file, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from miniclip.config import ConfigError, DataConfig
from miniclip.data.captioned import PairSource, open_source
from miniclip.data.subset import Subset
from miniclip.data.weights import class_weights, image_weights

FORMS = pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def config_of(folder: Path, form: str, values: list[Any], weights: str = "column", **others: Any) -> DataConfig:
    """A picture for each value, which stands in the column `w`; a None is an empty cell."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    names = [f"{i}.png" for i in range(len(values))]
    if form == "parquet":
        from datasets import Dataset

        cells = [{"bytes": buffer.getvalue(), "path": name} for name in names]
        columns = {"image": cells, "text": names, "w": values}
        source = folder / "data"
        source.mkdir()
        Dataset.from_dict(columns).to_parquet(str(source / "test.parquet"))
    else:
        source = folder / f"list.{form}"
        for name in names:
            (folder / name).write_bytes(buffer.getvalue())
        rows = [{"image": n, "text": n, "split": "test", "w": v} for n, v in zip(names, values, strict=True)]
        with source.open("w", newline="") as stream:
            if form == "csv":
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                stream.writelines(json.dumps(row) + "\n" for row in rows)
    return DataConfig(source=str(source), **{"weights": weights, "weight_column": "w"} | others)  # type: ignore[arg-type]


def opened(config: DataConfig) -> PairSource:
    return open_source(config, "test")


def weights_of(config: DataConfig) -> list[float]:
    found = image_weights(opened(config), config)
    assert found is not None and found.dtype == torch.float32 and found.shape == (len(opened(config)),)
    return found.tolist()


# ---- by hand


EIGHTY_TEN_TEN = [*("a" * 80), *("b" * 10), *("c" * 10)]


@pytest.mark.parametrize(
    ("kind", "common", "rare"),
    [("inverse", 1.25, 10.0), ("log", 0.2231435513, 2.302585093)],  # 100/80 and 100/10, and their logarithms
)
def test_classes_at_80_10_10(kind: str, common: float, rare: float) -> None:
    found = class_weights(EIGHTY_TEN_TEN, kind)
    assert found == pytest.approx([common] * 80 + [rare] * 20, rel=1e-9)
    # the order of the items is theirs
    assert class_weights(["c", *EIGHTY_TEN_TEN[:-1]], kind)[:2] == pytest.approx([rare, common], rel=1e-9)


def test_inverse_weights_give_every_class_the_same_total() -> None:
    classes = [*"aaaaabbbcdd"]
    found = class_weights(classes, "inverse")
    for name in "abcd":
        assert math.fsum(w for c, w in zip(classes, found, strict=True) if c == name) == pytest.approx(11, rel=1e-12)


def test_one_class_weighs_alike_or_nothing() -> None:
    assert class_weights(["a"] * 3, "inverse") == [1, 1, 1]
    assert class_weights(["a"] * 3, "log") == [0, 0, 0]


# ---- from files


@FORMS
@pytest.mark.parametrize(
    ("kind", "common", "rare"),
    # over the means 3 and (80 ln 1.25 + 20 ln 10) / 100 = 0.639032
    [("inverse", 1.25 / 3, 10 / 3), ("log", 0.349190, 3.603240)],
)
def test_classes_of_a_file(tmp_path: Path, form: str, kind: str, common: float, rare: float) -> None:
    found = weights_of(config_of(tmp_path, form, EIGHTY_TEN_TEN, kind))
    assert found == pytest.approx([common] * 80 + [rare] * 20, rel=2e-6)
    assert sum(found) / 100 == pytest.approx(1, rel=1e-6)


@FORMS
def test_classes_may_be_numbers(tmp_path: Path, form: str) -> None:
    assert weights_of(config_of(tmp_path, form, [7, 7, 7, 0], "inverse")) == pytest.approx([2 / 3] * 3 + [2])


@FORMS
def test_numbers_of_a_file_have_mean_1(tmp_path: Path, form: str) -> None:
    assert weights_of(config_of(tmp_path / "a", form, [3, 0, 1, 4])) == pytest.approx([1.5, 0, 0.5, 2])
    assert weights_of(config_of(tmp_path / "b", form, [0.5, 1e-3, 2.499])) == pytest.approx([0.5, 1e-3, 2.499])
    huge = weights_of(config_of(tmp_path / "c", form, [1e300, 3e300]))
    assert huge == pytest.approx([0.5, 1.5])


def test_numbers_written_as_text(tmp_path: Path) -> None:
    for form in ("csv", "jsonl"):
        assert weights_of(config_of(tmp_path, form, ["1e1", " 2.50 ", "7.5", "0"])) == pytest.approx([2, 0.5, 1.5, 0])
    assert weights_of(config_of(tmp_path / "bool", "jsonl", [True, False])) == [2, 0]


def test_without_weights_there_are_none(tmp_path: Path) -> None:
    config = config_of(tmp_path, "jsonl", [1, 2], "none", weight_column=None)
    assert image_weights(opened(config), config) is None
    assert image_weights(open_source(DataConfig(size=3), "train"), DataConfig(size=3)) is None


def test_frequencies_are_those_of_the_split(tmp_path: Path) -> None:
    """Two thirds of the file are b, but the pictures that are trained on are half a, half b."""
    config = config_of(tmp_path, "jsonl", [*"aabbbb"], "inverse")
    found = image_weights(Subset(opened(config), [5, 0, 1, 2]), config)
    assert found is not None and found.tolist() == [1, 1, 1, 1]
    found = image_weights(Subset(opened(config), [5, 0, 2, 3]), config)
    assert found is not None and found.tolist() == pytest.approx([2 / 3, 2, 2 / 3, 2 / 3])


# ---- refused


BAD = [
    *[("csv", text, repr(text)) for text in ("", "heavy", "-1", "nan", "inf", "-inf", "1,5")],
    *[("jsonl", value, repr(value)) for value in (None, -0.5, [1], {"w": 1})],
    *[("parquet", value, repr(value)) for value in (None, -2.0, math.inf)],
]


@pytest.mark.parametrize(("form", "value", "shown"), BAD)
def test_a_bad_weight_names_its_row(tmp_path: Path, form: str, value: Any, shown: str) -> None:
    where = {"csv": "list.csv line 4", "jsonl": "list.jsonl line 3", "parquet": "test row 2"}[form]
    config = config_of(tmp_path, form, [1.0, 2.0, value, 4.0])
    with pytest.raises(ValueError) as error:
        image_weights(opened(config), config)
    assert str(error.value) == f"2.png ({where}): w holds {shown}; a weight is a number of 0 or more"


@FORMS
@pytest.mark.parametrize("kind", ["inverse", "log"])
def test_a_missing_class_names_its_row(tmp_path: Path, form: str, kind: str) -> None:
    where = {"csv": "list.csv line 3", "jsonl": "list.jsonl line 2", "parquet": "test row 1"}[form]
    config = config_of(tmp_path, form, ["a", None, "b"], kind)
    with pytest.raises(ValueError) as error:
        image_weights(opened(config), config)
    assert str(error.value) == f"1.png ({where}): w is empty; data.weights={kind} needs a class"


def test_a_row_that_lacks_the_key_names_itself(tmp_path: Path) -> None:
    config = config_of(tmp_path, "jsonl", [1, 2, 3])
    file = Path(config.source)
    file.write_text(file.read_text().replace(', "w": 2', ""))
    with pytest.raises(ValueError, match=r"^1\.png \(list\.jsonl line 2\): w holds None"):
        image_weights(opened(config), config)


@pytest.mark.parametrize(
    ("kind", "values", "first"), [("column", ["0", "0.0"], "'0'"), ("log", ["cat", "cat"], "'cat'")]
)
def test_nothing_but_zeros_is_refused(tmp_path: Path, kind: str, values: list[str], first: str) -> None:
    config = config_of(tmp_path, "csv", values, kind)
    message = (
        f"data.weights={kind}: every image weighs 0 by w, whose first value is {first}; "
        "use another column, or data.weights=none"
    )
    with pytest.raises(ConfigError) as error:
        image_weights(opened(config), config)
    assert str(error.value) == message


@FORMS
def test_an_unknown_column_lists_those_there_are(tmp_path: Path, form: str) -> None:
    config = config_of(tmp_path, form, [1, 2], weight_column="weihgt")
    listed = "image, text, w" if form == "parquet" else "image, text, split, w"
    with pytest.raises(ValueError, match=rf"has no column weihgt \(data\.weight_column\), but {listed}$"):
        image_weights(opened(config), config)


def test_the_scenes_have_no_columns() -> None:
    config = DataConfig(size=3, weights="inverse", weight_column="colour")
    with pytest.raises(ValueError, match=r"no column colour; data\.weights needs a source of your own"):
        image_weights(open_source(config, "train"), config)
