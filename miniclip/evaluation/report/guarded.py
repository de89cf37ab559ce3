"""What the report says of eval.guard: before and after, and along the training."""

from __future__ import annotations

from typing import Any, NamedTuple

from miniclip.evaluation.report.read import Run
from miniclip.evaluation.result import words_of
from miniclip.evaluation.tables import Table, guard_table, percent

PREFIX = "eval/guard/"


class Guarded(NamedTuple):
    """text: how it ended, in a sentence. tables: empty for a run without a guard."""

    text: str
    tables: list[Table]


def guarded(run: Run) -> Guarded:
    """Of a run that may still be at work, or whose files may be damaged."""
    found = run.sources["training"].get("guard")
    ended = run.attempt("results.json, guard", _ended, found) if found else None
    tables = [table for table in (ended and ended.tables[0], _along(run)) if table]
    return Guarded(ended.text if ended else "", tables)


def _ended(guard: dict[str, Any]) -> Guarded:
    table = guard_table(guard)
    lost = [task for task, one in guard.items() if one["beyond"]]
    (margin,) = {percent(one["margin"]) for one in guard.values()}
    said = f"Lost more than the margin of {margin} points: {', '.join(lost)}."
    kept = f"Nothing that was counted before the first step fell by more than the margin of {margin} points."
    return Guarded(said if lost else kept, [table._replace(title="on test images")])


def _along(run: Run) -> Table | None:
    """On validation images: before the first step, the lowest, and the last."""
    rows = []
    for key in dict.fromkeys(key for line in run.lines for key in line if key.startswith(PREFIX)):
        task, _, figure = key.removeprefix(PREFIX).rpartition("/")
        values = {line["step"]: line[key] for line in run.lines if key in line}
        low, last = min(values, key=lambda step: values[step]), max(values)
        ends = (f"{percent(values[step])} (step {step:,.0f})" for step in (low, last))
        rows.append((task, f"{words_of(figure)} %", percent(values.get(0)), *ends))
    columns = ("task", "figure", "before", "lowest", "last")
    return Table("along the training, on validation images", columns, rows) if rows else None
