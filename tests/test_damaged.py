"""A run with one damaged file: every command that needs it names it, and none ends in a traceback or does harm."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from support.runs import contents, finished_run

from miniclip.cli.eval import main
from miniclip.cli.train import train_main


def flipped(content: bytes) -> bytes:
    """With one bit changed in the middle."""
    k = len(content) // 2
    return content[:k] + bytes([content[k] ^ 0x10]) + content[k + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "garbage": lambda _: random.Random(0).randbytes(200),
    "list": lambda _: b"[1, 2]\n",
    "object": lambda _: b'{"a": 1}\n',
    "flip": flipped,
}
NEWEST = "checkpoints/step_00000006"
# file -> commands that have to name it
NAMED = {
    "metrics.jsonl": "report matrix resume",
    "config.yaml": "report matrix checkpoint resume auto overwrite",
    "results.json": "report auto",
    "best/best.json": "resume",
    "best/model.json": "best",
    "best/preprocess.json": "best",
    "best/model.safetensors": "best",
    "model/model.json": "matrix zeroshot",
    "model/preprocess.json": "matrix zeroshot",
    "model/model.safetensors": "matrix zeroshot",
    "matrix/batch.json": "matrix resume",
    "matrix/step_00000003.safetensors": "matrix",
    f"{NEWEST}/progress.json": "resume",
    f"{NEWEST}/model.safetensors": "checkpoint resume",
    f"{NEWEST}/optimizer.bin": "resume",
    f"{NEWEST}/random_states_0.pkl": "resume",
    f"{NEWEST}/checksums.json": "resume",
}
# one flipped bit of what has no checksums may make a file that is as good, and half of a log one that is being written
UNTOLD = {
    *(("flip", file) for file in ("results.json", "metrics.jsonl", "config.yaml", "matrix/batch.json")),
    *(("flip", file) for file in ("model/model.json", "model/preprocess.json", "model/model.safetensors")),
    ("flip", "matrix/step_00000003.safetensors"),
    *(("cut", "metrics.jsonl", name) for name in ("report", "matrix")),
    *(("empty", "metrics.jsonl", name) for name in ("report", "matrix")),
    ("object", f"{NEWEST}/checksums.json"),  # which lists another file, and that one is said to be missing
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("damaged"))


def commands(run: Path, options: Path) -> dict[str, tuple[Callable[[list[str]], int], list[str]]]:
    small = ["--task", "shape", "--size", "6"]
    again = ["--config", str(options), "--run.dir", str(run)]
    longer = [*again, "--train.max_steps", "7"]
    return {
        "report": (main, ["report", str(run)]),
        "matrix": (main, ["matrix", "--checkpoint", str(run), "--size", "4"]),
        "zeroshot": (main, ["zeroshot", "--checkpoint", str(run), *small]),
        "best": (main, ["zeroshot", "--checkpoint", str(run / "best"), *small]),
        "checkpoint": (main, ["zeroshot", "--checkpoint", str(run / NEWEST), *small]),
        "resume": (train_main, [*longer, "--run.resume", "true"]),
        "auto": (train_main, [*again, "--run.resume", "auto"]),
        "overwrite": (train_main, [*longer, "--run.overwrite", "true"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("file", NAMED)
def test_the_damaged_file_is_named(
    file: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = []
    summed = file.startswith(("best/", NEWEST)) and not file.endswith("checksums.json")  # which tell all kinds alike
    for damage, name in product(["cut", "flip"] if summed else DAMAGES, NAMED[file].split()):
        run = shutil.copytree(finished, tmp_path / f"{damage}-{name}")
        (run / file).write_bytes(DAMAGES[damage]((run / file).read_bytes()))
        before = contents(run)
        caplog.clear()
        command, words = commands(run, finished.parent / "tiny.yaml")[name]
        code = command(words)
        printed, complaints = capsys.readouterr()
        said = f"{printed}\n{complaints}\n{caplog.text}"
        if name == "report":
            said += (run / "report" / "report.md").read_text().replace("\\", "").partition("Left out")[2]
        told = {"random_states_0.pkl": "random states of process 0"}.get(Path(file).name, Path(file).name) in said or {
            (damage, file),
            (damage, file, name),
        } & UNTOLD
        changed = [one for one, content in contents(run).items() if before.get(one, content) != content]
        changed += [one for one in before if not (run / one).exists()]
        kept = code == 2 or name in ("report", "matrix", "zeroshot", "best", "checkpoint")
        line = code == 0 or (code == 2 and complaints.count("error: ") == complaints.count("\n") == 1)
        if not told or not line or (kept and changed):
            faults.append(f"{damage}, {name}: code {code}, changed {changed}, {complaints[-300:]}")
        shutil.rmtree(run)
    assert not faults, "\n".join(faults)


def test_a_resume_keeps_the_good_lines(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    metrics = run / "metrics.jsonl"
    before = metrics.read_bytes().splitlines()
    metrics.write_bytes(b"\n".join([before[0], b"\xff\xfe", *before[2:], b'{"step": 7, "lo']))
    command, words = commands(run, finished.parent / "tiny.yaml")["resume"]
    assert command(words) == 0
    assert metrics.read_bytes().splitlines()[: len(before) - 1] == [before[0], *before[2:]]
    assert f"{metrics}: damaged, left out: line 2" in caplog.text
