"""Image towers of other libraries: their features, their squares, their parts, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.closeness import error
from support.models import save_tiny
from support.photos import PHOTOS, word_tokenizer
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.cut import WHOLE
from miniclip.models.foreign import ForeignImage, load_tower, open_image, open_text, save_towers
from miniclip.models.preprocess import Preprocess

# timm's own models for tests, and others, of which two blocks are left if they have twelve -> blocks that are known
TIMM = {
    "test_efficientnet": 5,
    "mobilenetv3_small_050": 12,
    "test_resnet": 4,
    "regnetx_002": 4,
    "test_convnext": 4,
    "test_vit2": 8,
    "deit_tiny_distilled_patch16_224": 2,
    "eva02_tiny_patch14_224": 2,
    "vit_small_patch16_dinov3": 2,
    "test_byobnet": 0,
}


def timm_folder(folder: Path, arch: str = "test_efficientnet", **cfg: Any) -> str:
    """A random model, each block of which matters, as timm writes it. cfg: of its preprocessing."""
    torch.manual_seed(0)
    args = {"depth": 2} if TIMM.get(arch) == 2 else {}
    model: Any = timm.create_model(arch, pretrained=False, **args)
    randomise(model)
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    save_for_hf(model, str(folder), model_args=args, safe_serialization=True)
    return f"timm:{folder}"


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Norms, biases and layer scales, which begin as zeros, ones or next to nothing."""
    for value in model.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value += torch.rand_like(value)


def check_tower(tower: ForeignImage, images: Tensor, want: Tensor, blocks: int, folder: Path) -> None:
    """Its features are these, through each of its cuts, and those of a tower built of what is written of it."""
    with torch.no_grad():
        assert error([tower(images)], [want]) < 1e-6
        assert tower.width == want.shape[1] and len(tower.blocks) == blocks and not tower.training
        for k in (*range(blocks), WHOLE):
            assert error([tower.upper(tower.lower(images, k), k)], [want]) < 1e-6
        save_towers(folder, {"image": tower})
        with torch.device("meta"):
            again = load_tower("image", folder)
            assert again(torch.empty(images.shape)).shape == want.shape
        again.load_state_dict(tower.state_dict(), strict=True, assign=True)
        assert error([again.to("cpu").eval()(images)], [want]) < 1e-6


@pytest.mark.parametrize(("arch", "blocks"), TIMM.items())
def test_towers_of_timm(arch: str, blocks: int, tmp_path: Path) -> None:
    tower, preprocess = open_image(timm_folder(tmp_path / "a", arch), ModelConfig())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, preprocess.image_size, preprocess.image_size)
    check_tower(tower, images, theirs(images).detach(), blocks, tmp_path / "b")


@pytest.mark.parametrize("cfg", [{}, {"crop_pct": 1.0}, {"interpolation": "bilinear", "crop_pct": 0.9}])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_squares_are_timms(cfg: dict[str, Any], mode: str, tmp_path: Path) -> None:
    name = timm_folder(tmp_path, crop_mode=mode, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **cfg)
    _, preprocess = open_image(name, ModelConfig())
    values = resolve_data_config(pretrained_cfg=json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"])
    theirs: Any = create_transform(**values)
    for k in range(len(PHOTOS)):
        # they divide by 255 first, which rounds otherwise; one step of a pixel would be 0.009 at least
        torch.testing.assert_close(preprocess(PHOTOS.image(k)), theirs(PHOTOS.image(k)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet"])
def test_images_of_another_size(arch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = timm_folder(tmp_path, arch)
    tower, preprocess = open_image(name, ModelConfig(image_size=96))
    assert caplog.messages == [f"{name} was trained with images of 160 pixels, and gets those of 96"]
    assert preprocess.image_size == 96
    sized = {"img_size": 96} if arch == "test_vit" else {}
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0, **sized).eval()
    images = torch.randn(2, 3, 96, 96)
    check_tower(tower, images, theirs(images).detach(), len(tower.blocks), tmp_path / "b")
    with pytest.raises(ValueError, match=r"takes no images of 100 pixels .*; set another model.image_size"):
        open_image(timm_folder(tmp_path / "vit", "test_vit"), ModelConfig(image_size=100))


@pytest.mark.parametrize("classes", [1000, 7, 0])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_file_of_weights(classes: int, ending: str, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", pretrained=False, num_classes=classes)
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        save_file(model.state_dict(), path)
    tower, _ = open_image(f"timm:test_resnet.r160_in1k:{path}", ModelConfig())
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        want = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        assert error([tower(images)], [want]) < 1e-6


def refused(name: str, words: str, **config: Any) -> None:
    """In one line, with these words."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        open_image(name, ModelConfig(**config))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_tower_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    refused("timm:tf_efficientnet_lite9", "did you mean tf_efficientnet_lite4")
    refused("timm:tf_efficientnet_lite0.in2k", "timm knows no weights 'in2k' of tf_efficientnet_lite0; known: in1k")
    refused("timm:tf_efficientnet_lite0", "check the internet connection, or fetch them elsewhere and name")
    refused("timm:test_vit:nowhere.pth", "there is no file nowhere.pth")
    name = timm_folder(tmp_path / "a")
    folder, config = tmp_path / "a", tmp_path / "a" / "config.json"
    refused(f"timm:test_vit:{folder / 'model.safetensors'}", "lacks cls_token; ")
    refused(f"timm:test_efficientnet_ln:{folder / 'model.safetensors'}", "safetensors does not hold its weights (")
    state = load_file(folder / "model.safetensors")
    save_file({**state, "conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "b.safetensors")
    wrong = "conv_stem.weight is [8, 3, 3, 3] and should be [24, 3, 3, 3]; 1 such"
    refused(f"timm:test_efficientnet:{tmp_path / 'b.safetensors'}", wrong)
    (tmp_path / "c.pth").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    refused(f"timm:test_efficientnet:{tmp_path / 'c.pth'}", "holds Python objects, and only tensors are read")

    written = json.loads(config.read_text())
    for change, words in [
        ({"architecture": "test_efficientnot"}, "has no architecture 'test_efficientnot', and there is no such folder"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "config.json asks timm for checkpoint_path"),
        ({"model_args": {"nonsense": 1}}, "timm cannot build it ("),
        ({"pretrained_cfg": {**written["pretrained_cfg"], "crop_mode": "border"}}, "crop_mode='border'"),
        ({"pretrained_cfg": {**written["pretrained_cfg"], "interpolation": "lanczos"}}, "interpolation='lanczos'"),
        ({"pretrained_cfg": {**written["pretrained_cfg"], "input_size": [3, 160, 96]}}, "[160, 96]"),
    ]:
        config.write_text(json.dumps({**written, **change}))
        refused(name, words)
    config.write_text(json.dumps(written))
    (folder / "model.py").write_text("raise SystemExit")
    refused(name, "model.py")
    (folder / "model.safetensors").unlink()
    (folder / "model.py").unlink()
    refused(name, "the folder lacks model.safetensors")


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
PATCHES = {**SIZES, "image_size": 32, "patch_size": 8}
# kind of transformers -> its model, its config, blocks that are known
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "CLIPVision": ("CLIPVisionModel", PATCHES, 3),
    "CLIPVision projected": ("CLIPVisionModelWithProjection", {**PATCHES, "projection_dim": 24}, 3),
    "SiglipVision": ("SiglipVisionModel", PATCHES, 3),
    "ViT": ("ViTModel", PATCHES, 3),
    "DeiT": ("DeiTModel", PATCHES, 3),
    "Dinov2": ("Dinov2Model", PATCHES, 3),
    "Dinov2WithRegisters": ("Dinov2WithRegistersModel", PATCHES, 3),
    "ResNet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 0),
    "ConvNext": ("ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 0),
}


def hf_folder(folder: Path, kind: str, **kwargs: Any) -> Any:
    """A random model of transformers, written with its image processor -> the model."""
    made, config, _ = KINDS[kind]
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{kind.partition(' ')[0]}Config")
    model = getattr(transformers, made)(config_class(**config), **kwargs).eval()
    randomise(model)
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    processor.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_towers_of_transformers(kind: str, tmp_path: Path) -> None:
    model = hf_folder(tmp_path / "a", kind)
    tower, preprocess = open_image(f"hf:{tmp_path / 'a'}", ModelConfig())
    assert type(preprocess) is Preprocess and preprocess.image_size == 32 and preprocess.resize == "squash"
    images = torch.randn(2, 3, 32, 32)
    out = model(pixel_values=images)
    want = out.image_embeds if "projected" in kind else out.pooler_output.flatten(1)
    check_tower(tower, images, want.detach(), KINDS[kind][2], tmp_path / "b")
    learning = [p for p in tower.parameters() if p.requires_grad]
    tower(images).sum().backward()
    assert all(p.grad is not None for p in learning)  # DDP waits for each


def test_a_vit_without_a_pooler_gives_its_class_token(tmp_path: Path) -> None:
    model = hf_folder(tmp_path / "a", "ViT", add_pooling_layer=False)
    tower, _ = open_image(f"hf:{tmp_path / 'a'}", ModelConfig())
    images = torch.randn(2, 3, 32, 32)
    want = model(pixel_values=images).last_hidden_state[:, 0]
    check_tower(tower, images, want.detach(), 3, tmp_path / "b")


@pytest.mark.parametrize("kind", ["CLIPVision", "SiglipVision", "ViT", "Dinov2"])
def test_images_of_another_size_for_transformers(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, name = hf_folder(tmp_path / "a", kind), f"hf:{tmp_path / 'a'}"
    tower, preprocess = open_image(name, ModelConfig(image_size=48))
    assert caplog.messages == [f"{name} was trained with images of 32 pixels, and gets those of 48"]
    images = torch.randn(2, 3, 48, 48)
    more = {} if kind == "Dinov2" else {"interpolate_pos_encoding": True}
    check_tower(tower, images, model(pixel_values=images, **more).pooler_output.detach(), 3, tmp_path / "b")
    assert preprocess.image_size == 48


def test_what_is_no_image_tower_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    hf_folder(folder, "ViT")
    name, config = f"hf:{folder}", folder / "config.json"
    written = json.loads(config.read_text())
    for change, words in [
        ({"model_type": "bert"}, "which is no model of images"),
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_size": 64}, "embeddings.cls_token is [1, 1, 32] and should be [1, 1, 64]"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"auto_map": {"AutoModel": "model.Model"}}, "brings code of its own (auto_map in config.json)"),
    ]:
        config.write_text(json.dumps({**written, **change}))
        refused(name, words)
    config.write_text(json.dumps(written))
    refused(f"hf:{tmp_path / 'b'}", "no such folder")
    refused(name, "takes no images of 4 pixels", image_size=4)
    (folder / "model.safetensors").unlink()
    refused(name, "lacks model.safetensors")


VISION = {"width": 32, "head_width": 16, "layers": 3, "patch_size": 8, "image_size": 32}
TEXT = {"width": 32, "heads": 2, "layers": 2, "context_length": 12}
TRUNK = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
WORDS = ["red", "A red, circle; dogs!", "", "dogs " * 30]
# what of open_clip's config is another than CLIP's -> blocks of the image tower, tokens of CLIP
OPEN_CLIP: dict[str, tuple[dict[str, Any], dict[str, Any], int, bool]] = {
    "plain": ({}, {}, 3, True),
    "narrow": ({"mlp_ratio": 3.0}, {"mlp_ratio": 3.0}, 3, True),
    "coca": ({"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}, {"embed_cls": True}, 3, True),
    "siglip": ({**TRUNK, "image_size": 160}, {"no_causal_mask": True, "pool_type": "last", "vocab_size": 10}, 6, False),
}


def open_clip_folder(folder: Path, kind: str) -> tuple[str, Any]:
    """A random model as on the Hub -> its name, and open_clip's model."""
    vision, text, _, own_tokens = OPEN_CLIP[kind]
    config = {"embed_dim": 16, "vision_cfg": {**VISION, **vision}, "text_cfg": {**TEXT, **text}}
    folder.mkdir()
    if kind != "plain":
        config["custom_text"] = True
    if not own_tokens:
        word_tokenizer("[PAD]", "[UNK]").save_pretrained(folder)
        config["text_cfg"] |= {"hf_tokenizer_name": "there", "tokenizer_kwargs": {"clean": "canonicalize"}}
    torch.manual_seed(0)
    parts = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    model = (open_clip.CustomTextCLIP if kind != "plain" else open_clip.CLIP)(**parts).eval()
    randomise(model)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}", model


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_towers_of_open_clip(kind: str, tmp_path: Path) -> None:
    name, model = open_clip_folder(tmp_path / "a", kind)
    tower, preprocess = open_image(name, ModelConfig())
    side = preprocess.image_size
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        want = model.visual(images)
        check_tower(tower, images, want[0] if kind == "coca" else want, OPEN_CLIP[kind][2], tmp_path / "b")
    assert (type(tower).__name__ == "OwnImage") == (kind == "plain")
    if kind != "plain":
        refused(name, f"takes images of {side} pixels; leave it out", image_size=64)

    text = open_text(name, ModelConfig())
    tokens: Any = open_clip.get_tokenizer(name.removeprefix("open_clip:"))
    with torch.no_grad():
        want = model.encode_text(tokens(WORDS))
        ours = text.tokenizer(WORDS)
        assert error([text(ours)], [want]) < 1e-6 and error([text(ours[:1, :6])], [want[:1]]) < 1e-6
        save_towers(tmp_path / "c", {"text": text})
        with torch.device("meta"):
            again = load_tower("text", tmp_path / "c")
        again.load_state_dict(text.state_dict(), strict=True, assign=True)
        assert torch.equal(again.eval()(again.tokenizer(WORDS)), text(ours)) and again.tokenizer == text.tokenizer
    assert (
        ours.min() == (0 if OPEN_CLIP[kind][3] else -1) and pickle.loads(pickle.dumps(text.tokenizer)) == text.tokenizer
    )
    for opened, inputs in ((tower, images), (text, ours)):
        opened(inputs).sum().backward()
        assert all(p.grad is not None for p in opened.parameters() if p.requires_grad)


def test_a_text_tower_of_open_clip_with_another_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPEN_CLIP, "small", ({}, {**OPEN_CLIP["siglip"][1], "vocab_size": 9}, 3, False))
    name, _ = open_clip_folder(tmp_path / "a", "small")
    with pytest.raises(ValueError, match="its tokenizer has ids up to 9, and its token table 9 rows"):
        open_text(name, ModelConfig())


def test_a_tower_of_a_run_takes_images_of_another_size(tmp_path: Path) -> None:
    name = save_tiny(tmp_path / "a")
    tower, preprocess = open_image(name, ModelConfig(image_size=48))
    assert preprocess.image_size == 48 and tower(torch.randn(2, 3, 48, 48)).shape == (2, 16)
    refused(name, "takes multiples of 16 pixels", image_size=40)
