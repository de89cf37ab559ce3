"""Results -> tables for people, on the terminal and in the report. Images are drawn in `plots` and `galleries`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from miniclip.common.console import open_console, plain, show_table
from miniclip.evaluation.result import Evaluation, is_number, is_rank, is_share, lower_is_better, words_of
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


def print_evaluations(results: Mapping[str, Evaluation], title: str = "") -> None:
    """One table a kind, its rows named by the keys (a checkpoint, a task), with the notes of all below.

    A single zero-shot result also gets its classes and its templates.
    """
    console = open_console()
    _print(console, *evaluation_tables(list(results.items()), title))
    for note in dict.fromkeys(note for result in results.values() for note in result.notes):
        console.print(plain(note))
    if len(results) == 1:
        (result,) = results.values()
        few = len(result.details.get("per_class", ())) <= _SHOWN_CLASSES
        _print(console, *(class_tables(result) if few else ()), *template_tables(result))


def print_differences(differences: Mapping[str, Mapping[str, Figure]], than: str) -> None:
    """One row for each model: its figures less those of the model called than, with the interval of the difference."""
    _print(open_console(), difference_table(list(differences.items()), than))


def print_guard(guard: Mapping[str, Mapping[str, Any]]) -> None:
    """What became of eval.guard, by task, as results.json says it."""
    _print(open_console(), guard_table(guard))


def guard_table(guard: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each task: its figure before the first step and after the last, and whether that is within the margin.

    Raises KeyError or TypeError for what `Guard.end` has not made.
    """
    rows = []
    for task, one in guard.items():
        name, apart = one["figure"], one["difference"]
        figure = None if apart is None else Figure(*(apart[key] for key in ("value", "low", "high", "n")))
        said = "-" if apart is None else "lost" if one["beyond"] else "kept"
        shown = (
            f"{words_of(name)} %",
            percent(one["before"]),
            percent(one["after"]),
            told_difference(name, figure),
            said,
        )
        rows.append((task, *shown))
    return Table("eval.guard: what must not be lost", ("task", "figure", "before", "after", "difference", ""), rows)


def _print(console: Console, *tables: Table) -> None:
    for table in tables:
        show_table(console, *table)


def evaluation_tables(rows: Sequence[tuple[str, Evaluation]], title: str = "", intervals: bool = False) -> list[Table]:
    """Of rows and what they are called: one a kind, and one of the scores of foreign images.

    intervals: of every figure, not only of the main ones, and chance beside each where it is known; the calibration,
    which does not say how much is right, is then left to `calibration_table`.
    """
    tables = []
    for kind, name in _KINDS.items():
        if own := [row for row in rows if row[1].kind == kind]:
            tables.append(_table(kind, title or name, own, intervals))
    foreign = [(name, result) for name, result in rows if "auroc_entropy" in result.figures]
    if foreign:
        lines = [(name, *(_beside_chance(result, key, intervals) for key in _FOREIGN)) for name, result in foreign]
        tables.append(Table("none of these classes?", ("", *_FOREIGN.values()), lines))
    return tables


def calibration_table(rows: Sequence[tuple[str, Evaluation]]) -> Table:
    """Of those that have it."""
    found = [(name, result.figures["ece"]) for name, result in rows if "ece" in result.figures]
    return Table("", ("", "images", "ECE %"), [(name, str(figure.n), show("ece", figure)) for name, figure in found])


def chance(result: Evaluation, figure: str) -> Any:
    """The figure of a model that knows nothing, in [0, 1]; None where that is not known."""
    if result.kind == "retrieval":
        return result.details.get(f"chance_{figure}")
    one: Any = result.details.get("chance")
    if figure in _FOREIGN:
        return 0.5 if "auroc" in figure else 0.95
    if figure == "top5":
        return min(1.0, 5 * one) if is_number(one) else None
    return one if figure in ("top1", "balanced_accuracy") or result.kind == "probe" else None


def _table(kind: str, title: str, rows: Sequence[tuple[str, Evaluation]], intervals: bool) -> Table:
    """A row for each result; two of retrieval, one a direction."""
    columns = _COLUMNS.get(kind) or list(dict.fromkeys(name for _, result in rows for name in result.figures))
    columns = [name for name in columns if not (intervals and name == "ece")]
    headings = [words_of(name).removesuffix(" accuracy") + " %" * (not is_rank(name)) for name in columns]
    chance_of = "" if intervals else {"zeroshot": "chance %", "retrieval": "chance R@10 %"}.get(kind, "")
    lines = []
    for name, result in rows:
        for way in ("image_to_text", "text_to_image") if kind == "retrieval" else ("",):
            names = {key: f"{way}_{key}" if way else key for key in columns}
            counts = [str(result.figures[name].n) for name in names.values() if name in result.figures]
            about = counts[:1] or ["-"]
            if way:
                about.insert(0, way.replace("_to_", " -> "))
            elif kind == "zeroshot":
                about.append(str(len(result.details["classes"])) if "classes" in result.details else "-")
            if intervals:
                shown = [_beside_chance(result, name) for name in names.values()]
            else:
                main = columns if kind == "probe" else ("top1", "r10")
                shown = [show(key, result.figures.get(name), key in main) for key, name in names.items()]
            shown += [percent(chance(result, f"{way}_r10" if way else "top1"))] * bool(chance_of)
            lines.append(("" if way == "text_to_image" else name, *about, *shown))
    about = {"zeroshot": ["images", "classes"], "retrieval": ["direction", "queries"], "probe": ["images"]}[kind]
    return Table(title, ("", *about, *headings, *[chance_of] * bool(chance_of)), lines)


def _beside_chance(result: Evaluation, name: str, beside: bool = True) -> str:
    """A figure with its interval, and chance behind it."""
    shown, by_chance = show(name, result.figures.get(name)), value_text(name, chance(result, name))
    return f"{shown} (chance {by_chance})" if beside and "-" not in (shown, by_chance) else shown


def class_tables(result: Evaluation) -> list[Table]:
    """The classes of a zero-shot result, if it has any; of more than 20 the ten best and the ten worst by F1."""
    per_class, confusion = result.details.get("per_class"), result.details.get("confusion")
    if not per_class or not confusion:
        return []
    shown, title = list(range(len(per_class))), f"by class{_told_chance(result)}"
    if len(per_class) > _SHOWN_CLASSES:
        order = sorted((k for k in shown if is_number(per_class[k]["f1"])), key=lambda k: -per_class[k]["f1"])
        shown, title = order[:10] + order[10:][-10:], f"{title}: the ten best and the ten worst of {len(shown)}, by F1"
    lines = []
    for k in shown:
        row, wrong = per_class[k], [count if j != k else 0 for j, count in enumerate(confusion[k])]
        rival = f"{per_class[wrong.index(max(wrong))]['class']} ({max(wrong)})" if max(wrong) else ""
        scores = (percent(row[name]) for name in ("recall", "precision", "f1"))
        folder, name = row.get("folder"), row["class"]
        called = name if folder is None or folder.replace("_", " ") == name else f"{folder} -> {name}"
        lines.append((called, str(row["n"]), *scores, rival))
    macro = [result.figures.get(name) for name in ("balanced_accuracy", "macro_precision", "macro_f1")]
    count = str(sum(row["n"] for row in per_class))
    lines += [("mean of the classes", count, *(show("", figure, False) for figure in macro), "")] * any(macro)
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
    return [Table(f"by template, {len(ordered)}{_told_chance(result)}", ("template", "top-1 %"), lines)]


def _told_chance(result: Evaluation) -> str:
    by_chance = percent(chance(result, "top1"))
    return "" if by_chance == "-" else f" (chance {by_chance} %)"


def difference_table(rows: Sequence[tuple[str, Mapping[str, Figure]]], than: str, verdict: bool = False) -> Table:
    """verdict: better or worse in words, rather than a star, where the interval leaves out 0."""
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))

    lines = [(row, *(told_difference(name, figures.get(name), verdict) for name in names)) for row, figures in rows]
    mark = "" if verdict else "; * leaves out 0"
    return Table(f"difference from {than}, with 95 % interval{mark}", ("", *names), lines)


def told_difference(name: str, figure: Figure | None, verdict: bool = False) -> str:
    """A difference of that figure with its sign and interval, marked where the interval leaves out 0."""
    if figure is None:
        return "-"
    value, low, high = (("+" if x > 0 else "") + value_text(name, x) for x in figure[:3])
    if not is_number(figure.low):
        return value
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
    return f"{100 * value:.1f}" if is_share(name) else f"{value:.3f}"


def percent(share: Any) -> str:
    """A share in per cent, without the sign."""
    return value_text("", share)
