"""What the tests of the page share: a browser, an inspection, and the page of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from miniclip.config import LossConfig
from miniclip.inspection.contents import Cell, Inspection, Summary, Verdict
from miniclip.inspection.page.write import write_report
from support import inspecting
from support.browsing import N, Screen, Visits, plain

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Without a browser the test is skipped, or fails if MINICLIP_REQUIRE_BROWSER is 1."""
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


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser)
    yield visits
    visits.close()
    assert visits.complaints == []


@pytest.fixture(scope="module")
def found() -> Inspection:
    """Pairs 3 and 20 have equal captions, and text 20 stands out in row 3; one plain colour an image."""
    captions = [f"{'long ' * (7 * k % 5)}caption {k}" for k in range(N)]
    captions[20] = captions[3]
    positives = torch.eye(N, dtype=torch.bool)
    positives[3, 20] = positives[20, 3] = True
    given: dict[str, Any] = {"loss": LossConfig(name="sigmoid"), "bias": -7.0, "positives": positives, "seed": 46}
    built = inspecting.inspection(N, captions=captions, history=inspecting.history(), **given)
    cosine = built.cosine.tolist()
    kinds: list[tuple[int, int, Any, bool]] = [(3, 20, "text", True), (5, 6, "image", False), (7, 1, "both", False)]
    advice = ["Train longer.", "Or `not <b>`."]
    return replace(
        built,
        thumbnails=plain(N),
        false_negatives=[Cell(i, j, cosine[i][j], 0.125, kind, positive) for i, j, kind, positive in kinds],
        suspected_false_negatives=250,
        hardest_negatives=[Cell(k, k + 1, cosine[k][k + 1], -0.0625) for k in range(15)],
        worst_positives=[Cell(k, k, cosine[k][k], -0.5, positive=True) for k in (9, 4)],
        verdicts=[Verdict("collapsed", "Everything is one point", ["The rank is 1."], advice)],
        summary=Summary("bad", "Everything is one point", "R@1 is 63 %, by chance 4.5 %", "The rank is 1."),
    )


@pytest.fixture(scope="module")
def written(found: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(found, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(visit: Visits, written: Path) -> Screen:
    return visit(written)
