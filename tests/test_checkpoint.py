"""Saved models: what comes back, and what is said of a directory that does not hold one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import miniclip
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess


@pytest.fixture
def model() -> DualEncoder:
    torch.manual_seed(0)
    return miniclip.create_model("tiny-resnet", vocab_size=49408, text_layers=1, text_width=16, text_heads=2).eval()


def test_round_trip(model: DualEncoder, tmp_path: Path) -> None:
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer))
    miniclip.save_model(tmp_path, model, Preprocess(64, mean=(0.5, 0.4, 0.3), resize="squash"))
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "model.json", "preprocess.json"}
    again, preprocess, tokenizer = miniclip.load(tmp_path)
    assert again.config == model.config
    assert again.config.image_layers == (1, 1, 1, 1)
    assert preprocess == Preprocess(64, mean=(0.5, 0.4, 0.3), resize="squash")
    image = preprocess(Image.new("RGB", (80, 50), (250, 10, 10)))[None]
    text = tokenizer(["a red picture"])
    for ours, theirs in zip(again(image, text)[:3], model(image, text)[:3], strict=True):
        # another place in memory may take another path through the matrix product
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert all(p.requires_grad and p.device.type == "cpu" for p in again.parameters())
    assert again.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


def test_a_loaded_model_can_be_trained_on(model: DualEncoder, tmp_path: Path) -> None:
    """From a run directory or its model directory."""
    miniclip.save_model(tmp_path / "model", model, Preprocess(64))
    assert miniclip.load(tmp_path)[0].config == miniclip.load(tmp_path / "model")[0].config
    again, _, _ = miniclip.load(str(tmp_path))
    again.train()
    again(torch.zeros(2, 3, 64, 64), miniclip.tokenize(["a", "b"])).image.sum().backward()
    again.clamp_logit_scale_()


def test_missing_file(model: DualEncoder, tmp_path: Path) -> None:
    for missing in ("model.safetensors", "model.json", "preprocess.json"):
        miniclip.save_model(tmp_path, model, Preprocess(64))
        (tmp_path / missing).unlink()
        with pytest.raises(FileNotFoundError, match=missing.replace(".", r"\.")):
            miniclip.load(tmp_path)


def test_damaged_files(model: DualEncoder, tmp_path: Path) -> None:
    miniclip.save_model(tmp_path, model, Preprocess(64))
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)

    save_file({k: v for k, v in state.items() if k != "logit_scale"}, weights)
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors does not hold the model.*logit_scale"):
        miniclip.load(tmp_path)
    save_file({**state, "ln_final.weight": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match=r"(?s)model\.safetensors.*ln_final\.weight"):
        miniclip.load(tmp_path)
    weights.write_bytes(weights.read_bytes()[: 1 << 16])
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold"):
        miniclip.load(tmp_path)
    weights.write_bytes(b"\x80\x04cos\nsystem\n")  # a pickle is not even opened as one
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold"):
        miniclip.load(tmp_path)

    save_file(state, weights)
    config = tmp_path / "model.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "future_key": 1}))
    with pytest.raises(ValueError, match="future_key"):
        miniclip.load(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is not valid JSON"):
        miniclip.load(tmp_path)
