"""The end of a run names what there is to open, and three commands that run as they are printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.files import samples, write_csv, write_images, write_tar
from test_training import TINY

from miniclip.cli.ending import next_commands
from miniclip.cli.eval import main
from miniclip.cli.train import train_main
from miniclip.config import load_config


def trained(folder: Path, capsys: pytest.CaptureFixture[str], data: dict[str, Any]) -> tuple[list[str], Path]:
    """The last lines of a run."""
    config = {**TINY, "data": {"batch_size": 8, **data}, "train": {"max_steps": 2, "precision": "fp32"}}
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, "eval": {"size": 6, "tasks": ["retrieval"]}}))
    run = folder / "a run"
    assert train_main(["--config", str(folder / "c.yaml"), "--run.dir", str(run)]) == 0
    return capsys.readouterr().out.splitlines()[-5:], run


def test_the_commands_run_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_images(tmp_path / "pairs", 40)
    (tmp_path / "pairs" / names[5]).write_bytes(b"no image")
    rows = [["file", "also", "words"], *([name, name, f"thing {k}"] for k, name in enumerate(names))]
    source = write_csv(tmp_path / "pairs" / "my captions.csv", rows)
    columns = {"image_column": "file", "caption_column": "words"}
    lines, run = trained(tmp_path, capsys, {"source": source, "max_bad_fraction": 0.5, **columns})
    assert lines[0].startswith("open ") and lines[1].startswith("next: ")
    opened = lines[0].removeprefix("open ").split(", ")
    assert f"{run}/examples.html" in opened and all(Path(path).is_file() for path in opened)
    for line in lines[2:]:
        python, script, *words = shlex.split(line)
        assert (python, script) == ("python", "eval.py") and main(words) == 0, capsys.readouterr()
    assert (run / "report").is_dir() and (run / "inspection" / "report.html").is_file()
    assert any((run / "evaluation").glob("retrieval*/results.json"))


@pytest.mark.slow
def test_those_of_the_scenes_and_of_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = trained(tmp_path, capsys, {"source": "shapes"})
    assert main([*shlex.split(lines[-1])[2:], "--size", "16"]) == 0
    for k in range(3):
        write_tar(tmp_path / "tars" / f"{k}.tar", samples(12 * k, 12 * k + 12))
    (tmp_path / "stream").mkdir()
    lines, run = trained(tmp_path / "stream", capsys, {"source": f"{tmp_path}/tars/*.tar", "streaming": True})
    python, script, *words = shlex.split(lines[-1])
    assert (python, script) == ("python", "train.py") and train_main(words) == 0
    assert load_config([f"--config={run}/config.yaml"]).train.max_steps == 4


def test_they_are_started_as_the_training_was(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(["--train.max_steps", "5", "--run.dir", "runs/a"])
    for words, program, begin in (
        (["/venv/bin/python", "code/train.py"], "train.py", ["/venv/bin/python", "code/eval.py"]),
        (
            ["/venv/bin/python", "/venv/bin/miniclip train"],
            "miniclip train",
            ["/venv/bin/miniclip", "eval"],
        ),
    ):
        monkeypatch.setattr("sys.orig_argv", words)
        monkeypatch.setattr("sys.argv", words[1:])
        report, matrix, _ = next_commands(config, None, program)
        assert report == [*begin, "report", "runs/a"] and matrix == [*begin, "matrix", "--checkpoint", "runs/a"]
