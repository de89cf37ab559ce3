"""Every file that is written: whole and on the disk before it has its name, also when the disk is full."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.disks import fill, in_memory, mounted
from support.files import write_beside
from support.launching import ROOT
from support.models import save_tiny
from support.trouble import until
from test_signals import PATIENCE, assert_same_weights, exact
from test_training import TINY, environment, run

from miniclip.cli.eval import main as eval_main
from miniclip.cli.train import train_main
from miniclip.common.durable import DiskFull, append, free_space, whole_file, whole_folder
from miniclip.common.stopping import REQUEUE
from miniclip.models.saved import checkpoints

EVERYTHING = [
    *("--eval.every", "3", "--eval.best", "retrieval/image_to_text_r1", "--log.matrix_every", "3"),
    *("--log.matrix_size", "2", "--log.trackers", "[tensorboard]", "--train.profile_steps", "1"),
    *("--run.checkpoint_every", "2"),
]
# a resume writes them again, or nobody needs them
UNSYNCED = ("metrics.jsonl", "events.out.tfevents.", "hparams.yml", ".lock")


class Diary:
    """What a process has synced and named, in order: ("sync", inode, size) and ("name", from, to)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[tuple[Any, ...]] = []
        sync, name = os.fsync, os.replace

        def synced(file: int) -> None:
            sync(file)
            self.kept.append(("sync", os.fstat(file).st_ino, os.fstat(file).st_size))

        def named(source: Any, target: Any, **options: Any) -> None:
            name(source, target, **options)
            self.kept.append(("name", Path(source).absolute(), Path(target).absolute()))

        for function, names in ((synced, ["fsync"]), (named, ["replace", "rename"])):
            for one in names:
                monkeypatch.setattr(os, one, function)

    def lacking(self, file: Path) -> str:
        """What the disk might not hold of a file after a power cut, or nothing."""
        places = {file, *file.parents}
        at = max((k for k, (kind, _, to) in enumerate(self.kept) if kind == "name" and to in places), default=None)
        if at is None:
            return f"{file} was written under its own name"
        whole = self.kept[at][2]
        inner = [file, *(folder for folder in file.parents if folder.is_relative_to(whole))]
        synced = [{inode for kind, inode, _ in part if kind == "sync"} for part in (self.kept[:at], self.kept[at:])]
        missing = [path for path in inner if path.stat().st_ino not in synced[0]]
        missing += [whole.parent] * (whole.parent.stat().st_ino not in synced[1])
        return f"{file}: {', '.join(map(str, missing))} not synced" * bool(missing)


def files(*folders: Path) -> list[Path]:
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.name.startswith(UNSYNCED) and path.suffix != ".lock")


def test_a_training_syncs_each_file_before_it_names_it(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_beside(tmp_path / "pairs", 0, 80)
    diary, directory, cache = Diary(monkeypatch), tmp_path / "new" / "run", tmp_path / "cache"
    run(config_file, directory, *EVERYTHING, "--data.source", str(pairs), "--data.cache_dir", str(cache))
    written = files(directory, cache)
    some = "config.yaml results.json trace.json examples.html best.json optimizer.bin pixels"
    assert {path.name for path in written} >= set(some.split())
    assert not [said for path in written if (said := diary.lacking(path))]
    # the folders that hold the names, too
    inodes = {inode for kind, inode, *_ in diary.kept if kind == "sync"}
    assert {folder.stat().st_ino for folder in (tmp_path, tmp_path / "new", directory, cache)} <= inodes
    weights = [path for path in written if path.suffix == ".safetensors"]
    assert {oct(path.stat().st_mode) for path in written} == {oct((directory / "config.yaml").stat().st_mode)}, weights
    assert not list(directory.rglob("*.part"))


COMMANDS = {
    "zeroshot": "zeroshot --checkpoint RUN --task unseen --size 16",
    "retrieval": "retrieval --checkpoint RUN --data shapes --size 16",
    "matrix": "matrix --checkpoint RUN --size 8",
    "classify": "classify --checkpoint RUN --data PAIRS --classnames classes.txt --out OUT/classified",
    "report": "report RUN",
    "audit": "audit --data PAIRS --json OUT/audit.json --png OUT/audit.png",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    run(str(folder / "tiny.yaml"), folder / "RUN", "--eval.tasks", "[]")
    write_beside(folder / "PAIRS", 0, 24)
    (folder / "classes.txt").write_text("red\ngreen\n")
    (folder / "OUT").mkdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_syncs_each_file_before_it_names_it(
    command: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, diary = {path: path.stat().st_mtime_ns for path in files(trained)}, Diary(monkeypatch)
    monkeypatch.chdir(trained)
    assert eval_main(COMMANDS[command].split()) in (0, 1)
    written = [path for path in files(trained) if before.get(path) != path.stat().st_mtime_ns]
    assert written and not [said for path in written if (said := diary.lacking(path))]
    assert not list(trained.rglob("*.part"))


def test_what_ends_a_write_leaves_what_was_there(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    for path in (file, folder):
        part = path.with_name(f"{path.name}.part")
        part.mkdir()
        (part / "left").write_text("of a process that was killed")
    old = os.umask(0o027)
    try:
        for text in ("first", "second"):
            with whole_file(file) as part:
                part.write_text(text)
                part.chmod(0o600)  # as libraries do
            with whole_folder(folder) as part:
                (part / "one").write_text(text)
    finally:
        os.umask(old)
    for whole in (whole_file, whole_folder):
        with pytest.raises(KeyboardInterrupt), whole(tmp_path / whole.__name__.removeprefix("whole_")):  # type: ignore[operator]
            raise KeyboardInterrupt
    assert file.read_text() == (folder / "one").read_text() == "second"
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "one"]
    # killed between the two names: the former is still there, and goes only when the next has its own
    folder.replace(tmp_path / "folder.old")
    with pytest.raises(ValueError, match="damaged"), whole_folder(folder):
        raise ValueError("damaged")
    assert (tmp_path / "folder.old" / "one").exists()


def test_a_full_disk_is_said_and_leaves_no_half(tmp_path: Path) -> None:
    with in_memory(tmp_path / "disk", 2) as disk:
        log, model = disk / "metrics.jsonl", disk / "model"
        append(log, "x" * 4000 + "\n")  # 95 bytes below a page, which is what a disk gives
        with whole_file(model) as part:
            part.write_text("before")
        filler = fill(disk)
        for write in (
            lambda: append(log, "y" * 200 + "\n"),
            lambda: _write(model, lambda part: part.write_bytes(bytes(5000))),
        ):
            with pytest.raises(DiskFull, match=rf"no space left to write {disk}/m\S+ \(0.0 MB free there\); make room"):
                write()
        filler.unlink()
        # torch says only that a write failed, and of a file that had room until then
        for save in (torch.save, save_file):
            with pytest.raises(DiskFull, match=f"no space left to write {model} "):
                _write(model, lambda part, save=save: save({"a": torch.zeros(1_000_000)}, part))
        assert log.read_text() == "x" * 4000 + "\n" and model.read_text() == "before"
        assert {path.name for path in disk.iterdir()} == {"metrics.jsonl", "model"}
        assert free_space(disk / "no" / "such") > 1e6
        with pytest.raises(RuntimeError, match="another"), whole_file(model):
            raise RuntimeError("another cause")


def test_a_model_stays_until_the_next_one_is_whole(tmp_path: Path) -> None:
    with in_memory(tmp_path / "disk", 32) as disk:
        save_tiny(disk / "model", seed=1)
        before = {path: path.read_bytes() for path in (disk / "model").iterdir()}
        fill(disk)
        with pytest.raises(DiskFull, match=r"no space left to write \S+/model.safetensors "):
            save_tiny(disk / "model", seed=2, image_size=48)
        assert {path: path.read_bytes() for path in (disk / "model").iterdir()} == before


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    with whole_file(path) as part:
        write(part)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    source = ["--data.source", str(write_beside(folder / "pairs", 0, 80))]
    run(str(folder / "tiny.yaml"), folder / "run", *EVERYTHING, *source, "--data.cache_dir", str(folder / "cache"))
    return folder / "run"


# what is called when the disk has just become full -> what the message names
STRIKES = {
    "miniclip.data.cache.prepared.save_part": "cannot be written to DISK/cache: .*No space left",
    "miniclip.training.run_dir.save_config": "to write DISK/run/config.yaml",
    "accelerate.Accelerator.init_trackers": "to write DISK/run ",
    "miniclip.inspection.history.MatrixLog.write": "to write DISK/run/matrix",
    "torch.profiler.profile.export_chrome_trace": "to write DISK/run/trace.json",
    "miniclip.training.best.Best.offer": "to write DISK/run/best",
    "accelerate.Accelerator.save_state": "to write DISK/run/checkpoints/step_00000002",
    "miniclip.training.run.save_model": "to write DISK/run/model/model.safetensors",
    "miniclip.evaluation.tasks.Retrieval.draw": "to write DISK/run/examples.html",
    "miniclip.evaluation.suite.write_json": "to write DISK/run/results.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("struck", STRIKES)
def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    struck: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_memory(tmp_path / "disk", 128) as disk:
        directory = disk / "run"
        command = ["--config", str(undisturbed.parent / "tiny.yaml"), "--run.dir", str(directory), *EVERYTHING]
        command += ["--data.source", str(undisturbed.parent / "pairs"), "--data.cache_dir", str(disk / "cache")]
        with monkeypatch.context() as patch:
            owner, name = pkgutil.resolve_name(struck.rpartition(".")[0]), struck.rpartition(".")[2]
            called, fillers = getattr(owner, name), list[Path]()

            def full(*arguments: Any, **options: Any) -> Any:
                fillers.append(fill(disk))
                return called(*arguments, **options)

            patch.setattr(owner, name, full)
            assert train_main(command) == REQUEUE
        said = capsys.readouterr().err
        assert re.search(rf"error: .*{STRIKES[struck].replace('DISK', str(disk))}", said)
        assert "Traceback" not in said
        assert not list(disk.rglob("*.part"))
        fillers[0].unlink()
        assert train_main([*command, "--run.resume", "true"]) == 0
        for name in ("model", "best", "checkpoints/step_00000006"):
            assert_same_weights(*(run / name / "model.safetensors" for run in (directory, undisturbed)))
        assert exact(directory) == exact(undisturbed)
        assert {path.relative_to(directory) for path in files(directory)} == {
            path.relative_to(undisturbed) for path in files(undisturbed)
        }


@pytest.mark.slow
def test_what_a_killed_process_left_makes_room_for_the_next(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half-written files are what the disk is full of; a file of the user's stays."""
    with in_memory(tmp_path / "disk", 128) as disk:
        directory = disk / "run"
        command = ["--config", str(undisturbed.parent / "tiny.yaml"), "--run.dir", str(directory), *EVERYTHING]
        command += ["--optim.schedule", "constant", "--run.resume", "auto"]
        assert train_main([*command, "--train.max_steps", "4"]) == 0
        (directory / "download.part").touch()
        left = "config.yaml checkpoints/step_00000005 best matrix/step_00000006.safetensors model/model.json"
        for name in left.split():
            part = directory / f"{name}.part"
            part.mkdir()
            (part / "some").write_bytes(bytes(10_000))
        fill(part)
        assert train_main(command) == 0, capsys.readouterr().err
        assert [path.name for path in directory.rglob("*.part")] == ["download.part"]


@pytest.mark.slow
def test_a_power_cut_costs_no_file_that_has_its_name(tmp_path: Path) -> None:
    """A copy of the disk while it is written to, mounted elsewhere: what it held when the power went."""
    config_file = tmp_path / "tiny.yaml"
    config_file.write_text(yaml.safe_dump(TINY))
    with ExitStack() as mounts:
        image = mounts.enter_context(in_memory(tmp_path / "memory", 600)) / "image"
        with image.open("wb") as file:
            file.truncate(160 << 20)
        with suppress(FileNotFoundError):  # mount says why it is skipped
            subprocess.run(["mkfs.ext4", "-q", image], check=True)
        # the kernel itself writes nothing down meanwhile
        disk = mounts.enter_context(mounted(tmp_path / "disk", "-o", "loop,commit=300", image))
        directory = disk / "run"
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(config_file), "--run.dir", str(directory)]
        command += [*EVERYTHING, "--train.max_steps", "12", "--data.cache_dir", str(disk / "cache")]
        process = mounts.enter_context(subprocess.Popen(command, env=environment()))
        mounts.callback(process.kill)
        for newest in ("checkpoints/step_00000006", "checkpoints/step_00000010", "model"):
            assert until(lambda newest=newest: (directory / newest).exists() or process.poll() is not None, PATIENCE)
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            _assert_whole_after_a_power_cut(disk, image)
            process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE) == 0
        _assert_whole_after_a_power_cut(disk, image)


def _assert_whole_after_a_power_cut(disk: Path, image: Path) -> None:
    """In a copy of the disk what had its name is there to the last byte, and each step of the newest checkpoint has its
    line."""
    # the journal with the names, and with no more than was synced of what they name: the worst that may be
    with (disk / "other").open("w") as other:
        os.fsync(other.fileno())
    copy, before = image.with_suffix(".copy"), disk / "run"
    shutil.copy(image, copy)
    with mounted(image.with_suffix(".mounted"), "-o", "loop", copy) as mount:
        after = mount / "run"
        named = [path for path in files(before) if not {".part", ".old"} & {p.suffix for p in (path, *path.parents)}]
        assert not [path for path in named if path.read_bytes() != (after / path.relative_to(before)).read_bytes()]
        newest = int(checkpoints(after)[-1].name.removeprefix("step_"))
        # of the lines since then the disk may have the length, and zeros
        logged = re.findall(r'^\{"step": (\d+), .*\}$', (after / "metrics.jsonl").read_text(), re.MULTILINE)
        assert set(map(int, logged)) >= set(range(1, newest + 1))
    copy.unlink()
