"""The loop: all steps of a run, with what comes due between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.common.peers import meet
from miniclip.common.stopping import Left, Stopped, Stopping
from miniclip.data.loader import Batch
from miniclip.data.recolour import shrink
from miniclip.losses.captions import training_chance
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.training.batches import TrainBatches, image_side, phases
from miniclip.training.best import Best, Choice
from miniclip.training.checkpoint import Checkpoints, Progress, handed_out, whole_model
from miniclip.training.diagnostics import at_clamp, local, traced
from miniclip.training.optim import learning_rate
from miniclip.training.run_dir import append_metrics
from miniclip.training.step import Learner
from miniclip.training.throughput import Bar, Throughput, measured_throughput


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the weights are still those of the step before."""


class Hooks(NamedTuple):
    """What a run does besides its steps; models come whole and on their device.

    evaluate: every process calls it with the number of steps done, the same model and what may raise Left between two
    batches, and gets what is logged, and the figure of eval.best.
    keep_matrix: the main process calls it with the number of steps done. finish: every process calls it with the
    finished model and what results.json says of the training, and gets what results.json holds.
    """

    evaluate: Callable[[int, DualEncoder, Callable[[], object]], tuple[dict[str, float], Choice | None]]
    keep_matrix: Callable[[int, DualEncoder], None]
    finish: Callable[[DualEncoder, Preprocess, dict[str, Any]], dict[str, Any]]


class Loop:
    """One run's steps; the state that a step hands to the next."""

    def __init__(
        self, learner: Learner, feed: TrainBatches, hooks: Hooks, stopping: Stopping, progress: Progress
    ) -> None:
        self.learner, self.feed, self.hooks, self.stopping, self.progress = learner, feed, hooks, stopping, progress
        self.config, self.accelerator = learner.config, learner.accelerator
        self.main, self.run_dir = self.accelerator.is_main_process, Path(self.config.run.dir)
        self.best = Best(self.run_dir, self.config.eval.best)
        self.checkpoints = Checkpoints(
            self.accelerator, self.run_dir, self.config.run.keep, stopping, progress.step, learner.average
        )
        self.clamped = list(progress.clamped)
        self._saved, self._overdue = monotonic(), False

    def run(self) -> None:
        """All steps that are left; evaluation and checkpoints in between, and a checkpoint at the end."""
        config, steps, first = self.config, self.feed.steps, self.progress.step
        profiled = config.train.profile_steps if self.main else 0
        throughput = measured_throughput(self.learner)
        batches = self.feed.start(first, self.progress.feed)
        with (
            Bar(first, steps, config.log.progress and self.main) as bar,
            traced(profiled, steps - first, self.run_dir / "trace.json") as end_of_step,
            self.stopping.noting(batches),
            self.checkpoints,
        ):
            if config.log.matrix_every and not first:
                with throughput.paused():
                    self._keep_matrix(0)
            if (self.progress.left or not first) and self._due(first):
                with throughput.paused():
                    self._evaluate(first)
                self._stop_if_agreed(first)
            for step in range(first, steps):
                with throughput.waiting():
                    batch = next(batches)
                    if self.learner.cut.image is None:
                        batch = batch._replace(image=shrink(batch.image, image_side(step, steps, config)))
                throughput.add(batch)
                done = step + 1
                logged = done % config.log.every == 0 or done == steps
                values = self._step(step, batch, logged)
                end_of_step()
                if each := bar.step(done):
                    bar.tell(throughput.expected(batch, each, phases(done, steps, config)))
                if logged:
                    bar.show(self._log_step(done, values, throughput))
                with throughput.paused():
                    self._between(done)

    def _step(self, step: int, batch: Batch, logged: bool) -> dict[str, Any]:
        """One update of the weights; returns what is logged of it, if it is. Raises NonFiniteLoss."""
        rate = learning_rate(step, self.feed.steps, self.config.optim)
        taken = self.learner.step(batch, step, rate, self.feed.shares(step), self._agreed, logged)
        if not taken.finite:
            raise NonFiniteLoss(
                f"loss {taken.loss}, gradient norm {taken.norm} at step {step + 1} (lr {rate:.2e}, logit scale "
                f"{taken.scale:.1f}); the step was not taken. {self._advice()}"
            )
        self.clamped.append(at_clamp(taken.scale))
        if not logged:
            return {}
        values = {"loss": taken.loss, "logit_scale": taken.scale, "lr": rate, "grad_norm": taken.norm} | taken.figures
        values["scale_clamped"] = sum(self.clamped) / len(self.clamped)
        self.clamped.clear()
        return values

    def _agreed(self, loss: Tensor) -> float:
        """The loss's mean over the processes, for each has its own rows; with it travels who was asked to stop, and
        whether the main process's clock says that a checkpoint is due."""
        minutes = self.config.run.checkpoint_minutes
        due = self.main and 0 < 60 * minutes <= monotonic() - self._saved
        parts = torch.cat([loss[None], loss.new_tensor([*self.stopping.wishes(), due])])
        value, *wishes, overdue = self.accelerator.reduce(parts, "mean").tolist()
        self.stopping.agree(wishes)
        self._overdue = overdue > 0
        return value

    def _log_step(self, done: int, values: dict[str, Any], throughput: Throughput) -> dict[str, Any]:
        data, steps = self.config.data, throughput.steps
        # decoupled's chance is ln(N - 1) = 0 at N = 2: avoid 0/0
        chance = training_chance(self.config.loss, data.batch_size, data.captions_per_image, done - 1) or 1
        seconds, speed = throughput.line(data.batch_size)
        values |= {"loss_over_chance": values["loss"] / chance, "epoch": self.feed.epoch(done)}
        values |= {"bad_pictures": len(self.feed.bad), **speed}
        self._log(done, values)
        so_far = self.progress
        self.progress = Progress(done, so_far.seconds + seconds, so_far.samples + steps * data.batch_size)
        return values

    def _between(self, done: int) -> None:
        """What is due after so many steps. The checkpoint comes last: a resume does again what follows it."""
        config, last = self.config, done == self.feed.steps
        checkpoint_every, matrix_every = config.run.checkpoint_every, config.log.matrix_every
        if matrix_every and (done % matrix_every == 0 or last):
            self._keep_matrix(done)
        left = self._due(done) and not self._evaluate(done)
        if last or (checkpoint_every and done % checkpoint_every == 0) or self._overdue or self.stopping.agreed:
            self._save(done, left)
        if last or self.stopping.agreed:
            self.checkpoints.wait()
        if last:
            self._agree()  # on what came since the step
        self._stop_if_agreed(done)

    def _due(self, done: int) -> bool:
        """Whether an evaluation is due after so many steps."""
        chosen, every = self.config.eval.best is not None, self.config.eval.every
        if not done:
            return bool(self.config.eval.guard)
        # the last step, too, may be the best; without a choice the final tables say enough of it
        return every > 0 and (chosen if done == self.feed.steps else done % every == 0)

    def _agree(self) -> None:
        self._agreed(torch.zeros((), device=self.accelerator.device))

    def _stop_if_agreed(self, done: int) -> None:
        if self.stopping.agreed:
            raise Stopped(self.stopping.agreed, f"after step {done} of {self.feed.steps}", self.stopping.checkpoint)

    def _leave_if_agreed(self) -> None:
        self._agree()
        if self.stopping.agreed:
            raise Left

    def _evaluate(self, step: int) -> bool:
        """The configured tasks on the validation split; the processes share the work, and their model is one.

        False if it was left at a batch, because a process was asked to stop.
        """
        with self.learner.averaged():
            model = whole_model(self.learner, self.main)
            model = handed_out(model, self.learner.model.blank, self.accelerator.device)
            try:
                values, choice = self.hooks.evaluate(step, model, self._leave_if_agreed)
            except Left:
                return False
            self._log(step, values)
            if self.main and choice is not None:
                self.best.offer(step, choice, model, self.learner.preprocess)
        meet()
        return True

    def _keep_matrix(self, step: int) -> None:
        """The matrix of the fixed batch, on the main process; the others wait."""
        with self.learner.averaged():
            model = whole_model(self.learner, self.main)
            if self.main and model is not None:
                self.hooks.keep_matrix(step, model)
        meet()

    def _save(self, step: int, left: bool) -> None:
        # with FSDP a process holds a part of each, and all of them have to stop
        broken = sum(not bool(torch.isfinite(local(p)).all()) for p in self.learner.model.parameters())
        if int(self.accelerator.reduce(torch.tensor(broken, device=self.accelerator.device))):
            raise NonFiniteLoss(f"the weights are not finite after step {step}; they were not saved. {self._advice()}")
        self._saved = monotonic()
        progress = self.progress._replace(step=step, feed=self.feed.state(), clamped=self.clamped, left=left)
        self.checkpoints.save(progress)

    def _advice(self) -> str:
        advice = "Lower optim.lr, lengthen optim.warmup_steps, or use train.precision fp32"
        if (self.run_dir / "checkpoints").exists():
            advice += f"; go on from the last checkpoint in {self.run_dir} with --run.resume true"
        return advice

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if self.main:
            append_metrics(self.run_dir, step, values)
        self.accelerator.log(values, step=step)

    def summary(self) -> dict[str, Any]:
        """Time and throughput of all steps, those before a resume included, without evaluation and checkpoints.

        bad: images that this process could not read. best: what eval.best chose, or None.
        """
        seconds, samples = self.progress.seconds, self.progress.samples
        speed = samples / seconds if seconds else None
        values = {"steps": self.feed.steps, "epochs": self.config.train.epochs, "train_seconds": seconds}
        return values | {"samples_per_s": speed, "bad": self.feed.bad.names, "best": self.best.record()}
