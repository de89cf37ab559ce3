"""The matrix along the training: what a run writes, keeps on a resume, and what is read back."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from test_training import TINY

from miniclip.cli.train import run as train
from miniclip.config import ConfigError, LogConfig, load_config
from miniclip.data.scenes.source import SceneSource
from miniclip.inspection.history import read_history, training_log
from miniclip.inspection.sample import draw
from miniclip.metrics.batch import FIGURES
from miniclip.models.load import load


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"log": TINY["log"] | {"matrix_every": 2, "matrix_size": 5}}))
    return str(path)


def run(config_file: str, directory: Path, *options: str) -> None:
    train(load_config(["--config", config_file, "--run.dir", str(directory), *options]))


@pytest.fixture(scope="module")
def finished(config_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "finished"
    run(config_file, directory, "--train.max_steps", "5")
    return directory


def test_a_run_leaves_its_matrices(finished: Path) -> None:
    """The last is that of the finished model: drawn again from the source, and encoded by the model that was saved."""
    history = read_history(finished)
    assert history is not None
    assert history.steps == [0, 2, 4, 5] and history.training["step"] == [1, 2, 3, 4, 5]
    assert history.cosines.shape == (4, 5, 5) and history.cosines.dtype == torch.float16
    assert {"loss", "loss_over_chance", "logit_scale", "r1_image_to_text", "rank_text"} <= set(history.figures)
    assert sum(path.stat().st_size for path in (finished / "matrix").iterdir()) < 10_000
    model, preprocess, tokenizer = load(finished)
    sample = draw(SceneSource("validation", 5, seed=0, image_size=32), 5, 0, preprocess)
    image, text = sample.encode(model, preprocess, tokenizer)
    assert sample.captions == history.captions
    torch.testing.assert_close(history.cosines[-1].float(), image @ text.T, rtol=0, atol=6e-4)
    scale, diagonal = float(model.logit_scale.detach().exp()), torch.arange(5)
    logits = scale * (image @ text.T)
    loss = float(F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    kept = [float(history.figures[name][-1]) for name in ("logit_scale", "loss", "loss_over_chance")]
    assert kept == pytest.approx([scale, loss, loss / math.log(5)], rel=1e-5)
    assert not torch.equal(history.cosines[0], history.cosines[-1])


def test_every_line_of_the_log_has_the_figures(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    of_a_step = set(FIGURES) - {"training_loss_over_chance", "unseen_duplicates", "best_scale"}
    for line in lines:
        assert of_a_step <= set(line)
        whole = math.hypot(line["grad_norm_image"], line["grad_norm_text"])
        assert 0.9 * line["grad_norm"] < whole <= line["grad_norm"] * (1 + 1e-6)  # the rest is the scale's
        assert line["scale_clamped"] == 0


def test_looking_changes_nothing(config_file: str, finished: Path, tmp_path: Path) -> None:
    run(config_file, tmp_path / "blind", "--train.max_steps", "5", "--log.matrix_every", "0", "--log.every", "5")
    assert not (tmp_path / "blind" / "matrix").exists()
    looked, blind = (load(directory)[0].state_dict() for directory in (finished, tmp_path / "blind"))
    assert all(torch.equal(looked[name], blind[name]) for name in looked)


def test_a_resume_does_the_steps_after_its_checkpoint_again(config_file: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(config_file, directory, "--train.max_steps", "3")
    (directory / "matrix" / "step_00000009.safetensors").write_bytes(b"of a step that the checkpoint has not seen")
    (directory / "matrix" / "step_final.safetensors").write_bytes(b"somebody else's")
    # how much is evaluated may change on the way, the fixed batch may not
    run(config_file, directory, "--train.max_steps", "6", "--run.resume", "true", "--eval.size", "30")
    history = read_history(directory)
    assert history is not None and history.steps == [0, 2, 3, 4, 6]
    run(config_file, directory, "--train.max_steps", "2", "--run.overwrite", "true", "--log.matrix_every", "0")
    assert not (directory / "matrix").exists() and read_history(directory) is None


def test_another_batch_is_refused_on_a_resume(config_file: str, finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.matrix_size"):
        run(config_file, finished, "--train.max_steps", "6", "--run.resume", "true", "--log.matrix_size", "6")


def test_too_few_validation_pairs_name_the_option(config_file: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    lines = ["file_name,caption,split"]
    for k in range(12):
        SceneSource("train", 12, image_size=32).image(k).save(tmp_path / "pairs" / f"{k}.png")
        lines.append(f"{k}.png,scene {k},{('train', 'validation')[k == 0]}")
    (tmp_path / "pairs" / "pairs.csv").write_text("\n".join(lines) + "\n")
    options = ["--data.source", str(tmp_path / "pairs" / "pairs.csv"), "--eval.tasks", "[]"]
    with pytest.raises(ConfigError, match=r"log\.matrix_every=2.*1 of 1 images.*set it to 0"):
        run(config_file, tmp_path / "run", *options)


def test_a_damaged_matrix_is_named(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "matrix"
    shutil.copytree(finished / "matrix", folder)
    damaged, batch = folder / "step_00000002.safetensors", folder / "batch.json"

    def refused(named: Path) -> None:
        with pytest.raises(ValueError, match=re.escape(str(named))):
            read_history(tmp_path)

    damaged.write_bytes(b"cut off")
    refused(damaged)
    for figures in ([], {"loss": 1.0}, {"logit_scale": "ten"}):
        save_file({"cosine": torch.zeros(5, 5)}, damaged, metadata={"figures": json.dumps(figures)})
        refused(damaged)
    damaged.unlink()
    batch.write_text(json.dumps({"captions": json.loads(batch.read_text())["captions"][1:]}))
    refused(batch)
    batch.unlink()
    refused(batch)


def test_reads_the_log_of_a_training_that_was_killed(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "lr": 0.1}, {"step": 2, "eval/top1": 0.5}]
    rest = 'no JSON\n{"step": 3, "loss": [1], "lr": "x"}\n{"step": 4, "loss": 1e400}\n{"step": 5, "lo'
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
    nan = pytest.approx(math.nan, nan_ok=True)
    found = {"step": [1, 2, 3, 4], "loss": [2.0, nan, nan, math.inf], "lr": [nan, 0.1, nan, nan]}
    assert training_log(tmp_path) == found
    assert training_log(tmp_path / "none") == {}


def test_settings_out_of_range_are_refused() -> None:
    for key, value in (("matrix_every", -1), ("matrix_size", 1), ("matrix_size", 1025)):
        with pytest.raises(ConfigError, match=f"log.{key}"):
            LogConfig(**{key: value})
