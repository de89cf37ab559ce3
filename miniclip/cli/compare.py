"""miniclip compare: trainings side by side, with what each came to on one page."""

from __future__ import annotations

import shlex
import sys
from itertools import pairwise
from pathlib import Path
from shutil import which

from miniclip.common.arguments import check_range


def compare(
    *,
    out: str,
    rest: list[str],
    vary: list[str] | None = None,
    seeds: str = "3",
    jobs: int = 1,
    steps: int | None = None,
    samples: int | None = None,
    seconds: float | None = None,
    tune: str | None = None,
    metric: str | None = None,
    launch: str | None = None,
    list: bool = False,
) -> None:
    """Train every combination of what is varied, with several seeds each, and compare what they come to.

    Takes the options of miniclip train as well, --config FILE and --section.key VALUE, for all of the runs. The same
    command again goes on with what was cut off, repeats nothing that is finished, and may add variants and seeds.

    Args:
        out: folder of the runs, and of the page and the tables on them
        vary: KEY=VALUE,VALUE to try all values of, e.g. loss.name=softmax,sigmoid; once more for another key. config=
            lays files over that of --config
        seeds: how many, from run.seed on, or which, e.g. 0,4,7
        jobs: trainings at once, which share the cores, and the GPUs
        steps: of each run, in place of train.max_steps
        samples: of each run, in place of steps; with several batch sizes, say
        seconds: of training of each run, in place of steps; short trials say how many steps that is
        tune: KEY or KEY=VALUE,VALUE, e.g. optim.lr, whose best value for each variant is looked for before the runs
        metric: figure of the validation split that tells the best, e.g. unseen/top1 (default: eval.best, or the first
            task's)
        launch: what starts each training, e.g. "accelerate launch --num_processes 2"
        list: print the commands of the trainings, one a line, in place of running them
    """
    check_range("--jobs", jobs, 1)
    start = shlex.split(launch or "")
    if start and which(start[0]) is None:
        raise FileNotFoundError(f"--launch {launch}: there is no program {start[0]}")
    from miniclip.common.console import open_console
    from miniclip.common.printing import printable
    from miniclip.compare.comparison import Comparison, Request
    from miniclip.compare.runner import Machine, devices

    files = [after for word, after in pairwise("=".join(rest).split("=")) if word == "--config"]
    command = shlex.join(["miniclip", "compare", *sys.argv[2:]])
    asked = Request(rest, Path(out), vary or [], seeds, steps, samples, seconds, tune, metric, " ".join(files), command)
    machine = Machine(open_console(), jobs, start)
    comparison = Comparison(asked, machine)
    if list:
        for words in comparison.commands():
            print(shlex.join(words))
        return
    machine.devices = devices() if jobs > 1 else []
    try:
        comparison.run()
    except KeyboardInterrupt:
        print(f"miniclip compare: go on with: {printable(command)}", file=sys.stderr)
        raise
