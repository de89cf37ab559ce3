"""Where commands put their files: nothing that is not theirs is replaced or deleted, whatever they meet or ends them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.files import write_classes
from support.launching import ROOT
from support.runs import contents, finished_run

from miniclip.cli.eval import main
from miniclip.evaluation.tasks import Zeroshot

SMALL = ["--task", "shape", "--size", "6", "--device", "cpu"]
Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a report, a matrix and an evaluation."""
    run = finished_run(tmp_path_factory.mktemp("results"))
    for words in (["report", str(run)], ["matrix", "--size", "4"], ["zeroshot", *SMALL]):
        assert main(words if words[0] == "report" else [*words, "--checkpoint", str(run)]) == 0
    return run


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept, tmp_path / "run")


def test_no_folder_of_a_run_is_written_over(run: Path, tmp_path: Path, capsys: Shown) -> None:
    """By no command, wherever --out points: each holds something else, if only results of the run that this is a copy
    of."""
    write_classes(tmp_path / "photos", a=[1], b=[2])
    (tmp_path / "names.txt").write_text("a\nb\n")
    commands: list[list[str]] = [
        ["zeroshot", *SMALL, "--checkpoint", str(run)],
        ["retrieval", "--data", "shapes", "--size", "6", "--checkpoint", str(run)],
        ["matrix", "--size", "4", "--checkpoint", str(run), "--split", "validation"],
        [
            *("classify", "--checkpoint", str(run), "--data", str(tmp_path / "photos")),
            *("--classnames", str(tmp_path / "names.txt")),
        ],
    ]
    (run / "mine").mkdir()
    (run / "mine" / "confusion.png").write_text("drawn by hand")
    (run / "mine" / "report.html").write_text("written by hand")
    folders = ["", *(path.name for path in run.iterdir() if path.is_dir()), "evaluation/zeroshot-shape"]
    before = contents(run)
    for words in commands:
        for folder in folders:
            assert main([*words, "--out", str(run / folder)]) == 2, (words[0], folder)
            said = capsys.readouterr().err
            assert f"--out {run / folder}" in said and said.count("\n") == 1, said
            assert contents(run) == before
    for words in commands[:-1]:
        assert main(words) == 0
    assert main(["report", str(run)]) == 0
    after = contents(run)
    changed = {name for name in before if after.get(name) != before[name]}
    assert {name.partition("/")[0] for name in changed} <= {"report", "evaluation"}
    assert not any(name.rpartition("/")[2].startswith(".") for name in after)


def test_two_evaluations_at_once_have_two_folders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one comes to its end between a look at what is there and the first file."""
    evaluation, draw, make, begun = run / "evaluation", Zeroshot.draw, Path.mkdir, []
    shutil.rmtree(evaluation)

    def other() -> None:
        if not begun:
            begun.append(True)
            assert main(["zeroshot", *SMALL, "--checkpoint", str(run), "--seed", "2"]) == 0

    def drawn(self: Zeroshot, *arguments: Any) -> None:
        other()
        draw(self, *arguments)

    def made(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "zeroshot-shape":
            other()
        make(self, *arguments, **options)

    monkeypatch.setattr(Zeroshot, "draw", drawn)
    monkeypatch.setattr(Path, "mkdir", made)
    assert main(["zeroshot", *SMALL, "--checkpoint", str(run), "--seed", "1"]) == 0 and begun
    commands = [json.loads(file.read_text())["command"] for file in sorted(evaluation.glob("*/results.json"))]
    assert ["--seed 2" in command for command in commands] == [True, False]
    assert all({"results.json", "confusion.png"} <= {p.name for p in f.iterdir()} for f in evaluation.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("signal", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("command", ["zeroshot", "matrix"])
def test_what_is_cut_off_does_not_look_finished(command: str, signal: str, code: int, run: Path) -> None:
    """The signal comes when half of the files are written; the same command then has the place for itself."""
    words = [command, "--checkpoint", str(run), *(SMALL if command == "zeroshot" else ["--size", "4"])]
    place, record = {
        "zeroshot": (run / "evaluation" / "zeroshot-shape", "results.json"),
        "matrix": (run / "inspection", "matrix.json"),
    }[command]
    shutil.rmtree(place)
    before = contents(run)
    late = {"zeroshot": "miniclip.evaluation.plots.calibration_png", "matrix": "miniclip.inspection.page.write._sheets"}
    module, _, name = late[command].rpartition(".")
    script = (
        f"import os, signal, time, {module} as late\n"
        f"def cut(*_):\n    os.kill(os.getpid(), signal.{signal})\n    time.sleep(60)\n"
        f"late.{name} = cut\nfrom miniclip.cli.eval import main\nraise SystemExit(main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == code, done.stderr
    assert not (place / record).exists()
    if code > 0:
        assert done.stderr.startswith("eval.py: stopped") and done.stderr.count("\n") == 1, done.stderr
        assert contents(run) == before
    assert main(words) == 0
    assert (place / record).is_file() and not list(run.rglob(".*.unfinished"))
    assert set(contents(run)) - set(before) == {str(p.relative_to(run)) for p in place.iterdir()}
