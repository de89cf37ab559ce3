"""eval.guard: what a model must not lose, counted before the first step, on the way and at the end.

RUN/guard.json keeps what it came to before the first step, so that a run that goes on still knows:
{"test": {task: {"figure", "value", "fingerprint", "images": what each of them brings}}, "validation": {...}}.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miniclip.common.console import json_safe, write_json
from miniclip.common.processes import place
from miniclip.config import Config
from miniclip.evaluation.result import Evaluation, main_figure, words_of
from miniclip.evaluation.suite import Opened, Suite, evaluate, open_tasks
from miniclip.evaluation.tables import percent
from miniclip.metrics.bootstrap import Share, Statistic, differences
from miniclip.models import DualEncoder
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.saved import read_json

log = logging.getLogger(__name__)
GUARD = "guard.json"


class Guard:
    """The tasks of eval.guard, on test images for the first and the last look, on validation images for those between.

    Every process makes one and calls its methods. Raises what open_suite does.
    """

    def __init__(self, config: Config, tokenizer: TextTokenizer) -> None:
        self.config, self.file, self.margin = config, Path(config.run.dir) / GUARD, config.eval.guard_margin
        tasks, model = config.eval.guarded_tasks, config.model
        self.test: Suite = open_tasks(config, tasks, "test", tokenizer, "eval.guard")
        self.validation: Suite = {}
        if config.eval.every:
            self.validation = open_tasks(config, tasks, "validation", tokenizer, "eval.guard")
        self._fallen = set[str]()
        if tasks and not (model.init or model.image or model.text):
            log.warning("eval.guard: the model begins from random weights, so that there is nothing to lose")

    def look(
        self, step: int, model: DualEncoder, preprocess: Preprocess, between: Callable[[], object]
    ) -> dict[str, float]:
        """What the log takes, "eval/guard/cifar10/top1", ...; a fall beyond the margin is said once until it is over.

        Before the first step that is kept, too, in the run's folder. between: as in EncodeOptions.
        """
        if step:
            found = _main_figures(evaluate(self.config, self.validation, model, preprocess, between=between))
            self._compare(step, found)
        else:
            tested = _main_figures(evaluate(self.config, self.test, model, preprocess, between=between))
            both = {name for name, one in self.validation.items() if _same_images(one, self.test[name])}
            rest = {name: one for name, one in self.validation.items() if name not in both}
            found = _main_figures(evaluate(self.config, rest, model, preprocess, between=between))
            found |= {name: tested[name] for name in both}
            if place()[0] == 0:
                kept = {"test": tested, "validation": found}
                write_json(self.file, {role: {k: _kept(v) for k, v in of.items()} for role, of in kept.items()}, None)
        return {
            f"eval/guard/{name}/{k}": figure.value for name, one in found.items() for k, figure in one.figures.items()
        }

    def end(self, model: DualEncoder, preprocess: Preprocess) -> dict[str, Any]:
        """On the main process what results.json says of each task, else nothing.

        {"figure", "before", "after", "difference": {"value", "low", "high", "n"}, "margin", "beyond", "data"}; before
        and difference are None where the tasks or their images were others when the run began.
        """
        found = _main_figures(evaluate(self.config, self.test, model, preprocess))
        if place()[0] != 0:
            return {}
        before, said = self._before("test", found), {}
        for name, one in found.items():
            ((figure, after),) = one.figures.items()
            then, task = before.get(name), self.test[name].task
            data = {"source": task.source, "split": task.split, "fingerprint": one.fingerprint}
            values: dict[str, Any] = {"figure": figure, "before": None, "after": after.value, "difference": None}
            values |= {"margin": self.margin, "beyond": False, "data": data}
            if then is not None:
                part = np.asarray(then["images"], dtype=np.float64)
                first = Statistic({figure: Share(part, np.ones(len(part)))})
                apart = differences(first, one.statistic, one.groups)[figure]
                beyond = self._is_beyond(-apart.value)
                values |= {"before": then["value"], "difference": apart._asdict(), "beyond": beyond}
            said[name] = json_safe(values)
        return said

    def _compare(self, step: int, found: dict[str, Evaluation]) -> None:
        if place()[0] != 0:
            return
        for name, then in self._before("validation", found).items():
            ((figure, now),) = found[name].figures.items()
            if not self._is_beyond(then["value"] - now.value):
                self._fallen.discard(name)
            elif name not in self._fallen:
                self._fallen.add(name)
                log.warning(
                    "eval.guard: at step %d, %s has lost %s points of %s %%: %s, and %s before the first step",
                    *(step, name, percent(then["value"] - now.value), words_of(figure)),
                    *(percent(now.value), percent(then["value"])),
                )

    def _is_beyond(self, fall: float) -> bool:
        return fall > self.margin + 1e-9  # 0.8 - 0.7 is a little more than 0.1

    def _before(self, role: str, found: dict[str, Evaluation]) -> dict[str, Any]:
        """What was kept of those tasks, as far as it was counted on the same images; the rest is named."""
        try:
            kept = read_json(self.file)[role] if found else {}
            known = {name: kept[name] for name, one in found.items() if _fits(kept.get(name), one)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("eval.guard: %s cannot be used (%s), so that no loss can be told", self.file, error)
            return {}
        if lost := [name for name in found if name not in known]:
            log.warning("eval.guard: %s was not counted on these images before the first step", ", ".join(lost))
        return known


def _main_figures(results: dict[str, Evaluation]) -> dict[str, Evaluation]:
    return {name: main_figure(result) for name, result in results.items()}


def _kept(one: Evaluation) -> dict[str, Any]:
    ((figure, value),) = one.figures.items()
    images = one.statistic.shares[figure].part.tolist()
    return {"figure": figure, "value": value.value, "fingerprint": one.fingerprint, "images": images}


def _fits(kept: Any, one: Evaluation) -> bool:
    """Whether it was counted on the same images; raises whatever it may for what is damaged."""
    return kept is not None and kept["fingerprint"] == one.fingerprint and len(kept["images"]) == one.groups[0]


def _same_images(first: Opened, second: Opened) -> bool:
    """Told by their source, split and names, without a look at the images."""

    def named(one: Opened) -> tuple[str, list[tuple[str, list[str]]]]:
        parts = [(getattr(part, "split", ""), [part.name(i) for i in range(len(part))]) for part in one.data]
        return one.task.source, parts

    return named(first) == named(second)
