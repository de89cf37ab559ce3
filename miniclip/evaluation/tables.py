"""Results -> tables for people. The pictures are in `pictures`, `sheet` and `plots`, the JSON in `result`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from miniclip.common.console import new_table, open_console, plain
from miniclip.evaluation.result import Evaluation
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SHOWN_CLASSES = 20
_TITLES = {"zeroshot": "zero-shot", "retrieval": "retrieval", "probe": "probe"}


def print_evaluations(results: Mapping[str, Evaluation], title: str = "", console: Console | None = None) -> None:
    """One table a kind, its rows named by the keys (a checkpoint, a task), with the notes of all below.

    A single zero-shot result also gets its classes and its templates.
    """
    console = console or open_console()
    rows = {"zeroshot": _zero_shot_rows, "retrieval": _retrieval_rows, "probe": _probe_rows}
    for kind, fill in rows.items():
        found = {name: result for name, result in results.items() if result.kind == kind}
        if found:
            console.print(fill(found, title or _TITLES[kind]))
    foreign = {name: result for name, result in results.items() if "auroc_entropy" in result.figures}
    if foreign:
        console.print(_foreign_rows(foreign))
    for note in dict.fromkeys(note for result in results.values() for note in result.notes):
        console.print(plain(note))
    if len(results) == 1:
        (result,) = results.values()
        for table in _more(result):
            console.print(table)


def print_differences(
    differences: Mapping[str, Mapping[str, Figure]], than: str, console: Console | None = None
) -> None:
    """One row for each model: its figures less those of the model called than, with the interval of the difference."""
    console = console or open_console()
    names = list(next(iter(differences.values())))
    table = new_table(f"difference from {than}, with 95 % interval; * leaves out 0", "", names)
    for name, figures in differences.items():
        table.add_row(plain(name), *(_difference(figure, figures[figure]) for figure in names))
    console.print(table)


def show(name: str, figure: Figure, interval: bool = True) -> str:
    """A figure as people read it: shares in per cent, ranks as they are, the interval behind it."""
    values = [_number(name, value) for value in (figure.value, figure.low, figure.high)]
    return values[0] + (f" [{values[1]}, {values[2]}]" if interval and figure.low == figure.low else "")


def _number(name: str, value: float) -> str:
    if value != value:
        return "-"
    if "rank" in name:
        return f"{value:g}" if "median" in name else f"{value:.1f}"
    return f"{value:.3f}" if "auroc" in name else f"{100 * value:.1f}"


def _difference(name: str, figure: Figure) -> str:
    values = [("+" if value > 0 else "") + _number(name, value) for value in (figure.value, figure.low, figure.high)]
    return f"{values[0]} [{values[1]}, {values[2]}]" + ("" if figure.low <= 0 <= figure.high else " *")


def _zero_shot_rows(results: Mapping[str, Evaluation], title: str) -> Table:
    columns = ("pictures", "classes", "top-1 %", "top-5 %", "balanced %", "macro F1 %", "ECE %", "chance %")
    table = new_table(title, "", columns)
    for name, result in results.items():
        found, details = result.figures, result.details
        shown = [show(key, found[key]) if key in found else "-" for key in ("top1",)]
        rest = ("top5", "balanced_accuracy", "macro_f1", "ece")
        shown += [show(key, found[key], interval=False) if key in found else "-" for key in rest]
        classes = str(len(details["classes"])) if "classes" in details else "-"
        chance = _percent(details["chance"])
        table.add_row(plain(name), str(found["top1"].n), classes, *shown, chance)
    return table


def _retrieval_rows(results: Mapping[str, Evaluation], title: str) -> Table:
    """Two rows for each result, one a direction."""
    columns = ("direction", "queries", "R@1 %", "R@5 %", "R@10 %", "median rank", "mean rank", "mAP %", "chance R@10 %")
    table = new_table(title, "", columns)
    for name, result in results.items():
        for way in ("image_to_text", "text_to_image"):
            found = {key.removeprefix(way + "_"): figure for key, figure in result.figures.items()}
            shown = [show(key, found[key], interval=key == "r10") for key in ("r1", "r5", "r10")]
            shown += [show(key, found[key], interval=False) for key in ("median_rank", "mean_rank", "map")]
            first = plain(name) if way == "image_to_text" else ""
            chance = _percent(result.details[f"chance_{way}_r10"])
            table.add_row(first, way.replace("_to_", " -> "), str(found["r1"].n), *shown, chance)
    return table


def _probe_rows(results: Mapping[str, Evaluation], title: str) -> Table:
    names = list(dict.fromkeys(name for result in results.values() for name in result.figures))
    table = new_table(title, "", ("pictures", *(f"{name.replace('_', ' ')} %" for name in names)))
    for name, result in results.items():
        shown = [show(key, result.figures[key]) if key in result.figures else "-" for key in names]
        table.add_row(plain(name), str(next(iter(result.figures.values())).n), *shown)
    return table


def _more(result: Evaluation) -> list[Table]:
    details, tables = result.details, []
    if 0 < len(details.get("per_class", ())) <= _SHOWN_CLASSES and "confusion" in details:
        tables.append(_class_table(details["per_class"], details["confusion"]))
    if details.get("templates"):
        tables.append(_template_table(details["templates"], result["top1"]))
    return tables


def _foreign_rows(results: Mapping[str, Evaluation]) -> Table:
    scores = ("free_energy", "max_probability", "entropy")
    names = [f"{figure}_{score}" for score in scores for figure in ("auroc", "fpr95")]
    columns = [f"{word}, {score.replace('_', ' ')}" for score in scores for word in ("AUROC", "FPR@95 %")]
    table = new_table("none of these classes?", "", columns)
    for name, result in results.items():
        table.add_row(plain(name), *(show(figure, result.figures[figure]) for figure in names))
    return table


def _class_table(per_class: Sequence[Mapping[str, Any]], confusion: Sequence[Sequence[int]]) -> Table:
    columns = ("pictures", "recall %", "precision %", "F1 %", "most often taken for")
    table = new_table("by class", "class", columns)
    for k, (row, counts) in enumerate(zip(per_class, confusion, strict=True)):
        wrong = [count if j != k else 0 for j, count in enumerate(counts)]
        rival = f"{per_class[wrong.index(max(wrong))]['class']} ({max(wrong)})" if max(wrong) else ""
        scores = (_percent(row[name]) for name in ("recall", "precision", "f1"))
        table.add_row(plain(row["class"]), str(row["n"]), *scores, plain(rival))
    return table


def _template_table(templates: Sequence[Mapping[str, Any]], together: float) -> Table:
    """The best and the worst three, and how far they lie apart."""
    ordered = sorted(templates, key=lambda row: -row["top1"])
    values = [row["top1"] for row in ordered]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    table = new_table(f"by template, {len(ordered)}", "template", ("top-1 %",))
    for row in ordered if len(ordered) <= 6 else [*ordered[:3], *ordered[-3:]]:
        table.add_row(plain(row["template"]), _percent(row["top1"]))
    table.add_row("mean ± deviation", f"{_percent(mean)} ± {_percent(deviation)}")
    table.add_row("all together", _percent(together))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None or share != share else f"{100 * share:.1f}"
