"""Imports go one way: a package may use those before it in the list, and nothing after."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "common",
    "config",
    "losses",
    "models",
    "metrics",
    "data",
    "training",
    "evaluation",
    "inspection",
    "doctor",
    "export",
    "search",
    "compare",
    "cli",
]


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, also inside functions and for types alone."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in found if name.split(".")[0] == "miniclip"}


def test_imports_go_down() -> None:
    upward = []
    for path in sorted((ROOT / "miniclip").glob("*/**/*.py")):
        own = path.relative_to(ROOT / "miniclip").parts[0]
        for name in imported(path):
            used = name.split(".")[1] if "." in name else "miniclip"
            if used not in PACKAGES[: PACKAGES.index(own) + 1]:
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not upward


def test_walk_sees_imports() -> None:
    found = imported(ROOT / "miniclip" / "training" / "run.py")
    assert {"miniclip.config", "miniclip.training.checkpoint", "miniclip.models.start"} <= found


def test_no_module_hides_a_standard_one() -> None:
    top = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not (top & set(sys.stdlib_module_names))


# what a reader of the method reads
CORE = {
    "models": ["clip", "text", "tower", "vit", "resnet", "transformer", "tokenizer", "preprocess"],
    "losses": ["losses", "matrix", "tiles", "transport", "energy"],
    "data": ["loader", "sampler", "augment"],
    "training": ["step", "loop", "optim", "gradcache"],
}
ROOMS = ("miniclip.evaluation", "miniclip.inspection", "miniclip.doctor", "miniclip.cli", "miniclip.data.audit")


def test_the_core_is_short_and_needs_no_room_around_it() -> None:
    paths = [ROOT / "miniclip" / package / f"{name}.py" for package, names in CORE.items() for name in names]
    assert not [f"{path.name} imports {name}" for path in paths for name in imported(path) if name.startswith(ROOMS)]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= 2500
