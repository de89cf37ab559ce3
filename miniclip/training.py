"""The loop: configuration -> a run directory with metrics, checkpoints, the model and its results.

config.yaml      the resolved configuration
metrics.jsonl    a line for each logged step
checkpoints/     states to go on from
model/           weights, model config, preprocessing
results.json     the final tables; examples.png is the sheet of pictures with their best captions
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from miniclip.checkpoint import load, load_checkpoint, save_checkpoint, save_model
from miniclip.config import Config, ConfigError, save_config
from miniclip.data.loader import Batch, TrainBatches, TrainingPairs, training_loader
from miniclip.data.sources import PairSource, open_source
from miniclip.data.transforms import Augment, Preprocess
from miniclip.evaluation.suite import Suite, evaluate, final_evaluation, open_suite
from miniclip.gradcache import cached_backward
from miniclip.hardware import share_cores, tune_for_device
from miniclip.losses import LOSSES
from miniclip.matrix import gather, positives_of, similarity_logits
from miniclip.models import DualEncoder, Embeddings, create_model, resolve
from miniclip.optim import build_optimizer, learning_rate
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
    model_config = resolve(config.model)
    config = replace(config, model=model_config)
    assert model_config.image_size is not None and model_config.context_length is not None  # resolve() fills them

    from accelerate import Accelerator

    run_dir = Path(config.run.dir)
    _check(config, run_dir)
    accelerator = Accelerator(
        mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.train.precision],
        log_with=config.log.trackers or None,
        project_dir=str(run_dir),
    )
    if not accelerator.is_main_process:
        logging.getLogger("miniclip").setLevel(logging.ERROR)  # notes on the data come once, not once a process
    if accelerator.device.type == "cpu":
        share_cores(config.train.cpu_threads, int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    preprocess = Preprocess(model_config.image_size, resize=config.data.resize)
    pairs = _training_pairs(config, preprocess, accelerator)
    test = open_suite(config, _open(config, "test")) if accelerator.is_main_process else None
    validation = (
        open_suite(config, _open(config, "validation")) if accelerator.is_main_process and config.eval.every else None
    )
    steps = config.train.max_steps or math.ceil(
        (config.train.epochs or 0) * (len(pairs) // config.data.batch_size or 1)
    )
    batches = TrainBatches(
        len(pairs),
        config.data.batch_size,
        seed=config.run.seed,
        steps=steps,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )

    torch.manual_seed(config.run.seed)
    model = create_model(model_config)
    tune_for_device(model, accelerator.device, config.train.compile)
    optimizer = build_optimizer(model, config.optim)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    batches.first_step = _start_run(config, accelerator, run_dir)

    if accelerator.is_main_process:
        _announce(config, accelerator, model, len(pairs), steps, batches)
    loop = _Loop(config, accelerator, prepared, model, optimizer, preprocess, steps, run_dir, validation)
    loader = training_loader(pairs, batches, config.data, pin=accelerator.device.type == "cuda")
    loop.run(iter(loader), batches, pairs)

    if batches.first_step < steps:
        save_checkpoint(accelerator, run_dir, steps, config.run.keep)
    state = accelerator.get_state_dict(prepared)
    results: dict[str, Any] = {}
    if test is not None:
        saved = save_model(run_dir / "model", model, preprocess, state)
        # what is evaluated is what was saved
        finished, preprocess, _ = load(saved, accelerator.device)
        results = final_evaluation(config, test, finished, preprocess, run_dir, loop.summary())
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return results


def _check(config: Config, run_dir: Path) -> None:
    """What can be refused before any data are read."""
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    holds_run = (run_dir / "metrics.jsonl").exists() or (run_dir / "checkpoints").exists()
    if holds_run and not (config.run.resume or config.run.overwrite):
        raise ConfigError(
            f"run.dir={run_dir} already holds a run; name another directory, go on with --run.resume true, "
            "or delete it with --run.overwrite true"
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run.dir={run_dir} is a file; name a directory")


def _start_run(config: Config, accelerator: Accelerator, run_dir: Path) -> int:
    """Make the run directory, or take up the one that is there; returns the step to start from."""
    first_step = load_checkpoint(accelerator, run_dir) if config.run.resume else 0
    if accelerator.is_main_process:
        if config.run.overwrite:
            for name in ("checkpoints", "model", config.log.project):
                shutil.rmtree(run_dir / name, ignore_errors=True)
            for name in ("metrics.jsonl", "results.json", "examples.png"):
                (run_dir / name).unlink(missing_ok=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        save_config(config, run_dir / "config.yaml")
        _trim_metrics(run_dir / "metrics.jsonl", first_step)
        if config.run.resume:
            print(f"resuming {run_dir} at step {first_step}" if first_step else f"{run_dir} has no checkpoint: step 0")
    accelerator.wait_for_everyone()
    accelerator.init_trackers(config.log.project, config=_flat(config.to_dict()))
    return first_step


def _trim_metrics(path: Path, first_step: int) -> None:
    """Drop the lines of steps after the checkpoint, which are about to be done again, and a half-written last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    path.write_text("".join(kept), encoding="utf-8")


def _open(config: Config, split: str) -> PairSource:
    assert config.model.image_size is not None
    return open_source(
        config.data, split, seed=config.run.seed, image_size=config.model.image_size, eval_size=config.eval.size
    )


def _training_pairs(config: Config, preprocess: Preprocess, accelerator: Accelerator) -> TrainingPairs:
    data = config.data
    source = _open(config, "train")
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
        progress=progress,
    )
    if pairs.bad and accelerator.is_main_process:
        print(f"{len(pairs.bad)} pictures cannot be read and are left out: " + "; ".join(pairs.bad[:5]))
    return pairs


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; trackers take numbers and strings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else json.dumps(value)
    return flat


def _announce(
    config: Config, accelerator: Accelerator, model: DualEncoder, rows: int, steps: int, batches: TrainBatches
) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{config.model.preset or config.model.image_encoder}: {parameters / 1e6:.1f} M parameters, "
        f"{rows} pictures of {config.data.source}, {steps} steps of {config.data.batch_size} "
        f"({steps / batches.per_epoch:.1f} epochs), {config.train.precision}, "
        f"{accelerator.num_processes} x {accelerator.device.type}, into {config.run.dir}",
        flush=True,
    )


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
        steps: int,
        run_dir: Path,
        validation: Suite | None,
    ) -> None:
        self.config, self.accelerator, self.prepared, self.model = config, accelerator, prepared, model
        self.optimizer, self.preprocess, self.steps, self.run_dir = optimizer, preprocess, steps, run_dir
        self.validation = validation
        self.bad: dict[str, None] = {}  # names in the order of their first failure
        self.train_seconds = 0.0
        self.samples = 0

    def run(self, loader: Iterator[Batch], batches: TrainBatches, pairs: TrainingPairs) -> None:
        """All steps from batches.first_step on; evaluation and checkpoints in between."""
        from tqdm import tqdm

        config, accelerator = self.config, self.accelerator
        self.bad.update(dict.fromkeys(pairs.bad))
        shown = config.log.progress and accelerator.is_main_process
        bar = tqdm(
            total=self.steps,
            initial=batches.first_step,
            desc="training",
            unit="step",
            disable=not shown,
            smoothing=0.05,
        )
        self.prepared.train()
        waited, since, since_step = 0.0, time.perf_counter(), batches.first_step
        try:
            for step in range(batches.first_step, self.steps):
                start = time.perf_counter()
                batch = next(loader)
                waited += time.perf_counter() - start
                values = self._step(step, batch)
                done = step + 1
                self.bad.update(dict.fromkeys(batch.bad))
                bar.update()
                if done % config.log.every == 0 or done == self.steps:
                    elapsed = time.perf_counter() - since
                    pace = (done - since_step) * config.data.batch_size / elapsed
                    values |= {
                        "epoch": done / batches.per_epoch,
                        "samples_per_s": pace,
                        "data_wait": waited / elapsed,
                        "bad_pictures": len(self.bad),
                    }
                    self._log(done, values)
                    bar.set_postfix_str(
                        f"loss {values['loss']:.3f} ({values['loss_over_ln_n']:.2f} ln N), "
                        f"scale {values['logit_scale']:.1f}, {pace:.0f} samples/s"
                    )
                    self.train_seconds += elapsed
                    self.samples += (done - since_step) * config.data.batch_size
                    waited, since, since_step = 0.0, time.perf_counter(), done
                pause = time.perf_counter()
                if config.run.checkpoint_every and done % config.run.checkpoint_every == 0 and done < self.steps:
                    save_checkpoint(accelerator, self.run_dir, done, config.run.keep)
                if config.eval.every and done % config.eval.every == 0 and done < self.steps:
                    self._evaluate(done)
                since += time.perf_counter() - pause  # neither counts as training time
        finally:
            bar.close()

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """Forward, loss, backward, update; returns what is logged of it."""
        config, accelerator, device = self.config, self.accelerator, self.accelerator.device
        image = self.preprocess.normalize(batch.image.to(device, non_blocking=True))
        if config.model.image_encoder == "resnet":
            image = image.contiguous(memory_format=torch.channels_last)
        text = batch.text.to(device, non_blocking=True)
        positives = positives_of(gather(batch.image_id.to(device)), gather(batch.text_id.to(device)))
        options = {"smoothing": config.loss.smoothing} if config.loss.name == "softmax" else {}

        def loss_of(embeddings: Embeddings) -> Tensor:
            logits = similarity_logits(
                gather(embeddings.image), gather(embeddings.text), embeddings.scale, embeddings.bias
            )
            return LOSSES[config.loss.name](logits, positives, **options)

        rate = learning_rate(step, self.steps, config.optim)
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
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(self._advice(step, value, rate, embeddings))
        norm = None
        if config.optim.grad_clip:
            norm = accelerator.clip_grad_norm_(self.prepared.parameters(), config.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.clamp_logit_scale_()
        return {
            "loss": value,
            "loss_over_ln_n": value / math.log(config.data.batch_size),
            "logit_scale": float(embeddings.scale.detach()),
            "lr": rate,
            "grad_norm": None if norm is None else float(norm),
        }

    def _no_sync(self) -> AbstractContextManager[None]:
        if self.accelerator.num_processes == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.prepared)
        return context

    def _advice(self, step: int, value: float, rate: float, embeddings: Embeddings) -> str:
        broken = [k for k, v in embeddings._asdict().items() if v is not None and not bool(torch.isfinite(v).all())]
        found = f"the {', '.join(broken)} output is not finite either" if broken else "the embeddings are finite"
        scale = float(embeddings.scale.detach())
        return (
            f"loss = {value} at step {step + 1} (lr {rate:.2e}, logit scale {scale:.1f}); {found}. "
            "The step was not taken. Lower optim.lr, lengthen optim.warmup_steps, or use train.precision fp32; "
            f"then go on from the last checkpoint in {self.run_dir} with --run.resume true"
        )

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        with (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)

    def _evaluate(self, step: int) -> None:
        """The configured tasks on the validation split, on the main process; the others wait."""
        if self.validation is not None:
            self._log(step, evaluate(self.config, self.validation, self.model, self.preprocess).scalars())
        self.accelerator.wait_for_everyone()
        self.prepared.train()

    def summary(self) -> dict[str, Any]:
        """Time and pace of the steps that this process took, without evaluation and checkpoints."""
        pace = self.samples / self.train_seconds if self.train_seconds else None
        return {"steps": self.steps, "train_seconds": self.train_seconds, "samples_per_s": pace, "bad": list(self.bad)}
