"""Search: what is nearest, exactly and by the graph; queries; groups; and what the command prints and writes."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.browsing import NASTY, Visits
from support.files import image_of, write_images
from support.indexes import write_index
from support.models import save_tiny, tiny_model
from torch.nn.functional import normalize

from miniclip.cli.single import single
from miniclip.evaluation.encode import encode_images, fingerprint
from miniclip.models.preprocess import Preprocess
from miniclip.search import vectors
from miniclip.search.query import Searcher, open_searcher
from miniclip.search.store import VECTORS, open_index
from miniclip.search.vectors import Graph, build, exact, near_groups

pytest_plugins = ["support.pages"]


def unit(n: int, width: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((n, width))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


# Vectors


@pytest.mark.parametrize("k", [1, 3, 9, 50])
def test_the_nearest_by_hand_with_ties_in_the_order_of_the_rows(k: int) -> None:
    x = np.random.default_rng(1).choice([-0.25, 0.25], (30, 16)).astype(np.float32)  # products without rounding
    rows, cosines = exact(x, x[4], k)
    wanted = sorted(range(30), key=lambda row: (-float(x[row] @ x[4]), row))[:k]
    assert [*rows] == wanted
    np.testing.assert_array_equal(cosines, x[wanted] @ x[4])


def test_the_graph_finds_what_is_nearest_and_nothing_else(tmp_path: Path) -> None:
    x, queries = unit(4000, 64), unit(50, 64, seed=1)
    breadth = build(x, tmp_path / VECTORS)
    graph = Graph(tmp_path / VECTORS, x)
    recall = []
    for query in queries:
        rows, cosines = graph.nearest(query, 10)
        np.testing.assert_allclose(cosines, x[rows] @ query, atol=1e-6)
        assert (np.diff(cosines) <= 0).all() and len({*rows}) == 10
        recall.append(np.isin(exact(x, query, 10)[0], rows).mean())
    assert np.mean(recall) >= 0.99
    assert json.loads((tmp_path / "vectors.json").read_text())["breadth"] == breadth < 4000


@pytest.mark.parametrize("harm", ["half", "empty", "others", "narrower", "lost", "noise"])
def test_a_graph_that_is_damaged_or_of_other_images_is_named(harm: str, tmp_path: Path) -> None:
    x, file = unit(300), tmp_path / VECTORS
    build(x, file)
    content = file.read_bytes()
    if harm in ("half", "empty"):
        file.write_bytes(content[: len(content) // 2 if harm == "half" else 0])
    elif harm == "noise":
        file.write_bytes(content[:-2000] + b"\xff" * 2000)
    elif harm == "lost":
        (tmp_path / "vectors.json").unlink()
    other = {"others": x[:200], "narrower": x[:, :8]}.get(harm, x)
    with pytest.raises(ValueError, match=r"vectors.usearch is damaged .*; remove it, and run miniclip index again$"):
        Graph(file, other)


def chained(x: np.ndarray, threshold: float) -> set[tuple[int, ...]]:
    """By hand: grow each group until nothing more is near one of it."""
    near, left, found = x @ x.T >= threshold, set(range(len(x))), set()
    while left:
        group = {left.pop()}
        while more := {j for i in group for j in np.flatnonzero(near[i]).tolist()} - group:
            group |= more
        left -= group
        found |= {tuple(sorted(group))} if len(group) > 1 else set()
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9, 0.9999])
def test_groups_are_those_of_all_pairs_however_they_are_cut(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = unit(150, 8)
    x = np.concatenate([x, x[:9], x[:4]])[np.random.default_rng(0).permutation(163)]
    wanted = chained(x, threshold)
    for tile, pairs in ((4096, 10**6), (7, 10**6), (7, 5)):
        monkeypatch.setattr(vectors, "_TILE", tile)
        monkeypatch.setattr(vectors, "_PAIRS", pairs)
        groups = near_groups(x, threshold)
        assert {tuple(group.tolist()) for group in groups} == wanted and len(groups) == len(wanted)
        assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
    assert near_groups(unit(5), 0.999) == []


# Queries


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an index of twelve images with captions."""
    root = tmp_path_factory.mktemp("search")
    save_tiny(root / "model")
    names = write_images(root / "photos", 12, "{} é.png")
    images = encode_images(tiny_model(), Photos(), Preprocess(32)).numpy()
    told = {"model": str(root / "model"), "fingerprint": fingerprint(tiny_model())}
    captions = [f"caption {k}" if k else None for k in range(12)]
    write_index(root / "index", root / "photos", names, images, captions, **told)
    return root


class Photos:
    def __len__(self) -> int:
        return 12

    def image(self, index: int) -> Image.Image:
        return image_of(index)


@pytest.fixture(scope="module")
def searcher(world: Path) -> Searcher:
    return open_searcher(world / "index")


def embedded(*texts: str) -> np.ndarray:
    model = tiny_model().eval()
    with torch.no_grad():
        return normalize(model.encode_text(model.tokenizer(list(texts)))).numpy()


def normal(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def test_what_a_query_is(world: Path, searcher: Searcher) -> None:
    """By the model itself, in formulas."""
    (dog, snow), row = embedded("a dog", "snow"), searcher.index.embeddings[5]
    for query, wanted in (
        (searcher.query("a dog"), dog),
        (searcher.query(" a dog ", not_="snow"), normal(dog - 0.7 * snow)),
        (searcher.query(images=[row]), row),
        (searcher.query("a dog", images=[row]), normal(dog + row)),
        (searcher.query("a dog", not_="snow", images=[row, -dog]), normal(normal(dog + row - dog) - 0.7 * snow)),
        (searcher.picture(image_of(5)), row),
    ):
        np.testing.assert_allclose(query, wanted, atol=1e-5)
        assert query.dtype == np.float32
    for nothing in ({}, {"words": " "}, {"not_": "snow"}):
        with pytest.raises(ValueError, match="nothing to look for"):
            searcher.query(**nothing)


def test_templates_are_averaged(searcher: Searcher) -> None:
    both = ("a photo of a {}.", "{}")
    wanted = normal(embedded("a photo of a dog.", "dog").mean(0))
    np.testing.assert_allclose(searcher.words(["dog"], both)[0], wanted, atol=1e-5)
    assert searcher.words([]).shape == (0, 16)


def test_each_text_is_encoded_once_whoever_asks(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_model(), []
    own = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda text: calls.append(1) or own(text))
    searcher = Searcher(open_index(world / "index"), model, Preprocess(32), model.tokenizer)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: searcher.query(f"text {k % 5}", not_="text 0"), range(200)))
    assert all(np.array_equal(found[k], found[k % 5]) for k in range(200)) and 5 <= len(calls) <= 20
    searcher.words(["text 1", "text 2"])
    assert len(calls) <= 20


def test_what_is_found(searcher: Searcher) -> None:
    query, x = searcher.query("a dog"), searcher.index.embeddings
    order = np.argsort(-(x @ query), kind="stable")
    assert [*searcher.nearest(query, 3).rows] == [*order[:3]]
    assert [*searcher.nearest(query, 3, leave_out=[order[1]]).rows] == [*order[[0, 2, 3]]]
    assert len(searcher.nearest(query, 50).rows) == 12
    middle = float(x[order[5]] @ query)
    found = searcher.nearest(query, 50, threshold=middle - 1e-6)
    assert [*found.rows] == [*order[:6]] and (found.cosines >= middle - 1e-6).all()
    assert searcher.scale == 100.0


def test_a_graph_is_asked_where_there_is_one(world: Path, searcher: Searcher, tmp_path: Path) -> None:
    """And answers alike."""
    x = unit(500)
    model = tiny_model()
    told = {"fingerprint": fingerprint(model)}
    index = write_index(tmp_path / "many", tmp_path, [f"{k}.png" for k in range(500)], x, **told)
    plain = Searcher(index, model, Preprocess(32), model.tokenizer)
    build(x, index.folder / VECTORS)
    graph = Searcher(index, model, Preprocess(32), model.tokenizer)
    (index.folder / VECTORS).write_bytes(b"")
    for asked in ({"top": 5}, {"top": 5, "leave_out": [0, 1]}, {"top": 400}, {"top": 20, "threshold": 0.3}):
        for one, other in zip(plain.nearest(x[0], **asked), graph.nearest(x[0], **asked), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"vectors\.usearch is damaged"):
        Searcher(index, model, Preprocess(32), model.tokenizer)


# The command


def asked(world: Path, *words: str) -> int:
    return single("search", [str(world / "index"), "--device", "cpu", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["index", "a dog", "--top", "3"],
        ["index", "--top", "3", "a dog"],
        ["--top=3", "index", "a", "dog"],
        ["--top", "3", "index", "--device", "cpu", "a", "dog"],
        ["index", "a", "--top", "3", "dog"],
    ],
)
def test_words_stand_anywhere(
    words: list[str], world: Path, searcher: Searcher, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "100")
    assert single("search", words) == 0
    printed = capsys.readouterr().out
    rows = searcher.nearest(searcher.query("a dog"), 3).rows
    assert [line.split("  ")[0] for line in printed.splitlines()[3:6]] == [searcher.index.paths[row] for row in rows]
    assert printed.startswith("a dog\n") and "The nearest 3 of 12 images" in printed


def test_json_holds_what_is_found(world: Path, searcher: Searcher, tmp_path: Path) -> None:
    photo, file = str(world / "photos" / "7 é.png"), tmp_path / "found.json"
    assert asked(world, "dog", "--not", "a cat", "--image", photo, "--top", "4", "--json", str(file)) == 0
    query = searcher.query("dog", not_="a cat", images=[searcher.index.embeddings[7]])
    told = json.loads(file.read_text())
    hits = searcher.nearest(query, 4)
    assert [one["row"] for one in told["images"]] == hits.rows.tolist()
    np.testing.assert_allclose([one["cosine"] for one in told["images"]], hits.cosines, atol=1e-4)
    assert told["images"][0].keys() == {"row", "path", "cosine", "width", "height", "caption"}
    assert told["searched"]["not"] == "a cat" and Path(told["root"], told["images"][0]["path"]).is_file()
    assert asked(world, "dog", "--templates", "simple", "--threshold", "0.999", "--json", str(file)) == 0
    assert json.loads(file.read_text())["images"] == []


def test_groups_of_near_duplicates(world: Path, tmp_path: Path, capsys: Any) -> None:
    x = unit(9)
    x[[5, 7]], x[8] = x[1], -x[2]
    write_index(tmp_path / "index", world / "photos", [f"{k} é.png" for k in range(9)], x)
    file, page = tmp_path / "found.json", tmp_path / "found.html"
    words = [str(tmp_path / "index"), "--duplicates", "0.99", "--json", str(file), "--html", str(page)]
    assert single("search", words) == 0
    assert [[one["row"] for one in group] for group in json.loads(file.read_text())["groups"]] == [[1, 5, 7]]
    printed = capsys.readouterr().out
    assert (
        printed.startswith("groups of near-duplicates: 1\n")
        and "3 of 9 images" in printed
        and "3 images" in page.read_text()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], 'there is nothing to look for; give words, e.g. "a dog in the snow", or --image'),
        (["--not", "a dog"], 'there is nothing to look for; give words, e.g. "a dog in the snow", or --image'),
        (["dog", "--duplicates", "0.9"], "--duplicates looks for nothing else; leave out the words, --image and --not"),
        (["dog", "--top", "0"], "--top 0 must be at least 1"),
        (["dog", "--threshold", "2"], "--threshold 2.0 must be at most 1"),
        (["dog", "--top", "few"], "--top few is not a whole number; see miniclip search --help"),
        (["dog", "--tops", "3"], "--tops is no option here; did you mean --top?; see miniclip search --help"),
        (["--image", "gone.png"], "--image gone.png: no such file"),
        (["--image", "model/model.json"], "--image model/model.json: not an image"),
        (["dog", "--json", "photos"], "--json photos is a folder; name a file"),
        (["dog", "--html", "model/model.json"], "--html model/model.json holds something else; name another file, or "),
        (["dog", "--templates", "a photo"], "templates 'a photo': no such file, and not a template, since it lacks {}"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], said: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)
    assert single("search", ["index", *words]) == 2
    assert capsys.readouterr().err.startswith(f"miniclip search: error: {said}")


def test_another_model_is_refused(world: Path, tmp_path: Path, capsys: Any) -> None:
    save_tiny(tmp_path / "other", seed=1)
    told = {"fingerprint": fingerprint(tiny_model())}
    for model, said in (("other", "with other weights"), ("gone", "was made with a model that is gone: ")):
        write_index(tmp_path / "index", tmp_path, ["a.png"], unit(1), model=str(tmp_path / model), **told)
        assert single("search", [str(tmp_path / "index"), "dog"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0]


def test_the_page_shows_what_is_found_and_names_stay_text(
    world: Path, visit: Visits, tmp_path: Path, capsys: Any
) -> None:
    """An image that is gone, one outside and hostile names and captions: nothing runs, nothing is asked for."""
    names = ["7 é.png", "gone.png", "../index/index.json", *(f"{text}.png" for text in NASTY if "\ud83d" not in text)]
    told = {"model": str(world / "model"), "fingerprint": fingerprint(tiny_model())}
    captions = [f"<b>caption</b> {name}" for name in names]
    write_index(tmp_path / "index", world / "photos", names, unit(len(names)), captions, **told)
    page, photo = tmp_path / "found.html", str(world / "photos" / "7 é.png")
    words = [str(tmp_path / "index"), "a <i>dog</i>", "--image", photo, "--html", str(page)]
    assert single("search", words) == 0
    for size in ((1280, 900), (390, 844)):
        screen = visit(page, order="", viewport=dict(zip(("width", "height"), size, strict=True)))
        assert screen.text("h1").startswith("Search: a <i>dog</i>, like ")
        shown = screen.texts(".thumbs:last-child figcaption")
        assert len(shown) == len(names) and all("<b>caption</b>" in text for text in shown)
        assert screen.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert screen.evaluate("window.hacked === undefined && !document.querySelector('b, i, script')")
        assert screen.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not visit.complaints
    printed = capsys.readouterr().out
    assert "13 of them cannot be shown: " in printed and "../index/index.json" in printed and "\x1b" not in printed


def test_a_vector_database_takes_the_table(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qdrant, as docs/use.md has it, finds the same."""
    told = {"model": str(world / "model"), "fingerprint": fingerprint(tiny_model())}
    write_index(tmp_path / "photos.index", tmp_path, [f"{k}.png" for k in range(300)], unit(300), **told)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "use.md").read_text("utf-8")
    (snippet,) = (text for text in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "Qdrant" in text)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert [one.id for one in names["found"]] == names["rows"].tolist()
    assert [one.payload["path"] for one in names["found"]] == [f"{row}.png" for row in names["rows"]]
    np.testing.assert_allclose([one.score for one in names["found"]], names["cosines"], atol=1e-5)
