"""The page in a real Chromium: pointer, keyboard and touch, other screens, odd data, and how long a switch takes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support import inspecting
from support.browsing import (
    COLOURS,
    NASTY,
    VIEWS,
    N,
    Visits,
    brightness,
    colours,
    expected,
    half_a_step,
    hover,
    nasty,
    number,
    plain,
    point,
    seen,
    shown,
    until,
    values,
)

from miniclip.inspection.contents import Figure, Inspection
from miniclip.inspection.page.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["support.pages"]


def test_a_click_pins_and_escape_unpins(page: Page) -> None:
    assert not hover(page, 2, 3, N)["pinned"]
    page.mouse.click(*point(page, 4, 9, N))
    cell = hover(page, 15, 1, N)
    assert (cell["i"], cell["j"], cell["pinned"]) == (4, 9, True)
    page.keyboard.press("Escape")
    assert not shown(page)["pinned"]
    assert (hover(page, 15, 2, N)["i"], shown(page)["j"]) == (15, 2)
    page.mouse.click(*point(page, 4, 9, N))
    page.mouse.click(*point(page, 5, 9, N))
    assert (shown(page)["i"], shown(page)["pinned"]) == (5, True)
    page.mouse.click(*point(page, 5, 9, N))
    assert not shown(page)["pinned"]


def test_the_keyboard_does_what_the_pointer_does(page: Page, found: Inspection) -> None:
    page.select_option("#order", "cluster")
    order = found.orders["cluster"]
    place = lambda: (order.index(shown(page)["i"]), order.index(shown(page)["j"]))  # noqa: E731
    page.mouse.click(*point(page, 2, 3, N))
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    assert page.evaluate("document.activeElement.id") == "matrix"
    walk = [("ArrowDown", (3, 3)), ("ArrowRight", (3, 4)), ("Shift+ArrowDown", (13, 4)), ("Shift+ArrowRight", (13, 14))]
    walk += [
        ("ArrowUp", (12, 14)),
        ("Shift+ArrowLeft", (12, 4)),
        ("Shift+ArrowLeft", (12, 0)),
        ("Shift+ArrowUp", (2, 0)),
    ]
    for key, there in walk:
        page.keyboard.press(key)
        assert place() == there
    said = page.locator("#announcer").inner_text()
    assert said.startswith(f"Image {order[2]}, text {order[0]}, cosine ")
    assert number(said.split()[-1]) == pytest.approx(float(found.cosine[order[2], order[0]]), rel=6e-3)
    page.keyboard.press("Enter")
    assert shown(page)["pinned"]
    page.keyboard.press("ArrowRight")
    assert place() == (2, 1) and shown(page)["pinned"]
    page.keyboard.press("Escape")
    assert not shown(page)["pinned"]
    for key, smaller in (("+", True), ("+", True), ("-", False), ("0", False)):
        zoom = float(page.locator("#matrix").get_attribute("data-zoom") or 1)
        page.keyboard.press(key)
        until(page, f"document.getElementById('matrix').dataset.zoom {'>' if smaller else '<'} {zoom}")
    assert page.locator("#matrix").get_attribute("data-zoom") == "1.00"
    help_line = page.locator("#keys").inner_text()
    assert all(word in help_line for word in ("arrows", "Shift", "Enter", "Escape", "zoom"))


def test_the_free_energy_is_read_with_pointer_and_keyboard(page: Page, found: Inspection) -> None:
    images, texts = (side.argsort().tolist() for side in found.free_energy)

    def note() -> str:
        return page.locator("#energy-note").inner_text()

    page.locator("#energy").focus()  # starts at the worst
    worst = images[-1]
    assert note().startswith(f"Image {worst} ({found.names[worst]}), rank {N} of {N}: ")
    assert number(note().split(": ")[1].split()[0]) == pytest.approx(float(found.free_energy[0][worst]), rel=6e-4)
    assert note().endswith(found.captions[worst])
    page.keyboard.press("ArrowDown")
    assert note().startswith(f"Text {texts[-1]} ")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert note().startswith(f"Text {texts[-12]} ")
    page.keyboard.press("Home")
    assert note().startswith(f"Text {texts[0]} ")
    page.keyboard.press("Enter")
    cell = shown(page)
    assert (cell["i"], cell["j"], cell["pinned"]) == (texts[0], texts[0], True)
    box = page.locator("#energy").bounding_box()
    assert box is not None
    page.locator("#energy").scroll_into_view_if_needed()
    page.locator("#energy").hover(position={"x": box["width"] - 9, "y": 30})
    assert f"rank {N} of {N}" in note()


def test_zooming_keeps_the_cell_and_shows_the_pictures(page: Page) -> None:
    x, y = point(page, 13, 10, N)
    page.mouse.move(x, y)
    axis = page.locator("#axis-left")
    for _ in range(8):
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(30)
    until(page, "document.getElementById('matrix').dataset.zoom > 4")
    page.mouse.move(x + 1, y)
    assert (shown(page)["i"], shown(page)["j"]) == (13, 10)
    assert axis.get_attribute("data-thumbnails") == page.locator("#axis-top").get_attribute("data-thumbnails") == "true"
    for name, k, place in (("left", 13, y), ("top", 10, x)):
        box = page.locator(f"#axis-{name}").bounding_box()
        assert box is not None
        at = (box["x"] + 20, place) if name == "left" else (place, box["y"] + 20)
        clip = {"x": at[0] - 6, "y": at[1] - 6, "width": 12, "height": 12}
        assert seen(page.screenshot(clip=clip)) == pytest.approx(COLOURS[k], abs=10)
    # dragging pans, and does not pin
    page.mouse.down()
    page.mouse.move(x + 150, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(50)
    assert not shown(page)["pinned"]
    page.mouse.move(x + 151, y)
    assert (shown(page)["i"], shown(page)["j"]) == (13, 10)
    page.mouse.move(x, y)
    assert shown(page)["j"] < 10
    page.click("#zoom-reset")
    until(page, "document.getElementById('matrix').dataset.zoom === '1.00'")
    page.mouse.move(x, y)
    page.mouse.wheel(0, 300)  # at the whole matrix, the page scrolls
    until(page, "document.scrollingElement.scrollTop > 0")
    assert page.locator("#matrix").get_attribute("data-zoom") == "1.00"


def test_lists_name_their_cells_and_pin_them(visit: Visits, written: Path, found: Inspection) -> None:
    page = visit(written, reduced_motion="reduce")  # else it scrolls softly
    lists = {
        "false-negatives": found.false_negatives,
        "hardest-negatives": found.hardest_negatives,
        "worst-positives": found.worst_positives,
    }
    badges = {"text": "same text", "image": "same image", "both": "same text and image", None: None}
    for name, cells in lists.items():
        items = page.locator(f"#{name} li")
        assert items.count() == min(len(cells), 12)
        count = "3 of 250" if name == "false-negatives" else str(len(cells))
        assert page.locator(f"#{name}-count").inner_text() == count
        if len(cells) > 12:
            page.locator(f"#{name} + button.more").click()
            assert items.count() == len(cells)
        for k in {0, 1, len(cells) // 2, len(cells) - 1}:
            cell, item = cells[k], items.nth(k)
            text = item.inner_text()
            assert found.captions[cell.i] in text and found.captions[cell.j] in text
            assert float(re.search(r"cosine (\S+)", text).group(1)) == pytest.approx(cell.cosine, rel=6e-3)  # type: ignore[union-attr]
            assert float(re.search(r"margin (\S+)", text).group(1)) == pytest.approx(cell.margin)  # type: ignore[union-attr]
            wanted = [badges[cell.duplicate]] if cell.duplicate else []
            wanted += ["counted as positive"] if cell.positive and cell.i != cell.j else []
            assert item.locator(".badge").all_inner_texts() == wanted
            for place, which in enumerate([cell.i] if cell.i == cell.j else [cell.i, cell.j]):
                assert seen(item.locator(".thumb").nth(place).screenshot()) == pytest.approx(COLOURS[which], abs=10)
            item.locator("button").click()
            after = shown(page)
            assert (after["i"], after["j"], after["pinned"]) == (cell.i, cell.j, True)
            assert page.evaluate("document.activeElement.id") == "matrix"


def test_text_of_the_data_stays_text(visit: Visits, page: Page, tmp_path: Path) -> None:
    odd = nasty()
    n = len(NASTY)
    victim = visit(write_report(odd, tmp_path / "report.html"))
    scripts = "document.scripts.length"
    assert victim.evaluate(scripts) == page.evaluate(scripts)
    for row in range(n):
        cell = hover(victim, row, n - 1 - row, n)
        assert cell["captions"] == [NASTY[row], NASTY[n - 1 - row]]
        assert cell["names"] == [NASTY[::-1][row], NASTY[row]]
    victim.mouse.move(*point(victim, 1, 2, 6, "#history-matrix"))
    assert NASTY[1] in victim.locator("#history-note").inner_text()
    victim.locator("#energy").focus()
    victim.locator("#losses").scroll_into_view_if_needed()
    for button in victim.locator(".more").all():
        button.click()
    victim.wait_for_timeout(100)
    assert victim.evaluate("window.hacked") is None
    assert victim.evaluate("document.querySelectorAll('img, iframe, [onerror], [onload]').length") == 0
    assert NASTY[1] in victim.title() and NASTY[1] in victim.locator("h1").inner_text()
    heard = victim.locator("#verdicts").text_content() or ""
    assert all(text in heard for text in NASTY if text.isprintable())
    assert victim.locator("#verdicts h3").inner_text() == NASTY[0]
    assert [victim.locator(f"#about {tag}").nth(1).inner_text() for tag in ("dt", "dd")] == [NASTY[1]] * 2
    cells = victim.locator("#figures tbody tr").first.locator("th, td").all_inner_texts()
    assert [cells[0], cells[2]] == [NASTY[1], NASTY[3]] and cells[1].endswith("<u>")


def test_a_tap_pins_and_a_phone_needs_no_sideways_scrolling(visit: Visits, written: Path, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page = visit(written, **phone)
    width = "document.scrollingElement.scrollWidth"
    page.touchscreen.tap(*point(page, 4, 9, N))
    cell = shown(page)
    assert (cell["i"], cell["j"], cell["pinned"]) == (4, 9, True)
    assert page.locator("#details").bounding_box()["width"] > 300  # type: ignore[index]
    page.touchscreen.tap(*point(page, 4, 9, N))
    assert not shown(page)["pinned"]
    for view in VIEWS:
        page.select_option("#view", view)
        assert page.evaluate(width) <= 360
    page.select_option("#compare", "transport")
    page.wait_for_timeout(50)
    assert page.evaluate(width) <= 360
    box = page.locator("#matrix2").bounding_box()
    assert box is not None and box["x"] + box["width"] <= 360 and box["width"] > 280
    worst = visit(write_report(nasty(), tmp_path / "report.html"), **phone)
    for k in range(len(NASTY)):
        worst.touchscreen.tap(*point(worst, k, k, len(NASTY)))
        assert worst.evaluate(width) <= 360


def test_light_and_dark(visit: Visits, written: Path) -> None:
    light, dark = visit(written, color_scheme="light"), visit(written, color_scheme="dark")

    def look(page: Page) -> tuple[float, float, bytes]:
        rgb = [
            np.array(re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3], dtype=float)
            for name in ("backgroundColor", "color")
        ]
        return *(float(brightness(part)) for part in rgb), colours(page, N).tobytes()  # type: ignore[return-value]

    for page in (light, dark):
        page.select_option("#view", "gradient")
    bright, dim = look(light), look(dark)
    assert bright[0] > 200 > 80 > bright[1] and dim[0] < 60 < 180 < dim[1]
    assert bright[2] != dim[2]  # the middle of the diverging colours
    for page, there, back in ((light, dim, bright), (dark, bright, dim)):
        page.click("#theme")
        assert look(page) == there
        page.click("#theme")
        assert look(page) == back


def test_everything_is_reached_by_tab_and_has_a_name(visit: Visits, written: Path) -> None:
    page = visit(written)
    selector = "a[href], button:enabled, select:enabled, input:enabled, [tabindex='0']"
    wanted = page.evaluate(
        """(selector) => [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()).map((e, k) => {
            e.dataset.k = k;
            return k;
        })""",
        selector,
    )
    assert len(wanted) > 40
    reached = []
    for _ in wanted:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("Number(document.activeElement.dataset.k ?? -1)"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none"
    assert sorted(reached) == wanted
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            named.setdefault(role, []).append(name.strip())
    assert len(named["combobox"]) == 4 and len(named["slider"]) == 2 and len(named["button"]) > 20
    for role in ("combobox", "slider", "button", "link", "application", "image", "img", "Canvas", "navigation"):
        assert all(named.get(role, ["-"])), role
    assert len(named["application"]) == 3  # the matrix, that of the history, and the free energy
    assert (
        page.evaluate("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size")
        == page.locator("[id]").count()
    )


def test_two_pairs_and_numbers_that_are_none(visit: Visits, tmp_path: Path) -> None:
    built = inspecting.inspection(2)
    nan = math.nan
    history = inspecting.history(2, 1)
    figures = {"loss": torch.tensor([nan]), "logit_scale": torch.tensor([nan])}
    history = replace(history, figures=figures, training={"step": [1.0, 2.0], "loss": [nan, 1.0]})
    losses = dict(built.losses)
    broken = losses["softmax"].gradient.clone()
    broken[0, 1] = nan
    losses["softmax"] = replace(losses["softmax"], gradient=broken, value=math.inf)
    sides = (torch.tensor([nan, 1.0]), torch.tensor([nan, nan]))
    figure = Figure("odd", "odd", None, "", "none")
    built = replace(built, losses=losses, free_energy=sides, history=history, figures=[figure])
    page = visit(write_report(built, tmp_path / "report.html"))
    page.select_option("#view", "gradient")
    assert hover(page, 0, 1, 2)["rows"]["Gradient, softmax"][0] == "n/a"
    assert page.locator("#figures tbody .number").inner_text() == "n/a"
    page.locator("#losses").scroll_into_view_if_needed()
    page.locator("#energy").hover()
    page.wait_for_timeout(100)
    assert "NaN" not in page.evaluate("document.querySelector('main').innerHTML")


def test_more_than_512_pairs_are_rounded_and_say_so(visit: Visits, tmp_path: Path) -> None:
    n = 513
    built = replace(inspecting.inspection(n), thumbnails=plain(n))
    page = visit(write_report(built, tmp_path / "report.html"))
    page.select_option("#view", "gradient")
    until(page, "document.getElementById('matrix').dataset.view === 'gradient'")
    ours = expected(built, "gradient", "softmax")
    flushed = np.abs(ours).max() * 2.0**-17
    off = np.abs(values(page, "gradient", n, 16) - ours[::16])
    close = off <= (half_a_step(ours, 5) + half_a_step(ours) + flushed)[::16]
    assert close.all()
    assert np.array_equal(values(page, "cosine", n, 16), built.cosine.float().double().numpy()[::16])
    i, j = 512, 300  # of the third sheet of pictures, and of the second
    cell = hover(page, i, j, n)
    assert (cell["i"], cell["j"]) == (i, j)
    assert cell["rows"]["Gradient, softmax"][0].startswith("about ") and not cell["rows"]["Cosine"][0].startswith("a")
    for place, which in enumerate((i, j)):
        assert seen(page.locator("#details .thumb").nth(place).screenshot()) == pytest.approx(COLOURS[which], abs=10)
