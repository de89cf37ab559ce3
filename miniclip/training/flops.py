"""How much arithmetic a model needs, and how much the machine can do: their quotient is the MFU.

Counted by torch's FlopCounterMode: a multiply-add is two, and only matrix products, convolutions and attention count;
attention in full though it is causal, as everybody counts it, and so a caption whose beginning another one has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.config import ModelConfig
from miniclip.models import DualEncoder, create_model, resolve
from miniclip.models.cut import Cut, Tower


class Flops(NamedTuple):
    """Floating-point operations of the towers' forward pass. Of a locked part that a step runs a third, for it has no
    backward pass.

    image: for one image. by_power: for one caption of L tokens, the factors of 1, L and L^2.
    """

    image: float
    by_power: tuple[float, float, float]

    def text(self, lengths: Tensor | Sequence[int]) -> float:
        """All captions of these lengths, (B,) tokens each up to and with the end token; padding needs nothing."""
        length = torch.as_tensor(lengths, dtype=torch.float64, device="cpu")
        constant, linear, square = self.by_power
        return constant * length.numel() + linear * float(length.sum()) + square * float(length.square().sum())

    def step(self, images: int, lengths: Tensor | Sequence[int]) -> float:
        """Forward and backward, which is twice as much again. What is recomputed to save memory does not count."""
        return 3 * (images * self.image + self.text(lengths))


def forward_flops(config: ModelConfig, patch_dropout: float = 0.0) -> Flops:
    """What a model's towers compute. Raises ConfigError for a config that no model can have."""
    return _forward_flops(resolve(config), patch_dropout)


@cache
def _forward_flops(config: ModelConfig, patch_dropout: float) -> Flops:
    with torch.device("meta"):  # which draws no random numbers
        model = create_model(config)
        model.visual.patch_dropout = patch_dropout
    return model_flops(model, model.config.image_size or 0)


def model_flops(model: DualEncoder, side: int, locked: Cut = Cut(), features: Cut = Cut()) -> Flops:  # noqa: B008
    """What the towers of a model on the meta device compute. side: of the images, in pixels. locked: where the locked
    part of each tower ends. features: the same, where the inputs are features and that part does not run."""
    with torch.device("meta"):
        # two, for BatchNorm in training refuses the one cell of a small image
        images, texts = torch.empty(2, 3, side, side), [torch.zeros(1, n, dtype=torch.long) for n in (1, 2, 3)]
        image = _of_tower(model.encode_image, model.image_tower, model.image_from, images, locked.image, features.image)
        one, two, three = (
            _of_tower(model.encode_text, model.text_tower, model.text_from, text, locked.text, features.text)
            for text in texts
        )
    square = (three - 2 * two + one) / 2
    linear = two - one - 3 * square
    return Flops(image / 2, (one - linear - square, linear, square))


@torch.no_grad()
def _of_tower(
    encode: Callable[..., Tensor],
    tower: Tower,
    upper: Callable[..., Tensor],
    inputs: Tensor,
    locked: int | None,
    features: int | None,
) -> float:
    if locked is None:
        return _counted(encode, inputs)
    below = 0.0 if features is not None else _counted(tower.lower, inputs, locked)
    return below / 3 + _counted(upper, tower.lower(inputs, locked), locked)


def _counted(part: Callable[..., Tensor], *inputs: Any) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        part(*inputs)
    return float(counter.get_total_flops())


def matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Floating-point operations a second of the machine's best square matrix product, under the threads now set.

    dtype: float32, bfloat16 or float16, that of the run. Takes about `seconds` and, on a GPU, the time to warm up.
    """
    device = torch.device(device)
    draws = torch.Generator(device).manual_seed(0)  # how many depends on the clock: torch's own belongs to the training
    sizes, repeats = ((512, 1024, 2048), 1) if device.type == "cpu" else ((4096, 8192), 10)
    end = time.perf_counter() + seconds
    best = 0.0
    for number, size in enumerate(sizes):
        cost = 2.0 * size**3 * repeats
        if best and time.perf_counter() + 2 * cost / best > end:
            break
        a, b = (torch.randn(size, size, device=device, generator=draws).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        _timed(device, 1, a, b, out)
        until = time.perf_counter() + (end - time.perf_counter()) / (len(sizes) - number)
        best = max(best, cost / _timed(device, repeats, a, b, out))
        while time.perf_counter() < until:
            best = max(best, cost / _timed(device, repeats, a, b, out))
    return best


def _timed(device: torch.device, repeats: int, a: Tensor, b: Tensor, out: Tensor) -> float:
    _finish(device)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b, out=out)
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
