"""What the log says of a run's throughput, worked out by hand."""

from __future__ import annotations

import resource
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from support.group import together

from miniclip.data.loader import Batch
from miniclip.training.flops import Flops
from miniclip.training.throughput import Throughput, expected_time, peak_memory


def batch(images: int, side: int, lengths: list[int]) -> Batch:
    values: dict[str, Any] = dict.fromkeys(Batch._fields)
    return Batch(**values | {"image": torch.zeros(images, 3, side, side), "lengths": lengths})


def throughput() -> Throughput:
    """On two processes that do the same. An image of 8 pixels costs 100, a caption of L tokens 10 + 2 L + L^2."""
    machine = SimpleNamespace(device=torch.device("cpu"), num_processes=2, reduce=lambda counts: 2 * counts)
    return Throughput(cast(Any, machine), lambda side: Flops(12.5 * side, (10.0, 2.0, 1.0)), peak=1000.0)


def test_a_line_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    counted = throughput()
    for images, lengths, waited, paused in ((2, [3, 5], 0.5, 0.0), (1, [4], 0.25, 40.0)):
        with counted.waiting():
            now[0] += waited
        counted.add(batch(images, 8, lengths))
        now[0] += 1.125
        with counted.paused():
            now[0] += paused
    work = 3 * (3 * 100 + 3 * 10 + 2 * (3 + 5 + 4) + 9 + 25 + 16)
    seconds, values = counted.line(batch_size=6)
    memory = values.pop("memory_peak_gb")
    speeds = {"samples_per_s": 4, "tokens_per_s": 8, "pixels_per_s": 128, "mfu": work / 3 / 1000, "data_wait": 0.25}
    assert seconds == 3 and values == pytest.approx(speeds)
    assert memory == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, rel=0.2)
    now[0] += 2
    seconds, values = counted.line(batch_size=6)
    assert seconds == 2 and values["tokens_per_s"] == values["samples_per_s"] == values["data_wait"] == 0


def peaks() -> list[float]:
    before = peak_memory(torch.device("cpu"))
    block = b"x" * 100_000_000
    return [before, peak_memory(torch.device("cpu")), len(block)]


def test_the_peak_grows_with_what_is_used() -> None:
    # in a fresh process: this one may have memory to reuse
    before, after, block = together(1, peaks)[0].value
    assert 0.5 * block < after - before < 2 * block


def test_expected_time_by_hand() -> None:
    assert expected_time([(640, 0.55)]) == "about 6 min: 640 steps of 0.55 s"
    assert expected_time([(10, 0.125), (10, 4.0)]) == "about 41 s: 10 steps of 0.12 s, then 10 of 4 s"
    assert expected_time([(1000, 28.123)]) == "about 7.8 h: 1000 steps of 28 s"
    # a step's work: 2 images of 12.5 a pixel of their side, and 10 + 2 x 3 + 3 x 3 for each of 2 captions
    small, large = 2 * 12.5 * 4 + 2 * 25, 2 * 12.5 * 8 + 2 * 25
    found = throughput().expected(batch(2, 4, [3, 3]), 0.3, [(4, 30), (8, 10)])
    assert found == expected_time([(30, 0.3), (10, 0.3 * large / small)])
    assert found == "about 14 s: 30 steps of 0.3 s, then 10 of 0.5 s"
