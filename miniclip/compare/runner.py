"""Trainings as processes, some at a time: finished ones are left alone, others go on, failures are told."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from miniclip.common.console import plain
from miniclip.common.durable import make_folder
from miniclip.common.lock import LEASE, Taken, alone_in
from miniclip.common.printing import one_line

if TYPE_CHECKING:
    from rich.console import Console

LOG = "train.log"
_POLL = 0.2  # seconds
_LINE = 300  # characters of what a training says of its end


class Job(NamedTuple):
    """A training. name: for people. words: what follows `miniclip train`, but for its folder."""

    name: str
    folder: Path
    steps: int
    words: list[str]


class Failure(NamedTuple):
    """passing: whether the same again may help."""

    job: Job
    error: str
    passing: bool


@dataclass
class Machine:
    """How trainings are started: so many at once, by a launcher's words or none, and where progress is shown."""

    console: Console
    jobs: int = 1
    launch: Sequence[str] = ()
    devices: list[str] = field(default_factory=list)

    def command(self, job: Job) -> list[str]:
        start = [*self.launch] or [sys.executable]
        own = [f"--run.dir={job.folder}", "--run.resume=auto", "--run.overwrite=false", "--log.progress=false"]
        length = [f"--train.max_steps={job.steps}", "--train.epochs=null"]
        return [*start, "-m", "miniclip", "train", *job.words, *length, *own]

    def environment(self, slot: int) -> dict[str, str]:
        """Of the slot-th of those at once: its share of the devices, if there are several to share."""
        if self.jobs == 1 or not self.devices:
            return dict(os.environ)
        own = self.devices[slot :: self.jobs] or [self.devices[slot % len(self.devices)]]
        return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(own)}

    def run(self, jobs: Sequence[Job], ended: Callable[[Job, str | None], None] = lambda *_: None) -> list[Failure]:
        """Until all have ended. ended: told each that was started, and of its failure. Whatever breaks this off stops
        them, and they save."""
        at_work = _AtWork(self, [job for job in jobs if not finished(job)], len(jobs))
        failures = []
        try:
            while at_work.waiting or at_work.running:
                at_work.start()
                time.sleep(_POLL)
                for job, failure in at_work.collect():
                    failures += [failure] if failure else []
                    ended(job, failure.error if failure else None)
        finally:
            at_work.stop()
        return failures


def finished(job: Job) -> bool:
    """Whether results.json is there, of so many steps."""
    try:
        return bool(json.loads((job.folder / "results.json").read_text("utf-8"))["training"]["steps"] == job.steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def devices() -> list[str]:
    """Of CUDA, as CUDA_VISIBLE_DEVICES names them; none on a CPU."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(k) for k in range(count)]


def last_step(folder: Path) -> int:
    """That metrics.jsonl tells of last, or 0."""
    with suppress(OSError, ValueError, LookupError, TypeError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        return int(json.loads(file.read().split(b"\n")[-2])["step"])
    return 0


@dataclass
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    said: int  # bytes of the log before this start
    since: float
    first: int  # step that it goes on from
    bar: Any


class _AtWork:
    """Those that wait, and by their slot those that run; with a line of progress for each."""

    def __init__(self, machine: Machine, waiting: list[Job], count: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.machine, self.waiting = machine, waiting
        self.running: dict[int, _Process] = {}
        self._refused_since: dict[Path, float] = {}
        self._began, self._steps, self._left = time.monotonic(), 0, sum(job.steps for job in waiting)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=machine.console,
            speed_estimate_period=600,  # seconds; processes start in between
            auto_refresh=False,  # which would be a thread, and processes are started here
            transient=True,
            disable=not machine.console.is_terminal,
        )
        self.all = self.progress.add_task(f"all {count} runs", total=self._left)
        self.progress.start()

    def start(self) -> None:
        """As many as may run and are not still written by a process that was left behind."""
        for job in list(self.waiting):
            free = [slot for slot in range(self.machine.jobs) if slot not in self.running]
            if not free:
                return
            if self._is_free(job.folder):
                self.waiting.remove(job)
                self.running[free[0]] = self._started(job, free[0])

    def _is_free(self, folder: Path) -> bool:
        try:
            with alone_in(folder):
                return True
        except Taken as who:
            since = self._refused_since.setdefault(folder, time.monotonic())
            if time.monotonic() - since > LEASE:
                raise ValueError(f"{folder} is in use: {who} writes into it; wait for it, or stop it there") from who
            return False

    def _started(self, job: Job, slot: int) -> _Process:
        make_folder(job.folder)
        log = (job.folder / LOG).open("ab")
        said, first = log.tell(), last_step(job.folder)
        command = self.machine.command(job)
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        bound = [sys.executable, "-P", str(Path(__file__).with_name("bound.py")), str(os.getpid())]
        process = subprocess.Popen(
            [*bound, *command],
            env=self.machine.environment(slot),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops them all in the same way
        )
        self._left -= first
        self.progress.update(self.all, total=self._steps + self._left)
        self._say(f"{job.name}: " + (f"goes on from step {first}" if first else "begins") + f", {job.steps} steps")
        bar = self.progress.add_task(job.name, total=job.steps, completed=first)
        return _Process(job, process, log, said, time.monotonic(), first, bar)

    def collect(self) -> list[tuple[Job, Failure | None]]:
        """Those that have ended since; shows how far the others are."""
        done = []
        for slot, one in list(self.running.items()):
            if one.process.poll() is not None:
                del self.running[slot]
                one.log.close()
                done.append((one.job, self._ended(one)))
            else:
                self.progress.update(one.bar, completed=last_step(one.job.folder))
        under_way = sum(max(0, last_step(one.job.folder) - one.first) for one in self.running.values())
        self.progress.update(self.all, completed=self._steps + under_way)
        self.progress.refresh()
        return done

    def _ended(self, one: _Process) -> Failure | None:
        self.progress.remove_task(one.bar)
        self._steps += (steps := one.job.steps - one.first)
        self._left -= steps
        code, log, seconds = one.process.returncode, one.job.folder / LOG, time.monotonic() - one.since
        if code == 0 and finished(one.job):
            each = (time.monotonic() - self._began) / max(1, self._steps)
            rest = f"; {len(self.waiting) + len(self.running)} left, about {_minutes(each * self._left)}"
            self._say(f"{one.job.name}: done in {_minutes(seconds)}" + rest * bool(self._left))
            return None
        if code < 0:
            error = f"killed by {signal.Signals(-code).name}; its log is {log}"
        else:
            error = _last_words(log, one.said) or f"ended with {code}; its log is {log}"
        self._say(f"{one.job.name}: failed: {error}")
        return Failure(one.job, one_line(error, _LINE), code not in (1, 2))

    def stop(self) -> None:
        """End those that run, which save; at once after a further Ctrl-C."""
        self.progress.stop()
        try:
            for one in self.running.values():
                one.process.terminate()
            if self.running:
                self._say(f"stopping {len(self.running)} of the runs, which save; Ctrl-C ends them at once")
            for one in self.running.values():
                one.process.wait()
        finally:
            for one in self.running.values():
                one.log.close()
                if one.process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(one.process.pid, signal.SIGKILL)
                    one.process.wait()

    def _say(self, text: str) -> None:
        self.progress.console.print(plain(text))


def _last_words(log: Path, start: int) -> str:
    """Of what a training said since then, the line that tells why it ended; else the last."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines()[1:] if line.strip()]
    told = [line.partition(": error: ")[2] for line in lines if "miniclip train: error: " in line]
    return told[-1] if told else lines[-1] if lines else ""


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
