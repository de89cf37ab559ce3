"""The page in a real Chromium: what it shows against what Python computed, and that it stays to itself."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support import inspecting
from support.browsing import (
    COLOURS,
    NASTY,
    ORDERS,
    SCALE,
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
    slide,
    until,
    values,
)

from miniclip.inspection.contents import Inspection
from miniclip.inspection.page.write import write_report
from miniclip.losses import LOSSES
from miniclip.metrics.geometry import effective_negatives

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest_plugins = ["support.pages"]


def test_the_file_is_the_same_each_time_and_asks_for_nothing(found: Inspection, written: Path, tmp_path: Path) -> None:
    assert write_report(found, tmp_path / "again.html") == tmp_path / "again.html"
    content = written.read_bytes()
    assert (tmp_path / "again.html").read_bytes() == content
    text = content.decode("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    policy = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    inline = "'unsafe-inline'"
    assert policy == [f"default-src 'none'; img-src data: blob:; style-src {inline}; script-src {inline}"]
    assert text.index("Content-Security-Policy") < text.index("<style")
    assert set(re.findall(r"https?://[^\s\"'`)]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"\ssrc=|@import|<base|<iframe|<object|<form", text)
    assert [link for link in re.findall(r"<link[^>]*>", text) if 'href="data:,"' not in link] == []
    assert all(address.startswith(("#", "data:")) for address in re.findall(r'href="([^"]*)"', text))


def test_text_cannot_close_the_script_that_holds_it(tmp_path: Path) -> None:
    text = write_report(nasty(), tmp_path / "report.html").read_text(encoding="utf-8")
    start = text.index('<script type="application/json" id="data">')
    body = text[text.index(">", start) + 1 : text.index("</script", start)]
    data = json.loads(body)
    assert data["pairs"] == [{"name": name, "caption": line} for name, line in zip(NASTY[::-1], NASTY, strict=True)]
    assert data["about"] == {line: line for line in NASTY}
    assert body.isascii() and not set("<>&") & set(body)


def test_a_page_without_a_thumbnail_for_each_pair_is_refused(tmp_path: Path) -> None:
    built = inspecting.inspection(4)
    with pytest.raises(ValueError, match="3 thumbnails for 4 pairs"):
        write_report(replace(built, thumbnails=plain(3)), tmp_path / "report.html")


def test_256_pairs_with_photos_fit_into_5_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(256):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(1.0)
        )
        low, high = np.percentile(np.asarray(picture), (1, 99))
        photos.append(picture.point([min(255, max(0, round((v - low) / (high - low) * 255))) for v in range(256)] * 3))
    history = inspecting.history(64, 20)
    captions = [f"{k}: " + "a caption as long as those of people are, " * 2 for k in range(256)]
    built = replace(inspecting.inspection(256, captions=captions, history=history), thumbnails=photos)
    written = write_report(built, tmp_path / "report.html").read_text(encoding="utf-8")
    sheets = re.findall(r'id="sheet-\d+">([^<]*)<', written)
    each = len("".join(sheets)) * 3 / 4 / 256
    assert 1200 < each < 2500  # the first 256 photos of the test split of Flickr8k: 1,135 bytes each
    assert len(written) < 5e6


def test_loads_offline_and_shows_all_parts(page: Page, found: Inspection) -> None:
    assert page.evaluate("[miniclipPage.n, miniclipPage.view(), miniclipPage.loss(), miniclipPage.order()]") == [
        N,
        "cosine",
        "sigmoid",
        "index",
    ]
    assert page.title() == page.locator("h1").inner_text() == found.title
    assert page.locator("#view option").evaluate_all("all => all.map((e) => e.value)") == list(VIEWS)
    assert page.locator("#loss option").evaluate_all("all => all.map((e) => e.value)") == list(found.losses)
    assert page.locator("#order option").evaluate_all("all => all.map((e) => e.value)") == list(ORDERS)
    assert page.locator("#verdicts article").count() == 1
    for words in ("Everything is one point", "The rank is 1.", "Train longer.", "Or not <b>."):
        assert words in page.locator("#verdicts").inner_text()
    assert page.locator("#verdicts code").all_inner_texts() == ["not <b>"]
    rows = page.locator("#figures tbody tr").evaluate_all(
        "all => all.map((e) => [...e.cells].map((c) => c.textContent))"
    )
    assert [row[0] for row in rows] == [figure.label for figure in found.figures]
    for row, figure in zip(rows, found.figures, strict=True):
        assert figure.value is not None and row[2] == figure.help
        shown_value, unit = re.match(r"(\S+)(?:\xa0(.*))?$", row[1]).groups(default="")  # type: ignore[union-attr]
        assert number(shown_value) == pytest.approx(figure.value, rel=6e-3) and unit == figure.unit
    assert (
        dict(zip(page.locator("#about dt").all_inner_texts(), page.locator("#about dd").all_inner_texts(), strict=True))
        == found.about
    )


def test_what_a_page_does_wrong_is_seen(browser: Browser, written: Path) -> None:
    """Also: the page's own policy keeps it from the network."""
    visits = Visits(browser)
    page = visits(written)
    assert visits.complaints == []
    for wrong in (
        "fetch('https://example.invalid/x').catch(() => 0)",
        "console.warn('w')",
        "setTimeout(() => { throw 1 })",
    ):
        page.evaluate(f"() => {{ {wrong} }}")
        page.wait_for_timeout(50)
    visits.close()
    assert any("Content Security Policy" in complaint for complaint in visits.complaints)
    assert "console: w" in visits.complaints and "error: 1" in visits.complaints


@pytest.mark.parametrize("loss", LOSSES)
def test_every_view_has_the_numbers_of_python_and_draws_them(page: Page, found: Inspection, loss: str) -> None:
    page.select_option("#loss", loss)
    drawn = {}
    for view in VIEWS:
        page.select_option("#view", view)
        data = page.locator("#matrix").evaluate("e => ({...e.dataset})")
        assert (data["view"], data["loss"], data["order"]) == (view, loss, "index")
        assert page.evaluate("[miniclipPage.view(), miniclipPage.loss()]") == [view, loss]
        theirs, ours = values(page, view, N), expected(found, view, loss)
        if view == "cosine":
            assert np.array_equal(theirs, ours.astype(np.float32).astype(np.float64))
        elif view in ("pair_loss", "gradient"):
            assert (np.abs(theirs - ours) <= half_a_step(ours)).all()
            assert np.abs(ours).max() > 0
        else:
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 if view == "logit" else 1e-6)
        rgb = drawn[view] = colours(page, N)
        flat, light = theirs.ravel(), brightness(rgb).ravel()
        assert tuple(rgb.reshape(-1, 3)[flat.argmax()]) != tuple(rgb.reshape(-1, 3)[flat.argmin()])
        if view == "gradient":
            warm = (rgb[..., 0] - rgb[..., 2]).ravel()
            strong = np.abs(flat) > 1e-3 * np.abs(flat).max()
            assert (np.sign(warm[strong]) == np.sign(flat[strong])).all()
            assert {-1.0, 1.0} == set(np.sign(flat[strong]))
        else:
            along = light[flat.argsort(kind="stable")]
            assert along[-1] - along[0] > 120
            assert np.diff(along).min() > -1.5  # the higher the lighter; 1.5: colours are whole numbers
    looks = {view: rgb.tobytes() for view, rgb in drawn.items()}
    assert looks.pop("logit") == looks["cosine"]  # but for the numbers of the legend
    assert len(set(looks.values())) == len(VIEWS) - 1


def test_the_legend_spans_the_values(page: Page, found: Inspection) -> None:
    for view in VIEWS:
        page.select_option("#view", view)
        ticks = [number(text) for text in page.locator("#legend .marks span").all_inner_texts()]
        ours = expected(found, view, "sigmoid")
        low, high = ours.min(), ours.max()
        if view == "gradient":
            low, high = -np.abs(ours).max(), np.abs(ours).max()
        elif view.endswith("probability"):
            low, high = 0, 1
        elif view == "pair_loss":
            low = min(low, 0)
        assert ticks == sorted(ticks) and len(ticks) >= 3
        assert (ticks[0], ticks[-1]) == (pytest.approx(low, rel=0.06), pytest.approx(high, rel=0.06))
        words = page.locator("#legend p").inner_text()
        assert ("cube-root" in words) == (view not in ("cosine", "logit"))
        assert ("nats per logit" in words) == (view == "gradient")


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_moves_rows_and_columns_alike(page: Page, found: Inspection, order: str) -> None:
    before = colours(page, N)
    page.select_option("#order", order)
    assert page.locator("#matrix").get_attribute("data-order") == page.evaluate("miniclipPage.order()") == order
    k = found.orders[order]
    assert order == "index" or k != list(range(N))
    assert np.array_equal(colours(page, N), before[np.ix_(k, k)])
    for row, column in ((0, 0), (5, 17), (17, 5), (N - 1, 2)):
        cell = hover(page, row, column, N)
        assert (cell["i"], cell["j"]) == (k[row], k[column])
    assert values(page, "cosine", N)[2, 7] == pytest.approx(float(found.cosine[2, 7]))  # value() goes by the data


def test_hovering_shows_the_pair_and_its_numbers(page: Page, found: Inspection) -> None:
    for row, column in ((0, 0), (4, 9), (9, 4), (3, 20), (23, 23)):
        cell = hover(page, row, column, N)
        assert (cell["i"], cell["j"], cell["pinned"]) == (row, column, False)
        assert cell["captions"] == [found.captions[row], found.captions[column]]
        assert cell["names"] == [found.names[row], found.names[column]]
        lines = cell["rows"]
        for label, view, digits in (
            ("Cosine", "cosine", 4),
            ("Logit at scale 14.0", "logit", 4),
            ("p(text | image)", "row_probability", 3),
            ("p(image | text)", "column_probability", 3),
            ("Pair loss, sigmoid", "pair_loss", 3),
            ("Gradient, sigmoid", "gradient", 3),
        ):
            matrix = expected(found, view, "sigmoid")
            ours = float(matrix[row, column])
            close = abs(ours) * 0.5001 * 10.0 ** (1 - digits) + float(half_a_step(matrix)[row, column])
            assert number(lines[label][0]) == pytest.approx(ours, rel=0, abs=close)
        assert lines["Logit at scale 14.0"][1] == lines["Pair loss, sigmoid"][1] == "nats"
        assert lines["Gradient, sigmoid"][1] == "nats / logit"
        view = found.losses["sigmoid"]
        assert number(lines[f"Image {row} pays in all"][0]) == pytest.approx(float(view.row_loss[row]), rel=6e-3)
        assert number(lines[f"Text {column} pays in all"][0]) == pytest.approx(
            float(view.column_loss[column]), rel=6e-3
        )
        pulled = float(view.gradient[row, column]) < 0
        assert ("pulls them together" if pulled else "pushes them apart") in cell["sentence"]
        kind = "pair" if row == column else "positive" if (row, column) == (3, 20) else "negative"
        assert cell["badge"] == kind
        pictures = page.locator("#details .thumb")
        for k, place in ((0, row), (1, column)):
            assert seen(pictures.nth(k).screenshot()) == pytest.approx(COLOURS[place], abs=10)
    assert "same text" in hover(page, 20, 3, N)["sentence"]
    assert hover(page, 5, 6, N)["badge"] == "false negative?"  # the lists say: the same image
    page.select_option("#loss", "hinge")
    assert hover(page, 4, 9, N)["rows"]["Gradient, hinge"][1] == "per cosine"


def test_two_losses_side_by_side(page: Page, found: Inspection) -> None:
    assert page.locator("#plot2").is_hidden()
    page.select_option("#view", "gradient")
    page.select_option("#loss", "hinge")
    alone = colours(page, N)
    page.select_option("#view", "cosine")
    page.select_option("#loss", "softmax")
    page.select_option("#compare", "hinge")
    assert page.evaluate("miniclipPage.view()") == "gradient"  # the cosines are the same under every loss
    until(page, "document.getElementById('matrix2').width > 200")
    page.wait_for_timeout(100)
    main, second = colours(page, N), colours(page, N, "#matrix2")
    assert np.array_equal(second, alone) and not np.array_equal(second, main)
    assert page.locator("#matrix2").get_attribute("data-loss") == "hinge"
    assert "hinge" in page.locator("#title2").inner_text()
    cell = hover(page, 4, 9, N, "#matrix2")
    assert (cell["i"], cell["j"]) == (4, 9)
    for loss in ("softmax", "hinge"):
        ours = float(found.losses[loss].gradient[4, 9])
        assert number(cell["rows"][f"Gradient, {loss}"][0]) == pytest.approx(ours, rel=6e-3, abs=1e-8)
    page.select_option("#compare", "")
    assert page.locator("#plot2").is_hidden()


def curve_text(page: Page) -> list[float]:
    text = page.locator("#temperature-text").inner_text()
    parts = re.match(
        r"Effective negatives: (\S+); entropy (\S+) nats. softmax loss: (\S+) here, lowest (\S+) at (\S+?)\. ", text
    )
    assert parts, text
    return [float(part) for part in parts.groups()]


def at_scale(found: Inspection, scale: float) -> list[float]:
    """What the page says: between two scales that were computed, along a straight line in the logarithm."""
    curves = found.temperature
    sides = (curves.negatives_rows + curves.negatives_columns) / 2, (curves.entropy_rows + curves.entropy_columns) / 2
    along = [*sides, curves.loss["softmax"]]
    said = [float(np.interp(math.log(scale), curves.scales.log().numpy(), curve.numpy())) for curve in along]
    logits = scale * found.cosine
    entropies = [torch.special.entr(logits.softmax(d)).sum(d).mean() for d in (0, 1)]
    negatives = [side.mean() for side in effective_negatives(logits, found.positives)]
    loss = LOSSES["softmax"](logits, found.positives, **found.losses["softmax"].settings)
    exact = [float(sum(negatives)) / 2, float(sum(entropies)) / 2, float(loss)]
    assert said == pytest.approx(exact, rel=0.01)
    return said


def test_the_temperature_moves_the_probabilities(page: Page, found: Inspection) -> None:
    page.select_option("#loss", "softmax")
    page.select_option("#view", "row_probability")
    assert curve_text(page)[:3] == pytest.approx(at_scale(found, SCALE), rel=6e-3)
    assert page.locator("#temperature-value").inner_text() == "14.0"
    assert page.locator("#temperature-reset").is_disabled()
    before, learned = colours(page, N), values(page, "row_probability", N)
    scale = math.exp(2)
    slide(page, "#temperature", 2.0)
    assert page.locator("#temperature-value").inner_text() == "7.39"
    assert page.locator("#temperature").get_attribute("aria-valuetext") == "scale 7.39"
    for view in ("row_probability", "column_probability"):
        np.testing.assert_allclose(values(page, view, N), expected(found, view, "softmax", scale), rtol=0, atol=1e-6)
    np.testing.assert_allclose(values(page, "logit", N), expected(found, "logit", "softmax", scale), rtol=0, atol=1e-5)
    assert not np.array_equal(colours(page, N), before)
    assert curve_text(page)[:3] == pytest.approx(at_scale(found, scale), rel=6e-3)
    assert page.locator("#temperature-note").is_hidden()
    page.select_option("#view", "gradient")  # which was computed at the learned scale
    assert "14.0" in page.locator("#temperature-note").inner_text()
    page.click("#temperature-reset")
    until(page, "document.getElementById('temperature-value').textContent === '14.0'")
    assert page.locator("#temperature-note").is_hidden()
    page.select_option("#view", "row_probability")
    assert np.array_equal(values(page, "row_probability", N), learned)
    assert np.array_equal(colours(page, N), before)


def test_the_chart_marks_the_learned_and_the_best_scale(page: Page, found: Inspection) -> None:
    best = found.temperature.best["softmax"]
    page.select_option("#loss", "softmax")
    slide(page, "#temperature", 2.0)
    curves = found.temperature
    low, high = math.log(float(curves.scales[0])), math.log(float(curves.scales[-1]))
    for kind, scale in (("learned", SCALE), ("best", best), ("now", math.exp(2))):
        lines = page.locator(f"#temperature-chart .mark.{kind}")
        assert lines.count() == 2  # of the loss, and of the effective negatives
        for k in range(2):
            place, left, right = lines.nth(k).evaluate(
                """e => { const grid = e.parentNode.querySelector(".grid");
                          return [e.x1, grid.x1, grid.x2].map((x) => x.baseVal.value); }"""
            )
            fraction = (place - left) / (right - left)
            assert fraction == pytest.approx((math.log(scale) - low) / (high - low), abs=2e-3)
            assert f"{scale:.3g}"[:3] in lines.nth(k).locator("title").text_content()
    *_, lowest, where = curve_text(page)
    assert (lowest, where) == (
        pytest.approx(float(curves.loss["softmax"].min()), rel=1e-3),
        pytest.approx(best, rel=6e-3),
    )
    page.select_option("#loss", "hinge")  # which does not look at the scale
    assert page.locator("#temperature-chart .mark.best").count() == 0
    assert "does not enter" in page.locator("#temperature-text").inner_text()


def test_the_history_follows_its_slider(page: Page, found: Inspection) -> None:
    history = found.history
    assert history is not None
    n = len(history.captions)
    pictures = []
    for k, step in enumerate(history.steps):
        slide(page, "#step", k)
        assert page.locator("#step-value").inner_text() == str(step)
        assert page.locator("#history-matrix").get_attribute("data-step") == str(step)
        rgb = colours(page, n, "#history-matrix")
        pictures.append(rgb.tobytes())
        along = brightness(rgb).ravel()[history.cosines[k].float().numpy().ravel().argsort(kind="stable")]
        assert np.diff(along).min() > -1.5
        marks = page.locator("#history-curves .mark.now title").all_text_contents()
        assert marks == [f"step {step}"] * 4
    assert len(set(pictures)) == len(history.steps)
    page.mouse.move(*point(page, 2, 4, n, "#history-matrix"))
    note = page.locator("#history-note").inner_text()
    assert f"cosine {float(history.cosines[-1, 2, 4]):.3f}" in note
    assert "Image 2 (fixed 2) with text 4: fixed 4" in note
    slide(page, "#step", 1)
    assert f"cosine {float(history.cosines[1, 2, 4]):.3f}" in page.locator("#history-note").inner_text()
    page.keyboard.press("Escape")
    page.locator("#history-matrix").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert "Image 3 (fixed 3) with its own text" in page.locator("#history-note").inner_text()


def test_without_a_history_there_is_no_such_part(visit: Visits, found: Inspection, tmp_path: Path) -> None:
    page = visit(write_report(replace(found, history=None, verdicts=[]), tmp_path / "report.html"))
    assert page.locator("#history").is_hidden() and page.locator("#history-link").is_hidden()
    assert page.locator("#verdicts").inner_text() == "Nothing stands out."


def test_the_table_of_losses(page: Page, found: Inspection) -> None:
    page.locator("#losses").scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('#losses .share')].every((e) => e.textContent.includes('diagonal'))")
    negatives = found.cosine.masked_fill(found.positives, -2)
    rows = page.locator("#losses tbody tr")
    assert rows.evaluate_all("all => all.map((e) => e.dataset.loss)") == list(found.losses)
    for k, (name, view) in enumerate(found.losses.items()):
        cells = rows.nth(k).locator("td, th").all_inner_texts()
        assert number(cells[2]) == pytest.approx(view.value, rel=6e-4)
        assert number(cells[3]) == pytest.approx(view.chance, rel=6e-4)
        assert number(cells[4]) == pytest.approx(view.value / view.chance, rel=6e-3)
        assert cells[5] == view.unit and ("trained with" in cells[1]) == (name == "sigmoid")
        mass = view.gradient.abs()
        hardest = mass.gather(1, negatives.argmax(1, keepdim=True)).sum() / mass.sum()
        shares = [float(share) for share in re.findall(r"([\d.]+)%", cells[6])]
        ours = [float(mass.diagonal().sum() / mass.sum()), float(hardest)]
        assert shares == pytest.approx([100 * share for share in [*ours, 1 - sum(ours)]], abs=0.6)
    rows.nth(list(found.losses).index("focal")).locator("button").click()
    assert page.evaluate("[miniclipPage.view(), miniclipPage.loss()]") == ["gradient", "focal"]
    assert page.locator("#loss").input_value() == "focal" and page.locator("#view").input_value() == "gradient"
