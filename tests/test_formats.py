"""Files by what their names end in: what is read, in every reader, and what is said of the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.files import encoded, write_csv, write_tar
from support.opened import whole

from miniclip.data.audit.command import main as audit_main
from miniclip.data.formats import extensions, known_formats
from miniclip.data.images import BadImage, decode_image
from miniclip.data.labelled import open_images, open_labelled
from miniclip.data.tables.kinds import find_shards

pytest.importorskip("pillow_heif")
# format -> how cameras, browsers and scanners call such files
CALLED = {"JPEG": "jpg JPG jpeg jpe jfif JFIF", "MPO": "mpo", "HEIF": "HEIC heif hif", "AVIF": "avif"}
CALLED |= {"TIFF": "tif TIFF", "PNG": "png apng", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "PPM": "pnm"}
CALLED["JPEG2000"] = "jp2 j2k"
ENDINGS = {ending: format for format, endings in CALLED.items() for ending in endings.split()}


def colour(number: int) -> tuple[int, int, int]:
    return (12 * number, 255 - 12 * number, 128)


def content(number: int, ending: str) -> bytes:
    known_formats()  # registers what reads and writes HEIF
    return encoded(Image.new("RGB", (32, 24), colour(number)), ENDINGS[ending])


def is_image(number: int, image: Image.Image) -> bool:
    """Formats lose a little of a colour."""
    return bool(np.abs(np.subtract(image.getpixel((16, 12)), colour(number))).max() < 6)


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where pillow-heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif.HeifImagePlugin", None)
    for known in (Image.OPEN, Image.EXTENSION):
        for name in [n for n, format in known.items() if "HEIF" in (n, format)]:
            monkeypatch.delitem(known, name)
    for cached in (known_formats, extensions):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (known_formats, extensions):
        cached.cache_clear()


def test_every_reader_takes_every_ending(tmp_path: Path) -> None:
    rows, samples = [("image", "caption", "label")], []
    for number, ending in enumerate(ENDINGS):
        name, data = f"{number:02d}.{ending}", content(number, ending)
        for folder in ("beside", f"classes/{number % 2}", "table"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(data)
        (tmp_path / "beside" / f"{number:02d}.txt").write_text(f"text {number}")
        rows.append((name, f"text {number}", f"class {number % 2}"))
        samples.append((f"{number:02d}", {ending: data, "txt": f"text {number}".encode()}))
    write_csv(tmp_path / "table" / "metadata.csv", rows)
    tar = write_tar(tmp_path / "tars" / "0.tar", samples)
    for source in (whole(tmp_path / "beside"), whole(tmp_path / "table"), whole(tar)):
        assert [source.captions(k) for k in range(len(source))] == [[f"text {k}"] for k in range(len(ENDINGS))]
        assert all(is_image(k, source.image(k)) for k in range(len(source)))
    images = open_images(tmp_path / "beside")
    assert len(images) == len(ENDINGS) and all(is_image(k, images.image(k)) for k in range(len(images)))
    classes = open_labelled(tmp_path / "classes")
    order = [*range(0, len(ENDINGS), 2), *range(1, len(ENDINGS), 2)]
    assert [classes.label(k) for k in range(len(classes))] == [k % 2 for k in order]
    assert all(is_image(number, classes.image(k)) for k, number in enumerate(order))
    (shard,) = find_shards(tar)["train"]
    assert "image" in shard.table("x").columns
    streamed = [sample.image for sample in type(shard)(shard.name, image="image", captions=["txt"]).read()]
    assert all(is_image(k, decode_image(image or b"", "x")) for k, image in enumerate(streamed))


def test_a_format_that_wants_a_plug_in_says_which(tmp_path: Path, no_plugins: None) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "a.jpg").write_bytes(heic)
    for value in (heic, tmp_path / "a.jpg"):
        with pytest.raises(BadImage, match=r"^x: a HEIF image; pip install pillow-heif$"):
            decode_image(value, "x")
    with pytest.raises(BadImage, match=r"^x: a JXL image; pip install pillow-jxl-plugin$"):
        decode_image(b"\xff\x0a" + bytes(20), "x")
    assert ".heic" not in extensions() and ".jfif" in extensions()
    samples = [("0", {"heic": heic, "txt": b"a"}), ("1", {"jpg": content(1, "jpg"), "txt": b"b"})]
    source = whole(write_tar(tmp_path / "t.tar", samples))  # it has an image, even if that cannot be read
    with pytest.raises(BadImage, match="sample 0: a HEIF image; pip install pillow-heif"):
        source.image(0)
    assert is_image(1, source.image(1))


def test_what_is_not_used_is_counted_by_its_ending(
    tmp_path: Path, no_plugins: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.JPG", "c.jfif"):
        for folder in ("beside", "classes/cat", "classes/dog"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(content(1, "jpg"))
        (tmp_path / "beside" / name).with_suffix(".txt").write_text("a dog")
    for folder in ("beside", "classes/cat", "classes/dog"):
        for name in ("d.HEIC", "e.heic", "f.CR2", "g.jxl", "h", ".hidden", "i.txt"):
            (tmp_path / folder / name).write_bytes(b"x")
    (tmp_path / "classes" / "loose.jpg").write_bytes(content(1, "jpg"))
    helps = "are left out: pip install pillow-heif pillow-jxl-plugin"
    once = f"{tmp_path}/beside: 2 .heic, 1 without an ending, 1 .cr2, 1 .jxl files {helps}"
    assert len(whole(tmp_path / "beside")) == 3 and caplog.messages.count(once) == 1
    assert len(open_images(tmp_path / "beside")) == 3
    assert f"{tmp_path}/beside: 4 .txt, 2 .heic, 1 without an ending, 1 .cr2, 1 .jxl files {helps}" in caplog.messages
    assert len(open_labelled(tmp_path / "classes")) == 6
    kinds = "4 .heic, 2 without an ending, 2 .cr2, 2 .jxl, 2 .txt, 1 .jpg"
    assert caplog.messages[-1] == f"{tmp_path}/classes: {kinds} files {helps}"
    assert audit_main(["--data", str(tmp_path / "beside"), "--json", str(tmp_path / "a.json")]) is not None
    assert once in json.loads((tmp_path / "a.json").read_text())["notes"]
    assert "2 .heic, 1 without" in capsys.readouterr().out
    for name in ("a.jpg", "b.JPG", "c.jfif"):
        (tmp_path / "beside" / name).unlink()
    with pytest.raises(ValueError, match="beside"):
        whole(tmp_path / "beside")
    assert f"{tmp_path}/beside: 2 .heic, 1 .jxl files {helps}" in caplog.messages
