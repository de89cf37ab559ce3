"""eval.py zeroshot, retrieval and probe: models and data -> tables, and a folder with results.json and pictures.

Everything that can be refused is refused before a model is loaded. Several processes share the work; the main one
prints and writes.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from miniclip.cli.options import pairs_of, together
from miniclip.common.arguments import check_folder
from miniclip.common.console import write_json
from miniclip.common.processes import place
from miniclip.evaluation.encode import EncodeOptions, fingerprint, model_device
from miniclip.evaluation.pictures import confusion_png
from miniclip.evaluation.plots import calibration_png, compare_png, foreign_png, shots_png, templates_png
from miniclip.evaluation.probing import open_parts, probe_model
from miniclip.evaluation.prompts import check_classes, resolve_templates
from miniclip.evaluation.result import Evaluation, difference, entry, figures_json, header
from miniclip.evaluation.retrieval import count_retrieval, encode_pairs
from miniclip.evaluation.sheet import write_sheets
from miniclip.evaluation.tables import print_differences, print_evaluations
from miniclip.evaluation.zeroshot import zero_shot
from miniclip.metrics.bootstrap import RESAMPLES, Figure
from miniclip.models.load import image_size_of, load_model
from miniclip.training.precision import agreed, for_encoding

if TYPE_CHECKING:
    from miniclip.data.captioned import LabelledSource, PairSource
    from miniclip.evaluation.retrieval import PairEmbeddings
    from miniclip.models.preprocess import Preprocess
    from miniclip.models.protocols import TextTokenizer, TwoTowers

Source = TypeVar("Source")
# of each kind, what a comparison of models is about
_HEADLINES = {
    "zeroshot": ("top1", "top5", "balanced_accuracy", "ece"),
    "retrieval": tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "probe": ("linear", "knn"),
}
_PICTURES = (
    *("confusion.png", "calibration.png", "templates.png", "foreign.png", "shots.png", "compare.png"),
    *("examples.png", "queries.png", "examples.html"),
)


def zeroshot_command(arguments: argparse.Namespace) -> None:
    """eval.py zeroshot with parsed arguments; raises ValueError or OSError for what cannot be done as asked."""
    data_only = ("classnames", "label_column", "image_column", "name", "revision")
    stray = [f"--{option}" for option in data_only if arguments.task and getattr(arguments, option) is not None]
    if stray:
        raise ValueError(f"{', '.join(stray)} belongs to --data; a built-in task has its own classes")
    if arguments.task == "relation" and (arguments.templates or arguments.foreign):
        raise ValueError("--task relation brings two sentences for each picture; leave --templates and --foreign out")
    templates = None
    if arguments.templates is not None:
        given = arguments.templates
        templates = resolve_templates(given[0] if len(given) == 1 else given)
    task = arguments.task or _short(arguments.data)
    folder = _folder(arguments, task)

    def open_both(image_size: int) -> tuple[LabelledSource, Any]:
        source = _labelled(arguments, arguments.split, image_size)
        check_classes(task, source.classes)
        foreign = None
        if arguments.foreign:
            from miniclip.data.unlabelled import open_pictures

            foreign = open_pictures(arguments.foreign, image_size=image_size)
        return source, foreign

    def run(model: TwoTowers, preprocess: Preprocess, tokenizer: TextTokenizer, data: Any, resamples: int) -> Any:
        source, foreign = data
        return zero_shot(
            *(model, preprocess, tokenizer, source, templates),
            foreign=foreign,
            task=task,
            options=_options(arguments),
            resamples=resamples,
        )

    def draw(result: Evaluation, folder: Path) -> None:
        title, details = f"{task}, top-1 {100 * result['top1']:.1f} %", result.details
        if "confusion" in details:
            confusion_png(details["confusion"], details["classes"], folder / "confusion.png", title)
            calibration_png(details["calibration"], result["ece"], folder / "calibration.png", title)
        if result.raw and all(np.isfinite(scores).any() for scores in result.raw):
            inside, outside = result.raw
            foreign_png(inside, outside, folder / "foreign.png", task, score="highest probability")
        if details.get("templates"):
            templates_png(details["templates"], result["top1"], folder / "templates.png", title)

    _evaluate(arguments, folder, open_both, run, draw)


def retrieval_command(arguments: argparse.Namespace) -> None:
    """eval.py retrieval with parsed arguments; raises as zeroshot_command does."""
    task = _short(arguments.data)
    folder = _folder(arguments, task)
    kept: dict[str, tuple[PairSource, PairEmbeddings]] = {}

    def run(
        model: TwoTowers, preprocess: Preprocess, tokenizer: TextTokenizer, source: PairSource, resamples: int
    ) -> Evaluation:
        pairs = encode_pairs(model, preprocess, tokenizer, source, _options(arguments))
        if not kept:
            kept["first"] = source, pairs
        return count_retrieval(pairs, task, shared=True, device=model_device(model), resamples=resamples)

    def draw(result: Evaluation, folder: Path) -> None:
        from miniclip.data.subset import Subset

        source, pairs = kept["first"]
        title = f"{task}: the best of {len(pairs.texts)} captions and of {len(pairs.image)} pictures"
        write_sheets(Subset(source, pairs.rows), pairs, folder, title=title)

    _evaluate(arguments, folder, lambda size: pairs_of(arguments, size, arguments.limit), run, draw)


def probe_command(arguments: argparse.Namespace) -> None:
    """eval.py probe with parsed arguments; raises as zeroshot_command does."""
    from miniclip.data.labelled import labelled_splits

    task = _short(arguments.data)
    folder = _folder(arguments, task)
    splits = labelled_splits(arguments.data, arguments.name, arguments.revision)

    def open_at(image_size: int) -> Any:
        return open_parts(lambda split: _labelled(arguments, split, image_size), splits, arguments.data, arguments.seed)

    def run(model: TwoTowers, preprocess: Preprocess, _: TextTokenizer, parts: Any, resamples: int) -> Evaluation:
        return probe_model(
            *(model, preprocess, parts, task),
            shots=arguments.shots,
            draws=arguments.draws,
            seed=arguments.seed,
            options=_options(arguments),
            resamples=resamples,
        )

    def draw(result: Evaluation, folder: Path) -> None:
        if result.details["shots"]:
            full = {"shots": "full", "mean": result["linear"], "std": 0.0}
            curves = {_short(arguments.checkpoint): [*result.details["shots"], full]}
            shots_png(curves, folder / "shots.png", f"{task}, linear probe")

    _evaluate(arguments, folder, open_at, run, draw)


def _evaluate(
    arguments: argparse.Namespace,
    folder: Path | None,
    open_at: Callable[[int], Source],
    run: Callable[[TwoTowers, Preprocess, TextTokenizer, Source, int], Evaluation],
    draw: Callable[[Evaluation, Path], None],
) -> None:
    """Every model on the data; then the tables, and if there is a folder its files.

    open_at: picture size -> data, opened once for each size that a model takes. draw: pictures of the first model.
    """
    names = [arguments.checkpoint, *(arguments.compare or ())]
    if len({name if ":" in name else os.path.realpath(name) for name in names}) < len(names):
        raise ValueError("--checkpoint and --compare name the same model twice")
    sizes = {name: image_size_of(name) for name in names}
    with together(arguments.device) as device:
        arguments.precision = for_encoding(agreed(arguments.precision, device).name)
        sources = {size: open_at(size) for size in dict.fromkeys(sizes.values())}
        main = place()[0] == 0
        results, weights = {}, {}
        failure: ValueError | OSError | None = None
        for name in names:
            try:
                model, preprocess, tokenizer = load_model(name, device)
                weights[name] = fingerprint(model) if main else ""
                source = sources[sizes[name]]
                results[name] = run(model, preprocess, tokenizer, source, RESAMPLES if main else 0)
            except (ValueError, OSError) as error:
                if not results:
                    raise
                failure = error  # which costs nothing of what is done
                break
        if main:
            _conclude(arguments, folder, results, weights, draw)
        if failure is not None:
            raise failure


def _conclude(
    arguments: argparse.Namespace,
    folder: Path | None,
    results: dict[str, Evaluation],
    weights: dict[str, str],
    draw: Callable[[Evaluation, Path], None],
) -> None:
    first = results[arguments.checkpoint]
    data = {
        "source": arguments.data or f"shapes: {arguments.task}",
        "split": getattr(arguments, "split", "test"),
    }
    title = f"{arguments.command}: {data['source']}, {data['split']}"
    print_evaluations(results, title)
    apart: dict[str, dict[str, Figure]] = {}
    for name, result in results.items():
        if name != arguments.checkpoint:
            found = difference(first, result)
            apart[name] = {figure: found[figure] for figure in _HEADLINES[result.kind] if figure in found}
    if apart:
        print_differences(apart, arguments.checkpoint)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in _PICTURES:
        (folder / left_over).unlink(missing_ok=True)  # of an evaluation before, perhaps of other data
    entries = [entry(r, {"name": name, "fingerprint": weights[name]}, data) for name, r in results.items()]
    differences = [
        {"of": name, "than": arguments.checkpoint, "task": first.task, "figures": figures_json(figures)}
        for name, figures in apart.items()
    ]
    about = header(arguments.line) | {"precision": arguments.precision}
    write_json(folder / "results.json", {**about, "results": entries, "differences": differences})
    draw(first, folder)
    if apart:
        shown = {
            name: {figure: r.figures[figure] for figure in _HEADLINES[r.kind] if figure in r.figures}
            for name, r in results.items()
        }
        compare_png(shown, folder / "compare.png", title)
    print(f"results.json and pictures are in {folder}")


def _labelled(arguments: argparse.Namespace, split: str, image_size: int) -> LabelledSource:
    if getattr(arguments, "task", None):
        from miniclip.data.scenes.source import SceneTask

        return SceneTask(arguments.task, arguments.size, arguments.seed, image_size)
    from miniclip.data.labelled import open_labelled

    return open_labelled(
        arguments.data,
        split=split,
        name=arguments.name,
        revision=arguments.revision,
        classnames_file=arguments.classnames,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        image_size=image_size,
    )


def _options(arguments: argparse.Namespace) -> EncodeOptions:
    return EncodeOptions(
        arguments.batch_size,
        arguments.precision,
        progress=sys.stderr.isatty(),
        shared=True,
        max_bad_fraction=arguments.max_bad_fraction,
    )


def _folder(arguments: argparse.Namespace, task: str) -> Path | None:
    """Where the files go, checked: --out, or beside the run; None for a model that is no run."""
    if arguments.out is not None:
        folder = Path(arguments.out)
    elif (Path(arguments.checkpoint) / "config.yaml").is_file():
        split = getattr(arguments, "split", "test")
        words = (arguments.command, task, *([] if split == "test" else [split]))
        name = "-".join(re.sub(r"[^\w.]+", "_", word).strip("_.") or "data" for word in words)
        folder = Path(arguments.checkpoint) / "evaluation" / name
    else:
        return None
    check_folder("--out", folder)
    return folder


def _short(source: str) -> str:
    return Path(source).name or source
