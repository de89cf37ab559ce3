"""WebDataset tars, here and behind a URL: samples, columns, splits, and what is broken in them."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.files import number_of, png, samples, served, write_shard, write_tar
from support.opened import SPLITS, contents, everything, opened, refused, texts, whole

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.images import BadImage, TooManyBad, decode_image
from miniclip.data.labelled import open_labelled
from miniclip.data.stream.shards import training_shards
from miniclip.data.stream.stream import open_stream, usable_captions
from miniclip.data.tables.image_column import images_of
from miniclip.data.tables.kinds import find_shards, read_tables
from miniclip.data.tables.table import Unordered
from miniclip.models.tokenizer import Tokenizer


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def test_one_file_and_a_brace_pattern_and_a_glob_and_a_folder(tmp_path: Path) -> None:
    for n in range(12):
        write_tar(tmp_path / "shards" / f"{n:03d}.tar", samples(5 * n, 5 * n + 5))
    assert contents(whole(tmp_path / "shards" / "003.tar")) == texts(15, 20)
    for source in ("shards/{000..011}.tar", "shards/*.tar", "**/*.tar", "shards", "shards/{00{0..9},010,011}.tar"):
        assert contents(whole(tmp_path / source)) == everything(tmp_path / source) == texts(0, 60)
    found = whole(tmp_path / "shards" / "{002..003}.tar")
    assert found.name(7) == "003.tar sample 00017"
    assert contents(pickle.loads(pickle.dumps(found))) == contents(found)
    for n, split in enumerate(("train", "val", "test")):
        write_tar(tmp_path / "a" / f"coco-{split}-0.tar", samples(n, n + n + 1))
        write_tar(tmp_path / "b" / split / "0.tar", samples(n, n + n + 1))
    for source in ("a", "a/*.tar", "b", "b/**/*.tar", "b/{train,val,test}/0.tar"):
        assert [len(opened(tmp_path / source, split)) for split in SPLITS] == [1, 2, 3], source


def test_captions_in_json(tmp_path: Path) -> None:
    rows = samples(0, 4, json=lambda i: as_json(caption=f"json {i}", n=i, tags=["a"]))
    both = write_tar(tmp_path / "both.tar", rows)
    assert contents(whole(both)) == texts(0, 4)  # a field of its own comes first
    assert contents(whole(both, caption_column="json.caption"))[2] == ["json 2"]
    assert whole(both).column("json.n") == [0, 1, 2, 3]
    for _, fields in rows:
        del fields["txt"]
    assert contents(whole(write_tar(tmp_path / "alone.tar", rows))) == {i: [f"json {i}"] for i in range(4)}
    wrong = r"json\.captoin .*, but png, txt, json, json\.caption, json\.n, json\.tags; did you mean json\.caption\?$"
    refused(wrong, both, caption_column="json.captoin")
    refused(r"json\.n does not hold text", both, caption_column="json.n")


def test_what_is_broken_costs_one_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = samples(0, 40, json=lambda i: as_json(caption=f"c{i}", note=None if i < 30 else "late"))
    del rows[1][1]["txt"]  # among the first five, from which the `datasets` library would tell the columns
    del rows[2][1]["png"]
    rows[3][1]["txt"] = b"\xff\xfe\xfd"
    rows[4][1]["json"] = b"{broken"
    rows[5][1]["txt"] = b" \n"
    rows[6][1]["png"] = png(6)[:50]
    file = write_tar(tmp_path / "t.tar", [*rows, ("README", {"md": b"no sample"})])
    named = r"5 of 41 images .*t\.tar sample 00001: no text in column txt; .*00002: no i"
    with pytest.raises(TooManyBad, match=named):
        whole(file, max_bad_fraction=0.12)  # 4.92
    with caplog.at_level(logging.WARNING):
        source = whole(file, max_bad_fraction=0.122)
    assert "5 of 41 rows are skipped" in caplog.text
    assert [source.captions(i) for i in range(3)] == [["text 0"], ["text 4"], ["text 6"]] and len(source) == 36
    with pytest.raises(BadImage, match=r"^t\.tar sample 00006: cannot be decoded"):
        source.image(2)
    assert number_of(source.image(1)) == 4
    by_json = whole(file, caption_column="json.caption", max_bad_fraction=0.1)
    assert len(by_json) == 38 and by_json.captions(4) == ["c6"]  # 2 has no image, 4 no object


def test_formats_that_differ_are_one_column(tmp_path: Path) -> None:
    rows = [(key, {"jpg" if int(key) % 2 else "png": f["png"], "txt": f["txt"]}) for key, f in samples(0, 6)]
    file = write_tar(tmp_path / "mixed.tar", rows)
    assert read_tables(file)["train"].columns == ["txt", "image"]
    assert contents(whole(file)) == texts(0, 6)
    two = write_tar(tmp_path / "two.tar", samples(0, 6, jpg=lambda i: png(i + 50)))
    refused(r"png, jpg could each be the image column; set data\.image_column", two)
    assert contents(whole(two, image_column="jpg")).keys() == set(range(50, 56))


def test_folders_and_dots_in_names(tmp_path: Path) -> None:
    """A sample is what stands before the first dot of the last part; capitals in an extension do not matter."""
    rows = [("a.b/1", {"PNG": png(1), "txt": b"one"}), ("a.b/2", {"png": png(2), "orig.txt": b"x", "txt": b"two"})]
    rows += [("c/1", {"png": png(3), "txt": b"three"}), ("c/.hidden", {"txt": b"no"})]
    source = whole(write_tar(tmp_path / "t.tar", rows))
    assert contents(source) == {1: ["one"], 2: ["two"], 3: ["three"]}
    assert source.name(0) == "t.tar sample a.b/1"


def test_members_that_are_no_files_and_names_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(99))
    file = Path(write_tar(tmp_path / "set" / "t.tar", samples(0, 2)))
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
    assert contents(whole(file, max_bad_fraction=1)) == texts(0, 2)
    assert sorted(tmp_path.rglob("*")) == before


def write_members(file: Path, names: list[str], format: int = tarfile.GNU_FORMAT, start: str = "") -> Path:
    """Members in that order, with the folders that they lie in; "3.png" holds image 3, "3.txt" its text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    comment = {"comment": "ü"} if format == tarfile.PAX_FORMAT else {}
    with tarfile.open(file, "w", format=format, pax_headers=comment) as tar:
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name or start):
            member = tarfile.TarInfo(start + folder)
            member.type = tarfile.DIRTYPE
            tar.addfile(member)
        for name in names:
            number, kind = name.rpartition("/")[2].split(".")
            data = png(int(number)) if kind == "png" else f"text {int(number)}".encode()
            member = tarfile.TarInfo(start + name)
            member.size, member.mtime = len(data), 1.5  # a fraction wants a PAX header of its own
            tar.addfile(member, io.BytesIO(data))
    return file


def in_any_order(count: int) -> dict[str, list[str]]:
    names = [f"{i:03d}.{kind}" for i in range(count) for kind in ("png", "txt")]
    mixed = random.Random(0).sample(names, len(names))
    first = {f"{kind} first": sorted(names, key=lambda name: not name.endswith(kind)) for kind in ("png", "txt")}
    return {**first, "mixed": mixed}


def test_a_sample_is_joined_by_its_name_wherever_its_files_lie(tmp_path: Path) -> None:
    orders = in_any_order(40)
    for order, names in orders.items():
        assert contents(whole(write_members(tmp_path / "x" / "0.tar", names))) == texts(0, 40), order
    folders = [f"{'a b' if int(name[:3]) % 2 else 'ä'}/{name}" for name in orders["mixed"]]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        for start in ("", "./", ".//" + "long/" * 40):
            assert contents(whole(write_members(tmp_path / "x" / "0.tar", folders, format, start))) == texts(0, 40)
    (tmp_path / "files").mkdir()
    for i in range(3):
        (tmp_path / "files" / f"{i}.png").write_bytes(png(i))
        (tmp_path / "files" / f"{i}.txt").write_text(f"text {i}")
    if tar := shutil.which("tar"):
        for call in (["."], ["--transform=s,^,./,", *(f"{i}.{kind}" for kind in ("png", "txt") for i in range(3))]):
            subprocess.run([tar, "-C", tmp_path / "files", "-cf", tmp_path / "made.tar", *call], check=True)
            assert contents(whole(tmp_path / "made.tar")) == texts(0, 3)
    twice = write_members(tmp_path / "twice.tar", ["0.png", "0.txt", "1.png", "1.txt", "./0.png"])
    refused(r"twice\.tar: \./0\.png is there twice", twice)


def test_a_text_of_several_lines_is_several_captions_as_in_a_folder(tmp_path: Path) -> None:
    lists = {
        0: b"a dog\none dog \n",
        1: b"a cat",
        2: b"[\n 'a cow',\n 'one cow'\n]",
        3: b"\xef\xbb\xbfa hen\r\na bird\r\n",
    }
    rows = samples(0, 4, txt=lambda i: lists[i])
    for i, (_, fields) in enumerate(rows):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for field, data in fields.items():
            (tmp_path / "photos" / f"{i}.{field}").write_bytes(data)
    file = Path(write_tar(tmp_path / "tars" / "train-0.tar", rows))
    told = {0: ["a dog", "one dog"], 1: ["a cat"], 2: ["a cow", "one cow"], 3: ["a hen", "a bird"]}
    assert contents(whole(tmp_path / "photos")) == contents(whole(file)) == told
    for split in ("validation", "test"):
        shutil.copy(file, tmp_path / "tars" / f"{split}-0.tar")
    ((shard,),) = training_shards(DataConfig(str(tmp_path / "tars"), streaming=True))
    assert {number_of(decode_image(one.image or b"", "x")): usable_captions(one) for one in shard.read()} == told


def test_a_stream_wants_the_files_of_a_sample_side_by_side(tmp_path: Path) -> None:
    """Or it says how; what it does read is what the table has."""
    sort = "tar --sort=name, or set data.streaming to false"
    for order, names in in_any_order(300).items():
        write_members(tmp_path / order / "1.tar", ["0.png", "0.txt"])
        write_members(tmp_path / order / "0.tar", names)
        with pytest.raises(ValueError, match=rf"0\.tar: (none of the first 100|the files of sample) .*{sort}"):
            training_shards(DataConfig(str(tmp_path / order), streaming=True))
    for names, said in (([], "the files of sample 1 lie apart"), (["2.png"], "2.png is there twice")):
        few = write_members(tmp_path / "few.tar", [*(names or ["1.png"]), "0.png", "0.txt", "2.png", "1.txt", "2.txt"])
        (shard,) = find_shards(str(few))["train"]
        with pytest.raises(ValueError, match=f"few.tar: {said}"):
            shard.table("x")
        with pytest.raises(Unordered, match=f"few.tar: {said}"):
            list(replace(shard, image="png", captions=("txt",)).read())
    write_tar(tmp_path / "set" / "0.tar", samples(0, 12))
    shutil.copy(few, tmp_path / "set" / "1.tar")
    write_tar(tmp_path / "set" / "validation.tar", samples(20, 22))
    write_tar(tmp_path / "set" / "test.tar", samples(22, 24))
    for workers in (0, 1):  # one of many shards: nothing goes on without it
        config = DataConfig(str(tmp_path / "set"), streaming=True, batch_size=4, shuffle_buffer=8, workers=workers)
        stream = open_stream(config, Augment(4, "none"), Tokenizer(77), seed=0)
        with pytest.raises(Unordered, match=r"^[^\n]*1\.tar: 2\.png is there twice; each sample has a [^\n]*$"):
            list(stream.batches(0, 20))
    ordered = write_members(tmp_path / "ordered.tar", sorted(in_any_order(9)["mixed"]), tarfile.PAX_FORMAT, "./")
    (shard,) = find_shards(str(ordered))["train"]
    found = replace(shard, image="png", captions=("txt",)).read()
    read = {number_of(decode_image(sample.image or b"", "x")): sample.captions for sample in found}
    assert read == contents(whole(ordered)) == texts(0, 9)


def test_members_that_are_links_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_members(tmp_path / "t.tar", ["0.png", "0.txt"])
    with tarfile.open(file, "a") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("2.png", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "0.png"
            tar.addfile(member)
    assert contents(whole(file)) == texts(0, 1)
    (shard,) = find_shards(str(file))["train"]
    assert len(list(replace(shard, image="png", captions=("txt",)).read())) == 1
    said = "t.tar: 2 members are links or no files, and left out: 1.png; 2.png; pack what they lead to: tar --deref"
    assert sum(said in message for message in caplog.messages) == 2


def test_a_table_inside_a_tar_is_to_be_unpacked(tmp_path: Path) -> None:
    rows = [(key, {"png": fields["png"]}) for key, fields in samples(0, 3)]
    file = write_tar(tmp_path / "t.tar", [*rows, ("metadata", {"csv": b"file_name,text\n0.png,a\n"})])
    said = r"t\.tar holds a table \(\.csv\) and no text beside its images; unpack it, and name the folder"
    refused(said, file)
    with pytest.raises(ValueError, match=said):
        find_shards(file)["train"][0].table("x")
    both = write_tar(tmp_path / "both.tar", samples(0, 3, csv=lambda i: b"x"))  # one a sample
    assert contents(whole(both)) == texts(0, 3)


def test_a_tar_that_is_cut_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = Path(write_tar(tmp_path / "t.tar", samples(0, 20)))
    data = file.read_bytes()
    # a member takes a block for its head and one for its data here
    for end, kept in ((512 * 4 * 7, 7), (512 * 4 * 7 + 532, 7), (512 * 4 * 7 + 100, 7), (512 * 4 * 7 + 1030, 8)):
        caplog.clear()
        file.write_bytes(data[:end])
        source = whole(file, max_bad_fraction=1)
        assert [len(source), "t.tar is cut short or damaged after sample" in caplog.text] == [7, True]
        assert len(read_tables(str(file))["train"]) == kept
    caplog.clear()
    damaged = bytearray(data)
    damaged[512 * 4 * 7 : 512 * 4 * 7 + 512] = b"x" * 512
    file.write_bytes(damaged)
    assert len(whole(file, max_bad_fraction=1)) == 7
    assert "t.tar is cut short or damaged after sample 00006" in caplog.text
    with pytest.raises(TooManyBad, match=r"t\.tar is cut short .*: about 18 samples are lost"):  # told by its size
        whole(file)
    caplog.clear()
    file.write_bytes(data)
    assert len(whole(file)) == 20 and not caplog.text


def test_files_that_are_no_tars_and_shards_that_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    data = Path(write_tar(tmp_path / "x" / "b.tar", samples(0, 2))).read_bytes()
    (tmp_path / "b.tar").write_bytes(gzip.compress(data))
    write_tar(tmp_path / "c.tar", [])
    write_tar(tmp_path / "d.tar", [*samples(0, 2), ("00001", {"png": png(1)})])
    for n in (0, 1, 3):
        write_tar(tmp_path / "m" / f"{n:03d}.tar", samples(n, n + 1))
    (tmp_path / "m" / "x.parquet").touch()
    for source, message in {
        "a.tar": r"a\.tar is not a tar",
        "b.tar": r"b\.tar is not a tar .*; unpack it",
        "c.tar": r"c\.tar: no sample in 1 tars; expected members such as 00001\.jpg",
        "d.tar": r"d\.tar: 00001\.png is there twice",
        "m/*": r"files of several kinds \(\.parquet, \.tar\)",
    }.items():
        refused(message, tmp_path / source)
    missing = r"\{000\.\.003\}\.tar: there is no file .*/002\.tar .*; did you mean"
    refused(missing, tmp_path / "m" / "{000..003}.tar", error=FileNotFoundError)
    refused(r"shards-\*\.tar: no file fits", tmp_path / "shards-*.tar", error=FileNotFoundError)


def test_tars_that_each_count_from_0(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", [(str(i), samples(20 * n + i, 20 * n + i + 1)[0][1]) for i in range(20)])
    source = str(tmp_path / "{0..1}.tar")
    assert everything(source) == texts(0, 40)
    assert len(set(images_of(read_tables(source)["train"], "png").keys(range(40)))) == 40


def test_many_threads_read_the_right_images(tmp_path: Path) -> None:
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", samples(100 * n, 100 * n + 100))
    source = whole(tmp_path / "{0..2}.tar")
    rows = [(i * 7) % 300 for i in range(1200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda row: number_of(source.image(row)), rows)) == rows


def test_a_tar_that_changes_or_goes(tmp_path: Path) -> None:
    file = Path(write_tar(tmp_path / "t.tar", samples(0, 3)))
    source = whole(file)
    write_tar(file, samples(10, 15))
    assert contents(whole(file)).keys() == set(range(10, 15))  # the list of members is not the old one
    file.unlink()
    with pytest.raises(BadImage, match=r"t\.tar sample 00001: cannot be read"):
        source.image(1)


def test_a_tar_of_folders_of_classes_is_to_be_unpacked(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", [(f"test/{name}/0", {"png": png(0)}) for name in ("cat", "dog")])
    with pytest.raises(ValueError, match=r"t\.tar .*holds images alone; .* unpack it, and name the folder$"):
        open_labelled(file)


def test_classes_in_tars(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "t.tar", samples(0, 3, cls=lambda i: str([10, 9, 10][i]).encode()))
    (tmp_path / "names.txt").write_text("nine\nten\n")
    source = open_labelled(file, classnames_file=tmp_path / "names.txt", classnames_by="order")
    assert [source.classes[source.label(i)] for i in range(3)] == ["ten", "nine", "ten"]
    assert number_of(source.image(1)) == 1


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the folder "served"."""
    import datasets

    pytest.importorskip("aiohttp")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (tmp_path / "served").mkdir()
    with served(tmp_path / "served") as address:
        yield address


def test_files_behind_a_url(tmp_path: Path, server: str) -> None:
    for n in range(3):
        write_tar(tmp_path / "served" / f"train-{n:03d}.tar", samples(5 * n, 5 * n + 5))
    write_tar(tmp_path / "served" / "test-000.tar", samples(15, 18))
    assert everything(server + "/train-{000..002}.tar") == texts(0, 15)
    test = opened(f"{server}/{{train-{{000..002}},test-000}}.tar", "test")
    assert contents(test).keys() == {15, 16, 17}
    assert test.name(0) == "test-000.tar sample 00015"
    refused(r"train-004\.tar: cannot be fetched", f"{server}/train-004.tar", error=FileNotFoundError)
    refused("of what lies behind a URL, Parquet files", f"{server}/list.csv")
    write_shard(tmp_path / "served" / "train.parquet", 0, 4)
    assert everything(f"{server}/train.parquet") == texts(0, 4)
