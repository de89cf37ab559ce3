"""Before training, what is in this data? python -m miniclip.data.audit --data SOURCE

One pass over the pictures and captions of every split: sizes, caption lengths, what stands there twice, leaks from the
training split into the others, and what equal captions in one batch cost. Tables on the terminal, JSON and a picture.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from miniclip.common.arguments import Parser, at_least, check_output, exit_code

if TYPE_CHECKING:
    from miniclip.config import DataConfig
    from miniclip.data.audit.report import Audit
    from miniclip.data.captioned import PairSource

_PROGRAM = "python -m miniclip.data.audit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on stderr."""
    parser = _Parser(prog=_PROGRAM, description="Before training: what is in this data?", allow_abbrev=False)
    add_options(parser)
    given = parser.parse_args(arguments)
    return exit_code("audit", lambda: run(given))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the audit, here and in eval.py."""
    add = parser.add_argument
    data_help = "what data.source takes; several sources are one data set"
    add("--data", "--dataset", dest="data", nargs="+", required=True, metavar="SOURCE", help=data_help)
    add("--name", metavar="CONFIG", help="configuration of a Hub data set that has several")
    add("--revision", metavar="REV", help="branch, tag or commit of a Hub data set")
    add("--image_column", metavar="NAME", help="column of the pictures; found by itself if left out")
    caption_help = "column or columns of the captions; found by itself if left out"
    add("--caption_column", nargs="+", metavar="NAME", help=caption_help)
    for role in ("train", "validation", "test"):
        add(f"--{role}_split", metavar="NAME", help=f"what the source calls its {role} split (default: {role})")
    context_help = "longest caption the text encoder takes, in tokens (default: 77)"
    add("--context_length", type=at_least(3), default=77, metavar="L", help=context_help)
    add("--batch_size", type=at_least(2), default=256, metavar="N", help="pairs a training step (default: 256)")
    size_help = "side that the image encoder takes; smaller pictures are counted (default: 224)"
    add("--image_size", type=at_least(1), default=224, metavar="S", help=size_help)
    add("--limit", type=at_least(1), metavar="P", help="look at the first P pictures of each split only")
    add("--json", metavar="FILE", help="write all that was found")
    add("--png", metavar="FILE", help="draw it, with the worst duplicates")


def run(arguments: argparse.Namespace) -> None:
    """The audit with parsed arguments. Raises ValueError or OSError for what cannot be done as asked."""
    for option in ("json", "png"):
        if getattr(arguments, option) is not None:
            check_output(f"--{option}", getattr(arguments, option))

    from miniclip.common.console import write_json
    from miniclip.data.audit.report import print_audit, to_json

    audit, sources = examine(arguments, progress=sys.stderr.isatty())
    if arguments.json:
        write_json(arguments.json, to_json(audit))
    if arguments.png:
        from miniclip.data.audit.picture import write_picture

        write_picture(audit, sources, arguments.png)
    print_audit(audit)


def examine(arguments: argparse.Namespace, progress: bool = False) -> tuple[Audit, dict[str, PairSource]]:
    """What is in the data, and the splits that could be opened. Raises ValueError or OSError if none could."""
    from miniclip.config import DataConfig
    from miniclip.data.audit.collisions import expected_collisions
    from miniclip.data.audit.figures import figures, look
    from miniclip.data.audit.report import Audit
    from miniclip.data.audit.shared import compare, readable_parts

    columns = arguments.caption_column
    given = {f"{role}_split": getattr(arguments, f"{role}_split") for role in ("train", "validation", "test")}
    config = DataConfig(
        source=arguments.data[0] if len(arguments.data) == 1 else arguments.data,
        name=arguments.name,
        revision=arguments.revision,
        image_column=arguments.image_column,
        caption_column=columns[0] if columns and len(columns) == 1 else columns,
        batch_size=arguments.batch_size,
        max_bad_fraction=1.0,
        **{option: name for option, name in given.items() if name is not None},
    )
    sources, notes = _open(config, arguments.image_size, [option for option, name in given.items() if name is not None])
    splits = [
        look(split, source, arguments.context_length, arguments.limit, progress) for split, source in sources.items()
    ]
    shared, complete = compare(splits)
    collisions = None
    for looked in splits:
        if looked.split == "train" and len(looked) - len(looked.bad) > 1:
            collisions = expected_collisions(*readable_parts(looked), batch_size=arguments.batch_size)
    audit = Audit(
        data=arguments.data,
        name=arguments.name,
        revision=arguments.revision,
        limit=arguments.limit,
        image_size=arguments.image_size,
        context_length=arguments.context_length,
        batch_size=arguments.batch_size,
        splits=[figures(looked, arguments.image_size, arguments.context_length) for looked in splits],
        shared=shared,
        all_near_pairs=complete,
        collisions=collisions,
        notes=notes,
    )
    return audit, sources


def _open(config: DataConfig, image_size: int, asked: Sequence[str]) -> tuple[dict[str, PairSource], list[str]]:
    """The splits there are, and what was said while they were opened.

    Raises the error of a split that was asked for by name, or of the first one if none can be opened.
    """
    from miniclip.data.captioned import open_source

    sources: dict[str, PairSource] = {}
    errors: list[Exception] = []
    notes = _Notes()
    logger = logging.getLogger("miniclip.data")
    logger.addHandler(notes)
    try:
        for split in ("train", "validation", "test"):
            try:
                source = open_source(config, split, image_size=image_size)
            except (ValueError, OSError) as error:
                if f"{split}_split" in asked:
                    raise
                errors.append(error)
                notes.texts.append(f"{split}: {error}")
                continue
            if len(source):
                sources[split] = source
    finally:
        logger.removeHandler(notes)
    if errors and not sources:
        raise errors[0]
    if not sources:
        raise ValueError(f"{', '.join(config.sources)}: no split holds a picture")
    return sources, list(dict.fromkeys(notes.texts))


class _Notes(logging.Handler):
    """Warnings of the readers, such as rows without a caption: part of the report instead of the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class _Parser(Parser):
    program = "audit"
