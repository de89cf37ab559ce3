"""Processes that torchrun starts, as the tests of several processes need them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"


def command_of(processes: int, script: Path, arguments: list[str]) -> list[str]:
    """The words that start a script in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*launcher, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(script), *arguments]


@contextmanager
def launched(
    processes: int, script: Path, arguments: list[str], variables: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a script in several processes, which end with the context. variables: added to the environment."""
    command = command_of(processes, script, arguments)
    environment = {**os.environ, **(variables or {})}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            yield launcher
        finally:
            launcher.terminate()  # rather than kill it, for then its workers would live on


def torchrun(
    processes: int, script: Path, arguments: list[str], variables: dict[str, str] | None = None, timeout: int = 600
) -> subprocess.CompletedProcess[str]:
    """The same, and wait. timeout: in seconds."""
    with launched(processes, script, arguments, variables) as launcher:
        output, complaints = launcher.communicate(timeout=timeout)
    return subprocess.CompletedProcess(launcher.args, launcher.returncode, output, complaints)
