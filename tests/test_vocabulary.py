"""A small vocabulary against full training on the same batches: losses, every weight, checkpoints, any text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import miniclip
from miniclip.common.stopping import Stopping
from miniclip.config import OptimConfig
from miniclip.losses import LOSSES
from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import assemble
from miniclip.models.vocabulary import SmallEmbedding, use_small_vocabulary_
from miniclip.training.checkpoint import Checkpoints, Progress, load_checkpoint
from miniclip.training.optim import build_optimizer, learning_rate

USED = [3, 7, 20, 21, 58, 59]
UNSEEN = torch.tensor([[58, 4, 7, 33, 59, 0], [58, 1, 59, 0, 0, 0]])
OPTIM = OptimConfig(lr=0.02, weight_decay=0.3, warmup_steps=5, grad_clip=1.0)
STEPS = 20


def tiny(dtype: torch.dtype = torch.float64) -> DualEncoder:
    torch.manual_seed(0)
    image = {"image_size": 16, "image_width": 16, "image_layers": 1, "image_heads": 2}
    text = {"text_width": 16, "text_heads": 2, "text_layers": 2, "context_length": 6}
    return create_model("tiny-vit", vocab_size=60, embed_dim=8, **image, **text).to(dtype)


def small(dtype: torch.dtype = torch.float64) -> DualEncoder:
    model = tiny(dtype)
    use_small_vocabulary_(model, torch.tensor(USED))
    return model


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    text = torch.tensor(USED)[torch.randint(0, 4, (8, 6), generator=generator)]
    text[:, 0] = 58
    ends = torch.randint(2, 6, (8,), generator=generator)
    text[torch.arange(8), ends] = 59
    text[torch.arange(6) > ends[:, None]] = 0
    return torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator).to(dtype), text


def trained(
    model: DualEncoder, optimizer: torch.optim.Optimizer | None = None, first: int = 0, last: int = STEPS
) -> list[float]:
    """The losses of these steps, as the training loop takes them."""
    optimizer = optimizer or build_optimizer(model, OPTIM)
    dtype = model.text_projection.dtype
    losses = []
    model.train()
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, OPTIM)
        image, text, scale, _ = model(*batch(step, dtype))
        loss = LOSSES["softmax"](scale * image @ text.T)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_training_equals_that_of_the_whole_table() -> None:
    """In float64, where rounding leaves nothing to hide behind; decay of the unused rows included."""
    whole, part = tiny(), small()
    before = whole.token_embedding.weight.detach().clone()
    assert part.token_embedding.weight.shape == (8, 16)  # six ids, the padding and the witness
    assert trained(part) == pytest.approx(trained(whole), rel=1e-12)
    ours, theirs = part.state_dict(), whole.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        if name.endswith("attn.in_proj_bias"):
            continue  # the keys' have a gradient of 0 but for rounding, of which Adam takes the sign
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-12)
    left = 1.0
    for step in range(STEPS):
        left *= 1 - 0.3 * learning_rate(step, STEPS, OPTIM)
    assert left < 0.95
    torch.testing.assert_close(ours["token_embedding.weight"][30], left * before[30], rtol=1e-12, atol=0)
    assert not torch.allclose(ours["token_embedding.weight"][7], left * before[7])
    # evaluation on the way takes any text
    given = [model.eval().encode_text(UNSEEN) for model in (part, whole)]
    torch.testing.assert_close(*given, rtol=1e-9, atol=1e-12)
    assert trained(small(torch.float32)) == pytest.approx(trained(tiny(torch.float32)), rel=2e-6)


def test_gradient_is_that_of_the_whole_table() -> None:
    whole, part = tiny(), small()
    for model in (whole, part):
        image, text, scale, _ = model(*batch(0, torch.float64))
        LOSSES["softmax"](scale * image @ text.T).backward()
    gradient, expected = part.token_embedding.weight.grad, whole.token_embedding.weight.grad
    assert gradient is not None and expected is not None
    torch.testing.assert_close(gradient[:-1], expected[[0, *USED]], rtol=0, atol=0)
    assert not gradient[-1].any()
    assert float(expected.norm()) == pytest.approx(float(gradient.norm()), rel=1e-14)


def test_training_refuses_a_word_that_it_was_not_told() -> None:
    model = small()
    with pytest.raises(ValueError, match="token 4 is in a caption of this batch, but not among the 7 tokens"):
        model.encode_text(UNSEEN)
    witness = int(model.token_embedding.rows[-1])  # type: ignore[arg-type, index]
    assert witness not in [0, *USED]
    with pytest.raises(ValueError, match=f"token {witness} "):
        model.encode_text(torch.tensor([[58, witness, 59]]))
    for mode, token in ((True, -1), (False, 60)):
        with pytest.raises(IndexError):
            model.train(mode).encode_text(torch.tensor([[58, token, 59]]))
    full = torch.zeros(miniclip.models.tokenizer.VOCAB_SIZE, 2)
    with pytest.raises(ValueError, match=r"token 1929 \('dog'\)"):
        SmallEmbedding(full, torch.tensor([0, 5]))(miniclip.tokenize(["dog"])[0, 1:2])


def test_state_is_whole(tmp_path: Path) -> None:
    model = small(torch.float32)
    trained(model)
    miniclip.save_model(tmp_path, model, Preprocess(16))
    again, _, _ = miniclip.load(tmp_path)
    assert type(again.token_embedding) is torch.nn.Embedding
    assert again.token_embedding.weight.shape == (60, 16)
    # the row is worked out in another order
    torch.testing.assert_close(again.encode_text(UNSEEN), model.eval().encode_text(UNSEEN), rtol=1e-5, atol=1e-6)
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"token_embedding.weight has shape \(59, 16\), this model \(60, 16\)"):
        model.load_state_dict({**state, "token_embedding.weight": torch.zeros(59, 16)})
    del state["token_embedding.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*token_embedding.weight"):
        model.load_state_dict(state)


def prepared(model: DualEncoder) -> tuple[Any, Any, Any]:
    accelerator = Accelerator(cpu=True)
    return accelerator, *accelerator.prepare(model, build_optimizer(model, OPTIM))


def test_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """And with other rows there is none."""
    straight = small()
    losses = trained(straight)
    accelerator, model, optimizer = prepared(small())
    first = trained(model, optimizer, 0, 9)
    with Checkpoints(accelerator, tmp_path, 1, Stopping()) as written:
        written.save(Progress(9))
    at_nine = copy.deepcopy(model.state_dict())

    fresh = small()
    with torch.no_grad():  # all that it goes on from is the checkpoint
        for tensor in (*fresh.parameters(), fresh.token_embedding.table):
            tensor.normal_()  # type: ignore[operator]
    accelerator, model, optimizer = prepared(fresh)
    assert load_checkpoint(accelerator, tmp_path).step == 9
    assert all(torch.equal(x, at_nine[name]) for name, x in model.state_dict().items())
    assert first + trained(model, optimizer, 9) == losses
    for name, tensor in straight.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-13, atol=0)
    # what the history of matrices and `load` do with a checkpoint
    assert assemble(straight.blank, at_nine, "cpu").token_embedding.weight.shape == (60, 16)
    use_small_vocabulary_(more := tiny(), torch.tensor([*USED, 8]))
    for changed in (tiny(), more):
        accelerator, *_ = prepared(changed)
        with pytest.raises(ValueError, match=r"shape \(8, 16\) where this run has .* train.small_vocabulary"):
            load_checkpoint(accelerator, tmp_path)


def test_every_row_used() -> None:
    whole, part = tiny(), tiny()
    use_small_vocabulary_(part, torch.arange(60))
    assert part.token_embedding.weight.shape == (60, 16)
    assert trained(part) == trained(whole)
    torch.testing.assert_close(part.state_dict()["token_embedding.weight"], whole.token_embedding.weight.detach())


def test_decay_is_seen_beside_rows_of_zeros() -> None:
    table = torch.tensor([[0.0, 0], [0, 0], [1, 2], [4, -2], [0, 0]])
    layer = SmallEmbedding(table, torch.tensor([2]))
    with torch.no_grad():
        layer.weight.mul_(0.5)
    assert torch.equal(layer.whole_table(), table / 2)
    # and where there is nothing else, they stay zeros
    assert torch.equal(SmallEmbedding(torch.zeros(5, 3), torch.tensor([0, 2])).whole_table(), torch.zeros(5, 3))


def test_moves_and_copies_with_the_model() -> None:
    model = copy.deepcopy(small().eval()).float()
    assert model.encode_text(UNSEEN).dtype == torch.float32
    assert [n for n, _ in model.named_buffers() if "token" in n] == []
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in tiny().named_parameters()]
    use_small_vocabulary_(frozen := tiny().eval(), torch.tensor([1]))
    assert not frozen.token_embedding.training
    meta = small().to("meta")
    assert meta.encode_text(UNSEEN.to("meta")).shape == (2, 8)


def test_ids_are_checked() -> None:
    for wrong in (torch.tensor([60]), torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([[1]]), torch.tensor([])):
        with pytest.raises(ValueError, match=r"integers in \[0, 60\)"):
            use_small_vocabulary_(tiny(), wrong)
    with pytest.raises(ValueError, match="small vocabulary already"):
        use_small_vocabulary_(small(), torch.tensor([1]))
    model = tiny()
    use_small_vocabulary_(model, torch.tensor([59, 3, 3, 0]))
    assert isinstance(model.token_embedding, SmallEmbedding)
    assert model.token_embedding.rows[:-1].tolist() == [0, 3, 59]
