"""Counted operations against published figures and hand-worked numbers; the peak against a clock."""

from __future__ import annotations

import time

import pytest
import torch

from miniclip.config import ConfigError, ModelConfig
from miniclip.models import resolve
from miniclip.training.flops import forward_flops, matmul_peak

# open_clip's docs/model_profile.csv, of all tokens in all blocks and captions of 77 tokens
PUBLISHED = {
    "ViT-S-32": (2.29, 3.38),
    "ViT-B-32": (8.82, 5.96),
    "ViT-B-16": (35.13, 5.96),
    "ViT-L-14": (162.03, 13.3),
}


def test_published_figures() -> None:
    """They count the last block for all tokens: 20 D^2 of its 24 D^2 a token, and 4 L D of attention, came on top."""

    def saved(tokens: int, width: int) -> float:
        return (tokens - 1) * (20 * width**2 + 4 * tokens * width)

    for preset, (image, text) in PUBLISHED.items():
        config = resolve(ModelConfig(preset=preset))
        assert config.image_size and config.patch_size and config.image_width and config.text_width
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        flops = forward_flops(config)
        assert (flops.image + saved(tokens, config.image_width)) / 1e9 == pytest.approx(image, abs=0.011)
        assert (flops.text([77]) + saved(77, config.text_width)) / 1e9 == pytest.approx(text, abs=0.011)


def test_one_block_by_hand() -> None:
    """D = 4, E = 2, one head, one block, captions of 3 and 5 tokens."""
    vit = {"image_size": 4, "patch_size": 2, "image_width": 4, "image_heads": 1, "image_layers": 1}
    text = {"text_width": 4, "text_heads": 1, "text_layers": 1}
    config = ModelConfig("tiny-vit", embed_dim=2, **vit, **text)  # type: ignore[arg-type]
    flops = forward_flops(config)
    # multiply-adds for L tokens: q 16, k and v 32 L, attention 8 L, output 16, MLP 128, projection 8
    assert flops.text([3]) == 2 * (168 + 40 * 3)
    assert flops.text([3, 5]) == flops.text(torch.tensor([3, 5])) == 2 * (2 * 168 + 40 * 8)
    # the same for 4 patches and the class token, and 12 numbers of each patch into 4
    assert flops.image == 2 * (168 + 40 * 5 + 4 * 12 * 4)
    # of which 2 are left
    assert forward_flops(config, 0.5).image == 2 * (168 + 40 * 3 + 4 * 12 * 4)
    assert flops.step(10, [3, 5]) == 3 * (10 * flops.image + flops.text([3, 5]))
    assert flops.text([]) == 0
    assert isinstance(flops.text(torch.tensor([3], dtype=torch.int32)), float)


def test_a_resnet_by_hand() -> None:
    """32 pixels, stem of 4 channels, one bottleneck a stage, E = 6: multiply-adds of each convolution, cell by cell."""
    sizes = {"image_size": 32, "image_width": 4, "image_layers": (1, 1, 1, 1), "image_heads": 2, "embed_dim": 6}
    stem = 16**2 * 9 * (3 * 2 + 2 * 2 + 2 * 4)
    first = 8**2 * (4 * 4 + 9 * 4 * 4 + 4 * 16 + 4 * 16)  # with the way around the block
    second = 8**2 * (16 * 8 + 9 * 8 * 8) + 4**2 * (8 * 32 + 16 * 32)  # strides come after the 3x3
    third = 4**2 * (32 * 16 + 9 * 16 * 16) + 2**2 * (16 * 64 + 32 * 64)
    fourth = 2**2 * (64 * 32 + 9 * 32 * 32) + 1 * (32 * 128 + 64 * 128)
    # the mean asks, two heads look at it and the cell: q, k and v of one row each, two products of 2 x 2 x 128
    pool = 3 * 128**2 + 2 * 2 * 2 * 128 + 128 * 6
    flops = forward_flops(ModelConfig("tiny-resnet", **sizes))  # type: ignore[arg-type]
    assert flops.image == 2 * (stem + first + second + third + fourth + pool)


def test_a_caption_costs_its_own_tokens() -> None:
    flops = forward_flops(ModelConfig("tiny-resnet"))
    assert flops.text([12, 12, 12]) > flops.text([12, 4, 5]) == sum(flops.text([n]) for n in (12, 4, 5))
    with pytest.raises(ConfigError, match="unknown"):
        forward_flops(ModelConfig(preset="ViT-B-33"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_is_that_of_a_product_timed_here(dtype: torch.dtype) -> None:
    random_state = torch.get_rng_state()
    a = torch.randn(1024, 1024).to(dtype)
    torch.set_rng_state(random_state)

    def ratio() -> float:
        start, times = time.perf_counter(), []
        peak = matmul_peak("cpu", dtype, seconds=0.3)
        assert time.perf_counter() - start < 3
        for _ in range(6):
            start = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - start)
        return peak / (2 * 1024**3 / min(times))

    # other programs may run beside either of them, hardly beside one of them five times
    assert any(0.5 < ratio() < 4 for _ in range(5))
    assert torch.equal(torch.get_rng_state(), random_state)  # the training's draws are its own


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
