"""A comparison's folder -> compare.html, compare.md, compare.tex and compare.json in it, finished or not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.common.console import is_words, json_safe, open_console, plain, show_table, write_json
from miniclip.common.durable import whole_file
from miniclip.common.page import render, render_page
from miniclip.compare import charts
from miniclip.compare.charts import Panel
from miniclip.compare.curves import FALL, WINDOW, Parting
from miniclip.compare.latex import latex
from miniclip.compare.results import Results, read_results
from miniclip.compare.statistics import paired, spread
from miniclip.compare.tables import BEST, detail_tables, given_tables, leaders, result_tables, run_table
from miniclip.evaluation.report.markdown import inline, line
from miniclip.evaluation.tables import Table, value_text

_COLOURS = 8
_UNITS = {"steps": "steps", "samples": "pairs", "seconds": "seconds of training"}
_READ = (
    "Mean ± standard deviation (n - 1) over the seeds. In square brackets: the 95 % interval of the mean difference "
    "from the first variant, seed by seed; better or worse stands where it leaves out 0, as one of 20 does by chance. "
    "The best is marked where the intervals of its differences from all others leave out 0."
)
_GIVEN = "Seconds are those of training steps alone, without evaluation and checkpoints, as the runs' results say."
_PART = (
    "Loss and metric part where the loss of training still falls and the metric on validation gets no better: at the "
    "step of the metric's best value, if at least two later evaluations are no better and the loss ends more than "
    f"{100 * FALL:.0f} % below what it is there. The loss is over that of chance (1, dotted) and smoothed over "
    f"{100 * WINDOW:.0f} % of the steps; both are means over the seeds. A dashed line across the curves marks the step."
)
_BANDS = "Line: mean over the seeds. Band: from the least to the most of them. The seconds are those of training."


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    items: Sequence[str] = ()


def write_report(folder: Path) -> list[Path]:
    """Write all four from plan.json and the runs as they are now; those that have no results are named.

    Raises FileNotFoundError without a plan, ValueError for one that is damaged, and DiskFull.
    """
    found = read_results(folder)
    seeds = len({run.seed for run in found.runs})
    title = f"{folder.resolve().name}: {_count(len(found.names), 'variant')}, {_count(seeds, 'seed')}"
    parted = sections(found)
    values: dict[str, Any] = {"title": title, "status": _status(found), "sections": parted}
    frame = {"width": charts.WIDTH, "height": charts.HEIGHT, **charts.FRAME}
    here, tables = Path(__file__), [table for section in parted for table in section.tables]
    page = values | frame | {"names": found.names}
    texts = {
        "compare.html": render_page(
            here.with_name("compare.html"), **page, look=_look, remark=_remark, is_words=is_words
        ),
        "compare.md": render(here.with_name("compare.md"), inline, **values, line=line, is_words=is_words),
        "compare.tex": latex(tables),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    write_json(folder / "compare.json", json_safe(numbers(found)))
    return [folder / name for name in (*texts, "compare.json")]


def show(folder: Path) -> None:
    """The first tables, on the terminal. Raises what write_report does."""
    found, console = read_results(folder), open_console()
    given, *_ = given_tables(found)
    for table in (*result_tables(found, found.main, ""), given._replace(title="what each was given")):
        show_table(console, *table)
    for item in _lacking(found):
        console.print(plain(item))


def sections(found: Results) -> list[Section]:
    """In the order in which a reader asks: which is best, is it fair, what happened on the way, and all the rest."""
    metric = charts.metric_of(found)
    partings = charts.partings(found, metric) if metric else {}
    first = [metric, charts.LOSS] if metric else []
    panels = [one for name in first if (one := charts.panel(found, name, partings))]
    names = [name for name in charts.logged(found) if name.startswith("eval/") and name != metric]
    others = [one for name in names if (one := charts.panel(found, name, {}))]
    parts = [
        Section("Results", _READ if found.main else "There are no results yet.", result_tables(found, found.main, "")),
        Section("Without results", "These runs are in no table but that of the runs.", items=_lacking(found)),
        Section("What each was given", _GIVEN, given_tables(found)),
        Section("Loss and metric", f"{_PART} {_BANDS}", _parting_table(found, metric, partings), panels),
        Section("Along the training", _BANDS, panels=charts.training_panels(found, skipped=first)),
        Section("On validation", _BANDS, panels=others),
        Section("Every figure", _READ, detail_tables(found)),
        Section("Every run", "", [run_table(found)]),
    ]
    return [part for part in parts if part.title == "Results" or part.tables or part.panels or part.items]


def numbers(found: Results) -> dict[str, Any]:
    """What compare.json holds: the plan, each run, and of each variant every figure, at full precision."""
    runs = [
        {
            "variant": found.names[run.variant],
            **{key: getattr(run, key) for key in ("seed", "dir", "lacking", "training", "figures", "parameters")},
        }
        for run in found.runs
    ]
    metric, ahead, variants = charts.metric_of(found), leaders(found, found.figures), []
    partings = charts.partings(found, metric) if metric else {}
    for k, variant in enumerate(found.plan.variants):
        figures = dict[str, Any]()
        for name in found.figures:
            if own := found.seeds(k, name):
                apart = paired(found.seeds(0, name), own) if k else None
                told = {"seeds": own, "difference": apart and apart._asdict(), "best": ahead[name] == k}
                figures[name] = spread([*own.values()])._asdict() | told
        part, about = partings.get(k), {"name": variant.name, "options": variant.options}
        variants.append({**about, "metric": metric, "parting": part and part._asdict(), "figures": figures})
    return {"plan": asdict(found.plan), "runs": runs, "variants": variants}


def _status(found: Results) -> str:
    plan, done = found.plan, sum(not run.lacking for run in found.runs)
    given = f"{plan.budget['value']:,} {_UNITS[plan.budget['kind']]}"
    return f"{done} of {_count(len(found.runs), 'run')} finished. Each is given {given}. {plan.time}: {plan.command}"


def _lacking(found: Results) -> list[str]:
    return [f"{found.names[run.variant]}, seed {run.seed}: {run.lacking}" for run in found.runs if run.lacking]


def _parting_table(found: Results, metric: str | None, partings: Mapping[int, Parting]) -> list[Table]:
    if metric is None or not partings:
        return []
    name, rows = metric.rpartition("/")[2], []
    for k, one in partings.items():
        shown = (f"{one.step:,.0f}", value_text(name, one.best), value_text(name, one.last))
        losses = (f"{one.loss:.3f}", f"{one.loss_last:.3f}")
        rows.append((found.names[k], *shown, *losses, f"from step {one.step:,.0f}" if one.part else "no"))
    of = metric.removeprefix("eval/")
    columns = ("best at step", f"{of} there", "at the end", "loss / chance there", "at the end", "do they part?")
    return [Table("", ("variant", *columns), rows)]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _look(k: int) -> str:
    """The classes of a variant's colour and dashes."""
    return f"k{k % _COLOURS}" + " dashed" * (k >= _COLOURS)


def _remark(cell: Any) -> tuple[str, str, str]:
    """A cell without what the page sets apart at its end, that, and how."""
    found = re.fullmatch(rf"(.*) (better|worse|{re.escape(BEST.strip())})", str(cell))
    return (found[1], found[2], "mark" if found[2] == "worse" else "own") if found else (cell, "", "")
