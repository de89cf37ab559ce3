"""What data.source may name besides tars: Parquet files, patterns, images with texts beside them, the Hub; errors."""

from __future__ import annotations

import shutil
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
from support.opened import SPLITS, contents, everything, opened, refused, texts, whole

from miniclip.common.printing import near_name
from miniclip.data.captioned import NoCaptions
from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.tables.hub import is_hub
from miniclip.data.tables.kinds import find_shards, read_tables
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.source import braces, by_split


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


def test_parquet_files_and_patterns(tmp_path: Path) -> None:
    for n in range(3):
        write_shard(tmp_path / "a" / f"{n:04d}.parquet", 4 * n, 4 * n + 4)
    assert everything(tmp_path / "a" / "0001.parquet") == texts(4, 8)
    for source in ("a/*.parquet", "**/*.parquet", "a/{0000..0002}.parquet", "a/000[012].parquet", "a"):
        assert everything(tmp_path / source) == texts(0, 12), source
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "train")
    write_shard(tmp_path / "b" / "test" / "0000.parquet", 20, 23)
    assert contents(opened(tmp_path / "b/**/*.parquet", "test")) == texts(20, 23)
    write_shard(tmp_path / "c" / "extra-00000-of-00001.parquet", 5, 9)
    write_shard(tmp_path / "c" / "train-00000-of-00001.parquet", 0, 4)
    assert {s: len(t) for s, t in read_tables(str(tmp_path / "c" / "*")).items()} == {"extra": 4, "train": 4}
    assert contents(opened(tmp_path / "c" / "*", train_split="extra", test_split="train")).keys() <= set(range(5, 9))
    refused(r"data\.revision=main is for data sets of the Hub, .* leave it out", tmp_path / "a", revision="main")
    names = write_images(tmp_path, 4, "img/{}.png")  # paths are taken from the folder of the table
    write_parquet(tmp_path / "list.parquet", {"path": names, "text": [f"text {i}" for i in range(4)]})
    for source in ("list.parquet", "*.parquet", "{list,list}.parquet"):
        assert everything(tmp_path / source) == texts(0, 4)


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


def test_a_text_file_beside_each_image(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_beside(folder, 0, 4)
    write_beside(folder / "deep" / "er", 4, 8)
    write_beside(folder / ".trash", 8, 10)
    (folder / "2.txt").write_bytes("\ufeffein Hündchen \r\n\r\n a dog\n".encode())
    (folder / "README.txt").write_text("no image is called so")
    (folder / ".hidden.png").write_bytes(b"")
    assert everything(folder) == {**texts(0, 8), 2: ["ein Hündchen", "a dog"]}
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
        "p": r"3 images, but nothing .* metadata\.jsonl \(\.csv, \.tsv\), .* beside each \(0\.txt\), for tars",
        "e": r"^e: no metadata\.jsonl \(\.csv, \.tsv\), no tars, no images with text files beside them, and nothing",
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
