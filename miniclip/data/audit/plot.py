"""An audit as one PNG: caption lengths, image sizes, and the worst duplicates side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from miniclip.common.durable import whole_file
from miniclip.common.printing import one_line
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_INK, _ALARM = "#1c2430", "#a33b12"
_COLOURS = {"train": "#1f5fa8", "validation": "#c2570c", "test": "#3d7a3a"}
_WORST = 5  # pairs of images that are drawn


def write_png(found: dict[str, Any], sources: Mapping[str, PairSource], path: str | Path, software: str) -> None:
    """Draw it; sources: the splits, for the images. software: which the file names."""
    from matplotlib.figure import Figure

    told = "\n".join(one_line(line, 170) for line in found["advice"] or ["nothing stands out"])
    between = 0.19 * told.count("\n") + 0.4  # inches
    figure = Figure(figsize=(13, 8.5 + between), dpi=100, layout="constrained")
    counts = ", ".join(f"{split['pictures']} {split['split']}" for split in found["splits"])
    figure.suptitle(f"{one_line(', '.join(found['data']), 90)}: {counts} images", fontsize=13, parse_math=False)
    grid = figure.add_gridspec(3, 1, height_ratios=(4, between, 4.5))
    top = grid[0].subgridspec(1, 2)
    _lengths(figure.add_subplot(top[0]), found)
    _sizes(figure.add_subplot(top[1]), found)
    _words(figure.add_subplot(grid[1]), told)
    _worst(figure, grid[2], found, sources)
    with warnings.catch_warnings(), whole_file(path) as part:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
        figure.savefig(part, format="png", metadata={"Software": software})


def _words(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.text(0, 0.5, text, va="center", color=_ALARM, transform=axes.transAxes, parse_math=False)


def _lengths(axes: Axes, found: dict[str, Any]) -> None:
    splits, context = found["splits"], found["context_length"]
    longest = int(max(split["tokens"]["highest"] for split in splits))
    # beyond twice the context a few long captions would squeeze all others into the left edge
    last = min(max(longest, context), 2 * context)
    step = math.ceil(last / 80)
    edges = np.arange(0, last + step + 1, step)
    for split in splits:
        lengths, counts = (np.array(list(part)) for part in (split["lengths"], split["lengths"].values()))
        look: dict[str, Any] = {"color": _COLOURS[split["split"]], "label": split["split"], "linewidth": 1.4}
        values, shares = np.minimum(lengths, edges[-1]), counts / split["captions"]
        axes.hist(values, edges.tolist(), weights=shares, histtype="step", **look)
    cut, total = (sum(split[key] for split in splits) for key in ("truncated", "captions"))
    axes.axvline(context, color=_ALARM, linestyle="--", linewidth=1)
    axes.set_title(f"caption lengths; {100 * cut / total:.2g}% are cut at {context} tokens", fontsize=11)
    more = "; the last bin holds all longer ones" if longest > edges[-1] else ""
    axes.set(xlabel=f"tokens, with start and end{more}", ylabel="share of the captions")
    axes.legend(frameon=False, loc="best")


def _sizes(axes: Axes, found: dict[str, Any]) -> None:
    splits, side = found["splits"], found["image_size"]
    for split in splits:
        sizes = np.array([size.split(" x ") for size in split["sizes"]], dtype=float).reshape(-1, 2)
        areas = 8 + 120 * np.array(list(split["sizes"].values())) / split["pictures"]
        axes.scatter(sizes[:, 0], sizes[:, 1], areas, color=_COLOURS[split["split"]], alpha=0.35, linewidths=0)
    axes.axvline(side, color=_ALARM, linestyle="--", linewidth=1)
    axes.axhline(side, color=_ALARM, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    numbers = [side, *(int(number) for split in splits for size in split["sizes"] for number in size.split(" x "))]
    limits = (min(numbers) / 1.3, max(numbers) * 1.3)  # with a power of two among them, which has a tick
    axes.set(xlim=limits, ylim=limits, xlabel="width, pixels", ylabel="height, pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0f}")
    smaller, count, bad = (sum(split[key] for split in splits) for key in ("smaller", "pictures", "unreadable"))
    share = 100 * smaller / max(1, count - bad)
    axes.set_title(f"image sizes; the encoder takes {side}: {share:.3g}% are smaller", fontsize=11)


def _worst(figure: Figure, place: SubplotSpec, found: dict[str, Any], sources: Mapping[str, PairSource]) -> None:
    """Leaks between splits before duplicates within one, and those that are equal in every pixel first."""
    worst = [(pair["first"] == pair["second"], pair, twin) for pair in found["shared"] for twin in pair["twins"]]
    worst.sort(key=lambda one: (one[0], not one[2]["identical"], one[2]["rms"]))
    if not worst:
        _words(figure.add_subplot(place), "no image stands there twice")
    cells = place.subgridspec(2, _WORST)
    for k, (within, pair, twin) in enumerate(worst[:_WORST]):
        likeness = "identical" if twin["identical"] else f"rms {twin['rms']:.1f}"
        heads = (pair["first"], "twin_", f"{'' if within else 'leak, '}{likeness}\n"), (pair["second"], "", "")
        for i, (split, prefix, head) in enumerate(heads):
            axes = figure.add_subplot(cells[i, k])
            axes.set(xticks=[], yticks=[])
            with suppress(BadImage):  # the file may have gone since the pass
                axes.imshow(sources[split].image(twin[f"{prefix}row"]))
            text = head + "\n".join(wrap(one_line(f"{split}: {twin[f'{prefix}name']}", 80), 42))
            axes.set_title(text, fontsize=7.5, color=_INK if within else _ALARM, parse_math=False)
