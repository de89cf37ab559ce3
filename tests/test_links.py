"""Links in a data set: those of a Hub cache and those into folders that the user names are followed, no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import (
    png,
    samples,
    write_beside,
    write_classes,
    write_csv,
    write_image,
    write_images,
    write_jsonl,
    write_parquet,
    write_shard,
    write_tar,
)
from support.opened import contents, numbers, opened, refused, texts, whole

from miniclip.config import DataConfig
from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.labelled import open_images, open_labelled
from miniclip.data.stream.shards import split_shards
from miniclip.data.tables.kinds import find_shards
from miniclip.data.tables.source import files_below


def table(folder: Path) -> None:
    names = write_images(folder / "train", 4)
    rows = [{"file_name": name, "text": f"text {i}"} for i, name in enumerate(names)]
    write_jsonl(folder / "train" / "metadata.jsonl", rows)


def absolute(folder: Path) -> None:
    names = write_images(folder, 4)
    rows = [(folder.parent / "revision" / name, f"text {i}") for i, name in enumerate(names)]
    write_csv(folder / "all.csv", [("image", "text"), *rows])


def beside(folder: Path) -> None:
    write_beside(folder / "train", 0, 4)


def tars(folder: Path) -> None:
    write_tar(folder / "0.tar", samples(0, 4))


def parquet(folder: Path) -> None:
    write_shard(folder / "data" / "train-00000-of-00001.parquet", 0, 4)


def paths_in_parquet(folder: Path) -> None:
    names = [f"images/{name}" for name in write_images(folder / "images", 4)]
    write_parquet(folder / "train.parquet", {"image": names, "text": [f"text {i}" for i in range(4)]})


def in_cache(root: Path, make: Callable[[Path], None]) -> Path:
    """As huggingface_hub.snapshot_download lays it out: each file is a link to its content, named by its hash."""
    snapshot, blobs = root / "datasets--a--b" / "snapshots" / "revision", root / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    make(snapshot)
    for file in [file for file in snapshot.rglob("*") if file.is_file()]:
        blob = blobs / hashlib.sha256(str(file).encode()).hexdigest()
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, file.parent))
    return snapshot


@pytest.mark.parametrize("make", [table, absolute, beside, tars, parquet, paths_in_parquet])
def test_a_snapshot_in_a_cache_of_the_hub_is_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    snapshot = in_cache(tmp_path, make)
    assert contents(whole(snapshot)) == texts(0, 4)
    (tmp_path / "link").symlink_to(snapshot)
    assert contents(whole(tmp_path / "link")) == texts(0, 4)
    if make in (tars, parquet):
        assert len(find_shards(str(snapshot))["train"]) == 1
    (tmp_path / "datasets--a--b").rename(tmp_path / "else")  # no cache of the Hub: any folder could call itself so
    if make is not absolute:
        with pytest.raises((TooManyBad, BadImage, ValueError)):
            contents(whole(tmp_path / "else" / "snapshots" / "revision"))


def test_classes_and_images_alone_in_a_cache(tmp_path: Path) -> None:
    snapshot = in_cache(tmp_path, lambda folder: write_classes(folder, cat=[1, 2], dog=[3]) and None)
    source = open_labelled(snapshot)
    assert [(source.label(k), n) for k, n in enumerate(numbers(source))] == [(0, 1), (0, 2), (1, 3)]  # type: ignore[arg-type]
    assert numbers(open_images(snapshot)) == [1, 2, 3]  # type: ignore[arg-type]


def test_links_lead_into_folders_that_the_user_names(tmp_path: Path) -> None:
    write_beside(tmp_path / "b", 0, 4)
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        (tmp_path / "a" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / "deep" / name).symlink_to(tmp_path / "b" / name)
    rows = [(f"deep/{name}", f"text {i}", "test") for i, name in enumerate(names)]
    alone = write_csv(tmp_path / "a" / "all.csv", [("image", "text", "split"), *rows])
    with pytest.raises(BadImage, match=r"deep/0\.png .* leads out of .*/a; "):
        opened(alone, "test").image(0)
    both = opened([str(tmp_path / "a"), str(tmp_path / "b")], "test")
    assert numbers(both)[:4] == [0, 1, 2, 3]
    write_tar(tmp_path / "far" / "0.tar", samples(0, 4))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "test.tar").symlink_to(tmp_path / "far" / "0.tar")
    write_tar(tmp_path / "c" / "train.tar", samples(5, 9))
    refused(r"c/test\.tar is a link out of .*/c; name .*/far/0\.tar itself, or copy it there", tmp_path / "c", "test")
    for far in ("far", "far/*.tar", "far/0.tar"):
        sources = [str(tmp_path / "c"), str(tmp_path / far)]
        assert numbers(opened(sources, "test"))[:4] == [0, 1, 2, 3]
        config = DataConfig(sources, streaming=True)
        assert len(split_shards(config, sources[0], "test")[0]) == 1
    assert contents(opened(tmp_path / "c" / "t*.tar", "test")) == texts(0, 4)  # the user names the links themselves


def test_no_link_leads_anywhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = write_beside(tmp_path / "secret", 7, 9)
    write_csv(secret / "all.csv", [("image", "text"), ("7.png", "text 7")])
    write_shard(secret / "0.parquet", 7, 9)
    for name, kind in (("0.parquet", "x.parquet"), ("all.csv", "metadata.csv")):
        write_image(tmp_path / kind / "0.png", 0)
        (tmp_path / kind / kind).symlink_to(secret / name)
        refused(rf"{kind} is a link out of", tmp_path / kind)
    photos = write_beside(tmp_path / "photos", 0, 3)
    (photos / "7.png").symlink_to(secret / "7.png")
    (photos / "7.txt").write_text("text 7")
    (photos / "8.txt").symlink_to(secret / "8.txt")
    (photos / "8.png").write_bytes(png(8))
    (photos / "more").symlink_to(secret)
    source = whole(photos, max_bad_fraction=0.2)
    with pytest.raises(BadImage, match=r"7\.png.* leads out of"):
        source.image(3)
    assert len(source) == 4  # nor is the text read to which 8.txt leads
    said = f"{photos}: left out are links to folders outside of it, in a circle, or followed already: more"
    assert said in caplog.messages
    classes = write_classes(tmp_path / "classes", cat=[1, 2])
    (classes / "dog").symlink_to(write_classes(tmp_path / "far", dog=[3, 4]) / "dog")
    with pytest.raises(BadImage, match="leads out of"):
        open_labelled(classes).image(2)


def test_links_to_folders_inside_are_followed_and_never_in_a_circle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_beside(tmp_path / ".store" / "test", 0, 3)
    write_beside(tmp_path / "train", 3, 6)
    (tmp_path / "test").symlink_to(".store/test")
    (tmp_path / "train" / "again").symlink_to("..")
    (tmp_path / ".store" / "test" / "self").symlink_to(".")
    assert contents(opened(tmp_path, "test")) == texts(0, 3)
    assert contents(opened(tmp_path, "train", validation_split="test")).keys() <= {3, 4, 5}
    said = f"{tmp_path}: left out are links to folders outside of it, in a circle, or followed already: "
    assert f"{said}test/self; train/again" in caplog.messages


def test_links_that_branch_at_every_folder_are_followed_once_each(tmp_path: Path) -> None:
    """Else 40 folders with two links each to the next would be walked a million million times."""
    for number in range(40):
        (tmp_path / f"{number:02}").mkdir()
        write_image(tmp_path / f"{number:02}" / "0.png", number)
        for name in ("a", "b"):
            (tmp_path / f"{number:02}" / name).symlink_to(f"../{number + 1:02}")
    found = files_below(tmp_path, (".png",))
    assert len(found) == 40 + 39 and len(set(found)) == len(found)
