"""A comparison as tables for people: the same on the page, in Markdown, in LaTeX and on the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from miniclip.compare.results import Results
from miniclip.compare.statistics import best, paired, spread
from miniclip.evaluation.result import is_number, is_share, lower_is_better, words_of
from miniclip.evaluation.tables import Table, told_difference, value_text

BEST = " (best)"
_WAYS = ("image_to_text", "text_to_image")


def result_tables(found: Results, figures: Sequence[str], title: str) -> list[Table]:
    """A row for each variant: mean ± standard deviation over the seeds, and the differences from the first variant."""
    if not figures:
        return []
    names = [figure.rpartition("/") for figure in figures]
    tasks = len({task for task, _, _ in names}) > 1
    columns = [_heading(task if tasks else "", name) for task, _, name in names]
    ahead = leaders(found, figures)
    rows, apart = [], []
    for k, variant in enumerate(found.names):
        of = [run for run in found.runs if run.variant == k]
        cells = [_mean(found, k, figure) + BEST * (ahead[figure] == k) for figure in figures]
        rows.append((variant, f"{len(found.of(k))} of {len(of)}", *cells))
        both = [(figure, paired(found.seeds(0, figure), found.seeds(k, figure))) for figure in figures]
        apart.append((variant, *(told_difference(_name(figure), one, verdict=True) for figure, one in both)))
    tables = [Table(title, ("variant", "runs", *columns), rows)]
    first = f"{title}, " * bool(title) + f"difference from {found.names[0]}"
    return tables + [Table(first, ("variant", *columns), apart[1:])] * (len(apart) > 1)


def leaders(found: Results, figures: Sequence[str]) -> dict[str, int | None]:
    """The variant that is the best by each figure, see statistics.best."""
    every = range(len(found.names))
    return {name: best([found.seeds(k, name) for k in every], lower_is_better(_name(name))) for name in figures}


def given_tables(found: Results) -> list[Table]:
    """What each variant was given, measured where a run has finished, else what the plan says; and how an option of
    each was chosen, if one was."""
    rows, tried = [], []
    metric = found.plan.metric
    for k, variant in enumerate(found.plan.variants):
        runs, tuned = found.of(k), variant.tuned
        steps = sorted({int(run.training["steps"]) for run in runs if is_number(run.training.get("steps"))})
        seconds = [run.training["train_seconds"] for run in runs if is_number(run.training.get("train_seconds"))]
        steps = steps or ([variant.steps] if variant.steps else [])
        pairs = ", ".join(f"{one * found.batch(k):,}" for one in steps) or "-"
        sizes = sorted({f"{run.parameters:,}" for run in runs if run.parameters})
        length = ", ".join(f"{one:,}" for one in steps) or "-"
        chosen = [f"{tuned['key']} {_plain(tuned['chosen'])}"] if tuned else ["-"]
        rows.append((found.names[k], length, pairs, _seconds(seconds), ", ".join(sizes) or "-", *chosen))
        for one in (tuned or {"tried": []})["tried"]:
            rounds = zip(one["figures"], one["steps"], strict=False)
            told = [f"{value_text(_name(metric), value)} after {steps:,}" for value, steps in rounds]
            mark = "chosen" if tuned and one["value"] == tuned["chosen"] else ""
            tried.append((found.names[k], _plain(one["value"]), ", ".join(told) or "-", mark))
    columns = ("variant", "steps", "pairs", "seconds of training", "parameters", "chosen")
    kept = len(columns) if tried else -1
    tables = [Table("", columns[:kept], [row[:kept] for row in rows])]
    keys = ", ".join(dict.fromkeys(str(variant.tuned["key"]) for variant in found.plan.variants if variant.tuned))
    title = f"{keys} by {metric} on validation, with another seed"
    return tables + [Table(title, ("variant", "tried", "figure", ""), tried)] * bool(tried)


def run_table(found: Results) -> Table:
    """Each run by itself, finished or not."""
    columns = [_heading(task, name) for task, _, name in (figure.rpartition("/") for figure in found.main)]
    rows = []
    for run in found.runs:
        training, chosen = run.training, run.training.get("best")
        kept = chosen.get("step") if isinstance(chosen, dict) else training.get("steps")
        steps = [f"{step:,}" if is_number(step) else "-" for step in (training.get("steps"), kept)]
        cells = [value_text(_name(figure), run.figures.get(figure)) for figure in found.main]
        told = (str(run.seed), *cells, *steps, _number(training.get("train_seconds")), run.lacking or "finished")
        rows.append((found.names[run.variant], *told))
    columns += ["steps", "weights of step", "seconds of training", "state"]
    return Table("", ("variant", "seed", *columns), rows)


def detail_tables(found: Results) -> list[Table]:
    """Every figure of every task, of a retrieval one direction at a time."""
    groups: dict[str, list[str]] = {}
    for figure in found.figures:
        task, _, name = figure.rpartition("/")
        way = next((f", {way.replace('_', ' ')}" for way in _WAYS if name.startswith(f"{way}_")), "")
        if name != "mean_r10":  # which no results.json holds, and the main table does
            groups.setdefault(task + way, []).append(figure)
    return [table for title, figures in groups.items() for table in result_tables(found, figures, title)]


def _name(figure: str) -> str:
    return figure.rpartition("/")[2]


def _heading(task: str, name: str) -> str:
    words = re.sub("^(image to text|text to image) (?=.)", "", words_of(name)) if not task else words_of(name)
    words += " %" * is_share(name)
    return f"{task}, {words}" if task else words


def _mean(found: Results, variant: int, figure: str) -> str:
    values = list(found.seeds(variant, figure).values())
    if not values:
        return "-"
    name, of = _name(figure), spread(values)
    return value_text(name, of.mean) + (f" ± {value_text(name, of.sd)}" if is_number(of.sd) else "")


def _seconds(values: Sequence[float]) -> str:
    if not values:
        return "-"
    of = spread(values)
    return f"{_number(of.mean)} ± {_number(of.sd)}" if is_number(of.sd) else _number(of.mean)


def _number(value: Any) -> str:
    return f"{value:,.1f}" if is_number(value) else "-"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else str(value)
