"""eval.py matrix: a model and a data set -> matrix.json and report.html."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from miniclip.cli.options import device_of, pairs_of
from miniclip.common.arguments import check_folder
from miniclip.common.printing import first_few
from miniclip.config import Config, load_config_file

if TYPE_CHECKING:
    from torch import Tensor

    from miniclip.data.captioned import PairSource
    from miniclip.inspection.contents import Inspection
    from miniclip.inspection.sample import Sample
    from miniclip.models.preprocess import Preprocess

NUMBERS, PAGE = "matrix.json", "report.html"


def run(arguments: argparse.Namespace) -> None:
    """eval.py matrix with parsed arguments; raises ValueError or OSError for what cannot be done as asked."""
    config = _run_config(arguments)
    if arguments.data is None and config is None:
        raise ValueError(f"--checkpoint {arguments.checkpoint} is not a run that names its data; add --data SOURCE")
    if arguments.data is None:
        given = [o for o in ("name", "revision", "image_column", "caption_column") if getattr(arguments, o) is not None]
        if given:
            raise ValueError(
                f"--{given[0]} belongs to --data; without it, the run's own data is read as its config says"
            )
    folder = _out(arguments, config)
    if arguments.max_bad_fraction is None:
        own = arguments.data is None and config is not None
        arguments.max_bad_fraction = config.data.max_bad_fraction if own and config is not None else 0.0

    from miniclip.inspection.numbers import write_numbers
    from miniclip.inspection.page.write import write_report

    inspection = inspect(arguments, config)
    folder.mkdir(parents=True, exist_ok=True)
    write_numbers(inspection, folder / NUMBERS)
    write_report(inspection, folder / PAGE)
    _print(inspection)
    print(f"{folder / PAGE} is the page; {NUMBERS} is beside it")


def inspect(arguments: argparse.Namespace, config: Config | None) -> Inspection:
    """Load, draw the pairs, encode, look."""
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.inspection.build import build
    from miniclip.inspection.history import read_history, training_log
    from miniclip.inspection.sample import draw, scale_and_bias
    from miniclip.inspection.views import loss_figures
    from miniclip.training.precision import choose, for_encoding

    device = device_of(arguments.device)
    arguments.precision = for_encoding(choose(arguments.precision, device).name)
    options = EncodeOptions(arguments.batch_size, arguments.precision, progress=sys.stderr.isatty())
    from miniclip.models.load import load_model

    model, preprocess, tokenizer = load_model(arguments.checkpoint, device)
    run_dir = Path(arguments.checkpoint)
    history = read_history(run_dir) if config is not None else None
    loss = None if config is None else config.loss
    kind = arguments.positives or ("identity" if loss is None else loss.positives)
    scale, bias = scale_and_bias(model)

    def embed(split: str, size: int) -> tuple[Sample, Tensor, Tensor, Tensor]:
        source = _source(arguments, config, preprocess, split)
        sample = draw(
            source, size, arguments.seed, preprocess, allowed=arguments.max_bad_fraction, progress=options.progress
        )
        if sample.bad:
            print(f"{len(sample.bad)} pictures cannot be read and are passed over: {first_few(sample.bad)}")
        image, text = sample.encode(model, preprocess, tokenizer, options)
        return sample, image, text, sample.positives(kind, tokenizer)

    sample, image, text, positives = embed(arguments.split, arguments.size)
    learnt = None
    # as many pairs that were trained on: beside them shows what has been learnt by heart
    if arguments.data is None and loss is not None and arguments.split != "train":
        known, *trained = embed("train", len(sample))
        if len(known) == len(sample):
            learnt = loss_figures(trained[0], trained[1], trained[2], scale, bias, loss)["loss_over_chance"]
    data = arguments.data or (config.data.label if config is not None else "")
    model_name = Path(arguments.checkpoint).resolve().name
    return build(
        sample,
        image,
        text,
        positives,
        scale,
        bias,
        loss,
        title=f"{model_name} on {len(sample)} pairs of {Path(data).name or data}, {arguments.split}",
        about={
            "checkpoint": arguments.checkpoint,
            "data": data,
            "split": arguments.split,
            "pairs": str(len(sample)),
            "seed": str(arguments.seed),
            "trained with": "not known" if loss is None else loss.name,
            "positives": kind,
            "precision": arguments.precision,
        },
        training_loss_over_chance=learnt,
        log=training_log(run_dir) if config is not None else None,
        history=history,
    )


def _run_config(arguments: argparse.Namespace) -> Config | None:
    """The configuration of a run directory; None for anything else."""
    path = Path(arguments.checkpoint) / "config.yaml"
    if arguments.checkpoint.startswith("open_clip:") or not path.is_file():
        return None
    return load_config_file(path)


def _source(arguments: argparse.Namespace, config: Config | None, preprocess: Preprocess, split: str) -> PairSource:
    if arguments.data is not None:
        return pairs_of(arguments, preprocess.image_size)
    from miniclip.data.stream.held_out import open_pairs

    assert config is not None
    return open_pairs(
        config.data,
        split,
        seed=config.run.seed,
        image_size=preprocess.image_size,
        eval_size=max(config.eval.size, arguments.size),
    )


def _out(arguments: argparse.Namespace, config: Config | None) -> Path:
    """The folder to write into, checked."""
    beside = Path(arguments.checkpoint) if config is not None else Path()
    folder = Path(arguments.out) if arguments.out else beside / "inspection"
    check_folder("--out", folder)
    return folder


def _print(inspection: Inspection) -> None:
    from miniclip.common.console import new_table, open_console, plain

    shown = new_table(inspection.title, "", ("value", "unit", "how to read it"))
    for figure in inspection.figures:
        shown.add_row(figure.label, "-" if figure.value is None else f"{figure.value:.4g}", figure.unit, figure.help)
    out = open_console()
    out.print(shown)
    for verdict in inspection.verdicts:
        out.print(plain(verdict.title), style="bold")
        for sentence in (*verdict.evidence, *(f"Try: {advice}" for advice in verdict.advice)):
            out.print(plain(f"  {sentence}"))
    if not inspection.verdicts:
        out.print("Nothing stands out.")
    if inspection.suspects:
        out.print(f"{inspection.suspects} suspected false negatives; the page lists them, duplicates first")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of eval.py matrix that the other commands lack."""
    checkpoint_help = "run (finished or still training) or model directory, or open_clip:ARCH:WEIGHTS"
    parser.add_argument("--checkpoint", required=True, metavar="MODEL", help=checkpoint_help)
    data_help = "shapes, or any source of captioned pictures that data.source takes (default: the run's own)"
    parser.add_argument("--data", "--dataset", dest="data", metavar="SOURCE", help=data_help)
    caption_help = "column or columns of the captions; found by itself if left out"
    parser.add_argument("--caption_column", nargs="+", metavar="NAME", help=caption_help)
    out_help = f"folder for {NUMBERS} and {PAGE} (default: inspection, in the run if it is one)"
    parser.add_argument("--out", metavar="DIR", help=out_help)
    positives_help = "which pairs count as positives, as loss.positives (default: as the run was trained)"
    parser.add_argument("--positives", choices=("diagonal", "text", "identity"), help=positives_help)
