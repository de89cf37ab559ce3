"""miniclip index: what the model makes of every image, after a kill and after changes, and nothing encoded in vain."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.files import encoded, png, png_header, write_image, write_shard
from support.launching import torchrun
from support.models import save_tiny
from support.sources import noise
from support.trouble import until

from miniclip.cli.single import single
from miniclip.models.load import load
from miniclip.search import build
from miniclip.search.pictures import Pictures
from miniclip.search.store import ABOUT, IMAGES, PARTS, VECTORS, open_index
from miniclip.search.vectors import Graph

# a part after every batch, and a model that takes its time
SLOW = """
import sys, time
from miniclip.cli.main import main
from miniclip.models.clip import DualEncoder
from miniclip.search import build

build.SECONDS, encode = 0.0, DualEncoder.encode_image
DualEncoder.encode_image = lambda self, image: (time.sleep(0.2), encode(self, image))[1]
sys.exit(main())
"""
NAMES = ("new", "changed", "gone", "kept", "bad")


class World:
    """A folder of images and a model. read, decoded: names of the images that were, in this process."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.photos, self.out, self.capsys = root / "photos", root / "i", capsys
        self.read, self.decoded = list[str](), list[str]()
        self.model = save_tiny(root / "model")

    def words(self, *more: str, source: Path | None = None) -> list[str]:
        named = ["--model", self.model, "--out", str(self.out), "--precision", "fp32"]
        return [str(source or self.photos), *named, *more]

    def index(self, *more: str, source: Path | None = None) -> dict[str, int]:
        """Run the command -> its table."""
        self.read.clear()
        self.decoded.clear()
        assert single("index", self.words(*more, source=source)) == 0, self.capsys.readouterr().err
        out = self.capsys.readouterr().out
        self.said, lines = " ".join(out.split()), [line.split() for line in out.splitlines()]
        return {
            line[0]: int(line[1]) for line in lines if line[:1] and line[0] in ("new", "changed", "gone", "kept", "bad")
        }

    def refused(self, *more: str, source: Path | None = None) -> str:
        assert single("index", self.words(*more, source=source)) == 2
        (line,) = self.capsys.readouterr().err.splitlines()
        return line

    def check(self) -> None:
        """The index has every image of the folder once, as the model sees it alone."""
        index, (model, preprocess, _) = open_index(self.out), load(self.model)
        assert sorted(index.paths) == sorted(str(file.relative_to(self.photos)) for file in self.photos.rglob("*.*"))
        for row, path in enumerate(index.paths):
            with Image.open(self.photos / path) as image, torch.no_grad():
                alone = model.encode_image(preprocess(image)[None])[0]
            np.testing.assert_allclose(index.embeddings[row], (alone / alone.norm()).numpy(), atol=2e-6, err_msg=path)
        hashes = [hashlib.blake2b((self.photos / p).read_bytes(), digest_size=16).hexdigest() for p in index.paths]
        assert index.table["hash"].to_pylist() == hashes
        assert index.table["size"].to_pylist() == [(self.photos / path).stat().st_size for path in index.paths]
        assert sorted(file.name for file in self.out.iterdir()) == [IMAGES, ABOUT]


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, capsys)
    decode, read = build.decode_image, Pictures.read

    def noted(value: bytes, name: str, **options: int) -> Image.Image:
        made.decoded.append(name)
        return decode(value, name, **options)

    def seen(self: Pictures, index: int) -> bytes:
        made.read.append(self.paths[index])
        return read(self, index)

    monkeypatch.setattr(build, "decode_image", noted)
    monkeypatch.setattr(Pictures, "read", seen)
    return made


def fill(folder: Path, count: int) -> None:
    for i in range(count):
        file = folder / ("" if i % 2 else "deep/er") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise(i, (40, 30)).save(file)


def test_every_image_as_the_model_sees_it(world: World) -> None:
    fill(world.photos, 7)
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    noise(50, (300, 200)).save(world.photos / "turned.jpg", exif=turned)
    clear = noise(51, (50, 90)).convert("RGBA")
    clear.putalpha(40)
    clear.save(world.photos / "clear.webp")
    assert world.index("--batch_size", "3") == {"new": 9, "changed": 0, "gone": 0, "kept": 0, "bad": 0}
    world.check()
    index = open_index(world.out)
    sizes = dict(
        zip(index.paths, zip(*(index.table[k].to_pylist() for k in ("width", "height")), strict=True), strict=True)
    )
    assert (sizes["turned.jpg"], sizes["clear.webp"], sizes["01.png"]) == ((200, 300), (50, 90), (40, 30))
    model = load(world.model)[0]
    assert index.about.scale == pytest.approx(model.logit_scale.exp().item()) and index.about.model == world.model


def test_only_what_has_changed_is_encoded_again(world: World) -> None:
    fill(world.photos, 12)
    world.index()
    assert len(world.decoded) == 12
    noise(60, (40, 30)).save(world.photos / "01.png")  # another image
    os.utime(world.photos / "03.png", (1, 1))  # another time alone
    (world.photos / "05.png").rename(world.photos / "moved.png")
    (world.photos / "07.png").unlink()
    shutil.copy(world.photos / "09.png", world.photos / "twin.png")
    noise(61, (40, 30)).save(world.photos / "fresh.png")
    assert world.index() == {"new": 3, "changed": 1, "gone": 2, "kept": 9, "bad": 0}
    assert sorted(world.read) == ["01.png", "03.png", "fresh.png", "moved.png", "twin.png"]
    assert sorted(world.decoded) == ["01.png", "fresh.png"]
    assert "2 images were encoded" in world.said
    world.check()
    assert world.index() == {"new": 0, "changed": 0, "gone": 0, "kept": 13, "bad": 0}
    assert not world.read


def test_a_folder_that_was_moved(world: World) -> None:
    """Is the same folder, once it is not where it was any more."""
    fill(world.photos, 4)
    world.index()
    other = shutil.copytree(world.photos, world.photos.with_name("other"))
    assert f"is the index of {world.photos}; name another folder for {other}" in world.refused(source=other)
    shutil.rmtree(world.photos)
    world.photos = other
    assert world.index() == {"new": 0, "changed": 0, "gone": 0, "kept": 4, "bad": 0}
    assert not world.read and open_index(world.out).file(0) == other / "01.png"


def test_bad_images_are_named(world: World) -> None:
    fill(world.photos, 6)
    good = (world.photos / "01.png").read_bytes()
    (world.photos / "cut.png").write_bytes(good[:-40])
    (world.photos / "bomb.png").write_bytes(png_header(9_000, 9_000))
    (world.photos / "out.png").symlink_to(write_image(world.photos.with_name("secret.png"), 1))
    os.mkfifo(world.photos / "pipe.png")
    Path(os.fsdecode(os.fsencode(world.photos) + b"/\xff.png")).write_bytes(good)
    assert world.index() == {"new": 6, "changed": 0, "gone": 0, "kept": 0, "bad": 5}
    for name in ("cut.png: cannot be decoded", "bomb.png: 9000 x 9000", "out.png: 'out.png' leads", "pipe.png: no"):
        assert name in world.said, name
    assert "its name is not UTF-8; rename it" in world.said
    about = json.loads((world.out / ABOUT).read_bytes())
    assert len(about["bad"]) == 5 and len(open_index(world.out)) == 6
    assert world.index()["bad"] == 5
    assert not world.decoded  # what is bad stays so while its file is the same
    (world.photos / "cut.png").write_bytes(encoded(noise(70)))
    assert world.index() == {"new": 1, "changed": 0, "gone": 0, "kept": 6, "bad": 4}
    assert world.decoded == ["cut.png"]


def test_too_many_bad_images(world: World) -> None:
    fill(world.photos, 2)
    for name in ("a.png", "b.png"):
        (world.photos / name).write_bytes(b"no image")
    said = world.refused("--max_bad_fraction", "0.3")
    assert "2 of 4 images cannot be used, more than --max_bad_fraction=0.3 allows: a.png: not an image" in said
    assert world.index() == {"new": 2, "changed": 0, "gone": 0, "kept": 0, "bad": 2}
    assert not world.decoded  # for the refusal kept what was done
    for file in world.photos.rglob("*.*"):
        file.write_bytes(b"no image")
    assert "none of the 4 images can be read: 01.png: not an image" in world.refused("--max_bad_fraction", "1")
    assert len(open_index(world.out)) == 2  # as it was


def test_a_first_index_of_bad_images_alone(world: World) -> None:
    """Leaves nothing that another index would have to make way for."""
    other = world.photos.with_name("other")
    fill(world.photos, 2)
    other.mkdir()
    (other / "a.png").write_bytes(b"no image")
    assert "none of the 1 images can be read" in world.refused("--max_bad_fraction", "1", source=other)
    assert world.index()["new"] == 2
    world.check()


def test_tables_are_updated_too(world: World) -> None:
    shard = world.photos / "train-0.parquet"
    write_shard(shard, 0, 5)
    assert world.index()["new"] == 5
    assert open_index(world.out).captions == [f"text {i}" for i in range(5)]
    write_shard(shard, 2, 7)
    assert world.index() == {"new": 2, "changed": 0, "gone": 2, "kept": 3, "bad": 0}
    assert len(world.decoded) == 2
    assert open_index(world.out).captions == [f"text {i}" for i in range(2, 7)]


def test_the_graph_is_of_the_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made anew when they are others, and only then."""
    monkeypatch.setattr(build, "APPROXIMATE_FROM", 5)
    fill(world.photos, 4)
    world.index()
    assert not (world.out / VECTORS).exists()
    fill(world.photos, 6)
    world.index()
    made = (world.out / VECTORS).stat().st_mtime_ns
    world.index()
    assert (world.out / VECTORS).stat().st_mtime_ns == made
    noise(60, (40, 30)).save(world.photos / "01.png")
    world.index()
    assert (world.out / VECTORS).stat().st_mtime_ns > made
    index = open_index(world.out)
    rows, _ = Graph(world.out / VECTORS, index.embeddings).nearest(index.embeddings[3], 1)
    assert rows.tolist() == [3]
    for number in range(2):
        next(world.photos.glob(f"deep/er/*{2 * number}.png")).unlink()
    world.index()
    assert not (world.out / VECTORS).exists()


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_model_that_is_broken(value: float, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(world.photos, 3)
    monkeypatch.setattr(
        "miniclip.models.clip.DualEncoder.encode_image", lambda self, image: torch.full((len(image), 16), value)
    )
    assert "01.png: what the model makes of it points nowhere" in world.refused()


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("another model", "holds embeddings of MODEL with other weights"),
        ("something else", "holds something else; name a new folder"),
        ("no images", "PHOTOS holds no image"),
        ("gone", "PHOTOS: no such file or folder"),
        ("among", "lies among the images; name a folder outside of PHOTOS"),
        ("no model", "there is no such file or folder; did you mean MODEL"),
        ("damaged", "images.parquet is damaged"),
    ],
)
def test_what_is_refused(trouble: str, said: str, world: World) -> None:
    fill(world.photos, 2)
    if trouble in ("another model", "damaged"):
        world.index()
    before, more = world.model, list[str]()
    if trouble == "another model":
        more = ["--model", save_tiny(world.photos.with_name("model2"), 1)]
    elif trouble == "something else":
        write_image(world.out / "x.png", 1)
    elif trouble == "no images":
        shutil.rmtree(world.photos)
        world.photos.mkdir()
    elif trouble == "gone":
        shutil.rmtree(world.photos)
    elif trouble == "among":
        world.out = world.photos / "index"
    elif trouble == "no model":
        more = ["--model", f"{world.model}l"]
    elif trouble == "damaged":
        (world.out / IMAGES).write_bytes((world.out / IMAGES).read_bytes()[:-1])
    assert said.replace("MODEL", before).replace("PHOTOS", str(world.photos)) in world.refused(*more)


@pytest.mark.slow
def test_killed_and_gone_on_with(world: World, tmp_path: Path) -> None:
    """By two processes after one: no image twice, none lost; and nobody else writes meanwhile."""
    fill(world.photos, 40)
    (world.photos / "bad.png").write_bytes(png(1)[:-30])
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    words = ["index", *world.words("--batch_size", "4")]
    with subprocess.Popen([sys.executable, str(script), *words], stderr=subprocess.PIPE) as process:
        try:
            assert until(lambda: len(list((world.out / PARTS).glob("*.parquet"))) >= 3, 60)
            assert f"process {process.pid} on" in world.refused()
        finally:
            process.kill()
    done = [path for part in (world.out / PARTS).glob("*.parquet") for path in pq.read_table(part)["path"].to_pylist()]
    assert 12 <= len(done) == len(set(done)) < 41
    with pytest.raises(FileNotFoundError, match="not all is indexed; run miniclip index again"):
        open_index(world.out)
    found = torchrun(2, script, words)
    assert found.returncode == 0, found.stderr
    left = 40 - len(set(done) - {"bad.png"})
    assert f"{left} images were encoded" in found.stdout and found.stdout.count("were encoded") == 1
    (world.photos / "bad.png").unlink()
    world.check()
