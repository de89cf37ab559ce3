"""One training step: images and token ids -> embeddings -> loss of the global batch -> gradients -> new weights.

The logits, scale * image @ text.T + bias, are made and consumed inside `losses.matrix.global_loss`, tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from miniclip.config import Config
from miniclip.data.loader import Batch
from miniclip.data.recolour import recolour
from miniclip.data.sampler import mix
from miniclip.losses.captions import training_loss
from miniclip.losses.matrix import Embeddings, GlobalBatch
from miniclip.models.cut import Cut
from miniclip.models.start import Start
from miniclip.models.vocabulary import use_small_vocabulary_
from miniclip.training.accelerator import tune_for_device
from miniclip.training.diagnostics import step_figures
from miniclip.training.dropout import drop_
from miniclip.training.ema import Average
from miniclip.training.gradcache import cached_backward
from miniclip.training.learning import lock_
from miniclip.training.optim import build_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


class Taken(NamedTuple):
    """A step. loss: over all processes. scale, norm: the logit scale and the gradient's 2-norm before the update.
    finite: whether the weights moved. figures: more of it, where it was watched."""

    loss: float
    scale: float
    norm: float
    finite: bool
    embeddings: Embeddings
    figures: dict[str, float]


class Learner:
    """The model that a run begins from with its optimiser, on its device.

    config: with its model resolved. cut: which inputs of the towers are features. vocabulary: token ids whose rows
    alone are trained; see use_small_vocabulary_. model: the DualEncoder. prepared: what a step calls, the model inside
    of what distributes it. options: of the optimiser's groups, as the config has them.
    """

    prepared: nn.Module

    def __init__(
        self, config: Config, accelerator: Accelerator, start: Start, vocabulary: Tensor | None = None
    ) -> None:
        self.config, self.accelerator, self.preprocess, self.cut = config, accelerator, start.preprocess, Cut()
        torch.manual_seed(config.run.seed)
        self.model = start.make()
        if vocabulary is not None:
            use_small_vocabulary_(self.model.text_tower, vocabulary)
        drop_(self.model, config.train)
        lock_(self.model, config.model)
        tune_for_device(self.model, accelerator.device, config.train.compile)
        sharded = accelerator.distributed_type == "FSDP"
        if sharded:
            self.model.flatten_scalars_()
        optimizer = build_optimizer(self.model, config.optim, config.train.precision == "bf16")
        self.options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        if sharded:
            # which Accelerate leaves out for FSDP
            self.prepared.forward = accelerator.autocast()(self.prepared.forward)
        self.prepared.train()
        state = partial(accelerator.get_state_dict, self.prepared)
        self.average = Average(self.model, config.train.ema, state) if config.train.ema else None

    def averaged(self) -> AbstractContextManager[None]:
        """The model is what leaves the training: with train.ema the mean of its weights stands in it."""
        return nullcontext() if self.average is None else self.average.in_place()

    def inputs(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S), 0 to 255 -> what the image tower takes."""
        if self.cut.image is not None:
            return image
        return self.preprocess.normalize(image).to(memory_format=self.model.visual.memory_format)

    def step(
        self,
        batch: Batch,
        number: int,
        rate: float,
        sizes: list[int],
        mean: Callable[[Tensor], float] = float,
        watched: bool = False,
    ) -> Taken:
        """Move the weights once, unless the loss or its gradient is not finite.

        batch: of this process, on its device. number: of the step, for losses that change along the training. rate:
        the learning rate. sizes: images of each process. mean: the processes' losses -> that of the global batch.
        """
        config, accelerator = self.config, self.accelerator
        # what a step draws, such as the patches that are left out, hangs on nothing that was drawn before it
        torch.manual_seed(mix(config.run.seed, number, accelerator.process_index))
        coloured = self.cut.image is None and (config.data.flip or config.data.colour_jitter)
        pixels = recolour(batch.image, batch.look) if coloured else batch.image
        image, weight = self.inputs(pixels), batch.weight if config.data.weights_for == "loss" else None
        known = GlobalBatch.gathered(config.loss.positives, batch.image_id, batch.text_id, weight, sizes)
        loss_of = partial(training_loss, batch=known, config=config.loss, step=number)

        if chunk := config.train.micro_batch_size:
            options: dict[str, Any] = {
                "chunk": chunk,
                "cut": self.cut,
                "no_sync": partial(accelerator.no_sync, self.prepared),
            }
            loss, embeddings = cached_backward(
                self.prepared, image, batch.text, loss_of, backward=accelerator.backward, **options
            )
        else:
            embeddings = self.prepared(image, batch.text, self.cut)
            loss = loss_of(embeddings)
            accelerator.backward(loss)

        value, scale = mean(loss.detach()), float(embeddings.scale.detach())
        norm = float(accelerator.clip_grad_norm_(self.prepared.parameters(), config.optim.grad_clip or math.inf))
        # fp16's loss scaling skips a step whose gradient overflows, and goes on with a smaller scale
        finite = math.isfinite(value) and (math.isfinite(norm) or accelerator.scaler is not None)
        figures = step_figures(self.model, norm, embeddings, known, config.loss, number) if watched and finite else {}
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            self.optimizer.step()
            self.model.clamp_logit_scale_()
            if self.average is not None:
                self.average.update(number + 1)
        self.optimizer.zero_grad()
        return Taken(value, scale, norm, finite, embeddings.detach(), figures)
