"""Images alone: folders, tables and captioned sources, each image once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.files import cells, number_of, write_csv, write_image, write_jsonl, write_parquet

from miniclip.data.captioned import ImageSource
from miniclip.data.images import BadImage
from miniclip.data.labelled import open_images
from miniclip.data.subset import readable


def values(source: ImageSource) -> list[int]:
    assert all(source.name(i) for i in range(len(source)))
    return sorted(number_of(source.image(i)) for i in range(len(source)))


def test_a_folder_is_searched_to_the_bottom(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "x/b.PNG", "x/y/c.jpeg.png", ".hidden/d.png"), 1):
        write_image(tmp_path / "set" / name, number)
    (tmp_path / "set" / "notes.md").touch()
    (tmp_path / "set" / "a.txt").write_text("a caption")
    source = open_images(tmp_path / "set", image_size=16)
    assert [source.name(i) for i in range(3)] == ["a.png", "x/b.PNG", "x/y/c.jpeg.png"]
    assert values(source) == [1, 2, 3]
    write_image(tmp_path / "outside.png", 9)
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "outside.png")
    source = open_images(tmp_path / "set")
    with pytest.raises(BadImage, match="leads out of"):
        source.image(1)
    assert values(readable(source, 0.5)) == [1, 2, 3]


def test_folders_of_splits(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "cat" / "a.png", 1)
    write_image(tmp_path / "Val" / "dog" / "b.png", 2)
    assert values(open_images(tmp_path, split="train")) == [1]
    assert values(open_images(tmp_path, split="validation")) == [2]
    with pytest.raises(ValueError, match="no split 'test'; choose one of val, train"):
        open_images(tmp_path)


def test_tables_with_labels_and_with_captions(tmp_path: Path) -> None:
    splits = ["test", "val", "val"]
    files = [write_image(tmp_path / "images" / f"{i}.png", i).relative_to(tmp_path) for i in range(3)]
    rows = [{"file_name": str(f), "label": "a dog", "split": s} for f, s in zip(files, splits, strict=True)]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    assert values(open_images(tmp_path, split="validation")) == [1, 2]
    assert values(open_images(tmp_path)) == [0]
    lines = [("path", "text"), (files[2], "one"), (files[2], "two"), (files[0], "three"), ("", "four")]
    captions = write_csv(tmp_path / "captions.csv", lines)
    source = open_images(captions)
    assert values(source) == [0, 2]  # an image with two captions counts once, a row without one not at all
    assert source.name(1) == "images/0.png (captions.csv line 4)"
    with pytest.raises(ValueError, match=r"no column kind \(image_column\)"):
        open_images(captions, image_column="kind")
    write_parquet(tmp_path / "set" / "test-00000-of-00001.parquet", {"img": [*cells(2, 5), None]})
    assert values(open_images(tmp_path / "set")) == [5, 6]


def test_nothing_to_see(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        open_images(tmp_path / "absent")
    (tmp_path / "test").mkdir()
    write_image(tmp_path / "train" / "a.png", 1)
    with pytest.raises(FileNotFoundError, match=r"test holds no image \(\.jpg"):
        open_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"t\.csv: no row has an image"):
        open_images(write_csv(tmp_path / "t.csv", [("path", "text"), ("", "one")]))
