"""Retrieval to look at, on a page: images with their best captions, and captions with their best images."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image, ImageDraw

from miniclip.common.page import data_uri, render_page
from miniclip.common.pixels import to_rgb
from miniclip.common.printing import one_line
from miniclip.data.images import BadImage
from miniclip.evaluation.retrieval import PairEmbeddings, best_captions
from miniclip.metrics import retrieval as metrics

if TYPE_CHECKING:
    from miniclip.data.captioned import PairSource

_QUERIES, _ANSWERS = 8, 5
_LONGEST = 300  # characters of a caption on the page
_SIDE = 224  # pixels of the longer side of an image; the page shows it at about half of that, for sharp screens
_LOST = "#8b9099"  # an image that is gone; stands on light and on dark


class RankedImage(NamedTuple):
    """A candidate image of a caption. row: of the images. similarity: cosine. own: the caption is of it."""

    row: int
    similarity: float
    own: bool


class Answer(NamedTuple):
    """What a caption finds. best: the nearest images, best first. own: its image. rank: of that, from 1.
    missed: whether it is not among the best."""

    text: str
    best: list[RankedImage]
    own: RankedImage
    rank: int
    missed: bool


def write_sheets(source: PairSource, pairs: PairEmbeddings, folder: Path, *, title: str) -> None:
    """Write examples.html into folder: eight images and eight captions, with five answers each.

    pairs embeds source, of which it takes them evenly; all if there are fewer.
    """
    rows, captions = _spread(len(source)), _spread(len(pairs.texts))
    ranked, answers = best_captions(pairs, rows, _ANSWERS), best_images(pairs, captions, _ANSWERS)
    shown = dict.fromkeys([*rows, *(found.row for answer in answers for found in (*answer.best, answer.own))])
    images = {}
    for row in shown:
        readable_image(source, row, _SIDE).save(file := io.BytesIO(), "JPEG", quality=80)
        images[row] = data_uri(file.getvalue(), "jpeg")
    folder.mkdir(parents=True, exist_ok=True)
    page = render_page(
        Path(__file__).with_name("examples.html"),
        title=_short(title),
        examples=list(zip(rows, ranked, caption_ranks(pairs, rows), strict=True)),
        answers=answers,
        images=images,
        names={row: _short(source.name(row)) for row in images},
        n_images=len(source),
        n_texts=len(pairs.texts),
        short=_short,
        cosine=cosine_text,
        percent=lambda similarity: round(100 * min(similarity, 1.0)) if similarity > 0 else 0,  # a NaN has no bar
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
        answers.append(Answer(pairs.texts[caption], best, own, rank, missed=rank > len(best)))
    return answers


def caption_ranks(pairs: PairEmbeddings, rows: list[int]) -> list[int]:
    """Rank of the best own caption of each of the images, from 1, with ties counted against."""
    found = zip(rows, metrics.cosine_matrix(pairs.image[rows], pairs.text), strict=True)
    return [_rank(similarity, (pairs.image_of_text == row).to(similarity.device)) for row, similarity in found]


def _rank(similarity: torch.Tensor, own: torch.Tensor) -> int:
    # not "larger or equal": a NaN counts against, too
    return 1 + int((~(similarity < similarity[own].max()) & ~own).sum())


def _spread(n: int) -> list[int]:
    count = min(_QUERIES, n)
    # the middles of equal parts: with several captions an image, not always the first of them
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]


def _short(text: str) -> str:
    return one_line(text, _LONGEST) or "(empty)"


def cosine_text(similarity: float) -> str:
    """Two digits and a minus sign that can be seen."""
    return f"{round(similarity, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")  # + 0.0: no minus before a zero


def readable_image(source: PairSource, row: int, side: int) -> Image.Image:
    """The image, its longer side of so many pixels; a grey square with its name if it cannot be read any more."""
    try:
        image = to_rgb(source.image(row))
        width, height = (max(1, round(side * length / max(image.size))) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    except (BadImage, OSError):
        square, text = Image.new("RGB", (side, side), _LOST), fill(f"cannot be read: {_short(source.name(row))}", 24)
        ImageDraw.Draw(square).multiline_text((side / 2, side / 2), text, anchor="mm", font_size=side // 14)
        return square
