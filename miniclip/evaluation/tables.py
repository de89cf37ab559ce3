"""Results -> tables for people, on the terminal and in the report. Images are drawn in `plots` and `galleries`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from miniclip.common.console import new_table, open_console, plain
from miniclip.evaluation.result import Evaluation, is_number, lower_is_better
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_CLASSES = 20
_KINDS = {"zeroshot": "zero-shot", "retrieval": "retrieval", "probe": "probe"}
# name of a figure -> heading of its column
_ZERO_SHOT = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "balanced_accuracy": "balanced %",
    "macro_f1": "macro F1 %",
    "ece": "ECE %",
}
_RETRIEVAL = {f"r{k}": f"R@{k} %" for k in (1, 5, 10)}
_RETRIEVAL |= {"median_rank": "median rank", "mean_rank": "mean rank", "map": "mAP %"}
_FOREIGN = {
    f"{figure}_{score.replace(' ', '_')}": f"{word}, {score}"
    for score in ("free energy", "max probability", "entropy")
    for figure, word in (("auroc", "AUROC"), ("fpr95", "FPR@95 %"))
}

# What a row is called, and what stands in it.
Rows = Sequence[tuple[str, Evaluation]]


class Table(NamedTuple):
    """Words and figures as they are shown. columns: headings, the first one of what the rows are called."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_evaluations(results: Mapping[str, Evaluation], title: str = "", console: Console | None = None) -> None:
    """One table a kind, its rows named by the keys (a checkpoint, a task), with the notes of all below.

    A single zero-shot result also gets its classes and its templates.
    """
    console = console or open_console()
    for table in evaluation_tables(list(results.items()), title):
        _print(console, table)
    for note in dict.fromkeys(note for result in results.values() for note in result.notes):
        console.print(plain(note))
    if len(results) == 1:
        (result,) = results.values()
        few = len(result.details.get("per_class", ())) <= _SHOWN_CLASSES
        for table in [*(class_tables(result) if few else ()), *template_tables(result)]:
            _print(console, table)


def print_differences(
    differences: Mapping[str, Mapping[str, Figure]], than: str, console: Console | None = None
) -> None:
    """One row for each model: its figures less those of the model called than, with the interval of the difference."""
    _print(console or open_console(), difference_table(list(differences.items()), than))


def _print(console: Console, table: Table) -> None:
    drawn = new_table(table.title, table.columns[0], table.columns[1:])
    for row in table.rows:
        drawn.add_row(*map(plain, row))
    console.print(drawn)


def evaluation_tables(rows: Rows, title: str = "", intervals: bool = False) -> list[Table]:
    """One a kind, and one of the scores of foreign images. intervals: of every figure, not only of the main ones."""
    tables = []
    for kind, name in _KINDS.items():
        if own := [(row, result) for row, result in rows if result.kind == kind]:
            fill = {"zeroshot": _zero_shot, "retrieval": _retrieval, "probe": _probe}[kind]
            tables.append(Table(title or name, *fill(own, intervals)))
    foreign = [(name, result.figures) for name, result in rows if "auroc_entropy" in result.figures]
    if foreign:
        lines = [(name, *(show(key, figures.get(key)) for key in _FOREIGN)) for name, figures in foreign]
        tables.append(Table("none of these classes?", ("", *_FOREIGN.values()), lines))
    return tables


Filled = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _zero_shot(rows: Rows, intervals: bool) -> Filled:
    lines = []
    for name, result in rows:
        shown = [show(key, result.figures.get(key), intervals or key == "top1") for key in _ZERO_SHOT]
        classes = str(len(result.details["classes"])) if "classes" in result.details else "-"
        lines.append((name, _count(result), classes, *shown, percent(result.details.get("chance"))))
    return ("", "images", "classes", *_ZERO_SHOT.values(), "chance %"), lines


def _retrieval(rows: Rows, intervals: bool) -> Filled:
    """Two rows for each result, one a direction."""
    lines = []
    for name, result in rows:
        for way in ("image_to_text", "text_to_image"):
            found = {key: result.figures.get(f"{way}_{key}") for key in _RETRIEVAL}
            shown = [show(key, figure, intervals or key == "r10") for key, figure in found.items()]
            queries = next((str(figure.n) for figure in found.values() if figure), "-")
            chance = percent(result.details.get(f"chance_{way}_r10"))
            first = name if way == "image_to_text" else ""
            lines.append((first, way.replace("_to_", " -> "), queries, *shown, chance))
    return ("", "direction", "queries", *_RETRIEVAL.values(), "chance R@10 %"), lines


def _probe(rows: Rows, intervals: bool) -> Filled:
    """The chance only where there is room for intervals."""
    names = list(dict.fromkeys(name for _, result in rows for name in result.figures))
    lines = []
    for name, result in rows:
        chance = [percent(result.details.get("chance"))] * intervals
        lines.append((name, _count(result), *(show(key, result.figures.get(key)) for key in names), *chance))
    columns = (f"{name.replace('_', ' ')} %" for name in names)
    return ("", "images", *columns, *["chance %"] * intervals), lines


def class_tables(result: Evaluation) -> list[Table]:
    """The classes of a zero-shot result, if it has any; of more than 20 the ten best and the ten worst by F1."""
    per_class, confusion = result.details.get("per_class"), result.details.get("confusion")
    if not per_class or not confusion:
        return []
    shown, title = list(range(len(per_class))), "by class"
    if len(per_class) > _SHOWN_CLASSES:
        scored = [k for k in shown if is_number(per_class[k]["f1"])]
        order = sorted(scored, key=lambda k: -per_class[k]["f1"])
        shown, title = order[:10] + order[10:][-10:], f"by class: the ten best and the ten worst of {len(shown)}, by F1"
    lines = []
    for k in shown:
        row, wrong = per_class[k], [count if j != k else 0 for j, count in enumerate(confusion[k])]
        rival = f"{per_class[wrong.index(max(wrong))]['class']} ({max(wrong)})" if max(wrong) else ""
        scores = (percent(row[name]) for name in ("recall", "precision", "f1"))
        lines.append((row["class"], str(row["n"]), *scores, rival))
    return [Table(title, ("class", "images", "recall %", "precision %", "F1 %", "most often taken for"), lines)]


def template_tables(result: Evaluation) -> list[Table]:
    """The best and the worst three templates, and how far they lie apart, if there are several."""
    ordered = sorted(result.details.get("templates") or (), key=lambda row: -row["top1"])
    if len(ordered) < 2:
        return []
    values = [row["top1"] for row in ordered]
    ends = ordered if len(ordered) <= 6 else [*ordered[:3], *ordered[-3:]]
    lines = [(row["template"], percent(row["top1"])) for row in ends]
    spread = f"{percent(statistics.mean(values))} ± {percent(statistics.stdev(values))}"
    lines += [("mean ± deviation", spread), ("all together", show("top1", result.figures.get("top1"), False))]
    return [Table(f"by template, {len(ordered)}", ("template", "top-1 %"), lines)]


def difference_table(rows: Sequence[tuple[str, Mapping[str, Figure]]], than: str, verdict: bool = False) -> Table:
    """verdict: better or worse in words, rather than a star, where the interval leaves out 0."""
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    lines = [(row, *(_difference(name, figures.get(name), verdict) for name in names)) for row, figures in rows]
    mark = "" if verdict else "; * leaves out 0"
    return Table(f"difference from {than}, with 95 % interval{mark}", ("", *names), lines)


def _difference(name: str, figure: Figure | None, verdict: bool) -> str:
    if figure is None:
        return "-"
    value, low, high = (("+" if x > 0 else "") + value_text(name, x) for x in figure[:3])
    better = (figure.value < 0) == lower_is_better(name)
    mark = ("better" if better else "worse") if verdict else "*"
    return f"{value} [{low}, {high}]" + (f" {mark}" if figure.low > 0 or figure.high < 0 else "")


def show(name: str, figure: Figure | None, interval: bool = True) -> str:
    """A figure as people read it: shares in per cent, ranks as they are, the interval behind it."""
    if figure is None:
        return "-"
    value, low, high = (value_text(name, x) for x in figure[:3])
    return value + (f" [{low}, {high}]" if interval and figure.low == figure.low else "")


def value_text(name: str, value: Any) -> str:
    """A value of that figure; "-" for what is no number."""
    if not is_number(value):
        return "-"
    if "rank" in name:
        return f"{value:.1f}".removesuffix(".0" if "median" in name else "")
    return f"{value:.3f}" if "auroc" in name else f"{100 * value:.1f}"


def percent(share: Any) -> str:
    """A share in per cent, without the sign."""
    return value_text("", share)


def _count(result: Evaluation) -> str:
    return str(next(iter(result.figures.values())).n)
