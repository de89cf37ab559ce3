"""The processes of a loader (data.workers): how they begin, how they end, and what the run says of one that is lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._C import _error_if_any_worker_fails
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from miniclip.common.notes import say_with_parent
from miniclip.common.stopping import CODES, Passing

T = TypeVar("T")
SHARED = Path("/dev/shm")  # where workers lay their batches down for the training process
GRACE = 10  # seconds in which a worker may end by itself after the training process has died
ADVICE = "give the machine or the container more (docker run --shm-size 8g), or lower data.workers"


class WorkerLost(Passing, RuntimeError):
    """A worker died, or could not be started or hand over its batch. The message names the cause."""


def batches_of(loader: DataLoader[T]) -> Generator[T]:
    """The batches of a loader. Its processes end with the generator, or with this process, whatever they are doing.

    What a worker raises is raised here without that process's traceback. Raises WorkerLost within seconds.
    """
    # torch's own handler would raise anywhere, even where an error is taken for that of a bad image
    signal_handling._SIGCHLD_handler_set = True
    try:
        # torch's iterator would print that it cannot shut down what it could not begin, so ask for as much before
        [Queue(ctx=get_context()) for _ in range(loader.num_workers + 4 if loader.num_workers else 0)]
        batches: Any = iter(loader)
    except OSError as error:  # of the semaphores, which are shared memory, or of fork
        raise WorkerLost(f"{loader.num_workers} loader processes cannot be started ({error}); {_advice()}") from error
    workers = getattr(batches, "_workers", [])
    try:
        while True:
            try:
                with _watching(workers):
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                if (told := _cause(error, workers)) is error:
                    raise
                raise told from error
            yield batch
    finally:
        if workers:
            batches._shutdown_workers()
        for worker in workers:  # those that wait for a disk or the network
            worker.kill()
            worker.join()
            _forget(worker.pid)


@contextmanager
def _watching(workers: list[Any]) -> Iterator[None]:
    """Around the wait for a batch: the death of a worker raises RuntimeError, also one that came before."""
    if not workers or not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # torch looks after them every 5 seconds
        return
    former = signal.signal(signal.SIGCHLD, lambda *_: _error_if_any_worker_fails())
    try:
        _error_if_any_worker_fails()
        yield
    finally:
        signal.signal(signal.SIGCHLD, former or signal.SIG_DFL)


def _cause(error: Exception, workers: list[Any]) -> Exception:
    """What came instead of a batch, as an error of the run."""
    if str(error).startswith("Caught "):  # in a worker: the message comes behind that process's traceback
        known = isinstance(error, (OSError, ValueError, MemoryError, WorkerLost))
        return type(error)(str(error).rstrip().rsplit(f"{type(error).__name__}: ", 1)[-1]) if known else error
    if workers and isinstance(error, (RuntimeError, OSError, EOFError)):
        ending = wait([worker.sentinel for worker in workers], 5)  # a connection breaks before its process has ended
        for worker in workers:
            worker.join(5 if worker.sentinel in ending else 0)
            if code := worker.exitcode:
                ended = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
                return WorkerLost(f"loader process {worker.pid} {ended}, as they are for want of memory; {_advice()}")
        if str(error).startswith("Too many open files"):
            return WorkerLost(f"too many open files to hand batches over; raise ulimit -n, or {ADVICE}")
    return error


def _advice() -> str:
    free = shutil.disk_usage(SHARED).free / 1e6 if SHARED.is_dir() else None
    return ADVICE if free is None else f"shared memory ({SHARED}) has {free:.1f} MB free; {ADVICE}"


def _forget(worker: int | None) -> None:
    """Remove what torch gave a name in shared memory and, for a moment, no other owner than that process."""
    for file in SHARED.glob(f"torch_{worker}_*"):
        file.unlink(missing_ok=True)


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(worker: int) -> None:
    say_with_parent()
    # a terminal or a scheduler signals all processes of a run, which has a step to finish
    for number in CODES:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGBUS"):
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's would print what _watching says
    # a thread of the queue hands the batches over: by default it prints what fails there, and nobody hears of the batch
    Queue._on_queue_feeder_error = _not_handed_over  # type: ignore[attr-defined]
    parent = parent_process()  # not getppid, which names another where it has died by now
    assert parent is not None and parent.pid is not None
    threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _not_handed_over(queue: Queue[Any], error: Exception, batch: Any) -> None:
    """In place of a batch, send why there is none."""
    _forget(os.getpid())
    if isinstance(batch, tuple):
        lost = WorkerLost(f"a loader process cannot hand its batch over ({error}); {_advice()}")
        queue.put((batch[0], ExceptionWrapper((WorkerLost, lost, None), "in a DataLoader worker")))


def _end_with(parent: int) -> None:
    """torch ends a worker whose parent has died, but not while it reads or waits for room in a pipe."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(GRACE)
    os._exit(1)


# each start of a loader draws a number: from a generator of its own, for a resume goes on with the training's
LOADING: dict[str, Any] = {"generator": torch.Generator(), "collate_fn": _as_it_is, "worker_init_fn": _begin}
