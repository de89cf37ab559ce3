"""eval.py zeroshot, retrieval and probe: models and data -> tables, and a folder with results.json and images.

Several processes share the work; the main one prints and writes.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from miniclip.cli.results import check_out, put_results
from miniclip.common.arguments import check_folder
from miniclip.common.runs import apart, run_of
from miniclip.config import DataConfig
from miniclip.data.tables.source import told_split
from miniclip.evaluation.tasks import Task

if TYPE_CHECKING:
    from miniclip.evaluation.result import Evaluation
    from miniclip.metrics.bootstrap import Figure

_FILES = (
    *("results.json", "confusion.png", "calibration.png", "templates.png", "foreign.png", "shots.png", "compare.png"),
    "examples.html",
)


def evaluate(
    task: Task,
    line: str,
    *,
    checkpoint: str,
    compare: list[str] | None = None,
    out: str | None = None,
    max_bad_fraction: float = DataConfig.max_bad_fraction,
    batch_size: int = 256,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> None:
    """Every model on the data of a task; raises ValueError or OSError for what cannot be done as asked.

    line: the command, for results.json.

    Args:
        checkpoint: run, a checkpoint in it or a model directory; open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        compare: other models, with the difference of each to --checkpoint on the same images
        out: folder for results.json and images (default: evaluation/ in the run; none for other models)
        max_bad_fraction: share of the data's images that may be unreadable; they are skipped, counted, named
        batch_size: items encoded at a time
        precision: number format of the towers; auto takes what is fastest here
        device: auto, cpu, cuda, cuda:1, ...
    """
    folder = _folder(task, checkpoint, out)
    names = [checkpoint, *(compare or ())]
    if len({name if ":" in name else os.path.realpath(name) for name in names}) < len(names):
        raise ValueError("--checkpoint and --compare name the same model twice")

    from miniclip.cli.devices import together
    from miniclip.common.processes import place
    from miniclip.evaluation.encode import EncodeOptions, fingerprint
    from miniclip.evaluation.result import header
    from miniclip.metrics.bootstrap import RESAMPLES
    from miniclip.models.load import image_size_of, load
    from miniclip.training.precision import agreed, for_encoding

    options = EncodeOptions(batch_size, progress=sys.stderr.isatty(), shared=True, max_bad_fraction=max_bad_fraction)
    sizes = {name: image_size_of(name) for name in names}
    with together(device) as there:
        options = replace(options, precision=for_encoding(agreed(precision, there).name))
        # opened once for each size that a model takes
        data = {size: task.open(size, max_bad_fraction=max_bad_fraction) for size in dict.fromkeys(sizes.values())}
        main = place()[0] == 0
        results: dict[str, Evaluation] = {}
        weights: dict[str, str] = {}
        failure: ValueError | OSError | None = None
        for name in names:
            try:
                model = load(name, there)
                weights[name] = fingerprint(model[0]) if main else ""
                found = task.run(model, data[sizes[name]], options, RESAMPLES if main else 0, task.label)
                results[name] = replace(found, raw=None) if results else found  # the first alone is drawn
            except (ValueError, OSError) as error:
                if not results:
                    raise
                failure = error  # which costs nothing of what is done
                break
        if main:
            values = {**header(line), "precision": options.precision}
            _conclude(task, results, weights, data[sizes[checkpoint]], folder, out is None, values)
        if failure is not None:
            raise failure


def _conclude(
    task: Task,
    results: dict[str, Evaluation],
    weights: dict[str, str],
    data: Any,
    folder: Path | None,
    numbered: bool,
    values: Any,
) -> None:
    """Print the tables, and write the files if there is a folder. values: what results.json begins with.

    numbered: whether the folder may get a number, so that it replaces no other results.
    """
    from miniclip.common.console import write_json
    from miniclip.evaluation.plots import compare_png
    from miniclip.evaluation.result import difference, entry, figures_json
    from miniclip.evaluation.tables import print_differences, print_evaluations

    (checkpoint, first), *others = results.items()
    where, title = {"source": task.source, "split": task.split}, f"{task.kind}: {task.source}, {task.split}"

    def headline(figures: dict[str, Figure]) -> dict[str, Figure]:
        return {name: figures[name] for name in task.headline if name in figures}

    print_evaluations(results, title)
    apart = {name: headline(difference(first, result)) for name, result in others}
    if apart:
        print_differences(apart, checkpoint)
    if folder is None:
        return
    about = {"than": checkpoint, "task": first.task}
    values["results"] = [entry(r, {"name": n, "fingerprint": weights[n]}, where) for n, r in results.items()]
    values["differences"] = [{"of": name, **about, "figures": figures_json(found)} for name, found in apart.items()]

    def write(part: Path) -> None:
        task.draw(first, data, part, checkpoint)
        if apart:
            compare_png({n: headline(r.figures) for n, r in results.items()}, part / "compare.png", title)
        write_json(part / "results.json", values)

    again = (folder.with_name(f"{folder.name}-{number}") for number in count(2)) if numbered else ()
    mine = partial(_same, values) if numbered else partial(_of, (task.kind, task.source, task.split, checkpoint))
    place, before = put_results(folder, again, _FILES, mine, write)
    if before:
        print(f"{place}: in place of the results of {before.get('time')} ({before.get('command')})")
    print(f"results.json and images are in {place}")


def _folder(task: Task, checkpoint: str, out: str | None) -> Path | None:
    """Where the files go, checked: --out, or beside the run; None for a model that is no run."""
    run, part = run_of(checkpoint)
    if out is not None:
        check_out(Path(out), _FILES, partial(_of, (task.kind, task.source, task.split, checkpoint)))
        return Path(out)
    if run is None:
        return None
    words = (task.kind, *_names(task), *([] if task.split == "test" else [task.split]), *apart(part))
    name = "-".join(re.sub(r"[^\w.]+", "_", word).strip("_.") or "data" for word in words)
    folder = run / "evaluation" / name
    check_folder("--out", folder)
    return folder


def _names(task: Task) -> list[str]:
    """What the data are called: the last part of their path, and the one before where that is a split's name."""
    path = Path(os.path.normpath(Path(task.source).expanduser().absolute()))
    if not path.exists():
        return [task.label]
    return [path.parent.name, path.name] if told_split(path.name) else [path.name]


def _of(own: tuple[str, ...], before: dict[str, Any]) -> bool:
    """Whether results are of the same evaluation by name: kind, source, split, model."""
    return [one[:4] for one in _evaluated(before)[:1]] == [own]


def _same(values: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether results are of equal weights and data, and were asked for by the same command, or say the same."""

    def said(values: dict[str, Any]) -> list[Any]:
        return [(one.get("figures"), one.get("details")) for one in values["results"]]

    of = [[(*one[-2:], one[0]) for one in _evaluated(each)] for each in (before, values)]
    return of[0] == of[1] and (before.get("command") == values["command"] or said(before) == said(values))


def _evaluated(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of results.json the kind, source, split, model and fingerprints of each; none if it is damaged."""
    found: list[tuple[str, ...]] = []
    try:
        for one in values["results"]:
            model, data = one["model"], one["data"]
            own = (one["kind"], data["source"], data["split"], model["name"])
            found.append((*own, model["fingerprint"], data["fingerprint"]))
    except (KeyError, TypeError):
        return []
    return found
