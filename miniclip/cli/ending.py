"""What a finished run says last: what to open, and three commands that go on from it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from miniclip.common.printing import printable
from miniclip.config import Config, DataConfig


def ending(config: Config, arguments: Sequence[str] | None, program: str) -> str:
    """arguments, program: of the training, as train_main has them."""
    found = [path for kind in ("html", "png") for path in sorted(Path(config.run.dir).glob(f"*.{kind}"))]
    more = f" and {len(found) - 3} more" * (len(found) > 3)
    shown = [f"open {', '.join(printable(str(path)) for path in found[:3])}{more}"] * bool(found)
    commands = (f"  {shlex.join(words)}" for words in next_commands(config, arguments, program))
    return "\n".join([*shown, f"next: a page on the run; its matrix; {_third(config)[1]}", *commands])


def next_commands(config: Config, arguments: Sequence[str] | None, program: str) -> list[list[str]]:
    """The words of each, with what started this one."""
    train, evaluate = _started(arguments, program)
    run_dir, (third, _) = config.run.dir, _third(config)
    by = train if third[0] == "--config" else evaluate
    return [[*evaluate, "report", run_dir], [*evaluate, "matrix", "--checkpoint", run_dir], [*by, *third]]


def _third(config: Config) -> tuple[list[str], str]:
    """Words of the third command, and what it is for."""
    data, run_dir, train = config.data, config.run.dir, config.train
    if data.source == "shapes":
        words = ["zeroshot", "--checkpoint", run_dir, "--task", "unseen", "--templates", "simple7"]
        return words, "the combinations never seen, by other templates"
    if data.streaming:  # reads in order, and never all
        assert train.max_steps is not None  # a stream asks for them
        resume = "auto" if config.run.resume == "auto" else "true"
        words = ["--config", str(Path(run_dir) / "config.yaml"), "--run.overwrite", "false", "--run.resume", resume]
        return [*words, "--train.max_steps", str(2 * train.max_steps)], "the same training, twice as long"
    words = ["retrieval", "--checkpoint", run_dir, "--data", data.sources[0], "--split", data.train_split]
    columns = [data.caption_column] if isinstance(data.caption_column, str) else data.caption_column
    for option in ("name", "revision", "image_column", "max_bad_fraction"):
        if (value := getattr(data, option)) != getattr(DataConfig(), option):
            words += [f"--{option}", str(value)]
    words += ["--caption_column", *columns] if columns else []
    return [*words, "--limit", "1000"], "recall of what it was trained on"


def _started(arguments: Sequence[str] | None, program: str) -> tuple[list[str], list[str]]:
    """The words before the arguments of a training, and of an evaluation, as this training was started."""
    if program != "train.py":  # "/path/of/miniclip train", see main.py
        miniclip = sys.argv[0].removesuffix(" train") if arguments is None else "miniclip"
        return [miniclip, "train"], [miniclip, "eval"]
    python, script = (sys.orig_argv[0], Path(sys.argv[0])) if arguments is None else ("python", Path("train.py"))
    return [python, str(script)], [python, str(script.with_name("eval.py"))]
