"""loss.tokens: the second loss by hand, what it does to a step, to a run of two processes and to a resume."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from support.group import together
from test_fsdp import assert_same_weights
from test_step import N, batch
from test_training import TINY, lines, run
from torch.nn.functional import cross_entropy

from miniclip.cli.train import train_main
from miniclip.config import load_config
from miniclip.models.start import open_start
from miniclip.training.learning import parameter_groups
from miniclip.training.step import Learner
from miniclip.training.token_head import TokenCounts, TokenHead

# 1 and 9 begin and end every caption
CAPTIONS = [np.array(ids) for ids in ([1, 4, 4, 9], [1, 4, 5, 9], [1, 7, 9], [1, 4, 9])]
OPTIONS = ["--loss.tokens", "0.5", "--eval.tasks", "[]"]
RATE = ["--optim.lr", "1e-2", "--optim.schedule", "constant"]


def test_counts() -> None:
    found = TokenCounts.of(CAPTIONS)
    assert (found.ids.tolist(), found.captions.tolist(), found.total) == ([1, 4, 5, 7, 9], [4, 3, 1, 1, 4], 4)


def test_by_hand() -> None:
    """Two images of two captions: padding, repeated tokens, tokens in all captions, and one that no caption had."""
    torch.manual_seed(0)
    head = TokenHead(3, TokenCounts.of(CAPTIONS))
    image = torch.nn.functional.normalize(torch.randn(2, 3), dim=1)
    text = torch.tensor([[1, 4, 4, 9], [1, 5, 9, 7], [1, 9, 4, 4], [1, 40000, 9, 5]])
    lengths = torch.tensor([4, 3, 2, 3])
    logits = math.sqrt(3) * image @ head.linear.weight.T + head.linear.bias
    rare, common = math.log(4), math.log(4 / 3)
    first = -(common * logits[0].log_softmax(0)[1] + rare * logits[0].log_softmax(0)[2]) / (common + rare)
    torch.testing.assert_close(head(image, text, lengths), torch.stack([first, torch.zeros(())]))


def learner(folder: Path, *options: str) -> Learner:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    config = load_config(["--config", str(folder / "tiny.yaml"), "--run.dir", str(folder / "run"), *options])
    start = open_start(config)
    counts = TokenCounts.of([row[:length].numpy() for row, length in zip(batch().text, batch().lengths, strict=True)])
    return Learner(replace(config, model=start.config), Accelerator(cpu=True), start, None, counts)


@pytest.mark.parametrize("chunk", [[], ["--train.micro_batch_size", "3"]], ids=["whole", "cached"])
def test_what_it_adds_to_a_step(tmp_path: Path, chunk: list[str]) -> None:
    """The gradient is that of the sum, clipped as one; the loss that is told is the contrastive one alone."""
    ours, given = learner(tmp_path, "--loss.tokens", "0.5", *chunk), batch()
    model, head = copy.deepcopy(ours.model), copy.deepcopy(ours.tokens.head if ours.tokens else None)
    assert head is not None
    taken = ours.step(given, 0, 3e-3, [N], watched=True)
    image, text, scale, _ = model(ours.preprocess.normalize(given.image), given.text)
    logits = scale * image @ text.T
    loss = (cross_entropy(logits, torch.arange(N)) + cross_entropy(logits.T, torch.arange(N))) / 2
    tokens = head(image, given.text, torch.tensor(given.lengths)).mean()
    (loss + tokens / 2).backward()
    parameters = [*model.parameters(), *head.parameters()]
    norm = torch.nn.utils.clip_grad_norm_(parameters, ours.config.optim.grad_clip)
    found = (taken.loss, taken.figures["token_loss"], taken.norm)
    assert found == pytest.approx((float(loss.detach()), float(tokens.detach()), float(norm)), rel=1e-4)
    optim = ours.config.optim
    weight, bias = head.linear.weight, head.linear.bias
    groups = [*parameter_groups(model, optim), {"params": [weight], "weight_decay": optim.weight_decay}]
    groups.append({"params": [bias], "weight_decay": 0.0})
    torch.optim.AdamW(groups, lr=3e-3, betas=optim.betas, eps=optim.eps).step()
    assert ours.tokens is not None
    for mine, wanted in ((ours.model, model), (ours.tokens.head, head)):
        for name, expected in wanted.state_dict().items():
            if not name.endswith("in_proj_bias"):
                torch.testing.assert_close(mine.state_dict()[name], expected, rtol=1e-3, atol=3e-5, msg=name)


def test_a_run_learns_the_tokens_and_resumes_to_the_bit(config_file: str, tmp_path: Path) -> None:
    """The head goes on with the run, and does not leave it."""
    run(config_file, tmp_path / "whole", *OPTIONS, *RATE)
    run(config_file, tmp_path / "parts", *OPTIONS, *RATE, "--train.max_steps", "4")
    run(config_file, tmp_path / "parts", *OPTIONS, *RATE, "--run.resume", "true")
    folders = [tmp_path / name / "checkpoints" / "step_00000006" for name in ("whole", "parts")]
    for name in ("model.safetensors", "model_1.safetensors"):
        whole, parts = (load_file(folder / name) for folder in folders)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    told = [line["token_loss"] for line in lines(tmp_path / "whole")]
    assert len(told) == 6 and told[-1] < told[0]
    assert not any("linear" in name for name in load_file(tmp_path / "whole" / "model" / "model.safetensors"))


@pytest.mark.slow
def test_two_processes_are_one(config_file: str, tmp_path: Path) -> None:
    """With shares of 5 and 4 pairs, whose means do not weigh the same."""
    uneven = [*OPTIONS, "--data.batch_size", "9"]
    run(config_file, tmp_path / "one", *uneven)
    arguments = ["--config", config_file, "--run.dir", str(tmp_path / "two"), *uneven]
    for outcome in together(2, train_main, arguments):
        assert outcome.value == 0, outcome.complaints
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    for found, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        assert found["token_loss"] == pytest.approx(expected["token_loss"], rel=1e-4)


def test_refused(config_file: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss\.tokens=-1\.0 must be 0 or more"):
        load_config(["--config", config_file, "--loss.tokens", "-1"])
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(ValueError, match=r"loss\.tokens needs to know all captions beforehand"):
        run(
            config_file,
            tmp_path / "run",
            *OPTIONS,
            "--data.source",
            str(tmp_path / "a.tar"),
            "--data.streaming",
            "true",
        )
