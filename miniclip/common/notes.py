"""Notes on the data, which the loggers of miniclip give: each once, whatever opens the same source again."""

from __future__ import annotations

import logging
import os
import tempfile
from multiprocessing.util import get_temp_dir
from pathlib import Path

from miniclip.common.fingerprint import digest
from miniclip.common.printing import printable

SAID = "MINICLIP_SAID"  # variable with the folder that holds an empty file for each note that was said


class _Once(logging.Filter):
    """Passes what neither this process nor one of its workers, which may not be forked, has said."""

    def __init__(self, folder: str) -> None:
        super().__init__("miniclip")
        self.folder = folder

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        if int(os.environ.get("RANK", 0)) > 0:  # the first of several processes speaks for all
            return record.levelno >= logging.ERROR
        record.msg, record.args = printable(record.getMessage()), None  # names of files and captions may stand in it
        try:
            Path(self.folder, digest(record.msg)).touch(exist_ok=False)
        except OSError as error:
            return not isinstance(error, FileExistsError)
        return True


def say_once() -> None:
    """For a command, from now on; where an application handles logging itself, its handlers still get every note."""
    os.environ[SAID] = tempfile.mkdtemp(dir=get_temp_dir())  # which goes with the process
    say_with_parent()


def say_with_parent() -> None:
    """In a worker: what its command has said, or another worker, is not said again."""
    if SAID in os.environ and logging.lastResort is not None:
        logging.lastResort.filters = [_Once(os.environ[SAID])]
