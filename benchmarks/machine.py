"""What a figure depends on: the first line that the benchmarks print."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from miniclip.training.precision import choose


def machine(device: str = "cpu") -> str:
    """Processor or GPU, the cores that torch uses, its widest instructions, what bf16 gains here, torch's version."""
    known = Path("/proc/cpuinfo")  # Linux; the other systems name no more than the architecture
    names = re.findall(r"^model name\s*: (.+)$", known.read_text() if known.exists() else "", re.MULTILINE)
    parts = [torch.cuda.get_device_name()] if device == "cuda" else []
    parts += [names[0] if names else platform.processor() or platform.machine(), f"{torch.get_num_threads()} cores"]
    parts += [torch.backends.cpu.get_cpu_capability(), choose("auto", torch.device(device)).why]
    return ", ".join([*parts, f"torch {torch.__version__}"])
