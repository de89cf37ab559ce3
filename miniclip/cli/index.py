"""miniclip index: images -> a folder in which miniclip search and miniclip app find them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal


def index(
    images: str,
    *,
    model: str,
    out: str,
    split: str | None = None,
    max_bad_fraction: float = 0.5,
    batch_size: int = 64,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> None:
    """Make images searchable; again, after images have come, gone or changed, or after it was stopped.

    Args:
        images: folder of images, searched to the bottom, or any other source of images
        model: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        out: folder of the index, new or of the same images; a plain Parquet table of embeddings is in it
        split: split of a source that has several (default: all images)
        max_bad_fraction: share of the images that may be unreadable; they are left out, counted, named
        batch_size: images encoded at a time
        precision: number format of the image tower; auto takes what is fastest here
        device: auto, cpu, cuda, cuda:1, ...
    """
    folder = Path(out)
    if folder.resolve().is_relative_to(Path(images).resolve()):
        raise ValueError(f"--out {out} lies among the images; name a folder outside of {images}")

    from miniclip.cli.devices import together
    from miniclip.common.console import open_console, plain, show_table
    from miniclip.common.printing import first_few
    from miniclip.common.processes import place
    from miniclip.evaluation.encode import EncodeOptions
    from miniclip.models.load import image_size_of, load
    from miniclip.search.build import build_index
    from miniclip.search.pictures import open_pictures
    from miniclip.search.store import ABOUT, about_of
    from miniclip.search.vectors import APPROXIMATE_FROM, has_graphs
    from miniclip.training.precision import agreed, for_encoding

    options = EncodeOptions(batch_size, progress=sys.stderr.isatty(), shared=True, max_bad_fraction=max_bad_fraction)
    image_size_of(model)  # raises what there is to say of the name, before the images are looked for
    pictures = open_pictures(images, split)
    with together(device) as there:
        options = replace(options, precision=for_encoding(agreed(precision, there).name))
        encoder, preprocess, _ = load(model, there)
        about = about_of(model, encoder, images, split, pictures)
        found = build_index(encoder, preprocess, pictures, about, folder, options)
        main = place()[0] == 0
    if not main:
        return
    console, n = open_console(), found.new + found.changed + found.kept
    rows = {name: getattr(found, name) for name in ("new", "changed", "gone", "kept")} | {"bad": len(found.bad)}
    title = f"{folder}: {n:,} images"
    show_table(console, title, ("", "images"), [(name, f"{count:,}") for name, count in rows.items()])
    if found.bad:
        listed = f"; all of them are in {folder / ABOUT}" if len(found.bad) > 5 else ""
        said = f"left out, since they cannot be read: {first_few(found.bad)}{listed}"
        console.print(plain(said))
    if n >= APPROXIMATE_FROM and not has_graphs():
        print("pip install usearch, and the same command again, makes a search among so many faster")
    speed = f" in {found.seconds:.1f} s, {found.encoded / found.seconds:.1f} a second" if found.encoded else ""
    print(f"{found.encoded:,} images were encoded{speed}; miniclip search {folder} WORDS finds them")
