"""eval.py in several processes gives what it gives in one, in every figure, and ends in all of them together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from support.group import together
from support.launching import ROOT, torchrun
from torch import Tensor

from miniclip.cli.eval import main
from miniclip.models import DualEncoder, create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox", "gnu")


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


class Note(NamedTuple):
    """How much a process's model saw, how many processes there were then, the group's threads that are left."""

    pictures: int
    texts: int
    world: int
    left: int


def watched(arguments: list[str]) -> tuple[int, Note]:
    """eval.py in a process of its own."""
    seen = {"encode_image": 0, "encode_text": 0}
    world = 0

    def watch(name: str) -> None:
        original = getattr(DualEncoder, name)

        def counting(self: DualEncoder, batch: Tensor, *rest: Any, **keywords: Any) -> Tensor:
            nonlocal world
            seen[name], world = seen[name] + len(batch), dist.get_world_size()
            return original(self, batch, *rest, **keywords)

        setattr(DualEncoder, name, counting)

    for name in seen:
        watch(name)
    code = main(arguments)
    left = sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))
    return code, Note(*seen.values(), world, left)


def command(tmp_path: Path, arguments: list[str], folder: str) -> list[str]:
    name, *options = arguments
    return [name, "--precision", "fp32", *options, "--device", "cpu", "--out", str(tmp_path / folder)]


def assert_same_files(tmp_path: Path, folder: str) -> dict[str, Any]:
    """results.json of one process, which is also that of several, but for time and command."""
    one, several = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", folder))
    assert set(one) == {"command", "time", "versions", "precision", "results", "differences"}
    for alone, other in zip(one["results"], several["results"], strict=True):
        for key, value in alone.items():
            assert other[key] == value, key
    assert {**one, "command": 0, "time": 0} == {**several, "command": 0, "time": 0}
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / folder).iterdir()}
    return one


def both(processes: int, tmp_path: Path, arguments: list[str]) -> tuple[dict[str, Any], list[Note]]:
    """results.json of one process, which is also that of several; and the notes of those."""
    if not (tmp_path / "one").exists():
        assert main(command(tmp_path, arguments, "one")) == 0
    done = together(processes, watched, command(tmp_path, arguments, f"of{processes}"))
    notes = [outcome.value[1] for outcome in done]
    for (code, note), _, complaints in done:
        assert code == 0, complaints
        assert note.left == 0, "a thread of the processes' group outlives it"
        assert note.world in (0, processes) and (note.world or not note.pictures)
    # the main process alone speaks
    assert ["results.json and images are in" in outcome.output for outcome in done] == [
        True,
        *[False] * len(done[1:]),
    ]
    return assert_same_files(tmp_path, f"of{processes}"), notes


@pytest.mark.slow
def test_two_processes_classify_as_one(place: Path, tmp_path: Path) -> None:
    """As processes of the tests' group, and as torchrun starts them."""
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--data", str(place / "labelled")]
    arguments += ["--templates", "a {}", "one {}", "--foreign", str(place / "foreign"), "--batch_size", "4"]
    written, notes = both(2, tmp_path, arguments)
    result = written["results"][0]
    assert result["figures"]["top1"]["n"] == 43 and result["figures"]["auroc_entropy"]["n"] == 48
    assert len(result["details"]["templates"]) == 2 and result["figures"]["top1"]["low"] is not None
    # batches 0, 2, ... of the 11 and of the foreign two belong to the first
    assert [note.pictures for note in notes] == [6 * 4 - 1 + 4, 5 * 4 + 1]
    assert [note.texts for note in notes] == [8, 6]
    done = torchrun(2, ROOT / "eval.py", command(tmp_path, arguments, "torchrun"), timeout=240)
    assert done.returncode == 0 and done.stdout.count("results.json and images are in") == 1, done.stderr
    assert_same_files(tmp_path, "torchrun")


def test_compared_models(place: Path, tmp_path: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--compare", str(place / "model1")]
    arguments += ["--data", str(place / "labelled"), "--templates", "this is {}", "{}", "--batch_size", "5"]
    written, notes = both(2, tmp_path, arguments)
    first, second = (result["figures"]["top1"]["value"] for result in written["results"])
    (apart,) = written["differences"]
    assert apart["figures"]["top1"]["value"] == second - first != 0
    assert sum(note.pictures for note in notes) == 2 * 43 and all(note.pictures > 20 for note in notes)


def test_three_processes(place: Path, tmp_path: Path) -> None:
    """With foreign pictures, with sentences as classes, and with fewer batches than processes."""
    arguments = ["zeroshot", "--checkpoint", str(place / "model1"), "--data", str(place / "labelled")]
    arguments += ["--foreign", str(place / "foreign"), "--batch_size", "7", "--precision", "bf16"]
    _, notes = both(3, tmp_path / "foreign", arguments)
    # seven batches, the last of one: 0, 3, 6 | 1, 4 | 2, 5; one batch of foreign pictures
    assert [note.pictures for note in notes] == [15 + 5, 14, 14]
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--task", "relation", "--size", "17"]
    _, notes = both(3, tmp_path / "relation", [*arguments, "--batch_size", "3"])
    assert sum(note.pictures for note in notes) == 17 and all(note.pictures for note in notes)
    arguments = ["retrieval", "--checkpoint", str(place / "model1"), "--data", str(place / "captioned")]
    _, notes = both(3, tmp_path / "few", [*arguments, "--caption_column", "captions", "--limit", "2"])
    assert [note.pictures for note in notes] == [2, 0, 0]


@pytest.mark.parametrize(("processes", "size"), [(2, "3"), (3, "2")])
def test_retrieval(processes: int, size: str, place: Path, tmp_path: Path) -> None:
    arguments = ["retrieval", "--checkpoint", str(place / "model0"), "--data", str(place / "captioned")]
    arguments += ["--caption_column", "captions", "--batch_size", size]
    written, notes = both(processes, tmp_path, arguments)
    details = written["results"][0]["details"]
    assert (details["n_images"], details["n_texts"], details["shared_texts"]) == (13, 25, 4)
    assert sum(note.pictures for note in notes) == 13 and all(note.pictures >= 3 for note in notes)
    assert sum(note.texts for note in notes) == 22  # "twice" is embedded once


def test_probe(place: Path, tmp_path: Path) -> None:
    arguments = ["probe", "--checkpoint", str(place / "model0"), "--data", str(place / "labelled")]
    arguments += ["--shots", "1", "4", "--draws", "2", "--batch_size", "5", "--compare", str(place / "model1")]
    for processes in (2, 3):
        written, notes = both(processes, tmp_path, arguments)
        figures = written["results"][0]["figures"]
        assert {"linear", "knn", "linear_4_shot"} <= set(figures) and figures["linear"]["n"] == 43
        assert sum(note.pictures for note in notes) == 2 * (42 + 14 + 43) and all(n.pictures > 50 for n in notes)


@pytest.mark.parametrize(("kind", "processes"), [("zeroshot", 3), ("retrieval", 2), ("probe", 2)])
def test_unreadable_pictures(kind: str, processes: int, place: Path, tmp_path: Path) -> None:
    """With a share that may be bad they are left out and named in the same order; without, all processes end."""
    data = shutil.copytree(place / ("captioned" if kind == "retrieval" else "labelled"), tmp_path / "data")
    broken = ["3.png", "4.png", "9.png"] if kind == "retrieval" else ["ant/2", "bee/0", "bee/1", "dog/3", "gnu/6"]
    for name in broken:
        picture = data / name if kind == "retrieval" else data / "test" / f"{name}.png"
        picture.write_bytes(picture.read_bytes()[:60])
    arguments = [kind, "--data", str(data), "--checkpoint", str(place / "model0"), "--batch_size", "2"]
    arguments += {"zeroshot": [], "retrieval": ["--caption_column", "captions"], "probe": ["--shots"]}[kind]
    written, notes = both(processes, tmp_path, [*arguments, "--max_bad_fraction", "0.5"])
    n = {"zeroshot": 38, "retrieval": 10, "probe": 38}[kind]
    assert next(iter(written["results"][0]["figures"].values()))["n"] == n
    named = " ".join(written["results"][0]["notes"])
    places = [named.index(name) for name in broken]
    assert places == sorted(places) and f"{len(broken)} images cannot be read" in named
    assert all(note.pictures for note in notes)

    for outcome in together(processes, main, command(tmp_path, arguments, "none")):
        assert outcome.value == 2 and "eval.py: error: " in outcome.complaints
        assert any(name in outcome.complaints for name in broken)
    assert not (tmp_path / "none").exists()


def test_what_every_process_sees_ends_all(place: Path) -> None:
    arguments = ["zeroshot", "--checkpoint", str(place / "model0"), "--task", "shape", "--device", "cuda:7"]
    for (code, note), output, complaints in together(2, watched, arguments):
        assert code == 2 and output == "" and note.pictures == 0
        assert "each of several processes has a device of its own" in complaints
