"""A group of processes, of which one may die, be stopped, or be cut off: the others end, and say which one it was.

Each tells the store where they met, about once a second, that it lives. So one that is long at work is told from one
that is gone, and the others hear why one has ended.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from miniclip.common.printing import one_line
from miniclip.common.stopping import Passing, passes

if TYPE_CHECKING:
    from accelerate import PartialState

log = logging.getLogger(__name__)

_SETTLE = 5  # beats that may fail to come before a process is named as silent, once something is known to be wrong
_PASSES, _REFUSED = "~", "!"  # whether what ended a process passes by itself


class ProcessLost(Passing, RuntimeError):
    """Another process of the group was killed, stopped or cut off, or does not come. The message names it."""


@contextmanager
def group(cpu: bool, minutes: float) -> Iterator[PartialState]:
    """The processes that torchrun or `accelerate launch` started, as a group until the context ends; alone, just one.

    cpu: have them meet on the CPU. minutes: that one waits for another in a step, or for the sign that it lives.
    Raises ProcessLost wherever a process waits for one that is gone, and ValueError if another has refused.
    """
    from accelerate import PartialState

    try:
        state = PartialState(cpu=cpu, timeout=timedelta(minutes=minutes))
    except RuntimeError as error:
        if not _of_group(error):
            raise
        apart = f"the processes do not come together at {_where()} in {minutes:g} minutes"
        raise ProcessLost(f"{apart} ({one_line(str(error), 200)})") from error
    try:
        if state.num_processes == 1:
            yield state
        else:
            with _watched(60 * minutes):
                yield state
    finally:
        state.destroy_process_group()


def meet() -> None:
    """Wait until every process is here, however long one is at work, as long as it lives. Raises as group does."""
    if _Watch.current is not None:
        _Watch.current.meet()


def check() -> None:
    """Raise as group does if a process is lost; for code that waits for others by other means, such as a lock."""
    if _Watch.current is not None:
        _Watch.current.check()


@contextmanager
def _watched(seconds: float) -> Iterator[None]:
    watch = _Watch.current = _Watch(seconds)
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError) and _of_group(error):
            found = watch.verdict()
            watch.end(found)
            raise found from error
        watch.end(error)
        raise
    finally:
        watch.end()
        _Watch.current = None


def _where() -> str:
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))


def _of_group(error: RuntimeError) -> bool:
    # gloo's come as plain ones, with the place in its source, but for the second wait on a connection that it gave up
    words = ("gloo/", "Application timeout caused pair closure")
    return isinstance(error, dist.DistError) or any(told in str(error) for told in words)


def _kernel() -> str | None:
    """What is the same for processes that can see each other's numbers, and for no others; None where it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _is_dead(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class _Sign(NamedTuple):
    """beat: a number that moves while the process lives. meetings: how many it came to. words: of what ended it."""

    beat: int
    meetings: int
    words: str


class _Watch:
    """This process's signs of life, and what it hears of the others'. seconds: that a living one may be silent."""

    current: _Watch | None = None

    def __init__(self, seconds: float) -> None:
        self.rank, world, self.seconds = dist.get_rank(), dist.get_world_size(), seconds
        # where they are very many each reads the others' signs less often
        self.period = min(max(1.0, world / 32), seconds / 10)
        found: list[Any] = [None] * world
        dist.all_gather_object(found, (socket.gethostname(), os.getpid(), _kernel()))
        self._names = [f"{host}, pid {pid}" for host, pid, _ in found]
        # those that this process would see die
        self._near = {rank: pid for rank, (_, pid, kernel) in enumerate(found) if kernel and kernel == _kernel()}
        self._store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own
        self._store.set_timeout(timedelta(seconds=seconds))
        self._keys = [f"signs/{rank}" for rank in range(world)]
        self._meetings, self._words, self._over, self._waiting = 0, "", False, False
        self._signs, self._answered = [_Sign(0, 0, "")] * world, time.monotonic()
        self._heard = [self._answered] * world
        self._news, self._hurry = threading.Condition(), threading.Event()
        self._write(0)
        dist.barrier()  # from here on there is a sign of each
        self._thread = threading.Thread(target=self._listen, name="peers", daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """As the function of the module."""
        with self._news:
            self._meetings += 1
            mine = self._meetings
            self._hurry.set()
            self._waiting = True
            try:
                while not all(meetings >= mine for _, meetings, _ in self._others().values()):
                    self._news.wait(self.period)
                    self.check()
            finally:
                self._waiting = False

    def check(self) -> None:
        """As the function of the module."""
        with self._news:
            if self._ended() or self._quiet() or self._dead():
                found = self.verdict()
                # else it was this process that was stopped for a while
                if self._ended() or self._quiet() or self._dead():
                    raise found

    def verdict(self) -> Exception:
        """Who is silent, or has ended; waits for a few beats."""
        began = time.monotonic()
        since = began + 2 * self.period  # what one told before it was lost may be heard until then

        def silent() -> list[int]:
            return [rank for rank in self._others() if self._heard[rank] <= since and rank not in self._ended()]

        with self._news:
            # one that ends itself says so a moment after its connections are closed
            while (silent() or not self._ended()) and time.monotonic() < began + _SETTLE * self.period:
                self._news.wait(self.period)
            lost, ended, answers = silent(), self._ended(), self._answered > since
        of = [f"rank {rank} ({name})" for rank, name in enumerate(self._names)]
        for rank, words in ended.items():
            if words.startswith(_REFUSED):
                return ValueError(f"{of[rank]} has ended: {words[1:]}")
        if lost and not answers:
            return ProcessLost(f"no answer from {_where()}, the host of {of[0]}: it is down, or the network is")
        if lost:
            named = ", ".join(of[rank] for rank in lost)
            return ProcessLost(f"no sign of life from {named}: killed, stopped, or behind a network that is down")
        for rank, words in ended.items():
            return ProcessLost(f"{of[rank]} has ended: {words[1:]}")
        limit = f"{self.seconds / 60:g} minutes"
        return ProcessLost(f"a process that is alive did not come to this step in {limit}; raise train.timeout")

    def end(self, error: BaseException | None = None) -> None:
        """Beat no more. error: what ends this process; the others hear of it."""
        if error is not None:
            kind = _PASSES if passes(error) or isinstance(error, KeyboardInterrupt) else _REFUSED
            said = str(error).splitlines()[:1] or [type(error).__name__]
            self._words = kind + one_line(said[0], 500)
        self._over = True
        self._hurry.set()
        self._thread.join(2.0)  # longer only if the store does not answer

    def _others(self) -> dict[int, _Sign]:
        return {rank: sign for rank, sign in enumerate(self._signs) if rank != self.rank}

    def _ended(self) -> dict[int, str]:
        return {rank: sign.words for rank, sign in self._others().items() if sign.words}

    def _quiet(self, seconds: float | None = None) -> list[int]:
        """Of whom nothing was heard for so long."""
        limit = time.monotonic() - (seconds or self.seconds)
        return [rank for rank, sign in self._others().items() if self._heard[rank] < limit and not sign.words]

    def _dead(self) -> list[int]:
        """Of this host, whose process is no more; of other hosts only silence tells."""
        return [rank for rank in self._quiet(2 * self.period) if rank in self._near and _is_dead(self._near[rank])]

    def _write(self, beat: int) -> None:
        self._store.set(f"signs/{self.rank}", f"{beat} {self._meetings} {self._words}")

    def _listen(self) -> None:
        pause, warned = self.period, list[int]()
        for beat in count(1):
            hurried = self._hurry.wait(pause)
            self._hurry.clear()
            # quick at first when somebody waits, for mostly all come at the same time
            pause = 0.002 if hurried else min(2 * pause, self.period / 10 if self._waiting else self.period)
            over = self._over
            with suppress(RuntimeError):  # no answer: nothing is heard
                self._write(beat)
                if not over:
                    self._read()
            if over:
                return
            quiet = self._quiet(self.seconds / 2)
            for rank in set(quiet) - set(warned):
                log.warning("no sign of life from rank %d (%s); it may come back", rank, self._names[rank])
            warned = quiet

    def _read(self) -> None:
        found = [words.decode().split(" ", 2) for words in self._store.multi_get(self._keys)]
        with self._news:
            before, self._signs = self._signs, [_Sign(int(beat), int(met), words) for beat, met, words in found]
            self._answered = time.monotonic()
            for rank, (sign, former) in enumerate(zip(self._signs, before, strict=True)):
                if sign != former:
                    self._heard[rank] = self._answered
            self._news.notify_all()
