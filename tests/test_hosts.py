"""Processes that are killed, stopped, cut off, late or refused while the others of their group wait for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.closeness import by_parameter
from support.group import together
from support.launching import ROOT
from support.netns import Hosts, two_hosts
from test_signals import PATIENCE, assert_same_weights, wait_for
from test_training import lines

from miniclip.cli.train import train_main
from miniclip.common.durable import DiskFull
from miniclip.common.peers import group, meet
from miniclip.common.stopping import REQUEUE
from miniclip.training import run as run_module
from miniclip.training.loop import Loop


def troubled(trouble: str, arguments: list[str]) -> tuple[int, float]:
    """train.py in a process; to the last of them happens what trouble says. Its code, and seconds since the trouble."""
    last, began = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1, 0.0
    step, opened = Loop._step, run_module.open_batches

    def in_step(loop: Loop, number: int, *rest: object) -> object:
        nonlocal began
        if number == 3:
            began = time.monotonic()
            if last and trouble in ("killed", "stopped"):
                os.kill(os.getpid(), signal.SIGKILL if trouble == "killed" else signal.SIGSTOP)
            if last and trouble == "passing":
                raise DiskFull("no space left to write x")
        return step(loop, number, *rest)  # type: ignore[arg-type]

    def refusing(*given: object) -> object:
        if last:
            raise ValueError("no column of that name")
        return opened(*given)  # type: ignore[arg-type]

    Loop._step = in_step
    if trouble == "refused":
        run_module.open_batches = refusing
    code = train_main([*arguments, *(["--optim.lr", "1e-4"] if trouble == "other lr" and last else [])])
    return code, time.monotonic() - began if began else 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "minutes", "code", "told"),
    [
        # of three, so that somebody waits for one that waits itself
        ("killed", "30", REQUEUE, "train.py: error: no sign of life from rank 2 ("),
        ("stopped", "0.1", REQUEUE, "train.py: error: no sign of life from rank 2 ("),
        ("passing", "30", REQUEUE, "no space left to write x"),
        ("refused", "30", 2, "no column of that name"),
        ("other lr", "30", 2, "has optim.lr=0.0001, and rank 0 has 0.001; start all of them with the same command"),
    ],
)
def test_a_process_is_lost(config_file: str, tmp_path: Path, trouble: str, minutes: str, code: int, told: str) -> None:
    """The others end within seconds, or within train.timeout where they cannot know, and each says who it was."""
    arguments = ["--config", config_file, "--run.dir", str(tmp_path / "run"), "--train.timeout", minutes]
    arguments += ["--eval.tasks", "[]"]
    gone = [2] if trouble in ("killed", "stopped") else []
    outcomes = together(3, troubled, trouble, arguments, lost=gone)
    for outcome in [one for rank, one in enumerate(outcomes) if rank not in gone]:
        ended, seconds = outcome.value
        assert ended == code and seconds < 90, outcome.complaints
        (complaint,) = [line for line in outcome.complaints.splitlines() if line.startswith("train.py: ")]
        assert told in complaint


def late(seconds: float) -> str:
    """One comes to a meeting long after the time in which a silent one is given up, and one to a step."""
    first = os.environ["RANK"] == "0"
    try:
        with group(True, seconds / 60):
            if first:
                time.sleep(2 * seconds)
            meet()
            if first:
                time.sleep(2 * seconds)
            torch.distributed.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        return str(error)
    return ""


def test_who_is_long_at_work_is_not_lost() -> None:
    """Where the others meet it; in a step it is an error, and nobody is said to be silent."""
    _, second = together(2, late, 4.0)
    assert second.value == "a process that is alive did not come to this step in 0.0666667 minutes; raise train.timeout"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as found:
        yield found


def finished(hosts: Hosts, arguments: list[str]) -> list[tuple[int, str]]:
    """train.py on both: the codes and complaints."""
    launchers = [hosts.start(host, ROOT / "train.py", arguments) for host in (0, 1)]
    try:
        complaints = [launcher.communicate(timeout=PATIENCE)[1] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()
    return [(launcher.returncode, text) for launcher, text in zip(launchers, complaints, strict=True)]


@pytest.mark.slow
def test_two_hosts(config_file: str, tmp_path: Path, hosts: Hosts) -> None:
    """They train to the weights of one process, to those of two on one host bit by bit, and so they do when the cable
    is pulled in between: both end within train.timeout, name who is silent, and the same command goes on."""
    broken = tmp_path / "broken"
    arguments = ["--config", config_file, "--eval.tasks", "[]", "--optim.schedule", "constant", "--run.resume", "auto"]
    arguments += ["--run.checkpoint_every", "5", "--train.timeout", "0.25", "--run.dir"]
    endless = [*arguments, str(broken), "--train.max_steps", "100000"]
    launchers = [hosts.start(host, ROOT / "train.py", endless) for host in (0, 1)]
    try:
        wait_for(8, broken, launchers[0])
        hosts.cable("down")
        pulled = time.monotonic()
        first, second = (launcher.communicate(timeout=PATIENCE)[1] for launcher in launchers)
        assert time.monotonic() - pulled < 120  # 15 s, five signs that do not come, the launchers' ends
    finally:
        for launcher in launchers:
            launcher.terminate()
    assert "train.py: error: no sign of life from rank 1 (" in first, first
    assert f"train.py: error: no answer from {hosts.address}:29500, the host of rank 0 (" in second, second
    assert all(f"exitcode  : {REQUEUE} " in complaints for complaints in (first, second)), (first, second)

    hosts.cable("up")
    done = len(lines(broken))
    length = ["--train.max_steps", str(done + 4)]
    assert [code for code, _ in finished(hosts, [*arguments, str(broken), *length])] == [0, 0]
    for outcome in together(2, train_main, [*arguments, str(tmp_path / "two"), *length]):
        assert outcome.value == 0, outcome.complaints
    assert train_main([*arguments, str(tmp_path / "one"), *length]) == 0
    one, two, ours = (tmp_path / name / "model/model.safetensors" for name in ("one", "two", "broken"))
    assert_same_weights(ours, two)
    assert max(by_parameter(load_file(ours), load_file(one)).values()) < 1e-4
    assert [line["step"] for line in lines(broken)] == list(range(1, done + 5))


def apart(config_file: str, folder: str) -> int:
    """train.py in a process that sees a disk of its own."""
    own = f"{folder}/{os.environ['RANK']}/run"
    return train_main(["--config", config_file, "--run.dir", own, "--train.timeout", "0.02"])


def test_run_dir_that_a_host_does_not_see(config_file: str, tmp_path: Path) -> None:
    """Refused before the first step, and nothing is left of the attempt."""
    for outcome in together(2, apart, config_file, str(tmp_path)):
        assert outcome.value == 2
        for words in ("run is another folder for rank 1 (", "name one that all hosts share"):
            assert words in outcome.complaints
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
