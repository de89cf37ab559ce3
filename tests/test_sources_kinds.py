"""What data.source may name besides tars: Parquet files, patterns, pictures with texts beside them, the Hub; errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from test_sources import (  # noqa: F401
    cells,
    contents,
    everything,
    own_cache,
    pictures,
    png,
    write_csv,
    write_jsonl,
    write_parquet,
)
from test_sources_tars import samples, server, write_tar  # noqa: F401

from miniclip.config import DataConfig
from miniclip.data.bad_images import TooManyBad
from miniclip.data.captioned import NoCaptions, PairSource, open_source
from miniclip.data.images import BadImage
from miniclip.data.tables.hub import is_hub
from miniclip.data.tables.kinds import read_tables
from miniclip.data.tables.parquet import ArrowTable
from miniclip.data.tables.source import braces, by_split, near_name


def shard(file: Path, first: int, last: int) -> None:
    texts = [f"text {i}" for i in range(first, last)]
    write_parquet(file, {"image": cells(last - first, first), "caption": texts})


def texts(first: int, last: int) -> dict[int, list[str]]:
    return {i: [f"text {i}"] for i in range(first, last)}


def opened(source: object, split: str = "train", **config: Any) -> PairSource:
    return open_source(DataConfig(source=str(source), **config), split)


# ---- patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [  # what bash makes of them
        ("a{08..11}.tar", ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]),
        ("{0..3}", ["0", "1", "2", "3"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{098..101}", ["098", "099", "100", "101"]),
        ("{a,b{1..2}}/{x,y}", ["a/x", "a/y", "b1/x", "b1/y", "b2/x", "b2/y"]),
        ("{a}{", ["{a}{"]),
        ("{a,{b", ["{a,{b"]),
    ],
)
def test_braces(pattern: str, expected: list[str]) -> None:
    assert braces(pattern) == expected


def test_braces_that_stand_for_too_many() -> None:
    for pattern in ("{0..1000000}", "{0..1999}{0..1999}"):
        with pytest.raises(ValueError, match="names"):
            braces(pattern)


@pytest.mark.parametrize(
    ("pattern", "file", "split"),
    [
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
    ],
)
def test_the_split_of_a_file(pattern: str, file: str, split: str) -> None:
    assert by_split([file], pattern) == {split: [file]}


def test_near_names() -> None:
    assert near_name("Captoin", ["image", "Caption", "caption"]) == "Caption"
    assert near_name("IMAGE", ["image"]) == "image"
    assert near_name("xyz", ["image", "caption"]) is None


# ---- Parquet


def test_parquet_files_and_patterns(tmp_path: Path) -> None:
    for n in range(3):
        shard(tmp_path / "a" / f"{n:04d}.parquet", 4 * n, 4 * n + 4)
    assert everything(source=str(tmp_path / "a" / "0001.parquet")) == texts(4, 8)
    for source in ("a/*.parquet", "**/*.parquet", "a/{0000..0002}.parquet", "a/000[012].parquet", "a"):
        assert everything(source=str(tmp_path / source)) == texts(0, 12), source
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "train")
    (tmp_path / "b" / "test").mkdir()
    shard(tmp_path / "b" / "test" / "0000.parquet", 20, 23)
    assert contents(opened(tmp_path / "b/**/*.parquet", "test")) == texts(20, 23)
    shard(tmp_path / "c" / "extra-00000-of-00001.parquet", 5, 9)
    shard(tmp_path / "c" / "train-00000-of-00001.parquet", 0, 4)
    assert {s: len(t) for s, t in read_tables(str(tmp_path / "c" / "*")).items()} == {"extra": 4, "train": 4}
    assert contents(opened(tmp_path / "c" / "*", train_split="extra", test_split="train")).keys() <= set(range(5, 9))


def test_parquet_with_paths_takes_them_from_its_folder(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4, "img/{}.png")
    write_parquet(tmp_path / "list.parquet", {"path": names, "text": [f"text {i}" for i in range(4)]})
    for source in ("list.parquet", "*.parquet", "{list,list}.parquet"):
        assert everything(source=str(tmp_path / source)) == texts(0, 4)


def test_parquet_with_captions_in_a_struct(tmp_path: Path) -> None:
    inside = [{"caption": f"text {i}", "n": i} if i != 2 else None for i in range(4)]
    write_parquet(tmp_path / "test.parquet", {"jpg": [png(i) for i in range(4)], "json": inside})
    source = opened(tmp_path / "test.parquet", "test", max_bad_fraction=0.25)
    assert contents(source) == {i: [f"text {i}"] for i in (0, 1, 3)}
    assert source.column("json.n") == [0, 1, 3]
    with pytest.raises(
        ValueError, match=r"no column json\.capton .*, but jpg, json, json\.caption, json\.n; did you mean"
    ):
        opened(tmp_path / "test.parquet", "test", caption_column="json.capton")


def test_a_struct_that_is_null_has_no_fields() -> None:
    """Arrow keeps values below a null; they are not there."""
    import datasets
    import pyarrow as pa

    inside = pa.StructArray.from_arrays([pa.array(["a", "b"])], ["caption"], mask=pa.array([False, True]))
    table = ArrowTable(datasets.Dataset(pa.table({"json": inside})), "train", "x", ())
    assert list(table.values("json.caption")) == ["a", None]


def test_parquet_behind_a_url(tmp_path: Path, server: str) -> None:  # noqa: F811
    shard(tmp_path / "served" / "train.parquet", 0, 4)
    assert everything(source=f"{server}/train.parquet") == texts(0, 4)


# ---- folders of pictures, each with a text file


def beside(folder: Path, first: int, last: int) -> Path:
    for i in range(first, last):
        file = folder / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
        file.with_suffix(".txt").write_text(f"text {i}\n")
    return folder


def test_a_text_file_beside_each_picture(tmp_path: Path) -> None:
    beside(tmp_path, 0, 4)
    beside(tmp_path / "deep" / "er", 4, 8)
    (tmp_path / "2.txt").write_bytes("\ufeffein Hündchen \r\n\r\n a dog\n".encode())
    (tmp_path / "README.txt").write_text("no picture is called so")
    (tmp_path / ".hidden.png").write_bytes(b"")
    beside(tmp_path / ".trash", 8, 10)
    assert everything(source=str(tmp_path)) == {**texts(0, 8), 2: ["ein Hündchen", "a dog"]}
    source = opened(tmp_path, "test", train_split="x", test_split="train")
    assert source.name(6) == "deep/er/6.png (deep/er/6.txt)"
    assert source.column("file_name")[6] == "deep/er/6.png"


def test_text_files_in_folders_of_splits(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "Test")):
        beside(tmp_path / split / "x", 10 * n, 10 * n + n + 1)
    found = [contents(opened(tmp_path, split)) for split in ("train", "validation", "test")]
    assert found == [texts(0, 1), texts(10, 12), texts(20, 23)]
    beside(tmp_path, 50, 51)
    with pytest.raises(ValueError, match=r"folders of splits \(Test, train, val\) and outside of them, e\.g\. 50\.png"):
        opened(tmp_path)


def test_text_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    beside(tmp_path / "set" / "test", 0, 8)
    folder = tmp_path / "set" / "test"
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_bytes(b"\xff\xfe\xfd")
    (folder / "3.txt").write_text(" \n\n")
    (tmp_path / "secret.txt").write_text("password")
    (folder / "4.txt").unlink()
    (folder / "4.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.png").write_bytes(png(99))
    (folder / "5.png").unlink()
    (folder / "5.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(
        NoCaptions, match=r"4 of 8 .* 1\.txt: no text in column captions; 2\.txt: .*; 3\.txt: .*; 4\.txt: "
    ):
        opened(tmp_path / "set", "test")
    source = opened(tmp_path / "set", "test", max_bad_fraction=0.5)
    assert [source.captions(i) for i in range(4)] == [["text 0"], ["text 5"], ["text 6"], ["text 7"]]
    with pytest.raises(BadImage, match=r"5\.png \(5\.txt\): .* leads out of"):
        source.image(1)


def test_a_table_comes_before_text_files_and_these_before_parquet(tmp_path: Path) -> None:
    beside(tmp_path, 0, 4)
    write_parquet(tmp_path / "index.parquet", {"url": ["a"] * 4, "caption": ["no"] * 4})  # as img2dataset writes it
    assert everything(source=str(tmp_path)) == texts(0, 4)
    write_csv(tmp_path / "metadata.csv", [("file_name", "text"), *((f"{i}.png", f"row {i}") for i in range(4))])
    assert everything(source=str(tmp_path)) == {i: [f"row {i}"] for i in range(4)}
    write_tar(tmp_path / "shards" / "00000.tar", samples(0, 4))
    write_parquet(tmp_path / "shards" / "00000.parquet", {"url": ["a"] * 4, "caption": ["no"] * 4})
    assert everything(source=str(tmp_path / "shards")) == texts(0, 4)


def test_folders_with_nothing_to_use_say_what_was_sought(tmp_path: Path) -> None:
    pictures(tmp_path / "p", 3)
    sought = r"3 images, but nothing .* metadata\.jsonl \(\.csv, \.tsv\), .* text file beside each \(0\.txt\), for tars"
    with pytest.raises(ValueError, match=sought):
        opened(tmp_path / "p")
    (tmp_path / "e").mkdir()
    with pytest.raises(
        ValueError, match=r"/e: no metadata\.jsonl \(\.csv, \.tsv\), no tars, no images with text files"
    ):
        opened(tmp_path / "e")


# ---- the Hub


def test_a_hub_name_with_configuration_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def fake(*what: Any, **options: Any) -> Any:
        asked.append((what, options))
        if what[1] == "fll":
            raise ValueError("BuilderConfig 'fll' not found. Available: ['full', 'small']")
        columns = {"image": cells(3), "text": [f"text {i}" for i in range(3)]}
        return datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns)})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert contents(opened("user/set", "test", name="full", revision="v1.2")) == texts(0, 3)
    assert asked == [(("user/set", "full"), {"revision": "v1.2"})]
    with pytest.raises(
        ValueError, match=r"'fll' not found.*data\.name picks a configuration; did you mean full\? \(data\.r"
    ):
        opened("user/set", "test", name="fll", revision="v1.2")


def test_a_revision_is_of_the_hub_alone(tmp_path: Path) -> None:
    shard(tmp_path / "test.parquet", 0, 3)
    with pytest.raises(ValueError, match=r"data\.revision=main is for data sets of the Hub, .* leave it out"):
        opened(tmp_path / "test.parquet", "test", revision="main")


@pytest.mark.parametrize(
    ("source", "hub"),
    [("user/set", True), ("cifar10", True), ("./set", False), ("set.csv", False), ("a/b.tar", False), ("a/b/c", False)],
)
def test_what_may_be_a_hub_name(source: str, hub: bool) -> None:
    assert is_hub(source) == hub


# ---- the nearest name


def test_the_nearest_column(tmp_path: Path) -> None:
    rows = [{"image": n, "Caption": "t", "extra": 1} for n in pictures(tmp_path, 3)]
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    with pytest.raises(
        ValueError,
        match=r"l\.jsonl has no column captoin \(data\.caption_column\), but image, Caption, extra; did you mean "
        r"Caption\?$",
    ):
        opened(source, caption_column="captoin")
    with pytest.raises(ValueError, match=r"no column imgae \(data\.image_column\), .*; did you mean image\?$"):
        opened(source, image_column="imgae")


def test_the_nearest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"image": n.replace("pictures", "picture"), "text": "t"} for n in pictures(tmp_path, 30, "pictures/{}.png")]
    write_jsonl(tmp_path / "captions.jsonl", rows)
    for source in ("caption.jsonl", str(tmp_path / "captions.json"), "./Captions.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"no such file or folder .*; did you mean .*captions\.jsonl\?$"):
            opened(source)
    with pytest.raises(FileNotFoundError, match=rf"did you mean {tmp_path}/pictures\?$"):
        opened(tmp_path / "pcitures" / "below" / "x.csv")
    with pytest.raises(
        FileNotFoundError, match=rf"0\.png \(captions\.jsonl line 1\) was not .*; did you mean {tmp_path}/pictures\?"
    ):
        opened("captions.jsonl", "test", test_split="train", train_split="x")


def test_a_pattern_of_tables_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, [("image", "caption"), ("0.png", "t")])
    with pytest.raises(ValueError, match=r"fits 2 files \(\.csv\); .* data\.source can be a list of tables"):
        opened(tmp_path / "*.csv")


def test_jsonl_with_objects_in_a_column(tmp_path: Path) -> None:
    rows = [{"image": n, "meta": {"caption": f"text {i}"}} for i, n in enumerate(pictures(tmp_path, 4))]
    rows[2]["meta"] = None
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    assert everything(source=source, max_bad_fraction=0.25) == {i: [f"text {i}"] for i in (0, 1, 3)}
    with pytest.raises(TooManyBad, match=r"line 3: no text in column meta\.caption"):
        opened(source)
