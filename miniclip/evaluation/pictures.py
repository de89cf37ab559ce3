"""Results -> PNG: the confusion matrix, a sheet of images with their best captions, and one of captions with images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from miniclip.common.printing import one_line
from miniclip.data.images import BadImage
from miniclip.evaluation.retrieval import RankedCaption

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from miniclip.data.captioned import PairSource

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


# Layout of the sheets, in pixels; drawn for a screen with twice the usual density.
_PICTURE = 224
_TEXT = 600
_PAD = 24
_LINE = 28
_ROW = 82
_SMALL = 150  # side of a picture that answers a caption
_GAP = 16
_INK, _FAINT, _PAPER, _CARD, _EDGE = "#1c2430", "#67717f", "#f3f5f8", "#ffffff", "#dfe4ea"
_OWN, _OTHER, _TRACK = "#117a43", "#8a95a3", "#e8ecf1"
_LOST = "#8b9099"  # a picture that is gone; stands on light and on dark


class RankedImage(NamedTuple):
    """A candidate image of a caption. row: of the images. similarity: cosine, in [-1, 1]. own: the caption is of it."""

    row: int
    similarity: float
    own: bool


class Answer(NamedTuple):
    """What a caption finds. best: the nearest images, best first. own: its image. rank: of that, from 1."""

    text: str
    best: list[RankedImage]
    own: RankedImage
    rank: int

    @property
    def missed(self) -> bool:
        """Whether the caption's image is not among the best."""
        return self.rank > len(self.best)


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
    deepest = max(len(ranked) for ranked in captions)
    size = (_PICTURE + _TEXT + 3 * _PAD, max(_PICTURE, deepest * _ROW - 10) + 2 * _PAD)
    legend = ["a caption of this image", "others: captions of other images", "bar: cosine similarity, 0 to 1"]
    sheet, draw, corners = _cards(len(images), columns, size, title, legend)
    for (x, y), image, ranked in zip(corners, images, captions, strict=True):
        sheet.paste(_square(image, _PICTURE), (x + _PAD, y + (size[1] - _PICTURE) // 2))
        top = y + (size[1] - len(ranked) * _ROW + 10) // 2
        for place, caption in enumerate(ranked):
            _draw_caption(draw, x + 2 * _PAD + _PICTURE, top + place * _ROW, caption)
    sheet.save(path, format="PNG")


def query_sheet(
    answers: Sequence[Answer], images: Mapping[int, Image.Image], path: str | Path, *, title: str = ""
) -> None:
    """One card for each caption with its best images, best first; the own one has a green frame and a tick. PNG.

    images: by row, all that the answers name. An own image that is not among the best stands at the end, with its rank.
    Raises ValueError without answers.
    """
    if not answers:
        raise ValueError("expected at least one caption with its images, got none")
    slots = max(len(answer.best) for answer in answers)
    row = slots * (_SMALL + _GAP) - _GAP
    missed = any(answer.missed for answer in answers)
    size = (max(row + missed * (_SMALL + 4 * _GAP), 620) + 2 * _PAD, _SMALL + (3 + missed) * _LINE + 2 * _PAD + 18)
    legend = ["the image of this caption", "below an image: cosine similarity"]
    if missed:
        legend.append("right of the line: the own image where it is not among the best, and its rank")
    sheet, draw, corners = _cards(len(answers), 2 if slots <= 6 else 1, size, title, legend)
    for (x, y), answer in zip(corners, answers, strict=True):
        x, y = x + _PAD, y + _PAD
        lines = _wrap(answer.text, _font(22, bold=True), size[0] - 2 * _PAD, 2)
        draw.multiline_text((x, y + _LINE), "\n".join(lines), fill=_INK, font=_font(22, bold=True), anchor="lm")
        y += 2 * _LINE + 12
        for place, found in enumerate(answer.best):
            _draw_found(sheet, draw, x + place * (_SMALL + _GAP), y, found, images[found.row])
        if answer.missed:
            left = x + row + 4 * _GAP
            draw.line([(left - 2 * _GAP, y), (left - 2 * _GAP, y + _SMALL + 2 * _LINE)], fill=_EDGE, width=3)
            _draw_found(sheet, draw, left, y, answer.own, images[answer.own.row])
            label = _fit(f"rank {answer.rank:,}", _font(19), _SMALL)
            draw.text((left + _SMALL // 2, y + _SMALL + 10 + _LINE), label, fill=_OWN, font=_font(19), anchor="ma")
    sheet.save(path, format="PNG")


def readable_picture(source: PairSource, row: int, side: int) -> Image.Image:
    """The picture, its longer side of so many pixels; a grey square with its name if it cannot be read any more."""
    try:
        return _fitted(source.image(row), side)
    except (BadImage, OSError):
        square = Image.new("RGB", (side, side), _LOST)
        font = _font(max(10, side // 12))
        lines = ["cannot be read:", *_wrap(source.name(row), font, side - 12, 4)]
        text = "\n".join(lines)
        ImageDraw.Draw(square).multiline_text(
            (side / 2, side / 2), text, fill="#ffffff", font=font, anchor="mm", align="center"
        )
        return square


def cosine_text(similarity: float) -> str:
    """Two digits and a minus sign that can be seen."""
    return f"{round(similarity, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before a zero


def _cards(
    count: int, columns: int, size: tuple[int, int], title: str, legend: Sequence[str]
) -> tuple[Image.Image, ImageDraw.ImageDraw, list[tuple[int, int]]]:
    """A sheet with that many empty cards, title and legend; and the corners of the cards. The legend has a tick."""
    columns = min(columns, count)
    rows = -(-count // columns)
    width = columns * (size[0] + _PAD) + _PAD
    heading = _wrap(title, _font(30, bold=True), width - 2 * _PAD, 2) if title else []
    explained = [legend[0]]
    for part in legend[1:]:
        longer = f"{explained[-1]}     {part}"
        fits = _font(20).getlength(longer) <= width - 2 * _PAD - 34
        explained[-1:] = [longer] if fits else [explained[-1], part]
    head, foot = 40 * len(heading) + 24 * bool(heading), 20 + 28 * len(explained)
    sheet = Image.new("RGB", (width, head + rows * (size[1] + _PAD) + _PAD + foot), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, line in enumerate(heading):
        draw.text((_PAD, _PAD + 4 + 40 * k), line, fill=_INK, font=_font(30, bold=True))
    corners = []
    for k in range(count):
        x, y = _PAD + k % columns * (size[0] + _PAD), head + _PAD + k // columns * (size[1] + _PAD)
        draw.rounded_rectangle((x, y, x + size[0], y + size[1]), 14, fill=_CARD, outline=_EDGE, width=2)
        corners.append((x, y))
    y = sheet.height - foot
    _draw_tick(draw, _PAD + 2, y + 3)
    for k, line in enumerate(explained):
        draw.text((_PAD + 34, y + 28 * k), line, fill=_FAINT, font=_font(20))
    return sheet, draw, corners


def _draw_found(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, found: RankedImage, image: Image.Image
) -> None:
    sheet.paste(_square(image, _SMALL), (x, y))
    font, middle, below = _font(19, bold=found.own), x + _SMALL // 2, y + _SMALL + 10
    colour = _OWN if found.own else _FAINT
    draw.text((middle, below), cosine_text(found.similarity), fill=colour, font=font, anchor="ma")
    if found.own:
        draw.rectangle((x - 6, y - 6, x + _SMALL + 5, y + _SMALL + 5), outline=_OWN, width=6)
        _draw_tick(draw, middle - 64, below + 1)


def _draw_caption(draw: ImageDraw.ImageDraw, x: int, y: int, caption: RankedCaption) -> None:
    colour = _OWN if caption.own else _OTHER
    if caption.own:
        _draw_tick(draw, x, y + 6)
    font = _font(22, bold=caption.own)
    left, right = x + 32, x + _TEXT - 88
    lines = _wrap(caption.text, font, right - left, 2)
    for k, line in enumerate(lines):
        draw.text((left, y + k * _LINE), line, fill=_OWN if caption.own else _INK, font=font)
    draw.text((x + _TEXT, y), cosine_text(caption.similarity), fill=colour, font=_font(22, bold=True), anchor="ra")
    bar = y + len(lines) * _LINE + 4
    draw.rounded_rectangle((left, bar, right, bar + 5), 2, fill=_TRACK)
    if caption.similarity > 0:
        end = left + round((right - left) * min(caption.similarity, 1.0))
        draw.rounded_rectangle((left, bar, max(end, left + 4), bar + 5), 2, fill=colour)


def _draw_tick(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line([(x, y + 10), (x + 7, y + 17), (x + 20, y)], fill=_OWN, width=4, joint="curve")


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, its longer side of so many pixels; small ones are enlarged."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _square(image: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a square."""
    square, fitted = Image.new("RGB", (side, side), _TRACK), _fitted(image, side)
    square.paste(fitted, ((side - fitted.width) // 2, (side - fitted.height) // 2))
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
