"""eval.py dream: a model and captions -> images sampled from the energy of each, as a sheet."""

from __future__ import annotations

import sys
from pathlib import Path

from miniclip.common.arguments import check_output, check_range

_PNG, _JSON = "miniclip dream", '"dreamt": '  # by which a sheet and its numbers are known


def dream(
    model: str,
    captions: list[str],
    *,
    out: str = "dream.png",
    json: str | None = None,
    start: str | None = None,
    neutral: list[str] | None = None,
    samples: int = 4,
    steps: int = 250,
    step: float = 2e-6,
    noise: float = 1.0,
    temperature: float = 1e-4,
    smooth: float = 2.0,
    views: int = 1,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Draw what a model takes captions to be: images by Langevin dynamics, down the energy -scale · cosine.

    Args:
        model: run or model directory, open_clip:ARCH:TAG or FILE, hf:FOLDER or NAME
        captions: each a row of the sheet, e.g. "a red star" "a blue ring"
        out: the sheet, as PNG
        json: write the energies along the chains
        start: file of an image to start from (default: middle grey with a little noise)
        neutral: captions of the control (default: a picture, a photo, an image, a drawing)
        samples: chains a caption
        steps: steps of a chain
        step: variance of the noise that a step adds to a pixel, of values from 0 to 1
        noise: factor on the noise's deviation; 1 samples, 0 goes straight down
        temperature: of the energy; the lower, the further down
        smooth: deviation, in pixels, of the kernel that noise and gradient are smoothed by; 0 for none
        views: random squares of the image whose gradients are averaged in a step; 0 for the whole image
        seed: of start, noise and views, which all captions share
        device: auto, cpu, cuda, cuda:1, ...
    """
    check_range("--samples", samples, 1)
    check_range("--steps", steps, 1)
    check_range("--noise", noise, 0)
    check_range("--smooth", smooth, 0)
    check_range("--views", views, 0)
    check_range("--seed", seed, 0)
    for option, value in (("--step", step), ("--temperature", temperature)):
        if value <= 0:
            raise ValueError(f"{option} {value} must be more than 0")
    if any(not one.strip() for one in [*captions, *(neutral or ())]):
        raise ValueError('a caption is empty; say what is to be drawn, e.g. "a red star"')
    for option, target, mark in (("--out", out, _PNG), ("--json", json, _JSON)):
        if target is not None:
            check_output(option, target, mark)
    if start is not None and not Path(start).is_file():
        raise FileNotFoundError(f"--start {start}: no such file")

    from dataclasses import asdict

    from tqdm import tqdm

    from miniclip.cli.devices import device_of
    from miniclip.common.console import open_console, plain, show_table, write_json
    from miniclip.data.images import decode_image
    from miniclip.evaluation import dream as dreaming
    from miniclip.evaluation.dream_sheet import dream_png
    from miniclip.evaluation.langevin import Chain
    from miniclip.models.load import load

    given = None if start is None else decode_image(Path(start), f"--start {start}")
    towers, preprocess, tokenizer = load(model, device_of(device))
    first = None if given is None else preprocess.to_uint8(given).float() / 255
    options = dreaming.Dreaming(Chain(steps, step, noise, temperature, smooth), samples, views, seed)
    neutral = list(neutral or dreaming.NEUTRAL)
    with tqdm(total=steps + 1, desc="steps", leave=False, disable=not sys.stderr.isatty()) as bar:
        dreamt = dreaming.dream(towers, preprocess, tokenizer, captions, options, first, neutral, lambda: bar.update())
    if json:
        said = {"model": model, "start": start, "captions": captions, "neutral": neutral, **asdict(options)}
        write_json(json, {"dreamt": said, "scale": dreamt.scale, **dreaming.told(dreamt)})
    dream_png(dreamt, out, f"{model}: {samples} chains of {steps} steps a caption", _PNG)
    columns = ("caption", "cosine at the start", "at the end", "by neutral captions", "by none")
    show_table(open_console(), "", columns, dreaming.table_rows(dreamt))
    open_console().print(plain(f"{out} is the sheet"))
