"""Pictures alone: folders, tables and captioned sources, each picture once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data.captioned import ImageSource
from miniclip.data.images import BadImage
from miniclip.data.subset import readable
from miniclip.data.unlabelled import open_images


def picture(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file)


def values(source: ImageSource) -> list[int]:
    assert all(source.name(i) for i in range(len(source)))
    return sorted(source.image(i).getpixel((0, 0))[0] for i in range(len(source)))  # type: ignore[index, misc]


def test_a_folder_is_searched_to_the_bottom(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a.png", 1)
    picture(tmp_path / "set" / "x" / "b.PNG", 2)
    picture(tmp_path / "set" / "x" / "y" / "c.jpeg.png", 3)
    picture(tmp_path / "set" / ".hidden" / "d.png", 4)
    (tmp_path / "set" / "notes.md").touch()
    source = open_images(tmp_path / "set", image_size=16)
    assert [source.name(i) for i in range(3)] == ["a.png", "x/b.PNG", "x/y/c.jpeg.png"]
    assert values(source) == [1, 2, 3]
    picture(tmp_path / "outside.png", 9)
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "outside.png")
    source = open_images(tmp_path / "set")
    with pytest.raises(BadImage, match="leads out of"):
        source.image(1)
    assert values(readable(source, 0.5)) == [1, 2, 3]


def test_folders_of_splits(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png", 1)
    picture(tmp_path / "Val" / "dog" / "b.png", 2)
    assert values(open_images(tmp_path, split="train")) == [1]
    assert values(open_images(tmp_path, split="validation")) == [2]
    with pytest.raises(ValueError, match="no split 'test'; choose one of val, train"):
        open_images(tmp_path)


def test_tables_with_labels_and_with_captions(tmp_path: Path) -> None:
    for value in range(3):
        picture(tmp_path / "images" / f"{value}.png", value)
    labels = [
        {"file_name": f"images/{v}.png", "label": "a dog", "split": s} for v, s in enumerate(["test", "val", "val"])
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    assert values(open_images(tmp_path, split="validation")) == [1, 2]
    assert values(open_images(tmp_path)) == [0]
    captions = tmp_path / "captions.csv"
    captions.write_text("path,text\nimages/2.png,one\nimages/2.png,two\nimages/0.png,three\n,four\n")
    source = open_images(captions)
    assert values(source) == [0, 2]  # a picture with two captions counts once, a row without one not at all
    assert source.name(1) == "images/0.png (captions.csv line 4)"
    with pytest.raises(ValueError, match=r"no column kind \(image_column\)"):
        open_images(captions, image_column="kind")


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_text("a caption")
    picture(tmp_path / "b.png", 2)
    assert values(open_images(tmp_path)) == [1, 2]


def test_parquet(tmp_path: Path) -> None:
    from datasets import Dataset
    from datasets import Image as Picture

    for value in (5, 6):
        picture(tmp_path / f"{value}.png", value)
    cells = [{"bytes": (tmp_path / f"{value}.png").read_bytes(), "path": None} for value in (5, 6)]
    (tmp_path / "set").mkdir()
    data = Dataset.from_dict({"img": [*cells, None]}).cast_column("img", Picture())
    data.to_parquet(str(tmp_path / "set" / "test-00000-of-00001.parquet"))
    assert values(open_images(tmp_path / "set")) == [5, 6]


def test_nothing_to_see(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        open_images(tmp_path / "absent")
    (tmp_path / "test").mkdir()
    picture(tmp_path / "train" / "a.png", 1)
    with pytest.raises(FileNotFoundError, match=r"test holds no image \(\.jpg"):
        open_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="empty"):
        open_images(tmp_path / "empty")
    (tmp_path / "t.csv").write_text("path,text\n,one\n")
    with pytest.raises(ValueError, match=r"t\.csv: no row has an image"):
        open_images(tmp_path / "t.csv")
