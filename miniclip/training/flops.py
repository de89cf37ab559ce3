"""How much arithmetic a model needs, and how much the machine can do: their quotient is the MFU.

A multiply-add counts as two operations, and only matrix products, convolutions and attention count, as in torch's
FlopCounterMode: the rest is below a hundredth. Attention counts in full though it is causal, as everybody counts it,
and so does a caption whose beginning another one has, too.

Axes: `B` captions, `L` tokens, `D` width, `E` embedding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miniclip.config import ModelConfig
from miniclip.models.presets import resolve
from miniclip.models.resnet import EXPANSION
from miniclip.models.vit import kept_patches


class Flops(NamedTuple):
    """Floating-point operations of the towers' forward pass.

    image: for one picture. by_power: for one caption of L tokens, the factors of 1, L and L^2.
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
    """What the towers of a model compute; config may leave fields to its preset.

    patch_dropout: that of the pictures, in [0, 1). Raises ConfigError for a config that no model can have.
    """
    config = resolve(config)
    image = _resnet(config) if config.image_encoder == "resnet" else _vit(config, patch_dropout)
    assert config.text_width and config.text_layers and config.embed_dim
    constant, linear, square = _transformer(config.text_width, config.text_layers)
    return Flops(image, (constant + 2.0 * config.text_width * config.embed_dim, linear, square))


def _transformer(width: int, layers: int) -> tuple[float, float, float]:
    """Factors of 1, L and L^2. The last block computes one token alone: keys and values of all, but the rest of it."""
    weights = float(width**2)  # a square matrix; input and output projections are 4 of them, the two of the MLP 8
    full = layers - 1
    return 2 * 10 * weights, full * 24 * weights + 2 * 2 * weights + 4 * width, full * 4.0 * width


def _vit(config: ModelConfig, patch_dropout: float) -> float:
    assert config.image_size and config.patch_size and config.image_width and config.embed_dim
    assert isinstance(config.image_layers, int)
    width = config.image_width
    patches = (config.image_size // config.patch_size) ** 2
    tokens = 1 + kept_patches(patches, patch_dropout)
    constant, linear, square = _transformer(width, config.image_layers)
    embedding = 2 * patches * 3 * config.patch_size**2 * width
    return embedding + constant + linear * tokens + square * tokens**2 + 2 * width * config.embed_dim


def _resnet(config: ModelConfig) -> float:
    assert config.image_size and config.image_width and config.image_heads and config.embed_dim
    assert isinstance(config.image_layers, tuple)
    width, side = config.image_width, config.image_size // 2
    stem = 3 * width // 2 + (width // 2) ** 2 + width // 2 * width
    multiplied = 9 * stem * side**2
    side //= 2
    channels_in = width
    for stage, blocks in enumerate(config.image_layers):
        channels = width * 2**stage
        for block in range(blocks):
            # a stride comes after the first two convolutions
            multiplied += channels * (channels_in + 9 * channels) * side**2
            if block == 0 and stage > 0:
                side //= 2
            multiplied += channels * EXPANSION * (channels + (channels_in if block == 0 else 0)) * side**2
            channels_in = channels * EXPANSION
    tokens = side**2 + 1  # the mean of the cells asks, and each cell answers each head
    multiplied += 3 * channels_in**2 + 2 * config.image_heads * tokens * channels_in
    return 2.0 * (multiplied + channels_in * config.embed_dim)


def matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Floating-point operations a second of the machine's best square matrix product, under the threads now set.

    dtype: float32, bfloat16 or float16, that of the run. Takes about `seconds` and, on a GPU, the time to warm up.
    """
    device = torch.device(device)
    sizes, repeats = ((512, 1024, 2048), 1) if device.type == "cpu" else ((4096, 8192), 10)
    end = time.perf_counter() + seconds
    best = 0.0
    for number, size in enumerate(sizes):
        cost = 2.0 * size**3 * repeats
        if best and time.perf_counter() + 2 * cost / best > end:
            break
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        _timed(device, 1, a, b, out)
        until = time.perf_counter() + (end - time.perf_counter()) / (len(sizes) - number)
        while True:
            best = max(best, cost / _timed(device, repeats, a, b, out))
            if time.perf_counter() >= until:
                break
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
        backend: Any = getattr(torch, device.type)
        backend.synchronize()
