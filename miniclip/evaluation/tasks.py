"""The evaluations, one class each: its fields are options of eval.py, and some of them keys of a run's eval.tasks.

Another one takes a class in TASKS and its row in config.eval_section.OPTIONS. Nothing here imports torch before there
is work, so that `eval.py --help` answers at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from miniclip.common.arguments import check_range
from miniclip.common.printing import did_you_mean

if TYPE_CHECKING:
    from miniclip.data.captioned import LabelledSource
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.evaluation.result import Evaluation
    from miniclip.models.preprocess import Preprocess
    from miniclip.models.protocols import TextTokenizer, TwoTowers

    Loaded = tuple[TwoTowers, Preprocess, TextTokenizer]

_WAYS = ("image_to_text", "text_to_image")


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What one evaluation needs to know.

    figures: what eval.best may name. headline: what a comparison of models is about. in_run: options within a run.

    Args:
        data: where the images are
        split: split of --data
        name: configuration of a Hub data set that has several
        revision: branch, tag or commit of a Hub data set
        image_column: column of the images; found by itself if left out
        seed: seed of all that is drawn: scenes, divisions, the images of few shots
    """

    kind: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    headline: ClassVar[tuple[str, ...]]
    in_run: ClassVar[dict[str, Any]] = {}

    data: str | None
    split: str = "test"
    name: str | None = None
    revision: str | None = None
    image_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("seed", "size", "limit", "draws"):
            check_range(f"--{option}", vars(self).get(option), 0 if option == "seed" else 1)

    @property
    def source(self) -> str:
        """The data as the user calls it."""
        return str(self.data)

    @property
    def label(self) -> str:
        """What the figures are filed under."""
        return Path(self.source).name or self.source

    @abstractmethod
    def open(self, image_size: int, role: str = "test", max_bad_fraction: float = 0.0) -> list[Any]:
        """The data; role: validation leaves the images of the final tables alone. Raises ValueError or OSError."""

    def counted(self, data: list[Any]) -> tuple[str, ...]:
        """Which of figures such data has."""
        return self.figures

    @abstractmethod
    def run(self, model: Loaded, data: list[Any], options: EncodeOptions, resamples: int, label: str) -> Evaluation:
        """Encode and count. label: what the result is filed under."""

    @abstractmethod
    def draw(self, result: Evaluation, data: list[Any], folder: Path, model: str) -> None:
        """Image files of a result, into a folder. model: its name."""


@dataclass(frozen=True, kw_only=True)
class _Labelled(Task):
    """Labelled images.

    Args:
        classnames: file that says what the classes are called in the prompts
        classnames_by: name, or order for names alone that stand in the alphabetical order of the classes
        label_column: column of the class; found by itself if left out
    """

    classnames: str | None = None
    classnames_by: Literal["name", "order"] = "name"
    label_column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classnames_by == "order" and self.classnames is None:
            raise ValueError("--classnames_by belongs to --classnames, which is left out")

    def _open(self, split: str, image_size: int) -> LabelledSource:
        from miniclip.data.labelled import open_labelled

        columns: dict[str, Any] = {"image_column": self.image_column, "label_column": self.label_column}
        names: dict[str, Any] = {"classnames_file": self.classnames, "classnames_by": self.classnames_by}
        where: dict[str, Any] = {"name": self.name, "revision": self.revision, "image_size": image_size}
        return open_labelled(self.source, split=split, **columns, **names, **where)


@dataclass(frozen=True, kw_only=True)
class Zeroshot(_Labelled):
    """Classify images by prompts.

    Args:
        data: folder with one sub-folder a class, any other labelled source, or a Hub name
        task: a task over the built-in scenes: shape, colour, unseen, unseen_all, count or relation
        size: number of scenes
        templates: simple, simple7, openai80, a usual set such as cifar10, a file with one template a line, or templates
            such as "a photo of a {}."; several are averaged (default: the usual ones of the set, else simple)
        foreign: images of none of the classes, to score how well the model tells them apart
    """

    kind = "zeroshot"
    figures = ("top1", "top5", "balanced_accuracy", "macro_precision", "macro_f1", "ece")
    headline = ("top1", "top5", "balanced_accuracy", "ece")

    data: str | None = None
    task: str | None = None
    size: int = 1000
    templates: list[str] | None = None
    foreign: str | None = None

    def __post_init__(self) -> None:
        from miniclip.data.scenes.source import TASKS as SCENES

        super().__post_init__()
        if self.data is None and self.task is None:
            raise ValueError("one of --data and --task is required")
        if self.data is not None and self.task is not None:
            raise ValueError("--task: not allowed with argument --data")
        if self.task is not None and self.task not in SCENES:
            raise ValueError(f"--task {self.task} is not one of {', '.join(SCENES)}{did_you_mean(self.task, SCENES)}")
        data_only = ("classnames", "label_column", "image_column", "name", "revision")
        stray = [f"--{option}" for option in data_only if self.task and vars(self)[option] is not None]
        if stray:
            raise ValueError(f"{', '.join(stray)} belongs to --data; a built-in task has its own classes")
        if self.task == "relation" and (self.templates or self.foreign):
            raise ValueError("--task relation brings two sentences for each image; leave --templates and --foreign out")

    @property
    def source(self) -> str:
        return self.data or f"shapes: {self.task}"

    @property
    def label(self) -> str:
        return self.task or super().label

    @cached_property
    def resolved(self) -> tuple[str, ...] | None:
        from miniclip.evaluation.prompts import resolve_templates

        given = self.templates
        return None if given is None else resolve_templates(given[0] if len(given) == 1 else given)

    def open(self, image_size: int, role: str = "test", max_bad_fraction: float = 0.0) -> list[Any]:
        from miniclip.data.labelled import open_images
        from miniclip.data.scenes.source import SceneTask
        from miniclip.evaluation.prompts import check_classes

        _ = self.resolved  # a file of templates is read before the training, not after it
        scenes = SceneTask(self.task, self.size, self.seed, image_size) if self.task else None
        source = scenes or self._open(self.split, image_size)
        check_classes(self.label, source)
        return [source] if self.foreign is None else [source, open_images(self.foreign, image_size=image_size)]

    def counted(self, data: list[Any]) -> tuple[str, ...]:
        from miniclip.evaluation.prompts import brings_sentences

        if brings_sentences(data[0]):
            return ("top1",)
        return tuple(name for name in self.figures if name != "top5" or len(data[0].classes) > 5)

    def run(self, model: Loaded, data: list[Any], options: EncodeOptions, resamples: int, label: str) -> Evaluation:
        from miniclip.evaluation.zeroshot import zero_shot

        settings: dict[str, Any] = {"foreign": (*data, None)[1], "options": options, "resamples": resamples}
        return zero_shot(*model, data[0], self.resolved, task=label, **settings)

    def draw(self, result: Evaluation, data: list[Any], folder: Path, model: str) -> None:
        import numpy as np

        from miniclip.evaluation.plots import calibration_png, confusion_png, foreign_png, templates_png

        title, details = f"{self.label}, top-1 {100 * result['top1']:.1f} %", result.details
        if "confusion" in details:
            confusion_png(details["confusion"], details["classes"], folder / "confusion.png", title)
            calibration_png(details["calibration"], result["ece"], folder / "calibration.png", title)
        if result.raw and all(np.isfinite(scores).any() for scores in result.raw):
            inside, outside = result.raw
            foreign_png(inside, outside, folder / "foreign.png", self.label, score="highest probability")
        if details.get("templates"):
            templates_png(details["templates"], result["top1"], folder / "templates.png", title)


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Find captions by image, and images by caption.

    Args:
        data: shapes, or any source of captioned images that data.source takes
        caption_column: column or columns of the captions; found by itself if left out
        size: number of scenes
        limit: take only the first so many images
    """

    kind = "retrieval"
    figures = tuple(f"{way}_{f}" for way in _WAYS for f in ("r1", "r5", "r10", "median_rank", "mean_rank", "map"))
    headline = tuple(f"{way}_r{k}" for way in _WAYS for k in (1, 5, 10))

    data: str
    caption_column: list[str] | None = None
    size: int = 1000
    limit: int | None = None

    def open(self, image_size: int, role: str = "test", max_bad_fraction: float = 0.0) -> list[Any]:
        from miniclip.config import DataConfig
        from miniclip.data.captioned import open_split
        from miniclip.data.subset import Subset

        columns: Any = self.caption_column
        columns = columns[0] if columns and len(columns) == 1 else columns
        settings: dict[str, Any] = {"image_column": self.image_column, "caption_column": columns, "size": self.size}
        config = DataConfig(self.data, self.name, self.revision, max_bad_fraction=max_bad_fraction, **settings)
        source = open_split(config, self.split, seed=self.seed, image_size=image_size, eval_size=self.size)
        if len(source) == 0:
            raise ValueError(f"{self.data}: the split {self.split} holds no images")
        return [source if self.limit is None else Subset(source, range(min(self.limit, len(source))))]

    def run(self, model: Loaded, data: list[Any], options: EncodeOptions, resamples: int, label: str) -> Evaluation:
        from miniclip.evaluation.retrieval import retrieval

        return retrieval(*model, data[0], task=label, options=options, resamples=resamples)

    def draw(self, result: Evaluation, data: list[Any], folder: Path, model: str) -> None:
        from miniclip.data.subset import Subset
        from miniclip.evaluation.galleries import write_sheets

        pairs = result.raw
        title = f"{self.label}: the best of {len(pairs.texts)} captions and of {len(pairs.image)} images"
        write_sheets(Subset(data[0], pairs.rows), pairs, folder, title=title)


@dataclass(frozen=True, kw_only=True)
class Probe(_Labelled):
    """Fit a linear classifier on frozen embeddings.

    Args:
        data: labelled images as zeroshot takes them, with the splits train and test, or one, which is divided
        shots: images a class of the few-shot probes (default: 1 2 4 8 16)
        draws: draws of each
    """

    kind = "probe"
    figures = ("linear", "linear_balanced_accuracy", "knn")
    headline = ("linear", "knn")
    in_run: ClassVar[dict[str, Any]] = {"shots": ()}  # draws of a few images take long and say little there

    data: str
    split: str = field(default="test", init=False)
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for shot in self.shots:
            check_range("--shots", shot, 1)

    def open(self, image_size: int, role: str = "test", max_bad_fraction: float = 0.0) -> list[Any]:
        from miniclip.data.labelled import labelled_splits
        from miniclip.evaluation.probe import open_parts

        splits = labelled_splits(self.data, self.name, self.revision)
        parts = open_parts(lambda split: self._open(split, image_size), splits, self.data, self.seed)
        return parts if role == "test" else [*parts[:2], parts[1]]

    def run(self, model: Loaded, data: list[Any], options: EncodeOptions, resamples: int, label: str) -> Evaluation:
        from miniclip.evaluation.probe import probe_model

        drawn: dict[str, Any] = {"shots": self.shots, "draws": self.draws, "seed": self.seed}
        return probe_model(model[0], model[1], data, label, options=options, resamples=resamples, **drawn)

    def draw(self, result: Evaluation, data: list[Any], folder: Path, model: str) -> None:
        from miniclip.evaluation.plots import shots_png

        if result.details["shots"]:
            full = {"shots": "full", "mean": result["linear"], "std": 0.0}
            title = f"{self.label}, linear probe of {Path(model).name or model}"
            shots_png([*result.details["shots"], full], folder / "shots.png", title)


TASKS: dict[str, type[Task]] = {task.kind: task for task in (Zeroshot, Retrieval, Probe)}
