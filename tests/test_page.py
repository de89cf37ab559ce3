"""The page in a real Chromium: what it shows against what Python computed, how it is used, that it stays to itself."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support import inspecting
from support.browsing import COLOURS, NASTY, N, Screen, Visits, brightness, nasty, number, plain, seen

from miniclip.inspection.contents import Figure, Inspection, Summary
from miniclip.inspection.page.write import write_report
from miniclip.losses import LOSSES
from miniclip.metrics.geometry import effective_negatives

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["support.pages"]

SCALE = 14.0
VIEWS = ("cosine", "logit", "row_probability", "column_probability", "pair_loss", "gradient")


def expected(found: Inspection, view: str, loss: str, scale: float = SCALE) -> np.ndarray:
    logits = scale * found.cosine + (found.logit_bias or 0.0)
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


# ---- the file


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
    with pytest.raises(ValueError, match="3 thumbnails for 4 pairs"):
        write_report(replace(inspecting.inspection(4), thumbnails=plain(3)), tmp_path / "report.html")


def test_256_pairs_with_photos_fit_into_5_megabytes(tmp_path: Path) -> None:
    rng, photos = np.random.default_rng(0), []
    for _ in range(256):
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1.0))
        low, high = np.percentile(np.asarray(noise), (1, 99))
        photos.append(noise.point([min(255, max(0, round((v - low) / (high - low) * 255))) for v in range(256)] * 3))
    captions = [f"{k}: " + "a caption as long as those of people are, " * 2 for k in range(256)]
    built = inspecting.inspection(256, captions=captions, history=inspecting.history(64, 20))
    page = write_report(replace(built, thumbnails=photos), tmp_path / "report.html").read_text(encoding="utf-8")
    sheets = re.findall(r'id="sheet-\d+">([^<]*)<', page)
    # the first 256 photos of the test split of Flickr8k: 1,135 bytes each
    assert 1200 < len("".join(sheets)) * 3 / 4 / 256 < 2500
    assert len(page) < 5e6


# ---- what it shows


def test_loads_offline_and_shows_all_parts(page: Screen, found: Inspection) -> None:
    opened = "[miniclipPage.n, miniclipPage.view(), miniclipPage.loss(), miniclipPage.order()]"
    assert page.evaluate(opened) == [N, "cosine", "sigmoid", "index"]  # which the tests choose
    assert page.title() == page.text("h1") == found.title
    for name, values in (("view", VIEWS), ("loss", found.losses), ("order", found.orders)):
        assert page.locator(f"#{name} option").evaluate_all("all => all.map((e) => e.value)") == list(values)
    assert page.locator("#verdicts article").count() == 1
    for words in ("Everything is one point", "The rank is 1.", "Train longer.", "Or not <b>."):
        assert words in page.text("#verdicts")
    assert page.texts("#verdicts code") == ["not <b>"]
    cells = "all => all.map((e) => [...e.cells].map((c) => c.textContent))"
    rows = page.locator("#figures tbody tr").evaluate_all(cells)
    for (label, said, help_), figure in zip(rows, found.figures, strict=True):
        share, (value, _, unit) = figure.unit == "%", said.partition("\xa0")
        assert (label, unit.partition(" ")[0] if share else unit, help_) == (figure.label, figure.unit, figure.help)
        assert float(value) == pytest.approx((100 if share else 1) * figure.value, rel=6e-3, abs=0.051 * share)
        beside = unit.partition(" chance ")[2]
        assert bool(beside) == figure.name.startswith("r1_")
        assert not beside or number(beside) == pytest.approx(
            (N + 2) / N**2, abs=6e-4
        )  # two more that count as positives
    assert dict(zip(page.texts("#about dt"), page.texts("#about dd"), strict=True)) == found.about


@pytest.mark.parametrize("width, height, touch", [(1280, 800, False), (390, 844, True)])
def test_it_opens_by_cluster_with_a_verdict_above_the_fold(
    visit: Visits, found: Inspection, written: Path, width: int, height: int, touch: bool
) -> None:
    page = visit(written, order="", viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch)
    assert page.evaluate("miniclipPage.order()") == page.data("order") == "cluster"
    assert np.array_equal(page.shown()["at"], found.orders["cluster"][:1] * 2)
    said = page.text("#verdict")
    assert said == "Everything is one point. R@1 is 63 %, by chance 4.5 %. The rank is 1. What to try"
    ends = "['verdict', 'matrix'].map((id) => document.getElementById(id).getBoundingClientRect())"
    verdict, matrix = page.evaluate(f"{ends}.map(({{ top, bottom }}) => ({{ top, bottom }}))")
    assert 0 < verdict["top"] < verdict["bottom"] <= matrix["top"] < height / 2 and matrix["bottom"] < height
    page.click("#verdict a")
    page.until("document.getElementById('findings').getBoundingClientRect().top < 20")
    assert page.locator("#figures .help").first.is_visible()  # how to read it, on a phone, too
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


def test_a_caption_is_found(visit: Visits, found: Inspection, written: Path) -> None:
    page = visit(written, order="cluster")
    for _ in range(3):
        page.click("#zoom-in")
    page.locator("#find").fill("2 LONG  caption")
    sought = [f"{found.captions[k]} {found.names[k]}" for k in range(N)]
    long = [k for k in found.orders["cluster"] if "long" in sought[k] and "2" in sought[k]]
    assert len(long) > 3
    for key, place in (
        ("", 0),
        ("Enter", 1),
        ("Enter", 2),
        ("Shift+Enter", 1),
        ("Shift+Enter", 0),
        ("Shift+Enter", -1),
    ):
        if key:
            page.keyboard.press(key)
        cell, at = page.shown(), long[place]
        assert (cell["at"], cell["pinned"]) == ([at, at], True)
        assert page.text("#found") == f"{place % len(long) + 1} of {len(long)}"
        shown, way = page.evaluate("miniclipPage.window()"), found.orders["cluster"].index(at) / N
        assert shown["span"] == 0.125
        assert all(shown[side] - 1e-9 <= way <= shown[side] + 0.125 - 1 / N + 1e-9 for side in "xy")  # in sight
    page.click("#find-next")
    assert page.shown()["at"] == [long[0], long[0]]
    for words, at, said in (("ROW 23", 23, "1 of 1"), ("no such words", 23, "none"), ("", 23, "")):
        page.locator("#find").fill(words)
        assert page.shown()["at"] == [at, at] and page.text("#found") == said
        assert page.locator("#find-next").is_disabled()


def test_what_a_page_does_wrong_is_seen(browser: Browser, written: Path) -> None:
    """Also: the page's own policy keeps it from the network."""
    visits = Visits(browser)
    page = visits(written)
    assert visits.complaints == []
    fetches = "fetch('https://example.invalid/x').catch(() => 0)"
    for wrong in (fetches, "console.warn('w')", "setTimeout(() => { throw 1 })"):
        page.evaluate(f"() => {{ {wrong} }}")
        page.wait_for_timeout(50)
    visits.close()
    assert any("Content Security Policy" in complaint for complaint in visits.complaints)
    assert "console: w" in visits.complaints and "error: 1" in visits.complaints


@pytest.mark.parametrize("loss", LOSSES)
def test_every_view_has_the_numbers_of_python_and_draws_them(page: Screen, found: Inspection, loss: str) -> None:
    page.choose(loss=loss)
    looks = {}
    for view in VIEWS:
        page.choose(view=view)
        assert [page.data(name) for name in ("view", "loss", "order")] == [view, loss, "index"]
        assert page.evaluate("[miniclipPage.view(), miniclipPage.loss()]") == [view, loss]
        theirs, ours = page.values(view), expected(found, view, loss)
        if view == "cosine":
            assert np.array_equal(theirs, ours.astype(np.float32).astype(np.float64))
        elif view in ("pair_loss", "gradient"):
            assert (np.abs(theirs - ours) <= half_a_step(ours)).all() and np.abs(ours).max() > 0
        else:
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 if view == "logit" else 1e-6)
        rgb = page.colours().reshape(-1, 3)
        looks[view], flat = rgb.tobytes(), theirs.ravel()
        assert tuple(rgb[flat.argmax()]) != tuple(rgb[flat.argmin()])
        if view == "gradient":
            strong = np.abs(flat) > 1e-3 * np.abs(flat).max()
            assert (np.sign(rgb[:, 0] - rgb[:, 2])[strong] == np.sign(flat[strong])).all()
            assert {-1.0, 1.0} == set(np.sign(flat[strong]))
        else:
            along = brightness(rgb)[flat.argsort(kind="stable")]
            assert along[-1] - along[0] > 120
            assert np.diff(along).min() > -1.5  # the higher the lighter; 1.5: colours are whole numbers
    assert looks.pop("logit") == looks["cosine"]  # but for the numbers of the legend
    assert len(set(looks.values())) == len(VIEWS) - 1


def test_the_legend_spans_the_values(page: Screen, found: Inspection) -> None:
    for view in VIEWS:
        page.choose(view=view)
        ticks = [number(text) for text in page.texts("#legend .marks span")]
        ours = expected(found, view, "sigmoid")
        low, high = ours.min(), ours.max()
        if view == "gradient":
            low, high = -np.abs(ours).max(), np.abs(ours).max()
        elif view.endswith("probability"):
            low, high = 0, 1
        elif view == "pair_loss":
            low = min(low, 0)
        assert ticks == sorted(ticks) and len(ticks) >= 3
        assert [ticks[0], ticks[-1]] == pytest.approx([low, high], rel=0.06)
        words = page.text("#legend p")
        assert ("cube-root" in words) == (view not in ("cosine", "logit"))
        assert ("nats per logit" in words) == (view == "gradient")


def test_every_order_moves_rows_and_columns_alike(page: Screen, found: Inspection) -> None:
    before = page.colours()
    for order, k in found.orders.items():
        page.choose(order=order)
        assert page.data("order") == page.evaluate("miniclipPage.order()") == order
        assert order == "index" or k != list(range(N))
        assert np.array_equal(page.colours(), before[np.ix_(k, k)])
        for row, column in ((0, 0), (5, 17), (17, 5), (N - 1, 2)):
            assert page.over(row, column)["at"] == [k[row], k[column]]
        assert page.values("cosine")[2, 7] == pytest.approx(float(found.cosine[2, 7]))  # value() goes by the data


def test_hovering_shows_the_pair_and_its_numbers(page: Screen, found: Inspection) -> None:
    view = found.losses["sigmoid"]
    labels = {
        "cosine": ("Cosine", 4, ""),
        "logit": ("Logit at scale 14.0", 4, "nats"),
        "row_probability": ("p(text | image)", 3, "chance 4.2\xa0%"),
        "column_probability": ("p(image | text)", 3, "chance 4.2\xa0%"),
        "pair_loss": ("Pair loss, sigmoid", 3, "nats"),
        "gradient": ("Gradient, sigmoid", 3, "nats / logit"),
    }
    for row, column in ((0, 0), (4, 9), (9, 4), (3, 20), (23, 23)):
        cell = page.over(row, column)
        assert (cell["at"], cell["pinned"]) == ([row, column], False)
        for key in ("captions", "names"):
            assert cell[key] == [getattr(found, key)[k] for k in (row, column)]
        lines = cell["rows"]
        for name, (label, digits, unit) in labels.items():
            matrix = expected(found, name, "sigmoid")
            ours = float(matrix[row, column])
            close = (
                5.1e-4 * name.endswith("probability")
                + abs(ours) * 0.5001 * 10.0 ** (1 - digits)
                + float(half_a_step(matrix)[row, column])
            )
            assert number(lines[label][0]) == pytest.approx(ours, rel=0, abs=close) and lines[label][1] == unit
        paid = [number(lines[f"{side} pays in all"][0]) for side in (f"Image {row}", f"Text {column}")]
        assert paid == pytest.approx([float(view.row_loss[row]), float(view.column_loss[column])], rel=6e-3)
        pulled = float(view.gradient[row, column]) < 0
        assert ("pulls them together" if pulled else "pushes them apart") in cell["sentence"]
        kind = "pair" if row == column else "positive" if (row, column) == (3, 20) else "negative"
        assert cell["badge"] == kind
        for k, place in ((0, row), (1, column)):
            assert seen(page.locator("#details .thumb").nth(k)) == pytest.approx(COLOURS[place], abs=10)
    assert "same text" in page.over(20, 3)["sentence"]
    assert page.over(5, 6)["badge"] == "false negative?"  # the lists say: the same image
    page.choose(loss="hinge")
    assert page.over(4, 9)["rows"]["Gradient, hinge"][1] == "per cosine"


def test_two_losses_side_by_side(page: Screen, found: Inspection) -> None:
    assert page.locator("#plot2").is_hidden()
    page.choose(view="gradient", loss="hinge")
    alone = page.colours()
    page.choose(view="cosine", loss="softmax", compare="hinge")
    assert page.evaluate("miniclipPage.view()") == "gradient"  # the cosines are the same under every loss
    page.until("document.getElementById('matrix2').width > 200")
    page.wait_for_timeout(100)
    main, second = page.colours(), page.colours("#matrix2")
    assert np.array_equal(second, alone) and not np.array_equal(second, main)
    assert page.data("loss", "#matrix2") == "hinge" and "hinge" in page.text("#title2")
    cell = page.over(4, 9, "#matrix2")
    assert cell["at"] == [4, 9]
    for loss in ("softmax", "hinge"):
        ours = float(found.losses[loss].gradient[4, 9])
        assert number(cell["rows"][f"Gradient, {loss}"][0]) == pytest.approx(ours, rel=6e-3, abs=1e-8)
    page.choose(compare="")
    assert page.locator("#plot2").is_hidden()


def curve_text(page: Screen) -> list[float]:
    """Effective negatives, entropy, the softmax loss here and at its lowest, and where that is."""
    text = page.text("#temperature-text")
    form = r"Effective negatives: (\S+); entropy (\S+) nats. softmax loss: (\S+) here, lowest (\S+) at (\S+?)\. "
    parts = re.match(form, text)
    assert parts, text
    return [float(part) for part in parts.groups()]


def at_scale(found: Inspection, scale: float) -> list[float]:
    """The same of the matrix itself."""
    logits = scale * found.cosine
    negatives = [float(side.mean()) for side in effective_negatives(logits, found.positives)]
    entropies = [float(torch.special.entr(logits.softmax(d)).sum(d).mean()) for d in (0, 1)]
    loss = LOSSES["softmax"](logits, found.positives, **found.losses["softmax"].settings)
    return [sum(negatives) / 2, sum(entropies) / 2, float(loss)]


def test_the_temperature_moves_the_probabilities(page: Screen, found: Inspection) -> None:
    page.choose(loss="softmax", view="row_probability")
    assert curve_text(page)[:3] == pytest.approx(at_scale(found, SCALE), rel=6e-3)
    assert page.text("#temperature-value") == "14.0" and page.locator("#temperature-reset").is_disabled()
    before, learned = page.colours(), page.values("row_probability")
    scale = math.exp(2)
    page.slide("#temperature", 2.0)
    assert page.text("#temperature-value") == "7.39"
    assert page.locator("#temperature").get_attribute("aria-valuetext") == "scale 7.39"
    for view, close in (("row_probability", 1e-6), ("column_probability", 1e-6), ("logit", 1e-5)):
        np.testing.assert_allclose(page.values(view), expected(found, view, "softmax", scale), rtol=0, atol=close)
    assert not np.array_equal(page.colours(), before)
    assert curve_text(page)[:3] == pytest.approx(at_scale(found, scale), rel=6e-3)
    assert page.locator("#temperature-note").is_hidden()
    page.choose(view="gradient")  # which was computed at the learned scale
    assert "14.0" in page.text("#temperature-note")
    page.click("#temperature-reset")
    page.until("document.getElementById('temperature-value').textContent === '14.0'")
    assert page.locator("#temperature-note").is_hidden()
    page.choose(view="row_probability")
    assert np.array_equal(page.values("row_probability"), learned) and np.array_equal(page.colours(), before)


def test_the_chart_marks_the_learned_and_the_best_scale(page: Screen, found: Inspection) -> None:
    curves, best = found.temperature, found.temperature.best["softmax"]
    page.choose(loss="softmax")
    page.slide("#temperature", 2.0)
    low, high = math.log(float(curves.scales[0])), math.log(float(curves.scales[-1]))
    places = """e => { const grid = e.parentNode.querySelector(".grid");
                       return [e.x1, grid.x1, grid.x2].map((x) => x.baseVal.value); }"""
    for kind, scale in (("learned", SCALE), ("best", best), ("now", math.exp(2))):
        lines = page.locator(f"#temperature-chart .mark.{kind}")
        assert lines.count() == 2  # of the loss, and of the effective negatives
        for k in range(2):
            place, left, right = lines.nth(k).evaluate(places)
            fraction = (place - left) / (right - left)
            assert fraction == pytest.approx((math.log(scale) - low) / (high - low), abs=2e-3)
            assert f"{scale:.3g}"[:3] in lines.nth(k).locator("title").text_content()
    *_, lowest, where = curve_text(page)
    assert lowest == pytest.approx(float(curves.loss["softmax"].min()), rel=1e-3)
    assert where == pytest.approx(best, rel=6e-3)
    page.choose(loss="hinge")  # which does not look at the scale
    assert page.locator("#temperature-chart .mark.best").count() == 0
    assert "does not enter" in page.text("#temperature-text")


def test_the_history_follows_its_slider(page: Screen, found: Inspection) -> None:
    history, canvas, looks = found.history, "#history-matrix", set()
    assert history is not None
    n = len(history.captions)
    for k, step in enumerate(history.steps):
        page.slide("#step", k)
        assert page.text("#step-value") == page.data("step", canvas) == str(step)
        rgb = page.colours(canvas, n)
        looks.add(rgb.tobytes())
        along = brightness(rgb).ravel()[history.cosines[k].float().numpy().ravel().argsort(kind="stable")]
        assert np.diff(along).min() > -1.5
        assert page.locator("#history-curves .mark.now title").all_text_contents() == [f"step {step}"] * 4
    assert len(looks) == len(history.steps)
    page.mouse.move(*page.point(2, 4, canvas, n))
    note = page.text("#history-note")
    assert f"cosine {float(history.cosines[-1, 2, 4]):.3f}" in note
    assert "Image 2 (fixed 2) with text 4: fixed 4" in note
    page.slide("#step", 1)
    assert f"cosine {float(history.cosines[1, 2, 4]):.3f}" in page.text("#history-note")
    page.keyboard.press("Escape")
    page.locator(canvas).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    assert "Image 3 (fixed 3) with its own text" in page.text("#history-note")


def test_the_history_plays(page: Screen, found: Inspection) -> None:
    assert found.history is not None
    steps, seen_steps = found.history.steps, []
    page.click("#play")
    page.until("document.getElementById('play').textContent === 'Pause'")
    for step in steps:
        page.until(f"document.getElementById('step-value').textContent === '{step}'")
        seen_steps.append(page.locator("#step").input_value())
    assert seen_steps == [str(k) for k in range(len(steps))]
    page.until("document.getElementById('play').textContent === 'Play'")
    page.locator("#play").focus()
    page.keyboard.press("Enter")  # from the start again
    page.until(f"document.getElementById('step-value').textContent === '{steps[1]}'")
    page.keyboard.press("Enter")
    assert page.text("#play") == "Play"
    page.wait_for_timeout(600)
    assert page.text("#step-value") == str(steps[1])
    page.click("#play")
    page.slide("#step", 0)  # a hand at the slider stops it
    page.wait_for_timeout(600)
    assert page.text("#step-value") == str(steps[0]) and page.text("#play") == "Play"


def test_without_a_history_there_is_no_such_part(visit: Visits, found: Inspection, tmp_path: Path) -> None:
    page = visit(write_report(replace(found, history=None), tmp_path / "report.html"))
    assert page.locator("#history").is_hidden() and page.locator("#history-link").is_hidden()


@pytest.mark.parametrize("tone", ["good", "unsure"])
def test_without_verdicts_it_says_what_was_looked_at(
    visit: Visits, found: Inspection, tmp_path: Path, tone: Literal["good", "unsure"]
) -> None:
    calm = replace(
        found, verdicts=[], summary=Summary(tone, "Nothing <b>", "R@1 is 20 %", "Looked at were `two` pairs.")
    )
    page = visit(write_report(calm, tmp_path / "report.html"))
    assert page.text("#verdicts") == "Nothing <b>. R@1 is 20 %. Looked at were two pairs."
    assert page.texts("#verdicts code") == page.texts("#verdict code") == ["two"]
    for place in ("#verdict", "#verdicts .verdict"):
        assert set(str(page.locator(place).get_attribute("class")).split()) == {"verdict", tone}


def test_the_table_of_losses(page: Screen, found: Inspection) -> None:
    page.locator("#losses").scroll_into_view_if_needed()
    page.until("[...document.querySelectorAll('#losses .share')].every((e) => e.textContent.includes('diagonal'))")
    negatives = found.cosine.masked_fill(found.positives, -2)
    rows = page.locator("#losses tbody tr")
    assert rows.evaluate_all("all => all.map((e) => e.dataset.loss)") == list(found.losses)
    for k, (name, view) in enumerate(found.losses.items()):
        _, label, value, chance, over, unit, share = rows.nth(k).locator("td, th").all_inner_texts()
        assert [number(value), number(chance)] == pytest.approx([view.value, view.chance], rel=6e-4)
        assert number(over) == pytest.approx(view.value / view.chance, rel=6e-3)
        assert unit == view.unit and ("trained with" in label) == (name == "sigmoid")
        mass = view.gradient.abs()
        hardest = mass.gather(1, negatives.argmax(1, keepdim=True)).sum() / mass.sum()
        ours = [float(mass.diagonal().sum() / mass.sum()), float(hardest)]
        shares = [float(share) for share in re.findall(r"([\d.]+)\s%", share)]
        assert shares == pytest.approx([100 * share for share in [*ours, 1 - sum(ours)]], abs=0.6)
    rows.nth(list(found.losses).index("focal")).locator("button").click()
    assert page.evaluate("[miniclipPage.view(), miniclipPage.loss()]") == ["gradient", "focal"]
    assert page.locator("#loss").input_value() == "focal" and page.locator("#view").input_value() == "gradient"


# ---- pointer, keyboard and touch


def test_a_click_pins_and_escape_unpins(page: Screen) -> None:
    assert not page.over(2, 3)["pinned"]
    page.mouse.click(*page.point(4, 9))
    cell = page.over(15, 1)
    assert (cell["at"], cell["pinned"]) == ([4, 9], True)
    page.keyboard.press("Escape")
    assert not page.shown()["pinned"] and page.over(15, 2)["at"] == [15, 2]
    for row, pinned in ((4, True), (5, True), (5, False)):
        page.mouse.click(*page.point(row, 9))
        cell = page.shown()
        assert (cell["at"], cell["pinned"]) == ([row, 9], pinned)


def test_the_keyboard_does_what_the_pointer_does(page: Screen, found: Inspection) -> None:
    page.choose(order="cluster")
    order = found.orders["cluster"]
    place = lambda: [order.index(k) for k in page.shown()["at"]]  # noqa: E731
    page.mouse.click(*page.point(2, 3))
    page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    assert page.evaluate("document.activeElement.id") == "matrix"
    walk = "Down 3 3, Right 3 4, +Down 13 4, +Right 13 14, Up 12 14, +Left 12 4, +Left 12 0, +Up 2 0"
    for key, *there in map(str.split, walk.split(", ")):
        page.keyboard.press(f"Shift+Arrow{key[1:]}" if key[0] == "+" else f"Arrow{key}")
        assert place() == [int(k) for k in there]
    said = page.text("#announcer")
    assert said.startswith(f"Image {order[2]}, text {order[0]}, cosine ")
    assert number(said.split()[-1]) == pytest.approx(float(found.cosine[order[2], order[0]]), rel=6e-3)
    page.keyboard.press("Enter")
    assert page.shown()["pinned"]
    page.keyboard.press("ArrowRight")
    assert place() == [2, 1] and page.shown()["pinned"]
    page.keyboard.press("Escape")
    assert not page.shown()["pinned"]
    for key, way in (("+", ">"), ("+", ">"), ("-", "<"), ("0", "<")):
        zoom = float(page.data("zoom") or 1)
        page.keyboard.press(key)
        page.until(f"document.getElementById('matrix').dataset.zoom {way} {zoom}")
    assert page.data("zoom") == "1.00"
    assert all(word in page.text("#keys") for word in ("arrows", "Shift", "Enter", "Escape", "zoom"))


def test_the_free_energy_is_read_with_pointer_and_keyboard(page: Screen, found: Inspection) -> None:
    energy = found.free_energy_of_images
    images, texts = energy.argsort().tolist(), found.free_energy_of_texts.argsort().tolist()
    page.locator("#energy").focus()  # starts at the worst
    worst, note = images[-1], page.text("#energy-note")
    assert note.startswith(f"Image {worst} ({found.names[worst]}), rank {N} of {N}: ")
    assert number(note.split(": ")[1].split()[0]) == pytest.approx(float(energy[worst]), rel=6e-4)
    assert note.endswith(found.captions[worst])
    for keys, place in (("ArrowDown", -1), ("Shift+ArrowLeft ArrowLeft", -12), ("Home", 0)):
        for key in keys.split():
            page.keyboard.press(key)
        assert page.text("#energy-note").startswith(f"Text {texts[place]} ")
    page.keyboard.press("Enter")
    cell = page.shown()
    assert (cell["at"], cell["pinned"]) == ([texts[0]] * 2, True)
    page.locator("#energy").hover(position={"x": page.box("#energy")["width"] - 9, "y": 30})
    assert f"rank {N} of {N}" in page.text("#energy-note")


def test_zooming_keeps_the_cell_and_shows_the_images(page: Screen) -> None:
    x, y = page.point(13, 10)
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    for _ in range(8):
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(30)
    page.keyboard.up("Control")
    page.until("document.getElementById('matrix').dataset.zoom > 4")
    zoom = page.data("zoom")
    page.mouse.move(x + 1, y)
    assert page.shown()["at"] == [13, 10]
    assert page.data("thumbnails", "#axis-left") == page.data("thumbnails", "#axis-top") == "true"
    for k, left, top in ((13, page.box("#axis-left")["x"] + 20, y), (10, x, page.box("#axis-top")["y"] + 20)):
        shot = page.screenshot(clip={"x": left - 6, "y": top - 6, "width": 12, "height": 12})
        assert seen(shot) == pytest.approx(COLOURS[k], abs=10)
    # dragging pans, and does not pin
    page.mouse.down()
    page.mouse.move(x + 150, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(50)
    assert not page.shown()["pinned"]
    page.mouse.move(x + 151, y)
    assert page.shown()["at"] == [13, 10]
    page.mouse.move(x, y)
    assert page.shown()["at"][1] < 10
    page.mouse.wheel(0, 300)  # without Control the page scrolls
    page.until("document.scrollingElement.scrollTop > 0")
    assert page.data("zoom") == zoom
    page.click("#zoom-reset")
    page.until("document.getElementById('matrix').dataset.zoom === '1.00'")


def test_lists_name_their_cells_and_pin_them(visit: Visits, written: Path, found: Inspection) -> None:
    page = visit(written, reduced_motion="reduce")  # else it scrolls softly
    badges = {"text": ["same text"], "image": ["same image"], "both": ["same text and image"], None: []}
    for name in ("false-negatives", "hardest-negatives", "worst-positives"):
        cells, items = getattr(found, name.replace("-", "_")), page.locator(f"#{name} li")
        assert items.count() == min(len(cells), 12)
        assert page.text("#suspicion") == found.suspicion
        assert page.text(f"#{name}-count") == ("3 of 250" if name == "false-negatives" else str(len(cells)))
        if len(cells) > 12:
            page.click(f"#{name} + button.more")
            assert items.count() == len(cells)
        for k in {0, 1, len(cells) // 2, len(cells) - 1}:
            cell, item = cells[k], items.nth(k)
            text, both = item.inner_text(), [cell.i] if cell.i == cell.j else [cell.i, cell.j]
            assert all(found.captions[which] in text for which in both)
            cosine, margin = re.search(r"cosine (\S+)\s+margin (\S+)", text).groups()  # type: ignore[union-attr]
            assert float(cosine) == pytest.approx(cell.cosine, rel=6e-3)
            assert float(margin) == pytest.approx(cell.margin)
            counted = ["counted as positive"] if cell.positive and cell.i != cell.j else []
            assert item.locator(".badge").all_inner_texts() == badges[cell.duplicate] + counted
            for place, which in enumerate(both):
                assert seen(item.locator(".thumb").nth(place)) == pytest.approx(COLOURS[which], abs=10)
            item.locator("button").click()
            after = page.shown()
            assert (after["at"], after["pinned"]) == ([cell.i, cell.j], True)
            assert page.evaluate("document.activeElement.id") == "matrix"


def test_a_tap_pins_and_a_phone_needs_no_sideways_scrolling(visit: Visits, written: Path, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    page, width = visit(written, **phone), "document.scrollingElement.scrollWidth"
    for pinned in (True, False):
        page.touchscreen.tap(*page.point(4, 9))
        cell = page.shown()
        assert (cell["at"], cell["pinned"]) == ([4, 9], pinned)
        assert page.box("#details")["width"] > 300
    for view in VIEWS:
        page.choose(view=view)
        assert page.evaluate(width) <= 360
    page.choose(compare="transport")
    page.wait_for_timeout(50)
    assert page.evaluate(width) <= 360
    box = page.box("#matrix2")
    assert box["x"] + box["width"] <= 360 and box["width"] > 280
    worst = visit(write_report(nasty(), tmp_path / "report.html"), len(NASTY), **phone)
    for k in range(len(NASTY)):
        worst.touchscreen.tap(*worst.point(k, k))
        assert worst.evaluate(width) <= 360


def test_a_pinch_zooms(visit: Visits, written: Path) -> None:
    page = visit(written, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    (x, y), session = page.point(N / 2, N / 2), page.context.new_cdp_session(page.page)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", None)):
        fingers = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    page.until("document.getElementById('matrix').dataset.zoom > 2")
    assert page.evaluate("visualViewport.scale") == 1 and not page.shown()["pinned"]


# ---- other screens and readers, odd data


def test_light_and_dark(visit: Visits, written: Path) -> None:
    light, dark = visit(written, color_scheme="light"), visit(written, color_scheme="dark")

    def look(page: Screen) -> tuple[float, float, bytes]:
        style = "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))"
        rgb = [np.array(re.findall(r"\d+", colour)[:3], dtype=float) for colour in page.evaluate(style)]
        return float(brightness(rgb[0])), float(brightness(rgb[1])), page.colours().tobytes()

    for page in (light, dark):
        page.choose(view="gradient")
    bright, dim = look(light), look(dark)
    assert bright[0] > 200 > 80 > bright[1] and dim[0] < 60 < 180 < dim[1]
    assert bright[2] != dim[2]  # the middle of the diverging colours
    for page, there, back in ((light, dim, bright), (dark, bright, dim)):
        for wanted in (there, back):
            page.click("#theme")
            assert look(page) == wanted


def test_everything_is_reached_by_tab_and_has_a_name(page: Screen) -> None:
    reachable = """[...document.querySelectorAll(
        "a[href], button:enabled, select:enabled, input:enabled, [tabindex='0']"
    )].filter((e) => e.checkVisibility()).map((e, k) => { e.dataset.k = k; return k; })"""
    wanted, reached = page.evaluate(reachable), []
    assert len(wanted) > 40
    for _ in wanted:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("Number(document.activeElement.dataset.k ?? -1)"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert sorted(reached) == wanted
    named: dict[str, list[str]] = {}
    for node in page.context.new_cdp_session(page.page).send("Accessibility.getFullAXTree")["nodes"]:
        if not node.get("ignored"):
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            named.setdefault(role, []).append(name.strip())
    assert len(named["combobox"]) == 4 and len(named["slider"]) == 2 and len(named["button"]) > 20
    for role in ("combobox", "slider", "button", "link", "application", "image", "img", "Canvas", "navigation"):
        assert all(named.get(role, ["-"])), role
    assert len(named["application"]) == 3  # the matrix, that of the history, and the free energy
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(set(ids)) == len(ids)


def test_text_of_the_data_stays_text(visit: Visits, page: Screen, tmp_path: Path) -> None:
    n, scripts = len(NASTY), "document.scripts.length"
    victim = visit(write_report(nasty(), tmp_path / "report.html"), n)
    assert victim.evaluate(scripts) == page.evaluate(scripts)
    for row in range(n):
        cell = victim.over(row, n - 1 - row)
        assert cell["captions"] == cell["names"][::-1] == [NASTY[row], NASTY[n - 1 - row]]
    victim.mouse.move(*victim.point(1, 2, "#history-matrix", 6))
    assert NASTY[1] in victim.text("#history-note")
    victim.locator("#energy").focus()
    victim.locator("#losses").scroll_into_view_if_needed()
    for button in victim.locator(".more").all():
        button.click()
    victim.wait_for_timeout(100)
    assert victim.evaluate("window.hacked") is None
    assert victim.evaluate("document.querySelectorAll('img, iframe, [onerror], [onload]').length") == 0
    assert NASTY[1] in victim.title() and NASTY[1] in victim.text("h1")
    heard = victim.locator("#verdicts").text_content() or ""
    assert all(text in heard for text in NASTY if text.isprintable())
    assert victim.text("#verdicts h3") == NASTY[0] and NASTY[1] in victim.text("#verdict")
    victim.locator("#find").fill(NASTY[2])
    assert victim.text("#found") == "1 of 2" and victim.text("#suspicion") == NASTY[3]
    assert [victim.texts(f"#about {tag}")[1] for tag in ("dt", "dd")] == [NASTY[1]] * 2
    label, value, help_ = victim.texts("#figures tbody tr :is(th, td)")
    assert [label, help_] == [NASTY[1], NASTY[3]] and value.endswith("<u>")


def test_two_pairs_and_numbers_that_are_none(visit: Visits, tmp_path: Path) -> None:
    built, nan = inspecting.inspection(2), math.nan
    figures = {"loss": torch.tensor([nan]), "logit_scale": torch.tensor([nan])}
    history = replace(inspecting.history(2, 1), figures=figures, training={"step": [1.0, 2.0], "loss": [nan, 1.0]})
    broken = built.losses["softmax"].gradient.clone()
    broken[0, 1] = nan
    losses = built.losses | {"softmax": replace(built.losses["softmax"], gradient=broken, value=math.inf)}
    energies = {"free_energy_of_images": torch.tensor([nan, 1.0]), "free_energy_of_texts": torch.tensor([nan, nan])}
    figure = Figure("odd", "odd", None, "", "none")
    built = replace(built, losses=losses, history=history, figures=[figure], **energies)
    page = visit(write_report(built, tmp_path / "report.html"), 2)
    page.choose(view="gradient")
    assert page.over(0, 1)["rows"]["Gradient, softmax"][0] == "n/a"
    assert page.text("#figures tbody .number") == "n/a"
    page.locator("#losses").scroll_into_view_if_needed()
    page.locator("#energy").hover()
    page.wait_for_timeout(100)
    assert "NaN" not in page.evaluate("document.querySelector('main').innerHTML")


def test_more_than_512_pairs_are_rounded_and_say_so(visit: Visits, tmp_path: Path) -> None:
    n = 513
    built = replace(inspecting.inspection(n), thumbnails=plain(n))
    page = visit(write_report(built, tmp_path / "report.html"), n)
    page.choose(view="gradient")
    page.until("document.getElementById('matrix').dataset.view === 'gradient'")
    ours = expected(built, "gradient", "softmax")
    flushed = np.abs(ours).max() * 2.0**-17
    close = (half_a_step(ours, 5) + half_a_step(ours) + flushed)[::16]
    assert (np.abs(page.values("gradient", 16) - ours[::16]) <= close).all()
    assert np.array_equal(page.values("cosine", 16), built.cosine.float().double().numpy()[::16])
    i, j = 512, 300  # of the third sheet of images, and of the second
    cell = page.over(i, j)
    assert cell["at"] == [i, j]
    assert cell["rows"]["Gradient, softmax"][0].startswith("about ") and not cell["rows"]["Cosine"][0].startswith("a")
    for place, which in enumerate((i, j)):
        assert seen(page.locator("#details .thumb").nth(place)) == pytest.approx(COLOURS[which], abs=10)
