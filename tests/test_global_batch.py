"""One process, several processes, micro-batches, and both: one gradient and one training, for every loss."""

from __future__ import annotations

import json
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file
from support.closeness import by_parameter, error
from support.group import together
from test_training import TINY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from miniclip.cli.train import train_main
from miniclip.config import LossConfig, ModelConfig, OptimConfig
from miniclip.losses.captions import training_loss
from miniclip.losses.matrix import GlobalBatch, gather, shares
from miniclip.models import create_model
from miniclip.training.gradcache import cached_backward
from miniclip.training.optim import build_optimizer

BATCH, SCENES, STEPS = 64, 150, 4
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
    "smoothing": Case(LossConfig(smoothing=0.1, image_to_text=0.8, positives="diagonal"), weighted=True),
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
    "captions among themselves": Case(LossConfig(text_to_text=0.5, smoothing=0.1), weighted=True, captions=3),
    "sigmoid, 3 captions": Case(LossConfig(name="sigmoid"), captions=3),
    "transport, 3 captions": Case(LossConfig(name="transport"), captions=3),
}


class Result(NamedTuple):
    """Loss of every step, the first one's gradient, every gradient's norm before clipping, and the last weights."""

    losses: list[float]
    gradient: dict[str, Tensor]
    norms: list[float]
    weights: dict[str, Tensor]


def build_model(pairwise: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    sizes = TINY["model"] | {"image_size": 16, "patch_size": 8, "context_length": 8, "vocab_size": 50}
    model = create_model(ModelConfig(**sizes, logit_bias_init=-2.0 if pairwise else None))
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


def draw_batch(step: int, captions: int, dtype: torch.dtype) -> list[Tensor]:
    """Images that come up again under another crop, and captions that are equal."""
    generator = torch.Generator().manual_seed(100 + step)
    scenes = torch.randn(SCENES, 3, 16, 16, generator=generator)
    sentences = torch.randint(1, 48, (SCENES, 8), generator=generator)
    end, position = torch.randint(2, 8, (SCENES, 1), generator=generator), torch.arange(8)
    sentences = sentences.where(position < end, 49 * (position == end))
    image_id = torch.randint(0, SCENES, (BATCH,), generator=generator)
    text_id = torch.randint(0, SCENES, (BATCH, captions), generator=generator)
    assert len(image_id.unique()) < BATCH and len(text_id.unique()) < BATCH * captions
    crop = torch.randn(BATCH, 3, 16, 16, generator=generator)
    weight = torch.rand(BATCH, generator=generator)
    return [(scenes[image_id] + 0.3 * crop).to(dtype), sentences[text_id], image_id, text_id, weight]


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
        image, text, image_id, text_id, weight = (t[own] for t in draw_batch(step, case.captions, dtype))
        text = text.flatten(0, 1)
        known = GlobalBatch.gathered(case.loss.positives, image_id, text_id, weight if case.weighted else None, sizes)
        loss_of = partial(training_loss, batch=known, config=case.loss, step=step)
        if micro is None:
            loss = loss_of(prepared(image, text))
            loss.backward()
        else:
            no_sync: Any = prepared.no_sync if world > 1 else nullcontext
            loss, _ = cached_backward(prepared, image, text, loss_of, chunk=micro, no_sync=no_sync)
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
    assert torch.equal(gather(torch.tensor([rank]), [1] * world), torch.arange(world))
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


# float32 is off by the order of its sums; in float64 no error of the method would pass
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


@cache
def plain(name: str, dtype: torch.dtype) -> Result:
    """One process, the whole batch at once: what all others must equal."""
    torch.set_num_threads(1)
    return train(CASES[name], None, dtype)


def by_part(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Errors of the image tower, the text tower, scale and bias."""
    grouped: dict[str, list[str]] = {}
    for name in ours:
        part = name if name.startswith("logit") else "image" if name.startswith("visual.") else "text"
        grouped.setdefault(part, []).append(name)
    return {part: error([ours[n] for n in names], [theirs[n] for n in names]) for part, names in grouped.items()}


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: float, times: int, name: str) -> None:
    """times: what a single parameter may be off, where few entries' rounding does not average out."""
    for found, limit in ((by_parameter(ours, theirs), times * most), (by_part(ours, theirs), most)):
        assert max(found.values()) <= limit, f"{name}: {found}"


def assert_same_training(name: str, dtype: torch.dtype, ours: Result) -> None:
    theirs, tolerance = plain(name, dtype), TOLERANCE[dtype]
    for what in ("gradient", "weights"):
        assert_alike(getattr(ours, what), getattr(theirs, what), tolerance, 2, f"{name}, {dtype}: {what}")
    assert ours.losses == pytest.approx(theirs.losses, rel=tolerance), name
    # of weights that differ by rounding already
    assert ours.norms == pytest.approx(theirs.norms, rel=10 * tolerance), name
    assert min(theirs.norms) > 2 * CLIP, f"{name} does not clip"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_equal_the_whole_batch(name: str, dtype: torch.dtype) -> None:
    assert_same_training(name, dtype, train(CASES[name], MICRO[1], dtype))


def all_trained() -> list[tuple[str, torch.dtype, Result]]:
    """In each process of a group, every case: at once, and in chunks in float64, where no error of the method hides."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    check_gather()
    world, found = dist.get_world_size(), []
    for dtype, micro in ((torch.float32, None), (torch.float64, MICRO[world])):
        for name, case in CASES.items():
            found.append((name, dtype, train(case, micro, dtype)))
            assert_equal_on_all(found[-1][2])
    dist.destroy_process_group()
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world: int) -> None:
    for name, dtype, result in together(world, all_trained)[0].value:
        assert_same_training(name, dtype, result)


COMMAND_LINE = {
    **TINY,
    "model": {**TINY["model"], "image_size": 16, "patch_size": 8},
    "data": {"source": "shapes", "size": 100, "batch_size": 64},
    "optim": {**TINY["optim"], "grad_clip": 0.1},
    "eval": {"size": 16, "tasks": []},
}


# of the whole batch: the loss, what is looked at beside it, and the parts of the gradient
FIGURES = (
    "loss", "r1_image_to_text", "cosine_positive", "alignment", "rank_image", "grad_norm_image", "grad_norm_text",
)  # fmt: skip


def trained(folder: Path, processes: int, options: list[str]) -> tuple[dict[str, Tensor], list[float]]:
    """Final weights and some figures of each step of a run of the command line."""
    for outcome in together(processes, train_main, ["--run.dir", str(folder), *options]):
        assert outcome.value == 0, outcome.complaints
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    assert min(step["grad_norm"] for step in steps) > 2 * 0.1, "the gradient is not clipped"
    return load_file(folder / "model" / "model.safetensors"), [step[name] for step in steps for name in FIGURES]


@pytest.mark.parametrize("loss", ["softmax", "transport"])
def test_command_line(loss: str, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(COMMAND_LINE))
    options = ["--config", str(config), "--loss.name", loss]
    expected, figures = trained(tmp_path / "plain", 1, options)
    for processes, micro in ((1, "16"), (2, "null"), (2, "8"), (3, "null")):
        name = f"{processes} processes, micro {micro}"
        found, logged = trained(tmp_path / name, processes, [*options, "--train.micro_batch_size", micro])
        assert logged == pytest.approx(figures, rel=5e-6), name
        # the biases start at 0, and their norm is that of the few steps that they took
        assert_alike(found, expected, 1e-6, 10, name)
