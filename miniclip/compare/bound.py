"""Run a command that is asked to stop, by SIGTERM, when the process that started it ends, even by kill -9 (on Linux).

    python -P bound.py PID COMMAND ...      PID: of that process

A program of its own, as what a child does between fork and exec must not be Python's where the parent has threads.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # prctl(2); it outlives an exec

if __name__ == "__main__":
    with suppress(OSError, AttributeError):  # other systems have none
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # it ended before that
        sys.exit(128 + signal.SIGTERM)
    os.execvp(sys.argv[2], sys.argv[2:])
