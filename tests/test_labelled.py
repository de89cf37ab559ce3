"""Labelled pictures: folders, tables, Parquet, and the names of the classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from miniclip.data.captioned import LabelledSource
from miniclip.data.classes import name_classes
from miniclip.data.images import BadImage
from miniclip.data.labelled import LabelledImages, open_labelled
from miniclip.data.subset import Subset, readable


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
    with pytest.raises(ValueError, match=r"class folder .*empty holds no image"):
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
    with pytest.raises(BadImage, match=r"^a/z\.png: not an image"):
        source.image(names.index("a/z.png"))


def test_a_class_has_one_number_in_all_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders(tmp_path / "train", a=[1], b=[2], c=[3])
    folders(tmp_path / "test", a=[4], c=[5])
    train, test = open_labelled(tmp_path, split="train"), open_labelled(tmp_path)
    assert train.classes == test.classes == ["a", "b", "c"]
    assert contents(test) == {4: "a", 5: "c"}
    assert "test has no folder for b, which another split has" in caplog.text


def test_numbers_go_by_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(11):
        picture(tmp_path / "set" / str(number) / "x.png", number)
    (tmp_path / "names.txt").write_text("".join(f"name {number}\n" for number in range(11)))
    source = open_labelled(tmp_path / "set", classnames_file=tmp_path / "names.txt")
    assert contents(source) == {number: f"name {number}" for number in range(11)}
    assert not caplog.text
    assert contents(open_labelled(tmp_path / "set"))[10] == "10"
    assert "its classes are called 0; 1; 2; 3; 4; a class-names file says what they are" in caplog.text
    table = tmp_path / "labels.csv"
    table.write_text("file_name,label\n" + "".join(f"set/{n}/x.png,{n}\n" for n in range(11)))
    assert contents(open_labelled(table, classnames_file=tmp_path / "names.txt"))[10] == "name 10"


def test_labels_of_a_folder_of_pictures(tmp_path: Path) -> None:
    """A table above images/, with some rows a split, and with a split that is the only one."""
    rows = [("a", "a dog", "train"), ("b", "a cat", "val"), ("c", "a dog", "val"), ("d", "a cow", "test")]
    for value, (name, _, _) in enumerate(rows):
        picture(tmp_path / "images" / f"{name}.jpg", 0)
        Image.new("RGB", (2, 2), (40 * value, 0, 0)).save(tmp_path / "images" / f"{name}.jpg", quality=100)
    lines = [json.dumps({"file_name": f"images/{n}.jpg", "label": label, "split": s}) for n, label, s in rows]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    classes = ["a cat", "a cow", "a dog"]
    for split, wanted in {"train": ["a dog"], "validation": ["a cat", "a dog"], "test": ["a cow"]}.items():
        for path in (tmp_path, tmp_path / "labels.jsonl"):
            source = open_labelled(path, split=split)
            assert source.classes == classes
            assert [classes[source.label(i)] for i in range(len(source))] == wanted
            assert all(source.image(i).size == (2, 2) for i in range(len(source)))
    (tmp_path / "labels.jsonl").write_text(lines[1] + "\n" + lines[2])
    assert len(open_labelled(tmp_path)) == 2  # the one split there is, "val"


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


def firsts(names: list[list[str]]) -> list[str]:
    assert all(len(many) == 1 for many in names)
    return [name for (name,) in names]


def test_class_names(write: Callable[[str, str], Path]) -> None:
    assert firsts(name_classes(["a_b", "c"], None)) == ["a b", "c"]
    # by key, in any order
    assert firsts(name_classes(KEYS, write("a.txt", "n03\tan ox\nn01\ta tench\n\nn02\ta shark\n"))) == [
        "a tench",
        "a shark",
        "an ox",
    ]
    assert firsts(name_classes(KEYS, write("a.json", '{"n02": "b", "n01": "a", "n03": "c"}'))) == ["a", "b", "c"]
    # by position, since no name is a key
    assert firsts(name_classes(KEYS, write("b.txt", "tench\nshark\nox\n"))) == ["tench", "shark", "ox"]
    assert firsts(name_classes(KEYS, write("b.json", '["tench", "shark", "ox"]'))) == ["tench", "shark", "ox"]
    # names that are the keys go by name, though the file has another order
    assert firsts(name_classes(["big_cat", "dog"], write("c.txt", "dog\nbig cat\n"))) == ["big cat", "dog"]


def test_several_names_a_class(write: Callable[[str, str], Path]) -> None:
    wanted = [["crane bird", "crane"], ["ox"], ["tench", "a fish", "Tinca"]]
    keyed = "n03\ttench | a fish|Tinca\nn01\tcrane bird | crane\nn02\tox\n"
    assert name_classes(KEYS, write("a.txt", keyed)) == wanted
    assert name_classes(KEYS, write("b.txt", "crane bird | crane\nox\ntench|a fish|Tinca\n")) == wanted
    assert (
        name_classes(KEYS, write("a.json", '[["crane bird", "crane"], "ox", ["tench", " a fish", "Tinca"]]')) == wanted
    )
    assert (
        name_classes(
            KEYS, write("b.json", '{"n02": "ox", "n03": ["tench", "a fish", "Tinca"], "n01": ["crane bird", "crane"]}')
        )
        == wanted
    )
    # any of the names may be the folder's; the first is the one to show
    assert name_classes(["crane", "ox"], write("c.txt", "ox | cattle\ncrane bird | crane\n")) == [
        ["crane bird", "crane"],
        ["ox", "cattle"],
    ]


def test_sources_carry_all_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("kitty | cat\ncow\na dog | hound\n")
    folders(tmp_path / "set", a_dog=[1], cat=[2, 3], cow=[4])
    folder = open_labelled(tmp_path / "set", classnames_file=tmp_path / "names.txt")
    (tmp_path / "table").mkdir()
    table = open_labelled(labels_file(tmp_path / "table"), classnames_file=tmp_path / "names.txt")
    assert isinstance(folder, LabelledImages) and isinstance(table, LabelledImages)
    for source in (folder, table):
        assert source.names == [["a dog", "hound"], ["kitty", "cat"], ["cow"]]
        assert source.classes == ["a dog", "kitty", "cow"] and source.templates is None
        subset = Subset(source, [1, 0])
        assert subset.names == source.names and subset.classes == source.classes and subset.templates is None
    assert contents(folder) == {1: "a dog", 2: "kitty", 3: "kitty", 4: "cow"}
    assert readable(folder, 0) is folder


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "n01\ta\n\nn02\tb\nn04\td\n", r"lacks n03 and names n04 \(line 4\) without images"),
        ("a.txt", "n01\ta\nn02\tb\n", "a.txt lacks n03;"),
        # a slip of the pen must not fall back to positions
        ("a.txt", "n01\nn02\nno3\n", r"lacks n03 and names no3 \(line 3\)"),
        ("a.txt", "a\nb\n", "2 names for 3 classes: n01, n02, n03"),
        ("a.txt", "n01\ta\n\nn02\n", "line 3: 'n02'; write `folder<TAB>name`"),
        ("a.txt", "n01\ta\n\tb\n", "line 2: '\\\\tb'; write"),
        ("a.txt", "n01\ta |\n", "line 1: 'n01\\\\ta |'; write"),
        ("a.txt", "a | b\n | c\n", "line 2: ' | c'; write `name`"),
        ("a.txt", "n01\ta\n\nn01\tb\n", "a.txt, line 3: class 'n01' stands in line 1 already"),
        ("a.txt", "n01\tcrane\nn02\tox\nn03\t CRANE\n", "line 3: the name 'CRANE' stands in line 1 already"),
        ("a.txt", "crane bird | crane\nox\ncrane machine | Crane\n", "line 3: the name 'Crane' stands in line 1"),
        ("a.txt", "big_cat\nox\nbig cat\n", "line 3: the name 'big cat' stands in line 1"),
        ("a.txt", "a | b | A\nc\nd\n", "line 1: the name 'A' stands in line 1"),
        ("a.txt", "\n", "is empty"),
        ("a.json", "[1, 2, 3]", "entry 1: expected a list of names"),
        ("a.json", '["a", []]', "entry 2: expected a list of names.*this one is \\[\\]"),
        ("a.json", "[]", "expected a list of names"),
        ("a.json", '"a"', "expected a list of names"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"n01": "a", "n02": "b"}', "lacks n03"),
        ("a.json", '{"n01": "a", "n02": "b", "n01": "c"}', "entry 3: class 'n01' stands in entry 1 already"),
        ("a.json", '["a", "b", ["c", "B"]]', "entry 3: the name 'B' stands in entry 2"),
    ],
)
def test_class_names_that_do_not_fit(write: Callable[[str, str], Path], name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        name_classes(KEYS, write(name, text))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_class_names_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        name_classes(KEYS, tmp_path / "a.txt")


def test_class_names_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        name_classes(KEYS, tmp_path / "none.txt")
