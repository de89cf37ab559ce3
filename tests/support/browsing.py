"""The page in a real Chromium, for the tests: how they open it and read what it shows."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from miniclip.inspection.contents import Figure, Inspection, Summary, Verdict
from support import inspecting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

N = 24
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


class Screen:
    """A page of n pairs; what it lacks is the browser's own page's."""

    def __init__(self, page: Page, n: int) -> None:
        self.page, self.n = page, n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def choose(self, **values: str) -> None:
        for name, value in values.items():
            self.page.select_option(f"#{name}", value)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def data(self, name: str, selector: str = "#matrix") -> str | None:
        return self.page.locator(selector).get_attribute(f"data-{name}")

    def until(self, expression: str, seconds: float = 10.0) -> None:
        """Wait until the expression is true. Playwright's own waiting needs eval, which the page forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"still not so after {seconds} s: {expression}"
            self.page.wait_for_timeout(20)

    def box(self, selector: str) -> dict[str, float]:
        """Of an element, in points of the window, once it is scrolled into view."""
        self.page.locator(selector).scroll_into_view_if_needed()
        box = self.page.locator(selector).bounding_box()
        assert box is not None
        return dict(box)  # type: ignore[arg-type]

    def point(self, row: float, column: float, canvas: str = "#matrix", n: int | None = None) -> tuple[float, float]:
        """The middle of a displayed cell of the whole matrix."""
        box, n = self.box(canvas), n or self.n
        return box["x"] + (column + 0.5) / n * box["width"], box["y"] + (row + 0.5) / n * box["height"]

    def over(self, row: float, column: float, canvas: str = "#matrix") -> dict[str, Any]:
        self.page.mouse.move(*self.point(row, column, canvas))
        return self.shown()

    def shown(self) -> dict[str, Any]:
        """What the details say of the chosen cell; texts come as UTF-16 units, so that all of Unicode passes."""
        found: dict[str, Any] = self.page.evaluate("""() => {
            const box = document.getElementById("details");
            const all = (selector) => [...box.querySelectorAll(selector)];
            const units = (text) => [...Array(text.length).keys()].map((k) => text.charCodeAt(k));
            return {
                at: [Number(box.dataset.i), Number(box.dataset.j)], pinned: box.dataset.pinned === "true",
                captions: all(".caption").map((e) => units(e.textContent)),
                names: all(".name").map((e) => units(e.textContent)),
                rows: Object.fromEntries(all("tr").map((e) => [...e.cells].map((c) => c.textContent))
                    .map(([label, ...value]) => [label, value])),
                badge: box.querySelector(".badge").textContent, sentence: box.querySelector(".sentence").textContent,
            };
        }""")
        for key in ("captions", "names"):
            raw = (b"".join(unit.to_bytes(2, "little") for unit in units) for units in found[key])
            found[key] = [text.decode("utf-16-le", "surrogatepass") for text in raw]
        return found

    def values(self, view: str, every: int = 1) -> np.ndarray:
        """(n, n), what the page holds: row i, column j of the data, whatever the order. every: rows 0, every, ..."""
        script = """([view, n, rows]) => rows.flatMap((i) => Array.from({ length: n },
            (_, j) => Number(window.miniclipPage.value(view, i, j))))"""
        found = self.page.evaluate(script, [view, self.n, list(range(0, self.n, every))])
        return np.array(found).reshape(-1, self.n)

    def colours(self, canvas: str = "#matrix", n: int | None = None) -> np.ndarray:
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
        n = n or self.n
        return np.array(self.page.evaluate(script, [canvas, n]), dtype=np.int64).reshape(n, n, 3)

    def slide(self, slider: str, value: float) -> None:
        """Move a range input as a person does, as far as the page can tell."""
        self.page.locator(slider).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


class Visits:
    """Opens pages and gathers what they complain of or ask for: from their files, with the network off, or from a
    server, and then what is not that server's."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.complaints, self.contexts = browser, [], []

    def __call__(self, path: Path, n: int = N, order: str = "index", **options: Any) -> Screen:
        """order: what the page is set to; empty to leave it as it opens."""
        screen = self.of(path.as_uri(), n, offline=True, **options)
        if order:
            screen.select_option("#order", order)
        return screen

    def of(self, address: str, n: int = N, **options: Any) -> Screen:
        context = self.browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url, address))
        page.goto(address)
        return Screen(page, n)

    def _request(self, url: str, own: str) -> None:
        inside = own.endswith("/") and url.startswith(own)
        if url.split("#")[0] != own and not inside and not url.startswith(("data:", "blob:")):
            self.complaints.append(f"request: {url}")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")

    def close(self) -> None:
        for context in self.contexts:
            context.close()


def plain(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), colour) for colour in COLOURS[:n]]


def nasty() -> Inspection:
    verdict, figure = Verdict("odd", NASTY[0], NASTY, NASTY), Figure("odd", NASTY[1], 1.5, "<u>", NASTY[3])
    history = replace(inspecting.history(), captions=NASTY[:6])
    built = inspecting.inspection(len(NASTY), captions=NASTY, history=history)
    about = {text: text for text in NASTY}
    built = replace(built, summary=Summary("bad", *NASTY[:3]), suspicion=NASTY[3])
    return replace(built, title=" ".join(NASTY), names=NASTY[::-1], about=about, verdicts=[verdict], figures=[figure])


def brightness(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.2126, 0.7152, 0.0722])


def seen(place: Locator | bytes) -> tuple[float, ...]:
    """The mean colour of the middle of an element, or of a screenshot."""
    shot = place if isinstance(place, bytes) else place.screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=float)
    h, w, _ = pixels.shape
    return tuple(pixels[h // 3 : 2 * h // 3, w // 3 : 2 * w // 3].mean((0, 1)).tolist())


def number(text: str) -> float:
    """A percentage as the share that it is."""
    value = text.replace("about ", "").removesuffix("\xa0%")
    return float(value) / (100 if text.endswith("%") else 1)
