"""The loop: configuration -> a run directory with metrics, checkpoints, the model and its results.

config.yaml      the resolved configuration
trace.json       what some steps spend their time on, with train.profile_steps; chrome://tracing or Perfetto show it
metrics.jsonl    a line for each logged step
checkpoints/     states to go on from
matrix/          the matrix of one fixed batch along the training, with log.matrix_every
best/            the model with the best validation figure so far, with eval.best
model/           weights, model config, preprocessing: of the last step, or what best/ holds
results.json     the final tables; examples.html, examples.png and queries.png show pictures with their best captions
"""

from __future__ import annotations

import logging
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from miniclip.common.stopping import Stopped, Stopping
from miniclip.config import Config, ConfigError
from miniclip.data.augment import recolour, shrink
from miniclip.data.loader import Batch
from miniclip.evaluation.suite import Suite, evaluate, final_evaluation, open_suite, scalars
from miniclip.inspection.history import MatrixLog, open_matrix_log
from miniclip.losses.matrix import Embeddings
from miniclip.losses.objective import GlobalBatch, chance_loss, global_loss
from miniclip.models import DualEncoder, create_model, resolve
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import assemble, load, save_model, with_scalars
from miniclip.models.vit import VisionTransformer
from miniclip.models.vocabulary import use_small_vocabulary_
from miniclip.training.accelerator import build_accelerator, check_possible, tune_for_device
from miniclip.training.batches import MapBatches, TrainBatches, image_side, open_batches, phases
from miniclip.training.best import Best
from miniclip.training.checkpoint import Progress, checkpoint_folder, handed_out, load_checkpoint, save_checkpoint
from miniclip.training.diagnostics import at_clamp, local, step_figures, tower_norms
from miniclip.training.flops import Flops, forward_flops, matmul_peak
from miniclip.training.gradcache import cached_backward
from miniclip.training.optim import build_optimizer, learning_rate
from miniclip.training.precision import Precision
from miniclip.training.run_dir import append_metrics, check_run_dir, flat, precision_before, prepare_run_dir
from miniclip.training.throughput import Pace

if TYPE_CHECKING:
    from accelerate import Accelerator


BEFORE_TRACE = 3  # steps
TIMED = 4  # steps from which the time of all is told; the first of them warms up


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the weights are still those of the step before."""


def train(config: Config) -> dict[str, Any]:
    """Run the whole of a configuration; returns what results.json holds (an empty dict on other than the main process).

    Every process of an `accelerate launch` or `torchrun` calls it. Raises ConfigError, ValueError or FileNotFoundError
    before the first step for what can be known by then, and NonFiniteLoss at the step where the loss breaks. Ctrl-C,
    SIGTERM and SIGUSR1 end the step, save a checkpoint and raise Stopped, a KeyboardInterrupt.
    """
    config = config.with_start()
    config = replace(config, model=resolve(config.model))
    check_run_dir(config)
    before = precision_before(config)
    if before and config.train.precision == "auto":
        config = config.with_precision(before)
    check_possible(config)
    with Stopping() as stopping:
        accelerator, precision = build_accelerator(config)
        if before:
            kept = before == precision.name
            precision = precision._replace(why="as the run began" if kept else f"the run began in {before}")
        try:
            return _train(config.with_precision(precision.name), accelerator, precision, stopping)
        finally:
            accelerator.end_training()


def _train(config: Config, accelerator: Accelerator, precision: Precision, stopping: Stopping) -> dict[str, Any]:
    main = accelerator.is_main_process
    if not main:
        logging.getLogger("miniclip").setLevel(logging.ERROR)  # notes on the data come once, not once a process
    sharded = accelerator.distributed_type == "FSDP"
    if sharded and config.train.small_vocabulary:
        raise ConfigError(
            "train.small_vocabulary does not go with FSDP, which shares the token table out already; set it to false"
        )
    if sharded and config.data.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"FSDP wants equal shares: data.batch_size={config.data.batch_size} must be a multiple of "
            f"{accelerator.num_processes}"
        )
    assert config.model.image_size is not None
    preprocess = Preprocess(config.model.image_size, resize=config.data.resize)
    feed = open_batches(config, accelerator)
    if sharded and any(len(set(feed.shares(step))) > 1 for step in range(min(feed.steps, 100))):
        raise ConfigError(
            f"FSDP wants equal shares, and the lanes of this stream are not a multiple of {accelerator.num_processes}; "
            "use another number of processes or of shards, DDP, or data.streaming=false"
        )
    # opened before the training, so that nothing can be missing after it
    test = open_suite(config, "test")
    validation = open_suite(config, "validation") if config.eval.every else None
    matrices = open_matrix_log(config, preprocess) if main and config.log.matrix_every else None

    torch.manual_seed(config.run.seed)
    model = create_model(config.model)
    # the weights are the same everywhere, dropped patches are not
    torch.manual_seed(config.run.seed + accelerator.process_index)
    if config.train.small_vocabulary:
        assert isinstance(feed, MapBatches)  # a stream has refused
        use_small_vocabulary_(model, feed.vocabulary())
    if isinstance(model.visual, VisionTransformer):
        model.visual.patch_dropout = config.train.patch_dropout
    tune_for_device(model, accelerator.device, config.train.compile)
    if sharded:
        model.flatten_scalars_()
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.optim))
    if sharded:
        prepared.forward = accelerator.autocast()(prepared.forward)  # which Accelerate leaves out for FSDP
    progress = _resume(config, accelerator, optimizer)
    if progress.step > feed.steps:
        raise ConfigError(f"the run in {config.run.dir} stands at step {progress.step}, past train.max_steps or epochs")
    if main:
        prepare_run_dir(config, progress.step)
        _announce(config, accelerator, precision, model, feed, progress.step)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(config.log.project, config=flat(config.to_dict()))

    loop = _Loop(
        config, accelerator, prepared, model, optimizer, preprocess, feed, progress, validation, matrices, stopping
    )
    loop.run()

    state = accelerator.get_state_dict(prepared)
    run_dir = Path(config.run.dir)
    finished = None
    if main:
        best = loop.best.load(accelerator.device)
        saved = save_model(run_dir / "model", best or model, preprocess, None if best else state)
        # what is evaluated is what was saved
        finished, preprocess, _ = load(saved, accelerator.device)
    finished = handed_out(finished, config.model, accelerator.device)
    results = final_evaluation(config, test, finished, preprocess, run_dir, loop.summary())
    accelerator.wait_for_everyone()
    return results


def _resume(config: Config, accelerator: Accelerator, optimizer: Any) -> Progress:
    """Load the newest checkpoint, if there is one; the optimiser's options remain those of the config."""
    progress = load_checkpoint(accelerator, Path(config.run.dir)) if config.run.resume else Progress()
    for group, decay in zip(optimizer.param_groups, (config.optim.weight_decay, 0.0), strict=True):
        group |= {"betas": config.optim.betas, "eps": config.optim.eps, "weight_decay": decay}
    return progress


def _announce(
    config: Config,
    accelerator: Accelerator,
    precision: Precision,
    model: DualEncoder,
    feed: TrainBatches,
    first_step: int,
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{config.model.preset or config.model.image_encoder}: {parameters / 1e6:.1f} M parameters, "
        f"{feed.describe()}, {feed.steps} steps of {config.data.batch_size}, "
        f"{accelerator.num_processes} x {accelerator.device.type}, into {config.run.dir}\n"
        f"{precision.name}: {precision.why}"
    )
    if config.run.resume:
        known = f"resuming {config.run.dir} at step {first_step}"
        print(known if first_step else f"{config.run.dir} has no checkpoint: step 0")
    sys.stdout.flush()


class _Loop:
    """One run's steps; the state that a step hands to the next."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        prepared: nn.Module,
        model: DualEncoder,
        optimizer: Any,
        preprocess: Preprocess,
        feed: TrainBatches,
        progress: Progress,
        validation: Suite | None,
        matrices: MatrixLog | None,
        stopping: Stopping,
    ) -> None:
        self.config, self.accelerator, self.prepared, self.model = config, accelerator, prepared, model
        self.optimizer, self.preprocess, self.feed, self.validation = optimizer, preprocess, feed, validation
        self.progress, self.run_dir, self.matrices = progress, Path(config.run.dir), matrices
        self.best, self.stopping = Best(self.run_dir, config.eval.best), stopping
        if progress.step:
            stopping.checkpoint = checkpoint_folder(self.run_dir, progress.step)
        self.clamped = list(progress.clamped)

    def run(self) -> None:
        """All steps that are left; evaluation and checkpoints in between, and a checkpoint at the end."""
        from tqdm import tqdm

        config, steps, first = self.config, self.feed.steps, self.progress.step
        pace = self._pace()
        shown = config.log.progress and self.accelerator.is_main_process
        interval = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file gets a line now and then
        bar = tqdm(
            total=steps,
            initial=first,
            desc="training",
            unit="step",
            disable=not shown,
            smoothing=0.05,
            mininterval=interval,
        )
        self.prepared.train()
        since, since_step = time.perf_counter(), first
        timed = since
        started = self.feed.start(first, self.progress.feed)
        with bar, self._trace() as trace, self.stopping.noting(started) as batches:
            if config.log.matrix_every and not first:
                self._keep_matrix(0)
                since = time.perf_counter()
            for step in range(first, steps):
                start = time.perf_counter()
                batch = next(batches)
                batch = batch._replace(image=shrink(batch.image, image_side(step, steps, config)))
                pace.add(batch, time.perf_counter() - start)
                done = step + 1
                logged = done % config.log.every == 0 or done == steps
                values = self._step(step, batch, logged)
                trace.step()
                bar.update()
                if done == first + 1:
                    bar.refresh()  # a log file would wait for its interval
                    timed = time.perf_counter()
                elif done == first + TIMED and done < steps and shown:
                    each = (time.perf_counter() - timed) / (TIMED - 1)
                    bar.write(pace.expected(batch, each, phases(done, steps, config)), file=sys.stderr)
                if logged:
                    elapsed, samples = time.perf_counter() - since, (done - since_step) * config.data.batch_size
                    # decoupled's is 0 for two pairs
                    chance = chance_loss(config.loss, config.data.batch_size, config.data.captions_per_image, step) or 1
                    values |= {
                        "loss_over_chance": values["loss"] / chance,
                        "epoch": self.feed.epoch(done),
                        "samples_per_s": samples / elapsed,
                        "bad_pictures": len(self.feed.bad),
                    }
                    values |= pace.values(self._total(pace.counts()), self.accelerator.num_processes, elapsed)
                    pace.clear()
                    self._log(done, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.3f} ({values['loss_over_chance']:.2f} of chance), "
                        f"scale {values['logit_scale']:.1f}, {samples / elapsed:.0f} samples/s, "
                        f"{values['data_wait']:.0%} waiting, MFU {values['mfu']:.0%}",
                        refresh=False,
                    )
                    self.progress = Progress(done, self.progress.seconds + elapsed, self.progress.samples + samples)
                    since, since_step = time.perf_counter(), done
                pause = time.perf_counter()
                every, looked = config.run.checkpoint_every, config.log.matrix_every
                # both before the checkpoint: a resume does again what comes after it
                if looked and (done % looked == 0 or done == steps):
                    self._keep_matrix(done)
                evaluated = config.eval.every
                # the last step, too, may be the best; without a choice the final tables say enough of it
                if evaluated and (done % evaluated == 0 if done < steps else config.eval.best is not None):
                    self._evaluate(done)
                if done == steps or (every and done % every == 0) or self.stopping.agreed:
                    self._save(done)
                if done == steps:
                    self._agreed(torch.zeros((), device=self.accelerator.device))  # what came since the step
                if self.stopping.agreed:
                    raise Stopped(self.stopping.agreed, f"after step {done} of {steps}", self.stopping.checkpoint)
                since += time.perf_counter() - pause  # neither counts as training time

    def _save(self, step: int) -> None:
        # with FSDP a process holds a part of each, and all of them have to stop
        broken = sum(not bool(torch.isfinite(local(p)).all()) for p in self.model.parameters())
        if int(self.accelerator.reduce(torch.tensor(broken, device=self.accelerator.device))):
            raise NonFiniteLoss(f"the weights are not finite after step {step}; they were not saved. {self._advice()}")
        progress = self.progress._replace(step=step, feed=self.feed.state(), clamped=self.clamped)
        self.stopping.checkpoint = save_checkpoint(self.accelerator, self.run_dir, progress, self.config.run.keep)

    def _pace(self) -> Pace:
        """Measures what the device can do."""
        device, dtype = self.accelerator.device, torch.float32
        if self.config.train.precision != "fp32":
            dtype = torch.bfloat16 if self.config.train.precision == "bf16" else torch.float16

        @cache
        def flops(side: int) -> Flops:
            return forward_flops(replace(self.config.model, image_size=side), self.config.train.patch_dropout)

        return Pace(device, flops, matmul_peak(device, dtype))

    def _total(self, counts: Tensor) -> Tensor:
        """The sum over the processes."""
        # a device may lack float64, and float32 is enough for what is only shown
        return self.accelerator.reduce(counts.float().to(self.accelerator.device)).cpu()

    def _trace(self) -> Any:
        """A profiler of train.profile_steps steps of the main process, or something that does nothing."""
        from torch import profiler

        steps = self.config.train.profile_steps if self.accelerator.is_main_process else 0
        left = self.feed.steps - self.progress.step
        if steps and left < steps + BEFORE_TRACE:
            raise ConfigError(
                f"train.profile_steps={steps}: {BEFORE_TRACE} steps come before, {left} are left; set it to at most "
                f"{max(0, left - BEFORE_TRACE)}"
            )
        path = str(self.run_dir / "trace.json")
        return (
            profiler.profile(
                schedule=profiler.schedule(wait=1, warmup=BEFORE_TRACE - 1, active=steps, repeat=1),
                on_trace_ready=lambda found: found.export_chrome_trace(path),
            )
            if steps
            else _NoTrace()
        )

    def _step(self, step: int, batch: Batch, logged: bool) -> dict[str, Any]:
        """Forward, loss, backward, update; returns what is logged of it, if it is."""
        config, accelerator = self.config, self.accelerator
        pixels = recolour(batch.image, batch.look) if config.data.flip or config.data.colour_jitter else batch.image
        image = self.preprocess.normalize(pixels)
        if config.model.image_encoder == "resnet":
            image = image.contiguous(memory_format=torch.channels_last)
        weight = batch.weight if config.data.weights_for == "loss" else None
        known = GlobalBatch.gathered(
            config.loss.positives,
            batch.image_id,
            batch.text_id,
            weight,
            self.feed.shares(step),
        )

        def loss_of(embeddings: Embeddings) -> Tensor:
            return global_loss(embeddings, known, config.loss, step)

        rate = learning_rate(step, self.feed.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if config.train.micro_batch_size:
            loss, embeddings = cached_backward(
                self.prepared,
                image,
                batch.text,
                loss_of,
                chunk=config.train.micro_batch_size,
                backward=accelerator.backward,
                no_sync=self._no_sync,
            )
        else:
            embeddings = self.prepared(image, batch.text)
            loss = loss_of(embeddings)
            accelerator.backward(loss)
        value, scale = self._agreed(loss.detach()), float(embeddings.scale.detach())
        norm = float(accelerator.clip_grad_norm_(self.prepared.parameters(), config.optim.grad_clip or math.inf))
        # fp16's loss scaling skips a step whose gradient overflows, and goes on with a smaller scale
        if not math.isfinite(value) or (not math.isfinite(norm) and accelerator.scaler is None):
            raise NonFiniteLoss(
                f"loss {value}, gradient norm {norm} at step {step + 1} (lr {rate:.2e}, logit scale {scale:.1f}); "
                f"the step was not taken. {self._advice()}"
            )
        self.clamped.append(at_clamp(scale))
        values: dict[str, Any] = {}
        if logged:
            values = {"loss": value, "logit_scale": scale, "lr": rate, "grad_norm": norm}
            values |= tower_norms(self.model, norm) | step_figures(embeddings, known)
            values["scale_clamped"] = sum(self.clamped) / len(self.clamped)
            self.clamped.clear()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.clamp_logit_scale_()
        return values

    def _agreed(self, loss: Tensor) -> float:
        """The loss's mean over the processes, for each has its own rows; with it travels who was asked to stop."""
        parts = torch.cat([loss[None], loss.new_tensor(self.stopping.wishes())])
        value, *wishes = self.accelerator.reduce(parts, "mean").tolist()
        self.stopping.agree(wishes)
        return value

    def _no_sync(self) -> AbstractContextManager[None]:
        if self.accelerator.num_processes == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.prepared)
        return context

    def _advice(self) -> str:
        advice = "Lower optim.lr, lengthen optim.warmup_steps, or use train.precision fp32"
        if (self.run_dir / "checkpoints").exists():
            advice += f"; go on from the last checkpoint in {self.run_dir} with --run.resume true"
        return advice

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_metrics(self.run_dir, step, values)
        self.accelerator.log(values, step=step)

    def _evaluate(self, step: int) -> None:
        """The configured tasks on the validation split; the processes share the work, and their model is one."""
        assert self.validation is not None
        main = self.accelerator.is_main_process
        model: DualEncoder | None = self._whole_model(main)
        if not main and self.accelerator.distributed_type == "FSDP":
            model = None  # it has only its share of the weights
        model = handed_out(model, self.config.model, self.accelerator.device)
        results = evaluate(self.config, self.validation, model, self.preprocess)
        self._log(step, scalars(results))
        if main:
            self.best.offer(step, results, model, self.preprocess)
        self.accelerator.wait_for_everyone()

    def _keep_matrix(self, step: int) -> None:
        """The matrix of the fixed batch, on the main process; the others wait."""
        model = self._whole_model(self.matrices is not None)
        if self.matrices is not None:
            self.matrices.write(step, model)
        self.accelerator.wait_for_everyone()

    def _whole_model(self, wanted: bool) -> DualEncoder:
        """The model as it stands, put together from its shares where FSDP divides it; every process calls it."""
        if self.accelerator.distributed_type != "FSDP":
            return self.model
        state = self.accelerator.get_state_dict(self.prepared)
        return assemble(self.config.model, with_scalars(state), self.accelerator.device) if wanted else self.model

    def summary(self) -> dict[str, Any]:
        """Time and pace of all steps, those before a resume included, without evaluation and checkpoints.

        bad: pictures that this process could not read. best: what eval.best chose, or None.
        """
        seconds, samples = self.progress.seconds, self.progress.samples
        pace = samples / seconds if seconds else None
        values = {"steps": self.feed.steps, "train_seconds": seconds, "samples_per_s": pace, "bad": self.feed.bad.names}
        return values | {"best": self.best.record()}


class _NoTrace(nullcontext["_NoTrace"]):
    """Stands where a profiler would."""

    def __enter__(self) -> _NoTrace:
        return self

    def step(self) -> None:
        pass
