"""Decay groups and the learning rate, against numbers worked by hand and torch's own scheduler."""

import math

import pytest
import torch

from miniclip import create_model
from miniclip.config import OptimConfig
from miniclip.training.learning import parameter_groups
from miniclip.training.optim import build_optimizer, learning_rate


def test_groups() -> None:
    for preset in ("tiny-resnet", "tiny-vit"):
        with torch.device("meta"):
            model = create_model(preset)
        decay, plain = parameter_groups(model, OptimConfig(weight_decay=0.2))
        assert (decay["weight_decay"], plain["weight_decay"]) == (0.2, 0.0)
        names = {id(p): n for n, p in model.named_parameters()}
        decayed = {names[id(p)] for p in decay["params"]}
        undecayed = {names[id(p)] for p in plain["params"]}
        assert decayed | undecayed == set(names.values()) and not decayed & undecayed
        assert {"logit_scale", "positional_embedding", "ln_final.weight"} <= undecayed
        assert {"token_embedding.weight", "text_projection", "visual.conv1.weight"} <= decayed
        assert not [n for n in decayed if n.endswith("bias") or ".ln_" in n or ".bn" in n or "positional" in n]


def test_warmup_and_cosine() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=4, schedule="cosine", final_lr=0.1)
    rates = [learning_rate(step, 15, config) for step in range(15)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[9] == pytest.approx(0.55)  # halfway: the mean of 1 and 0.1
    assert rates[-1] == pytest.approx(0.1)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    for rate in rates[4:]:
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_other_schedules() -> None:
    constant = OptimConfig(lr=0.5, schedule="constant")
    assert {learning_rate(step, 9, constant) for step in range(9)} == {0.5}
    assert learning_rate(4, 5, OptimConfig(lr=1.0, warmup_steps=10)) == 0.5  # a warmup longer than the run still ends
    exponential = OptimConfig(lr=1.0, schedule="exponential", final_lr=0.01)
    assert [learning_rate(step, 11, exponential) for step in (0, 5, 10)] == pytest.approx([1.0, 0.1, 0.01])
    ratios = [learning_rate(s + 1, 11, exponential) / learning_rate(s, 11, exponential) for s in range(10)]
    assert max(ratios) == pytest.approx(min(ratios))


def test_decay_reaches_only_its_group() -> None:
    """With zero gradients AdamW moves a weight by lr * decay alone."""
    with torch.no_grad():
        model = create_model("tiny-vit", text_layers=1, image_layers=1, vocab_size=60)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factor = 1 - 0.1 * 0.5
    torch.testing.assert_close(model.visual.proj, before["visual.proj"] * factor)  # type: ignore[arg-type]
    torch.testing.assert_close(model.ln_final.weight, before["ln_final.weight"])
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
