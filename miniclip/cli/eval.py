"""The command line of eval.py: typed functions, whose parameters are the options and whose docstrings are the help.

Everything that can be refused is refused before a model is loaded. torch and all that needs it are imported inside
functions, so that `eval.py --help` answers at once.
"""

from __future__ import annotations

import re
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from miniclip.cli.classify import classify
from miniclip.cli.dream import dream
from miniclip.cli.evaluate import evaluate
from miniclip.cli.interpolate import interpolate
from miniclip.cli.matrix import matrix
from miniclip.cli.results import locked
from miniclip.common.arguments import add_options, as_parameters, at_home, data_words, exit_code, refusal, refused
from miniclip.common.printing import did_you_mean
from miniclip.data.audit.command import audit
from miniclip.evaluation.tasks import TASKS

_EXAMPLES = """examples:
  eval.py zeroshot  --checkpoint runs/shapes --task unseen
  eval.py zeroshot  --checkpoint runs/flickr8k --data photos/ --templates openai80 --foreign others/
  eval.py zeroshot  --checkpoint runs/a --compare runs/b open_clip:ViT-B-32:openai --data photos/ --out compared
  eval.py retrieval --checkpoint hf:openai/clip-vit-base-patch32 --data captioned/ --out clip
  eval.py probe     --checkpoint runs/flickr8k --data photos/
  eval.py classify  --checkpoint runs/flickr8k --data unlabelled/ --classnames names.txt --out classified
  eval.py matrix    --checkpoint runs/flickr8k --data captioned/ --size 512
  eval.py audit     --data captioned/ --json audit.json --png audit.png
  eval.py report    runs/flickr8k
  eval.py dream     runs/shapes "a red star" "a blue ring" --out dream.png
  eval.py interpolate --from runs/a --to runs/b --task retrieval:photos/ --keep FOLDER --out between
"""


def report(run: str) -> None:
    """A run on one page.

    Args:
        run: directory of a run
    """
    from miniclip.evaluation.report.write import write_report

    # of two at once the second waits, for they write the same files
    with locked(Path(run)) if Path(run).is_dir() else nullcontext():
        markdown, page = write_report(Path(run))
    print(f"{page} is the page, {markdown} the same in Markdown")


_Command = Callable[..., int | None]
_COMMANDS: dict[str, _Command] = {
    "classify": classify,
    "interpolate": interpolate,
    "matrix": matrix,
    "audit": audit,
    "report": report,
    "dream": dream,
}


def main(argv: Sequence[str] | None = None, program: str = "eval.py") -> int:
    """Run with argv (the process's own if None) -> exit code: 0, or 2 with one line on stderr.

    program: what the user calls it.
    """
    line, words = list(sys.argv[1:] if argv is None else argv), data_words(argv)
    typed = TASKS | _COMMANDS
    command = next((word for word in words if word in typed), "")
    if not command and not {"-h", "--help"} & set(words):
        first = "" if not words or words[0].startswith("-") else words[0]
        meant = f"{first} is no command{did_you_mean(first, typed)}" if first else "name a command"
        return refused(program, f"{meant}; choose from {', '.join(typed)}; see {program} --help")
    if command and words[0] != command and not {"-h", "--help"} & set(words):
        return refused(program, f"the command comes first: {program} {command} {words[0]} …; see {program} --help")
    try:
        options = at_home(vars(_parser(program).parse_args(words)[command]))
        names = set(options)
        options = as_parameters(options)
        action: Callable[[], int | None] = partial(_COMMANDS.get(command, evaluate), **options)
        if command in TASKS:
            own = {field.name: options.pop(field.name) for field in fields(TASKS[command]) if field.init}
            action = partial(evaluate, TASKS[command](**own), shlex.join([*program.split(), *line]), **options)
    except (ArgumentError, ValueError) as error:
        said = refusal(error, typed[command], *[evaluate] * (command in TASKS))
        said = re.sub(rf"\b{command}\.(?=\w)", "" if command == "report" else "--", said)
        return refused(program, f"{said}; see {program} {command} --help")
    if "batch_size" not in options or command == "audit":
        return exit_code(program, action, options=names)
    less_memory = f"use --batch_size {max(1, options['batch_size'] // 2)}, or --precision bf16"
    return exit_code(program, action, less_memory, names)


def _parser(program: str) -> ArgumentParser:
    examples = _EXAMPLES.replace("eval.py", program)
    settings: dict[str, Any] = {"exit_on_error": False, "default_env": False, "allow_abbrev": True}
    settings |= {"epilog": examples, "formatter_class": RawDescriptionHelpFormatter}
    parser = ArgumentParser(prog=program, description="Evaluate trained models.", **settings)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, typed in (TASKS | _COMMANDS).items():
        about = (typed.__doc__ or "").split("\n")[0]
        options = ArgumentParser(description=about, **settings)
        add_options(options, typed, positional=("run", "model", "captions"))
        if name in TASKS:
            add_options(options, evaluate, skip=("task", "line"))
        commands.add_subcommand(name, options, help=about)
        options.prog = f"{program} {name}"
    return parser
