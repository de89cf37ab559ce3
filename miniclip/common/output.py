"""What is printed where nobody hears it: to a closed pipe, to a terminal that is gone, to a log on a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from miniclip.common.durable import means_full


class _Output:
    """A stream of text that fails at nothing. full: whether a full disk cut it off."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.full = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.full |= means_full(error)
        # Python would try once more when the process ends, and end with 120
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def unfailing_output() -> Iterator[_Output]:
    """A context in which a print that fails ends nothing; yields what stands in for stdout."""
    out, error = _Output(sys.stdout), _Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(error):
        try:
            yield out
        finally:
            out.flush()
            error.flush()
