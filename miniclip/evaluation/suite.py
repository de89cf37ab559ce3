"""The evaluation that belongs to a run: its tasks during training; the tables, files and pictures at the end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from miniclip.config import Config, ConfigError
from miniclip.console import write_json
from miniclip.data.aside import open_pairs
from miniclip.data.labelled import open_labelled
from miniclip.data.shapes import TASKS, scene_task
from miniclip.data.sources import LabelledSource, PairSource
from miniclip.data.subset import readable
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.encode import EncodeOptions
from miniclip.evaluation.pictures import confusion_png, write_examples
from miniclip.evaluation.tables import print_retrieval, print_zero_shot, to_json
from miniclip.evaluation.retrieval import RetrievalResult, count_retrieval, encode_pairs
from miniclip.evaluation.zeroshot import ZeroShotResult, check_classes, zero_shot
from miniclip.models import DualEncoder
from miniclip.tokenizer import Tokenizer


class Suite(NamedTuple):
    """What a run is evaluated on, opened before the training starts, so that nothing can be missing after it.

    pairs: of the retrieval, or None if eval.tasks leaves it out. labelled: task name -> pictures with labels.
    """

    pairs: PairSource | None
    labelled: dict[str, LabelledSource]


class SuiteResult(NamedTuple):
    """Results by task name. retrieval: None if the suite has no pairs."""

    retrieval: RetrievalResult | None
    zero_shot: dict[str, ZeroShotResult]

    def scalars(self) -> dict[str, float]:
        """What a tracker plots: "eval/recall@10_image_to_text", "eval/shape_top1", ..."""
        values = {f"eval/{name}_top1": result.top1 for name, result in self.zero_shot.items()}
        if self.retrieval is not None:
            for k in (1, 5, 10):
                for way in ("image_to_text", "text_to_image"):
                    values[f"eval/recall@{k}_{way}"] = getattr(self.retrieval, f"{way}_r{k}")
        return values


def open_suite(config: Config, role: Literal["validation", "test"]) -> Suite:
    """Open every task of eval.tasks, on pictures of that role, and read every picture once.

    Raises ConfigError for a task that is neither known nor a folder, ValueError for classes that cannot be told apart,
    and TooManyBad if more pictures than data.max_bad_fraction cannot be read; up to there they are left out.
    """
    builtin = config.data.source == "shapes"
    tasks = config.eval.tasks if config.eval.tasks is not None else ["retrieval", *(TASKS if builtin else ())]
    image_size = config.model.image_size
    assert image_size is not None
    # the scenes of the final tables stay unseen until then
    seed = config.run.seed + (role == "validation")
    labelled: dict[str, LabelledSource] = {}
    for task in tasks:
        if task in TASKS:
            labelled[task] = scene_task(task, config.eval.size, seed, image_size)
        elif task != "retrieval":
            if not Path(task).is_dir():
                raise ConfigError(
                    f"eval.tasks: {task!r} is neither retrieval, nor one of {', '.join(TASKS)}, nor a folder with one "
                    "sub-folder a class"
                )
            split = config.data.validation_split if role == "validation" else config.data.test_split
            folder = open_labelled(task, split=split, image_size=image_size)
            check_classes(task, folder.classes)
            labelled[task] = readable(folder, config.data.max_bad_fraction)
    if "retrieval" not in tasks:
        return Suite(None, labelled)
    pairs = open_pairs(config.data, role, seed=config.run.seed, image_size=image_size, eval_size=config.eval.size)
    return Suite(readable(pairs, config.data.max_bad_fraction), labelled)


def evaluate(config: Config, suite: Suite, model: DualEncoder, preprocess: Preprocess) -> SuiteResult:
    """Run every task of the suite on the model as it stands."""
    return _evaluate(config, suite, model, preprocess, None)


def final_evaluation(
    config: Config, suite: Suite, model: DualEncoder, preprocess: Preprocess, run_dir: Path, training: dict[str, Any]
) -> dict[str, Any]:
    """Run every task, print the tables, and write results.json, examples.png and a confusion matrix for each task.

    training: what results.json says of the training itself. Returns what results.json holds.
    """
    results = _evaluate(config, suite, model, preprocess, run_dir)
    print()
    if results.zero_shot:
        print_zero_shot(results.zero_shot)
    if results.retrieval is not None:
        print_retrieval({config.data.label: results.retrieval})
    for name, result in results.zero_shot.items():
        if result.confusion is not None:
            file = "confusion_" + re.sub(r"[^\w.-]+", "_", name.strip("/")) + ".png"
            confusion_png(result.confusion, result.classes, run_dir / file, title=name)
    values = {
        "training": training,
        "retrieval": None if results.retrieval is None else to_json(results.retrieval),
        "zero_shot": {name: to_json(result) for name, result in results.zero_shot.items()},
    }
    write_json(run_dir / "results.json", values)
    print(f"model, results and pictures are in {run_dir}")
    return values


def _evaluate(
    config: Config, suite: Suite, model: DualEncoder, preprocess: Preprocess, sheet_dir: Path | None
) -> SuiteResult:
    tokenizer = Tokenizer(context_length=model.context_length)
    options = EncodeOptions(
        config.eval.batch_size, "bf16" if config.train.precision == "bf16" else "fp32", config.log.progress
    )
    counted = None
    if suite.pairs is not None:
        pairs = encode_pairs(model, preprocess, tokenizer, suite.pairs, options)
        counted = count_retrieval(pairs)
        if sheet_dir is not None:
            title = f"{config.data.label}: the best of {len(pairs.texts)} captions for each picture"
            write_examples(suite.pairs, pairs, sheet_dir / "examples.png", title=title)
    found = {
        name: zero_shot(model, preprocess, tokenizer, dataset, task=name, options=options)
        for name, dataset in suite.labelled.items()
    }
    return SuiteResult(counted, found)
