"""A run that a signal ends: Ctrl-C, or the SIGTERM or SIGUSR1 of a scheduler.

While the loop takes its steps a signal is only noted; the loop asks for it, saves and raises Stopped. Where there is
nothing to save Stopped is raised at once, and so it is by a second Ctrl-C. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
INTERRUPTED, TERMINATED = 130, 143  # what a shell says of a process that SIGINT or SIGTERM killed
REQUEUE = 75  # sysexits.h's "try again later"
_NAMED = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED, "SIGUSR1": REQUEUE}
CODES = {getattr(signal, name): code for name, code in _NAMED.items() if hasattr(signal, name)}

FULL = (errno.ENOSPC, errno.EDQUOT)  # what a disk says that has no room
# what a folder of another machine says when that is gone
UNREACHED = (errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH)


class Passing(Exception):
    """What passes by itself, or with a hand from outside: the same command, started again, goes on with the run."""


def passes(error: BaseException) -> bool:
    """Whether an error is Passing, or what the system says of a disk that is full, or whose network is down."""
    return isinstance(error, Passing | TimeoutError) or getattr(error, "errno", None) in (*FULL, *UNREACHED)


class Left(Exception):
    """An evaluation was broken off, because the run is to stop; a resume repeats it."""


class Stopped(KeyboardInterrupt):
    """A signal ended the run. code: what the process ends with. checkpoint: where it goes on from, or None."""

    def __init__(self, code: int, where: str, checkpoint: Path | None) -> None:
        super().__init__(code, where, checkpoint)
        self.code, self.where, self.checkpoint = code, where, checkpoint

    def __str__(self) -> str:
        kept = f"the last checkpoint is {self.checkpoint}" if self.checkpoint else "nothing was saved"
        return f"stopped {self.where}; {kept}"


class Stopping:
    """A context that hears the signals; what they did before comes back after it.

    where: what the run is at. checkpoint: the newest of it. agreed: the code that all processes stop with, or 0.
    """

    def __init__(self) -> None:
        self.where = "before the first step"
        self.checkpoint: Path | None = None
        self.agreed = 0
        self._code, self._noting, self._closing = 0, False, False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in CODES:
                former = signal.getsignal(number)
                # what is ignored stays so: nohup, or a script's job in the background
                if former not in (None, signal.SIG_IGN):
                    self._former[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _hear(self, number: int, _: object) -> None:
        again, self._code = bool(self._code), self._code or CODES[number]
        # launchers and schedulers repeat themselves; a person who does is in a hurry
        if again and (number != signal.SIGINT or self._closing):
            return
        if again or not self._noting:
            raise Stopped(self._code, "at once" if again else self.where, self.checkpoint)

    def insist(self) -> None:
        """Raise Stopped if a signal was heard: what the handler raises within a destructor, Python only prints."""
        if self._code:
            raise Stopped(self._code, self.where, self.checkpoint)

    @contextmanager
    def noting(self, batches: Generator[T]) -> Iterator[Generator[T]]:
        """Around the steps that take the batches: a signal ends nothing, unless it is a second Ctrl-C.

        Closes the batches, which is not to be disturbed: a loader's end would only print what is raised within.
        """
        self._noting = True
        try:
            yield batches
        finally:
            self._closing = True
            batches.close()
            self._noting = self._closing = False
        self.where = "after the last step, in the final evaluation"
        self.insist()

    def wishes(self) -> list[float]:
        """For each signal of CODES whether this process was asked to stop by it; agree takes their sum or mean."""
        return [float(self._code == code) for code in CODES.values()]

    def agree(self, wishes: Sequence[float]) -> None:
        """Set `agreed` by the wishes of all processes, summed or averaged, so that it is the same in each."""
        self.agreed = max((code for code, wish in zip(CODES.values(), wishes, strict=True) if wish), default=0)


def resume_command(arguments: Sequence[str] | None, resume: str = "true") -> str:
    """What goes on with a run, quoted for a shell: its own command line with --run.resume, true or auto.

    arguments: of train.py; None takes the process's, with what started it.
    """
    words, kept = iter(sys.argv[1:] if arguments is None else arguments), []
    for word in words:
        name, given, _ = word.partition("=")
        if name not in ("--run.resume", "--run.overwrite"):
            kept.append(word)
        elif not given:
            next(words, None)
    return shlex.join([*(_started() if arguments is None else ["train.py"]), *kept, "--run.resume", resume])


def _started() -> list[str]:
    """The words before the arguments: of the launcher, where one started this process, else of the interpreter."""
    import psutil

    command = sys.orig_argv
    with suppress(psutil.Error, AttributeError):  # none there, or none of ours to look at
        launcher = psutil.Process().parent().cmdline()
        # torchrun's and accelerate's ends with what it starts
        if launcher[-len(sys.argv) :] == sys.argv:
            command = launcher
    return command[: len(command) - len(sys.argv) + 1]
