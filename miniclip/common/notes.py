"""Notes on the data, which the loggers of miniclip give: each once, whatever opens the same source again."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from miniclip.common.fingerprint import digest

SAID = "MINICLIP_SAID"  # variable with the folder that holds an empty file for each note that was said


class _Once(logging.Filter):
    """Passes what neither this process nor one of its workers, which may not be forked, has said."""

    def __init__(self, folder: str | None) -> None:
        super().__init__("miniclip")
        self.made = None if folder else tempfile.TemporaryDirectory(prefix="miniclip-", ignore_cleanup_errors=True)
        self.folder = folder or str(self.made and self.made.name)

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        if int(os.environ.get("RANK", 0)) > 0:  # the first of several processes speaks for all
            return record.levelno >= logging.ERROR
        try:
            Path(self.folder, digest(record.getMessage())).touch(exist_ok=False)
        except OSError as error:
            return not isinstance(error, FileExistsError)
        return True


def say_once(folder: str | None = None) -> None:
    """For a command, from now on; where an application handles logging itself, its handlers still get every note.

    folder: of the process that this one works for, as SAID tells it.
    """
    if logging.lastResort is not None:
        once = _Once(folder)
        logging.lastResort.filters = [once]
        os.environ[SAID] = once.folder
