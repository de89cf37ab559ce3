"""The batches of a run: every pair once an epoch, over processes, workers and resumes, mapped and streamed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.broken import bad_files, good_files
from support.files import encoded, write_beside, write_csv, write_images, write_jsonl, write_tar
from support.group import together
from support.sources import noise
from test_training import TINY, lines, run

from miniclip.cli.train import train_main
from miniclip.config import Config, ConfigError, DataConfig, load_config
from miniclip.data.scenes.source import SceneSource
from miniclip.data.stream.held_out import open_pairs
from miniclip.models import resolve
from miniclip.models.start import open_start
from miniclip.training.accelerator import build_accelerator
from miniclip.training.batches import open_batches

# ---- in the loop


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in lines(run_dir) if "loss" in line]


def write_config(path: Path, **sections: Any) -> str:
    path.write_text(yaml.safe_dump({**TINY, **sections}))
    return str(path)


@pytest.fixture
def stream_file(tmp_path: Path) -> str:
    """Five tars of 12 scenes, of which the last one is for validation and test."""
    scenes = SceneSource("train", 60, image_size=40)
    rows = [(f"{i:06}", {"png": encoded(scenes.image(i)), "txt": scenes.captions(i)[0].encode()}) for i in range(60)]
    for shard in range(5):
        write_tar(tmp_path / "tars" / f"{shard:03}.tar", rows[12 * shard : 12 * shard + 12])
    data = {"source": str(tmp_path / "tars/{000..004}.tar"), "batch_size": 8, "streaming": True, "shuffle_buffer": 48}
    return write_config(tmp_path / "stream.yaml", eval={"size": 6}, data=data)


def test_a_stream_trains_and_resumes(stream_file: str, tmp_path: Path) -> None:
    """Stopped in the second epoch and gone on: the same losses and weights to the bit; evaluation on the last shard."""
    options = ["--optim.schedule", "constant", "--train.max_steps", "9", "--eval.every", "4", "--log.matrix_every", "5"]
    options += ["--log.matrix_size", "4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    results = run(stream_file, whole, *options)
    (found,) = (entry for entry in results["results"] if entry["task"] == "retrieval")
    assert 2 <= found["details"]["n_images"] <= 6
    # all of the last shard, which training leaves out; validation and test share it
    config = load_config(["--config", stream_file]).data
    held = [open_pairs(config, role, seed=0, image_size=32, eval_size=99) for role in ("validation", "test")]
    names = sorted(pairs.name(i) for pairs in held for i in range(len(pairs)))
    assert names == [f"004.tar sample {i:06}" for i in range(48, 60)]
    assert any("eval/retrieval/image_to_text_r1" in line for line in lines(whole))
    run(stream_file, parts, *options, "--train.max_steps", "7")
    run(stream_file, parts, *options, "--run.resume", "true")
    assert losses(parts) == losses(whole)
    ours, theirs = (load_file(directory / "model" / "model.safetensors") for directory in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    epochs = [line["epoch"] for line in lines(whole) if "epoch" in line]
    assert epochs == sorted(epochs) and epochs[-1] >= 1  # 48 pairs and 72 drawn


@pytest.mark.parametrize("streaming", [False, True])
def test_data_and_run_may_move_between_jobs(
    stream_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,
) -> None:
    """A resume compares what the data are, not what they are called, nor when they were copied."""
    whole, begin = tmp_path / "whole", ["--eval.tasks", "[]", "--data.streaming", str(streaming).lower()]
    if not streaming:
        begin += ["--data.cache_dir", str(tmp_path / "cache"), "--data.shuffle_buffer", "8192"]
    run(stream_file, whole, *begin, "--train.max_steps", "4", "--data.source", str(tmp_path / "tars"))
    monkeypatch.chdir(tmp_path)
    run(stream_file, tmp_path / "job1", *begin, "--train.max_steps", "2", "--data.source", "tars")
    (tmp_path / "job1").rename(tmp_path / "job2")
    shutil.copytree(tmp_path / "tars", tmp_path / "elsewhere" / "tars", copy_function=shutil.copyfile)
    resume = [*begin, "--train.max_steps", "4", "--run.resume", "true"]
    shutil.copytree(tmp_path / "job2", tmp_path / "job3")
    run(stream_file, tmp_path / "job2", *resume, "--data.source", str(tmp_path / "elsewhere" / "tars"))
    assert losses(tmp_path / "job2") == losses(whole)
    # one shard less a sample
    write_tar(
        tmp_path / "elsewhere" / "tars" / "001.tar", [("0", {"png": encoded(noise(0, (40, 40))), "txt": b"a dog"})]
    )
    before = (tmp_path / "job3" / "config.yaml").read_text()
    capsys.readouterr()
    options = ["--config", stream_file, "--run.dir", str(tmp_path / "job3"), *resume]
    assert train_main([*options, "--data.source", str(tmp_path / "elsewhere" / "tars")]) == 2
    said = capsys.readouterr().err
    if streaming:
        assert "stands at step 2 of another stream: its shards: 1 altered (001.tar); a resume needs those" in said
    else:
        assert "stands at step 2 of other data than" in said and "gone (0" in said
    assert (tmp_path / "job3" / "config.yaml").read_text() == before
    (tmp_path / "job3" / "data.parquet").unlink()  # of a run of before there was one
    assert train_main([*options, "--data.source", str(tmp_path / "elsewhere" / "tars")]) == 2
    said = capsys.readouterr().err
    assert "have changed since" in said if streaming else "54 images, not 45, other captions, other image files" in said
    allowed = ["--run.allow_changed_data", "true", "--data.source", str(tmp_path / "elsewhere" / "tars")]
    run(stream_file, tmp_path / "job3", *resume, *allowed)
    assert len(losses(tmp_path / "job3")) == 4
    run(stream_file, tmp_path / "job3", *resume, *allowed[2:], "--train.max_steps", "5")  # now it is of these


CHANGES = {
    "an image of the same size": (
        lambda folder: shutil.copy(folder / "11.png", folder / "10.png"),
        "1 altered (10.png)",
    ),
    "a caption": (lambda folder: (folder / "12.txt").write_text("another"), "1 altered (12.png)"),
    "an image more": (lambda folder: write_beside(folder, 90, 91), "1 added (90.png)"),
    "one less": (lambda folder: (folder / "10.png").unlink(), "1 gone (10.png)"),
    "another name": (
        lambda folder: [(folder / f"10.{e}").rename(folder / f"1x.{e}") for e in ("png", "txt")],
        "1 under other names",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_resume_says_what_has_changed(tmp_path: Path, capsys: Any, caplog: Any, change: str) -> None:
    """Before a cache is built of the other data; and goes on with them where it may."""
    for split, first, last in (("train", 0, 40), ("validation", 50, 52), ("test", 60, 62)):
        write_beside(tmp_path / "data" / split, first, last)
    data = {"source": str(tmp_path / "data"), "batch_size": 8, "cache_dir": str(tmp_path / "cache")}
    file = write_config(tmp_path / "c.yaml", data=data, eval={"size": 2, "tasks": []})
    run(file, tmp_path / "run", "--train.max_steps", "2")
    make, told = CHANGES[change]
    make(tmp_path / "data" / "train")
    caches = sorted((tmp_path / "cache").rglob("*"))
    again = ["--config", file, "--run.dir", str(tmp_path / "run"), "--run.resume", "auto", "--train.max_steps", "4"]
    again += ["--data.max_bad_fraction", "1"]
    capsys.readouterr()
    assert train_main(again) == 2
    said = capsys.readouterr().err
    assert told in said and "--run.allow_changed_data true" in said and "stands at step 2 of other data" in said
    assert sorted((tmp_path / "cache").rglob("*")) == caches
    assert train_main([*again, "--run.allow_changed_data", "true"]) == 0
    assert f"{told}; it goes on with these" in caplog.text and len(losses(tmp_path / "run")) == 4
    assert train_main(again) == 0 and train_main([*again, "--train.max_steps", "5"]) == 0


@pytest.mark.parametrize("caption", ["a dog", "dog {}"])
def test_a_resume_says_that_rows_have_another_order(caption: str, tmp_path: Path, capsys: Any) -> None:
    """Also where nothing but what is in the images tells: equal captions, files of one size."""
    rows = [(name, caption.format(i)) for i, name in enumerate(write_images(tmp_path, 60))]
    assert len({(tmp_path / name).stat().st_size for name, _ in rows}) == 1
    table = write_csv(tmp_path / "all.csv", [("image", "caption"), *rows])
    data = {"source": table, "batch_size": 8, "cache": False}
    file = write_config(tmp_path / "c.yaml", data=data, eval={"size": 2, "tasks": []})
    run(file, tmp_path / "run", "--train.max_steps", "2")
    write_csv(tmp_path / "all.csv", [("image", "caption"), *rows[::-1]])
    again = ["--config", file, "--run.dir", str(tmp_path / "run"), "--run.resume", "true", "--train.max_steps", "3"]
    assert train_main(again) == 2
    assert "stands at step 2 of other data than" in (said := capsys.readouterr().err)
    assert ".csv: the same in another order; a resume needs" in said


def test_what_a_stream_cannot_do(stream_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is another one resumed: the configuration says the same, the shards do not."""
    begin = ["--config", stream_file, "--eval.tasks", "[]", "--data.source", str(tmp_path / "tars" / "*.tar")]
    assert train_main([*begin, "--run.dir", str(tmp_path / "run"), "--train.max_steps", "2"]) == 0
    (tmp_path / "tars" / "001.tar").rename(tmp_path / "tars" / "0010.tar")
    for name, options, message in (
        (
            "run",
            "--run.resume true",
            "stands at step 2 of another stream: its shards: 1 under other names; a resume needs",
        ),
        ("no", "--train.max_steps null --train.epochs 2", "set train.max_steps"),
        ("no", "--train.small_vocabulary true", "needs to know all captions beforehand"),
        ("no", "--data.workers 30", "data.workers=24"),
        ("no", "--data.caption_column text", "has no column text"),
    ):
        capsys.readouterr()
        assert train_main([*begin, "--run.dir", str(tmp_path / name), *options.split()]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def resolved(*arguments: str) -> Config:
    config = load_config([*arguments, "--run.dir", "unused"])
    return replace(config, model=resolve(config.model))


def share(config: Config, accelerator: Any, first: int, until: int, state: Any = None) -> tuple[list[list[int]], Any]:
    """The ids of a process's pairs, step by step, and its state."""
    changed = replace(config, train=replace(config.train, max_steps=until))
    batches = open_batches(changed, accelerator, open_start(changed))
    found = []
    for step, batch in zip(range(first, until), batches.start(first, state or {}), strict=True):
        assert len(batch.image_id) == batches.shares(step)[accelerator.process_index]
        found.append(batch.image_id.tolist())
    return found, json.loads(json.dumps(batches.state()))


def process_of_three(configs: list[Config], arguments: list[str]) -> Any:
    accelerator, _ = build_accelerator(configs[0])
    found = [share(replace(config, data=replace(config.data, workers=1)), accelerator, 0, 5) for config in configs]
    return found, train_main(arguments)


def place(rank: int, world: int) -> Any:
    cpu = torch.device("cpu")
    return SimpleNamespace(process_index=rank, num_processes=world, device=cpu, is_main_process=rank == 0)


def merged(parts: Any) -> list[list[int]]:
    return [sorted(chain(*step)) for step in zip(*(found for found, _ in parts), strict=True)]


def test_processes_share_every_batch_and_others_go_on(stream_file: str, tmp_path: Path) -> None:
    """Three real processes, then two that go on, then one: the batches of one process that never stopped.

    And they train as one does: 25 lanes are 9, 8 and 8, so the shares of a step differ, and change from step to step.
    """
    cache = ["--data.cache_dir", str(tmp_path / "cache")]
    configs = [resolved("--config", stream_file, "--data.streaming", s, *cache) for s in ("true", "false")]
    options = ["--config", stream_file, "--optim.schedule", "constant", "--train.max_steps", "6", "--eval.tasks", "[]"]
    options += ["--data.batch_size", "10", "--run.dir"]
    three = together(3, process_of_three, configs, [*options, str(tmp_path / "three")])
    for which, config in enumerate(configs):
        whole = merged([share(config, place(0, 1), 0, 12)])
        first = [outcome.value[0][which] for outcome in three]
        second = [share(config, place(rank, 2), 5, 9, first[0][1]) for rank in range(2)]
        state = dict(second[0][1])
        if "cursors" in state:  # which processes of a group gather
            state["cursors"] = {lane: at for _, part in second for lane, at in part["cursors"].items()}
        third = [share(config, place(0, 1), 9, 12, state)]
        assert merged(first) + merged(second) + merged(third) == whole
        counts = Counter(chain(*whole))
        if config.data.streaming:  # the 48 of four shards, twice; the end of an epoch is blurred
            assert len(counts) == 48 and max(counts.values()) <= 3
        else:  # 54 pairs, 6 steps of 8 an epoch
            assert {count for half in (whole[:6], whole[6:]) for count in Counter(chain(*half)).values()} == {1}
    assert [outcome.value[1] for outcome in three] == [0, 0, 0]
    assert train_main([*options, str(tmp_path / "one")]) == 0
    for figures, tolerance in ((("loss",), 1e-5), (("r1_image_to_text", "cosine_positive", "grad_norm"), 1e-3)):
        ours, theirs = ([[li[n] for n in figures] for li in lines(tmp_path / d)] for d in ("three", "one"))
        assert np.array(ours) == pytest.approx(np.array(theirs), rel=tolerance)


def test_more_processes_than_pairs(stream_file: str) -> None:
    nine = SimpleNamespace(num_processes=9)
    with pytest.raises(ConfigError, match=r"data\.batch_size=8 leaves some of 9 processes without a pair; raise it"):
        open_batches(load_config(["--config", stream_file]), nine, None)  # type: ignore[arg-type]


# ---- tables and tars of files


def write_table(folder: Path, images: dict[str, bytes | None], held: int) -> str:
    """A table beside images, of which the first `held` are for validation and test; None: there is no such file."""
    folder.mkdir()
    rows = []
    for number, (name, content) in enumerate(images.items()):
        if content is not None:
            (folder / name).write_bytes(content)
        elif name.startswith("folder"):
            (folder / name).mkdir()
        split = "train" if number >= held else ("validation", "test")[number % 2]
        rows.append({"file_name": name, "caption": f"image {number}", "split": split})
    write_jsonl(folder / "metadata.jsonl", rows)
    return str(folder)


def test_shares_of_two_sources(tmp_path: Path) -> None:
    """A quarter of every batch from the small source."""
    sources = [
        write_table(tmp_path / name, {f"{i}.png": encoded(noise(i, (40, 40))) for i in range(count)}, held=4)
        for name, count in (("few", 12), ("many", 60))
    ]
    file = write_config(tmp_path / "two.yaml", data={"source": sources, "mixing": [1, 3], "batch_size": 8})
    assert run(file, tmp_path / "run", "--eval.tasks", "[]", "--train.max_steps", "4")["training"]["steps"] == 4
    config = resolved("--config", file)
    for batch in open_batches(config, build_accelerator(config)[0], open_start(config)).start(0, {}):
        assert int((batch.image_id < 8).sum()) == 2 and len(batch.image_id) == 8
    with pytest.raises(ConfigError, match=r"data\.weights_for=sampler draws by weight, data\.mixing by source"):
        DataConfig(source=["a", "b"], mixing=[1, 1], weights="column", weight_column="w", weights_for="sampler")


@pytest.mark.parametrize("how", ["prepared", "as they come up", "streamed"])
def test_a_set_with_5_percent_of_broken_images_trains_through(tmp_path: Path, capsys: Any, how: str) -> None:
    """13 kinds, each once among 260 files; as files beside a table, or inside of tars."""
    bad = list(bad_files().items())
    good = [content for content, _ in good_files().values()]
    held, files = 4, dict[str, bytes | None]((f"held{i}.png", good[i]) for i in range(4))
    files |= dict(bad[i // 20] if i % 20 == 7 else (f"{i}.png", good[i % len(good)]) for i in range(260))
    options, expected = ["--eval.tasks", "[]"], [name for name, _ in bad]
    if how == "streamed":
        # what is missing in a tar has no name there
        rows = {f"{i:04}": (name, content) for i, (name, content) in enumerate(files.items()) if content is not None}
        expected = [key for key, (name, _) in rows.items() if name in expected]
        there: Any = [(key, {"png": content, "txt": b"an image"}) for key, (_, content) in rows.items()]
        for name, part in (("test-0", there[:held]), ("train-0", there[held:120]), ("train-1", there[120:])):
            write_tar(tmp_path / f"{name}.tar", part)
        source = str(tmp_path / "*.tar")
        options += ["--data.streaming", "true", "--data.validation_split", "test"]
    else:
        source = write_table(tmp_path / "data", files, held)
        options += ["--data.cache", str(how == "prepared").lower()]
    data = {"source": source, "batch_size": 26, "max_bad_fraction": 0.06, "shuffle_buffer": 24}
    file = write_config(tmp_path / "config.yaml", data=data, train={**TINY["train"], "max_steps": 14})
    named = run(file, tmp_path / "run", *options)["training"]["bad"]
    # a second of the epochs may have begun, in which a stream meets them again, by the same names
    words = [name.split(":")[0].split(" ") for name in named]
    assert sorted(word[2 if how == "streamed" else 0] for word in words) == sorted(expected)
    assert lines(tmp_path / "run")[-1]["bad_pictures"] == len(expected)
    if how != "streamed":
        strict = ["--data.max_bad_fraction", "0.04", "--run.overwrite", "true", *options]
        assert train_main(["--config", file, "--run.dir", str(tmp_path / "run"), *strict]) == 2
        assert "more than data.max_bad_fraction=0.04 allows" in capsys.readouterr().err
