"""Several sources as one, and the fingerprint that tells when the data of a source has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import samples, write_beside, write_csv, write_images, write_jsonl, write_shard, write_tar
from support.opened import SPLITS, contents, numbers, opened, texts

from miniclip.config import DataConfig
from miniclip.data.captioned import Concat, Pairs, open_source
from miniclip.data.images import BadImage
from miniclip.data.scenes.source import SceneSource
from miniclip.data.subset import Subset


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
    with pytest.raises(BadImage, match=r"^1\.png \(l\.jsonl line 2\)"):
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
