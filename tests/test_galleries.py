"""Examples of retrieval: what they show, what they read for it, and that text from data stays text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.browsing import NASTY, Visits
from support.reading import Words
from support.sources import FakePairs
from torch import Tensor
from torch.nn.functional import normalize

from miniclip.data.images import BadImage
from miniclip.evaluation import galleries
from miniclip.evaluation.galleries import RankedImage, best_images, caption_ranks, cosine_text, readable_image
from miniclip.evaluation.retrieval import PairEmbeddings
from miniclip.metrics import retrieval as metrics

pytest_plugins = ["support.pages"]

GREEN, GREY = (17, 122, 67), (139, 144, 153)


class Source(FakePairs):
    """Two captions an image, of texts in turn; names want escaping. lost: rows that cannot be read."""

    def __init__(self, n: int, texts: Sequence[str] = "ab", lost: Mapping[int, Exception] | None = None) -> None:
        captions = [[f"{texts[(2 * k + j) % len(texts)]} {k} {j}" for j in range(2)] for k in range(n)]
        super().__init__(n, captions=captions, broken=lost or {})

    def name(self, index: int) -> str:
        return f"<b>image</b> \"{index}\" 'of' many"


def embedded(source: Source, favour: float = 0.5, size: int = 8) -> PairEmbeddings:
    draws = torch.Generator().manual_seed(0)
    owners = torch.arange(len(source)).repeat_interleave(2)
    image = torch.randn(len(source), size, generator=draws)
    text = favour * image[owners] + torch.randn(len(owners), size, generator=draws)
    texts = [text for k in range(len(source)) for text in source.captions(k)]
    return PairEmbeddings(normalize(image, dim=1), normalize(text, dim=1), texts, owners)


def written(source: Source, pairs: PairEmbeddings, folder: Path, title: str = "t") -> str:
    """The page."""
    galleries.write_sheets(source, pairs, folder, title=title)
    return (folder / "examples.html").read_text(encoding="utf-8")


def test_best_images_by_hand() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    pairs = PairEmbeddings(image, text, ["up", "right"], torch.tensor([1, 1]))
    first, second = best_images(pairs, [0, 1], 2)
    # "up": images 1 and 3 tie for the first place, and the tie counts against the own one
    assert first.text == "up" and first.rank == 2 and not first.missed
    assert [(found.row, found.own) for found in first.best] == [(3, False), (1, True)]
    assert best_images(pairs, [0], 1)[0].missed
    # "right": 1, 0.6, and then the own one and its twin at 0
    assert second.rank == 4 and second.missed and second.own == RankedImage(1, 0.0, True)
    assert [(found.row, round(found.similarity, 6)) for found in second.best] == [(0, 1.0), (2, 0.6)]
    for value in (0.5, float("nan")):  # collapsed and broken models rank last
        pairs = embedded(Source(5))._replace(image=torch.full((5, 4), value), text=torch.full((10, 4), value))
        assert [(a.rank, a.missed) for a in best_images(pairs, [0, 9], 3)] == [(5, True), (5, True)]
        assert caption_ranks(pairs, [0, 4]) == [9, 9]  # 8 foreign captions stand before


def test_ranks_are_those_of_the_recalls() -> None:
    pairs = embedded(Source(60), 0.3)
    to_text, to_image = metrics.retrieval_ranks_from_embeddings(pairs.image, pairs.text, pairs.image_of_text)[:2]
    answers = best_images(pairs, list(range(120)), 7)
    assert [answer.rank for answer in answers] == to_image.tolist()
    assert caption_ranks(pairs, list(range(60))) == to_text.tolist()
    assert {answer.missed for answer in answers} == {True, False}
    cosines = pairs.text.double().numpy() @ pairs.image.double().numpy().T
    for caption, answer in enumerate(answers):
        rows = np.argsort(-cosines[caption])[:7].tolist()
        assert [(found.row, found.own) for found in answer.best] == [(row, row == caption // 2) for row in rows]
        assert [found.similarity for found in answer.best] == pytest.approx(cosines[caption, rows], abs=1e-6)


def test_files_and_what_is_read_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = Source(100), list[int]()
    pairs = embedded(source)
    whole = metrics.cosine_matrix

    def narrow(image: Tensor, text: Tensor) -> Tensor:
        rows.append(len(image))
        return whole(image, text)

    monkeypatch.setattr(metrics, "cosine_matrix", narrow)
    page = tmp_path / "new" / "folder" / "examples.html"
    written(source, pairs, page.parent)
    assert {path.name for path in page.parent.iterdir()} == {"examples.html"} and 0 < max(rows) <= 8
    answers = best_images(pairs, [12, 37, 62, 87, 112, 137, 162, 187], 5)
    shown = {found.row for answer in answers for found in (*answer.best, answer.own)} | {6, 18, 31, 43, 56, 68, 81, 93}
    assert sorted(source.read) == sorted(shown)  # each once, and no other
    few = Words(written(Source(2), embedded(Source(2)), tmp_path))
    assert (few.classes.count("example"), few.classes.count("query")) == (2, 4)


@pytest.mark.parametrize("error", [BadImage("cut short"), FileNotFoundError("gone")])
def test_lost_images_become_grey_squares(error: Exception, tmp_path: Path) -> None:
    source = Source(3, lost={1: error})
    square = np.asarray(readable_image(source, 1, 224))
    assert square.shape == (224, 224, 3) and 0.7 < (square == GREY).all(2).mean() < 1  # the rest is its name
    page = Words(written(source, embedded(source), tmp_path))
    assert any('"1"' in str(image["alt"]) for image in page.images)
    source.broken = {1: ZeroDivisionError("a fault of the code")}
    with pytest.raises(ZeroDivisionError):
        written(source, embedded(source), tmp_path)


def test_cosines_as_text() -> None:
    assert [cosine_text(x) for x in (0.126, -0.126, -0.001, 0.0, 1.0)] == ["0.13", "−0.13", "0.00", "0.00", "1.00"]


# The page


def test_text_of_the_data_is_inert(tmp_path: Path, visit: Visits) -> None:
    source = Source(12, [*NASTY, ""], lost={3: BadImage("gone")})
    text = written(source, embedded(source), tmp_path, NASTY[0] + NASTY[1])
    page = Words(text)
    known = {"html", "head", "meta", "link", "title", "style", "body", "main", "h1", "h2", "h3", "p", "b", "div", "br"}
    known |= {"article", "ol", "li", "span", "svg", "rect", "img", "figure", "figcaption"}
    assert set(page.tags) | {"br"} == known
    assert not re.search(r"<[^>]*\s(on\w+|style)=[^<]*>", re.sub(r'"[^"]*"', '""', text))
    assert all(source.startswith("data:") for source in [*page.sources, *page.links])
    assert page.lines["h1"] == [NASTY[0] + NASTY[1]]
    for tag in ("h3", "li"):
        assert any("<script>window.hacked=1</script>" in line for line in page.lines[tag])
    assert "default-src 'none'" in text and "script-src" not in text and "unsafe" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and f"--own: #{bytes(GREEN).hex()}" in style
    for scheme in ("light", "dark"):
        for width in (320, 1400):
            seen = visit(
                tmp_path / "examples.html", order="", viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            assert seen.evaluate("document.documentElement.scrollWidth") <= width
            assert seen.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            light = seen.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
            assert light == (scheme == "light")


def test_page_shows_what_was_found(tmp_path: Path) -> None:
    source = Source(50)
    pairs = embedded(source)
    page = Words(written(source, pairs, tmp_path))
    captions = [6, 18, 31, 43, 56, 68, 81, 93]
    answers = best_images(pairs, captions, 5)
    late = sum(answer.missed for answer in answers)
    assert 0 < late < 8 and page.classes.count("late") == late
    assert page.lines["h3"] == [pairs.texts[k] for k in captions]
    for row, answer in zip((3, 9, 15, 21, 28, 34, 40, 46), answers, strict=True):
        assert f"own caption: rank {caption_ranks(pairs, [row])[0]} of 100" in page.text
        assert f"own image: rank {answer.rank} of 50" in page.text
    shown = [found for answer in answers for found in (*answer.best, *[answer.own] * answer.missed)]
    found = [(re.findall(r"−?\d\.\d\d", line)[0], "✓" in line) for line in page.lines["figcaption"]]
    assert found == [(cosine_text(one.similarity), one.own) for one in shown]
    names = [source.name(found.row) + (", own image" if found.own else "") for found in shown]
    assert [image["alt"] for image in page.images[8:]] == names
    for source in page.sources:
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as small:
            assert small.format == "JPEG" and max(small.size) == 224 and len(source) < 20_000
    pairs = embedded(few := Source(2))._replace(image=torch.eye(2), text=torch.eye(2).repeat_interleave(2, 0))
    text = written(few, pairs, tmp_path)
    assert [bool(own) for own in re.findall(r"<li( class=\"own\")?>", text)] == [True, True, False, False] * 2
    assert re.findall(r'<rect width="(\d+)%"', text) == ["100", "100", "0", "0"] * 2
