"""Draws the pictures of docs/losses.md: one small matrix, and the gradient of each loss over it.

    python docs/draw_losses.py

The matrix is made up: ten pairs, easy ones but for three. Nothing is drawn at random: equal libraries give equal files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniclip.losses import LOSSES

FOLDER = Path(__file__).parent / "losses"
N, SCALE, BIAS = 10, 15.0, -4.5  # a cosine of 0.3 is a logit of 0
HARD, PARAPHRASE, MISALIGNED, SAME = 2, 4, 6, (8, 9)
HARD_NEGATIVE = (HARD, PARAPHRASE)


def example() -> tuple[Tensor, Tensor]:
    """(logits, positives), each 10 x 10: a hard negative, a pair that does not fit, a caption that occurs twice."""
    row, column = torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij")
    cosine = 0.10 + 0.06 * torch.sin(2.4 * row + 1.7 * column * (row + 1)).double()
    cosine.diagonal().copy_(0.50 + 0.05 * torch.cos(1.9 * torch.arange(N)))
    cosine[HARD_NEGATIVE] = 0.46
    cosine[MISALIGNED, MISALIGNED] = 0.08
    cosine[SAME[0], SAME[0]], cosine[SAME[1], SAME[0]] = 0.53, 0.44
    cosine[:, SAME[1]] = cosine[:, SAME[0]]  # one caption, one embedding
    positives = torch.eye(N, dtype=torch.bool)
    positives[SAME[0], SAME[1]] = positives[SAME[1], SAME[0]] = True
    return SCALE * cosine + BIAS, positives


def related() -> Tensor:
    """Soft targets, 10 x 10: texts 2 and 4 are said to mean nearly the same, all others to be unrelated."""
    target = torch.eye(N, dtype=torch.float64)
    target[HARD, PARAPHRASE] = target[PARAPHRASE, HARD] = 0.7
    target[SAME[0], SAME[1]] = target[SAME[1], SAME[0]] = 1
    return target


# file name, which starts with the loss -> title, settings
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("softmax", {}),
    "softmax-smoothing": ("softmax, smoothing 0.1", {"smoothing": 0.1}),
    "sigmoid": ("sigmoid", {}),
    "focal-softmax": ("focal, softmax form, gamma 2", {"form": "softmax"}),
    "focal-sigmoid": ("focal, sigmoid form, gamma 2, alpha 0.25", {"form": "sigmoid"}),
    "hinge-sum": ("hinge, sum, margin 0.2", {"hardest": 0}),
    "hinge-hardest": ("hinge, hardest, margin 0.2", {"hardest": 1}),
    "decoupled": ("decoupled", {}),
    "soft": ("soft, share 0.2", {"targets": related(), "share": 0.2}),
    "transport": ("transport, 5 iterations", {}),
}


def gradient(name: str) -> Tensor:
    """d loss / d logit of the example, 10 x 10; for hinge, the logits are the cosines, as in training."""
    logits, positives = example()
    loss = LOSSES[name.split("-")[0]]
    if loss.on_cosines:
        logits = (logits - BIAS) / SCALE
    logits.requires_grad_()
    return torch.autograd.grad(loss(logits, positives, **PICTURES[name][1]), logits)[0]


def thousandths(name: str) -> list[list[int]]:
    """The numbers that stand in the picture; its file holds them as text, too."""
    return [[round(1000 * value) for value in line] for line in gradient(name).tolist()]


def draw(name: str, folder: Path = FOLDER) -> Path:
    """Write the picture of one loss, or of the matrix itself, to folder; returns its path."""
    path = folder / f"{name}.png"
    if name == "matrix":
        values = example()[0]
        cells = [[f"{value:.1f}".replace("-", "−") for value in line] for line in values.tolist()]
        colours = ["#ffffff", "#bcbddc", "#807dba"]
        _picture(values, cells, "the matrix", "logit = 15 cos − 4.5", colours, (-4.5, 4.5), path)
        return path
    values, numbers = gradient(name), thousandths(name)
    unit = "logit = cosine" if LOSSES[name.split("-")[0]].on_cosines else "nats per logit"
    # all on one scale, but for the one that would not fit
    limit = max(0.11, float(values.abs().max()))
    _picture(
        values,
        [[str(number or "").replace("-", "−") for number in line] for line in numbers],
        PICTURES[name][0],
        f"d loss / d logit ({unit}; numbers: thousandths)",
        ["#08519c", "#6baed6", "#ffffff", "#fd8d3c", "#a63603"],  # told apart by all kinds of colour vision
        (-limit, limit),
        path,
        json.dumps(numbers),
    )
    return path


def _picture(
    values: Tensor,
    cells: list[list[str]],
    title: str,
    label: str,
    colours: list[str],
    limits: tuple[float, float],
    path: Path,
    description: str = "",
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    figure = Figure(figsize=(5.6, 4.9), dpi=110, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    # odd, so that one of them is white; few enough for a palette, which is a third of the bytes
    steps = LinearSegmentedColormap.from_list(title, colours, N=45)
    image = axes.imshow(values.numpy(), cmap=steps, vmin=limits[0], vmax=limits[1])
    for i, line in enumerate(cells):
        for j, text in enumerate(line):
            red, green, blue, _ = image.to_rgba(float(values[i, j]))
            light = 0.3 * red + 0.6 * green + 0.1 * blue > 0.5
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="black" if light else "white")
    axes.set(xticks=range(N), yticks=range(N), xlabel="text", ylabel="image", title=title)
    axes.set_xticks([k - 0.5 for k in range(1, N)], minor=True)
    axes.set_yticks([k - 0.5 for k in range(1, N)], minor=True)
    axes.grid(which="minor", color="#d9d9d9", linewidth=0.6)
    axes.tick_params(length=0, which="both")

    def box(i: int, j: int, **style: Any) -> Any:
        return axes.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor="black", **style))

    boxes = [box(i, j, linewidth=1.6, label="positive") for i, j in example()[1].nonzero().tolist()]
    boxes.append(box(*HARD_NEGATIVE, linewidth=1.4, linestyle=":", label="hard negative"))
    figure.legend(handles=boxes[-2:], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.colorbar(image, ax=axes, label=label, shrink=0.95)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    kept = PngInfo()
    kept.add_text("Description", description)
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=kept)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in ("matrix", *PICTURES):
        path = draw(name)
        print(f"{path}  {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
