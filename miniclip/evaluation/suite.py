"""The evaluation that belongs to a run, during training and at the end; every process calls it, and shares the work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from miniclip.common.console import write_json
from miniclip.common.printing import did_you_mean
from miniclip.common.processes import place
from miniclip.config import Config, ConfigError, EvalTask
from miniclip.data.scenes.source import TASKS as SCENES
from miniclip.data.stream.held_out import open_pairs
from miniclip.data.subset import Subset, readable
from miniclip.evaluation.encode import EncodeOptions, fingerprint
from miniclip.evaluation.plots import confusion_png
from miniclip.evaluation.prompts import check_prompts
from miniclip.evaluation.result import Evaluation, entry, header
from miniclip.evaluation.tables import print_evaluations, print_guard
from miniclip.evaluation.tasks import TASKS, Retrieval, Task, Zeroshot
from miniclip.metrics.bootstrap import RESAMPLES
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import Tokenizer
from miniclip.training.precision import for_encoding

Role = Literal["validation", "test"]


class Opened(NamedTuple):
    """A task with its data, of which every image can be read."""

    task: Task
    data: list[Any]


Suite = dict[str, Opened]  # by name, opened before the training starts, so that nothing can be missing after it


def open_suite(config: Config, role: Role, tokenizer: TextTokenizer = Tokenizer()) -> Suite:  # noqa: B008
    """Open every task of eval.tasks, on images of that role, and read every image once. tokenizer: of the model.

    Raises ConfigError for a task that is neither known nor a folder and for an eval.best that no task counts,
    ValueError for classes that cannot be told apart, and TooManyBad above data.max_bad_fraction.
    """
    tasks, best = config.eval.own_tasks, config.eval.best
    if tasks is None:
        tasks = ["retrieval", *(SCENES if config.data.source == "shapes" else ())]
    suite = open_tasks(config, tasks, role, tokenizer)
    if best is not None:
        name, _, figure = best.rpartition("/")
        if name not in suite:
            raise ConfigError(f"eval.best={best}: the tasks are {', '.join(suite) or 'none'}; write TASK/FIGURE")
        one, data = suite[name]
        if figure not in one.figures:
            raise ConfigError(f"eval.best={best}: {name} counts {', '.join(one.figures)}")
        if figure not in one.counted(data):
            raise ConfigError(f"eval.best={best}: {name} has no {figure}; use {name}/top1")
    return suite


def open_tasks(
    config: Config,
    tasks: Sequence[str | EvalTask],
    role: Role,
    tokenizer: TextTokenizer,
    key: str = "eval.tasks",
    most: int | None = None,
) -> Suite:
    """The same for any tasks. key: of the configuration, that names them. most: of each part's images at most so many,
    at random, or one a class. Raises what `open_suite` does."""
    if most is not None:
        config = replace(config, eval=replace(config.eval, size=min(most, config.eval.size)))  # scenes, and streams
    names = [task.rstrip("/") if isinstance(task, str) else task.label for task in tasks]
    return {name: _open(config, task, role, tokenizer, key, most) for name, task in zip(names, tasks, strict=True)}


def evaluate(
    config: Config,
    suite: Suite,
    model: DualEncoder,
    preprocess: Preprocess,
    *,
    resamples: int = 0,
    between: Callable[[], object] = lambda: None,
) -> dict[str, Evaluation]:
    """Every task of the suite on the model as it stands, by name. between: as in EncodeOptions."""
    loaded = model, preprocess, model.tokenizer
    precision = for_encoding(config.train.precision)
    size, progress, allowed = config.eval.batch_size, config.log.progress, config.data.max_bad_fraction
    options = EncodeOptions(size, precision, progress, shared=True, max_bad_fraction=allowed, between=between)
    return {name: one.task.run(loaded, one.data, options, resamples, name) for name, one in suite.items()}


def scalars(results: dict[str, Evaluation]) -> dict[str, float]:
    """What the log takes: "eval/retrieval/image_to_text_r10", ..."""
    return {f"eval/{name}/{k}": figure.value for name, one in results.items() for k, figure in one.figures.items()}


def final_evaluation(
    config: Config,
    suite: Suite,
    model: DualEncoder,
    preprocess: Preprocess,
    run_dir: Path,
    training: dict[str, Any],
    guard: Mapping[str, Any],
) -> dict[str, Any]:
    """Run every task; the main process prints the tables, writes results.json and images, and returns what it holds.

    training: what results.json says of the training itself. guard: of eval.guard, what `Guard.end` returned.
    """
    main = place()[0] == 0
    results = evaluate(config, suite, model, preprocess, resamples=RESAMPLES if main else 0)
    if not main:
        return {}
    chosen = training.get("best") or {}
    for name, result in results.items():
        if (name, result.fingerprint) == (chosen.get("figure", "").rpartition("/")[0], chosen.get("fingerprint")):
            note = f"{name}: eval.best chose the weights by these very images, so its figures flatter"
            results[name] = replace(result, notes=(*result.notes, note))
    print()
    print_evaluations(results)
    if guard:
        print_guard(guard)
    drawn: list[str] = []
    for name, result in results.items():
        if name == "retrieval":
            suite[name].task.draw(result, suite[name].data, run_dir, str(run_dir))
        elif "confusion" in result.details:
            file = "confusion_" + re.sub(r"[^\w.-]+", "_", name.strip("/"))
            drawn.append(file)  # two names may be alike but for what a file name cannot hold
            file += f"_{drawn.count(file)}.png" if drawn.count(file) > 1 else ".png"
            confusion_png(result.details["confusion"], result.details["classes"], run_dir / file, title=name)
    trained = {"name": str(run_dir), "fingerprint": fingerprint(model)}
    where = {name: {"source": one.task.source, "split": one.task.split} for name, one in suite.items()}
    entries = [entry(result, trained, where[name]) for name, result in results.items()]
    values = {**header(), "training": training, "results": entries, **({"guard": dict(guard)} if guard else {})}
    write_json(run_dir / "results.json", values)
    print(f"model, results and images are in {run_dir}")
    return values


def _open(
    config: Config, wanted: str | EvalTask, role: Role, tokenizer: TextTokenizer, key: str, most: int | None
) -> Opened:
    side, allowed, seed = config.model.image_size, config.data.max_bad_fraction, config.run.seed
    assert side is not None
    task: Task
    if wanted == "retrieval":
        task = Retrieval(data=config.data.label, split=role)
        parts: list[Any] = [open_pairs(config.data, role, seed=seed, image_size=side, eval_size=config.eval.size)]
    else:
        if isinstance(wanted, EvalTask):
            kind = TASKS[wanted.kind]
            task = kind(**wanted.options(role), seed=seed, **kind.in_run)
        elif wanted in SCENES:
            # the scenes of the final tables stay unseen until then
            task = Zeroshot(task=wanted, split=role, size=config.eval.size, seed=seed + (role == "validation"))
        elif Path(wanted).is_dir():
            task = Zeroshot(data=wanted, split=role)
        else:
            known = f"neither retrieval, nor one of {', '.join(SCENES)}, nor a folder with one sub-folder a class"
            near = did_you_mean(wanted, ("retrieval", *SCENES))
            raise ConfigError(f"{key}: {wanted!r} is {known}; other data takes a mapping with kind and data{near}")
        try:
            parts = task.open(side, role, allowed)
        except ValueError as error:
            split = f"; tell a split, e.g. {{kind: {task.kind}, data: {task.source}, split: test}}"
            raise ConfigError(f"{key}: {error}" + split * (f"no split {role!r}" in str(error))) from error
        if isinstance(task, Zeroshot):  # before the training, not after it
            check_prompts(task.label, parts[0], task.resolved, tokenizer)
    # one part may stand for two, and is then read once
    read = {key: readable(_few(part, most), allowed) for key, part in {id(part): part for part in parts}.items()}
    return Opened(task, [read[id(part)] for part in parts])


def _few(part: Any, most: int | None) -> Any:
    """At most so many images of a source, or one a class, in their order."""
    if most is None or len(part) <= most:
        return part
    order = np.random.default_rng(0).permutation(len(part)).tolist()
    if not hasattr(part, "classes"):
        return Subset(part, sorted(order[:most]))
    # of each class as many, for a probe needs some of all
    each, seen = -(-most // len(part.classes)), Counter[int]()
    chosen = []
    for row in order:
        label = part.label(row)
        seen[label] += 1
        chosen += [row] * (seen[label] <= each)
    return Subset(part, sorted(chosen))
