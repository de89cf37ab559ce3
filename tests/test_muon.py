"""Muon: against torch's own, matrix by matrix; who gets it; one optimiser for all that keeps, resumes and scales it."""

from __future__ import annotations

import math
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.closeness import by_parameter
from support.group import together
from support.models import tiny_model
from test_training import TINY
from torch import Tensor, nn

from miniclip import create_model
from miniclip.cli.train import run as train
from miniclip.cli.train import train_main
from miniclip.config import ConfigError, OptimConfig, load_config
from miniclip.models.cut import Tower
from miniclip.training.accelerator import check_sharding
from miniclip.training.learning import check_learning, parameter_groups
from miniclip.training.muon import Muon, iterated, iterated_on_gram, orthogonal
from miniclip.training.optim import build_optimizer

MUON = OptimConfig(name="muon", lr=2e-2, weight_decay=0.1)


def stepped(parameters: list[nn.Parameter], gradients: list[list[Tensor]], optimizer: torch.optim.Optimizer) -> None:
    for each in gradients:
        for parameter, gradient in zip(parameters, each, strict=True):
            parameter.grad = gradient.reshape(parameter.shape).clone()
        optimizer.step()


@pytest.mark.parametrize("half", [False, True])
def test_steps_are_those_of_torch(half: bool) -> None:
    """torch's own works in bfloat16, whose rounding is 2^-9: two steps of a fused, a tall, a convolution's matrix."""
    draw = torch.Generator().manual_seed(0)
    shapes = (24, 8), (16, 5), (4, 6, 3, 3)
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    gradients = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.3}
    ours = [nn.Parameter(value.clone()) for value in values]
    ours[2].data = ours[2].data.to(memory_format=torch.channels_last)
    plain: dict[str, Any] = {"weight_decay": 0.3, "lr": 0.1}
    groups = [{"params": ours[:1], "matrices": 3, **plain}, {"params": ours[1:], "matrices": 1, **plain}]
    stepped(ours, gradients, Muon(groups, half, fused=True))
    # q, k and v each for itself, a kernel as (out, in * height * width)
    split = [*values[0].split(8), values[1], values[2].flatten(1)]
    theirs = [nn.Parameter(value.clone()) for value in split]
    pieces = [[*each[0].split(8), each[1], each[2].flatten(1)] for each in gradients]
    stepped(theirs, pieces, torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options))  # type: ignore[arg-type]
    found = [*ours[0].detach().split(8), ours[1].detach(), ours[2].detach().flatten(1)]
    for mine, other, before in zip(found, theirs, split, strict=True):
        moved, expected = mine - before, other.detach() - before
        assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("shape", [(3, 8, 40), (3, 40, 8), (2, 12, 12)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    """The singular vectors stay, the singular values go to about 1; the size of the input does not matter."""
    draw = torch.Generator().manual_seed(1)
    rank = min(shape[1:])
    u, _ = torch.linalg.qr(torch.randn(shape[0], shape[1], rank, generator=draw))
    v, _ = torch.linalg.qr(torch.randn(shape[0], shape[2], rank, generator=draw))
    stack = u * torch.linspace(0.2, 3, rank) @ v.mT
    found = u.mT @ orthogonal(stack) @ v
    values = found.diagonal(dim1=1, dim2=2)
    assert float(values.min()) > 0.65 and float(values.max()) < 1.25
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonal(1e-3 * stack), orthogonal(stack), atol=1e-3, rtol=0)
    assert not orthogonal(torch.zeros(shape)).any()


def test_products_of_the_small_side() -> None:
    """Also where most singular values are small, as a gradient's are, they come to what the plain rounds make."""
    draw = torch.Generator().manual_seed(3)
    u, _, v = torch.linalg.svd(torch.randn(4, 32, 128, generator=draw, dtype=torch.float64), full_matrices=False)
    stack = u * torch.logspace(0, -6, 32) @ v
    stack /= torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    torch.testing.assert_close(iterated_on_gram(stack), iterated(stack), rtol=1e-9, atol=1e-9)
    found, expected = iterated_on_gram(stack.float()).double(), iterated(stack)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("preset", ["tiny-resnet", "tiny-vit"])
def test_who_gets_it(preset: str) -> None:
    with torch.device("meta"):
        model = create_model(preset)
    names = {p: name for name, p in model.named_parameters()}
    groups = parameter_groups(model, MUON)
    by = {n: {names[p] for g in groups if g["matrices"] == n for p in g["params"]} for n in (0, 1, 3)}
    assert set().union(*by.values()) == set(names.values()) and sum(map(len, by.values())) == len(names)
    assert all(name.endswith("attn.in_proj_weight") for name in by[3])
    assert all(p.ndim >= 2 for p, name in names.items() if name in by[1] | by[3])
    stem = {"visual.conv1.weight", "token_embedding.weight", "positional_embedding", "text_projection", "logit_scale"}
    assert stem <= by[0]
    inner = (
        "visual.layer1.0.conv2.weight" if preset == "tiny-resnet" else "visual.transformer.resblocks.0.mlp.c_fc.weight"
    )
    assert {inner, "transformer.resblocks.0.attn.out_proj.weight"} <= by[1]
    assert all(g["weight_decay"] == 0.1 for g in groups if g["matrices"])


def test_the_rest_moves_as_with_adamw() -> None:
    models = tiny_model(), tiny_model()
    plain = OptimConfig(lr=MUON.lr, weight_decay=MUON.weight_decay)
    moved = build_optimizer(models[0], MUON), build_optimizer(models[1], plain)
    draw = torch.Generator().manual_seed(2)
    for _ in range(2):
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
        for optimizer in moved:
            optimizer.step()
    later = nn.Parameter(torch.ones(2, 2))
    moved[0].add_param_group({"params": [later]})  # as a head that is no part of the model
    assert moved[0].param_groups[-1]["matrices"] == 0
    inner = {p for group in moved[0].param_groups if group["matrices"] for p in group["params"]}
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other) != (one in inner)


def options_of(folder: Path, *options: str) -> list[str]:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return ["--config", str(file), "--eval.tasks", "[]", "--optim.name", "muon", *options]


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_a_resume_is_exact(tmp_path: Path, encoder: str) -> None:
    resnet = {"patch_size": "null", "image_width": "8", "image_layers": "[1,1,1,1]", "image_heads": "4"}
    sizes = [f"--model.{key}={value}" for key, value in resnet.items()] if encoder == "resnet" else []
    whole, parts = (options_of(tmp_path, f"--model.image_encoder={encoder}", *sizes) for _ in range(2))
    train(load_config([*whole, "--run.dir", str(tmp_path / "whole")]))
    parts += ["--run.dir", str(tmp_path / "parts"), "--run.checkpoint_every", "3"]
    train(load_config(parts))
    rmtree(tmp_path / "parts/checkpoints/step_00000006")
    (tmp_path / "parts/results.json").unlink(missing_ok=True)
    train(load_config([*parts, "--run.resume", "true"]))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(expected[name], value) for name, value in found.items())


@pytest.mark.slow
def test_two_processes_move_as_one(tmp_path: Path) -> None:
    arguments = options_of(tmp_path, "--train.max_steps", "2", "--run.dir")
    assert train_main([*arguments, str(tmp_path / "one")]) == 0
    assert [each.value for each in together(2, train_main, [*arguments, str(tmp_path / "two")])] == [0, 0]
    for name, off in by_parameter(weights(tmp_path / "two"), weights(tmp_path / "one")).items():
        assert off < 1e-5, name


@pytest.mark.parametrize("names", [("adamw", "muon"), ("muon", "adamw")])
def test_no_resume_with_the_other(tmp_path: Path, names: tuple[str, str]) -> None:
    arguments = options_of(tmp_path, "--run.dir", str(tmp_path / "run"), "--optim.name")
    train(load_config([*arguments, names[0], "--train.max_steps", "2"]))
    with pytest.raises(ValueError, match=r"is the one of another optim.name: set that to what the run began with"):
        train(load_config([*arguments, names[1], "--run.resume", "true"]))


def test_an_overflow_in_fp16_leaves_all_as_it_is() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer, scaler = build_optimizer(model, MUON), torch.amp.GradScaler("cpu")
    for scale, moves in ((math.inf, False), (1.0, True)):
        loss = scaler.scale(sum(p.sum() for p in model.parameters()) * scale)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) != moves


def test_refused(tmp_path: Path) -> None:
    config = load_config(options_of(tmp_path))
    with pytest.raises(ConfigError, match=r"optim.name=muon takes whole matrices, which FSDP divides; use adamw, or"):
        check_sharding(config, SimpleNamespace(distributed_type="FSDP", num_processes=2))  # type: ignore[arg-type]
    opaque = SimpleNamespace(image_tower=Tower(), text_tower=Tower(), named_parameters=lambda: [("image_head.w", 0)])
    start: Any = SimpleNamespace(make=lambda: opaque)
    with pytest.raises(ConfigError, match="and the blocks of the image tower are not known; use adamw"):
        check_learning(config, start)
