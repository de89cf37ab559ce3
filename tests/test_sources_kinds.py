"""What data.source may name besides tars: Parquet files, patterns, images with texts beside them, the Hub; errors.

Several sources as one, and the fingerprint that tells when the data of a source has changed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.files import (
    cells,
    png,
    samples,
    write_beside,
    write_csv,
    write_image,
    write_images,
    write_jsonl,
    write_parquet,
    write_shard,
    write_tar,
)
from support.opened import SPLITS, contents, everything, numbers, opened, refused, texts, whole

from miniclip.common.printing import near_name
from miniclip.config import DataConfig
from miniclip.data.captioned import Concat, NoCaptions, Pairs, open_source
from miniclip.data.captioned import contents as compared
from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.scenes.source import SceneSource
from miniclip.data.subset import Subset
from miniclip.data.tables.hub import is_hub
from miniclip.data.tables.kinds import find_shards, read_tables
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.source import braces, by_split, told_split


def test_names_of_files() -> None:
    for pattern, names in {  # what bash makes of them
        "a{08..11}.tar": "a08.tar a09.tar a10.tar a11.tar",
        "{0..3}": "0 1 2 3",
        "{2..0}": "2 1 0",
        "{098..101}": "098 099 100 101",
        "{a,b{1..2}}/{x,y}": "a/x a/y b1/x b1/y b2/x b2/y",
        "{a}{": "{a}{",
        "{a,{b": "{a,{b",
    }.items():
        assert braces(pattern) == names.split(), pattern
    for pattern in ("{0..1000000}", "{0..1999}{0..1999}"):
        with pytest.raises(ValueError, match="names"):
            braces(pattern)
    for pattern, file, split in (
        ("/test/x/*", "/test/x/00000.tar", "train"),  # folders above the pattern say nothing
        ("/test/x/*", "/test/x/cc3m-test-00000.tar", "test"),
        ("x/**/*", "x/Validation/a/0.tar", "validation"),
        ("x/**/*", "x/test/train-0.tar", "train"),
        ("x/**/*", "x/train/dev/0.tar", "dev"),
        ("x/*", "x/restval-00000-of-00003.parquet", "restval"),
        ("x/*", "x/latest.tar", "train"),
        ("http://a.b/test/{0..1}.tar", "http://a.b/test/0.tar", "train"),
        ("http://a.b/{test,dev}/0.tar", "http://a.b/dev/0.tar", "dev"),
        ("x/val_0.parquet", "x/val_0.parquet", "val"),
    ):
        assert by_split([file], pattern) == {split: [file]}
    assert near_name("Captoin", ["image", "Caption", "caption"]) == "Caption"
    assert near_name("IMAGE", ["image"]) == "image" and near_name("xyz", ["image", "caption"]) is None
    hub = {"user/set": True, "cifar10": True, "./set": False, "set.csv": False, "a/b.tar": False, "a/b/c": False}
    assert {source: is_hub(source) for source in hub} == hub


# ---- Parquet


def test_the_split_that_the_name_of_a_folder_tells() -> None:
    told = {
        "train": "train seg_train train_images images_train trainset TrainImages a_train train2017 trainA",
        "training": "Training training_set fruits-360_Training",
        "test": "TEST test1 seg_test Test_Data ILSVRC2012_img_test test-multiple",
        "testing": "Testing",
        "val": "val2014 Val img.val valSet",
        "validation": "validation_images",
        "dev": "dev",
        "eval": "eval_0",
    }
    for split, names in told.items():
        for name in names.split():
            assert told_split(name) == split, name
    for name in (
        "contest",
        "trains",
        "restrain",
        "train_test",
        "a test of it",
        "unlabeled",
        "seg_pred",
        "images",
        "",
        "1",
    ):
        assert told_split(name) is None, name
    assert told_split("my test set") == "test"


def test_parquet_files_and_patterns(tmp_path: Path) -> None:
    for n in range(3):
        write_shard(tmp_path / "a" / f"{n:04d}.parquet", 4 * n, 4 * n + 4)
    assert everything(tmp_path / "a" / "0001.parquet") == texts(4, 8)
    for source in ("a/*.parquet", "**/*.parquet", "a/{0000..0002}.parquet", "a/000[012].parquet", "a"):
        assert everything(tmp_path / source) == texts(0, 12), source
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "train")
    write_shard(tmp_path / "b" / "test" / "0000.parquet", 20, 23)
    assert contents(opened(tmp_path / "b/**/*.parquet", "test")) == texts(20, 23)
    for first, folder in enumerate(("Train", "TestSet")):
        write_shard(tmp_path / "d" / folder / "part-00000-of-00001.parquet", 10 * first, 10 * first + 3)
    for source in ("d", "d/**/*.parquet"):
        assert contents(opened(tmp_path / source, "test")) == texts(10, 13)
        assert list(map(len, find_shards(str(tmp_path / source)).values())) == [1, 1]
    write_shard(tmp_path / "c" / "extra-00000-of-00001.parquet", 5, 9)
    write_shard(tmp_path / "c" / "train-00000-of-00001.parquet", 0, 4)
    assert {s: len(t) for s, t in read_tables(str(tmp_path / "c" / "*")).items()} == {"extra": 4, "train": 4}
    assert contents(opened(tmp_path / "c" / "*", train_split="extra", test_split="train")).keys() <= set(range(5, 9))
    refused(r"data\.revision=main is for data sets of the Hub, .* leave it out", tmp_path / "a", revision="main")
    names = write_images(tmp_path, 4, "img/{}.png")  # paths are taken from the folder of the table
    write_parquet(tmp_path / "list.parquet", {"path": names, "text": [f"text {i}" for i in range(4)]})
    for source in ("list.parquet", "*.parquet", "{list,list}.parquet"):
        assert everything(tmp_path / source) == texts(0, 4)


@pytest.mark.parametrize("name", ["[2024] set", "a{1,2}", "what?", "st*r"])
def test_folders_whose_names_look_like_patterns(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    for split, first in (("train", 0), ("test", 2)):
        write_shard(folder / "p" / f"{split}-0.parquet", first, first + 2)
        write_tar(folder / "t" / f"{split}-0.tar", samples(first, first + 2))
    for source in ("p", "p/*.parquet", "p/{train,test}-0.parquet", "t", "t/*.tar", "t/{train,test}-0.tar", "*/*.tar"):
        assert contents(opened(folder / source, "test")) == texts(2, 4), source
        shards = find_shards(str(folder / source))
        assert [s.name.rsplit("/", 1)[1] for s in shards["train"]] == [f"train-0{Path(shards['train'][0].name).suffix}"]
        assert len(list(replace(shards["test"][0], image="image", captions=["caption"]).read())) == 2
    (tmp_path / "x" / name).mkdir(parents=True)
    (tmp_path / "x" / name / "a.arrow").write_text("x")
    refused("rename it" if name != "a{1,2}" else "nothing the", tmp_path / "x" / name)


def test_captions_inside_objects(tmp_path: Path) -> None:
    inside = [{"caption": f"text {i}", "n": i} if i != 2 else None for i in range(4)]
    write_parquet(tmp_path / "test.parquet", {"jpg": [png(i) for i in range(4)], "json": inside})
    source = opened(tmp_path / "test.parquet", "test", max_bad_fraction=0.25)
    assert contents(source) == {i: [f"text {i}"] for i in (0, 1, 3)}
    assert source.column("json.n") == [0, 1, 3]
    listed = r"no column json\.capton .*, but jpg, json, json\.caption, json\.n; did you mean"
    refused(listed, tmp_path / "test.parquet", "test", caption_column="json.capton")
    rows = [{"image": n, "json": v} for n, v in zip(write_images(tmp_path, 4), inside, strict=True)]
    lines = write_jsonl(tmp_path / "l.jsonl", rows)
    assert everything(lines, max_bad_fraction=0.25) == {i: [f"text {i}"] for i in (0, 1, 3)}
    refused(r"line 3: no text in column json\.caption", lines, error=TooManyBad)
    import datasets
    import pyarrow as pa

    # Arrow keeps values below a null; they are not there
    null = pa.StructArray.from_arrays([pa.array(["a", "b"])], ["caption"], mask=pa.array([False, True]))
    table = ArrowTable(datasets.Dataset(pa.table({"json": null})), "train", "x (train)", ())
    assert list(table.values("json.caption")) == ["a", None]


# ---- folders of images, each with a text file


def test_a_text_file_beside_each_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "set"
    write_beside(folder, 0, 4)
    write_beside(folder / "deep" / "er", 4, 8)
    write_beside(folder / ".trash", 8, 10)
    (folder / "2.txt").write_bytes("\ufeffein Hündchen \r\n\r\n a dog\n".encode())
    (folder / "README.txt").write_text("no image is called so")
    (folder / ".hidden.png").write_bytes(b"")
    assert everything(folder) == {**texts(0, 8), 2: ["ein Hündchen", "a dog"]}
    assert "text files without an image of their name, and left out: 1 (README.txt)" in caplog.text
    source = whole(folder)
    assert source.name(6) == "deep/er/6.png (deep/er/6.txt)"
    assert source.column("file_name")[6] == "deep/er/6.png"
    for n, split in enumerate(("train", "val", "Test")):
        write_beside(tmp_path / "splits" / split / "x", 10 * n, 10 * n + n + 1)
    found = [contents(opened(tmp_path / "splits", split)) for split in SPLITS]
    assert found == [texts(0, 1), texts(10, 12), texts(20, 23)]
    write_beside(tmp_path / "splits", 50, 51)
    refused(r"folders of splits \(Test, train, val\) and outside of them, e\.g\. 50\.png", tmp_path / "splits")


def test_text_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    folder = write_beside(tmp_path / "set" / "test", 0, 8)
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_bytes(b"\xff\xfe\xfd")
    (folder / "3.txt").write_text(" \n\n")
    write_image(tmp_path / "secret.png", 99).with_suffix(".txt").write_text("password")
    for name in ("4.txt", "5.png"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / f"secret{name[1:]}")
    named = r"4 of 8 .* 1\.txt: no text in column captions; 2\.txt: .*; 3\.txt: .*; 4\.txt: "
    refused(named, tmp_path / "set", "test", NoCaptions)
    source = opened(tmp_path / "set", "test", max_bad_fraction=0.5)
    assert [source.captions(i) for i in range(4)] == [["text 0"], ["text 5"], ["text 6"], ["text 7"]]
    with pytest.raises(BadImage, match=r"5\.png \(5\.txt\): .* leads out of"):
        source.image(1)


def test_a_table_comes_before_text_files_and_these_before_parquet(tmp_path: Path) -> None:
    index = {"url": ["a"] * 4, "caption": ["no"] * 4}  # as img2dataset writes it
    write_beside(tmp_path, 0, 4)
    write_parquet(tmp_path / "index.parquet", index)
    assert everything(tmp_path) == texts(0, 4)
    write_csv(tmp_path / "metadata.csv", [("file_name", "text"), *((f"{i}.png", f"row {i}") for i in range(4))])
    assert everything(tmp_path) == {i: [f"row {i}"] for i in range(4)}
    write_tar(tmp_path / "shards" / "00000.tar", samples(0, 4))
    write_parquet(tmp_path / "shards" / "00000.parquet", index)
    assert everything(tmp_path / "shards") == texts(0, 4)
    with pytest.raises(ValueError, match=r"holds tars and Parquet files; name one kind; data\.streaming reads tars"):
        find_shards(str(tmp_path / "shards"))


# ---- JSON, and sets of captions as they are handed out


def coco(file: Path, numbers: Iterable[int], **more: Any) -> None:
    images = [{"id": 900 - n, "file_name": f"{n}.png", "license": 3} for n in numbers]
    notes = [{"image_id": 900 - n, "caption": f"{word} {n}"} for word in "ab" for n in numbers]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": notes, **more}))


def test_json_files_of_rows(tmp_path: Path) -> None:
    names = write_images(tmp_path, 4)
    rows = [{"file_name": name, "text": f"text {i}"} for i, name in enumerate(names)]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    for value in (
        rows,
        {"version": 1, "data": rows, "tags": ["a"]},
        columns,
        {key: dict(enumerate(column)) for key, column in columns.items()},  # as pandas writes it
        {row["file_name"]: row["text"] for row in rows},
        {row["file_name"]: [row["text"]] for row in rows},
        {row["file_name"]: {"text": row["text"]} for row in rows},
    ):
        (tmp_path / "metadata.json").write_text(json.dumps(value, indent=1))
        assert everything(tmp_path) == everything(tmp_path / "metadata.json") == texts(0, 4)
    (tmp_path / "metadata.json").unlink()
    for folder in (write_beside(tmp_path / "b", 0, 4), Path(write_tar(tmp_path / "t" / "0.tar", samples(0, 4))).parent):
        (folder / "metadata.json").write_text('{"license": "MIT"}')  # which says nothing of the rows
        assert everything(folder) == texts(0, 4)
    for file, text in (("l.json", "\n".join(map(json.dumps, rows))), ("l.jsonl", json.dumps(rows))):
        (tmp_path / file).write_text(text)
        assert everything(tmp_path / file) == texts(0, 4)
    for value, message in (
        ([*rows[:1], 3], "l.json entry 2: expected an object"),
        ({"a": rows, "b": rows}, "l.json: expected a list of objects"),
        ("text", "l.json: expected a list of objects"),
        ([], "l.json has no rows"),
        ({"images": [], "annotations": [{"bbox": []}]}, r"hold no caption; of COCO's files, captions_….json do"),
        (
            {
                "images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}],
                "annotations": [{"image_id": 1, "caption": "a"}],
            },
            r"two images have the id 1, a\.png and b\.png",
        ),
        ({"images": [{"sentences": []}]}, "entry 1: expected filename, split"),
    ):
        (tmp_path / "l.json").write_text(json.dumps(value))
        refused(message, tmp_path / "l.json")
    (tmp_path / "l.json").write_text('[{"a": 1},\n{b]')
    refused(r"l\.json line 2: not JSON", tmp_path / "l.json")
    (tmp_path / "l.json").write_text('{"0.png": "a", "1.png": "b", "0.png": "c"}')
    refused(r"l\.json: the key '0\.png' stands in an object twice", tmp_path / "l.json")
    (tmp_path / "l.jsonl").write_text('{"image": "0.png", "text": "a"}\n{"image": "1.png", "text": "b", "text": "c"}')
    refused(r"l\.jsonl line 2: the key 'text' stands in an object twice", tmp_path / "l.jsonl")


@pytest.mark.parametrize("inside", ["", "images/"])
def test_coco(tmp_path: Path, inside: str) -> None:
    """The same names in two folders, which the names of the files of captions tell apart."""
    for split, first in (("train2017", 0), ("val2017", 10)):
        coco(tmp_path / "annotations" / f"captions_{split}.json", range(6))
        (tmp_path / "annotations" / f"instances_{split}.json").write_text('{"images": [], "annotations": []}')
        for n in range(6):
            write_image(tmp_path / inside / split / f"{n}.png", first + n)
    found = [contents(opened(tmp_path, split)) for split in SPLITS]
    assert found[1] == {10 + n: [f"a {n}", f"b {n}"] for n in range(6)}
    assert found[0] | found[2] == {n: [f"a {n}", f"b {n}"] for n in range(6)} and len(found[2]) == 1
    file = tmp_path / "annotations" / "captions_val2017.json"
    assert contents(opened(file, "validation")) == found[1]
    coco(file, range(5), images=[{"id": 900, "file_name": "0.png"}])
    refused(r"4 of 5 images .* captions_val2017\.json image 899: no image", file, "validation", TooManyBad)


def test_karpathy_s_splits(tmp_path: Path) -> None:
    names, splits = write_images(tmp_path / "val2014", 5), ["train", "restval", "val", "test", "train"]
    images = [
        {"filepath": "val2014", "filename": name, "split": split, "sentences": [{"raw": f"text {i}", "tokens": ["x"]}]}
        for i, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    for source in (tmp_path, file):
        found = [contents(opened(source, split)) for split in SPLITS]
        assert found == [texts(0, 2) | texts(4, 5), texts(2, 3), texts(3, 4)]


@pytest.mark.parametrize("text", ["", "Flickr8k_text"])
def test_flickr8k_as_it_is_handed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    names = write_images(tmp_path / "Flicker8k_Dataset", 8, "1 #0{}_b.png")
    lines = [f'{name}#{k}\t{word}, "dog, {i}' for i, name in enumerate(names) for k, word in enumerate("ab")]
    (tmp_path / text).mkdir(exist_ok=True)
    for file in ("Flickr8k.token.txt", "Flickr8k.lemma.token.txt"):
        (tmp_path / text / file).write_text("\n".join(lines if "lemma" not in file else ["x#0\tx"]) + "\n")
    (tmp_path / text / "ExpertAnnotations.txt").write_text("a\tb\t1\t2\t3\n")
    captions = {i: [f'a, "dog, {i}', f'b, "dog, {i}'] for i in range(8)}
    assert everything(tmp_path) == everything(tmp_path / text / "Flickr8k.token.txt") == captions
    assert "its images are those in Flicker8k_Dataset/" in caplog.text
    for name, of in (("train", names[:4]), ("dev", names[4:6]), ("test", names[6:7])):
        (tmp_path / text / f"Flickr_8k.{name}Images.txt").write_text("\n".join(of) + "\n")
    found = [contents(opened(tmp_path, split)) for split in SPLITS]
    assert found == [{i: captions[i] for i in part} for part in (range(4), range(4, 6), [6])]
    assert "2 captions are of images in none of its lists of splits" in caplog.text


def test_flickr_s_tables(tmp_path: Path) -> None:
    names = write_images(tmp_path / "k" / "Images", 4)
    write_csv(tmp_path / "k" / "captions.txt", [("image", "caption"), *((n, f"text {i}") for i, n in enumerate(names))])
    assert everything(tmp_path / "k") == everything(tmp_path / "k" / "captions.txt") == texts(0, 4)
    write_images(tmp_path / "flickr30k" / "flickr30k_images" / "flickr30k_images", 4)
    rows = "".join(f"{i}.png| {k}| {word} , dog {i}\n" for i in range(4) for k, word in enumerate("ab"))
    rows = rows.replace("2.png| 1| b", "2.png| 1   b")  # as one line of it is
    file = tmp_path / "flickr30k" / "results.csv"
    file.write_text("image_name| comment_number| comment\n" + rows)
    assert (
        everything(file)
        == everything(tmp_path / "flickr30k")
        == {i: [f"a , dog {i}", f"b , dog {i}"] for i in range(4)}
    )
    file.unlink()
    token = tmp_path / "flickr30k" / "results_20130124.token"
    token.write_text("".join(f"{i}.png#0\ttext {i}\n" for i in range(4)))
    assert everything(token) == everything(tmp_path / "flickr30k") == texts(0, 4)


def test_tars_beside_images_with_texts_are_refused(tmp_path: Path) -> None:
    """The tars alone were read."""
    write_beside(tmp_path, 0, 5)
    write_tar(tmp_path / "backup.tar", samples(0, 3))
    refused(r"holds tars \(backup\.tar\) and images with texts beside them; name the tars", tmp_path)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    assert len(everything(tmp_path)) == 3  # some images to look at


def test_names_without_endings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in HAM10000 and many another table of ids."""
    for i in range(6):
        write_image(tmp_path / f"part_{i % 2}" / f"ISIC.{i}.png", i)
    (tmp_path / "part_0" / "ISIC.0.xml").touch()
    source = write_csv(tmp_path / "l.csv", [("image_id", "text"), *((f"ISIC.{i}", f"text {i}") for i in range(6))])
    assert everything(source, image_column="image_id") == texts(0, 6)
    assert "l.csv: its images are those in part_0/, part_1/, by names without endings" in caplog.text
    write_image(tmp_path / "part_0" / "ISIC.0.jpg", 0)
    refused(r"l\.csv: ISIC\.0 is part_0/ISIC\.0\.jpg or part_0/ISIC\.0\.png", source, image_column="image_id")
    source = write_csv(
        tmp_path / "part_1" / "l.csv", [("id", "text"), *((f"ISIC.{i}", f"text {i}") for i in (1, 3, 5))]
    )
    assert everything(source, image_column="id") == {i: [f"text {i}"] for i in (1, 3, 5)}
    assert "its images are those in its folder, by names" in caplog.text


def test_captions_without_a_letter_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where a detector's boxes lie beside the images."""
    write_beside(tmp_path, 0, 5)
    whole(tmp_path)
    assert "letter" not in caplog.text
    (tmp_path / "3.txt").write_text("0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.1 0.1\n")
    whole(tmp_path)
    assert f"{tmp_path}: 2 captions hold no letter, the first 3.txt: '0 0.5 0.5 0.1 0.1'" in caplog.text


def test_images_in_the_tables_of_two_splits_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_images(tmp_path, 8)
    for split, own in (("train", names[:5]), ("test", [f"./{n}" for n in names[5:]])):
        write_csv(tmp_path / f"{split}.csv", [("file_name", "text"), *((n, "a") for n in own), ("", "b")])
    opened(tmp_path, "test", max_bad_fraction=1)
    assert "both" not in caplog.text
    write_csv(tmp_path / "test.csv", [("file_name", "text"), *((n, "a") for n in names[3:])])
    opened(tmp_path, "test", max_bad_fraction=1)
    assert f"{tmp_path}: 2 images are both in test and in train, e.g. {tmp_path / '3.png'}" in caplog.text


def test_images_below_the_folder_of_their_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(6):
        write_image(tmp_path / "photos" / ("train", "test")[i > 3] / f"{i}.png", i)
    rows = [("file_name", "text"), *((f"{i}.png", f"text {i}") for i in range(6))]
    source = write_csv(tmp_path / "l.csv", rows)
    found = [contents(opened(source, split)) for split in SPLITS]
    assert found[0] | found[1] == texts(0, 4) and found[2] == texts(4, 6)
    assert "l.csv: its images are those in photos/test/, photos/train/" in caplog.text
    write_image(tmp_path / "thumbs" / "3.png", 3)
    refused(r"l\.csv: 3\.png is photos/train/3\.png or thumbs/3\.png; write the folder", source)
    for n, split in enumerate(("train", "test")):  # the same names, and tables that say whose
        write_csv(tmp_path / "own" / f"{split}.csv", rows[:4])
        for i in range(3):
            write_image(tmp_path / "own" / "photos" / f"{split}2017" / f"{i}.png", 10 * n + i)
    assert contents(opened(tmp_path / "own", "test")) == {10 + i: [f"text {i}"] for i in range(3)}
    write_csv(tmp_path / "l.csv", [rows[0], *((f"train\\{n}", t) for n, t in rows[1:5]), (r"test\4.png", "text 4")])
    assert contents(opened(source, "test")) == texts(4, 5)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("https://example.org/0.jpg", r"holds addresses \(https://example\.org/0\.jpg\); .* img2dataset"),
        ("s3://bucket/0.jpg", "holds addresses"),
        (r"C:\photos\0.jpg", r"holds paths of a Windows machine \(C:"),
        ("D:/photos/0.jpg", "holds paths of a Windows machine"),
        ("data:image/png;base64," + "iVBORw0KGgo" * 9, "holds images as text"),
        (base64.b64encode(png(0)).decode(), "holds images as text"),
        (base64.b64encode(b"\xff\xd8\xff" + png(0)).decode(), "holds images as text"),
    ],
)
def test_image_columns_that_name_no_files(tmp_path: Path, cell: str, message: str) -> None:
    write_image(tmp_path / "1.png", 1)
    rows = [("file_name", "text"), ("1.png", "a"), (cell, "b")]
    refused(rf"l\.csv, l\.csv line 3: column 'file_name' {message}", write_csv(tmp_path / "l.csv", rows))
    write_parquet(tmp_path / "p" / "x.parquet", {"url": ["", cell], "text": ["a", "b"]})
    refused(rf"row 1: column 'url' {message}", tmp_path / "p")


def test_tables_that_are_packed_or_lack_a_header(tmp_path: Path) -> None:
    for name in ("l.csv.gz", "l.tsv.gz", "l.zip"):
        (tmp_path / name).write_bytes(b"x")
        refused(rf"{name} is compressed; unpack it", tmp_path / name)
    write_image(tmp_path / "folder" / "0.png", 0)
    for name in ("captions.csv.gz", "pairs.json"):
        (tmp_path / "folder" / name).write_bytes(b"x")
    refused(r"of captions\.csv\.gz; pairs\.json one may be unpacked, or named as the source", tmp_path / "folder")
    (tmp_path / "l.tsv").write_text("a dog\thttps://example.org/1.jpg\n" * 2)
    refused(r"l\.tsv has no header, and addresses; .* img2dataset", tmp_path / "l.tsv")
    write_csv(tmp_path / "l.csv", [("1.png", "a dog"), ("2.png", "a cat")])
    refused(r"l\.csv: its first line is no header \(1\.png, a dog\); write", tmp_path / "l.csv")


# ---- the Hub; what is not there


def test_a_hub_name_with_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def fake(*what: Any, **options: Any) -> Any:
        asked.append((what, options))
        if what[1] == "off":
            raise ConnectionError("Couldn't reach the Hub")
        if what[1] == "fll":
            raise ValueError("BuilderConfig 'fll' not found. Available: ['full', 'small']")
        columns = {"image": cells(3), "text": [f"text {i}" for i in range(3)]}
        return datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns)})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert contents(opened("user/set", "test", name="full", revision="v1.2")) == texts(0, 3)
    assert asked == [(("user/set", "full"), {"revision": "v1.2"})]
    near = r"'fll' not found.*data\.name picks a configuration; did you mean full\? \(data\.revision=v1\.2\)$"
    refused(near, "user/set", "test", name="fll", revision="v1.2")
    refused(r"user/set: .* the Hub was not reached .* local copy", "user/set", name="off", error=FileNotFoundError)


def test_sources_that_cannot_be_used_say_what_was_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": n.replace("images", "image"), "text": "t"} for n in write_images(tmp_path, 30, "images/{}.png")]
    write_jsonl(tmp_path / "captions.jsonl", rows)
    write_images(tmp_path / "p", 3)
    for folder in ("e", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "train.parquet").write_text("junk")
    for name in ("a.csv", "b.csv", "c.jsonl"):
        write_csv(tmp_path / "two" / name, [("image", "caption"), ("0.png", "t")])
    for source, message in {
        "p": r"3 images, but nothing .* metadata\.jsonl \(\.csv, \.tsv, \.json\), .* beside each \(0\.txt\), for tars",
        "e": r"^e: no metadata\.jsonl \(\.csv, \.tsv, \.json\), no tars, no images with text files beside them, and ",
        "broken": "nothing the `datasets` library can read",
        "two": r"several tables: a\.csv, b\.csv, c\.jsonl; name one",
        "two/*.csv": r"fits 2 files \(\.csv\); .* data\.source can be a list of tables",
    }.items():
        refused(message, source)
    absent = ("./none", "none.csv", "some/folder/none", f"{tmp_path}/none")
    for source, message in {
        **dict.fromkeys(absent, r"no such file or folder [^;]*$"),
        "caption.jsonl": r"; did you mean captions\.jsonl\?$",
        "./Captions.jsonl": r"; did you mean captions\.jsonl\?$",
        f"{tmp_path}/captions.json": rf"; did you mean {tmp_path}/captions\.jsonl\?$",
        f"{tmp_path}/imgaes/below/x.csv": rf"; did you mean {tmp_path}/images\?$",
        "captions.jsonl": rf"0\.png \(captions\.jsonl line 1\) was not .*; did you mean {tmp_path}/images\?$",
    }.items():
        refused(message, source, error=FileNotFoundError)


# ---- several sources


def test_a_list_is_one_source_after_the_other(tmp_path: Path) -> None:
    """A CSV file, a folder and a tar; the folder alone has a test split."""
    rows = [(n, f"text {i}") for i, n in enumerate(write_images(tmp_path / "csv", 10))]
    write_beside(tmp_path / "folder" / "train", 100, 130)
    write_beside(tmp_path / "folder" / "test", 200, 203)
    sources = [
        write_csv(tmp_path / "csv" / "l.csv", [("image", "caption"), *rows]),
        str(tmp_path / "folder"),
        write_tar(tmp_path / "t.tar", samples(300, 340)),
    ]
    found = {}
    for split in SPLITS:
        source = opened(sources, split, mixing=[0.2, 0.3, 0.5])
        assert isinstance(source, Concat)
        alone = [opened(one, split) for one in sources]
        assert source.sizes == [len(one) for one in alone] and len(source) == sum(source.sizes)
        seen = numbers(source)
        assert seen == [number for one in alone for number in numbers(one)]
        assert contents(source) == {i: [f"text {i}"] for i in seen}
        found[split] = seen
    # each sets aside its own 5%, and one keeps the test split that it has
    assert {s: len(v) for s, v in found.items()} == {"train": 8 + 28 + 36, "validation": 1 + 2 + 2, "test": 1 + 3 + 2}
    assert {i for i in found["test"] if 200 <= i < 300} == {200, 201, 202}
    every = [*range(10), *range(100, 130), *range(200, 203), *range(300, 340)]
    assert sorted(i for seen in found.values() for i in seen) == every
    one = opened([str(write_beside(tmp_path / "set" / "test", 0, 3).parent)], "test")
    assert isinstance(one, Pairs) and contents(one) == texts(0, 3)  # a list of one is that source


def test_names_and_columns_of_several(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        names = write_images(tmp_path / str(n), 3)
        rows = [{"image": f, "text": "t", "w": 10 * n + i, "split": "test"} for i, f in enumerate(names)]
        paths.append(write_jsonl(tmp_path / str(n) / "l.jsonl", rows))
    source = opened(paths, "test")
    assert source.name(4) == f"{paths[1]}: 1.png (l.jsonl line 2)"
    assert source.column("w") == [0, 1, 2, 10, 11, 12]
    assert Subset(source, [5, 0]).column("w") == [12, 0]
    (tmp_path / "1" / "1.png").unlink()
    with pytest.raises(BadImage, match=r"1/l\.jsonl: 1\.png \(l\.jsonl line 2\)"):
        source.image(4)
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"image {index} of 6"):
            source.image(index)
    write_jsonl(tmp_path / "1" / "l.jsonl", [{"image": "0.png", "text": "t", "split": "test"}])
    with pytest.raises(ValueError, match=r"1/l\.jsonl has no column w"):
        opened(paths, "test").column("w")


# ---- the fingerprint


def later(path: Path) -> None:
    """As if written one nanosecond later, with the same size."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def grown(path: Path) -> None:
    """Another size, at the same time."""
    state = path.stat()
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def make(to: Path, kind: str) -> str:
    if kind == "csv":
        rows = [(n, f"text {i}", "test") for i, n in enumerate(write_images(to, 4))]
        return write_csv(to / "l.csv", [("image", "caption", "split"), *rows])
    if kind == "folder":
        return str(write_beside(to / "test", 0, 4).parent)
    return write_tar(to / "test.tar", samples(0, 4)) if kind == "tar" else write_shard(to / "test.parquet", 0, 4)


CHANGES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("csv", "l.csv", later),
    ("csv", "2.png", later),
    ("csv", "2.png", grown),
    ("csv", "2.png", Path.unlink),
    ("folder", "test/2.png", later),
    ("folder", "test/2.txt", lambda path: path.write_text("text 7\n")),
    ("folder", "test", lambda path: write_beside(path, 4, 5)),
    ("tar", "test.tar", later),
    ("parquet", "test.parquet", lambda path: write_shard(path, 0, 5)),
    ("parquet", "test.parquet", lambda path: os.utime(path, (1, 1))),
]
KINDS = ("csv", "folder", "tar", "parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_is_of_what_is_read(tmp_path: Path, kind: str) -> None:
    source = make(tmp_path / "one", kind)
    first = opened(source, "test").fingerprint()
    (tmp_path / "one" / "notes.md").write_text("of no matter")
    assert opened(source, "test").fingerprint() == first
    larger = open_source(DataConfig(source=source), "test", image_size=128)
    assert larger.fingerprint() != first  # a large JPEG is decoded to another size
    found = {Subset(larger, rows).fingerprint() for rows in ([0, 1], [1, 0], [0], range(4))} | {larger.fingerprint()}
    assert len(found) == 5
    twin = make(tmp_path / "twin", kind)
    both = [opened(pair, "test").fingerprint() for pair in ([source, twin], [twin, source])]
    assert len({*both, first}) == 3
    for file, change in [(file, change) for its, file, change in CHANGES if its == kind]:
        before = opened(source, "test").fingerprint()
        change(tmp_path / "one" / file)
        assert opened(source, "test").fingerprint() != before


def test_the_fingerprint_of_splits_captions_and_scenes(tmp_path: Path) -> None:
    rows = [{"image": n, "a": f"a{n}", "b": f"b{n}"} for n in write_images(tmp_path, 60)]
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    parts = [opened(source, s, caption_column=c) for c in ("a", "b", ["a", "b"]) for s in SPLITS]
    assert len({part.fingerprint() for part in parts}) == 9
    equal = write_tar(tmp_path / "t.tar", [(key, {"png": f["png"], "txt": b"t"}) for key, f in samples(0, 40)])
    assert opened(equal, "validation").fingerprint() != opened(equal, "test").fingerprint()  # two of each
    made = [SceneSource("train", 5), SceneSource("test", 5), SceneSource("train", 6), SceneSource("train", 5, seed=1)]
    made += [SceneSource("train", 5, image_size=32), SceneSource("train", 5, captions_per_image=2)]
    assert len({source.fingerprint() for source in made}) == 6
    assert SceneSource("train", 5).fingerprint() == made[0].fingerprint()


def test_the_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    sources = [make(tmp_path / kind, kind) for kind in KINDS]
    code = (
        "import sys, json; from miniclip.config import DataConfig; from miniclip.data.captioned import open_source;"
        "print(json.dumps([open_source(DataConfig(source=s), 'test').fingerprint() for s in sys.argv[1:]]))"
    )
    run = subprocess.run([sys.executable, "-c", code, *sources], env=os.environ | {"PYTHONHASHSEED": "7"}, stdout=-1)
    assert json.loads(run.stdout) == [opened(source, "test").fingerprint() for source in sources]


def test_the_fingerprint_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(n, "t", "test") for n in write_images(tmp_path, 20)]
    source = opened(write_csv(tmp_path / "l.csv", [("image", "caption", "split"), *rows]), "test")
    monkeypatch.setattr("miniclip.data.tables.image_column.decode_image", lambda *a, **k: pytest.fail("decoded"))
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("opened"))
    monkeypatch.setattr(Path, "open", lambda *a, **k: pytest.fail("opened"))
    assert source.fingerprint()


def other_text(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"text 2", b"text 7"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_elsewhere_has_the_same_contents(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cp, which sets new times; by a path from elsewhere; and not if anything that is trained on is another."""
    source = Path(make(tmp_path / "one" / "data", kind))
    first = compared(opened(source, "test"))
    assert first["images"] == 4
    monkeypatch.chdir(source.parent)
    assert compared(opened(source.name, "test")) == compared(opened(str(source), "test")) == first

    def copied(name: str) -> Path:
        shutil.copytree(tmp_path / "one" / "data", tmp_path / name / "data", copy_function=shutil.copyfile)
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (1, 1))
        return tmp_path / name / "data" / source.relative_to(tmp_path / "one" / "data")

    assert compared(opened(copied("two"), "test")) == first
    larger, four = [*cells(3), {"bytes": png(3, (90, 90)), "path": "3.png"}], [f"text {i}" for i in range(4)]
    changes = {
        "csv": [("l.csv", other_text, "captions"), ("2.png", grown, "files")],
        "folder": [("test/2.txt", other_text, "captions"), ("test", lambda p: write_beside(p, 4, 5), "images")],
        "tar": [("test.tar", other_text, "captions"), ("test.tar", lambda p: write_tar(p, samples(0, 3)), "images")],
        "parquet": [
            ("test.parquet", lambda path: write_shard(path, 0, 5), "images"),
            ("test.parquet", lambda path: write_shard(path, 1, 5), "captions"),
            ("test.parquet", lambda path: write_parquet(path, {"image": larger, "caption": four}), "files"),
        ],
    }[kind]
    for k, (name, change, key) in enumerate(changes):
        place = copied(f"changed{k}")
        change(tmp_path / f"changed{k}" / "data" / name)
        assert compared(opened(place, "test"))[key] != first[key]
