"""The part of the configuration that says what a run is evaluated on. The other parts: sections.py."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from miniclip.common.printing import did_you_mean
from miniclip.config.sections import ConfigError, at_least, require

# which options of a task belong to which evaluation, see miniclip.evaluation.tasks
OPTIONS = {
    "zeroshot": ("split", "name", "classnames", "classnames_by", "templates", "label_column", "image_column"),
    "retrieval": ("split", "name", "image_column", "caption_column"),
    "probe": ("name", "classnames", "classnames_by", "label_column", "image_column"),
}
_LISTS = ("templates", "caption_column")


@dataclass(frozen=True)
class EvalTask:
    """A task on data of its own.

    Args:
        kind: zeroshot by prompts, retrieval, or a linear probe.
        data: labelled images (zeroshot, probe) or captioned ones (retrieval), from anywhere that eval.py takes them.
        task: what its figures are filed under; the last part of data if left out.
        split: of data; none takes validation during the training and test at the end.
        name: configuration of a Hub data set.
        classnames: file that says what the classes are called.
        classnames_by: name, or order for names alone that stand in the alphabetical order of the classes.
        templates: as eval.py takes them.
        label_column: column of the class; found by itself if left out.
        image_column: column of the images; found by itself if left out.
        caption_column: column or columns of the captions; found by itself if left out.
    """

    kind: str
    data: str
    task: str | None = None
    split: str | None = None
    name: str | None = None
    classnames: str | None = None
    classnames_by: str | None = None
    templates: str | list[str] | None = None
    label_column: str | None = None
    image_column: str | None = None
    caption_column: str | list[str] | None = None

    def __post_init__(self) -> None:
        known = OPTIONS[self.kind]
        stray = [f.name for f in fields(self)[3:] if f.name not in known and getattr(self, f.name) is not None]
        require(not stray, f"eval.tasks: {', '.join(stray)} has no meaning for {self.kind} on {self.data}")
        by = self.classnames_by
        require(by in (None, "name", "order"), f"eval.tasks: classnames_by={by!r} must be name or order")
        require("/" not in self.label, f"eval.tasks: task={self.label!r} may not hold a slash; use e.g. flowers")

    @property
    def label(self) -> str:
        """What its figures are filed under."""
        return self.task or Path(self.data).name or self.data

    def options(self, role: str) -> dict[str, Any]:
        """What the evaluation of that kind is made with. role: the split, where none is named and there is a choice."""
        own = {k: getattr(self, k) for k in ("data", *OPTIONS[self.kind])}
        if "split" in own:
            own["split"] = self.split or role
        return {k: [v] if k in _LISTS and isinstance(v, str) else v for k, v in own.items() if v is not None}


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, and when.

    Args:
        every: steps between evaluations on the validation split; 0 evaluates only at the end, on the test split.
        tasks: retrieval, a task of the built-in scenes (shape, colour, unseen, unseen_all, count, relation), a folder
            with one sub-folder a class, or a mapping with kind, data and more for a task on other data; none takes
            retrieval, and for the scenes all of their tasks.
        best: figure of the validation split that chooses the weights of the finished model, e.g.
            retrieval/image_to_text_r10 or unseen/top1; none takes those of the last step.
        guard: tasks, as in tasks, of what must not be lost: evaluated before the first step, with every and at the end;
            a fall is said in the log, in results.json and in the report. A fresh model has nothing to lose.
        guard_margin: how far a guarded task's figure (top-1, the mean of R@10 both ways, or the linear probe) may fall
            below what it was before the first step; 0.02 is two points of a per cent.
        batch_size: images encoded at a time.
        size: images in each built-in task, and in the scenes' validation and test splits.
    """

    every: int = 0
    # the values spelt out: jsonargparse would read those of a plain dict as YAML again, and make a number of "2024"
    tasks: list[str | dict[str, str | list[str] | Any]] | None = None
    best: str | None = None
    guard: list[str | dict[str, str | list[str] | Any]] | None = None
    guard_margin: float = 0.02
    batch_size: int = 256
    size: int = 1000

    def __post_init__(self) -> None:
        for key, tasks in (("tasks", self.own_tasks or ()), ("guard", self.guarded_tasks)):
            labels = [task if isinstance(task, str) else task.label for task in tasks]
            twice = [label for label in labels if labels.count(label) > 1]
            require(not twice, f"eval.{key}: two tasks are called {twice[:1]}; give one of them another name by task")
        often = self.best is None or self.every >= 1
        require(often, f"eval.best={self.best} is looked at every eval.every steps; set that to e.g. 100")
        at_least("eval", self, every=0, batch_size=1, size=1, guard_margin=0)

    @property
    def own_tasks(self) -> list[str | EvalTask] | None:
        """tasks, the mappings among them checked; None if the run's data decides."""
        return None if self.tasks is None else _checked(self.tasks, "eval.tasks")

    @property
    def guarded_tasks(self) -> list[str | EvalTask]:
        """guard, the mappings among them checked."""
        return _checked(self.guard or [], "eval.guard")


def _checked(tasks: list[Any], key: str) -> list[str | EvalTask]:
    try:
        return [task if isinstance(task, str) else _task(task) for task in tasks]
    except ConfigError as error:
        raise ConfigError(str(error).replace("eval.tasks", key, 1)) from None


def _task(values: dict[str, Any]) -> EvalTask:
    known, kinds = [f.name for f in fields(EvalTask)], list(OPTIONS)
    for key in values:
        did = did_you_mean(str(key), known) or f"; use {', '.join(known)}"
        require(key in known, f"eval.tasks: unknown key {key} of a task{did}")
    lacking = [key for key in ("kind", "data") if not values.get(key)]
    require(not lacking, f"eval.tasks: {values} lacks {' and '.join(lacking)}")
    require(values["kind"] in kinds, f"eval.tasks: kind={values['kind']!r} must be one of {', '.join(kinds)}")
    for key, value in values.items():
        fits = value is None or isinstance(value, str) or (key in _LISTS and isinstance(value, list))
        require(fits, f"eval.tasks: {key}={value!r} of a task must be text" + " or a list" * (key in _LISTS))
    return EvalTask(**values)
