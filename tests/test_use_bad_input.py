"""What cannot be done with a model, images or an index as asked: one line that says what to do; nothing left behind."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.files import write_images
from support.models import save_tiny

from miniclip.cli.single import single
from miniclip.models import create_model
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import save_model
from miniclip.search.store import open_index

SMALL = {"embed_dim": 16, "text_width": 32, "text_heads": 1, "text_layers": 1, "vocab_size": 49408}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, folders and an index, each by the name of what is wrong with it."""
    root = tmp_path_factory.mktemp("world")
    save_tiny(root / "vit")
    save_tiny(root / "other", seed=1)
    torch.manual_seed(0)
    resnet = create_model("tiny-resnet", image_size=64, image_width=8, image_heads=4, **SMALL)
    save_model(root / "resnet", resnet, Preprocess(64))
    biased = create_model("tiny-vit", image_size=64, image_width=16, image_heads=2, logit_bias_init=-10.0, **SMALL)
    save_model(root / "biased", biased, Preprocess(64))
    for name in ("photos", "full", "elsewhere"):
        write_images(root / name, 4)
    for name in ("empty", "texts", "spoilt"):
        (root / name).mkdir()
    (root / "texts" / "a.txt").write_text("a dog")
    (root / "spoilt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (root / "file").write_text("a file")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert single("index", ["photos", "--model", "vit", "--out", "index"]) == 0
        assert single("index", ["elsewhere", "--model", "vit", "--out", "gone"]) == 0
    shutil.rmtree(root / "elsewhere")
    for name in ("cut", "flipped", "damaged", "newer", "headless", "partial", "strange", "bereft"):
        shutil.copytree(root / "index", root / name)
    whole, numbers = (root / "index" / "images.parquet").read_bytes(), open_index(root / "index").embeddings.tobytes()
    (root / "cut" / "images.parquet").write_bytes(whole[:-100])
    (root / "flipped" / "images.parquet").write_bytes(whole.replace(numbers[-8:], bytes(8)))
    about = (root / "index" / "index.json").read_text()
    (root / "damaged" / "index.json").write_text(about[:-5])
    (root / "newer" / "index.json").write_text(re.sub(r'"version": \d+', '"version": 99', about))
    (root / "headless" / "index.json").unlink()
    (root / "partial" / "images.parquet").unlink()
    (root / "strange" / "index.json").write_text(about.replace(str(root / "vit"), str(root / "other")))
    (root / "bereft" / "index.json").write_text(about.replace(str(root / "vit"), str(root / "nowhere")))
    return root


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """What is there before; nothing else is afterwards."""
    monkeypatch.chdir(world)
    before = {path.name for path in world.iterdir()}
    yield before
    assert {path.name for path in world.iterdir()} == before


# what is typed -> what is said of it
REFUSED = r"""
export nothing out --to onnx            -> nothing: there is no such file or folder; .*name a run, a checkpoint in it
export photos out --to onnx             -> photos: no model.safetensors there.*; name a run
export vit out                          -> required: --to; see miniclip export --help
export vit out --to transformer         -> did you mean transformers\?
export vit full --to open_clip          -> OUT full holds something already; name a new folder, or remove that one
export vit file --to open_clip          -> OUT file: file is a file; name a folder
export resnet out --to transformers     -> cannot hold this model: .* a resnet; use --to open_clip or --to onnx
export biased out --to transformers     -> cannot hold this model: .* sigmoid loss; use --to open_clip or --to onnx
export hf:vit out --to onnx             -> hf:vit
push vit nonsense                       -> nonsense
push vit ME/NAME                        -> no token of the Hub here; .*hf auth login.*--dry_run
push vit ME/NAME --dry-run full         -> --dry_run full holds something already; name a new folder
index nothing --model vit --out out     -> nothing: there is no such folder here.* or give the path of a local copy
index empty --model vit --out out       -> empty holds no image
index texts --model vit --out out       -> texts holds no image
index file --model vit --out out        -> file: expected a file that ends in one of .*, or a folder
index photos --model nothing --out out  -> nothing: there is no such file or folder; .*name a run
index photos --model vit                -> required: --out
index photos --model vit --out full     -> --out full holds something else; name a new folder
index photos --model vit --out file     -> --out file: file is a file; name a folder
index photos --model other --out index  -> index holds embeddings of .*/vit with other weights .* into another --out
index photos --model resnet --out index -> index holds embeddings of .*/vit with other weights .* into another --out
index full --model vit --out index      -> --out index is the index of .*/photos; name another folder
index photos --model vit --out cut      -> cut/images.parquet is damaged .*; remove the folder, and index
index photos --model vit --out damaged  -> damaged/index.json is damaged .*; remove the folder, and index
index elsewhere --model vit --out gone  -> elsewhere: there is no such folder here
search nothing dog                      -> nothing/index.json does not exist; name a folder that miniclip index wrote
search photos dog                       -> photos/index.json does not exist; name a folder that miniclip index wrote
search headless dog                     -> headless/index.json does not exist; bring it back
search partial dog                      -> partial/images.parquet does not exist: .*; run miniclip index again
search cut dog                          -> cut/images.parquet is damaged .*; remove the folder, and index
search flipped dog                      -> flipped/images.parquet is damaged .*checksum.*; remove the folder
search damaged dog                      -> damaged/index.json is damaged .*; remove the folder
search newer dog                        -> newer/index.json is of version 99, .*; index into another --out
search strange dog                      -> strange holds embeddings of .*/other with other weights .*; take that model
search bereft dog                       -> bereft was made with a model that is gone: .*/nowhere: .*; name a run
search index                            -> nothing to look for; give words
search                                  -> required: index
search index --not dog                  -> nothing to look for; give words
search index --image nothing.png        -> nothing.png: no such file
search index --image file               -> file: not an image in any known format
search index dog --top 0                -> --top 0 must be at least 1
search index dog --html photos          -> --html photos is a folder; name a file
search index dog --html file            -> --html file holds something else; name another file
search index --duplicates 0.9 dog       -> --duplicates looks for nothing else; leave out the words
app nothing                             -> nothing/index.json does not exist; name a folder that miniclip index wrote
app cut                                 -> cut/images.parquet is damaged .*; remove the folder
app strange                             -> strange holds embeddings of .*/other with other weights .*; take that model
app index --port 99999                  -> 65535
"""


@pytest.mark.parametrize(
    ("typed", "said"), [re.split(r" +-> ", line) for line in REFUSED.strip().splitlines()], ids=lambda text: str(text)
)
def test_it_is_said_in_one_line(
    typed: str, said: str, here: set[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MINICLIP_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    command, *words = typed.split()
    assert single(command, words) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(rf"miniclip {command}: error: [^\n]+\n", line) and re.search(said, line), line


def test_images_that_are_all_bad(here: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert single("index", ["spoilt", "--model", "vit", "--out", "out"]) == 2
    line = capsys.readouterr().err
    shutil.rmtree("out", ignore_errors=True)
    assert re.fullmatch(r"miniclip index: error: 1 of 1 images cannot be used, .*: a.png: [^\n]+\n", line), line


def test_a_port_that_is_taken(here: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert single("app", ["index", "--port", str(port)]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(rf"miniclip app: error: [^\n]*port {port}[^\n]*--port[^\n]*\n", line), line


def test_the_folder_of_the_images_went_away(here: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """They are still found; what cannot be shown is said."""
    assert single("search", ["gone", "dog", "--html", "found.html"]) == 0
    Path("found.html").unlink()
    shown = capsys.readouterr()
    assert "0.png" in shown.out and re.search(r"4 .*cannot be (read|shown)", shown.out + shown.err), shown
