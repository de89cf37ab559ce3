"""Saved models: what comes back, and what is said of a directory that does not hold one."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from support.models import tiny_model

import miniclip
from miniclip.common.checksums import write_checksums
from miniclip.config import load_config, save_config
from miniclip.models import DualEncoder
from miniclip.models.load import image_size_of
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


# A model by its name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished after step 6, with two checkpoints before and a best model; the learned scale tells which is which."""
    root = tmp_path_factory.mktemp("home") / "runs" / "first"
    model = tiny_model()
    (root / "checkpoints").mkdir(parents=True)
    save_config(
        replace(load_config(["--data.resize", "squash", "--train.max_steps", "6"]), model=model.config),
        root / "config.yaml",
    )
    for scale, place in enumerate(("checkpoints/step_00000002", "checkpoints/step_00000004", "best", "model"), 1):
        torch.nn.init.constant_(model.logit_scale, scale)
        miniclip.save_model(root / place, model, Preprocess(32, resize="squash"))
        if place.startswith("checkpoints"):
            for beside in ("model.json", "preprocess.json"):
                (root / place / beside).unlink()
    return root


PARTS = {
    # what is named -> the scale of the model that is meant
    "": 4, "model": 4, "model/model.safetensors": 4, "model/model.json": 4, "config.yaml": 4, "best": 3,
    "best/model.safetensors": 3, "checkpoints": 2, "checkpoints/step_00000004": 2, "checkpoints/step_00000002": 1,
    "checkpoints/step_00000002/model.safetensors": 1,
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_any_part_of_a_run_names_its_model(run: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parents[1]))
    monkeypatch.chdir(run.parent)
    spelt: list[str | Path] = [run / part, f"first/{part}", f"./first/../first/{part}", f"~/runs/first/{part}"]
    if (run / part).is_dir():
        spelt.append(f"first/{part}/")
        (link := run.parent / "link").unlink(missing_ok=True)
        link.symlink_to(run / part)
        spelt.append("link")
    for name in spelt:
        model, preprocess, tokenizer = miniclip.load(name)
        assert model.logit_scale.item() == PARTS[part], name
        assert preprocess == Preprocess(32, resize="squash") and tokenizer.context_length == 32
    assert image_size_of(str(name)) == 32
    if (run / part).is_dir():  # from where the user stands
        monkeypatch.chdir(run / part)
        assert miniclip.load(".")[0].logit_scale.item() == PARTS[part]


def test_a_run_that_is_not_finished_is_its_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    assert miniclip.load(unfinished)[0].logit_scale.item() == 2
    # one that went on after its end
    going_on = shutil.copytree(run, tmp_path / "going_on")
    for steps, scale in ((3, 2), (4, 4), (6, 4)):
        (going_on / "results.json").write_text(json.dumps({"training": {"steps": steps}}))
        os.utime(going_on / "checkpoints/step_00000004/model.safetensors")  # of no account, as after a copy
        assert miniclip.load(going_on)[0].logit_scale.item() == scale
    for rubbish in ("", "[]", '{"training": {}}'):
        (going_on / "results.json").write_text(rubbish)
        assert miniclip.load(going_on)[0].logit_scale.item() == 4
    (going_on / "results.json").write_text(json.dumps({"training": {"steps": 3}}))
    assert miniclip.load(going_on / "model")[0].logit_scale.item() == 4


def test_flipped_bits_of_a_checkpoint_are_noticed(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run") / "checkpoints" / "step_00000004"
    write_checksums(folder)
    weights = folder / "model.safetensors"
    assert miniclip.load(folder)[0].logit_scale.item() == 2
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for name in (folder, weights, tmp_path / "run" / "checkpoints"):
        with pytest.raises(ValueError, match=re.escape(f"{weights} has flipped bits; name another checkpoint")):
            miniclip.load(name)


def test_what_names_no_model_is_told_what_does(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = shutil.copytree(run.parents[1], tmp_path / "home", symlinks=True)
    monkeypatch.chdir(home)
    sharded, alone = Path("runs/sharded/checkpoints/step_00000004"), Path("step_00000004")
    sharded.mkdir(parents=True)
    shutil.copy("runs/first/config.yaml", "runs/sharded")
    shutil.copytree("runs/first/checkpoints/step_00000004", alone)
    os.utime("runs/first/config.yaml")
    for folder, file in (("theirs", "config.json"), ("oc", "open_clip_config.json"), ("moved/checkpoints", "x")):
        Path(folder).mkdir(parents=True)
        Path(folder, file).touch()
        shutil.copy(run / "model" / "model.safetensors", folder)
    alone.rename("moved/checkpoints/step_00000004")
    shutil.copytree("runs/first/model", "half")
    Path("half/model.json").unlink()
    Path("epoch_3.pt").touch()
    lone = "no model.json beside its weights, nor the config.yaml of a run"
    for name, said in {
        "runs": "no model.safetensors there, .*; did you mean a run in it, such as runs/first[?]; name a run, ",
        "runs/frist": "there is no such file or folder; did you mean runs/first",
        "run/first": "did you mean runs",
        "runs/first/checkpoints/step_00000006": "did you mean runs/first",
        "runs/first/evaluation": "did you mean runs/first",
        "runs/sharded": "no model.safetensors there",
        str(sharded): "no model.safetensors there",
        "moved": lone,
        "moved/checkpoints/step_00000004": lone,
        "half": lone,
        "epoch_3.pt": "weights alone do not say of what; did you mean open_clip:ARCH:epoch_3.pt",
        "runs/first/checkpoints/../../../epoch_3.pt": "weights alone",
        "theirs": "its config.json is another library's; did you mean hf:theirs",
        "theirs/model.safetensors": "did you mean hf:theirs",
        "oc": "did you mean open_clip:local-dir:oc",
        "ViT-B-32": "did you mean open_clip:ViT-B-32:TAG",
        "ViT-B-32:openai": "did you mean open_clip:ViT-B-32:openai",
        "openclip:ViT-B-32:openai": "did you mean open_clip:ViT-B-32:openai",
        "openai/clip-vit-base-patch32": "of the Hub it is hf:openai/clip-vit-base-patch32",
        "": "no model.safetensors there",
    }.items():
        for function in (miniclip.load, image_size_of):
            with pytest.raises(FileNotFoundError, match=said) as caught:
                function(name)
            assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)
            assert str(caught.value).endswith("open_clip:ARCH:TAG or hf:NAME")
