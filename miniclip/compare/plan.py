"""plan.json of a comparison: what is compared, what each variant was given, and where its runs lie.

    {"command", "time", "config", "budget": {"kind": "steps", "value": 640}, "metric": "retrieval/mean_r10",
     "tune": null or {"key", "values"}, "base": {"optim.lr": 0.001, ...}, "seeds": [0, 1, 2],
     "variants": [{"name", "options": {"loss.name": "sigmoid"}, "resolved", "steps", "step_seconds", "tuned"}, ...],
     "runs": [{"variant": 0, "seed": 0, "dir": "runs/loss.name=sigmoid-0", "error": null}, ...]}

base: the whole configuration; resolved: where a variant's is another. step_seconds: of a trial, where the budget is in
seconds. tuned: {"key", "chosen", "tried": [{"value", "steps": [160, 320], "figures": [0.31, 0.42]}, ...]}; options has
the chosen value. dir: from the folder of plan.json on. error: of the last attempt, in a line.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from miniclip.common.console import json_safe, write_json
from miniclip.compare.grid import Variant, flat_config, folder_name, words

PLAN, RUNS, TUNE, TRIAL = "plan.json", "runs", "tune", "trial"
# what changes where and how fast a run computes; the rest is the same for all attempts
_FREE = ("data.workers", "data.cache", "data.cache_dir", "train.cpu_threads", "train.timeout")


@dataclass
class Given:
    """A variant, and what it was given. options: with the tuned one, once that is chosen."""

    name: str
    options: dict[str, Any]
    resolved: dict[str, Any]
    steps: int | None = None
    step_seconds: float | None = None
    tuned: dict[str, Any] | None = None

    @property
    def words(self) -> list[str]:
        return words(self.options)


@dataclass
class Run:
    variant: int
    seed: int
    dir: str
    error: str | None = None


@dataclass
class Plan:
    command: str
    time: str
    config: str
    budget: dict[str, Any]
    metric: str
    tune: dict[str, Any] | None
    base: dict[str, Any]
    seeds: list[int]
    variants: list[Given]
    runs: list[Run]

    def save(self, folder: Path) -> None:
        """Raises DiskFull."""
        write_json(folder / PLAN, json_safe(asdict(self)))

    def label(self, run: Run) -> str:
        """What people call a run."""
        return f"{self.variants[run.variant].name}, seed {run.seed}"

    def stems(self) -> list[str]:
        """What the folders of each variant begin with; further variants change none."""
        found: list[str] = []
        for one in self.variants:
            found.append(folder_name(one.name, found))
        return found

    def add_runs(self) -> None:
        """Those that are lacking, seed by seed: a comparison that is broken off has as many of each variant."""
        had, stems = {(run.variant, run.seed) for run in self.runs}, self.stems()
        for seed, k in itertools.product(self.seeds, range(len(self.variants))):
            if (k, seed) not in had:
                self.runs.append(Run(k, seed, f"{RUNS}/{stems[k]}-{seed}"))
        self.runs.sort(key=lambda run: (self.seeds.index(run.seed), run.variant))


def given(variants: list[Variant], base: dict[str, Any]) -> list[Given]:
    """base: as flat_config makes it."""
    found = []
    for one in variants:
        own = flat_config(one.config)
        found.append(Given(one.name, dict(one.options), {k: v for k, v in own.items() if v != base[k]}))
    return found


def load_plan(folder: Path) -> Plan | None:
    """The plan that lies in a folder, or None. Raises ValueError that names a damaged one."""
    file = folder / PLAN
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        variants = [Given(**one) for one in values.pop("variants")]
        return Plan(variants=variants, runs=[Run(**one) for one in values.pop("runs")], **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is not the plan of a comparison; name another --out") from error


def merged(old: Plan, new: Plan, folder: Path) -> Plan:
    """The old plan with the variants and seeds that the new one adds. Raises ValueError where anything else differs."""
    for key in ("budget", "tune", *(["metric"] if old.tune else [])):
        _same({key: getattr(old, key)}, {key: getattr(new, key)}, folder)
    _same(old.base, new.base, folder)
    by_name = {one.name: one for one in new.variants}
    for one in old.variants:
        if one.name not in by_name:
            raise ValueError(_other(folder, f"compares {one.name} as well; vary that, too"))
        was, would = ({**plan.base, **each.resolved} for plan, each in ((old, one), (new, by_name[one.name])))
        _same(was, would, folder, f"{one.name}: ")
    if lacking := [seed for seed in old.seeds if seed not in new.seeds]:
        raise ValueError(_other(folder, f"has seed {lacking[0]} as well; add it to --seeds"))
    known = {one.name for one in old.variants}
    variants = old.variants + [one for one in new.variants if one.name not in known]
    seeds = old.seeds + [seed for seed in new.seeds if seed not in old.seeds]
    return replace(old, command=new.command, time=new.time, variants=variants, seeds=seeds)


def _same(old: dict[str, Any], new: dict[str, Any], folder: Path, whose: str = "") -> None:
    for key in old.keys() & new.keys():
        if old[key] != new[key] and key not in _FREE:
            raise ValueError(_other(folder, f"{whose}has {key}={_shown(old[key])}, not {_shown(new[key])}"))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(one) for one in value.values())
    return str(value)


def _other(folder: Path, what: str) -> str:
    alone = "it takes further variants and seeds alone: change that, or name another --out"
    return f"the comparison in {folder} {what}; {alone}"
