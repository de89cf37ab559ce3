"""How fast a run is, and what it does with its time: for the log and the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from miniclip.data.loader import Batch
from miniclip.training.flops import Flops


class Pace:
    """Adds up the steps since the last line of the log.

    flops: of the towers, by the side of the pictures. peak: FLOP/s that this process's device reaches in large matrix
    products.
    """

    def __init__(self, device: torch.device, flops: Callable[[int], Flops], peak: float) -> None:
        self.device, self.flops, self.peak = device, flops, peak
        self.clear()

    def clear(self) -> None:
        self.waited, self.tokens, self.pixels, self.work = 0.0, 0, 0, 0.0

    def add(self, batch: Batch, waited: float) -> None:
        """One step of this process. waited: seconds until its batch was there."""
        self.waited += waited
        self.tokens += sum(batch.lengths)
        self.pixels += batch.image.shape[0] * batch.image.shape[-1] * batch.image.shape[-2]
        self.work += self.flops(batch.image.shape[-1]).step(len(batch.image), batch.lengths)

    def counts(self) -> torch.Tensor:
        """(3,) float64: tokens, pixels and FLOPs of this process; `values` takes their sum over the processes."""
        return torch.tensor([self.tokens, self.pixels, self.work], dtype=torch.float64)

    def values(self, counts: torch.Tensor, processes: int, seconds: float) -> dict[str, float]:
        """What is logged. data_wait: share of the time. mfu: model FLOPs over what the devices could have done."""
        tokens, pixels, work = counts.tolist()
        return {
            "data_wait": self.waited / seconds,
            "tokens_per_s": tokens / seconds,
            "pixels_per_s": pixels / seconds,
            "mfu": work / seconds / (self.peak * processes),
            "memory_peak_gb": peak_memory(self.device) / 1e9,
        }

    def expected(self, batch: Batch, seconds: float, phases: Sequence[tuple[int, int]]) -> str:
        """How long (image side, steps) in turn will take, by the work of each; seconds: of a step with this batch."""

        def work(side: int) -> float:
            return self.flops(side).step(len(batch.image), batch.lengths)

        scale = seconds / work(batch.image.shape[-1])
        return expected_time([(steps, work(side) * scale) for side, steps in phases])


def expected_time(phases: Sequence[tuple[int, float]]) -> str:
    """For the user: how long (steps, seconds of each) in turn will take."""
    total = sum(steps * seconds for steps, seconds in phases)
    whole = f"{total:.0f} s" if total < 90 else f"{total / 60:.0f} min" if total < 5400 else f"{total / 3600:.1f} h"
    (steps, seconds), *later = phases
    rest = "".join(f", then {steps} of {seconds:.2g} s" for steps, seconds in later)
    return f"about {whole}: {steps} steps of {seconds:.2g} s{rest}"


def peak_memory(device: torch.device) -> float:
    """Bytes: what torch had allocated on the GPU at most, or the largest size of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return float(psutil.Process().memory_info().rss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts in KiB
