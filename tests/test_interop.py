"""Models of open_clip and transformers against the libraries themselves: the same weights, images and texts, the same
numbers; what is refused, in one line; nothing that is read runs code; no network."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.photos import PHOTOS, Photos, unit, word_tokenizer
from torch import Tensor

from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.models.external.open_clip import _find
from miniclip.models.load import image_size_of, load
from miniclip.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from miniclip.models.tokenizer import Tokenizer, trim_padding

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

TEXTS = ["a red circle", "", "two dogs &amp; a cat", "a", "long " * 100, "a red circle", "!!! ! !", "a dog's 2 cats"]
ALL = range(len(PHOTOS))


def loaded(name: str) -> Any:
    return load(name)


def refused(name: str, message: str, weights: bool = False) -> None:
    """weights: what is wrong shows only when they are read."""
    for function in (loaded,) if weights else (loaded, image_size_of):
        with pytest.raises(ValueError, match=message) as caught:
            function(name)
        assert "\n" not in str(caught.value) and name in str(caught.value) and len(str(caught.value)) < 1000


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@torch.no_grad()
def assert_equal(name: str, theirs: Any, pixels: Tensor, image: Tensor, text: Tensor, rounding: float) -> Any:
    """-> what was loaded. image, text: their features, before unit length, of PHOTOS and TEXTS."""
    ours, preprocess, tokenizer = loaded(name)
    squares = torch.stack([preprocess.to_uint8(PHOTOS.image(k)) for k in ALL])
    assert squares.dtype == torch.uint8
    close(preprocess.normalize(squares), pixels, 1e-6)
    close(ours.encode_image(pixels), image, rounding)
    close(ours.encode_text(tokenizer(TEXTS)), text, 10 * rounding)
    assert image.shape[1] == text.shape[1] == ours.config.embed_dim
    # the rows differ: these are no towers that hardly look at their input
    for different in (unit(image), unit(text[:5])):
        assert torch.pdist(different).min() > 1e-2
    options = EncodeOptions(batch_size=3)
    close(encode_images(ours, PHOTOS, preprocess, options), unit(image), 1e-5)
    close(encode_texts(ours, tokenizer, TEXTS, options), unit(text), 1e-5)
    for number in ("logit_scale", "logit_bias"):
        mine, own = getattr(ours, number), getattr(theirs, number, None)
        assert own is None if mine is None else mine.shape == () and mine == own and type(mine) is torch.nn.Parameter
    assert image_size_of(name) == preprocess.image_size == ours.config.image_size == pixels.shape[-1]
    assert not any(module.training for module in ours.modules())
    return ours, preprocess, tokenizer


@torch.no_grad()
def stir(model: Any) -> None:
    """Random weights of which no two agree, and embeddings that differ from one input to the next."""
    for name, x in model.state_dict().items():
        if not x.is_floating_point() or name in ("logit_scale", "logit_bias"):
            continue
        if x.ndim > 1:
            x.mul_(2)
        elif name.endswith("running_var"):  # about what fresh convolutions give, else the image's signal fades
            x.uniform_(0.2, 0.8)
        elif name.endswith("weight"):
            x.uniform_(0.5, 1.5)
        else:
            x.add_(0.1 * torch.randn_like(x))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# ---- open_clip

VIT: dict[str, Any] = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
PLAIN: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
POOLS = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 32}
ARCHS: dict[str, dict[str, Any]] = {
    "oc-vit": PLAIN,
    "oc-vit-quickgelu": {**PLAIN, "quick_gelu": True},
    "oc-resnet": {**PLAIN, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}},
    # as MobileCLIP: every position sees the padding, so that its number counts
    "oc-two-way": {**PLAIN, "text_cfg": {**TEXT, "no_causal_mask": True}, "custom_text": True, "init_logit_bias": -10},
    "oc-shape-1": {**PLAIN, "nonscalar_logit_scale": True, "init_logit_bias": -10},
    "oc-coca": {
        **PLAIN,
        "vision_cfg": {**VIT, **POOLS},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
    "oc-timm": {**PLAIN, "vision_cfg": TIMM},
}


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in (ARCHS | {"oc-wide": {**PLAIN, "vision_cfg": {**VIT, "image_size": [32, 48]}}}).items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def weights(arch: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    stir(model := open_clip.create_model(arch))
    for scalar in (model.logit_scale, model.logit_bias):
        if scalar is not None:
            scalar.data.sub_(0.3)  # other than what a fresh model has
    return {name: x.clone() for name, x in model.state_dict().items()}


def saved(folder: Path, arch: str) -> Path:
    save_file(weights(arch), path := folder / f"{arch}.safetensors")
    return path


@torch.no_grad()
def equals_open_clip(name: str, arch: str, pretrained: str | None) -> None:
    theirs, _, transform = open_clip.create_model_and_transforms(arch, pretrained)
    theirs.eval()
    pixels = torch.stack([transform(PHOTOS.image(k)) for k in ALL])
    tokens = open_clip.get_tokenizer(arch)(TEXTS)
    image, text = theirs.encode_image(pixels, normalize=False), theirs.encode_text(tokens, normalize=False)
    _, _, tokenizer = assert_equal(name, theirs, pixels, image, text, 0.0)
    assert torch.equal(tokenizer(TEXTS), tokens) and tokens.dtype == torch.int64


def test_open_clips_architectures(tmp_path: Path) -> None:
    for arch in ARCHS:
        path = saved(tmp_path, arch)
        equals_open_clip(f"open_clip:{arch}:{path}", arch, str(path))


def test_a_tag_brings_its_quick_gelu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the name says so or not, once with a note; where the download fails, the advice names the right ARCH."""
    file = saved(tmp_path, "oc-vit-quickgelu")
    quick = {"quick": {"url": "https://nowhere.invalid/w", "quick_gelu": True, "mean": (0.5, 0.4, 0.3)}}
    tags = {"oc-vit": quick | {"plain": {"url": "https://nowhere.invalid/w"}}, "oc-vit-quickgelu": quick}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    for name, arch, tag in (
        ("open_clip:oc-vit:quick", "oc-vit-quickgelu", "quick"),
        ("open_clip:oc/vit/quick", "oc-vit-quickgelu", "quick"),
        ("open_clip:oc-vit-quickgelu:quick", "oc-vit-quickgelu", "quick"),
        ("open_clip:oc-vit:plain", "oc-vit", "plain"),
    ):
        caplog.clear()
        equals_open_clip(name, arch, tag)
        notes = [record.getMessage() for record in caplog.records if record.name.startswith("miniclip")]
        said = f"{name}: its weights were trained with QuickGELU, so they are used as oc-vit-quickgelu"
        assert notes == [said] * ("quickgelu" not in name and tag == "quick")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: 1 / 0)
    refused("open_clip:oc-vit:quick", "name what was fetched: open_clip:oc-vit-quickgelu:FILE$", weights=True)


def test_every_tag_of_open_clip_is_taken_with_its_activation() -> None:
    found = {}
    for arch, tag in open_clip.list_pretrained():
        source = _find(f"open_clip:{arch}:{tag}")
        found[arch, tag] = source.config.get("quick_gelu", False)
        told = open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False)
        # a config that asks for QuickGELU by itself is right without the tag's word
        assert found[arch, tag] == (told or open_clip.get_model_config(arch).get("quick_gelu", False)), (arch, tag)
        assert source.config == open_clip.get_model_config(source.arch)
    assert found["ViT-B-32", "openai"] and found["ViT-B-16", "dfn2b"] and not found["ViT-B-32", "laion2b_s34b_b79k"]


def test_open_clips_other_files(tmp_path: Path) -> None:
    """A state dict, and a checkpoint of open_clip_train. A name may hold a slash for the colon, and a path both."""
    state = weights("oc-vit")
    parameters = [torch.nn.Parameter(x) for x in state.values() if x.is_floating_point()]
    optimizer = torch.optim.AdamW(parameters)
    sum(p.sum() for p in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    checkpoint = {"epoch": 3, "name": "run", "state_dict": {f"module.{name}": x for name, x in state.items()}}
    for content, name in ((state, "a:b.pt"), ({**checkpoint, "optimizer": optimizer.state_dict()}, "epoch_3.pt")):
        torch.save(content, path := tmp_path / name)
        equals_open_clip(f"open_clip:oc-vit/{path}", "oc-vit", str(path))
        found = loaded(f"open_clip:oc-vit:{path}")[0].model.state_dict()
        assert all(torch.equal(x, found[name]) for name, x in state.items())


@torch.no_grad()
def test_trimmed_texts_get_their_zeros_back(tmp_path: Path) -> None:
    model, _, tokenizer = loaded(f"open_clip:oc-two-way:{saved(tmp_path, 'oc-two-way')}")
    tokens = tokenizer(["a red circle", "a cat"])
    trimmed = trim_padding(tokens)
    assert trimmed.shape[1] < tokens.shape[1] == 20
    assert torch.equal(model.encode_text(trimmed), model.encode_text(tokens))
    with pytest.raises(ValueError, match="rows of 20 ids"):
        model.encode_text(torch.zeros(1, 21, dtype=torch.long))


def test_random_weights_only_when_asked() -> None:
    refused("open_clip:oc-vit", r"names no weights; .*open_clip:oc-vit:random")
    torch.manual_seed(5)
    model, preprocess, tokenizer = loaded("open_clip:oc-vit:random")
    torch.manual_seed(5)
    expected = open_clip.create_model("oc-vit").state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in model.model.state_dict().items())
    assert isinstance(tokenizer, Tokenizer) and tokenizer.context_length == 20
    assert preprocess == Preprocess(32, CLIP_MEAN, CLIP_STD, "crop", "bicubic", whole=True)


def test_pixels_equal_open_clips() -> None:
    mean, std, rng = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), random.Random(0)
    photos = Photos([(rng.randint(8, 300), rng.randint(8, 300)) for _ in range(40)])
    modes, methods = (("crop", "shortest"), ("squash", "squash")), ("bicubic", "bilinear")
    for (resize, mode), interpolation, side in itertools.product(modes, methods, (31, 32)):
        theirs = open_clip.image_transform(side, False, mean, std, mode, interpolation)
        ours = Preprocess(side, mean, std, resize, interpolation, whole=True)  # type: ignore[arg-type]
        for k in range(len(photos)):
            # they divide by 255 first, which rounds otherwise; one step of a pixel would be 0.009 at least
            close(ours(photos.image(k)), theirs(photos.image(k)), 1e-6)
    plain = [Preprocess(32).to_uint8(photos.image(k)) for k in range(10)]
    exact = [Preprocess(32, whole=True).to_uint8(photos.image(k)) for k in range(10)]
    assert not all(map(torch.equal, plain, exact))  # else there would be no need for a transform of its own


def folder_model(folder: Path, preprocess: dict[str, Any], tokenizer_kwargs: dict[str, Any] | None = None) -> str:
    """A model as on the Hub, whose tokenizer pads with id 7, between other ids than those of CLIP."""
    word_tokenizer("[PAD]", "[UNK]").save_pretrained(folder)
    text = {**TEXT, "context_length": 12, "vocab_size": 10, "hf_tokenizer_name": "there", "no_causal_mask": True}
    text |= {"pool_type": "last", "tokenizer_kwargs": tokenizer_kwargs or {"clean": "canonicalize"}}
    config = {**PLAIN, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    (folder / "oc-folder.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "oc-folder.json")
    save_file(weights("oc-folder"), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def test_folder_with_another_tokenizer_and_preprocessing(tmp_path: Path) -> None:
    name = folder_model(tmp_path, SIGLIP)
    equals_open_clip(name, name.removeprefix("open_clip:"), None)
    model, preprocess, tokenizer = loaded(name)
    assert preprocess == Preprocess(32, (0.5,) * 3, (0.5,) * 3, "squash", "bilinear", whole=True)
    tokens = tokenizer(["a red circle"])
    assert tokens.tolist() == [[1, 2, 3, 5, 7, 7, 7, 7, 7, 7, 7, 7]]
    with pytest.raises(ValueError, match="rows of 12 ids"):
        model.encode_text(tokens[:, :4])
    refused(folder_model(tmp_path, {**SIGLIP, "resize_mode": "longest"}), "resize_mode='longest'", weights=True)


def test_open_clips_code_is_not_run(tmp_path: Path) -> None:
    """In pickled weights, in a file or a folder, and in a tokenizer's Python files, which its config wants trusted."""
    made, path, binary = tmp_path / "made", tmp_path / "evil.pt", tmp_path / "open_clip_pytorch_model.bin"
    torch.save({**weights("oc-vit"), "visual.proj": Evil(made)}, path)
    message = r"evil\.pt: the file cannot be loaded .*only tensors are read"
    refused(f"open_clip:oc-vit:{path}", message, weights=True)
    name = folder_model(tmp_path, {}, {"trust_remote_code": True})
    (tmp_path / "open_clip_model.safetensors").unlink()
    refused(name, "the folder's weights cannot be loaded", weights=True)  # it is not a random model
    path.rename(binary)
    refused(name, "only tensors are read", weights=True)
    described = json.loads((tmp_path / "tokenizer_config.json").read_text())
    described |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    code = f"import os\nos.mkdir({str(made)!r})\nfrom transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    (tmp_path / "evil.py").write_text(code)
    refused(name, "may not bring code of its own", weights=True)
    assert not made.exists()
    torch.load(binary, weights_only=False)
    assert made.exists()  # the file would have done it


def test_open_clips_weights_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other, empty = saved(tmp_path, "oc-resnet"), tmp_path / "empty.pt"
    refused(f"open_clip:oc-vit:{other}", "cannot be loaded as weights of oc-vit", weights=True)
    empty.touch()
    refused(f"open_clip:oc-vit:{empty}", r"empty\.pt: the file cannot be loaded", weights=True)
    torch.jit.script(torch.nn.Linear(2, 2)).save(script := tmp_path / "ViT-B-32.pt")
    refused(f"open_clip:oc-vit:{script}", "a TorchScript archive, .* the tag openai", weights=True)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("[Errno -3] Temporary failure\nin name resolution")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    # the small model under a tag, so that no large one is built first
    tags = {"oc-vit": {"web": {"url": "https://nowhere.invalid/w.pt"}}}
    monkeypatch.setattr(open_clip.pretrained, "_PRETRAINED", tags)
    monkeypatch.setenv("HOME", str(tmp_path))
    message = r"cannot be fetched or loaded \(.*failure in name.*\); check the internet"
    refused("open_clip:oc-vit:web", message, weights=True)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    old = SimpleNamespace(create_model=lambda model_name, pretrained=None: None, __version__="2.24.0")
    monkeypatch.setitem(sys.modules, "open_clip", old)
    with pytest.raises(ValueError, match=r"open_clip 2\.24\.0 cannot load weights safely"):
        loaded("open_clip:oc-vit:random")


# ---- transformers

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@functools.cache
def bpe_files() -> dict[str, str]:
    """CLIP's, out of miniclip's merge table; the letters of bytes are open_clip's."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = gzip.decompress(resources.files("miniclip.models").joinpath("bpe_merges.txt.gz").read_bytes()).decode()
    symbols = letters + [letter + "</w>" for letter in letters]
    symbols += [line.replace(" ", "") for line in merges.splitlines()] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = json.dumps({symbol: k for k, symbol in enumerate(symbols)})
    return {"vocab.json": vocabulary, "merges.txt": "#version: 0.2\n" + merges}


def save_clip(
    folder: Path,
    eos: int = 49407,
    text: dict[str, Any] | None = None,
    processor: dict[str, Any] | None = None,
    pad: str = "<|endoftext|>",
    vision: dict[str, Any] | None = None,
) -> str:
    """A small CLIPModel with its processor, in the files that the Hub has of such -> its name."""
    torch.manual_seed(0)
    images = {**SIZES, "image_size": 32, "patch_size": 16, **(vision or {})}
    texts = {**SIZES, "eos_token_id": eos, **(text or {})}
    config = transformers.CLIPConfig(text_config=texts, vision_config=images, projection_dim=16)
    stir(model := transformers.CLIPModel(config))
    model.save_pretrained(folder)
    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**(square | (processor or {}))).save_pretrained(folder)
    described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    for name, content in (bpe_files() | {"tokenizer_config.json": json.dumps(described)}).items():
        (folder / name).write_text(content)
    return f"hf:{folder}"


def save_siglip(folder: Path, input_names: list[str]) -> str:
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 10, "max_position_embeddings": 12}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    stir(model := transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-9.5)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    word_tokenizer("</s>", "<unk>", model_input_names=input_names, model_max_length=12).save_pretrained(folder)
    return f"hf:{folder}"


@torch.no_grad()
def equals_transformers(name: str, length: int) -> Any:
    folder = name.removeprefix("hf:")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    images = [PHOTOS.image(k) for k in ALL]
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    own = transformers.AutoTokenizer.from_pretrained(folder)
    rows = own(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    outputs = theirs.get_image_features(pixel_values=pixels), theirs.get_text_features(**rows)
    image, text = (x if isinstance(x, Tensor) else x.pooler_output for x in outputs)
    found = assert_equal(name, theirs, pixels, image, text, 1e-6)
    assert found[0].config.context_length == length
    return found


def change(file: Path, **changes: Any) -> None:
    """Of JSON; a dict changes what it names in the one that is there."""
    content = json.loads(file.read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(("eos", "pad"), [(49407, "<|endoftext|>"), (2, "!")])
def test_clip_of_transformers(eos: int, pad: str, tmp_path: Path) -> None:
    """2 is what configs of before the summer of 2023 say; transformers then pools at the highest id."""
    name = save_clip(tmp_path, eos=eos, pad=pad)
    ours, preprocess, tokenizer = equals_transformers(name, 77)
    assert ours.logit_bias is None
    assert (preprocess.mean, preprocess.std) == (CLIP_MEAN, CLIP_STD)
    texts = [text for text in TEXTS if pad not in text and "&" not in text]  # what pads is no ordinary text
    tokens, expected = tokenizer(texts), Tokenizer(77)(texts)
    assert tokens.shape == (len(texts), 77) and tokens.dtype == torch.int64
    assert torch.equal(torch.where(expected > 0, expected, tokens), tokens)  # other padding than miniclip's at most
    assert (tokens == 49407).sum(1).min() >= 1  # long texts keep their end
    change(tmp_path / "config.json", dtype="float16")  # it is read in float32 all the same
    assert all(map(torch.equal, loaded(name)[0].parameters(), ours.parameters()))


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"]])
def test_siglip_of_transformers(names: list[str], tmp_path: Path) -> None:
    """Its text tower sees the padding, unless the tokenizer gives a mask."""
    ours, _, tokenizer = equals_transformers(save_siglip(tmp_path, names), 12)
    assert ours.logit_bias.item() == -9.5 and ours.logit_scale.item() == pytest.approx(2.3)
    padding = 5 if names == ["input_ids"] else ~5
    assert tokenizer(["a red circle"]).tolist() == [[1, 2, 3, 5] + 8 * [padding]]


KINDS: list[dict[str, Any]] = [
    {"do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5, 1.0, 2.0]},
    {"size": {"shortest_edge": 40}, "resample": 2},
    {"do_resize": False},
]


def test_processors_of_every_kind(tmp_path: Path) -> None:
    for number, changes in enumerate(KINDS):
        _, preprocess, _ = loaded(save_clip(folder := tmp_path / str(number), processor=changes))
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        for image in map(PHOTOS.image, ALL):
            theirs = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
            torch.testing.assert_close(preprocess(image), theirs, rtol=1e-6, atol=1e-6)
            raw = processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
            assert torch.equal(preprocess.to_uint8(image), raw)
            assert np.array_equal(preprocess.to_square(image), raw.permute(1, 2, 0))


def test_other_modes_threads_and_json(tmp_path: Path) -> None:
    _, preprocess, _ = loaded(save_clip(tmp_path))
    grey = PHOTOS.image(0).convert("L")
    assert torch.equal(preprocess.to_uint8(grey), preprocess.to_uint8(grey.convert("RGB")))
    photos = Photos(PHOTOS.sizes * 20)
    alone = [preprocess.to_uint8(photos.image(k)) for k in range(len(photos))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: preprocess.to_uint8(photos.image(k)), range(len(photos))))
    assert all(map(torch.equal, alone, together))
    assert json.loads(json.dumps(preprocess.to_dict()))["processor"]["size"] == {"shortest_edge": 32}
    # else there would be no need to ask their processor
    assert not all(torch.equal(Preprocess(32).to_uint8(PHOTOS.image(k)), alone[k]) for k in ALL)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    whole = save_clip(tmp_path / "whole").removeprefix("hf:")
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    processor = {"auto_map": {"AutoImageProcessor": "evil.Evil"}, "image_processor_type": "Evil"}
    model = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "model_type": "Evil"}
    code = "image processor cannot be loaded .it brings code of its own, which is not run"
    for number, (file, changes, message) in enumerate((
        ("tokenizer_config.json", tokenizer, "its tokenizer cannot be loaded"),
        ("preprocessor_config.json", processor, code),
        ("config.json", model, "model_type 'Evil'"),
    )):  # fmt: skip
        shutil.copytree(whole, folder := tmp_path / str(number))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
        change(folder / file, **changes)
        refused(f"hf:{folder}", message, weights=True)
    Path(whole, "model.safetensors").unlink()
    torch.save({"logit_scale": Evil(made)}, Path(whole, "pytorch_model.bin"))
    refused(f"hf:{whole}", r"lacks model.safetensors .*\(only safetensors are read\)")
    assert not made.exists() and "evil" not in sys.modules


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "blip"}, r"model_type 'blip'; the models .* are clip and siglip"),
    ({"model_type": "clip_text_model"}, "model_type 'clip_text_model'"),
    ({"model_type": None}, "model_type None"),
    ({"text_config": "none"}, "its config.json cannot be loaded"),
    ({"vision_config": {"image_size": [32, 48]}}, r"\[32, 48\] pixels; only square"),
]
OTHER_WEIGHTS: list[tuple[dict[str, Any], str]] = [
    ({"projection_dim": 24}, r"projection.weight is \[16, 32\] and should be \[24, 32\] \(2 such\)"),
    ({"text_config": {"num_hidden_layers": 3}}, r"text_model.encoder.layers.2.*is missing \(16 such\)"),
    ({"vision_config": {"num_hidden_layers": 1}}, r"vision_model.encoder.layers.1.*has no place .*\(16 such\)"),
]
MISSING = [
    ("config.json", r"lacks config.json; call save_pretrained"),
    ("preprocessor_config.json", "lacks preprocessor_config.json or processor_config.json"),
    ("vocab.json", "lacks tokenizer.json or vocab.json"),
    ("model.safetensors", "lacks model.safetensors"),
]


def test_files_of_transformers_that_do_not_fit(tmp_path: Path) -> None:
    name, config, weights = save_clip(tmp_path), tmp_path / "config.json", tmp_path / "model.safetensors"
    for file, message in MISSING:
        (tmp_path / file).rename(tmp_path / "away")
        refused(name, message)
        (tmp_path / "away").rename(tmp_path / file)
    whole = config.read_text()
    for cases, late in ((CONFIGS, False), (OTHER_WEIGHTS, True)):
        for changes, message in cases:
            change(config, **changes)
            refused(name, message, late)
            config.write_text(whole)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refused(name, r"its model.safetensors cannot be loaded \(.*\); write the folder again", weights=True)
    for broken, message in (("preprocessor_config.json", "image processor"), ("config.json", r"config\.json")):
        (tmp_path / broken).write_text("{")
        refused(name, f"its {message} cannot be loaded")


def test_processors_and_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    refused(save_clip(tmp_path / "a", processor={"crop_size": 24}), r"makes \(3, 24, 24\) .* asks for \(3, 32, 32\)")
    refused(save_clip(tmp_path / "b", processor={"do_center_crop": False}), r"makes \(3, 32, 3\d\) .*crop_size")
    refused(save_clip(tmp_path / "c", text={"vocab_size": 49406}), "ids up to 49407, .*vocab_size=49406", weights=True)
    refused(save_clip(tmp_path / "d", eos=49405), "does not end a text with the eos_token_id=49405", weights=True)
    left, empty = save_clip(tmp_path / "left"), save_clip(tmp_path / "empty")
    change(tmp_path / "left" / "tokenizer_config.json", padding_side="left")
    refused(left, "pads on the left", weights=True)
    (tmp_path / "empty" / "merges.txt").write_text("")
    (tmp_path / "empty" / "vocab.json").write_text('{"<|startoftext|>": 49406, "<|endoftext|>": 49407}')
    refused(empty, "tokenizer (tells no texts apart|cannot be loaded)", weights=True)


def test_from_the_cache_of_the_hub_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    expected, _, _ = loaded(save_clip(tmp_path / "models--some--clip" / "snapshots" / "abc"))
    refs = tmp_path / "models--some--clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert image_size_of("hf:some/clip") == 32
    model, _, tokenizer = loaded("hf:some/clip")
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), expected.parameters(), strict=True))
    assert torch.equal(tokenizer(["a cat"])[0, :4], torch.tensor([49406, 320, 2368, 49407]))


# ---- names

NO_FOLDER = r"no such folder; name one that holds config.json, or hf:ORG/NAME"
IMPOSSIBLE = [
    ("open_clip:ViT-B32:openai", "no architecture 'ViT-B32'; did you mean .*ViT-B-32"),
    ("open_clip:qqqq", r"no architecture 'qqqq'; open_clip.list_models\(\)"),
    (
        "open_clip:ViT-B-32:nowhere",
        "'nowhere' is neither a known tag nor a file; ViT-B-32 takes the tags .*laion2b_s34b",
    ),
    ("open_clip:oc-vit:nowhere", "neither a known tag nor a file; oc-vit takes a file"),
    ("open_clip:ViT-B/32", "open_clip:ViT-B-32:PRETRAINED with one of the tags"),
    ("open_clip:ViT-B-32", "open_clip:ViT-B-32:PRETRAINED with one of the tags openai, laion400m_e31"),
    ("open_clip:ViT-B-32/", "open_clip:ViT-B-32:PRETRAINED with one of the tags"),
    ("open_clip:ViT-B/32/nowhere", "'nowhere' is neither a known tag nor a file; ViT-B-32 takes the tags"),
    ("open_clip:ViT-B32/openai", "no architecture 'ViT-B32-openai'; did you mean .*ViT-B-32"),
    ("open_clip:hf-hub:nobody/nothing", "no open_clip_config.json can be read there .*internet connection"),
    ("open_clip:local-dir:/nowhere/at/all", "no open_clip_config.json can be read there .*check the folder"),
    ("open_clip:oc-wide:random", r"\[32, 48\] pixels; only square"),
    (f"hf:{__file__}", rf"is a file; name its folder, .*hf:{Path(__file__).parent}$"),
    *((f"hf:{place}", NO_FOLDER) for place in ("/nowhere/at/all", "clip", "./clip/there", "a/b/c", "")),
    ("hf:nobody/nothing", r"its config.json cannot be fetched \(.*\); check the name and the internet connection"),
]


def test_names_that_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, message in IMPOSSIBLE:
        refused(name, message)


def test_tags_are_open_clips_and_a_slash_stands_for_the_colon_and_the_dash() -> None:
    for arch in ("ViT-B-32-quickgelu", "ViT-B/32-quickgelu", "ViT-B/32/quickgelu"):
        for sign in (":", "/"):
            assert image_size_of(f"open_clip:{arch}{sign}openai") == 224
    assert image_size_of("open_clip:ViT-B-32:laion2B-s34B-b79K") == 224  # open_clip takes it so, too
    assert image_size_of("open_clip:RN50x4-quickgelu:openai") == 288
    assert image_size_of("open_clip:ViT-H-14/378/quickgelu/dfn5b") == 378  # the longest name: ViT-H-14 is one as well


@torch.no_grad()
def test_a_name_at_home_and_the_call_of_both_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path, "oc-two-way")
    save_clip(tmp_path / "clip")
    for name in ("open_clip:oc-two-way:~/oc-two-way.safetensors", "hf:~/clip"):
        model, preprocess, tokenizer = loaded(name)
        image, text = preprocess(PHOTOS.image(0))[None], tokenizer(TEXTS[:2])
        found = model(image, text)
        close(found.image, unit(model.encode_image(image)), 1e-6)
        close(found.text, unit(model.encode_text(text)), 1e-6)
        assert found.scale == model.logit_scale.exp() and (found.bias is None) == (name[:2] == "hf")


def test_import_costs_nothing() -> None:
    code = "import sys, miniclip.models.external.open_clip, miniclip.models.external.transformers_clip; "
    code += "sys.exit(bool({'open_clip', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
