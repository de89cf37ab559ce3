"""Every command that README, docs, configs, docstrings and --help name: parsed as a user's, and run on small data.

The words of a command stay as they are written: DIR, MODEL, photos/ and the like are folders where the tests stand.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from PIL import Image
from support.files import encoded, write_beside, write_classes, write_image, write_images, write_jsonl, write_tar
from support.hf_models import bert_folder

import miniclip
from miniclip.cli.eval import main as eval_main
from miniclip.cli.main import main as miniclip_main
from miniclip.cli.single import POSITIONAL, single
from miniclip.cli.train import train_main
from miniclip.config import load_config
from miniclip.data.audit.command import main as audit_main
from miniclip.doctor.main import doctor_main
from miniclip.models import load as loading

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "miniclip").rglob("*.py"))]
PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:python|accelerate launch|torchrun|miniclip|make|pip install|tensorboard) "
SMALL = """
--model.embed_dim 16 --model.image_size 32 --model.image_width 8 --model.image_heads 4 --model.text_width 32
--model.text_heads 1 --model.text_layers 1 --data.batch_size 8 --data.size 40 --data.cache_dir cache
--train.max_steps 2 --train.low_image_size null --train.precision fp32 --eval.size 8 --eval.tasks [retrieval]
--log.progress false --log.trackers [] --run.overwrite true
"""
SHORTER = {
    "interpolate": "--alphas 0,1",
    "matrix": "--size 8",
    "probe": "--shots 1 --draws 1",
    "audit": "--limit 8 --batch_size 4",
    "dream": "--steps 2 --samples 1",
}


class Command(NamedTuple):
    """where: the file that names it."""

    where: str
    text: str


def blocks(language: str, page: Path) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[Command]:
    for page in PAGES:
        for line in "".join(blocks("sh", page)).splitlines():
            yield Command(page.name, re.sub(r"\s+#.*", "", line))
        prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", prose):
            code = re.sub(r"^… (?=--)", "python train.py --config C ", " ".join(code.split()))
            if re.match(PROGRAM, code):
                yield Command(page.name, code)
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        for code in re.findall(r"^# +(python .*?)(?:  +\(.*\))?$", config.read_text("utf-8"), re.MULTILINE):
            yield Command(config.name, code)
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for line in node.value.splitlines():
                    found = re.search(rf"(?:^ *|`|: )((?:{PROGRAM}|(?:eval|train)\.py )[^`]*? --[^`]*)", line)
                    if found:
                        yield Command(str(script.relative_to(ROOT)), re.sub(r" \[.*\.\.\.\]", "", found[1]).strip())


ALL = list({" ".join(one.text.split()): one for one in commands()}.values())
# those in which nothing is left to fill in
WHOLE = [one for one in ALL if not re.search(r"…|\{\w+\}| --help", one.text)]
each = functools.partial(pytest.mark.parametrize, "command", ids=lambda one: f"{one.where}: {one.text}")


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """-> "train", "eval", another command or a file, and what it is given; the launchers' own options are checked."""
    words = list(words)
    while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
        del words[0]
    if words[:2] == ["accelerate", "launch"] or words[0] == "torchrun":
        from accelerate.commands.launch import launch_command_parser
        from torch.distributed.run import get_args_parser

        parser = get_args_parser() if words[0] == "torchrun" else launch_command_parser()
        found = parser.parse_args(words[1 if words[0] == "torchrun" else 2 :])
        words = ["python", *(["-m"] * bool(found.module)), found.training_script, *found.training_script_args]
    if words[0] == "python":
        del words[0]
    if words[:2] == ["-m", "miniclip"]:
        del words[0]
    if words[0] == "-m":
        assert words[1] in ("miniclip.doctor", "miniclip.data.audit")
        return words[1].rpartition(".")[2], words[2:]
    if words[0] == "miniclip":
        return words[1], words[2:]
    assert (ROOT / words[0]).is_file(), words[0]
    return {"train.py": "train", "eval.py": "eval"}.get(words[0], words[0]), words[1:]


SINGLE = {name: functools.partial(single, name) for name in POSITIONAL}
RUN: dict[str, Any] = {"train": train_main, "eval": eval_main, "audit": audit_main, "doctor": doctor_main, **SINGLE}


# The place where the commands are given

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def fill(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True)
    write_beside(folder, first, first + count)
    for file in folder.glob("*.png"):
        with Image.open(file) as image:
            image.resize((32, 32)).save(file)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the names that the commands use."""
    root = tmp_path_factory.mktemp("world")
    for name in ("configs", "train.py", "eval.py"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "configs" / "flickr8k.yaml", root / "C")
    for i, (split, count) in enumerate((("train", 24), ("validation", 10), ("test", 10))):
        fill(root / "captioned" / split, 1000 * i, count)
        numbers = {name: range(500 * i + 9 * k, 500 * i + 9 * k + 3) for k, name in enumerate(CIFAR)}
        write_classes(root / "labelled" / split, **numbers)
    (root / "DIR").symlink_to("captioned")
    for name in ("FOLDER", "CIFAR10"):
        (root / name).symlink_to("labelled")
    for name in ("others", "unlabelled", "IMAGES"):
        write_images(root / name, 4)
    rows = [{"file_name": f"{k}.png", "label": "ab"[k % 2], "split": "test"} for k in range(6)]
    write_images(root / "CLASSES", 6)
    write_image(root / "beach.jpg", 0)
    write_jsonl(root / "CLASSES" / "labels.jsonl", rows)
    Image.new("RGB", (40, 30), "tan").save(root / "beach.jpg")
    for name in ("FILE", "names.txt"):
        (root / name).write_text("a dog\na cat\n")
    colours = [encoded(Image.new("RGB", (32, 32), (k, 0, 0)), "PNG") for k in range(96)]
    for k in range(32):
        samples = [(f"{i}", {"png": colours[i], "txt": f"shard {i}".encode()}) for i in range(3 * k, 3 * k + 3)]
        write_tar(root / "shards" / f"{k:03}.tar", samples)
    for split, count in (("train2017", 24), ("val2017", 10)):
        write_images(root / "coco" / split, count)
        told = {"images": [{"id": k, "file_name": f"{k}.png"} for k in range(count)]}
        told["annotations"] = [{"image_id": k, "caption": f"{split} {k}"} for k in range(count)]
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        (root / "coco" / "annotations" / f"captions_{split}.json").write_text(json.dumps(told))
    (root / "pairs").mkdir()
    images = [{"bytes": encoded(Image.new("RGB", (32, 32), (k, 9, 0)), "PNG")} for k in range(40)]
    table = pa.table({"image": images, "caption": [f"row {k}" for k in range(40)]})
    pq.write_table(table, root / "pairs" / "train-0.parquet")
    timm.models.save_for_hf(
        timm.create_model("test_efficientnet"), root / "towers" / "efficientnet_lite0", safe_serialization=True
    )
    bert_folder(root / "towers" / "minilm")
    return root


@pytest.fixture(scope="module")
def runs(world: Path) -> Path:
    """And the runs that are evaluated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        words = ["--config", "C", "--data.source", "DIR", *SMALL.split(), "--run.dir", "runs/flickr8k"]
        assert train_main(words) == 0
        vit = ["--model.image_encoder", "vit", "--model.patch_size", "16", "--model.image_layers", "1"]
        assert train_main([*words[:-1], "runs/vit", *vit]) == 0  # which transformers can hold
    for name in ("runs/shapes", "runs/a", "runs/b", "MODEL", "RUN"):
        shutil.copytree(world / "runs" / "flickr8k", world / name)
    return world


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """models of other libraries, which are fetched, are those of runs/b; the name is checked before. What is exported
    is not read back, which takes a process each and is tested by itself."""
    monkeypatch.chdir(world)
    monkeypatch.setattr("miniclip.export.formats.compared", lambda *_: [])
    for name in ("load", "image_size_of"):
        monkeypatch.setattr(loading, name, functools.partial(instead, getattr(loading, name)))
    yield world
    for name in ("photos", "SOURCE", "captioned/captions.csv"):
        (world / name).unlink(missing_ok=True)


SIZE_OF = loading.image_size_of


def check_reference(name: str) -> None:
    """A model of another library, as far as its name tells."""
    if name.startswith("open_clip:"):
        assert SIZE_OF(name) == 224
    elif name.startswith("hf:"):
        assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name), name


def instead(function: Any, name: str | Path, *rest: Any) -> Any:
    check_reference(name := str(name))
    return function("runs/b" if name.startswith(("open_clip:", "hf:")) else name, *rest)


def place(world: Path, program: str, words: list[str]) -> None:
    """photos/ and SOURCE are what the command takes: classes or captions, with a captions.csv if that is asked for."""
    made = words[words.index("--out") + 1] if "--out" in words else words[1] if program == "export" else ""
    if made:
        shutil.rmtree(world / made, ignore_errors=True)
    labelled = program == "eval" and words[0] in ("zeroshot", "probe")
    for name in ("photos", "SOURCE"):
        (world / name).symlink_to("labelled" if labelled else "captioned")
    if "photos/captions.csv" in words:
        files = sorted((world / "captioned").resolve().glob("*/*.png"))
        lines = [f"{file.parent.name}/{file.name},text {file.stem}" for file in files]
        (world / "photos" / "captions.csv").write_text("\n".join(["file_name,caption", *lines]))
    if program == "search":
        place_index(world)


def place_index(world: Path) -> None:
    if not (world / "photos.index").exists():
        assert single("index", ["captioned/", "--model", "runs/flickr8k", "--out", "photos.index"]) == 0


# What the pages say


def test_there_are_commands_of_every_kind() -> None:
    """Else the ways in which they are found would have to be looked at."""
    places = {one.where for one in ALL}
    assert {"README.md", "train.md", "evaluate.md", "matrix.md", "speed.md", "flickr8k.yaml"} <= places
    assert {"train.py", "miniclip/cli/eval.py", "miniclip/cli/main.py", "miniclip/doctor/main.py"} <= places
    assert len(WHOLE) > 50


@each(argvalues=WHOLE)
def test_every_command_is_parsed(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser that a user meets, with its arguments, and stopped before the work."""
    words = shlex.split(command.text)
    if words[0] in ("make", "pip", "tensorboard", "."):
        check_tool(words)
        return
    program, rest = program_of(words)
    if program not in RUN:
        parse_script(program, rest, monkeypatch)
        return
    for place in ("cli.eval.exit_code", "cli.single.exit_code", "data.audit.command.exit_code", "cli.train.run"):
        monkeypatch.setattr(f"miniclip.{place}", lambda *_, **__: 0)
    monkeypatch.setattr("miniclip.doctor.main.examine", interrupted)
    if not rest and program in ("audit", "doctor", *SINGLE):
        return  # only its name
    assert RUN[program](rest) == (130 if program == "doctor" else 0)
    for word in rest:
        check_reference(word)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


class Parsed(Exception):
    """The arguments of a script are right."""


def parse_script(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, arguments: Any = None, *rest: Any) -> Any:
        parse(self, arguments, *rest)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    if "argparse" in (ROOT / script).read_text("utf-8"):
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    else:
        assert not words


def check_tool(words: list[str]) -> None:
    """make's targets and variables, pip's files and extras."""
    if words[0] == "make":
        made = subprocess.run([*words, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        variables = re.findall(r"^(\w+) [?:]?=", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= {*variables}
    if words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        for word in (word for word in words[2:] if word not in ("-c", "-e")):
            package = any(line.startswith(word) for lines in extras.values() for line in lines)
            path, _, extra = word.rstrip("]").partition("[")
            assert package or ((ROOT / path).exists() and {*extra.split(",")} <= {"", *extras}), word


def test_every_help_example_is_parsed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that --help prints, under each name of the program."""
    monkeypatch.setattr("miniclip.cli.eval.exit_code", lambda *_, **__: 0)
    shown = {}
    for program in ("eval.py", "miniclip eval"):
        with pytest.raises(SystemExit):
            eval_main(["--help"], program)
        shown[program] = re.findall(rf"^  ({program} .*)$", capsys.readouterr().out, re.MULTILINE)
        assert len(shown[program]) >= 9
        for line in shown[program]:
            assert eval_main(shlex.split(line.removeprefix(program))) == 0, line
    monkeypatch.setattr(sys, "argv", ["miniclip", "--help"])
    assert miniclip_main() == 0
    named = re.findall(r"[a-z]: (miniclip [a-z].*)$", capsys.readouterr().out, re.MULTILINE)
    assert {line.split()[1] for line in named} == {"train", "eval", "doctor", "audit", *POSITIONAL}
    assert {Command("", line).text for line in named} <= {one.text for one in WHOLE}  # which are parsed above


def test_every_option_in_the_pages_exists() -> None:
    """Also those that stand by themselves, or in a command with an ellipsis; a job's script has others."""
    known = set(re.findall(r"--[a-z][\w.]*", helps()))
    for page in PAGES:
        text = re.sub(r"^```bash\n#!.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text):
            assert option.rstrip(".-") in known, f"{page.name} names {option}"


def helps() -> str:
    """What the commands and the launchers say of their options."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    from miniclip.cli.eval import _COMMANDS, TASKS

    launchers = (launch_command_parser(), get_args_parser())  # whose help hides some
    text = (
        " ".join(word for one in launchers for word in one._option_string_actions) + " --logdir --sort --section.key "
    )
    out = io.StringIO()
    for program, words in (
        (train_main, []),
        (doctor_main, []),
        *((eval_main, [name]) for name in (*TASKS, *_COMMANDS)),
        *((command, []) for command in SINGLE.values()),
    ):
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            program([*words, "--help"])
    scripts = (path.read_text("utf-8") for path in (*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests/soak.py"))
    return text + out.getvalue() + " ".join(scripts)


# What they do


def runnable() -> list[Any]:
    """What needs neither the network nor minutes, each once, whoever starts it."""
    found = {}
    for where, text in WHOLE:
        words = shlex.split(text)
        fetched = "jxie" in text or re.search(r"configs/flickr8k[\w-]*\.yaml$", text)
        if words[0] in ("make", "pip", "tensorboard", ".") or fetched:
            continue
        try:
            program, words = program_of(words)
        except (SystemExit, AssertionError):
            continue  # the test above tells
        if program in ("train", "eval", "audit", *SINGLE) and program != "app" and words:  # which serves until Ctrl-C
            shipped = (re.sub(r"^configs/(.*)\.yaml$", r"\1", word) for word in words)
            found[program, *shipped] = pytest.param(program, words, id=f"{where}: {text}")
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("program", "words"), runnable())
def test_every_command_runs(
    program: str, words: list[str], runs: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortened by options, in this process; for whom a push is, export's tests read with that library."""
    monkeypatch.setattr("miniclip.export.publish.export", lambda *given: given[-1].mkdir())
    monkeypatch.setattr("miniclip.compare.comparison.Comparison.run", lambda _: None)  # it has tests of its own
    place(here, program, words)
    if program == "train":
        shorter = [*SMALL.split(), "--run.dir", str(tmp_path / "run")]
        if any("pretrained" in word for word in words):  # whose towers have their own sizes
            shorter = shorter[14:]
    else:
        shorter = SHORTER.get(words[0] if program == "eval" else program, "").split()
        shorter += ["--size", "8"] if words[0] == "zeroshot" and "--task" in words else []
        shorter += ["--dry_run", str(tmp_path / "pushed")] if program == "push" and "--dry_run" not in words else []
    assert RUN[program]([*words, *shorter]) == 0
    assert program != "train" or (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_the_doctor_runs(world: Path, here: Path) -> None:
    assert (
        doctor_main(["--config", "configs/flickr8k.yaml", "--data.source", "DIR", *SMALL.split(), "--seconds", "1"]) < 2
    )


@pytest.mark.slow
def test_a_command_runs_as_a_process(runs: Path, here: Path) -> None:
    """From the folder where the scripts lie, as the README has it."""
    words = ["eval.py", "retrieval", "--checkpoint", "runs/flickr8k", "--data", "DIR"]
    path = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=path)
    assert done.returncode == 0 and "R@10" in done.stdout, done.stderr


def snippets() -> list[Any]:
    found = [
        (page, text) for page in PAGES for text in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), 24)
    ]
    return [pytest.param(text, id=f"{page.name}-{k}") for k, (page, text) in enumerate(found)]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets())
def test_every_snippet_of_python_runs(snippet: str, runs: Path, here: Path) -> None:
    """On fewer pairs, and the smallest preset that both libraries have."""
    if "photos.index" in snippet:
        place_index(here)
    small = snippet.replace("ViT-B-32", "ViT-S-32").replace("size=1000), 256", "size=60), 16")
    if "photos" in snippet:
        place(here, "search", [])
    exec(compile(small, "snippet", "exec"), {"miniclip": miniclip, "logits": torch.eye(4)})
    (here / "report.html").unlink(missing_ok=True)


def test_every_piece_of_yaml_is_a_configuration(world: Path, here: Path, tmp_path: Path) -> None:
    """Those with a key of their own for each section; train.md's, one line each, are read in test_docs."""
    found = [text for page in PAGES for text in blocks("yaml", page)]
    whole = [text for text in found if len(re.findall(r"^\w+:", text, re.MULTILINE)) == len(yaml.safe_load(text))]
    assert len(whole) == len(found) - 1 > 0
    for text in whole:
        (tmp_path / "some.yaml").write_text(text)
        load_config(["--config", "C", "--config", str(tmp_path / "some.yaml")])
