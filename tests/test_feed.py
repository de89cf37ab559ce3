"""What the loop is fed with: every pair once an epoch, over processes, workers and resumes, mapped and streamed."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support.launching import ROOT, torchrun
from test_prepared import bad_files, good_files
from test_training import TINY, lines, losses, run

from miniclip.cli.train import train_main
from miniclip.config import ConfigError, DataConfig, load_config
from miniclip.data.augment import Augment
from miniclip.data.loader import TrainingPairs, training_loader
from miniclip.data.sampler import TrainSampler
from miniclip.data.scenes.source import SceneSource
from miniclip.data.stream.held_out import open_pairs
from miniclip.models import resolve
from miniclip.models.tokenizer import Tokenizer
from miniclip.training.accelerator import build_accelerator
from miniclip.training.batches import MapBatches

MANY = 100_000


class Numbers:
    """So many pictures of 2 x 2 pixels, told apart by their colours, without a file."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> Image.Image:
        colour = index % 256, index // 256 % 256, index // 65536
        return Image.new("RGB", (2, 2), colour)

    def captions(self, index: int) -> list[str]:
        return ["a"]

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 1), (3, 0), (3, 2)])
def test_every_id_once_an_epoch_of_100_000(world: int, workers: int) -> None:
    """Decoded, cropped and batched as in training; the ids are read back from the pixels, and from image_id."""
    pairs = TrainingPairs(Numbers(MANY), Augment(2, "none"), Tokenizer(), seed=1)
    steps, stop = MANY // 1000, 37

    def ids(rank: int, first_step: int, until: int) -> list[list[int]]:
        batches = TrainSampler(MANY, 1000, seed=1, steps=until, first_step=first_step, rank=rank, world=world)
        config = DataConfig(batch_size=1000, workers=workers)
        found = []
        for batch in training_loader(pairs, batches, config, pin=False):
            colours = batch.image[:, :, 0, 0].long()
            shown = colours[:, 0] + 256 * colours[:, 1] + 65536 * colours[:, 2]
            assert torch.equal(shown, batch.image_id)
            found.append(shown.tolist())
        return found

    parts = [ids(rank, 0, stop) + ids(rank, stop, steps) for rank in range(world)]  # stopped and resumed
    sizes = {tuple(map(len, step)) for step in zip(*parts, strict=True)}
    assert sizes == {tuple(1000 // world + (rank < 1000 % world) for rank in range(world))}
    seen = Counter(chain.from_iterable(chain.from_iterable(parts)))
    assert len(seen) == MANY and set(seen.values()) == {1}
    whole = [list(chain.from_iterable(part[step] for part in parts)) for step in range(steps)]
    expected = [[row for _, row in batch] for batch in TrainSampler(MANY, 1000, seed=1, steps=steps)]
    assert whole == expected  # the same global batches, whoever makes them


# ---- in the loop


def write_tars(folder: Path, shards: int, each: int) -> str:
    """Scenes in shards; the last one is for validation and test."""
    scenes = SceneSource("train", shards * each, image_size=40)
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as tar:
            for index in range(shard * each, (shard + 1) * each):
                stream = io.BytesIO()
                scenes.image(index).save(stream, "PNG")
                for kind, data in (("png", stream.getvalue()), ("txt", scenes.captions(index)[0].encode())):
                    member = tarfile.TarInfo(f"{index:06}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / f"{{000..{shards - 1:03}}}.tar")


@pytest.fixture
def stream_file(tmp_path: Path) -> str:
    values: dict[str, Any] = {**TINY, "eval": {"size": 6}}
    values["data"] = {"source": write_tars(tmp_path / "tars", 5, 12), "batch_size": 8, "streaming": True}
    values["data"] |= {"shuffle_buffer": 48}
    path = tmp_path / "stream.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_stream_trains_and_resumes(stream_file: str, tmp_path: Path) -> None:
    """Stopped in the second epoch and gone on: the same losses and weights to the bit; evaluation on the last shard."""
    options = ["--optim.schedule", "constant", "--train.max_steps", "9", "--eval.every", "4", "--log.matrix_every", "5"]
    options += ["--log.matrix_size", "4"]
    results = run(stream_file, tmp_path / "whole", *options)
    (found,) = (entry for entry in results["results"] if entry["task"] == "retrieval")
    assert 2 <= found["details"]["n_images"] <= 6
    # all of the last shard, which training leaves out; validation and test share it
    config = replace(load_config(["--config", stream_file]).data)
    held = [open_pairs(config, role, seed=0, image_size=32, eval_size=99) for role in ("validation", "test")]
    names = [[re.findall(r"\d{6}", pairs.name(i))[0] for i in range(len(pairs))] for pairs in held]
    assert sorted(names[0] + names[1]) == [f"{i:06}" for i in range(48, 60)]
    assert any("eval/retrieval/image_to_text_r1" in line for line in lines(tmp_path / "whole"))
    run(stream_file, tmp_path / "parts", *options, "--train.max_steps", "7")
    run(stream_file, tmp_path / "parts", *options, "--run.resume", "true")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    epochs = [line["epoch"] for line in lines(tmp_path / "whole") if "epoch" in line]
    assert epochs == sorted(epochs) and epochs[-1] >= 1  # 48 pairs and 72 drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.max_steps", "null", "--train.epochs", "2"], "set train.max_steps"),
        (["--train.small_vocabulary", "true"], "needs to know all captions beforehand"),
        (["--data.workers", "30"], "data.workers=24"),
        (["--data.caption_column", "text"], "has no column text"),
    ],
)
def test_what_a_stream_cannot_do(
    stream_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert train_main(["--config", stream_file, "--run.dir", str(tmp_path / "no"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_another_stream_is_not_resumed(stream_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--run.dir", str(tmp_path / "run"), "--eval.tasks", "[]"]
    assert train_main(["--config", stream_file, *options, "--train.max_steps", "2"]) == 0
    shard = sorted((tmp_path / "tars").iterdir())[1]
    shard.rename(shard.with_name("0010.tar"))
    changed = ["--data.source", str(tmp_path / "tars" / "*.tar"), "--run.resume", "true"]
    assert train_main(["--config", stream_file, *options, *changed]) == 2
    capsys.readouterr()
    # the configuration says the same, the shards do not
    (tmp_path / "tars" / "0010.tar").rename(shard)
    (tmp_path / "tars" / "004.tar").rename(tmp_path / "tars" / "005.tar")
    source = yaml.safe_load(Path(stream_file).read_text())["data"]["source"]
    assert train_main(["--config", stream_file, *options, "--run.resume", "true"]) == 2
    assert source  # the missing shard is named
    assert "004.tar" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False], ids=["streamed", "mapped"])
def test_processes_share_every_batch_and_others_go_on(stream_file: str, tmp_path: Path, streaming: bool) -> None:
    """Three real processes, then two that go on, then one: the batches of one process that never stopped."""
    values = yaml.safe_load(Path(stream_file).read_text())
    values["data"] |= {"streaming": streaming, "workers": 1, "cache_dir": str(tmp_path / "cache")}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))

    def feed(world: int, first_step: int, steps: int, state: Path | None = None) -> tuple[list[list[int]], Path]:
        folder = tmp_path / f"{world} from {first_step} to {steps}"
        folder.mkdir()
        arguments = [str(config), str(folder), str(first_step), str(steps), *([str(state)] if state else [])]
        result = torchrun(world, ROOT / "tests" / "feed_worker.py", arguments, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]
        return [sorted(chain(*parts)) for parts in zip(*ranks, strict=True)], folder / "state.json"

    whole, _ = feed(1, 0, 12)
    first, state = feed(3, 0, 5)
    second, state = feed(2, 5, 9, state)
    third, _ = feed(1, 9, 12, state)
    assert first + second + third == whole
    counts = Counter(chain(*whole))
    # 12 steps of 8: mapped are 54 pairs, 6 steps an epoch; streamed are the 48 of four shards, twice
    assert len(counts) >= 48 and max(counts.values()) <= (3 if streaming else 2)


def test_shares_of_two_sources(config_file_of_two: tuple[str, list[int]], tmp_path: Path) -> None:
    """A quarter of every batch from the small source, seen through the pixels' own shade."""
    config_file, sizes = config_file_of_two
    results = run(config_file, tmp_path / "run", "--eval.tasks", "[]", "--train.max_steps", "4")
    assert results["training"]["steps"] == 4
    config = load_config(["--config", config_file, "--run.dir", str(tmp_path / "x")])
    config = replace(config, model=resolve(config.model))
    feed = MapBatches(config, build_accelerator(config)[0])
    first = sum(sizes[:1])
    for _, batch in zip(range(6), feed.start(0, {}), strict=False):
        assert int((batch.image_id < first).sum()) == 2 and len(batch.image_id) == 8


def test_weights_and_mixing_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"data\.weights_for=sampler draws by weight, data\.mixing by source"):
        DataConfig(source=["a", "b"], mixing=[1, 1], weights="column", weight_column="w", weights_for="sampler")


@pytest.fixture
def config_file_of_two(tmp_path: Path) -> tuple[str, list[int]]:
    sources, sizes = [], []
    for name, count in (("dark", 12), ("light", 60)):
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for index in range(count):
            pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            split = "train" if index >= 4 else ("validation", "test")[index % 2]
            rows.append({"file_name": f"{index}.png", "caption": f"a {name} picture {index}", "split": split})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(str(folder))
        sizes.append(count - 4)
    values = {**TINY, "data": {"source": sources, "mixing": [1, 3], "batch_size": 8}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path), sizes


# ---- bad pictures


@pytest.mark.parametrize("options", [[], ["--data.cache", "false"], ["--data.streaming", "true"]])
def test_a_set_with_5_percent_of_broken_pictures_trains_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """13 kinds, each once among 260 files; as files beside a table, or inside of tars."""
    bad = bad_files()
    good = [content for content, _ in good_files().values()]
    contents = [good[i % len(good)] for i in range(13 * 19)]
    for place, name in enumerate(bad):
        contents.insert(20 * place + 7, name)  # type: ignore[arg-type]
    streaming = "--data.streaming" in options
    folder = tmp_path / "data"
    folder.mkdir()
    expected = []
    rows = []
    for number, content in enumerate(contents):
        data, name = (bad[content], content) if isinstance(content, str) else (content, f"{number}.png")
        path = folder / name
        if isinstance(content, str) and not (streaming and data is None):
            expected.append(name)
        if data is not None:
            path.write_bytes(data)
        elif not streaming and name.startswith("folder"):
            path.mkdir()
        rows.append({"file_name": name, "caption": f"picture {number}", "split": "train"})
    for number in range(4):
        (folder / f"held{number}.png").write_bytes(good[number])
        split = ("validation", "test")[number % 2]
        rows.append({"file_name": f"held{number}.png", "caption": f"picture {number}", "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(folder)
    if streaming:
        source = str(tmp_path / "*.tar")
        for shard, part in (("train-0", contents[:120]), ("train-1", contents[120:]), ("test-0", good[:4])):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
                for number, content in enumerate(part):
                    data = bad[content] if isinstance(content, str) else content
                    if data is None:
                        continue  # what is missing in a tar has no name there
                    for kind, value in (("png", data), ("txt", b"a picture")):
                        member = tarfile.TarInfo(f"{shard}-{number:04}.{kind}")
                        member.size = len(value)
                        tar.addfile(member, io.BytesIO(value))
    config = tmp_path / "config.yaml"
    values = {**TINY, "data": {"source": source, "batch_size": 26, "max_bad_fraction": 0.06, "shuffle_buffer": 24}}
    values["train"] = {**TINY["train"], "max_steps": 14}
    config.write_text(yaml.safe_dump(values))
    tasks = ["--data.validation_split", "test"] if streaming else []
    results = run(str(config), tmp_path / "run", *options, *tasks, "--eval.tasks", "[]")
    named = results["training"]["bad"]
    # a second of the epochs may have begun, in which a stream meets them again, by the same names
    assert len(named) == len(set(named)) == len(expected)
    if not streaming:
        assert sorted(name.split(" ")[0].rstrip(":") for name in named) == sorted(expected)
    assert lines(tmp_path / "run")[-1]["bad_pictures"] == len(expected)
    if not streaming:
        strict = ["--data.max_bad_fraction", "0.04", "--run.overwrite", "true", *options, "--eval.tasks", "[]"]
        assert train_main(["--config", str(config), "--run.dir", str(tmp_path / "run"), *strict]) == 2
        assert "more than data.max_bad_fraction=0.04 allows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stream_over_uneven_processes_trains_as_one_process_does(stream_file: str, tmp_path: Path) -> None:
    """25 lanes are 9, 8 and 8: the shares of a step differ, and change from step to step; the losses do not."""
    options = [
        "--optim.schedule",
        "constant",
        "--train.max_steps",
        "6",
        "--eval.tasks",
        "[]",
        "--data.batch_size",
        "10",
    ]
    run(stream_file, tmp_path / "one", *options)
    arguments = ["--config", stream_file, "--run.dir", str(tmp_path / "three"), *options]
    result = torchrun(3, ROOT / "train.py", arguments, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    figures = ("r1_image_to_text", "cosine_positive", "grad_norm")
    for ours, theirs in zip(lines(tmp_path / "three"), lines(tmp_path / "one"), strict=True):
        assert [ours[name] for name in figures] == pytest.approx([theirs[name] for name in figures], rel=1e-3)
