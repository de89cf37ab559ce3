"""eval.py interpolate: the weights between two models, against weights that are averaged by hand and evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.files import write_classes, write_images, write_jsonl
from support.group import together
from support.models import save_tiny, tiny_model
from test_init import SAME, config_of, save_open_clip, save_transformers

import miniclip
from miniclip.cli.eval import main
from miniclip.cli.train import run
from miniclip.evaluation.encode import fingerprint
from miniclip.evaluation.result import difference, figures_json, main_figure
from miniclip.evaluation.tasks import Retrieval, Task, Zeroshot
from miniclip.models import create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one kind, named images and images of classes."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("a", "b")):
        save_tiny(root / name, seed)
    for split in ("test", "validation"):
        write_classes(root / "classes" / split, red=range(9), green=range(80, 90), blue=range(160, 167))
    rows = [{"file_name": name, "captions": [f"one {k}", f"two {k}"]} for k, name in enumerate(images(root))]
    write_jsonl(root / "captioned" / "metadata.jsonl", [{**row, "split": "test"} for row in rows])
    return root


def images(root: Path) -> list[str]:
    return write_images(root / "captioned", 24)


def command(root: Path, out: Path, *more: str) -> list[str]:
    words = ["interpolate", "--from", str(root / "a"), "--to", str(root / "b"), "--out", str(out), "--device", "cpu"]
    words += ["--precision", "fp32"]
    return [*words, "--task", f"retrieval:{root / 'captioned'}", "--keep", str(root / "classes"), *more]


def halfway(root: Path, share: float) -> Any:
    """By hand."""
    (one, preprocess, tokenizer), (other, _, _) = (miniclip.load(root / name) for name in "ab")
    mixed = {
        k: ((1 - share) * v.double() + share * other.state_dict()[k].double()).float()
        for k, v in one.state_dict().items()
    }
    if share in (0, 1):
        mixed = (one, other)[int(share)].state_dict()
    model = tiny_model()
    model.load_state_dict(mixed)
    return model.eval(), preprocess, tokenizer


def evaluated(task: Task, model: Any, label: str) -> Any:
    from miniclip.evaluation.encode import EncodeOptions

    return main_figure(task.run(model, task.open(32), EncodeOptions(), 0, label))


def test_every_share_by_hand(made: Path, tmp_path: Path, capsys: Shown) -> None:
    """Figures, their paired differences from both ends, the choice and the written model."""
    assert main(command(made, tmp_path / "out", "--alphas", "0:1:0.5")) == 0
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    tasks = {"captioned": Retrieval(data=str(made / "captioned")), "classes": Zeroshot(data=str(made / "classes"))}
    found: dict[float, dict[str, Any]] = {}
    for share in (0.0, 0.5, 1.0):
        model = halfway(made, share)
        found[share] = {name: evaluated(task, model, name) for name, task in tasks.items()}
        for name, expected in found[share].items():
            (one,) = [
                r
                for r in values["results"]
                if r["task"] == name and r["model"]["name"].endswith(f" + {share:g} {made / 'b'}")
            ]
            assert one["figures"] == figures_json(expected.figures)
            assert one["data"]["fingerprint"] == expected.fingerprint
            if share != 0.5:
                assert one["model"]["fingerprint"] == fingerprint(model[0])
    for one in values["differences"]:
        than, of = (found[float(one[key])][one["task"]] for key in ("than", "of"))
        assert one["figures"] == figures_json(difference(than, of))
    assert len(values["differences"]) == 12
    means = {s: sum(x[next(iter(x.figures))] for x in each.values()) / 2 for s, each in found.items()}
    chosen = max(means, key=lambda share: (means[share], -share))
    about = values["interpolation"]
    assert about == {
        "from": str(made / "a"),
        "to": str(made / "b"),
        "new": ["captioned"],
        "kept": ["classes"],
        "alpha": chosen,
    }
    model, _, _ = miniclip.load(tmp_path / "out")
    for name, value in halfway(made, chosen)[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert Image.open(tmp_path / "out" / "interpolation.png").size[0] > 1000
    shown = capsys.readouterr().out
    assert "captioned, 24 images" in shown and f"{chosen:g} chosen" in shown and "mean R@10" in shown


def test_a_share_that_is_asked_for(made: Path, tmp_path: Path, capsys: Shown) -> None:
    """Its weights are written, on another split, in place of those of the same command; not in place of others'."""
    mapping = f"{{kind: zeroshot, data: {made / 'classes'}, task: colours, templates: '{{}}'}}"
    out = tmp_path / "out"
    words = ["interpolate", "--from", str(made / "a"), "--to", str(made / "b"), "--out", str(out), "--device", "cpu"]
    words += ["--precision", "fp32"]
    words += ["--task", mapping, "shape", "--alphas", "0,1", "--split", "validation"]
    for share in ("0.3", "0.25"):
        assert main([*words, "--alpha", share]) == 0
        model, _, _ = miniclip.load(out / "model")
        for name, value in halfway(made, float(share))[0].state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    values = json.loads((out / "results.json").read_text())
    assert {(r["task"], r["data"]["split"]) for r in values["results"]} == {
        ("colours", "validation"),
        ("shape", "validation"),
    }
    assert len(values["results"]) == 6 and values["interpolation"]["alpha"] == 0.25
    capsys.readouterr()
    assert main([*words, "--keep", str(made / "classes")]) == 2
    assert "holds other results" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_from_a_published_model(made: Path, tmp_path: Path, kind: str) -> None:
    """And a run that began from it: the figure at alpha 0 is that of the library's own code, whose bias, of a sigmoid
    loss, a run with softmax has left out."""
    if kind == "hf":
        name = save_transformers(tmp_path / "theirs")
    else:
        name = save_open_clip(tmp_path / "theirs", SAME["sigmoid"])
    run(config_of(tmp_path, name, "--eval.tasks", "[]", "--train.max_steps", "2", "--optim.lr", "3e-2"))
    words = ["interpolate", "--from", name, "--to", str(tmp_path / "run"), "--alphas", "1", "--precision", "fp32"]
    assert main([*words, "--task", str(made / "classes"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    first, last = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for one, model in ((first, name), (last, str(tmp_path / "run"))):
        assert one["figures"] == figures_json(
            evaluated(Zeroshot(data=str(made / "classes")), miniclip.load(model), "classes").figures
        )
    assert first["model"]["fingerprint"] != last["model"]["fingerprint"]


@pytest.mark.slow
def test_two_processes_are_one(made: Path, tmp_path: Path) -> None:
    assert main(command(made, tmp_path / "one", "--alphas", "0.5")) == 0
    for outcome in together(2, main, command(made, tmp_path / "two", "--alphas", "0.5")):
        assert outcome.value == 0, outcome.complaints
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["results"] == two["results"] and one["differences"] == two["differences"]
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def wider(folder: Path) -> None:
    save_tiny(folder, width=64)


def squashed(folder: Path) -> None:
    save_model(folder, tiny_model(), Preprocess(32, resize="squash"))


def shorter(folder: Path) -> None:
    save_model(folder, create_model(replace(tiny_model().config, context_length=16)), Preprocess(32))


def quick(folder: Path) -> None:
    save_model(folder, create_model(replace(tiny_model().config, activation="quick_gelu")), Preprocess(32))


def lacking(folder: Path) -> None:
    save_tiny(folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "visual.proj": state["visual.proj"][:, :3].contiguous()}, folder / "model.safetensors")


UNLIKE: list[tuple[Callable[[Path], None], str]] = [
    (wider, "--from and --to differ in image_width (32 and 64)"),
    (squashed, "--from and --to differ in preprocessing: resize (crop and squash)"),
    (shorter, "--from and --to differ in context_length (32 and 16)"),
    (quick, "--from and --to differ in activation (gelu and quick_gelu)"),
    (lacking, "does not hold the model"),
]


@pytest.mark.parametrize(("make", "words"), UNLIKE, ids=[make.__name__ for make, _ in UNLIKE])
def test_models_of_two_kinds(made: Path, tmp_path: Path, capsys: Shown, make: Any, words: str) -> None:
    make(tmp_path / "other")
    assert main([*command(made, tmp_path / "out"), "--to", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


REFUSED = [
    (["--alphas", "0:2:0.5"], "--alphas 0:2:0.5 must be FIRST:LAST:STEP or numbers with commas between, in [0, 1]"),
    (["--alphas", "0:1:0"], "--alphas 0:1:0 must be"),
    (["--alphas", "0:1"], "--alphas 0:1 must be"),
    (["--alphas", "half"], "--alphas half must be"),
    (["--alphas", "0:1:1e-9"], "use at most 101"),
    (["--alpha", "1.5"], "--alpha 1.5 is a share of --to; use a value in [0, 1]"),
    (["--alpha", "x"], "--alpha x is not a number"),
    (["--task", "shap"], "--task shap is none of these: a folder of classes, KIND:DATA"),
    (["--task", "shap"], "did you mean shape?"),
    (["--task", "retrieval"], "--task retrieval is none of these"),
    (["--task", "{kind: retrieval}"], "--task: {'kind': 'retrieval'} lacks data"),
    (["--task", "{kind: retrieval"], "--task {kind: retrieval is no mapping such as"),
    (
        ["--task", "{kind: retrieval, data: x, tamplates: y}"],
        "--task: unknown key tamplates of a task; did you mean temp",
    ),
    (["--task", "shape", "shape"], "--task: two tasks are called ['shape']"),
    (["--task", "shape", "--keep", "shape"], "--task and --keep both have shape"),
    (["--from", "/no/such"], "/no/such"),
    (["--task", "retrieval:/no/such"], "/no/such"),
]


@pytest.mark.parametrize(("more", "words"), REFUSED, ids=[" ".join(more)[:40] for more, _ in REFUSED])
def test_refused(made: Path, tmp_path: Path, capsys: Shown, more: list[str], words: str) -> None:
    assert main([*command(made, tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
