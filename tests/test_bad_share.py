"""What share of a source may be bad: of all its images, whichever split they are in, in training and in evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.files import cells, png, samples, write_classes, write_csv, write_images, write_parquet, write_tar
from support.models import tiny_model
from support.opened import opened
from test_training import TINY, run

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.captioned import PairSource
from miniclip.data.images import TooManyBad
from miniclip.data.labelled import open_labelled
from miniclip.data.stream.held_out import streamed_eval_pairs
from miniclip.data.stream.lanes import cut_short
from miniclip.data.subset import readable
from miniclip.data.tables.kinds import find_shards
from miniclip.data.tables.short import MOST_ZEROS, lost
from miniclip.evaluation.encode import EncodeOptions, encode_readable
from miniclip.inspection.sample import draw
from miniclip.models.preprocess import Preprocess
from miniclip.models.tokenizer import Tokenizer

TRAIN, HELD_OUT, BROKEN = 190, 9, 195  # the broken one is held out
CUT = png(BROKEN)[:40]


def in_a_table(folder: Path) -> str:
    """Two captions an image, each in a row: the share is of images, not of rows."""
    names = write_images(folder, TRAIN + HELD_OUT)
    (folder / names[BROKEN]).write_bytes(CUT)
    rows = [(n, f"text {i}", "train" if i < TRAIN else "validation") for i, n in enumerate(names) for _ in range(2)]
    return write_csv(folder / "all.csv", [("image", "caption", "split"), *rows])


def in_tars(folder: Path) -> str:
    held_out = [(key, {**fields, "png": CUT} if int(key) == BROKEN else fields) for key, fields in samples(190, 199)]
    write_tar(folder / "train.tar", samples(0, TRAIN))
    write_tar(folder / "validation.tar", held_out)
    return str(folder)


def in_parquet(folder: Path) -> str:
    for split, rows in (("train", range(TRAIN)), ("validation", range(TRAIN, TRAIN + HELD_OUT))):
        images = [{"bytes": CUT if i == BROKEN else png(i), "path": None} for i in rows]
        write_parquet(folder / f"{split}.parquet", {"image": images, "caption": [f"text {i}" for i in rows]})
    return str(folder)


def set_aside(folder: Path) -> str:
    """Without splits: any image of those that are set aside."""
    write_images(folder, TRAIN + HELD_OUT)
    for i in range(TRAIN + HELD_OUT):
        (folder / f"{i}.txt").write_text(f"text {i}")
    (folder / opened(folder, "validation").name(0).split(" ")[0]).write_bytes(CUT)
    return str(folder)


def users(source: PairSource, allowed: float, cache: Path) -> list[Callable[[], Any]]:
    """All that count bad images."""
    augment, options = Augment(4, "none"), EncodeOptions(max_bad_fraction=allowed)
    stored: dict[str, Any] = {"folder": cache, "label": "x", "allowed": allowed, "progress": False}
    return [
        lambda: readable(source, allowed),
        lambda: encode_readable(tiny_model(), source, Preprocess(32), options),
        lambda: draw(source, HELD_OUT, 0, Preprocess(4), allowed=allowed),
        lambda: prepare(source, augment, Tokenizer(77), **stored),
    ]


@pytest.mark.parametrize("make", [in_a_table, in_tars, in_parquet, set_aside])
def test_one_broken_image_of_a_small_split_is_a_small_share_of_its_source(
    make: Callable[[Path], str], tmp_path: Path
) -> None:
    source = make(tmp_path / "data")
    held_out = opened(source, "validation")
    assert len(held_out) in (HELD_OUT, 10) and 1 / len(held_out) > DataConfig.max_bad_fraction
    for use in users(held_out, DataConfig.max_bad_fraction, tmp_path / "cache"):
        use()
    said = r"1 of 199 images cannot be used \(split validation\), more than data\.max_bad_fraction=0\.005 allows: "
    for use in users(held_out, 0.005, tmp_path / "strict"):  # 0.995 of 199
        with pytest.raises(TooManyBad, match=said):
            use()
    assert len(readable(held_out, DataConfig.max_bad_fraction)) == len(held_out) - 1
    both = opened([source, make(tmp_path / "second")], "validation")
    with pytest.raises(TooManyBad, match=r"2 of 398 images cannot be used \(split validation\)"):
        readable(both, 0.005)


def test_a_row_without_a_caption_counts_among_the_rows_of_all_splits(tmp_path: Path) -> None:
    names = write_images(tmp_path, 199)
    rows = [(n, "" if i == BROKEN else "a dog", "train" if i < TRAIN else "test") for i, n in enumerate(names)]
    table = write_csv(tmp_path / "all.csv", [("image", "caption", "split"), *rows])
    assert len(opened(table, "test")) == HELD_OUT - 1
    with pytest.raises(TooManyBad, match=r"1 of 199 images cannot be used \(split test\).*line 197: no text"):
        opened(table, "test", max_bad_fraction=0.005)


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_labelled_images_count_in_all_splits(kind: str, tmp_path: Path) -> None:
    for split, first, last in (("train", 0, TRAIN), ("test", TRAIN, TRAIN + HELD_OUT)):
        write_classes(tmp_path / split, even=range(first, last, 2), odd=range(first + 1, last, 2))
    (tmp_path / "test" / "odd" / f"{BROKEN}.png").write_bytes(CUT)
    data = tmp_path
    if kind == "table":
        files = [str(file.relative_to(data)) for file in sorted(data.glob("*/*/*.png"))]
        rows = [("file_name", "label", "split"), *((f, f.split("/")[1], f.split("/")[0]) for f in files)]
        write_csv(data / "labels.csv", rows)
    source = open_labelled(data, split="test")
    assert len(source) == HELD_OUT and len(readable(source, 0.01)) == HELD_OUT - 1
    with pytest.raises(TooManyBad, match=r"1 of 199 images cannot be used \(split test\)"):
        readable(source, 0.005)


def test_a_stream_counts_among_a_thousand_at_least(tmp_path: Path) -> None:
    """How many images there are is not known: ten of a thousand may be bad, in what is held out as in training."""
    write_tar(tmp_path / "train.tar", samples(0, 40))
    write_tar(tmp_path / "test.tar", samples(100, 130))
    config = DataConfig(str(tmp_path), streaming=True)
    for unsaid, broken in ((10, 10), (11, 0), (0, 11)):
        held_out = samples(200, 230)
        for n in range(unsaid):
            held_out[n][1]["txt"] = b""
        for n in range(broken):
            held_out[29 - n][1]["png"] = CUT + bytes([n])  # equal bytes would be one image
        write_tar(tmp_path / "validation.tar", held_out)
        if unsaid > 10:
            with pytest.raises(TooManyBad, match=r"11 of 1000 images cannot be used \(split validation\)"):
                streamed_eval_pairs(config, "validation", 100, 4)
            continue
        source = streamed_eval_pairs(config, "validation", 100, 4)
        if broken > 10:
            with pytest.raises(TooManyBad, match=r"11 of 1000 images cannot be used \(split validation\)"):
                readable(source, config.max_bad_fraction)
        else:
            assert len(readable(source, config.max_bad_fraction)) == 10


# a sample takes four blocks of 512 bytes: header and image, header and text
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "in a member": lambda data: data[: len(data) // 3],
    "between samples": lambda data: data[: 2048 * 660],
    "and filled": lambda data: data[: 2048 * 660] + bytes(2 * MOST_ZEROS),  # where a download had made room for all
    "by a mark": lambda data: data[: 2048 * 660] + bytes(1024) + data[2048 * 660 :],
}


@pytest.mark.parametrize("cut", CUTS)
def test_shards_that_are_cut_to_a_third_stop_a_run(tmp_path: Path, cut: str) -> None:
    """Also a stream that would end before it gets there: of 2,000 samples a shard it takes 8."""
    data = CUTS[cut](Path(write_tar(tmp_path / "whole.tar", samples(0, 2000))).read_bytes())
    (tmp_path / "t").mkdir()
    for i in range(6):
        (tmp_path / "t" / f"{i}.tar").write_bytes(data)
    for split in ("validation", "test"):
        write_tar(tmp_path / "t" / f"{split}.tar", samples(9000, 9004))
    own = {**TINY["data"], "source": str(tmp_path / "t"), "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**TINY, "data": own, "eval": {"size": 4, "tasks": []}}))
    told = r"images cannot be used .*0\.tar.*about \d{3,4} samples are lost"
    for streaming in ("false", "true") if cut != "by a mark" else ("false",):  # which the ends of a file do not show
        for allowed in ("0", "0.01"):
            options = ["--data.streaming", streaming, "--data.max_bad_fraction", allowed]
            with pytest.raises(TooManyBad, match=told):
                run(str(tmp_path / "c.yaml"), tmp_path / "run", *options)


def test_how_many_a_cut_shard_lacks(tmp_path: Path) -> None:
    """What lies beside it tells, else its neighbours; where nothing does, it holds half; and it lacks one at least."""
    names = [write_tar(tmp_path / "t" / f"{i:05}.tar", samples(0, 300)) for i in range(3)]
    columns = {"image": cells(90), "caption": ["a"] * 90}
    tables = [write_parquet(tmp_path / "p" / f"{i}.parquet", columns) for i in range(3)]
    for name, share in ((names[1], 3), (tables[1], 2)):
        Path(name).write_bytes((data := Path(name).read_bytes())[: len(data) // share])

    def lacks(source: str) -> list[tuple[int, int]]:
        shards = [replace(one, image="png", captions=["txt"]) for one in find_shards(source)["train"]]
        return [(one.images, one.of) for one in cut_short(shards)]

    ((images, of),) = lacks(str(tmp_path / "t"))
    assert images == pytest.approx(200, rel=0.05) and of == 3 * (images + 102)
    (tmp_path / "t" / "sizes.json").write_text(json.dumps({"00001.tar": 400}))
    assert lacks(str(tmp_path / "t")) == [(400 - 102, 1200)]
    (tmp_path / "t" / "00001_stats.json").write_text(json.dumps({"count": 900, "successes": 303}))
    assert lacks(str(tmp_path / "t")) == [(201, 909)]
    (tmp_path / "t" / "00001_stats.json").write_text("cut short as well")
    assert lacks(names[1]) == [(400 - 102, 400)]
    (tmp_path / "t" / "sizes.json").unlink()
    assert lacks(names[1]) == [(102, 204)]
    assert lacks(str(tmp_path / "p")) == [(90, 270)]
    (tmp_path / "t" / "00003.tar").touch()  # empty
    assert lacks(str(tmp_path / "t"))[-1] == (1, 4)
    assert lost("gone", str(tmp_path / "x.tar"), [str(tmp_path / "x.tar")], 0).images == 1


def test_training_and_evaluation_allow_the_same() -> None:
    assert EncodeOptions().max_bad_fraction == DataConfig().max_bad_fraction == 0.01
