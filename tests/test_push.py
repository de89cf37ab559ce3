"""What is published: a card that says what its run wrote down; uploads to a Hub that stands in for the real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants, metadata_load
from markdown_it import MarkdownIt
from support.files import png
from support.hub import TOKEN, Hub, card_errors, standing_in
from support.models import tiny_model
from support.reading import Words
from support.runs import finished_run
from test_report import NAMES, nasty_run
from test_report import quick as quick  # autouse: draws no curves

from miniclip.cli.single import single
from miniclip.evaluation.encode import fingerprint
from miniclip.evaluation.report.read import Run
from miniclip.export import publish
from miniclip.export.ancestors import names_on_hub
from miniclip.export.card import Subject, public, write_card
from miniclip.models import DualEncoder
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess

REPO = "me/tiny-clip"
HELD = {"transformers": None, "open_clip": "it has a tower of its own"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On drawn scenes."""
    return finished_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The one of this process."""
    with standing_in() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # a storage that speaks no HTTP that one could stand in for
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def card_of(
    folder: Path,
    model: DualEncoder,
    run: Path | None,
    licence: str = "mit",
    named: str = "a model",
    examples: bool = False,
) -> tuple[str, Words]:
    """As it is written, and as a reader of GitHub's dialect shows it."""
    folder.mkdir()
    found = Run(run) if run else None
    write_card(Subject(REPO, named, model, Preprocess(32), found, HELD, licence, examples), folder)
    text = (folder / "README.md").read_text("utf-8")
    body = text.split("\n---\n", 1)[1]
    return text, Words(MarkdownIt("commonmark").enable("table").render(body))


def test_the_card_says_what_the_run_wrote_down(run: Path, tmp_path: Path) -> None:
    model = load(run)[0]
    text, words = card_of(tmp_path / "card", model, run)
    results = json.loads((run / "results.json").read_text())
    known = {one["task"]: one["figures"] for one in results["results"]}
    # the Hub's own reader, and its own writer
    data = ModelCard(text).data
    assert metadata_load(tmp_path / "card" / "README.md") == data.to_dict() and card_errors(text) == []
    assert (data.license, data.pipeline_tag) == ("mit", "zero-shot-image-classification")
    assert data.library_name == "transformers" and data.base_model is None
    told = {(one.dataset_name, one.metric_name): one for one in data.eval_results}
    figure = known["retrieval"]["image_to_text_r10"]
    assert told["shapes", "image to text R@10"].metric_value == round(figure["value"], 4)
    assert told["shapes", "image to text R@10"].metric_args["low"] == round(figure["low"], 4)
    assert told["shapes: shape", "top-1"].metric_value == round(known["shape"]["top1"]["value"], 4)
    assert len(told) == len(data.eval_results) == 6 + 2
    cells = {line[0]: line[-1] for table in words.tables for line in table}
    (shown,) = (table for table in words.tables if table[0][1:3] == ["direction", "queries"])
    value, low, high = (f"{100 * figure[key]:.1f}" for key in ("value", "low", "high"))
    assert shown[1][5].startswith(f"{value} [{low}, {high}]")
    assert cells["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert cells["trained on"] == "40 scenes, drawn" and cells["texts"] == "up to 77 tokens"
    (commands,) = (table for table in words.tables if table[0][2:3] == ["command"])
    assert commands[1][2] == results["command"]
    assert (run / "config.yaml").read_text().splitlines()[-1] in text.splitlines()
    assert words.sources[0] == "curves.png" and words.sources[1:] == [f"example-{k}.jpg" for k in range(1, 5)]
    assert all((tmp_path / "card" / name).stat().st_size > 100 for name in words.sources)
    assert f'model="{REPO}"' in text and "not as a folder of open_clip: it has a tower" in text.lower()


def test_figures_are_of_the_weights_that_are_published(run: Path, tmp_path: Path) -> None:
    """Not of those that its run had at another time, or compared itself with."""
    text, words = card_of(tmp_path / "card", tiny_model(), run)
    assert ModelCard(text).data.eval_results is None
    assert "No figures of these very weights" in words.text and "example-1.jpg" not in words.sources


def test_figures_on_what_was_trained_on_are_no_result(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "results.json"
    values = json.loads(file.read_text())
    for one in values["results"]:
        one["data"] |= {"source": "flowers/train", "split": "train"}
    file.write_text(json.dumps(values))
    text, words = card_of(tmp_path / "card", load(run)[0], tmp_path / "run")
    assert ModelCard(text).data.eval_results is None
    assert any(line[0] == "retrieval (training split)" for table in words.tables for line in table)


def test_pictures_of_the_data_are_published_only_when_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("source: shapes", "source: photos"))
    model = load(run)[0]
    _, silent = card_of(tmp_path / "silent", model, tmp_path / "run")
    _, shown = card_of(tmp_path / "shown", model, tmp_path / "run", examples=True)
    assert silent.sources == ["curves.png"] and len(shown.sources) == 5
    assert "licence of the data is not recorded" in silent.text


def test_a_model_without_a_run_has_a_short_card(tmp_path: Path) -> None:
    model = tiny_model()
    model.config = replace(model.config, image="hf:google/vit-base-patch16-224", text=str(tmp_path))
    text, words = card_of(tmp_path / "card", model, None, licence="unknown", named="hf:openai/clip-vit-base-patch32")
    assert ModelCard(text).data.base_model == ["openai/clip-vit-base-patch32", "google/vit-base-patch16-224"]
    assert card_errors(text) == [] and words.headings[1] == [
        "Use it",
        "What it is",
        "Data and licence",
        "Intended use and limits",
    ]
    assert "No licence was named" in words.text and words.sources == []


def test_a_damaged_run_has_a_card_of_what_is_left(tmp_path: Path) -> None:
    for name, content in (
        ("config.yaml", "model: ["),
        ("results.json", "{"),
        ("metrics.jsonl", '{"step": 3, "loss": 2}'),
    ):
        (tmp_path / name).write_text(content)
    text, words = card_of(tmp_path / "card", tiny_model(), tmp_path)
    assert card_errors(text) == [] and words.sources == ["curves.png"] and "configuration" not in words.text


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("timm:efficientnet_lite0", ["timm/efficientnet_lite0.ra_in1k"]),
        ("open_clip:ViT-B-32:laion2b_s34b_b79k", ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"]),
        ("open_clip:hf-hub:timm/ViT-B-16-SigLIP", ["timm/ViT-B-16-SigLIP"]),
        ("open_clip:local-dir:{}", []),
        ("hf:{}", []),
        ("runs/first", []),
    ],
)
def test_what_it_began_from_is_named_as_the_hub_has_it(name: str, found: list[str], tmp_path: Path) -> None:
    assert names_on_hub(name.format(tmp_path)) == found


def test_text_of_the_data_stays_text_on_the_card(tmp_path: Path) -> None:
    model, run = tiny_model(), nasty_run(tmp_path / "run")
    file = run / "results.json"
    values = json.loads(file.read_text("utf-8"))
    for one in values["results"]:
        one["model"]["fingerprint"] = fingerprint(model)
    file.write_text(json.dumps(values))
    config = run / "config.yaml"
    lines = config.read_text("utf-8").splitlines()
    (k,) = (k for k, line in enumerate(lines) if line.startswith("  dir:"))
    lines[k] = '  dir: "x\n   ```\n   <b>y</b>"'
    config.write_text("\n".join(lines), "utf-8")
    text, words = card_of(tmp_path / "card", model, run)
    assert metadata_load(tmp_path / "card" / "README.md")["model-index"] and card_errors(text) == []
    assert all(line.isprintable() for line in text.split("\n"))
    for tag in ("script", "svg", "iframe", "object", "form", "base", "i", "b", "em", "strong", "del", "hr"):
        assert tag not in words.tags
    assert words.links == [] and words.sources == ["curves.png"]
    assert words.tags.count("pre") == 2 + 1 and words.lines["h2"][-1] == "Intended use and limits"
    shown = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in NAMES]
    assert [name for name in shown if name not in words.text] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("train.py --data.source {home}/photos", "train.py --data.source ~/photos"),
        ("{home}", "~"),
        ("{home}less/photos", "{home}less/photos"),
        ("https://me:secret@host/a/{{00..31}}.tar", "https://host/a/{{00..31}}.tar"),
        ("'https://host/a.tar?sig=secret' --x", "'https://host/a.tar' --x"),
        ("is it? user@host", "is it? user@host"),
    ],
)
def test_what_tells_of_the_user_is_left_out(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/some.one")
    assert public(text.format(home="/home/some.one")) == shown.format(home="/home/some.one")


# The upload


@pytest.mark.slow
def test_a_run_is_published(run: Path, tmp_path: Path) -> None:
    """By a real process; each library has read its part there, see test_export."""
    with standing_in() as hub:
        told = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        words = ["push", "--private", str(run), REPO, "--revision", "v1", "--license", "MIT"]
        done = subprocess.run(
            [sys.executable, "-m", "miniclip", *words],
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.address}/{REPO}/commit/" in done.stdout
    assert hub.private == {REPO} and list(hub.repos[REPO]["main"]) == [".gitattributes"]
    files = hub.repos[REPO]["v1"]
    for name in ("README.md", "curves.png", "config.json", "model.safetensors", "tokenizer.json"):
        assert len(files[name]) > 100
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        assert len(files[name]) > 100
    assert card_errors(files["README.md"].decode()) == []
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert fingerprint(load(tmp_path / "miniclip")[0]) == fingerprint(load(run)[0])


def test_what_lies_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one library's folder a tokenizer, which it looks for in the repository that its config names."""

    def exported(model: object, preprocess: object, to: str, folder: Path) -> None:
        (folder / "words").mkdir(parents=True)
        (folder / "words" / "some.txt").write_text(to)
        config = {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "elsewhere"}}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    monkeypatch.setattr(publish, "why_not", lambda to, *_: None if to == "open_clip" else "it is another")
    monkeypatch.setattr(publish, "export", exported)
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tiny_model()
    model.config = replace(model.config, init=f"{tmp_path}/runs/first")
    reasons = publish.fill(tmp_path, "a model", REPO, (model, Preprocess(32)), None, "mit", False)
    assert reasons == {"transformers": "it is another", "open_clip": None}
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    own = {f"miniclip/{name}" for name in ("model.json", "model.safetensors", "preprocess.json")}
    assert files == {"README.md", "open_clip_config.json", "words/some.txt", *own}
    assert not (tmp_path / "open_clip").exists()
    assert REPO in (tmp_path / "open_clip_config.json").read_text()
    assert json.loads((tmp_path / "miniclip" / "model.json").read_text())["init"] == "~/runs/first"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is to be uploaded."""
    made = tmp_path / "made"
    (made / "miniclip").mkdir(parents=True)
    (made / "miniclip" / "model.safetensors").write_bytes(bytes(1000))
    (made / "example-1.jpg").write_bytes(png(1))
    (made / "README.md").write_text("---\nlicense: mit\n---\n# It\n")
    return made


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_published_before_makes_room(
    whole: bool, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, too, that are not to be shown any longer; what others put there stays. whole: by the newer protocol."""
    hub.whole = whole
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not whole)
    publish.upload(folder, REPO, False, None)
    files = hub.repos[REPO]["main"]
    files["LICENSE"] = b"theirs"
    names = {".gitattributes", "LICENSE", "README.md", "miniclip/model.safetensors"}
    assert set(files) == {*names, "example-1.jpg"} and hub.private == set()
    assert files["miniclip/model.safetensors"] == bytes(1000)
    (folder / "example-1.jpg").unlink()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# It is another\n")
    publish.upload(folder, REPO, False, None)
    assert set(files) == names and b"another" in files["README.md"]


def gone(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def offline(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_token(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("HF_TOKEN")


def wrong_token(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_wrong")


def of_another(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    hub.owner = "you"


def bad_card(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "README.md").write_text("---\nlicense: mitt\n---\n# It\n")


def storage(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    hub.refuse["PUT /lfs/"] = 403


def full(hub: Hub, folder: Path, patch: pytest.MonkeyPatch) -> None:
    hub.refuse[f"POST /api/models/{REPO}/commit/"] = 413


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (gone, r"http://127.0.0.1:9 was not reached \(.*\); check the connection .* --dry_run"),
        (offline, "HF_HUB_OFFLINE.*--dry_run"),
        (no_token, "no token of the Hub here; get one at .* `hf auth login` or set HF_TOKEN; --dry_run"),
        (wrong_token, r"refused \(401: .*\); the token is not valid; make another"),
        (of_another, r"me/tiny-clip: the Hub refused \(403: .*namespace 'me'\); the token may not write there"),
        (bad_card, 'me/tiny-clip: .*"license" must be one of'),
        (storage, r"me/tiny-clip: the Hub refused \(403: .*\); the token may not write there"),
        (full, r"me/tiny-clip: the Hub refused \(413: .*\); --dry_run"),
    ],
)
def test_what_the_hub_does_not_take_is_said_in_a_line(
    trouble: Callable[..., None], said: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(hub, folder, monkeypatch)
    with pytest.raises((ValueError, ConnectionError), match=said) as error:
        publish.reach()
        publish.upload(folder, REPO, False, None)
    assert str(error.value).isprintable() and len(str(error.value)) < 500 and TOKEN not in str(error.value)
    assert "miniclip/model.safetensors" not in hub.repos.get(REPO, {}).get("main", {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clip"], "clip is no name of a repository; write OWNER/NAME"),
        (["me/a/b"], "is no name"),
        (["me/a b"], "is no name"),
        (["me/a--b"], "is no name"),
        (["../b"], "is no name"),
        (["me/" + "a" * 100], "is no name"),
        (["me/a.git"], "is no name"),
        ([REPO, "--license", "my own"], "--license my own is no abbreviation of the Hub's"),
        ([REPO, "--dry-run", "."], "--dry_run . is the folder that you are in"),
        ([REPO, "--private", "maybe"], "maybe"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert single("push", ["no such run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("miniclip push: error: ") and said in line


def test_switches_and_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("miniclip.cli.single.exit_code", lambda _, call, **__: given.append(call.keywords) or 0)
    for words in (["--private", "a", "b/c"], ["a", "--private=true", "b/c"], ["a", "b/c", "--private", "true"]):
        assert single("push", [*words, "--dry-run", "x-y"]) == 0
    assert all(one["private"] is True and one["dry_run"] == "x-y" and one["model"] == "a" for one in given)
    assert single("push", ["a", "b/c", "--private=false"]) == 0 and given[-1]["private"] is False
