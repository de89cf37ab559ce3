"""What every evaluation returns, and what stands in results.json.

    {"command": "eval.py zeroshot ...", "time": "2026-01-31T12:00:00+00:00", "versions": {"miniclip": ...},
     "results": [{"model": {"name", "fingerprint"}, "kind", "task", "data": {"source", "split", "fingerprint"},
                  "figures": {"top1": {"value", "low", "high", "n"}, ...}, "details": {...}, "notes": [...]}, ...],
     "differences": [{"of", "than", "task", "figures"}, ...]}

The results.json of a training has "training" in it as well.
"""

from __future__ import annotations

import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from miniclip.common.console import json_safe
from miniclip.metrics.bootstrap import Figure, Share, Statistic, differences, with_intervals

# What is better when it is lower; everything else is better when it is higher.
_LOWER_IS_BETTER = ("median_rank", "mean_rank", "ece", "fpr95")
# of each kind the one figure that stands for it; of several shares the mean
MAIN = {
    "zeroshot": ("top1", ("top1",)),
    "probe": ("linear", ("linear",)),
    "retrieval": ("mean_r10", ("image_to_text_r10", "text_to_image_r10")),
}
_WORDS = {"map": "mAP", "ece": "ECE", "auroc": "AUROC", "fpr95": "FPR@95", "f1": "F1", "top1": "top-1", "top5": "top-5"}
_VERSIONS = ("torch", "transformers", "open_clip_torch", "datasets", "accelerate", "scikit-learn", "pillow")


@dataclass(frozen=True)
class Evaluation:
    """One model on one task.

    task: what on, for people. figures: by name; shares lie in [0, 1], ranks count from 1. details: more of it, in plain
    values that JSON takes. notes: what is missing or surprising, in sentences. fingerprint: of all that was read, see
    `encode`. statistic, groups: the figures under other weights of the images, see metrics.bootstrap. raw: what is
    drawn besides, and not written down: the highest probability of each own and each foreign image; PairEmbeddings.
    """

    kind: Literal["zeroshot", "retrieval", "probe"]
    task: str
    figures: dict[str, Figure]
    details: dict[str, Any]
    notes: tuple[str, ...]
    fingerprint: str
    statistic: Statistic = field(repr=False, compare=False)
    groups: tuple[int, ...] = ()
    raw: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> float:
        return self.figures[name].value


def words_of(figure: str) -> str:
    """A figure's name as people write it: "image_to_text_r10" -> "image to text R@10"."""
    return " ".join(_WORDS.get(word, re.sub(r"^r(\d+)$", r"R@\1", word)) for word in figure.split("_"))


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_rank(figure: str) -> bool:
    """Whether it counts places from 1; all other figures lie in [0, 1]."""
    return figure.endswith("_rank")


def is_share(figure: str) -> bool:
    """Whether people read it in per cent, which an area under a curve is not."""
    return not is_rank(figure) and "auroc" not in figure


def lower_is_better(figure: str) -> bool:
    """Whether a lower value of that figure, e.g. "image_to_text_median_rank", is a better one."""
    return any(word in figure for word in _LOWER_IS_BETTER)


def difference(first: Evaluation, second: Evaluation) -> dict[str, Figure]:
    """second - first, paired over the images. Raises ValueError unless both saw the same ones."""
    if first.groups != second.groups:
        raise ValueError(f"{first.task}: counted on {first.groups} and on {second.groups} images; compare on the same")
    counts = {name: figure.n for name, figure in first.figures.items()}
    return differences(first.statistic, second.statistic, first.groups, counts)


def main_figure(result: Evaluation) -> Evaluation:
    """The one figure that stands for a task, alone: "top1", "linear", or "mean_r10", the mean of R@10 both ways.

    Its statistic holds what each image brings, so that `difference` pairs it.
    """
    name, of = MAIN[result.kind]
    shares = [result.statistic.shares[one] for one in of]
    n = len(shares[0].part)
    # an image with more captions than others keeps its weight in its own direction
    part = np.mean([share.part * (n / share.whole.sum()) for share in shares], 0)
    statistic = Statistic({name: Share(part, np.ones(n))})
    return replace(result, figures=with_intervals(statistic, (n,)), statistic=statistic, groups=(n,), raw=None)


def to_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain values; None where there is no figure."""
    plain = {key: json_safe(getattr(result, key)) for key in ("kind", "task", "figures", "details", "notes")}
    return {**plain, "figures": figures_json(result.figures)}


def entry(result: Evaluation, model: Mapping[str, str], data: Mapping[str, str]) -> dict[str, Any]:
    """One of the "results" of results.json. model: name and fingerprint. data: source and split."""
    return {"model": dict(model), "data": {**data, "fingerprint": result.fingerprint}, **to_json(result)}


def figures_json(figures: Mapping[str, Figure]) -> dict[str, dict[str, float | int | None]]:
    return {name: json_safe(figure._asdict()) for name, figure in figures.items()}


def header(command: str | None = None) -> dict[str, Any]:
    """What a results file begins with. command: None takes the process's own."""
    if command is None:
        command = f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".rstrip()  # the first may be `miniclip train`
    versions = {"miniclip": sys.modules["miniclip"].__version__, "python": platform.python_version()}
    for package in _VERSIONS:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"command": command, "time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}
