"""Results -> PNG: the confusion matrix, and a sheet of example images with their best captions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from miniclip.evaluation.retrieval import PairEmbeddings, RankedCaption, best_captions
from miniclip.printing import one_line

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from miniclip.data.sources import PairSource

_NAMED_CLASSES = 100  # more names than this would be smaller than print
_COUNTED_CLASSES = 20


def confusion_png(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], path: str | Path, title: str = ""
) -> None:
    """Draw C x C counts (row = true class): colour is the share of the row; up to 20 classes also show the counts."""
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = np.asarray(confusion, dtype=np.int64)
    c = len(classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(4 + 0.42 * c, 22) if c <= _NAMED_CLASSES else 12
    figure = Figure(figsize=(size + 1, size), dpi=120 if c > 40 else 150)
    axes = figure.add_subplot()
    # The root of the share, so that a confusion of one in fifty can still be seen.
    shown = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="share of the true class", fraction=0.046, pad=0.02)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if title:
        axes.set_title(one_line(title, 80), parse_math=False)
    if c <= _NAMED_CLASSES:
        # parse_math=False: a $ in a name is a dollar, not the start of a formula.
        text: dict[str, Any] = {"fontsize": 9 if c <= 40 else 7, "parse_math": False}
        names = [one_line(name, 24) for name in classes]
        axes.set_xticks(range(c), names, rotation=45 if c <= 20 else 90, ha="right" if c <= 20 else "center", **text)
        if c <= 20:
            for label in axes.get_xticklabels():
                label.set_rotation_mode("anchor")
        axes.set_yticks(range(c), names, **text)
    if c <= _COUNTED_CLASSES:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[i, j] > 0.3 else "#223"
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks([k - 0.5 for k in range(1, c)], minor=True)
        axes.set_yticks([k - 0.5 for k in range(1, c)], minor=True)
        axes.grid(which="minor", color="#dde3ea", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # an emoji becomes a box; one warning each helps nobody
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15)


# Layout of the sheet, in pixels; drawn for a screen with twice the usual density.
_PICTURE = 224
_TEXT = 600
_PAD = 24
_LINE = 28
_ROW = 82
_INK, _FAINT, _PAPER, _CARD, _EDGE = "#1c2430", "#67717f", "#f3f5f8", "#ffffff", "#dfe4ea"
_OWN, _OTHER, _TRACK = "#117a43", "#8a95a3", "#e8ecf1"


def example_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[RankedCaption]],
    path: str | Path,
    *,
    columns: int = 2,
    title: str = "",
) -> None:
    """One card for each image with its best captions, best first; own ones are green and carry a tick. Saved as PNG.

    The bar under a caption is its cosine similarity, from 0 at the left to 1 at the right.
    Raises ValueError without images, or if there are not as many lists of captions as images.
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"expected as many lists of captions as images, at least one; got {len(captions)}, {len(images)}"
        )
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    deepest = max(len(ranked) for ranked in captions)
    card_width = _PICTURE + _TEXT + 3 * _PAD
    card_height = max(_PICTURE, deepest * _ROW - 10) + 2 * _PAD
    head, foot = (64 if title else 0), 48
    width = columns * (card_width + _PAD) + _PAD
    sheet = Image.new("RGB", (width, head + rows * (card_height + _PAD) + _PAD + foot), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_PAD, _PAD + 4), one_line(title, 110), fill=_INK, font=_font(30, bold=True))
    for k, (image, ranked) in enumerate(zip(images, captions, strict=True)):
        x = _PAD + k % columns * (card_width + _PAD)
        y = head + _PAD + k // columns * (card_height + _PAD)
        draw.rounded_rectangle((x, y, x + card_width, y + card_height), 14, fill=_CARD, outline=_EDGE, width=2)
        sheet.paste(_thumbnail(image), (x + _PAD, y + (card_height - _PICTURE) // 2))
        top = y + (card_height - len(ranked) * _ROW + 10) // 2
        for place, caption in enumerate(ranked):
            _draw_caption(draw, x + 2 * _PAD + _PICTURE, top + place * _ROW, caption)
    y = sheet.height - foot
    _draw_tick(draw, _PAD + 2, y + 3)
    legend = "a caption of this image     others: captions of other images     bar: cosine similarity, 0 to 1"
    draw.text((_PAD + 34, y), legend, fill=_FAINT, font=_font(20))
    sheet.save(path, format="PNG")


def write_examples(
    source: PairSource, pairs: PairEmbeddings, path: str | Path, *, count: int = 8, title: str = ""
) -> None:
    """Example sheet of `count` images, spread evenly over source, with three captions each; pairs embeds source."""
    n = len(source)
    chosen = [k * n // min(count, n) for k in range(min(count, n))]
    example_sheet([source.image(k) for k in chosen], best_captions(pairs, chosen), path, title=title)


def _draw_caption(draw: ImageDraw.ImageDraw, x: int, y: int, caption: RankedCaption) -> None:
    colour = _OWN if caption.own else _OTHER
    if caption.own:
        _draw_tick(draw, x, y + 6)
    font = _font(22, bold=caption.own)
    figure = f"{caption.similarity:.2f}".replace("-", "\N{MINUS SIGN}")
    left, right = x + 32, x + _TEXT - 88
    lines = _wrap(caption.text, font, right - left, 2)
    for k, line in enumerate(lines):
        draw.text((left, y + k * _LINE), line, fill=_OWN if caption.own else _INK, font=font)
    draw.text((x + _TEXT, y), figure, fill=colour, font=_font(22, bold=True), anchor="ra")
    bar = y + len(lines) * _LINE + 4
    draw.rounded_rectangle((left, bar, right, bar + 5), 2, fill=_TRACK)
    if caption.similarity > 0:
        end = left + round((right - left) * min(caption.similarity, 1.0))
        draw.rounded_rectangle((left, bar, max(end, left + 4), bar + 5), 2, fill=colour)


def _draw_tick(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line([(x, y + 10), (x + 7, y + 17), (x + 20, y)], fill=_OWN, width=4, joint="curve")


def _thumbnail(image: Image.Image) -> Image.Image:
    """The whole picture in a square of _PICTURE pixels; small ones are enlarged without blurring their pixels away."""
    image = image.convert("RGB")
    scale = _PICTURE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (_PICTURE, _PICTURE), _TRACK)
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((_PICTURE - size[0]) // 2, (_PICTURE - size[1]) // 2))
    return square


def _font(size: int, bold: bool = False) -> FreeTypeFont:
    from matplotlib import get_data_path  # DejaVu Sans comes with it: wide coverage, and the same on every machine

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def _wrap(text: str, font: FreeTypeFont, width: int, lines: int) -> list[str]:
    """Greedy wrapping to `width` pixels; words beyond the last line, and the end of a longer word, become "…"."""
    words = one_line(text, 400).split() or ["(empty)"]
    result: list[str] = []
    while words and len(result) < lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += " " + words.pop(0)
        result.append(line)
    if words:
        result[-1] += " …"
    return [_fit(line, font, width) for line in result]


def _fit(line: str, font: FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
