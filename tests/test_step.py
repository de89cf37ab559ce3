"""One training step, against the same written out: normalise, towers, logits, cross-entropy, clip, AdamW, clamp."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from test_training import TINY
from torch.nn.functional import cross_entropy

from miniclip.config import load_config
from miniclip.data.loader import Batch
from miniclip.models.start import open_start
from miniclip.models.tokenizer import tokenize
from miniclip.training.learning import parameter_groups
from miniclip.training.step import Learner

N = 8


def learner(folder: Path, *options: str) -> Learner:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    config = load_config(["--config", str(folder / "tiny.yaml"), "--run.dir", str(folder / "run"), *options])
    start = open_start(config)
    return Learner(replace(config, model=start.config), Accelerator(cpu=True), start)


def batch() -> Batch:
    image = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    text = tokenize([f"a {word} thing" for word in ["red", "big", "old", "new", "odd", "hot", "raw", "dry"]])
    own = torch.arange(N)
    return Batch(image, torch.ones(N, 1), text, own, own[:, None], None, [5] * N, [])


@pytest.mark.parametrize("options", [(), ("--train.micro_batch_size", "3"), ("--optim.grad_clip", "0.01")])
def test_a_step_written_out(options: tuple[str, ...], tmp_path: Path) -> None:
    ours, given = learner(tmp_path, *options), batch()
    model, optim = copy.deepcopy(ours.model), ours.config.optim
    taken = ours.step(given, 0, 3e-3, [N], watched=True)

    image, text, scale, _ = model(ours.preprocess.normalize(given.image), given.text)
    logits = scale * image @ text.T
    loss = (cross_entropy(logits, torch.arange(N)) + cross_entropy(logits.T, torch.arange(N))) / 2
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip)
    groups = parameter_groups(model, optim)
    torch.optim.AdamW(groups, lr=3e-3, betas=optim.betas, eps=optim.eps).step()
    assert taken.finite and taken.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert (taken.scale, taken.norm) == pytest.approx((float(scale.detach()), float(norm)), rel=1e-4)
    towers = (taken.figures["grad_norm_image"], taken.figures["grad_norm_text"])
    assert math.hypot(*towers) <= taken.norm * (1 + 1e-6) and min(towers) > 0
    moved = ours.model.state_dict()
    for name, expected in model.state_dict().items():
        if not name.endswith("in_proj_bias"):  # the keys' gradient is 0 but for rounding, of which Adam takes the sign
            torch.testing.assert_close(moved[name], expected, rtol=1e-3, atol=3e-5, msg=name)
    assert all(p.grad is None for p in ours.model.parameters())


def test_the_scale_is_clamped_and_what_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    ours = learner(tmp_path)
    with torch.no_grad():
        ours.model.logit_scale.fill_(6.0)
    assert ours.step(batch(), 0, 1e-3, [N]).finite
    assert float(ours.model.logit_scale.detach()) == pytest.approx(math.log(100))
    with torch.no_grad():
        ours.model.ln_final.weight.fill_(math.inf)
    before = copy.deepcopy(ours.model.state_dict())
    assert not ours.step(batch(), 1, 1e-3, [N]).finite
    for name, weight in ours.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    assert all(p.grad is None for p in ours.model.parameters())
