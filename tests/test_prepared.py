"""The prepared cache: the same pixels and tokens as without it, and never a stale, damaged or half-built store."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from support.files import write_beside
from support.opened import whole
from support.sources import FakePairs, noise
from torch.utils.data import DataLoader

from miniclip.common.durable import DiskFull
from miniclip.data.augment import Augment
from miniclip.data.cache import prepared as module
from miniclip.data.cache.prepared import cache_folder, prepare
from miniclip.data.cache.store import Prepared, Unusable
from miniclip.data.images import BadImage, TooManyBad
from miniclip.data.loader import TrainingPairs
from miniclip.models.tokenizer import Tokenizer

AUGMENT, ALL = Augment(16), list(range(30))
ADVICE = "set data.cache_dir to another folder, or data.cache to false"
fork = multiprocessing.get_context("fork")


class Diary(FakePairs):
    """Noise in several sizes, one to three captions each, noted when it is read, in any process."""

    def __init__(self, size: int, diary: Path, **options: Any) -> None:
        sizes = np.random.default_rng(0).integers(20, 50, (size, 2)).tolist()
        long = [f"!☃ row <end_of_text> {'word ' * row} !" for row in range(30)]
        texts = [[f"image {row}!", "naïve café &amp; 東京 " * (row % 9), long[row]][: 1 + row % 3] for row in range(30)]
        super().__init__(size, **{"draw": lambda row: noise(row, sizes[row]), "captions": texts, **options})
        self.diary, self.delay = diary, 0.0

    def image(self, index: int) -> Image.Image:
        time.sleep(self.delay)
        with self.diary.open("ab", buffering=0) as file:
            file.write(f"{index}\n".encode())
        return super().image(index)

    def fingerprint(self) -> str:
        return self.version

    def decoded(self) -> list[int]:
        """The rows since the last question, in order."""
        rows = sorted(map(int, self.diary.read_text().split())) if self.diary.exists() else []
        self.diary.unlink(missing_ok=True)
        return rows


def call(source: Any, folder: Path, **changes: Any) -> Prepared:
    options: dict[str, Any] = {"folder": folder, "label": "fake train", "allowed": 0.0, "progress": False}
    augment, tokenizer = changes.pop("augment", AUGMENT), changes.pop("tokenizer", Tokenizer(24))
    return prepare(source, augment, tokenizer, **options | changes)


def check(store: Prepared, source: Any, augment: Augment = AUGMENT, tokenizer: Tokenizer | None = None) -> None:
    """Every pixel and token against the slow way."""
    tokenizer = tokenizer or Tokenizer(24)
    for index, row in enumerate(store.rows.tolist()):
        expected, found = np.array(augment.store(FakePairs.image(source, row))), store.image(index)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)
        padded = np.zeros((len(store.tokens(index)), tokenizer.context_length), dtype=np.int64)
        for line, ids in zip(padded, store.tokens(index), strict=True):
            assert ids.dtype == np.uint16 and ids[-1] == 49407
            line[: len(ids)] = ids
        assert np.array_equal(padded, tokenizer(source.captions(row)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 8)


@pytest.fixture
def source(tmp_path: Path) -> Diary:
    return Diary(30, tmp_path / "diary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_pixels_and_tokens_are_those_of_the_source(source: Diary, folder: Path) -> None:
    for kind, resize in product(("crop", "resized_crop", "none"), ("crop", "squash")):
        augment = Augment(16, kind=kind, resize=resize)  # type: ignore[arg-type]
        store = call(source, folder, augment=augment)
        assert source.decoded() == ALL == store.rows.tolist() and len(store) == 30 and store.rows.dtype == np.int64
        check(store, source, augment)
        assert names(store.directory) == ["000", "001", "002", "003", "all"]  # 8 + 8 + 8 + 6
        check(call(source, folder, augment=augment), source, augment)
        assert not source.decoded()
    for view in (store.image(3), *store.tokens(3)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    assert not store.image(3).flags.owndata
    with pytest.raises(IndexError):
        store.image(30)


def test_the_vocabulary_is_in_use_and_has_no_padding(source: Diary, tmp_path: Path, folder: Path) -> None:
    encode = Tokenizer().encode
    assert 0 in encode("!☃")  # the padding is 0, and so is a "!" inside a piece
    plain = Diary(3, tmp_path / "diary", captions=[["a dog", "a cat", "a cat"]] * 3, version="plain")
    for one in (plain, source):
        ids = {token for row in range(len(one)) for text in one.captions(row) for token in encode(text)[:22]}
        assert call(one, folder).vocabulary().tolist() == sorted(ids | {49406, 49407})
        assert (0 in ids) == (one is source)


def test_a_store_survives_pickling_workers_and_another_run(source: Diary, folder: Path) -> None:
    store = call(source, folder)
    packed = pickle.dumps(store)
    assert len(packed) < 500
    check(pickle.loads(packed), source)
    loaded: Any = DataLoader(ALL, batch_size=None, num_workers=2, collate_fn=store.image)  # type: ignore[arg-type]
    assert all(map(np.array_equal, loaded, map(store.image, ALL)))
    later = Diary(30, source.diary, version="2", captions=[["something else"]] * 30)
    check(call(later, folder), later)
    check(store, source)  # the one that is open keeps its images
    with pytest.raises(Unusable, match="changed"):  # a process that maps the files only now must not mix the two
        pickle.loads(packed)


def test_settings_have_stores_of_their_own(source: Diary, folder: Path) -> None:
    variants: list[dict[str, Any]] = [{}, {"label": "fake validation"}, {"tokenizer": Tokenizer(77)}]
    for augment in (
        Augment(24),
        Augment(16, kind="none"),
        Augment(18, kind="none"),  # 18 is also the side that a crop of 16 stores
        Augment(16, resize="squash"),
        Augment(16, kind="resized_crop"),
        Augment(16, kind="resized_crop", crop_scale=(0.25, 1.0)),
        Augment(32, kind="resized_crop", crop_scale=(1.0, 1.0)),  # stores 32, too
        Augment(16, kind="resized_crop", crop_scale=(0.79, 1.0)),  # 18 again, and never enlarged
    ):
        variants.append({"augment": augment})
    stores = []
    for options in variants:
        stores.append(call(source, folder, **options))
        assert source.decoded() == ALL
    assert len({store.directory for store in stores}) == len(variants)
    for store, options in zip(stores, variants, strict=True):
        assert call(source, folder, **options).directory == store.directory
        check(store, source, options.get("augment", AUGMENT), options.get("tokenizer"))
    # what works on the stored image shares it
    same = call(source, folder, augment=Augment(16, flip=0.5, colour_jitter=0.3))
    assert same.directory == stores[0].directory and not source.decoded()


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINICLIP_CACHE", raising=False)
    assert cache_folder(None) == tmp_path / ".cache" / "miniclip"
    monkeypatch.setenv("MINICLIP_CACHE", "~/elsewhere")
    assert cache_folder(None) == tmp_path / "elsewhere"
    assert cache_folder("~/own") == tmp_path / "own"


# ---- builds that end early


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_goes_on(source: Diary, folder: Path, error: type[BaseException]) -> None:
    source.broken = {20: error()}  # type: ignore[dict-item]
    with pytest.raises(error):
        call(source, folder)
    source.broken = ()
    source.decoded()
    check(call(source, folder), source)
    assert set(source.decoded()) >= set(range(16, 30))
    call(source, folder)
    assert not source.decoded()


def in_another_process(*arguments: Any, what: Callable[..., Any] = call) -> Any:
    process = fork.Process(target=what, args=arguments)
    process.start()
    return process


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.002)


def test_a_killed_build_goes_on_with_the_finished_parts(source: Diary, folder: Path) -> None:
    """Also in a process that has waited for it."""
    drawn = source.draw
    source.draw = lambda row: time.sleep(60 * (row == 20)) or drawn(row)  # type: ignore[func-returns-value]
    first = in_another_process(source, folder)
    source.draw = drawn
    wait_for(folder, "*/001")
    second = in_another_process(source, folder)
    time.sleep(0.05)
    assert second.is_alive()
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    second.join(60)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    rows = source.decoded()
    assert [row for row in rows if row < 16] == ALL[:16] and sorted(set(rows)) == ALL
    check(call(source, folder), source)
    assert not source.decoded() and not list(folder.glob("*/*.unfinished"))


def test_processes_decode_once_together_and_say_that_they_wait(source: Diary, folder: Path, capsys: Any) -> None:
    source.delay = 0.1
    others = [in_another_process(source, folder) for _ in range(2)]
    wait_for(folder, "*/000.unfinished")
    call(source, folder, progress=True)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert "waiting for another run that prepares these images" in capsys.readouterr().err
    assert source.decoded() == ALL
    check(call(source, folder), source)
    source.delay = 0.02
    call(source, folder / "loud", progress=True)
    assert "preparing images" in capsys.readouterr().err
    call(source, folder / "quiet")
    assert (folder / "quiet").is_dir() and capsys.readouterr().err == ""


# ---- what has changed, or is damaged


def test_a_changed_source_is_prepared_again(source: Diary, folder: Path, caplog: Any, monkeypatch: Any) -> None:
    caplog.set_level(logging.INFO)
    call(source, folder)
    call(source, folder)
    assert not caplog.records and source.decoded() == ALL

    def prepared_again(changed: Diary) -> Path:
        store = call(changed, folder)
        check(store, changed)
        assert caplog.messages == ["fake train has changed since it was prepared; preparing again"]
        assert source.decoded() == store.rows.tolist() == ALL[: len(changed)]
        caplog.clear()
        return store.directory

    directory = prepared_again(Diary(30, source.diary, version="2", captions=[["other"]] * 30))
    shutil.rmtree(directory / "all")  # parts of another version are not used either
    prepared_again(source)
    monkeypatch.setattr(module.PIL, "__version__", "99.0")
    prepared_again(source)
    assert names(prepared_again(Diary(9, source.diary, version="2"))) == ["000", "001", "all"]


def test_parts_have_the_size_that_a_process_may_map(source: Diary, folder: Path, monkeypatch: Any) -> None:
    # parts of another size are not used; ceil(30 / 4) = 8 in a part
    for part, count in ((8, 4), (7, 5), (2, 4)):
        monkeypatch.setattr(module, "PART", part)
        store = call(source, folder)
        assert names(store.directory) == [*(f"{i:03}" for i in range(count)), "all"]
        check(store, source)
        shutil.rmtree(store.directory / "all")
        if part == 7:
            monkeypatch.setattr(module, "MOST_PARTS", 4)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def other_text(path: Path) -> None:
    path.write_text("[]")


def other_array(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def other_values(path: Path) -> None:
    np.save(path, np.load(path) + 1)


def one_more(path: Path) -> None:
    """A last image without captions."""
    counts = np.load(path)
    np.save(path, np.append(counts, counts[-1] if path.parent.name == "all" else 0))


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


class Bomb(NamedTuple):
    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled_array(path: Path) -> None:
    np.save(path, np.array([Bomb(path.parents[2] / "exploded")], dtype=object), allow_pickle=True)


DAMAGES: dict[str, list[Callable[[Path], Any]]] = {
    "about.json": [cut, Path.unlink, other_text],
    "places.npy": [cut, Path.unlink, other_array, other_values, pickled_array],
    "captions.npy": [cut, Path.unlink, other_array, other_values, one_more],
    "lengths.npy": [cut, Path.unlink, other_array, other_values],
    "tokens.npy": [cut, Path.unlink, other_array, flipped],
    "pixels": [cut, Path.unlink, grow],
}


@pytest.mark.parametrize("where", ["all", "002"])
def test_what_is_damaged_is_refused_and_made_anew(source: Diary, folder: Path, where: str, caplog: Any) -> None:
    """Files of "all", of which nothing has to be decoded; or those of a part that a build would go on from."""
    store = call(source, folder)
    before = folder.with_name("before")
    shutil.copytree(store.directory, before)
    for name, damage in ((name, damage) for name, damages in DAMAGES.items() for damage in damages):
        shutil.rmtree(store.directory)
        shutil.copytree(before, store.directory)
        caplog.clear()
        source.decoded()
        if where != "all":
            shutil.rmtree(store.directory / "all")
        damage(store.directory / ("002" if name == "pixels" else where) / name)
        again = call(source, folder)
        anew = where != "all" or name == "pixels"
        assert source.decoded() == (ALL[16:24] if anew else []), (name, damage)
        (message,) = caplog.messages
        assert message.startswith("fake train was prepared, but the files are damaged ("), (name, damage)
        for row in ALL:
            for ours, theirs in zip(*([one.image(row), *one.tokens(row)] for one in (again, store)), strict=True):
                assert np.array_equal(ours, theirs)
    assert not (folder / "exploded").exists()


# ---- disks and folders


def test_too_little_space_is_said_before_the_long_work(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    def draw(row: int) -> Image.Image:
        assert row < 400  # too late
        return Image.new("RGB", (18, 18))  # 972 bytes, as they are stored

    def even(size: int, free: int) -> Diary:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        return Diary(size, tmp_path / "diary", draw=draw, captions=[["an image"]] * size)

    monkeypatch.setattr(module, "PART", 50)
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(DiskFull, match=r"100000 images takes about 0\.1 GB, and 0\.1 GB are free in .*cache; set "):
        call(source := even(100_000, 90_000_000), folder)
    assert len(source.decoded()) >= 100
    assert len(call(even(150, 150 * 972), folder)) == 150
    with pytest.raises(DiskFull, match=ADVICE):
        call(even(150, 150 * 972 - 1), folder / "other")


def under_a_limit(source: Diary, folder: Path, augment: Augment, size: int, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        call(source, folder, augment=augment)
    except ValueError as error:
        answer.send(str(error))


def test_a_disk_that_fills_up(source: Diary, folder: Path) -> None:
    """A limit on the size of a file makes writing fail as a full disk does."""
    for size, side, kept in (
        (500, 16, 0),  # no image can be written: 972 bytes at least
        (5000, 16, 0),  # the first image can be written
        (200, 2, 0),  # all pixels of a part can: 8 x 18 to 30 bytes, but not the places: 128 + 8 x 32
        (700, 2, 4),  # the parts can, but not the places of all: 128 + 30 x 32
    ):
        mine, theirs = fork.Pipe()
        in_another_process(source, folder, Augment(side), size, theirs, what=under_a_limit).join(60)
        assert mine.poll()
        message = mine.recv()
        assert message.startswith(f"the prepared images cannot be written to {folder}: ") and message.endswith(ADVICE)
        assert len(list(folder.glob("*/*"))) == kept  # nothing half-written keeps the disk full
        source.decoded()
        store = call(source, folder, augment=Augment(side))
        assert source.decoded() == ALL[8 * kept :]
        check(store, source, Augment(side))
        shutil.rmtree(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users can look into."""
    path = Path(tempfile.mkdtemp(prefix="miniclip-prepared-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_folder_that_cannot_be_written(source: Diary, open_folder: Path, tmp_path: Path) -> None:
    """A finished store there is used all the same."""
    (tmp_path / "file").touch()
    call(source, open_folder)
    source.decoded()
    root = os.geteuid() == 0
    for path in (open_folder, *open_folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(65534)  # permissions do not hold root back
    try:
        found = call(source, open_folder)
        for target, label in ((tmp_path / "file", "a file"), (open_folder, "another"), (open_folder / "below", "fake")):
            with pytest.raises(ValueError, match=rf"cannot be written to .*{ADVICE}"):
                call(source, target, label=label)
    finally:
        if root:
            os.seteuid(0)
        for path in (open_folder, *open_folder.iterdir()):
            path.chmod(0o755)
    assert not source.decoded()
    check(found, source)


# ---- bad images


def test_bad_images_are_named_in_every_run(tmp_path: Path, folder: Path) -> None:
    broken = (2, *range(8, 16), 29)  # part 1 has none left
    source = Diary(30, tmp_path / "diary", broken=broken)
    for _ in range(2):
        store = call(source, folder, allowed=1 / 3)
        assert store.bad == [f"row {row}: cut short" for row in broken]
        assert store.rows.tolist() == [row for row in ALL if row not in broken]
        check(store, source)
    source.decoded()
    with pytest.raises(TooManyBad, match=r"10 of 30 images cannot be used.*row 2: cut short; row 8"):
        call(source, folder, allowed=0.3)
    assert not source.decoded()


def test_too_many_bad_images_keep_what_is_done(tmp_path: Path, folder: Path) -> None:
    source = Diary(30, tmp_path / "diary", broken=(2, 20, 21))
    with pytest.raises(TooManyBad, match=r"2 of 30 images cannot be used.*row 2: cut short; row 20"):
        call(source, folder, allowed=0.05)
    source.decoded()
    with pytest.raises(TooManyBad, match="row 2: cut short; mend"):  # stricter: known from the first part
        call(source, folder, allowed=0)
    assert not source.decoded()
    assert call(source, folder, allowed=0.1).bad == [f"row {row}: cut short" for row in (2, 20, 21)]
    assert source.decoded() == ALL[16:]


def test_nothing_that_can_be_read(tmp_path: Path, folder: Path) -> None:
    for rows in (3, 0):
        with pytest.raises(BadImage, match=r"no image can be read; check data\.source and data\.image_column"):
            call(Diary(rows, tmp_path / "diary", broken=range(rows)), folder, allowed=1)


def test_a_bit_of_the_pixels_that_has_flipped_costs_one_image_its_speed(tmp_path: Path, caplog: Any) -> None:
    """It is noticed where the image is drawn, and decoded anew: the batch is that of the whole store."""
    source = whole(write_beside(tmp_path / "data", 0, 40))
    store = call(source, tmp_path / "cache")
    pairs = TrainingPairs(source, AUGMENT, Tokenizer(24), 0, store)
    draws = [(0, at) for at in range(len(pairs))]
    before = pairs.__getitems__(draws)
    flipped(store.directory / "000" / "pixels")
    after = TrainingPairs(source, AUGMENT, Tokenizer(24), 0, call(source, tmp_path / "cache")).__getitems__(draws)
    assert torch.equal(before.image, after.image) and not after.bad
    (message,) = caplog.messages
    assert "000: image 7 is damaged; delete that folder" in message
