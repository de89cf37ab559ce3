"""eval.py in several processes gives what it gives in one, in every figure, and ends in all of them together."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from support.files import write_classes, write_images, write_jsonl
from support.group import together
from support.launching import ROOT, torchrun
from support.models import save_tiny
from torch import Tensor

from miniclip.cli.eval import main
from miniclip.common.stopping import REQUEUE
from miniclip.models import DualEncoder

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
    """Two models, labelled folders of 43 test images, 5 foreign images, and 13 captioned ones."""
    root = tmp_path_factory.mktemp("place")
    for seed in (0, 1):
        save_tiny(root / f"model{seed}", seed)
    for split, first, counts in (
        ("train", 0, [6] * 7),
        ("validation", 9, [2] * 7),
        ("test", 18, [5, 7, 6, 4, 8, 6, 7]),
    ):
        numbers = zip(CLASSES, range(first, 999, 99), counts, strict=False)
        write_classes(
            root / "labelled" / split, **{name: range(start, start + count) for name, start, count in numbers}
        )
    write_images(root / "foreign", 5)
    rows = []
    for k, name in enumerate(write_images(root / "captioned", 13)):
        own = [f"a {CLASSES[k % 7]} near {CLASSES[(3 * k) % 5]}", f"number {k}", "twice"][: 1 + k % 3]
        rows.append({"file_name": name, "captions": own, "split": "test"})
    write_jsonl(root / "captioned" / "metadata.jsonl", rows)
    return root


class Note(NamedTuple):
    """How much a process's model saw, how many processes there were then, the group's threads that are left."""

    images: int
    texts: int
    world: int
    left: int


def watched(arguments: list[str]) -> tuple[int, Note]:
    """eval.py in a process of its own."""
    seen, world = {"encode_image": 0, "encode_text": 0}, 0

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


def command(folder: Path, words: str, *more: str) -> list[str]:
    kind, *options = words.split()
    return [kind, "--precision", "fp32", *options, *more, "--device", "cpu", "--out", str(folder)]


def assert_same_files(one: Path, other: Path) -> dict[str, Any]:
    """results.json of one process, which is also that of several, but for time and command."""
    alone, several = (json.loads((folder / "results.json").read_text()) for folder in (one, other))
    assert set(alone) == {"command", "time", "versions", "precision", "results", "differences"}
    assert {**alone, "command": 0, "time": 0} == {**several, "command": 0, "time": 0}
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
    return alone


def both(processes: int, tmp_path: Path, *words: str) -> tuple[dict[str, Any], list[Note]]:
    """results.json of one process, which is also that of several; and the notes of those."""
    one, several = tmp_path / "one", tmp_path / f"of{processes}"
    if not one.exists():
        assert main(command(one, *words)) == 0
    done = together(processes, watched, command(several, *words))
    notes = [outcome.value[1] for outcome in done]
    for (code, note), _, complaints in done:
        assert code == 0, complaints
        assert note.left == 0, "a thread of the processes' group outlives it"
        assert note.world in (0, processes) and (note.world or not note.images)
    # the main process alone speaks
    spoken = ["results.json and images are in" in outcome.output for outcome in done]
    assert spoken == [True] + [False] * (processes - 1)
    return assert_same_files(one, several), notes


@pytest.mark.slow
def test_two_processes_classify_as_one(place: Path, tmp_path: Path) -> None:
    """As processes of the tests' group, and as torchrun starts them."""
    base = f"zeroshot --checkpoint {place}/model0 --data {place}/labelled --foreign {place}/foreign --batch_size 4"
    words = (f"{base} --templates", "a {}", "one {}")
    written, notes = both(2, tmp_path, *words)
    result = written["results"][0]
    assert result["figures"]["top1"]["n"] == 43 and result["figures"]["auroc_entropy"]["n"] == 48
    assert len(result["details"]["templates"]) == 2 and result["figures"]["top1"]["low"] is not None
    # batches 0, 2, ... of the 11 and of the foreign two belong to the first
    assert [(note.images, note.texts) for note in notes] == [(6 * 4 - 1 + 4, 8), (5 * 4 + 1, 6)]
    done = torchrun(2, ROOT / "eval.py", command(tmp_path / "torchrun", *words), timeout=240)
    assert done.returncode == 0 and done.stdout.count("results.json and images are in") == 1, done.stderr
    assert_same_files(tmp_path / "one", tmp_path / "torchrun")


def lost(arguments: list[str]) -> int:
    """eval.py in a process; the second is killed at its first image."""
    if os.environ["RANK"] == "1":
        DualEncoder.encode_image = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return main(arguments)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_is_named(place: Path, tmp_path: Path) -> None:
    words = f"zeroshot --checkpoint {place}/model0 --data {place}/labelled --batch_size 4"
    first, _ = together(2, lost, command(tmp_path / "out", words), lost=[1])
    assert first.value == REQUEUE and "no sign of life from rank 1 (" in first.complaints, first.complaints
    assert not (tmp_path / "out").exists()


def test_compared_models(place: Path, tmp_path: Path) -> None:
    base = f"zeroshot --checkpoint {place}/model0 --compare {place}/model1 --data {place}/labelled --batch_size 5"
    written, notes = both(2, tmp_path, f"{base} --templates", "this is {}", "{}")
    first, second = (result["figures"]["top1"]["value"] for result in written["results"])
    (apart,) = written["differences"]
    assert apart["figures"]["top1"]["value"] == second - first != 0
    assert sum(note.images for note in notes) == 2 * 43 and all(note.images > 20 for note in notes)


def test_three_processes(place: Path, tmp_path: Path) -> None:
    """With foreign images, with sentences as classes, and with fewer batches than processes."""
    for words, expected in (
        # seven batches, the last of one: 0, 3, 6 | 1, 4 | 2, 5; one batch of foreign images
        (f"zeroshot --data {place}/labelled --foreign {place}/foreign --batch_size 7 --precision bf16", [20, 14, 14]),
        ("zeroshot --task relation --size 17 --batch_size 3", [6, 6, 5]),
        (f"retrieval --data {place}/captioned --caption_column captions --limit 2", [2, 0, 0]),
    ):
        _, notes = both(3, tmp_path / words[-3:], f"{words} --checkpoint {place}/model1")
        assert [note.images for note in notes] == expected


@pytest.mark.parametrize(("processes", "size"), [(2, 3), (3, 2)])
def test_retrieval(processes: int, size: int, place: Path, tmp_path: Path) -> None:
    base = f"retrieval --checkpoint {place}/model0 --data {place}/captioned --caption_column captions"
    written, notes = both(processes, tmp_path, f"{base} --batch_size {size}")
    details = written["results"][0]["details"]
    assert (details["n_images"], details["n_texts"], details["shared_texts"]) == (13, 25, 4)
    assert sum(note.images for note in notes) == 13 and all(note.images >= 3 for note in notes)
    assert sum(note.texts for note in notes) == 22  # "twice" is embedded once


def test_probe(place: Path, tmp_path: Path) -> None:
    words = f"probe --checkpoint {place}/model0 --compare {place}/model1 --data {place}/labelled --batch_size 5"
    for processes in (2, 3):
        written, notes = both(processes, tmp_path, f"{words} --shots 1 4 --draws 2")
        figures = written["results"][0]["figures"]
        assert {"linear", "knn", "linear_4_shot"} <= set(figures) and figures["linear"]["n"] == 43
        assert sum(note.images for note in notes) == 2 * (42 + 14 + 43) and all(note.images > 50 for note in notes)


@pytest.mark.parametrize(
    ("words", "processes", "n"),
    [("zeroshot", 3, 38), ("retrieval --caption_column captions", 2, 10), ("probe --shots", 2, 38)],
)
def test_unreadable_images(words: str, processes: int, n: int, place: Path, tmp_path: Path) -> None:
    """With a share that may be bad they are left out and named in the same order; without, all processes end."""
    pairs = words.startswith("retrieval")
    data = shutil.copytree(place / ("captioned" if pairs else "labelled"), tmp_path / "data")
    files = [data / f"{k}.png" for k in (3, 4, 9)]
    if not pairs:
        files = [sorted((data / "test" / name).iterdir())[k] for name, k in zip(CLASSES, (2, 0, 1, 3, 6), strict=False)]
    for file in files:
        file.write_bytes(b"no image")
    broken = [file.name if pairs else f"{file.parent.name}/{file.name}" for file in files]
    words = f"{words} --data {data} --checkpoint {place}/model0 --batch_size 2"
    written, notes = both(processes, tmp_path, f"{words} --max_bad_fraction 0.5")
    assert next(iter(written["results"][0]["figures"].values()))["n"] == n
    named = " ".join(written["results"][0]["notes"])
    places = [named.index(name) for name in broken]
    assert places == sorted(places) and f"{len(broken)} images cannot be read" in named
    assert all(note.images for note in notes)

    for outcome in together(processes, main, command(tmp_path / "none", words)):
        assert outcome.value == 2 and "eval.py: error: " in outcome.complaints
        assert any(name in outcome.complaints for name in broken)
    assert not (tmp_path / "none").exists()


def test_what_every_process_sees_ends_all(place: Path) -> None:
    words = f"zeroshot --checkpoint {place}/model0 --task shape --device cuda:7"
    for (code, note), output, complaints in together(2, watched, words.split()):
        assert code == 2 and output == "" and note.images == 0
        assert "each of several processes has a device of its own" in complaints
