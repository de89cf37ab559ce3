"""Comparisons: the grid and what it refuses, the budget, the halving, and processes that are killed and go on."""

from __future__ import annotations

import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.launching import ROOT
from test_training import TINY, environment, lines, run

from miniclip.cli.single import single
from miniclip.common.console import open_console
from miniclip.compare.budget import ROUNDS, step_seconds, trials
from miniclip.compare.grid import axes_of, folder_name, seeds_of, split_values, variants_of
from miniclip.compare.plan import load_plan
from miniclip.compare.runner import Job, Machine, finished, last_step
from miniclip.compare.tune import SEED, better_half, metric_of, tuned_values
from miniclip.config import load_config

FAKE = Path(__file__).parent / "support" / "fake_training.py"
PATIENCE = 300  # seconds, on a busy machine


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    values = {**TINY, "eval": {"size": 16, "tasks": ["shape"]}}
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def compare(config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command on trainings that cost nothing; what stands in the folder by then is told to the page."""
    monkeypatch.setattr("miniclip.compare.report.write_report", lambda folder: [folder / "compare.html"])
    monkeypatch.setattr("miniclip.compare.report.show", lambda folder: None)
    monkeypatch.setattr("miniclip.compare.runner._POLL", 0.02)

    def command(*words: str, out: str = "out") -> int:
        start = ["--config", config_file, "--out", str(tmp_path / out), "--launch", f"{sys.executable} {FAKE}"]
        return single("compare", [*start, *words])

    return command


def started(folder: Path) -> Counter[str]:
    """How often each training below a folder was begun or went on."""
    return Counter({log.parent.name: log.read_text().count("$ ") for log in folder.rglob("train.log")})


def plan_of(folder: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return plan


# The grid


def test_values_are_split_outside_of_brackets() -> None:
    assert split_values("[0.9,0.98],[0.9,0.99]") == ["[0.9,0.98]", "[0.9,0.99]"]
    assert split_values('[{"kind": "probe", "data": "a"}],[shape]') == ['[{"kind": "probe", "data": "a"}]', "[shape]"]


def test_every_combination_in_order(config_file: str) -> None:
    vary = ["loss.name=softmax,sigmoid", "optim.lr=1e-3,2e-3", "optim.betas=[0.9,0.98]"]
    base = ["--config", config_file]
    found = variants_of(base, axes_of(base, vary, budget=True))
    expected = [("softmax", 0.001), ("softmax", 0.002), ("sigmoid", 0.001), ("sigmoid", 0.002)]
    assert [(one.config.loss.name, one.config.optim.lr) for one in found] == expected
    assert [tuple(one.options.values()) for one in found] == [(*pair, [0.9, 0.98]) for pair in expected]
    assert found[1].name == "loss.name=softmax, optim.lr=0.002, optim.betas=[0.9, 0.98]"


def test_a_file_is_laid_over(config_file: str, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("loss: {name: focal}\noptim: {lr: 0.5}\n")
    base = ["--config", config_file, "--optim.warmup_steps", "3"]
    (one,) = variants_of(base, axes_of(base, [f"config={over}"], budget=True))
    assert (one.config.loss.name, one.config.optim.lr, one.config.optim.warmup_steps) == ("focal", 0.5, 3)
    assert one.config.data.size == TINY["data"]["size"]


def test_nothing_varied_is_one_variant(config_file: str) -> None:
    assert [one.name for one in variants_of(["--config", config_file], {})] == ["as configured"]


def test_seeds() -> None:
    assert seeds_of("3", 0) == [0, 1, 2] and seeds_of("2", 5) == [5, 6] and seeds_of("0,4,7", 5) == [0, 4, 7]


def test_folders_are_plain_and_apart() -> None:
    name = folder_name('eval.tasks=[{"data": "../a b"}], loss.name=soft', [])
    assert re.fullmatch(r"[\w.,=+-]+", name) and "/" not in name
    assert folder_name("a b", [folder_name("a/b", [])]) == "a_b_2"
    assert len(folder_name("x" * 500, [])) <= 100 and folder_name("..", []) == "run"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--vary", "optim.lr"], "--vary optim.lr: write KEY=VALUE,VALUE"),
        (["--vary", "optim.lr=1e-3,"], "--vary optim.lr=1e-3,: write KEY=VALUE,VALUE"),
        (["--vary", "optim.lr=1e-3,0.001"], "--vary optim.lr: 0.001 is there twice"),
        (["--vary", "optim.lr=1,2", "--vary", "optim.lr=3"], "--vary optim.lr is there twice"),
        (["--vary", "loss.nam=softmax"], "--vary loss.nam: no such key; did you mean loss.name?"),
        (["--vary", "loss.name=softmax,sigmod"], "loss.name=sigmod: loss.name=sigmod is not one of"),
        (["--vary", "optim.lr=1e-3,-1"], "optim.lr=-1: optim.lr=-1.0 must be above 0"),
        (["--vary", "run.seed=1,2"], "run.seed is the comparison's own"),
        (["--run.dir", "x"], "run.dir is the comparison's own"),
        (["--vary", "optim.lr=1,2", "--optim.lr", "3"], "--optim.lr is given and varied"),
        (["--steps", "9", "--vary", "train.max_steps=1,2"], "train.max_steps is the length of a run"),
        (["--steps", "9", "--seconds", "9"], "--steps and --seconds exclude each other"),
        (["--samples", "0"], "--samples 0 must be above 0"),
        (["--train.max_steps", "null", "--train.epochs", "2"], "the configuration counts epochs"),
        (["--seeds", "x"], "--seeds x: write how many"),
        (["--seeds", "0"], "--seeds 0: there must be at least one"),
        (["--seeds", "1,1"], "--seeds 1,1: there must be at least one, each once"),
        (["--seeds", f"0,{SEED}"], "in [0, 1,000,000)"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--launch", "acelerate launch"], "--launch acelerate launch: there is no program acelerate"),
        (["--metric", "shape/top2"], "--metric shape/top2: shape counts top1, "),
        (["--metric", "colour/top1"], "--metric colour/top1: the tasks are shape"),
        (["--tune", "optim.lr", "--vary", "optim.lr=1,2"], "--tune optim.lr and --vary optim.lr exclude each other"),
        (["--tune", "loss.name"], "--tune loss.name: list the values"),
        (["--tune", "optim.lr=1e-3,x"], "optim.lr=x is not a number"),
        (["--tune", "optim.lr", "--list"], "--list knows the runs once"),
        (["--seconds", "9", "--list"], "--list knows the runs once"),
        (["--sedes", "2"], "unknown key sedes"),
        (["--optim.rate", "2"], "unknown key optim.rate"),
    ],
)
def test_refused_before_anything_is_written(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert compare(*words) == 2
    line = capsys.readouterr().err
    assert line.startswith("miniclip compare: error: ") and told in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Processes


def test_the_grid_runs_seed_by_seed_and_nothing_twice(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--optim.weight_decay", "0.3"]
    assert compare(*words) == 0
    plan, out = plan_of(tmp_path / "out"), tmp_path / "out"
    assert [(one["variant"], one["seed"]) for one in plan["runs"]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert (
        plan["budget"] == {"kind": "steps", "value": 6} and plan["metric"] == "shape/top1" and plan["seeds"] == [0, 1]
    )
    assert [one["steps"] for one in plan["variants"]] == [6, 6]
    assert plan["variants"][1]["options"] == plan["variants"][1]["resolved"] == {"loss.name": "sigmoid"}
    assert plan["base"]["optim.weight_decay"] == 0.3
    for one in plan["runs"]:
        results = json.loads((out / one["dir"] / "results.json").read_text())
        assert results["seed"] == str(one["seed"]) and one["error"] is None
        log = (out / one["dir"] / "train.log").read_text()
        assert f"--loss.name={['softmax', 'sigmoid'][one['variant']]} " in log and "--optim.weight_decay 0.3" in log
    first = started(out)
    assert len(first) == 4 and set(first.values()) == {1}
    capsys.readouterr()
    assert compare(*words) == 0 and started(out) == first
    # further seeds and variants are added, behind those that are there
    assert compare("--vary", "loss.name=hinge,softmax,sigmoid", "--seeds", "3", "--optim.weight_decay", "0.3") == 0
    again = plan_of(out)
    assert [one["name"] for one in again["variants"]] == [f"loss.name={n}" for n in ("softmax", "sigmoid", "hinge")]
    assert len(again["runs"]) == 9 and [one for one in again["runs"] if one in plan["runs"]] == plan["runs"]
    assert started(out) == first + Counter({one["dir"][5:]: 1 for one in again["runs"] if one not in plan["runs"]})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--vary", "loss.name=softmax", "--seeds", "2"], "compares loss.name=sigmoid as well"),
        (["--vary", "loss.name=softmax,sigmoid", "--seeds", "1"], "has seed 1 as well"),
        (["--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--optim.lr", "3"], "has optim.lr=0.001, not 3.0"),
        (["--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--steps", "7"], "has budget=steps 6, not steps 7"),
        (["--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--tune", "optim.lr"], "has tune=None, not optim.lr"),
    ],
)
def test_another_grid_is_refused(
    compare: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert compare("--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--list") == 0
    capsys.readouterr()
    assert compare(*words) == 2
    assert told in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_a_file_that_changed_is_told(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("loss: {name: focal}\n")
    assert compare("--vary", f"config={over}", "--list") == 0
    over.write_text("loss: {name: hinge}\n")
    assert compare("--vary", f"config={over}", "--list") == 2
    assert "has loss.name=focal, not hinge" in capsys.readouterr().err


def test_other_folders_are_left_alone(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert compare() == 2 and "holds other things than a comparison" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "plan.json").write_text('{"variants": [{}]}')
    assert compare(out="bad") == 2 and "is not the plan of a comparison" in capsys.readouterr().err


def test_a_list_for_a_cluster_is_collected(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vary", "optim.lr=1e-3,2e-3", "--seeds", "0,4"]
    assert compare(*words, "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 4 and not (tmp_path / "out" / "runs").exists()
    for line in listed:
        subprocess.run(shlex.split(line), check=True, capture_output=True)
    assert compare(*words) == 0
    assert not started(tmp_path / "out")  # nothing was left to do
    assert "written: " in capsys.readouterr().out


def test_one_that_fails_is_named_and_the_others_go_on(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vary", "optim.lr=2,1e-3", "--seeds", "1"]
    assert compare(*words) == 2
    told = "loss nan, gradient norm nan at step 1"
    assert f"1 of 2 runs failed; optim.lr=2, seed 0: {told}" in capsys.readouterr().err
    out = tmp_path / "out"
    assert [one["error"] for one in plan_of(out)["runs"]] == [told, None]
    assert compare(*words) == 2 and started(out) == {"optim.lr=2-0": 2, "optim.lr=0.001-0": 1}


def test_one_that_is_killed_is_named_and_goes_on(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP", "0.1")
    killed, look = [], last_step

    def looked(folder: Path) -> int:
        """Kills the first run once it has made two steps."""
        if not killed and folder.name == "optim.lr=0.001-0" and look(folder) >= 2:
            (child,) = [one for one in psutil.Process().children() if str(FAKE) in one.cmdline()]
            killed.append(child.pid)
            child.kill()
        return look(folder)

    monkeypatch.setattr("miniclip.compare.runner.last_step", looked)
    words = ["--vary", "optim.lr=1e-3,2e-3", "--seeds", "1"]
    assert compare(*words) == 75
    assert "optim.lr=0.001, seed 0: killed by SIGKILL; its log is " in (told := capsys.readouterr().err)
    assert told.endswith("the same command goes on\n")
    assert compare(*words) == 0 and killed
    log = (tmp_path / "out" / "runs" / "optim.lr=0.001-0" / "train.log").read_text()
    first, second = (int(step) for step in re.findall(r"from step (\d+)", log))
    assert first == 0 and second >= 2
    assert [line["step"] for line in lines(tmp_path / "out" / "runs" / "optim.lr=0.001-0")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("jobs", "devices", "expected"), [(2, ["0", "1", "3"], {"0,3", "1"}), (3, ["5"], {"5"})])
def test_jobs_at_once_share_the_devices(tmp_path: Path, jobs: int, devices: list[str], expected: set[str]) -> None:
    machine = Machine(open_console(), jobs, [sys.executable, str(FAKE)], devices)
    own = [Job(f"{k}", tmp_path / f"{k}", 5, ["--run.seed=0"]) for k in range(2 * jobs)]
    ended: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_STEP", "0.05")
        begin = time.monotonic()
        assert machine.run(own, lambda job, error: ended.append(job.name)) == []
    assert sorted(ended) == [job.name for job in own] and all(finished(job) for job in own)
    logs = [(job.folder / "train.log").read_text() for job in own]
    assert {re.findall(r"devices (\S+),", log)[0] for log in logs} == expected
    assert time.monotonic() - begin < PATIENCE


ALONE = """
import sys
from pathlib import Path
from miniclip.common.console import open_console
from miniclip.common.stopping import Stopping
from miniclip.compare.runner import Job, Machine
with Stopping():
    machine = Machine(open_console(), 2, [sys.executable, sys.argv[1]])
    machine.run([Job(str(k), Path(sys.argv[2]) / str(k), 1000, ["--run.seed=0"]) for k in range(2)])
"""


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with two trainings at work."""
    command = [sys.executable, "-c", ALONE, str(FAKE), str(tmp_path)]
    variables = {**environment(), "FAKE_STEP": "0.02"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while min(last_step(tmp_path / str(k)) for k in range(2)) < 2:
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()
                time.sleep(0.02)
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_training_outlives_the_comparison(
    alone: subprocess.Popen[str], tmp_path: Path, number: signal.Signals
) -> None:
    """Even after kill -9 they end as those that were asked to, and what follows waits until they have."""
    children = psutil.Process(alone.pid).children()
    assert len(children) == 2
    alone.send_signal(number)
    if number == signal.SIGKILL:  # they are still at their end when the next one begins
        machine = Machine(open_console(), 2, [sys.executable, str(FAKE)])
        assert (
            machine.run(
                [Job(str(k), tmp_path / str(k), last_step(tmp_path / str(k)) + 5, ["--run.seed=0"]) for k in range(2)]
            )
            == []
        )
    else:
        printed, _ = alone.communicate(timeout=PATIENCE)
        assert "stopping 2 of the runs, which save; Ctrl-C ends them at once" in printed
    assert not psutil.wait_procs(children, timeout=60)[1]
    for k in range(2):
        steps = [line["step"] for line in lines(tmp_path / str(k))]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) < 1000


# Budget


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--samples", "100", "--vary", "data.batch_size=8,20"], [12, 5]),
        (["--steps", "9", "--vary", "data.batch_size=8,20"], [9, 9]),
        (["--vary", "train.max_steps=3,4"], [3, 4]),
        # a step of 0.1 s, and of 0.5
        (["--seconds", "2", "--vary", "loss.name=softmax,soft"], [20, 4]),
    ],
)
def test_what_each_is_given(compare: Callable[..., int], tmp_path: Path, words: list[str], steps: list[int]) -> None:
    assert compare(*words, "--seeds", "1") == 0
    out = tmp_path / "out"
    plan = plan_of(out)
    assert [one["steps"] for one in plan["variants"]] == steps and not (out / "trial").exists()
    assert [len(lines(out / one["dir"])) for one in plan["runs"]] == steps
    each = [0.1, 0.5] if "--seconds" in words else [None, None]
    assert [one["step_seconds"] for one in plan["variants"]] == pytest.approx(each)
    before = started(out)
    assert compare(*words, "--seeds", "1") == 0 and started(out) == before


def test_the_time_of_a_step_is_that_of_its_image_sides(config_file: str, tmp_path: Path) -> None:
    """0.1 s at the small side, for a quarter of the steps, and 0.5 s at the full one; each begins with a slow line."""
    words = ["--config", config_file, "--train.low_image_size", "16", "--train.low_share", "0.25", "--log.every", "7"]
    config = load_config(words)
    jobs = trials("a", config, words, tmp_path / "a")
    assert len(jobs) == ROUNDS and all("--train.low_share=0.5" in job.words for job in jobs)
    load_config([*jobs[0].words, f"--train.max_steps={jobs[0].steps}"])  # which a training takes
    for job in jobs:
        job.folder.mkdir()
        times = {5: 9.0, 10: 0.1, 15: 0.1, 20: 9.0, 25: 0.5, 30: 0.5}
        text = "".join(json.dumps({"step": k, "samples_per_s": 8 / one}) + "\n" for k, one in times.items())
        (job.folder / "metrics.jsonl").write_text(text)
    assert jobs[0].steps == 30
    assert step_seconds(config, [job.folder for job in jobs]) == pytest.approx(0.25 * 0.1 + 0.75 * 0.5)


# Tuning


def test_the_better_half() -> None:
    figures: dict[str, float | None] = {"a": 0.1, "b": None, "c": 0.3, "d": 0.3, "e": 0.2}
    assert better_half([*figures], figures.get, falls=False) == ["c", "d", "e"]
    assert better_half([*figures], figures.get, falls=True) == ["a", "e", "c"]
    assert better_half(["a", "b", "c", "d"], figures.get, falls=False) == ["c", "d"]
    assert better_half(["b"], figures.get, falls=True) == ["b"]


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ([], "shape/top1"),
        (["--eval.tasks", "null"], "retrieval/mean_r10"),
        (["--eval.every", "2", "--eval.best", "shape/macro_f1"], "shape/macro_f1"),
        (["--eval.tasks", '[{"kind": "probe", "data": "x", "task": "flowers"}]'], "flowers/linear"),
    ],
)
def test_the_figure_that_tunes(config_file: str, options: list[str], metric: str) -> None:
    assert str(metric_of(load_config(["--config", config_file, *options]), None)) == metric


def test_a_mean_of_both_ways(config_file: str, tmp_path: Path) -> None:
    config = load_config(["--config", config_file, "--eval.tasks", "null"])
    metric = metric_of(config, "retrieval/mean_r5")
    both = [f"eval/retrieval/{way}_r5" for way in ("image_to_text", "text_to_image")]
    told = [{"step": 1, both[0]: 1.0, both[1]: 1.0}, {"step": 2, both[0]: 0.25, both[1]: 0.5}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told) + '{"step": 4')
    assert metric.last(tmp_path) == 0.375
    assert metric_of(config, "retrieval/image_to_text_r5").last(tmp_path) == 0.25
    assert metric_of(config, "shape/top1").last(tmp_path) is None


def test_the_values_that_are_tried(config_file: str) -> None:
    config = load_config(["--config", config_file])
    assert tuned_values("optim.lr", config) == ("optim.lr", [0.00025, 0.0005, 0.001, 0.002, 0.004])
    assert tuned_values("optim.lr=1e-3,3e-3", config) == ("optim.lr", [0.001, 0.003])
    assert tuned_values("data.batch_size", config)[1] == [2, 4, 8, 16, 32]


def test_a_rate_is_tuned_by_halving(
    compare: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five a quarter of the steps, of the best three half of them; one that has no finite loss is the worst."""
    monkeypatch.setenv("FAKE_BEST", "3e-3")
    words = ["--vary", "loss.name=softmax,sigmoid", "--seeds", "2", "--steps", "40"]
    assert compare(*words, "--tune", "optim.lr=5e-4,1e-3,2e-3,4e-3,2") == 0
    out = tmp_path / "out"
    plan = plan_of(out)
    shares = [1 / (1 + abs(math.log(rate / 3e-3))) for rate in (5e-4, 1e-3, 2e-3, 4e-3)]
    for one in plan["variants"]:
        tried = one["tuned"]["tried"]
        assert [each["value"] for each in tried] == [5e-4, 1e-3, 2e-3, 4e-3, 2]
        assert [each["steps"] for each in tried] == [[10], [10, 20], [10, 20], [10, 20], [10]]
        assert [each["figures"][-1] for each in tried[:4]] == pytest.approx(shares) and tried[4]["figures"] == [None]
        assert one["tuned"]["key"] == "optim.lr" and one["tuned"]["chosen"] == one["options"]["optim.lr"] == 4e-3
        assert one["steps"] == 40
    tunings = list((out / "tune").glob("*/train.log"))
    assert len(tunings) == 2 * 8
    for log in tunings:
        command = shlex.split(log.read_text().partition("\n")[0])
        config = load_config(command[command.index("train") + 1 :])
        # so that the last step is evaluated, on the validation split
        assert config.eval.every == config.train.max_steps and config.eval.best == "shape/top1"
        assert config.run.seed == SEED and config.eval.tasks == ["shape"]
    for one in plan["runs"]:
        text = (out / one["dir"] / "train.log").read_text()
        assert "--optim.lr=0.004" in text and "--eval.best" not in text and "--train.max_steps=40" in text
    before = started(out)
    assert compare(*words, "--tune", "optim.lr=5e-4,1e-3,2e-3,4e-3,2") == 0 and started(out) == before
    # a further loss is tuned as the others were
    more = ["--vary", "loss.name=softmax,sigmoid,focal", *words[2:], "--tune", "optim.lr=5e-4,1e-3,2e-3,4e-3,2"]
    assert compare(*more) == 0 and (started(out) - before).total() == 8 + 2


def test_a_lower_figure_may_be_the_better(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare("--seeds", "1", "--metric", "shape/ece", "--tune", "optim.lr=1e-3,4e-3", "--steps", "8") == 0
    (one,) = plan_of(tmp_path / "out")["variants"]
    assert one["tuned"]["chosen"] == 1e-3 and [each["steps"] for each in one["tuned"]["tried"]] == [[2], [2]]


def test_without_any_figure(compare: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--tune", "optim.lr=2,3", "--seeds", "1") == 2
    assert "as configured: no value of optim.lr came to shape/top1; see the logs in " in capsys.readouterr().err


# Trainings


@pytest.mark.slow
def test_killed_and_again_equals_an_unbroken_run(config_file: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--config", config_file, "--eval.tasks", "[retrieval]", "--train.max_steps", "120"]
    words = [*options, "--seeds", "2", "--out", str(out)]
    command = [sys.executable, "-m", "miniclip", "compare", *words]
    first, second = (out / "runs" / f"as_configured-{seed}" for seed in range(2))
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        deadline = time.monotonic() + PATIENCE
        while last_step(first) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children()
        process.kill()
    assert len(children) == 1 and not finished(Job("", first, 120, []))
    assert single("compare", words) == 0
    assert started(out) == {first.name: 2, second.name: 1}
    plan = load_plan(out)
    assert plan is not None and [one.error for one in plan.runs] == [None, None]
    run(config_file, tmp_path / "whole", *options[2:])
    figures = [[line["loss"] for line in lines(folder) if "loss" in line] for folder in (first, tmp_path / "whole")]
    assert figures[0] == figures[1] and len(figures[0]) == 120
    assert (second / "results.json").stat().st_mtime > (first / "results.json").stat().st_mtime
