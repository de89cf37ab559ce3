"""The short form before a long run: python -m miniclip.doctor --config configs/shapes.yaml [--section.key VALUE ...]

Three stages of about a minute: the data, learning a few pairs by heart, and captions against chance. The first that
finds something ends it, for what comes after would only say so again. Nothing is written into run.dir.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.common.arguments import advised
from miniclip.common.printing import printable
from miniclip.config import Config, ConfigError, load_config, smaller_training

if TYPE_CHECKING:
    from miniclip.data.captioned import PairSource
    from miniclip.doctor.data import Stage
    from miniclip.inspection.contents import Verdict

PAIRS = 128  # learnt by heart
HELD_OUT = 512
TRAINED_ON = 4096  # pictures at least, where there are as many


def doctor_main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if nothing was found, 1 after verdicts, 2 after a line about what cannot be run as asked, or 130.

    130: interrupted by Ctrl-C. MINICLIP_DEBUG=1 in the environment shows the whole traceback instead of that line.
    """
    parser = argparse.ArgumentParser(
        prog="python -m miniclip.doctor",
        description="Look for what would spoil a long run. Takes the options of train.py (see train.py --help), and:",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="time of each training (default: 60), up to thrice if need be"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was found")
    own, rest = parser.parse_known_args(arguments)
    try:
        if not 0 < own.seconds < math.inf:
            raise ConfigError(f"--seconds {own.seconds} must be above 0 and finite")
        if own.json and not Path(own.json).absolute().parent.is_dir():
            raise ConfigError(f"--json {own.json}: there is no such folder")
        config = load_config(rest)
        # torch takes seconds to import: --help and a wrong key do not wait for it
        from miniclip.data.images import BadImage
    except ConfigError as error:
        return _fail(error)
    try:
        with advised(f"use {', '.join(smaller_training(config, 1))}"):
            stages = examine(config, own.seconds)
        if own.json:
            from miniclip.common.console import write_json

            write_json(own.json, _values(config, stages))
    except (ConfigError, BadImage, OSError, ValueError, MemoryError) as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    return 1 if any(stage.verdicts for stage in stages) else 0


def examine(config: Config, seconds: float) -> list[Stage]:
    """The stages up to the first that finds something, each printed as it ends. seconds: of each training.

    Raises ConfigError, ValueError or FileNotFoundError for what training would refuse before its first step, other than
    captions without content.
    """
    import torch

    from miniclip.data.weights import image_weights
    from miniclip.doctor.data import DATA_TITLE, Stage, check_data
    from miniclip.doctor.fit import check_fit
    from miniclip.doctor.pairs import check_pairs
    from miniclip.doctor.speed import check_speed
    from miniclip.doctor.trial import Setting, fixed_batch, trial_pairs
    from miniclip.inspection.contents import Verdict
    from miniclip.models import resolve
    from miniclip.models.preprocess import Preprocess
    from miniclip.training.accelerator import build_accelerator, check_possible
    from miniclip.training.batches import check_enough, planned_steps

    config = config.with_start()
    config = replace(config, model=resolve(config.model))
    check_possible(config)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("the doctor takes one process; start it with python -m miniclip.doctor")
    assert config.model.image_size is not None
    assert config.model.context_length is not None
    preprocess = Preprocess(config.model.image_size, resize=config.data.resize)
    accelerator, precision = build_accelerator(replace(config, log=replace(config.log, trackers=[])))
    config = config.with_precision(precision.name)
    setting = Setting(config, accelerator, preprocess, seconds)
    stages: list[Stage] = []

    def done(stage: Stage) -> bool:
        """Whether this was the last one."""
        stages.append(stage)
        _show(stage)
        return bool(stage.verdicts)

    opened = [_open(config, split) for split in ("train", "validation")]
    for found in opened:
        if isinstance(found, Verdict):
            done(Stage("data", DATA_TITLE, {}, [found], []))
            return stages
    source, held_out = (found for found in opened if not isinstance(found, Verdict))
    check_enough(config, len(source))
    image_weights(source, config.data)
    generator = torch.Generator().manual_seed(config.run.seed)
    rows = torch.randperm(len(source), generator=generator)[: max(TRAINED_ON, 4 * config.data.batch_size)].tolist()
    if done(check_data(config, source, rows)):
        return stages
    if done(check_fit(setting, fixed_batch(setting, source, rows, PAIRS))):
        return stages
    fits = stages[-1].told
    augment, captions = config.data.augment, config.data.captions_per_image
    pairs = trial_pairs(setting, source, rows, augment, captions, config.log.progress)
    done(check_speed(setting, pairs, planned_steps(config, len(source)), precision))
    order = torch.randperm(len(held_out), generator=generator).tolist()
    if not done(check_pairs(setting, pairs, fixed_batch(setting, held_out, order, HELD_OUT), fits)):
        told = all(stage.told for stage in stages)
        print("healthy: start the long run" if told else "nothing found, but not all of it could be told; see above")
    return stages


def _open(config: Config, split: str) -> PairSource | Verdict:
    """A split of the source, or what is wrong if there is nothing in it to learn from."""
    from miniclip.data.captioned import NoCaptions
    from miniclip.data.splits import OneImage
    from miniclip.data.stream.held_out import open_pairs
    from miniclip.doctor.data import constant_images, empty_captions

    assert config.model.image_size is not None
    try:
        size = max(TRAINED_ON, 4 * config.data.batch_size) if split == "train" else config.eval.size
        return open_pairs(config.data, split, seed=config.run.seed, image_size=config.model.image_size, eval_size=size)
    except NoCaptions as error:
        return empty_captions([printable(str(error))])
    except OneImage as error:
        return constant_images(1.0, [printable(str(error))])


def _values(config: Config, stages: Sequence[Stage]) -> dict[str, Any]:
    found = [verdict._asdict() for stage in stages for verdict in stage.verdicts]
    plain = {
        stage.name: {"title": stage.title, "figures": stage.figures, "notes": stage.notes, "runs": list(stage.runs)}
        for stage in stages
    }
    told = all(stage.told for stage in stages)
    values = {"healthy": not found, "all_told": told, "verdicts": found, "stages": plain, "config": config.to_dict()}
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: Any) -> Any:
    """What is not finite becomes null, which JSON can say."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(stage: Stage) -> None:
    from rich import box
    from rich.table import Table

    from miniclip.common.console import open_console, plain

    console = open_console()
    heading = "not so: " if stage.verdicts else ""
    table = Table(title=plain(heading + stage.title), box=box.SIMPLE, show_header=False, pad_edge=False)
    table.title_justify, table.title_style = "left", "bold red" if stage.verdicts else "bold"
    for name, value in stage.figures.items():
        for i, one in enumerate(value if isinstance(value, list) else [value]):
            table.add_row("" if i else name.removeprefix("share_").replace("_", " "), plain(_told(name, one)))
    if stage.figures:
        console.print(table)
    for note in stage.notes:
        console.print(plain(note))
    for verdict in stage.verdicts:
        console.print(plain(f"{verdict.kind}: {verdict.title}"), style="bold red")
        for sentence in verdict.evidence:
            console.print(plain(f"  found: {sentence}"))
        for sentence in verdict.advice:
            console.print(plain(f"  try:   {sentence}"))


def _told(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1%}" if name.startswith("share_") else f"{value:.3g}"
    return str(value)


def _fail(error: Exception) -> int:
    print(f"doctor: error: {printable(str(error))}", file=sys.stderr)
    return 2
