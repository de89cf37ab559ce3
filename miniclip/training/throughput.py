"""How fast a run is, and what it does with its time: for the log and the progress bar."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from miniclip.data.loader import Batch
from miniclip.models import DualEncoder
from miniclip.models.cut import Cut
from miniclip.training.flops import Flops, matmul_peak, model_flops
from miniclip.training.learning import locked_cut
from miniclip.training.step import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

TIMED = 4  # steps from which the time of all is told; the first of them warms up


class Throughput:
    """Adds up the steps since the last line of the log, and their time without what was paused for.

    flops: of the towers, by the side of the images. peak: FLOP/s that a device reaches in large matrix products.
    features: of which towers the batches hold features.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        flops: Callable[[int], Flops],
        peak: float,
        features: Cut = Cut(),  # noqa: B008
    ) -> None:
        self.accelerator, self.flops, self.peak, self.features = accelerator, flops, peak, features
        self._clear()

    def _clear(self) -> None:
        self.since = time.perf_counter()
        self.waited, self.steps, self.tokens, self.pixels, self.work = 0.0, 0, 0, 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the step waits for: its batch."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what does not count as training time."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def add(self, batch: Batch) -> None:
        """One step of this process."""
        self.steps += 1
        self.tokens += sum(batch.lengths)
        self.pixels += len(batch.image) * self._side(batch) ** 2
        self.work += self.flops(self._side(batch)).step(len(batch.image), batch.lengths)

    def _side(self, batch: Batch) -> int:
        return batch.image.shape[-1] if self.features.image is None else 0

    def line(self, batch_size: int) -> tuple[float, dict[str, float]]:
        """Seconds since the last line, and what is logged of them; every process calls it.

        batch_size: of all processes. data_wait: share of the time. mfu: model FLOPs over what the devices could do.
        """
        seconds, device = time.perf_counter() - self.since, self.accelerator.device
        # a device may lack float64, and float32 is enough for what is only shown
        counts = torch.tensor([self.tokens, self.pixels, self.work], dtype=torch.float32, device=device)
        tokens, pixels, work = self.accelerator.reduce(counts).tolist()
        values = {
            "samples_per_s": self.steps * batch_size / seconds,
            "data_wait": self.waited / seconds,
            "tokens_per_s": tokens / seconds,
            "pixels_per_s": pixels / seconds,
            "mfu": work / seconds / (self.peak * self.accelerator.num_processes),
            "memory_peak_gb": peak_memory(device) / 1e9,
        }
        self._clear()
        return seconds, values

    def expected(self, batch: Batch, seconds: float, phases: Sequence[tuple[int, int]]) -> str:
        """How long (image side, steps) in turn will take, by the work of each; seconds: of a step with this batch."""
        whole = self.flops(self._side(batch)).step(len(batch.image), batch.lengths)
        if not whole > 0 or self.features.image is not None:
            return expected_time([(sum(steps for _, steps in phases), seconds)])
        work = {side: self.flops(side).step(len(batch.image), batch.lengths) for side, _ in phases}
        return expected_time([(steps, work[side] * (seconds / whole)) for side, steps in phases])


def measured_throughput(learner: Learner) -> Throughput:
    """Measures what the device can do. The MFU is NaN for towers whose arithmetic cannot be counted."""
    config, device = learner.config, learner.accelerator.device
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision, torch.float32)
    locked, full = locked_cut(learner.model, config.model), config.model.image_size or 0

    @cache
    def flops(side: int) -> Flops:
        try:
            with torch.device("meta"):  # which draws no random numbers
                model = learner.model.blank()
            model.visual.patch_dropout = config.train.patch_dropout
            return model_flops(model, side or full, locked, learner.cut)
        except Exception as error:
            if type(learner.model) is DualEncoder:
                raise
            log.info("the arithmetic of these towers cannot be counted: %s", error)  # some look at their input
            return Flops(math.nan, (math.nan, math.nan, math.nan))

    return Throughput(learner.accelerator, flops, matmul_peak(device, dtype), learner.cut)


class Bar:
    """The progress bar of steps first to total - 1, which also tells how long they will take. Closes as a context."""

    def __init__(self, first: int, total: int, shown: bool) -> None:
        from tqdm import tqdm

        interval = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file gets a line now and then
        options: dict[str, Any] = {"desc": "training", "unit": "step", "smoothing": 0.05, "mininterval": interval}
        self.bar = tqdm(initial=first, total=total, disable=not shown, **options)
        self.first, self.total, self.shown, self.timed = first, total, shown, 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, done: int) -> float:
        """So many are done. Seconds of a step, at the one from which that can be told; else 0."""
        self.bar.update()
        if done == self.first + 1:
            self.bar.refresh()  # a log file would wait for its interval
            self.timed = time.perf_counter()
        elif done == self.first + TIMED and done < self.total and self.shown:
            return (time.perf_counter() - self.timed) / (TIMED - 1)
        return 0.0

    def tell(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def show(self, values: dict[str, Any]) -> None:
        """What the log says, behind the bar."""
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f} ({values['loss_over_chance']:.2f} of chance), "
            f"scale {values['logit_scale']:.1f}, {values['samples_per_s']:.0f} samples/s, "
            f"{values['data_wait']:.0%} waiting, MFU {values['mfu']:.0%}",
            refresh=False,
        )


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
