"""eval.py matrix, from a run, an unfinished run, an exported model and a model of open_clip to its files."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.models import save_tiny
from test_training import TINY

from miniclip.cli.eval import main
from miniclip.cli.train import run as train
from miniclip.config import load_config
from miniclip.data.scenes.source import SceneSource
from miniclip.inspection.sample import draw
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"log": TINY["log"] | {"matrix_every": 3}}))
    train(load_config(["--config", str(root / "tiny.yaml"), "--run.dir", str(root / "run")]))
    return root / "run"


def matrix(*arguments: str, out: Path) -> dict[str, Any]:
    assert main(["matrix", *arguments, "--out", str(out)]) == 0
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    found: dict[str, Any] = json.loads((out / "matrix.json").read_text())
    return found


def test_a_run_brings_its_data(run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--checkpoint", str(run_directory), "--size", "16"]) == 0
    out = capsys.readouterr().out
    assert "loss / chance, training pairs" in out and "report.html" in out
    assert "does not tell half of these pairs apart" in " ".join(out.split())  # after six steps
    text = (run_directory / "inspection" / "matrix.json").read_text()
    values = json.loads(text)
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
    # the seed draws the pairs
    base = ["--checkpoint", str(run_directory), "--size", "4", "--seed"]
    one, again, other = (matrix(*base, seed, out=tmp_path / "out") for seed in ("1", "1", "2"))
    assert one == again != other


def test_an_unfinished_run_is_read_from_its_newest_checkpoint(run_directory: Path, tmp_path: Path) -> None:
    running = tmp_path / "running"  # as a run looks while it trains: no model folder yet
    running.mkdir()
    for name in ("config.yaml", "checkpoints", "metrics.jsonl"):
        (running / name).symlink_to(run_directory / name)
    one, two = load(run_directory)[0].state_dict(), load(running)[0].state_dict()
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert matrix("--checkpoint", str(running), "--size", "4", out=tmp_path / "out")["pairs"]
    assert main(["retrieval", "--checkpoint", str(running), "--data", "shapes", "--size", "4"]) == 0

    run = shutil.copytree(run_directory, tmp_path / "run")  # a run that went on after its end, and was cut off
    config = load_config(["--config", str(run / "config.yaml"), "--run.dir", str(run), "--run.resume", "true"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("miniclip.training.run.save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(replace(config, train=replace(config.train, max_steps=8)))
    found = load(run)[0].logit_scale
    assert not torch.equal(found, load(run / "model")[0].logit_scale)
    assert torch.equal(found, load(run / "checkpoints")[0].logit_scale)


def test_a_part_of_a_run_brings_the_data_of_the_run(run_directory: Path, tmp_path: Path) -> None:
    """Each with files of its own, so that a checkpoint's are not taken for the finished model's."""
    run = shutil.copytree(run_directory, tmp_path / "run")
    newest = max((run / "checkpoints").iterdir())
    for part, folder in (("model", "."), ("config.yaml", "."), (f"checkpoints/{newest.name}", newest.name)):
        assert main(["matrix", "--checkpoint", str(run / part), "--size", "4"]) == 0
        assert main(["zeroshot", "--checkpoint", str(run / part), "--task", "count", "--size", "6"]) == 0
        values = json.loads((run / "inspection" / folder / "matrix.json").read_text())
        assert values["about"]["data"] == "shapes" and values["history"]["steps"] == [0, 3, 6]
        evaluated = "zeroshot-count" + (f"-{folder}" if folder != "." else "")
        assert (run / "evaluation" / evaluated / "results.json").exists()
    assert {path.name for path in (run / "evaluation").iterdir()} == {"zeroshot-count", f"zeroshot-count-{newest.name}"}


def test_the_matrix_of_other_data_stays(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where the files of a model go that is no run
    base = ["matrix", "--size", "4", "--data", "shapes", "--checkpoint"]
    models = [save_tiny(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    for model, folder in ((models[0], "."), (models[1], "2"), (models[0], ".")):
        capsys.readouterr()
        assert main([*base, model]) == 0
        assert (
            json.loads((tmp_path / "inspection" / folder / "matrix.json").read_text())["about"]["checkpoint"] == model
        )
    assert "inspection: in place of the matrix of a on 4 pairs" in capsys.readouterr().out
    (tmp_path / "inspection" / "matrix.json").write_text('{"about": [1]}')  # damaged
    assert main([*base, models[0]]) == 0 and (tmp_path / "inspection" / "3" / "matrix.json").exists()
    run = shutil.copytree(run_directory, tmp_path / "run")
    for split, folder in (("test", "."), ("validation", "2"), ("test", ".")):
        assert main([*base, str(run), "--split", split]) == 0
        assert json.loads((run / "inspection" / folder / "matrix.json").read_text())["about"]["split"] == split


def test_an_exported_model_on_a_folder_of_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    source, lines = SceneSource("train", 12, seed=3, image_size=40), []
    for k in range(12):
        source.image(k).save(photos / f"{k}.png")
        (photos / f"broken{k}.png").write_bytes(b"no image")
        lines += [{"file_name": f"{name}{k}.png", "caption": source.captions(k)[0]} for name in ("", "broken")]
    (photos / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--checkpoint", save_tiny(tmp_path / "model"), "--data", str(photos), "--split", "train"]
    assert main(["matrix", *arguments, "--out", str(out)]) == 2  # before any file is written
    assert "broken" in capsys.readouterr().err and not out.exists()
    values = matrix(*arguments, "--max_bad_fraction", "0.5", out=out)
    assert "images cannot be read and are passed over: broken" in caplog.text
    assert 6 <= len(values["pairs"]) <= 12  # some are set aside for the other splits
    assert all(re.match(r"\d+\.png", pair["name"]) for pair in values["pairs"])


def test_a_model_of_open_clip(tmp_path: Path) -> None:
    arguments = ["--checkpoint", "open_clip:ViT-S-32-alt:random", "--data", "shapes", "--size", "4"]
    values = matrix(*arguments, out=tmp_path / "out")
    assert values["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5) and "history" not in values


def test_what_cannot_be_done_is_said(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, named in (
        ("none --data shapes", "none: there is no such file or folder"),
        ("{run} --name x", "--name belongs to --data"),
        ("{run} --out {run}/config.yaml", "is a file"),
        ("open_clip:ViT-S-32-alt:random", "add --data"),
        ("{run} --size 1", "at least 2"),
        ("{run} --size 4097", "at most 4096"),
        ("{run} --device cuda:9", "--device"),
        ("{run} --positives all", "positives"),
        ("{run} --max_bad_fraction 2", "must lie in [0, 1]"),
        ("{run} --data nowhere/at/all", "nowhere"),
    ):
        assert main(["matrix", "--checkpoint", *options.format(run=run_directory).split()]) == 2
        said = capsys.readouterr().err
        assert named in said and said.count("\n") == 1, said


def test_a_drawn_sample_is_fixed_by_its_seed() -> None:
    source, preprocess = SceneSource("test", 30, seed=0, image_size=32), Preprocess(32)
    one, two, other = (draw(source, 10, seed, preprocess) for seed in (0, 0, 1))
    assert one.names == two.names != other.names and one.captions == two.captions
    assert len(set(one.names)) == 10 and len(draw(source, 99, 0, preprocess)) == 30
    with pytest.raises(ValueError, match="at least 2"):
        draw(source, 1, 0, preprocess)
