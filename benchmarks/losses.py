"""Time and memory of each loss, forward and backward, beside open_clip's ClipLoss and SigLipLoss in the same run.

    python benchmarks/losses.py [--sizes 1024,4096] [--losses softmax,ClipLoss] [--json FILE]

N images and N captions are random unit vectors in float32. Each figure comes from a fresh process, and within a round
all losses of one N take their turn. Seconds: the median over the rounds; a process repeats a short step for a second.
Memory: how far the process's peak lies above what it held once the vectors were there and torch was warm; the gradients
of the vectors belong to it. All processes have the same number of threads, and the C library's allocator as it comes.
Where the same quantity is computed twice, its value and gradients are compared, so that no figure stands for a wrong
result. A matrix that would not fit is not attempted. Linux only: the peak is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from miniclip.config import LossConfig
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss
from miniclip.training.accelerator import share_cores

PAIRWISE = ("sigmoid", "focal-sigmoid", "SigLipLoss")
NAMES = [
    "softmax",
    "softmax-duplicates",
    *(["linear_cross_entropy"] if hasattr(F, "linear_cross_entropy") else []),
    "ClipLoss",
    "sigmoid",
    "SigLipLoss",
    *(name for name in LOSSES if name not in ("softmax", "sigmoid")),
    "focal-sigmoid",
]
LABELS = {
    "softmax-duplicates": "softmax, a fifth of the captions twice",
    "linear_cross_entropy": "softmax, F.linear_cross_entropy",
    "ClipLoss": "softmax, open_clip's ClipLoss",
    "SigLipLoss": "sigmoid, open_clip's SigLipLoss",
    "focal-sigmoid": "focal, sigmoid form",
}
EQUAL = {"softmax": "ClipLoss", "linear_cross_entropy": "ClipLoss", "sigmoid": "SigLipLoss"}
WHOLE_MATRIX = {"ClipLoss", "SigLipLoss"} | {name for name, loss in LOSSES.items() if loss.whole_matrix}
SHARE = 0.8  # of the memory that is free: what a loss may be expected to need
PROBE = 4096  # the smallest N whose memory tells that of larger ones; it fits everywhere
MIB = 2**20
Run = dict[str, Any]  # what measure() returns


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1024,4096,16384,32768", help="N, with commas between")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", default=",".join(NAMES), help="with commas between; all of them if left out")
    parser.add_argument("--rounds", type=int, help="3 up to N = 4,096, 2 up to 16,384 and 1 above, if left out")
    parser.add_argument("--threads", type=int, help="one for each physical core, if left out")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what each process is started with
    options = parser.parse_args(arguments)
    sizes, names = sorted(int(size) for size in options.sizes.split(",")), options.losses.split(",")
    if unknown := set(names) - set(NAMES):
        raise SystemExit(f"--losses: {sorted(unknown)[0]} is unknown; use some of {', '.join(NAMES)}")
    if options.measure:
        print(json.dumps(measure(options.measure, sizes[0], options.dim, options.threads)))
        return
    if not Path("/proc/self/status").exists():
        raise SystemExit("benchmarks/losses.py reads peak memory from /proc, which only Linux has; run it there")

    runs: list[Run] = []
    for n in sizes:
        rounds = options.rounds or (3 if n <= 4096 else 2 if n <= 16384 else 1)
        for turn in range(rounds):
            for name in names:
                if any("note" in run for run in of(runs, n, name)):
                    continue
                runs.append(run := attempt(name, n, runs, options))
                said = run.get("note") or f"{run['seconds']:.3f} s, {run['memory'] / MIB:.0f} MiB"
                print(f"N = {n}, round {turn + 1} of {rounds}, {name}: {said}", file=sys.stderr, flush=True)
        compare(n, runs)
        show(n, names, runs, options.dim)
        if options.json:  # after every size, for the last one may take long
            result = {"machine": machine(), "dim": options.dim, "runs": runs}
            options.json.write_text(json.dumps(result, indent=2) + "\n")


def of(runs: list[Run], n: int, name: str) -> list[Run]:
    return [run for run in runs if (run["n"], run["loss"]) == (n, name)]


def attempt(name: str, n: int, runs: list[Run], options: argparse.Namespace) -> Run:
    """A run, or a note in place of its figures where a whole matrix would not fit, by what smaller N have needed."""
    if name in WHOLE_MATRIX and n > PROBE:
        if not any(PROBE <= run["n"] < n for run in runs if run["loss"] == name):
            runs.append(started(name, PROBE, options))
        known = {run["n"]: run["memory"] for run in runs if run["loss"] == name and "memory" in run}
        if not known:
            return {"loss": name, "n": n, "note": "did not fit at a smaller N"}
        need = known[max(known)] * (n / max(known)) ** 2
        if need > SHARE * psutil.virtual_memory().available:
            return {"loss": name, "n": n, "note": f"needs about {need / 2**30:.0f} GiB"}
    return started(name, n, options)


def started(name: str, n: int, options: argparse.Namespace) -> Run:
    """measure() in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, "--sizes", str(n), "--dim", str(options.dim)]
    command += [] if options.threads is None else ["--threads", str(options.threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(name: str, n: int, dim: int, threads: int | None) -> Run:
    """Seconds and bytes of one step, its loss and the size of its gradients; or a note that it did not fit."""
    share_cores(threads, 1)
    with suppress(OSError):  # should the machine run out of memory after all, this process is the one to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    embeddings, loss = made_up(n, dim, name in PAIRWISE), loss_of(name, n)
    small = made_up(256, dim, name in PAIRWISE)
    loss_of(name, 256)(small).backward()
    del small
    limit = psutil.virtual_memory().available * 0.9
    resource.setrlimit(resource.RLIMIT_AS, (int(status("VmSize") + limit), resource.RLIM_INFINITY))
    with suppress(OSError):  # forget the peak so far, which the warm-up has hardly raised
        Path("/proc/self/clear_refs").write_text("5")
    base = status("VmRSS")
    times: list[float] = []
    try:
        while not times or sum(times) < 1:
            for tensor in embeddings:
                if tensor is not None:
                    tensor.grad = None
            start = time.perf_counter()
            value = loss(embeddings)
            value.backward()
            times.append(time.perf_counter() - start)
            if len(times) == 1:
                memory = status("VmHWM") - base
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        return {"loss": name, "n": n, "note": f"more than the {limit / 2**30:.0f} GiB that were free"}
    gradients = [float(t.grad.norm()) for t in embeddings if t is not None and t.grad is not None]
    figures = {"seconds": statistics.median(times), "memory": memory, "values": [value.item(), *gradients]}
    return {"loss": name, "n": n, **figures}


def made_up(n: int, dim: int, pairwise: bool) -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(n, dim, generator=generator)).requires_grad_() for _ in range(2))
    scale = torch.tensor(14.3, requires_grad=True)
    return Embeddings(image, text, scale, torch.tensor(-10.0, requires_grad=True) if pairwise else None)


def loss_of(name: str, n: int) -> Callable[[Embeddings], Tensor]:
    """One of NAMES, for n images and as many captions."""
    if name == "ClipLoss":
        from open_clip.loss import ClipLoss

        clip = ClipLoss()
        return lambda e: clip(e.image, e.text, e.scale)
    if name == "SigLipLoss":
        from open_clip.loss import SigLipLoss

        siglip = SigLipLoss()
        return lambda e: siglip(e.image, e.text, e.scale, e.bias)
    ids = torch.arange(n)
    if name == "linear_cross_entropy":
        chunked = torch.nn.LinearCrossEntropyOptions()

        def both_ways(e: Embeddings) -> Tensor:
            by_images = F.linear_cross_entropy(e.scale * e.image, e.text, ids, options=chunked)
            return (by_images + F.linear_cross_entropy(e.scale * e.text, e.image, ids, options=chunked)) / 2

        return both_ways
    config = LossConfig("focal", focal_form="sigmoid") if name == "focal-sigmoid" else LossConfig(name.split("-")[0])
    captions = ids % (n - n // 5) if name == "softmax-duplicates" else ids
    batch = GlobalBatch(Positives.of("identity", ids, captions[:, None]))
    return lambda e: global_loss(e, batch, config)


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def compare(n: int, runs: list[Run]) -> None:
    """Raises SystemExit where two that compute the same differ by more than float32's rounding."""
    for name, peer in EQUAL.items():
        ours, theirs = ([run["values"] for run in of(runs, n, one) if "values" in run] for one in (name, peer))
        if (
            ours
            and theirs
            and not all(math.isclose(*pair, rel_tol=1e-4) for pair in zip(ours[0], theirs[0], strict=True))
        ):
            raise SystemExit(f"N = {n}: loss and gradients of {name}, {ours[0]}, are not {peer}'s, {theirs[0]}")


def show(n: int, names: list[str], runs: list[Run], dim: int) -> None:
    table = Table(title=f"N = {n:,}, D = {dim}: forward + backward", title_justify="left")
    table.add_column("loss")
    for column in ("seconds", "peak MiB", "time", "memory"):
        table.add_column(column, justify="right")
    table.add_column("times those of")

    def middle(name: str, key: str) -> float | None:
        done = of(runs, n, name)
        return statistics.median(run[key] for run in done) if done and all(key in run for run in done) else None

    for name in names:
        label, peer = LABELS.get(name, name), "SigLipLoss" if name in PAIRWISE else "ClipLoss"
        seconds, memory = middle(name, "seconds"), middle(name, "memory")
        if seconds is None or memory is None:
            table.add_row(label, "-", "-", "", "", of(runs, n, name)[-1]["note"])
            continue
        cells = [f"{seconds:.3f}", f"{memory / MIB:,.0f}"]
        their_seconds, their_memory = middle(peer, "seconds"), middle(peer, "memory")
        if peer != name and their_seconds and their_memory:
            cells += [f"{seconds / their_seconds:.2f}", f"{memory / their_memory:.3f}", peer]
        table.add_row(label, *cells)
    Console(width=110, highlight=False).print(table)


if __name__ == "__main__":
    main()
