"""A run directory -> RUN/report/report.md and RUN/report/report.html, whether the run has finished or not."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from miniclip.common.console import is_words
from miniclip.common.durable import make_folder, whole_file
from miniclip.common.page import data_uri, render, render_page
from miniclip.data.tables.source import told_split
from miniclip.evaluation.report.examples import Example
from miniclip.evaluation.report.guarded import PREFIX, guarded
from miniclip.evaluation.report.markdown import inline, label, line
from miniclip.evaluation.report.read import PNG, Result, Run
from miniclip.evaluation.result import is_number, words_of
from miniclip.evaluation.tables import Table, calibration_table, chance, evaluation_tables, percent, value_text

if TYPE_CHECKING:
    from miniclip.config import Config

_FOLDER = "report"  # in the run
# options that are told even where they are the defaults
_TOLD = ("preset", "source", "batch_size", "name", "positives", "lr", "schedule", "weight_decay", "precision")
_WORDS = {"train_seconds": "seconds", "samples_per_s": "pairs a second"}
_CALIBRATION = "How far the probability of the chosen class is from how often it is right: 0 is best."
_TRAINED_ON = {
    "training data": "Training data: the model was trained on these images; it says little of new ones.",
    "training split": "Training split: what others publish of that data are figures of its test split.",
    "source of the training": "Source of the training: unless it has a split of its own, these were trained on.",
}
_LOGGED = ("loss", "loss_over_chance", "logit_scale", "grad_norm")


class Page(NamedTuple):
    """An HTML file of the run. mark: whether it shows training data. examples: what is shown of it."""

    name: str
    mark: str
    examples: Sequence[Example]


class Section(NamedTuple):
    """A heading and what stands below it: a remark, HTML files to look through, images, tables and sentences."""

    title: str
    text: str = ""
    pages: Sequence[Page] = ()
    images: Sequence[PNG] = ()
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()


def write_report(run_dir: Path) -> tuple[Path, Path]:
    """Write both (and curves.png beside them) from what the run holds; returns report.md and report.html.

    What is damaged, missing or outside the run is left out, and the report says so. Raises ValueError if run_dir is no
    run, or if its folder for the report leads out of it.
    """
    from miniclip.evaluation.plots import curves_png

    run, folder = Run(Path(run_dir)), Path(run_dir) / _FOLDER
    make_folder(folder)
    if not Path(os.path.realpath(folder)).is_relative_to(run.directory):
        raise ValueError(f"{folder} is a link that leads out of the run; remove it")
    markdown, page, curves = (folder / name for name in ("report.md", "report.html", "curves.png"))
    for path in (markdown, page, curves):
        if path.is_symlink():  # one to a device would be followed
            path.unlink()
    drawn = None
    try:
        curves_png(run.lines, curves, run.directory.name)
        drawn = run.png(f"{_FOLDER}/{curves.name}")
    except ValueError:  # no line holds a figure
        curves.unlink(missing_ok=True)
    told = {"title": run.directory.name or "run", "status": _status(run), "sections": sections(run, drawn)}
    helpers = {"is_words": is_words, "remark": _remark, "address": _address, "label": label, "line": line}
    values: dict[str, Any] = {**told, **helpers, "embedded": data_uri}
    here = Path(__file__)
    for path, text in (
        (markdown, render(here.with_name("report.md"), inline, **values)),
        (page, render_page(here.with_name("report.html"), **values)),
    ):
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    return markdown, page


def sections(run: Run, curves: PNG | None) -> list[Section]:
    """In the order in which a reader asks: how good, how it looks, how trained, what is confused, where it is from."""
    several = len({one.model for one in run.results}) > 1
    marks: dict[str, str] = {}  # by folder
    rows, details = [], []
    for result in run.results:
        own = "" if result.folder == "training" else result.folder.removeprefix("evaluation/")
        told = (result.evaluation.task, _model(run, result) if several else "", own)
        name = ", ".join(word for word in told if word)
        if mark := training_data(run.config, result):
            marks[result.folder] = mark
            name += f" ({mark})"
        rows.append((name, result.evaluation))
        details += [table._replace(title=f"{name}, {table.title}") for table in result.details]
    notes = dict.fromkeys(f"{name}: {note}" for name, result in rows for note in result.notes)
    read = ["In square brackets: 95 % interval, as other images of the same kind would give."] if rows else []
    read += [_TRAINED_ON[mark] for mark in _TRAINED_ON if mark in marks.values()]
    lacking = "" if curves else "There are no curves: metrics.jsonl holds no step."
    pages = [Page(name, marks.get(name.rpartition("/")[0], ""), found) for name, found in run.pages.items()]
    calibrated = [image for image in run.images if "calibration" in image.name]
    tables = [table for table in [calibration_table(rows)] if table.rows]
    guard = guarded(run)
    found = [
        Section(
            "Results",
            " ".join(read) or "There are no results yet.",
            tables=evaluation_tables(rows, intervals=True),
            items=list(notes),
        ),
        Section("What must not be lost", guard.text, tables=guard.tables),
        Section("Pictures", pages=pages, images=[image for image in run.images if image not in calibrated]),
        Section("Differences between models", tables=run.differences),
        Section("Training", lacking, images=[curves] if curves else [], tables=_facts(run)),
        Section("Classes and templates", tables=details),
        Section("Calibration", _CALIBRATION if tables else "", images=calibrated, tables=tables),
        Section("Where it comes from", tables=_origins(run)),
        Section("Left out", "What could not be used, and why:" if run.left_out else "", items=run.left_out),
    ]
    return [section for section in found if any(section[1:])]


def _model(run: Run, result: Result) -> str:
    """Its name, of a part of the run below that; nothing for the run itself."""
    name = Path(os.path.realpath(result.model[0]))
    within = name.is_relative_to(run.directory)
    return str(name.relative_to(run.directory)).removeprefix(".") if within else result.model[0]


def training_data(config: Config | None, result: Result) -> str:
    """A key of _TRAINED_ON if the images may be ones that the model has seen in training, else nothing.

    Told from the names alone: those of the run's own held-out split are new to it, whoever evaluates.
    """
    source, split, _ = result.data
    place, data = _place(source), config.data if config else None
    trained_on = [_place(one) for one in data.sources] if data else []
    known = any(place == one or place in one.parents or one in place.parents for one in trained_on)
    words = {told_split(split), told_split(place.name)} - {None}
    if any(str(word).startswith("train") for word in words) or (known and data and split == data.train_split):
        return "training data" if known else "training split"
    held_out = words or (data and split in (data.validation_split, data.test_split))
    return "source of the training" if known and not (result.evaluation.kind == "retrieval" and held_out) else ""


def _place(source: str) -> Path:
    """A file or folder as an absolute path, of a pattern its folder; nothing is looked up."""
    fixed = re.split(r"[*?{]", source)[0]
    return Path(source if fixed == source else fixed.rpartition("/")[0] or source).absolute()


def _training(run: Run) -> dict[str, Any]:
    found = run.sources["training"].get("training")
    return found if isinstance(found, dict) else {}


def _status(run: Run) -> str:
    """How far it came, in a sentence or two."""
    ended: Any = _training(run).get("steps")
    train, last, before = run.config.train if run.config else None, run.lines[-1] if run.lines else {"step": 0}, ""
    total = train.max_steps or 0 if train else 0
    if is_number(ended):
        # a resume may set out for more steps than the results beside it know of
        if last["step"] <= ended >= total:
            return f"Finished: {ended:,.0f} steps."
        before = f" It had finished {ended:,.0f} steps before, which its own results tell of."
    elif run.has_model:
        return "Finished: there is a model; how it was trained cannot be read."
    if not run.lines:
        return f"Not finished: no step has been logged yet.{before}"
    length = f" of {total:,}" if total else ""
    if not total and train and train.epochs and "epoch" in last:
        length = f", epoch {last['epoch']:.4g} of {train.epochs:.4g}"
    until = f"step {last['step']:,.0f}{length}, logged {run.written}"
    return f"Not finished: {until}. It is still training, or was cut off.{before}"


def _facts(run: Run) -> list[Table]:
    """How it was trained."""
    training, config, rows = dict(_training(run)), run.config, []
    if config:
        rows += [("parameters", _parameters(run)), ("model", _options(config.model)), ("data", _options(config.data))]
        rows += [("loss", _options(config.loss)), ("optimiser", _options(config.optim))]
        rows += [("training", f"{_options(config.train)}, seed {config.run.seed}")]
    if isinstance(best := training.pop("best", None), dict):
        figure, value = str(best.get("figure")), value_text(str(best.get("figure")), best.get("value"))
        rows.append(("weights", f"of step {best.get('step')}, the best {words_of(figure)} on validation: {value}"))
    if isinstance(bad := training.pop("bad", None), list) and bad:
        rows.append(("unreadable images", f"{len(bad):,}"))
    rows += [(_WORDS.get(key, key), f"{value:,.6g}") for key, value in training.items() if is_number(value)]
    if last := next((line for line in reversed(run.lines) if "loss" in line), None):
        logged = [f"{key.replace('_', ' ')} {last[key]:.4g}" for key in _LOGGED if key in last]
        rows.append((f"at step {last['step']:,.0f}", ", ".join(logged)))
    keys = dict.fromkeys(key for line in run.lines for key in line if key.startswith("eval/"))
    own = [key for key in keys if not key.startswith(PREFIX)]
    found = {key.removeprefix("eval/"): line[key] for line in run.lines for key in own if key in line}
    validated: dict[str, list[str]] = {}
    for key, share in found.items():
        task, _, figure = key.rpartition("/")
        said = f"{words_of(figure)} {value_text(figure, share)}{_by_chance(run, task, figure)}"
        validated.setdefault(task, []).append(said)
    rows += [(f"last validation, %: {task}", ", ".join(told)) for task, told in validated.items()]
    return [Table("", ("", "what it is"), rows)] if rows else []


def _by_chance(run: Run, task: str, figure: str) -> str:
    """Of a validation, which has the classes of the final tables, though not as many pairs."""
    own = (result.evaluation for result in run.results if (result.folder, result.evaluation.task) == ("training", task))
    by_chance = next((chance(one, figure) for one in own if one.kind != "retrieval"), None)
    return "" if by_chance is None else f" (chance {percent(by_chance)})"


def _options(section: Any) -> str:
    """The options that are not what they are by default, and those that a reader looks for anyway."""
    told = []
    for option in fields(section):
        value = getattr(section, option.name)
        if value is not None and (value != option.default or option.name in _TOLD):
            words = f"{value:.6g}" if isinstance(value, float) else str(value)
            told.append(f"{option.name.replace('_', ' ')} {words}")
    return ", ".join(told)


def _parameters(run: Run) -> str:
    """Counted on a model without memory."""
    import torch

    from miniclip.models.load import blank_of

    with torch.device("meta"):
        model = run.attempt("config.yaml, model", lambda: blank_of(run.directory)[0]()) if run.config else None
    return f"{sum(p.numel() for p in model.parameters()):,}" if model else "-"


def _origins(run: Run) -> list[Table]:
    commands = []
    for folder, values in run.sources.items():
        versions = values["versions"].items() if isinstance(values.get("versions"), dict) else ()
        told = ", ".join(f"{name} {version}" for name, version in versions if version)
        if values:
            commands.append((folder, str(values.get("time")), str(values.get("command")), told))
    models = dict.fromkeys(result.model for result in run.results)
    data = dict.fromkeys((result.folder, result.evaluation.task, *result.data) for result in run.results)
    tables = [
        Table("", ("from", "when", "command", "versions"), commands),
        Table("fingerprints of the weights", ("model", "fingerprint"), list(models)),
        Table("fingerprints of what was read", ("from", "task", "data", "split", "fingerprint"), list(data)),
    ]
    return [table for table in tables if table.rows]


def _remark(cell: Any) -> tuple[str, str, str]:
    """A cell without the chance or the mark of training data at its end, that, which the page sets apart, and how."""
    found = re.fullmatch(rf"(.*) (\((?:chance [\d.]+|{'|'.join(_TRAINED_ON)})\))", str(cell))
    return (found[1], found[2], "remark" if "chance" in found[2] else "mark") if found else (cell, "", "")


def _address(name: str) -> Markup:
    """Of a file of the run, from the report; no character is left that Markdown or HTML would take for its own."""
    below = name.removeprefix(f"{_FOLDER}/")
    return Markup(("../" if below == name else "") + quote(os.fsencode(below)))
