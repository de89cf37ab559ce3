"""eval.py matrix: a model and a data set -> matrix.json and report.html."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from itertools import count as counted
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from miniclip.cli.results import check_out, put_results
from miniclip.common.arguments import check_folder, check_range
from miniclip.common.printing import first_few, printable
from miniclip.common.runs import CONFIG, apart, run_of
from miniclip.config import DataConfig, load_config_file

if TYPE_CHECKING:
    from torch import Tensor

    from miniclip.inspection.contents import Figure, Inspection
    from miniclip.inspection.sample import Sample

_FILES = ("matrix.json", "report.html")


def matrix(
    *,
    checkpoint: str,
    data: str | None = None,
    split: str = "test",
    name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    caption_column: list[str] | None = None,
    max_bad_fraction: float | None = None,
    size: int = 256,
    seed: int = 0,
    positives: Literal["diagonal", "text", "identity"] | None = None,
    out: str | None = None,
    batch_size: int = 256,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> None:
    """Look at the N x N matrix: numbers and a page.

    Raises ValueError or OSError for what cannot be done as asked.

    Args:
        checkpoint: run (finished or still training), a checkpoint in it or a model directory; open_clip:ARCH:TAG or
            FILE, hf:FOLDER or NAME
        data: shapes, or any source of captioned images that data.source takes (default: the run's own)
        split: split of the data
        name: configuration of a Hub data set that has several
        revision: branch, tag or commit of a Hub data set
        image_column: column of the images; found by itself if left out
        caption_column: column or columns of the captions; found by itself if left out
        max_bad_fraction: share of the data's images that may be unreadable; they are skipped, counted, named (default:
            0.01, or as the run was trained)
        size: number of pairs, N, at most 4096
        seed: which pairs are drawn
        positives: which pairs count as positives: diagonal, text or identity (default: loss.positives of the run)
        out: folder for matrix.json and report.html (default: inspection, in the run if it is one)
        batch_size: items encoded at a time
        precision: number format of the towers; auto takes what is fastest here
        device: auto, cpu, cuda, cuda:1, ...
    """
    check_range("--size", size, 2, 4096)
    check_range("--seed", seed, 0)
    run, part = run_of(checkpoint)
    run_dir = run or Path(checkpoint)
    config = load_config_file(run / "config.yaml") if run else None
    given: dict[str, Any] = {"name": name, "revision": revision}
    given |= {"image_column": image_column, "caption_column": caption_column}
    stray = [f"--{option}" for option, value in given.items() if value is not None]
    if data is None and config is None:
        raise ValueError(f"--checkpoint {checkpoint} is not a run that names its data; add --data SOURCE")
    if data is None and stray:
        raise ValueError(f"{stray[0]} belongs to --data; without it, the run's own data is read as its config says")
    if max_bad_fraction is None:
        trained_with = config.data if data is None and config is not None else DataConfig
        max_bad_fraction = trained_with.max_bad_fraction
    folder = Path(out) if out else (run or Path()) / "inspection" / Path(*apart(part))
    shown = data or (config.data.label if config is not None else "")
    # in a run's own folder the model is the run's
    known = {"data": shown, "split": split} | ({} if run and not out else {"checkpoint": checkpoint})
    if out:
        check_out(folder, _FILES, partial(_is_of, known, None))
    else:
        check_folder("--out", folder)
    if data is None and config is not None and shown != "shapes":
        # which somebody else may have written
        print(f"{run_dir / CONFIG} names the data: {printable(shown)}; --data SOURCE reads other data", flush=True)

    from miniclip.cli.devices import device_of
    from miniclip.data.stream.held_out import open_pairs
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.evaluation.tasks import Retrieval
    from miniclip.inspection.build import build
    from miniclip.inspection.history import read_history, training_log
    from miniclip.inspection.numbers import numbers, write_numbers
    from miniclip.inspection.page.write import write_report
    from miniclip.inspection.sample import draw, scale_and_bias
    from miniclip.inspection.views import loss_figures
    from miniclip.models.load import load
    from miniclip.training.precision import choose, for_encoding

    there = device_of(device)
    computed_in = for_encoding(choose(precision, there).name)
    options = EncodeOptions(batch_size, computed_in, progress=sys.stderr.isatty(), max_bad_fraction=max_bad_fraction)
    model, preprocess, tokenizer = load(checkpoint, there)
    history, log = read_history(run_dir), training_log(run_dir)
    loss = None if config is None else config.loss
    kind = positives or ("identity" if loss is None else loss.positives)
    scale, bias = scale_and_bias(model)

    def embed(split: str, pairs: int) -> tuple[Sample, tuple[Tensor, Tensor, Tensor]]:
        side, allowed = preprocess.image_size, options.max_bad_fraction
        if data is not None:
            (source,) = Retrieval(data=data, split=split, size=size, seed=seed, **given).open(side, "test", allowed)
        else:
            assert config is not None
            largest = max(config.eval.size, size)
            own = replace(config.data, max_bad_fraction=allowed)
            source = open_pairs(own, split, seed=config.run.seed, image_size=side, eval_size=largest)
        sample = draw(source, pairs, seed, preprocess, allowed=allowed, progress=options.progress)
        if sample.bad:
            logging.getLogger(__name__).warning(
                "%d images cannot be read and are passed over: %s", len(sample.bad), first_few(sample.bad)
            )
        image, text = sample.encode(model, preprocess, tokenizer, options)
        return sample, (image, text, sample.positives(kind, tokenizer))

    sample, pairs = embed(split, size)
    count, learnt = len(sample), None
    # as many pairs that were trained on: beside them shows what has been learnt by heart
    if data is None and loss is not None and split != "train":
        trained_on, of_them = embed("train", count)
        if len(trained_on) == count:
            learnt = loss_figures(*of_them, scale, bias, loss)["loss_over_chance"]
    named = " ".join((run_dir.resolve().name, *apart(part)))
    title = f"{named} on {count} pairs of {Path(shown).name or shown}, {split}"
    about = {"checkpoint": checkpoint, "data": shown, "split": split, "pairs": str(count), "seed": str(seed)}
    about |= {"trained with": loss.name if loss else "not known", "positives": kind, "precision": computed_in}
    found: dict[str, Any] = {"training_loss_over_chance": learnt, "log": log, "history": history}
    inspection = build(sample, *pairs, scale, bias, loss, title=title, about=about, **found)

    def write(part: Path) -> None:
        write_numbers(inspection, part / "matrix.json")
        write_report(inspection, part / "report.html")

    again = () if out else (folder / str(number) for number in counted(2))
    drawn = None if out else {"seed": about["seed"], "pairs": numbers(inspection)["pairs"]}
    place, before = put_results(folder, again, _FILES, partial(_is_of, known, drawn), write)
    if before:
        print(f"{place}: in place of the matrix of {before.get('title')}")
    _print(inspection)
    print(f"{place / 'report.html'} is the page; matrix.json is beside it")


def _is_of(known: dict[str, str], drawn: dict[str, Any] | None, before: dict[str, Any]) -> bool:
    """Whether a matrix.json is of the same model and data, by name; and where as many pairs were drawn, by the pairs.

    drawn: the seed and the pairs of the new one; None for by name alone.
    """
    said, pairs = before.get("about"), before.get("pairs")
    if not isinstance(said, dict) or not known.items() <= said.items():
        return False
    if drawn is None or not isinstance(pairs, list):
        return True
    return pairs == drawn["pairs"] or (said.get("seed"), len(pairs)) != (drawn["seed"], len(drawn["pairs"]))


def _print(inspection: Inspection) -> None:
    from miniclip.common.console import open_console, plain, show_table

    def value(figure: Figure) -> str:
        times = 100 if figure.unit == "%" else 1
        chance = "" if figure.chance is None else f", chance {times * figure.chance:.2g}"
        return "-" if figure.value is None else f"{times * figure.value:.4g}{chance}"

    out = open_console()
    rows = [(figure.label, value(figure), figure.unit, figure.help) for figure in inspection.figures]
    show_table(out, inspection.title, ("", "value", "unit", "how to read it"), rows)
    for verdict in inspection.verdicts:
        out.print(plain(verdict.title), style="bold")
        for sentence in (*verdict.evidence, *(f"Try: {advice}" for advice in verdict.advice)):
            out.print(plain(f"  {sentence}"))
    if not inspection.verdicts:
        out.print(plain(". ".join(inspection.summary[1:])))
    if inspection.suspected_false_negatives:
        found = inspection.suspected_false_negatives
        out.print(f"{found} suspected false negative{'s' * (found > 1)}; the page lists them, duplicates first")
    out.print(plain(inspection.suspicion))
