"""eval.py interpolate: the weights between a model and what it was fine-tuned to, on what is new and what was known.

WiSE-FT (arXiv:2109.01903): the average of both keeps much of what each can, and often does better than either.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from miniclip.cli.results import check_out, put_results
from miniclip.common.printing import did_you_mean
from miniclip.config import ConfigError, DataConfig, EvalConfig
from miniclip.data.scenes.source import TASKS as SCENES
from miniclip.evaluation.tasks import TASKS, Task, Zeroshot

if TYPE_CHECKING:
    from miniclip.evaluation.result import Evaluation
    from miniclip.metrics.bootstrap import Figure

_FILES = ("results.json", "interpolation.png", "model")
_MOST = 101  # shares

Found = dict[float, dict[str, "Evaluation"]]  # by share and task


def interpolate(
    *,
    from_: str,
    to: str,
    task: list[str],
    out: str,
    keep: list[str] | None = None,
    alphas: str = "0:1:0.1",
    alpha: float | None = None,
    split: str = "test",
    max_bad_fraction: float = DataConfig.max_bad_fraction,
    batch_size: int = 256,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> None:
    """Evaluate the weights between a model and what it was fine-tuned to, and keep the best.

    Args:
        from_: the model before the fine-tuning: a run or model directory, open_clip:ARCH:TAG or hf:NAME
        to: the model after it
        task: what is new: a folder with one sub-folder a class, a task of the built-in scenes, KIND:DATA with zeroshot,
            retrieval or probe, or a mapping as eval.tasks takes it; several are averaged
        out: folder for results.json, interpolation.png and the chosen model
        keep: what must not be lost, in the same words
        alphas: shares of --to, FIRST:LAST:STEP or numbers with commas between
        alpha: the share whose weights are written; without it the one with the highest mean of --task and --keep
        split: split of the data where a mapping names none
        max_bad_fraction: share of the data's images that may be unreadable; they are skipped, counted, named
        batch_size: items encoded at a time
        precision: number format of the towers; auto takes what is fastest here
        device: auto, cpu, cuda, cuda:1, ...
    """
    shares = _shares(alphas, alpha)
    new, kept = _tasks("--task", task, split), _tasks("--keep", keep or [], split)
    if twice := sorted(new.keys() & kept.keys()):
        raise ValueError(
            f"--task and --keep both have {twice[0]}; leave it out of one, or name it by task in a mapping"
        )
    tasks = {**new, **kept}
    about = {"from": from_, "to": to, "new": list(new), "kept": list(kept)}
    check_out(Path(out), _FILES, lambda before: _of(before) == about)

    from miniclip.cli.devices import together
    from miniclip.common.console import write_json
    from miniclip.common.processes import place
    from miniclip.evaluation.encode import EncodeOptions, fingerprint
    from miniclip.evaluation.plots import interpolation_png
    from miniclip.evaluation.result import difference, entry, figures_json, header, main_figure
    from miniclip.models.between import between, check_alike
    from miniclip.models.saved import save_model
    from miniclip.models.whole import opened
    from miniclip.training.precision import agreed, for_encoding

    with together(device) as there:
        number = for_encoding(agreed(precision, there).name)
        shown = sys.stderr.isatty()
        options = EncodeOptions(batch_size, number, progress=shown, shared=True, max_bad_fraction=max_bad_fraction)
        first, second = opened(from_), opened(to)
        check_alike(first, second, ("--from", "--to"))
        one, other, preprocess = first[0].to(there), second[0].to(there), first[1]
        size, allowed = preprocess.image_size, max_bad_fraction
        data = {name: each.open(size, max_bad_fraction=allowed) for name, each in tasks.items()}
        found: Found = {}
        weights: dict[float, str] = {}
        for share in shares:
            model = between(one, other, share)
            loaded = model, preprocess, model.tokenizer
            found[share] = {n: main_figure(t.run(loaded, data[n], options, 0, n)) for n, t in tasks.items()}
            weights[share] = fingerprint(model) if place()[0] == 0 else ""
        if place()[0] > 0:
            return
        chosen = _best(found, new, kept) if alpha is None else round(alpha, 6)
        _print(found, (from_, to), chosen, asked=alpha is not None)
        values = {**header(), "precision": number, "interpolation": {**about, "alpha": chosen}}
        values["results"] = [
            entry(
                replace(result, details={}),
                {"name": f"{1 - share:g} {from_} + {share:g} {to}", "fingerprint": weights[share]},
                {"source": tasks[name].source, "split": tasks[name].split},
            )
            for share, results in found.items()
            for name, result in results.items()
        ]
        values["differences"] = [
            {"of": of, "than": than, "task": name, "figures": figures_json(difference(found[than][name], result))}
            for of, results in found.items()
            for than in (0.0, 1.0)
            for name, result in results.items()
        ]

        def write(part: Path) -> None:
            save_model(part / "model", between(one, other, chosen), preprocess)
            interpolation_png(_curves(found, new), _curves(found, kept), chosen, part / _FILES[1], f"{from_} to {to}")
            write_json(part / "results.json", values)

        where, _ = put_results(Path(out), (), _FILES, lambda before: _of(before) == about, write)
        print(f"results.json, interpolation.png and the model, with alpha {chosen:g}, are in {where}")


def _shares(alphas: str, alpha: float | None) -> list[float]:
    """Ascending, from 0 to 1, which the others are compared to."""
    wrong = f"--alphas {alphas} must be FIRST:LAST:STEP or numbers with commas between, in [0, 1]; e.g. 0:1:0.1"
    ranged = ":" in alphas
    try:
        numbers = [float(word) for word in alphas.split(":" if ranged else ",")]
        if ranged:
            start, last, step = numbers
            # thirds, too, reach their end
            numbers = [start + k * step for k in range(min(_MOST + 1, int((last - start) / step + 1e-6) + 1))]
    except (ValueError, ArithmeticError) as error:
        raise ValueError(wrong) from error
    found = {round(x, 6) for x in [*numbers, 0.0, 1.0, *([] if alpha is None else [alpha])]}
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"--alpha {alpha:g} is a share of --to; use a value in [0, 1]")
    if not all(0 <= x <= 1 for x in found):
        raise ValueError(wrong)
    if len(numbers) > _MOST:
        raise ValueError(f"--alphas {alphas}: each is evaluated; use at most {_MOST}")
    return sorted(found)


def _tasks(option: str, words: Sequence[str], split: str) -> dict[str, Task]:
    """By what their figures are filed under. Raises ValueError that names the option."""
    wanted: list[str | dict[str, Any]] = []
    for word in words:
        kind, _, data = word.partition(":")
        if word.startswith("{"):
            wanted.append(_mapping(option, word))
        elif kind in TASKS and data:
            wanted.append({"kind": kind, "data": data})
        elif word not in SCENES and Path(word).is_dir():
            wanted.append({"kind": "zeroshot", "data": word})
        elif word in SCENES:
            wanted.append(word)
        else:
            known = f"a folder of classes, KIND:DATA with {', '.join(TASKS)}, a mapping, or one of {', '.join(SCENES)}"
            raise ValueError(f"{option} {word} is none of these: {known}{did_you_mean(word, (*SCENES, *TASKS))}")
    try:
        tasks = EvalConfig(tasks=wanted).own_tasks or []
    except ConfigError as error:
        raise ValueError(str(error).replace("eval.tasks", option)) from error
    found: dict[str, Task] = {}
    for one in tasks:
        if isinstance(one, str):
            # as in a run, those of its validation are others
            found[one] = Zeroshot(task=one, split=split, seed=int(split == "validation"))
        else:
            kind_of = TASKS[one.kind]
            found[one.label] = kind_of(**one.options(split), **kind_of.in_run)
    return found


def _mapping(option: str, word: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(word)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{option} {word} is no mapping such as '{{kind: retrieval, data: photos/, split: test}}'")
    return values


def _of(before: Mapping[str, Any]) -> dict[str, Any] | None:
    """What results that lie there are of."""
    found = before.get("interpolation")
    return {k: v for k, v in found.items() if k != "alpha"} if isinstance(found, dict) else None


def _mean(results: Mapping[str, Evaluation], names: Iterable[str]) -> float:
    return fmean(figure.value for name in names for figure in results[name].figures.values())


def _best(found: Found, new: Iterable[str], kept: Iterable[str]) -> float:
    """The share with the highest mean of what is new and what is kept; of equals the one nearest to what was."""
    groups = [list(group) for group in (new, kept) if group]
    means = {share: fmean(_mean(results, names) for names in groups) for share, results in found.items()}
    return min(found, key=lambda share: (-round(means[share], 9), share))


def _print(found: Found, names: tuple[str, str], chosen: float, asked: bool) -> None:
    """A table a task: the figure at every share, and its differences from both ends, on the same images."""
    from miniclip.common.console import open_console, plain, show_table
    from miniclip.evaluation.result import difference, words_of
    from miniclip.evaluation.tables import show, told_difference

    console = open_console()
    console.print(plain(f"alpha is the share of {names[1]}, what is left that of {names[0]}"))
    for task, first in found[0.0].items():
        ((figure, _),) = first.figures.items()
        rows = []
        for share, results in found.items():
            apart = [difference(found[end][task], results[task])[figure] for end in (0.0, 1.0)]
            told = [told_difference(figure, one) for one in apart]
            for end in (0, 1):
                told[end] = "" if share == end else told[end]
            rows.append(
                (f"{share:g}" + " chosen" * (share == chosen), show(figure, results[task].figures[figure]), *told)
            )
        heading = ("alpha", f"{words_of(figure)} %", "from alpha 0 *", "from alpha 1 *")
        show_table(console, f"{task}, {first.figures[figure].n} images", heading, rows)
    console.print(plain("differences with their 95 % intervals; * leaves out 0"))
    if not asked:
        chose = f"alpha {chosen:g} has the highest mean of what is new and what is kept"
        console.print(plain(f"{chose}; chosen by these very images, its figures flatter a little"))
    for note in dict.fromkeys(note for results in found.values() for one in results.values() for note in one.notes):
        console.print(plain(note))


def _curves(found: Found, names: Iterable[str]) -> dict[str, dict[float, Figure]]:
    """By task and share."""
    from miniclip.evaluation.result import words_of

    of = {name: {share: next(iter(r[name].figures.values())) for share, r in found.items()} for name in names}
    return {f"{name}, {words_of(next(iter(found[0.0][name].figures)))}": curve for name, curve in of.items()}
