"""The command line of eval.py. Everything that can be refused is refused before a model is loaded.

torch and all that needs it are imported inside functions, so that `eval.py --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from miniclip.arguments import Parser, at_least, check_output, exit_code, share
from miniclip.evaluation.options import device_of, image_size_of, load_model, pairs_of

if TYPE_CHECKING:
    from miniclip.data.sources import LabelledSource, PairSource

Source = TypeVar("Source")

_EXAMPLES = """examples:
  eval.py zeroshot  --checkpoint runs/shapes --task unseen
  eval.py zeroshot  --checkpoint runs/flickr8k --data photos/ --split test --templates openai80 --json result.json
  eval.py zeroshot  --checkpoint runs/a runs/b --data photos/ --templates "a photo of a {}." "a drawing of a {}."
  eval.py retrieval --checkpoint runs/shapes --data shapes --examples examples.png
  eval.py matrix    --checkpoint runs/flickr8k --data photos/ --size 512
  eval.py audit     --data photos/ --json audit.json --png audit.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run eval.py with argv (the process's own if None) -> exit code: 0, or 2 with one line on stderr."""
    arguments = _parser().parse_args(argv)
    commands = {"zeroshot": _zero_shot, "retrieval": _retrieval, "matrix": _matrix, "audit": _audit}
    return exit_code("eval.py", lambda: commands[arguments.command](arguments))


def _zero_shot(arguments: argparse.Namespace) -> None:
    data_only = ("classnames", "label_column", "image_column", "name")
    stray = [f"--{option}" for option in data_only if arguments.task and getattr(arguments, option) is not None]
    if stray:
        raise ValueError(f"{', '.join(stray)} belongs to --data; a built-in task has its own classes")
    if arguments.task == "relation" and (arguments.templates or arguments.confusion):
        raise ValueError("--task relation brings two sentences for each picture; leave --templates and --confusion out")
    _check_outputs(arguments, "confusion")

    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.evaluation.pictures import confusion_png
    from miniclip.evaluation.tables import print_zero_shot
    from miniclip.evaluation.zeroshot import SIMPLE_TEMPLATES, resolve_templates, zero_shot

    templates: tuple[str, ...] | None = None if arguments.task else SIMPLE_TEMPLATES
    if arguments.templates is not None:
        given = arguments.templates
        templates = resolve_templates(given[0] if len(given) == 1 else given)
    options = EncodeOptions(arguments.batch_size, arguments.precision, progress=sys.stderr.isatty())
    device = device_of(arguments.device)
    sources = _open_for(arguments.checkpoint, lambda image_size: _labelled(arguments, image_size))
    task = arguments.task or arguments.data
    results = {}
    for directory, source in sources.items():
        model, preprocess, tokenizer = load_model(directory, device)
        results[directory] = zero_shot(model, preprocess, tokenizer, source, templates, task=task, options=options)
    _save_json(arguments, results, templates)
    if arguments.confusion:
        (result,) = results.values()
        assert result.confusion is not None  # relation alone has none
        title = f"{_short(task)}, top-1 {100 * result.top1:.1f}%"
        confusion_png(result.confusion, result.classes, arguments.confusion, title)
    print_zero_shot(results, f"zero-shot: {task}")


def _retrieval(arguments: argparse.Namespace) -> None:
    _check_outputs(arguments, "examples")

    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.evaluation.pictures import write_examples
    from miniclip.evaluation.tables import print_retrieval
    from miniclip.evaluation.retrieval import count_retrieval, encode_pairs

    options = EncodeOptions(arguments.batch_size, arguments.precision, progress=sys.stderr.isatty())
    device = device_of(arguments.device)
    sources = _open_for(arguments.checkpoint, lambda image_size: _readable_pairs(arguments, image_size))
    results = {}
    for directory, source in sources.items():
        model, preprocess, tokenizer = load_model(directory, device)
        pairs = encode_pairs(model, preprocess, tokenizer, source, options)
        results[directory] = count_retrieval(pairs)
        if arguments.examples:
            title = f"{_short(arguments.data)}: the best of {len(pairs.texts)} captions"
            write_examples(source, pairs, arguments.examples, title=title)
    _save_json(arguments, results, None)
    print_retrieval(results, f"retrieval: {arguments.data}, {arguments.split}")


def _readable_pairs(arguments: argparse.Namespace, image_size: int) -> PairSource:
    from miniclip.data.subset import readable

    source = pairs_of(arguments, image_size, arguments.limit)
    return readable(source, arguments.max_bad_fraction) if arguments.max_bad_fraction else source


def _matrix(arguments: argparse.Namespace) -> None:
    from miniclip.inspection.command import run

    run(arguments)


def _audit(arguments: argparse.Namespace) -> None:
    from miniclip.data.audit import run

    run(arguments)


def _short(source: str) -> str:
    return Path(source).name or source


def _save_json(arguments: argparse.Namespace, results: Mapping[str, Any], templates: Sequence[str] | None) -> None:
    from miniclip.console import write_json
    from miniclip.evaluation.tables import to_json

    if arguments.json:
        head = {name: getattr(arguments, name) for name in ("command", "data", "split", "precision")}
        rows = [{"checkpoint": directory, **to_json(result)} for directory, result in results.items()]
        write_json(arguments.json, {**head, "templates": templates, "results": rows})


def _labelled(arguments: argparse.Namespace, image_size: int) -> LabelledSource:
    if arguments.task:
        from miniclip.data.shapes import scene_task

        return scene_task(arguments.task, arguments.size, arguments.seed, image_size)
    from miniclip.data.labelled import open_labelled
    from miniclip.data.subset import readable

    source = open_labelled(
        arguments.data,
        split=arguments.split,
        name=arguments.name,
        revision=arguments.revision,
        classnames_file=arguments.classnames,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        image_size=image_size,
    )
    return readable(source, arguments.max_bad_fraction) if arguments.max_bad_fraction else source


def _open_for(directories: Sequence[str], open_at: Callable[[int], Source]) -> dict[str, Source]:
    """Checkpoint -> the data, opened once for each picture size the checkpoints take."""
    sizes = {directory: image_size_of(directory) for directory in directories}
    sources = {size: open_at(size) for size in set(sizes.values())}
    return {directory: sources[size] for directory, size in sizes.items()}


def _check_outputs(arguments: argparse.Namespace, picture: str) -> None:
    if len(set(arguments.checkpoint)) < len(arguments.checkpoint):
        raise ValueError("--checkpoint names the same directory twice")
    if getattr(arguments, picture) and len(arguments.checkpoint) > 1:
        raise ValueError(f"--{picture} draws one model; give one --checkpoint, not {len(arguments.checkpoint)}")
    for option in ("json", picture):
        if getattr(arguments, option) is not None:
            check_output(f"--{option}", getattr(arguments, option))


class _Parser(Parser):
    program = "eval.py"


def _parser() -> argparse.ArgumentParser:
    from miniclip.data import audit
    from miniclip.data.shapes import TASKS
    from miniclip.inspection.command import add_options

    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="eval.py", description="Evaluate trained models.", epilog=_EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="zeroshot|retrieval|matrix|audit")

    zeroshot = commands.add_parser(
        "zeroshot", help="classify pictures by prompts", epilog=_EXAMPLES, formatter_class=raw
    )
    what = zeroshot.add_mutually_exclusive_group(required=True)
    data_help = "folder with one sub-folder a class, any other labelled source, or a Hub name"
    what.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", help=data_help)
    what.add_argument("--task", choices=TASKS, help="a task over the built-in scenes")
    zeroshot.add_argument("--classnames", metavar="FILE", help="what the classes are called in the prompts")
    zeroshot.add_argument("--label_column", metavar="NAME", help="column of the class; found by itself if left out")
    zeroshot.add_argument(
        "--templates",
        nargs="+",
        metavar="T",
        help='simple, openai80, a file with one template a line, or templates such as "a photo of a {}."; '
        "several are averaged (default: the task's own, else simple)",
    )
    zeroshot.add_argument("--confusion", metavar="FILE", help="draw the confusion matrix as PNG")

    retrieval = commands.add_parser(
        "retrieval", help="find captions by image and back", epilog=_EXAMPLES, formatter_class=raw
    )
    data_help = "shapes, or any source of captioned pictures that data.source takes"
    retrieval.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", required=True, help=data_help)
    caption_help = "column or columns of the captions; found by itself if left out"
    retrieval.add_argument("--caption_column", nargs="+", metavar="NAME", help=caption_help)
    retrieval.add_argument("--limit", type=at_least(1), metavar="N", help="take only the first N pictures")
    retrieval.add_argument("--examples", metavar="FILE", help="draw example images with their best captions as PNG")

    matrix = commands.add_parser(
        "matrix", help="look at the N x N matrix: numbers, picture, page", epilog=_EXAMPLES, formatter_class=raw
    )
    add_options(matrix)

    about = "what is in a data set, before training: sizes, lengths, duplicates, leaks"
    audit.add_options(commands.add_parser("audit", help=about, epilog=_EXAMPLES, formatter_class=raw))

    for command in (zeroshot, retrieval, matrix):
        if command is not matrix:
            command.add_argument(
                "--checkpoint", nargs="+", required=True, metavar="DIR", help="run or model directories"
            )
            command.add_argument("--json", metavar="FILE", help="write the results as JSON")
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
            command.add_argument("--size", type=at_least(1), default=1000, help="number of scenes (default: 1000)")
            command.add_argument("--seed", type=at_least(0), default=0, help="seed of the scenes (default: 0)")
        command.add_argument(
            "--batch_size", type=at_least(1), default=256, help="items encoded at a time (default: 256)"
        )
        command.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    return parser
