"""Checkpoints: written beside the steps, damaged, cut off by a kill, or without room; what a resume makes of them."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.disks import fill, in_memory
from support.group import together
from support.trouble import flip_bit
from test_signals import PATIENCE, assert_same_weights, exact
from test_training import TINY, run

from miniclip.cli.train import train_main
from miniclip.common.durable import DiskFull
from miniclip.training import checkpoint
from miniclip.training.loop import Loop

WEIGHTS = "model/model.safetensors"
EVERY_2 = ["--eval.tasks", "[]", "--run.checkpoint_every", "2"]
RESUME = ["--run.resume", "true"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of 6 steps, beside its configuration file."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run(str(folder / "tiny.yaml"), folder / "run", *EVERY_2)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    """The same, cut off after its checkpoints of steps 4 and 6."""
    directory = shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(directory / "model")
    return directory


def arguments(whole: Path, directory: Path, *options: str) -> list[str]:
    return ["--config", str(whole / "tiny.yaml"), "--run.dir", str(directory), *EVERY_2, *options]


def assert_as_if_nothing_had_been(directory: Path, whole: Path) -> None:
    assert_same_weights(directory / WEIGHTS, whole / "run" / WEIGHTS)
    assert exact(directory) == exact(whole / "run")
    names = {path.name for path in (directory / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "run" / "checkpoints").iterdir()}


def test_a_checkpoint_that_should_have_gone_goes(broken: Path, whole: Path) -> None:
    """A process was killed between the last checkpoint and the removal of an old one."""
    states = broken / "checkpoints"
    shutil.copytree(states / "step_00000004", states / "step_00000002")
    assert train_main(arguments(whole, broken, *RESUME)) == 0
    assert_as_if_nothing_had_been(broken, whole)


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("optimizer.bin", flip_bit, "has flipped bits"),
    ("model.safetensors", flip_bit, "has flipped bits"),
    ("progress.json", flip_bit, "has flipped bits"),
    ("checksums.json", flip_bit, "is damaged"),
    ("optimizer.bin", lambda file: file.write_bytes(b""), r"has 0 bytes of \d+"),
    ("model.safetensors", lambda file: os.truncate(file, 5000), r"has 5000 bytes of \d+"),
    ("progress.json", Path.unlink, "is missing"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    whole: Path, broken: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], object], told: str
) -> None:
    newest, before = broken / "checkpoints/step_00000006", broken / "checkpoints/step_00000004"
    damage(newest / name)
    assert train_main(arguments(whole, broken, *RESUME)) == 0
    (line,) = [record.getMessage() for record in caplog.records if "checkpoints" in record.getMessage()]
    assert re.fullmatch(rf"{newest / name} {told}: going on from {before}", line)
    assert_as_if_nothing_had_been(broken, whole)


def test_later_checkpoints_go_with_the_first_new_one(whole: Path, broken: Path) -> None:
    """Else a damaged one would count among those that are kept."""
    flip_bit(broken / "checkpoints/step_00000006/optimizer.bin")
    run(str(whole / "tiny.yaml"), broken, "--eval.tasks", "[]", "--train.max_steps", "5", *RESUME)
    assert {path.name for path in (broken / "checkpoints").iterdir()} == {"step_00000004", "step_00000005"}


def test_of_checkpoints_that_are_all_damaged_one_is_named(
    whole: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sorted((broken / "checkpoints").iterdir())
    for folder in found:
        flip_bit(folder / "optimizer.bin")
    assert train_main(arguments(whole, broken, *RESUME)) == 2
    told = f"train.py: error: {found[0] / 'optimizer.bin'} has flipped bits, and no whole checkpoint is in "
    assert told in capsys.readouterr().err
    assert sorted((broken / "checkpoints").iterdir()) == found


def test_a_checkpoint_without_checksums(whole: Path, broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an earlier version."""
    shutil.rmtree(broken / "checkpoints/step_00000006")
    (broken / "checkpoints/step_00000004/checksums.json").unlink()
    assert train_main(arguments(whole, broken, *RESUME)) == 0
    assert_as_if_nothing_had_been(broken, whole)
    assert "at step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "checksums"),
    [(flip_bit, True), (Path.unlink, True), (Path.unlink, False), (lambda f: os.truncate(f, 9), False)],
)
def test_lost_random_states_are_said(
    whole: Path, broken: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], checksums: bool
) -> None:
    """No step needs them."""
    folder = broken / "checkpoints/step_00000004"
    shutil.rmtree(broken / "checkpoints/step_00000006")
    damage(folder / "random_states_0.pkl")
    if not checksums:
        (folder / "checksums.json").unlink()
    assert train_main(arguments(whole, broken, *RESUME)) == 0
    assert_as_if_nothing_had_been(broken, whole)
    assert f"{folder} has no whole random states of process 0; no step needs them" in caplog.text


@pytest.mark.slow
def test_processes_go_on_from_the_same_checkpoint(whole: Path, broken: Path) -> None:
    """Two, where the run had one: the second has no random states there."""
    flip_bit(broken / "checkpoints/step_00000006/optimizer.bin")
    main, other = together(2, train_main, arguments(whole, broken, *RESUME))
    assert main.value == other.value == 0, main.complaints + other.complaints
    assert "resuming" in main.output and "at step 4" in main.output
    assert main.complaints.count("has flipped bits") == 1 and "flipped" not in other.complaints
    assert main.complaints.count("no whole random states of process 1;") == 1


# Written beside the steps


def test_written_beside_the_next_steps(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next steps do not wait for the disk, and until it has the checkpoint nothing names it."""
    put_in_place, taken, going_on = checkpoint.put_in_place, Loop._step, threading.Event()
    named: list[Path | None] = []

    def slow(*paths: Path) -> None:
        assert going_on.wait(PATIENCE), "the step waits for the checkpoint"
        put_in_place(*paths)

    def step(loop: Loop, number: int, *rest: Any) -> Any:
        if number == 3:  # the second after the checkpoint
            named.append(loop.stopping.checkpoint)
            assert not list((tmp_path / "run/checkpoints").glob("step_*[0-9]"))
            going_on.set()
        return taken(loop, number, *rest)

    monkeypatch.setattr(checkpoint, "put_in_place", slow)
    monkeypatch.setattr(Loop, "_step", step)
    run(str(whole / "tiny.yaml"), tmp_path / "run", *EVERY_2)
    assert named == [None]
    assert_as_if_nothing_had_been(tmp_path / "run", whole)


def test_a_write_that_fails_beside_the_steps(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error ends the run at the next checkpoint, and what it had written is gone."""

    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DiskFull, match=r"no space left to write .*step_00000002"):
        patch.setattr(checkpoint, "put_in_place", full)
        run(str(whole / "tiny.yaml"), tmp_path / "run", *EVERY_2)
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert train_main(arguments(whole, tmp_path / "run", *RESUME)) == 0
    assert_as_if_nothing_had_been(tmp_path / "run", whole)


def test_a_stop_at_once_names_what_came_to_the_disk(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a second Ctrl-C, while the checkpoint on its way there takes the place of the only one that is kept."""
    put_in_place, taken, stopped = checkpoint.put_in_place, Loop._step, threading.Event()

    def slow(*paths: Path) -> None:
        assert paths[1].name != "step_00000004" or stopped.wait(PATIENCE)
        put_in_place(*paths)

    def step(loop: Loop, number: int, *rest: Any) -> Any:
        if number == 4:
            try:
                for _ in range(2):
                    signal.raise_signal(signal.SIGINT)
            finally:
                stopped.set()
        return taken(loop, number, *rest)

    monkeypatch.setattr(checkpoint, "put_in_place", slow)
    monkeypatch.setattr(Loop, "_step", step)
    given = arguments(whole, tmp_path / "run", "--run.keep", "1")
    assert train_main(given) == 130
    (kept,) = (tmp_path / "run/checkpoints").iterdir()
    assert kept.name == "step_00000004"
    assert f"stopped at once; the last checkpoint is {kept}; go on with" in capsys.readouterr().err


def killed_at(call: int, given: list[str]) -> None:
    """Train until a thread beside the main one calls the disk for the call-th time, and kill the process there."""
    calls = itertools.count(1)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread() and next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return function

    for name in ("fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    train_main(given)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 7, 9, 10, 13, 19, 20, 22, 27])
def test_killed_while_a_checkpoint_is_written_or_removed(whole: Path, tmp_path: Path, call: int) -> None:
    """With one that is kept: there is always a whole one, before as after."""
    given = arguments(whole, tmp_path / "run", "--run.checkpoint_every", "1", "--run.keep", "1")
    with pytest.raises(AssertionError, match="it died"):
        together(1, killed_at, call, given)
    for folder in (tmp_path / "run/checkpoints").glob("step_*[0-9]"):
        assert (folder / "checksums.json").exists() and not checkpoint.damage(folder)
    assert train_main(arguments(whole, tmp_path / "run", *RESUME)) == 0
    assert_same_weights(tmp_path / "run" / WEIGHTS, whole / "run" / WEIGHTS)
    assert not [path for path in (tmp_path / "run/checkpoints").iterdir() if path.suffix]


# No room


def test_no_room_for_a_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the first step, and before each checkpoint; where it could not be known, the half of one goes. When
    there is room again the run goes on as if nothing had been."""
    with in_memory(tmp_path / "disk", 64) as disk:
        given, filler = arguments(whole, disk / "run"), fill(disk)
        assert train_main(given) == 75
        assert re.search(r"a checkpoint takes \d+\.\d MB, and 0\.0 MB are free in ", capsys.readouterr().err)
        assert not (disk / "run").exists()
        filler.unlink()
        begin, full_at = checkpoint.Checkpoints._begin, {"step_00000002.part": 0, "step_00000004.part": 4}

        def filled(self: Any, part: Path, progress: Any) -> None:
            spare = full_at.pop(part.name, None)
            if spare is not None:
                filler = fill(disk)
                os.truncate(filler, filler.stat().st_size - (spare << 20))
                if spare:  # another program takes the room after it was looked for
                    monkeypatch.setattr(checkpoint, "check_space", lambda *_: None)
            begin(self, part, progress)

        monkeypatch.setattr(checkpoint.Checkpoints, "_begin", filled)
        for words in ("a checkpoint takes", rf"no space left to write {disk}/run/checkpoints/step_00000004 "):
            assert train_main(given) == 75
            assert re.search(words, capsys.readouterr().err)
            assert not list((disk / "run/checkpoints").glob("*.part"))
            (disk / "filler").unlink()
            given = arguments(whole, disk / "run", *RESUME)
        assert train_main(given) == 0
        assert_as_if_nothing_had_been(disk / "run", whole)
