"""Images of another side than the model's own: interpolated positions, and a training that begins with small ones."""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import open_clip.model
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_training import TINY, lines, run

import miniclip
from miniclip.cli.train import train_main
from miniclip.config import load_config
from miniclip.data.recolour import shrink
from miniclip.models import create_model
from miniclip.models.transformer import positions_at
from miniclip.training.batches import image_side, phases

LOW = {
    **TINY,
    "run": {"checkpoint_every": 1, "keep": 6},
    "train": {**TINY["train"], "low_image_size": 16, "low_share": 0.5},
    "eval": {"tasks": []},
}


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "low.yaml"
    path.write_text(yaml.safe_dump(LOW))
    return str(path)


def test_positions_are_interpolated_as_open_clip_does_it() -> None:
    table = torch.randn(1 + 7 * 7, 5)
    for side in (1, 3, 7, 14):
        found = {"visual.positional_embedding": table}
        visual = SimpleNamespace(grid_size=(side, side))
        open_clip.model.resize_pos_embed(found, cast(Any, SimpleNamespace(visual=visual)))
        torch.testing.assert_close(positions_at(table, side), found["visual.positional_embedding"], rtol=0, atol=1e-6)
        assert (positions_at(table, side) is table) == (side == 7)


@pytest.mark.parametrize("preset", ["tiny-resnet", "tiny-vit"])
def test_another_side_is_the_model_with_other_positions(preset: str) -> None:
    """A model that was made for 32 pixels, given the weights and the shrunk positions, says the same."""
    torch.manual_seed(0)
    model = create_model(preset, vocab_size=60, text_layers=1).eval()
    small = create_model(preset, vocab_size=60, text_layers=1, image_size=32).eval()
    state = copy.deepcopy(model.state_dict())
    name = "visual.attnpool.positional_embedding" if preset == "tiny-resnet" else "visual.positional_embedding"
    state[name] = positions_at(state[name], 1 if preset == "tiny-resnet" else 4)
    small.load_state_dict(state)
    image = torch.randn(2, 3, 32, 32)
    found = model.encode_image(image)
    torch.testing.assert_close(found, small.encode_image(image), rtol=0, atol=1e-6)
    found.sum().backward()  # every position learns from small images
    assert bool((dict(model.named_parameters())[name].grad.norm(dim=1) > 0).all())  # type: ignore[union-attr]
    assert model.encode_image(torch.randn(2, 3, 96, 96)).shape == (2, 256)
    for wrong in (torch.randn(2, 3, 60, 60), torch.randn(2, 3, 64, 32), torch.randn(2, 3, 0, 0)):
        with pytest.raises(ValueError, match=r"a multiple of (32|8)"):
            model.encode_image(wrong)


def test_a_small_pixel_is_the_mean_of_those_it_covers() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).expand(1, 3, 2, 2)
    torch.testing.assert_close(shrink(pixels, 2), expected, rtol=0, atol=0)
    assert shrink(pixels, 4) is pixels


def test_the_steps_of_each_side(config_file: str) -> None:
    config = load_config(["--config", config_file])
    assert [image_side(step, 6, config) for step in range(6)] == [16, 16, 16, 32, 32, 32]
    assert phases(0, 6, config) == [(16, 3), (32, 3)]
    assert phases(4, 6, config) == [(32, 2)]
    assert phases(0, 6, replace(config, train=replace(config.train, low_image_size=None))) == [(32, 6)]


def test_training_begins_with_small_images(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log says so, the finished model takes its own side, and a resume goes on bit by bit."""
    run(config_file, tmp_path / "whole")
    logged = lines(tmp_path / "whole")
    per_sample = [line["pixels_per_s"] / line["samples_per_s"] for line in logged]
    assert per_sample == pytest.approx([256] * 3 + [1024] * 3, rel=1e-6)
    model, preprocess, _ = miniclip.load(tmp_path / "whole")
    assert model.config.image_size == preprocess.image_size == 32
    assert len(model.visual.positional_embedding) == 5

    run(config_file, tmp_path / "full", "--train.low_image_size", "null", "--log.progress", "true")
    # after four of the six steps; the first is shown at once, not when the bar's interval is over
    assert re.search(r"about \d s: 2 steps of [\d.]+ s\n", shown := capsys.readouterr().err), shown
    assert "| 1/6 [" in shown
    assert lines(tmp_path / "full")[0]["loss"] != logged[0]["loss"]

    for cut in (1, 4):  # once in each half
        directory = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "whole", directory)
        for step in range(cut + 1, 7):
            shutil.rmtree(directory / "checkpoints" / f"step_{step:08d}")
        shutil.rmtree(directory / "model")
        run(config_file, directory, "--run.resume", "true")
        assert [line["loss"] for line in lines(directory)] == [line["loss"] for line in logged]
        ours, theirs = (load_file(d / "model" / "model.safetensors") for d in (directory, tmp_path / "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sides_that_do_not_fit_are_refused(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("24", "32", "48"):
        assert train_main(["--config", config_file, "--train.low_image_size", side]) == 2
        found = capsys.readouterr().err
        assert f"train.low_image_size={side} must be a multiple of 16" in found and "below model.image_size=32" in found
