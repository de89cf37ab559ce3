"""eval.py in several processes gives what it gives in one, in every figure, and ends in all of them together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.launching import ROOT, torchrun

from miniclip.cli.eval import main
from miniclip.models import create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")

# eval.py as it is; each process notes at its end how many pictures and texts its model saw
SCRIPT = """
import atexit, json, os, runpy, sys
from pathlib import Path
import torch.distributed as dist
from miniclip.models import DualEncoder

note = {"pictures": 0, "texts": 0, "batches": 0, "world": 0}

def watched(name, what):
    original = getattr(DualEncoder, name)
    def counting(self, batch, *arguments, **keywords):
        note[what] += len(batch)
        note["batches"] += what == "pictures"
        note["world"] = dist.get_world_size()
        return original(self, batch, *arguments, **keywords)
    setattr(DualEncoder, name, counting)

watched("encode_image", "pictures")
watched("encode_text", "texts")

def write():
    note["left"] = sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))
    (Path(os.environ["NOTES"]) / f"{os.environ['RANK']}.json").write_text(json.dumps(note))

atexit.register(write)
sys.argv[0] = "eval.py"
runpy.run_path(os.environ["PROGRAM"], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have, so that sums have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, labelled folders of 43 test pictures, 5 foreign pictures, and 13 captioned ones."""
    root = tmp_path_factory.mktemp("place")
    small = {"embed_dim": 16, "image_width": 32, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "vocab_size": 49408, "context_length": 32}
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_model(root / f"model{seed}", create_model("tiny-vit", image_size=32, **small, **text), Preprocess(32))
    draws = np.random.default_rng(0)

    def paint(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(path)

    for split, counts in (("train", [6] * 7), ("validation", [2] * 7), ("test", [5, 7, 6, 4, 8, 6, 7])):
        for name, count in zip(CLASSES, counts, strict=True):
            for k in range(count):
                paint(root / "labelled" / split / name / f"{k}.png")
    for k in range(5):
        paint(root / "foreign" / f"{k}.png")
    lines = []
    for k in range(13):
        paint(root / "captioned" / f"{k}.png")
        own = [f"a {CLASSES[k % 7]} near {CLASSES[(3 * k) % 5]}", f"number {k}", "twice"][: 1 + k % 3]
        lines.append(json.dumps({"file_name": f"{k}.png", "captions": own, "split": "test"}))
    (root / "captioned" / "metadata.jsonl").write_text("\n".join(lines))
    return root


def damage(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:60])


def launched(processes: int, folder: Path, arguments: list[str]) -> tuple[int, str, str, list[dict[str, int]]]:
    """Exit code, stdout and stderr of eval.py in so many processes, and what each of them has noted."""
    folder.mkdir()
    script = folder / "eval_and_note.py"
    script.write_text(SCRIPT)
    variables = {"NOTES": str(folder), "PROGRAM": str(ROOT / "eval.py")}
    done = torchrun(processes, script, arguments, variables, timeout=240)
    notes = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    assert len(list(folder.glob("*.json"))) == processes
    return done.returncode, done.stdout, done.stderr, notes


def both(processes: int, tmp_path: Path, arguments: list[str]) -> tuple[dict[str, Any], list[dict[str, int]]]:
    """results.json of one process, which is also that of several (but for time and command); and their notes."""
    command, *options = arguments
    arguments = [command, "--precision", "fp32", *options, "--device", "cpu", "--out"]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    shared = [*arguments, str(tmp_path / "several")]
    code, out, err, notes = launched(processes, tmp_path / "notes", shared)
    assert code == 0, err
    assert not any(note["left"] for note in notes), "a thread of the processes' group outlives it"
    assert [note["world"] for note in notes if note["batches"]] == [processes] * sum(n["batches"] > 0 for n in notes)
    assert out.count("results.json and pictures are in") == 1  # the main process alone speaks
    one, several = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "several"))
    assert set(one) == {"command", "time", "versions", "precision", "results", "differences"}
    for alone, together in zip(one["results"], several["results"], strict=True):
        for key, value in alone.items():
            assert together[key] == value, key
    assert {**one, "command": 0, "time": 0} == {**several, "command": 0, "time": 0}
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "several").iterdir()}
    return one, notes


def test_two_processes_classify_as_one(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--data", str(place / "labelled")]
    arguments += ["--templates", "a {}", "one {}", "--foreign", str(place / "foreign"), "--batch_size", "4"]
    written, notes = both(2, tmp_path, arguments)
    result = written["results"][0]
    assert result["figures"]["top1"]["n"] == 43 and result["figures"]["auroc_entropy"]["n"] == 48
    assert len(result["details"]["templates"]) == 2 and result["figures"]["top1"]["low"] is not None
    # batches 0, 2, ... of the 11 and of the foreign two belong to the first
    assert [note["pictures"] for note in notes] == [6 * 4 - 1 + 4, 5 * 4 + 1]
    assert [note["texts"] for note in notes] == [8, 6] and all(note["world"] == 2 for note in notes)


@pytest.mark.slow
def test_compared_models(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--compare", str(place / "model1")]
    arguments += ["--data", str(place / "labelled"), "--templates", "simple7", "--batch_size", "5"]
    written, notes = both(2, tmp_path, arguments)
    first, second = (result["figures"]["top1"]["value"] for result in written["results"])
    (apart,) = written["differences"]
    assert apart["figures"]["top1"]["value"] == second - first != 0
    assert sum(note["pictures"] for note in notes) == 2 * 43 and all(note["pictures"] > 20 for note in notes)


@pytest.mark.slow
def test_three_processes_with_foreign_pictures(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model1"), "--data", str(place / "labelled")]
    arguments += ["--foreign", str(place / "foreign"), "--batch_size", "7", "--precision", "bf16"]
    _, notes = both(3, tmp_path, arguments)
    # seven batches, the last of one: 0, 3, 6 | 1, 4 | 2, 5; one batch of foreign pictures
    assert [note["pictures"] for note in notes] == [15 + 5, 14, 14]


@pytest.mark.slow
def test_relation(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--task", "relation", "--size", "17"]
    _, notes = both(3, tmp_path, [*arguments, "--batch_size", "3"])
    assert sum(note["pictures"] for note in notes) == 17 and all(note["pictures"] for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "size"), [(2, "3"), (3, "2")])
def test_retrieval(processes: int, size: str, place: Path, tmp_path: Path) -> None:
    arguments = ["retrieval", "--checkpoint", str(place / "model0"), "--data", str(place / "captioned")]
    arguments += ["--caption_column", "captions", "--batch_size", size]
    written, notes = both(processes, tmp_path, arguments)
    details = written["results"][0]["details"]
    assert (details["n_images"], details["n_texts"], details["shared_texts"]) == (13, 25, 4)
    assert sum(note["pictures"] for note in notes) == 13 and all(note["pictures"] >= 3 for note in notes)
    assert sum(note["texts"] for note in notes) == 22  # "twice" is embedded once


@pytest.mark.slow
def test_more_processes_than_batches(place: Path, tmp_path: Path) -> None:
    arguments = ["retrieval", "--checkpoint", str(place / "model1"), "--data", str(place / "captioned")]
    _, notes = both(3, tmp_path, [*arguments, "--caption_column", "captions", "--limit", "2"])
    assert [note["pictures"] for note in notes] == [2, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_probe(processes: int, place: Path, tmp_path: Path) -> None:
    arguments = ["probe", "--checkpoint", str(place / "model0"), "--data", str(place / "labelled")]
    arguments += ["--shots", "1", "4", "--draws", "2", "--batch_size", "5", "--compare", str(place / "model1")]
    written, notes = both(processes, tmp_path, arguments)
    figures = written["results"][0]["figures"]
    assert {"linear", "knn", "linear_4_shot"} <= set(figures) and figures["linear"]["n"] == 43
    assert sum(note["pictures"] for note in notes) == 2 * (42 + 14 + 43) and all(n["pictures"] > 50 for n in notes)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes"), [("zeroshot", 3), ("retrieval", 2), ("probe", 2)])
def test_unreadable_pictures(kind: str, processes: int, place: Path, tmp_path: Path) -> None:
    """With a share that may be bad they are left out and named in the same order; without, all processes end."""
    data = tmp_path / "data"
    if kind == "retrieval":
        shutil.copytree(place / "captioned", data)
        for k in (3, 4, 9):
            damage(data / f"{k}.png")
        arguments = ["retrieval", "--data", str(data), "--caption_column", "captions"]
    else:
        shutil.copytree(place / "labelled", data)
        for name in ("ant/2", "bee/0", "bee/1", "dog/3", "gnu/6"):
            damage(data / "test" / f"{name}.png")
        arguments = [kind, "--data", str(data), *(["--shots"] if kind == "probe" else [])]
    arguments += ["--checkpoint", str(place / "model0"), "--batch_size", "2"]
    written, notes = both(processes, tmp_path, [*arguments, "--max_bad_fraction", "0.5"])
    n = {"zeroshot": 38, "retrieval": 10, "probe": 38}[kind]
    assert next(iter(written["results"][0]["figures"].values()))["n"] == n
    named = " ".join(written["results"][0]["notes"])
    broken = ["3.png", "4.png", "9.png"] if kind == "retrieval" else ["ant/2", "bee/0", "bee/1", "dog/3", "gnu/6"]
    places = [named.index(name) for name in broken]
    assert places == sorted(places) and f"{len(broken)} pictures cannot be read" in named
    assert all(note["pictures"] for note in notes)

    end = [*arguments, "--device", "cpu", "--out", str(tmp_path / "none")]
    code, _, err, _ = launched(processes, tmp_path / "again", end)  # the time limit is that of `launched`
    assert code != 0 and not (tmp_path / "none").exists()
    assert "eval.py: error: " in err and any(name in err for name in broken)


@pytest.mark.slow
def test_what_every_process_sees_ends_all(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--task", "shape", "--device", "cuda:7"]
    code, out, err, notes = launched(2, tmp_path / "notes", arguments)
    assert code != 0 and out == "" and "each of several processes has a device of its own" in err
    assert [note["pictures"] for note in notes] == [0, 0]
