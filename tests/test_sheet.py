"""Sheets of retrieval: what they show, what they read for it, and that text from data stays text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.browsing import Visits, started
from torch import Tensor
from torch.nn.functional import normalize

from miniclip.data.images import BadImage
from miniclip.evaluation import pictures, sheet
from miniclip.evaluation.pictures import Answer, RankedImage, cosine_text, query_sheet, readable_picture
from miniclip.evaluation.retrieval import PairEmbeddings
from miniclip.evaluation.sheet import best_images, caption_ranks, write_sheets
from miniclip.metrics import retrieval as metrics

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(2)">',
    "' onmouseover='alert(3)",
    "</style></title><svg onload=alert(4)>",
    "&lt;b&gt; &amp; <!-- ${x} {y}",
    "lone \ud83d surrogate, nul \x00, escape \x1b[31m",
    "javascript:alert(5) https://example.org/x.png",
    "日本語 🦊 שלום",
    "",
    "word " * 200,
    "x" * 900,
]
GREEN, GREY = (17, 122, 67), (139, 144, 153)


class Source:
    """Plain pictures with two captions each; notes what is read. lost: rows that cannot be read."""

    def __init__(self, n: int, texts: list[str] | None = None, lost: dict[int, Exception] | None = None) -> None:
        self.n, self.texts, self.lost, self.read = n, texts or ["a", "b"], lost or {}, list[int]()

    def __len__(self) -> int:
        return self.n

    def image(self, index: int) -> Image.Image:
        self.read.append(index)
        if index in self.lost:
            raise self.lost[index]
        return Image.new("RGB", (40 + index, 30), (200, 2 * index % 255, 10))

    def captions(self, index: int) -> list[str]:
        return [f"{self.texts[(2 * index + k) % len(self.texts)]} {index} {k}" for k in range(2)]

    def name(self, index: int) -> str:
        return f"<b>picture</b> \"{index}\" 'of' many"

    def column(self, name: str) -> list[Any]:
        raise ValueError(name)

    def fingerprint(self) -> str:
        return "plain"


def embedded(source: Source, favour: float = 0.5, size: int = 8) -> PairEmbeddings:
    draws = torch.Generator().manual_seed(0)
    owners = torch.arange(len(source)).repeat_interleave(2)
    image = torch.randn(len(source), size, generator=draws)
    text = favour * image[owners] + torch.randn(len(owners), size, generator=draws)
    texts = [text for k in range(len(source)) for text in source.captions(k)]
    return PairEmbeddings(normalize(image, dim=1), normalize(text, dim=1), texts, owners)


# Ranking


def test_best_images_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.0, 1.0]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    pairs = PairEmbeddings(image, text, ["up", "right"], torch.tensor([1, 1]))
    first, second = best_images(pairs, [0, 1], 2)
    # "up": images 1 and 3 tie for the first place, and the tie counts against the own one
    assert first.text == "up" and first.rank == 2 and not first.missed
    assert [(found.row, found.own) for found in first.best] == [(3, False), (1, True)]
    assert best_images(pairs, [0], 1)[0].missed
    # "right": 1, 0.6, and then the own one and its twin at 0
    assert second.rank == 4 and second.missed and second.own == RankedImage(1, 0.0, True)
    assert [(found.row, round(found.similarity, 6)) for found in second.best] == [(0, 1.0), (2, 0.6)]


def test_ranks_are_those_of_the_recalls() -> None:
    source = Source(60)
    pairs = embedded(source, 0.3)
    to_text, to_image = metrics.retrieval_ranks_from_embeddings(pairs.image, pairs.text, pairs.image_of_text)[:2]
    answers = best_images(pairs, range(120), 7)
    assert [answer.rank for answer in answers] == to_image.tolist()
    assert caption_ranks(pairs, range(60)) == to_text.tolist()
    assert any(answer.missed for answer in answers) and not all(answer.missed for answer in answers)
    cosines = pairs.text.double().numpy() @ pairs.image.double().numpy().T
    for caption, answer in enumerate(answers):
        rows = [found.row for found in answer.best]
        assert rows == np.argsort(-cosines[caption])[:7].tolist()
        assert [found.similarity for found in answer.best] == pytest.approx(cosines[caption, rows], abs=1e-6)
        assert [found.own for found in answer.best] == [row == caption // 2 for row in rows]


def test_collapsed_and_broken_models_rank_last() -> None:
    source = Source(5)
    for value in (0.5, float("nan")):
        pairs = embedded(source)._replace(image=torch.full((5, 4), value), text=torch.full((10, 4), value))
        assert [(a.rank, a.missed) for a in best_images(pairs, [0, 9], 3)] == [(5, True), (5, True)]
        assert caption_ranks(pairs, [0, 4]) == [9, 9]  # 8 foreign captions stand before


# The files


def test_files_and_what_is_read_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, rows = Source(100), list[int]()
    pairs = embedded(source)
    whole = metrics.cosine_matrix

    def narrow(image: Tensor, text: Tensor) -> Tensor:
        rows.append(len(image))
        return whole(image, text)

    monkeypatch.setattr(metrics, "cosine_matrix", narrow)
    paths = write_sheets(source, pairs, tmp_path / "new" / "folder", queries=4, k=3, title="t")
    assert [path.name for path in paths] == ["examples.png", "queries.png", "examples.html"]
    assert {path.parent for path in paths} == {tmp_path / "new" / "folder"} and all(path.exists() for path in paths)
    assert 0 < max(rows) <= 4
    answers = best_images(pairs, [25, 75, 125, 175], 3)
    shown = {found.row for answer in answers for found in (*answer.best, answer.own)} | {12, 37, 62, 87}
    assert sorted(source.read) == sorted(shown)  # each once, and no other


def test_fewer_than_asked_and_too_few(tmp_path: Path) -> None:
    source = Source(2)
    write_sheets(source, embedded(source), tmp_path, queries=9, k=9, title="t")
    page = parsed(tmp_path)
    assert (page.classes.count("example"), page.classes.count("query")) == (2, 4)
    with pytest.raises(ValueError, match="queries=0 and k=5"):
        write_sheets(source, embedded(source), tmp_path, queries=0, title="t")
    with pytest.raises(ValueError, match="k=0"):
        write_sheets(source, embedded(source), tmp_path, k=0, title="t")
    with pytest.raises(ValueError, match="no captioned pictures"):
        write_sheets(Source(0), embedded(source), tmp_path, title="t")


@pytest.mark.parametrize("error", [BadImage("cut short"), FileNotFoundError("gone")])
def test_lost_pictures_become_grey_squares(error: Exception, tmp_path: Path) -> None:
    source = Source(3, lost={1: error})
    square = np.asarray(readable_picture(source, 1, 224))
    assert square.shape == (224, 224, 3) and 0.7 < (square == GREY).all(2).mean() < 1  # the rest is its name
    write_sheets(source, embedded(source), tmp_path, title="t")
    for name in ("examples.png", "queries.png"):
        assert (np.asarray(Image.open(tmp_path / name).convert("RGB")) == GREY).all(2).sum() > 5000
    assert any('"1"' in str(image["alt"]) for image in parsed(tmp_path).images)
    source.lost[1] = ZeroDivisionError("a fault of the code")
    with pytest.raises(ZeroDivisionError):
        write_sheets(source, embedded(source), tmp_path, title="t")


# The sheet of queries


def answer(rank: int, best: int = 3, text: str = "a caption") -> Answer:
    own = RankedImage(0, 0.125, True)
    others = [RankedImage(k + 1, 0.5, False) for k in range(best)]
    return Answer(text, [*others[: rank - 1], own, *others[rank - 1 :]][:best], own, rank)


def green(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return int((np.asarray(image.convert("RGB")) == GREEN).all(2).sum())


def test_own_images_carry_a_frame_and_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {row: Image.new("RGB", (9, 9)) for row in range(9)}
    ticks: list[tuple[int, int]] = []
    monkeypatch.setattr(pictures, "_draw_tick", lambda draw, x, y: ticks.append((x, y)))
    query_sheet([answer(2), answer(3)], images, tmp_path / "hits.png")
    assert len(ticks) == 3  # two, and the legend's
    assert ticks[1][0] < ticks[2][0] - 700  # cards side by side
    frame = 4 * 6 * (150 + 6)  # six pixels wide, around 150
    hits = green(tmp_path / "hits.png")
    assert 2 * frame < hits < 2.5 * frame
    query_sheet([answer(2), answer(70_000)], images, tmp_path / "missed.png")
    assert len(ticks) == 6 and hits < green(tmp_path / "missed.png") < hits + 1000  # "rank 70,000"
    sizes = [Image.open(tmp_path / name).size for name in ("hits.png", "missed.png")]
    assert sizes[0][0] < sizes[1][0] and sizes[0][1] < sizes[1][1]
    with pytest.raises(ValueError, match="at least one"):
        query_sheet([], images, tmp_path / "none.png")


def test_query_sheet_takes_any_caption_and_number(tmp_path: Path) -> None:
    images = {row: Image.new("RGB", (300 if row % 2 else 3, 10), "red") for row in range(13)}
    for best in (1, 5, 12):
        answers = [answer(1 + k, best, text) for k, text in enumerate(NASTY)]
        query_sheet(answers, images, tmp_path / "sheet.png", title=NASTY[-1])
        assert max(Image.open(tmp_path / "sheet.png").size) < 5000
        query_sheet(answers[:1], images, tmp_path / "one.png", title="many words " * 30)


def test_cosines_as_text() -> None:
    assert [cosine_text(x) for x in (0.126, -0.126, -0.001, 0.0, 1.0)] == ["0.13", "−0.13", "0.00", "0.00", "1.00"]


# The page


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.classes, self.images = list[str](), list[str](), list[dict[str, str | None]]()
        self.attributes, self.meta = list[tuple[str, str]](), dict[str, str]()
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self.classes += (values.get("class") or "").split()
        if tag == "img":
            self.images.append(values)
        if tag == "meta":
            name = values.get("http-equiv") or values.get("name")
            self.meta[name or "charset"] = values.get("content") or values.get("charset") or ""
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def parsed(folder: Path) -> Parsed:
    page = Parsed((folder / "examples.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_text_of_the_data_is_inert(tmp_path: Path) -> None:
    source = Source(12, NASTY)
    write_sheets(source, embedded(source), tmp_path, queries=12, k=4, title=NASTY[0] + NASTY[1])
    page = parsed(tmp_path)
    known = {"html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3"}
    known |= {"p", "b", "div", "article", "ol", "li", "span", "i", "img", "figure", "figcaption", "br"}
    assert set(page.tags) == known
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:")
    assert "".join(page.texts["title"]) == NASTY[0] + NASTY[1]
    heard = ["".join(page.texts["h3"]), "".join(page.texts["span"])]
    assert all("<script>alert(1)</script>" in text for text in heard)
    assert "default-src 'none'" in page.meta["Content-Security-Policy"]
    assert "script-src" not in page.meta["Content-Security-Policy"]
    assert page.meta["charset"] == "utf-8" and "device-width" in page.meta["viewport"]
    style = "".join(page.texts["style"])
    assert "prefers-color-scheme: dark" in style and "url(" not in style and "@import" not in style


def test_page_shows_what_was_found(tmp_path: Path) -> None:
    source = Source(50)
    pairs = embedded(source)
    write_sheets(source, pairs, tmp_path, queries=5, k=3, title="t")
    page = parsed(tmp_path)
    captions = [10, 30, 50, 70, 90]
    answers = best_images(pairs, captions, 3)
    late = sum(answer.missed for answer in answers)
    assert 0 < late < 5
    assert page.texts["h3"] == [pairs.texts[k] for k in captions]
    assert len(page.images) == 5 + 5 * 3 + late
    assert page.classes.count("late") == late
    said = "".join(page.texts["p"])
    for k, row in enumerate((5, 15, 25, 35, 45)):
        assert f"own caption: rank {caption_ranks(pairs, [row])[0]} of 100" in said
        assert f"own image: rank {answers[k].rank} of 50" in said
    shown = [f for a in answers for f in (*a.best, *[a.own] * a.missed)]
    assert [text for text in page.texts["figcaption"] if not text.startswith("rank")] == [
        cosine_text(found.similarity) for found in shown
    ]
    for image, found in zip(page.images[5:], shown, strict=True):
        assert str(image["alt"]) == source.name(found.row) + (", own image" if found.own else "")
    for image in page.images:
        kind, data = str(image["src"]).split(",")
        assert kind == "data:image/jpeg;base64" and image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as small:
            assert small.format == "JPEG" and max(small.size) == 224
            assert len(data) < 20_000


def test_own_captions_are_marked(tmp_path: Path) -> None:
    source = Source(2)
    pairs = embedded(source)._replace(image=torch.eye(2), text=torch.eye(2).repeat_interleave(2, 0))
    write_sheets(source, pairs, tmp_path, queries=2, k=3, title="t")
    text = (tmp_path / "examples.html").read_text(encoding="utf-8")
    items = re.findall(r"<li( class=\"own\")?>.*?</li>", text)
    assert [bool(own) for own in items] == [True, True, False] * 2
    assert re.findall(r"width:(\d+)%", text) == ["100", "100", "0"] * 2


@pytest.fixture(scope="module")
def visit() -> Iterator[Visits]:
    with started() as browser:
        visits = Visits(browser)
        yield visits
        visits.close()
        assert visits.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_in_a_browser(scheme: str, visit: Visits, tmp_path: Path) -> None:
    source = Source(12, NASTY, lost={3: BadImage("gone")})
    write_sheets(source, embedded(source), tmp_path, queries=12, title=NASTY[-1])
    for width in (320, 1400):
        page = visit(tmp_path / "examples.html", viewport={"width": width, "height": 900}, color_scheme=scheme)
        assert page.evaluate("document.scripts.length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
        assert light == (scheme == "light")


def test_modules_agree_on_the_marks() -> None:
    assert f"--own: #{bytes(GREEN).hex()}" in sheet._STYLE
