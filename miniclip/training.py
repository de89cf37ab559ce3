"""The loop: configuration -> a run directory with metrics, checkpoints, the model and its results.

config.yaml      the resolved configuration
metrics.jsonl    a line for each logged step
checkpoints/     states to go on from
matrix/          the matrix of one fixed batch along the training, with log.matrix_every
model/           weights, model config, preprocessing
results.json     the final tables; examples.png is the sheet of pictures with their best captions
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from miniclip.checkpoint import (
    Progress,
    assemble,
    load,
    load_checkpoint,
    save_checkpoint,
    save_model,
    with_scalars,
)
from miniclip.config import Config, ConfigError
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainBatches, TrainingPairs, training_loader
from miniclip.data.sources import open_source
from miniclip.data.transforms import Augment, Preprocess
from miniclip.data.weights import picture_weights
from miniclip.evaluation.suite import Suite, evaluate, final_evaluation, open_suite
from miniclip.gradcache import cached_backward
from miniclip.hardware import build_accelerator, share_cores, tune_for_device
from miniclip.inspection.history import MatrixLog, open_matrix_log
from miniclip.inspection.watch import at_clamp, local, step_figures, tower_norms
from miniclip.matrix import shares
from miniclip.models import DualEncoder, Embeddings, create_model, resolve
from miniclip.objective import GlobalBatch, chance_loss, global_loss
from miniclip.optim import build_optimizer, learning_rate
from miniclip.printing import first_few
from miniclip.rundir import append_metrics, check_run_dir, flat, prepare_run_dir
from miniclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the weights are still those of the step before."""


def train(config: Config) -> dict[str, Any]:
    """Run the whole of a configuration; returns what results.json holds (an empty dict on other than the main process).

    Every process of an `accelerate launch` or `torchrun` calls it. Raises ConfigError, ValueError or FileNotFoundError
    before the first step for what can be known by then, and NonFiniteLoss at the step where the loss breaks.
    """
    config = config.with_start()
    config = replace(config, model=resolve(config.model))
    check_run_dir(config)
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    accelerator = build_accelerator(config)
    try:
        return _train(config, accelerator)
    finally:
        accelerator.end_training()


def _train(config: Config, accelerator: Accelerator) -> dict[str, Any]:
    main = accelerator.is_main_process
    if not main:
        logging.getLogger("miniclip").setLevel(logging.ERROR)  # notes on the data come once, not once a process
    if accelerator.device.type == "cpu":
        share_cores(config.train.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    sharded = accelerator.distributed_type == "FSDP"
    if sharded and config.data.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"FSDP wants equal shares: data.batch_size={config.data.batch_size} must be a multiple of "
            f"{accelerator.num_processes}"
        )
    assert config.model.image_size is not None
    preprocess = Preprocess(config.model.image_size, resize=config.data.resize)
    pairs = _training_pairs(config, preprocess, accelerator)
    # opened before the training, so that nothing can be missing after it
    test = open_suite(config, "test") if main else None
    validation = open_suite(config, "validation") if main and config.eval.every else None
    matrices = open_matrix_log(config, preprocess) if main and config.log.matrix_every else None
    batches = TrainBatches(
        len(pairs),
        config.data.batch_size,
        seed=config.run.seed,
        steps=_steps(config, len(pairs)),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        draw_weights=pairs.draw_weights if config.data.weights_for == "sampler" else None,
    )

    torch.manual_seed(config.run.seed)
    model = create_model(config.model)
    tune_for_device(model, accelerator.device, config.train.compile)
    if sharded:
        model.flatten_scalars_()
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.optim))
    if sharded:
        prepared.forward = accelerator.autocast()(prepared.forward)  # which Accelerate leaves out for FSDP
    progress = _resume(config, accelerator, optimizer)
    batches.first_step = progress.step
    if progress.step > batches.steps:
        raise ConfigError(f"the run in {config.run.dir} stands at step {progress.step}, past train.max_steps or epochs")
    if main:
        prepare_run_dir(config, progress.step)
        _announce(config, accelerator, model, len(pairs), batches)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(config.log.project, config=flat(config.to_dict()))

    loop = _Loop(config, accelerator, prepared, model, optimizer, preprocess, batches, progress, validation, matrices)
    loader = training_loader(pairs, batches, config.data, pin=accelerator.device.type == "cuda")
    loop.run(iter(loader), pairs.bad)

    state = accelerator.get_state_dict(prepared)
    results: dict[str, Any] = {}
    if test is not None:
        saved = save_model(Path(config.run.dir) / "model", model, preprocess, state)
        # what is evaluated is what was saved
        finished, preprocess, _ = load(saved, accelerator.device)
        results = final_evaluation(config, test, finished, preprocess, Path(config.run.dir), loop.summary())
    accelerator.wait_for_everyone()
    return results


def _steps(config: Config, rows: int) -> int:
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None
    # rounded first: 1.1 epochs of 100 batches are 110 steps, not the 111 of 110.00000000000001
    return math.ceil(round(config.train.epochs * (rows // config.data.batch_size), 6))


def _resume(config: Config, accelerator: Accelerator, optimizer: Any) -> Progress:
    """Load the newest checkpoint, if there is one; the optimiser's options remain those of the config."""
    progress = load_checkpoint(accelerator, Path(config.run.dir)) if config.run.resume else Progress()
    for group, decay in zip(optimizer.param_groups, (config.optim.weight_decay, 0.0), strict=True):
        group |= {"betas": config.optim.betas, "eps": config.optim.eps, "weight_decay": decay}
    return progress


def _training_pairs(config: Config, preprocess: Preprocess, accelerator: Accelerator) -> TrainingPairs:
    data = config.data
    assert config.model.image_size is not None
    source = open_source(data, "train", seed=config.run.seed, image_size=config.model.image_size)
    if len(source) < data.batch_size:
        raise ConfigError(
            f"{data.source} has {len(source)} pictures in split {data.train_split!r}, fewer than "
            f"data.batch_size={data.batch_size}; use a batch of at most {len(source)}, or more data"
        )
    augment = Augment(
        preprocess.image_size, data.augment, data.crop_scale, data.flip, data.colour_jitter, preprocess.resize
    )
    context = config.model.context_length
    assert context is not None
    progress = config.log.progress and accelerator.is_main_process
    pairs = TrainingPairs(
        source,
        augment,
        Tokenizer(context_length=context),
        seed=config.run.seed,
        cache=data.cache,
        on_bad=data.on_bad,
        captions=data.captions_per_image,
        weights=picture_weights(source, data),
        progress=progress,
    )
    if pairs.bad and accelerator.is_main_process:
        print(f"{len(pairs.bad)} pictures cannot be read and are left out: {first_few(pairs.bad)}")
    return pairs


def _announce(config: Config, accelerator: Accelerator, model: DualEncoder, rows: int, batches: TrainBatches) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{config.model.preset or config.model.image_encoder}: {parameters / 1e6:.1f} M parameters, "
        f"{rows} pictures of {config.data.source}, {batches.steps} steps of {config.data.batch_size} "
        f"({batches.steps / batches.per_epoch:.1f} epochs), {config.train.precision}, "
        f"{accelerator.num_processes} x {accelerator.device.type}, into {config.run.dir}"
    )
    if config.run.resume:
        start = batches.first_step
        print(f"resuming {config.run.dir} at step {start}" if start else f"{config.run.dir} has no checkpoint: step 0")
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
        batches: TrainBatches,
        progress: Progress,
        validation: Suite | None,
        matrices: MatrixLog | None,
    ) -> None:
        self.config, self.accelerator, self.prepared, self.model = config, accelerator, prepared, model
        self.optimizer, self.preprocess, self.batches, self.validation = optimizer, preprocess, batches, validation
        self.progress, self.run_dir, self.matrices = progress, Path(config.run.dir), matrices
        self.clamped: list[bool] = []  # the logit scale, in the steps since the last line of the log
        self.bad: dict[str, None] = {}  # names in the order of their first failure

    def run(self, loader: Iterator[Batch], bad: list[str]) -> None:
        """All steps that are left; evaluation and checkpoints in between, and a checkpoint at the end."""
        from tqdm import tqdm

        config, steps, first = self.config, self.batches.steps, self.batches.first_step
        self.bad.update(dict.fromkeys(bad))
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
        waited, since, since_step = 0.0, time.perf_counter(), first
        with bar:
            if config.log.matrix_every and not first:
                self._keep_matrix(0)
                since = time.perf_counter()
            for step in range(first, steps):
                start = time.perf_counter()
                batch = _next(loader)
                waited += time.perf_counter() - start
                done = step + 1
                logged = done % config.log.every == 0 or done == steps
                values = self._step(step, batch, logged)
                self.bad.update(dict.fromkeys(batch.bad))
                bar.update()
                if logged:
                    elapsed, samples = time.perf_counter() - since, (done - since_step) * config.data.batch_size
                    # decoupled's is 0 for two pairs
                    chance = chance_loss(config.loss, config.data.batch_size, config.data.captions_per_image, step) or 1
                    values |= {
                        "loss_over_chance": values["loss"] / chance,
                        "epoch": done / self.batches.per_epoch,
                        "samples_per_s": samples / elapsed,
                        "data_wait": waited / elapsed,
                        "bad_pictures": len(self.bad),
                    }
                    self._log(done, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.3f} ({values['loss_over_chance']:.2f} of chance), "
                        f"scale {values['logit_scale']:.1f}, {samples / elapsed:.0f} samples/s",
                        refresh=False,
                    )
                    self.progress = Progress(done, self.progress.seconds + elapsed, self.progress.samples + samples)
                    waited, since, since_step = 0.0, time.perf_counter(), done
                pause = time.perf_counter()
                every, looked = config.run.checkpoint_every, config.log.matrix_every
                # before the checkpoint: a resume drops the matrices that come after it
                if looked and (done % looked == 0 or done == steps):
                    self._keep_matrix(done)
                if done == steps or (every and done % every == 0):
                    self._save(done)
                if config.eval.every and done % config.eval.every == 0 and done < steps:
                    self._evaluate(done)
                since += time.perf_counter() - pause  # neither counts as training time

    def _save(self, step: int) -> None:
        # with FSDP a process holds a part of each, and all of them have to stop
        broken = sum(not bool(torch.isfinite(local(p)).all()) for p in self.model.parameters())
        if int(self.accelerator.reduce(torch.tensor(broken, device=self.accelerator.device))):
            raise NonFiniteLoss(f"the weights are not finite after step {step}; they were not saved. {self._advice()}")
        save_checkpoint(self.accelerator, self.run_dir, self.progress._replace(step=step), self.config.run.keep)

    def _step(self, step: int, batch: Batch, logged: bool) -> dict[str, Any]:
        """Forward, loss, backward, update; returns what is logged of it, if it is."""
        config, accelerator, device = self.config, self.accelerator, self.accelerator.device
        image = self.preprocess.normalize(batch.image.to(device, non_blocking=True))
        if config.model.image_encoder == "resnet":
            image = image.contiguous(memory_format=torch.channels_last)
        text = batch.text.to(device, non_blocking=True)
        weight = batch.weight if config.data.weights_for == "loss" else None
        known = GlobalBatch.gathered(
            config.loss.positives,
            batch.image_id.to(device),
            batch.text_id.to(device),
            None if weight is None else weight.to(device),
            shares(config.data.batch_size, accelerator.num_processes),
        )

        def loss_of(embeddings: Embeddings) -> Tensor:
            return global_loss(embeddings, known, config.loss, step)

        rate = learning_rate(step, self.batches.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if config.train.micro_batch_size:
            loss, embeddings = cached_backward(
                self.prepared,
                image,
                text,
                loss_of,
                chunk=config.train.micro_batch_size,
                backward=accelerator.backward,
                no_sync=self._no_sync,
            )
        else:
            embeddings = self.prepared(image, text)
            loss = loss_of(embeddings)
            accelerator.backward(loss)
        # each process has its own rows; their mean is the loss
        value, scale = float(accelerator.reduce(loss.detach(), "mean")), float(embeddings.scale.detach())
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
        """The configured tasks on the validation split, on the main process; the others wait."""
        model = self._whole_model(self.validation is not None)
        if self.validation is not None:
            self._log(step, evaluate(self.config, self.validation, model, self.preprocess).scalars())
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

        bad: pictures that this process could not read.
        """
        seconds, samples = self.progress.seconds, self.progress.samples
        pace = samples / seconds if seconds else None
        return {"steps": self.batches.steps, "train_seconds": seconds, "samples_per_s": pace, "bad": list(self.bad)}


def _next(loader: Iterator[Batch]) -> Batch:
    try:
        return next(loader)
    except BadImage as error:
        # out of a loader process the message comes behind that process's traceback
        raise BadImage(str(error).rstrip().rsplit("BadImage: ", 1)[-1]) from error
