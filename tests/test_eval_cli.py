"""eval.py from the command line to its tables, files and messages, with a tiny untrained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from miniclip import arguments
from miniclip.checkpoint import load, save_model
from miniclip.data.shapes import SceneSource, scene_task
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.cli import main
from miniclip.evaluation.encode import EncodeOptions
from miniclip.evaluation.retrieval import retrieval
from miniclip.evaluation.zeroshot import ZeroShotResult, zero_shot
from miniclip.metrics import median_rank, recall_at_k, retrieval_ranks_from_embeddings
from miniclip.models import create_model

ROOT = Path(__file__).parent.parent


def save_tiny(directory: Path, seed: int, image_size: int) -> str:
    torch.manual_seed(seed)
    small = {"embed_dim": 16, "image_width": 32, "image_layers": 2, "image_heads": 2, "patch_size": 16}
    text = {"text_width": 32, "text_heads": 2, "text_layers": 2, "vocab_size": 49408, "context_length": 32}
    model = create_model("tiny-vit", image_size=image_size, **small, **text)
    save_model(directory, model, Preprocess(image_size))
    return str(directory)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("checkpoint"), 0, 32)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("run")
    save_tiny(run / "model", 1, 48)
    return str(run)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of two pictures each, below a split."""
    root = tmp_path_factory.mktemp("folders")
    for k, name in enumerate(("red", "light_green", "blue")):
        (root / "test" / name).mkdir(parents=True)
        for shade in (150, 250):
            colour = tuple(shade if c == k else 10 for c in range(3))
            Image.new("RGB", (40, 30), colour).save(root / "test" / name / f"{shade}.png")
    return root


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    lines = []
    for split, count in (("train", 3), ("validation", 1), ("test", 5)):
        for k in range(count):
            Image.new("RGB", (40, 30), (40 * k, 99, 20)).save(root / f"{split}{k}.png")
            row = {"file_name": f"{split}{k}.png", "captions": [f"first {k}", f"second {split} {k}"], "split": split}
            lines.append(json.dumps({**row, "other": f"other {k}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def test_zero_shot_on_a_task_equals_python(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, picture = tmp_path / "result.json", tmp_path / "confusion.png"
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--size", "24", "--seed", "3"]
    assert main([*arguments, "--json", str(json_file), "--confusion", str(picture), "--device", "cpu"]) == 0
    written = json.loads(json_file.read_text())
    (result,) = written["results"]
    expected = zero_shot(*load(checkpoint), scene_task("shape", 24, 3, 32), task="shape")
    assert result["checkpoint"] == checkpoint and result["n"] == 24 and result["task"] == "shape"
    assert result["top1"] == expected.top1 and result["top5"] == expected.top5
    assert result["confusion"] == [list(row) for row in expected.confusion or ()]
    assert written["command"] == "zeroshot" and written["templates"] is None and written["precision"] == "fp32"
    with Image.open(picture) as image:
        assert image.format == "PNG"
    captured = capsys.readouterr()
    assert "zero-shot: shape" in captured.out and f"{100 * expected.top1:.1f}" in captured.out
    assert "crescent" in captured.out and captured.err == ""


def test_zero_shot_on_folders_with_class_names(
    checkpoint: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\tred thing\nlight_green\tpale green\nblue\tblue thing\n")
    base = ["zeroshot", "--checkpoint", checkpoint, "--dataset", str(folders), "--json", str(tmp_path / "a.json")]
    assert main(base) == 0
    assert "light green" in capsys.readouterr().out
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["results"][0]["classes"] == ["blue", "light green", "red"] and read["results"][0]["n"] == 6
    assert read["templates"] == ["a photo of a {}."] and read["split"] == "test"
    assert main([*base, "--classnames", str(names), "--templates", "a {}", "one {}", "--precision", "bf16"]) == 0
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["results"][0]["classes"] == ["blue thing", "pale green", "red thing"]
    assert read["templates"] == ["a {}", "one {}"] and read["precision"] == "bf16"


def test_precision_and_batch_size_reach_the_towers(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(*arguments: Any, options: EncodeOptions, **keywords: Any) -> ZeroShotResult:
        seen.append((options.batch_size, options.precision))
        return zero_shot(*arguments, options=options, **keywords)

    monkeypatch.setattr("miniclip.evaluation.zeroshot.zero_shot", spy)
    base = ["zeroshot", "--checkpoint", checkpoint, "--task", "count", "--size", "6"]
    assert main(base) == 0 and main([*base, "--precision", "bf16", "--batch_size", "5"]) == 0
    assert seen == [(256, "fp32"), (5, "bf16")]


def test_relation_has_two_sentences_a_picture(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zeroshot", "--checkpoint", checkpoint, "--task", "relation", "--size", "6"]) == 0
    assert "50.0" in capsys.readouterr().out


def test_several_checkpoints_give_a_row_each(
    checkpoint: str, run_directory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = tmp_path / "result.json"
    arguments = ["zeroshot", "--checkpoint", checkpoint, run_directory, "--task", "colour", "--size", "16"]
    assert main([*arguments, "--json", str(json_file)]) == 0
    assert [r["checkpoint"] for r in json.loads(json_file.read_text())["results"]] == [checkpoint, run_directory]
    out = capsys.readouterr().out
    assert checkpoint in out and run_directory in out
    # Each model sees scenes of its own size: 48 pixels here.
    expected = zero_shot(*load(run_directory), scene_task("colour", 16, 0, 48))
    assert json.loads(json_file.read_text())["results"][1]["confusion"] == [list(r) for r in expected.confusion or ()]


def test_retrieval_on_the_scenes_equals_python(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, sheet = tmp_path / "result.json", tmp_path / "examples.png"
    arguments = ["retrieval", "--checkpoint", checkpoint, "--data", "shapes", "--size", "20", "--seed", "2"]
    assert main([*arguments, "--json", str(json_file), "--examples", str(sheet)]) == 0
    (result,) = json.loads(json_file.read_text())["results"]
    expected = retrieval(*load(checkpoint), SceneSource("test", 20, 2, 32))
    for name in ("n_images", "n_texts", "image_to_text_r10", "text_to_image_r5", "text_to_image_median_rank"):
        assert result[name] == getattr(expected, name)
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 800
    out = capsys.readouterr().out
    assert "image -> text" in out and "text -> image" in out


def test_retrieval_on_a_folder(checkpoint: str, captioned: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "result.json"
    base = ["retrieval", "--checkpoint", checkpoint, "--data", str(captioned), "--json", str(json_file)]

    def sizes(*more: str) -> tuple[int, int]:
        assert main([*base, *more]) == 0
        (result,) = json.loads(json_file.read_text())["results"]
        return result["n_images"], result["n_texts"]

    assert sizes("--caption_column", "captions") == (5, 10)
    assert sizes("--caption_column", "captions", "other") == (5, 15)
    assert sizes("--caption_column", "other", "--limit", "2") == (2, 2)
    assert sizes("--caption_column", "captions", "--limit", "99", "--image_column", "file_name") == (5, 10)
    assert sizes("--caption_column", "captions", "--split", "train") == (3, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("zeroshot --checkpoint {none} --task shape", "none: no model.safetensors"),
        ("zeroshot --checkpoint {ok} --data {none}", "none"),
        ("zeroshot --checkpoint {ok} --task shape --templates photo", "lacks {{}}"),
        ("zeroshot --checkpoint {ok} --task shape --templates {bad}", "bad.txt, line 2"),
        ("zeroshot --checkpoint {ok} --task relation --templates simple", "leave --templates"),
        ("zeroshot --checkpoint {ok} --task shape --classnames {bad}", "--classnames belongs to --data"),
        ("zeroshot --checkpoint {ok} --task shape --json {none}/a.json", "does not exist; make it first"),
        ("zeroshot --checkpoint {ok} --task shape --json {tmp}", "is a folder"),
        ("zeroshot --checkpoint {ok} {ok} --task shape", "same directory twice"),
        ("zeroshot --checkpoint {ok} {tmp} --task shape --confusion {tmp}/a.png", "draws one model"),
        ("zeroshot --checkpoint {ok} --task shape --device warp", "--device warp cannot be used"),
        ("zeroshot --checkpoint {ok} --task no", "invalid choice: 'no'"),
        ("zeroshot --checkpoint {ok} --task shape --size 0", "0 must be at least 1"),
        ("zeroshot --checkpoint {ok} --task shape --data {tmp}", "not allowed with argument"),
        ("zeroshot --checkpoint {ok}", "required"),
        ("retrieval --checkpoint {ok} --data {none}", "none"),
        ("retrieval --checkpoint {ok} --data {empty}", "empty"),
        ("retrieval --checkpoint {ok} --data shapes --examples {none}/a.png", "--examples"),
        ("retrieval --checkpoint {ok} --data shapes --split nosuch", "nosuch"),
    ],
)
def test_errors_are_one_line_before_the_model_loads(
    arguments: str,
    message: str,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("miniclip.checkpoint.load", loaded)
    (tmp_path / "bad.txt").write_text("a {}\na photo\n")
    (tmp_path / "empty").mkdir()
    paths = {name: tmp_path / name for name in ("none", "empty")}
    words = arguments.format(ok=checkpoint, tmp=tmp_path, bad=tmp_path / "bad.txt", **paths).split()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("eval.py: error: ") and captured.err.count("\n") == 1
    assert message.replace("{{}}", "{}") in captured.err


def test_a_broken_model_is_one_line_too(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.json", "preprocess.json"):
        (tmp_path / name).write_text((Path(checkpoint) / name).read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert main(["zeroshot", "--checkpoint", str(tmp_path), "--task", "shape"]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    (tmp_path / "preprocess.json").write_text("[]")
    assert main(["zeroshot", "--checkpoint", str(tmp_path), "--task", "shape"]) == 2
    assert "preprocess.json" in capsys.readouterr().err


def test_an_unwritable_target_is_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments.os, "access", lambda *_: False)  # root may write anywhere, so a mode would not do
    target = str(tmp_path / "a.json")
    assert main(["zeroshot", "--checkpoint", checkpoint, "--task", "shape", "--json", target]) == 2
    assert "no permission" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["zeroshot"], ["retrieval"]])
def test_help_needs_no_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom miniclip.evaluation.cli import main\n"
        f"try:\n    main({[*command, '--help']!r})\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout


def test_a_terminal_without_the_letters_still_gets_its_table(checkpoint: str, folders: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\trouge\nlight_green\tvert pâle 🟢\nblue\tbleu\n", encoding="utf-8")
    arguments = ["zeroshot", "--checkpoint", checkpoint, "--data", str(folders), "--classnames", str(names)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert "vert p?le" in done.stdout


def test_a_model_of_open_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures are those of its own code: scenes are squares of the model's size, so nothing is resized."""
    torch.manual_seed(3)
    theirs = open_clip.create_model("ViT-S-32-alt")
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    theirs.eval()
    name = f"open_clip:ViT-S-32-alt:{tmp_path / 'weights.pt'}"
    result = tmp_path / "result.json"
    arguments = ["--checkpoint", name, "--json", str(result), "--size", "6"]
    assert main(["retrieval", "--data", "shapes", *arguments]) == 0
    source = SceneSource("test", 6, image_size=224)
    preprocess = open_clip.image_transform(224, is_train=False)
    texts = [text for k in range(6) for text in source.captions(k)]
    with torch.no_grad():
        image = theirs.encode_image(torch.stack([preprocess(source.image(k)) for k in range(6)]), normalize=True)
        text = theirs.encode_text(open_clip.tokenize(texts), normalize=True)
    owner = torch.arange(6).repeat_interleave(5)
    ranks = retrieval_ranks_from_embeddings(image, text, owner)
    (found,) = json.loads(result.read_text())["results"]
    assert found["text_to_image_median_rank"] == median_rank(ranks.text_to_image)
    assert found["image_to_text_r1"] == recall_at_k(ranks.image_to_text, 1)
    assert main(["zeroshot", "--task", "shape", *arguments]) == 0
    assert main(["retrieval", "--data", "shapes", "--checkpoint", "open_clip:ViT-S-32-alt"]) == 2
    assert "ViT-S-32-alt" in capsys.readouterr().err


def test_the_script_runs() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "eval.py"), *arguments], capture_output=True, text=True, check=False
        )

    done = run("--help")
    assert done.returncode == 0 and "zeroshot" in done.stdout and done.stderr == ""
    done = run("zeroshot", "--checkpoint", "none", "--task", "shape")
    assert done.stdout == ""
    assert done.returncode == 2 and done.stderr.startswith("eval.py: error: --checkpoint none")
