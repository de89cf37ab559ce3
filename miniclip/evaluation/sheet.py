"""Retrieval as pictures: images with their best captions, and captions with their best images, as PNG and as HTML.

Axes: N images, M texts, E embedding, Q queries. Only the Q rows that are shown are ever multiplied out.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from miniclip.common.printing import one_line
from miniclip.evaluation.pictures import Answer, RankedImage, cosine_text, example_sheet, query_sheet, readable_picture
from miniclip.evaluation.retrieval import PairEmbeddings, RankedCaption, best_captions
from miniclip.metrics import retrieval as metrics

if TYPE_CHECKING:
    from miniclip.data.captioned import PairSource

_SIDE = 224  # pixels of a picture that is kept; those of the page are shown at half of it, for sharp screens
_LONGEST = 300  # characters of a caption on the page


def write_sheets(
    source: PairSource, pairs: PairEmbeddings, folder: Path, *, queries: int = 8, k: int = 5, title: str
) -> list[Path]:
    """Write examples.png, queries.png and examples.html into folder, and return their paths.

    pairs embeds source. queries: how many images, and how many captions, spread evenly; all if there are fewer. k: how
    many answers each one shows. Raises ValueError if either is below 1, or if there are no pictures or no captions.
    """
    if queries < 1 or k < 1:
        raise ValueError(f"a sheet needs at least one query and one answer, got queries={queries} and k={k}")
    if not len(source) or not pairs.texts:
        raise ValueError("there are no captioned pictures to show; check the data set")
    rows, captions = _spread(len(source), queries), _spread(len(pairs.texts), queries)
    ranked, ranks = best_captions(pairs, rows, k), caption_ranks(pairs, rows)
    answers = best_images(pairs, captions, k)
    wanted = [*rows, *(found.row for answer in answers for found in (*answer.best, answer.own))]
    images = {row: readable_picture(source, row, _SIDE) for row in dict.fromkeys(wanted)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("examples.png", "queries.png", "examples.html")]
    example_sheet([images[row] for row in rows], ranked, paths[0], title=title)
    query_sheet(answers, images, paths[1], title=title)
    names = {row: source.name(row) for row in images}
    examples = list(zip(rows, ranked, ranks, strict=True))
    page = _page(title, examples, answers, images, names, (len(source), len(pairs.texts)))
    paths[2].write_text(page, encoding="utf-8")
    return paths


def best_images(pairs: PairEmbeddings, captions: Sequence[int], k: int) -> list[Answer]:
    """For each of the captions (rows of text) the k nearest of all images, and where its own one stands.

    Ties count against the own image, as in miniclip.metrics, so the list and the rank agree with the recalls.
    """
    cosines = metrics.cosine_matrix(pairs.text[list(captions)], pairs.image)
    answers = []
    for caption, similarity in zip(captions, cosines, strict=True):
        row = int(pairs.image_of_text[caption])
        own = RankedImage(row, float(similarity[row]), True)
        others = torch.arange(len(similarity)) != row
        rank = 1 + int((~(similarity < similarity[row]) & others.to(similarity.device)).sum())
        nearest = similarity.argsort(descending=True, stable=True).tolist()
        nearest.remove(row)
        nearest.insert(rank - 1, row)
        best = [own if j == row else RankedImage(j, float(similarity[j]), False) for j in nearest[:k]]
        answers.append(Answer(pairs.texts[caption], best, own, rank))
    return answers


def caption_ranks(pairs: PairEmbeddings, rows: Sequence[int]) -> list[int]:
    """Rank of the best own caption of each of the images, from 1, with ties counted against."""
    ranks = []
    for row, similarity in zip(rows, metrics.cosine_matrix(pairs.image[list(rows)], pairs.text), strict=True):
        own = pairs.image_of_text == row
        ranks.append(1 + int((~(similarity < similarity[own].max()) & ~own).sum()))
    return ranks


def _spread(n: int, count: int) -> list[int]:
    count = min(count, n)
    # the middles of equal parts: with several captions an image, not always the first of them
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]


def _page(
    title: str,
    examples: Sequence[tuple[int, list[RankedCaption], int]],
    answers: Sequence[Answer],
    images: Mapping[int, Image.Image],
    names: Mapping[int, str],
    counts: tuple[int, int],
) -> str:
    sources = {row: _data_uri(image) for row, image in images.items()}

    def picture(row: int, note: str) -> str:
        return f'<img src="{sources[row]}" alt="{_text(f"{names[row]}{note}")}" title="{_text(names[row])}">'

    by_image = "\n".join(
        f'<article class="example"><div>{picture(row, "")}<p class="rank">{_rank("own caption", rank, counts[1])}</p>'
        f"</div><ol>{''.join(map(_caption, best))}</ol></article>"
        for row, best, rank in examples
    )
    by_caption = "\n".join(_answer(answer, picture, counts[0]) for answer in answers)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1>
<p>{counts[0]:,} images, {counts[1]:,} captions; the queries are spread evenly over them. The figures are cosine
similarities. <b class="own">✓</b> marks what belongs to the query. A rank counts from 1, with ties against the model.
</p></header>
<main>
<section><h2>Image to text: the best captions of an image</h2><div class="cards">
{by_image}
</div></section>
<section><h2>Text to image: the best images of a caption</h2><div class="cards">
{by_caption}
</div></section>
</main>
</body>
</html>
"""


def _caption(caption: RankedCaption) -> str:
    width = 100 * min(max(caption.similarity, 0.0), 1.0) if caption.similarity > 0 else 0.0
    mark = '<b class="mark" title="own caption">✓</b>' if caption.own else ""
    return (
        f'<li{_OWN if caption.own else ""}><span class="text" dir="auto">{mark}{_text(caption.text)}</span>'
        f'<span class="cosine">{cosine_text(caption.similarity)}</span>'
        f'<span class="bar"><i style="width:{width:.0f}%"></i></span></li>'
    )


def _answer(answer: Answer, picture: Callable[[int, str], str], total: int) -> str:
    shown = [(found, False) for found in answer.best]
    if answer.missed:
        shown.append((answer.own, True))
    figures = []
    for found, late in shown:
        mark, note = ('<b class="mark">✓</b>', ", own image") if found.own else ("", "")
        label = f"{mark}{cosine_text(found.similarity)}" + (f"<br>rank {answer.rank:,}" if late else "")
        kind = ' class="own late"' if late else _OWN if found.own else ""
        figures.append(f"<figure{kind}>{picture(found.row, note)}<figcaption>{label}</figcaption></figure>")
    return (
        f'<article class="query"><h3 dir="auto">{_text(answer.text)}</h3>'
        f'<p class="rank">{_rank("own image", answer.rank, total)}</p>'
        f'<div class="row">{"".join(figures)}</div></article>'
    )


def _rank(what: str, rank: int, total: int) -> str:
    return f"{what}: rank {rank:,} of {total:,}"


def _text(text: str) -> str:
    """Text of the data as text, wherever it stands: in an element or in a quoted attribute."""
    return html.escape(one_line(text, _LONGEST) or "(empty)")


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


_OWN = ' class="own"'
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light; --bg: #f3f5f8; --card: #fff; --ink: #1c2430; --faint: #5b6570; --line: #dfe4ea;
  --soft: #e8ecf1; --bar: #8a95a3; --own: #117a43; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --bg: #121417; --card: #1a1d21; --ink: #e8eaed; --faint: #a2abb5; --line: #30353c;
    --soft: #23272d; --bar: #737d89; --own: #63cf97; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.4 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
header, main { max-width: 1500px; margin: 0 auto; padding: 0 20px; }
h1 { font-size: 22px; margin: 24px 0 8px; }
h2 { font-size: 18px; margin: 28px 0 12px; }
h3 { font-size: 15px; margin: 0; }
p { margin: 0; }
header p, .rank { color: var(--faint); }
.rank { font-size: 13px; }
.own, .own .cosine, .mark { color: var(--own); }
.mark { margin-inline-end: 5px; }
.cards { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); }
article { min-width: 0; padding: 16px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.example { display: grid; gap: 16px; grid-template-columns: minmax(90px, 180px) 1fr; }
.example .rank { margin-top: 6px; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--soft); border-radius: 4px; }
ol { margin: 0; padding: 0; list-style: none; min-width: 0; }
li { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; margin-bottom: 10px; }
li:last-child { margin-bottom: 0; }
.text { min-width: 0; }
.own > .text { font-weight: 600; }
.cosine { font-weight: 600; color: var(--faint); }
.bar { grid-column: 1 / -1; height: 4px; border-radius: 2px; background: var(--soft); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); }
.own .bar i { background: var(--own); }
.row { display: grid; gap: 12px; margin-top: 10px; grid-template-columns: repeat(auto-fill, minmax(80px, 1fr)); }
figure { margin: 0; text-align: center; font-size: 13px; }
figcaption { margin-top: 6px; }
figure.own img { outline: 4px solid var(--own); }
figure.own { font-weight: 600; }
figure.late { padding-left: 12px; border-left: 2px solid var(--line); }
@media (max-width: 480px) { .example { grid-template-columns: 1fr; } .example img { max-width: 180px; } }
"""
