"""Features of a locked tower: the steps that the tower itself would have given, and never stale or damaged values."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.fsdp_train import sharded_train
from support.group import together
from support.hf_models import bert_folder
from support.launching import ROOT
from support.trouble import until
from test_fsdp import LAUNCHER
from test_towers import timm_folder
from test_training import TINY, lines, run
from torch import Tensor

from miniclip.cli.train import train_main
from miniclip.common.durable import DiskFull
from miniclip.config import ConfigError
from miniclip.data.cache import features as module
from miniclip.data.cache.features import Features, worked_out
from miniclip.data.features import FeaturePairs
from miniclip.data.recolour import recolour
from miniclip.training.loop import Loop

fork = multiprocessing.get_context("fork")
ENDS = np.array([0, 2, 3, 7, 8, 10, 11, 15, 16, 20])  # 9 items of 1 to 4 rows
EVERY = torch.arange(60.0).view(20, 3) ** 2


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 2)


class Maker:
    """What makes EVERY, and notes for which items; with at, it comes to an end there."""

    def __init__(self, diary: Path | None = None, at: int | None = None, delay: float = 0.0) -> None:
        self.diary, self.at, self.delay = diary, at, delay
        self.made: list[int] = []

    def __call__(self, items: range, done: Callable[[int], object]) -> Tensor:
        if self.at in items:
            raise KeyboardInterrupt
        self.made += items
        if self.diary is not None:
            with self.diary.open("a") as file:
                file.write("".join(f"{item}\n" for item in items))
        time.sleep(self.delay)
        done(len(items))
        return EVERY[ENDS[items.start] : ENDS[items.stop]]


def call(make: Maker, folder: Path, key: object = "weights", **changes: Any) -> Features:
    options: dict[str, Any] = {"key": [key], "folder": folder, "label": "features", "progress": False}
    return worked_out(make, ENDS, (3,), **options | changes)[0]


def check(found: Features) -> None:
    rows = np.array([19, 0, 7, 7])
    assert len(found) == 20 and found.shape == (3,) and torch.equal(found[rows], EVERY[rows])


def values(folder: Path) -> Path:
    (path,) = folder.glob("features/*/values")
    return path


def test_made_once_for_each_key(tmp_path: Path) -> None:
    first, second, third = Maker(), Maker(), Maker()
    check(call(first, tmp_path))
    found = call(second, tmp_path)
    check(found)
    assert first.made == list(range(9)) and second.made == []
    assert not list(tmp_path.rglob("*.lock")) and len(pickle.dumps(found)) < 500
    check(pickle.loads(pickle.dumps(found)))
    call(third, tmp_path, "other weights")
    assert third.made == list(range(9)) and len(list(tmp_path.glob("features/*"))) == 2


def test_an_interrupted_work_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        call(Maker(at=5), tmp_path)
    again = Maker()
    check(call(again, tmp_path))
    assert again.made == [4, 5, 6, 7, 8]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3 * 4 * 16] ^= 1  # of item 8
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "again"), [(cut, [8]), (change, [8]), (Path.unlink, list(range(9)))])
def test_damaged_parts_are_made_again(tmp_path: Path, damage: Any, again: list[int], caplog: Any) -> None:
    call(Maker(), tmp_path)
    damage(values(tmp_path))
    make = Maker()
    check(call(make, tmp_path))
    assert make.made == again
    assert "are damaged; made again" in caplog.text


def test_processes_share_the_parts(tmp_path: Path) -> None:
    """Also those of one that is killed, and none is made twice but the one that it was at."""
    killed = fork.Process(target=call, args=(Maker(tmp_path / "first", delay=0.3), tmp_path))
    killed.start()
    assert until((tmp_path / "first").exists, 30)
    others = [fork.Process(target=call, args=(Maker(tmp_path / "diary", delay=0.05), tmp_path)) for _ in range(2)]
    for process in others:
        process.start()
    assert until((tmp_path / "diary").exists, 30)
    os.kill(killed.pid or 0, signal.SIGKILL)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    check(call(Maker(at=0), tmp_path))
    assert sorted(map(int, (tmp_path / "diary").read_text().split())) == list(range(9))


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_space", lambda _: 100)
    with pytest.raises(DiskFull, match=r"features take 2\.4e-07 GB, and 1e-07 GB are free in .*; set data\.cache_dir"):
        call(Maker(), tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"features cannot be written to .*; set data\.cache_dir"):
        call(Maker(), tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# ---- whole runs

TWO = {"image_layers": 2, "text_layers": 2}
RESNET = ["--model.image_encoder", "resnet", "--model.image_layers", "[1,1,1,1]", "--model.patch_size", "null"]


@pytest.fixture
def two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "PART", 16)
    path = tmp_path / "two.yaml"
    data = {**TINY["data"], "augment": "none", "cache_dir": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump({**TINY, "model": {**TINY["model"], **TWO}, "data": data, "eval": {"tasks": []}}))
    return str(path)


def assert_same_run(first: Path, second: Path, rtol: float = 1e-5) -> None:
    """Losses and weights; with rtol 0 to the bit."""
    ours, theirs = ([line["loss"] for line in lines(folder)] for folder in (first, second))
    assert ours == (pytest.approx(theirs, rel=rtol) if rtol else theirs)
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=rtol)


LOCKS = {
    "vit": ["--model.lock_image", "true", "--data.flip", "0.5"],
    "last block": ["--model.lock_image", "1", "--data.captions_per_image", "2"],
    "resnet": ["--model.lock_image", "true", *RESNET],
    "last stages": ["--model.lock_image", "2", "--data.flip", "0.5", *RESNET],
    "text": ["--model.lock_text", "true", "--data.augment", "crop", "--data.flip", "0.5"],
    "words left out": ["--model.lock_image", "true", "--data.word_drop", "0.3", "--data.captions_by", "length"],
    "last block of text": ["--model.lock_text", "1", "--data.captions_per_image", "3", "--data.workers", "1"],
    "both, cached gradients": ["--model.lock_image", "1", "--model.lock_text", "1", "--train.micro_batch_size", "3"],
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_run_on_features_is_the_run_on_images(two_blocks: str, tmp_path: Path, name: str, capsys: Any) -> None:
    run(two_blocks, tmp_path / "with", *LOCKS[name])
    told = capsys.readouterr().out
    assert "features of the locked" in told and "runs in every step" not in told
    run(two_blocks, tmp_path / "without", *LOCKS[name], "--data.cache", "false")
    told = capsys.readouterr().out
    assert "tower runs in every step, since data.cache=false keeps nothing; set it to true" in told
    assert_same_run(tmp_path / "with", tmp_path / "without")
    speeds = [line["mfu"] for line in lines(tmp_path / "with") if "mfu" in line]
    assert len(speeds) == 6 and all(speed is not None and speed >= 0 for speed in speeds)


@pytest.mark.parametrize("blocks", [{}, {"image": 2, "text": 1}], ids=["outputs", "last blocks"])
def test_towers_of_other_libraries(two_blocks: str, tmp_path: Path, blocks: dict[str, int]) -> None:
    """An EfficientNet of timm and a BERT with mean pooling, whose dropout is off where it is locked, and only there."""
    config = yaml.safe_load(Path(two_blocks).read_text())
    config["model"] = {f"lock_{kind}": blocks.get(kind, True) for kind in ("image", "text")}
    image, text = timm_folder(tmp_path / "image"), bert_folder(tmp_path / "text")
    config["model"] |= {"image": image, "text": text, "embed_dim": 8, "image_size": 64}
    config["data"] |= {"flip": 0.5, "captions_per_image": 2}
    Path(two_blocks).write_text(yaml.safe_dump(config))
    run(two_blocks, tmp_path / "with")
    run(two_blocks, tmp_path / "without", "--data.cache", "false")
    assert_same_run(tmp_path / "with", tmp_path / "without")
    assert all(line["mfu"] > 0 for line in lines(tmp_path / "with") if "mfu" in line)


VIEWS = ["--data.views", "3", "--data.augment", "resized_crop", "--data.flip", "0.5", "--data.colour_jitter", "0.2"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_resume_goes_on_to_the_bit(two_blocks: str, tmp_path: Path, cached: bool, monkeypatch: Any) -> None:
    """Of a run whose images are views, and of whose text the last block learns."""
    options = ["--model.lock_image", "1", "--model.lock_text", "1", "--optim.schedule", "constant", *VIEWS]
    options += ["--train.micro_batch_size", "3"] if cached else []
    run(two_blocks, tmp_path / "whole", *options)
    between = Loop._between
    monkeypatch.setattr(Loop, "_between", lambda loop, done: (torch.rand(done), between(loop, done)))
    run(two_blocks, tmp_path / "parts", *options, "--train.max_steps", "4")
    run(two_blocks, tmp_path / "parts", *options, "--run.resume", "true")
    assert_same_run(tmp_path / "whole", tmp_path / "parts", rtol=0)
    assert len(list(tmp_path.glob("cache/features/*"))) == 2  # none was made again


def test_views_are_squares_of_the_augmentation(two_blocks: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Of the image tower's features, those of three random presentations of each image, all of which come up."""
    kept: list[Any] = []
    start = Loop.__init__
    monkeypatch.setattr(Loop, "__init__", lambda loop, *given: (kept.append(given), start(loop, *given))[1])
    run(two_blocks, tmp_path / "run", "--model.lock_image", "true", *VIEWS)
    learner, feed, *_ = kept[0]
    pairs: FeaturePairs = feed.pairs
    assert pairs.images is not None and len(pairs.images) == 3 * 40
    seen = np.unique(pairs.images[np.arange(120)].numpy(), axis=0)
    assert len(seen) == 120  # no two are alike
    model = learner.model.eval()
    for at, view in ((0, 0), (17, 2)):
        square, look = pairs.views.look(pairs.pairs, at, view)
        assert square.shape == (32, 32, 3) and len(look) == 4
        pixels = recolour(torch.tensor(square.copy()).permute(2, 0, 1)[None], torch.tensor([look]))
        with torch.no_grad():
            expected = model.encode_image(learner.preprocess.normalize(pixels))
        torch.testing.assert_close(pairs.images[np.array([3 * at + view])], expected, rtol=1e-5, atol=1e-6)
    drawn = pairs.__getitems__([(epoch, 5) for epoch in range(40)]).image
    assert len(drawn.unique(dim=0)) == 3
    assert torch.equal(drawn, pairs.__getitems__([(epoch, 5) for epoch in range(40)]).image)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "data.views=3: so many squares of each image go through a locked image tower beforehand; set model.lock_"),
        (["--model.lock_image", "true", "--data.cache", "false"], "but data.cache=false keeps nothing; set it to true"),
        (["--model.lock_image", "1", "--data.augment", "none"], "all the same; set data.augment, or data.views=1"),
        (["--model.lock_image", "1", "--train.low_image_size", "16"], "train.low_image_size changes what it sees"),
    ],
)
def test_views_without_a_use_are_refused(two_blocks: str, tmp_path: Path, options: list[str], words: str) -> None:
    crop = ["--data.views", "3", "--data.augment", "crop"]
    with pytest.raises(ConfigError) as told:
        run(two_blocks, tmp_path / "run", *crop, *options)
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "cache").exists()


def test_images_drawn_anew_are_not_kept(two_blocks: str, tmp_path: Path, capsys: Any) -> None:
    run(two_blocks, tmp_path / "run", "--model.lock_image", "true", "--data.augment", "crop", "--train.max_steps", "1")
    told = capsys.readouterr().out
    assert "since data.augment=crop draws each image anew; set data.views, e.g. to 4, or data.augment=none" in told
    assert not (tmp_path / "cache" / "features").exists()


def test_what_the_features_hang_on(two_blocks: str, tmp_path: Path) -> None:
    """Other weights, images or captions have others; what does not change them has the same."""
    both = ["--model.lock_image", "1", "--model.lock_text", "true", "--train.max_steps", "1"]

    def after(name: str, *options: str) -> int:
        run(two_blocks, tmp_path / name, *both, *options)
        return len(list((tmp_path / "cache" / "features").iterdir()))

    assert after("first") == 2
    assert after("same", "--optim.lr", "1e-4", "--data.batch_size", "10", "--train.precision", "bf16") == 2
    assert after("mirrored", "--data.flip", "0.5") == 3
    assert after("mirrored more", "--data.flip", "0.7") == 3
    assert after("deeper", "--model.lock_text", "1") == 4
    assert after("other weights and scenes", "--run.seed", "1") == 6
    assert after("fewer", "--data.size", "30") == 8


@pytest.mark.slow
def test_two_processes_are_one(two_blocks: str, tmp_path: Path) -> None:
    """With DDP, with the features of the one and with their own, and with FSDP."""
    options = ["--model.lock_image", "1", "--model.lock_text", "1", *VIEWS]
    run(two_blocks, tmp_path / "one", *options)
    for name, folder, start, variables in (
        ("two", "cache", train_main, {}),
        ("apart", "other", train_main, {}),
        ("sharded", "cache", sharded_train, LAUNCHER),
    ):
        given = ["--config", two_blocks, "--run.dir", str(tmp_path / name), *options]
        given += ["--data.cache_dir", str(tmp_path / folder)]
        for outcome in together(2, start, given, variables=variables):
            assert outcome.value == 0, outcome.complaints
        assert_same_run(tmp_path / "one", tmp_path / name, rtol=2e-5)
    assert len(list(tmp_path.glob("cache/features/*"))) == 2
    ours, theirs = (sorted((tmp_path / name / "features").glob("*/values")) for name in ("cache", "other"))
    for a, b in zip(ours, theirs, strict=True):
        assert a.parent.name == b.parent.name
        assert np.allclose(np.fromfile(a, np.float32), np.fromfile(b, np.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stopped_while_the_features_are_made(two_blocks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal in the real script: what was made is kept, and the next start needs no --run.resume."""
    monkeypatch.setattr(module, "PART", 512)
    big = ["--data.size", "3000", "--model.image_size", "64", "--model.lock_image", "true", "--data.flip", "0.5"]
    command = [sys.executable, str(ROOT / "train.py"), "--config", two_blocks, "--run.dir", str(tmp_path / "run"), *big]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert until(lambda: list(tmp_path.glob("cache/features/*/*.done")), 60)
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 143
    assert complaints.strip().endswith("stopped before the first step; nothing was saved"), complaints
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/features/*/*.done")}
    result = run(two_blocks, tmp_path / "run", *big)
    assert result["training"]["steps"] == 6
    assert {path: path.stat().st_mtime_ns for path in made} == made
