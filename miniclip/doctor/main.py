"""The short form before a long run: python -m miniclip.doctor --config configs/shapes.yaml [--section.key VALUE ...]

Stages of about a minute: the data, learning a few pairs by heart, and captions against chance; of a model that is not
fresh also what is locked, the images that it is shown, and what it must not forget. The first that finds something ends
it. Nothing is written into run.dir.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from miniclip.common.arguments import at_home, check_output, exit_code, refusal, refused
from miniclip.common.printing import printable
from miniclip.config import Config, ConfigError, load_config, smaller_training

if TYPE_CHECKING:
    from miniclip.doctor.data import Stage

log = logging.getLogger(__name__)

PAIRS = 128  # learnt by heart
HELD_OUT = 512
TRAINED_ON = 4096  # images at least, where there are as many
GUARDED = 512  # images of each task of eval.guard


def doctor_main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if nothing was found, 1 after verdicts, else what exit_code does."""
    parser = argparse.ArgumentParser(
        prog="python -m miniclip.doctor",
        description="Look for what would spoil a long run. Takes the options of train.py (see train.py --help), and:",
        allow_abbrev=False,
        exit_on_error=False,
    )
    more = "time of each training (default: 60), up to thrice if need be"
    parser.add_argument("--seconds", type=float, default=60.0, help=more)
    parser.add_argument("--json", metavar="FILE", help="write all that was found")
    try:
        own, rest = parser.parse_known_args(arguments)
        if not 0 < own.seconds < math.inf:
            raise ConfigError(f"--seconds {own.seconds} must be above 0 and finite")
        own.json = at_home(own.json)
        if own.json:
            check_output("--json", own.json, '"healthy": ')
        config = load_config(rest, list(vars(own)))
    except argparse.ArgumentError as error:
        return refused("doctor", refusal(error))
    except (OSError, ValueError) as error:
        if os.environ.get("MINICLIP_DEBUG"):
            raise
        return refused("doctor", str(error))
    smaller = f"use {', '.join(smaller_training(config, 1))}"
    return exit_code("doctor", lambda: _doctor(config, own.seconds, own.json), smaller)


def _doctor(config: Config, seconds: float, json: str | None) -> int:
    stages: list[Stage] = []
    for stage in examine(config, seconds):
        stages.append(stage)
        _show(stage)
        if stage.verdicts:
            break  # what comes after would only say so again
    found = [verdict._asdict() for verdict in stages[-1].verdicts]
    told = all(stage.told for stage in stages)
    if not found:
        doubt = "nothing found, but not all of it could be told; see above"
        print("healthy: start the long run" if told else doubt)
    if json:
        from miniclip.common.console import json_safe, write_json

        keys = ("title", "figures", "notes", "runs")
        shown = {stage.name: {key: getattr(stage, key) for key in keys} for stage in stages}
        values = {"healthy": not found, "all_told": told, "verdicts": found, "stages": shown}
        write_json(json, json_safe({**values, "config": config.to_dict()}))
    return int(bool(found))


def examine(config: Config, seconds: float) -> Iterator[Stage]:
    """The stages one after the other. seconds: of each training.

    Raises ConfigError, ValueError or FileNotFoundError for what training would refuse, but for empty captions.
    """
    # torch takes seconds to import: --help and a wrong key do not wait for it
    import torch

    from miniclip.data.captioned import NoCaptions, check_enough
    from miniclip.data.splits import OneImage
    from miniclip.data.stream.held_out import open_pairs
    from miniclip.data.weights import image_weights
    from miniclip.doctor.data import DATA_TITLE, Stage, check_data, constant_images, empty_captions
    from miniclip.doctor.fit import check_fit
    from miniclip.doctor.kept import LOCKED_PAIRS, VIEWS, check_kept, check_locked, check_views
    from miniclip.doctor.pairs import check_pairs
    from miniclip.doctor.trial import Setting, check_speed, fixed_batch, trial_pairs
    from miniclip.evaluation.suite import open_tasks
    from miniclip.models.start import open_start
    from miniclip.training.accelerator import build_accelerator, check_possible
    from miniclip.training.batches import planned_steps
    from miniclip.training.doubts import of_choice, of_length
    from miniclip.training.learning import check_learning

    start = open_start(config)
    config = replace(config, model=start.config, data=replace(config.data, resize=start.preprocess.resize))
    check_possible(config)
    check_learning(config, start)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("the doctor takes one process; start it with python -m miniclip.doctor")
    size, most = config.model.image_size, max(TRAINED_ON, 4 * config.data.batch_size)
    assert size is not None
    accelerator, precision = build_accelerator(replace(config, log=replace(config.log, trackers=[])))
    config = config.with_precision(precision.name)
    setting = Setting(config, start, accelerator, seconds)
    guarded = config.eval.guarded_tasks
    suite = open_tasks(config, guarded, "validation", start.tokenizer, "eval.guard", GUARDED)

    opened = partial(open_pairs, config.data, seed=config.run.seed, image_size=size)
    try:
        source, held_out = opened("train", eval_size=most), opened("validation", eval_size=config.eval.size)
    except (NoCaptions, OneImage) as error:
        said = printable(str(error))
        verdict = constant_images(1.0, said) if isinstance(error, OneImage) else empty_captions(said)
        yield Stage("data", DATA_TITLE, {}, [verdict], [])
        return
    check_enough(config.data, len(source))
    steps = planned_steps(config, len(source))
    chosen = config.eval.best if (config.eval.best or "").startswith("retrieval/") else None
    for doubt in (*of_length(config, steps), *of_choice(chosen, held_out)):
        log.warning("%s", doubt)
    image_weights(source, config.data)
    generator = torch.Generator().manual_seed(config.run.seed)
    rows = torch.randperm(len(source), generator=generator)[:most].tolist()
    yield check_data(config, source, rows, setting.start.tokenizer)
    if (config.model.lock_image or config.model.lock_text) and (
        locked := check_locked(setting, fixed_batch(setting, source, rows, LOCKED_PAIRS))
    ):
        yield locked
    fit = check_fit(setting, fixed_batch(setting, source, rows, PAIRS))
    yield fit
    pairs = trial_pairs(setting, source, rows)
    if config.model.init or config.model.image:
        yield check_views(setting, pairs, fixed_batch(setting, source, rows, VIEWS), steps)
    yield check_speed(setting, pairs, steps, precision, len(source))
    order = torch.randperm(len(held_out), generator=generator).tolist()
    shown = fixed_batch(setting, held_out, order, HELD_OUT)
    if config.model.init or suite:
        yield check_kept(setting, pairs, shown, suite)
    yield check_pairs(setting, pairs, shown, fit.told)


def _show(stage: Stage) -> None:
    from miniclip.common.console import open_console, plain, show_table

    console = open_console()
    heading = "not so: " if stage.verdicts else ""
    rows = []
    for name, value in stage.figures.items():
        label = name.removeprefix("share_").replace("_a_picture", "_an_image").replace("picture", "image")
        for i, one in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(one, float):
                one = f"{one:.1%}" if name.startswith("share_") else f"{one:.3g}"
            rows.append(("" if i else label.replace("_", " "), str(one)))
    if rows:
        style = "bold red" if stage.verdicts else "bold"
        show_table(console, heading + stage.title, ("", ""), rows, style)
    for note in stage.notes:
        console.print(plain(note))
    for verdict in stage.verdicts:
        console.print(plain(f"{verdict.kind}: {verdict.title}"), style="bold red")
        for word, sentences in (("found:", verdict.evidence), ("try:  ", verdict.advice)):
            for sentence in sentences:
                console.print(plain(f"  {word} {sentence}"))
