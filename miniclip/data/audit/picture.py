"""An audit as one PNG: caption lengths, picture sizes, and the worst duplicates side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from miniclip.common.printing import one_line
from miniclip.data.audit.report import Audit, advice, amount
from miniclip.data.audit.shared import Twin
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

_INK, _FAINT, _ALARM = "#1c2430", "#67717f", "#a33b12"
_COLOURS = {"train": "#1f5fa8", "validation": "#c2570c", "test": "#3d7a3a"}
_WORST = 5  # pairs of pictures that are drawn


def write_picture(audit: Audit, sources: Mapping[str, PairSource], path: str | Path) -> None:
    """Draw it; sources: the splits, for the pictures."""
    from matplotlib.figure import Figure

    lines, told = _lines(audit), [one_line(line, 170) for line in advice(audit)]
    between = 0.19 * (len(lines) + len(told)) + 0.2  # inches
    figure = Figure(figsize=(13, 8.5 + between), dpi=100, layout="constrained")
    title = one_line(", ".join(audit.data), 90)
    counts = ", ".join(f"{split.pictures} {split.split}" for split in audit.splits)
    figure.suptitle(f"{title}: {counts} pictures", fontsize=13, color=_INK, parse_math=False)
    grid = figure.add_gridspec(3, 1, height_ratios=(4, between, 4.5))
    top = grid[0].subgridspec(1, 2)
    _lengths(figure.add_subplot(top[0]), audit)
    _sizes(figure.add_subplot(top[1]), audit)
    words = figure.add_subplot(grid[1])
    words.axis("off")
    text = "\n".join(lines)
    words.text(0, 1, text, va="top", color=_INK, transform=words.transAxes, parse_math=False)
    words.text(0, 0, "\n".join(told), va="bottom", color=_ALARM, transform=words.transAxes, parse_math=False)
    _worst(figure, grid[2], audit, sources)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
        figure.savefig(path, format="png")


def _lengths(axes: Axes, audit: Audit) -> None:
    longest = max(max(split.lengths, default=0) for split in audit.splits)
    # beyond twice the context a few long captions would squeeze all others into the left edge
    last = min(max(longest, audit.context_length), 2 * audit.context_length)
    step = max(1, math.ceil(last / 80))
    edges = [*range(0, last + step, step), last + step + 1]
    for split in audit.splits:
        values = [min(length, last + step) for length in split.lengths]
        shares = [count / split.captions for count in split.lengths.values()]
        colour = _COLOURS[split.split]
        axes.hist(values, edges, weights=shares, histtype="step", color=colour, label=split.split, linewidth=1.4)
    cut, total = sum(split.truncated for split in audit.splits), sum(split.captions for split in audit.splits)
    axes.axvline(audit.context_length, color=_ALARM, linestyle="--", linewidth=1)
    label = f"context {audit.context_length}: {100 * cut / total:.2g}% cut "
    axes.text(
        audit.context_length, 0.97, label, transform=axes.get_xaxis_transform(), color=_ALARM, ha="right", va="top"
    )
    axes.set_title("caption lengths", fontsize=11)
    axes.set_xlabel("tokens, with start and end" + ("; the last bin holds all longer ones" if longest > last else ""))
    axes.set_ylabel("share of the captions")
    axes.legend(frameon=False, loc="best")


def _sizes(axes: Axes, audit: Audit) -> None:
    for split in audit.splits:
        sizes = [(int(width), int(height)) for width, height in (size.split(" x ") for size in split.sizes)]
        shares = [count / split.pictures for count in split.sizes.values()]
        if sizes:
            x, y = zip(*sizes, strict=True)
            areas = [8 + 120 * share for share in shares]
            axes.scatter(x, y, areas, color=_COLOURS[split.split], alpha=0.35, linewidths=0)
            if shares[0] > 0.1:  # the commonest
                axes.annotate(
                    next(iter(split.sizes)), sizes[0], (8, -4), textcoords="offset points", fontsize=8, color=_FAINT
                )
    side = audit.image_size
    axes.axvline(side, color=_ALARM, linestyle="--", linewidth=1)
    axes.axhline(side, color=_ALARM, linestyle="--", linewidth=1)
    seen = [size for split in audit.splits for size in split.sizes]
    numbers = [side, *(int(part) for size in seen for part in size.split(" x "))]
    limits = (min(numbers) / 1.3, max(numbers) * 1.3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    smaller = sum(split.smaller for split in audit.splits)
    count = sum(split.pictures - split.unreadable for split in audit.splits)
    title = f"picture sizes; the encoder takes {side}: {100 * smaller / max(1, count):.3g}% are smaller"
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")


def _lines(audit: Audit) -> list[str]:
    lines = [
        f"{' and '.join(dict.fromkeys((pair.first, pair.second)))}: {pair.identical_pairs} identical and "
        f"{pair.near_pairs} near pairs of pictures"
        for pair in audit.shared
        if pair.second_pictures
    ]
    if audit.collisions:
        found = audit.collisions
        lines.append(
            f"a batch of {found.batch_size}: {amount(found.same_caption)} pairs share a caption, "
            f"{amount(found.same_picture)} a picture; floor of the softmax loss {found.floor:.3g} nats, "
            f"chance {found.chance:.3g}"
        )
    return lines


def _worst(figure: Figure, place: SubplotSpec, audit: Audit, sources: Mapping[str, PairSource]) -> None:
    """Leaks between splits before duplicates within one, and those that are equal in every pixel first."""
    found = [(pair.first != pair.second, pair, twin) for pair in audit.shared for twin in pair.twins]
    found.sort(key=lambda one: (not one[0], not one[2].identical, one[2].rms))
    if not found:
        axes = figure.add_subplot(place)
        axes.axis("off")
        axes.text(0.5, 0.5, "no picture stands there twice", ha="center", color=_FAINT, transform=axes.transAxes)
        return
    cells = place.subgridspec(2, _WORST)
    for k, (leak, pair, twin) in enumerate(found[:_WORST]):
        for i, (split, row, name) in enumerate(_two(pair.first, pair.second, twin)):
            axes = figure.add_subplot(cells[i, k])
            axes.set_xticks([])
            axes.set_yticks([])
            with suppress(BadImage):  # the file may have gone since the pass
                axes.imshow(sources[split].image(row))
            likeness = "identical" if twin.identical else f"rms {twin.rms:.1f}"
            head = "" if i else ("leak, " if leak else "") + likeness + "\n"
            colour = _ALARM if leak else _INK
            text = head + "\n".join(wrap(one_line(f"{split}: {name}", 80), 42))
            axes.set_title(text, fontsize=7.5, color=colour, parse_math=False)


def _two(first: str, second: str, twin: Twin) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
    return (first, twin.twin_row, twin.twin_name), (second, twin.row, twin.name)
