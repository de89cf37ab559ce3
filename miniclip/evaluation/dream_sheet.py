"""Dreams -> one PNG: a row a caption, the moments of its first chain, the ends of the others, and the energies."""

from __future__ import annotations

import warnings
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from miniclip.common.durable import whole_file
from miniclip.common.printing import one_line
from miniclip.evaluation.dream import Dreamt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _OWN, _NEUTRAL = "#1c2430", "#8b9099", "#0072b2", "#d55e00"  # Okabe and Ito's
_OTHERS = 3  # samples beside the first
_CONTROLS = ("neutral captions", "no caption")
_INCHES = 1.05  # of an image


def dream_png(dreamt: Dreamt, path: str | Path, title: str, software: str) -> None:
    """Draw it; software: which the file names."""
    from matplotlib.figure import Figure

    rows, samples, moments = dreamt.images.shape[:3]
    others = min(_OTHERS, samples - 1)
    columns = moments + others
    widths = [1.3, *[1.0] * columns, 2.6]
    size = (_INCHES * sum(widths) + 0.4, _INCHES * rows + 0.9)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle("\n".join(wrap(one_line(title, 160), int(9 * size[0]))), fontsize=11, color=_INK, parse_math=False)
    grid = figure.subplots(rows, columns + 2, squeeze=False, width_ratios=widths)
    said = [f"step {step}" for step in dreamt.moments] + [f"sample {k + 2}" for k in range(others)]
    for name, axes in zip(said, grid[0][1:], strict=False):
        axes.set_title(name, fontsize=8, color=_INK)
    for row, (name, (words, *images, curves)) in enumerate(zip([*dreamt.captions, *_CONTROLS], grid, strict=True)):
        control = row >= len(dreamt.captions)
        words.axis("off")
        label = "\n".join(wrap(one_line(name, 80), 16))
        style: Any = {"style": "italic"} if control else {}
        words.text(1, 0.5, label, ha="right", va="center", fontsize=9, color=_INK, parse_math=False, **style)
        shown = [*dreamt.images[row, 0], *dreamt.images[row, 1 : 1 + others, -1]]
        for axes, image in zip(images, shown, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation="nearest")  # c h w -> h w c
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_color(_FAINT)
        _energies(curves, dreamt.energies, row, len(dreamt.captions))
    grid[0][-1].legend(ncols=3, fontsize=7, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    grid[-1][-1].tick_params(labelbottom=True)
    grid[-1][-1].set_xlabel("step", fontsize=8)
    with warnings.catch_warnings(), whole_file(path) as part:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is drawn as a box
        figure.savefig(part, format="png", metadata={"Software": software})


def _energies(axes: Axes, energies: Tensor, row: int, captions: int) -> None:
    """Under the row's caption, or under the neutral ones: the row's chains, and the means of both controls."""
    under = energies[..., min(row, captions)].numpy()
    steps = np.arange(len(under))
    drawn = [(captions, "neutral", _NEUTRAL, "--"), (captions + 1, "no caption", _FAINT, ":")]
    for other, name, colour, line in drawn:
        axes.plot(steps, under[:, other].mean(1), color=colour, linestyle=line, linewidth=1, label=name)
    if row < captions:
        for k, one in enumerate(under[:, row].T):
            axes.plot(steps, one, color=_OWN, linewidth=0.6, alpha=0.7, label="its caption" if not k else None)
    axes.set_ylabel("energy", fontsize=8)
    axes.tick_params(labelsize=7, labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
