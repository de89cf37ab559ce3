"""An index on the disk: what other programs read of it, where its images lie, and what is said of a damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.files import (
    number_of,
    png,
    samples,
    write_beside,
    write_image,
    write_images,
    write_jsonl,
    write_parquet,
    write_shard,
    write_tar,
)
from support.indexes import write_index
from support.models import tiny_model

from miniclip.data.images import BadImage
from miniclip.evaluation.encode import fingerprint
from miniclip.search.pictures import open_pictures
from miniclip.search.store import ABOUT, COLUMNS, IMAGES, Index, check_model, open_index, read_images, to_table
from miniclip.search.store import write_images as write_table

VALUES = np.random.default_rng(0).normal(size=(3, 4))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_images(tmp_path / "photos", 3)
    return write_index(tmp_path / "i", tmp_path / "photos", ["0.png", "1.png", "2.png"], VALUES, ["a", None, "ü"])


def test_others_read_it(index: Index) -> None:
    table = pq.read_table(index.folder / IMAGES)
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[4]"
    frame = pd.read_parquet(index.folder / IMAGES)
    assert list(frame["path"]) == index.paths == ["0.png", "1.png", "2.png"]
    assert index.captions == ["a", None, "ü"]
    unit = VALUES / np.linalg.norm(VALUES, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack(list(frame["embedding"])), unit, rtol=1e-6)
    np.testing.assert_allclose(index.embeddings, unit, rtol=1e-6)
    assert index.embeddings.dtype == np.float32


def test_images_are_found_again(index: Index, tmp_path: Path) -> None:
    assert [number_of(index.image(row)) for row in range(3)] == [0, 1, 2]
    assert index.file(1) == tmp_path / "photos" / "1.png"
    (tmp_path / "photos" / "1.png").unlink()
    with pytest.raises(BadImage, match=r"^1.png: no such file"):
        index.image(1)
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match="photos, the folder of the images, is not there; bring it back"):
        index.file(0)


@pytest.mark.parametrize("path", ["../secret.png", "link.png", "/etc/passwd", "a\0b.png"])
def test_nothing_outside_is_served(path: str, tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png", 5)
    write_image(tmp_path / "photos" / "0.png", 0)
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    index = write_index(tmp_path / "i", tmp_path / "photos", [path], VALUES[:1])
    for ask in (index.file, index.image):
        with pytest.raises(BadImage, match=r"leads out of|is not a path"):
            ask(0)


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    index = write_index(tmp_path / "i", tmp_path, ["0.png"], VALUES[:1], fingerprint=fingerprint(model))
    check_model(index, model)
    with pytest.raises(ValueError, match=r"holds embeddings of a model with other weights .*another --out$"):
        check_model(index, tiny_model(seed=1))


def test_damage_is_told_in_a_line(index: Index) -> None:
    file, about = index.folder / IMAGES, index.folder / ABOUT
    whole, told = file.read_bytes(), about.read_text()
    place = whole.index(index.embeddings.tobytes())
    for wrong in (whole[:-9], b"", b"x" * len(whole), whole[:place] + b"\0" + whole[place + 1 :]):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"images.parquet is damaged \([^\n]+\); remove the folder, and index"):
            open_index(index.folder)
    pd.DataFrame({"path": ["a"]}).to_parquet(file)
    with pytest.raises(ValueError, match=r"images.parquet is damaged"):
        open_index(index.folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="not all is indexed; run miniclip index again"):
        open_index(index.folder)
    for text, said in (("{", "is damaged"), ("[]", "is not what"), ("{}", "is not what")):
        about.write_text(text)
        with pytest.raises(ValueError, match=rf"index.json {said}"):
            open_index(index.folder)
    about.write_text(json.dumps(json.loads(told) | {"version": 2}))
    with pytest.raises(ValueError, match="is of version 2, and this miniclip reads 1"):
        open_index(index.folder)
    about.unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json does not exist; name a folder"):
        open_index(index.folder)


def test_embeddings_are_checked(index: Index) -> None:
    table = read_images(index.folder / IMAGES)
    columns = {name: table[name].to_pylist() for name in COLUMNS}
    for values in (np.zeros((3, 4), np.float32), np.full((3, 4), np.nan, np.float32), np.ones((3, 1), np.float32)):
        write_table(index.folder / IMAGES, to_table(columns, values))
        with pytest.raises(ValueError, match="does not hold 4 numbers of length 1 an image; remove the folder"):
            open_index(index.folder)


# What there is to index


def _bare(root: Path) -> str:
    """Also where names tell splits, for a person's photos have no splits."""
    for number, name in enumerate(("b.png", "deep/er/c.png", "test/d.png", "train/e.png")):
        write_image(root / name, number)
    (root / "notes.txt").write_text("no image")
    return str(root)


def _beside(root: Path) -> str:
    return str(write_beside(root, 0, 4))


def _table(root: Path) -> str:
    write_images(root / "images", 4)
    rows = [{"image": f"images/{i}.png", "caption": f"text {i} {k}"} for i in range(4) for k in range(2)]
    return write_jsonl(root / "rows.jsonl", [*rows, {"image": None, "caption": "no image"}])


def _splits(root: Path) -> str:
    """Parquet files of two splits that call their images alike."""
    write_shard(root / "train-0.parquet", 0, 3)
    write_parquet(root / "test-0.parquet", {"image": [{"bytes": png(3), "path": "0.png"}], "caption": ["text 3"]})
    return str(root)


def _tars(root: Path) -> str:
    return write_tar(root / "a.tar", samples(0, 4))


KINDS = {
    _bare: ["b.png", "deep/er/c.png", "test/d.png", "train/e.png"],
    _beside: ["0.png", "1.png", "2.png", "3.png"],
    _table: ["images/0.png", "images/1.png", "images/2.png", "images/3.png"],
    _splits: ["0.png", "1.png", "2.png", "0.png"],
    _tars: ["00000", "00001", "00002", "00003"],
}


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_any_source(write: Callable[[Path], str], tmp_path: Path) -> None:
    """Each image once, its first caption with it, and found again by the index."""
    source = write(tmp_path / "data")
    pictures = open_pictures(source)
    numbers = [number_of(pictures.image(i)) for i in range(len(pictures))]
    assert sorted(numbers) == [0, 1, 2, 3] and len(set(pictures.paths)) == 4
    assert sorted(Path(path).name for path in pictures.paths) == sorted(Path(path).name for path in KINDS[write])
    said = {_bare: None, _table: "text {} 0"}.get(write, "text {}")
    assert pictures.captions == [said and said.format(number) for number in numbers]
    assert pictures.stamps() == open_pictures(source).stamps()
    order = [2, 0, 3, 1]  # an index may have another
    told: Any = {"source": source, "files": pictures.files}
    paths, values = [pictures.paths[i] for i in order], np.random.default_rng(0).normal(size=(4, 2))
    index = write_index(tmp_path / "i", pictures.root, paths, values, rows=order, **told)
    assert [number_of(index.image(row)) for row in range(4)] == [numbers[i] for i in order]
    assert (index.file(0) is not None) == (write in (_bare, _beside, _table))


def test_a_table_that_has_changed(tmp_path: Path) -> None:
    """An image inside one is not taken for the one that lay there."""
    source = _tars(tmp_path / "data")
    told: Any = {"source": source, "files": False}
    index = write_index(tmp_path / "i", tmp_path, ["00000", "00003"], VALUES[:2], rows=[0, 3], **told)
    write_tar(tmp_path / "data" / "a.tar", samples(1, 3))
    for row in (0, 1):
        with pytest.raises(BadImage, match=r"a.tar has changed since it was indexed; run miniclip index again"):
            index.image(row)


@pytest.mark.parametrize("made", [False, True])
def test_no_images(made: bool, tmp_path: Path) -> None:
    if made:
        (tmp_path / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match="photos holds no image" if made else "no such file or folder"):
        open_pictures(str(tmp_path / "photos"))
