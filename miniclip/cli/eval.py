"""The command line of eval.py. Everything that can be refused is refused before a model is loaded.

torch and all that needs it are imported inside functions, so that `eval.py --help` answers at once.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from miniclip.common.arguments import Parser, at_least, exit_code, share

_EXAMPLES = """examples:
  eval.py zeroshot  --checkpoint runs/shapes --task unseen
  eval.py zeroshot  --checkpoint runs/flickr8k --data photos/ --templates openai80 --foreign others/
  eval.py zeroshot  --checkpoint runs/a --compare runs/b open_clip:ViT-B-32:openai --data photos/ --out compared
  eval.py retrieval --checkpoint hf:openai/clip-vit-base-patch32 --data captioned/ --out clip
  eval.py probe     --checkpoint runs/flickr8k --data photos/
  eval.py matrix    --checkpoint runs/flickr8k --data captioned/ --size 512
  eval.py audit     --data captioned/ --json audit.json --png audit.png
  eval.py report    runs/flickr8k
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run eval.py with argv (the process's own if None) -> exit code: 0, or 2 with one line on stderr."""
    arguments = _parser().parse_args(argv)
    arguments.line = shlex.join(["eval.py", *(sys.argv[1:] if argv is None else argv)])
    commands = {
        "zeroshot": _zeroshot,
        "retrieval": _retrieval,
        "probe": _probe,
        "matrix": _matrix,
        "audit": _audit,
        "report": _report,
    }
    action = partial(commands[arguments.command], arguments)
    if "batch_size" not in arguments:
        return exit_code("eval.py", action)
    return exit_code("eval.py", action, f"use --batch_size {max(1, arguments.batch_size // 2)}, or --precision bf16")


def _zeroshot(arguments: argparse.Namespace) -> None:
    from miniclip.cli.evaluate import zeroshot_command

    zeroshot_command(arguments)


def _retrieval(arguments: argparse.Namespace) -> None:
    from miniclip.cli.evaluate import retrieval_command

    retrieval_command(arguments)


def _probe(arguments: argparse.Namespace) -> None:
    from miniclip.cli.evaluate import probe_command

    probe_command(arguments)


def _matrix(arguments: argparse.Namespace) -> None:
    from miniclip.cli.matrix import run

    run(arguments)


def _audit(arguments: argparse.Namespace) -> None:
    from miniclip.data.audit.command import run

    run(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from miniclip.evaluation.report.write import write_report

    markdown, page = write_report(Path(arguments.run))
    print(f"{page} is the page, {markdown} the same in Markdown")


class _Parser(Parser):
    program = "eval.py"


def _parser() -> argparse.ArgumentParser:
    from miniclip.cli.matrix import add_options
    from miniclip.data.audit import command as audit
    from miniclip.data.scenes.source import TASKS

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="eval.py", description="Evaluate trained models.", epilog=_EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    zeroshot = commands.add_parser(
        "zeroshot", help="classify pictures by prompts", epilog=_EXAMPLES, formatter_class=raw
    )
    what = zeroshot.add_mutually_exclusive_group(required=True)
    data_help = "folder with one sub-folder a class, any other labelled source, or a Hub name"
    what.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", help=data_help)
    what.add_argument("--task", choices=TASKS, help="a task over the built-in scenes")
    zeroshot.add_argument(
        "--templates",
        nargs="+",
        metavar="T",
        help="simple, simple7, openai80, a usual set such as cifar10, a file with one template a line, or templates "
        'such as "a photo of a {}."; several are averaged (default: the usual ones of the set, else simple)',
    )
    foreign_help = "pictures of none of the classes, to score how well the model tells them apart"
    zeroshot.add_argument("--foreign", metavar="SOURCE", help=foreign_help)

    retrieval = commands.add_parser(
        "retrieval", help="find captions by image and back", epilog=_EXAMPLES, formatter_class=raw
    )
    data_help = "shapes, or any source of captioned pictures that data.source takes"
    retrieval.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", required=True, help=data_help)
    caption_help = "column or columns of the captions; found by itself if left out"
    retrieval.add_argument("--caption_column", nargs="+", metavar="NAME", help=caption_help)
    retrieval.add_argument("--limit", type=at_least(1), metavar="N", help="take only the first N pictures")

    probe = commands.add_parser(
        "probe", help="fit a linear classifier on frozen embeddings", epilog=_EXAMPLES, formatter_class=raw
    )
    data_help = "labelled pictures as zeroshot takes them, with the splits train and test, or one, which is divided"
    probe.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", required=True, help=data_help)
    shots_help = "pictures a class of the few-shot probes (default: 1 2 4 8 16)"
    probe.add_argument("--shots", nargs="*", type=at_least(1), default=[1, 2, 4, 8, 16], metavar="K", help=shots_help)
    probe.add_argument("--draws", type=at_least(1), default=5, metavar="N", help="draws of each (default: 5)")
    for command in (zeroshot, probe):
        command.add_argument("--classnames", metavar="FILE", help="what the classes are called in the prompts")
        label_help = "column of the class; found by itself if left out"
        command.add_argument("--label_column", metavar="NAME", help=label_help)

    report = commands.add_parser("report", help="a run on one page", epilog=_EXAMPLES, formatter_class=raw)
    report.add_argument("run", metavar="RUN", help="directory of a run")

    matrix = commands.add_parser(
        "matrix", help="look at the N x N matrix: numbers, picture, page", epilog=_EXAMPLES, formatter_class=raw
    )
    add_options(matrix)

    about = "what is in a data set, before training: sizes, lengths, duplicates, leaks"
    audit.add_options(commands.add_parser("audit", help=about, epilog=_EXAMPLES, formatter_class=raw))

    for command in (zeroshot, retrieval, probe, matrix):
        if command is not matrix:
            model_help = "run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME"
            command.add_argument("--checkpoint", required=True, metavar="MODEL", help=model_help)
            compare_help = "other models, with the difference of each to --checkpoint on the same pictures"
            command.add_argument("--compare", nargs="+", metavar="MODEL", help=compare_help)
            out_help = "folder for results.json and pictures (default: evaluation/ in the run; none for other models)"
            command.add_argument("--out", metavar="DIR", help=out_help)
        if command is not probe:
            command.add_argument("--split", default="test", help="split of --data (default: test)")
        command.add_argument("--name", metavar="CONFIG", help="configuration of a Hub data set that has several")
        command.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub data set")
        command.add_argument(
            "--image_column", metavar="NAME", help="column of the pictures; found by itself if left out"
        )
        bad_help = "share of the pictures that may be unreadable; they are skipped, counted, named (default: 0)"
        if command is matrix:
            # None: as the run was trained, where the data is its own
            command.add_argument("--max_bad_fraction", type=share, metavar="F", help=bad_help)
            size_help = "number of pairs, N, at most 4096 (default: 256)"
            command.add_argument("--size", type=at_least(2, 4096), default=256, help=size_help)
            command.add_argument("--seed", type=at_least(0), default=0, help="which pairs are drawn (default: 0)")
        else:
            command.add_argument("--max_bad_fraction", type=share, metavar="F", default=0.0, help=bad_help)
            if command is not probe:
                command.add_argument("--size", type=at_least(1), default=1000, help="number of scenes (default: 1000)")
            seed_help = "seed of the draws (default: 0)" if command is probe else "seed of the scenes (default: 0)"
            command.add_argument("--seed", type=at_least(0), default=0, help=seed_help)
        command.add_argument(
            "--batch_size", type=at_least(1), default=256, help="items encoded at a time (default: 256)"
        )
        command.add_argument(
            "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: what is fastest here"
        )
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    return parser
