"""Saved models: what comes back, and what is said of a directory that does not hold one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

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
    weights, config = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole, state = weights.read_bytes(), load_file(weights)
    values = json.loads(config.read_text())
    for file, content, message in (
        (weights, save({k: v for k, v in state.items() if k != "logit_scale"}), "(?s)not hold the model.*logit_scale"),
        (weights, save({**state, "ln_final.weight": torch.zeros(3)}), r"(?s)model\.safetensors.*ln_final\.weight"),
        (weights, whole[: 1 << 16], r"model\.safetensors does not hold"),
        (weights, b"\x80\x04cos\nsystem\n", r"model\.safetensors does not hold"),  # a pickle is not even opened as one
        (config, json.dumps({**values, "future_key": 1}).encode(), "future_key"),
        (config, b"{", r"model\.json is not valid JSON"),
    ):
        weights.write_bytes(whole)
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            miniclip.load(tmp_path)
