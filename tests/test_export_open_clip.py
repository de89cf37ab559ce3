"""Folders for open_clip: the library alone, in a process that has nothing of miniclip, reads the same model from them;
weights that nothing trained go back to the bit; what open_clip cannot hold says why."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from support.hf_models import bert_folder
from support.photos import PHOTOS
from test_init import CAPTIONS, OTHER, PLAIN, SAME, VIT, save_open_clip, save_transformers, source, started
from test_interop import ALL, ARCHS, SIGLIP, TEXTS, change, folder_model, stir
from test_step import N, batch
from torch import Tensor

from miniclip.cli.single import single
from miniclip.config import ModelConfig
from miniclip.export import formats
from miniclip.export.open_clip import check, model_config, write
from miniclip.models import DualEncoder, create_model
from miniclip.models.external.convert import _of_open_clip
from miniclip.models.foreign import open_image
from miniclip.models.joined import JoinedEncoder
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import PRESETS, resolve
from miniclip.models.saved import save_model
from miniclip.models.whole import opened
from miniclip.training.step import Learner

open_clip = pytest.importorskip("open_clip")

SMALL: dict[str, Any] = {"embed_dim": 16, "text_width": 32, "text_heads": 2, "text_layers": 2, "context_length": 20}
SMALL_VIT = {**SMALL, "image_size": 32, "image_width": 32, "image_layers": 2, "image_heads": 2, "patch_size": 16}
CROP = Preprocess(32, whole=True)
SQUASH = Preprocess(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "squash", "bilinear")
# created here -> its config, and how its images are prepared
OWN: dict[str, tuple[dict[str, Any], Preprocess]] = {
    "vit": ({"preset": "tiny-vit", **SMALL_VIT}, CROP),
    "quick-gelu": ({"preset": "tiny-vit-quickgelu", **SMALL_VIT, "image_heads": 8, "text_heads": 4}, CROP),
    "resnet": ({"preset": "tiny-resnet", **SMALL, "image_width": 16, "image_heads": 4, "embed_dim": 24}, SQUASH),
    "sigmoid": ({"preset": "tiny-resnet", **SMALL, "image_width": 8, "logit_bias_init": -9.5}, SQUASH),
    "box": ({"preset": "tiny-vit", **SMALL_VIT}, replace(CROP, whole=False)),  # what a run of ours has
}
FOREIGN = (*SAME, *OTHER, "coca", "words", "separated")


def model_of(folder: Path, kind: str) -> tuple[DualEncoder, Preprocess]:
    if kind not in OWN:
        return opened(name_of(folder, kind))
    torch.manual_seed(0)
    stir(model := create_model(ModelConfig(**OWN[kind][0])))
    return model.eval(), OWN[kind][1]


def name_of(folder: Path, kind: str) -> str:
    """A model of open_clip, with random weights."""
    if kind == "words":  # with a tokenizer of its own, as SigLIP
        folder.mkdir()
        return folder_model(folder, SIGLIP)
    if kind == "separated":  # as CLIPA, which puts zeros where BERT's tokenizer ends a text
        folder.mkdir()
        name = folder_model(folder, SIGLIP, {"clean": "lower", "strip_sep_token": True})
        change(folder / "tokenizer_config.json", sep_token="</s>")
        return name
    if kind != "coca":
        return source(folder, kind)
    folder.mkdir()
    torch.manual_seed(0)
    config = ARCHS["oc-coca"]
    stir(model := open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"}))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": SIGLIP}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"open_clip:local-dir:{folder}"


def written(folder: Path, model: DualEncoder, preprocess: Preprocess) -> Path:
    folder.mkdir()
    check(model, preprocess, model.tokenizer)
    write(model, preprocess, model.tokenizer, folder)
    return folder


READER = """
import json, sys
import numpy as np, torch, open_clip
from PIL import Image

images, texts, *folders = sys.argv[1:]
images, texts = [Image.open(path) for path in json.loads(images)], json.loads(texts)
for folder in folders:
    model, _, transform = open_clip.create_model_and_transforms("local-dir:" + folder)
    tokens = open_clip.get_tokenizer("local-dir:" + folder)(texts)
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        logits, _ = model.eval().get_logits(pixels, tokens)
        text = model.encode_text(tokens, normalize=True)
    np.savez(folder + ".npz", pixels=pixels, logits=logits, text=text, tokens=tokens)
assert not any(name.partition(".")[0] == "miniclip" for name in sys.modules)
"""


@pytest.mark.slow
def test_open_clip_alone_reads_the_same_model(tmp_path: Path) -> None:
    """Logits, tokens and pixels of images of many sizes, by the library's own transform and tokenizer."""
    models = {kind: model_of(tmp_path / f"{kind}-source", kind) for kind in (*OWN, *FOREIGN)}
    folders = [str(written(tmp_path / kind, *model)) for kind, model in models.items()]
    paths = [tmp_path / f"{k}.png" for k in ALL]
    for k, path in enumerate(paths):
        PHOTOS.image(k).save(path)
    command = [sys.executable, "-I", "-c", READER, json.dumps(list(map(str, paths))), json.dumps(TEXTS), *folders]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    for kind, (model, preprocess) in models.items():
        with np.load(tmp_path / f"{kind}.npz") as file:
            theirs = {name: torch.from_numpy(x) for name, x in file.items()}
        pixels = torch.stack([preprocess(Image.open(path)) for path in paths])
        if kind == "box":  # its squares begin up to half a pixel elsewhere, so that noise is another
            assert (pixels - theirs["pixels"]).abs().max() > 0.1
            pixels = theirs["pixels"]
        torch.testing.assert_close(pixels, theirs["pixels"], rtol=0, atol=1e-6)
        tokens = model.tokenizer(TEXTS)
        assert torch.equal(tokens.where(tokens >= 0, theirs["tokens"]), theirs["tokens"]), kind
        with torch.no_grad():
            out = model(pixels, tokens)
        logits = out.scale * out.image @ out.text.T + (0 if out.bias is None else out.bias)
        torch.testing.assert_close(out.text, theirs["text"], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, theirs["logits"], rtol=0, atol=1e-5 * max(1, float(out.scale)))
        assert logits.std(0).min() > 1e-2 and logits.std(1).min() > 1e-2, kind


@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_go_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    name = name_of(tmp_path / "source", kind)
    before = load_file(tmp_path / "source" / "open_clip_model.safetensors")
    after = load_file(written(tmp_path / "out", *opened(name)) / "open_clip_model.safetensors")
    if kind == "custom":  # which open_clip loads under both names
        before = {key.removeprefix("text."): value for key, value in before.items()}
    if kind == "coca":
        before = {key: value for key, value in before.items() if not key.startswith("text_decoder.")}
    assert after.keys() == before.keys()
    shapes = ("logit_scale", "logit_bias")  # which may be (1,)
    assert all(torch.equal(after[k], v.reshape(()) if k in shapes else v) for k, v in before.items())


@pytest.mark.parametrize("kind", ["quick-gelu", "sigmoid", "words", "timm"])
def test_what_was_written_is_a_model_here_too(kind: str, tmp_path: Path) -> None:
    """As a checkpoint, and as model.init."""
    model, preprocess = model_of(tmp_path / "source", kind)
    name = f"open_clip:local-dir:{written(tmp_path / 'out', model, preprocess)}"
    side = preprocess.image_size
    image, texts = torch.randn(3, 3, side, side), ["a red circle", "a", "two dogs"]
    read, read_preprocess, tokenizer = load(name)
    again, prepared = opened(name)
    assert read_preprocess == prepared == replace(preprocess, whole=True) and type(again) is type(model)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        wanted, *found = (
            m(image, make(texts)) for m, make in ((model, model.tokenizer), (read, tokenizer), (again, again.tokenizer))
        )
    for one in found:
        for ours, theirs in zip(one, wanted, strict=True):
            assert (ours is None) == (theirs is None)
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def parts_of(config: dict[str, Any]) -> list[Any]:
    """With all defaults, less what changes nothing here."""
    config = {"quick_gelu": False, **config}
    towers = [(open_clip.CLIPVisionCfg, config.pop("vision_cfg")), (open_clip.CLIPTextCfg, config.pop("text_cfg"))]
    made = [kind(**{key: value for key, value in given.items() if value is not None}) for kind, given in towers]
    made[0].layers = list(made[0].layers) if isinstance(made[0].layers, tuple) else made[0].layers
    return [{key: value for key, value in config.items() if key != "custom_text"}, *made]


def test_architectures_are_open_clips_own() -> None:
    """Those of all its models that are a DualEncoder, and the presets by their names."""
    there = {name: open_clip.get_model_config(name) for name in open_clip.list_models()}
    ours = {
        name: _of_open_clip(config) for name, config in there.items() if "hf_tokenizer_name" not in config["text_cfg"]
    }
    ours |= {name: ModelConfig(preset=name) for preset in PRESETS for name in (preset, f"{preset}-quickgelu")}
    alike = [name for name, config in ours.items() if config is not None and name in there]
    assert len(alike) > 30
    for name in alike:
        assert parts_of(model_config(resolve(ours[name]))) == parts_of(there[name]), name


@pytest.mark.slow
def test_a_model_that_was_adapted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From open_clip, trained with its image tower locked, and back: what was not trained is the same to the bit."""
    name = save_open_clip(tmp_path / "source", SAME["quick"])
    config, start = started(tmp_path, name, "--model.lock_image", "true")
    learner = Learner(config, Accelerator(cpu=True), start)
    learner.step(batch()._replace(text=start.tokenizer(CAPTIONS)), 0, 1e-3, [N])
    save_model(tmp_path / "trained", learner.model, start.preprocess)
    assert single("export", [str(tmp_path / "trained"), str(tmp_path / "out"), "--to", "open_clip"]) == 0
    told = capsys.readouterr().out
    assert f'open_clip.create_model_and_transforms("local-dir:{tmp_path / "out"}")' in told.replace("\n", "")
    before, after = (load_file(tmp_path / part / "open_clip_model.safetensors") for part in ("source", "out"))
    assert after.keys() == before.keys()
    same = {key for key, value in before.items() if torch.equal(after[key], value)}
    assert same == {key for key in before if key.startswith("visual.")}
    configs = [json.loads((tmp_path / part / "open_clip_config.json").read_text()) for part in ("source", "out")]
    assert configs[0] == configs[1]


def joined_of(folder: Path) -> tuple[DualEncoder, Preprocess]:
    """Towers that a run joins: of open_clip's image tower, and a fresh one."""
    name = save_open_clip(folder, PLAIN)
    config = ModelConfig(image=name, **{**SMALL, "image_size": 32})
    tower, preprocess = open_image(name, config)
    return JoinedEncoder(config, tower, None).eval(), preprocess


def with_hf_text(folder: Path) -> tuple[DualEncoder, Preprocess]:
    bert = bert_folder(folder / "bert").removeprefix("hf:")
    text = {"hf_model_name": bert, "hf_tokenizer_name": bert, "hf_pooler_type": "mean_pooler", "context_length": 20}
    name = save_open_clip(folder / "whole", {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text, "custom_text": True})
    for file in Path(bert).glob("tokenizer*"):
        (folder / "whole" / file.name).write_bytes(file.read_bytes())
    return opened(name)


def cut_closer(folder: Path) -> tuple[DualEncoder, Preprocess]:
    model, preprocess = opened(save_transformers(folder))
    return model, replace(preprocess, crop_pct=0.875)


REFUSED = {
    "joined": (joined_of, ("onnx",), "LayerNorms stand before its projections, and open_clip has no place for them"),
    "siglip": (lambda folder: opened(source(folder, "siglip")), ("onnx",), "its HfImage is no tower of open_clip"),
    "text": (
        with_hf_text,
        ("onnx",),
        "open_clip builds it from .*bert, which it looks for on the Hub and not in the folder",
    ),
    "crop": (cut_closer, ("transformers", "onnx"), "prepared with crop_pct=0.875, which open_clip does not have"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_open_clip_cannot_hold(kind: str, tmp_path: Path) -> None:
    made, others, message = REFUSED[kind]
    model, preprocess = made(tmp_path / "source")
    able = " or ".join(f"--to {name}" for name in others)
    with pytest.raises(ValueError, match=f"^--to open_clip cannot hold this model: .*{message}; use {able}$"):
        formats.check("open_clip", model, preprocess)
