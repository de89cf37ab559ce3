"""Labelled pictures: folders, tables, Parquet, and the names of the classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from miniclip.data.images import BadImage
from miniclip.data.labelled import name_classes, open_labelled
from miniclip.data.sources import LabelledSource


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (value, 0, 0)).save(file)


def folders(root: Path, **classes: list[int]) -> Path:
    for name, values in classes.items():
        for value in values:
            picture(root / name / f"{value}.png", value)
    return root


def contents(source: LabelledSource) -> dict[int, str]:
    found = {source.image(i).getpixel((0, 0))[0]: source.classes[source.label(i)] for i in range(len(source))}
    assert len(found) == len(source)
    return found


def test_one_folder_a_class(tmp_path: Path) -> None:
    folders(tmp_path, polar_bear=[1, 2], ant=[3])
    picture(tmp_path / "ant" / "deeper" / "x.JPEG.PNG", 4)
    (tmp_path / "ant" / "readme.txt").touch()
    (tmp_path / "ant" / ".hidden.png").touch()
    (tmp_path / ".git").mkdir()
    source = open_labelled(tmp_path)
    assert source.classes == ["ant", "polar bear"]
    assert contents(source) == {1: "polar bear", 2: "polar bear", 3: "ant", 4: "ant"}
    assert [source.name(i) for i in range(4)] == [
        "ant/3.png",
        "ant/deeper/x.JPEG.PNG",
        "polar_bear/1.png",
        "polar_bear/2.png",
    ]


def test_folders_below_a_level_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path / "train", a=[1], b=[2])
    folders(tmp_path / "val", a=[3], b=[4])
    assert contents(open_labelled(tmp_path, split="train")) == {1: "a", 2: "b"}
    assert contents(open_labelled(tmp_path, split="validation")) == {3: "a", 4: "b"}
    assert contents(open_labelled(tmp_path, split="val")) == {3: "a", 4: "b"}
    with pytest.raises(ValueError, match="no split 'test'; choose one of train, val"):
        open_labelled(tmp_path)
    folders(tmp_path / "other" / "test", a=[5], b=[6])
    with caplog.at_level(logging.WARNING):
        assert contents(open_labelled(tmp_path / "other", split="train")) == {5: "a", 6: "b"}
    assert "one split 'test'" in caplog.text


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    folders(tmp_path, a=[1])
    with pytest.raises(ValueError, match="1 sub-folders; expected one a class"):
        open_labelled(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*empty holds no picture"):
        open_labelled(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_labelled(tmp_path / "absent")
    folders(tmp_path, empty=[2])
    picture(tmp_path.parent / "outside.png", 9)
    (tmp_path / "a" / "link.png").symlink_to(tmp_path.parent / "outside.png")
    (tmp_path / "a" / "z.png").write_text("no picture")
    source = open_labelled(tmp_path)
    names = [source.name(i) for i in range(len(source))]
    with pytest.raises(BadImage, match=r"a/link\.png: .* leads out of"):
        source.image(names.index("a/link.png"))
    with pytest.raises(BadImage, match=r"^a/z\.png: not a picture"):
        source.image(names.index("a/z.png"))


def labels_file(tmp_path: Path) -> Path:
    rows = []
    for i, (label, split) in enumerate(
        [("a_dog", "test"), ("cat", "validation"), ("a_dog", "validation"), ("cow", "test")]
    ):
        picture(tmp_path / f"{i}.png", i)
        rows.append({"file_name": f"{i}.png", "label": label, "split": split})
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_file_of_labels_has_the_same_classes_in_every_split(tmp_path: Path) -> None:
    file = labels_file(tmp_path)
    (tmp_path / "classnames.txt").write_text("unrelated")
    for source in (file, tmp_path):
        test, validation = open_labelled(source), open_labelled(source, split="validation")
        assert test.classes == validation.classes == ["a dog", "cat", "cow"]
        assert contents(test) == {0: "a dog", 3: "cow"} and contents(validation) == {1: "cat", 2: "a dog"}
    with pytest.raises(ValueError, match="no split 'train'; choose one of test, validation"):
        open_labelled(file, split="train")


def parquet(folder: Path, labels: list[Any], names: list[str] | None = None) -> Path:
    from datasets import ClassLabel, Dataset
    from datasets import Image as Picture

    for i in range(len(labels)):
        picture(folder.parent / "cells" / f"{i}.png", i)
    cells = [{"bytes": (folder.parent / "cells" / f"{i}.png").read_bytes(), "path": None} for i in range(len(labels))]
    data = Dataset.from_dict({"img": cells, "label": labels}).cast_column("img", Picture())
    if names:
        data = data.cast_column("label", ClassLabel(names=names))
    folder.mkdir()
    data.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def test_parquet_with_named_and_with_written_labels(tmp_path: Path) -> None:
    source = open_labelled(parquet(tmp_path / "a", [1, 0, 1], ["zebra_fish", "ape", "cow"]))
    assert source.classes == ["zebra fish", "ape", "cow"]  # the data set's order, with classes that have no picture
    assert contents(source) == {0: "ape", 1: "zebra fish", 2: "ape"}
    source = open_labelled(parquet(tmp_path / "b", ["y", "x", "y"]))
    assert source.classes == ["x", "y"] and contents(source) == {0: "y", 1: "x", 2: "y"}
    with pytest.raises(ValueError, match=r"test row 1: label is -1, not a class"):
        open_labelled(parquet(tmp_path / "c", [0, -1], ["a", "b"]))
    with pytest.raises(ValueError, match="test row 0: label is None"):
        open_labelled(parquet(tmp_path / "d", [None, "b"]))


def test_numbers_need_a_file_of_names(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "a", [10, 9, 10])
    with pytest.raises(ValueError, match="holds numbers without names; give a class-names file"):
        open_labelled(folder)
    (tmp_path / "names.txt").write_text("nine\nten\n")
    assert contents(open_labelled(folder, classnames_file=tmp_path / "names.txt")) == {0: "ten", 1: "nine", 2: "ten"}


def test_columns_are_named_in_errors(tmp_path: Path) -> None:
    file = labels_file(tmp_path)
    with pytest.raises(ValueError, match=r"no column kind \(label_column\), but file_name, label, split"):
        open_labelled(file, label_column="kind")
    with pytest.raises(ValueError, match=r"no column kind \(image_column\)"):
        open_labelled(file, image_column="kind")
    assert open_labelled(file, label_column="file_name").classes == ["0.png", "1.png", "2.png", "3.png"]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


KEYS = ["n01", "n02", "n03"]


def test_class_names(write: Callable[[str, str], Path]) -> None:
    assert name_classes(["a_b", "c"], None) == ["a b", "c"]
    # by key, in any order
    assert name_classes(KEYS, write("a.txt", "n03\tan ox\nn01\ta tench\n\nn02\ta shark\n")) == [
        "a tench",
        "a shark",
        "an ox",
    ]
    assert name_classes(KEYS, write("a.json", '{"n02": "b", "n01": "a", "n03": "c"}')) == ["a", "b", "c"]
    # by position, since no name is a key
    assert name_classes(KEYS, write("b.txt", "tench\nshark\nox\n")) == ["tench", "shark", "ox"]
    assert name_classes(KEYS, write("b.json", '["tench", "shark", "ox"]')) == ["tench", "shark", "ox"]
    # names that are the keys go by name, though the file has another order
    assert name_classes(["big_cat", "dog"], write("c.txt", "dog\nbig cat\n")) == ["big cat", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "n01\ta\nn02\tb\nn04\td\n", "lacks n03 and names n04 without pictures"),
        ("a.txt", "n01\ta\nn02\tb\n", "lacks n03;"),
        ("a.txt", "n01\nn02\nno3\n", "lacks n03 and names no3"),  # a slip of the pen must not fall back to positions
        ("a.txt", "a\nb\n", "2 names for 3 classes: n01, n02, n03"),
        ("a.txt", "n01\ta\nn02\n", "entry 2: 'n02'; write"),
        ("a.txt", "n01\ta\nn01\tb\n", "entry 2"),
        ("a.txt", "\n", "is empty"),
        ("a.json", "[1, 2, 3]", "expected a list of names"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"n01": "a", "n02": "b"}', "lacks n03"),
    ],
)
def test_class_names_that_do_not_fit(write: Callable[[str, str], Path], name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        name_classes(KEYS, write(name, text))


def test_class_names_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        name_classes(KEYS, tmp_path / "none.txt")
