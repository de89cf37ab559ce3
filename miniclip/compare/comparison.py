"""The whole of a comparison: its plan, trials of the time of a step, tuning, and the runs, with what they came to."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from miniclip.common.arguments import check_folder
from miniclip.common.console import plain
from miniclip.common.cores import whole_cores
from miniclip.common.durable import remove
from miniclip.common.lock import LOCK, Taken, alone_in
from miniclip.common.stopping import Passing
from miniclip.compare.budget import asked_budget, configured_budget, step_seconds, steps_in, steps_of, trials
from miniclip.compare.grid import OPTIONS, Variant, axes_of, flat_config, seeds_of, variants_of, word
from miniclip.compare.plan import TRIAL, TUNE, Plan, given, load_plan, merged
from miniclip.compare.runner import Failure, Job, Machine
from miniclip.compare.tune import metric_of, tune, tuned_values
from miniclip.config import ConfigError, load_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What was asked for, as the command line has it. base: the words that are a training's. config: files in them."""

    base: list[str]
    out: Path
    vary: list[str]
    seeds: str
    steps: int | None
    samples: int | None
    seconds: float | None
    tune: str | None
    metric: str | None
    config: str
    command: str


class Comparison:
    """Checked as a whole when it is made: ValueError or OSError for what cannot be run, and nothing is written."""

    def __init__(self, asked: Request, machine: Machine) -> None:
        self.asked, self.out, self.machine = asked, asked.out, machine
        budget = asked_budget(asked.steps, asked.samples, asked.seconds)
        axes = axes_of(asked.base, asked.vary, budget is not None)
        config = load_config(asked.base, OPTIONS)
        seeds = seeds_of(asked.seeds, config.run.seed)
        self.budget = budget or configured_budget(config)
        self.metric = metric_of(config, asked.metric)
        variants = variants_of(asked.base, axes)
        tuned, base = self._tuned(variants), flat_config(config)
        found = given(variants, base)
        for one, variant in zip(found, variants, strict=True):
            one.steps = steps_of(budget, variant.config)
        check_folder("--out", self.out)
        old = load_plan(self.out)
        if old is None and self.out.is_dir() and any(path.name != LOCK for path in self.out.iterdir()):
            raise ValueError(f"--out {self.out} holds other things than a comparison; name a new folder")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        given_ = self.budget._asdict()
        new = Plan(asked.command, now, asked.config, given_, str(self.metric), tuned, base, seeds, found, [])
        self.plan = new if old is None else merged(old, new, self.out)
        self.plan.add_runs()
        self.configs = {variant.name: variant.config for variant in variants}
        if machine.jobs > 1 and config.train.cpu_threads is None:
            self.shared = [*asked.base, f"--train.cpu_threads={max(1, whole_cores() // machine.jobs)}"]
        else:
            self.shared = asked.base

    def _tuned(self, variants: Sequence[Variant]) -> dict[str, Any] | None:
        if self.asked.tune is None:
            return None
        for variant in variants:
            key, values = tuned_values(self.asked.tune, variant.config)
            if key in variant.options:
                raise ConfigError(f"--tune {key} and --vary {key} exclude each other")
            metric_of(variant.config, str(self.metric))
        for value in values:  # without what is varied, for the sake of time
            load_config([*self.asked.base, f"--{key}={word(value)}"])
        return {"key": key, "values": values if "=" in self.asked.tune else None}

    def commands(self) -> list[list[str]]:
        """Of all runs, in the order of the plan, which is written. Raises ValueError where they are not known yet."""
        if any(one.steps is None or (self.plan.tune and one.tuned is None) for one in self.plan.variants):
            raise ValueError(
                "--list knows the runs once times are measured and values tuned, and both are done by the command "
                "without it; use --steps, and list the values by --vary"
            )
        with self._alone():
            self.plan.save(self.out)
        return [self.machine.command(job) for job in self._jobs()]

    def run(self) -> None:
        """Do what is left of it, show what it came to, and write it into the folder.

        Raises Passing where the same again may help, ValueError where a run failed otherwise.
        """
        with self._alone():
            self.plan.save(self.out)
            self._time()
            self._tune()
            self._say_given()
            runs = {self.out / run.dir: run for run in self.plan.runs}
            for run in self.plan.runs:
                run.error = None

            def ended(job: Job, error: str | None) -> None:
                runs[job.folder].error = error
                self.plan.save(self.out)
                self._report()

            failures = self.machine.run(self._jobs(), ended)
            self.plan.save(self.out)
            from miniclip.compare import report  # torch takes seconds to import: what is refused does not wait for it

            written = report.write_report(self.out)
            report.show(self.out)
        self.machine.console.print(plain(f"written: {', '.join(map(str, written))}"))
        if failures:
            raise _raised(failures, f"{len(failures)} of {len(runs)} runs failed")

    def _jobs(self) -> list[Job]:
        jobs = []
        for run in self.plan.runs:
            one = self.plan.variants[run.variant]
            assert one.steps is not None
            words = [*self.shared, *one.words, f"--run.seed={run.seed}"]
            jobs.append(Job(self.plan.label(run), self.out / run.dir, one.steps, words))
        return jobs

    def _time(self) -> None:
        """Steps of the variants that were given seconds."""
        left = [(one, stem) for one, stem in zip(self.plan.variants, self.plan.stems(), strict=True) if not one.steps]
        if not left:
            return
        own = [
            trials(one.name, self.configs[one.name], [*self.shared, *one.words], self.out / TRIAL / stem)
            for one, stem in left
        ]
        turns = [jobs for rounds in zip(*own, strict=True) for jobs in rounds]
        if failures := self.machine.run(turns):
            raise _raised(failures, f"{len(failures)} of {len(turns)} trials of the time of a step failed")
        for (one, _), jobs in zip(left, own, strict=True):
            one.step_seconds = step_seconds(self.configs[one.name], [job.folder for job in jobs])
            one.steps = steps_in(self.budget.value, one.step_seconds)
        self.plan.save(self.out)
        remove(self.out / TRIAL)

    def _tune(self) -> None:
        """The chosen value of the variants that have none yet; all of them go through a round at once."""
        if self.asked.tune is None:
            return
        own: list[Generator[list[Job], None, None]] = []
        for one, stem in zip(self.plan.variants, self.plan.stems(), strict=True):
            if one.tuned is None:
                config = self.configs[one.name]
                key, values = tuned_values(self.asked.tune, config)
                own.append(tune(one, config, key, values, self.metric, self.shared, self.out / TUNE / stem))
        while rounds := [(each, jobs) for each in own if (jobs := next(each, None)) is not None]:
            failures = self.machine.run([job for _, jobs in rounds for job in jobs])
            # one that fails by itself, as by a rate too high, has no figure; of one that was killed nothing is known
            if passing := [one for one in failures if one.passing]:
                raise _raised(passing, f"{len(passing)} trainings of the tuning were cut off")
            own = [each for each, _ in rounds]
        self.plan.save(self.out)

    def _say_given(self) -> None:
        for one in self.plan.variants:
            each = f" of {one.step_seconds:.3g} s" if one.step_seconds else ""
            chosen = f", {one.tuned['key']}={one.tuned['chosen']}" if one.tuned else ""
            self.machine.console.print(plain(f"{one.name}: {one.steps:,} steps{each}{chosen}"))

    def _report(self) -> None:
        from miniclip.compare import report

        try:
            report.write_report(self.out)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # the runs go on, and the end will tell
            log.warning("the page on the runs so far could not be written: %s", error)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it the folder, which is made, is no other process's. Raises ValueError."""
        try:
            held = ExitStack()
            held.enter_context(alone_in(self.out))
        except Taken as who:
            raise ValueError(f"--out {self.out} is in use: {who} compares there; wait for it, or stop it") from who
        with held:
            yield


def _raised(failures: Sequence[Failure], what: str) -> Exception:
    first = failures[0]
    text = f"{what}; {first.job.name}: {first.error}"
    if all(one.passing for one in failures):
        return Passing(f"{text}; the same command goes on")
    return ValueError(text)
