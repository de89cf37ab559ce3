"""A stream: every id once an epoch, the same batches for all who share the work, and nothing lost on the way."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.launching import torchrun

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, Example
from miniclip.data.sampler import apportion
from miniclip.data.stream.held_out import streamed_eval_pairs
from miniclip.data.stream.lanes import START, Cursor, Drawn, StreamLost, lane_count
from miniclip.data.stream.shards import Sample, Shard, find_shards, split_shards, training_shards
from miniclip.data.stream.stream import StreamBatch, TrainStream, image_id, open_stream
from miniclip.data.tables.table import Table
from miniclip.models.tokenizer import Tokenizer

SPREADS = [(world, workers) for world in (1, 2, 3) for workers in (0, 1, 2)]


def png(number: int, size: tuple[int, int] = (2, 2)) -> bytes:
    """A picture whose bytes are like no other's."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number % 251, number // 251 % 251, number // 63001)).save(stream, "png")
    return stream.getvalue() + b"%08d" % number


@dataclass(frozen=True)
class Fake:
    """A shard of numbers in memory. fails: raised after all of them. read_rows: how many have been read, in [0]."""

    name: str
    numbers: Sequence[int]
    fails: Exception | None = None
    read_rows: list[int] = field(default_factory=lambda: [0])

    def table(self, label: str) -> Table:
        raise NotImplementedError

    def with_columns(self, image: str, captions: Sequence[str]) -> Self:
        return self

    def read(self) -> Generator[Sample, None, None]:
        for row, number in enumerate(self.numbers):
            self.read_rows[0] += 1
            yield Sample(b"%d" % number if number >= 0 else None, ["a caption"], f"{self.name} row {row}")
        if self.fails is not None:
            raise self.fails


def fakes(*sizes: int, first: int = 0) -> list[Shard]:
    starts = [first, *(first + end for end in np.cumsum(sizes).tolist())]
    return [Fake(f"shard-{i}", range(a, b)) for i, (a, b) in enumerate(pairwise(starts))]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded: the identity of a sample is its number and its epoch."""

    def example(self: TrainStream, pool: int, drawn: Drawn) -> Example:
        data = drawn.sample.picture
        if data is None:
            raise BadImage(f"{drawn.sample.name}: holds no picture")
        number = int(data[-8:])
        ids = np.array([1, number % 60000, 2], dtype=np.uint16)
        return Example(np.zeros((1, 1, 3), np.uint8), [1.0], [ids], drawn.epoch * 10**8 + number)

    monkeypatch.setattr(TrainStream, "_example", example)


def stream(
    pools: Sequence[Sequence[Shard]], rank: int = 0, world: int = 1, workers: int = 0, **options: Any
) -> TrainStream:
    settings: dict[str, Any] = {"batch_size": 50, "seed": 3, "buffer": 400, **options}
    return TrainStream(pools, Augment(4), Tokenizer(), rank=rank, world=world, workers=workers, **settings)


def run(
    pools: Sequence[Sequence[Shard]],
    steps: int,
    world: int = 1,
    workers: int = 0,
    first_step: int = 0,
    cursors: dict[int, Cursor] | None = None,
    **options: Any,
) -> list[list[StreamBatch]]:
    """Step -> what each process gets."""
    streams = [stream(pools, rank, world, workers, **options) for rank in range(world)]
    found = [list(one.batches(first_step, steps, cursors)) for one in streams]
    for step, parts in enumerate(zip(*found, strict=True), first_step):
        assert [len(part.batch.image_id) for part in parts] == streams[0].shares_at(step)
    return [list(parts) for parts in zip(*found, strict=True)]


def ids(steps: Sequence[Sequence[StreamBatch]]) -> list[list[int]]:
    """The global batches, each in an order that does not depend on who had what."""
    return [sorted(chain(*(part.batch.image_id.tolist() for part in parts))) for parts in steps]


def all_cursors(parts: Sequence[StreamBatch]) -> dict[int, Cursor]:
    merged = {lane: cursor for part in parts for lane, cursor in part.cursors.items()}
    assert len(merged) == sum(len(part.cursors) for part in parts)  # no lane has two owners
    return merged


def write_tar(path: Path, samples: Sequence[dict[str, bytes]], first: int = 0) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, fields in enumerate(samples, first):
            for name, data in fields.items():
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, numbers: Sequence[int], **columns: Any) -> None:
    rows = {"image": [png(n) for n in numbers], "text": [f"picture {n}" for n in numbers], **columns}
    pq.write_table(pa.table(rows), path, row_group_size=500)


def numbered(count: int, first: int = 0) -> list[dict[str, bytes]]:
    return [{"png": png(n, (9, 7)), "txt": b"the %dth picture" % n} for n in range(first, first + count)]


# --- the order


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """100,000 pictures in 50 files of unequal lengths."""
    folder = tmp_path_factory.mktemp("many")
    ends = np.linspace(0, 100_000, 51).round().astype(int) + np.array([0, *([13, -13] * 25)]) * (np.arange(51) < 50)
    template = png(0)[:-8]
    for i, (a, b) in enumerate(pairwise(ends.tolist())):
        rows = {"image": [template + b"%08d" % n for n in range(a, b)], "text": ["a picture"] * (b - a)}
        pq.write_table(pa.table(rows), folder / f"train-{i:05d}.parquet")
    for split in ("validation", "test"):
        write_parquet(folder / f"{split}-00000.parquet", [10**7])
    return DataConfig(source=str(folder), streaming=True)


@pytest.mark.slow
def test_100_000_ids_once_an_epoch_and_the_same_batches_for_all(
    hundred_thousand: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    pools = training_shards(hundred_thousand)
    assert len(pools[0]) == 50
    steps, half = 104, 52
    options: dict[str, Any] = {"batch_size": 1000, "buffer": 8192}
    whole = run(pools, steps, **options)
    found = ids(whole)
    first = [i for batch in found for i in batch if i < 10**8]
    later = [i for batch in found for i in batch if i >= 10**8]
    assert min(part.epoch for part in whole[-1]) == 1
    assert sorted(first) == list(range(100_000))
    assert len(set(later)) == len(later) == steps * 1000 - 100_000
    for world, workers in SPREADS[1:]:
        # each spread reads a half from the start and, as another one stops there, a half from the middle on
        before = run(pools, half, world, workers, **options)
        assert ids(before) == found[:half]
        after = run(pools, steps, 4 - world, 2 - workers, half, all_cursors(before[-1]), **options)
        assert ids(after) == found[half:]


@pytest.mark.slow
def test_three_real_processes_read_what_one_reads(hundred_thousand: DataConfig, tmp_path: Path) -> None:
    source = str(hundred_thousand.source)
    script = Path(__file__).with_name("streaming_worker.py")
    result = torchrun(3, script, [source, "30", "2", str(tmp_path)])
    assert result.returncode == 0, result.stderr
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    config = replace(hundred_thousand, batch_size=50, shuffle_buffer=200)
    alone = list(open_stream(config, Augment(4), Tokenizer(), seed=5).batches(0, 30))
    together = [sorted(chain(*(part["ids"][step] for part in parts))) for step in range(30)]
    assert together == [sorted(one.batch.image_id.tolist()) for one in alone]
    cursors = {int(lane): tuple(cursor) for part in parts for lane, cursor in part["cursors"].items()}
    assert cursors == alone[-1].cursors


@pytest.mark.parametrize("sizes", [(37,) * 30, (9, 300, 41), (400,), (3,) * 120, tuple(range(1, 61))])
def test_an_epoch_has_every_id_once(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    total = sum(sizes)
    steps = 4 * total // 50
    found = ids(run([fakes(*sizes)], steps))
    for epoch in range(5):
        part = [i % 10**8 for batch in found for i in batch if i // 10**8 == epoch]
        assert len(set(part)) == len(part)
    # the longest shard may lag behind: what matters is that no epoch misses an id once all lanes are past it
    slowest = min(run([fakes(*sizes)], steps)[-1], key=lambda one: one.epoch).epoch
    assert slowest >= 1
    for epoch in range(slowest):
        assert sorted(i % 10**8 for batch in found for i in batch if i // 10**8 == epoch) == list(range(total))


@pytest.mark.parametrize("sizes", [(37,) * 30, (300, 341)])
def test_batches_do_not_depend_on_processes_and_workers(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    pools = [fakes(*sizes)]
    found = ids(run(pools, 30))
    assert len({tuple(batch) for batch in found}) == 30
    for world, workers in [(1, 2), (3, 0), (3, 2), (5, 0)]:
        assert ids(run(pools, 30, world, workers)) == found
    assert ids(run(pools, 30, seed=4)) != found


def test_epochs_differ_and_mix_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    one = [n for batch in run([fakes(*(50,) * 24)], 48) for n in batch[0].batch.image_id.tolist()]
    first, second = one[:1200], [n - 10**8 for n in one[1200:]]
    assert sorted(first) == sorted(second) == list(range(1200))
    assert first != second
    assert len({n // 50 for n in first[:24]}) == 24  # one of each shard
    by_shard = [n % 50 for n in first if n // 50 == 7]
    assert by_shard != sorted(by_shard)  # shuffled within it


@pytest.mark.parametrize("sizes", [(37,) * 30, (9, 300, 41), (400,)])
@pytest.mark.parametrize("stop", [1, 13, 29])
def test_a_resumed_run_sees_exactly_the_remaining_ids(
    sizes: tuple[int, ...], stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    pools = [fakes(*sizes)]
    whole = run(pools, 40)
    for (world, workers), (then, later) in [((1, 0), (1, 0)), ((1, 0), (3, 0)), ((2, 2), (1, 0)), ((3, 0), (2, 2))]:
        before = run(pools, stop, world, workers)
        after = run(pools, 40, then, later, stop, all_cursors(before[-1]))
        assert ids(before) + ids(after) == ids(whole)
        assert all_cursors(after[-1]) == all_cursors(whole[-1])
        assert [parts[0].seen for parts in after] == [50 * step for step in range(stop + 1, 41)]


@pytest.mark.parametrize(("sizes", "times"), [((400,) * 48, 1), ((3000,) * 5, 2)])
def test_no_more_is_read_ahead_than_the_buffer(
    sizes: tuple[int, ...], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    shards = fakes(*sizes)
    one = stream([shards], buffer=1000)
    for step, _ in enumerate(one.batches(0, 60), 1):
        # lanes that share a shard keep what they come across for one another
        assert sum(s.read_rows[0] for s in shards) - 50 * step <= times * 1000  # type: ignore[attr-defined]


def test_lanes_that_share_a_shard_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    shards = fakes(3000, 3000)
    run([shards], 60)
    assert all(s.read_rows[0] <= 3000 for s in shards)  # type: ignore[attr-defined]


@pytest.mark.parametrize("early", [False, True])
def test_no_file_stays_open(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    opened, closed = [], []

    @dataclass(frozen=True)
    class Watched(Fake):
        def read(self) -> Generator[Sample, None, None]:
            opened.append(self.name)
            try:
                yield from super().read()
            finally:
                closed.append(self.name)

    batches = stream([[Watched(f"shard-{i}", range(50 * i, 50 * i + 50)) for i in range(30)]]).batches(0, 40)
    kept = [next(batches) for _ in range(3)] if early else list(batches)
    batches.close()  # type: ignore[attr-defined]
    assert kept
    assert sorted(opened) == sorted(closed)
    assert len(opened) >= 30


def test_how_many_lanes() -> None:
    assert [lane_count(n) for n in (1, 5, 7, 23, 24, 96, 97, 5000)] == [24, 25, 28, 46, 24, 96, 96, 96]


# --- shares


def test_apportion_by_hand() -> None:
    assert apportion(10, [0.7, 0.3]) == [7, 3]
    assert [apportion(n, [1, 1]) for n in (1, 2, 3)] == [[1, 0], [1, 1], [2, 1]]
    assert [apportion(n, [0.5, 0.25, 0.25]) for n in (1, 2, 4)] == [[1, 0, 0], [1, 1, 0], [2, 1, 1]]
    assert apportion(3 * 10**12 + 1, [1, 2]) == [10**12, 2 * 10**12 + 1]


@pytest.mark.parametrize("mixing", [[0.7, 0.3], [5, 1, 1], [0.01, 0.99], [0.3, 0.3, 0.2, 0.15, 0.05]])
def test_apportion_never_takes_back_and_stays_near(mixing: list[float]) -> None:
    before = apportion(0, mixing)
    assert before == [0] * len(mixing)
    for total in range(1, 3000):
        counts = apportion(total, mixing)
        assert sum(counts) == total
        assert all(a <= b for a, b in zip(before, counts, strict=True))
        exact = [total * share / sum(mixing) for share in mixing]
        assert max(abs(c - e) for c, e in zip(counts, exact, strict=True)) <= (len(mixing) - 1) / 2 + 1e-9
        before = counts


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (3, 2)])
def test_mixing_gives_each_source_its_share(world: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    pools = [fakes(*(40,) * 30), fakes(*(25,) * 26, first=10_000), fakes(500, first=20_000)]
    steps = run(pools, 60, world, workers, mixing=[0.5, 0.3, 0.2], batch_size=30)
    found = ids(steps)
    assert found == ids(run(pools, 60, mixing=[0.5, 0.3, 0.2], batch_size=30))
    for batch in found:
        assert Counter(i % 10**8 // 10_000 for i in batch) == {0: 15, 1: 9, 2: 6}
    for source, size in enumerate((1200, 650, 500)):
        seen = Counter(i for batch in found for i in batch if i % 10**8 // 10_000 == source)
        assert max(seen.values()) == 1
        assert len({i for i in seen if i < 10**8}) == min(size, (900, 540, 360)[source])
    uneven = ids(run(pools, 40, world, workers, mixing=[2, 1, 1], batch_size=7))
    totals = Counter(i % 10**8 // 10_000 for batch in uneven for i in batch)
    assert totals == {0: 140, 1: 70, 2: 70}


def test_without_mixing_sources_are_one_data_set(tmp_path: Path) -> None:
    for name, first, count in (("a", 0, 60), ("b", 100, 20)):
        (tmp_path / name).mkdir()
        column = "text" if name == "a" else "caption"
        for part in range(2):
            numbers = list(range(first + part * count // 2, first + (part + 1) * count // 2))
            rows = {"image": [png(n) for n in numbers], column: [f"picture {n}" for n in numbers]}
            pq.write_table(pa.table(rows), tmp_path / name / f"train-{part}.parquet")
        for split in ("validation", "test"):
            rows = {"image": [png(10**7)], column: ["a picture"]}
            pq.write_table(pa.table(rows), tmp_path / name / f"{split}-0.parquet")
    config = DataConfig(source=[str(tmp_path / "a"), str(tmp_path / "b")], streaming=True, batch_size=8)
    one = open_stream(config, Augment(4), Tokenizer(), seed=0)
    assert one.lanes == lane_count(4)
    found = Counter(i for b in one.batches(0, 20) for i in b.batch.image_id.tolist())
    every = {image_id(png(n)) for n in (*range(60), *range(100, 120))}
    assert set(found) == every


# --- what a batch holds


@pytest.fixture
def tars(tmp_path: Path) -> DataConfig:
    for i in range(3):
        write_tar(tmp_path / f"train-{i:03d}.tar", numbered(40, 40 * i), 40 * i)
    write_tar(tmp_path / "validation-000.tar", numbered(10, 500))
    write_tar(tmp_path / "test-000.tar", numbered(10, 600))
    return DataConfig(source=str(tmp_path), streaming=True, batch_size=30, shuffle_buffer=60)


def same(a: Batch, b: Batch) -> bool:
    tensors = zip(a[:5], b[:5], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and (a.lengths, a.weight) == (b.lengths, b.weight)


def test_batches_are_equal_bit_by_bit_whoever_reads(tars: DataConfig) -> None:
    augment = Augment(6, flip=0.5, colour_jitter=0.2)
    for captions in (1, 2):
        config = replace(tars, captions_per_image=captions)
        open_it = partial(open_stream, config, augment, Tokenizer(), seed=1)
        alone = [one.batch for one in open_it().batches(0, 8)]
        config = replace(config, workers=2)
        open_it = partial(open_stream, config, augment, Tokenizer(), seed=1)
        assert all(same(a, b.batch) for a, b in zip(alone, open_it().batches(0, 8), strict=True))
        assert not all(same(a, b) for a, b in pairwise(alone))
    first = alone[0]
    assert first.image.shape == (30, 3, 6, 6)
    assert first.image.is_contiguous(memory_format=torch.channels_last)
    assert first.look.shape == (30, 4)
    assert first.text.shape[0] == 60
    assert first.text_id.shape == (30, 2)
    assert first.lengths == [int((row > 0).sum()) for row in first.text]


def test_captions_stay_with_their_pictures(tars: DataConfig) -> None:
    number = {image_id(png(n, (9, 7))): n for n in range(120)}
    tokens = {tuple(Tokenizer()([f"the {n}th picture"])[0].tolist()): n for n in range(120)}
    seen = []
    for workers in (0, 2):
        for one in open_stream(replace(tars, workers=workers), Augment(4), Tokenizer(), seed=1).batches(0, 4):
            batch = one.batch
            pixels = batch.image.float().mean((2, 3))[:, 0].round().tolist()
            for row, key in enumerate(batch.image_id.tolist()):
                text = batch.text[row].tolist()
                assert tokens[tuple(text + [0] * (77 - len(text)))] == number[key] == pixels[row]
                seen.append(number[key])
    assert Counter(seen) == dict.fromkeys(range(120), 2)


def test_each_epoch_draws_its_own_square(tars: DataConfig) -> None:
    looks: dict[int, list[tuple[float, ...]]] = {}
    augment = Augment(4, colour_jitter=0.3)
    for one in open_stream(tars, augment, Tokenizer(), seed=1).batches(0, 8):
        for key, look in zip(one.batch.image_id.tolist(), one.batch.look.tolist(), strict=True):
            looks.setdefault(key, []).append(tuple(look))
    assert all(len(set(found)) == 2 for found in looks.values())
    assert len(looks) == 120


# --- what is broken


@pytest.mark.parametrize("workers", [0, 2])
def test_five_percent_broken_are_named_and_the_others_seen(tmp_path: Path, workers: int) -> None:
    broken = [
        {"png": png(1, (9, 7))[:40], "txt": b"cut short"},
        {"png": b"", "txt": b"empty"},
        {"png": b"not a picture", "txt": b"text"},
        {"txt": b"no picture at all"},
        {"png": png(1001, (9, 7))},
        {"png": png(1002, (9, 7)), "txt": b""},
        {"png": png(1003, (9, 7)), "txt": b"  \n "},
        {"png": png(1004, (9, 7)), "txt": "café".encode("latin-1")},
        {"png": png(1005, (9, 7)), "json": b'{"caption": "elsewhere"}'},
        {"png": png(1006, (9, 7)), "txt": b"\xff\xfe"},
    ]
    rows = numbered(400)
    for i, bad in enumerate(broken * 2):
        rows[i * 20 + 7] = bad
    for i in range(4):
        write_tar(tmp_path / f"train-{i}.tar", rows[100 * i : 100 * i + 100], 100 * i)
    for split in ("validation", "test"):
        write_tar(tmp_path / f"{split}-0.tar", numbered(3, 900))
    config = DataConfig(source=str(tmp_path), streaming=True, batch_size=20, workers=workers, shuffle_buffer=50)
    names, seen = set[str](), Counter[int]()
    for one in open_stream(config, Augment(4), Tokenizer(), seed=2).batches(0, 20):
        names.update(name.split(":")[0] for name in one.batch.bad)
        seen.update(one.batch.image_id.tolist())
        assert len(one.batch.image_id) == 20
    wanted = {f"train-{i // 100}.tar sample {i:06d}" for i in range(7, 400, 20)}
    assert names == wanted
    good = {image_id(png(n, (9, 7))) for n in range(400) if n % 20 != 7}
    assert set(seen) == good
    assert sum(seen.values()) == 400  # 380 of the first epoch, 20 of the second
    assert max(seen.values()) == 2


CUTS = {"in a picture": 700, "in a header": 512 * 9 + 100, "between samples": 512 * 8, "between members": 512 * 10}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_tar_is_named_once_and_the_others_go_on(
    tmp_path: Path, cut: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A sample takes four blocks of 512 bytes: header and picture, header and text."""
    for i in range(3):
        write_tar(tmp_path / f"train-{i}.tar", numbered(30, 30 * i), 30 * i)
        assert (tmp_path / f"train-{i}.tar").stat().st_size >= 30 * 4 * 512
    for split in ("validation", "test"):
        write_tar(tmp_path / f"{split}-0.tar", numbered(3, 900))
    whole = CUTS[cut] // 2048
    damaged = tmp_path / "train-1.tar"
    damaged.write_bytes(damaged.read_bytes()[: CUTS[cut]])
    config = DataConfig(source=str(tmp_path), streaming=True, batch_size=24, workers=workers, shuffle_buffer=48)
    one = open_stream(config, Augment(4), Tokenizer(), seed=2)
    bad: list[str] = []
    first: list[int] = []
    for step in one.batches(0, 30):
        bad += step.batch.bad
        first += step.batch.image_id.tolist()
    found = {name for name in bad if "cannot be read beyond" in name}
    assert len(found) == 1
    assert next(iter(found)).startswith(f"{damaged}: cannot be read beyond sample")
    others = [name for name in bad if name not in found]
    assert all(name.startswith(f"train-1.tar sample {30 + whole:06d}: no caption") for name in others)
    good = {image_id(png(n, (9, 7))) for n in (*range(30), *range(30, 30 + whole), *range(60, 90))}
    assert set(first) == good


def test_a_missing_shard_is_bad_and_a_lost_connection_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    shards = fakes(*(30,) * 30)
    shards[4] = Fake("gone.tar", [], FileNotFoundError("404"))
    steps = run([shards], 20, 3)
    names = [name for parts in steps for part in parts for name in part.batch.bad]
    assert set(names) == {"gone.tar: cannot be read beyond sample 0 (FileNotFoundError: 404)"}
    assert sorted(i for batch in ids(steps) for i in batch if i < 10**8) == [*range(120), *range(150, 900)]
    shards[4] = Fake("far.tar", range(120, 150), ConnectionResetError("reset"))
    with pytest.raises(StreamLost, match=r"far\.tar: the connection was lost .*run\.resume=true"):
        run([shards], 30)


def test_a_shard_of_broken_samples_is_told_once_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    shards: list[Shard] = [Fake("a", [*range(60), -1], EOFError("cut")), *fakes(60, 60, first=100)]
    names = [n for parts in run([shards], 60, batch_size=7) for n in parts[0].batch.bad]
    assert len(names) > len(set(names)) == 2  # again in the second epoch
    for stop in range(1, 60):
        before = run([shards], stop, batch_size=7)
        after = run([shards], 60, 1, 0, stop, all_cursors(before[-1]), batch_size=7)
        again = [n for parts in (*before, *after) for n in parts[0].batch.bad]
        assert again == names


def test_nothing_usable_ends_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    with pytest.raises(BadImage, match=r"1000 samples in a row cannot be used, the last: shard.*data\.image_column"):
        run([[Fake("shard", [-1] * 5000)]], 1)
    with pytest.raises(ValueError, match=r"50 shards in a row gave no sample, the last: a: cannot.*EOFError"):
        run([[Fake("a", [], EOFError("cut"))]], 1)
    with pytest.raises(ValueError, match=r"small has too few samples for the 24 lanes that share it"):
        run([[Fake("small", range(10))]], 1)


# --- sources


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_behind_a_url(tars: DataConfig, address: str, workers: int) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads URLs through it")
    local = [one.batch for one in open_stream(tars, Augment(4), Tokenizer(), seed=1).batches(0, 4)]
    # there is no 003: named, and not the end of the run
    config = replace(tars, source=f"{address}/{{train-{{000..003}},validation-000,test-000}}.tar", workers=workers)
    seen, bad = Counter[int](), []
    for one in open_stream(config, Augment(4), Tokenizer(), seed=1).batches(0, 8):
        seen.update(one.batch.image_id.tolist())
        bad += one.batch.bad
    assert {i for b in local for i in b.image_id.tolist()} == set(seen)
    assert {name.split(": ")[0] for name in bad} == ({f"{address}/train-003.tar"})


@pytest.mark.parametrize("kind", ["folder", "pattern", "file"])
def test_parquet_files(tmp_path: Path, kind: str) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"part-{i}.parquet", range(50 * i, 50 * i + 50))
    source = {"folder": tmp_path, "pattern": tmp_path / "part-[0-2].parquet", "file": tmp_path / "part-0.parquet"}[kind]
    config = DataConfig(source=str(source), streaming=True, batch_size=24)
    if kind == "file":
        with pytest.raises(ValueError, match=r"one shard and no split for validation or test.*data\.validation_split"):
            training_shards(config)
        return
    names = [Path(shard.name).name for shard in training_shards(config)[0]]
    assert names == ["part-0.parquet", "part-1.parquet"]
    seen = [i for one in open_stream(config, Augment(4), Tokenizer(), seed=0).batches(0, 4) for i in one.batch.image_id]
    assert {int(i) for i in seen} <= {image_id(png(n)) for n in range(100)}
    held = {role: streamed_eval_pairs(config, role, 100, 4) for role in ("validation", "test")}
    pictures = [set(pairs.pictures) for pairs in held.values()]
    assert not pictures[0] & pictures[1]
    assert pictures[0] | pictures[1] == {png(n) for n in range(100, 150)}
    assert 10 < len(pictures[0]) < 40


@pytest.mark.parametrize("workers", [0, 2])
def test_the_image_feature_and_lists_of_captions(tmp_path: Path, workers: int) -> None:
    import datasets

    rows: dict[str, list[Any]] = {
        "image": [{"bytes": png(n), "path": None} for n in range(30)],
        "captions": [["one", " ", "two"]] * 30,
    }
    rows["image"][3] = {"bytes": None, "path": "elsewhere.png"}
    rows["image"][4] = {"bytes": b"broken", "path": None}
    features = datasets.Features({"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))})
    for name in ("train", "validation", "test"):
        table = pa.table(rows, schema=features.arrow_schema)
        pq.write_table(table, tmp_path / f"{name}-0.parquet")
    config = DataConfig(source=str(tmp_path), streaming=True, batch_size=14, captions_per_image=2, workers=workers)
    one = open_stream(config, Augment(4), Tokenizer(), seed=0)
    batches = [b.batch for b in one.batches(0, 4)]
    assert {i for b in batches for i in b.image_id.tolist()} == {image_id(png(n)) for n in range(30) if n not in (3, 4)}
    assert {name.split(":")[0] for b in batches for name in b.bad} == {f"train-0.parquet row {n}" for n in (3, 4)}
    assert all(len(set(row.tolist())) == 2 for b in batches for row in b.text_id)


def test_a_hub_set_is_streamed(tars: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads a folder of this layout as it does a set of the Hub."""
    import datasets

    (tmp_path / "hub").mkdir()
    for i in range(2):
        write_parquet(tmp_path / "hub" / f"train-{i:05d}-of-00002.parquet", range(50 * i, 50 * i + 50))
    real, real_builder = datasets.load_dataset, datasets.load_dataset_builder
    asked = []

    def local(name: str, *args: Any, **options: Any) -> Any:
        asked.append((name, *args, options.pop("revision", None)))
        where = {"some/pairs": str(tmp_path / "hub"), "some/tars": tars.sources[0]}[name]
        return (real if "streaming" in options else real_builder)(where, **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    shards = find_shards("some/pairs", "small", "main")["train"]
    assert asked == [("some/pairs", "small", "main")] * 2
    assert [Path(shard.name).name for shard in shards] == [f"train-{i:05d}-of-00002.parquet" for i in range(2)]
    found = [s.picture for s in shards[1].with_columns("image", ["text"]).read()]
    assert found == [png(n) for n in range(50, 100)]
    assert [len(shards) for shards in find_shards("some/tars").values()] == [3, 1, 1]


def test_pictures_of_several_formats_and_captions_in_json(tmp_path: Path) -> None:
    def jpeg(n: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (9, 9), (n, n, n)).save(stream, "jpeg")
        return stream.getvalue()

    meta = [json.dumps({"caption": f"number {n}", "width": 9}).encode() for n in range(40)]
    rows = [{"PNG" if n % 2 else "jpg": png(n) if n % 2 else jpeg(n), "json": meta[n], "cls": b"3"} for n in range(40)]
    write_tar(tmp_path / "train-0.tar", rows)
    config = DataConfig(source=str(tmp_path / "train-0.tar"), streaming=True)
    shards = find_shards(config.sources[0])["train"]
    shards = [shard.with_columns("image", ["json.caption"]) for shard in shards]
    assert [s.captions for s in shards[0].read()] == [[f"number {n}"] for n in range(40)]
    assert [s.picture for s in shards[0].read()] == [png(n) if n % 2 else jpeg(n) for n in range(40)]
    write_tar(tmp_path / "train-1.tar", rows)
    both = replace(config, source=str(tmp_path))
    found = training_shards(both)[0][0]
    assert (found.image, found.captions) == ("image", ("json.caption",))  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"no column json\.captoin \(data\.caption_column\).*did you mean json\.caption"
    ):
        training_shards(replace(both, caption_column="json.captoin"))
    with pytest.raises(ValueError, match=r"no column jpeg"):
        training_shards(replace(both, image_column="jpeg"))


def test_held_out_pairs_come_from_their_split(tars: DataConfig) -> None:
    pairs = streamed_eval_pairs(tars, "test", 4, 8)
    assert len(pairs) == 4
    assert [pairs.captions(i) for i in range(4)] == [[f"the {600 + i}th picture"] for i in range(4)]
    assert pairs.image(2).getpixel((0, 0)) == (602 % 251, 2, 0)
    assert pairs.name(1) == "test-000.tar sample 000001"
    with pytest.raises(ValueError, match="not kept"):
        pairs.column("cls")


def test_rows_with_one_picture_are_one_held_out_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "validation", "test"):
        numbers = [n // 5 for n in range(50)]
        texts: list[Any] = [f"caption {n}" for n in range(50)]
        texts[:6] = [None, "  ", *texts[2:6]]
        write_parquet(tmp_path / f"{split}-0.parquet", numbers, text=texts)
    config = DataConfig(source=str(tmp_path), streaming=True)
    with caplog.at_level(logging.WARNING):
        pairs = streamed_eval_pairs(config, "validation", 100, 4)
    assert len(pairs) == 10
    assert pairs.captions(0) == [f"caption {n}" for n in range(2, 5)]
    assert pairs.captions(9) == [f"caption {n}" for n in range(45, 50)]
    assert "2 samples for validation cannot be used: validation-0.parquet row 0: no caption" in caplog.text
    assert set(streamed_eval_pairs(config, "validation", 3, 4).pictures) == {png(0), png(1), png(2)}


def test_only_the_missing_split_is_set_aside(tmp_path: Path) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"train-{i}.parquet", range(20 * i, 20 * i + 20))
    write_parquet(tmp_path / "validation-0.parquet", range(100, 110))
    config = DataConfig(source=str(tmp_path), streaming=True)
    assert set(streamed_eval_pairs(config, "validation", 50, 4).pictures) == {png(n) for n in range(100, 110)}
    assert set(streamed_eval_pairs(config, "test", 50, 4).pictures) == {png(n) for n in range(40, 60)}
    assert [Path(s.name).name for s in split_shards(config, str(tmp_path), "train")[0]] == [
        "train-0.parquet",
        "train-1.parquet",
    ]


# --- messages


def test_what_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl names files of the kind \.jsonl; data\.streaming reads tars"):
        find_shards(str(tmp_path / "pairs.jsonl"))
    with pytest.raises(ValueError, match=r"holds neither tars nor Parquet files; data\.streaming reads"):
        find_shards(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pairs\.jsonl"):
        find_shards(str(tmp_path / "pears.jsonl"))
    pq.write_table(pa.table({"image": ["a.png"] * 9, "text": ["a"] * 9}), tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"image": ["a.png"] * 9, "text": ["a"] * 9}), tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"image holds paths.*set data\.streaming to false"):
        training_shards(DataConfig(source=str(tmp_path), streaming=True))
    (tmp_path / "broken").mkdir()
    for i in range(2):
        (tmp_path / "broken" / f"train-{i}.tar").write_bytes(b"nothing of a tar" * 100)
    with pytest.raises(ValueError, match=r"train-0\.tar: cannot be read \(ReadError"):
        training_shards(DataConfig(source=str(tmp_path / "broken"), streaming=True))


def test_too_many_readers_and_too_small_batches_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"3 processes with 9 workers each are more than the 24 lanes.*data\.workers=8"
    ):
        stream([fakes(5)], 0, 3, 9)
    with pytest.raises(ValueError, match=r"data\.batch_size=2 leaves process 2 of 3 without a pair in step 0; use"):
        stream([fakes(5)], 0, 3, batch_size=2)
    with pytest.raises(ValueError, match="without a pair"):  # lanes 24, 0, 1 are of processes 0, 0 and 1
        stream([fakes(*(5,) * 25)], 0, 3, batch_size=3)
    assert stream([fakes(*(5,) * 25)], 0, 3, batch_size=6).shares_at(4) == [3, 2, 1]


def test_cursors_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions of 3 lanes, and the data have 24"):
        next(stream([fakes(50)]).batches(1, 2, dict.fromkeys(range(3), START)))
    one = stream([fakes(50, 60)])
    assert one.layout == stream([fakes(50, 60)], 1, 2, 2).layout
    others = [stream([fakes(50, 60)], seed=4), stream([fakes(50, 60)], buffer=900), stream([fakes(50, 60, 9)])]
    assert one.layout not in {other.layout for other in others}


def test_pinned_merge_is_the_same(tars: DataConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("memory is pinned for a GPU")
    plain = open_stream(tars, Augment(4), Tokenizer(), seed=1).batches(0, 4)
    pinned = open_stream(tars, Augment(4), Tokenizer(), seed=1, pin=True).batches(0, 4)
    assert all(same(a.batch, b.batch) and b.batch.image.is_pinned() for a, b in zip(plain, pinned, strict=True))
