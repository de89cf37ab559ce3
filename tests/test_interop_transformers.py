"""Models of transformers against transformers itself: the same weights, pictures and texts; no network."""

from __future__ import annotations

import functools
import gzip
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.photos import PHOTOS, Photos, unit, word_tokenizer
from torch import Tensor

from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.models.external.transformers_clip import load_transformers, transformers_image_size
from miniclip.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from miniclip.models.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["a red circle", "", "two dogs on the beach", "a", "long " * 100, "a red circle", "!!! ! !", "a dog's 2 cats"]


@functools.cache
def bpe_files() -> tuple[str, str]:
    """vocab.json and merges.txt of CLIP, out of miniclip's merge table; the letters of bytes are open_clip's."""
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = gzip.decompress(resources.files("miniclip.models").joinpath("bpe_merges.txt.gz").read_bytes()).decode()
    symbols = letters + [letter + "</w>" for letter in letters]
    symbols += [line.replace(" ", "") for line in merges.splitlines()] + ["<|startoftext|>", "<|endoftext|>"]
    return json.dumps({symbol: k for k, symbol in enumerate(symbols)}), "#version: 0.2\n" + merges


@torch.no_grad()
def stir(model: Any) -> None:
    """Random weights of which no two agree, and embeddings that differ from one input to the next."""
    for name, x in model.named_parameters():
        if x.ndim > 1:
            x.mul_(2)
        elif name.endswith("weight"):
            x.uniform_(0.5, 1.5)
        elif name not in ("logit_scale", "logit_bias"):
            x.add_(0.1 * torch.randn_like(x))


def save_clip(
    folder: Path,
    side: int = 32,
    *,
    eos: int = 49407,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    processor: dict[str, Any] | None = None,
    pad: str = "<|endoftext|>",
) -> str:
    """A small CLIPModel with its processor, in the files that the Hub has of such -> its name."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**SIZES, "eos_token_id": eos, **(text or {})},
        vision_config={**SIZES, "image_size": side, "patch_size": side // 2, **(vision or {})},
        projection_dim=16,
    )
    stir(model := transformers.CLIPModel(config))
    model.save_pretrained(folder)
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    transformers.CLIPImageProcessor(**(square | (processor or {}))).save_pretrained(folder)
    for name, content in zip(("vocab.json", "merges.txt"), bpe_files(), strict=True):
        (folder / name).write_text(content)
    described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return f"hf:{folder}"


def save_siglip(folder: Path, input_names: list[str]) -> str:
    torch.manual_seed(0)
    config = transformers.SiglipConfig(
        text_config={**SIZES, "vocab_size": 10, "max_position_embeddings": 12},
        vision_config={**SIZES, "image_size": 32, "patch_size": 16},
    )
    stir(model := transformers.SiglipModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-9.5)
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    word_tokenizer("</s>", "<unk>", model_input_names=input_names, model_max_length=12).save_pretrained(folder)
    return f"hf:{folder}"


def features(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


@torch.no_grad()
def assert_equal_to_transformers(name: str, length: int, **tokenized: Any) -> Any:
    """-> what load_transformers gave. tokenized: how their tokenizer is to be called."""
    folder = name.removeprefix("hf:")
    ours, preprocess, tokenizer = load_transformers(name)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(
        images=[PHOTOS.image(k) for k in range(len(PHOTOS))], return_tensors="pt"
    )["pixel_values"]
    squares = torch.stack([preprocess.to_uint8(PHOTOS.image(k)) for k in range(len(PHOTOS))])
    assert squares.dtype == torch.uint8
    torch.testing.assert_close(preprocess.normalize(squares), pixels, rtol=0, atol=1e-6)
    own = transformers.AutoTokenizer.from_pretrained(folder)
    rows = own(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt", **tokenized)
    image, text = features(theirs.get_image_features(pixel_values=pixels)), features(theirs.get_text_features(**rows))
    torch.testing.assert_close(ours.encode_image(pixels), image, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.encode_text(tokenizer(TEXTS)), text, rtol=0, atol=1e-5)
    # The rows differ: these are no towers that hardly look at their input.
    for different in (unit(image), unit(text[:5])):
        assert torch.pdist(different).min() > 1e-2
    options = EncodeOptions(batch_size=3)
    torch.testing.assert_close(encode_images(ours, PHOTOS, preprocess, options), unit(image), rtol=0, atol=1e-5)
    torch.testing.assert_close(encode_texts(ours, tokenizer, TEXTS, options), unit(text), rtol=0, atol=1e-5)
    assert ours.logit_scale.shape == () and ours.logit_scale == theirs.logit_scale
    assert ours.config.embed_dim == image.shape[1] and ours.config.context_length == length
    assert transformers_image_size(name) == preprocess.image_size == ours.config.image_size == pixels.shape[-1]
    assert not any(module.training for module in ours.modules())
    return ours, preprocess, tokenizer


@pytest.mark.parametrize(("eos", "pad"), [(49407, "<|endoftext|>"), (2, "!")])
def test_clip_equals_theirs(eos: int, pad: str, tmp_path: Path) -> None:
    # 2 is what configs of before the summer of 2023 say; transformers then pools at the highest id.
    ours, preprocess, tokenizer = assert_equal_to_transformers(save_clip(tmp_path, eos=eos, pad=pad), 77)
    assert ours.logit_bias is None
    assert (preprocess.mean, preprocess.std) == (CLIP_MEAN, CLIP_STD)
    texts = [text for text in TEXTS if pad not in text]  # what pads is no ordinary text
    tokens, expected = tokenizer(texts), Tokenizer(77)(texts)
    assert tokens.shape == (len(texts), 77) and tokens.dtype == torch.int64
    assert torch.equal(torch.where(expected > 0, expected, tokens), tokens)  # other padding than miniclip's at most
    assert (tokens == 49407).sum(1).min() >= 1  # long texts keep their end


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask"]])
def test_siglip_equals_theirs(names: list[str], tmp_path: Path) -> None:
    """Its text tower sees the padding, unless the tokenizer gives a mask."""
    ours, _, tokenizer = assert_equal_to_transformers(save_siglip(tmp_path, names), 12)
    assert ours.logit_bias is not None and ours.logit_bias.shape == ()
    assert ours.logit_bias.item() == -9.5 and ours.logit_scale.item() == pytest.approx(2.3)
    padding = 5 if names == ["input_ids"] else ~5
    assert tokenizer(["a red circle"]).tolist() == [[1, 2, 3, 5] + 8 * [padding]]


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    name = save_clip(tmp_path)
    whole, _, _ = load_transformers(name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    model, _, _ = load_transformers(name)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), whole.parameters(), strict=True))


# Preprocessing


def test_processors_of_every_kind(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [0.5, 1.0, 2.0]},
        {"size": {"shortest_edge": 40}, "resample": 2},
        {"do_resize": False},
    ]
    for number, changes in enumerate(kinds):
        _, preprocess, _ = load_transformers(save_clip(folder := tmp_path / str(number), processor=changes))
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        for k in range(len(PHOTOS)):
            theirs = processor(images=PHOTOS.image(k), return_tensors="pt")["pixel_values"][0].float()
            torch.testing.assert_close(preprocess(PHOTOS.image(k)), theirs, rtol=1e-6, atol=1e-6)
            raw = processor(images=PHOTOS.image(k), do_rescale=False, do_normalize=False, return_tensors="pt")
            assert torch.equal(preprocess.to_uint8(PHOTOS.image(k)), raw["pixel_values"][0])
            assert np.array_equal(preprocess.to_square(PHOTOS.image(k)), raw["pixel_values"][0].permute(1, 2, 0))


def test_other_modes_threads_and_json(tmp_path: Path) -> None:
    _, preprocess, _ = load_transformers(save_clip(tmp_path))
    grey = PHOTOS.image(0).convert("L")
    assert torch.equal(preprocess.to_uint8(grey), preprocess.to_uint8(grey.convert("RGB")))
    photos = Photos(PHOTOS.sizes * 20)
    alone = [preprocess.to_uint8(photos.image(k)) for k in range(len(photos))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: preprocess.to_uint8(photos.image(k)), range(len(photos))))
    assert all(map(torch.equal, alone, together))
    assert json.loads(json.dumps(preprocess.to_dict()))["processor"]["size"] == {"shortest_edge": 32}
    # Else there would be no need to ask their processor.
    assert not all(torch.equal(Preprocess(32).to_uint8(PHOTOS.image(k)), alone[k]) for k in range(len(PHOTOS)))


# Nothing that is read runs code


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    name = save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"logit_scale": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"lacks model.safetensors .*\(only safetensors are read\)"):
        load_transformers(name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("part", ["tokenizer", "image processor", "model"])
def test_code_in_the_folder_is_not_run(part: str, tmp_path: Path) -> None:
    name, made = save_clip(tmp_path), tmp_path / "made"
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    kinds = {
        "tokenizer": ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class"),
        "image processor": ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}, "image_processor_type"),
        "model": ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "model_type"),
    }
    file, auto_map, kind = kinds[part]
    described = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(described | {"auto_map": auto_map, kind: "Evil"}))
    message = {
        "tokenizer": "its tokenizer cannot be loaded",
        "image processor": "image processor cannot be loaded .it brings code of its own, which is not run",
        "model": "model_type 'Evil'",
    }
    refused(name, message[part], weights=True)
    assert not made.exists() and "evil" not in sys.modules


# Messages


def refused(name: str, message: str, *, weights: bool = False) -> None:
    functions = (load_transformers,) if weights else (load_transformers, transformers_image_size)
    for function in functions:
        with pytest.raises(ValueError, match=message) as caught:
            function(name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    name = save_clip(tmp_path)
    for file, message in (
        ("config.json", r"lacks config.json; call save_pretrained"),
        ("preprocessor_config.json", "lacks preprocessor_config.json or processor_config.json"),
        ("vocab.json", "lacks tokenizer.json or vocab.json"),
        ("model.safetensors", "lacks model.safetensors"),
    ):
        (tmp_path / file).rename(tmp_path / "away")
        refused(name, message)
        (tmp_path / "away").rename(tmp_path / file)


def test_configs_of_other_models(tmp_path: Path) -> None:
    name = save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"model_type": "blip"}, r"model_type 'blip'; the models .* are clip and siglip"),
        ({"model_type": "clip_text_model"}, "model_type 'clip_text_model'"),
        ({"model_type": None}, "model_type None"),
        ({"text_config": "none"}, "its config.json cannot be loaded"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        refused(name, message)


def test_damaged_files(tmp_path: Path) -> None:
    name = save_clip(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(name, r"its model.safetensors cannot be loaded \(.*\); write the folder again", weights=True)
    for file in ("preprocessor_config.json", "config.json"):
        (tmp_path / file).write_text("{")
        refused(name, "config.json cannot be loaded|image processor cannot be loaded")


def other_weights(folder: Path, **changes: Any) -> None:
    """The config, and with it the model that is asked for, changes; the weights stay."""
    config = json.loads((folder / "config.json").read_text())
    for part, values in changes.items():
        config[part] = {**config[part], **values} if isinstance(values, dict) else values
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_of_another_model(tmp_path: Path) -> None:
    name = save_clip(tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for changes, message in (
        ({"projection_dim": 24}, r"projection.weight is \[16, 32\] and should be \[24, 32\] \(2 such\)"),
        ({"text_config": {"num_hidden_layers": 3}}, r"text_model.encoder.layers.2.*is missing \(16 such\)"),
        ({"vision_config": {"num_hidden_layers": 1}}, r"vision_model.encoder.layers.1.*has no place .*\(16 such\)"),
    ):
        (tmp_path / "config.json").write_text(whole)
        other_weights(tmp_path, **changes)
        refused(name, message, weights=True)


def test_processors_that_do_not_fit(tmp_path: Path) -> None:
    refused(save_clip(tmp_path / "a", processor={"crop_size": 24}), r"makes \(3, 24, 24\) .* asks for \(3, 32, 32\)")
    refused(save_clip(tmp_path / "b", processor={"do_center_crop": False}), r"makes \(3, 32, 3\d\) .*crop_size")
    name = save_clip(tmp_path / "c")
    other_weights(tmp_path / "c", vision_config={"image_size": [32, 48]})
    refused(name, r"\[32, 48\] pixels; only square")


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    refused(save_clip(tmp_path / "a", text={"vocab_size": 49406}), "ids up to 49407, .*vocab_size=49406", weights=True)
    refused(save_clip(tmp_path / "b", eos=49405), "does not end a text with the eos_token_id=49405", weights=True)
    for name in ("left", "empty"):
        save_clip(tmp_path / name)
    described = json.loads((tmp_path / "left" / "tokenizer_config.json").read_text())
    (tmp_path / "left" / "tokenizer_config.json").write_text(json.dumps(described | {"padding_side": "left"}))
    refused(f"hf:{tmp_path}/left", "pads on the left", weights=True)
    (tmp_path / "empty" / "merges.txt").write_text("")
    (tmp_path / "empty" / "vocab.json").write_text('{"<|startoftext|>": 49406, "<|endoftext|>": 49407}')
    refused(f"hf:{tmp_path}/empty", "tokenizer (tells no texts apart|cannot be loaded)", weights=True)


def test_names_that_cannot_be_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = save_clip(tmp_path)
    refused(f"{name}/model.safetensors", rf"is a file; name its folder, .*hf:{tmp_path}$")
    for place in ("/nowhere/at/all", "clip", "./clip/there", "~/clip", "a/b/c", ""):
        refused(f"hf:{place}", r"no such folder; name one that holds config.json, or hf:ORG/NAME")
    refused(
        "hf:nobody/nothing", r"its config.json cannot be fetched \(.*\); check the name and the internet connection"
    )


def test_from_the_cache_of_the_hub_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    expected, _, _ = load_transformers(save_clip(tmp_path / "models--some--clip" / "snapshots" / "abc"))
    refs = tmp_path / "models--some--clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert transformers_image_size("hf:some/clip") == 32
    model, _, tokenizer = load_transformers("hf:some/clip")
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), expected.parameters(), strict=True))
    assert torch.equal(tokenizer(["a cat"])[0, :4], torch.tensor([49406, 320, 2368, 49407]))
