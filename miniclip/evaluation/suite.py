"""The evaluation that belongs to a run: its tasks during training; the tables, files and pictures at the end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from miniclip.config import Config, ConfigError
from miniclip.data.images import BadImage
from miniclip.data.labelled import open_labelled
from miniclip.data.shapes import TASKS, scene_task
from miniclip.data.sources import LabelledSource, PairSource
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.encode import EncodeOptions
from miniclip.evaluation.pictures import confusion_png, write_examples
from miniclip.evaluation.report import print_retrieval, print_zero_shot, to_json, write_json
from miniclip.evaluation.retrieval import RetrievalResult, count_retrieval, encode_pairs
from miniclip.evaluation.zeroshot import ZeroShotResult, zero_shot
from miniclip.models import DualEncoder
from miniclip.tokenizer import Tokenizer

EXAMPLES = 8  # pictures on the sheet


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


def open_suite(config: Config, pairs: PairSource) -> Suite:
    """Open every task of eval.tasks; pairs is the split that retrieval runs on.

    Raises ConfigError for a task that is neither known nor a folder, and BadImage for a picture that cannot be read,
    unless data.on_bad is skip: then it is left out.
    """
    builtin = config.data.source == "shapes"
    tasks = config.eval.tasks if config.eval.tasks is not None else ["retrieval", *(TASKS if builtin else ())]
    assert config.model.image_size is not None
    labelled: dict[str, LabelledSource] = {}
    for task in tasks:
        if task in TASKS:
            labelled[task] = scene_task(task, config.eval.size, config.run.seed, config.model.image_size)
        elif task != "retrieval":
            if not Path(task).is_dir():
                raise ConfigError(
                    f"eval.tasks: {task!r} is neither retrieval, nor one of {', '.join(TASKS)}, nor a folder with one "
                    "sub-folder a class"
                )
            labelled[task] = open_labelled(task, split=config.data.test_split)
    return Suite(_readable(pairs, config.data.on_bad) if "retrieval" in tasks else None, labelled)


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
        print_retrieval({config.data.source: results.retrieval})
    for name, result in results.zero_shot.items():
        if result.confusion is not None:
            confusion_png(result.confusion, result.classes, run_dir / f"confusion_{Path(name).name}.png", title=name)
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
            title = f"{config.data.source}: the best of {len(pairs.texts)} captions for each picture"
            write_examples(suite.pairs, pairs, sheet_dir / "examples.png", count=EXAMPLES, title=title)
    found = {
        name: zero_shot(model, preprocess, tokenizer, dataset, task=name, options=options)
        for name, dataset in suite.labelled.items()
    }
    return SuiteResult(counted, found)


class _Rows:
    """Some rows of a PairSource."""

    def __init__(self, source: PairSource, rows: list[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        return self.source.image(self.rows[index])

    def captions(self, index: int) -> list[str]:
        return self.source.captions(self.rows[index])

    def name(self, index: int) -> str:
        return self.source.name(self.rows[index])


def _readable(source: PairSource, on_bad: str) -> PairSource:
    """The source without pictures that cannot be read; each is named."""

    def error_of(row: int) -> BadImage | None:
        try:
            source.image(row)
        except BadImage as error:
            return error
        return None

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(error_of, range(len(source))))
    bad = [error for error in errors if error is not None]
    if not bad:
        return source
    if on_bad == "stop":
        raise BadImage(f"{bad[0]} (one of {len(bad)}); mend or remove it, or set data.on_bad to skip")
    print(f"{len(bad)} evaluation pictures cannot be read and are left out: " + "; ".join(map(str, bad[:5])))
    return _Rows(source, [row for row, error in enumerate(errors) if error is None])
