"""WebDataset tars, here and behind a URL: samples, columns, splits, and what is broken in them."""

from __future__ import annotations

import functools
import http.server
import io
import json
import logging
import pickle
import tarfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_sources import contents, everything, identity, own_cache, png  # noqa: F401

from miniclip.config import DataConfig
from miniclip.data.bad_images import TooManyBad
from miniclip.data.captioned import PairSource, open_source
from miniclip.data.images import BadImage
from miniclip.data.labelled import open_labelled
from miniclip.data.tables.image_column import images_of
from miniclip.data.tables.kinds import read_tables

Sample = tuple[str, dict[str, bytes]]


def write_tar(file: Path, samples: Iterable[Sample]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, fields in samples:
            for field, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(file)


def samples(first: int, last: int, **more: Any) -> list[Sample]:
    """Sample i has the picture png(i) and the caption "text i"; more: field -> what gives its bytes for i."""
    return [
        (f"{i:05d}", {"png": png(i), "txt": f"text {i}".encode(), **{f: make(i) for f, make in more.items()}})
        for i in range(first, last)
    ]


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def opened(source: object, split: str = "train", **config: Any) -> PairSource:
    """A source whose only split is taken whole."""
    splits = {"train_split": "x", "validation_split": "x", "test_split": "train"} if split == "train" else {}
    return open_source(DataConfig(source=str(source), **splits, **config), "test" if splits else split)


def test_one_file_and_a_brace_pattern_and_a_glob_and_a_folder(tmp_path: Path) -> None:
    for n in range(12):
        write_tar(tmp_path / "shards" / f"{n:03d}.tar", samples(5 * n, 5 * n + 5))
    expected = {i: [f"text {i}"] for i in range(60)}
    assert contents(opened(tmp_path / "shards" / "003.tar")) == {i: [f"text {i}"] for i in range(15, 20)}
    for source in ("shards/{000..011}.tar", "shards/*.tar", "**/*.tar", "shards", "shards/{00{0..9},010,011}.tar"):
        assert contents(opened(tmp_path / source)) == expected
        assert everything(source=str(tmp_path / source)) == expected
    found = opened(tmp_path / "shards" / "{002..003}.tar")
    assert found.name(7) == "003.tar sample 00017"
    assert contents(pickle.loads(pickle.dumps(found))) == contents(found)


def test_splits_by_the_names_of_files_and_folders(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val", "test")):
        write_tar(tmp_path / "a" / f"coco-{split}-0.tar", samples(n, n + n + 1))
        write_tar(tmp_path / "b" / split / "0.tar", samples(n, n + n + 1))
    for source in ("a", "a/*.tar", "b", "b/**/*.tar", "b/{train,val,test}/0.tar"):
        sizes = [
            len(open_source(DataConfig(source=str(tmp_path / source)), s)) for s in ("train", "validation", "test")
        ]
        assert sizes == [1, 2, 3], source


def test_captions_in_json(tmp_path: Path) -> None:
    meta = {"json": lambda i: as_json(caption=f"json {i}", n=i, tags=["a"])}
    both = write_tar(tmp_path / "both.tar", samples(0, 4, **meta))
    assert contents(opened(both)) == {i: [f"text {i}"] for i in range(4)}  # a field of its own comes first
    assert contents(opened(both, caption_column="json.caption"))[2] == ["json 2"]
    alone = [(key, {f: v for f, v in fields.items() if f != "txt"}) for key, fields in samples(0, 4, **meta)]
    assert contents(opened(write_tar(tmp_path / "alone.tar", alone))) == {i: [f"json {i}"] for i in range(4)}
    assert opened(both).column("json.n") == [0, 1, 2, 3]
    with pytest.raises(
        ValueError, match=r"json\.captoin .*, but png, txt, json, json\.caption, json\.n, json\.tags; did"
    ):
        opened(both, caption_column="json.captoin")
    with pytest.raises(ValueError, match=r"did you mean json\.caption\?$"):
        opened(both, caption_column="json.captoin")
    with pytest.raises(ValueError, match=r"json\.n does not hold text"):
        opened(both, caption_column="json.n")


def test_what_is_broken_costs_one_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = samples(0, 40, json=lambda i: as_json(caption=f"c{i}", note=None if i < 30 else "late"))
    del rows[1][1]["txt"]  # among the first five, from which the `datasets` library would tell the columns
    del rows[2][1]["png"]
    rows[3][1]["txt"] = b"\xff\xfe\xfd"
    rows[4][1]["json"] = b"{broken"
    rows[5][1]["txt"] = b" \n"
    rows[6][1]["png"] = png(6)[:50]
    rows.append(("README", {"md": b"no sample"}))
    file = write_tar(tmp_path / "t.tar", rows)
    with pytest.raises(TooManyBad, match=r"5 of 41 images .*t\.tar sample 00001: no text in column txt; .*00002: no i"):
        opened(file, max_bad_fraction=0.12)  # 4.92
    with caplog.at_level(logging.WARNING):
        source = opened(file, max_bad_fraction=0.122)
    assert "5 of 41 rows are skipped" in caplog.text
    assert [source.captions(i) for i in range(3)] == [["text 0"], ["text 4"], ["text 6"]] and len(source) == 36
    with pytest.raises(BadImage, match=r"^t\.tar sample 00006: cannot be decoded"):
        source.image(2)
    assert identity(source, 1) == 4
    by_json = opened(file, caption_column="json.caption", max_bad_fraction=0.1)
    assert len(by_json) == 38 and by_json.captions(4) == ["c6"]  # 2 has no picture, 4 no object


def test_formats_that_differ_are_one_column(tmp_path: Path) -> None:
    rows = [(key, {"jpg" if int(key) % 2 else "png": f["png"], "txt": f["txt"]}) for key, f in samples(0, 6)]
    file = write_tar(tmp_path / "mixed.tar", rows)
    assert read_tables(file)["train"].columns == ["txt", "image"]
    assert contents(opened(file)) == {i: [f"text {i}"] for i in range(6)}
    two = write_tar(tmp_path / "two.tar", samples(0, 6, jpg=lambda i: png(i + 50)))
    with pytest.raises(ValueError, match=r"png, jpg could each be the image column; set data\.image_column"):
        opened(two)
    assert contents(opened(two, image_column="jpg")).keys() == set(range(50, 56))


def test_folders_and_dots_in_names(tmp_path: Path) -> None:
    """A sample is what stands before the first dot of the last part; capitals in an extension do not matter."""
    rows = [("a.b/1", {"PNG": png(1), "txt": b"one"}), ("a.b/2", {"png": png(2), "orig.txt": b"x", "txt": b"two"})]
    rows += [("c/1", {"png": png(3), "txt": b"three"}), ("c/.hidden", {"txt": b"no"})]
    source = opened(write_tar(tmp_path / "t.tar", rows))
    assert contents(source) == {1: ["one"], 2: ["two"], 3: ["three"]}
    assert source.name(0) == "t.tar sample a.b/1"


def test_members_that_are_no_files_and_names_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    file = tmp_path / "set" / "t.tar"
    write_tar(file, samples(0, 2))
    with tarfile.open(file, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            for name, target in (("9.png", "../secret.png"), ("9.txt", str(tmp_path / "secret.png"))):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, target
                tar.addfile(member)
        for name in ("../../evil.png", "/tmp/evil.txt"):  # names alone: nothing is ever written
            member = tarfile.TarInfo(name)
            member.size = len(png(5))
            tar.addfile(member, io.BytesIO(png(5)))
    before = sorted(tmp_path.rglob("*"))
    source = opened(file, max_bad_fraction=1)
    assert contents(source) == {0: ["text 0"], 1: ["text 1"]}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tar_that_is_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = Path(write_tar(tmp_path / "t.tar", samples(0, 20)))
    whole = file.read_bytes()
    # a member takes a block for its head and one for its data here
    for end, kept in ((512 * 4 * 7, 7), (512 * 4 * 7 + 532, 7), (512 * 4 * 7 + 100, 7), (512 * 4 * 7 + 1030, 8)):
        caplog.clear()
        file.write_bytes(whole[:end])
        source = opened(file, max_bad_fraction=1)
        assert [len(source), "t.tar is cut short or damaged after sample" in caplog.text] == [7, True]
        assert len(read_tables(str(file))["train"]) == kept
    caplog.clear()
    file.write_bytes(whole)
    assert len(opened(file)) == 20 and not caplog.text


def test_files_that_are_no_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is not a tar"):
        opened(tmp_path / "a.tar")
    import gzip

    whole = Path(write_tar(tmp_path / "x" / "b.tar", samples(0, 2))).read_bytes()
    (tmp_path / "b.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match=r"b\.tar is not a tar .*; unpack it"):
        opened(tmp_path / "b.tar")
    write_tar(tmp_path / "c.tar", [])
    with pytest.raises(ValueError, match=r"c\.tar: no sample in 1 tars; expected members such as 00001\.jpg"):
        opened(tmp_path / "c.tar")
    write_tar(tmp_path / "d.tar", [*samples(0, 2), ("00001", {"png": png(1)})])
    with pytest.raises(ValueError, match=r"d\.tar: 00001\.png is there twice"):
        opened(tmp_path / "d.tar")


def test_shards_that_are_missing(tmp_path: Path) -> None:
    for n in (0, 1, 3):
        write_tar(tmp_path / f"{n:03d}.tar", samples(n, n + 1))
    with pytest.raises(FileNotFoundError, match=r"\{000\.\.003\}\.tar: there is no file .*/002\.tar .*; did you mean"):
        opened(tmp_path / "{000..003}.tar")
    with pytest.raises(FileNotFoundError, match=r"shards-\*\.tar: no file fits"):
        opened(tmp_path / "shards-*.tar")
    (tmp_path / "x.parquet").touch()
    with pytest.raises(ValueError, match=r"files of several kinds \(\.parquet, \.tar\)"):
        opened(tmp_path / "*")


def test_tars_that_each_count_from_0(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", [(str(i), samples(20 * n + i, 20 * n + i + 1)[0][1]) for i in range(20)])
    source = str(tmp_path / "{0..1}.tar")
    assert everything(source=source) == {i: [f"text {i}"] for i in range(40)}
    keys = images_of(read_tables(source)["train"], "png").keys(range(40))
    assert len(set(keys)) == 40


def test_many_threads_read_the_right_pictures(tmp_path: Path) -> None:
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", samples(100 * n, 100 * n + 100))
    source = opened(tmp_path / "{0..2}.tar")
    rows = [(i * 7) % 300 for i in range(1200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(functools.partial(identity, source), rows)) == rows


def test_a_tar_that_changes_or_goes(tmp_path: Path) -> None:
    file = Path(write_tar(tmp_path / "t.tar", samples(0, 3)))
    source = opened(file)
    write_tar(file, samples(10, 15))
    assert contents(opened(file)).keys() == set(range(10, 15))  # the list of members is not the old one
    file.unlink()
    with pytest.raises(BadImage, match=r"t\.tar sample 00001: cannot be read"):
        source.image(1)


def test_classes_in_tars(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", samples(0, 3, cls=lambda i: str([10, 9, 10][i]).encode()))
    (tmp_path / "names.txt").write_text("nine\nten\n")
    source = open_labelled(file, classnames_file=tmp_path / "names.txt")
    assert [source.classes[source.label(i)] for i in range(3)] == ["ten", "nine", "ten"]
    assert source.image(1).getpixel((0, 0))[0] == 1


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the folder "served"."""
    import datasets

    pytest.importorskip("aiohttp")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_tars_behind_a_url(tmp_path: Path, server: str) -> None:
    for n in range(3):
        write_tar(tmp_path / "served" / f"train-{n:03d}.tar", samples(5 * n, 5 * n + 5))
    write_tar(tmp_path / "served" / "test-000.tar", samples(15, 18))
    source = server + "/train-{000..002}.tar"
    assert everything(source=source) == {i: [f"text {i}"] for i in range(15)}
    both = f"{server}/{{train-{{000..002}},test-000}}.tar"
    assert contents(open_source(DataConfig(source=both), "test")).keys() == {15, 16, 17}
    assert open_source(DataConfig(source=both), "test").name(0) == "test-000.tar sample 00015"
    with pytest.raises(FileNotFoundError, match=r"train-004\.tar: cannot be fetched"):
        open_source(DataConfig(source=f"{server}/train-004.tar"), "train")
    with pytest.raises(ValueError, match="of what lies behind a URL, Parquet files"):
        open_source(DataConfig(source=f"{server}/list.csv"), "train")
