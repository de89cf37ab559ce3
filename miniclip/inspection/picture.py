"""An Inspection as one PNG: the matrix three ways, the temperature, the figures and what stands out."""

from __future__ import annotations

import warnings
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from torch import Tensor

from miniclip.common.printing import one_line
from miniclip.inspection.contents import Inspection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _ALARM = "#1c2430", "#67717f", "#a33b12"
# blue where the loss pulls together, orange where it pushes apart, as in docs/losses.md
_PULL, _PUSH = "#1f5fa8", "#c2570c"
_SHOWN = (
    "loss",
    "loss_over_chance",
    "training_loss_over_chance",
    "r1_image_to_text",
    "r1_text_to_image",
    "cosine_positive",
    "cosine_negative",
    "alignment",
    "uniformity_image",
    "uniformity_text",
    "modality_gap",
    "rank_image",
    "rank_text",
    "effective_negatives_image_to_text",
    "effective_negatives_text_to_image",
    "unseen_duplicates",
    "logit_scale",
    "best_scale",
)


def write_picture(inspection: Inspection, path: Path) -> None:
    """Draw it; rows and columns are ordered by cluster."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, SymLogNorm
    from matplotlib.figure import Figure

    view = inspection.losses[inspection.loss]
    order = inspection.orders["cluster"]
    figure = Figure(figsize=(16, 9.4), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(5, 4))
    figure.suptitle(one_line(inspection.title, 140), fontsize=13, color=_INK, parse_math=False)

    def heat_map(place: int, title: str, label: str, values: Tensor, **colours: Any) -> None:
        axes = figure.add_subplot(grid[0, place])
        shown = axes.imshow(values[order][:, order].numpy(), interpolation="nearest", **colours)
        figure.colorbar(shown, ax=axes, label=label, fraction=0.046, pad=0.02)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(f"text 1 to {len(order)}, by cluster")
        axes.set_ylabel("image")
        axes.set_xticks([])
        axes.set_yticks([])

    heat_map(0, "cosine similarity", "cosine", inspection.cosine, cmap="cividis")
    heat_map(
        1,
        "probability of a text, given the image",
        "probability",
        inspection.logits.softmax(1),
        cmap="cividis",
        norm=PowerNorm(0.4, 0, 1),
    )
    pull_push = LinearSegmentedColormap.from_list("pull_push", [_PULL, "#ffffff", _PUSH])
    largest = float(view.gradient.abs().max()) or 1.0
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    of = "cosine" if view.unit == "cosine" else "logit"
    title = f"gradient of the {inspection.loss} loss: blue pulls, orange pushes"
    heat_map(2, title, f"d loss / d {of}", view.gradient, cmap=pull_push, norm=norm)
    _temperature(figure.add_subplot(grid[1, 0]), inspection)
    _figures(figure.add_subplot(grid[1, 1]), inspection)
    _verdicts(figure.add_subplot(grid[1, 2]), inspection)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an emoji becomes a box
        figure.savefig(path, format="png")


def _temperature(axes: Axes, inspection: Inspection) -> None:
    curves, name = inspection.temperature, inspection.loss
    axes.set_title("what another temperature would do", fontsize=11)
    axes.set_xscale("log")
    axes.set_xlabel("logit scale")
    if name in curves.loss:
        axes.plot(curves.scales, curves.loss[name], color=_INK, label=f"{name} loss")
        axes.axvline(curves.best[name], color=_FAINT, linestyle=":", label=f"lowest at {curves.best[name]:.1f}")
    axes.axvline(curves.learned, color=_ALARM, linestyle="--", label=f"learned: {curves.learned:.1f}")
    axes.set_ylabel("loss, nats")
    other = axes.twinx()
    other.plot(curves.scales, curves.negatives_rows, color=_PULL, label="effective negatives, rows")
    other.plot(curves.scales, curves.negatives_columns, color=_PULL, alpha=0.5, label="effective negatives, columns")
    other.set_ylabel("effective negatives", color=_PULL)
    other.set_ylim(bottom=0)
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    labels = [*axes.get_legend_handles_labels()[1], *other.get_legend_handles_labels()[1]]
    axes.legend(handles, labels, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)


def _figures(axes: Axes, inspection: Inspection) -> None:
    axes.axis("off")
    known = {figure.name: figure for figure in inspection.figures}
    rows = [known[name] for name in _SHOWN if name in known]
    for k, row in enumerate(rows):
        y = 1 - (k + 0.5) / len(rows)
        value = "-" if row.value is None else f"{row.value:.3g}"
        axes.text(0.02, y, row.label, fontsize=9, color=_INK, va="center")
        axes.text(0.83, y, value, fontsize=9, color=_INK, va="center", ha="right", family="monospace")
        axes.text(0.85, y, row.unit, fontsize=8, color=_FAINT, va="center")


def _verdicts(axes: Axes, inspection: Inspection) -> None:
    axes.axis("off")
    lines: list[tuple[str, str, bool]] = []
    for verdict in inspection.verdicts:
        lines += [(line, _ALARM, True) for line in wrap(verdict.title, 56)]
        for sentence in verdict.evidence:
            lines += [(line, _INK, False) for line in wrap(sentence, 66)]
        for sentence in verdict.advice:
            lines += [(line, _FAINT, False) for line in wrap(f"Try: {sentence}", 66)]
        lines.append(("", _INK, False))
    for k, (text, colour, bold) in enumerate(lines[:22] or [("Nothing stands out.", _INK, True)]):
        axes.text(
            0,
            0.98 - 0.045 * k,
            text,
            fontsize=9,
            color=colour,
            va="top",
            weight="bold" if bold else "normal",
            parse_math=False,
        )
