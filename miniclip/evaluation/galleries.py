"""Retrieval to look at: images with their best captions (PNG and HTML), and captions with their best images (HTML).

Axes: N images, M texts, E embedding, Q queries. Only the Q rows that are shown are ever multiplied out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image, ImageDraw

from miniclip.common.page import data_uri, render_page
from miniclip.common.printing import one_line
from miniclip.data.images import BadImage
from miniclip.evaluation.plots import drawing
from miniclip.evaluation.retrieval import PairEmbeddings, RankedCaption, best_captions
from miniclip.metrics import retrieval as metrics

if TYPE_CHECKING:
    from miniclip.data.captioned import PairSource

_QUERIES, _ANSWERS = 8, 5
_LONGEST = 300  # characters of a caption on the page
_SIDE = 224  # pixels of the longer side of an image; the page shows it at about half of that, for sharp screens
_INK, _OWN, _OTHER, _TRACK = "#1c2430", "#117a43", "#8a95a3", "#e8ecf1"
_LOST = "#8b9099"  # an image that is gone; stands on light and on dark


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


def write_sheets(source: PairSource, pairs: PairEmbeddings, folder: Path, *, title: str) -> None:
    """Write examples.png and examples.html into folder: eight images and eight captions, with five answers each.

    pairs embeds source, of which it takes them evenly; all if there are fewer.
    """
    rows, captions = _spread(len(source)), _spread(len(pairs.texts))
    ranked, answers = best_captions(pairs, rows, _ANSWERS), best_images(pairs, captions, _ANSWERS)
    shown = dict.fromkeys([*rows, *(found.row for answer in answers for found in (*answer.best, answer.own))])
    images = {row: readable_image(source, row, _SIDE) for row in shown}
    folder.mkdir(parents=True, exist_ok=True)
    example_sheet([images[row] for row in rows], ranked, folder / "examples.png", title=title)
    page = render_page(
        Path(__file__).with_name("examples.html"),
        title=_short(title),
        examples=list(zip(rows, ranked, caption_ranks(pairs, rows), strict=True)),
        answers=answers,
        images={row: data_uri(_jpeg(image), "jpeg") for row, image in images.items()},
        names={row: _short(source.name(row)) for row in images},
        n_images=len(source),
        n_texts=len(pairs.texts),
        short=_short,
        cosine=cosine_text,
        percent=lambda similarity: round(100 * _share(similarity)),
    )
    (folder / "examples.html").write_text(page, encoding="utf-8")


def best_images(pairs: PairEmbeddings, captions: list[int], k: int) -> list[Answer]:
    """For each of the captions (rows of text) the k nearest of all images, and where its own one stands.

    Ties count against the own image, as in miniclip.metrics, so the list and the rank agree with the recalls.
    """
    answers = []
    for caption, similarity in zip(captions, metrics.cosine_matrix(pairs.text[captions], pairs.image), strict=True):
        row = int(pairs.image_of_text[caption])
        rank = _rank(similarity, torch.arange(len(similarity), device=similarity.device) == row)
        nearest = similarity.argsort(descending=True, stable=True).tolist()
        nearest.remove(row)
        nearest.insert(rank - 1, row)
        own, *best = (RankedImage(j, float(similarity[j]), j == row) for j in (row, *nearest[:k]))
        answers.append(Answer(pairs.texts[caption], best, own, rank))
    return answers


def caption_ranks(pairs: PairEmbeddings, rows: list[int]) -> list[int]:
    """Rank of the best own caption of each of the images, from 1, with ties counted against."""
    found = zip(rows, metrics.cosine_matrix(pairs.image[rows], pairs.text), strict=True)
    return [_rank(similarity, (pairs.image_of_text == row).to(similarity.device)) for row, similarity in found]


def _rank(similarity: torch.Tensor, own: torch.Tensor) -> int:
    # not "larger or equal": a NaN counts against, too
    return 1 + int((~(similarity < similarity[own].max()) & ~own).sum())


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _spread(n: int) -> list[int]:
    count = min(_QUERIES, n)
    # the middles of equal parts: with several captions an image, not always the first of them
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]


def _short(text: str) -> str:
    return one_line(text, _LONGEST) or "(empty)"


def _share(similarity: float) -> float:
    """Of a bar; a NaN has none."""
    return min(similarity, 1.0) if similarity > 0 else 0.0


def cosine_text(similarity: float) -> str:
    """Two digits and a minus sign that can be seen."""
    return f"{round(similarity, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before a zero


def readable_image(source: PairSource, row: int, side: int) -> Image.Image:
    """The image, its longer side of so many pixels; a grey square with its name if it cannot be read any more."""
    try:
        image = source.image(row).convert("RGB")
        width, height = (max(1, round(side * length / max(image.size))) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    except (BadImage, OSError):
        square, text = Image.new("RGB", (side, side), _LOST), fill(f"cannot be read: {_short(source.name(row))}", 24)
        ImageDraw.Draw(square).multiline_text((side / 2, side / 2), text, anchor="mm", font_size=side // 14)
        return square


def example_sheet(
    images: Sequence[Image.Image], captions: Sequence[Sequence[RankedCaption]], path: Path, *, title: str = ""
) -> None:
    """Each image beside its best captions, best first; own ones are green and carry a tick. Saved as PNG.

    The bar under a caption is its cosine similarity, from 0 at the left to 1 at the right.
    """
    deepest, columns = max(map(len, captions)), min(2, len(images))
    rows = -(-len(images) // columns)
    title += " (✓ a caption of the image; bar: cosine similarity, 0 to 1)"
    with drawing(path, title, 6.4 * columns, 0.6 + 0.4 * deepest * rows) as sheet:
        ratios = [1, 2.4] * columns
        for k, axes in enumerate(sheet.subplots(rows, 2 * columns, width_ratios=ratios, squeeze=False).flat):
            axes.axis("off")
            if k // 2 >= len(images):
                continue
            if k % 2 == 0:
                axes.imshow(images[k // 2])
                continue
            axes.set(xlim=(0, 1), ylim=(deepest, 0))
            for y, caption in enumerate(captions[k // 2]):
                colour = _OWN if caption.own else _INK
                text = fill(f"{'✓ ' * caption.own}{_short(caption.text)}", 56, max_lines=2, placeholder=" …")
                axes.text(0, y + 0.68, text, color=colour, fontsize=8, va="bottom", parse_math=False)
                axes.text(
                    1, y + 0.68, cosine_text(caption.similarity), color=colour, fontsize=8, va="bottom", ha="right"
                )
                for width, of in ((1, _TRACK), (_share(caption.similarity), _OWN if caption.own else _OTHER)):
                    axes.barh(y + 0.78, width, 0.06, color=of)
