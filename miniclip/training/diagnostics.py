"""What the log of a training says of a step, beyond its loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from miniclip.common.durable import whole_file
from miniclip.config import ConfigError, LossConfig
from miniclip.losses.matrix import Embeddings, GlobalBatch, gather
from miniclip.metrics.batch import PAIRS, batch_figures
from miniclip.metrics.slopes import handed, slope_figures, slopes
from miniclip.models import DualEncoder
from miniclip.models.clip import MAX_LOGIT_SCALE

BEFORE_TRACE = 3  # steps


@torch.no_grad()
def step_figures(
    model: DualEncoder, norm: float, embeddings: Embeddings, batch: GlobalBatch, config: LossConfig, step: int
) -> dict[str, float]:
    """tower_norms; batch_figures of the first PAIRS pairs of the global batch, each image with its first caption; and
    the slopes of the loss there, as that of these pairs alone.

    model, norm: as in tower_norms. embeddings: of this process; every process calls it. config, step: as in
    global_loss.
    """
    sizes, captions = batch.divided(), batch.positives.captions
    image = gather(embeddings.image.detach(), sizes)[:PAIRS]
    text = gather(embeddings.text.detach(), [size * captions for size in sizes])[::captions][:PAIRS]
    positives = batch.positives.of_images(slice(0, len(image)))[:, ::captions][:, : len(text)]
    scale, bias = float(embeddings.scale), None if embeddings.bias is None else float(embeddings.bias)
    logits, settings = handed(config, image, text, image @ text.T, scale, bias, step)
    weight = None if batch.weight is None else batch.weight[: len(image)]
    slope = slope_figures(slopes(logits, positives, config, settings, weight), positives)
    return tower_norms(model, norm) | batch_figures(image, text, scale, bias, positives) | slope


def tower_norms(model: DualEncoder, total: float) -> dict[str, float]:
    """2-norm of each tower's gradient, of which total is that of the whole, before it was clipped.

    Call it after the clipping: that changes the lengths, but not their ratio. A tower without gradients has 0.
    """
    parts: dict[str | None, list[Tensor]] = {"image": [], "text": [], None: []}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts[tower_of(name)].append(local(parameter.grad))
    device = next(model.parameters()).device
    # the empty sum has no device of its own
    norms = torch.stack([torch.nn.utils.get_total_norm(part).to(device) for part in parts.values()])
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        squares = norms.square()
        dist.all_reduce(squares)
        norms = squares.sqrt()
    image, text, rest = norms.tolist()
    share = total / (math.hypot(image, text, rest) or 1.0)
    return {"grad_norm_image": image * share, "grad_norm_text": text * share}


def tower_of(parameter: str) -> Literal["image", "text"] | None:
    """Which encoder a DualEncoder's parameter of this name belongs to, or its projection; None for scale and bias."""
    if parameter in ("logit_scale", "logit_bias"):
        return None
    return "image" if parameter.startswith(("visual.", "image_head.")) else "text"


def local(parameter: Tensor) -> Tensor:
    """This process's part of a tensor that FSDP has sharded; else the tensor."""
    part: Tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return part


def at_clamp(scale: float) -> bool:
    """Whether the logit scale stands at an end of what DualEncoder.clamp_logit_scale_ leaves it."""
    return scale >= math.exp(MAX_LOGIT_SCALE) * (1 - 1e-5) or scale <= 1 + 1e-5


def check_traced(steps: int, left: int) -> None:
    """Raise ConfigError if a run that begins has too few steps for a trace of so many; one that goes on may have."""
    if steps and left < steps + BEFORE_TRACE:
        raise ConfigError(
            f"train.profile_steps={steps}: {BEFORE_TRACE} steps come before, {left} are left; set it to at most "
            f"{max(0, left - BEFORE_TRACE)}"
        )


@contextmanager
def traced(steps: int, left: int, path: Path) -> Iterator[Callable[[], None]]:
    """Write what so many steps spend their time on to path; the context is to be called at the end of each step.

    left: steps that will be taken; if that is too few there is no trace, see check_traced. Raises DiskFull.
    """
    from torch import profiler

    if not steps or left < steps + BEFORE_TRACE:
        yield lambda: None
        return

    def write(trace: profiler.profile) -> None:
        with whole_file(path) as part:
            trace.export_chrome_trace(str(part))
            part.with_suffix(".room").write_bytes(bytes(4096))  # the export takes no notice of a full disk

    schedule = profiler.schedule(wait=1, warmup=BEFORE_TRACE - 1, active=steps, repeat=1)
    with profiler.profile(schedule=schedule, on_trace_ready=write) as found:
        yield found.step
