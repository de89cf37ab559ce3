"""The prepared cache: the same pixels and tokens as without it, and never a stale, damaged or half-built store."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import struct
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from miniclip.data.augment import Augment
from miniclip.data.bad_images import TooManyBad
from miniclip.data.cache import prepared as module
from miniclip.data.cache.prepared import cache_folder, prepare
from miniclip.data.cache.store import Prepared, Unusable
from miniclip.data.images import BadImage, decode_image
from miniclip.models.tokenizer import Tokenizer

AUGMENT = Augment(16)
SHARP = "!☃"
fork = multiprocessing.get_context("fork")


def noise(row: int) -> Image.Image:
    rng = np.random.default_rng(row)
    height, width = rng.integers(20, 50, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


class Fake:
    """Pictures of noise in several sizes, one to three captions each. diary: rows that were decoded, in any process."""

    def __init__(self, size: int, diary: Path, broken: tuple[int, ...] = (), version: str = "1") -> None:
        self.size, self.diary, self.broken, self.version = size, diary, broken, version
        self.delay = 0.0
        self.strike: Callable[[int], None] = lambda row: None

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> Image.Image:
        self.strike(index)
        time.sleep(self.delay)
        with self.diary.open("ab", buffering=0) as file:
            file.write(f"{index}\n".encode())
        if index in self.broken:
            raise BadImage(f"row {index}: cut short")
        return noise(index)

    def captions(self, index: int) -> list[str]:
        texts = [
            f"picture {index}!",
            "naïve café &amp; 東京 " * (index % 9),
            f"!☃ row <end_of_text> {'word ' * index} !",
        ]
        return texts[: 1 + index % 3]

    def name(self, index: int) -> str:
        return f"row {index}"

    def column(self, name: str) -> list[Any]:
        return []

    def fingerprint(self) -> str:
        return self.version

    def decoded(self) -> Counter[int]:
        """Rows since the last question, with how often."""
        rows = Counter(map(int, self.diary.read_text().split())) if self.diary.exists() else Counter()
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
        expected = np.array(augment.store(source.image(row)))
        found = store.image(index)
        assert (found.dtype, found.shape) == (np.uint8, expected.shape) and (found == expected).all()
        padded = np.zeros((len(store.tokens(index)), tokenizer.context_length), dtype=np.int64)
        for line, ids in zip(padded, store.tokens(index), strict=True):
            assert ids.dtype == np.uint16 and ids[-1] == 49407
            line[: len(ids)] = ids
        assert (padded == tokenizer(source.captions(row)).numpy()).all()


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 8)


@pytest.fixture
def source(tmp_path: Path) -> Fake:
    return Fake(30, tmp_path / "diary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["crop", "resized_crop", "none"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_pixels_and_tokens_are_those_of_the_source(source: Fake, folder: Path, kind: Any, resize: Any) -> None:
    augment = Augment(16, kind=kind, resize=resize)
    store = call(source, folder, augment=augment)
    assert len(store) == 30 and store.rows.dtype == np.int64 and store.rows.tolist() == list(range(30))
    check(store, source, augment)
    parts = [path for path in store.directory.iterdir() if path.name != "all"]
    assert sorted(path.name for path in parts) == ["000", "001", "002", "003"]  # 8 + 8 + 8 + 6


def test_a_picture_and_its_tokens_are_read_only_views(source: Fake, folder: Path) -> None:
    store = call(source, folder)
    for view in (store.image(3), *store.tokens(3)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    assert not store.image(3).flags.owndata
    with pytest.raises(IndexError):
        store.image(30)


def test_vocabulary(source: Fake, folder: Path) -> None:
    store = call(source, folder)
    ids = {token for row in range(30) for text in source.captions(row) for token in Tokenizer().encode(text)[:22]}
    assert store.vocabulary().tolist() == sorted(ids | {49406, 49407})


def test_the_vocabulary_has_no_padding(tmp_path: Path, folder: Path) -> None:
    class Plain(Fake):
        def captions(self, index: int) -> list[str]:
            return ["a dog", "a cat", self.version]

    dog, cat, a = (Tokenizer().encode(word)[0] for word in ("dog", "cat", "a"))
    expected = sorted([dog, cat, a, 49406, 49407])
    assert call(Plain(3, tmp_path / "diary", version="cat"), folder).vocabulary().tolist() == expected
    assert 0 in Tokenizer().encode(SHARP)  # the padding is 0, and so is a "!" inside a piece
    store = call(Plain(3, tmp_path / "diary", version=SHARP), folder)
    assert store.vocabulary().tolist() == sorted({*expected, *Tokenizer().encode(SHARP)})


def test_a_second_run_decodes_nothing(source: Fake, folder: Path) -> None:
    call(source, folder)
    assert source.decoded() == Counter(range(30))
    again = call(source, folder)
    assert not source.decoded()
    check(again, source)


def test_a_store_survives_pickling_and_workers(source: Fake, folder: Path) -> None:
    store = call(source, folder)
    packed = pickle.dumps(store)
    assert len(packed) < 500
    check(pickle.loads(packed), source)

    class Pictures(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> int:
            return int(store.image(index).sum())

    sums = [int(x) for x in DataLoader(Pictures(), batch_size=None, num_workers=2)]
    assert sums == [int(np.array(AUGMENT.store(noise(row))).sum()) for row in range(30)]


def test_an_open_store_keeps_its_pictures_when_another_run_replaces_them(source: Fake, folder: Path) -> None:
    store = call(source, folder)
    packed = pickle.dumps(store)
    later = Fake(30, source.diary, version="2")
    later.captions = lambda index: ["something else"]  # type: ignore[method-assign]
    check(call(later, folder), later)
    check(store, source)
    with pytest.raises(Unusable, match="changed"):  # a process that maps the files only now must not mix the two
        pickle.loads(packed)


def test_settings_have_stores_of_their_own(source: Fake, folder: Path) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"label": "fake validation"},
        {"augment": Augment(24)},
        {"augment": Augment(16, kind="none")},
        {"augment": Augment(18, kind="none")},  # 18 is also the side that a crop of 16 stores
        {"augment": Augment(16, resize="squash")},
        {"augment": Augment(16, kind="resized_crop")},
        {"augment": Augment(16, kind="resized_crop", crop_scale=(0.25, 1.0))},
        {"augment": Augment(32, kind="resized_crop", crop_scale=(1.0, 1.0))},  # stores 32, too
        {"augment": Augment(16, kind="resized_crop", crop_scale=(0.79, 1.0))},  # 18 again, and never enlarged
        {"tokenizer": Tokenizer(77)},
    ]
    stores = []
    for options in variants:
        stores.append(call(source, folder, **options))
        assert source.decoded() == Counter(range(30))
    assert len({store.directory for store in stores}) == len(variants)
    for store, options in zip(stores, variants, strict=True):
        assert call(source, folder, **options).directory == store.directory
        check(store, source, options.get("augment", AUGMENT), options.get("tokenizer"))
    source.decoded()
    # what works on the stored picture shares it
    same = call(source, folder, augment=Augment(16, flip=0.5, colour_jitter=0.3))
    assert same.directory == stores[0].directory and not source.decoded()


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINICLIP_CACHE", raising=False)
    assert cache_folder(None) == tmp_path / ".cache" / "miniclip"
    monkeypatch.setenv("MINICLIP_CACHE", "~/elsewhere")
    assert cache_folder(None) == tmp_path / "elsewhere"
    assert cache_folder("~/own") == tmp_path / "own"


def in_another_process(source: Fake, folder: Path) -> multiprocessing.process.BaseProcess:
    process = fork.Process(target=call, args=(source, folder))
    process.start()
    return process


def test_a_killed_build_goes_on_with_the_finished_parts(source: Fake, folder: Path) -> None:
    source.delay = 0.02
    process = in_another_process(source, folder)
    deadline = time.monotonic() + 30
    while not list(folder.glob("*/001")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (directory,) = (path for path in folder.iterdir() if path.is_dir())
    finished = sorted(path.name for path in directory.iterdir() if path.suffix != ".unfinished")
    assert finished[:2] == ["000", "001"] and "all" not in finished
    source.decoded()
    source.delay = 0
    store = call(source, folder)
    assert source.decoded() == Counter(range(8 * len(finished), 30))
    check(store, source)
    assert not list(directory.glob("*.unfinished"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_goes_on(source: Fake, folder: Path, error: type[BaseException]) -> None:
    def strike(row: int) -> None:
        if row == 20:
            raise error

    source.strike = strike
    with pytest.raises(error):
        call(source, folder)
    source.strike = lambda row: None
    source.decoded()
    check(call(source, folder), source)
    assert set(source.decoded()) >= set(range(16, 30))
    source.decoded()
    call(source, folder)
    assert not source.decoded()


def test_only_the_missing_parts_are_decoded_after_an_interruption(source: Fake, folder: Path) -> None:
    store = call(source, folder)
    source.decoded()
    shutil.rmtree(store.directory / "all")
    shutil.rmtree(store.directory / "002")
    again = call(source, folder)
    assert source.decoded() == Counter(range(16, 24))
    check(again, source)


def test_a_changed_source_is_prepared_again(source: Fake, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        call(source, folder)
        call(source, folder)
    assert not caplog.records
    source.decoded()
    later = Fake(30, source.diary, version="2")
    check(call(later, folder), later)
    assert caplog.messages == ["fake train has changed since it was prepared; preparing again"]
    assert set(source.decoded()) == set(range(30))
    shorter = Fake(9, source.diary, version="2")
    store = call(shorter, folder)
    assert len(store) == 9 and len(caplog.messages) == 2
    assert sorted(path.name for path in store.directory.iterdir()) == ["000", "001", "all"]


def test_parts_of_another_version_are_not_used(source: Fake, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(call(source, folder).directory / "all")
    source.decoded()
    call(Fake(30, source.diary, version="2"), folder)
    assert source.decoded() == Counter(range(30))
    assert caplog.messages == ["fake train has changed since it was prepared; preparing again"]


def test_parts_of_another_size_are_not_used(source: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(call(source, folder).directory / "all")
    monkeypatch.setattr(module, "PART", 7)
    store = call(source, folder)
    assert len(store) == 30
    check(store, source)


def test_another_pillow_prepares_again(source: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(source, folder)
    source.decoded()
    monkeypatch.setattr(module.PIL, "__version__", "99.0")
    call(source, folder)
    assert source.decoded() == Counter(range(30))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def other_array(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def other_values(path: Path) -> None:
    np.save(path, np.load(path) + 1)


def one_more(path: Path) -> None:
    """A last picture without captions."""
    counts = np.load(path)
    np.save(path, np.append(counts, counts[-1] if path.parent.name == "all" else 0))


def pickled_array(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "damage", "decoded"),
    [
        ("all/about.json", cut, 0),
        ("all/about.json", lambda path: path.write_text("[]"), 0),
        ("all/about.json", Path.unlink, 0),
        ("all/tokens.npy", cut, 0),
        ("all/tokens.npy", other_array, 0),
        ("all/captions.npy", other_array, 0),
        ("all/lengths.npy", other_array, 0),
        ("all/captions.npy", other_values, 0),
        ("all/lengths.npy", other_values, 0),
        ("all/captions.npy", one_more, 0),
        ("all/places.npy", other_array, 0),
        ("all/places.npy", pickled_array, 0),
        ("001/pixels", cut, 8),
        ("001/pixels", grow, 8),
        ("001/pixels", Path.unlink, 8),
        ("003/pixels", lambda path: path.write_bytes(b""), 6),
    ],
)
def test_a_damaged_store_is_refused(
    source: Fake, folder: Path, name: str, damage: Callable[[Path], Any], decoded: int, caplog: Any
) -> None:
    store = call(source, folder)
    source.decoded()
    damage(store.directory / name)
    again = call(source, folder)
    assert sum(source.decoded().values()) == decoded
    (message,) = caplog.messages
    assert message.startswith("fake train was prepared, but the files are damaged (")
    check(again, source)


ARRAYS = ["places.npy", "captions.npy", "lengths.npy", "tokens.npy"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in ["about.json", "pixels", *ARRAYS] for damage in (cut, Path.unlink)]
    + [(name, other_array) for name in ARRAYS]
    + [(name, other_values) for name in ARRAYS[:3]]
    + [("captions.npy", one_more)],
)
def test_a_damaged_part_is_not_continued(source: Fake, folder: Path, name: str, damage: Any) -> None:
    store = call(source, folder)
    shutil.rmtree(store.directory / "all")
    source.decoded()
    damage(store.directory / "002" / name)
    again = call(source, folder)
    assert source.decoded() == Counter(range(16, 24))
    check(again, source)


def test_no_pickle_is_ever_loaded(source: Fake, folder: Path) -> None:
    store = call(source, folder)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "exploded"),)

    for name in ("all", "000"):
        np.save(store.directory / name / "places.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    check(call(source, folder), source)
    assert not (folder / "exploded").exists()


def test_two_processes_decode_once_together(source: Fake, folder: Path) -> None:
    source.delay = 0.01
    processes = [in_another_process(source, folder) for _ in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert source.decoded() == Counter(range(30))
    check(call(source, folder), source)


def test_waiting_goes_on_where_a_killed_builder_stopped(source: Fake, folder: Path) -> None:
    source.delay = 0.03
    first = in_another_process(source, folder)
    while not list(folder.glob("*/000")):
        time.sleep(0.005)
    second = in_another_process(source, folder)
    time.sleep(0.1)
    assert second.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join(60)
    assert second.exitcode == 0
    rows = source.decoded()
    assert all(rows[row] == 1 for row in range(8)) and set(rows) == set(range(30))
    call(source, folder)
    assert not source.decoded()


def test_the_bar_says_that_it_waits(source: Fake, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.delay = 0.1
    other = in_another_process(source, folder)
    while not list(folder.glob("*/000.unfinished")):
        time.sleep(0.005)
    call(source, folder, progress=True)
    other.join(60)
    assert "waiting for another run that prepares these images" in capsys.readouterr().err
    assert max(source.decoded().values()) == 1


def test_the_bar_counts_every_picture(source: Fake, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.delay = 0.02
    call(source, folder, progress=True)
    assert "preparing images" in capsys.readouterr().err
    call(source, tmp := folder / "quiet")
    assert tmp.is_dir() and capsys.readouterr().err == ""


def test_too_little_space_is_said_before_the_long_work(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Even(Fake):
        def image(self, index: int) -> Image.Image:
            assert index < 400  # too late
            super().image(index)
            return Image.new("RGB", (18, 18))  # 972 bytes, as they are stored

    monkeypatch.setattr(module, "PART", 50)
    usage = shutil.disk_usage(tmp_path)
    source = Even(100_000, tmp_path / "diary")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=90_000_000))
    with pytest.raises(ValueError, match=r"100000 images takes about 0\.1 GB, and 0\.1 GB are free in .*cache; set "):
        call(source, folder)
    assert len(source.decoded()) >= 100
    small = Even(150, tmp_path / "diary")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150 * 972))
    assert len(call(small, folder)) == 150
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=150 * 972 - 1))
    with pytest.raises(ValueError, match=r"data\.cache_dir to another folder, or data\.cache to false"):
        call(small, folder / "other")


def under_a_limit(source: Fake, folder: Path, augment: Augment, size: int, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        call(source, folder, augment=augment)
    except ValueError as error:
        answer.send(str(error))


@pytest.mark.parametrize(
    ("size", "side", "kept"),
    [
        (500, 16, 0),  # no picture can be written: 972 bytes at least
        (5000, 16, 0),  # the first picture can be written
        (200, 2, 0),  # all pixels of a part can: 8 x 18 to 30 bytes, but not the places: 128 + 8 x 32
        (700, 2, 4),  # the parts can, but not the places of all: 128 + 30 x 32
    ],
)
def test_a_disk_that_fills_up(source: Fake, folder: Path, size: int, side: int, kept: int) -> None:
    """A limit on the size of a file makes writing fail as a full disk does."""
    mine, theirs = fork.Pipe()
    process = fork.Process(target=under_a_limit, args=(source, folder, Augment(side), size, theirs))
    process.start()
    process.join(60)
    assert mine.poll()
    message = mine.recv()
    assert message.startswith(f"the prepared images cannot be written to {folder}: ")
    assert message.endswith("set data.cache_dir to another folder, or data.cache to false")
    assert len(list(folder.glob("*/*"))) == kept  # nothing half-written keeps the disk full
    source.decoded()
    store = call(source, folder, augment=Augment(side))
    assert source.decoded() == Counter(range(8 * kept, 30))
    check(store, source, Augment(side))


def test_a_file_in_the_way(source: Fake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written to .*file.*set data\.cache_dir to another folder"):
        call(source, tmp_path / "file")
    assert not source.decoded()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users can look into."""
    path = Path(tempfile.mkdtemp(prefix="miniclip-prepared-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_folder_that_cannot_be_written(source: Fake, open_folder: Path) -> None:
    """A finished store there is used all the same."""
    call(source, open_folder)
    source.decoded()
    root = os.geteuid() == 0
    for path in (open_folder, *open_folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(65534)  # permissions do not hold root back
    try:
        found = call(source, open_folder)
        with pytest.raises(ValueError, match=r"cannot be written to .*set data\.cache_dir to another folder"):
            call(source, open_folder, label="another")
        with pytest.raises(ValueError, match=r"cannot be written to .*set data\.cache_dir to another folder"):
            call(source, open_folder / "below")
    finally:
        if root:
            os.seteuid(0)
        for path in (open_folder, *open_folder.iterdir()):
            path.chmod(0o755)
    assert not source.decoded()
    check(found, source)


def test_bad_pictures_are_named_in_every_run(tmp_path: Path, folder: Path) -> None:
    source = Fake(30, tmp_path / "diary", broken=(2, 8, 9, 10, 11, 12, 13, 14, 15, 29))  # part 1 has none left
    names = [f"row {row}: cut short" for row in source.broken]
    for _ in range(2):
        store = call(source, folder, allowed=1 / 3)
        assert store.bad == names
        assert store.rows.tolist() == [row for row in range(30) if row not in source.broken]
        check(store, source)
    source.decoded()
    with pytest.raises(TooManyBad, match=r"10 of 30 images cannot be used.*row 2: cut short; row 8"):
        call(source, folder, allowed=0.3)
    assert not source.decoded()


def test_too_many_bad_pictures_keep_what_is_done(tmp_path: Path, folder: Path) -> None:
    source = Fake(30, tmp_path / "diary", broken=(2, 20, 21))
    with pytest.raises(TooManyBad, match=r"2 of 30 images cannot be used.*row 2: cut short; row 20"):
        call(source, folder, allowed=0.05)
    source.decoded()
    with pytest.raises(TooManyBad, match="row 2: cut short; mend"):  # stricter: known from the first part
        call(source, folder, allowed=0)
    assert not source.decoded()
    store = call(source, folder, allowed=0.1)
    assert source.decoded() == Counter(range(16, 30))
    assert store.bad == [f"row {row}: cut short" for row in (2, 20, 21)]
    check(store, source)


def test_nothing_that_can_be_read(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadImage, match=r"no image can be read; check data\.source and data\.image_column"):
        call(Fake(3, tmp_path / "diary", broken=(0, 1, 2)), folder, allowed=1)
    with pytest.raises(BadImage, match="no image can be read"):
        call(Fake(0, tmp_path / "diary"), folder)


class Files(Fake):
    """Pictures in files."""

    def __init__(self, paths: list[Path], diary: Path) -> None:
        super().__init__(len(paths), diary)
        self.paths = paths

    def image(self, index: int) -> Image.Image:
        return decode_image(self.paths[index], self.paths[index].name)

    def fingerprint(self) -> str:
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths if path.exists()]
        return json.dumps(found)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def wrong_checksum() -> bytes:
    data = bytearray(encoded(noise(0), "PNG"))
    data[29] ^= 0xFF  # in the CRC of IHDR: 8 of signature, 4 of length, 4 of type, 13 of content
    return bytes(data)


def bad_files() -> dict[str, bytes | None]:
    """Name -> content; None stands for something that is not a file."""
    jpeg, whole = encoded(noise(0), "JPEG"), encoded(noise(0), "PNG")
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "missing.jpg": None,
        "text.jpg": b"this is not a picture\n" * 20,
        "checksum.png": wrong_checksum(),
        "cut.png": whole[: len(whole) // 2],
        "bomb.png": png(9000, 9000),
        "huge.png": png(60000, 60000),
        "flat.png": png(0, 7),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "print.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n",
        "float.tif": encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
        "folder.jpg": None,
    }


def good_files() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Name -> content, and the colour at the top left of the upright picture."""
    size = (24, 24)
    grey = Image.new("L", size, 77)
    palette = Image.new("P", size)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.new("RGB", size, (255, 0, 0))
    turned.paste((0, 0, 255), (0, 12, 24, 24))
    return {
        "plain.png": (encoded(Image.new("RGB", size, (1, 2, 3)), "PNG"), (1, 2, 3)),
        "cmyk.jpg": (encoded(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        "wide.png": (encoded(Image.fromarray(np.full(size, 77 * 257, dtype=np.uint16)), "PNG"), (77, 77, 77)),
        "grey.png": (encoded(grey, "PNG"), (77, 77, 77)),
        "palette.png": (encoded(palette, "PNG"), (0, 0, 255)),
        "clear.png": (encoded(palette, "PNG", transparency=0), (255, 255, 255)),
        "turned.png": (encoded(turned, "PNG", exif=exif), (0, 0, 255)),
        "bit.png": (encoded(Image.new("1", size, 1), "PNG"), (255, 255, 255)),
        "la.png": (encoded(Image.new("LA", size, (77, 0)), "PNG"), (255, 255, 255)),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_of_many_kinds_are_counted_and_named(tmp_path: Path, folder: Path) -> None:
    bad, good = bad_files(), good_files()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names: list[str] = []
    kinds, odd = list(bad), list(good)
    for position in range(260):  # every 20th is broken: 5%, each kind once
        broken = position % 20 == 7
        name = kinds[position // 20] if broken else f"{position}-{odd[position % len(odd)]}"
        names.append(name)
        content = bad[name] if broken else good[odd[position % len(odd)]][0]
        if content is not None:
            (pictures / name).write_bytes(content)
    (pictures / "folder.jpg").mkdir()
    source = Files([pictures / name for name in names], tmp_path / "diary")
    for _ in range(2):
        store = call(source, folder, allowed=0.05)
        assert len(store) == 247 and len(store.bad) == 13 == 0.05 * 260
        assert [message.split(":")[0] for message in store.bad] == kinds
        assert [names[row] for row in store.rows.tolist()] == [name for name in names if name not in bad]
    with pytest.raises(TooManyBad, match=r"13 of 260 .*cut\.jpg: .*; empty\.jpg: .*; missing\.jpg: "):
        call(source, folder, allowed=0.0499)
    for index, row in enumerate(store.rows.tolist()):
        colour = good[names[row].split("-")[1]][1]
        assert np.abs(store.image(index)[0, 0].astype(int) - colour).max() <= (5 if "cmyk" in names[row] else 0)


def test_a_mended_file_is_read_again(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [tmp_path / f"{row}.png" for row in range(9)]
    for path in paths:
        noise(0).save(path)
    cut_short = paths[4].read_bytes()[:200]
    paths[4].write_bytes(cut_short)
    source = Files(paths, tmp_path / "diary")
    assert call(source, folder, allowed=0.5).rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    noise(0).save(paths[4])
    store = call(source, folder, allowed=0)
    assert len(store) == 9 and store.bad == []
    assert caplog.messages == ["fake train has changed since it was prepared; preparing again"]


def test_no_more_parts_than_a_process_may_map(source: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 2)
    monkeypatch.setattr(module, "MOST_PARTS", 4)
    store = call(source, folder)  # ceil(30 / 4) = 8 in a part
    assert sorted(path.name for path in store.directory.iterdir()) == ["000", "001", "002", "003", "all"]
    check(store, source)
