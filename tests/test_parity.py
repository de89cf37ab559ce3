"""Our towers against open_clip's: the same parameter names, the same numbers, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models import PRESETS, DualEncoder, create_model, resolve

open_clip = pytest.importorskip("open_clip")

OURS_ONLY = ["tiny-resnet", "tiny-vit"]
THEIRS = [name for name in PRESETS if name not in OURS_ONLY] + ["ViT-B-32-quickgelu"]


def as_open_clip(config: ModelConfig) -> dict[str, Any]:
    """Our config in the form of open_clip's JSON files."""
    c = resolve(config)
    assert c.image_width and c.image_heads
    channels = c.image_width * (32 if c.image_encoder == "resnet" else 1)
    image = {"image_size": c.image_size, "layers": c.image_layers, "width": c.image_width}
    image |= {"head_width": channels // c.image_heads} | ({"patch_size": c.patch_size} if c.patch_size else {})
    text = {"context_length": c.context_length, "vocab_size": c.vocab_size}
    text |= {"width": c.text_width, "heads": c.text_heads, "layers": c.text_layers}
    bias = {} if c.logit_bias_init is None else {"init_logit_bias": c.logit_bias_init}
    towers = {"vision_cfg": image, "text_cfg": text}
    return {"embed_dim": c.embed_dim, "quick_gelu": c.activation == "quick_gelu", **bias, **towers}


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Move what starts at 0 or 1, where a mix-up would go unseen."""
    for name, x in ((name, x) for name, x in model.state_dict().items() if x.ndim == 1):
        if name.endswith("running_var"):
            # About what fresh convolutions produce: with the initial 1 the image's signal fades from layer to layer,
            # and the embedding hardly depends on the image.
            x.uniform_(0.1, 0.3)
        elif name.endswith("weight"):
            x.uniform_(0.5, 1.5)
        else:
            x.add_(0.1 * torch.randn_like(x))


def inputs(size: int, count: int, length: int = 77) -> tuple[Tensor, Tensor]:
    """Random images, and captions of different lengths that end with the greatest of 500 ids."""
    generator = torch.Generator().manual_seed(1)
    ends, position = torch.tensor([length - 1, *range(8, 5 + 3 * count, 3)])[:, None], torch.arange(length)
    text = torch.randint(1, 498, (count, length), generator=generator)
    text = text.where(position < ends, 499 * (position == ends))
    return torch.randn(count, 3, size, size, generator=generator), text


@pytest.mark.parametrize("name", THEIRS)
def test_every_parameter_has_their_name_and_shape(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name), open_clip.create_model(name, device="meta")
    mine, other = ({key: (x.shape, x.dtype) for key, x in m.state_dict().items()} for m in (ours, theirs))
    assert mine == other


def thin(name: str) -> tuple[ModelConfig, dict[str, Any]]:
    """A preset in our form and in open_clip's, of its real width and heads: one layer, few ids, a small image."""
    if name in OURS_ONLY:
        config = ModelConfig(preset=name, vocab_size=500)
        return config, as_open_clip(config)
    theirs: dict[str, Any] = open_clip.get_model_config(name)
    patch = theirs["vision_cfg"].get("patch_size")
    size, layers = (2 * patch, 1) if patch else (64, (1, 2, 1, 1))
    theirs["vision_cfg"] |= {"image_size": size, "layers": layers}
    theirs["text_cfg"] |= {"layers": 1, "vocab_size": 500}
    return ModelConfig(preset=name, image_size=size, image_layers=layers, text_layers=1, vocab_size=500), theirs


def pair(config: ModelConfig, as_theirs: dict[str, Any]) -> tuple[DualEncoder, nn.Module]:
    """Two models of the same weights."""
    torch.manual_seed(3)
    theirs = open_clip.CLIP(**as_theirs)
    perturb(theirs)
    ours = create_model(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", [*THEIRS, *OURS_ONLY])
@torch.no_grad()
def test_the_same_weights_embed_alike(name: str) -> None:
    ours, theirs = (model.eval() for model in pair(*thin(name)))
    image, text = inputs(ours.config.image_size, 2)  # type: ignore[arg-type]
    for mine, other in (
        (ours.encode_image(image), theirs.encode_image(image)),  # type: ignore[operator]
        (ours.encode_text(text), theirs.encode_text(text)),  # type: ignore[operator]
    ):
        assert mine.shape == other.shape
        assert ((mine - other).norm(dim=-1) / other.norm(dim=-1)).max() < 1e-5
        unit = [nn.functional.normalize(x, dim=-1) for x in (mine, other)]
        torch.testing.assert_close(unit[0], unit[1], rtol=0, atol=1e-5)
        # the rows differ, so these are not towers that hardly look at their input
        assert (unit[0][0] - unit[0][1]).norm() > 1e-2


SMALL_RESNET = ModelConfig(preset="tiny-resnet", vocab_size=500, text_layers=2)
SMALL_VIT = ModelConfig(preset="tiny-vit", vocab_size=500, text_layers=2, image_layers=2, activation="quick_gelu")


@pytest.mark.parametrize("config", [SMALL_RESNET, SMALL_VIT], ids=["resnet", "vit"])
def test_train_mode_outputs_gradients_and_statistics(config: ModelConfig) -> None:
    ours, theirs = pair(config, as_open_clip(config))
    got, want = (model(*inputs(64, 6)) for model in (ours, theirs))
    assert got.bias is None
    for mine, other, tolerance in zip(got[:3], want[:3], (1e-5, 1e-5, None), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance and 0, atol=tolerance)
    for image, text, scale in (got[:3], want[:3]):
        nn.functional.cross_entropy(scale * image @ text.T, torch.arange(len(image))).backward()
    other = dict(theirs.named_parameters())
    assert other.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        gradient, reference = parameter.grad, other[name].grad
        assert gradient is not None and reference is not None, name
        # A key's bias shifts every score of a query alike, so its true gradient is 0 and what is left is rounding.
        assert (gradient - reference).norm() < 1e-4 * reference.norm() + 1e-6, name
    # BatchNorm used, and counted, this batch once.
    buffers = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-5, atol=1e-6, msg=name)


def test_bias_is_named_alike() -> None:
    config = ModelConfig(preset="tiny-vit", vocab_size=500, logit_bias_init=-10.0)
    ours, theirs = create_model(config).state_dict(), open_clip.CLIP(**as_open_clip(config)).state_dict()
    assert ours["logit_bias"] == theirs["logit_bias"] == -10.0 and ours.keys() == theirs.keys()


RESNET = ModelConfig(preset="tiny-resnet", image_layers=(2, 1, 1, 1), text_layers=2, vocab_size=2000)
VIT = ModelConfig(preset="ViT-S-16", image_size=64, image_layers=3, text_layers=3, vocab_size=2000)


@pytest.mark.parametrize("config", [RESNET, VIT], ids=["resnet", "vit"])
def test_fresh_weights_have_the_same_distribution(config: ModelConfig) -> None:
    torch.manual_seed(0)
    ours = dict(create_model(config).named_parameters())
    torch.manual_seed(1)
    theirs = dict(open_clip.CLIP(**as_open_clip(config)).named_parameters())
    for name, x in ours.items():
        y, n = theirs[name], x.numel()
        if n == 1 or y.std() == 0:
            torch.testing.assert_close(x, y, msg=name)
            continue
        sigma = y.std().item()
        # Six standard errors of the difference of two samples' mean and standard deviation.
        assert abs(x.mean().item() - y.mean().item()) < 6 * sigma * (2 / n) ** 0.5, name
        assert abs(x.std().item() / sigma - 1) < 6 / n**0.5, name
        if n >= 4096:
            # Of that many values the largest is 1.7 sigma if they are uniform, and over 2.8 if they are normal.
            assert (x.abs().max() / x.std() > 2.2) == (y.abs().max() / y.std() > 2.2), name
