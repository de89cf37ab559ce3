"""Dropout and stochastic depth on the residual branches: what is left out, how often, and where nothing is."""

from __future__ import annotations

import re
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_training import TINY
from torch import Tensor, nn

from miniclip.cli.train import run as train
from miniclip.config import ConfigError, ModelConfig, TrainConfig, load_config
from miniclip.losses import LOSSES
from miniclip.losses.matrix import Embeddings
from miniclip.models import DualEncoder, create_model
from miniclip.models.cut import Tower
from miniclip.models.start import open_start
from miniclip.training.dropout import branches, drop_
from miniclip.training.gradcache import cached_backward
from miniclip.training.learning import check_learning, lock_

SIZES: dict[str, Any] = {**TINY["model"], "image_layers": 4, "text_layers": 2, "vocab_size": 60, "context_length": 12}
STAGES: dict[str, Any] = {"image_encoder": "resnet", "patch_size": None, "image_layers": [1] * 4, "image_width": 8}
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = torch.randint(1, 58, (6, 12), generator=torch.Generator().manual_seed(2))
TEXTS[:, 7] = 59


def model_of(encoder: str, **options: float) -> DualEncoder:
    torch.manual_seed(0)
    model = create_model(ModelConfig(**{**SIZES, **(STAGES | {"image_heads": 4} if encoder == "resnet" else {})}))
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):  # a fresh block adds nothing
            nn.init.ones_(parameter)
    drop_(model, TrainConfig(max_steps=1, **options))
    return model.train()


def added(model: DualEncoder, kind: str) -> list[list[Tensor]]:
    """What the branches of each block of a tower add, once the model has run."""
    tower = model.image_tower if kind == "image" else model.text_tower
    found: list[list[Tensor]] = [[] for _ in tower.blocks]
    for into, block in zip(found, tower.blocks, strict=True):
        for branch in branches(block):
            branch.register_forward_hook(lambda _, __, output, into=into: into.append(output.detach()))
    return found


@pytest.mark.parametrize(("encoder", "kind"), [("vit", "image"), ("resnet", "image"), ("vit", "text")])
def test_numbers_are_left_out_and_the_rest_scaled(encoder: str, kind: str) -> None:
    models = model_of(encoder), model_of(encoder, dropout=0.3)
    plain, found = (added(model, kind) for model in models)
    for model in models:
        model(IMAGES, TEXTS)
    assert len(found[-1]) == (1 if encoder == "resnet" else 2)
    first = found[0][0]
    torch.testing.assert_close(first[first != 0], plain[0][0][first != 0] / 0.7)
    zeros = torch.cat([(one == 0).flatten() for each in found[:-1] for one in each]).float()
    assert len(zeros) > 2000 and float(zeros.mean()) == pytest.approx(0.3, abs=0.04)  # 4 standard deviations


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_images_lose_whole_branches_the_deeper_the_more(encoder: str) -> None:
    """In the last of four blocks 6 of 10, in the first a quarter of that; each image by itself, and no text."""
    models = model_of(encoder), model_of(encoder, drop_path=0.6)
    plain, found = (added(model, "image") for model in models)
    texts = added(models[1], "text")
    models[0](IMAGES, TEXTS)
    for _ in range(100):
        models[1](IMAGES, TEXTS)
    lost = [torch.stack([(one.flatten(1) == 0).all(1) for one in each]) for each in found]
    for rate, each in zip((0.15, 0.3, 0.45, 0.6), lost, strict=True):
        assert float(each.float().mean()) == pytest.approx(rate, abs=0.08)  # of 600, at least: 4 standard deviations
        assert len({tuple(row) for row in each.tolist()}) > 5
    whole = ~lost[0][0]
    torch.testing.assert_close(found[0][0][whole], plain[0][0][whole] / 0.85)
    assert all((one != 0).any(-1).all() for each in texts for one in each)


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_nothing_is_left_out_elsewhere(encoder: str) -> None:
    """In evaluation, and in what is locked."""
    plain, dropping = model_of(encoder), model_of(encoder, dropout=0.5, drop_path=0.5)
    locked = ModelConfig(lock_image=2, lock_text=1)
    for model in (plain, dropping):
        model.eval()
    assert all(torch.equal(*each) for each in zip(plain(IMAGES, TEXTS)[:2], dropping(IMAGES, TEXTS)[:2], strict=True))
    lock_(dropping, locked)
    dropping.train()
    for tower, inputs, moves in ((dropping.image_tower, IMAGES, (2, 3)), (dropping.text_tower, TEXTS, (1, 2))):
        below, above = moves
        assert torch.equal(tower.lower(inputs, below), tower.lower(inputs, below))
        assert not torch.equal(tower.lower(inputs, above), tower.lower(inputs, above))


def test_gradient_caching_draws_again() -> None:
    """The cached gradient is that of the chunks' own embeddings: what central differences of the same draws say."""
    model = model_of("vit", dropout=0.2, drop_path=0.4).double()
    images = IMAGES.double()

    def loss_of(embeddings: Embeddings) -> Tensor:
        return LOSSES["softmax"](embeddings.scale * embeddings.image @ embeddings.text.T)

    def loss() -> float:
        torch.manual_seed(7)
        for parameter in model.parameters():
            parameter.grad = None
        return float(cached_backward(model, images, TEXTS, loss_of, chunk=4)[0])

    loss()
    for name in ("visual.transformer.resblocks.3.mlp.c_fc.weight", "transformer.resblocks.0.attn.out_proj.weight"):
        parameter = model.get_parameter(name)
        gradient = parameter.grad
        assert gradient is not None
        direction, gradient = gradient / gradient.norm(), gradient.clone()
        values = []
        for sign in (1, -1):
            parameter.data += sign * 1e-5 * direction
            values.append(loss())
            parameter.data -= sign * 1e-5 * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient.norm()), rel=1e-5)


DROPPED = ["--train.dropout", "0.2", "--train.drop_path", "0.3"]


def options_of(folder: Path, *options: str) -> list[str]:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return ["--config", str(folder / "tiny.yaml"), "--eval.tasks", "[]", *options]


def test_a_resume_is_exact(tmp_path: Path) -> None:
    arguments = options_of(tmp_path, *DROPPED, "--run.checkpoint_every", "3", "--run.dir")
    for name in ("whole", "parts"):
        train(load_config([*arguments, str(tmp_path / name)]))
    rmtree(tmp_path / "parts/checkpoints/step_00000006")
    (tmp_path / "parts/results.json").unlink()
    train(load_config([*arguments, str(tmp_path / "parts"), "--run.resume", "true"]))
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], value) for name, value in other.items())


REFUSED = [
    ("--train.dropout 1", "train.dropout=1.0 is a probability; use 0 to below 1"),
    ("--train.drop_path -0.1", "train.drop_path=-0.1 is a probability"),
    ("--train.dropout 0.1 --model.activation_checkpointing true", "train.dropout draws in the blocks what"),
    ("--train.drop_path 0.1 --model.lock_image true", "train.drop_path has nothing to leave out in a tower that is lo"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[options for options, _ in REFUSED])
def test_refused(tmp_path: Path, options: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        config = load_config(options_of(tmp_path, *options.split()))
        check_learning(config, open_start(config))


def test_refused_for_towers_of_other_libraries(tmp_path: Path) -> None:
    config = load_config(options_of(tmp_path, *DROPPED))

    class Foreign(Tower):
        blocks = (nn.Linear(2, 2),)

    for names, kind in ((("image_tower", "text_tower"), "image"), (("text_tower",), "text")):
        own = model_of("vit")
        towers = {"image_tower": own.image_tower, "text_tower": own} | dict.fromkeys(names, Foreign())
        start: Any = SimpleNamespace(make=lambda towers=towers: SimpleNamespace(**towers))
        with pytest.raises(ConfigError, match=f"those of the {kind} tower are another library's; set it to 0"):
            check_learning(config, start)
