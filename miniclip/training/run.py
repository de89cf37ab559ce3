"""A whole run: configuration -> a run directory with metrics, checkpoints, the model and its results.

config.yaml      the resolved configuration
trace.json       what some steps spend their time on, with train.profile_steps; chrome://tracing or Perfetto show it
data.parquet     names, sizes and checksums of what is trained on, for a resume to compare
metrics.jsonl    a line for each logged step
guard.json       what eval.guard's tasks came to before the first step
checkpoints/     states to go on from
matrix/          the matrix of one fixed batch along the training, with log.matrix_every
best/            the model with the best validation figure so far, with eval.best
model/           weights, model config, preprocessing: of the last step, or what best/ holds
results.json     the final tables, and the files beside it: what Hooks.finish makes of the model
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.common.console import open_console, show_table
from miniclip.common.durable import disk_full_named
from miniclip.common.peers import meet
from miniclip.common.printing import one_line
from miniclip.common.processes import check_same, check_shared, from_main
from miniclip.common.stopping import Stopping
from miniclip.config import Config, ConfigError
from miniclip.models.load import load
from miniclip.models.saved import checkpoints, save_model, save_start
from miniclip.models.start import Start, open_start
from miniclip.training.accelerator import build_accelerator, check_possible, check_sharding, form_group
from miniclip.training.batches import MapBatches, TrainBatches, open_batches
from miniclip.training.best import Best
from miniclip.training.checkpoint import Progress, check_space, handed_out, load_checkpoint
from miniclip.training.diagnostics import check_traced
from miniclip.training.doubts import of_length
from miniclip.training.features import check_views, use_features
from miniclip.training.learning import check_learning, what_learns
from miniclip.training.loop import Hooks, Loop
from miniclip.training.precision import Precision
from miniclip.training.replaced import written
from miniclip.training.run_dir import claim, flat, prepare_run_dir
from miniclip.training.step import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

_SEEN_WITHIN = 60  # seconds; NFS lets its clients remember folders for up to so long


def train(config: Config, open_hooks: Callable[[Config, Start], Hooks]) -> dict[str, Any]:
    """Run the whole of a configuration; returns what finish does.

    Every process of an `accelerate launch` or `torchrun` calls it. open_hooks: called with the resolved configuration
    before the first step, so that nothing can be missing after it. With run.resume=auto a run that is finished is left
    as it is, and what it returned is returned again. Raises ConfigError, ValueError or FileNotFoundError
    before the first step for what can be known by then, NonFiniteLoss at the step where the loss breaks, DiskFull for
    whatever could not be written. Ctrl-C, SIGTERM and SIGUSR1 end the step, save a checkpoint and raise Stopped, a
    KeyboardInterrupt.
    """
    run_dir = Path(config.run.dir)
    start = open_start(config, run_dir if config.run.resume and checkpoints(run_dir) else None)
    config = replace(config, model=start.config, data=replace(config.data, resize=start.preprocess.resize))
    with Stopping() as stopping, ExitStack() as held, form_group(config) as group, disk_full_named(run_dir):
        results, before = from_main(lambda: claim(config, held))
        if results is not None:
            return results if group.is_main_process else {}
        check_shared(run_dir, min(_SEEN_WITHIN, 60 * config.train.timeout))
        if before and config.train.precision == "auto":
            config = config.with_precision(before)
        check_possible(config)
        check_learning(config, start)
        check_views(config)
        accelerator, precision = build_accelerator(config)
        if before:
            kept = before == precision.name
            precision = precision._replace(why="as the run began" if kept else f"the run began in {before}")
        try:
            return _train(config.with_precision(precision.name), start, accelerator, precision, stopping, open_hooks)
        finally:
            accelerator.end_training()


def _train(
    config: Config,
    start: Start,
    accelerator: Accelerator,
    precision: Precision,
    stopping: Stopping,
    open_hooks: Callable[[Config, Start], Hooks],
) -> dict[str, Any]:
    main, run_dir = accelerator.is_main_process, Path(config.run.dir)
    check_sharding(config, accelerator)
    feed = open_batches(config, accelerator, start)
    own = ("run.dir", "data.source", "data.cache_dir", "data.workers", "train.cpu_threads", "log.progress")
    asked = {key: value for key, value in flat(config.to_dict()).items() if key not in own}
    check_same({**asked, "steps": feed.steps, "images": feed.contents})
    check_sharding(config, accelerator, (feed.shares(step) for step in range(min(feed.steps, 100))))
    hooks = open_hooks(config, start)

    vocabulary = None
    if config.train.small_vocabulary:
        assert isinstance(feed, MapBatches)  # a stream has refused
        vocabulary = feed.pairs.vocabulary()
    learner = Learner(config, accelerator, start, vocabulary)
    progress = load_checkpoint(accelerator, run_dir, learner.average) if config.run.resume else Progress()
    for group, options in zip(learner.optimizer.param_groups, learner.options, strict=True):
        group |= options  # which remain those of the config
    if progress.step > feed.steps:
        at = f"the run in {run_dir} stands at step {progress.step}"
        raise ConfigError(f"{at}, past train.max_steps or epochs; raise that, or name another directory")
    feed.check(progress.step, progress.feed)
    for line in use_features(learner, feed) if progress.step < feed.steps else []:
        if main:
            print(line, flush=True)
    if not progress.step:
        check_traced(config.train.profile_steps, feed.steps)
    if progress.step < feed.steps:
        from_main(lambda: check_space(accelerator, run_dir, learner.average is not None))
    former = written(run_dir) if main and config.run.overwrite else []
    _open_trackers(config, accelerator)
    stopping.insist()
    # whatever can be refused has been: from here on the run that was here goes

    def prepare() -> None:
        prepare_run_dir(config, progress.step, former, progress.left)
        if feed.record is not None:
            feed.record.save(run_dir)
        if config.model.init or config.model.image or config.model.text:
            save_start(run_dir, learner.model, learner.preprocess)
        Best(run_dir, config.eval.best).restore(progress.step)

    from_main(prepare)
    if main:
        for doubt in of_length(config, feed.steps):
            log.warning("%s", doubt)
        _announce(learner, precision, feed, progress.step)

    loop = Loop(learner, feed, hooks, stopping, progress)
    loop.run()

    finished, preprocess = None, learner.preprocess
    with learner.averaged():
        state = accelerator.get_state_dict(learner.prepared)
        if main:
            loop.best.restore(feed.steps)
            best = loop.best.load(accelerator.device)
            saved = save_model(run_dir / "model", best or learner.model, preprocess, None if best else state)
            # what is evaluated is what was saved
            finished, preprocess, _ = load(saved, accelerator.device)
    results = hooks.finish(handed_out(finished, learner.model.blank, accelerator.device), preprocess, loop.summary())
    meet()
    return results


def _open_trackers(config: Config, accelerator: Accelerator) -> None:
    try:
        accelerator.init_trackers(config.log.project, config=flat(config.to_dict()))
    except OSError:
        raise
    except Exception as error:  # each service has its own
        accelerator.trackers = []  # which could not be closed either
        named, why = ", ".join(config.log.trackers), one_line(str(error), 200)
        raise ConfigError(f"log.trackers: {named} cannot be used ({why}); set it up, or leave it out") from error


def _announce(learner: Learner, precision: Precision, feed: TrainBatches, first_step: int) -> None:
    config, accelerator = learner.config, learner.accelerator
    parameters = sum(p.numel() for p in learner.model.parameters())
    model = config.model
    towers = [model.init] if model.init else [model.image or model.preset or model.image_encoder, model.text]
    print(
        f"{' + '.join(filter(None, towers))}: {parameters / 1e6:.1f} M parameters, "
        f"{feed.describe()}, {feed.steps} steps of {config.data.batch_size}, "
        f"{accelerator.num_processes} x {accelerator.device.type}, into {config.run.dir}\n"
        f"{precision.name}: {precision.why}"
    )
    if config.run.resume:
        known = f"resuming {config.run.dir} at step {first_step}"
        print(known if first_step else f"{config.run.dir} has no checkpoint: step 0")
    columns = ("", "parameters", "learning", "rate", "blocks learning")
    rows = what_learns(learner.model, learner.optimizer.param_groups, config.optim.lr)
    show_table(open_console(), "", columns, rows)
    sys.stdout.flush()
