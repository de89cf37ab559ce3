"""eval.py classify: a model, images without labels and names of classes -> predictions.csv and predictions.html."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from miniclip.cli.results import check_out, put_results
from miniclip.config import DataConfig

_FILES = ("predictions.csv", "predictions.html")


def classify(
    *,
    checkpoint: str,
    data: str,
    classnames: str,
    out: str,
    split: str = "test",
    templates: list[str] | None = None,
    max_bad_fraction: float = DataConfig.max_bad_fraction,
    batch_size: int = 256,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> None:
    """Say what images without labels are of, as a table and a page.

    Args:
        checkpoint: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        data: folder of images, or any other source of images
        classnames: file with the names of the classes, one a line; further names of one behind a |
        out: folder for predictions.csv and predictions.html
        split: split of --data, where it has several
        templates: as zeroshot takes them (default: simple)
        max_bad_fraction: share of the images that may be unreadable; they are skipped, counted, named
        batch_size: items encoded at a time
        precision: number format of the towers; auto takes what is fastest here
        device: auto, cpu, cuda, cuda:1, ...
    """
    folder = Path(out)
    check_out(folder, _FILES, lambda _: False)  # for a table does not say of what it is

    import numpy as np

    from miniclip.cli.devices import device_of
    from miniclip.common.console import open_console, plain, show_table
    from miniclip.common.printing import first_few
    from miniclip.data.classes import read_classes
    from miniclip.data.labelled import LabelledImages, open_images
    from miniclip.evaluation.classify import classify as predicted
    from miniclip.evaluation.classify import summary, write_classified
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.evaluation.prompts import check_classes, resolve_templates
    from miniclip.models.load import image_size_of, load
    from miniclip.training.precision import choose, for_encoding

    chosen = None if templates is None else resolve_templates(templates[0] if len(templates) == 1 else templates)
    images = open_images(data, split=split, image_size=image_size_of(checkpoint))
    keys, names = read_classes(classnames)
    source = LabelledImages(**vars(images), labels=np.zeros(0), keys=keys, names=names, templates=None)
    check_classes("--classnames", source)
    there = device_of(device)
    computed_in = for_encoding(choose(precision, there).name)
    options = EncodeOptions(batch_size, computed_in, progress=sys.stderr.isatty(), max_bad_fraction=max_bad_fraction)
    found = predicted(*load(checkpoint, there), source, chosen, options)
    rows, words = summary(source, found)
    title = f"{Path(data).name or data}: {len(found.rows):,} images{images.split and f' of its split {images.split}'}"
    console = open_console()
    show_table(console, title, ("class", "images", "mean probability %"), rows[:20])
    if len(rows) > 20:
        console.print(plain(f"and {len(rows) - 20} more classes"))
    console.print(plain(words))
    if found.bad:
        console.print(plain(f"{len(found.bad)} images cannot be read and have no class: {first_few(found.bad)}"))
    about = f"{title}, {len(source.classes)} classes, by {checkpoint}"
    put_results(folder, (), _FILES, lambda _: False, lambda part: write_classified(source, found, part, about))
    print(f"predictions.csv and predictions.html are in {folder}")
