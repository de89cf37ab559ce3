"""The app: what its server gives and refuses, and its page in a real Chromium, on a desk and on a phone."""

from __future__ import annotations

import http.client
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.browsing import NASTY, Screen, Visits, brightness, seen
from support.files import image_of, number_of, png, png_header, write_image
from support.indexes import write_index
from support.models import save_tiny

from miniclip.cli.single import single
from miniclip.evaluation.encode import fingerprint
from miniclip.models.load import load
from miniclip.search.app.answers import AT_ONCE, MAX_BYTES, Answers
from miniclip.search.app.server import Server
from miniclip.search.query import Searcher, open_searcher

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest_plugins = ["support.pages"]

N, SCALE, PROMPT = 70, 30.0, "a photo of a {}."
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
HOSTILE = [text for text in NASTY if "surrogate" not in text]  # which no Parquet file holds
NAMES = [f"<img src=x onerror='window.hacked={k}'>.png" if k % 2 else f"<b>{k}.png" for k in range(N)]


class App(NamedTuple):
    """address: ends with a slash."""

    server: Server
    searcher: Searcher
    address: str

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
        """Status, headers and body of an answer; headers=None leaves one out."""
        with closing(http.client.HTTPConnection(*self.server.server_address, timeout=20)) as connection:  # type: ignore[arg-type]
            connection.putrequest(method, path, skip_host=True)
            given = {"Host": self.address[7:-1]} | ({"Content-Length": str(len(body))} if method == "POST" else {})
            for name, value in (given | {name.replace("_", "-"): value for name, value in headers.items()}).items():
                if value:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, path: str, **values: Any) -> Any:
        status, _, content = self.ask(f"/{path}?{urlencode(values, doseq=True)}")
        assert status == 200, content
        return json.loads(content)

    def nearest(self, **query: Any) -> list[int]:
        """Rows, by the search that the command has, too."""
        return self.searcher.nearest(self.searcher.query(**query), N)[0].tolist()


def index_of(folder: Path, paths: list[str], captions: list[str | None], dim: int = 16) -> Path:
    """Of a tiny model, with embeddings at random, of images below folder/photos."""
    model = save_tiny(folder / "model")
    values = np.random.default_rng(0).normal(size=(len(paths), dim))
    told = {"scale": SCALE, "source": "<i>photos</i>"}
    write_index(folder / "i", folder / "photos", paths, values, captions, model, fingerprint(load(model)[0]), **told)
    return folder / "i"


@contextmanager
def serving(index: Path) -> Iterator[App]:
    with Server(0) as server:
        searcher = open_searcher(index)
        server.answers = Answers(searcher)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield App(server, searcher, server.address)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Image k has the colour of k; names and captions mean harm."""
    folder = tmp_path_factory.mktemp("app")
    for number, name in enumerate(NAMES):
        image_of(number, (64, 40)).save(write_image(folder / "photos" / name, number))
    captions: list[str | None] = [HOSTILE[k % len(HOSTILE)] if k < N - 1 else None for k in range(N)]
    with serving(index_of(folder, NAMES, captions)) as served:
        yield served


# ---- the server


def test_answers_are_those_of_the_model(app: App) -> None:
    model, preprocess, tokenizer = load(app.searcher.index.about.model)
    with torch.no_grad():
        dog, cat, mouse, plain = F.normalize(
            model.encode_text(tokenizer(["a photo of a dog.", "a photo of a cat.", "a photo of a <b>.", "dog"])), dim=-1
        )
        picture = F.normalize(model.encode_image(preprocess(image_of(9, (50, 90)))[None]), dim=-1)[0]
    answer = app.json("search", words=" dog ")
    cosines = torch.tensor(app.searcher.index.embeddings) @ plain
    best = cosines.argsort(descending=True)[:AT_ONCE]
    assert [one["row"] for one in answer["found"]] == best.tolist() and answer["all"] == N
    assert [one["cosine"] for one in answer["found"]] == pytest.approx(cosines[best].tolist(), abs=1e-6)

    status, _, content = app.ask("/picture", "POST", png(9, (50, 90)))
    name = json.loads(content)["picture"]
    assert status == 200
    answer = app.json("classify", picture=name, label=["dog", "cat ", "<b>", "CAT", " "], template=PROMPT)
    shares = (SCALE * torch.stack([dog, cat, mouse]) @ picture).softmax(0).tolist()
    assert {one["label"] for one in answer["labels"]} == {"dog", "CAT", "<b>"}
    assert sorted(shares, reverse=True) == pytest.approx([one["probability"] for one in answer["labels"]], abs=1e-5)


def test_a_search_goes_on_where_it_stopped(app: App) -> None:
    every = [one for start in (0, AT_ONCE) for one in app.json("search", words="a", start=start)["found"]]
    assert [one["row"] for one in every] == app.nearest(words="a")
    first = app.json("search")
    assert [one["row"] for one in first["found"]] == list(range(AT_ONCE)) and first["found"][0]["cosine"] is None
    assert [one["row"] for one in app.json("search", start=AT_ONCE)["found"]] == list(range(AT_ONCE, N))
    like = app.json("search", picture=7)
    assert like["all"] == N - 1 and 7 not in [one["row"] for one in like["found"]]


def test_ten_thousand_images_are_searched_in_a_moment(tmp_path: Path) -> None:
    with serving(index_of(tmp_path, [f"{k}.png" for k in range(10_000)], [])) as app:
        times = []
        for number in range(20):
            start = time.perf_counter()
            assert len(app.json("search", words=f"a word {number}")["found"]) == AT_ONCE
            times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9999"}, 200),  # a tunnel's other end
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": ""}, 403),
        ({"Host": "evil.example:7860"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
def test_only_its_own_page_may_ask(app: App, headers: dict[str, str], status: int) -> None:
    for path, method in (("/about", "GET"), ("/search?words=a", "GET"), ("/image/3", "GET"), ("/picture", "POST")):
        assert app.ask(path, method, png(3), **headers)[0] == status, path
    assert app.ask("/", **headers)[0] == (200 if "Sec_Fetch_Site" in headers else status)


@pytest.mark.parametrize(
    "path",
    [
        *("/image/", "/image/-1", "/image/70", "/image/1e1", "/image/%D9%A3", "/image/0x1", "/image/3/", "/image//3"),
        *("/image/..%2f..%2fmodel%2fmodel.json", "/image/../../model/model.json", "/image/%3Cb%3E0.png"),
        *("/image/" + "9" * 400, "/photos/0.png", "/etc/passwd", "/..", "/../page.html", "/page.html", "/server.py"),
    ],
)  # fmt: skip
def test_an_address_is_no_path(app: App, path: str) -> None:
    status, headers, content = app.ask(path)
    assert status == 404 and headers["Content-Type"] == "application/json" and set(json.loads(content)) == {"error"}


def test_files_outside_of_the_folder_are_never_served(tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png", 5)
    write_image(tmp_path / "photos" / "own.png", 6)
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "photos" / "text.png").write_text("a secret")
    paths = [
        "own.png",
        "link.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "/etc/passwd",
        "text.png",
        "gone.png",
    ]
    with serving(index_of(tmp_path, paths, [])) as app:
        answers = [app.ask(f"/image/{row}") for row in range(len(paths))]
        assert [status for status, *_ in answers] == [200, *[404] * 6]
        for _, _, content in answers[1:]:
            assert json.loads(content)["error"].count("\n") == 0 and b"a secret" not in content
        (tmp_path / "photos").rename(tmp_path / "elsewhere")
        app.server.answers.thumbnail.cache_clear()
        status, _, content = app.ask("/image/0")
        assert status == 404 and "is not there" in json.loads(content)["error"]


def test_thumbnails_are_small_and_made_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    status, headers, content = app.ask("/image/9?whatever")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and "private" in headers["Cache-Control"]
    with Image.open(BytesIO(content)) as thumbnail:
        assert thumbnail.size == (64, 40) and abs(number_of(thumbnail.convert("RGB")) - 9) < 4
    monkeypatch.setattr(type(app.searcher.index), "image", None)
    assert app.ask("/image/9")[2] == content


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    sizes = {(3000, 2000): (480, 320), (500, 1000): (320, 640), (9000, 90): (1280, 13), (9, 9): (9, 9)}
    for number, size in enumerate(sizes):
        image_of(number, size).save(write_image(tmp_path / "photos" / f"{number}.jpg", 0))
    with serving(index_of(tmp_path, [f"{k}.jpg" for k in range(len(sizes))], [])) as app:
        for number, expected in enumerate(sizes.values()):
            with Image.open(BytesIO(app.ask(f"/image/{number}")[2])) as thumbnail:
                assert thumbnail.size == expected


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/search?not=a", "look for"),
        ("/search?picture=p0123", "again"),
        ("/search?picture=../x", "again"),
        ("/classify?label=a&label=b&template={}", "again"),
        ("/classify?picture=1&label=a&template={}", "two labels"),
        ("/classify?picture=1&label=a&label=A&template={}", "two labels"),
        ("/classify?picture=1&label=a&label=b&template=x", "lacks {}"),
        (f"/classify?picture=1&template={{}}&{urlencode([('label', k) for k in range(300)])}", "300 labels"),
    ],
)
def test_what_cannot_be_asked_is_said(app: App, path: str, says: str) -> None:
    status, _, content = app.ask(path)
    assert status == 400 and says in json.loads(content)["error"]


@pytest.mark.parametrize(
    ("body", "status", "says", "headers"),
    [
        (b"GIF89a", 400, "the picture", {}),
        (b"", 400, "the picture", {}),
        (png_header(9_000, 9_000), 400, "exceed the limit", {}),
        (b"x", 413, "50 MB", {"Content_Length": str(MAX_BYTES + 1)}),
        (b"x", 413, "50 MB", {"Content_Length": "9" * 30}),
        (b"x", 411, "length", {"Content_Length": "-1"}),
        (b"x", 411, "length", {"Content_Length": ""}),
    ],
    ids=["no_image", "empty", "bomb", "large", "larger", "negative", "unknown"],
)
def test_pictures_that_are_refused(app: App, body: bytes, status: int, says: str, headers: dict[str, str]) -> None:
    found, _, content = app.ask("/picture", "POST", body, **headers)
    assert found == status and says in json.loads(content)["error"]


def test_every_answer_keeps_the_browser_to_the_page(app: App) -> None:
    asked = [app.ask(path) for path in ("/", "/page.js", "/page.css", "/about", "/image/1", "/nothing", "/image/-1")]
    asked += [app.ask("/about", Host="evil.example"), app.ask("/about", "DELETE"), app.ask("/about", "OPTIONS")]
    for status, headers, _ in asked:
        policy = headers["Content-Security-Policy"]
        assert (
            policy.startswith("default-src 'none';") and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers, status
    assert [status for status, *_ in asked[-3:]] == [403, 501, 501]


def test_a_port_in_use_is_one_line(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    port = str(app.server.server_address[1])
    assert single("app", [str(app.searcher.index.folder), "--port", port]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and f"--port {port} " in said.err and "--port 0" in said.err
    assert single("app", [str(app.searcher.index.folder), "--port", "70000"]) == 2


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(app: App) -> None:
    words = [sys.executable, "-m", "miniclip", "app", str(app.searcher.index.folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        line = process.stdout.readline()
        host, port = line.split("/")[2].split(":")
        assert host == "127.0.0.1" and "70 images" in line
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("GET", "/about")
        assert json.load(connection.getresponse())["count"] == N
        process.send_signal(signal.SIGINT)  # with that connection still open
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


# ---- the page


def rows(page: Page | Screen) -> list[int]:
    script = "() => [...document.querySelectorAll('#found li')].map((one) => Number(one.dataset.row))"
    found: list[int] = page.evaluate(script)
    return found


def until(page: Screen, expected: list[int]) -> None:
    """Wait for the images that are to be seen, in their order."""
    end = time.monotonic() + 10
    while rows(page) != expected:
        assert time.monotonic() < end, f"{rows(page)[:8]} instead of {expected[:8]}; {page.text('#trouble')}"
        page.wait_for_timeout(20)


@pytest.fixture(params=["desk", "phone"])
def page(request: pytest.FixtureRequest, visit: Visits, app: App) -> Screen:
    """As it opens, with the first images."""
    page = visit.of(app.address, **(PHONE if request.param == "phone" else {}))
    until(page, list(range(AT_ONCE)))
    return page


def test_types_and_sees_images(page: Screen, app: App) -> None:
    assert page.title() == "i" and page.text("#about").startswith("70 images of <i>photos</i>, by ")
    page.locator("#words").press_sequentially("a dog")
    expected = app.nearest(words="a dog")
    until(page, expected[:AT_ONCE])
    assert page.texts("#found .score")[:2] == [
        f"{one['cosine']:.3f}" for one in app.json("search", words="a dog")["found"][:2]
    ]
    first = page.locator("#found img").first
    first.scroll_into_view_if_needed()
    page.until("document.querySelector('#found img').naturalWidth === 64")
    assert abs(seen(first)[0] - expected[0]) < 4
    page.click("#more")
    until(page, expected)
    assert page.locator("#more").is_hidden()
    page.fill("#words", "")
    until(page, list(range(AT_ONCE)))


def test_hostile_names_and_captions_are_text(page: Screen) -> None:
    assert page.texts("#found .name")[:2] == ["<b>0.png", "<img src=x onerror='window.hacked=1'>.png"]
    assert page.texts("#found .caption")[0] == HOSTILE[0] and page.locator("#found .caption").count() == AT_ONCE
    for selector in ("#found script", "#found b", "#found svg", "#about i", "#given b"):
        assert page.locator(selector).count() == 0
    page.locator("#found button").nth(1).click()
    page.until("document.getElementById('picture-name').textContent !== ''")
    assert page.text("#picture-name") == "<img src=x onerror='window.hacked=1'>.png"
    assert page.text("#picture-caption") == HOSTILE[1]
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_more_like_one_with_words_and_without_others(page: Screen, app: App, visit: Visits) -> None:
    vector = app.searcher.index.embeddings[4]

    def like(**query: Any) -> list[int]:
        found = app.nearest(images=[vector], **query)
        return [row for row in found if row != 4][:AT_ONCE]

    page.locator("#found button").nth(4).click()
    until(page, like())
    assert page.evaluate("scrollY") == 0
    page.fill("#words", "a dog")
    until(page, like(words="a dog"))
    page.fill("#not", "snow")
    until(page, like(words="a dog", not_="snow"))
    page.click("#clear")
    until(page, app.nearest(words="a dog", not_="snow")[:AT_ONCE])
    page.go_back()
    until(page, like(words="a dog", not_="snow"))
    assert page.text("#picture-name") == "<b>4.png"
    page.reload()
    until(page, like(words="a dog", not_="snow"))
    page.go_back()
    until(page, list(range(AT_ONCE)))
    page.fill("#not", "snow")
    page.until("!document.getElementById('trouble').hidden")
    assert "look for" in page.text("#trouble") and rows(page) == []
    visit.complaints.clear()  # of the browser itself, that the answer was 400


def test_a_picture_of_ones_own(page: Screen, app: App, visit: Visits) -> None:
    vector = app.searcher.picture(image_of(200, (80, 60)))
    content = png(200, (80, 60))
    page.set_input_files("#file", {"name": "<u>mine.png", "mimeType": "image/png", "buffer": content})
    until(page, app.nearest(images=[vector])[:AT_ONCE])
    assert page.text("#picture-name") == "<u>mine.png" and abs(seen(page.locator("#picture"))[0] - 200) < 4
    page.fill("#words", "a dog")
    until(page, app.nearest(words="a dog", images=[vector])[:AT_ONCE])
    dropped = png(90, (80, 60))
    page.evaluate(
        """(bytes) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            for (const kind of ["dragover", "drop"]) document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",  # noqa: E501
        list(dropped),
    )
    until(page, app.nearest(words="a dog", images=[app.searcher.picture(image_of(90, (80, 60)))])[:AT_ONCE])
    assert page.locator("#dropping").is_hidden() and page.text("#picture-name") == "dropped.png"
    assert visit.complaints == []
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    page.until("!document.getElementById('trouble').hidden")
    assert "the picture" in page.text("#trouble") and page.text("#picture-name") == "dropped.png"
    visit.complaints.clear()
    page.reload()  # what was uploaded is not asked for again
    until(page, app.nearest(words="a dog")[:AT_ONCE])


def test_labels_get_their_probabilities(page: Screen, app: App, visit: Visits) -> None:
    page.click("#to-classify")
    page.until("document.getElementById('said').textContent.startsWith('Choose a picture')")
    assert page.locator("#words").is_hidden() and page.locator("#found").is_hidden()
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": png(7, (30, 30))})
    page.until("document.getElementById('said').textContent.startsWith('Type two')")
    labels = ["dog", "cat", "<script>window.hacked=1</script>", "many words " * 40]
    page.fill("#labels", "\n".join(labels))
    page.until("document.querySelectorAll('#bars li').length === 4")
    vector = app.searcher.picture(image_of(7, (30, 30)))
    cosines = app.searcher.words([" ".join(label.split()) for label in labels], (PROMPT,)) @ vector
    shares = torch.from_numpy(SCALE * cosines).double().softmax(0).sort(descending=True)
    assert page.texts("#bars .percent") == [f"{100 * share:.1f} %" for share in shares.values.tolist()]
    assert page.texts("#bars .label") == [" ".join(labels[k].split()) for k in shares.indices.tolist()]
    widths = [page.box(f"#bars li:nth-child({k + 1}) .fill")["width"] for k in range(4)]
    whole = page.box("#bars .track >> nth=0")["width"]
    assert np.allclose(np.array(widths) / whole, shares.values, atol=0.01)
    page.fill("#template", "no place")
    page.until("!document.getElementById('trouble').hidden")
    assert "lacks {}" in page.text("#trouble") and page.locator("#bars li").count() == 0
    visit.complaints.clear()
    page.fill("#template", "{}")
    page.until("document.getElementById('trouble').hidden")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("window.hacked") is None
    page.click("#to-search")
    until(page, app.nearest(images=[vector])[:AT_ONCE])


def test_by_the_keyboard_alone(visit: Visits, app: App) -> None:
    page = visit.of(app.address)
    until(page, list(range(AT_ONCE)))
    assert page.evaluate("document.activeElement.id") == "words"  # ready to type
    page.keyboard.type("a dog")
    expected = app.nearest(words="a dog")
    until(page, expected[:AT_ONCE])

    def at() -> int:
        found: int = page.evaluate("Number(document.activeElement.closest('li')?.dataset.row ?? -1)")
        return found

    for _ in range(3):
        page.keyboard.press("Tab")  # over what is not to be found, and the picture
    assert at() == expected[0]
    page.keyboard.press("ArrowRight")
    assert at() == expected[1]
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("getComputedStyle(document.getElementById('found')).gridTemplateColumns.split(' ').length")
    assert at() == expected[1 + columns]
    page.keyboard.press("Enter")
    page.until("document.getElementById('picture-name').textContent !== ''")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"


def test_it_is_dark_where_the_system_is(visit: Visits, app: App) -> None:
    shades = []
    for scheme in ("light", "dark"):
        page = visit.of(app.address, color_scheme=scheme)
        until(page, list(range(AT_ONCE)))
        corner = page.screenshot(clip={"x": 0, "y": 0, "width": 20, "height": 20})
        shades.append(float(brightness(np.array(seen(corner)))))
    assert shades[0] > 240 and shades[1] < 40


def test_what_goes_wrong_is_seen(visit: Visits, tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", 1)
    with serving(index_of(tmp_path, ["a.png", "gone.png"], [])) as app:
        page = visit.of(app.address)
        until(page, [0, 1])
        page.until("document.querySelectorAll('#found .lost').length === 1")
        assert "cannot be read" in page.text("#found li:nth-child(2)")
        page.until("document.querySelector('#found img').naturalWidth === 4")
        page.context.set_offline(True)  # as if the app had ended
        page.fill("#words", "a dog")
        page.until("!document.getElementById('trouble').hidden")
        assert "still running" in page.text("#trouble") and rows(page) == []
    assert all("Failed to load resource" in line for line in visit.complaints)
    visit.complaints.clear()
