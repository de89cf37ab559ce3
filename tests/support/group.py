"""Processes that form a group, forked from a server that has imported torch once: a start takes no seconds."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import TCPStore

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["support.preloaded"])


class Outcome(NamedTuple):
    value: Any
    output: str
    complaints: str


def together(
    processes: int,
    function: Callable[..., Any],
    *arguments: Any,
    variables: dict[str, str] | None = None,
    timeout: float = 180,
    lost: Sequence[int] = (),
) -> list[Outcome]:
    """What function(*arguments) returns and writes in each of several processes, as torchrun would start them.

    Nobody above them ends all when one returns; one that raises ends all, and its traceback is raised here, as it is
    after timeout seconds. function: of a module; it finds RANK, WORLD_SIZE, ... and variables in its environment.
    lost: ranks that nobody waits for: they die, or stop for ever.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        started, answers, found = [], {}, {}
        try:
            for rank in range(processes):
                ours, theirs = SERVER.Pipe(duplex=False)
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **(variables or {})}
                process = SERVER.Process(target=_run, args=(theirs, f"{folder}/{rank}", own, function, arguments))
                process.start()
                theirs.close()
                started.append(process)
                answers[ours] = rank
            while any(rank not in lost for rank in answers.values()):
                ready = wait(list(answers), max(0.0, deadline - time.monotonic()))
                told = {rank: _written(folder, rank)[1][-3000:] for rank in answers.values()}
                assert ready, f"after {timeout} s still at work, by rank: {told}"
                for answer in ready:
                    rank = answers.pop(answer)  # type: ignore[call-overload]
                    if rank in lost:
                        continue
                    try:
                        failure, value = pickle.loads(answer.recv_bytes())  # type: ignore[union-attr]
                    except EOFError:
                        failure, value = "it died", None
                    assert failure is None, f"rank {rank}: {failure}\n{_written(folder, rank)[1][-3000:]}"
                    found[rank] = value
            for rank, process in enumerate(started):
                if rank in lost:
                    continue
                process.join(max(0.1, deadline - time.monotonic()))
                assert process.exitcode == 0, "a process did not end"
        finally:
            for process in started:
                process.kill()
                process.join()
        return [Outcome(found.get(rank), *_written(folder, rank)) for rank in range(processes)]


def _written(folder: str, rank: int) -> tuple[str, str]:
    paths = (Path(f"{folder}/{rank}.{name}") for name in ("out", "err"))
    output, complaints = (path.read_text(errors="replace") if path.exists() else "" for path in paths)
    return output, complaints


def _run(
    answer: Connection, files: str, variables: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= variables
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with Path(f"{files}.{name}").open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    failure = value = None
    try:
        value = function(*arguments)
    except SystemExit as end:
        value = end.code
    except BaseException:
        failure = traceback.format_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # not with torch's own pickling of tensors, whose memory would end with this process
    answer.send_bytes(pickle.dumps((failure, value)))
