"""Labelled images: folders, tables, Parquet, and the names of the classes; images alone, each once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support.files import (
    cells,
    number_of,
    samples,
    write_classes,
    write_csv,
    write_image,
    write_images,
    write_jsonl,
    write_parquet,
    write_tar,
)
from support.opened import numbers

from miniclip.data.captioned import LabelledSource
from miniclip.data.classes import name_classes
from miniclip.data.images import BadImage
from miniclip.data.labelled import LabelledImages, labelled_splits, open_images, open_labelled
from miniclip.data.subset import Subset, readable


def contents(source: LabelledSource) -> dict[int, str]:
    found = {number_of(source.image(i)): source.classes[source.label(i)] for i in range(len(source))}
    assert len(found) == len(source)
    return found


def test_one_folder_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, polar_bear=[1, 2], ant=[3])
    write_image(tmp_path / "ant" / "deeper" / "x.JPEG.PNG", 4)
    for hidden in ("ant/.ipynb_checkpoints", "@eaDir/ant", "ant/@eaDir/3.png", "__MACOSX/ant"):
        write_image(tmp_path / hidden / "x.png", 5)
    (tmp_path / ".git").mkdir()
    for hidden in ("readme.txt", ".hidden.png"):
        (tmp_path / "ant" / hidden).touch()
    source = open_labelled(tmp_path)
    assert source.classes == ["ant", "polar bear"]
    assert contents(source) == {1: "polar bear", 2: "polar bear", 3: "ant", 4: "ant"}
    names = ["ant/3.png", "ant/deeper/x.JPEG.PNG", "polar_bear/1.png", "polar_bear/2.png"]
    assert [source.name(i) for i in range(4)] == names


def test_folders_below_a_level_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_classes(tmp_path / "train", a=[1], b=[2], c=[6])
    write_classes(tmp_path / "Val", a=[3], c=[4])
    train, validation = open_labelled(tmp_path, split="train"), open_labelled(tmp_path, split="validation")
    assert contents(train) == {1: "a", 2: "b", 6: "c"} and contents(validation) == {3: "a", 4: "c"}
    assert train.classes == validation.classes == ["a", "b", "c"]  # a class has one number in all splits
    assert "Val has no folder for b, which another split has" in caplog.text
    assert contents(open_labelled(tmp_path, split="val")) == {3: "a", 4: "c"}
    assert [numbers(open_images(tmp_path, split=split)) for split in ("train", "validation")] == [[1, 2, 6], [3, 4]]
    for opener in (open_labelled, open_images):
        with pytest.raises(ValueError, match="no split 'test'; choose one of val, train"):
            opener(tmp_path)
    write_classes(tmp_path / "other" / "test", a=[5], b=[6])
    with caplog.at_level(logging.WARNING):
        assert contents(open_labelled(tmp_path / "other", split="train")) == {5: "a", 6: "b"}
    assert "one split 'test'" in caplog.text


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "set", a=[1])
    with pytest.raises(ValueError, match="1 sub-folders; expected one a class"):
        open_labelled(root)
    for split in ("train", "test"):
        write_classes(tmp_path / "splits" / split / split, pics=[1])
    with pytest.raises(ValueError, match=r"splits/test/test has 1 sub-folders"):
        open_labelled(tmp_path / "splits")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*empty holds no image"):
        open_labelled(root)
    for opener in (open_labelled, open_images):
        with pytest.raises(FileNotFoundError, match="absent"):
            opener(root / "absent")
    write_classes(root, empty=[2])
    (root / "a" / "link.png").symlink_to(write_image(tmp_path / "outside.png", 9))
    (root / "a" / "z.png").write_text("no image")
    for source in (open_labelled(root), open_images(root)):
        names = [source.name(i) for i in range(len(source))]
        for name, message in (("a/link.png", r": .* leads out of"), ("a/z.png", ": not an image")):
            with pytest.raises(BadImage, match=f"^{name}{message}"):
                source.image(names.index(name))
        assert numbers(readable(source, 0.5)) == [1, 2]  # type: ignore[type-var]


@pytest.mark.parametrize(
    "layout",
    [  # folders, a comma for each image: image i lies in the i-th of them
        "train/a train/b test/a test/b unlabeled",
        "seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_test/seg_test/b seg_pred/seg_pred",
        "Training/a Training/b Testing/a Testing/b",
        "x/train_images/a x/train_images/b x/test_images/a x/test_images/b",
        "train/images/a train/images/b test/images/a test/images/b masks docs",
        "training_set/training_set/a training_set/training_set/b test_set/test_set/a test_set/test_set/b",
        "set/set/train/a set/set/train/b set/set/test/a set/set/test/b",
        "my_test_data/train/a my_test_data/train/b my_test_data/test/a my_test_data/test/b",
        "train/a train/b test/a test/b extra/a extra/b",
        "train/a train/b/deep test/a/a test/b",
        "train/a train/b test/a test/b val/unknown",
        "train/a train/b test/a test/b test-multiple",
        "train/dataset/a train/dataset/b test/dataset/a test/dataset/b",
        "labeled/train/a labeled/train/b labeled/test/a labeled/test/b unlabeled",
    ],
)
def test_splits_under_many_names(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    folders = layout.split()
    for number, where in enumerate(folders):
        write_image(tmp_path / where / f"{number}.png", number)
    assert contents(open_labelled(tmp_path)) == {2: "a", 3: "b"}
    assert contents(open_labelled(tmp_path, split="train")) == {0: "a", 1: "b"}
    assert [numbers(open_images(tmp_path, split=split)) for split in ("train", "test")] == [[0, 1], [2, 3]]
    assert len(labelled_splits(tmp_path)) == (3 if "extra" in layout else 2)
    assert ("taken for splits, since they hold the same folders: extra" in caplog.text) == ("extra" in layout)
    for left_out in ("masks", "docs"):
        assert (left_out in caplog.text) == (left_out in layout)
    assert ("left out: unlabeled" in caplog.text) == ("labeled/train" in layout)


def test_folders_that_are_classes_though_their_names_tell_a_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (layout, classes) in enumerate(
        {
            "bus car train": "bus car train",
            "a b test unlabeled": "a b test",
            "bullet_train cat test_tube": "bullet_train cat test_tube",
            "bus/x car/y train/z": "bus car train",
            "steam_train/x toy_train/y": "steam_train toy_train",
            "dog/images train/images": "dog train",
            "set/bus set/train": "bus train",
        }.items()
    ):
        root = tmp_path / str(number)
        for n, where in enumerate(layout.split()):
            write_image(root / where / f"{n}.png", n)
        caplog.clear()
        assert contents(open_labelled(root)) == dict(enumerate(name.replace("_", " ") for name in classes.split()))
        assert "taken for a class, like the folders beside it: " in caplog.text and labelled_splits(root) == ["all"]
        assert ("left out: unlabeled" in caplog.text) == ("unlabeled" in layout)


def test_divisions_with_names_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n, where in enumerate(("set/split-1/a", "set/split-1/b", "set/split-2/a", "set/split-2/b")):
        write_image(tmp_path / where / "x.png", n)
    with pytest.raises(ValueError, match="no split 'test'; choose one of split-1, split-2"):
        open_labelled(tmp_path / "set")
    assert contents(open_labelled(tmp_path / "set", split="split-2")) == {2: "a", 3: "b"}
    for where in ("Art/chair", "Art/lamp", "Photo/chair", "Photo/lamp"):
        write_image(tmp_path / "home" / where / "x.png", len(where))
    assert open_labelled(tmp_path / "home").classes == ["Art", "Photo"]
    assert "(Art, Photo) are taken for the classes, and hold the same folders each (chair, lamp)" in caplog.text
    for where in ("Plants/oak", "Plants/elm", "Animals/wolf"):
        write_image(tmp_path / "kinds" / where / "x.png", len(where))
    assert open_labelled(tmp_path / "kinds").classes == ["Animals", "Plants"]
    assert "the folders inside a class count as that class, e.g. Plants (elm, oak)" in caplog.text


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("a b set/a set/b", r"set/set holds the folders a, b, and so does .*set: unpacked into itself"),
        ("a b test/a test/b", r"set/test holds folders, as a split does \(a, b\), and those beside it hold none"),
        (
            "train/a train/b train/train/a train/train/b test/a test/b",
            "train/train holds the folders a, b, and so does",
        ),
        (
            "a/train a/test b/train b/test",
            r"set/a holds splits \(test, train\), so that it is no class; name it as the data",
        ),
        ("train test", r"set: test, train are splits by their names, and hold no folders of classes"),
        ("train_images test_images unlabeled", r"are splits by their names, and hold no folders of classes"),
        (
            "fold_1/train/a fold_1/test/a fold_2/train/a fold_2/test/a",
            r"holds splits \(test, train\), where classes were",
        ),
        ("data/train/a data/test/a notes", r"set/data holds splits \(test, train\), so that it is no class"),
        ("train/a train/b test", r"no folders of classes in its split 'test' \(.*set/test\)"),
        ("train/a train/b test/unknown", r"no folders of classes in its split 'test'"),
        ("train/a train/b val/a val/b", "no split 'test'; choose one of train, val"),
        (
            "cat/day cat/night dog/day dog/night test/day test/night",
            r"set/test and the folders beside it \(cat, dog\) hold",
        ),
        (
            "images/a images/b masks/a masks/b",
            r"set/images is no class by its name, nor .* \(masks\); name it as the data",
        ),
        ("images annotations/trimaps", r"set/images is no class by its name, nor .* \(annotations\)"),
        ("images/pie images/soup meta", r"set/images is no class by its name, nor .* \(meta\)"),
        ("train/images train/labels val/images val/labels", r"train/images is no class by its name"),
        ("new/new/train/a new/new/valid/a test/test", r"set/new holds splits \(train, valid\), so that it is no class"),
        ("train_1/a train_1/b train_2/a train_2/b", "no split 'test'; choose one of train_1, train_2"),
    ],
)
def test_folders_that_can_be_read_in_two_ways(tmp_path: Path, layout: str, message: str) -> None:
    for number, where in enumerate(layout.split()):
        write_image(tmp_path / "set" / where / f"{number}.png", number)
    with pytest.raises(ValueError, match=message):
        open_labelled(tmp_path / "set")


def test_numbers_go_by_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(11):
        write_image(tmp_path / "set" / str(number) / "x.png", number)
    names = write(tmp_path, "names.txt", "".join(f"name {number}\n" for number in range(11)))
    assert contents(open_labelled(tmp_path / "set", classnames_file=names)) == {n: f"name {n}" for n in range(11)}
    assert not caplog.text
    assert contents(open_labelled(tmp_path / "set"))[10] == "10"
    assert "its classes are called 0; 1; 2; 3; 4; a class-names file says what they are" in caplog.text
    for one, other in (("1", "-1"), ("0.0", "1.0")):
        write_csv(tmp_path / "signed.csv", [("file_name", "label"), ("set/1/x.png", one), ("set/2/x.png", other)])
        open_labelled(tmp_path / "signed.csv")
        assert f"its classes are called {min(one, other)}; {max(one, other)}; a class-names file says" in caplog.text
    table = write_csv(tmp_path / "labels.csv", [("file_name", "label"), *((f"set/{n}/x.png", n) for n in range(11))])
    assert contents(open_labelled(table, classnames_file=names))[10] == "name 10"


def labels_file(folder: Path) -> Path:
    labels = [("a_dog", "test"), ("cat", "validation"), ("a_dog", "validation"), ("cow", "test")]
    files = write_images(folder, 4, "images/{}.png")
    rows = [{"file_name": f, "label": label, "split": s} for f, (label, s) in zip(files, labels, strict=True)]
    return Path(write_jsonl(folder / "labels.jsonl", rows))


def test_a_file_of_labels_has_the_same_classes_in_every_split(tmp_path: Path) -> None:
    file = labels_file(tmp_path)
    write(tmp_path, "classnames.txt", "unrelated")
    for source in (file, tmp_path):
        test, validation = open_labelled(source), open_labelled(source, split="validation")
        assert test.classes == validation.classes == ["a dog", "cat", "cow"]
        assert contents(test) == {0: "a dog", 3: "cow"} and contents(validation) == {1: "cat", 2: "a dog"}
        assert [numbers(open_images(source, split=split)) for split in ("test", "validation")] == [[0, 3], [1, 2]]
    for options, message in (
        ({"split": "train"}, "no split 'train'; choose one of test, validation"),
        ({"label_column": "kind"}, r"no column kind \(label_column\), but file_name, label, split"),
        ({"image_column": "kind"}, r"no column kind \(image_column\)"),
    ):
        with pytest.raises(ValueError, match=message):
            open_labelled(file, **options)  # type: ignore[arg-type]
    assert open_labelled(file, label_column="file_name").classes == [f"images/{i}.png" for i in range(4)]
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "validation" in line))
    assert contents(open_labelled(tmp_path)) == {1: "cat", 2: "a dog"}  # the one split there is


def test_images_in_several_rows_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in a table with one row a box; where two classes are said of an image, that one is shown."""
    a, b, c = write_images(tmp_path, 3)
    rows = [
        ("file_name", "class"),
        (a, "cat"),
        (a, "cat"),
        (b, "cat"),
        (f"./{b}", "dog"),
        (c, "dog"),
        *[("", "dog")] * 2,
    ]
    assert len(open_labelled(write_csv(tmp_path / "boxes.csv", rows))) == 7
    assert "boxes.csv: 2 images stand in several rows, and count in each, e.g. 1.png as cat; dog" in caplog.text


def test_numbers_beside_the_names_of_classes(tmp_path: Path) -> None:
    """As in EuroSAT's tables, where the numbers were taken."""
    rows = [(name, n, "ab"[n]) for n, name in enumerate(write_images(tmp_path, 2))]
    table = write_csv(tmp_path / "l.csv", [("Filename", "Label", "ClassName"), *rows])
    with pytest.raises(ValueError, match="Label, ClassName could each be the label column; set label_column"):
        open_labelled(table)
    assert open_labelled(table, label_column="ClassName").classes == ["a", "b"]


def test_lists_written_as_text_are_said_to_be_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = zip(write_images(tmp_path, 3), ("['cat', 'dog']", "['cat']", "[sic] a dog"), strict=True)
    open_labelled(write_csv(tmp_path / "l.csv", [("file_name", "labels"), *rows]))
    assert "l.csv: what may be a list written as text is a class of its own: ['cat', 'dog']; ['cat']\n" in caplog.text


def test_parquet_with_named_written_and_numbered_labels(tmp_path: Path) -> None:
    def parquet(name: str, labels: list[Any], classes: list[str] | None = None) -> Path:
        from datasets import ClassLabel

        features = {"label": ClassLabel(names=classes)} if classes else {}
        file = tmp_path / name / "test-00000-of-00001.parquet"
        return Path(write_parquet(file, {"img": cells(len(labels)), "label": labels}, **features)).parent

    source = open_labelled(parquet("a", [1, 0, 1], ["zebra_fish", "ape", "cow"]))
    assert source.classes == ["zebra fish", "ape", "cow"]  # the data set's order, with classes that have no image
    assert contents(source) == {0: "ape", 1: "zebra fish", 2: "ape"}
    source = open_labelled(parquet("b", ["y", "x", "y"]))
    assert source.classes == ["x", "y"] and contents(source) == {0: "y", 1: "x", 2: "y"}
    names = write(tmp_path, "names.txt", "nine\nten\n")
    cases = {
        r"test row 1: label is -1, not a class": parquet("c", [0, -1], ["a", "b"]),
        "test row 0: label is None": parquet("d", [None, "b"]),
        "holds numbers without names; give a class-names file": parquet("e", [10, 9, 10]),
    }
    for message, folder in cases.items():
        with pytest.raises(ValueError, match=message):
            open_labelled(folder)
    source = open_labelled(tmp_path / "e", classnames_file=names, classnames_by="order")
    assert contents(source) == {0: "ten", 1: "nine", 2: "ten"}


# ---- images alone


def test_a_folder_is_searched_to_the_bottom(tmp_path: Path) -> None:
    names = ["a.png", "x/b.PNG", "x/y/c.jpeg.png"]
    for number, name in enumerate([*names, ".hidden/d.png"], 1):
        write_image(tmp_path / name, number)
    for name in ("notes.md", "a.txt"):
        write(tmp_path, name, "a caption")
    source = open_images(tmp_path, image_size=16)
    assert [source.name(i) for i in range(3)] == names and numbers(source) == [1, 2, 3]


def test_images_of_tables(tmp_path: Path) -> None:
    """An image with two captions counts once, a row without one not at all."""
    files = write_images(tmp_path, 3)
    lines = [("path", "text"), (files[2], "one"), (files[2], "two"), (files[0], "three"), ("", "four")]
    source = open_images(write_csv(tmp_path / "captions.csv", lines))
    assert numbers(source) == [2, 0] and source.name(1) == "0.png (captions.csv line 4)"
    write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", {"img": [*cells(2, 5), None]})
    assert numbers(open_images(tmp_path / "set")) == [5, 6]
    with pytest.raises(ValueError, match=r"t\.csv: no row has an image"):
        open_images(write_csv(tmp_path / "t.csv", [("path", "text"), ("", "one")]))
    write_image(tmp_path / "none" / "train" / "a.png", 1)
    (tmp_path / "none" / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"test holds no image \(.*\.jpg"):
        open_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_images(tmp_path / "empty")


# ---- the file of class names

KEYS = ["n01", "n02", "n03"]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder / name


def test_class_names(tmp_path: Path) -> None:
    one, several = [["tench"], ["shark"], ["ox"]], [["crane bird", "crane"], ["ox"], ["tench", "a fish", "Tinca"]]
    for keys, file, text, expected in (
        # by key, in any order
        (KEYS, "a.txt", "n03\tan ox\nn01\ta tench\n\nn02\ta shark\n", [["a tench"], ["a shark"], ["an ox"]]),
        (KEYS, "a.json", '{"n02": "b", "n01": "a", "n03": "c"}', [["a"], ["b"], ["c"]]),
        # by position, since no name is a key
        (KEYS, "b.txt", "tench\nshark\nox\n", one),
        (KEYS, "b.json", '["tench", "shark", "ox"]', one),
        # names that are the keys go by name, though the file has another order
        (["big_cat", "dog"], "c.txt", "dog\nbig cat\n", [["big cat"], ["dog"]]),
        # several names a class
        (KEYS, "d.txt", "n03\ttench | a fish|Tinca\nn01\tcrane bird | crane\nn02\tox\n", several),
        (KEYS, "e.txt", "crane bird | crane\nox\ntench|a fish|Tinca\n", several),
        (KEYS, "f.json", '[["crane bird", "crane"], "ox", ["tench", " a fish", "Tinca"]]', several),
        (KEYS, "g.json", '{"n02": "ox", "n03": ["tench", "a fish", "Tinca"], "n01": ["crane bird", "crane"]}', several),
        # any of the names may be the folder's; the first is the one to show
        (["crane", "ox"], "h.txt", "ox | bull\ncrane bird | crane\n", [["crane bird", "crane"], ["ox", "bull"]]),
    ):
        assert name_classes(keys, write(tmp_path, file, text)) == expected, file
    assert name_classes(["a_b", "c"], None) == [["a b"], ["c"]]
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist"):
        name_classes(KEYS, tmp_path / "none.txt")


def test_names_alone_go_by_name_and_by_no_order_that_nothing_confirms(tmp_path: Path) -> None:
    for keys, text, expected in (
        (["cat", "dog", "water"], "water\ndog\ncat\n", "cat dog water"),  # the user's order
        (["Big_Cat", "x-ray"], "X Ray\nbig cat\n", "big cat;X Ray"),
        (
            ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"],
            "Japanese spaniel\nchihuahua",
            "chihuahua;Japanese spaniel",
        ),
        (["001.Black_tern", "002.Ovenbird"], "ovenbird\nblack tern", "black tern;ovenbird"),
        (["AnnualCrop", "SeaLake"], "sea lake\nannual crop", "annual crop;sea lake"),
        (["cafe\u0301", "bar"], "caf\u00e9\nbar", "caf\u00e9;bar"),  # as macOS writes it
        (["bigcat", "big_cat"], "big cat\nbigcat", "bigcat;big cat"),  # to the letter before all else
        (["cat", "dog", "water"], "a body of water\na dog\ncat", "cat;a dog;a body of water"),  # by words
        (
            ["AnnualCrop", "River", "SeaLake"],
            "river\nsea or lake\nannual crop land",
            "annual crop land;river;sea or lake",
        ),
        (["0", "1", "2"], "a\nb\nc", "a b c"),
        (["1", "10", "2", "3", "4", "5", "6", "7", "8", "9"], "a\nb\nc\nd\ne\nf\ng\nh\ni\nj", "a j b c d e f g h i"),
        (
            ["class_1", "class_10", *(f"class_{n}" for n in range(2, 10))],
            "a\nb\nc\nd\ne\nf\ng\nh\ni\nj",
            "a j b c d e f g h i",
        ),
    ):
        found = name_classes(keys, write(tmp_path, "names.txt", text))
        assert found == [[name] for name in expected.split(";" if ";" in expected else " ")], keys
    for keys, text, message in (
        (
            ["cat", "dog"],
            "hound\nkitty\n",
            r"none of its names is .* --classnames_by order if this is right: cat -> hound, dog -> kitty",
        ),
        (["9", "10"], "a\nb\n", "none of its names"),
        (["cats", "dogs"], "cat\ndog\n", "none of its names"),
        (["cat", "dog"], "a cat\na hot dog or a cat", "none of its names"),  # the second holds both
        # rows of tables hold the words as well
        (["cat", "dog"], "0 dog\n1 cat\n", "none of its names"),
        (["cat", "dog"], "cat: tabby\ndog: hound\n", "none of its names"),
        (["cat", "dog"], "Cat,tabby\nDog,hound\n", "none of its names"),
        (["cat", "dog"], "cat - tabby\ndog -> hound\n", "none of its names"),
        (["n01440764", "n01443537"], "n01440764 tench\nn01443537 goldfish\n", "none of its names"),
        (["001.Black_tern", "002.Ovenbird"], "1 001.Black_tern\n2 002.Ovenbird\n", "none of its names"),
        (["cat", "dog"], "cat\nhound\n", r"lacks dog and names hound \(line 2\) without images"),
        (["big_cat", "dog"], "big cat | big-cat\nBig-Cat!\n", "line 2: class 'big_cat' stands in line 1 already"),
    ):
        with pytest.raises(ValueError, match=message):
            name_classes(keys, write(tmp_path, "names.txt", text))
    names = write(tmp_path, "names.txt", "hound\nkitty\n")
    assert name_classes(["cat", "dog"], names, by="order") == [["hound"], ["kitty"]]


def test_data_of_other_kinds_below_folders(tmp_path: Path) -> None:
    """Parquet in folders of splits is read; a table in one of two folders makes no classes of both."""
    for split, first in (("train", 0), ("test", 4)):
        write_parquet(tmp_path / "set" / split / "part-0.parquet", {"img": cells(2, first), "label": ["a", "b"]})
    assert contents(open_labelled(tmp_path / "set")) == {4: "a", 5: "b"}
    write_classes(tmp_path / "twice", docs=[8], set=[9])
    write_jsonl(tmp_path / "twice" / "set" / "labels.jsonl", [{"file_name": "9.png", "label": "a"}])
    with pytest.raises(
        ValueError, match=r"labels\.jsonl: a table beside images by class; name .*twice/set as the data"
    ):
        open_labelled(tmp_path / "twice")
    write_csv(tmp_path / "twice" / "docs" / "GT-00000.csv", [("file", "x"), ("8.png", 1)])  # as in GTSRB, one a class
    assert contents(open_labelled(tmp_path / "twice")) == {8: "docs", 9: "set"}


def test_archives_beside_folders_of_classes(tmp_path: Path) -> None:
    """The tars and Parquet files were read, and had no labels."""
    for split, first in (("train", 0), ("test", 4)):
        write_classes(tmp_path / split, a=[first], b=[first + 1])
        write_tar(tmp_path / f"{split}.tar", samples(0, 2))
    write_parquet(tmp_path / "features.parquet", {"id": [1, 2]})
    assert contents(open_labelled(tmp_path)) == {4: "a", 5: "b"}
    assert numbers(open_images(tmp_path, split="train")) == [0, 1]


def test_files_of_names_and_archives_beside_the_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "flowers" / "train", **{"1": [1], "2": [2]})
    write_classes(tmp_path / "flowers" / "valid", **{"1": [3], "2": [4]})
    names = write(tmp_path, "flowers/cat_to_name.json", '{"2": "fire lily", "1": "rose"}')
    for other in ("flowers.zip", "index.txt", "train/urls.gz", "readme.pdf"):
        write(tmp_path, f"flowers/{other}", "x")
    source = open_labelled(tmp_path / "flowers", split="validation", classnames_file=names)
    assert contents(source) == {3: "rose", 4: "fire lily"}


def test_links_may_lead_to_all_that_is_below_the_folder_named(tmp_path: Path) -> None:
    for number, where in enumerate(("train/a", "train/b", "test/a", "test/b")):
        target = write_image(tmp_path / "set" / ".store" / f"{number}.png", number)
        (tmp_path / "set" / where).mkdir(parents=True)
        (tmp_path / "set" / where / "x.png").symlink_to(target)
    assert contents(open_labelled(tmp_path / "set")) == {2: "a", 3: "b"}
    assert numbers(open_images(tmp_path / "set")) == [2, 3]


def test_class_names_are_cleaned_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folders, classes in (
        ("001.Black_footed_Albatross 002.Laysan_Albatross", ["Black footed Albatross", "Laysan Albatross"]),
        ("n02085620-Chihuahua n02113712-miniature_poodle", ["Chihuahua", "miniature poodle"]),
        ("01-cat 03_dog", ["cat", "dog"]),
    ):
        write_classes(tmp_path / classes[0], **dict(zip(folders.split(), ([1], [2]), strict=True)))
        caplog.clear()
        source = open_labelled(tmp_path / classes[0])
        assert contents(source) == {1: classes[0], 2: classes[1]}
        assert isinstance(source, LabelledImages) and source.keys == folders.split()
        first = f"are cleaned for prompts: {folders.split()[0]} -> {classes[0]}; "
        assert first in caplog.text and caplog.text.count(" for prompts: ") == 1
    for keys in (
        ["7_eleven", "cat"],
        ["3d", "2d"],
        ["t-shirt", "cat"],
        ["1", "2"],
        ["2_a", "2_b"],
        ["n01440764", "cat"],
    ):
        assert name_classes(keys, None) == [[key.replace("_", " ")] for key in keys]
    write_classes(tmp_path / "set", **{"001.cat": [1], "002.cat": [2], "003.dog": [3]})
    with pytest.raises(ValueError, match=r"'001.cat' and '002.cat' are both 'cat' without what stands before it"):
        open_labelled(tmp_path / "set")


def test_sources_carry_all_names(tmp_path: Path) -> None:
    names = write(tmp_path, "names.txt", "kitty | cat\ncow\na dog | hound\n")
    folder = open_labelled(write_classes(tmp_path / "set", a_dog=[1], cat=[2, 3], cow=[4]), classnames_file=names)
    for source in (folder, open_labelled(labels_file(tmp_path / "table"), classnames_file=names)):
        assert isinstance(source, LabelledImages)
        for one in (source, Subset(source, [1, 0])):
            assert one.names == [["a dog", "hound"], ["kitty", "cat"], ["cow"]]
            assert one.classes == ["a dog", "kitty", "cow"] and one.templates is None
    assert contents(folder) == {1: "a dog", 2: "kitty", 3: "kitty", 4: "cow"}
    assert readable(folder, 0) is folder


def test_class_names_that_do_not_fit(tmp_path: Path) -> None:
    for name, text, message in (
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
        ("a.txt", "caf\udce9\0\n", "a.txt is not text in an encoding"),
        ("a.json", "[1, 2, 3]", "entry 1: expected a list of names"),
        ("a.json", '["a", []]', "entry 2: expected a list of names.*this one is \\[\\]"),
        ("a.json", "[]", "expected a list of names"),
        ("a.json", '"a"', "expected a list of names"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", '{"n01": "a", "n02": "b"}', "lacks n03"),
        ("a.json", '{"n01": "a", "n02": "b", "n01": "c"}', "entry 3: class 'n01' stands in entry 1 already"),
        ("a.json", '["a", "b", ["c", "B"]]', "entry 3: the name 'B' stands in entry 2"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            name_classes(KEYS, write(tmp_path, name, text))
        assert "\n" not in str(caught.value) and name in str(caught.value)
