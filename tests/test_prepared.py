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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.sources import FakePairs, noise
from torch.utils.data import DataLoader

from miniclip.data.augment import Augment
from miniclip.data.cache import prepared as module
from miniclip.data.cache.prepared import cache_folder, prepare
from miniclip.data.cache.store import Prepared, Unusable
from miniclip.data.images import BadImage, TooManyBad
from miniclip.models.tokenizer import Tokenizer

AUGMENT = Augment(16)
ADVICE = "set data.cache_dir to another folder, or data.cache to false"
fork = multiprocessing.get_context("fork")


def captions_of(row: int) -> list[str]:
    texts = [f"image {row}!", "naïve café &amp; 東京 " * (row % 9), f"!☃ row <end_of_text> {'word ' * row} !"]
    return texts[: 1 + row % 3]


class Diary(FakePairs):
    """Noise in several sizes, one to three captions each, noted when it is read, in any process."""

    def __init__(self, size: int, diary: Path, **options: Any) -> None:
        sizes = np.random.default_rng(0).integers(20, 50, (size, 2)).tolist()
        super().__init__(size, **{"draw": lambda row: noise(row, sizes[row]), **options})
        self.diary, self.delay, self.own = diary, 0.0, "captions" not in options

    def captions(self, index: int) -> list[str]:
        return captions_of(index) if self.own else super().captions(index)

    def image(self, index: int) -> Image.Image:
        time.sleep(self.delay)
        with self.diary.open("ab", buffering=0) as file:
            file.write(f"{index}\n".encode())
        return super().image(index)

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
        expected = np.array(augment.store(FakePairs.image(source, row)))
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
def source(tmp_path: Path) -> Diary:
    return Diary(30, tmp_path / "diary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["crop", "resized_crop", "none"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_pixels_and_tokens_are_those_of_the_source(source: Diary, folder: Path, kind: Any, resize: Any) -> None:
    augment = Augment(16, kind=kind, resize=resize)
    store = call(source, folder, augment=augment)
    assert source.decoded() == Counter(range(30))
    assert len(store) == 30 and store.rows.dtype == np.int64 and store.rows.tolist() == list(range(30))
    check(store, source, augment)
    parts = [path for path in store.directory.iterdir() if path.name != "all"]
    assert sorted(path.name for path in parts) == ["000", "001", "002", "003"]  # 8 + 8 + 8 + 6
    again = call(source, folder, augment=augment)
    assert not source.decoded()
    check(again, source, augment)


def test_an_image_and_its_tokens_are_read_only_views(source: Diary, folder: Path) -> None:
    store = call(source, folder)
    for view in (store.image(3), *store.tokens(3)):
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
    assert not store.image(3).flags.owndata
    with pytest.raises(IndexError):
        store.image(30)


def test_the_vocabulary_is_in_use_and_has_no_padding(source: Diary, tmp_path: Path, folder: Path) -> None:
    encode, sharp = Tokenizer().encode, "!☃"
    ids = {token for row in range(30) for text in captions_of(row) for token in encode(text)[:22]}
    assert call(source, folder).vocabulary().tolist() == sorted(ids | {49406, 49407})
    assert 0 in encode(sharp)  # the padding is 0, and so is a "!" inside a piece
    for last in ("a cat", sharp):
        plain = Diary(3, tmp_path / "diary", captions=[["a dog", "a cat", last]] * 3, version=last)
        expected = {49406, 49407, *encode("a dog a cat"), *encode(last)}
        assert call(plain, folder).vocabulary().tolist() == sorted(expected)


class Sums:
    def __init__(self, store: Prepared) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> int:
        return int(self.store.image(index).sum())


def test_a_store_survives_pickling_and_workers(source: Diary, folder: Path) -> None:
    store = call(source, folder)
    packed = pickle.dumps(store)
    assert len(packed) < 500
    check(pickle.loads(packed), source)
    loaded = DataLoader(Sums(store), batch_size=None, num_workers=2)  # type: ignore[arg-type]
    assert [int(x) for x in loaded] == [Sums(store)[row] for row in range(30)]


def test_an_open_store_keeps_its_images_when_another_run_replaces_them(source: Diary, folder: Path) -> None:
    store = call(source, folder)
    packed = pickle.dumps(store)
    later = Diary(30, source.diary, version="2", captions=[["something else"]] * 30)
    check(call(later, folder), later)
    check(store, source)
    with pytest.raises(Unusable, match="changed"):  # a process that maps the files only now must not mix the two
        pickle.loads(packed)


def test_settings_have_stores_of_their_own(source: Diary, folder: Path) -> None:
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


def in_another_process(source: Diary, folder: Path) -> multiprocessing.process.BaseProcess:
    process = fork.Process(target=call, args=(source, folder))
    process.start()
    return process


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.002)


def test_a_killed_build_goes_on_with_the_finished_parts(source: Diary, folder: Path) -> None:
    """Also in a process that has waited for it."""
    source.delay = 0.02
    first = in_another_process(source, folder)
    wait_for(folder, "*/001")
    second = in_another_process(source, folder)
    time.sleep(0.05)
    assert second.is_alive()
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    assert first.exitcode == -signal.SIGKILL
    second.join(60)
    assert second.exitcode == 0
    rows = source.decoded()
    assert all(rows[row] == 1 for row in range(16)) and set(rows) == set(range(30))
    check(call(source, folder), source)
    assert not source.decoded() and not list(folder.glob("*/*.unfinished"))


def test_processes_decode_once_together_and_say_that_they_wait(
    source: Diary, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.delay = 0.1
    others = [in_another_process(source, folder) for _ in range(2)]
    wait_for(folder, "*/000.unfinished")
    call(source, folder, progress=True)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert "waiting for another run that prepares these images" in capsys.readouterr().err
    assert source.decoded() == Counter(range(30))
    check(call(source, folder), source)


def test_the_bar_counts_every_image(source: Diary, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.delay = 0.02
    call(source, folder, progress=True)
    assert "preparing images" in capsys.readouterr().err
    call(source, tmp := folder / "quiet")
    assert tmp.is_dir() and capsys.readouterr().err == ""


# ---- what has changed, or is damaged


def test_a_changed_source_is_prepared_again(
    source: Diary, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = "fake train has changed since it was prepared; preparing again"
    with caplog.at_level(logging.INFO):
        call(source, folder)
        call(source, folder)
    assert not caplog.records
    later = Diary(30, source.diary, version="2", captions=[["other"]] * 30)
    source.decoded()
    store = call(later, folder)
    check(store, later)
    assert caplog.messages == [changed] and source.decoded() == Counter(range(30))
    shutil.rmtree(store.directory / "all")  # parts of another version are not used either
    check(call(source, folder), source)
    assert caplog.messages == [changed] * 2 and source.decoded() == Counter(range(30))
    monkeypatch.setattr(module.PIL, "__version__", "99.0")
    call(source, folder)
    assert caplog.messages == [changed] * 3 and source.decoded() == Counter(range(30))
    store = call(Diary(9, source.diary, version="2"), folder)
    assert len(store) == 9
    assert sorted(path.name for path in store.directory.iterdir()) == ["000", "001", "all"]


def test_parts_have_the_size_that_a_process_may_map(
    source: Diary, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(call(source, folder).directory / "all")
    # parts of another size are not used; ceil(30 / 4) = 8 in a part
    for part, names in ((7, ["000", "001", "002", "003", "004", "all"]), (2, ["000", "001", "002", "003", "all"])):
        monkeypatch.setattr(module, "PART", part)
        store = call(source, folder)
        assert sorted(path.name for path in store.directory.iterdir()) == names
        check(store, source)
        shutil.rmtree(store.directory / "all")
        monkeypatch.setattr(module, "MOST_PARTS", 4)


def all_tokens(store: Prepared) -> list[np.ndarray]:
    return [ids for i in range(len(store)) for ids in store.tokens(i)]


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


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def pickled_array(path: Path) -> None:
    np.save(path, np.array([Bomb(path.parents[2] / "exploded")], dtype=object), allow_pickle=True)


DAMAGES: dict[str, list[Callable[[Path], Any]]] = {
    "about.json": [cut, Path.unlink, other_text],
    "places.npy": [cut, Path.unlink, other_array, pickled_array],
    "captions.npy": [cut, Path.unlink, other_array, other_values, one_more],
    "lengths.npy": [cut, Path.unlink, other_array, other_values],
    "tokens.npy": [cut, Path.unlink, other_array],
    "pixels": [cut, Path.unlink, grow],
}


@pytest.mark.parametrize("where", ["all", "002"])
def test_what_is_damaged_is_refused_and_made_anew(source: Diary, folder: Path, where: str, caplog: Any) -> None:
    """Files of "all", of which nothing has to be decoded; or those of a part that a build would go on from."""
    store = call(source, folder)
    before = folder.with_name("before")
    shutil.copytree(store.directory, before)
    for name, damages in DAMAGES.items():
        for damage in damages:
            shutil.rmtree(store.directory)
            shutil.copytree(before, store.directory)
            caplog.clear()
            source.decoded()
            if where != "all":
                shutil.rmtree(store.directory / "all")
            damage(store.directory / ("002" if name == "pixels" else where) / name)
            again = call(source, folder)
            anew = where != "all" or name == "pixels"
            assert source.decoded() == Counter(range(16, 24) if anew else ()), (name, damage)
            (message,) = caplog.messages
            assert message.startswith("fake train was prepared, but the files are damaged ("), (name, damage)
            assert [again.image(i).tobytes() for i in range(30)] == [store.image(i).tobytes() for i in range(30)]
            assert all(map(np.array_equal, all_tokens(again), all_tokens(store)))
    assert not (folder / "exploded").exists()


# ---- disks and folders


def test_too_little_space_is_said_before_the_long_work(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(row: int) -> Image.Image:
        assert row < 400  # too late
        return Image.new("RGB", (18, 18))  # 972 bytes, as they are stored

    def even(size: int, free: int) -> Diary:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
        return Diary(size, tmp_path / "diary", draw=draw, captions=[["an image"]] * size)

    monkeypatch.setattr(module, "PART", 50)
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(ValueError, match=r"100000 images takes about 0\.1 GB, and 0\.1 GB are free in .*cache; set "):
        call(source := even(100_000, 90_000_000), folder)
    assert len(source.decoded()) >= 100
    assert len(call(even(150, 150 * 972), folder)) == 150
    with pytest.raises(ValueError, match=ADVICE):
        call(even(150, 150 * 972 - 1), folder / "other")


def under_a_limit(source: Diary, folder: Path, augment: Augment, size: int, answer: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        call(source, folder, augment=augment)
    except ValueError as error:
        answer.send(str(error))


@pytest.mark.parametrize(
    ("size", "side", "kept"),
    [
        (500, 16, 0),  # no image can be written: 972 bytes at least
        (5000, 16, 0),  # the first image can be written
        (200, 2, 0),  # all pixels of a part can: 8 x 18 to 30 bytes, but not the places: 128 + 8 x 32
        (700, 2, 4),  # the parts can, but not the places of all: 128 + 30 x 32
    ],
)
def test_a_disk_that_fills_up(source: Diary, folder: Path, size: int, side: int, kept: int) -> None:
    """A limit on the size of a file makes writing fail as a full disk does."""
    mine, theirs = fork.Pipe()
    process = fork.Process(target=under_a_limit, args=(source, folder, Augment(side), size, theirs))
    process.start()
    process.join(60)
    assert mine.poll()
    message = mine.recv()
    assert message.startswith(f"the prepared images cannot be written to {folder}: ") and message.endswith(ADVICE)
    assert len(list(folder.glob("*/*"))) == kept  # nothing half-written keeps the disk full
    source.decoded()
    store = call(source, folder, augment=Augment(side))
    assert source.decoded() == Counter(range(8 * kept, 30))
    check(store, source, Augment(side))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users can look into."""
    path = Path(tempfile.mkdtemp(prefix="miniclip-prepared-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_folder_that_cannot_be_written(source: Diary, open_folder: Path, tmp_path: Path) -> None:
    """A finished store there is used all the same."""
    cannot = rf"cannot be written to .*{ADVICE}"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=cannot):
        call(source, tmp_path / "file")
    assert not source.decoded()
    call(source, open_folder)
    source.decoded()
    root = os.geteuid() == 0
    for path in (open_folder, *open_folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if root:
        os.seteuid(65534)  # permissions do not hold root back
    try:
        found = call(source, open_folder)
        for options in ({"folder": open_folder, "label": "another"}, {"folder": open_folder / "below"}):
            with pytest.raises(ValueError, match=cannot):
                call(source, **options)  # type: ignore[arg-type]
    finally:
        if root:
            os.seteuid(0)
        for path in (open_folder, *open_folder.iterdir()):
            path.chmod(0o755)
    assert not source.decoded()
    check(found, source)


# ---- bad images


def test_bad_images_are_named_in_every_run(tmp_path: Path, folder: Path) -> None:
    broken = (2, 8, 9, 10, 11, 12, 13, 14, 15, 29)  # part 1 has none left
    source = Diary(30, tmp_path / "diary", broken=broken)
    for _ in range(2):
        store = call(source, folder, allowed=1 / 3)
        assert store.bad == [f"row {row}: cut short" for row in broken]
        assert store.rows.tolist() == [row for row in range(30) if row not in broken]
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
    store = call(source, folder, allowed=0.1)
    assert source.decoded() == Counter(range(16, 30))
    assert store.bad == [f"row {row}: cut short" for row in (2, 20, 21)]
    check(store, source)


def test_nothing_that_can_be_read(tmp_path: Path, folder: Path) -> None:
    for rows in (3, 0):
        with pytest.raises(BadImage, match=r"no image can be read; check data\.source and data\.image_column"):
            call(Diary(rows, tmp_path / "diary", broken=range(rows)), folder, allowed=1)
