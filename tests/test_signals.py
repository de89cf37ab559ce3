"""A run that a signal ends: what it saves, what it says, and that it goes on as if nothing had been."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.files import samples, write_tar
from support.group import together
from support.launching import ROOT, launched
from test_training import TINY, environment, lines, run

from miniclip.cli.train import train_main
from miniclip.common.stopping import CODES, Stopped, Stopping, resume_command
from miniclip.data.cache import prepared
from miniclip.evaluation import suite
from miniclip.training import loop
from miniclip.training import run as run_module

TIMED = {"samples_per_s", "data_wait", "tokens_per_s", "pixels_per_s", "mfu", "memory_peak_gb"}
PATIENCE = 300  # seconds, for processes on a busy machine
ENDLESS = ["--eval.tasks", "[]", "--optim.schedule", "constant", "--train.max_steps", "100000"]


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def exact(directory: Path) -> list[dict[str, Any]]:
    """The log without what a clock or the system says."""
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines(directory)]


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def before(monkeypatch: Any, name: str, call: int, *numbers: int) -> None:
    """Send this process signals just before the call-th time that a function of training.py is called."""
    owner = next(owner for owner in (loop, run_module, suite, loop.Loop) if hasattr(owner, name))
    original: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        for number in numbers if next(calls) == call else ():
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


def test_stopped_thrice_and_resumed_equals_an_unbroken_run(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes due at the step comes before its checkpoint, and the log's means reach back over the stop."""
    monkeypatch.setattr(loop, "at_clamp", lambda scale: int(scale * 1e4) % 2 == 1)
    options = ["--config", config_file, "--log.every", "3", "--log.matrix_every", "2", "--eval.tasks", "[retrieval]"]
    options += ["--eval.every", "2", "--eval.best", "retrieval/text_to_image_r10", "--run.dir"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_main([*options, str(whole)]) == 0
    arguments, resumed = [*options, str(broken)], [*options, str(broken), "--run.resume", "true"]
    handlers = {number: signal.getsignal(number) for number in CODES}
    steps = [0, 2, 4, 5]
    for first, step, (number, code) in zip(steps, steps[1:], CODES.items(), strict=False):
        with monkeypatch.context() as patch:
            before(patch, "_step", step - first, number)
            capsys.readouterr()
            assert train_main(arguments) == code
        assert {number: signal.getsignal(number) for number in CODES} == handlers
        folder, arguments = broken / "checkpoints" / f"step_{step:08d}", resumed
        told = f"train.py: stopped after step {step} of 6; the last checkpoint is {folder}; go on with: "
        assert capsys.readouterr().err == f"{told}{shlex.join(['train.py', *resumed])}\n" and folder.is_dir()
    assert train_main(resumed) == 0
    assert exact(broken) == exact(whole)
    for path in (whole / "model/model.safetensors", *(whole / "matrix").glob("*.safetensors")):
        assert_same_weights(broken / path.relative_to(whole), path)


AT_ONCE = "stopped at once; "
UNSAVED = "stopped before the first step; nothing was saved"


@pytest.mark.parametrize(
    ("name", "numbers", "told"),
    [
        ("open_batches", [signal.SIGINT], UNSAVED),
        ("open_batches", [signal.SIGTERM], UNSAVED),
        # at the next batch of the evaluation, which a resume does again
        ("evaluate", [signal.SIGTERM, signal.SIGTERM], "stopped after step 4 of 6; the last checkpoint is "),
        ("evaluate", [signal.SIGINT, signal.SIGINT], AT_ONCE + "the last checkpoint is "),
        ("append_metrics", [signal.SIGINT, signal.SIGINT], AT_ONCE + "nothing was saved"),
        ("final_evaluation", [signal.SIGINT], "stopped after the last step, in the final evaluation; the last "),
    ],
)
def test_outside_of_a_step(
    config_file: str, tmp_path: Path, monkeypatch: Any, name: str, numbers: list[Any], told: str
) -> None:
    before(monkeypatch, name, 1, *numbers)
    options = ["--eval.tasks", "[retrieval]", "--eval.every", "4", "--run.checkpoint_every", "3"]
    with pytest.raises(Stopped, match=told) as stop:
        run(config_file, tmp_path / "run", *options)
    assert isinstance(stop.value, KeyboardInterrupt)
    found = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert (stop.value.code, stop.value.checkpoint) == (CODES[numbers[0]], found[-1] if found else None)


def test_the_preparing_of_images_stops_at_once(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no thread has begun is not read any more, and the parts that are whole are kept."""
    read, original, cache = itertools.count(1), prepared._Build._read, tmp_path / "cache"

    def slow(build: Any, row: int) -> Any:
        if next(read) == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        return original(build, row)

    monkeypatch.setattr(prepared, "PART", 20)
    monkeypatch.setattr(prepared, "allowed_cores", lambda: 8)
    monkeypatch.setattr(prepared._Build, "_read", slow)
    options = ["--config", config_file, "--data.cache", "true", "--data.cache_dir", str(cache), "--eval.tasks", "[]"]
    options += ["--run.resume", "auto", "--run.dir", str(tmp_path / "run")]
    assert train_main(options) == 143
    begun = next(read) - 1
    assert begun < 40 and [path.name for path in cache.glob("*/*")] == ["000"]
    assert train_main(options) == 0
    assert next(read) - 1 == begun + 1 + 20


def test_after_the_last_step(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no further step to hear of a signal that comes while the last checkpoint is written."""
    before(monkeypatch, "_save", 1, signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 6 of 6"):
        run(config_file, tmp_path / "run", "--eval.tasks", "[]")
    assert not (tmp_path / "run" / "model").exists()
    run(config_file, tmp_path / "run", "--eval.tasks", "[]", "--run.resume", "true")
    assert (tmp_path / "run" / "model").exists()


def stopped_in_evaluation(call: int, arguments: list[str]) -> int:
    """The exit code of a run whose last process alone is asked to stop as the call-th evaluation begins; 0: in none."""
    with pytest.MonkeyPatch.context() as patch:
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            before(patch, "evaluate", call, signal.SIGUSR1)
        return train_main(arguments)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_is_left_and_done_again(config_file: str, tmp_path: Path, processes: int) -> None:
    """At a batch, by all processes, whichever hears the signal, even while it is done again: nothing is lost or twice,
    the choice of the best included."""
    options = ["--config", config_file, "--eval.tasks", "[retrieval]", "--eval.every", "2", "--eval.batch_size", "6"]
    options += ["--eval.best", "retrieval/text_to_image_r10", "--run.resume", "auto", "--run.dir"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder, calls in ((whole, [0]), (broken, [1, 1, 2, 1, 2, 0])):  # the first of a resume is the one that was left
        for call in calls:
            ended = together(processes, stopped_in_evaluation, call, [*options, str(folder)])
            assert [one.value for one in ended] == [75 if call else 0] * processes, ended
    assert exact(broken) == exact(whole)
    assert_same_weights(broken / "model/model.safetensors", whole / "model/model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_is_due_by_the_clock(config_file: str, tmp_path: Path, processes: int) -> None:
    """The main process's: all save at the same steps, and only as often as that."""
    options = ["--config", config_file, "--eval.tasks", "[]", "--run.checkpoint_every", "0", "--run.keep", "9"]
    for minutes, steps in (("1e-9", [1, 2, 3, 4, 5, 6]), ("600", [6])):
        folder = tmp_path / minutes
        arguments = [*options, "--run.checkpoint_minutes", minutes, "--run.dir", str(folder)]
        assert [one.value for one in together(processes, train_main, arguments)] == [0] * processes
        found = sorted(folder.glob("checkpoints/step_*"))
        assert [path.name for path in found] == [f"step_{step:08d}" for step in steps]
    assert exact(tmp_path / "600") == exact(tmp_path / "1e-9")


def test_closing_is_not_disturbed() -> None:
    """A person in a hurry, while the loader's processes end."""
    ended = []

    def batches() -> Generator[int]:
        try:
            yield 1
        finally:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            ended.append(True)

    with Stopping() as stopping, pytest.raises(Stopped, match="in the final evaluation; nothing was saved"):  # noqa: SIM117
        with stopping.noting(batches()) as taken:
            next(taken)
    assert ended


def test_the_command_to_go_on() -> None:
    given = ["--run.resume", "false", "--config", "a b.yaml", "--run.overwrite=true", "--eval.tasks", "[]"]
    assert resume_command(given) == "train.py --config 'a b.yaml' --eval.tasks '[]' --run.resume true"


def test_what_is_ignored_stays_ignored(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup and a script's background jobs ask for it."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        before(monkeypatch, "_step", 2, signal.SIGINT)
        assert run(config_file, tmp_path / "run", "--eval.tasks", "[]")
    finally:
        signal.signal(signal.SIGINT, former)


def wait_for(steps: int, directory: Path, process: subprocess.Popen[str]) -> None:
    """Until the log has that many lines."""
    deadline = time.monotonic() + PATIENCE
    while not (directory / "metrics.jsonl").exists() or len(lines(directory)) < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told_command(complaints: str) -> list[str]:
    """The command to go on with, of the one line that rank 0 wrote."""
    (line,) = [line for line in complaints.splitlines() if line.startswith("train.py: ")]
    return shlex.split(line.partition("go on with: ")[2])


@contextmanager
def started(
    config_file: str, directory: Path, *options: str, within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A training in a process group of its own, which ends with the context. within: words of a command around it."""
    command = [*within, sys.executable, str(ROOT / "train.py"), "--config", config_file, "--run.dir", str(directory)]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, *options], env=environment(), start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def loaders_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) >= 2
    return found


def assert_ended(processes: list[psutil.Process]) -> None:
    assert not psutil.wait_procs(processes, timeout=60)[1]


@pytest.mark.slow
def test_signals_that_reach_all_processes(config_file: str, tmp_path: Path) -> None:
    """As a scheduler's and a terminal's do: the loader's leave neither a traceback nor themselves behind."""
    directory = tmp_path / "my run"
    with started(config_file, directory, *ENDLESS, "--data.workers", "2") as process:
        wait_for(2, directory, process)
        loaders = loaders_of(process)
        for loader in loaders:
            loader.terminate()
        os.killpg(process.pid, signal.SIGINT)
        _, complaints = process.communicate(timeout=PATIENCE)
        assert_ended(loaders)
    assert process.returncode == 130, complaints
    assert complaints.startswith("train.py: stopped after step") and complaints.count("\n") == 1
    assert told_command(complaints) == [*process.args, "--run.resume", "true"]  # type: ignore[misc]
    assert len(list(directory.glob("checkpoints/step_*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_loader_that_is_killed_ends_the_run(
    config_file: str, tmp_path: Path, number: signal.Signals, streaming: bool
) -> None:
    """As the system does for want of memory (SIGKILL) or of shared memory (SIGBUS)."""
    directory, options = tmp_path / "run", [*ENDLESS, "--data.workers", "2"]
    if streaming:
        for i, split in enumerate(("train-0", "train-1", "validation-0", "test-0")):
            write_tar(tmp_path / "tars" / f"{split}.tar", samples(20 * i, 20 * i + 20))
        options += ["--data.source", str(tmp_path / "tars"), "--data.streaming", "true", "--train.epochs", "null"]
    with started(config_file, directory, *options) as process:
        wait_for(2, directory, process)
        loaders = loaders_of(process)
        loaders[0].send_signal(number)
        _, complaints = process.communicate(timeout=PATIENCE)
        assert_ended(loaders)
    assert process.returncode == 75, complaints
    told = f"train.py: error: loader process {loaders[0].pid} was killed ({number.name}), "
    assert complaints.startswith(told) and complaints.count("\n") == 1
    assert "shared memory (/dev/shm) has " in complaints and "data.workers" in complaints


@pytest.mark.slow
@pytest.mark.parametrize(("size", "told"), [("300k", "cannot hand its batch over"), ("8k", "cannot be started")])
def test_too_little_shared_memory_ends_the_run(config_file: str, tmp_path: Path, size: str, told: str) -> None:
    """A container has 64 MB of it by default; the batches here want half a megabyte each. Nothing stays in it."""
    script = f'mount -t tmpfs -o size={size} none /dev/shm && {{ "$@"; code=$?; ls /dev/shm >&2; exit $code; }}'
    mounted = ["unshare", "-m", "sh", "-c", script, "sh"]
    if (tried := subprocess.run([*mounted, "true"], capture_output=True, text=True)).returncode:
        pytest.skip(f"no mount of one's own here: {tried.stderr}")
    options = [*ENDLESS, "--data.workers", "2", "--data.batch_size", "40", "--model.image_size", "64"]
    with started(config_file, tmp_path / "run", *options, within=mounted) as process:
        _, complaints = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, complaints
    assert told in complaints and "shared memory (/dev/shm) has " in complaints and "data.workers" in complaints
    assert complaints.count("\n") == 1, complaints


@pytest.mark.slow
def test_processes_agree_on_the_step(config_file: str, tmp_path: Path) -> None:
    """Whether torchrun hands a signal on to all, or it reaches one alone; then the run goes on to the same bits."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ["--config", config_file, *ENDLESS, "--run.dir"]
    with launched(2, ROOT / "train.py", [*arguments, str(broken)]) as launcher:
        wait_for(1, broken, launcher)
        _, other = [p for p in psutil.Process(launcher.pid).children() if str(ROOT / "train.py") in p.cmdline()]
        other.send_signal(signal.SIGUSR1)
        _, complaints = launcher.communicate(timeout=PATIENCE)
    assert complaints.count(": 75 (pid") == 2 and "exitcode  : -" not in complaints, complaints
    assert told_command(complaints) == [*launcher.args, "--run.resume", "true"]
    with launched(2, ROOT / "train.py", [*arguments, str(whole)]) as launcher:
        wait_for(len(lines(broken)) + 4, whole, launcher)
        launcher.send_signal(signal.SIGTERM)
        _, complaints = launcher.communicate(timeout=PATIENCE)
    assert "forcefully" not in complaints and told_command(complaints)
    resume = [*arguments, str(broken), "--run.resume", "true", "--train.max_steps", str(len(lines(whole)))]
    main, other = together(2, train_main, resume)
    assert main.value == other.value == 0 and f"resuming {broken} at step" in main.output, main.complaints
    assert exact(broken) == exact(whole)
    (weights,) = whole.glob("checkpoints/*/model.safetensors")
    assert_same_weights(broken / weights.relative_to(whole), weights)
