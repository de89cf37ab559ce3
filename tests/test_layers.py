"""Imports go one way: a module may use what stands before it in the list, and nothing after."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up. A package is one layer; inside it the order below holds as well.
LAYERS = [
    "sections",
    "eval_section",
    "config",
    "printing",
    "stopping",
    "console",
    "processes",
    "arguments",
    "tokenizer",
    "energy",
    "transport",
    "rows",
    "entries",
    "losses",
    "matrix",
    "tiles",
    "metrics",
    "weighted",
    "intervals",
    "geometry",
    "models.presets",
    "models.transformer",
    "models.text",
    "models.vocabulary",
    "models.vit",
    "models.resnet",
    "models.clip",
    "models",
    "data.transforms",
    "data.images",
    "data.captions",
    "data.drawing",
    "data.stamps",
    "data.shapes",
    "data.texts",
    "data.patterns",
    "data.tables",
    "data.folders",
    "data.tars",
    "data.arrow",
    "data.reading",
    "data.columns",
    "data.pictures",
    "data.splits",
    "data.bad",
    "data.several",
    "data.sources",
    "data.weights",
    "data.subset",
    "data.plain",
    "data.known",
    "data.classnames",
    "data.labelled",
    "data.store",
    "data.prepared",
    "data.order",
    "data.loader",
    "data.shards",
    "data.lanes",
    "data.streaming",
    "data.aside",
    "data.collisions",
    "data.duplicates",
    "data.audit_figures",
    "data.audit_shared",
    "data.audit_report",
    "data.audit_picture",
    "data.audit",
    "data",
    "precision",
    "flops",
    "pace",
    "feed",
    "hardware",
    "objective",
    "gradcache",
    "optim",
    "checkpoint",
    "rundir",
    "evaluation.result",
    "evaluation.encode",
    "interop.adapted",
    "interop.open_clip",
    "interop.transformers_clip",
    "interop",
    "evaluation.options",
    "evaluation.prompts",
    "evaluation.zeroshot",
    "evaluation.retrieval",
    "evaluation.probe",
    "evaluation.probing",
    "evaluation.pictures",
    "evaluation.plots",
    "evaluation.sheet",
    "evaluation.tables",
    "evaluation.suite",
    "evaluation.report_files",
    "evaluation.report_values",
    "evaluation.report_read",
    "evaluation.report_render",
    "evaluation.report_training",
    "evaluation.report_content",
    "evaluation.report",
    "evaluation",
    "inspection.contents",
    "inspection.figures",
    "inspection.watch",
    "inspection.ordering",
    "inspection.suspects",
    "inspection.views",
    "inspection.verdicts",
    "inspection.sample",
    "inspection.history",
    "inspection.build",
    "inspection.numbers",
    "inspection.picture",
    "inspection.report",
    "inspection.command",
    "inspection",
    "best",
    "training",
    "checkup.data",
    "checkup.trial",
    "checkup.speed",
    "checkup.fit",
    "checkup.pairs",
    "checkup",
    "doctor",
    "evaluation.commands",
    "evaluation.cli",
    "cli",
    "__init__",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "miniclip").rglob("*.py")):
        parts = path.relative_to(ROOT / "miniclip").with_suffix("").parts
        found[".".join(parts[:-1]) if len(parts) > 1 and parts[-1] == "__init__" else ".".join(parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, also inside functions; type checking does not count."""
    names = set()
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "miniclip":
            base = node.module.removeprefix("miniclip").removeprefix(".")
            known = modules()
            for alias in node.names:
                full = f"{base}.{alias.name}" if base else alias.name
                names.add(full if full in known else base or "__init__")
        elif isinstance(node, ast.Import):
            names.update(a.name.removeprefix("miniclip.") for a in node.names if a.name.startswith("miniclip."))
    return names


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set(LAYERS)


def test_imports_go_down() -> None:
    upward = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in imported(path)
        if LAYERS.index(used) >= LAYERS.index(name) and used != name
    ]
    assert not upward


def test_walk_sees_imports() -> None:
    found = imported(ROOT / "miniclip" / "training.py")
    assert {"config", "checkpoint", "data.loader", "evaluation.suite", "objective", "models"} <= found


def test_no_module_hides_a_standard_one() -> None:
    top = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not (top & set(sys.stdlib_module_names))
