"""Before training, what is in this data? python -m miniclip.data.audit --data SOURCE"""

from __future__ import annotations

import logging
import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from logging.handlers import BufferingHandler
from typing import TYPE_CHECKING, Any

from miniclip.common.arguments import (
    add_options,
    at_home,
    check_output,
    check_range,
    data_words,
    exit_code,
    refusal,
    refused,
)

if TYPE_CHECKING:
    from miniclip.config import DataConfig
    from miniclip.data.audit.figures import Look
    from miniclip.data.captioned import PairSource

_JSON, _PNG = '"version": 1,\n  "data": [', "miniclip audit"  # what marks the files


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if training would refuse the data, or 2 after one line on stderr."""
    from jsonargparse import ArgumentError, ArgumentParser

    program, description = "python -m miniclip.data.audit", "Before training: what is in this data?"
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    add_options(parser, audit)
    try:
        options = at_home(vars(parser.parse_args(data_words(arguments))))
    except ArgumentError as error:
        return refused("audit", f"{refusal(error, audit)}; see {program} --help")
    return exit_code("audit", lambda: audit(**options), options=options)


def audit(
    data: list[str],
    *,
    name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    caption_column: list[str] | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    context_length: int = 77,
    batch_size: int = 256,
    image_size: int = 224,
    limit: int | None = None,
    json: str | None = None,
    png: str | None = None,
) -> int:
    """What is in a data set, before training: sizes, lengths, duplicates, leaks, what equal captions cost a batch.

    Returns 1 if training would refuse the data, else 0. Raises ValueError or OSError for what cannot be done as asked.

    Args:
        data: what data.source takes; several sources are one data set
        name: configuration of a Hub data set that has several
        revision: branch, tag or commit of a Hub data set
        image_column: column of the images; found by itself if left out
        caption_column: column or columns of the captions; found by itself if left out
        train_split: what the source calls its train split (default: train)
        validation_split: what the source calls its validation split (default: validation)
        test_split: what the source calls its test split (default: test)
        context_length: longest caption the text encoder takes, in tokens
        batch_size: pairs a training step
        image_size: side that the image encoder takes; smaller images are counted
        limit: look at the first so many images of each split only
        json: write all that was found
        png: draw it, with the worst duplicates
    """
    check_range("--context_length", context_length, 3)
    check_range("--batch_size", batch_size, 2)
    check_range("--image_size", image_size, 1)
    check_range("--limit", limit, 1)
    for option, target, mark in (("--json", json, _JSON), ("--png", png, _PNG)):
        if target is not None:
            check_output(option, target, mark)

    from miniclip.common.console import write_json
    from miniclip.config import DataConfig
    from miniclip.data.audit.collisions import expected_collisions
    from miniclip.data.audit.figures import figures, look
    from miniclip.data.audit.report import advice, print_audit
    from miniclip.data.audit.shared import compare, readable
    from miniclip.data.subset import Subset

    words = {"train_split": train_split, "validation_split": validation_split, "test_split": test_split}
    asked: dict[str, Any] = {role: word for role, word in words.items() if word is not None}
    config = DataConfig(
        source=data[0] if len(data) == 1 else data,
        name=name,
        revision=revision,
        image_column=image_column,
        caption_column=caption_column[0] if caption_column and len(caption_column) == 1 else caption_column,
        batch_size=batch_size,
        **asked,
    )
    sources, notes, refused = _open(config, image_size, asked)
    if limit is not None:
        sources = {split: Subset(source, range(min(limit, len(source)))) for split, source in sources.items()}
    looks = [look(split, source, context_length, progress=sys.stderr.isatty()) for split, source in sources.items()]
    refused += _refused(config, looks)
    shared, complete = compare(looks)
    pairs = readable(looks[0]) if "train" in sources else None
    found: dict[str, Any] = {
        "version": 1,
        "data": data,
        "name": name,
        "revision": revision,
        "limit": limit,
        "image_size": image_size,
        "context_length": context_length,
        "batch_size": batch_size,
        # as far as the source has them (or training would set them aside)
        "splits": [figures(one, image_size, context_length) for one in looks],
        "shared": shared,  # every split with itself and with those after it
        "all_near_pairs": complete,  # false: the search stopped early, and their numbers are the least there are
        "collisions": expected_collisions(*pairs, batch_size) if pairs and len(pairs[2]) > 1 else None,
        "notes": notes,  # what the readers said
        "refused": list(dict.fromkeys(refused)),  # what training with the defaults and this batch would stop at
    }
    found["advice"] = advice(found)
    if json:
        write_json(json, found)
    if png:
        from miniclip.data.audit.plot import write_png

        write_png(found, sources, png, _PNG)
    print_audit(found)
    return int(bool(refused))


def _open(
    config: DataConfig, image_size: int, asked: Container[str]
) -> tuple[dict[str, PairSource], list[str], list[str]]:
    """The splits there are; what the readers said, such as rows without a caption; what training would refuse.

    Raises the error of a split that was asked for by name, or of the first one if none can be opened.
    """
    from miniclip.config import ConfigError
    from miniclip.data.captioned import check_enough, open_source
    from miniclip.data.images import TooManyBad

    sources: dict[str, PairSource] = {}
    refused: list[str] = []
    errors: dict[str, Exception] = {}
    logger, heard = logging.getLogger("miniclip.data"), BufferingHandler(sys.maxsize)
    heard.setLevel(logging.WARNING)
    logger.addHandler(heard)
    try:
        for split in ("train", "validation", "test"):
            try:
                try:
                    sources[split] = open_source(config, split, image_size=image_size)
                except TooManyBad as error:
                    refused.append(str(error))
                    sources[split] = open_source(replace(config, max_bad_fraction=1.0), split, image_size=image_size)
            except (ValueError, OSError) as error:
                if f"{split}_split" in asked:
                    raise
                errors[split] = error
    finally:
        logger.removeHandler(heard)
    if not sources:
        raise errors["train"]
    refused += map(str, errors.values())
    if "train" in sources:
        try:
            check_enough(config, len(sources["train"]))
        except ConfigError as error:
            refused.append(str(error))
    notes = list(dict.fromkeys(record.getMessage() for record in heard.buffer))
    return {split: source for split, source in sources.items() if len(source)}, notes, refused


def _refused(config: DataConfig, looks: Sequence[Look]) -> list[str]:
    """What training would stop at once it reads the images."""
    from miniclip.data.images import BadCount, BadImage
    from miniclip.data.sampler import TrainSampler
    from miniclip.data.subset import NoneLeft

    told = []
    for look in looks:
        bad = [one for one in look.seen if isinstance(one, BadImage)]
        good = len(look.seen) - len(bad)
        try:
            BadCount.of(look.source, config.max_bad_fraction).add(bad)
            if bad and look.split == "train" and len(look.seen) >= config.batch_size:
                TrainSampler(good, config.batch_size, seed=0, steps=1)
            if not good:
                raise NoneLeft(look.source, bad)
        except ValueError as error:
            told.append(str(error))
    return told
