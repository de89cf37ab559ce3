"""The command line of train.py: errors and signals become one line that says what to do."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.cli.ending import ending
from miniclip.common.arguments import advised, refused
from miniclip.common.notes import say_once
from miniclip.common.output import unfailing_output
from miniclip.common.printing import printable
from miniclip.common.stopping import CODES, INTERRUPTED, REQUEUE, Passing, Stopped, passes, resume_command
from miniclip.config import Config, ConfigError, load_config, smaller_training

if TYPE_CHECKING:
    from collections.abc import Callable

    from miniclip.models import DualEncoder
    from miniclip.models.preprocess import Preprocess
    from miniclip.models.start import Start
    from miniclip.training.best import Choice
    from miniclip.training.loop import Hooks

log = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any]:
    """Train as configured, in every process; the main one gets what results.json holds, the others an empty dict."""
    from miniclip.training.run import train

    return train(config, open_hooks)


def open_hooks(config: Config, start: Start) -> Hooks:
    """Validation, the matrix of a fixed batch and the final tables, with all their data opened."""
    from miniclip.common.processes import place
    from miniclip.evaluation import suite
    from miniclip.evaluation.guard import Guard
    from miniclip.evaluation.result import lower_is_better
    from miniclip.inspection.history import MatrixLog
    from miniclip.training.best import Choice
    from miniclip.training.doubts import of_choice
    from miniclip.training.loop import Hooks

    test = suite.open_suite(config, "test", start.tokenizer)
    validation = suite.open_suite(config, "validation", start.tokenizer) if config.eval.every else {}
    guard = Guard(config, start.tokenizer)
    task, _, figure = (config.eval.best or "").rpartition("/")
    for doubt in of_choice(config.eval.best, validation[task].data[-1]) if task else ():
        log.warning("%s", doubt)
    matrices = (
        MatrixLog(config, start.preprocess, start.tokenizer) if place()[0] == 0 and config.log.matrix_every else None
    )

    def evaluate(
        step: int, model: DualEncoder, between: Callable[[], object]
    ) -> tuple[dict[str, float], Choice | None]:
        guarded = guard.look(step, model, start.preprocess, between)
        if not step:
            return guarded, None
        results = suite.evaluate(config, validation, model, start.preprocess, between=between)
        found = results.get(task)
        choice = None if found is None else Choice(found[figure], found.fingerprint, lower_is_better(figure))
        return suite.scalars(results) | guarded, choice

    def keep_matrix(step: int, model: DualEncoder) -> None:
        assert matrices is not None
        matrices.write(step, model)

    def finish(model: DualEncoder, preprocess: Preprocess, training: dict[str, Any]) -> dict[str, Any]:
        kept = guard.end(model, preprocess)
        return suite.final_evaluation(config, test, model, preprocess, Path(config.run.dir), training, kept)

    return Hooks(evaluate, keep_matrix, finish)


@unfailing_output()
def train_main(arguments: list[str] | None = None, program: str = "train.py") -> int:
    """0; 2 after a line about what cannot be run as asked; 75 (REQUEUE) after what passes by itself, and from SIGUSR1;
    130 and 143 from Ctrl-C and SIGTERM. All but 0 and 2 say how to go on.

    MINICLIP_DEBUG=1 in the environment shows the whole traceback instead of a line.
    """
    go_on = ""
    try:
        config = load_config(arguments)
        go_on = f"; go on with: {resume_command(arguments, 'auto' if config.run.resume == 'auto' else 'true')}"
        return _train(config, arguments, program, go_on)
    except ConfigError as error:
        return refused(program, str(error))
    except KeyboardInterrupt as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        stop = error if isinstance(error, Stopped) else Stopped(INTERRUPTED, "before the first step", None)
    if arguments is None:
        # torchrun ends the other processes as soon as one has ended, and each shall end with its code
        for number in CODES:
            signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{program}: {printable(str(stop))}{go_on if stop.checkpoint else ''}", file=sys.stderr)
    return stop.code


def _train(config: Config, arguments: list[str] | None, program: str, go_on: str) -> int:
    say_once()
    # torch takes seconds to import: --help and a wrong key do not wait for it
    from miniclip.training.loop import NonFiniteLoss

    smaller = smaller_training(config, int(os.environ.get("WORLD_SIZE", 1)))
    try:
        with advised(f"use {', '.join(smaller)}, or in an evaluation a smaller eval.batch_size"):
            if run(config):  # the main process
                print(ending(config, arguments, program))
    except (NonFiniteLoss, Passing, OSError, ValueError, MemoryError) as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        if passes(error):
            refused(program, str(error), go_on)
            return REQUEUE
        saved = any(Path(config.run.dir).glob("checkpoints/step_*[0-9]"))
        goes_on = isinstance(error, MemoryError) and saved and len(smaller) > 1
        return refused(program, str(error), f"{go_on} {smaller[0]}" if goes_on else "")
    return 0
