"""The command line of train.py: errors and signals become one line that says what to do."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from miniclip.common.arguments import advised
from miniclip.common.printing import printable
from miniclip.common.stopping import CODES, INTERRUPTED, Stopped, resume_command
from miniclip.config import ConfigError, load_config, smaller_training


def train_main(arguments: list[str] | None = None, program: str = "train.py") -> int:
    """Returns 0, or 2 after a line on standard error about what cannot be run as asked. program: what it begins with.

    130 or 143, after a line on what was saved and how to go on, if Ctrl-C or a scheduler's signal ended the run.
    MINICLIP_DEBUG=1 in the environment shows the whole traceback instead of a line.
    """
    try:
        return _train(arguments, program)
    except KeyboardInterrupt as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        stop = error if isinstance(error, Stopped) else Stopped(INTERRUPTED, "before the first step", None)
    if arguments is None:
        # torchrun ends the other processes as soon as one has ended, and each shall end with its code
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("RANK", 0)) == 0:
        advice = f"; go on with: {resume_command(arguments)}" if stop.checkpoint else ""
        print(f"{program}: {printable(str(stop))}{advice}", file=sys.stderr)
    return stop.code


def _train(arguments: list[str] | None, program: str) -> int:
    try:
        config = load_config(arguments)
        # torch takes seconds to import: --help and a wrong key do not wait for it
        from miniclip.data.images import BadImage
        from miniclip.training.loop import NonFiniteLoss, train
    except ConfigError as error:
        return _fail(program, error)
    smaller = smaller_training(config, int(os.environ.get("WORLD_SIZE", 1)))
    try:
        with advised(f"use {', '.join(smaller)}, or in an evaluation a smaller eval.batch_size"):
            train(config)
    except (ConfigError, BadImage, NonFiniteLoss, OSError, ValueError, MemoryError) as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        saved = any(Path(config.run.dir).glob("checkpoints/step_*[0-9]"))
        if isinstance(error, MemoryError) and saved and len(smaller) > 1:
            return _fail(program, error, f"; go on with: {resume_command(arguments)} {smaller[0]}")
        return _fail(program, error)
    return 0


def _fail(program: str, error: Exception, advice: str = "") -> int:
    print(f"{program}: error: {printable(str(error))}{advice}", file=sys.stderr)
    return 2
