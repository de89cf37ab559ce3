"""The number format that a device computes in fastest, and safely.

Mixed precision keeps weights, losses and the matrix in float32 and multiplies in 16 bits. Whether that is faster is the
device's affair: a processor without instructions for bf16 emulates them, and a step then takes tens of times as long.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from miniclip.common.processes import gathered
from miniclip.config.sections import Format, ImageEncoderKind
from miniclip.models import TOWERS

Wanted = Literal["auto", "fp32", "bf16", "fp16"]
WORTH = 1.2  # times as fast as fp32, from where bf16 is worth the digits that it loses
EMULATED = 0.25  # times as fast, below which a longer trial would take seconds and say the same


class Precision(NamedTuple):
    """name: what to compute in. why: for the user, the measured ratio with it. slow: asked for, but no gain here."""

    name: Format
    why: str
    slow: bool = False


def choose(wanted: Wanted, device: torch.device, encoder: ImageEncoderKind = "vit") -> Precision:
    """The precision of a run on a device. wanted: train.precision; all but auto are taken as they are.

    auto on CUDA: bf16 where it is native, else fp16, for which the loss is scaled. On MPS: bf16 where its autocast has
    it, else fp32. On a CPU: bf16 if a trial of a fraction of a second finds it WORTH it, else fp32.
    """
    if wanted == "fp32" or wanted == "fp16":
        return Precision(wanted, "as asked for")
    asked = wanted == "bf16"
    if device.type == "cpu":
        speed = speed_of_bf16(encoder)
        ratio = max(speed, 1 / speed)
        times = f"{ratio:.1f}" if ratio < 9.5 else f"{ratio:.0f}"
        why = f"bf16 {f'takes {times} times as long' if speed < 1 else f'is {times} times as fast'} on this processor"
        return Precision("bf16", why, slow=speed < 1) if asked or speed >= WORTH else Precision("fp32", why)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)
    why = f"bf16 is {'native' if native else 'emulated'} on this {device.type.upper()} device"
    if native or asked:
        return Precision("bf16", why, slow=not native)
    return Precision("fp16" if device.type == "cuda" else "fp32", why)


def agreed(wanted: Wanted, device: torch.device, encoder: ImageEncoderKind = "vit") -> Precision:
    """What `choose` says on the first of the processes, which all call this."""
    return Precision(*gathered([choose(wanted, device, encoder)])[0])


def for_encoding(name: Wanted) -> Literal["fp32", "bf16"]:
    """What evaluation computes in where training takes `name`: no loss is there to be scaled for fp16."""
    return "bf16" if name == "bf16" else "fp32"


@cache
def speed_of_bf16(encoder: ImageEncoderKind) -> float:
    """How many times as fast as in fp32 the CPU computes in bf16, under autocast, forward and backward.

    A product as in a Transformer and, for a ResNet, a convolution: a small trial, and a larger one unless that says
    enough. A fraction of a second, once a process, on one thread and by its own clock, whatever else runs beside it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in (32, 2048):
            layers: list[tuple[nn.Module, Tensor]] = [(nn.Linear(128, 512), torch.randn(rows, 128))]
            if TOWERS[encoder].memory_format == torch.channels_last:  # as convolutions have it
                pixels = torch.randn(rows // 16, 32, 16, 16).contiguous(memory_format=torch.channels_last)
                layers.append((nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last), pixels))
            speed = _seconds(layers, half=False) / _seconds(layers, half=True)
            if speed < EMULATED:
                break
    finally:
        torch.set_num_threads(threads)
    return speed


def _seconds(layers: list[tuple[nn.Module, Tensor]], half: bool) -> float:
    """The shortest of three passes, after one to warm up."""

    def once() -> float:
        start = time.thread_time()
        for layer, values in layers:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = layer(values.requires_grad_())
            out.sum().backward()
        return time.thread_time() - start

    once()
    return min(once() for _ in range(3))
