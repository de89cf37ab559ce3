"""Models of open_clip against open_clip itself: the same weights, pictures and texts, the same numbers; no network."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.photos import PHOTOS, Photos, unit, word_tokenizer
from torch import Tensor

from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.models.external.open_clip import OpenClipPreprocess, load_open_clip, open_clip_image_size
from miniclip.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from miniclip.models.tokenizer import Tokenizer, trim_padding

open_clip = pytest.importorskip("open_clip")

VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PLAIN: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
COCA_TEXT = {**TEXT, "embed_cls": True, "output_tokens": True}
ARCHS: dict[str, dict[str, Any]] = {
    "oc-vit": PLAIN,
    "oc-vit-quickgelu": {**PLAIN, "quick_gelu": True},
    "oc-resnet": {**PLAIN, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}},
    # As MobileCLIP: every position sees the padding, so that its number counts.
    "oc-two-way": {**PLAIN, "text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True, "init_logit_bias": -10},
    "oc-shape-1": {**PLAIN, "nonscalar_logit_scale": True, "init_logit_bias": -10},
    "oc-coca": {
        **PLAIN,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": COCA_TEXT,
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
    "oc-timm": {
        **PLAIN,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 32},
    },
    "oc-wide": {**PLAIN, "vision_cfg": {**VIT, "image_size": [32, 48]}},
}
ENCODE = [name for name in ARCHS if name != "oc-wide"]
TEXTS = ["a red circle", "", "two dogs &amp; a cat, running on the beach", "a", "long " * 40, "a red circle", "!!! ! !"]


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in ARCHS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield


@torch.no_grad()
def weights(arch: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of which no two agree, so that a tower left as it was drawn would be seen."""
    torch.manual_seed(seed)
    model = open_clip.create_model(arch)
    for name, x in model.state_dict().items():
        if not x.is_floating_point() or x.ndim > 1:
            continue
        if name.endswith("running_var"):  # about what fresh convolutions give, else the picture's signal fades
            x.uniform_(0.05, 0.2)
        elif name.endswith(("weight", "scale")):
            x.uniform_(0.5, 1.5)
        else:
            x.add_(0.1 * torch.randn_like(x))
    return {name: x.clone() for name, x in model.state_dict().items()}


def saved(folder: Path, arch: str, kind: str = "safetensors") -> Path:
    state = weights(arch)
    if kind == "safetensors":
        save_file(state, path := folder / f"{arch}.safetensors")
    elif kind == "state_dict":
        torch.save(state, path := folder / f"{arch}.pt")
    else:
        parameters = [torch.nn.Parameter(x) for x in state.values() if x.is_floating_point()]
        optimizer = torch.optim.AdamW(parameters)
        sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
        optimizer.step()
        modules = {f"module.{name}": x for name, x in weights(arch).items()}
        content = {"epoch": 3, "name": "run", "state_dict": modules, "optimizer": optimizer.state_dict()}
        torch.save(content, path := folder / "epoch_3.pt")
    return path


@torch.no_grad()
def assert_equal_to_open_clip(name: str, arch: str, pretrained: str | None) -> None:
    ours, preprocess, tokenizer = load_open_clip(name)
    theirs, _, transform = open_clip.create_model_and_transforms(arch, pretrained)
    theirs.eval()
    pixels = torch.stack([transform(PHOTOS.image(k)) for k in range(len(PHOTOS))])
    torch.testing.assert_close(
        torch.stack([preprocess(PHOTOS.image(k)) for k in range(len(PHOTOS))]), pixels, rtol=0, atol=1e-6
    )
    tokens = open_clip.get_tokenizer(arch)(TEXTS)
    assert torch.equal(tokenizer(TEXTS), tokens) and tokens.dtype == torch.int64
    image, text = theirs.encode_image(pixels, normalize=False), theirs.encode_text(tokens, normalize=False)
    assert torch.equal(ours.encode_image(pixels), image) and torch.equal(ours.encode_text(tokens), text)
    assert image.shape[1] == text.shape[1] == ours.config.embed_dim
    # The rows differ: these are no towers that hardly look at their input.
    for rows in (unit(image), unit(text[:5])):
        assert torch.pdist(rows).min() > 1e-2
    options = EncodeOptions(batch_size=3)
    torch.testing.assert_close(encode_images(ours, PHOTOS, preprocess, options), unit(image), rtol=0, atol=1e-5)
    torch.testing.assert_close(encode_texts(ours, tokenizer, TEXTS, options), unit(text), rtol=0, atol=1e-5)
    assert ours.logit_scale.shape == () and ours.logit_scale == theirs.logit_scale
    assert isinstance(ours.logit_scale, torch.nn.Parameter)
    if theirs.logit_bias is None:
        assert ours.logit_bias is None
    else:
        assert ours.logit_bias is not None
        assert ours.logit_bias.shape == () and ours.logit_bias == theirs.logit_bias
    assert open_clip_image_size(name) == preprocess.image_size == ours.config.image_size == pixels.shape[-1]
    assert not any(module.training for module in ours.modules())


@pytest.mark.parametrize("arch", ENCODE)
def test_embeddings_equal_open_clips(arch: str, tmp_path: Path) -> None:
    path = saved(tmp_path, arch)
    assert_equal_to_open_clip(f"open_clip:{arch}:{path}", arch, str(path))


def test_other_files(tmp_path: Path) -> None:
    for kind in ("state_dict", "checkpoint"):
        path = saved(tmp_path, "oc-vit", kind)
        assert_equal_to_open_clip(f"open_clip:oc-vit:{path}", "oc-vit", str(path))
        state = load_open_clip(f"oc-vit:{path}")[0].model.state_dict()
        assert all(torch.equal(x, state[name]) for name, x in weights("oc-vit").items())


@torch.no_grad()
def test_trimmed_texts_get_their_zeros_back(tmp_path: Path) -> None:
    model, _, tokenizer = load_open_clip(f"open_clip:oc-two-way:{saved(tmp_path, 'oc-two-way')}")
    tokens = tokenizer(["a red circle", "a cat"])
    trimmed = trim_padding(tokens)
    assert trimmed.shape[1] < tokens.shape[1] == 20
    assert torch.equal(model.encode_text(trimmed), model.encode_text(tokens))
    with pytest.raises(ValueError, match="rows of 20 ids"):
        model.encode_text(torch.zeros(1, 21, dtype=torch.long))


def test_random_weights_only_when_asked() -> None:
    refused("oc-vit", r"names no weights; .*open_clip:oc-vit:random")
    torch.manual_seed(5)
    model, preprocess, tokenizer = load_open_clip("open_clip:oc-vit:random")
    torch.manual_seed(5)
    expected = open_clip.create_model("oc-vit").state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in model.model.state_dict().items())
    assert isinstance(tokenizer, Tokenizer) and tokenizer.context_length == 20
    assert preprocess == OpenClipPreprocess(32, CLIP_MEAN, CLIP_STD, "crop", "bicubic")


# Preprocessing


def test_pixels_equal_open_clips() -> None:
    mean, std, rng = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), random.Random(0)
    photos = Photos([(rng.randint(8, 300), rng.randint(8, 300)) for _ in range(40)])
    modes, methods = (("crop", "shortest"), ("squash", "squash")), ("bicubic", "bilinear")
    for (resize, mode), interpolation, side in itertools.product(modes, methods, (31, 32)):
        theirs = open_clip.image_transform(side, False, mean, std, mode, interpolation)
        ours = OpenClipPreprocess(side, mean, std, resize, interpolation)  # type: ignore[arg-type]
        for k in range(len(photos)):
            # They divide by 255 first, which rounds otherwise; one step of a pixel would be 0.009 at least.
            torch.testing.assert_close(ours(photos.image(k)), theirs(photos.image(k)), rtol=0, atol=1e-6)
    plain = [Preprocess(32).to_uint8(photos.image(k)) for k in range(10)]
    exact = [OpenClipPreprocess(32).to_uint8(photos.image(k)) for k in range(10)]
    assert not all(map(torch.equal, plain, exact))  # else there would be no need for a transform of its own


# Folders with a config of their own, as on the Hub


def folder_model(folder: Path, preprocess: dict[str, Any], tokenizer_kwargs: dict[str, Any] | None = None) -> str:
    """A model whose tokenizer pads with id 7, in front of and behind which stand other ids than CLIP's."""
    word_tokenizer("[PAD]", "[UNK]").save_pretrained(folder)
    text = {**TEXT, "context_length": 12, "vocab_size": 10, "hf_tokenizer_name": "there", "no_causal_mask": True}
    text |= {"pool_type": "last", "tokenizer_kwargs": tokenizer_kwargs or {"clean": "canonicalize"}}
    config = {**PLAIN, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    (folder / "oc-folder.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "oc-folder.json")
    save_file(weights("oc-folder"), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def test_folder_with_another_tokenizer_and_preprocessing(tmp_path: Path) -> None:
    name = folder_model(tmp_path, SIGLIP)
    assert_equal_to_open_clip(f"open_clip:{name}", name, None)
    model, preprocess, tokenizer = load_open_clip(f"open_clip:{name}")
    assert preprocess == OpenClipPreprocess(32, (0.5,) * 3, (0.5,) * 3, "squash", "bilinear")
    tokens = tokenizer(["a red circle"])
    assert tokens.tolist() == [[1, 2, 3, 5, 7, 7, 7, 7, 7, 7, 7, 7]]
    with pytest.raises(ValueError, match="rows of 12 ids"):
        model.encode_text(tokens[:, :4])


def test_preprocessing_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    name = folder_model(tmp_path, {**SIGLIP, "resize_mode": "longest"})
    refused(name, "resize_mode='longest'")
    refused("oc-wide:random", r"\[32, 48\] pixels; only square")


# Nothing that is read runs code


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({**weights("oc-vit"), "visual.proj": Evil(made)}, path := tmp_path / "evil.pt")
    refused(f"oc-vit:{path}", r"evil\.pt: the file cannot be loaded .*only tensors are read")
    assert not made.exists()
    name = folder_model(tmp_path, {})
    (tmp_path / "open_clip_model.safetensors").unlink()
    path.rename(tmp_path / "open_clip_pytorch_model.bin")
    refused(name, "only tensors are read")
    assert not made.exists()
    torch.load(tmp_path / "open_clip_pytorch_model.bin", weights_only=False)
    assert made.exists()  # the file would have done it


def test_code_of_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    # The config itself asks for the code to be trusted.
    name = folder_model(tmp_path, {}, {"trust_remote_code": True})
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    described |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    code = f"import os\nos.mkdir({str(made)!r})\nfrom transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    (tmp_path / "evil.py").write_text(code)
    refused(name, "may not bring code of its own")
    assert not made.exists()


# Messages


IMPOSSIBLE = [
    ("ViT-B32:openai", "no architecture 'ViT-B32'; did you mean .*ViT-B-32"),
    ("qqqq", r"no architecture 'qqqq'; open_clip.list_models\(\)"),
    ("ViT-B-32:nowhere", "'nowhere' is neither a known tag nor a file; ViT-B-32 takes the tags .*laion2b_s34b_b79k"),
    ("oc-vit:nowhere", "neither a known tag nor a file; oc-vit takes a file"),
    ("ViT-B/32", "open_clip:ViT-B-32:PRETRAINED with one of the tags"),
    ("ViT-B-32", "open_clip:ViT-B-32:PRETRAINED with one of the tags openai, laion400m_e31"),
    ("ViT-B-32/", "open_clip:ViT-B-32:PRETRAINED with one of the tags"),
    ("ViT-B/32/nowhere", "'nowhere' is neither a known tag nor a file; ViT-B-32 takes the tags"),
    ("ViT-B32/openai", "no architecture 'ViT-B32-openai'; did you mean .*ViT-B-32"),
    ("ViT-B-32:openai", "trained with QuickGELU; use open_clip:ViT-B-32-quickgelu:openai$"),
    ("hf-hub:nobody/nothing", "no open_clip_config.json can be read there .*internet connection"),
    ("local-dir:/nowhere/at/all", "no open_clip_config.json can be read there .*check the folder"),
]


def refused(name: str, message: str, longest: int = 1000) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_open_clip(f"open_clip:{name}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < longest


def test_names_that_cannot_be_meant() -> None:
    for name, message in IMPOSSIBLE:
        refused(name, message)
        with pytest.raises(ValueError, match=message):
            open_clip_image_size(f"open_clip:{name}")


def test_tags_are_open_clips() -> None:
    assert open_clip_image_size("open_clip:ViT-B-32-quickgelu:openai") == 224
    assert open_clip_image_size("open_clip:ViT-B-32:laion2B-s34B-b79K") == 224  # open_clip takes it so, too
    assert open_clip_image_size("open_clip:RN50x4-quickgelu:openai") == 288


def test_a_slash_stands_for_the_colon_and_the_dash() -> None:
    for arch in ("ViT-B-32-quickgelu", "ViT-B/32-quickgelu", "ViT-B/32/quickgelu"):
        for sign in (":", "/"):
            assert open_clip_image_size(f"open_clip:{arch}{sign}openai") == 224


def test_a_slash_stands_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The longest name counts: ViT-H-14 is one as well. A path may hold both signs.
    assert open_clip_image_size("open_clip:ViT-H-14/378/quickgelu/dfn5b") == 378
    path = saved(tmp_path, "oc-vit")
    assert_equal_to_open_clip(f"open_clip:oc-vit/{path}", "oc-vit", str(path))
    odd = tmp_path / "oc-vit" / "a:b.safetensors"
    odd.parent.mkdir()
    path.rename(odd)
    monkeypatch.chdir(tmp_path)
    assert_equal_to_open_clip("open_clip:oc-vit/oc-vit/a:b.safetensors", "oc-vit", str(odd))


def test_no_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A copy of the small model under a tag, so that no large one is built first.
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("[Errno -3] Temporary failure\nin name resolution")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(
        open_clip.pretrained, "_PRETRAINED", {"oc-vit": {"web": {"url": "https://nowhere.invalid/w.pt"}}}
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    refused("oc-vit:web", r"cannot be fetched or loaded \(.*failure in name.*\); check the internet")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    refused(f"oc-vit:{saved(tmp_path, 'oc-resnet')}", "cannot be loaded as weights of oc-vit", 600)
    empty = tmp_path / "empty.pt"
    empty.write_bytes(b"")
    refused(f"oc-vit:{empty}", r"empty\.pt: the file cannot be loaded")
    name = folder_model(tmp_path, {})
    (tmp_path / "open_clip_model.safetensors").unlink()  # a folder without weights is not a random model
    refused(name, "the folder's weights cannot be loaded")


def test_an_open_clip_that_loads_unsafely_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(create_model=lambda model_name, pretrained=None: None, __version__="2.24.0")
    monkeypatch.setitem(sys.modules, "open_clip", old)
    refused("oc-vit:random", r"open_clip 2\.24\.0 cannot load weights safely")


def test_import_costs_nothing() -> None:
    code = "import sys, miniclip.models.external.open_clip, miniclip.models.external.transformers_clip; "
    code += "sys.exit(bool({'open_clip', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
