"""Chromium for the tests of the page, what to show in it, and how they read what it shows."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from miniclip.inspection.contents import Figure, Inspection, Verdict
from support import inspecting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

N, SCALE, BIAS = 24, 14.0, -7.0
VIEWS = ("cosine", "logit", "row_probability", "column_probability", "pair_loss", "gradient")
ORDERS = ("index", "loss", "cluster", "length")
COLOURS = [(40 + 97 * k % 200, 30 + 61 * k % 190, 50 + 37 * k % 180) for k in range(520)]
NASTY = [
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "'><svg onload='window.hacked=3'>",
    "</script><script>window.hacked=4</script>",
    "<!--<script>",
    "]]> &lt;b&gt; &amp; ${data} $$ \\u003c {{7*7}}",
    "line\u2028and\u2029paragraph",
    "lone \ud83d surrogate and \udc00 the other",
    "emoji \U0001f98a, \u200fright to left\u200f, nul-like \u0001",
    "javascript:window.hacked=5",
    "many words " * 60,
    "x" * 300,
]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip


@contextmanager
def started() -> Iterator[Browser]:
    """A browser; without one the test is skipped, or fails if MINICLIP_REQUIRE_BROWSER is 1."""
    lacking = pytest.fail if os.environ.get("MINICLIP_REQUIRE_BROWSER") == "1" else pytest.skip
    if importlib.util.find_spec("playwright") is None:
        lacking("playwright is not installed: pip install playwright")
    path = os.environ.get("CHROME") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        lacking("there is no Chromium: install chromium or Chrome, or name its binary in CHROME")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class Visits:
    """Opens pages from their files, with the network off, and gathers what they complain of or ask for."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.complaints, self.contexts = browser, [], []

    def __call__(self, path: Path, **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = self.browser.new_context(offline=True, **options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url, path.as_uri()))
        page.goto(path.as_uri())
        return page

    def _request(self, url: str, own: str) -> None:
        if url.split("#")[0] != own and not url.startswith(("data:", "blob:")):
            self.complaints.append(f"request: {url}")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def close(self) -> None:
        for context in self.contexts:
            context.close()
        self.contexts = []


def plain(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), colour) for colour in COLOURS[:n]]


def nasty() -> Inspection:
    verdict = Verdict("odd", NASTY[0], NASTY, NASTY)
    figure = Figure("odd", NASTY[1], 1.5, "<u>", NASTY[3])
    history = replace(inspecting.history(), captions=NASTY[:6])
    built = inspecting.inspection(len(NASTY), captions=NASTY, history=history)
    about = {text: text for text in NASTY}
    return replace(built, title=" ".join(NASTY), names=NASTY[::-1], about=about, verdicts=[verdict], figures=[figure])


def expected(found: Inspection, view: str, loss: str, scale: float = SCALE) -> np.ndarray:
    logits = scale * found.cosine + (found.bias or 0.0)
    matrices = {
        "cosine": found.cosine,
        "logit": logits,
        "row_probability": logits.softmax(1),
        "column_probability": logits.softmax(0),
        "pair_loss": found.losses[loss].pair_loss,
        "gradient": found.losses[loss].gradient,
    }
    array: np.ndarray = matrices[view].double().numpy()
    return array


def half_a_step(array: np.ndarray, bits: int = 10) -> np.ndarray:
    """How far rounding to float16 (or to fewer bits of mantissa) of array / largest may move an entry."""
    return np.abs(array) * 2.0 ** -(bits + 1) * 1.0001 + np.abs(array).max() * 2.0 ** -(bits + 30)


def until(page: Page, expression: str, seconds: float = 10.0) -> None:
    """Wait until the expression is true. Playwright's own waiting needs eval, which the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not so after {seconds} s: {expression}"
        page.wait_for_timeout(20)


def point(page: Page, row: float, column: float, n: int, canvas: str = "#matrix") -> tuple[float, float]:
    """The middle of a displayed cell of the whole matrix, scrolled into view; points of the window."""
    page.locator(canvas).scroll_into_view_if_needed()
    box = page.locator(canvas).bounding_box()
    assert box is not None
    return box["x"] + (column + 0.5) / n * box["width"], box["y"] + (row + 0.5) / n * box["height"]


def hover(page: Page, row: float, column: float, n: int, canvas: str = "#matrix") -> dict[str, Any]:
    page.mouse.move(*point(page, row, column, n, canvas))
    return shown(page)


def shown(page: Page) -> dict[str, Any]:
    """What the details say of the chosen cell; texts as lists of UTF-16 units, so that all of Unicode passes."""
    found: dict[str, Any] = page.evaluate("""() => {
        const box = document.getElementById("details");
        const all = (selector) => [...box.querySelectorAll(selector)];
        const units = (text) => [...Array(text.length).keys()].map((k) => text.charCodeAt(k));
        return {
            i: Number(box.dataset.i), j: Number(box.dataset.j), pinned: box.dataset.pinned === "true",
            captions: all(".caption").map((e) => units(e.textContent)),
            names: all(".name").map((e) => units(e.textContent)),
            rows: Object.fromEntries(all("tr").map((e) => [...e.cells].map((c) => c.textContent))
                .map(([label, ...value]) => [label, value])),
            badge: box.querySelector(".badge").textContent, sentence: box.querySelector(".sentence").textContent,
        };
    }""")
    found |= {key: [text_of(units) for units in found[key]] for key in ("captions", "names")}
    return found


def text_of(units: list[int]) -> str:
    """UTF-16 units as a string; a lone surrogate stays one."""
    return b"".join(unit.to_bytes(2, "little") for unit in units).decode("utf-16-le", "surrogatepass")


def values(page: Page, view: str, n: int, every: int = 1) -> np.ndarray:
    """(n, n), what the page holds: row i, column j of the data, whatever the order. every: rows 0, every, ..."""
    script = """([view, n, rows]) => rows.flatMap((i) => Array.from({ length: n },
        (_, j) => Number(window.miniclipPage.value(view, i, j))))"""
    return np.array(page.evaluate(script, [view, n, list(range(0, n, every))])).reshape(-1, n)


def colours(page: Page, n: int, canvas: str = "#matrix") -> np.ndarray:
    """(n, n, 3), the colour of the middle of each displayed cell of the whole matrix."""
    script = """([selector, n]) => {
        const canvas = document.querySelector(selector), copy = document.createElement("canvas");
        [copy.width, copy.height] = [canvas.width, canvas.height];
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(canvas, 0, 0);
        const { data } = context.getImageData(0, 0, copy.width, copy.height), found = [];
        for (let r = 0; r < n; r++) for (let c = 0; c < n; c++) {
            const x = Math.floor((c + 0.5) / n * copy.width), y = Math.floor((r + 0.5) / n * copy.height);
            found.push(...data.slice((y * copy.width + x) * 4, (y * copy.width + x) * 4 + 3));
        }
        return found;
    }"""
    return np.array(page.evaluate(script, [canvas, n]), dtype=np.int64).reshape(n, n, 3)


def brightness(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.2126, 0.7152, 0.0722])


def slide(page: Page, slider: str, value: float) -> None:
    """Move a range input as a person does, as far as the page can tell."""
    page.locator(slider).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def seen(screenshot: bytes) -> list[float]:
    """The mean colour of the middle of a picture."""
    picture = np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB"), dtype=float)
    h, w, _ = picture.shape
    middle: list[float] = picture[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3].mean((0, 1)).tolist()
    return middle


def number(text: str) -> float:
    return float(text.replace("about ", ""))
