"""eval.py matrix, from a run, an unfinished run, an exported model and a model of open_clip to its files."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from test_eval_cli import save_tiny
from test_training import TINY

from miniclip.cli.eval import main
from miniclip.cli.train import run as train
from miniclip.config import load_config
from miniclip.data.scenes.source import SceneSource
from miniclip.inspection.sample import draw
from miniclip.models.load import load_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import load, load_unfinished


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"log": TINY["log"] | {"matrix_every": 3}}))
    train(load_config(["--config", str(root / "tiny.yaml"), "--run.dir", str(root / "run")]))
    return root / "run"


def test_a_run_brings_its_data(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--checkpoint", str(run_directory), "--size", "16"]) == 0
    out = capsys.readouterr().out
    assert "loss / chance, training pairs" in out and "report.html" in out
    folder = run_directory / "inspection"
    values = json.loads((folder / "matrix.json").read_text())
    assert values["about"]["data"] == "shapes" and values["about"]["split"] == "test"
    assert len(values["pairs"]) == 16 and values["history"]["steps"] == [0, 3, 6]
    assert values["loss"] == "softmax"
    # the embeddings are those of the saved model for the pairs that are named
    model, preprocess, tokenizer = load(run_directory)
    source = SceneSource("test", 16, seed=0, image_size=32)
    rows = [int(pair["name"].split()[1]) for pair in values["pairs"]]
    assert all(p["caption"] in source.captions(row) for p, row in zip(values["pairs"], rows, strict=True))
    image = torch.stack([preprocess(source.image(row)) for row in rows])
    with torch.no_grad():
        found = model(image, tokenizer([pair["caption"] for pair in values["pairs"]]))
    torch.testing.assert_close(torch.tensor(values["cosine"]), found.image @ found.text.T, rtol=0, atol=1e-5)
    assert (folder / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_seed_draws_the_pairs(run_directory: Path, tmp_path: Path) -> None:
    drawn = []
    for k, options in enumerate((["--seed", "1"], ["--seed", "1"], ["--seed", "2"])):
        out = str(tmp_path / str(k))
        assert main(["matrix", "--checkpoint", str(run_directory), "--size", "4", "--out", out, *options]) == 0
        drawn.append((tmp_path / str(k) / "matrix.json").read_text())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_unfinished_run_is_read_from_its_checkpoint(run_directory: Path, tmp_path: Path) -> None:
    """As a run looks while it trains: no model folder yet."""
    running = tmp_path / "running"
    running.mkdir()
    for name in ("config.yaml", "checkpoints", "metrics.jsonl"):
        (running / name).symlink_to(run_directory / name)
    one, two = load(run_directory)[0].state_dict(), load_unfinished(running)[0].state_dict()
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert main(["matrix", "--checkpoint", str(running), "--size", "4", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert main(["retrieval", "--checkpoint", str(running), "--data", "shapes", "--size", "4"]) == 0


def test_a_run_that_went_on_is_read_from_its_newest_checkpoint(run_directory: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_directory, tmp_path / "run")
    config = load_config(["--config", str(run / "config.yaml"), "--run.dir", str(run), "--run.resume", "true"])
    steps = replace(config.train, max_steps=8)
    with pytest.MonkeyPatch.context() as patch:  # cut off before its end
        patch.setattr("miniclip.training.loop.save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, train=steps))
    newest, _, _ = load_model(str(run), torch.device("cpu"))
    found, old = newest.logit_scale.detach(), load(run)[0].logit_scale.detach()
    assert not torch.equal(found, old) and torch.equal(found, load_unfinished(run)[0].logit_scale.detach())


def test_an_exported_model_on_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "model", 0, 32)
    photos = tmp_path / "photos"
    photos.mkdir()
    source = SceneSource("train", 12, seed=3, image_size=40)
    lines = []
    for k in range(12):
        source.image(k).save(photos / f"{k}.png")
        lines.append({"file_name": f"{k}.png", "caption": source.captions(k)[0]})
        (photos / f"broken{k}.png").write_bytes(b"no picture")
        lines.append({"file_name": f"broken{k}.png", "caption": "a broken one"})
    (photos / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    arguments = ["matrix", "--checkpoint", model, "--data", str(photos), "--split", "train", "--out", str(out)]
    assert main(arguments) == 2  # before any file is written
    assert "broken" in capsys.readouterr().err and not out.exists()
    assert main([*arguments, "--max_bad_fraction", "0.5"]) == 0
    assert "pictures cannot be read and are passed over: broken" in capsys.readouterr().out
    values = json.loads((out / "matrix.json").read_text())
    assert 6 <= len(values["pairs"]) <= 12  # some are set aside for the other splits
    assert all(re.match(r"\d+\.png", pair["name"]) for pair in values["pairs"])


def test_a_model_of_open_clip(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ["--checkpoint", "open_clip:ViT-S-32-alt:random", "--data", "shapes", "--size", "4", "--out", out]
    assert main(["matrix", *arguments]) == 0
    values = json.loads((tmp_path / "out" / "matrix.json").read_text())
    assert values["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5) and "history" not in values


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--checkpoint", "none", "--data", "shapes"], "none holds neither"),
        (["--checkpoint", "{run}", "--name", "x"], "--name belongs to --data"),
        (["--checkpoint", "{run}", "--out", "{run}/config.yaml"], "is a file"),
        (["--checkpoint", "{run}/model"], "add --data"),
        (["--checkpoint", "{run}", "--size", "1"], "at least 2"),
        (["--checkpoint", "{run}", "--size", "4097"], "at most 4096"),
        (["--checkpoint", "{run}", "--device", "cuda:9"], "--device"),
        (["--checkpoint", "{run}", "--data", "nowhere/at/all"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(
    run_directory: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["matrix", *(option.replace("{run}", str(run_directory)) for option in options)]
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2
    captured = capsys.readouterr()
    assert named in captured.err and captured.err.count("\n") == 1


def test_a_drawn_sample_is_fixed_by_its_seed_and_passes_over_bad_rows() -> None:
    source = SceneSource("test", 30, seed=0, image_size=32)
    preprocess = Preprocess(32)
    one, two, other = (draw(source, 10, seed, preprocess) for seed in (0, 0, 1))
    assert one.names == two.names != other.names and one.captions == two.captions
    assert len(set(one.names)) == 10
    assert len(draw(source, 99, 0, preprocess)) == 30
    with pytest.raises(ValueError, match="at least 2"):
        draw(source, 1, 0, preprocess)
