"""Captioned images from tables: columns, splits, grouping, and what is refused."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.files import (
    cells,
    number_of,
    png,
    write_csv,
    write_image,
    write_images,
    write_jsonl,
    write_parquet,
    write_tar,
)
from support.opened import SPLITS, contents, everything, numbers, opened, refused, texts, whole

from miniclip.config import DataConfig
from miniclip.data.captioned import NoCaptions, open_source
from miniclip.data.classes import name_classes
from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.splits import OneImage, carve
from miniclip.data.subset import Subset
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.data.tables.csv_jsonl import read_file
from miniclip.data.tables.table import TextLists
from miniclip.data.tables.texts import spoken


def table(file: Path, images: Sequence[str], texts: Sequence[Any] | None = None, **columns: Sequence[Any]) -> str:
    """JSONL with the columns image and text, which is the name of the image if none are given, and others."""
    every = {"image": images, "text": texts or images, **columns}
    return write_jsonl(file, [dict(zip(every, values, strict=True)) for values in zip(*every.values(), strict=True)])


# ---- forms


def test_delimited_files_whatever_the_delimiter(tmp_path: Path) -> None:
    texts = ["a dog, a cat; and\ta | bird", 'he said "hi",\nthen left', "plain", "ends, here"]
    rows = [("filepath", "caption"), *zip(write_images(tmp_path, 4, "bilder/ä {} 図.png"), texts, strict=True)]
    for name, delimiter in (("a.csv", ","), ("b.csv", "\t"), ("c.tsv", "\t"), ("d.csv", ";"), ("e.txt", "|")):
        source = write_csv(tmp_path / name, rows, delimiter)
        assert everything(source) == {i: [t] for i, t in enumerate(texts)}, name
    lines = "\r\n".join(["image,caption", *(f"bilder/ä {i} 図.png,text {i}" for i in range(3))])
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbf" + lines.encode())  # byte order mark, Windows' line ends
    assert everything(tmp_path / "f.csv") == {i: [f"text {i}"] for i in range(3)}


def test_jsonl_with_a_split_column_and_a_folder_for_each_split(tmp_path: Path) -> None:
    names, roles = write_images(tmp_path, 6, "images/{}.png"), ["train", "train", "test", "validation", "train", "test"]
    lists = [[f"a{i}", f" b{i} "] for i in range(6)]
    table(tmp_path / "metadata.jsonl", names, lists, split=roles, no=range(6))
    for source in (tmp_path, tmp_path / "metadata.jsonl"):
        for role in SPLITS:
            assert contents(opened(source, role)) == {i: [f"a{i}", f"b{i}"] for i in range(6) if roles[i] == role}
    for n, split in enumerate(("train", "val", "test")):
        folder = tmp_path / "folder" / split
        lines = [(name, f"{split} {name}") for name in write_images(folder, n + 2)]
        write_csv(folder / "metadata.csv", [("file_name", "text"), *lines])
        shutil.copytree(folder, tmp_path / "seg" / f"seg_{split}")
        shutil.copytree(folder, tmp_path / "twice" / "twice" / split / split)
    assert [len(opened(tmp_path / "folder", split)) for split in SPLITS] == [2, 3, 4]
    assert [len(opened(tmp_path / "seg", split)) for split in SPLITS] == [2, 3, 4]
    assert [len(opened(tmp_path / "twice", split)) for split in SPLITS] == [2, 3, 4]
    assert opened(tmp_path / "folder", "validation").captions(1) == ["val 1.png"]


def test_parquet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Image as Picture

    for split, first, count in (("train", 0, 5), ("validation", 5, 2), ("test", 7, 3)):
        own = range(first, first + count)
        captions, names = [[f"{i} a", f"{i} b"] for i in own], [f"{i}.png" for i in own]
        columns = {"image": cells(count, first), "captions": captions, "filename": names}
        write_parquet(tmp_path / "a" / f"{split}-00000-of-00001.parquet", columns, image=Picture())
    assert everything(tmp_path / "a") == {i: [f"{i} a", f"{i} b"] for i in range(10)}
    source = opened(tmp_path / "a")
    assert source.name(3) == "3.png (train row 3)"
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)  # what a spawned worker gets
    expected = {i: [t] for i, t in enumerate("wxyz")}
    write_parquet(tmp_path / "b" / "data.parquet", {"jpg": [png(i) for i in range(4)], "txt": list("wxyz")})
    write_parquet(tmp_path / "c" / "data.parquet", {"path": write_images(tmp_path / "c", 4), "txt": list("wxyz")})
    assert everything(tmp_path / "b") == everything(tmp_path / "c") == expected
    monkeypatch.setattr("miniclip.data.tables.image_column.decode_image", lambda *a, **k: pytest.fail("decoded"))
    assert opened(tmp_path / "a", "test").captions(0) == ["7 a", "7 b"]


def test_built_in_scenes() -> None:
    source = open_source(DataConfig(size=7), "train", image_size=32)
    assert len(source) == 7 and source.image(0).size == (32, 32) and source.captions(0)
    assert len(open_source(DataConfig(size=7), "test", eval_size=3, seed=1)) == 3
    with pytest.raises(ValueError, match=r"built-in scenes have no column kind .*else use a source of your"):
        source.column("kind")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        open_source(DataConfig(), "dev")


# ---- columns


def test_columns_are_found_or_their_choice_is_listed(tmp_path: Path) -> None:
    def one(**values: Any) -> Any:
        return read_file(Path(write_jsonl(tmp_path / "columns.jsonl", [values])))

    captions: list[tuple[dict[str, Any], list[str] | str]] = [
        ({"text": "t"}, ["text"]),
        ({"Caption": "t", "title": "t"}, ["Caption"]),
        ({"sentences": ["t"], "ids": [1]}, ["sentences"]),
        ({f"caption_{i}": "t" for i in (10, 2, 0)}, ["caption_0", "caption_2", "caption_10"]),
        ({"text1": "t", "text2": "t", "title": "t"}, ["text1", "text2"]),
        ({"description": "t"}, ["description"]),
        ({"caption": "t", "text": "t"}, "caption, text could each be the caption column; set data.caption_column"),
        ({"caption": "t", "caption_0": "t"}, "caption_0, caption could each be"),
        ({"text_0": "t", "caption_0": "t"}, "text_0, caption_0 could each be"),
        ({"words": "t", "kind": "t"}, "no caption column was recognised; .* columns: image, words, kind"),
        ({"caption": 3}, "no caption column was recognised"),
    ]
    for columns, expected in captions:
        found = one(image="a.png", **columns)
        if isinstance(expected, list):
            assert caption_columns(found, None, "image") == expected
        else:
            with pytest.raises(ValueError, match=expected):
                caption_columns(found, None, "image")
    assert image_column(one(file_name="a", filename="b", text="t"), None) == "file_name"
    assert image_column(one(IMG="a", text="t"), None) == "IMG"
    for columns, wanted, message in (
        ({"image": "a", "path": "b"}, None, r"image, path could each be the image column; set data.image_column"),
        ({"x": "a"}, None, "no image column was recognised"),
        ({"image": "a", "text": "t"}, "foto", r"has no column foto \(data.image_column\), but image, text"),
        ({"image": 3}, "image", "image_column=image does not hold images or paths"),
    ):
        with pytest.raises(ValueError, match=message):
            image_column(one(**columns), wanted)


def test_columns_that_are_named(tmp_path: Path) -> None:
    names = write_images(tmp_path, 3)
    rows = [{"image": f, "a": f"a{f}", "b": [f"b{f}", "c"], "caption": "no", "n": 1} for f in names]
    source = write_jsonl(tmp_path / "x.jsonl", rows)
    assert everything(source, caption_column="a")[1] == ["a1.png"]
    assert everything(source, caption_column=["b", "a"])[1] == ["b1.png", "c", "a1.png"]
    for column, wanted, message in (
        ("caption", "z", "no column z"),
        ("caption", ["a", "z"], "no column z"),
        ("caption", "n", "does not hold text"),
        ("caption", [], "empty"),
        ("caption", "captoin", r"x\.jsonl has no column captoin \(data\.caption_column\), .*; did you mean caption"),
        ("image", "imgae", r"no column imgae \(data\.image_column\), but image, a, .*; did you mean image\?$"),
    ):
        refused(message, source, **{f"{column}_column": wanted})


def test_a_column_of_values_goes_with_the_images(tmp_path: Path) -> None:
    """Its first row speaks for an image; rows of other splits and rows left out are no part of it."""
    names, roles = write_images(tmp_path, 6), ["test", "train", "test", "test", "train", "test"]
    lines = [(names[i], f"{i} {k}", roles[i], f"{i}.{k}") for k in range(2) for i in (4, 2, 0, 1, 5, 3)]
    lines[1] = (names[2], "", "test", "2.0")  # the image keeps its caption in the second row
    lines.insert(2, ("", "no image", "test", "none"))
    keys = ("image", "caption", "split", "value")
    rows = [dict(zip(keys, line, strict=True)) for line in lines]
    for source in (write_csv(tmp_path / "l.csv", [keys, *lines]), write_jsonl(tmp_path / "l.jsonl", rows)):
        found = opened(source, "test", max_bad_fraction=0.5)
        assert numbers(found) == [2, 0, 5, 3] and found.column("value") == ["2.0", "0.0", "5.0", "3.0"]
        some = Subset(found, [3, 1])
        assert some.column("value") == ["3.0", "0.0"] and [number_of(some.image(i)) for i in range(2)] == [3, 0]
    full = [line for line in lines if line[0]]
    columns: dict[str, list[Any]] = {key: [line[i] for line in full] for i, key in enumerate(keys)}
    columns["image"] = [png(int(name[0])) for name in columns["image"]]
    write_parquet(tmp_path / "p" / "test.parquet", columns)
    # every row is an image of its own; the one without a caption is gone
    expected = [line[3] for line in full if line[1] and line[2] == "test"]
    assert opened(tmp_path / "p", "test", max_bad_fraction=0.5).column("value") == expected
    source = table(tmp_path / "carved.jsonl", write_images(tmp_path, 60), value=range(60))
    for split in SPLITS:
        assert opened(source, split).column("value") == numbers(opened(source, split))


def test_columns_that_hold_no_values(tmp_path: Path) -> None:
    columns = {"image": cells(2), "text": ["a", "b"], "words": [["a"], ["b"]], "value": [1.5, None]}
    write_parquet(tmp_path / "test.parquet", columns)
    found = opened(tmp_path, "test", caption_column="text")
    assert found.column("value") == [1.5, None] and found.column("text") == ["a", "b"]
    for wanted, message in (
        ("kind", r"\(test\) has no column kind \(data\.weight_column\), but image, text, words, value$"),
        ("image", r"data\.weight_column=image does not hold numbers or classes; the columns are image, t"),
        ("words", r"data\.weight_column=words does not hold numbers or classes; the columns are image, t"),
    ):
        with pytest.raises(ValueError, match=message):
            found.column(wanted)


# ---- one image, several rows; splits


def test_carving_is_the_same_every_time_and_by_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_images(tmp_path, 100)
    rows = [(n if k else f"./{n}", f"{n} {k}") for k in range(2) for n in names]  # one path is one image
    source = write_csv(tmp_path / "list.csv", [("image", "caption"), *rows])
    with caplog.at_level(logging.WARNING):
        first = [contents(opened(source, split)) for split in SPLITS]
    assert [len(part) for part in first] == [90, 5, 5]
    assert "no split for validation or test" in caplog.text and "90 are left for train" in caplog.text
    assert everything(source) == {i: [f"{i}.png 0", f"{i}.png 1"] for i in range(100)}
    write_csv(tmp_path / "list.csv", [("image", "caption"), *reversed(rows)])  # the order of rows is of no matter
    assert [contents(opened(source, split)).keys() for split in SPLITS] == [part.keys() for part in first]
    # one caption a row, the image repeated, every path the same: only the contents tell
    same = [{"bytes": png(i % 30), "path": "image.png"} for i in range(90)]
    write_parquet(tmp_path / "p" / "train.parquet", {"image": same, "caption": [f"c{i}" for i in range(90)]})
    seen = [set(numbers(opened(tmp_path / "p", split))) for split in SPLITS]
    assert [len(s) for s in seen] == [26, 2, 2] and len(set.union(*seen)) == 30


def test_carve_by_hand() -> None:
    keys = [f"k{i // 2}" for i in range(80)]  # 40 images, two rows each
    pieces = carve(keys, ["test"])
    assert len(pieces["test"]) == 4 and len(pieces["train"]) == 76
    assert not {keys[i] for i in pieces["test"]} & {keys[i] for i in pieces["train"]}
    three = carve(list("abc"), ["validation", "test"])
    assert {role: len(piece) for role, piece in three.items()} == {"validation": 1, "test": 1, "train": 1}
    assert len(carve([str(i) for i in range(120_000)], ["test"])["test"]) == 5000
    with pytest.raises(ValueError, match="2 images are too few"):
        carve(["a", "b", "a"], ["validation", "test"])
    with pytest.raises(OneImage, match="all 3 images are the same"):
        carve(["a", "a", "a"], ["test"])


def split_table(tmp_path: Path, splits: Sequence[str]) -> str:
    names = write_images(tmp_path, 10 * len(splits))
    return table(tmp_path / "x.jsonl", names, split=list(splits) * 10)


def test_splits_that_are_there_and_those_that_are_not(tmp_path: Path) -> None:
    cases: list[tuple[list[str], dict[str, Any], tuple[int, ...]]] = [
        (["train", "test"], {}, (9, 1, 10)),  # validation is carved off train, test is left alone
        (["train", "validation"], {}, (9, 10, 1)),
        (["train", "val", "test"], {}, (10, 10, 10)),
        (["train", "restval", "val", "test"], {"train_split": "restval"}, (10, 10, 10)),
        (["all"], {}, (8, 1, 1)),
        (["train", "dev", "x"], {"test_split": "x"}, (10, 10, 10)),
        (["test"], {"train_split": "test"}, (8, 1, 1)),
        (["train", "test"], {"validation_split": "test"}, (10, 10, 10)),
    ]
    for have, config, sizes in cases:
        source = split_table(tmp_path, have)
        parts = [contents(opened(source, split, **config)) for split in SPLITS]
        assert tuple(map(len, parts)) == sizes, (have, config)
        assert not parts[0].keys() & (parts[1].keys() | parts[2].keys())


def test_an_evaluation_takes_the_one_split_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of COCO's captions_val2017.json, where there is nothing to train on."""
    assert len(opened(split_table(tmp_path, ["val"]), "test")) == 10
    assert "has the one split 'val', which is taken whole" in caplog.text


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    for have, config, role, message in (
        (["train", "test"], {"test_split": "tset"}, "test", r"split 'tset', but train, test; .*; did you mean test\?$"),
        (["train", "test"], {"validation_split": "dev"}, "train", "no split 'dev'"),
        (["a", "b"], {}, "train", "has no split 'train', but a, b; set data.train_split"),
        (["a", "b"], {}, "test", "has no split 'test', but a, b; set data.test_split"),
        (["test"], {}, "train", "has no split 'train'"),
        (["train", "test"], {"test_split": "train"}, "test", "both name 'train'"),
        (["train", " "], {}, "train", r"line 2: column 'split' is empty"),
    ):
        refused(message, split_table(tmp_path, have), role, **config)
    twice = table(tmp_path / "x.jsonl", ["0.png", "./0.png"], split=["train", "test"])
    refused(r"\./0\.png \(x\.jsonl line 2\) is in split 'test' and in 'train'", twice)


# ---- what is refused


def test_paths_that_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    names = write_images(tmp_path / "set", 3)
    for n, path in enumerate(("../secret.png", "/etc/hostname", "a/../../secret.png")):
        rows = [("image", "caption"), *((name, "t") for name in names), (path, "t")]
        refused(r"line 5: .* leads out of", write_csv(tmp_path / "set" / "l.csv", rows))
        write_parquet(tmp_path / f"p{n}" / "x.parquet", {"path": [path] * 5, "text": ["t"] * 5})
        refused(r"row 0: .* leads out of", tmp_path / f"p{n}")
    outside = {"bytes": None, "path": str(tmp_path / "secret.png")}
    write_parquet(tmp_path / "q" / "test.parquet", {"image": [outside, *cells(1)], "text": ["t", "u"]})
    with pytest.raises(BadImage, match="leads out of"):
        opened(tmp_path / "q", "test").image(0)


def test_images_that_cannot_be_read_name_file_and_line(tmp_path: Path) -> None:
    names = write_images(tmp_path / "set", 4)
    (tmp_path / "set" / "1.png").write_bytes(png(1)[:50])
    (tmp_path / "secret.png").write_bytes(png(1))
    for name in ("2.png", "3.png"):
        (tmp_path / "set" / name).unlink()
    (tmp_path / "set" / "3.png").symlink_to(tmp_path / "secret.png")
    source = opened(table(tmp_path / "set" / "l.jsonl", names, split=["test"] * 4), "test")
    assert number_of(source.image(0)) == 0
    for row, message in ((1, "cannot be decoded"), (2, "no such file"), (3, ".* leads out of")):
        with pytest.raises(BadImage, match=rf"^{row}\.png \(l\.jsonl line {row + 1}\): {message}"):
            source.image(row)
    longest = table(tmp_path / "set" / "l.jsonl", ["x y " * 999, names[0]], split=["test"] * 2)
    with pytest.raises(BadImage, match=r"\(l\.jsonl line 1\): .*File name too long"):
        opened(longest, "test").image(0)
    moved = table(tmp_path / "elsewhere" / "l.jsonl", names, split=["test"] * 4)
    refused(r"0\.png .* was not found below .* taken from its own folder", moved, "test", FileNotFoundError)


def test_rows_without_caption_or_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_images(tmp_path, 60)
    images = [names[0], "", *names[1:]]
    captions = [["a", " "], ["x"], ["b"], [], None, "  ", ["f", None], *["t"] * 54]
    roles = ["test"] * 7 + ["train"] * 54  # the share is of all 61
    source = table(tmp_path / "l.jsonl", images, captions, split=roles)
    named = r"line 2: no image in column image; l\.jsonl line 4: no text in column text; l\.jsonl line 5: no"
    said = rf"l\.jsonl: 4 of 61 images cannot .*=0\.065 allows: l\.jsonl {named}"
    with pytest.raises(TooManyBad, match=said) as error:
        opened(source, "test", max_bad_fraction=0.065)  # 3.965 of 61
    assert not isinstance(error.value, NoCaptions)
    with caplog.at_level(logging.WARNING):
        found = contents(opened(source, "test", max_bad_fraction=0.066))  # 4.026 of 61
    assert found == {0: ["a"], 1: ["b"], 5: ["f"]}
    assert "4 of 7 rows are skipped: l.jsonl line 2: no image" in caplog.text
    assert "2 captions are empty or no text; their images have others" in caplog.text  # " " and None
    assert len(opened(source, "train", max_bad_fraction=0)) == 51  # 5% of 54 are set aside
    source = table(tmp_path / "l.jsonl", names, [captions[0], *captions[2:]], split=[roles[0], *roles[2:]])
    refused(r"3 of 60 images cannot be used \(split test\)", source, "test", NoCaptions)
    columns = {"image": [*cells(2), {"bytes": None, "path": None}, None], "text": ["a", "", "b", "c"]}
    write_parquet(tmp_path / "p" / "test.parquet", columns)
    named = "test row 1: no text in column text; test row 2: no image in column image; test row 3: no image"
    refused(f"3 of 4 images .* {named}", tmp_path / "p", "test", TooManyBad)
    assert contents(opened(tmp_path / "p", "test", max_bad_fraction=0.75)) == {0: ["a"]}


def test_captions_that_are_no_text_are_bad_rows(tmp_path: Path) -> None:
    names = write_images(tmp_path, 8)
    values = [3, "b", None, {"a": 1}, True, "f", ["g", None, 7], [8]]
    source = table(tmp_path / "l.jsonl", names, values, split=["test"] * 8)
    assert contents(opened(source, "test", max_bad_fraction=0.625)) == {1: ["b"], 5: ["f"], 6: ["g"]}
    named = r"5 of 8 .* line 1: no text in column text, but 3; l\.jsonl line 3: no text in c"
    refused(named, source, "test", NoCaptions, max_bad_fraction=0.6)
    source = table(tmp_path / "l.jsonl", names, [" "] * 8, split=["test"] * 8)
    for allowed in (0.0, 0.01, 1.0):
        refused("8 of 8|no row has", source, "test", NoCaptions, max_bad_fraction=allowed)


def test_malformed_files_name_the_line(tmp_path: Path) -> None:
    good = '{"image": "a.png", "text": "t"}\n'
    for file, text, message in (
        ("a.csv", "image,caption\na.png,one, two\n", r"line 2: 3 fields, but the header has 2 \(delimiter ','\)"),
        ("a.csv", 'image,caption\na.png,ok\nb.png,"x\ny"\nc.png,"open\n', r"line 5: unexpected end of data"),
        ("a.csv", "image\na.png\n", "the header has the one column 'image'"),
        ("a.csv", "image,text,text\n", "names text more than once"),
        ("a.csv", "image,text\n", "has no rows"),
        ("a.csv", "", "the header has the one column|has no rows"),
        ("a.jsonl", '{"image": "a"}\n\n{broken\n', "line 3: not JSON"),
        ("a.jsonl", '{"image": "a"}\n{"image": ' + "[" * 100_000, "line 2: not JSON"),
        ("a.jsonl", "[1]\n", "entry 1: expected an object"),
        ("a.jsonl", good + '{"image": "b.png", "text": 3}\n', "line 2: no text in column text, but 3"),
        ("a.jsonl", good + '{"image": 3, "text": "t"}\n', "line 2: no image in column image"),
        ("a.parquet.txt", "\xff\xfe\xfd", "is not text in an encoding that can be told; save it as UTF-8"),
        ("a.csv", "\x89PNG\r\n\x1a\n\0\0\0\x0d", "is not text in an encoding that can be told"),
        ("a.xlsx", "x", "expected a file that ends in"),
    ):
        (tmp_path / file).write_text(text, encoding="latin-1")
        refused(message, tmp_path / file)


def test_text_lists() -> None:
    lists = [["ä", ""], [], ["図 dog", "\ud800", "x" * 1000]]
    packed = TextLists(lists)
    assert len(packed) == 3 and [packed[i] for i in range(3)] == lists
    assert len(TextLists([])) == 0
    assert packed.fingerprint() == TextLists(iter(lists)).fingerprint()
    apart = ([["ab"], ["c"]], [["a"], ["bc"]], [["ab", "c"]], [["ab"], ["c"], []], [["ab"], ["d"]])
    assert len({TextLists(one).fingerprint() for one in apart}) == len(apart)
    assert TextLists(apart[0]).firsts() == ["ab", "c"]


@pytest.mark.parametrize(
    "layout",
    [
        "train/{}.png val/{}.png test/{}.png",
        "images/Train/a/{}.png images/Val/a/{}.png images/Test/b/{}.png",
        "./train/{}.png ./dev/{}.png test/../test/{}.png",
        "seg_train/{}.png seg_val/{}.png seg_test/{}.png",
        "train2017/{}.png val2017/{}.png test2017/{}.png",
    ],
)
def test_folders_in_the_paths_of_one_table_tell_the_split(tmp_path: Path, layout: str) -> None:
    paths = [layout.split()[(i > 5) + (i > 7)].format(i) for i in range(10)]
    for i, path in enumerate(paths):
        write_image(tmp_path / path, i)
    captions = [f"text {i}" for i in range(10)]
    members = [(path[:-4], {"png": png(i), "txt": captions[i].encode()}) for i, path in enumerate(paths)]
    for source in (
        write_csv(tmp_path / "l.csv", [("file_name", "text"), *zip(paths, captions, strict=True)]),
        table(tmp_path / "l.jsonl", paths, captions),
        write_parquet(tmp_path / "l.parquet", {"file_name": paths, "text": captions}),
        write_tar(tmp_path / "l.tar", members),
    ):
        found = [contents(opened(source, split, max_bad_fraction=0)) for split in SPLITS]
        assert found == [texts(0, 6), texts(6, 8), texts(8, 10)], source
    for path, caption in zip(paths, captions, strict=True):
        (tmp_path / path).with_suffix(".txt").write_text(caption)
    for file in tmp_path.glob("l.*"):
        file.unlink()
    assert [contents(opened(tmp_path, split)) for split in SPLITS] == [texts(0, 6), texts(6, 8), texts(8, 10)]


def test_folders_that_tell_a_split_of_some_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def source(*paths: str, **columns: Any) -> str:
        for i, path in enumerate(paths):
            if path:
                write_image(tmp_path / path, i)
        return table(tmp_path / "l.jsonl", paths, [f"text {i}" for i in range(len(paths))], **columns)

    message = (
        r"l\.jsonl: images lie in folders of splits \(test\) and outside of them, e\.g\. more/0\.png; .* column 's"
    )
    refused(message, source("more/0.png", *(f"test/{i}.png" for i in range(4))))
    refused(r"\(seg_test, seg_train\) and outside", source("seg_train/0.png", "seg_test/1.png", "2.png"))
    assert everything(source("bus/0.png", "train/1.png", "bus/2.png")) == texts(0, 3)  # vehicles
    assert everything(source("bus/0.png", "test tube/1.png", "2.png")) == texts(0, 3)
    assert contents(opened(source("test/0.png", "test/1.png"), "test")) == texts(0, 2)
    inside = source("train/test_tube/0.png", "train/cat/1.png", "test/train/2.png", "test/cat/3.png")
    assert contents(opened(inside, "test")) == {2: ["text 2"], 3: ["text 3"]}  # classes in splits
    assert everything(source("train/test_tube/0.png", "train/cat/1.png", "train/cat/2.png")) == texts(0, 3)
    refused("no split 'train', but test", source("test/0.png", "test/1.png"))
    paths = ["a/0.png", "test/1.png", "", "train/3.png"]
    told = source(*paths, split=["Test", "train", "train", "VAL"])  # a column says more than folders
    assert [len(opened(told, split, max_bad_fraction=1)) for split in SPLITS] == [1, 1, 1]
    assert contents(opened(source(*paths[:2], set=["train", "test"]), "test")) == {1: ["text 1"]}
    inside = [{"set": "train"}, {"set": "test"}]
    assert contents(opened(source(*paths[:2], about=inside), "test")) == {1: ["text 1"]}
    assert everything(source("0.png", "1.png", "2.png", split=[0, 0, 1])) == texts(0, 3)
    assert "l.jsonl: column 'split' holds no words, and tells no splits" in caplog.text
    assert len(opened(source("train/0.png", "", "train/2.png", "test/3.png"), "test")) == 1
    refused(r"1 of 4 images .* line 2: no image", source("train/0.png", "", "train/2.png", "test/3.png"))


# ---- text as people store it


@pytest.mark.parametrize(
    "written",
    [
        str,
        json.dumps,
        lambda texts: json.dumps(texts, indent=1),
        lambda texts: str(tuple(texts)),
        lambda texts: str(np.array(texts)),  # no commas
        lambda texts: repr(np.array(texts, dtype=object)),
    ],
)
def test_a_list_in_one_text_is_its_captions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: Callable[[list[str]], str]
) -> None:
    names, lists = write_images(tmp_path, 3), [["a dog", "one dog"], ['it\'s "one"', "b, [c]"], ["Grüße", "x"]]
    rows = {"image": names, "text": list(map(written, lists))}
    expected = dict(enumerate(lists))
    assert everything(write_csv(tmp_path / "l.csv", [rows, *zip(*rows.values(), strict=True)])) == expected
    assert (
        "l.csv, text: a list written as text is read as its captions in 3 rows, the first l.csv line 2" in caplog.text
    )
    assert everything(table(tmp_path / "l.jsonl", names, rows["text"])) == expected
    assert everything(table(tmp_path / "m.jsonl", names, [[text] for text in rows["text"]])) == expected
    write_parquet(tmp_path / "p" / "x.parquet", {"image": cells(3), "text": rows["text"]})
    assert everything(tmp_path / "p") == expected
    members = [(f"{i}", {"png": png(i), "json": json.dumps({"text": t}).encode()}) for i, t in enumerate(rows["text"])]
    assert everything(write_tar(tmp_path / "j.tar", members)) == expected
    members = [(f"{i}", {"png": png(i), "txt": text.encode()}) for i, text in enumerate(rows["text"])]
    assert everything(write_tar(tmp_path / "t.tar", members)) == expected
    write_images(tmp_path / "beside", 3)
    for i, text in enumerate(rows["text"]):
        (tmp_path / "beside" / f"{i}.txt").write_text(text, encoding="utf-8")
    assert everything(tmp_path / "beside") == expected


def test_captions_in_brackets_stay_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = ["[sic] a dog", "(a) dog", "['a'] and more", "array of dogs"]
    odd = ["['a', 3]", "['a dog', 'one", "[1, 2]", "{'raw': 'a dog'}", "['a' ... 'b']", "[music]"]
    names = write_images(tmp_path, len(plain + odd))
    source = whole(table(tmp_path / "l.jsonl", names, plain + odd))
    assert contents(source) == {i: [text] for i, text in enumerate(plain + odd)}
    assert (
        "text: what may be a list written as text is read as one caption in 7 rows, the first l.jsonl line 3"
        in caplog.text
    )


LANGUAGES = {  # what a table in it is written in
    "cp1252": ["Un café près de la plage", "Deux élèves à la fenêtre", "Ein großer Hund", "plain", "it’s “one” – ok"],
    "cp1250": ["Pes běží po pláži", "Žena v červených šatech", "Dívka sedí na židli", "Muž a kůň", "plain"],
    "cp1251": ["Собака бежит по пляжу", "Две девочки играют с мячом", "Мужчина едет на лошади", "Кот спит", "plain"],
    "koi8_r": ["Собака бежит по пляжу", "Две девочки играют с мячом", "Мужчина едет на лошади", "Кот спит", "plain"],
    "cp1253": ["Ένας σκύλος τρέχει στην παραλία", "Δύο παιδιά παίζουν", "Μια γυναίκα με καπέλο", "Μια γάτα", "plain"],
    "cp932": ["犬がビーチを走っている", "二人の女の子が遊んでいる", "男の人が馬に乗る", "猫が寝ている", "plain"],
    "gb18030": ["一只狗在海滩上奔跑", "两个女孩在玩球", "一个男人骑着马", "猫", "plain"],
    "cp1254": ["Bir köpek sahilde koşuyor", "Kırmızı şapkalı kız", "ağaç", "Çocuk", "plain"],
    "cp1255": ["כלב רץ על החוף", "שתי ילדות משחקות בכדור", "חתול ישן על הספה", "איש", "plain"],
}
ENCODINGS = [*LANGUAGES, "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_in_whatever_encoding(tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str) -> None:
    captions = LANGUAGES.get(encoding, ["Ένας σκύλος", "Un café", "犬がビーチを", "plain", "Кот 😁"])
    names, expected = write_images(tmp_path, 5), {i: [text] for i, text in enumerate(captions)}
    lines = [f"{name}{{0}}{text}" for name, text in zip(names, captions, strict=True)]
    for file, separator in (("l.csv", ","), ("l.tsv", "\t"), ("l.txt", "|")):
        rows = "\r\n".join(["file_name{0}text", *lines, ""]).format(separator)
        (tmp_path / file).write_bytes(rows.encode(encoding))
        caplog.clear()
        assert everything(tmp_path / file) == expected, file
        assert ("not UTF-8" in caplog.text) == (encoding[:5] != "utf-8")
        assert (
            spoken(encoding).removesuffix("-le").removesuffix("-be").removesuffix("-sig") in caplog.text
            or encoding[:5] == "utf-8"
        )
    as_json = partial(json.dumps, ensure_ascii=False)
    objects = [as_json({"file_name": name, "text": text}) for name, text in zip(names, captions, strict=True)]
    (tmp_path / "l.jsonl").write_bytes("\n".join(objects).encode(encoding))
    assert everything(tmp_path / "l.jsonl") == expected
    for field in ("txt", "json"):
        texts = [{"txt": text, "json": as_json({"text": text})}[field] for text in captions]
        members = [(f"{i}", {"png": png(i), field: text.encode(encoding)}) for i, text in enumerate(texts)]
        assert everything(write_tar(tmp_path / "l.tar", members)) == expected
    for name, text in zip(names, captions, strict=True):
        (tmp_path / "beside" / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "beside" / name).with_suffix(".TXT").write_bytes(text.encode(encoding))
    assert everything(tmp_path / "beside") == expected
    (tmp_path / "names.txt").write_bytes("\n".join(captions).encode(encoding))
    assert name_classes(list("abcde"), tmp_path / "names.txt", "order") == [[text] for text in captions]
    (tmp_path / "names.txt").write_bytes("\n".join(map("{}\t{}".format, "abcde", captions)).encode(encoding))
    assert name_classes(list("abcde"), tmp_path / "names.txt") == [[text] for text in captions]


def test_one_line_in_another_encoding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_images(tmp_path, 4)
    lines = ["file_name,text", *(f"{name},Un café" for name in names)]
    coded = [line.encode("cp1252" if n == 3 else "utf-8") for n, line in enumerate(lines)]
    (tmp_path / "l.csv").write_bytes(b"\n".join(coded))
    assert everything(tmp_path / "l.csv") == {i: ["Un café"] for i in range(4)}
    assert "1 text read as Windows-1252, not UTF-8; the first: line 4, 2.png,Un café" in caplog.text
