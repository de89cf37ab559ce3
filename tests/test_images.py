"""Safe decoding: every kind of image to RGB, and what must be refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.broken import good_files
from support.files import encoded, png_header, write_csv
from support.sources import noise

from miniclip.config import DataConfig
from miniclip.data.captioned import open_source
from miniclip.data.formats import known_formats
from miniclip.data.images import BadImage, decode_image, leaves_folder, path_inside
from miniclip.models.preprocess import Preprocess, image_to_tensor

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on what is broken


def pixel(image: Image.Image, place: tuple[int, int] = (0, 0), format: str = "PNG", **options: object) -> object:
    return decode_image(encoded(image, format, **options), "x").getpixel(place)


def test_formats_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    file = tmp_path / "ein bild ü.bin"
    for format in ("PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        file.write_bytes(encoded(Image.new("RGB", (5, 3), RED), format, **options))
        for value in (file.read_bytes(), file, str(file)):
            found = decode_image(value, "x")
            assert (found.mode, found.size, found.getpixel((4, 2))) == ("RGB", (5, 3), RED), format


def test_exif_orientation_turns_the_image_upright() -> None:
    # Upright: red at the top left, green at the top right, blue below left. Where they lie as stored, by the EXIF
    # standard ("row 0 is the visual top, column 0 the visual left"), written out by hand as (x, y) in a 2 x 2 grid:
    corners = {
        1: [(0, 0), (1, 0), (0, 1)],  # row 0 top, column 0 left
        2: [(1, 0), (0, 0), (1, 1)],  # top, right
        3: [(1, 1), (0, 1), (1, 0)],  # bottom, right
        4: [(0, 1), (1, 1), (0, 0)],  # bottom, left
        5: [(0, 0), (0, 1), (1, 0)],  # left, top
        6: [(0, 1), (0, 0), (1, 1)],  # right, top
        7: [(1, 1), (1, 0), (0, 1)],  # right, bottom
        8: [(1, 0), (1, 1), (0, 0)],  # left, bottom
    }
    for orientation, places in corners.items():
        stored = Image.new("RGB", (2, 2), (0, 0, 0))
        for place, colour in zip(places, (RED, GREEN, BLUE), strict=True):
            stored.putpixel(place, colour)
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = decode_image(encoded(stored, exif=exif), "x")
        assert [found.getpixel(p) for p in ((0, 0), (1, 0), (0, 1))] == [RED, GREEN, BLUE], orientation
    malformed = encoded(Image.new("RGB", (2, 2), RED), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert decode_image(malformed, "x").getpixel((0, 0)) == RED


def test_transparency_goes_on_white() -> None:
    clear, half = Image.new("RGBA", (1, 1), (255, 0, 0, 0)), Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert pixel(clear) == WHITE
    assert np.abs(np.subtract(pixel(half), (255, 127, 127))).max() <= 1
    assert pixel(Image.new("LA", (1, 1), (0, 0))) == WHITE
    assert pixel(Image.new("RGB", (1, 1), GREEN), transparency=GREEN) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([*BLUE, *RED])
    palette.putpixel((1, 0), 1)
    assert [pixel(palette, (x, 0), transparency=0) for x in (0, 1)] == [WHITE, RED]


def test_a_tiff_of_16_bits_whose_0_is_white() -> None:
    """Pillow turns those of 8 bits over, also while it writes them; these it stores and reads as they are."""
    stored = Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))
    for photometric, first in ((1, (0, 0, 0)), (0, WHITE)):
        assert decode_image(encoded(stored, "TIFF", tiffinfo={262: photometric}), "x").getpixel((0, 0)) == first


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_values_of_8_bits_in_wider_pixels_are_refused_rather_than_black(kind: type) -> None:
    wide = Image.fromarray(np.arange(200, dtype=kind).reshape(10, 20))
    with pytest.raises(BadImage, match=r"a\.tiff: .*would all be black; save it with 8 bits a channel"):
        decode_image(encoded(wide, "TIFF"), "a.tiff")
    black = Image.fromarray(np.zeros((10, 20), dtype=kind))
    assert decode_image(encoded(black, "TIFF"), "black.tiff").getextrema() == ((0, 0),) * 3


def test_grey_16_bit_cmyk_one_bit_and_animations() -> None:
    assert pixel(Image.new("L", (1, 1), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (1, 1), 1)) == WHITE
    wide = Image.fromarray(np.array([[0, 77 * 257, 65535]], dtype=np.uint16))
    assert [pixel(wide, (x, 0)) for x in range(3)] == [(0, 0, 0), (77, 77, 77), WHITE]
    cmyk = pixel(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (4, 4), "JPEG", quality=100)
    assert np.abs(np.subtract(cmyk, RED)).max() < 6
    with pytest.raises(BadImage, match="float"):
        pixel(Image.new("F", (1, 1), 0.5), format="TIFF")
    first, second = (Image.new("RGB", (3, 3), colour) for colour in (RED, GREEN))
    for format in ("GIF", "PNG"):
        assert pixel(first, (1, 1), format, save_all=True, append_images=[second]) == RED


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage, match=r"row 7: 9000 x 9000 pixels exceed the limit of 64,000,000"):
        decode_image(png_header(9000, 9000), "row 7")
    with pytest.raises(BadImage, match="row 7"):  # beyond Pillow's own limit
        decode_image(png_header(60000, 60000), "row 7")
    monkeypatch.setattr("miniclip.data.images.MAX_PIXELS", 99)
    assert pixel(Image.new("RGB", (9, 11))) == (0, 0, 0)
    with pytest.raises(BadImage, match="limit of 99 pixels"):
        pixel(Image.new("RGB", (10, 10)))


def test_what_is_broken_names_the_row_and_raises_nothing_else() -> None:
    rng, refused = np.random.default_rng(1), 0
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(noise, format)
        for cut in (b"", b"no image", data[:12], *([data[: len(data) // 2]] if format != "BMP" else [])):
            with pytest.raises(BadImage, match=r"^row 3: "):
                decode_image(cut, "row 3")
        for _ in range(40):
            bad = np.frombuffer(data, dtype=np.uint8).copy()
            bad[rng.integers(0, len(bad), 8)] = rng.integers(0, 256, 8)
            try:
                assert decode_image(bad.tobytes(), "x").mode == "RGB"
            except BadImage:
                refused += 1
    assert refused > 20


def test_missing_files_pipes_and_programs_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("absent.png", "pipe.png"):
        with pytest.raises(BadImage, match="no such file"):
            decode_image(tmp_path / name, "x")
    with pytest.raises(BadImage, match="not an image"):  # Pillow would start Ghostscript
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "x")


def test_at_least_shrinks_jpegs_but_never_below() -> None:
    x = np.linspace(0, 255, 640)
    image = Image.fromarray(np.stack([np.tile(x, (480, 1))] * 3, axis=2).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95)
    sizes = {n: decode_image(data, "x", at_least=n).size for n in (60, 61, 121, 240, 241, 481)}
    assert sizes == {60: (80, 60), 61: (160, 120), 121: (320, 240), 240: (320, 240), 241: (640, 480), 481: (640, 480)}
    assert decode_image(encoded(image), "x", at_least=60).size == (640, 480)  # PNG has no such thing
    small = np.array(decode_image(data, "x", at_least=100)).astype(float)
    assert np.abs(small - np.array(image.resize((160, 120), Image.Resampling.BOX))).mean() < 2


def kinds_of_files() -> dict[str, bytes]:
    """Name -> content: every kind of pixels that a file may hold, none of them the same upright and as it lies."""
    exif, photo = Image.Exif(), noise(3, (90, 60))
    exif[0x0112] = 6
    half = Image.merge("RGBA", (*photo.split(), Image.linear_gradient("L").resize((90, 60))))
    wide = Image.fromarray(np.arange(5400, dtype=np.uint16).reshape(60, 90) * 12)
    palette = photo.quantize(16)
    files = {name: content for name, (content, _) in good_files().items()}
    files |= {"turned.jpg": encoded(photo, "JPEG", exif=exif), "grey.jpg": encoded(photo.convert("L"), "JPEG")}
    files |= {"large.jpg": encoded(noise(4, (900, 700)), "JPEG"), "cmyk.tif": encoded(photo.convert("CMYK"), "TIFF")}
    files["large_turned.jpg"] = encoded(noise(4, (900, 700)), "JPEG", exif=exif)
    files["two.mpo"] = encoded(noise(5, (900, 700)), "MPO", save_all=True, append_images=[photo], exif=exif)
    files |= {"rgba.png": encoded(half, exif=exif), "la.webp": encoded(half.convert("LA").convert("RGBA"), "WEBP")}
    files |= {"la2.png": encoded(half.convert("LA")), "wide2.png": encoded(wide, exif=exif)}
    files |= {"wide.tif": encoded(wide, "TIFF"), "palette2.png": encoded(palette, transparency=3, exif=exif)}
    files["key.png"] = encoded(photo, transparency=photo.getpixel((0, 0)))
    known_formats()  # registers HEIF
    files["turned.heic"] = encoded(photo, "HEIF", exif=exif.tobytes())
    first, *rest = (Image.new("RGB", (30, 20), colour) for colour in (RED, GREEN))
    return files | {f"moving.{f}": encoded(first, f, save_all=True, append_images=rest) for f in ("gif", "png")}


def test_an_image_opened_by_pillow_has_the_pixels_that_training_sees(tmp_path: Path) -> None:
    files = kinds_of_files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty.jpg").touch()
    splits = dict.fromkeys(files, "train") | {"empty.jpg": "test"}
    rows = [("file_name", "caption", "split"), *((name, name, split) for name, split in splits.items())]
    config = DataConfig(write_csv(tmp_path / "all.csv", rows), validation_split="test")
    trained = {side: open_source(config, "train", image_size=side) for side in (48, 7, 300)}
    for row, name in enumerate(files):
        given = Image.open(tmp_path / name)
        before = given.size, given.mode, given.info.get("exif")
        for side in (48, 7, 300):  # each as if it were the first
            seen = trained[side].image(row)
            square = Preprocess(side).to_uint8(given)
            assert np.array_equal(square, image_to_tensor(Preprocess(side).to_square(seen))), (name, side)
            assert np.array_equal(square, Preprocess(side).to_uint8(seen)), name  # twice is once
        assert (given.size, given.mode, given.info.get("exif")) == before, name
    with pytest.raises(ValueError, match="32-bit float"):
        Preprocess(48)(Image.new("F", (9, 9)))


def test_paths_stay_inside_their_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.png").touch()
    (tmp_path / "settled").mkdir()
    (tmp_path / "secret.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "good.png").symlink_to(root / "in" / "a.png")
    real = os.path.realpath(root)
    for path in ("in/a.png", "in/../in/a.png", str(root / "in/a.png"), "good.png", "..a.png", "a..b.png"):
        assert path_inside([real], path, "x").startswith(real)
        assert not leaves_folder([real], path)
    outside = ("../secret.png", "in/../../secret.png", "/etc/passwd", str(tmp_path / "settled/x.png"), "../settled/x")
    for path in (*outside, "link.png", "folder/secret.png"):
        assert leaves_folder([real], path) == (path in outside)  # links are left to path_inside
        with pytest.raises(BadImage, match="leads out of"):
            path_inside([real], path, "x")
    with pytest.raises(BadImage, match="not a path"):
        path_inside([real], "a\0.png", "x")
