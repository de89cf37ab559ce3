"""What a start finds in its run directory: nothing, a run to go on with, one that is finished, or another process."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.files import write_beside
from support.group import together
from support.launching import ROOT
from support.runs import contents
from test_signals import ENDLESS, PATIENCE, assert_same_weights, before, exact, wait_for
from test_training import environment, lines, run

from miniclip.cli.train import train_main
from miniclip.common import lock
from miniclip.common.durable import make_folder
from miniclip.common.lock import Taken, alone_in
from miniclip.common.stopping import CODES, REQUEUE, Passing
from miniclip.config import load_config, save_config
from miniclip.evaluation import suite
from miniclip.training import loop
from miniclip.training.replaced import drop_replaced, put_back, set_aside, written

AUTO = ["--run.resume", "auto"]
PAGE = ROOT / "docs/reliability.md"
FEW = ["--eval.tasks", "[]", "--train.max_steps", "2"]


@pytest.mark.parametrize("length", [["--train.max_steps", "6"], ["--train.max_steps", "null", "--train.epochs", "1.5"]])
def test_one_command_until_the_run_is_finished(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], length: Any
) -> None:
    """It begins, goes on, redoes a final evaluation that was cut off, and then does nothing, also without the data."""
    data = write_beside(tmp_path / "data", 0, 36)
    options = ["--config", config_file, "--data.source", str(data), "--eval.tasks", "[retrieval]", *length]
    assert train_main([*options, "--run.dir", str(tmp_path / "whole")]) == 0
    directory = tmp_path / "run"
    arguments = [*options, "--run.dir", str(directory), *AUTO]
    for name, call, number in (("_step", 3, signal.SIGUSR1), ("final_evaluation", 1, signal.SIGTERM)):
        with monkeypatch.context() as patch:
            before(patch, name, call, number)
            assert train_main(arguments) == CODES[number]
        assert capsys.readouterr().err.endswith("--run.resume auto\n")
    assert train_main(arguments) == 0
    assert exact(directory) == exact(tmp_path / "whole")
    assert_same_weights(directory / "model/model.safetensors", tmp_path / "whole/model/model.safetensors")
    left, _ = contents(directory), capsys.readouterr()
    shutil.rmtree(data)
    assert train_main(arguments) == 0
    assert f"the run in {directory} is finished, nothing to do\n" in capsys.readouterr().out
    assert contents(directory) == left
    assert train_main([*arguments, "--model.text_layers", "2"]) == 2  # which is another run


def test_a_longer_run_is_not_finished(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory holds the model and the results of the shorter one, at first even with the newest checkpoint."""
    directory = tmp_path / "run"
    run(config_file, directory, "--eval.tasks", "[]", *AUTO)
    arguments = ["--config", config_file, "--run.dir", str(directory), "--eval.tasks", "[shape]", *AUTO]
    arguments += ["--train.max_steps", "null", "--train.epochs", "2"]

    def steps() -> int:
        return int(json.loads((directory / "results.json").read_text())["training"]["steps"])

    for name, call, number in (("prepare_run_dir", 1, signal.SIGINT), ("_step", 2, signal.SIGTERM)):
        with monkeypatch.context() as patch:
            before(patch, name, call, number)
            assert train_main(arguments) == CODES[number] and steps() == 6
    assert train_main(arguments) == 0 and steps() == 10
    (directory / "results.json").write_text("{")
    assert train_main(arguments) == 0 and steps() == 10  # evaluated again


@pytest.mark.parametrize("resume", ["true", "auto"])
def test_a_model_whose_checkpoints_are_gone_stays(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], resume: str
) -> None:
    """Such as with the disk that they lay on: a longer run would begin at step 0, and write over model and log."""
    directory = tmp_path / "run"
    run(config_file, directory, *FEW)
    shutil.rmtree(directory / "checkpoints")
    left, arguments = contents(directory), ["--config", config_file, "--run.dir", str(directory), *FEW]
    assert train_main([*arguments, "--train.max_steps", "3", "--run.resume", resume]) == 2
    assert "has no checkpoint left to go on from; bring them back" in capsys.readouterr().err
    assert contents(directory) == left
    assert train_main([*arguments, *AUTO]) == 0  # nothing to do
    assert train_main([*arguments, "--train.max_steps", "3", "--run.overwrite", "true"]) == 0


class Lost(Passing, RuntimeError):
    pass


@pytest.mark.parametrize(
    ("resume", "error"),
    [
        ("true", Lost("the disk is full")),
        ("auto", Lost("the disk is full")),
        ("true", OSError(errno.ESTALE, "Stale file handle", "metrics.jsonl")),
        ("auto", OSError(errno.ETIMEDOUT, "Connection timed out", "metrics.jsonl")),
    ],
)
def test_what_passes_by_itself_asks_for_a_requeue(
    config_file: str, tmp_path: Path, monkeypatch: Any, capsys: Any, resume: str, error: Exception
) -> None:
    """So does a disk of another machine that is not reached."""

    def lost(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(loop if resume == "true" else suite, "append_metrics" if resume == "true" else "evaluate", lost)
    arguments = ["--config", config_file, "--run.dir", str(tmp_path / "run")]
    asked = AUTO if resume == "auto" else []
    assert train_main([*arguments, *asked]) == REQUEUE
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"train.py: error: {error}; go on with: ") and told.endswith(f"resume {resume}")


def refuse(*_: Any) -> None:
    raise KeyError("no key configured")  # as services do, each in its own way


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--train.profile_steps 100", "3 steps come before, 2 are left"),
        ("--log.trackers [tensorboard]", "tensorboard cannot be used ('no key configured')"),
    ],
)
def test_what_is_refused_last_leaves_the_old_run(
    config_file: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    arguments = ["--config", config_file, "--run.dir", str(tmp_path / "run"), *FEW]
    assert train_main(arguments) == 0
    left = contents(tmp_path / "run")
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", refuse)
    assert train_main([*arguments, "--run.overwrite", "true", *options.split()]) == 2
    assert words in capsys.readouterr().err and contents(tmp_path / "run") == left


@pytest.mark.parametrize("linked", [False, True])
def test_an_overwritten_run_stays_until_the_new_one_has_a_checkpoint(
    config_file: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], linked: bool
) -> None:
    """However often that is tried. Also where the checkpoints are linked to another place, of which those of more steps
    than the new run has had would stay, and its own go."""
    directory, states = tmp_path / "run", tmp_path / "run" / "checkpoints"
    if linked:
        (tmp_path / "states").mkdir()
        directory.mkdir()
        states.symlink_to(tmp_path / "states")
    arguments = ["--config", config_file, "--run.dir", str(directory), "--eval.tasks", "[]"]
    assert train_main([*arguments, *AUTO]) == 0
    old, old_states = contents(directory), contents(states)
    (directory / "notes.txt").write_text("mine")
    shorter = [*arguments, "--train.max_steps", "2", "--run.seed", "1"]
    for _ in range(2):
        with monkeypatch.context() as patch:
            before(patch, "_step", 2, signal.SIGINT, signal.SIGINT)
            assert train_main([*shorter, "--run.overwrite", "true"]) == 130
        assert f"lies in {directory}/replaced until" in capsys.readouterr().out
        assert contents(directory / "replaced") == old
        assert contents(states / "replaced" if linked else directory / "replaced" / "checkpoints") == old_states
        assert not (directory / "model").exists() and (directory / "config.yaml").exists()
    assert train_main(shorter) == 2 and "already holds a run" in capsys.readouterr().err
    assert train_main([*shorter, *AUTO]) == 0 and f"{directory}/replaced until" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*replaced*")) and [path.name for path in states.iterdir()] == ["step_00000002"]
    assert (directory / "notes.txt").exists() and states.is_symlink() == linked
    (directory / "replaced").mkdir()  # which may be anybody's
    assert train_main([*shorter, "--run.resume", "true", "--train.max_steps", "3"]) == 0
    assert train_main([*shorter, "--run.overwrite", "true"]) == 2
    assert "replaced is no run" in capsys.readouterr().err and (directory / "replaced").exists()


@pytest.mark.parametrize("name", ["", "run", "run/checkpoints"])
@pytest.mark.parametrize("link", [True, False])
def test_where_a_disk_is_not_mounted(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, link: bool
) -> None:
    place = tmp_path / "scratch" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to("/mnt/nothing") if link else place.write_text("mine")
    for how in (AUTO, ["--run.overwrite", "true"]):
        assert train_main(["--config", config_file, "--run.dir", str(tmp_path / "scratch/run"), *how]) == 2
        told = f"{place} is a link to /mnt/nothing, which is not there: mount" if link else f"{place} is a file where"
        assert told in capsys.readouterr().err and place.is_symlink() == link


@pytest.mark.slow
def test_a_second_start_says_who_holds_the_run(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So does one of another directory with the same folder of checkpoints. The lock goes with its process, also while
    workers that were forked live on."""
    directory, other, states = (tmp_path / name for name in ("run", "other", "states"))
    states.mkdir()
    for one in (directory, other):
        one.mkdir()
        (one / "checkpoints").symlink_to(states)
    options = ["--config", config_file, "--run.checkpoint_every", "0", *AUTO, "--run.dir"]
    command = [sys.executable, str(ROOT / "train.py"), *options, str(directory), *ENDLESS, "--data.workers", "2"]
    workers: list[psutil.Process] = []
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(2, directory, process)
            who = f"is in use: process {process.pid} on {socket.gethostname()} since 2"
            for one in (directory, other):
                left = sorted(one.iterdir())
                assert train_main([*options, str(one), *FEW]) == 2
                assert who in capsys.readouterr().err and sorted(one.iterdir()) == left
            for outcome in together(2, train_main, [*options, str(directory), *FEW]):
                assert outcome.value == 2 and who in outcome.complaints
            workers = psutil.Process(process.pid).children()
            for worker in workers:
                worker.suspend()
            process.kill()
            process.wait(PATIENCE)
            assert train_main([*options, str(directory), *FEW]) == 0
            assert len(workers) >= 2 and all(worker.is_running() for worker in workers)
        finally:
            process.kill()
            for worker in workers:
                worker.kill()
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_job_of_the_docs_goes_on_until_it_is_done(config_file: str, tmp_path: Path, processes: int) -> None:
    """Its script, twice: with the signal that comes before its time is up, and to the end."""
    page, directory = PAGE.read_text(), tmp_path / "run"
    (script,) = re.findall(r"^#!/bin/bash\n.*?(?=^```)", page, re.DOTALL | re.MULTILINE)
    started = f"python train.py --config CONFIG --run.dir RUN {' '.join(AUTO)}"
    launcher = [sys.executable, *f"-m torch.distributed.run --standalone --nproc_per_node {processes}".split()]
    words = [*(launcher if processes > 1 else launcher[:1]), str(ROOT / "train.py"), "--config", config_file]
    words += ["--run.dir", str(directory), "--eval.tasks", "[]", "--train.max_steps", "150", *AUTO]
    changes = {started: shlex.join(words)}
    if processes > 1:
        trap, requeue = re.findall(r"`((?:trap|\[ ).*?)`", page)
        asks = "[[ $code =~ ^(75|138)$ ]] && scontrol requeue $SLURM_JOB_ID"
        changes |= {"trap 'kill -USR1 $run' USR1": trap, asks: requeue}
    for old, new in changes.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    variables = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    for last_time in (False, True):
        with subprocess.Popen(["bash", "-c", script], env=variables, stderr=subprocess.PIPE, text=True) as job:
            if not last_time:
                wait_for(1, directory, job)
                job.send_signal(signal.SIGUSR1)
            _, complaints = job.communicate(timeout=PATIENCE)
        assert (tmp_path / "asked").read_text() == "requeue 17\n", complaints
        assert job.returncode == (0 if last_time else REQUEUE if processes == 1 else 1), complaints
        assert (directory / "results.json").exists() == last_time and len(list(directory.glob("checkpoints/*"))) >= 1
    assert len(lines(directory)) == 150


def test_the_job_of_the_docs_when_python_does_not_listen_yet(tmp_path: Path) -> None:
    """Its signal then ends the process, and the shell says so as often as it is asked."""
    (script,) = re.findall(r"^#!/bin/bash\n.*?(?=^```)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    script, count = re.subn(r"python train.py .*(?= & )", "sh -c 'kill -USR1 $$'", script)
    asked = {**os.environ, "SLURM_JOB_ID": "17"}
    job = subprocess.run(
        ["bash", "-c", f"scontrol() {{ echo $*; }}\n{script}"], env=asked, stdout=subprocess.PIPE, text=True, timeout=30
    )
    assert count == 1 and (job.stdout, job.returncode) == ("requeue 17\n", 128 + signal.SIGUSR1)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("process 1 on elsewhere since 2026-01-01", file=file, flush=True)
print("held", flush=True)
input()
"""


def test_the_lock_of_another_host_is_waited_for(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    """For a server of NFS may keep it for a while when that host has died."""
    command, pipe = [sys.executable, "-c", HOLDER, str(tmp_path / lock.LOCK)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        with monkeypatch.context() as patch, pytest.raises(Taken, match="process 1 on elsewhere since"):
            patch.setattr(lock, "LEASE", -1)
            with alone_in(tmp_path):
                pass
        monkeypatch.setattr("time.sleep", lambda _: holder.kill() or holder.wait())
        with alone_in(tmp_path):
            assert str(os.getpid()) in (tmp_path / lock.LOCK).read_text()
    assert "elsewhere" in caplog.text and not list(tmp_path.iterdir())


@pytest.mark.parametrize("linked", [False, True])
def test_a_move_that_is_cut_off_is_undone(tmp_path: Path, monkeypatch: Any, linked: bool) -> None:
    directory, states = tmp_path / "run", tmp_path / "states"
    for name in ("checkpoints/step_00000001", "checkpoints/step_00000002", "model", "miniclip", "mine"):
        make_folder(directory / name)
        (directory / name / "events.out.tfevents.1").write_text(name)
    save_config(load_config(["--train.max_steps", "1"]), directory / "config.yaml")
    if linked:
        (directory / "checkpoints").rename(states)
        (directory / "checkpoints").symlink_to(states)
    whole, rename = contents(tmp_path), Path.replace
    for cut in itertools.count():
        calls = itertools.count()

        def replaced(path: Path, target: Path, cut: int = cut, calls: Any = calls) -> Path:
            if next(calls) == cut:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replaced)
            try:
                set_aside(directory, written(directory))
                break
            except KeyboardInterrupt:
                pass
        assert (contents(tmp_path) == whole) == (cut == 0)
        put_back(directory)
        assert contents(tmp_path) == whole and not list(tmp_path.rglob("*replaced"))
    assert cut == 5 + 2 * linked
    assert (directory / "replaced/model").exists() and (directory / "mine").exists()
    put_back(directory)  # nothing: the move is over
    assert (directory / "replaced/model").exists()
    drop_replaced(directory)
    assert list(contents(tmp_path)) == ["run/mine/events.out.tfevents.1"]
