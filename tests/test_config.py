"""The configuration: what is refused, with what words, and what a saved file gives back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from miniclip.config import SECTIONS, Config, ConfigError, load_config, load_config_file, save_config

ROOT = Path(__file__).parents[1]
GOOD = """
model: {preset: tiny-vit}
data: {source: shapes, batch_size: 64}
optim: {betas: [0.8, 0.9], lr: 1e-3}
train: {max_steps: 5}
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


def test_file_then_command_line(good: str) -> None:
    config = load_config(["--config", good, "--data.batch_size", "128", "--optim.lr", "5e-4", "--run.dir", "x"])
    assert config.data.batch_size == 128
    assert config.optim.lr == 5e-4
    assert config.optim.betas == (0.8, 0.9)
    assert config.run.dir == "x"
    assert config.train.max_steps == 5
    assert config.model.preset == "tiny-vit"


def test_null_and_lists_on_the_command_line(good: str) -> None:
    arguments = ["--train.max_steps", "null", "--train.epochs", "2.5", "--data.caption_column", "[a, b]"]
    config = load_config(["--config", good, *arguments, "--model.image_layers", "[1,2,3,4]"])
    assert config.train.max_steps is None
    assert config.train.epochs == 2.5
    assert config.data.caption_column == ["a", "b"]
    assert config.model.image_layers == (1, 2, 3, 4)
    assert load_config(["--config", good, "--data.caption_column", "text"]).data.caption_column == "text"


def test_saved_file_gives_the_same_configuration(good: str, tmp_path: Path) -> None:
    config = load_config(["--config", good, "--model.image_layers", "[1,1,1,1]", "--data.source", "ünï: code"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config_file(tmp_path / "saved.yaml") == config


def test_frozen(good: str) -> None:
    config = load_config(["--config", good])
    with pytest.raises(FrozenInstanceError):
        config.data.batch_size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.max_stepz", "3"], ["train.max_stepz", "did you mean train.max_steps"]),
        (["--optim.learning_rate", "1"], ["optim.learning_rate", "optim.warmup_steps"]),
        (["--nonsense.key", "1"], ["nonsense.key", "sections: run, model, data"]),
        (["--train.max_steps", "five"], ["train.max_steps", "int"]),
        (["--train.precision", "fp8"], ["train.precision", "bf16"]),
        (["--train.epochs", "3"], ["train.max_steps", "train.epochs", "null"]),
        (["--train.max_steps", "0"], ["train.max_steps=0", "at least 1"]),
        (["--data.batch_size", "1"], ["data.batch_size=1", "at least 2 pairs"]),
        (["--data.flip", "1.5"], ["data.flip=1.5", "[0, 1]"]),
        (["--data.crop_scale", "[0.9, 0.5]"], ["data.crop_scale", "smallest"]),
        (["--optim.lr", "0"], ["optim.lr=0", "above 0"]),
        (["--optim.betas", "[0.9, 1.0]"], ["optim.betas", "[0, 1)"]),
        (["--optim.schedule", "exponential", "--optim.final_lr", "0"], ["optim.final_lr=0", "exponential"]),
        (["--loss.name", "sigmoid", "--loss.smoothing", "0.1"], ["loss.smoothing", "sigmoid"]),
        (["--run.resume", "true", "--run.overwrite", "true"], ["run.resume", "run.overwrite"]),
        (["--loss.name", "sigmoid"], ["model.logit_bias_init", "-4.14"]),
        (["--train.epochs", ".inf", "--train.max_steps", "null"], ["train.epochs=inf"]),
        (["--log.project", "../elsewhere"], ["log.project='../elsewhere'"]),
        (["--log.project", ""], ["log.project=''"]),
        (["--run.seed", "-1"], ["run.seed=-1"]),
        (["--model.logit_scale_init", "5"], ["model.logit_scale_init=5", "4.605"]),
        (["--model.context_length", "2"], ["model.context_length=2"]),
        (["--config", "/no/such/file.yaml"], ["/no/such/file.yaml"]),
    ],
)
def test_refused(good: str, arguments: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["--config", good, *arguments])
    for word in words:
        assert word in str(error.value)


def test_unknown_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("train: {max_steps: 5}\ndata: {batchsize: 8}\n")
    with pytest.raises(ConfigError, match=r"data\.batchsize; did you mean data\.batch_size\?"):
        load_config(["--config", str(path)])
    path.write_text("trian: {max_steps: 5}\n")
    with pytest.raises(ConfigError, match=r"did you mean train\.max_steps\?"):
        load_config(["--config", str(path)])


def test_every_field_is_documented() -> None:
    for section in SECTIONS.values():
        for f in fields(section):
            assert f"\n        {f.name}: " in (section.__doc__ or ""), f"{section.__name__}.{f.name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_load(path: Path) -> None:
    from miniclip.models import resolve

    config = load_config_file(path)
    assert isinstance(config, Config)
    assert resolve(config.model).embed_dim
    header = path.read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header), "a config starts with its command, hardware, time and result"
    assert any("train.py --config" in line for line in header)


def test_help_and_import_do_not_load_torch() -> None:
    """What makes `import miniclip` and `train.py --help` quick, without a stopwatch."""
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'open_clip', 'matplotlib', 'sklearn'}"
    code = f"import sys, miniclip, miniclip.config; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from miniclip.cli import train_main\n"
        "try: train_main()\n"
        f"except SystemExit as e: assert e.code == 0\nfound = {heavy} & set(sys.modules); assert not found, found"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "--data.batch_size" in shown
    assert "pairs a step over all processes" in shown


def test_error_is_one_line_on_stderr(good: str) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--config", good, "--data.batch_size", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().startswith("train.py: error: data.batch_size=1")
    assert "Traceback" not in result.stderr
