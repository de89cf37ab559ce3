"""What training on several GPUs takes: memory, bytes over the network and the loss's arithmetic, by formula.

    python benchmarks/scale.py [--models ViT-B-32 ViT-B-16 ViT-L-14] [--gpus 1 8 64] [--each 512]
    python benchmarks/scale.py --check    # the formulas against runs of 1, 2 and 3 processes on this CPU

With DDP, the softmax loss and a caption an image; parameters, gradients and AdamW's two moments are float32. --check
counts what goes through the loopback of a network namespace of its own (`unshare -n`, else that of the machine, whose
other traffic then counts too), the bytes of the tensors that are there, and the loss's products by torch's counter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from miniclip.losses.tiles import DEVICE_TILE_ENTRIES, LEAST_ROWS, TILE_ENTRIES
from miniclip.models.start import open_start
from miniclip.models.tokenizer import END_OF_TEXT

HEAD = """\
| GPUs | batch | DDP, GB | FSDP, GB | loss, GB | sent: DDP, GB | FSDP, GB | embeddings, GB | loss, TFLOP | of the step |
"""
PROCESSES = (1, 2, 3)
PEAK_EACH, PEAK_WIDTH = 8192, 512  # at which the loss's memory is measured: it should stand out


def per_process(
    parameters: int, width: int, each: int, processes: int, tile: int = DEVICE_TILE_ENTRIES
) -> dict[str, float]:
    """Bytes, and floating-point operations of the loss. width: of the embeddings. each: pairs of a process.

    A ring sends all but a process's own share: of what is gathered each passes on all parts but one, of what is summed
    twice that share, once to sum and once to hand out.
    """
    n, share = each * processes, 1 - 1 / processes
    state, matrix = 4 * parameters, 4 * n * width
    return {
        "state": 4 * state,  # weights, gradients, two moments
        "buckets": state * (processes > 1),  # DDP's copy of the gradients
        "fsdp_state": 4 * state / processes,
        # at most: eight of all pairs' embeddings (gathered, gradients, their sums), four copies of a strip
        "loss_memory": 8 * matrix + 4 * 4 * min(each, max(LEAST_ROWS, tile // n)) * n,
        "sent_gradients": 2 * share * state,
        "sent_fsdp": 3 * share * state,  # weights are gathered forward and backward, gradients summed
        "sent_embeddings": 2 * share * matrix + 2 * 2 * share * matrix + 2 * share * 8 * n,  # the numbers of the pairs
        # rows of images and of texts: the products, and the gradients to either side
        "loss_flops": 2 * 3 * 2.0 * each * n * width,
    }


def activations(name: str) -> tuple[int, int, float, int]:
    """Parameters, width of the embeddings, FLOPs of a step for a pair, bytes that the backward pass of a pair needs.

    A caption of 77 tokens; float32, as counted on a CPU: what autograd keeps of a batch of two, less that of one.
    """
    from miniclip.config import ModelConfig
    from miniclip.models import create_model, resolve
    from miniclip.training.flops import forward_flops

    config = ModelConfig(preset=name)
    model = create_model(resolve(config))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(pairs: int) -> int:
        found: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        side = model.config.image_size
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            text = torch.randint(1, 49000, (pairs, 77))
            text[:, -1] = END_OF_TEXT
            out = model(torch.zeros(pairs, 3, side, side), text)
        del out
        return sum(found.values())

    parameters = sum(p.numel() for p in model.parameters())
    flops = forward_flops(config).step(1, [77])
    return parameters, model.config.embed_dim, flops, kept(2) - kept(1)


def tables(models: Sequence[str], gpus: Sequence[int], each: int) -> None:
    """Print what each model takes, in GB (10^9 bytes) and TFLOPs."""
    for name in models:
        parameters, width, flops, pair = activations(name)
        about = f"{parameters / 1e6:.1f} M parameters, embeddings of {width}, {pair / 1e6:.0f} MB of activations a pair"
        print(f"\n{name}: {about}\n\n{HEAD}{'|---' * 10}|")
        for count in gpus:
            one = per_process(parameters, width, each, count)
            gb = [one["state"] + one["buckets"], one["fsdp_state"], one["loss_memory"]]
            gb += [one["sent_gradients"], one["sent_fsdp"], one["sent_embeddings"]]
            of_step = one["loss_flops"] / (one["loss_flops"] + each * flops)
            cells = [f"{count}", f"{count * each:,}", *(f"{value / 1e9:.3f}" for value in gb)]
            print(f"| {' | '.join(cells)} | {one['loss_flops'] / 1e12:.3f} | {of_step:.2%} |")


def check(each: int = 32, model: str = "tiny-vit") -> None:
    """Print the formulas' figures beside those of real runs."""
    print("| processes | what | formula | measured | measured / formula |\n|---|---|---|---|---|")
    for processes in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/found.json"
            words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
            words += ["--master_addr", "127.0.0.1", __file__, "--worker", out, model, str(each)]
            alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
            permitted = not subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode
            subprocess.run([*(alone if permitted else []), *words], check=True)
            found = json.loads(Path(out).read_text())
        one = per_process(found["parameters"], found["width"], each, processes)
        expected = {name: one[name] for name in ("state", "buckets", "loss_flops")}
        expected["loss_memory"] = per_process(0, PEAK_WIDTH, PEAK_EACH, processes, TILE_ENTRIES)["loss_memory"]
        expected["sent"] = one["sent_gradients"] + one["sent_embeddings"]
        for name, value in expected.items():
            ratio = f"{found[name] / value:.4f}" if value else "-"
            print(f"| {processes} | {name} | {value:,.0f} | {found[name]:,.0f} | {ratio} |", flush=True)


def worker(out: str, model: str, each: int, steps: int = 4) -> None:
    """A few steps on random pairs; the first process writes what one of them took."""
    from dataclasses import replace

    from torch.utils.flop_counter import FlopCounterMode, addmm_flop

    from miniclip.config import load_config
    from miniclip.data.loader import Batch
    from miniclip.models import resolve
    from miniclip.training import step as steps_of
    from miniclip.training.accelerator import build_accelerator, form_group

    config = load_config(["--model.preset", model, "--train.max_steps", str(steps), "--train.precision", "fp32"])
    config = replace(config, model=resolve(config.model))
    found: dict[str, Any] = {}
    counted, in_place = steps_of.global_loss, {torch.ops.aten.addmm_: addmm_flop.__wrapped__}

    def counting(*given: Any, **named: Any) -> torch.Tensor:
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            loss = counted(*given, **named)
        found["loss_flops"] = counter.get_total_flops()
        return loss

    steps_of.global_loss = counting
    with form_group(config) as group:
        accelerator, _ = build_accelerator(config)
        rank, world = group.process_index, group.num_processes
        found["loss_memory"] = peak_of_the_loss(world)
        learner = steps_of.Learner(config, accelerator, open_start(config))
        parameters = list(learner.model.parameters())

        def count_state(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
            there = [*parameters, *(p.grad for p in parameters if p.grad is not None), *moments]
            found["state"] = sum(t.numel() * t.element_size() for t in there)

        learner.optimizer.optimizer.register_step_post_hook(count_state)
        draws = torch.Generator().manual_seed(rank)
        size = learner.model.config.image_size
        began = 0
        for number in range(steps):
            if number == 2:  # DDP's first steps order its buckets
                began = sent()
            image = torch.randint(0, 256, (each, 3, size, size), dtype=torch.uint8, generator=draws)
            text = torch.randint(1, 49000, (each, 77), generator=draws)
            text[:, -1] = END_OF_TEXT
            numbers = torch.arange(each) + each * rank
            batch = Batch(image, torch.zeros(each, 1), text, numbers, numbers[:, None], None, [77] * each, [])
            learner.step(batch, number, 1e-4, [each] * world, lambda loss: float(accelerator.reduce(loss, "mean")))
        found["sent"] = (sent() - began) / (steps - 2) / world
        logged = learner.prepared._get_ddp_logging_data() if world > 1 else {}
        found["buckets"] = sum(int(n) for n in str(logged.get("bucket_sizes", "0")).split(","))
        found |= {"parameters": sum(p.numel() for p in parameters), "width": learner.model.config.embed_dim}
        if rank == 0:
            Path(out).write_text(json.dumps(found))


def peak_of_the_loss(world: int) -> int:
    """Bytes that the loss of random embeddings, forward and backward, needs at most beside them."""
    from miniclip.config import LossConfig
    from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, global_loss

    def loss_of(each: int) -> None:
        image, text = (torch.randn(each, PEAK_WIDTH, requires_grad=True) for _ in range(2))
        numbers = torch.arange(each * world)
        batch = GlobalBatch(Positives.of("diagonal", numbers, numbers[:, None]), None, [each] * world)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        unit = Embeddings(image, text, torch.tensor(10.0, requires_grad=True), None)
        global_loss(unit, batch, LossConfig()).backward()

    loss_of(512)  # what the libraries take once
    before = resident("VmRSS")
    loss_of(PEAK_EACH)
    # without the embeddings themselves and their gradients, which the towers would have anyway
    return resident("VmHWM") - before - 4 * 4 * PEAK_EACH * PEAK_WIDTH


def resident(name: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith(name)]
    return 1024 * int(line.split()[1])


def sent() -> int:
    """Bytes that went out through the loopback, when all processes have come here."""
    from miniclip.common.peers import meet

    meet()
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    count = int(line.split(":")[1].split()[8])
    meet()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16", "ViT-L-14"], help="presets")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--each", type=int, default=512, help="pairs of each GPU")
    parser.add_argument("--check", action="store_true", help="measure on this CPU")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        out, model, each = options.worker
        worker(out, model, int(each))
    elif options.check:
        check()
    else:
        tables(options.models, options.gpus, options.each)


if __name__ == "__main__":
    main()
