"""What a run directory holds, for its report: nothing outside of it is read, and what cannot be used is named."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from miniclip.common.printing import printable
from miniclip.common.runs import did_you_mean_run
from miniclip.evaluation.report.examples import Example, examples, whole_image
from miniclip.evaluation.result import Evaluation, is_number
from miniclip.evaluation.tables import Table, class_tables, difference_table, evaluation_tables, template_tables
from miniclip.metrics.bootstrap import Figure, Statistic

if TYPE_CHECKING:
    from miniclip.config import Config

_KINDS = ("zeroshot", "retrieval", "probe")
T = TypeVar("T")


class PNG(NamedTuple):
    """An image that really is one. name: path below the run, with slashes."""

    name: str
    content: bytes
    size: tuple[int, int]


class Result(NamedTuple):
    """details: tables of its classes and templates. model: name, fingerprint. data: source, split, fingerprint."""

    folder: str
    evaluation: Evaluation
    details: list[Table]
    model: tuple[str, ...]
    data: tuple[str, ...]


class Run:
    """A run as it is found. sources: what each results.json holds, by its folder, "training" for the run's own.

    pages: HTML files, with the examples in them. written: when the last line of metrics was. left_out: file and why, a
    line each. Raises ValueError if it is no run.
    """

    def __init__(self, run_dir: Path) -> None:
        from miniclip.config import load_config_file

        self.directory = Path(os.path.realpath(run_dir))
        config = self.directory / "config.yaml"
        if not config.is_file():
            instead = did_you_mean_run(run_dir) or "name the directory that train.py wrote (run.dir)"
            raise ValueError(f"{run_dir} is no run: it holds no config.yaml; {instead}")
        self.left_out: list[str] = []
        self.has_model = (self.directory / "model" / "model.safetensors").is_file()
        readable = self.attempt(config.name, self._content, config.name) is not None
        self.config: Config | None = self.attempt(config.name, load_config_file, config) if readable else None
        self.written = ""
        self.lines = self._metrics()
        self.sources: dict[str, dict[str, Any]] = {}
        self.results: list[Result] = []
        self.differences: list[Table] = []
        found = self.attempt("evaluation", self._find, "evaluation/", "[!.]*") or []
        folders = ["", *(f"{name}/" for name in found if (self.directory / name).is_dir())]
        for folder in folders:
            self._read_results(folder)
        files = [name for folder in (*folders, "inspection/") for name in self._find(folder, "*", strict=False)]
        pngs = [self.attempt(name, self.png, name) for name in files if name.endswith(".png")]
        self.images = [png for png in pngs if png]
        pages = [name for name in files if name.endswith(".html") and self._is_inside(name)]
        self.pages = {name: self.attempt(name, self._examples, name) or [] for name in pages}

    def attempt(self, place: str, read: Callable[..., T], *arguments: Any) -> T | None:
        """What read returns; None, and a line in left_out, where it fails."""
        try:
            return read(*arguments)
        except Exception as error:  # what is damaged fails in many ways
            said = (str(error).strip().splitlines() or [""])[0]
            own = type(error) is ValueError
            self.left_out.append(printable(f"{place}: {said if own else f'damaged ({type(error).__name__}: {said})'}"))
        return None

    def png(self, name: str) -> PNG:
        """Raises ValueError, or what Pillow raises, unless it is a PNG of a sane size inside the run."""
        content = self._content(name, limit=8)  # it goes into the page as it is
        return PNG(name, content, whole_image(content, "PNG").size)

    def _examples(self, name: str) -> list[Example]:
        is_sheet = name.rpartition("/")[2] == "examples.html"
        return examples(self._content(name).decode("utf-8", "replace")) if is_sheet else []

    def _is_inside(self, name: str) -> bool:
        return Path(os.path.realpath(self.directory / name)).is_relative_to(self.directory)

    def _find(self, folder: str, pattern: str, strict: bool = True) -> list[str]:
        """strict: whether a folder outside of the run is named as such."""
        if not self._is_inside(folder):
            if strict:
                raise ValueError("a link leads out of the run")
            return []
        return sorted(folder + path.name for path in (self.directory / folder).glob(pattern))

    def _content(self, name: str, limit: int = 256) -> bytes:
        """limit: in MiB."""
        path = self.directory / name
        if not self._is_inside(name):
            raise ValueError("a link leads out of the run")
        if not path.is_file():
            raise ValueError("no file")
        if path.stat().st_size > limit << 20:
            raise ValueError(f"larger than {limit} MiB")
        return path.read_bytes()

    def _metrics(self) -> list[dict[str, float]]:
        """The lines with a step; what is not a finite number is dropped from them."""
        file = self.directory / "metrics.jsonl"
        if not os.path.lexists(file) or (content := self.attempt(file.name, self._content, file.name)) is None:
            return []
        self.written = f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC"
        found, bad = [], []
        for k, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
            try:
                if line.strip():
                    values = {name: value for name, value in _clean(json.loads(line)).items() if is_number(value)}
                    found.append({"step": values["step"], **values})
            except (ValueError, AttributeError, KeyError, RecursionError):
                bad.append(str(k))
        if bad:
            shown = ", ".join(bad[:5]) + (f", ... ({len(bad)} lines)" if len(bad) > 5 else "")
            self.left_out.append(f"metrics.jsonl, line {shown}: not JSON with a step, or still being written")
        return found

    def _read_results(self, folder: str) -> None:
        """folder: "" or "evaluation/NAME/"."""
        name, file = folder.removesuffix("/") or "training", f"{folder}results.json"
        values = None
        if folder or os.path.lexists(self.directory / file):  # else a run that is at work
            values = self.attempt(file, lambda: dict(_clean(json.loads(self._content(file)))))
        self.sources[name] = values or {}
        if values is None:
            return
        values = {"differences": [], **values}
        kept: list[Any]
        for key, read, kept in (("results", _result, self.results), ("differences", _difference, self.differences)):
            if not isinstance(values.get(key), list):
                self.left_out.append(f'{file}: no list of "{key}"')
                continue
            made = [self.attempt(f"{file}, {key}[{k}]", read, name, entry) for k, entry in enumerate(values[key])]
            kept += [one for one in made if one]


def _clean(value: Any) -> Any:
    """Printable texts, and None for numbers that are none."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_clean(entry) for entry in value]
    # beyond 1e100 it would overflow what is counted from it; NaN compares as false
    return None if isinstance(value, int | float) and not abs(value) < 1e100 else value


def _result(folder: str, entry: dict[str, Any]) -> Result:
    """Raises whatever it may for an entry that is damaged, of which no table can be made."""
    if entry["kind"] not in _KINDS:
        raise ValueError(f"kind is none of {', '.join(_KINDS)}")
    details = {name: value for name, value in entry["details"].items() if value is not None}
    notes, task = tuple(map(str, entry["notes"])), str(entry["task"] or "(no name)")
    result = Evaluation(entry["kind"], task, _figures(entry), details, notes, "", statistic=Statistic())
    evaluation_tables([(task, result)], intervals=True)
    model = (str(entry["model"].get(key) or "-") for key in ("name", "fingerprint"))
    data = (str(entry["data"].get(key) or "-") for key in ("source", "split", "fingerprint"))
    return Result(folder, result, [*class_tables(result), *template_tables(result)], tuple(model), tuple(data))


def _difference(folder: str, entry: dict[str, Any]) -> Table:
    return difference_table([(str(entry["of"]), _figures(entry))], f"{entry['than']}, {entry['task']}", verdict=True)


def _figures(entry: dict[str, Any]) -> dict[str, Figure]:
    """None becomes NaN."""
    if not entry["figures"]:
        raise ValueError("no figures")
    found = {}
    for name, values in entry["figures"].items():
        value, low, high = (math.nan if values[key] is None else values[key] for key in ("value", "low", "high"))
        found[name] = Figure(value, low, high, values["n"])
    return found
