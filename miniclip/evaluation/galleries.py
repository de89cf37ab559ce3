"""To look at, on a page: images with their best captions or classes, and captions or classes with their best images."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from markupsafe import Markup
from PIL import Image, ImageDraw

from miniclip.common.durable import make_folder, whole_file
from miniclip.common.page import data_uri, render_page
from miniclip.common.pixels import to_rgb
from miniclip.common.printing import one_line
from miniclip.data.images import BadImage
from miniclip.evaluation.retrieval import PairEmbeddings, RankedCaption, best_captions
from miniclip.metrics import retrieval as metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from miniclip.data.captioned import ImageSource, LabelledSource, PairSource

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
    images, texts = f"{len(source):,}", f"{len(pairs.texts):,}"
    about = Markup(
        f"{images} images, {texts} captions; the queries are spread evenly over them. The figures are cosine "
        'similarities. <b class="own">✓</b> marks what belongs to the query. A rank counts from 1, with ties against '
        "the model."
    )
    ranks = [f"own caption: rank {rank:,} of {texts}" for rank in caption_ranks(pairs, rows)]
    _write(
        source,
        folder / "examples.html",
        title=title,
        about=about,
        headings=("Image to text: the best captions of an image", "Text to image: the best images of a caption"),
        examples=list(zip(rows, ranked, ranks, strict=True)),
        answers=[(answer, f"own image: rank {answer.rank:,} of {images}") for answer in answers],
        cosine=cosine_text,
    )


def write_predictions(
    source: LabelledSource, rows: Sequence[int], classes: Tensor, probabilities: Tensor, file: Path, *, title: str
) -> None:
    """Write a page: eight images from the surest to the least sure, and the eight commonest classes.

    rows: the images that were read. classes, probabilities: (n, k), the most probable first.
    """
    names, sure = source.classes, probabilities[:, 0]
    order = sure.argsort(descending=True, stable=True).tolist()
    counts = torch.bincount(classes[:, 0], minlength=len(names))
    examples, answers = [], []
    for place in (order[one] for one in _spread(len(order))):
        best = zip(classes[place].tolist(), probabilities[place].tolist(), strict=True)
        found = [RankedCaption(names[c], p, own=False) for c, p in best]
        examples.append((rows[place], found, _short(source.name(rows[place]))))
    for c in counts.argsort(descending=True, stable=True)[:_QUERIES].tolist():
        of = [place for place in order if classes[place, 0] == c][:_ANSWERS]
        found_images = [RankedImage(rows[place], float(sure[place]), own=False) for place in of]
        if found_images:
            answers.append((Answer(names[c], found_images, found_images[0], 1, False), f"{int(counts[c]):,} images"))
    _write(
        source,
        file,
        title=title,
        about="There are no labels: nothing here says how often the model is right. The figures are its own "
        "probabilities, over the given classes alone.",
        headings=("From the surest image to the least sure: its most probable classes", "The commonest classes"),
        examples=examples,
        answers=answers,
        cosine=lambda probability: f"{100 * probability:.1f} %",
    )


def _write(source: ImageSource, file: Path, title: str, **values: Any) -> None:
    shown = [row for row, *_ in values["examples"]]
    shown += [found.row for answer, _ in values["answers"] for found in (*answer.best, answer.own)]
    images = {}
    for row in dict.fromkeys(shown):
        images[row] = jpeg_uri(readable_image(source, row, _SIDE))
    make_folder(file.parent)
    page = render_page(
        Path(__file__).with_name("examples.html"),
        title=_short(title),
        images=images,
        names={row: _short(source.name(row)) for row in images},
        short=_short,
        percent=lambda similarity: round(100 * min(similarity, 1.0)) if similarity > 0 else 0,  # a NaN has no bar
        **values,
    )
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")


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


def jpeg_uri(image: Image.Image) -> Markup:
    """An RGB image as the source of an img element."""
    image.save(jpeg := io.BytesIO(), "JPEG", quality=80)
    return data_uri(jpeg.getvalue(), "jpeg")


def readable_image(source: ImageSource, row: int, side: int) -> Image.Image:
    """The image, its longer side of so many pixels; a grey square with its name if it cannot be read any more."""
    try:
        image = to_rgb(source.image(row))
        width, height = (max(1, round(side * length / max(image.size))) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    except (BadImage, OSError):
        square, text = Image.new("RGB", (side, side), _LOST), fill(f"cannot be read: {_short(source.name(row))}", 24)
        ImageDraw.Draw(square).multiline_text((side / 2, side / 2), text, anchor="mm", font_size=side // 14)
        return square
