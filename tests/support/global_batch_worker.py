"""One process of test_global_batch.py: trains every case over its part of the batch and writes down what came out.

python global_batch_worker.py rank world rendezvous-file result-file
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from miniclip import create_model
from miniclip.config import LossConfig, ModelConfig, OptimConfig
from miniclip.losses.matrix import Embeddings, gather, shares
from miniclip.losses.objective import GlobalBatch, global_loss
from miniclip.training.gradcache import cached_backward
from miniclip.training.optim import build_optimizer

BATCH, SCENES, STEPS = 64, 150, 5
CLIP = 0.05  # below every case's gradient norm, so that it clips
OPTIM = OptimConfig(lr=1e-3)
# pairs at a time, by the number of processes; three have 22, 21 and 21, which are 4, 3 and 3 chunks of 7
MICRO = {1: 16, 2: 8, 3: 7}


class Case(NamedTuple):
    loss: LossConfig
    weighted: bool = False
    captions: int = 1


CASES: dict[str, Case] = {
    "softmax": Case(LossConfig()),
    "smoothing": Case(LossConfig(smoothing=0.1, positives="diagonal"), weighted=True),
    "sigmoid": Case(LossConfig(name="sigmoid")),
    "sigmoid weighted": Case(LossConfig(name="sigmoid", positives="diagonal"), weighted=True),
    "focal": Case(LossConfig(name="focal", positives="text")),
    "focal sigmoid": Case(LossConfig(name="focal", focal_form="sigmoid")),
    "hinge": Case(LossConfig(name="hinge"), weighted=True),
    "hinge hardest": Case(LossConfig(name="hinge", hardest=1.0, hardest_warmup=3)),
    "decoupled": Case(LossConfig(name="decoupled", positives="diagonal")),
    "soft": Case(LossConfig(name="soft"), weighted=True),
    "transport": Case(LossConfig(name="transport"), weighted=True),
    "softmax, 3 captions": Case(LossConfig(), weighted=True, captions=3),
    "sigmoid, 3 captions": Case(LossConfig(name="sigmoid"), captions=3),
    "transport, 3 captions": Case(LossConfig(name="transport"), captions=3),
}


class Result(NamedTuple):
    """Loss of every step, the first one's gradient, every gradient's norm before clipping, and the last weights."""

    losses: list[float]
    gradient: dict[str, Tensor]
    norms: list[float]
    weights: dict[str, Tensor]


class Pairs(NamedTuple):
    """A whole batch; see miniclip.data.loader.Batch."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    weight: Tensor


def build_model(pairwise: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(
        ModelConfig(
            embed_dim=8,
            image_encoder="vit",
            image_size=16,
            patch_size=8,
            image_width=16,
            image_heads=2,
            image_layers=1,
            context_length=8,
            vocab_size=50,
            text_width=16,
            text_heads=2,
            text_layers=1,
            logit_bias_init=-2.0 if pairwise else None,
        )
    )
    with torch.no_grad():
        # as of a trained model: at first all embeddings are nearly one, so that the pairs' gradients cancel one another
        # and float32 leaves five digits of them, whoever computes them; and an error relative to a bias of 0 is none
        for name, parameter in model.named_parameters():
            if name in ("token_embedding.weight", "positional_embedding"):
                parameter *= 50
            elif "resblocks" in name and parameter.ndim == 2:
                parameter *= 2
            elif name.endswith("bias"):
                parameter += 0.3 * torch.randn(parameter.shape)
    model.packs = True  # as in training on a CPU
    return model.to(dtype)


def draw_batch(step: int, captions: int, dtype: torch.dtype) -> Pairs:
    """Pictures that come up again under another crop, and captions that are equal."""
    generator = torch.Generator().manual_seed(100 + step)
    scenes = torch.randn(SCENES, 3, 16, 16, generator=generator)
    sentences = torch.randint(1, 48, (SCENES, 8), generator=generator)
    length = torch.randint(3, 9, (SCENES, 1), generator=generator)
    position = torch.arange(8)
    sentences = torch.where(position < length - 1, sentences, torch.where(position == length - 1, 49, 0))
    image_id = torch.randint(0, SCENES, (BATCH,), generator=generator)
    text_id = torch.randint(0, SCENES, (BATCH, captions), generator=generator)
    assert len(image_id.unique()) < BATCH
    assert len(text_id.unique()) < BATCH * captions
    crop = torch.randn(BATCH, 3, 16, 16, generator=generator)
    weight = torch.rand(BATCH, generator=generator)
    return Pairs((scenes[image_id] + 0.3 * crop).to(dtype), sentences[text_id], image_id, text_id, weight)


def train(case: Case, micro: int | None, dtype: torch.dtype) -> Result:
    """STEPS of this process's share, as training does them; micro: pairs at a time, None takes the share at once."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    sizes = shares(BATCH, world)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    model = build_model(case.loss.pairwise, dtype)
    prepared = DistributedDataParallel(model) if world > 1 else model
    optimizer = build_optimizer(model, OPTIM)
    losses, norms, gradient = [], [], {}
    for step in range(STEPS):
        part = Pairs(*(t[own] for t in draw_batch(step, case.captions, dtype)))
        weight = part.weight if case.weighted else None
        known = GlobalBatch.gathered(case.loss.positives, part.image_id, part.text_id, weight, sizes)

        def loss_of(embeddings: Embeddings, known: GlobalBatch = known, step: int = step) -> Tensor:
            return global_loss(embeddings, known, case.loss, step)

        text = part.text.flatten(0, 1)
        if micro is None:
            loss = loss_of(prepared(part.image, text))
            loss.backward()
        else:
            no_sync: Any = prepared.no_sync if world > 1 else nullcontext
            loss, _ = cached_backward(prepared, part.image, text, loss_of, chunk=micro, no_sync=no_sync)
        value = loss.detach().clone()
        if world > 1:
            dist.all_reduce(value)
        losses.append(float(value) / world)
        if step == 0:
            gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_logit_scale_()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Result(losses, gradient, norms, weights)


def runs(world: int) -> list[tuple[torch.dtype, int | None]]:
    """In float64 an error of the method cannot hide; in chunks on every process everything is in it that can be."""
    return [(torch.float32, None), (torch.float32, MICRO[world]), (torch.float64, MICRO[world])]


def assert_equal_on_all(result: Result) -> None:
    """Bit for bit, or the processes drift apart."""
    mine = torch.cat([t.flatten() for t in (*result.gradient.values(), *result.weights.values())])
    of_all = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all, mine)
    assert all(torch.equal(other, mine) for other in of_all)


def check_gather() -> None:
    """Uneven parts in the order of the ranks, and a gradient of which the processes' mean is the loss's."""
    world, rank = dist.get_world_size(), dist.get_rank()
    sizes = [3, 1, 2][:world]
    expected = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    own = expected.split(sizes)[rank].clone().requires_grad_()
    assert torch.equal(gather(own, sizes), expected)
    assert torch.equal(gather(own.detach().long()[:, 0], sizes), expected.long()[:, 0])
    assert torch.equal(gather(torch.tensor([rank])), torch.arange(world))
    # process r's loss is (r + 1) times the sum of the squares; the gradient comes through two gathers of one tensor
    loss = (rank + 1) * (gather(own, sizes) * gather(own, sizes)).sum()
    loss.backward()
    assert own.grad is not None
    assert torch.equal(own.grad, sum(range(1, world + 1)) * 2 * own.detach())
    # an addition hands both gathers one gradient, and neither may write into it
    first, second = (torch.ones(sizes[rank], requires_grad=True) for _ in range(2))
    ((gather(first, sizes) + gather(second, sizes)) * torch.ones(sum(sizes))).sum().backward()
    for part in (first, second):
        assert torch.equal(part.grad, torch.full((sizes[rank],), float(world)))  # type: ignore[arg-type]


def main(rank: int, world: int, rendezvous: str, result_file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    assert dist.get_world_size() == world
    check_gather()
    results = {}
    for dtype, micro in runs(world):
        for name, case in CASES.items():
            results[dtype, micro, name] = train(case, micro, dtype)
            assert_equal_on_all(results[dtype, micro, name])
    if rank == 0:
        torch.save({key: tuple(value) for key, value in results.items()}, result_file)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once: the threads of a group that is still open would keep the process
