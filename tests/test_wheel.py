"""The wheel, installed where there is no clone: all files are in it, and the commands do what they do here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support.files import write_images

ROOT = Path(__file__).parents[1]
SMALL = """
--model.embed_dim 8 --model.image_encoder vit --model.image_size 32 --model.patch_size 16 --model.image_width 16
--model.image_layers 1 --model.image_heads 2 --model.text_width 16 --model.text_heads 2 --model.text_layers 1
--data.size 40 --data.batch_size 8 --train.max_steps 2 --train.precision fp32 --train.low_image_size null --eval.size 16
--eval.tasks [retrieval] --log.trackers [] --log.progress false --run.dir run"""
COMMANDS = f"""train --config shapes {" ".join(SMALL.split())}
eval zeroshot --checkpoint run --task shape --size 16
export run clip --to transformers
index photos --model run --out photos.index
search photos.index a red circle --top 2 --html found.html"""
# all of them in one process, for importing torch takes longer than any of them
SCRIPT = f"""
import sys
import miniclip
from miniclip.cli.main import main
assert miniclip.__file__.startswith(sys.prefix), miniclip.__file__
for line in {COMMANDS.splitlines()!r}:
    sys.argv = ["miniclip", *line.split()]
    assert main() == 0, line
"""


def build(copy: Path) -> Path:
    """-> the wheel. Of a copy: setuptools leaves things where it builds."""
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in ("miniclip", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist")], copy)
    return next((copy / "dist").glob("*.whl"))


def run(command: list[str], folder: Path) -> str:
    """In a folder outside the clone, which nothing leads back to -> stdout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_files(wheel: Path) -> None:
    """Also those that are no Python: templates, style sheets, scripts, the merge table, the configurations."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "miniclip").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    here = {str(path.relative_to(ROOT)) for path in files}
    here |= {f"miniclip/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.yaml")}
    assert packed == here and len({Path(name).suffix for name in here}) >= 6


@pytest.mark.slow
def test_an_installed_wheel(tmp_path: Path) -> None:
    """In an environment that has nothing but it, and sees the packages of this one."""
    check_files(wheel := build(tmp_path / "copy"))
    run([sys.executable, "-m", "venv", "--without-pip", "fresh"], tmp_path)
    python = tmp_path / "fresh" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], tmp_path)
    (site,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # but not those to which a .pth there leads
    write_images(tmp_path / "photos", 4)
    run([str(python), "-c", SCRIPT], tmp_path)
    made = ("run/results.json", "clip/model.safetensors", "photos.index/images.parquet", "found.html")
    assert all((tmp_path / name).is_file() for name in made)
    assert "miniclip train --config shapes" in run([str(python.with_name("miniclip")), "--help"], tmp_path)
