"""A stream: every id once an epoch, the same batches for all who share the work, and nothing lost on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.files import (
    cells,
    encoded,
    number_of,
    png,
    samples,
    served,
    write_jsonl,
    write_parquet,
    write_shard,
    write_tar,
)

from miniclip.common.stopping import Passing
from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.captioned import open_source
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, Example
from miniclip.data.stream import stream as module
from miniclip.data.stream.held_out import HeldPairs, _collect, streamed_eval_pairs
from miniclip.data.stream.lanes import START, Cursor, Drawn, StreamLost, lane_count
from miniclip.data.stream.shards import split_shards, training_shards
from miniclip.data.stream.stream import StreamBatch, TrainStream, image_id, open_stream, usable_captions
from miniclip.data.tables.kinds import find_shards
from miniclip.data.tables.table import Sample, Shard, Table
from miniclip.data.tables.tars import TarShard
from miniclip.models.tokenizer import Tokenizer

EPOCH = 10**6  # what the ids of an epoch are apart


@dataclass(frozen=True)
class Fake:
    """A shard of numbers in memory, the negative ones of no use. fails: raised after all of them. rows, opened, closed:
    how many there have been."""

    name: str
    numbers: Sequence[int]
    fails: Exception | None = None
    seen: Counter[str] = field(default_factory=Counter)

    def table(self, label: str) -> Table:
        raise NotImplementedError

    def read(self) -> Generator[Sample, None, None]:
        self.seen["opened"] += 1
        try:
            for row, number in enumerate(self.numbers):
                self.seen["rows"] += 1
                yield Sample(b"%d" % number if number >= 0 else None, ["a caption"], f"{self.name} row {row}")
            if self.fails is not None:
                raise self.fails
        finally:
            self.seen["closed"] += 1


def fakes(*sizes: int, first: int = 0) -> list[Any]:
    ends = np.cumsum([first, *sizes]).tolist()
    return [Fake(f"shard-{i}", range(a, b)) for i, (a, b) in enumerate(pairwise(ends))]


def three_sources() -> list[list[Any]]:
    return [fakes(*(40,) * 30), fakes(*(25,) * 26, first=10_000), fakes(500, first=20_000)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded, the identity of a sample is its number and its epoch; workers take turns in this process."""

    def example(self: TrainStream, pool: int, drawn: Drawn) -> Example:
        if (data := drawn.sample.image) is None:
            raise BadImage(f"{drawn.sample.name}: holds no image")
        ids = np.array([1, int(data) % 60000, 2], dtype=np.uint16)
        return Example(np.zeros((1, 1, 3), np.uint8), [1.0], [ids], drawn.epoch * EPOCH + int(data))

    def loader(reader: Any, num_workers: int, **options: Any) -> Iterator[Any]:
        infos = [SimpleNamespace(id=i, num_workers=num_workers) for i in range(num_workers)] or [None]
        firsts, readers = [], [iter(reader) for _ in infos]
        for info, one in zip(infos, readers, strict=True):  # each asks who it is before its first part
            monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
            firsts.append(next(one))
        yield from firsts
        while True:
            yield from map(next, readers)

    monkeypatch.setattr(TrainStream, "_example", example)
    monkeypatch.setattr(module, "DataLoader", loader)
    monkeypatch.setattr(module, "batches_of", lambda loader: loader)  # without processes to look after


def stream(pools: Any, rank: int = 0, world: int = 1, workers: int = 0, **more: Any) -> TrainStream:
    settings: dict[str, Any] = {"batch_size": 50, "seed": 3, "buffer": 400, **more}
    return TrainStream(pools, Augment(4), Tokenizer(), rank=rank, world=world, workers=workers, **settings)


def run(pools: Any, steps: int, world: int = 1, *begin: Any, **options: Any) -> list[list[StreamBatch]]:
    """Step -> what each process gets. begin: workers, the first step and the cursors there."""
    workers, first_step, cursors = (*begin, *(0, 0, None)[len(begin) :])
    streams = [stream(pools, rank, world, workers, **options) for rank in range(world)]
    found = list(zip(*(one.batches(first_step, steps, cursors) for one in streams), strict=True))
    for step, parts in enumerate(found, first_step):
        assert [len(part.batch.image_id) for part in parts] == streams[0].shares_at(step)
    return list(map(list, found))


def ids(steps: Sequence[Sequence[StreamBatch]]) -> list[list[int]]:
    """The global batches, each in an order that does not depend on who had what."""
    return [sorted(chain(*(part.batch.image_id.tolist() for part in parts))) for parts in steps]


def all_cursors(parts: Sequence[StreamBatch]) -> dict[int, Cursor]:
    merged = {lane: cursor for part in parts for lane, cursor in part.cursors.items()}
    assert len(merged) == sum(len(part.cursors) for part in parts)  # no lane has two owners
    return merged


def opened(config: DataConfig, augment: Any = None, seed: int = 1, steps: int = 4, **share: Any) -> list[Batch]:
    """The first batches of a configuration."""
    one = open_stream(config, augment or Augment(4), Tokenizer(), seed=seed, **share)
    return [step.batch for step in one.batches(0, steps)]


def config_of(source: Path | str, **options: Any) -> DataConfig:
    return DataConfig(source=str(source), streaming=True, **options)


def write_splits(folder: Path, *train: Any) -> None:
    """Tars of samples for training, and some for validation and test."""
    parts = {f"train-{i}": rows for i, rows in enumerate(train)}
    for name, rows in (parts | dict.fromkeys(("validation-0", "test-0"), samples(900, 903))).items():
        write_tar(folder / f"{name}.tar", rows)


def images_of(*numbers: Iterable[int]) -> set[int]:
    return {image_id(png(n)) for n in chain(*numbers)}


def seen_in(batches: Sequence[Batch]) -> set[int]:
    return {i for batch in batches for i in batch.image_id.tolist()}


def files(shards: Sequence[Shard]) -> list[str]:
    return [Path(shard.name).name for shard in shards]


# --- the order

SIZES: list[tuple[int, ...]] = [(37,) * 30, (9, 300, 41), (400,), (3,) * 120, tuple(range(1, 41))]
SIZES.append(tuple(50 + 13 * (-1) ** i for i in range(50)))


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)} shards")
def test_an_epoch_has_every_id_once_whoever_reads_and_wherever_it_stops(sizes: tuple[int, ...], quick: None) -> None:
    pools, steps = [fakes(*sizes)], max(8, 4 * sum(sizes) // 50)
    whole = run(pools, steps)
    found = ids(whole)
    # the longest shard may lag behind: once all lanes are past an epoch, it misses no id
    for epoch in range(5):
        part = [i % EPOCH for batch in found for i in batch if i // EPOCH == epoch]
        assert len(set(part)) == len(part)
        if epoch < whole[-1][0].epoch:
            assert sorted(part) == list(range(sum(sizes)))
    assert whole[-1][0].epoch >= 1 and ids(run(pools, steps, seed=4)) != found
    # each spread begins and stops somewhere, and another one goes on
    spreads, stops = [(1, 2), (3, 0), (2, 2), (5, 0), (1, 0)], [1, steps // 3, steps // 2, steps - 1, steps - 2]
    for stop, (one, other) in zip(stops, pairwise([*spreads, spreads[0]]), strict=True):
        before = run(pools, stop, *one)
        after = run(pools, steps, *other, stop, all_cursors(before[-1]))
        assert ids(before) + ids(after) == found
        assert all_cursors(after[-1]) == all_cursors(whole[-1])


def test_the_order_is_that_of_earlier_releases(quick: None) -> None:
    """Shards mixed, each shuffled, and anew in the second epoch. Runs of those releases go on: change these only where
    the checkpoints' layout changes as well."""
    for pools, mixing, layout, wanted in (
        ([fakes(*(37,) * 30)], [1.0], "2cfaabee9dd8c60e", "5ca9dd94702e0473"),
        ([fakes(9, 300, 41)], [1.0], "6081f7fbca2d69b5", "cebadeaf5836b6d7"),
        (three_sources(), [0.5, 0.3, 0.2], "2af78fc270187b61", "abd09b0e7f60ed60"),
    ):
        found = [step[0].batch.image_id.tolist() for step in run(pools, 40, mixing=mixing)]
        assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == wanted
        assert stream(pools, mixing=mixing).layout == layout


def test_no_more_is_read_than_the_buffer_and_no_file_stays_open(quick: None) -> None:
    for sizes, times in (((400,) * 48, 1), ((3000,) * 5, 2)):
        shards = fakes(*sizes)
        batches = stream([shards], buffer=1000).batches(0, 90)
        for step, _ in zip(range(1, 61), batches, strict=False):
            # lanes that share a shard keep what they come across for one another
            assert sum(s.seen["rows"] for s in shards) - 50 * step <= times * 1000
        assert sum(s.seen["opened"] - s.seen["closed"] for s in shards) > 0
        batches.close()  # type: ignore[attr-defined]
        assert all(s.seen["opened"] == s.seen["closed"] for s in shards)
        assert all(s.seen["rows"] <= len(s.numbers) for s in shards)  # lanes that share a shard read it once


def test_shards_that_all_lanes_have_left_are_let_go(quick: None) -> None:
    one = stream([fakes(*(37,) * 30)])
    lanes = one.own_lanes(0, 1, dict.fromkeys(range(one.lanes), START))
    for step in range(60):
        one.part(lanes, step)
        assert all(len(lane.group._passes) <= 1 for lane in lanes.values())


def test_how_many_lanes() -> None:
    assert [lane_count(n) for n in (1, 5, 7, 23, 24, 96, 97, 5000)] == [24, 25, 28, 46, 24, 96, 96, 96]


def test_mixing_gives_each_source_its_share(quick: None) -> None:
    pools = three_sources()
    found = ids(run(pools, 60, 3, 2, mixing=[0.5, 0.3, 0.2], batch_size=30))
    assert ids(run(pools, 60, mixing=[0.5, 0.3, 0.2], batch_size=30)) == found
    assert all(Counter(i % EPOCH // 10_000 for i in batch) == {0: 15, 1: 9, 2: 6} for batch in found)
    seen = Counter(chain(*found))
    assert max(seen.values()) == 1  # each source has epochs of its own
    assert Counter(i // 10_000 for i in seen if i < EPOCH) == {0: 900, 1: 540, 2: 360}
    uneven = ids(run(pools, 40, mixing=[2, 1, 1], batch_size=7))
    assert Counter(i % EPOCH // 10_000 for batch in uneven for i in batch) == {0: 140, 1: 70, 2: 70}


def test_without_mixing_sources_are_one_data_set(tmp_path: Path) -> None:
    for name, first, last, column in (("a", 0, 60, "text"), ("b", 100, 120, "caption")):
        for split, start, end in (("train-0", first, last), ("validation-0", 900, 901), ("test-0", 901, 902)):
            columns = {"image": cells(end - start, start), column: ["an image"] * (end - start)}
            write_parquet(tmp_path / name / f"{split}.parquet", columns)
    config = replace(config_of("-", batch_size=8), source=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert open_stream(config, Augment(4), Tokenizer(), seed=0).lanes == lane_count(2)
    assert seen_in(opened(config, steps=20)) == images_of(range(60), range(100, 120))


# --- what a batch holds


@pytest.fixture
def tars(tmp_path: Path) -> DataConfig:
    """120 images for training in three tars."""
    for i in range(3):
        write_tar(tmp_path / f"train-{i:03d}.tar", samples(40 * i, 40 * i + 40))
    write_tar(tmp_path / "validation-000.tar", samples(500, 510))
    write_tar(tmp_path / "test-000.tar", samples(600, 610))
    return config_of(tmp_path, batch_size=30, shuffle_buffer=60)


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return all(
        all(map(torch.equal, one[:5], two[:5])) and (one.lengths, one.weight) == (two.lengths, two.weight)
        for one, two in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("captions", [1, 2])
def test_batches_are_equal_bit_by_bit_whoever_reads(tars: DataConfig, captions: int) -> None:
    config, augment = replace(tars, captions_per_image=captions), Augment(4, flip=0.5, colour_jitter=0.2)
    alone = opened(config, augment, steps=8)
    assert same(alone, opened(replace(config, workers=2), augment, steps=8))
    assert not any(same([a], [b]) for a, b in pairwise(alone))
    for one in alone:
        shapes = [tuple(x.shape) for x in (one.image, one.look, one.text[:, 0], one.text_id)]
        assert shapes == [(30, 3, 4, 4), (30, 4), (30 * captions,), (30, captions)]
        assert one.image.is_contiguous(memory_format=torch.channels_last)
        assert one.lengths == [int((row > 0).sum()) for row in one.text]


def test_captions_stay_with_their_images_and_each_epoch_has_its_own_look(tars: DataConfig) -> None:
    number = {image_id(png(n)): n for n in range(120)}
    tokens = {tuple(Tokenizer()([f"text {n}"])[0].tolist()): n for n in range(120)}
    looks: dict[int, list[tuple[float, ...]]] = {}
    for batch in opened(tars, Augment(4, colour_jitter=0.3), steps=8):
        for pixels, look, text, key in zip(*(x.tolist() for x in (batch.image, *batch[1:4])), strict=True):
            assert tokens[tuple(text + [0] * (77 - len(text)))] == number[key] == pixels[0][0][0]
            looks.setdefault(number[key], []).append(tuple(look))
    assert {n: len(set(found)) for n, found in looks.items()} == dict.fromkeys(range(120), 2)


def test_pinned_batches_are_the_same(tars: DataConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("memory is pinned for a GPU")
    pinned = opened(tars, pin=True)
    assert same(opened(tars), pinned) and all(batch.image.is_pinned() for batch in pinned)


# --- what is broken


@pytest.mark.parametrize("workers", [0, 2])
def test_five_percent_broken_are_named_and_the_others_seen(tmp_path: Path, workers: int) -> None:
    broken: list[dict[str, bytes]] = [
        {"png": png(1)[:40], "txt": b"cut short"},
        {"png": b"", "txt": b"empty"},
        {"png": b"not an image", "txt": b"text"},
        {"txt": b"no image at all"},
        {"png": png(1001)},
        {"png": png(1005), "json": b'{"caption": "elsewhere"}'},
        *({"png": png(1002), "txt": text} for text in (b"", b"  \n ", "café".encode("latin-1"), b"\xff\xfe")),
    ]
    rows = samples(0, 400)
    for i, bad in enumerate(broken * 2):
        rows[i * 20 + 7] = (f"{i * 20 + 7:05d}", bad)
    write_splits(tmp_path, *(rows[i : i + 100] for i in range(0, 400, 100)))
    batches = opened(config_of(tmp_path, batch_size=20, workers=workers, shuffle_buffer=50), steps=20)
    names = {name.split(":")[0] for batch in batches for name in batch.bad}
    assert names == {f"train-{i // 100}.tar sample {i:05d}" for i in range(7, 400, 20)}
    seen = Counter(i for batch in batches for i in batch.image_id.tolist())
    assert set(seen) == images_of(n for n in range(400) if n % 20 != 7)
    assert seen.total() == 400 and max(seen.values()) == 2  # 380 of the first epoch, 20 of the second


CUTS = {"in an image": 700, "in a header": 512 * 9 + 100, "between samples": 512 * 8, "between members": 512 * 10}


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_tar_is_named_once_and_the_others_go_on(tmp_path: Path, cut: str) -> None:
    """A sample takes four blocks of 512 bytes: header and image, header and text."""
    write_splits(tmp_path, *(samples(30 * i, 30 * i + 30) for i in range(3)))
    whole, damaged = CUTS[cut] // 2048, tmp_path / "train-1.tar"
    assert damaged.stat().st_size >= 30 * 4 * 512
    damaged.write_bytes(damaged.read_bytes()[: CUTS[cut]])
    config = config_of(tmp_path, batch_size=24, shuffle_buffer=48, workers=2 if cut == "in a header" else 0)
    batches = opened(config, seed=2, steps=30)
    bad = {name for batch in batches for name in batch.bad}
    (beyond,) = (name for name in bad if "cannot be read beyond" in name)
    assert beyond.startswith(f"{damaged}: cannot be read beyond sample")
    assert all(name.startswith(f"train-1.tar sample {30 + whole:05d}: no caption") for name in bad - {beyond})
    assert seen_in(batches) == images_of(range(30 + whole), range(60, 90))


def test_a_byte_of_a_parquet_page_that_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file and what is wrong with it, read as a whole or as a stream; the others go on."""
    for i in range(3):
        write_shard(tmp_path / f"train-{i}.parquet", 90 * i, 90 * i + 90)
    for name in ("validation", "test"):
        write_shard(tmp_path / f"{name}.parquet", 900, 903)
    damaged = tmp_path / "train-1.parquet"
    page = pq.ParquetFile(damaged).metadata.row_group(0).column(2).data_page_offset
    data = bytearray(damaged.read_bytes())
    data[page + 3] ^= 0x40
    damaged.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"train-1\.parquet is cut short or damaged: (OSError|ArrowInvalid): "
    ) as error:
        open_source(DataConfig(str(tmp_path)), "train")
    assert "An error occurred while generating" not in str(error.value)
    batches = opened(config_of(tmp_path, batch_size=24, shuffle_buffer=48), steps=20)
    (bad,) = {name for batch in batches for name in batch.bad}
    assert bad.startswith(f"{damaged}: cannot be read beyond sample 0 (") and bad.endswith("about 90 samples are lost")
    assert seen_in(batches) == images_of(range(90), range(180, 270))


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), OSError(errno.ESTALE, "stale"), TimeoutError()])
def test_a_lost_connection_is_no_fault_of_the_data_that_are_held_out(tmp_path: Path, error: Exception) -> None:
    write_splits(tmp_path, samples(0, 30))
    shards = split_shards(config_of(tmp_path), str(tmp_path), "validation")[0]
    held = HeldPairs([], [], [], 8)

    def reading(self: Shard) -> Iterator[Sample]:
        yield from TarShard.read(shards[0])
        raise error

    far = SimpleNamespace(name="https://far/validation.tar", read=partial(reading, shards[0]))
    with pytest.raises(StreamLost, match=r"validation\.tar: the connection was lost") as lost:
        _collect([far], held, 9, None, {})  # type: ignore[list-item]
    assert isinstance(lost.value, Passing)


def test_a_missing_shard_is_bad_and_a_lost_connection_stops(quick: None) -> None:
    shards = fakes(*(30,) * 30)
    shards[4] = Fake("gone.tar", [], FileNotFoundError("404"))
    steps = run([shards], 20, 3)
    names = [name for parts in steps for part in parts for name in part.batch.bad]
    assert set(names) == {"gone.tar: cannot be read beyond sample 0 (FileNotFoundError: 404)"}
    assert sorted(i for batch in ids(steps) for i in batch if i < EPOCH) == [*range(120), *range(150, 900)]
    shards[4] = Fake("far.tar", range(120, 150), ConnectionResetError("reset"))
    with pytest.raises(StreamLost, match=r"far\.tar: the connection was lost .*run\.resume=true"):
        run([shards], 30)


def test_a_shard_of_broken_samples_is_told_once_after_a_resume(quick: None) -> None:
    shards = [Fake("a", [*range(60), -1], EOFError("cut")), *fakes(60, 60, first=100)]
    names = [n for parts in run([shards], 60, batch_size=7) for n in parts[0].batch.bad]
    assert len(names) > len(set(names)) == 2  # again in the second epoch
    for stop in range(1, 60, 3):
        before = run([shards], stop, batch_size=7)
        after = run([shards], 60, 1, 0, stop, all_cursors(before[-1]), batch_size=7)
        assert [n for parts in (*before, *after) for n in parts[0].batch.bad] == names


def test_nothing_usable_ends_with_advice(quick: None) -> None:
    for shard, told in (
        (Fake("shard", [-1] * 5000), r"1000 samples in a row cannot be used, the last: shard.*data\.image_column"),
        (Fake("a", [], EOFError("cut")), r"50 shards in a row gave no sample, the last: a: cannot.*EOFError"),
        (Fake("small", range(10)), "small has too few samples for the 24 lanes that share it"),
    ):
        with pytest.raises(BadImage if shard.name == "shard" else ValueError, match=told):
            run([[shard]], 1)


# --- sources


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_behind_a_url(tars: DataConfig, tmp_path: Path, workers: int) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads URLs through it")
    with served(tmp_path) as address:
        # there is no 003: named, and not the end of the run
        source = f"{address}/{{train-{{000..003}},validation-000,test-000}}.tar"
        batches = opened(replace(tars, source=source, workers=workers), steps=8)
    assert seen_in(batches) == images_of(range(120))
    assert {name.split(": ")[0] for batch in batches for name in batch.bad} == {f"{address}/train-003.tar"}


def test_parquet_files(tmp_path: Path) -> None:
    """The last of three files is for the splits that are not there."""

    def held(config: DataConfig, role: Any) -> set[bytes]:
        return set(streamed_eval_pairs(config, role, 100, 4).images)

    last, train = {png(n) for n in range(100, 150)}, [f"train-{i}.parquet" for i in range(2)]
    for i in range(3):
        write_shard(tmp_path / f"train-{i}.parquet", 50 * i, 50 * i + 50)
    for source in (tmp_path, tmp_path / "train-[0-2].parquet"):
        config = config_of(source, batch_size=24)
        assert files(training_shards(config)[0]) == train
        assert seen_in(opened(config, steps=6)) == images_of(range(100))
        validation, test = held(config, "validation"), held(config, "test")
        assert not validation & test and validation | test == last and 10 < len(test) < 40
    write_shard(tmp_path / "validation-0.parquet", 300, 310)
    config = config_of(tmp_path)
    assert (held(config, "validation"), held(config, "test")) == ({png(n) for n in range(300, 310)}, last)
    assert files(split_shards(config, str(tmp_path), "train")[0]) == train
    with pytest.raises(ValueError, match=r"one shard and no split for validation or test.*data\.validation_split"):
        training_shards(config_of(tmp_path / "train-0.parquet"))


def test_the_image_feature_and_lists_of_captions(tmp_path: Path) -> None:
    import datasets

    images = [*cells(3), {"bytes": None, "path": "elsewhere.png"}, {"bytes": b"broken", "path": None}, *cells(25, 5)]
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    table = pa.table({"image": images, "captions": [["one", " ", "two"]] * 30}, schema=features.arrow_schema)
    for name in ("train", "validation", "test"):
        pq.write_table(table, tmp_path / f"{name}-0.parquet")
    for workers in (0, 2):
        batches = opened(config_of(tmp_path, batch_size=14, captions_per_image=2, workers=workers))
        assert seen_in(batches) == images_of(n for n in range(30) if n not in (3, 4))
        assert {name.split(":")[0] for b in batches for name in b.bad} == {f"train-0.parquet row {n}" for n in (3, 4)}
        assert all(len(set(row.tolist())) == 2 for b in batches for row in b.text_id)


def test_a_list_in_one_text_is_its_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = ["['a dog', 'one dog']", ["[sic] a cat", '["b", null]']]
    assert usable_captions(Sample(b"", cells, "x")) == ["a dog", "one dog", "[sic] a cat", "b"]
    for split in ("train", "validation", "test"):
        rows = [(f"{n}", {"png": png(n), "txt": b"['a', 'b']"}) for n in range(3)]
        write_tar(tmp_path / f"{split}-0.tar", rows)
    assert streamed_eval_pairs(config_of(tmp_path), "test", 9, 4).texts == [["a", "b"]] * 3
    assert ", test: a list written as text is read as its captions in 3 rows, the first test-0.tar sa" in caplog.text


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    texts = ["Un café", "Ein Hündchen", "Une fenêtre"]
    encodings = ["utf-16", "utf-8-sig", "cp1252"]  # an older encoding takes more than one caption to tell
    coded = [text.encode(encoding) for text, encoding in zip(texts, encodings, strict=True)]
    write_tar(tmp_path / "a.tar", [(f"{n}", {"png": png(n), "txt": text}) for n, text in enumerate(coded)])
    found = list(replace(find_shards(str(tmp_path))["train"][0], image="png", captions=["txt"]).read())
    assert [usable_captions(sample) for sample in found[:2]] == [[text] for text in texts[:2]]
    with pytest.raises(
        BadImage, match=r"a\.tar sample 2: the caption is not UTF-8 .* data\.streaming=false converts it"
    ):
        usable_captions(found[2])


def test_a_hub_set_is_streamed(tars: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads a folder of this layout as it does a set of the Hub."""
    import datasets

    names = [f"train-{i:05d}-of-00002.parquet" for i in range(2)]
    for i, name in enumerate(names):
        write_shard(tmp_path / "hub" / name, 50 * i, 50 * i + 50)
    folders = {"some/pairs": str(tmp_path / "hub"), "some/tars": tars.sources[0]}
    asked = []

    def local(real: Any, name: str, *args: Any, revision: str | None = None, **options: Any) -> Any:
        asked.append((name, *args, revision))
        return real(folders[name], **options)

    for function in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, function, partial(local, getattr(datasets, function)))
    shards = find_shards("some/pairs", "small", "main")["train"]
    assert asked == [("some/pairs", "small", "main")] * 2 and files(shards) == names
    found = [s.image for s in replace(shards[1], image="image", captions=["caption"]).read()]
    assert found == [png(n) for n in range(50, 100)]
    assert [len(shards) for shards in find_shards("some/tars").values()] == [3, 1, 1]


def test_images_of_several_formats_and_captions_in_json(tmp_path: Path) -> None:
    jpeg = encoded(Image.new("RGB", (9, 9), (9, 9, 9)), "jpeg")
    images = [(("jpg", jpeg), ("PNG", png(n)))[n % 2] for n in range(40)]
    texts = [json.dumps({"caption": f"number {n}", "width": 9}).encode() for n in range(40)]
    rows = [(f"{n:05d}", dict([images[n], ("json", texts[n]), ("cls", b"3")])) for n in range(40)]
    for i in range(2):
        write_tar(tmp_path / f"train-{i}.tar", rows)
    both = config_of(tmp_path)
    (shard,) = training_shards(both)[0]
    assert (shard.image, shard.captions) == ("image", ("json.caption",))  # type: ignore[attr-defined]
    assert [(s.image, s.captions) for s in shard.read()] == [(images[n][1], [f"number {n}"]) for n in range(40)]
    for change, told in (
        ({"caption_column": "json.captoin"}, r"json\.captoin \(data\.caption_column\).*did you mean json\.caption"),
        ({"image_column": "jpeg"}, "jpeg"),
    ):
        with pytest.raises(ValueError, match="no column " + told):
            training_shards(replace(both, **change))  # type: ignore[arg-type]


def test_rows_with_one_image_are_one_held_out_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [None, "  ", *(f"caption {n}" for n in range(2, 50))]
    for split in ("train", "validation", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", {"image": [png(n // 5) for n in range(50)], "text": texts})
    with caplog.at_level(logging.WARNING):
        pairs = streamed_eval_pairs(config_of(tmp_path), "validation", 100, 4)
    found = [(number_of(pairs.image(i)), pairs.captions(i)) for i in range(len(pairs))]
    assert found == [(i, texts[max(2, 5 * i) : 5 * i + 5]) for i in range(10)]
    assert pairs.name(1) == "validation-0.parquet row 5"
    assert "2 samples for validation cannot be used: validation-0.parquet row 0: no caption" in caplog.text
    assert set(streamed_eval_pairs(config_of(tmp_path), "validation", 3, 4).images) == {png(0), png(1), png(2)}
    with pytest.raises(ValueError, match="not kept"):
        pairs.column("cls")


# --- messages


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", [{"file_name": "a.png", "text": "a"}])
    (tmp_path / "none").mkdir()
    (tmp_path / "broken").mkdir()
    for i in range(2):
        (tmp_path / "broken" / f"train-{i}.tar").write_bytes(b"nothing of a tar" * 100)
        write_parquet(tmp_path / "paths" / f"{i}.parquet", {"image": ["a.png"] * 9, "text": ["a"] * 9})
        split = {"image": cells(4), "text": ["a"] * 4, "split": ["train", "train", "train", "test"]}
        write_parquet(tmp_path / "column" / f"{i}.parquet", split)
        inside = [(f"{'test' if n % 4 else 'train'}/{key}", fields) for n, (key, fields) in enumerate(samples(0, 9))]
        write_tar(tmp_path / "members" / f"{i}.tar", inside)
    for name, told in (
        ("pairs.jsonl", r"pairs\.jsonl names files of the kind \.jsonl; data\.streaming reads tars"),
        ("none", "holds neither tars nor Parquet files; data\\.streaming reads"),
        ("pears.jsonl", r"pears\.jsonl.*pairs\.jsonl"),
        ("paths", r"image holds paths.*set data\.streaming to false"),
        ("column", r"column 'split' tells the splits, and a stream takes shards as a whole"),
        ("members", "folders inside the tar tell the splits, and a stream takes"),
        ("broken", r"train-0\.tar: cannot be read \(ReadError"),
    ):
        with pytest.raises(FileNotFoundError if name == "pears.jsonl" else ValueError, match=told):
            training_shards(config_of(tmp_path / name))


def test_too_many_readers_and_too_small_batches_are_refused() -> None:
    for shards, workers, size, told in (
        (1, 9, 50, r"3 processes with 9 workers each are more than the 24 lanes.*data\.workers=8"),
        (1, 0, 2, r"data\.batch_size=2 leaves process 2 of 3 without a pair in step 0; use"),
        (25, 0, 3, "without a pair"),  # lanes 24, 0, 1 are of processes 0, 0 and 1
    ):
        with pytest.raises(ValueError, match=told):
            stream([fakes(*(5,) * shards)], 0, 3, workers, batch_size=size)
    assert stream([fakes(*(5,) * 25)], 0, 3, batch_size=6).shares_at(4) == [3, 2, 1]


def test_the_layout_tells_other_data() -> None:
    one = stream([fakes(50, 60)]).layout
    assert one == stream([fakes(50, 60)], 1, 2, 2).layout
    others = [stream([fakes(50, 60)], seed=4), stream([fakes(50, 60)], buffer=900), stream([fakes(50, 60, 9)])]
    assert one not in {other.layout for other in others}
