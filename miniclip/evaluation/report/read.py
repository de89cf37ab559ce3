"""What a run directory holds, for its report: read as it is found, with a word on everything that cannot be used.

Nothing is read that lies outside the directory, be it by a link.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.common.printing import printable
from miniclip.evaluation.report.files import PNG, Files, mapping, number, parsed, text
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from miniclip.config import Config

TRAINING = "training"  # where the results of train.py come from
KINDS = ("zeroshot", "retrieval", "probe")
# what the pictures beside the results show; {} is what stands in the place of the *
PICTURES = {
    "confusion.png": "confusion: rows are the true classes",
    "confusion_*.png": "confusion, {}: rows are the true classes",
    "calibration.png": "how sure the model is, against how often it is right",
    "templates.png": "top-1 accuracy of each template",
    "foreign.png": "known against foreign pictures",
    "shots.png": "accuracy of a linear probe by the number of training pictures a class",
    "examples.png": "pictures with their best captions",
    "queries.png": "queries with their best pictures",
    "compare.png": "the models side by side",
}
_TABLES = {
    "per_class": ("class", "n", "precision", "recall", "f1"),
    "calibration": ("low", "high", "n", "confidence", "accuracy"),
    "templates": ("template", "top1"),
    "shots": ("shots", "mean", "std", "draws"),
}


@dataclass(frozen=True)
class Result:
    """One of a file's "results". details: its tables have all the keys that `result` promises, or are left out."""

    kind: str
    task: str
    model: str
    model_fingerprint: str
    data: str
    split: str
    fingerprint: str
    figures: dict[str, Figure]
    details: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class Difference:
    """Of one model, less another's."""

    of: str
    than: str
    task: str
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Source:
    """A folder with results: the run itself, or one below evaluation/. pages: HTML files, by their paths."""

    name: str
    command: str = ""
    time: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    pictures: list[PNG] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """config: None if it cannot be read. written: of the last line of metrics. left_out: file and why, in a line."""

    directory: Path
    config: Config | None
    lines: list[dict[str, float]]
    written: datetime | None
    sources: list[Source]
    matrix: PNG | None
    matrix_page: str | None
    has_model: bool
    left_out: list[str]


def read_run(run_dir: Path) -> Run:
    """Raises ValueError if it is no run."""
    directory = Path(os.path.realpath(run_dir))
    if not (directory / "config.yaml").is_file():
        raise ValueError(f"{run_dir} is no run: it holds no config.yaml; {_instead(directory)}")
    files = Files(directory)
    config, lines = _config(files), _metrics(files)
    sources = [_source(files, "")]
    sources += [_source(files, f"evaluation/{name}/") for name in files.folders("evaluation")]
    pages = files.pages("inspection/", "report.html")
    return Run(
        directory,
        config,
        lines,
        datetime.fromtimestamp((directory / "metrics.jsonl").stat().st_mtime, UTC) if lines else None,
        sources,
        files.picture("inspection/matrix.png", "the matrix of a batch"),
        pages[0] if pages else None,
        (directory / "model" / "model.safetensors").is_file(),
        files.left_out,
    )


def _instead(directory: Path) -> str:
    if not directory.is_dir():
        return "name the directory that train.py wrote (run.dir)"
    for parent in directory.parents:
        if (parent / "config.yaml").is_file():
            return f"did you mean {parent}?"
    runs = sorted(path.parent.name for path in directory.glob("*/config.yaml"))
    if runs:
        return f"name one of the runs in it, e.g. {directory / runs[0]}"
    return "name the directory that train.py wrote (run.dir)"


def _config(files: Files) -> Config | None:
    from miniclip.config import ConfigError, load_config_file

    if files.content("config.yaml") is None:
        return None
    try:
        return load_config_file(files.directory / "config.yaml")
    except ConfigError as error:
        files.refuse("config.yaml", str(error).strip().splitlines()[0])
    except Exception as error:  # the parsers of YAML and of its values fail in many ways
        files.refuse("config.yaml", f"cannot be read ({type(error).__name__})")
    return None


def _metrics(files: Files) -> list[dict[str, float]]:
    """The lines with a step; what is not a finite number is dropped from them."""
    found: list[dict[str, float]] = []
    bad: dict[str, list[int]] = {}
    lines = (files.content("metrics.jsonl") or b"").decode("utf-8", "replace").split("\n")
    for k, line in enumerate(lines, 1):
        if not line.strip():
            continue
        values = parsed(line)
        if values is None:
            why = "not JSON" + (", or still being written" if k == len(lines) else "")
            bad.setdefault(why, []).append(k)
        elif not isinstance(values, dict) or number(values.get("step")) is None:
            bad.setdefault("no step", []).append(k)
        else:
            kept = {name: number(value) for name, value in values.items()}
            found.append({printable(name): value for name, value in kept.items() if value is not None})
    for why, places in bad.items():
        shown = ", ".join(map(str, places[:5])) + (f", ... ({len(places)} lines)" if len(places) > 5 else "")
        files.refuse(f"metrics.jsonl, line {shown}", why)
    return found


def _source(files: Files, folder: str) -> Source:
    """folder: "" or "evaluation/NAME/"."""
    pictures = []
    for pattern, caption in PICTURES.items():
        before, _, after = pattern.partition("*")
        for path in sorted((files.directory / folder).glob(pattern)):
            what = path.name.removeprefix(before).removesuffix(after)
            if found := files.picture(folder + path.name, caption.format(printable(what))):
                pictures.append(found)
    name = folder.removesuffix("/") or TRAINING
    rest: dict[str, Any] = {"pictures": pictures, "pages": files.pages(folder)}
    file = folder + "results.json"
    content = files.content(file)
    if content is None:
        if folder and not os.path.lexists(files.directory / file):
            files.refuse(file, "does not exist")
        return Source(name, **rest)
    values = parsed(content)
    if not isinstance(values, dict):
        files.refuse(file, "not JSON" if values is None else "not an object with results")
        return Source(name, **rest)
    results = _several(files, file, values, "results", required=True)
    differences = _several(files, file, values, "differences", required=False)
    versions = {text(k): text(v) for k, v in mapping(values.get("versions")).items() if text(v)}
    return Source(
        name,
        text(values.get("command")),
        text(values.get("time")),
        versions,
        mapping(values.get("training")),
        [r for place, value in results if (r := _result(files, place, value))],
        [d for place, value in differences if (d := _difference(files, place, value))],
        **rest,
    )


def _several(files: Files, file: str, values: dict[str, Any], key: str, required: bool) -> list[tuple[str, Any]]:
    entries = values.get(key, None if required else [])
    if not isinstance(entries, list):
        files.refuse(file, f'no list of "{key}"')
        return []
    return [(f"{file}, {key}[{k}]", entry) for k, entry in enumerate(entries)]


def _result(files: Files, place: str, value: Any) -> Result | None:
    values = mapping(value)
    kind = values.get("kind")
    if kind not in KINDS:
        files.refuse(place, f"kind is none of {', '.join(KINDS)}")
        return None
    figures = _figures(files, place, values.get("figures"))
    if not figures:
        files.refuse(place, "no figures")
        return None
    model, data = mapping(values.get("model")), mapping(values.get("data"))
    notes = values.get("notes")
    return Result(
        kind,
        text(values.get("task")) or "(no name)",
        text(model.get("name")),
        text(model.get("fingerprint")),
        text(data.get("source")),
        text(data.get("split")),
        text(data.get("fingerprint")),
        figures,
        _details(files, place, mapping(values.get("details"))),
        [text(note) for note in notes] if isinstance(notes, list) else [],
    )


def _difference(files: Files, place: str, value: Any) -> Difference | None:
    values = mapping(value)
    figures = _figures(files, place, values.get("figures"))
    if not figures:
        files.refuse(place, "no figures")
        return None
    return Difference(text(values.get("of")), text(values.get("than")), text(values.get("task")), figures)


def _figures(files: Files, place: str, value: Any) -> dict[str, Figure]:
    """None becomes NaN, and n 0 where it is not known."""
    found = {}
    for name, entry in mapping(value).items():
        if not isinstance(entry, dict) or "value" not in entry:
            files.refuse(f"{place}, {name}", "no value")
            continue
        value, low, high = (math.nan if (x := number(entry.get(k))) is None else x for k in ("value", "low", "high"))
        found[printable(name)] = Figure(value, low, high, int(number(entry.get("n")) or 0))
    return found


def _details(files: Files, place: str, values: dict[str, Any]) -> dict[str, Any]:
    kept = dict(values)
    for name, keys in _TABLES.items():
        rows = values.get(name)
        if rows is None:
            kept.pop(name, None)
        elif not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(keys) for row in rows):
            files.refuse(f"{place}, details.{name}", f"not a list of {{{', '.join(keys)}}}")
            del kept[name]
    confusion, per_class = values.get("confusion"), kept.get("per_class")
    if not _is_square(confusion, len(per_class or ())):
        kept.pop("confusion", None)
        if confusion is not None and per_class is not None:
            files.refuse(f"{place}, details.confusion", f"not {len(per_class)} x {len(per_class)} whole numbers")
    return kept


def _is_square(counts: Any, side: int) -> bool:
    return (
        isinstance(counts, list)
        and len(counts) == side
        and all(isinstance(row, list) and len(row) == side and all(isinstance(n, int) for n in row) for row in counts)
    )
