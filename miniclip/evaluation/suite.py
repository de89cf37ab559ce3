"""The evaluation that belongs to a run: its tasks during training; the tables, files and pictures at the end.

Every process of the run calls `open_suite`, `evaluate` and `final_evaluation`, and shares the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from miniclip.common.console import write_json
from miniclip.common.processes import place
from miniclip.config import Config, ConfigError, DataConfig, EvalTask
from miniclip.data.captioned import LabelledSource, PairSource, open_split
from miniclip.data.labelled import labelled_splits, open_labelled
from miniclip.data.scenes.source import TASKS, SceneTask
from miniclip.data.stream.held_out import open_pairs
from miniclip.data.subset import Subset, readable
from miniclip.evaluation.encode import EncodeOptions, fingerprint, model_device
from miniclip.evaluation.pictures import confusion_png
from miniclip.evaluation.probing import open_parts, probe_model
from miniclip.evaluation.prompts import brings_sentences, check_classes, resolve_templates
from miniclip.evaluation.result import Evaluation, entry, header
from miniclip.evaluation.retrieval import PairEmbeddings, count_retrieval, encode_pairs
from miniclip.evaluation.sheet import write_sheets
from miniclip.evaluation.tables import print_evaluations
from miniclip.evaluation.zeroshot import zero_shot
from miniclip.metrics.bootstrap import RESAMPLES
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.tokenizer import Tokenizer
from miniclip.training.precision import for_encoding

Role = Literal["validation", "test"]
_WAYS = ("image_to_text", "text_to_image")
_COUNTED = ("r1", "r5", "r10", "median_rank", "mean_rank", "map")
# What eval.best may name; what a data set is too small for (top5) is refused once that is known.
FIGURES = {
    "zeroshot": ("top1", "top5", "balanced_accuracy", "macro_f1", "ece"),
    "retrieval": tuple(f"{way}_{name}" for way in _WAYS for name in _COUNTED),
    "probe": ("linear", "linear_balanced_accuracy", "knn"),
}


@dataclass(frozen=True)
class Task:
    """Opened data of one task. data: the source as the user calls it. parts: of a probe: train, validation, test."""

    kind: Literal["zeroshot", "retrieval", "probe"]
    data: str
    split: str
    labelled: LabelledSource | None = None
    pairs: PairSource | None = None
    parts: Sequence[LabelledSource] = ()
    templates: tuple[str, ...] | None = None


# What a run is evaluated on, by name, opened before the training starts, so that nothing can be missing after it.
Suite = dict[str, Task]


def open_suite(config: Config, role: Role) -> Suite:
    """Open every task of eval.tasks, on pictures of that role, and read every picture once.

    Raises ConfigError for a task that is neither known nor a folder and for an eval.best that no task counts,
    ValueError for classes that cannot be told apart, and TooManyBad if more pictures than data.max_bad_fraction cannot
    be read; up to there they are left out.
    """
    tasks = config.eval.own_tasks
    if tasks is None:
        tasks = ["retrieval", *(TASKS if config.data.source == "shapes" else ())]
    suite = {}
    for task in tasks:
        if isinstance(task, str):
            name, opened = task.rstrip("/"), _open_named(config, task, role)
        else:
            name, opened = task.label, _open_own(config, task, role)
        suite[name] = opened
    _check_best(config.eval.best, suite)
    return suite


def evaluate(
    config: Config, suite: Suite, model: DualEncoder, preprocess: Preprocess, *, resamples: int = 0
) -> dict[str, Evaluation]:
    """Every task of the suite on the model as it stands, by name; without intervals, which take their time."""
    return {name: _run(config, name, task, model, preprocess, resamples)[0] for name, task in suite.items()}


def scalars(results: dict[str, Evaluation]) -> dict[str, float]:
    """What the log and a tracker take: "eval/retrieval/image_to_text_r10", "eval/shape/top1", ..."""
    return {
        f"eval/{name}/{figure}": found.value
        for name, result in results.items()
        for figure, found in result.figures.items()
    }


def final_evaluation(
    config: Config, suite: Suite, model: DualEncoder, preprocess: Preprocess, run_dir: Path, training: dict[str, Any]
) -> dict[str, Any]:
    """Run every task; the main process prints the tables, and writes results.json, a sheet of examples and a confusion
    matrix for each task.

    training: what results.json says of the training itself. Returns what results.json holds; elsewhere an empty dict.
    """
    main = place()[0] == 0
    results = {}
    for name, task in suite.items():
        results[name], pairs = _run(config, name, task, model, preprocess, RESAMPLES if main else 0)
        if main and pairs is not None and name == "retrieval":
            assert task.pairs is not None
            title = f"{task.data}: the best of {len(pairs.texts)} captions and of {len(pairs.image)} pictures"
            write_sheets(Subset(task.pairs, pairs.rows), pairs, run_dir, title=title)
    if not main:
        return {}
    chosen = training.get("best") or {}
    for name, result in results.items():
        if (name, result.fingerprint) == (chosen.get("figure", "").rpartition("/")[0], chosen.get("fingerprint")):
            note = f"{name}: eval.best chose the weights by these very pictures, so its figures flatter"
            results[name] = replace(result, notes=(*result.notes, note))
    print()
    print_evaluations(results)
    drawn: list[str] = []
    for name, result in results.items():
        if "confusion" in result.details:
            file = "confusion_" + re.sub(r"[^\w.-]+", "_", name.strip("/"))
            drawn.append(file)  # two names may be alike but for what a file name cannot hold
            file += f"_{drawn.count(file)}.png" if drawn.count(file) > 1 else ".png"
            confusion_png(result.details["confusion"], result.details["classes"], run_dir / file, title=name)
    trained = {"name": str(run_dir), "fingerprint": fingerprint(model)}
    entries = [
        entry(result, trained, {"source": suite[name].data, "split": suite[name].split})
        for name, result in results.items()
    ]
    values = {**header(), "training": training, "results": entries}
    write_json(run_dir / "results.json", values)
    print(f"model, results and pictures are in {run_dir}")
    return values


def _open_named(config: Config, task: str, role: Role) -> Task:
    image_size = config.model.image_size
    assert image_size is not None
    if task == "retrieval":
        pairs = open_pairs(config.data, role, seed=config.run.seed, image_size=image_size, eval_size=config.eval.size)
        return Task("retrieval", config.data.label, role, pairs=readable(pairs, config.data.max_bad_fraction))
    if task in TASKS:
        # the scenes of the final tables stay unseen until then
        scenes = SceneTask(task, config.eval.size, config.run.seed + (role == "validation"), image_size)
        return Task("zeroshot", f"shapes: {task}", role, scenes)
    if not Path(task).is_dir():
        raise ConfigError(
            f"eval.tasks: {task!r} is neither retrieval, nor one of {', '.join(TASKS)}, nor a folder with one "
            "sub-folder a class; other data takes a mapping with kind and data"
        )
    return _open_own(config, EvalTask("zeroshot", task), role)


def _open_own(config: Config, task: EvalTask, role: Role) -> Task:
    image_size, allowed = config.model.image_size, config.data.max_bad_fraction
    assert image_size is not None
    split = task.split or role
    if task.kind == "retrieval":
        data = DataConfig(
            source=task.data,
            name=task.name,
            image_column=task.image_column,
            caption_column=task.caption_column,
            max_bad_fraction=allowed,
        )
        pairs = open_split(data, split, image_size=image_size)
        return Task("retrieval", task.data, split, pairs=readable(pairs, allowed))

    def labelled(split: str) -> LabelledSource:
        return open_labelled(
            task.data,
            split=split,
            name=task.name,
            classnames_file=task.classnames,
            image_column=task.image_column,
            label_column=task.label_column,
            image_size=image_size,
        )

    if task.kind == "probe":
        opened = open_parts(labelled, labelled_splits(task.data, task.name), task.data, config.run.seed)
        # the pictures of the final table stay unseen until then
        parts = [readable(part, allowed) for part in (opened if role == "test" else opened[:2])]
        return Task("probe", task.data, role, parts=[*parts[:2], parts[-1]])
    templates = None if task.templates is None else resolve_templates(task.templates)
    source = labelled(split)
    check_classes(task.label, source.classes)
    return Task("zeroshot", task.data, split, readable(source, allowed), templates=templates)


def _check_best(best: str | None, suite: Suite) -> None:
    if best is None:
        return
    name, _, figure = best.rpartition("/")
    if name not in suite:
        raise ConfigError(f"eval.best={best}: the tasks are {', '.join(suite) or 'none'}; write TASK/FIGURE")
    known = FIGURES[suite[name].kind]
    if figure not in known:
        raise ConfigError(f"eval.best={best}: {name} counts {', '.join(known)}")
    source = suite[name].labelled
    few = source is not None and len(source.classes) <= 5
    if (brings_sentences(source) and figure != "top1") or (few and figure == "top5"):
        raise ConfigError(f"eval.best={best}: {name} has no {figure}; use {name}/top1")


def _run(
    config: Config, name: str, task: Task, model: DualEncoder, preprocess: Preprocess, resamples: int
) -> tuple[Evaluation, PairEmbeddings | None]:
    tokenizer = Tokenizer(context_length=model.context_length)
    precision = for_encoding(config.train.precision)
    options = EncodeOptions(config.eval.batch_size, precision, config.log.progress, shared=True)
    if task.kind == "retrieval":
        assert task.pairs is not None
        pairs = encode_pairs(model, preprocess, tokenizer, task.pairs, options)
        return count_retrieval(pairs, name, shared=True, device=model_device(model), resamples=resamples), pairs
    if task.kind == "probe":
        return probe_model(model, preprocess, task.parts, name, options=options, shots=(), resamples=resamples), None
    assert task.labelled is not None
    found = zero_shot(
        model, preprocess, tokenizer, task.labelled, task.templates, task=name, options=options, resamples=resamples
    )
    return found, None
