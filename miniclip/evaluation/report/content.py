"""What a report says, in the order in which a reader asks: how good, how trained, the tables, where it comes from."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from miniclip.evaluation.report.files import PNG, number, text
from miniclip.evaluation.report.read import KINDS, TRAINING, Result, Run, Source
from miniclip.evaluation.report.render import Block, Command, Heading, Items, Link, Table, Text
from miniclip.evaluation.report.training import status, training_section, validation_table
from miniclip.evaluation.report.values import DASH, count, interval_of, moment, name_of, percent, shown, value_of
from miniclip.evaluation.result import lower_is_better
from miniclip.metrics.bootstrap import Figure

_TITLES = {"zeroshot": "Zero-shot classification", "retrieval": "Retrieval", "probe": "Probes on frozen embeddings"}
_WAYS = {"image_to_text_": "image to text", "text_to_image_": "text to image"}
_HEADLINES = {
    "zeroshot": {"top1": "zero-shot top-1 %"},
    "retrieval": {"image_to_text_r1": "image to text R@1 %", "text_to_image_r1": "text to image R@1 %"},
    "probe": {"linear": "linear probe %", "knn": "nearest neighbours %"},
}
# pictures of the run itself, which belong to several kinds of results
_KIND_OF = {"confusion": "zeroshot", "calibration": "zeroshot", "templates": "zeroshot", "foreign": "zeroshot",
            "examples": "retrieval", "queries": "retrieval", "shots": "probe"}  # fmt: skip
_ALL_CLASSES, _ENDS = 20, 10
_SHOT = re.compile(r"(.+)_(\d+)_shot")
_OUTSIDE = re.compile(r"(auroc|fpr95)_(.+)")

Row = tuple[Source, Result]


def content(run: Run, curves: PNG | None) -> list[Block]:
    """The blocks of the report. curves: drawn from run.lines."""
    rows = [(source, result) for source in run.sources for result in source.results]
    blocks: list[Block] = [Heading(1, run.directory.name or "run"), Text(status(run), "status"), *_headline(run, rows)]
    blocks += training_section(run, curves)
    if rows:  # else they are the headline
        blocks += validation_table(run)
    for kind in KINDS:
        blocks += _kind(kind, [row for row in rows if row[1].kind == kind])
    blocks += _differences(run)
    if run.matrix or run.matrix_page:
        blocks.append(Heading(2, "The matrix of a batch"))
        blocks += [run.matrix] if run.matrix else []
        blocks += [_link(run.matrix_page)] if run.matrix_page else []
    rest: list[Block] = []
    for source in run.sources:
        rest += [picture for picture in source.pictures if not _kind_of(source, picture.name)]
        rest += [_link(name) for name in source.pages if not _kind_of(source, name)]
    blocks += [Heading(2, "Other pictures"), *rest] if rest else []
    blocks += _origins(run, rows)
    if run.left_out:
        blocks += [Heading(2, "Left out"), Text("What could not be used, and why:"), Items(run.left_out)]
    return blocks


def _headline(run: Run, rows: Sequence[Row]) -> list[Block]:
    cells = []
    for row in rows:
        _, result = row
        for name, label in _HEADLINES[result.kind].items():
            if figure := result.figures.get(name):
                figures = (value_of(name, figure.value), interval_of(name, figure), count(figure.n))
                chance = percent(result.details.get("chance"))
                cells.append((label, *_names(rows, row), *figures, chance, *_origin(rows, row)))
    if not cells:
        return validation_table(run) or [Text("There are no results yet.")]
    columns = ("", *_names(rows), "value", "95 % interval", "n", "chance", *_origin(rows))
    return [Table("", columns, cells, 1 + len(_names(rows)), len(_origin(rows)))]


def _names(rows: Sequence[Row], row: Row | None = None) -> tuple[str, ...]:
    """The first cells of a line: its task, and its model where there are several; None: the headings."""
    names = [row[1].task if row else "task"]
    if len({result.model_fingerprint or result.model for _, result in rows}) > 1:
        names.append(row[1].model or DASH if row else "model")
    return tuple(names)


def _origin(rows: Sequence[Row], row: Row | None = None) -> tuple[str, ...]:
    """The last cell of a line: its folder, where there are several."""
    several = len({source.name for source, _ in rows}) > 1
    return (row[0].name if row else "from",) if several else ()


def _kind(kind: str, rows: Sequence[Row]) -> list[Block]:
    if not rows:
        return []
    tables = {"zeroshot": _zero_shot, "retrieval": _retrieval, "probe": _probe}[kind](rows)
    blocks: list[Block] = [Heading(2, _TITLES[kind]), *tables]
    blocks.append(Text("In square brackets: 95 % interval, as other pictures of the same kind would give.", "muted"))
    several = len(rows) > 1
    notes = [f"{result.task}: {note}" if several else note for _, result in rows for note in result.notes]
    blocks += [Items(list(dict.fromkeys(notes)))] if notes else []
    sources = {source.name: source for source, _ in rows}.values()
    blocks += [Command(command) for command in dict.fromkeys(source.command for source in sources) if command]
    for row in rows:
        if found := [*_classes(row[1]), *_calibration(row[1])]:
            blocks += [Heading(3, ", ".join((*_names(rows, row), *_origin(rows, row)))), *found]
    for source in sources:
        blocks += [picture for picture in source.pictures if _kind_of(source, picture.name) == kind]
        blocks += [_link(name) for name in source.pages if _kind_of(source, name) == kind]
    return blocks


def _kind_of(source: Source, name: str) -> str:
    """The kind of results that a picture or page belongs to; "" if those are not there."""
    kinds = [result.kind for result in source.results]
    if source.name != TRAINING:  # one command, one kind
        return kinds[0] if kinds else ""
    kind = _KIND_OF.get(re.split(r"[_.]", name)[0], "")
    return kind if kind in kinds else ""


def _link(name: str) -> Link:
    return Link(f"{name}, to look through", name)


def _lined(title: str, rows: Sequence[Row], words: Sequence[str], figures: Sequence[str],
           cells: Iterable[tuple[Row, Sequence[str]]]) -> Iterator[Table]:  # fmt: skip
    """A table, if it has a line. words, figures: headings of the cells."""
    lines = [(*_names(rows, row), *own, *_origin(rows, row)) for row, own in cells]
    columns = (*_names(rows), *words, *figures, *_origin(rows))
    if lines:
        yield Table(title, columns, lines, len(_names(rows)) + len(words), len(_origin(rows)))


class _Line(NamedTuple):
    """Figures of a result that stand side by side. words, counts: cells before them. chance: the cell behind them."""

    row: Row
    words: Sequence[str]
    counts: Sequence[str]
    figures: dict[str, Figure]
    chance: str


def _figures(
    rows: Sequence[Row], words: Sequence[str], counts: Sequence[str], chance: str, lines: Iterable[_Line]
) -> Iterator[Table]:
    lines = [line for line in lines if line.figures]
    names = list(dict.fromkeys(name for line in lines for name in line.figures))

    def cell(line: _Line, name: str) -> str:
        figure, n = line.figures.get(name), _n(line.figures)
        return shown(name, figure) + (f" (n {count(figure.n)})" if figure and figure.n not in (0, n) else "")

    cells = [
        (line.row, (*line.words, *line.counts, count(_n(line.figures)), *(cell(line, n) for n in names), line.chance))
        for line in lines
    ]
    return _lined("", rows, words, (*counts, "n", *map(name_of, names), chance), cells)


def _n(figures: dict[str, Figure]) -> int:
    return next(iter(figures.values())).n


def _zero_shot(rows: Sequence[Row]) -> Iterator[Table]:
    lines = []
    for row in rows:
        found = {name: figure for name, figure in row[1].figures.items() if not _OUTSIDE.fullmatch(name)}
        lines.append(_Line(row, (), (), found, percent(row[1].details.get("chance"))))
    yield from _figures(rows, (), (), "chance %", lines)
    cells: list[tuple[Row, Sequence[str]]] = []
    for row in rows:
        templates = row[1].details.get("templates") or ()
        known = [(number(entry["top1"]), text(entry["template"])) for entry in templates]
        found_too = sorted((value, template) for value, template in known if value is not None)
        if len(found_too) > 1:
            values = [value for value, _ in found_too]
            ends = [f"{percent(value)} ({template})" for value, template in (found_too[-1], found_too[0])]
            spread = (percent(statistics.mean(values)), percent(statistics.stdev(values)))
            cells.append((row, (*ends, count(len(values)), *spread)))
    columns = ("templates", "mean %", "standard deviation")
    yield from _lined("top-1 % of each template by itself", rows, ("best", "worst"), columns, cells)
    cells = []
    for row in rows:
        scores: dict[str, dict[str, Figure]] = {}
        for name, figure in row[1].figures.items():
            if match := _OUTSIDE.fullmatch(name):
                scores.setdefault(match[2], {})[match[1]] = figure
        for score, pair in scores.items():
            both = [shown(name, pair.get(name)) for name in ("auroc", "fpr95")]
            cells.append((row, (score.replace("_", " "), *both, count(_n(pair)))))
    title = "pictures of none of the classes: how well a score tells them apart (AUROC: 0.5 is chance, 1 is best)"
    yield from _lined(title, rows, ("score",), (name_of("auroc"), name_of("fpr95"), "n"), cells)


def _retrieval(rows: Sequence[Row]) -> Iterator[Table]:
    lines = []
    for row in rows:
        figures, details = row[1].figures, row[1].details
        for way, label in _WAYS.items():
            found = {name.removeprefix(way): figure for name, figure in figures.items() if name.startswith(way)}
            candidates = count(details.get("n_texts" if way.startswith("image") else "n_images"))
            lines.append(_Line(row, (label,), (candidates,), found, percent(details.get(f"chance_{way}r10"))))
    yield from _figures(rows, ("direction",), ("candidates",), "chance R@10 %", lines)


def _probe(rows: Sequence[Row]) -> Iterator[Table]:
    lines, cells = [], []
    for row in rows:
        figures, details = row[1].figures, row[1].details
        found = {name: figure for name, figure in figures.items() if not _SHOT.fullmatch(name)}
        sizes = (count(details.get("n_train")), count(details.get("n_validation")))
        lines.append(_Line(row, (), sizes, found, percent(details.get("chance"))))
        for entry in details.get("shots") or ():
            name = f"linear_{text(entry['shots'])}_shot"
            mean = shown(name, figures[name]) if name in figures else percent(entry["mean"])
            draws = entry["draws"] if isinstance(entry["draws"], list) else []
            cells.append((row, (text(entry["shots"]), mean, percent(entry["std"]), ", ".join(map(percent, draws)))))
    yield from _figures(rows, (), ("training", "validation"), "chance %", lines)
    columns = ("pictures a class", "mean %", "standard deviation of the draws", "draws %")
    yield from _lined("linear probe on few training pictures", rows, (), columns, cells)


def _classes(result: Result) -> list[Block]:
    rows, confusion = result.details.get("per_class") or [], result.details.get("confusion")
    cells = []
    for k, row in enumerate(rows):
        wrong = [n if j != k else 0 for j, n in enumerate(confusion[k])] if confusion else [0]
        most = max(wrong)
        rival = f"{text(rows[wrong.index(most)]['class'])} ({count(most)})" if most else DASH
        scores = (percent(row[name]) for name in ("precision", "recall", "f1"))
        cells.append((text(row["class"]), rival, count(row["n"]), *scores))
    title = "by class"
    if len(cells) > _ALL_CLASSES:
        scored = [k for k, row in enumerate(rows) if number(row["f1"]) is not None]
        order = sorted(scored, key=lambda k: -(number(rows[k]["f1"]) or 0))
        title = f"by class: the ten best and the ten worst of {count(len(cells))}, by F1"
        cells = [cells[k] for k in (order[:_ENDS] + order[_ENDS:][-_ENDS:])]
    columns = ("class", "most often taken for", "n", "precision %", "recall %", "F1 %")
    return [Table(title, columns, cells, 2)] if cells else []


def _calibration(result: Result) -> list[Block]:
    cells = []
    for row in result.details.get("calibration") or ():
        if number(row["n"]):
            said, right = number(row["confidence"]), number(row["accuracy"])
            gap = None if said is None or right is None else right - said
            bin = f"{percent(row['low'])} to {percent(row['high'])}"
            cells.append((bin, count(row["n"]), percent(said), percent(right), value_of("", gap, sign=True)))
    title = "calibration: how sure it is, and how often it is right"
    columns = ("confidence %", "n", "mean confidence %", "accuracy %", "gap")
    return [Table(title, columns, cells)] if cells else []


def _differences(run: Run) -> list[Block]:
    cells = []
    for source in run.sources:
        for found in source.differences:
            for name, figure in found.figures.items():
                gain = -figure.value if lower_is_better(name) else figure.value
                # NaN: no interval, and no verdict
                sure = figure.low > 0 or figure.high < 0
                verdict = "open" if not sure else "better" if gain > 0 else "worse"
                known = verdict if interval_of(name, figure) != DASH else DASH
                figures = (value_of(name, figure.value, True), interval_of(name, figure, True), known)
                cells.append((found.of, found.than, found.task, name_of(name), *figures))
    if not cells:
        return []
    columns = ("of", "less", "task", "figure", "difference", "95 % interval", "so it is")
    read = (
        "Paired over the pictures: equal pictures for both. Shares in points of per cent. Open: the interval holds 0."
    )
    return [Heading(2, "Differences between models"), Table("", columns, cells, 4, 1), Text(read, "muted")]


def _origins(run: Run, rows: Sequence[Row]) -> list[Block]:
    versions = {s.name: ", ".join(f"{name} {version}" for name, version in s.versions.items()) for s in run.sources}
    made = [(s.name, moment(s.time), versions[s.name] or DASH) for s in run.sources if s.time or s.versions]
    equal = {version for _, _, version in made}
    models = dict.fromkeys((result.model or DASH, result.model_fingerprint or DASH) for _, result in rows)
    data = dict.fromkeys(
        (source.name, result.task, result.data or DASH, result.split or DASH, result.fingerprint or DASH)
        for source, result in rows
    )
    tables = [
        Table("", ("from", "when", "versions"), made, 3)
        if len(equal) > 1
        else Table("", ("from", "when"), [row[:2] for row in made], 2),
        Table("models", ("model", "fingerprint of its weights"), list(models), 2),
        Table("data", ("from", "task", "data", "split", "fingerprint of what was read"), list(data), 5),
    ]
    tables = [table for table in tables if table.rows]
    told = [Text(f"Versions: {', '.join(equal)}.", "muted")] if len(equal) == 1 else []
    return [Heading(2, "Where it comes from"), *tables, *told] if tables else []
