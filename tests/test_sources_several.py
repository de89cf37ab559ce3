"""Several sources as one, and the fingerprint that tells when the data of a source has changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sources import contents, identity, own_cache, pictures, png, write_csv, write_jsonl  # noqa: F401
from test_sources_kinds import beside, opened, shard, texts
from test_sources_tars import samples, write_tar

from miniclip.config import DataConfig
from miniclip.data.captioned import Concat, Pairs, open_source
from miniclip.data.images import BadImage
from miniclip.data.scenes.source import SceneSource
from miniclip.data.subset import Subset


def three(tmp_path: Path) -> list[str]:
    """A CSV file, a folder and a tar; the folder alone has a test split."""
    names = pictures(tmp_path / "csv", 10)
    rows = [(n, f"text {i}") for i, n in enumerate(names)]
    beside(tmp_path / "folder" / "train", 100, 130)
    beside(tmp_path / "folder" / "test", 200, 203)
    return [
        write_csv(tmp_path / "csv" / "l.csv", [("image", "caption"), *rows]),
        str(tmp_path / "folder"),
        write_tar(tmp_path / "t.tar", samples(300, 340)),
    ]


def test_a_list_is_one_source_after_the_other(tmp_path: Path) -> None:
    sources = three(tmp_path)
    config = DataConfig(source=sources, mixing=[0.2, 0.3, 0.5])
    found = {}
    for split in ("train", "validation", "test"):
        source = open_source(config, split)
        assert isinstance(source, Concat)
        alone = [open_source(DataConfig(source=one), split) for one in sources]
        assert source.sizes == [len(one) for one in alone] and len(source) == sum(source.sizes)
        seen = [identity(source, i) for i in range(len(source))]
        assert seen == [identity(one, i) for one in alone for i in range(len(one))]
        assert [source.captions(i) for i in range(len(source))] == [[f"text {i}"] for i in seen]
        found[split] = seen
    # each sets aside its own 5%, and one keeps the test split that it has
    assert {s: len(v) for s, v in found.items()} == {"train": 8 + 28 + 36, "validation": 1 + 2 + 2, "test": 1 + 3 + 2}
    assert {i for i in found["test"] if 200 <= i < 300} == {200, 201, 202}
    assert sorted(i for seen in found.values() for i in seen) == [
        *range(10),
        *range(100, 130),
        *range(200, 203),
        *range(300, 340),
    ]


def test_names_and_columns_of_several(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        names = pictures(tmp_path / str(n), 3)
        rows = [{"image": f, "text": "t", "w": 10 * n + i, "split": "test"} for i, f in enumerate(names)]
        paths.append(write_jsonl(tmp_path / str(n) / "l.jsonl", rows))
    source = open_source(DataConfig(source=paths), "test")
    assert source.name(4) == f"{paths[1]}: 1.png (l.jsonl line 2)"
    assert source.column("w") == [0, 1, 2, 10, 11, 12]
    assert Subset(source, [5, 0]).column("w") == [12, 0]
    (tmp_path / "1" / "1.png").unlink()
    with pytest.raises(BadImage, match=r"^1\.png \(l\.jsonl line 2\)"):
        source.image(4)
    for index in (-1, 6):
        with pytest.raises(IndexError, match=f"image {index} of 6"):
            source.image(index)
    rows = [{"image": "0.png", "text": "t", "split": "test"}]
    write_jsonl(tmp_path / "1" / "l.jsonl", rows)
    with pytest.raises(ValueError, match=r"1/l\.jsonl has no column w"):
        open_source(DataConfig(source=paths), "test").column("w")


def test_a_list_of_one_is_that_source(tmp_path: Path) -> None:
    source = beside(tmp_path / "set" / "test", 0, 3).parent
    found = open_source(DataConfig(source=[str(source)]), "test")
    assert isinstance(found, Pairs) and contents(found) == texts(0, 3)


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


def make(tmp_path: Path, kind: str) -> str:
    match kind:
        case "csv":
            rows = [(n, f"text {i}", "test") for i, n in enumerate(pictures(tmp_path, 4))]
            return write_csv(tmp_path / "l.csv", [("image", "caption", "split"), *rows])
        case "folder":
            return str(beside(tmp_path / "test", 0, 4).parent)
        case "tar":
            return write_tar(tmp_path / "test.tar", samples(0, 4))
        case "parquet":
            shard(tmp_path / "test.parquet", 0, 4)
            return str(tmp_path / "test.parquet")
        case _:
            raise ValueError(kind)


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("csv", lambda p: later(p / "l.csv")),
    ("csv", lambda p: later(p / "2.png")),
    ("csv", lambda p: grown(p / "2.png")),
    ("csv", lambda p: (p / "2.png").unlink()),
    ("folder", lambda p: later(p / "test" / "2.png")),
    ("folder", lambda p: (p / "test" / "2.txt").write_text("text 7\n")),
    ("folder", lambda p: beside(p / "test", 4, 5)),
    ("tar", lambda p: later(p / "test.tar")),
    ("parquet", lambda p: shard(p / "test.parquet", 0, 5)),
    ("parquet", lambda p: os.utime(p / "test.parquet", (1, 1))),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_the_fingerprint_changes_with_the_files(tmp_path: Path, kind: str, change: Callable[[Path], object]) -> None:
    source = make(tmp_path, kind)
    first = opened(source, "test").fingerprint()
    assert opened(source, "test").fingerprint() == first
    change(tmp_path)
    assert opened(source, "test").fingerprint() != first


@pytest.mark.parametrize("kind", ["csv", "folder", "tar", "parquet"])
def test_the_fingerprint_is_of_what_is_read(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    source = make(tmp_path, kind)
    first = opened(source, "test").fingerprint()
    (tmp_path / "notes.md").write_text("of no matter")
    assert opened(source, "test").fingerprint() == first
    larger = open_source(DataConfig(source=source), "test", image_size=128)
    assert larger.fingerprint() != first  # a large JPEG is decoded to another size
    found = {Subset(larger, rows).fingerprint() for rows in ([0, 1], [1, 0], [0], range(4))} | {larger.fingerprint()}
    assert len(found) == 5
    twin = make(tmp_path_factory.mktemp("twin"), kind)
    both = [DataConfig(source=pair) for pair in ([source, twin], [twin, source])]
    assert len({open_source(config, "test").fingerprint() for config in both} | {first}) == 3


def test_the_fingerprint_of_a_split_and_of_captions(tmp_path: Path) -> None:
    names = pictures(tmp_path, 60)
    rows = [{"image": n, "a": f"a{n}", "b": f"b{n}"} for n in names]
    source = write_jsonl(tmp_path / "l.jsonl", rows)
    found = {
        open_source(DataConfig(source=source, caption_column=c), s).fingerprint()
        for c in ("a", "b", ["a", "b"])
        for s in ("train", "validation", "test")
    }
    assert len(found) == 9


def test_the_fingerprint_of_pictures_with_equal_captions(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "t.tar", [(key, {"png": f["png"], "txt": b"t"}) for key, f in samples(0, 40)])
    assert opened(source, "validation").fingerprint() != opened(source, "test").fingerprint()  # two of each


@pytest.mark.parametrize("kind", ["csv", "folder", "tar", "parquet"])
def test_the_fingerprint_is_the_same_in_another_process(tmp_path: Path, kind: str) -> None:
    source = make(tmp_path, kind)
    code = (
        "import sys; from miniclip.config import DataConfig; from miniclip.data.captioned import open_source;"
        "print(open_source(DataConfig(source=sys.argv[1]), 'test').fingerprint())"
    )
    import datasets

    cache = {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", code, source], env=os.environ | cache, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == opened(source, "test").fingerprint()


def test_the_fingerprint_of_scenes() -> None:
    made = [SceneSource("train", 5), SceneSource("test", 5), SceneSource("train", 6), SceneSource("train", 5, seed=1)]
    made += [SceneSource("train", 5, image_size=32), SceneSource("train", 5, captions_per_image=2)]
    assert len({source.fingerprint() for source in made}) == 6
    assert SceneSource("train", 5).fingerprint() == made[0].fingerprint()


def test_the_fingerprint_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at and not opened: 20 microseconds a picture are plenty, decoding takes a hundred."""
    names = pictures(tmp_path, 2000)
    write_csv(tmp_path / "l.csv", [("image", "caption", "split"), *((n, "t", "test") for n in names)])
    source = opened(tmp_path / "l.csv", "test")
    monkeypatch.setattr("miniclip.data.tables.image_column.decode_image", lambda *a, **k: pytest.fail("decoded"))
    took = []
    for _ in range(5):
        start = time.perf_counter()
        source.fingerprint()
        took.append(time.perf_counter() - start)
    assert min(took) < 2000 * 20e-6
