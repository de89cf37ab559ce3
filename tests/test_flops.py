"""Counted operations against torch's counter, published figures and hand-worked numbers; the peak against a clock."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from miniclip import create_model
from miniclip.config import ConfigError, ModelConfig
from miniclip.models import PRESETS
from miniclip.models.vit import VisionTransformer
from miniclip.training.flops import forward_flops, matmul_peak


def counted(function: Any, *inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("preset", PRESETS)
def test_equals_torchs_counter(preset: str) -> None:
    with torch.device("meta"):
        model = create_model(preset).requires_grad_(False)
        flops = forward_flops(model.config)
        side = model.config.image_size
        assert side is not None
        assert counted(model.encode_image, torch.empty(1, 3, side, side)) == flops.image
        for length in (1, 2, 9, 77):
            text = torch.zeros(1, length, dtype=torch.long)
            assert counted(model.encode_text, text) == flops.text([length])


@pytest.mark.parametrize(
    "sizes",
    [
        {"preset": "tiny-vit", "image_layers": 1, "text_layers": 1},
        {"preset": "tiny-vit", "image_size": 48, "patch_size": 16, "image_width": 96, "embed_dim": 24},
        {"preset": "tiny-resnet", "image_layers": (2, 1, 3, 2), "image_size": 96, "image_width": 10, "image_heads": 5},
    ],
)
def test_other_sizes_equal_torchs_counter(sizes: dict[str, Any]) -> None:
    config = ModelConfig(**sizes)
    with torch.device("meta"):
        model = create_model(config).requires_grad_(False)
        side = model.config.image_size
        assert side is not None
        assert counted(model.encode_image, torch.empty(1, 3, side, side)) == forward_flops(config).image
        assert counted(model.encode_text, torch.zeros(1, 7, dtype=torch.long)) == forward_flops(config).text([7])


@pytest.mark.parametrize("dropout", [0.3, 0.5, 0.75])
def test_patch_dropout(dropout: float) -> None:
    with torch.device("meta"):
        model = create_model("ViT-B-32").requires_grad_(False)
    assert isinstance(model.visual, VisionTransformer)
    model.visual.patch_dropout = dropout
    found = counted(model.encode_image, torch.empty(1, 3, 224, 224, device="meta"))
    assert found == forward_flops(model.config, dropout).image < forward_flops(model.config).image


# open_clip's docs/model_profile.csv, of all tokens in all blocks and captions of 77 tokens
PUBLISHED = {
    "ViT-S-32": (2.29, 3.38),
    "ViT-B-32": (8.82, 5.96),
    "ViT-B-16": (35.13, 5.96),
    "ViT-L-14": (162.03, 13.3),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_figures(preset: str) -> None:
    """They count the last block for all tokens: 20 D^2 of its 24 D^2 a token, and 4 L D of attention, came on top."""
    image, text = PUBLISHED[preset]
    with torch.device("meta"):
        config = create_model(preset).config
    assert config.image_size and config.patch_size and config.image_width and config.text_width
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    flops = forward_flops(config)

    def saved(tokens: int, width: int) -> float:
        return (tokens - 1) * (20 * width**2 + 4 * tokens * width)

    assert (flops.image + saved(tokens, config.image_width)) / 1e9 == pytest.approx(image, abs=0.011)
    assert (flops.text([77]) + saved(77, config.text_width)) / 1e9 == pytest.approx(text, abs=0.011)


def test_one_block_by_hand() -> None:
    """D = 4, E = 2, one head, one block, captions of 3 and 5 tokens."""
    config = ModelConfig(
        preset="tiny-vit",
        image_size=4,
        patch_size=2,
        image_width=4,
        image_heads=1,
        image_layers=1,
        text_width=4,
        text_heads=1,
        text_layers=1,
        embed_dim=2,
    )
    flops = forward_flops(config)
    # multiply-adds for L tokens: q 16, k and v 32 L, attention 8 L, output 16, MLP 128, projection 8
    assert flops.text([3]) == 2 * (168 + 40 * 3)
    assert flops.text([3, 5]) == flops.text(torch.tensor([3, 5])) == 2 * (2 * 168 + 40 * 8)
    # the same for 4 patches and the class token, and 12 numbers of each patch into 4
    assert flops.image == 2 * (168 + 40 * 5 + 4 * 12 * 4)
    assert flops.step(10, [3, 5]) == 3 * (10 * flops.image + flops.text([3, 5]))
    assert flops.text([]) == 0
    assert isinstance(flops.text(torch.tensor([3], dtype=torch.int32)), float)


def test_a_batch_costs_what_its_captions_cost() -> None:
    """Cut to the longest of the batch, the counter sees the padding; the model needs none of it."""
    with torch.device("meta"):
        model = create_model("tiny-resnet").requires_grad_(False)
    flops = forward_flops(model.config)
    padded = counted(model.encode_text, torch.zeros(3, 12, dtype=torch.long, device="meta"))
    assert padded == flops.text([12, 12, 12]) > flops.text([12, 4, 5]) == sum(flops.text([n]) for n in (12, 4, 5))


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        forward_flops(ModelConfig(preset="ViT-B-33"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_that_of_a_product_timed_here(dtype: torch.dtype) -> None:
    start = time.perf_counter()
    peak = matmul_peak("cpu", dtype, seconds=0.3)
    assert time.perf_counter() - start < 3
    a = torch.randn(1024, 1024).to(dtype)
    torch.mm(a, a)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    # other programs may run beside either of them
    assert 0.5 < peak / (2 * 1024**3 / min(times)) < 4


def test_peak_counts_what_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of side n takes n / 1000 s, and every third one twice that; the best size is the largest."""
    now, calls = 0.0, 0
    product = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        nonlocal now, calls
        now += len(a) / 1000 * (2 if calls % 3 == 2 else 1)
        calls += 1
        return product(a[:1, :1], b[:1, :1], out=out[:1, :1])

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert matmul_peak("cpu", torch.float32, seconds=100) == pytest.approx(2 * 2048**3 / 2.048)
    assert 100 < now < 115
    now, calls = 0.0, 0
    # no time is left for the next size
    assert matmul_peak("cpu", torch.float32, seconds=1.0) == pytest.approx(2 * 512**3 / 0.512)
