"""Where commands put their files: nothing but their own is replaced or deleted, whatever they meet or ends them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.disks import fill, in_memory
from support.files import write_beside, write_classes
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
    (run / "nowhere").symlink_to(tmp_path / "gone")
    folders += ["nowhere", "nowhere/deep"]
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


def test_two_reports_at_once_are_two_reports(run: Path) -> None:
    """Both begin when both are there; the files of one are no obstacle to the other."""
    script = (
        "import sys, miniclip.evaluation.report.write as _, miniclip.evaluation.plots as _\n"
        "from miniclip.cli.eval import main\nprint('ready', flush=True)\ninput()\nraise SystemExit(main())\n"
    )
    command, environment = [sys.executable, "-c", script, "report", str(run)], os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for process in both:
        process.stdin.write("\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {path.name for path in (run / "report").iterdir()} == {"report.md", "report.html", "curves.png"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "signal", "code"),
    [("zeroshot", "SIGKILL", -9), ("zeroshot", "SIGTERM", 143), ("matrix", "SIGKILL", -9), ("matrix", "SIGINT", 130)],
)
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


@pytest.mark.slow
def test_an_evaluation_on_a_full_disk(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    draw = Zeroshot.draw
    with in_memory(tmp_path / "disk", 128) as disk:
        run = shutil.copytree(kept, disk / "run")
        before = contents(run)

        def full(*arguments: Any) -> None:
            fill(disk)
            draw(*arguments)

        words = ["zeroshot", *SMALL, "--seed", "1", "--checkpoint", str(run)]
        with monkeypatch.context() as patch:
            patch.setattr(Zeroshot, "draw", full)
            assert main(words) == 75
        said = capsys.readouterr().err
        assert f"no space left to write {run}/evaluation/" in said and said.count("\n") == 1, said
        (disk / "filler").unlink()
        assert contents(run) == before
        assert main(words) == 0 and (run / "evaluation" / "zeroshot-shape-2" / "results.json").is_file()


LISTEN = """
import os, sys
if sys.argv[1] == "closed":
    reader, writer = os.pipe()
    os.close(reader)
else:
    writer = os.open("/dev/full", os.O_WRONLY)
for name in sys.argv[2].split(","):
    os.dup2(writer, {"stdout": 1, "stderr": 2}[name])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("program", "nobody", "streams", "code"),
    [
        ("eval.py", "closed", "stdout", 0),
        ("eval.py", "full", "stdout", 75),  # the table is asked for; what the files hold is whole
        ("train.py", "closed", "stdout,stderr", 0),
        ("train.py", "full", "stdout,stderr", 0),
    ],
)
def test_results_are_kept_where_nobody_listens(
    program: str, nobody: str, streams: str, code: int, run: Path, tmp_path: Path
) -> None:
    """A pipe whose other end is closed, as of `| head`, and a log on a full disk."""
    words = ["zeroshot", *SMALL, "--seed", "7", "--checkpoint", str(run)]
    if program == "train.py":
        words = ["--config", str(run / "config.yaml"), "--run.dir", str(tmp_path / "new"), "--log.progress", "true"]
    command = [sys.executable, "-c", LISTEN, nobody, streams, str(ROOT / program), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == code, done.stderr
    said = "eval.py: error: no space left for what is printed; make room\n"
    assert done.stderr == (said if code else "")
    where = run / "evaluation" / "zeroshot-shape-2" if program == "eval.py" else tmp_path / "new"
    assert (where / "results.json").is_file()


@pytest.mark.parametrize("option", ["--json", "--png"])
def test_an_audit_writes_over_audits_alone(option: str, tmp_path: Path, capsys: Shown) -> None:
    data = write_beside(tmp_path / "data", 0, 40)
    target = tmp_path / f"mine.{option.removeprefix('--')}"
    words = ["audit", "--data", str(data), option, str(target), "--batch_size", "2"]
    for other in (b'{"training": {"steps": 6}}', b"\x89PNG\r\n\x1a\n of mine"):
        target.write_bytes(other)
        assert main(words) == 2 and target.read_bytes() == other
        assert f"{option} {target} holds something else" in capsys.readouterr().err
    target.unlink()
    assert [main(words), main(words)] == [0, 0] and target.stat().st_size > 500


def test_data_that_a_run_names_are_named_before_they_are_opened(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    """The run may be a stranger's: what its config names is read by one command alone, and not unsaid."""
    config = (run / "config.yaml").read_text()
    assert "source: shapes" in config
    (run / "config.yaml").write_text(config.replace("source: shapes", "source: https://example.org/{0..9}.tar"))
    opened: list[str] = []

    def look(*_: Any, **__: Any) -> Any:
        opened.append(capsys.readouterr().out)
        raise ValueError("not opened")

    monkeypatch.setattr("miniclip.data.stream.held_out.open_pairs", look)
    monkeypatch.setattr("miniclip.data.captioned.open_source", look)
    assert main(["matrix", "--checkpoint", str(run), "--size", "4"]) == 2
    line = f"{run}/config.yaml names the data: https://example.org/{{0..9}}.tar; --data SOURCE reads other data\n"
    assert opened == [line] and "not opened" in capsys.readouterr().err
    monkeypatch.undo()
    for words in (
        ["matrix", "--data", "shapes", "--size", "4", "--checkpoint"],
        ["zeroshot", *SMALL, "--checkpoint"],
        ["retrieval", "--data", "shapes", "--size", "4", "--checkpoint"],
        ["report"],
    ):
        assert main([*words, str(run)]) == 0
        assert "example.org" not in capsys.readouterr().out
