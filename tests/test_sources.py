"""Captioned pictures from files, folders and Parquet: columns, splits, grouping, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from miniclip.config import DataConfig
from miniclip.data.bad_images import TooManyBad
from miniclip.data.captioned import NoCaptions, PairSource, open_source
from miniclip.data.images import BadImage
from miniclip.data.splits import OneImage, carve
from miniclip.data.subset import Subset
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.data.tables.csv_jsonl import read_file
from miniclip.data.tables.texts import TextLists


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path, count: int, name: str = "{}.png") -> list[str]:
    names = [name.format(i) for i in range(count)]
    for i, file in enumerate(names):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png(i))
    return names


def write_csv(file: Path, rows: Iterable[Sequence[str]], delimiter: str = ",") -> str:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return str(file)


def write_jsonl(file: Path, rows: Iterable[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def write_parquet(file: Path, columns: dict[str, list[Any]], **features: Any) -> None:
    from datasets import Dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_dict(columns)
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    data.to_parquet(str(file))


def cells(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(i), "path": f"{i}.png"} for i in range(first, first + count)]


def identity(source: PairSource, index: int) -> int:
    red, green, _ = source.image(index).getpixel((0, 0))
    return red + 256 * green


def contents(source: PairSource) -> dict[int, list[str]]:
    found = {identity(source, i): source.captions(i) for i in range(len(source))}
    assert len(found) == len(source)
    return found


def everything(**config: Any) -> dict[int, list[str]]:
    """All three splits of a source together, which must not overlap."""
    found: dict[int, list[str]] = {}
    for split in ("train", "validation", "test"):
        part = contents(open_source(DataConfig(**config), split))
        assert not found.keys() & part.keys()
        found |= part
    return found


# ---- forms


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [(".csv", ","), (".csv", "\t"), (".tsv", "\t"), (".csv", ";"), (".txt", "|")]
)
def test_delimited_files_whatever_the_delimiter(tmp_path: Path, suffix: str, delimiter: str) -> None:
    names = pictures(tmp_path, 4, "bilder/ä {} 図.png")
    texts = ["a dog, a cat; and\ta | bird", 'he said "hi",\nthen left', "plain", "ends, here"]
    source = write_csv(
        tmp_path / f"list{suffix}", [("filepath", "caption"), *zip(names, texts, strict=True)], delimiter
    )
    assert everything(source=source) == {i: [t] for i, t in enumerate(texts)}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    names = pictures(tmp_path, 3)
    lines = "\r\n".join(["image,caption", *(f"{n},text {n}" for n in names)])
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert everything(source=str(tmp_path / "list.csv")) == {i: [f"text {i}.png"] for i in range(3)}


def test_jsonl_with_a_split_column_and_a_list(tmp_path: Path) -> None:
    names = pictures(tmp_path, 6, "images/{}.png")
    roles = ["train", "train", "test", "validation", "train", "test"]
    rows = [{"file_name": n, "captions": [f"a{i}", f" b{i} "], "split": roles[i], "no": i} for i, n in enumerate(names)]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    for source in (str(tmp_path), str(tmp_path / "metadata.jsonl")):
        for role in ("train", "validation", "test"):
            found = contents(open_source(DataConfig(source=source), role))
            assert found == {i: [f"a{i}", f"b{i}"] for i in range(6) if roles[i] == role}


def test_imagefolder_with_a_folder_for_each_split(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        names = pictures(tmp_path / split, n + 2)
        write_csv(tmp_path / split / "metadata.csv", [("file_name", "text"), *((f, f"{split} {f}") for f in names)])
    sizes = {s: len(open_source(DataConfig(source=str(tmp_path)), s)) for s in ("train", "validation", "test")}
    assert sizes == {"train": 2, "validation": 3, "test": 4}
    assert open_source(DataConfig(source=str(tmp_path)), "validation").captions(1) == ["val 1.png"]


def test_parquet_folder_with_a_list_column_alone(tmp_path: Path) -> None:
    from datasets import Image as Picture

    for split, first, count in (("train", 0, 5), ("validation", 5, 2), ("test", 7, 3)):
        columns = {
            "image": cells(count, first),
            "captions": [[f"{i} a", f"{i} b"] for i in range(first, first + count)],
            "filename": [f"{i}.png" for i in range(first, first + count)],
        }
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", columns, image=Picture())
    found = contents(open_source(DataConfig(source=str(tmp_path)), "test"))
    assert found == {i: [f"{i} a", f"{i} b"] for i in (7, 8, 9)}
    assert everything(source=str(tmp_path)).keys() == set(range(10))
    source = open_source(DataConfig(source=str(tmp_path)), "train")
    assert source.name(3) == "3.png (train row 3)"
    copy = pickle.loads(pickle.dumps(source))  # what a spawned worker gets
    assert contents(copy) == contents(source)


def test_captions_are_read_without_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miniclip.data.tables import image_column as module

    write_parquet(tmp_path / "train.parquet", {"image": cells(5), "text": list("abcde")})
    monkeypatch.setattr(module, "decode_image", lambda *a, **k: pytest.fail("decoded"))
    source = open_source(DataConfig(source=str(tmp_path)), "train")
    assert {t for i in range(len(source)) for t in source.captions(i)} <= set("abcde")


def test_parquet_with_plain_bytes_or_with_paths(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "data.parquet", {"jpg": [png(i) for i in range(4)], "txt": list("wxyz")})
    assert everything(source=str(tmp_path / "a")) == {i: [t] for i, t in enumerate("wxyz")}
    names = pictures(tmp_path / "b", 4)
    write_parquet(tmp_path / "b" / "data.parquet", {"path": names, "txt": list("wxyz")})
    assert everything(source=str(tmp_path / "b")) == {i: [t] for i, t in enumerate("wxyz")}


def test_built_in_scenes() -> None:
    source = open_source(DataConfig(size=7), "train", image_size=32)
    assert len(source) == 7 and source.image(0).size == (32, 32) and source.captions(0)
    assert len(open_source(DataConfig(size=7), "test", eval_size=3, seed=1)) == 3


# ---- columns


def table(tmp_path: Path, **values: Any) -> Any:
    return read_file(Path(write_jsonl(tmp_path / "columns.jsonl", [values])))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "t"}, ["text"]),
        ({"Caption": "t", "title": "t"}, ["Caption"]),
        ({"sentences": ["t"], "ids": [1]}, ["sentences"]),
        ({f"caption_{i}": "t" for i in (10, 2, 0)}, ["caption_0", "caption_2", "caption_10"]),
        ({"text1": "t", "text2": "t", "title": "t"}, ["text1", "text2"]),
        ({"description": "t"}, ["description"]),
    ],
)
def test_caption_columns_are_found(tmp_path: Path, columns: dict[str, Any], expected: list[str]) -> None:
    assert caption_columns(table(tmp_path, image="a.png", **columns), None, "image") == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": "t", "text": "t"}, "caption, text could each be the caption column; set data.caption_column"),
        ({"caption": "t", "caption_0": "t"}, "caption_0, caption could each be"),
        ({"text_0": "t", "caption_0": "t"}, "text_0, caption_0 could each be"),
        ({"words": "t", "kind": "t"}, "no caption column was recognised; .* columns: image, words, kind"),
        ({"caption": 3}, "no caption column was recognised"),
    ],
)
def test_unclear_caption_columns_list_the_choice(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_columns(table(tmp_path, image="a.png", **columns), None, "image")


def test_image_column(tmp_path: Path) -> None:
    assert image_column(table(tmp_path, file_name="a", filename="b", text="t"), None) == "file_name"
    assert image_column(table(tmp_path, IMG="a", text="t"), None) == "IMG"
    with pytest.raises(ValueError, match=r"image, path could each be the image column; set data.image_column to one"):
        image_column(table(tmp_path, image="a", path="b", text="t"), None)
    with pytest.raises(ValueError, match="no image column was recognised"):
        image_column(table(tmp_path, text="t", x="a"), None)
    with pytest.raises(ValueError, match=r"has no column foto \(data.image_column\), but image, text"):
        image_column(table(tmp_path, image="a", text="t"), "foto")
    with pytest.raises(ValueError, match="image_column=image does not hold images or paths"):
        image_column(table(tmp_path, image=3, text="t"), "image")


def test_columns_that_are_named(tmp_path: Path) -> None:
    rows = [{"image": f, "a": f"a{f}", "b": [f"b{f}", "c"], "caption": "no", "n": 1} for f in pictures(tmp_path, 3)]
    source = write_jsonl(tmp_path / "x.jsonl", rows)
    assert everything(source=source, caption_column="a")[1] == ["a1.png"]
    assert everything(source=source, caption_column=["b", "a"])[1] == ["b1.png", "c", "a1.png"]
    for wanted, message in (
        ("z", "no column z"),
        (["a", "z"], "no column z"),
        ("n", "does not hold text"),
        ([], "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(DataConfig(source=source, caption_column=wanted), "train")


def test_a_column_of_values_goes_with_the_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its first row speaks for a picture; rows of other splits and rows left out are no part of it."""
    names = pictures(tmp_path, 6)
    roles = ["test", "train", "test", "test", "train", "test"]
    lines = [(names[i], f"{i} {k}", roles[i], f"{i}.{k}") for k in range(2) for i in (4, 2, 0, 1, 5, 3)]
    lines[1] = (names[2], "", "test", "2.0")  # the picture keeps its caption in the second row
    lines.insert(2, ("", "no picture", "test", "none"))
    csv_file = write_csv(tmp_path / "l.csv", [("image", "caption", "split", "value"), *lines])
    keys = ("image", "caption", "split", "value")
    jsonl = write_jsonl(tmp_path / "l.jsonl", [dict(zip(keys, line, strict=True)) for line in lines])
    columns = {key: [line[i] for line in lines if line[0]] for i, key in enumerate(keys)}
    columns["image"] = [png(int(name[0])) for name in columns["image"]]
    write_parquet(tmp_path / "p" / "test.parquet", columns)
    for source, expected in ((csv_file, [2, 0, 5, 3]), (jsonl, [2, 0, 5, 3]), (str(tmp_path / "p"), None)):
        with caplog.at_level(logging.WARNING):
            opened = open_source(DataConfig(source=source, max_bad_fraction=0.5), "test")
        values = opened.column("value")
        if expected is None:  # every row is a picture of its own; the one without a caption is gone
            assert values == [line[3] for line in lines if line[0] and line[1] and line[2] == "test"]
            continue
        assert values == [f"{i}.0" for i in expected]
        assert [identity(opened, i) for i in range(len(opened))] == expected
        some = Subset(opened, [3, 1])
        assert some.column("value") == ["3.0", "0.0"]
        assert [identity(some, i) for i in range(2)] == [3, 0]


def test_a_column_of_values_follows_a_carved_split(tmp_path: Path) -> None:
    rows = [{"image": name, "text": "t", "value": i} for i, name in enumerate(pictures(tmp_path, 60))]
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    for split in ("train", "validation", "test"):
        opened = open_source(DataConfig(source=source), split)
        assert opened.column("value") == [identity(opened, i) for i in range(len(opened))]


def test_columns_that_hold_no_values(tmp_path: Path) -> None:
    columns = {"image": cells(2), "text": ["a", "b"], "words": [["a"], ["b"]], "value": [1.5, None]}
    write_parquet(tmp_path / "p" / "test.parquet", columns)
    opened = open_source(DataConfig(source=str(tmp_path / "p"), caption_column="text"), "test")
    assert opened.column("value") == [1.5, None]
    assert opened.column("text") == ["a", "b"]
    with pytest.raises(
        ValueError, match=r"\(test\) has no column kind \(data\.weight_column\), but image, text, words, value$"
    ):
        opened.column("kind")
    for wanted in ("image", "words"):
        with pytest.raises(
            ValueError,
            match=rf"data\.weight_column={wanted} does not hold numbers or classes; the columns are image, t",
        ):
            opened.column(wanted)
    with pytest.raises(ValueError, match=r"built-in scenes have no column kind; data\.weights needs a source of your"):
        open_source(DataConfig(size=3), "train").column("kind")


# ---- one picture, several rows; splits


def test_rows_with_the_same_path_are_one_picture(tmp_path: Path) -> None:
    names = pictures(tmp_path, 5)
    rows = [(n if k else f"./{n}", f"{i}.{k}") for k in range(3) for i, n in enumerate(names)]
    source = write_csv(tmp_path / "list.csv", [("image", "caption"), *rows])
    assert everything(source=source) == {i: [f"{i}.{k}" for k in range(3)] for i in range(5)}


def test_carving_is_the_same_every_time_and_by_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = pictures(tmp_path, 100)
    rows = [(n, f"{n} {k}") for n in names for k in range(2)]
    source = write_csv(tmp_path / "list.csv", [("image", "caption"), *rows])
    with caplog.at_level(logging.WARNING):
        first = {s: contents(open_source(DataConfig(source=source), s)) for s in ("train", "validation", "test")}
    assert [len(first[s]) for s in ("train", "validation", "test")] == [90, 5, 5]
    assert "no split for validation or test" in caplog.text and "90 are left for train" in caplog.text
    assert all(len(captions) == 2 for part in first.values() for captions in part.values())
    write_csv(tmp_path / "list.csv", [("image", "caption"), *reversed(rows)])  # the order of rows is of no matter
    for split, part in first.items():
        assert contents(open_source(DataConfig(source=source), split)).keys() == part.keys()
    assert everything(source=source).keys() == set(range(100))


def test_carve_by_hand() -> None:
    keys = [f"k{i // 2}" for i in range(80)]  # 40 pictures, two rows each
    pieces = carve(keys, ["test"])
    assert len(pieces["test"]) == 4 and len(pieces["train"]) == 76
    assert not {keys[i] for i in pieces["test"]} & {keys[i] for i in pieces["train"]}
    assert {r: len(p) for r, p in carve(list("abc"), ["validation", "test"]).items()} == {
        "validation": 1,
        "test": 1,
        "train": 1,
    }
    assert len(carve([str(i) for i in range(120_000)], ["test"])["test"]) == 5000
    with pytest.raises(ValueError, match="2 images are too few"):
        carve(["a", "b", "a"], ["validation", "test"])
    with pytest.raises(OneImage, match="all 3 images are the same"):
        carve(["a", "a", "a"], ["test"])


def test_carving_keeps_equal_bytes_together(tmp_path: Path) -> None:
    # One caption a row, the picture repeated, every path the same: only the contents tell.
    columns = {
        "image": [{"bytes": png(i % 30), "path": "image.png"} for i in range(90)],
        "caption": [f"c{i}" for i in range(90)],
    }
    write_parquet(tmp_path / "train.parquet", columns)
    seen = []
    for split in ("train", "validation", "test"):
        source = open_source(DataConfig(source=str(tmp_path)), split)
        seen.append({identity(source, i) for i in range(len(source))})
    assert [len(s) for s in seen] == [26, 2, 2] and len(set.union(*seen)) == 30


def split_table(tmp_path: Path, splits: Sequence[str]) -> str:
    names = pictures(tmp_path, 10 * len(splits))
    rows = [{"image": f, "text": f, "split": splits[i % len(splits)]} for i, f in enumerate(names)]
    return write_jsonl(tmp_path / "x.jsonl", rows)


@pytest.mark.parametrize(
    ("have", "config", "sizes"),
    [
        (["train", "test"], {}, (9, 1, 10)),  # validation is carved off train, test is left alone
        (["train", "validation"], {}, (9, 10, 1)),
        (["train", "val", "test"], {}, (10, 10, 10)),
        (["train", "restval", "val", "test"], {"train_split": "restval"}, (10, 10, 10)),
        (["all"], {}, (8, 1, 1)),
        (["train", "dev", "x"], {"test_split": "x"}, (10, 10, 10)),
        (["test"], {"train_split": "test"}, (8, 1, 1)),
        (["train", "test"], {"validation_split": "test"}, (10, 10, 10)),
    ],
)
def test_splits_that_are_there_and_those_that_are_not(
    tmp_path: Path, have: list[str], config: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    source = split_table(tmp_path, have)
    parts = [contents(open_source(DataConfig(source=source, **config), s)) for s in ("train", "validation", "test")]
    assert tuple(map(len, parts)) == sizes
    assert not parts[0].keys() & (parts[1].keys() | parts[2].keys())


@pytest.mark.parametrize(
    ("have", "config", "role", "message"),
    [
        (
            ["train", "test"],
            {"test_split": "tset"},
            "test",
            r"no split 'tset' \(did you mean test\?\), but train, test",
        ),
        (["train", "test"], {"validation_split": "dev"}, "train", "no split 'dev'"),
        (["a", "b"], {}, "train", "has no split 'train'; it has a, b; set data.train_split"),
        (["test"], {}, "train", "has no split 'train'"),
        (["train", "test"], {"test_split": "train"}, "test", "both name 'train'"),
    ],
)
def test_splits_that_cannot_be(
    tmp_path: Path, have: list[str], config: dict[str, Any], role: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source=split_table(tmp_path, have), **config), role)


def test_a_picture_in_two_splits_and_a_row_in_none(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    rows = [{"image": "0.png", "text": "a", "split": "train"}, {"image": "./0.png", "text": "b", "split": "test"}]
    with pytest.raises(ValueError, match=r"\./0\.png \(x\.jsonl line 2\) is in split 'test' and in 'train'"):
        open_source(DataConfig(source=write_jsonl(tmp_path / "x.jsonl", rows)), "train")
    rows[1]["split"] = ""
    with pytest.raises(ValueError, match=r"line 2: column 'split' is empty"):
        open_source(DataConfig(source=write_jsonl(tmp_path / "x.jsonl", rows)), "train")


# ---- what is refused


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "a/../../secret.png"])
def test_paths_that_leave_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    names = pictures(tmp_path / "set", 3)
    rows = [("image", "caption"), *((n, "t") for n in names), (path, "t")]
    with pytest.raises(ValueError, match=r"line 5: .* leads out of"):
        open_source(DataConfig(source=write_csv(tmp_path / "set" / "l.csv", rows)), "train")
    write_parquet(tmp_path / "p" / "x.parquet", {"path": [path] * 5, "text": ["t"] * 5})
    with pytest.raises(ValueError, match=r"row 0: .* leads out of"):
        open_source(DataConfig(source=str(tmp_path / "p")), "train")


def test_links_that_leave_and_cells_that_name_files(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    names = pictures(tmp_path / "set", 3)
    (tmp_path / "set" / "1.png").unlink()
    (tmp_path / "set" / "1.png").symlink_to(tmp_path / "secret.png")
    rows = [{"image": n, "text": "t", "split": "train" if n != "2.png" else "test"} for n in names]
    source = open_source(
        DataConfig(source=write_jsonl(tmp_path / "set" / "l.jsonl", rows), validation_split="test"), "train"
    )
    assert identity(source, 0) == 0
    with pytest.raises(BadImage, match=r"1\.png \(l\.jsonl line 2\): .* leads out of"):
        source.image(1)
    outside = {"bytes": None, "path": str(tmp_path / "secret.png")}
    write_parquet(tmp_path / "p" / "test.parquet", {"image": [outside, *cells(1)], "text": ["t", "u"]})
    source = open_source(DataConfig(source=str(tmp_path / "p")), "test")
    with pytest.raises(BadImage, match="leads out of"):
        source.image(0)


def test_corrupt_and_missing_pictures_name_file_and_line(tmp_path: Path) -> None:
    names = pictures(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(png(1)[:50])
    (tmp_path / "2.png").unlink()
    rows = [{"image": n, "text": "t", "split": "test"} for n in names]
    source = open_source(DataConfig(source=write_jsonl(tmp_path / "l.jsonl", rows)), "test")
    with pytest.raises(BadImage, match=r"^1\.png \(l\.jsonl line 2\): cannot be decoded"):
        source.image(1)
    with pytest.raises(BadImage, match=r"^2\.png \(l\.jsonl line 3\): no such file"):
        source.image(2)


def test_paths_meant_from_another_folder_fail_at_once(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    source = write_csv(tmp_path / "l.csv", [("image", "caption"), *((f"{i}.png", "t") for i in range(3))])
    with pytest.raises(FileNotFoundError, match=r"0\.png .* was not found below .* taken from its own folder"):
        open_source(DataConfig(source=source, test_split="train", train_split="x"), "test")


def test_rows_without_caption_or_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = pictures(tmp_path, 6)
    captions: list[Any] = [["a", " "], ["b"], [], None, "  ", ["f", None]]
    rows = [{"image": n, "captions": c, "split": "test"} for n, c in zip(names, captions, strict=True)]
    rows.insert(1, {"image": "", "captions": ["x"], "split": "test"})
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    named = (
        r"l\.jsonl line 2: no image in column image; l\.jsonl line 4: no text in column captions; l\.jsonl line 5: no"
    )
    with pytest.raises(TooManyBad, match=rf"l\.jsonl: 4 of 7 images cannot be used, .*=0\.57 allows: {named}") as error:
        open_source(DataConfig(source=source, max_bad_fraction=0.57), "test")  # 3.99 of 7
    assert not isinstance(error.value, NoCaptions)
    with caplog.at_level(logging.WARNING):
        found = contents(open_source(DataConfig(source=source, max_bad_fraction=0.572), "test"))  # 4.004 of 7
    assert found == {0: ["a"], 1: ["b"], 5: ["f"]}
    assert "4 of 7 rows are skipped: l.jsonl line 2: no image" in caplog.text
    assert "2 captions are empty or no text; their images have others" in caplog.text  # " " and None
    rows.pop(1)
    write_jsonl(tmp_path / "l.jsonl", rows)
    with pytest.raises(NoCaptions, match=r"3 of 6 images"):
        open_source(DataConfig(source=source), "test")
    columns = {"image": [*cells(2), {"bytes": None, "path": None}, None], "text": ["a", "", "b", "c"]}
    write_parquet(tmp_path / "p" / "test.parquet", columns)
    named = "test row 1: no text in column text; test row 2: no image in column image; test row 3: no image"
    with pytest.raises(TooManyBad, match=f"3 of 4 images .* {named}"):
        open_source(DataConfig(source=str(tmp_path / "p")), "test")
    source = open_source(DataConfig(source=str(tmp_path / "p"), max_bad_fraction=0.75), "test")
    assert contents(source) == {0: ["a"]}


def test_bad_rows_are_counted_in_their_split(tmp_path: Path) -> None:
    rows = [
        {"image": n, "text": "t", "split": "test" if i < 4 else "train"} for i, n in enumerate(pictures(tmp_path, 60))
    ]
    rows[2]["text"] = ""
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    with pytest.raises(NoCaptions, match="1 of 4 images"):
        open_source(DataConfig(source=source, max_bad_fraction=0.2), "test")
    assert len(open_source(DataConfig(source=source, max_bad_fraction=0), "train")) == 53  # 5% of 56 are set aside


def test_captions_that_are_no_text_are_bad_rows(tmp_path: Path) -> None:
    values = [3, "b", None, {"a": 1}, True, "f", ["g", None, 7], [8]]
    rows = [{"image": n, "text": t, "split": "test"} for n, t in zip(pictures(tmp_path, 8), values, strict=True)]
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    found = contents(open_source(DataConfig(source=source, max_bad_fraction=0.625), "test"))
    assert found == {1: ["b"], 5: ["f"], 6: ["g"]}
    with pytest.raises(
        NoCaptions, match=r"5 of 8 .* line 1: no text in column text, but 3; l\.jsonl line 3: no text in c"
    ):
        open_source(DataConfig(source=source, max_bad_fraction=0.6), "test")


@pytest.mark.parametrize("allowed", [0.0, 0.01, 1.0])
def test_data_without_any_caption(tmp_path: Path, allowed: float) -> None:
    rows = [{"image": n, "text": " ", "split": "test"} for n in pictures(tmp_path, 8)]
    with pytest.raises(NoCaptions):
        open_source(DataConfig(source=write_jsonl(tmp_path / "l.jsonl", rows), max_bad_fraction=allowed), "test")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.csv", "image,caption\na.png,one, two\n", r"line 2: 3 fields, but the header has 2 \(delimiter ','\)"),
        ("a.csv", 'image,caption\na.png,ok\nb.png,"x\ny"\nc.png,"open\n', r"line 5: unexpected end of data"),
        ("a.csv", "image\na.png\n", "the header has the one column 'image'"),
        ("a.csv", "image,text,text\n", "names text more than once"),
        ("a.csv", "image,text\n", "has no rows"),
        ("a.csv", "", "the header has the one column|has no rows"),
        ("a.jsonl", '{"image": "a"}\n\n{broken\n', "line 3: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        (
            "a.jsonl",
            '{"image": "a.png", "text": "t"}\n{"image": "b.png", "text": 3}\n',
            "line 2: no text in column text, but 3",
        ),
        (
            "a.jsonl",
            '{"image": "a.png", "text": "t"}\n{"image": 3, "text": "t"}\n',
            "line 2: no image in column image",
        ),
        ("a.parquet.txt", "\xff\xfe", "not UTF-8"),
        ("a.xlsx", "x", "expected a file that ends in"),
    ],
)
def test_malformed_files_name_the_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source=str(tmp_path / file)), "train")


def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    for source in (str(tmp_path / "none"), "./none", "none.csv", "some/folder/none"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            open_source(DataConfig(source=source), "train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_text("junk")
    with pytest.raises(ValueError, match="nothing the `datasets` library can read"):
        open_source(DataConfig(source=str(tmp_path / "broken")), "train")
    (tmp_path / "two").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "two" / name).touch()
    with pytest.raises(ValueError, match=r"several tables: a\.csv, b\.jsonl; name one"):
        open_source(DataConfig(source=str(tmp_path / "two")), "train")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"user/set: .* the Hub was not reached .* local copy"):
        open_source(DataConfig(source="user/set"), "train")
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        open_source(DataConfig(), "dev")


def test_text_lists() -> None:
    lists = [["ä", ""], [], ["図 dog", "\ud800", "x" * 1000]]
    packed = TextLists(lists)
    assert len(packed) == 3 and [packed[i] for i in range(3)] == lists
    assert len(TextLists([])) == 0
