"""Notes on the data: each is one line, and is said once."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.files import samples, write_classes, write_csv, write_images, write_tar
from support.group import together
from support.models import save_tiny
from test_training import TINY

from miniclip.cli.eval import main
from miniclip.cli.train import train_main
from miniclip.common.notes import SAID, say_once


def notes(processes: int, *arguments: str) -> Counter[str]:
    """What all processes of a training say beside its tables, with its count."""
    ended = together(processes, train_main, list(arguments))
    assert all(one.value == 0 for one in ended), ended
    return Counter(line for one in ended for line in one.complaints.splitlines() if line.strip())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_says_each_note_once(tmp_path: Path, processes: int) -> None:
    """Training, the fixed batch, three tasks on two splits, evaluated three times: the same source is opened often."""
    names = write_images(tmp_path / "pairs", 60)
    rows = [[name, f"thing {k}" if k != 3 else "", "more" if k > 4 else ""] for k, name in enumerate(names)]
    source = write_csv(tmp_path / "pairs" / "captions.csv", [["file_name", "caption_0", "caption_1"], *rows])
    (tmp_path / "pairs" / names[5]).write_bytes(b"no image")
    folder = write_classes(tmp_path / "airplanes", airplane=range(6), bird=range(6, 12), ship=range(12, 18))
    (folder / "bird" / "7.png").write_bytes(b"no image")
    labelled = [{"kind": "zeroshot", "data": str(folder), "task": name} for name in ("one", "two")]
    config = {**TINY, "data": {"source": source, "batch_size": 8, "max_bad_fraction": 0.5, "cache_dir": str(tmp_path)}}
    config["eval"] = {"every": 2, "tasks": ["retrieval", *labelled, {**labelled[0], "kind": "probe", "task": "three"}]}
    config |= {"train": {"max_steps": 6, "precision": "fp32"}, "log": {"trackers": [], "progress": False}}
    config["log"] |= {"matrix_every": 3, "matrix_size": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    said = notes(processes, "--config", str(tmp_path / "c.yaml"), "--run.dir", str(tmp_path / "run"))
    assert max(said.values()) == 1, said
    for words in (
        "captions.csv: 1 of 60 rows are skipped",
        "4 captions are empty or no text",
        "has no split for validation or test: by a hash of the images of 'train' 3 are set aside for ",
        "1 images cannot be read and are left out: 5.png",
        "1 evaluation images cannot be read and are left out: bird/7.png",
        "airplanes has the one split 'all': 60 %",
    ):
        assert sum(words in line for line in said) == 1, (words, said)
    assert len(said) == 6, said


def test_a_note_brings_no_escape_sequence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.lastResort
    assert handler is not None
    monkeypatch.setattr(handler, "filters", [])
    monkeypatch.setenv(SAID, "")
    say_once()
    handler.handle(logging.LogRecord("miniclip.data", logging.WARNING, "", 1, "%s is odd", ("a\x1b[2Jb",), None))
    assert capsys.readouterr().err == "a [2Jb is odd\n"


@pytest.mark.slow
def test_the_workers_of_a_stream_say_each_note_once(tmp_path: Path) -> None:
    """In every epoch new ones meet the same damaged shard."""
    for k in range(4):
        write_tar(tmp_path / "tars" / f"{k}.tar", samples(12 * k, 12 * k + 12))
    whole = (tmp_path / "tars" / "1.tar").read_bytes()
    (tmp_path / "tars" / "1.tar").write_bytes(whole[: len(whole) // 2])
    config = {**TINY, "eval": {"size": 4}, "train": {"max_steps": 12, "precision": "fp32"}}
    config["data"] = {"source": str(tmp_path / "tars" / "*.tar"), "batch_size": 8, "streaming": True, "workers": 2}
    config["data"] |= {"max_bad_fraction": 0.5}
    config["log"] = {"trackers": [], "progress": False}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    said = notes(1, "--config", str(tmp_path / "c.yaml"), "--run.dir", str(tmp_path / "run"))
    assert max(said.values()) == 1 and sum("1.tar" in line for line in said) == 1, said
    assert (
        sum("has no split for validation or test: " in line and "3.tar is set aside" in line for line in said) == 1
    ), said


def twice(model: str, source: str, out: str) -> int:
    command = ["retrieval", "--checkpoint", model, "--data", source, "--device", "cpu", "--out", out]
    return max(main(command), main(command))


def test_the_next_command_says_them_again(tmp_path: Path) -> None:
    names = write_images(tmp_path / "pairs", 40)
    rows = [["file_name", "caption"], *([name, f"thing {k}"] for k, name in enumerate(names))]
    source = write_csv(tmp_path / "pairs" / "captions.csv", rows)
    (ended,) = together(1, twice, save_tiny(tmp_path / "model"), source, str(tmp_path / "out"))
    said = Counter(line for line in ended.complaints.splitlines() if "set aside" in line)
    assert ended.value == 0 and list(said.values()) == [2], ended.complaints
