"""What a search found, as a table, as JSON and as a page of thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from miniclip.common.durable import whole_file
from miniclip.common.page import render_page
from miniclip.common.printing import one_line
from miniclip.data.images import BadImage
from miniclip.evaluation.galleries import cosine_text, jpeg_uri, readable_image
from miniclip.search.query import Hits
from miniclip.search.store import Index

TITLE = "Search: "  # how every page's title begins
COLUMNS = ("image", "cosine", "pixels", "caption")
SIDE = 320  # pixels of the longer side of a thumbnail; the page shows it at about half of that, for sharp screens
_LONGEST = 200  # characters of a name or a caption


@dataclass(frozen=True)
class Hit:
    """An image of an index. cosine: with what is looked for. width, height: pixels."""

    row: int
    path: str
    cosine: float
    width: int
    height: int
    caption: str | None


def hits_of(index: Index, rows: np.ndarray, cosines: np.ndarray) -> list[Hit]:
    sizes = index.table.select(["width", "height"]).take(rows).to_pylist()
    return [
        Hit(int(row), index.paths[row], round(float(cosine), 6), size["width"], size["height"], index.captions[row])
        for row, cosine, size in zip(rows, cosines, sizes, strict=True)
    ]


@dataclass(frozen=True)
class Found:
    """title: what was looked for. about: what the figures are. groups: a heading, which may be empty, and images."""

    title: str
    about: str
    groups: Sequence[tuple[str, Sequence[Hit]]]


def found_hits(index: Index, hits: Hits, title: str) -> Found:
    """What `Searcher.nearest` found."""
    about = f"The nearest {len(hits.rows):,} of {len(index):,} images. The figures are cosine similarities."
    return Found(title, about, [("", hits_of(index, hits.rows, hits.cosines))])


def found_groups(index: Index, groups: Sequence[np.ndarray]) -> Found:
    """What `near_groups` found."""
    vectors = index.embeddings
    alike = [hits_of(index, rows, vectors[rows] @ vectors[rows[0]]) for rows in groups]
    about = f"{sum(map(len, alike)):,} of {len(index):,} images. The figures are cosines with the first of a group."
    headed = [(f"{len(hits):,} images", hits) for hits in alike]
    return Found(f"groups of near-duplicates: {len(groups):,}", about, headed)


def table_rows(hits: Iterable[Hit]) -> list[tuple[str, str, str, str]]:
    """For COLUMNS."""
    return [
        (hit.path, cosine_text(hit.cosine), f"{hit.width} x {hit.height}", one_line(hit.caption or "", 100))
        for hit in hits
    ]


def write_page(index: Index, found: Found, file: str | Path, asked: Image.Image | None = None) -> list[str]:
    """Write a page that works offline. asked: the image that was looked for.

    An image that cannot be read any more is a grey square that says so; returns what is wrong with each.
    """
    if asked is not None:
        asked = asked.copy()
        asked.thumbnail((SIDE, SIDE))
    source = _Source(index)
    rows = [hit.row for _, hits in found.groups for hit in hits]
    page = render_page(
        Path(__file__).with_name("results.html"),
        title=TITLE + _short(found.title),
        found=found,
        images={row: jpeg_uri(readable_image(source, row, SIDE)) for row in rows},
        asked=None if asked is None else jpeg_uri(asked),
        short=_short,
        cosine=cosine_text,
    )
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")
    return source.lost


@dataclass(frozen=True)
class _Source:
    """The images of an index, as `readable_image` takes them. lost: what is wrong with those that could not be read."""

    index: Index
    lost: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.index)

    def image(self, row: int) -> Image.Image:
        try:
            return self.index.image(row, at_least=SIDE)
        except (BadImage, OSError) as error:
            self.lost.append(str(error))
            raise

    def name(self, row: int) -> str:
        return self.index.paths[row]


def _short(text: str) -> str:
    return one_line(text, _LONGEST) or "(empty)"
