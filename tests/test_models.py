"""The towers, their presets and the dual encoder, without a second implementation (test_parity has that)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.config.sections import ImageEncoderKind
from miniclip.models import PRESETS, TOWERS, DualEncoder, create_model, resolve

# counted by hand for tiny-vit (see test_parameter_table); CLIP's own presets agree with the published counts
PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-S-16": 62_257_537,
    "ViT-S-32": 63_085_825,
    "tiny-resnet": 21_323_441,
    "tiny-vit": 18_661_889,
}

RESNET = ModelConfig(preset="tiny-resnet", vocab_size=100, text_layers=2)
VIT = ModelConfig(preset="tiny-vit", vocab_size=100, text_layers=2, image_layers=2)
BOTH = pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])


def build(config: ModelConfig, **overrides: Any) -> DualEncoder:
    torch.manual_seed(0)
    return create_model(config, **overrides)


def captions(ends: list[int], length: int = 77, vocab: int = 100) -> Tensor:
    """Random ids below the end token, which stands at `ends`; zeros after it."""
    generator = torch.Generator().manual_seed(5)
    text = torch.zeros(len(ends), length, dtype=torch.long)
    for row, end in enumerate(ends):
        text[row, :end] = torch.randint(1, vocab - 1, (end,), generator=generator)
        text[row, end] = vocab - 1
    return text


def images(count: int, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(6))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close_by_norm(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name, expected in want.items():
        # A key's bias has the true gradient 0; the constant allows for its rounding.
        assert (got[name] - expected).norm() <= tolerance * expected.norm() + 1e-7, name


def test_parameter_table() -> None:
    assert PARAMETERS.keys() == PRESETS.keys(), "every preset stands in the table, and nothing else"
    with torch.device("meta"):
        assert {name: sum(p.numel() for p in create_model(name).parameters()) for name in PRESETS} == PARAMETERS
    # 3 + 1 + 4 + 4 matrices of a block; biases 3 + 1 + 4 + 1, norms 4
    image, text = (layers * (12 * d * d + 13 * d) for d, layers in ((192, 6), (256, 4)))
    image += 192 * 3 * 8 * 8 + 192 + 65 * 192 + 4 * 192 + 192 * 256
    assert PARAMETERS["tiny-vit"] == image + text + 49408 * 256 + 77 * 256 + 2 * 256 + 256 * 256 + 1


def test_presets_resolve_to_themselves() -> None:
    for name in PRESETS:
        c: Any = resolve(ModelConfig(preset=name))
        assert resolve(c) == c
        assert (c.context_length, c.vocab_size, c.activation) == (77, 49408, "gelu")
        assert c.logit_scale_init == pytest.approx(2.6592600369)  # ln(1 / 0.07)
        assert (c.patch_size is None) == (c.image_encoder == "resnet")
        # CLIP's heads are 64 wide; a ResNet's attention pooling works on 32 times the stem's width
        channels = c.image_width * (32 if c.image_encoder == "resnet" else 1)
        assert channels == 64 * c.image_heads and c.text_width == 64 * c.text_heads


def test_towers_are_those_of_the_configuration() -> None:
    assert set(TOWERS) == set(get_args(ImageEncoderKind))
    for config in (RESNET, VIT):
        tower = TOWERS[resolve(config).image_encoder or ""]
        visual = build(config).visual
        assert type(visual) is tower and visual.memory_format is tower.memory_format
        side = 3 * tower.stride(resolve(config))
        assert visual(images(2, side)).shape == (2, 256)


def test_fields_given_with_and_without_a_preset() -> None:
    config = resolve(ModelConfig(preset="ViT-B-32-quickgelu", embed_dim=128))
    assert (config.activation, config.embed_dim, config.image_width) == ("quick_gelu", 128, 768)
    assert resolve(ModelConfig(preset="ViT-B-32-quickgelu", activation="gelu")).activation == "gelu"
    listed: Any = [1, 1, 1, 1]
    assert resolve(ModelConfig(preset="RN50", image_layers=listed)).image_layers == (1, 1, 1, 1)
    spelt = replace(resolve(VIT), preset=None)
    assert resolve(spelt) == spelt
    with pytest.raises(ValueError, match=r"model\.embed_dim, model\.image_heads must be set"):
        resolve(replace(spelt, embed_dim=None, image_heads=None))
    with pytest.raises(ValueError, match=r"model\.patch_size must be set"):
        resolve(replace(spelt, patch_size=None))


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("ViT-B32", {}, r"did you mean ViT-B-32\?; known: RN50, "),
    ("RN50", {"image_size": 225}, "image_size=225 is not divisible by the resnet's stride=32; .*: 224"),
    ("RN50", {"image_heads": 30}, r"image_width \* 32=2048 is not divisible by image_heads=30"),
    ("RN50", {"image_layers": 12}, "must be four whole numbers"),
    ("RN50", {"image_layers": (3, 4, 6)}, "must be four whole numbers"),
    ("RN50", {"image_layers": (3, 4, 0, 3)}, "must be four whole numbers"),
    ("RN50", {"patch_size": 16}, "has no meaning for a resnet"),
    ("RN50", {"image_width": 65}, "must be even"),
    ("ViT-B-32", {"image_size": 225}, "image_size=225 is not divisible by patch_size=32; .*: 224"),
    ("ViT-B-32", {"image_width": 770}, "image_width=770 is not divisible by image_heads=12; .*: 768"),
    ("ViT-B-32", {"image_layers": (3, 4, 6, 3)}, "must be one whole number for a vit"),
    ("ViT-B-32", {"text_width": 500}, "text_width=500 is not divisible by text_heads=8"),
    ("ViT-B-32", {"text_layers": 0}, "text_layers=0 must be a whole number"),
    ("ViT-B-32", {"activation": "relu"}, "must be 'gelu' or 'quick_gelu'"),
    ("ViT-B-32", {"image_encoder": "cnn"}, "must be 'vit' or 'resnet'"),
    ("ViT-B-32", {"text_witdh": 512}, r"did you mean text_width\?"),
]


def test_impossible_models() -> None:
    for preset, change, message in IMPOSSIBLE:
        with pytest.raises(ValueError, match=message):
            create_model(preset, **change)


@BOTH
def test_forward(config: ModelConfig) -> None:
    """Unit length in float32, under autocast as well."""
    model, image, text = build(config, logit_bias_init=-10.0), images(4), captions([4, 9, 2, 30])
    exact = model(image, text)
    assert exact.scale.ndim == exact.bias.ndim == 0
    assert exact.scale.item() == pytest.approx(1 / 0.07) and exact.bias.item() == -10.0
    assert isinstance(model.logit_bias, nn.Parameter) and build(config)(image, text).bias is None
    assert (model.encode_text(text).norm(dim=-1) - 1).abs().max() > 0.01
    torch.testing.assert_close(model.encode_text(text, normalize=True), exact.text)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(image, text)
    for x, y in ((exact.image, half.image), (exact.text, half.text)):
        assert x.shape == y.shape == (4, 256) and x.dtype == y.dtype == torch.float32
        # bfloat16 itself could not hold the length closer to 1 than 4e-3
        torch.testing.assert_close(torch.stack([x, y]).norm(dim=-1), torch.ones(2, 4), rtol=0, atol=1e-5)
        assert ((x * y).sum(dim=-1) > 0.995).all()
    (half.image.sum() + half.text.sum()).backward()
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients(model).values())


def test_wrong_inputs() -> None:
    model = build(VIT)
    for image in (images(2, 60), images(2)[0], torch.zeros(2, 3, 64, 64, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\)"):
            model.encode_image(image)
    with pytest.raises(ValueError, match="context_length=77"):
        model.encode_text(captions([4], length=78))
    with pytest.raises(ValueError, match="context_length=77"):
        model.encode_text(captions([4])[0])


def test_a_later_token_changes_nothing() -> None:
    model = build(VIT).eval()
    text = captions([10, 6])
    before = model.encode_text(text)
    after_end = text.clone()
    after_end[0, 11:] = 7
    torch.testing.assert_close(model.encode_text(after_end), before, rtol=0, atol=1e-6)
    # The same change before the end does count, in its own row alone.
    inside = text.clone()
    inside[0, 9] = inside[0, 9] % 90 + 1
    moved = (model.encode_text(inside) - before).norm(dim=-1)
    assert moved[0] > 1e-3 and moved[1] < 1e-6


def test_inner_tokens_do_not_see_later_ones() -> None:
    model = build(VIT).eval()
    x = torch.randn(1, 8, 256)
    changed = x.clone()
    changed[0, 5] *= -1
    for position in range(8):
        at = torch.tensor([position])
        difference = (model.transformer(x, at, causal=True) - model.transformer(changed, at, causal=True)).abs().max()
        assert (difference > 1e-4) if position >= 5 else (difference == 0), position


def test_the_last_block_for_one_token_equals_the_whole_block() -> None:
    for block, causal in ((build(VIT).transformer.resblocks[0], True), (build(VIT).transformer.resblocks[1], False)):
        x, at = torch.randn(3, 9, 256), torch.tensor([8, 0, 4])
        whole = block(x, causal)
        assert whole.shape == (3, 9, 256)
        torch.testing.assert_close(block(x, causal, at)[:, 0], whole[torch.arange(3), at], rtol=1e-5, atol=1e-5)


def text_run(text: Tensor, packs: bool) -> tuple[Tensor, dict[str, Tensor], tuple[int, ...]]:
    """-> embeddings, gradients, and how many tokens went through the Transformer."""
    model, seen = build(VIT).train(), list[tuple[int, ...]]()
    model.packs = packs
    model.transformer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:-1])))
    embeddings = model.encode_text(text, normalize=True)
    weights = torch.randn(len(text), 256, generator=torch.Generator().manual_seed(2))
    (embeddings * weights).sum().backward()
    return embeddings.detach(), gradients(model), seen[0]


def assert_same_run(text: Tensor, packs: bool, whole: tuple[Tensor, dict[str, Tensor], Any], tokens: Any) -> None:
    embeddings, grads, seen = text_run(text, packs)
    torch.testing.assert_close(embeddings, whole[0], rtol=0, atol=1e-6)
    assert_close_by_norm(grads, whole[1], 1e-5)
    assert seen == tokens


def test_packing_and_trimming_are_exact_and_compute_no_padding() -> None:
    ends = [20, 3, 9, 9, 41, 1, 12]
    text, own = captions(ends), sum(ends) + len(ends)
    whole = text_run(text, packs=False)
    assert whole[2] == (7, 77) and {"token_embedding.weight", "positional_embedding"} < whole[1].keys()
    assert_same_run(text, True, whole, (own,))
    assert_same_run(text[:, :42], False, whole, (7, 42))
    assert_same_run(text[:, :42], True, whole, (own,))
    assert text_run(text[:1], packs=True)[2] == (21,)


def test_captions_that_begin_alike_are_computed_once_and_exactly() -> None:
    """Few words, so that beginnings come up again; equal captions; one that goes on where another ends."""
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(1, 4, (40, 9), generator=generator)
    ends = torch.randint(1, 9, (40,), generator=generator)
    text[torch.arange(40), ends] = 99
    text[torch.arange(9) > ends[:, None]] = 0
    text[7], text[8] = text[6], text[6]
    text[8, ends[6]], text[8, -1] = 3, 99
    text[9, ends[9] + 1 :] = 2  # ids in the padding are nobody's beginning
    beginnings = {tuple(row[: k + 1]) for row in text.tolist() for k in range(row.index(99) + 1)}
    assert len(beginnings) < 0.8 * int((text.argmax(1) + 1).sum())
    assert_same_run(text, True, text_run(text, packs=False), (len(beginnings),))


@BOTH
def test_checkpointing_recomputes_and_changes_memory_only(config: ModelConfig) -> None:
    image, text = images(4), captions([5, 9, 2, 30])
    weights = torch.randn(4, 256, generator=torch.Generator().manual_seed(2))
    results, calls = [], []
    for checkpointing in (False, True):
        model = build(config, activation_checkpointing=checkpointing).train()
        count = [0]
        for module in model.modules():
            if type(module).__name__ in ("Block", "Bottleneck"):
                module.register_forward_pre_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        for step in range(2):
            got = model(image + step, text)
            (got.scale * ((got.image + got.text) * weights).sum()).backward()
        results.append((gradients(model), dict(model.named_buffers())))
        calls.append(count[0])
    assert calls[1] == 2 * calls[0] > 0
    assert_close_by_norm(results[1][0], results[0][0], 1e-6)
    # Recomputing passes each batch through BatchNorm twice; it may be counted only once.
    assert results[0][1].keys() == results[1][1].keys()
    for name, buffer in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], buffer, msg=name)
        assert "num_batches_tracked" not in name or buffer == 2


def test_clamp() -> None:
    model: Any = build(VIT)
    for value, expected in ((5.0, math.log(100)), (-1.0, 0.0), (3.0, 3.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.clamp_logit_scale_()
        assert model.logit_scale.item() == pytest.approx(expected)
        assert model.logit_scale.requires_grad
        # At the edge as inside, the scale has a gradient that can move it: d exp(x) / dx = exp(x).
        model.logit_scale.grad = None
        model(images(2), captions([3, 4])).scale.backward()
        assert model.logit_scale.grad.item() == pytest.approx(math.exp(expected), rel=1e-5)


def test_initial_values() -> None:
    """CLIP's standard deviations, from the widths alone: text 256 wide, 2 deep; ResNet's pooling 1024 wide, ViT 192."""
    resnet: Any = build(RESNET, vocab_size=4000)
    vit: Any = build(VIT)
    expected = {
        resnet.token_embedding.weight: 0.02,
        resnet.positional_embedding: 0.01,
        resnet.text_projection: 1 / 16,
        resnet.transformer.resblocks[1].attn.in_proj_weight: 1 / 16,
        resnet.transformer.resblocks[1].attn.out_proj.weight: 1 / 16 / 2,  # 256^-1/2 (2 * 2)^-1/2
        resnet.transformer.resblocks[1].mlp.c_fc.weight: 512**-0.5,
        resnet.transformer.resblocks[1].mlp.c_proj.weight: 1 / 16 / 2,
        **{getattr(resnet.visual.attnpool, f"{name}_proj").weight: 1 / 32 for name in "qkvc"},
        resnet.visual.attnpool.positional_embedding: 1 / 32,
        vit.visual.positional_embedding: 192**-0.5,
        vit.visual.proj: 192**-0.5,
        # Xavier: sqrt(2 / (192 + 3 * 192))
        vit.visual.transformer.resblocks[0].attn.in_proj_weight: (2 / 768) ** 0.5,
    }
    for parameter, std in expected.items():
        tolerance = 5 / parameter.numel() ** 0.5
        assert parameter.std().item() == pytest.approx(std, rel=tolerance)
        assert abs(parameter.mean().item()) < tolerance * std
    assert not resnet.visual.layer2[0].bn3.weight.any() and resnet.visual.layer2[0].bn2.weight.all()
    for model in (resnet, vit):
        for name, parameter in model.named_parameters():
            if name.endswith(("in_proj_bias", "out_proj.bias")):
                assert not parameter.any(), name


@BOTH
def test_seed_and_meta_device(config: ModelConfig) -> None:
    first, again = build(config).eval(), build(config).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    torch.manual_seed(1)
    assert not torch.equal(again["token_embedding.weight"], create_model(config).token_embedding.weight)
    with torch.device("meta"):
        empty = create_model(config)
    assert all(x.is_meta for x in [*empty.parameters(), *empty.buffers()])
    empty.load_state_dict(again, strict=True, assign=True)
    torch.testing.assert_close(empty.eval()(images(2), captions([3, 4])), first(images(2), captions([3, 4])))


def test_channels_last_is_the_same_model() -> None:
    model = build(RESNET).eval()
    image = images(2)
    want = model.encode_image(image)
    model.visual.to(memory_format=torch.channels_last)
    got = model.encode_image(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
