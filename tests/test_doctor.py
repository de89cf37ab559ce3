"""Sick configurations have their one verdict, healthy ones none; by a clock that goes by what is asked of it."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from support.files import write_jsonl, write_parquet

from miniclip.cli.train import run
from miniclip.config import load_config
from miniclip.data.loader import Batch
from miniclip.data.scenes.source import SceneSource
from miniclip.doctor.data import Stage
from miniclip.doctor.fit import Fit
from miniclip.doctor.fit import _no_fit as no_fit
from miniclip.doctor.fit import _told as fit_words
from miniclip.doctor.kept import FIRST_LOOK
from miniclip.doctor.main import doctor_main
from miniclip.doctor.pairs import Course, permutation_z
from miniclip.doctor.pairs import _course as course_words
from miniclip.doctor.trial import Trial
from miniclip.models import DualEncoder, create_model

LR = 3e-3
SMALL = f"""
model: {{embed_dim: 32, context_length: 32, text_width: 32, text_heads: 2, text_layers: 1, image_encoder: vit,
  image_size: 32, patch_size: 8, image_width: 64, image_heads: 2, image_layers: 1}}
data: {{source: shapes, size: 400, batch_size: 32, augment: none}}
optim: {{lr: {LR}, warmup_steps: 5}}
train: {{max_steps: 6, precision: fp32, cpu_threads: 1}}
eval: {{size: 128}}
log: {{progress: false}}
"""
RESNET = ["--model.image_encoder", "resnet", "--model.image_layers", "[1,1,1,1]", "--model.patch_size", "null"]
RESNET += ["--model.image_width", "8"]
SIGMOID = ["--loss.name", "sigmoid", "--model.logit_bias_init", "balanced"]
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "grey", "purple"]
STEP = 0.03  # seconds of a step by the clock of these tests
SHORT = ["--seconds", str(60 * STEP)]

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Doctor]:
    """Runs it on SMALL with options; checks that exit code and JSON agree, and returns the JSON."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("miniclip.doctor.main.PAIRS", 32)
    monkeypatch.setattr("miniclip.doctor.fit.FEWEST_STEPS", 60)
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * STEP / 3)  # which is asked three times a step
    monkeypatch.setattr("miniclip.doctor.trial.time", clock)
    gc.freeze()  # each training collects garbage, and all that is imported need not be looked through
    config, run_dir, file = (tmp_path / name for name in ("small.yaml", "run", "found.json"))
    config.write_text(SMALL)

    def run(*options: str) -> dict[str, Any]:
        # a seed of the caller's, to see that the outcome does not hang on one
        seed = os.environ.get("DOCTOR_SEED", "0")
        arguments = ["--config", str(config), "--run.dir", str(run_dir), "--run.seed", seed, *options]
        code = doctor_main([*arguments, "--json", str(file)])
        shown = capsys.readouterr()
        assert code in (0, 1), shown.err
        found: dict[str, Any] = json.loads(file.read_text())
        assert code == len(found["verdicts"]) and found["healthy"] == (code == 0) and not run_dir.exists()
        assert ("healthy: start the long run" in shown.out) == (code == 0 and found["all_told"]), shown.out
        print(shown.out)
        return found

    yield run
    gc.unfreeze()


def kinds(found: dict[str, Any]) -> list[str]:
    return [verdict["kind"] for verdict in found["verdicts"]]


def write_pairs(folder: Path, images: Sequence[Image.Image], captions: Sequence[str], held_out: int = 100) -> list[str]:
    """A table of files and captions, the last ones for validation; returns the option that names it."""
    folder.mkdir()
    rows = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        image.save(folder / f"{i}.png")
        split = "train" if i < len(images) - held_out else "validation"
        rows.append({"file_name": f"{i}.png", "caption": caption, "split": split})
    return ["--data.source", write_jsonl(folder / "pairs.jsonl", rows)]


def scenes(count: int) -> tuple[list[Image.Image], list[str]]:
    source = SceneSource("train", count, seed=1, image_size=32)
    return [source.image(i) for i in range(count)], [source.captions(i)[0] for i in range(count)]


# ---- the data


def test_sick_data(doctor: Doctor, tmp_path: Path) -> None:
    images, captions = scenes(100)
    grey = [Image.new("RGB", (32, 32), (90, 90, 90))] * 100
    placeholder = ["A photo." if i % 3 else caption for i, caption in enumerate(captions)]
    lenient = ["--data.max_bad_fraction", "1"]
    for i, (of_images, of_captions, options, kind) in enumerate(
        (
            (grey, captions, [], "constant_images"),
            (images, placeholder, [], "constant_captions"),
            (images, [" "] * 100, [], "empty_captions"),
            (images, [" "] * 100, lenient, "empty_captions"),
            (images, ["."] * 100, [], "empty_captions"),
            (images, ["!!! ..."] * 100, lenient, "empty_captions"),
        )
    ):
        found = doctor(*write_pairs(tmp_path / str(i), of_images, of_captions, 40), *options)
        assert kinds(found) == [kind], i
        assert kind != "constant_captions" or '"a photo' in found["verdicts"][0]["evidence"][0]


def test_one_image_in_a_table_without_splits(doctor: Doctor, tmp_path: Path) -> None:
    """Splits are carved off by image, and there is only one."""
    columns = {"image": [Image.new("RGB", (32, 32), (90, 90, 90))] * 100, "caption": scenes(100)[1]}
    write_parquet(tmp_path / "data" / "train.parquet", columns)
    found = doctor("--data.source", str(tmp_path / "data"))
    assert kinds(found) == ["constant_images"] and "all 100 images" in found["verdicts"][0]["evidence"][0]


def test_files(doctor: Doctor, tmp_path: Path) -> None:
    """Noisy squares, each with its colour's name: many equal captions, which are one positive. Three are broken."""
    rng, names = np.random.default_rng(0), [COLOURS[i % 8] for i in range(300)]
    pixels = [np.clip(rng.normal(ImageColor.getrgb(name), 30, (32, 32, 3)), 0, 255).astype(np.uint8) for name in names]
    options = write_pairs(tmp_path / "data", [Image.fromarray(one) for one in pixels], names)
    for i in (3, 7, 150):
        (tmp_path / "data" / f"{i}.png").write_bytes(b"no picture")
    for allowed, expected in (("0.001", ["unreadable"]), ("0.04", [])):
        found = doctor(*options, "--data.max_bad_fraction", allowed)
        assert kinds(found) == expected
        figures, notes = found["stages"]["data"]["figures"], found["stages"]["data"]["notes"]
        bad = figures["share_unreadable"] * figures["pictures_looked_at"]
        assert figures["caption_columns"] == "caption" and bad == pytest.approx(3)
        assert "counted as positives" in notes[0] and len(notes) == (1 if expected else 2)


# ---- the trainings


@pytest.mark.parametrize("options", [[], SIGMOID, RESNET], ids=["softmax", "sigmoid", "resnet"])
def test_healthy_scenes(doctor: Doctor, options: list[str]) -> None:
    found = doctor(*options)
    data, speed = (found["stages"][name]["figures"] for name in ("data", "speed"))
    (course,) = found["stages"]["pairs"]["runs"]
    assert kinds(found) == [] and data["pictures"] == 400
    assert course["z"] > 6 and course["loss"] < course["shuffled"]
    assert speed == {"training": "about 0 s: 6 steps of 0.01 s", "precision": "fp32: as asked for"}


def test_shuffled_captions(doctor: Doctor, tmp_path: Path) -> None:
    images, captions = scenes(240)
    random.Random(0).shuffle(captions)
    found = doctor(*write_pairs(tmp_path / "data", images, captions), *SHORT)
    assert kinds(found) == ["shuffled"]
    assert found["stages"]["overfit"]["runs"][0]["outcome"] == "fits"
    assert all(abs(run["z"]) < 5 for run in found["stages"]["pairs"]["runs"])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--optim.lr", str(100 * LR), *SHORT], "rate_too_high"),
        (["--optim.lr", str(100 * LR), *SHORT, *RESNET], "rate_too_high"),
        # so low that also in many steps neither tower's change comes near what counts as moved: no fault of one tower
        (["--optim.lr", "1e-11", *SHORT], "no_overfit"),
        (["--optim.lr", "1e38", "--optim.warmup_steps", "0"], "not_finite"),
    ],
    ids=["high", "high-resnet", "low", "not-finite"],
)
def test_rates(doctor: Doctor, options: list[str], kind: str) -> None:
    found = doctor(*options)
    runs = found["stages"]["overfit"]["runs"]
    assert kinds(found) == [kind] and (kind != "no_overfit" or len(runs) == 3)
    assert kind != "not_finite" or {run["outcome"] for run in runs} == {"not finite"}


def test_a_training_without_a_loss_says_so_in_words() -> None:
    fit, course = Fit(1e38, outcome="not finite"), Course(1e38, finite=False)
    told = "R@1 0% and 0% after 0 steps in 0.0 s: then no number"
    assert [fit_words(fit), course_words(course)] == [
        told,
        "0.0 deviations above chance after 0 steps (0.0 epochs) in 0.0 s, then no number",
    ]
    fit.start = fit.end = 1.5
    assert fit_words(fit) == f"loss 1.50 -> 1.50 of chance, {told}"


@pytest.mark.parametrize("tower", ["text", "image"])
def test_frozen_tower(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tower: str) -> None:
    def frozen(*arguments: Any) -> DualEncoder:
        model = create_model(*arguments)
        for name, parameter in model.named_parameters():
            if name not in ("logit_scale", "logit_bias") and name.startswith("visual.") == (tower == "image"):
                parameter.requires_grad_(False)
        return model

    monkeypatch.setattr("miniclip.models.start.create_model", frozen)
    found = doctor(*SHORT)
    assert kinds(found) == ["one_tower"]
    assert found["verdicts"][0]["title"] == f"the {tower} encoder is not learning"


def test_a_rate_that_only_a_few_pairs_put_up_with(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out pairs at chance, but not at a tenth of the rate: the pairs are not shuffled."""

    def watched(setting: Any, pairs: Any, held_out: Any, lr: float, steps: int | None = None) -> Course:
        return Course(lr, steps=80, z=9.0 if lr < LR else 1.0, sure=lr < LR)

    monkeypatch.setattr("miniclip.doctor.pairs.watch", watched)
    assert kinds(doctor()) == ["rate_too_high"]


def test_what_cannot_be_told(doctor: Doctor) -> None:
    """Too few held-out pairs, and a machine that is too slow, are no illness."""
    found = doctor("--eval.size", "20", "--model.context_length", "8")
    assert kinds(found) == [] and not found["all_told"]
    assert found["stages"]["data"]["figures"]["tokens_longest"] > 8
    assert any("cut at 8 tokens" in note for note in found["stages"]["data"]["notes"])
    assert "20 held-out pairs are too few" in found["stages"]["pairs"]["notes"][0]
    found = doctor("--seconds", "0.001")
    assert kinds(found) == [] and not found["all_told"]
    assert "Too few steps" in found["stages"]["overfit"]["notes"][0]


def test_the_time_of_a_run(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step with small images takes a second and one with large ones five."""
    seen, step, seconds = list[int](), Trial.step, {16: 1.0, 32: 5.0}

    def timed(self: Trial, batch: Batch) -> Any:
        seen.append(batch.image.shape[-1])
        return step(self, batch)

    clock = SimpleNamespace(perf_counter=lambda: sum(seconds[size] for size in seen))
    monkeypatch.setattr("miniclip.doctor.trial.Trial", type("Timed", (Trial,), {"step": timed}))
    monkeypatch.setattr("miniclip.doctor.trial.time", clock)
    options = ["--train.low_image_size", "16", "--train.low_share", "0.5", "--train.small_vocabulary", "true"]
    found = doctor(*options, "--train.max_steps", "100", "--model.patch_size", "16")
    told = found["stages"]["speed"]["figures"]["training"]
    assert told == "about 5 min: 50 steps of 1 s, then 50 of 5 s" and seen == [16] * 4 + [32] * 4


def test_permutation_z_against_all_permutations() -> None:
    similarity = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    sums = [sum(float(similarity[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(5))]
    expected = (float(similarity.trace()) - np.mean(sums)) / np.std(sums)
    assert permutation_z(similarity) == pytest.approx(expected, rel=1e-6)
    assert permutation_z(torch.eye(9)) == pytest.approx(8)
    assert permutation_z(torch.ones(4, 4)) == 0


# ---- a model that is not fresh


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that begin from a model which has learnt what scenes are, and guard it."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "small.yaml").write_text(SMALL)
    options = ["--run.dir", str(folder / "run"), "--train.max_steps", "150", "--eval.tasks", "[]"]
    run(load_config(["--config", str(folder / "small.yaml"), *options]))
    return ["--model.init", str(folder / "run" / "model"), "--eval.guard", "[colour]"]


def test_a_model_that_keeps_what_it_knew(doctor: Doctor, known: list[str]) -> None:
    """With a locked tower, which is meant not to learn, and with another that learns at a rate of its own."""
    options = [*SHORT, "--optim.lr", str(LR / 10), "--model.lock_text", "true", "--optim.lr_image", str(LR / 20)]
    found = doctor(*known, *options)
    stages = found["stages"]
    assert kinds(found) == [] and list(stages) == ["data", "locked", "overfit", "views", "speed", "kept", "pairs"]
    assert set(stages["locked"]["figures"].values()) == {0.0}
    assert stages["overfit"]["figures"]["change_of_text_tower"] == 0
    assert stages["views"]["figures"] == {"share_known_again_at_32_px": 1.0}
    (course,) = stages["kept"]["runs"]
    assert set(course["falls"]) == {"colour, top-1", "held-out pairs, mean R@10"} and course["steps"] > 10
    assert course["before"]["colour, top-1"] > 0.5 and not course["lost"]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_rate_that_destroys(doctor: Doctor, known: list[str], monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """Also without a guard, by held-out pairs; and its tenth is tried beside it, that of a single tower as well."""
    rates = list[list[float | None]]()
    learnt = Stage("overfit", "", {}, [], [])
    monkeypatch.setattr("miniclip.doctor.fit.check_fit", lambda *_: learnt)  # a few pairs may bear that rate, or not
    made = Trial.__init__

    def noted(self: Trial, *arguments: Any) -> None:
        made(self, *arguments)
        rates.append([self.config.optim.lr, self.config.optim.lr_text])

    monkeypatch.setattr("miniclip.doctor.trial.Trial.__init__", noted)
    options = known if guarded else known[:2]
    found = doctor(*options, "--optim.lr", "0.03", "--optim.lr_text", "0.01")
    (verdict,) = found["verdicts"]
    task = "colour, top-1" if guarded else "held-out pairs, mean R@10"
    assert verdict["kind"] == "forgets" and task in verdict["evidence"][0]
    assert "optim.layer_decay" in verdict["advice"][1]
    main, control = found["stages"]["kept"]["runs"]
    assert task in main["lost"] and main["steps"] == control["steps"] == FIRST_LOOK
    assert main["after"][task] < main["before"][task] / 2
    assert control["after"][task] > main["after"][task] and rates[-1] == pytest.approx([0.003, 0.001])
    assert main["before"] == control["before"]  # each training begins from what was given


@pytest.mark.parametrize("wrong", ["statistics", "weights"])
def test_a_tower_that_does_not_stay_locked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "statistics":
        monkeypatch.setattr("miniclip.models.cut.Tower.train", torch.nn.Module.train)
    else:
        monkeypatch.setattr("miniclip.training.step.lock_", lambda *_: None)
    found = doctor(*RESNET, "--model.lock_image", "2")
    monkeypatch.undo()
    (verdict,) = found["verdicts"]
    assert verdict["kind"] == "locked" and verdict["title"].endswith("does not stay locked (model.lock_image=2)")
    assert len(verdict["evidence"]) == 2 and "after 3 steps" in verdict["evidence"][0]


def test_images_that_the_tower_does_not_know(doctor: Doctor, known: list[str]) -> None:
    """Squares of a single patch, in part of the training."""
    options = ["--train.low_image_size", "8", "--train.low_share", "0.5", "--optim.lr", str(LR / 10)]
    found = doctor(*known, *options)
    (verdict,) = found["verdicts"]
    assert verdict["kind"] == "preprocessing" and "at 8 pixels" in verdict["evidence"][0]
    assert "train.low_image_size" in verdict["advice"][0]
    assert found["stages"]["views"]["figures"]["share_known_again_at_32_px"] == 1


def test_the_time_of_a_run_on_features(doctor: Doctor, known: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the steps from the features on, and of the features beside it."""
    seen, step = list[list[int]](), Trial.step

    def noted(self: Trial, batch: Batch, watched: bool = False) -> Any:
        seen.append(list(batch.image.shape[1:]))
        return step(self, batch, watched)

    monkeypatch.setattr("miniclip.doctor.trial.Trial.step", noted)
    locked = [*known, *SHORT, "--optim.lr", str(LR / 10), "--model.lock_image", "true"]
    figures = doctor(*locked)["stages"]["speed"]["figures"]
    assert figures["training"].startswith("about ") and figures["features_before_it"].startswith("about 0 s: 0.")
    assert seen.count([3, 32, 32]) > 10 < seen.count([32])  # pairs and what is locked on images, the rest on features
    assert "features_before_it" not in doctor(*locked, "--data.cache", "false")["stages"]["speed"]["figures"]


def test_too_little_that_may_learn() -> None:
    main = Fit(1e-3, steps=400, start=1.0, end=0.9, outcome="stalled")
    verdict = no_fit(main, [main], locked=True)
    assert verdict.kind == "no_overfit" and "model.lock_image" in verdict.advice[0]


# ---- the command


def test_what_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)
    for options, said in (
        (["--optim.rate", "1"], "did you mean"),
        (["--optim.lr", "-1"], "optim.lr"),
        (["--data.source", "/nowhere/at/all.csv"], "/nowhere/at/all.csv"),
        (["--data.batch_size", "401"], "use a batch of at most 400"),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "abc"], "--seconds abc is not a number"),
        (["--seconds"], "--seconds lacks its value"),
        (["--secnds", "3"], "unknown key secnds; did you mean seconds?"),
        (["--json", "/nowhere/found.json"], "--json"),
    ):
        assert doctor_main(["--config", str(config), *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("doctor: error: ") and said in error and error.count("\n") == 1
    assert doctor_main(["--data.batch_size", "401", "--config", str(config)]) == 2  # the options win here, too
    assert "use a batch of at most 400" in capsys.readouterr().err


def test_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """python -m miniclip.doctor, by its own clock, and what it leaves."""
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    options = ["--config", "small.yaml", "--json", "found.json", "--data.size", "96"]
    monkeypatch.setattr("sys.argv", ["doctor", *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("miniclip.doctor", run_name="__main__")
    assert stop.value.code == 0 and "healthy: start the long run" in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())
    assert found["healthy"] and list(found["stages"]) == ["data", "overfit", "speed", "pairs"]
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml", "found.json"}
