"""Results -> tables for people, on the terminal and in the report. Images are drawn in `plots` and `galleries`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from miniclip.common.console import open_console, plain, show_table
from miniclip.evaluation.result import Evaluation, is_number, is_rank, lower_is_better, words_of
from miniclip.metrics.bootstrap import Figure

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN_CLASSES = 20
_KINDS = {"zeroshot": "zero-shot", "retrieval": "retrieval", "probe": "probe"}
# the columns of a kind; a probe has those of its figures
_COLUMNS = {
    "zeroshot": ("top1", "top5", "balanced_accuracy", "macro_f1", "ece"),
    "retrieval": ("r1", "r5", "r10", "median_rank", "mean_rank", "map"),
}
_FOREIGN = {
    f"{figure}_{score.replace(' ', '_')}": f"{word}, {score}"
    for score in ("free energy", "max probability", "entropy")
    for figure, word in (("auroc", "AUROC"), ("fpr95", "FPR@95 %"))
}


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
    _print(console, *evaluation_tables(list(results.items()), title))
    for note in dict.fromkeys(note for result in results.values() for note in result.notes):
        console.print(plain(note))
    if len(results) == 1:
        (result,) = results.values()
        few = len(result.details.get("per_class", ())) <= _SHOWN_CLASSES
        _print(console, *(class_tables(result) if few else ()), *template_tables(result))


def print_differences(
    differences: Mapping[str, Mapping[str, Figure]], than: str, console: Console | None = None
) -> None:
    """One row for each model: its figures less those of the model called than, with the interval of the difference."""
    _print(console or open_console(), difference_table(list(differences.items()), than))


def _print(console: Console, *tables: Table) -> None:
    for table in tables:
        show_table(console, *table)


def evaluation_tables(rows: Sequence[tuple[str, Evaluation]], title: str = "", intervals: bool = False) -> list[Table]:
    """Of rows and what they are called: one a kind, and one of the scores of foreign images.

    intervals: of every figure, not only of the main ones.
    """
    tables = []
    for kind, name in _KINDS.items():
        if own := [row for row in rows if row[1].kind == kind]:
            tables.append(_table(kind, title or name, own, intervals))
    foreign = [(name, result.figures) for name, result in rows if "auroc_entropy" in result.figures]
    if foreign:
        lines = [(name, *(show(key, figures.get(key)) for key in _FOREIGN)) for name, figures in foreign]
        tables.append(Table("none of these classes?", ("", *_FOREIGN.values()), lines))
    return tables


def _table(kind: str, title: str, rows: Sequence[tuple[str, Evaluation]], intervals: bool) -> Table:
    """A row for each result; two of retrieval, one a direction."""
    columns = _COLUMNS.get(kind) or list(dict.fromkeys(name for _, result in rows for name in result.figures))
    headings = [words_of(name).removesuffix(" accuracy") + " %" * (not is_rank(name)) for name in columns]
    chance_of = {"zeroshot": "chance %", "retrieval": "chance R@10 %"}.get(kind, "chance %" if intervals else "")
    lines = []
    for name, result in rows:
        for way in ("image_to_text", "text_to_image") if kind == "retrieval" else ("",):
            found = {key: result.figures.get(f"{way}_{key}" if way else key) for key in columns}
            about = [next((str(figure.n) for figure in found.values() if figure), "-")]
            if way:
                about.insert(0, way.replace("_to_", " -> "))
            elif kind == "zeroshot":
                about.append(str(len(result.details["classes"])) if "classes" in result.details else "-")
            shown = [show(k, v, intervals or kind == "probe" or k in ("top1", "r10")) for k, v in found.items()]
            chance = percent(result.details.get(f"chance_{way}_r10" if way else "chance"))
            lines.append(("" if way == "text_to_image" else name, *about, *shown, *[chance] * bool(chance_of)))
    about = {"zeroshot": ["images", "classes"], "retrieval": ["direction", "queries"], "probe": ["images"]}[kind]
    return Table(title, ("", *about, *headings, *[chance_of] * bool(chance_of)), lines)


def class_tables(result: Evaluation) -> list[Table]:
    """The classes of a zero-shot result, if it has any; of more than 20 the ten best and the ten worst by F1."""
    per_class, confusion = result.details.get("per_class"), result.details.get("confusion")
    if not per_class or not confusion:
        return []
    shown, title = list(range(len(per_class))), "by class"
    if len(per_class) > _SHOWN_CLASSES:
        order = sorted((k for k in shown if is_number(per_class[k]["f1"])), key=lambda k: -per_class[k]["f1"])
        shown, title = order[:10] + order[10:][-10:], f"by class: the ten best and the ten worst of {len(shown)}, by F1"
    lines = []
    for k in shown:
        row, wrong = per_class[k], [count if j != k else 0 for j, count in enumerate(confusion[k])]
        rival = f"{per_class[wrong.index(max(wrong))]['class']} ({max(wrong)})" if max(wrong) else ""
        scores = (percent(row[name]) for name in ("recall", "precision", "f1"))
        folder, name = row.get("folder"), row["class"]
        called = name if folder is None or folder.replace("_", " ") == name else f"{folder} -> {name}"
        lines.append((called, str(row["n"]), *scores, rival))
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

    def told(name: str, figure: Figure | None) -> str:
        if figure is None:
            return "-"
        value, low, high = (("+" if x > 0 else "") + value_text(name, x) for x in figure[:3])
        better = (figure.value < 0) == lower_is_better(name)
        mark = ("better" if better else "worse") if verdict else "*"
        return f"{value} [{low}, {high}]" + (f" {mark}" if figure.low > 0 or figure.high < 0 else "")

    lines = [(row, *(told(name, figures.get(name)) for name in names)) for row, figures in rows]
    mark = "" if verdict else "; * leaves out 0"
    return Table(f"difference from {than}, with 95 % interval{mark}", ("", *names), lines)


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
