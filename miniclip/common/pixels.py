"""Any image of Pillow's -> its pixels as RGB: one way for training, for evaluation and for whoever embeds a file."""

from __future__ import annotations

from contextlib import suppress

from PIL import ExifTags, Image, ImageChops, TiffImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

# EXIF's orientations 2 to 8 -> what turns the image upright
_TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))


def to_rgb(image: Image.Image, at_least: int | None = None) -> Image.Image:
    """RGB, upright, on white where it is clear, of 16 bits the upper 8; an upright RGB image is returned itself.

    image: stays as it is. Idempotent. at_least: as in `draft`, for a JPEG whose pixels have not been read yet. Raises
    ValueError for pixels without an agreed range or in that of 8 bits where there are 16, and whatever Pillow raises
    where they cannot be decoded.
    """
    if at_least is not None and isinstance(image, JpegImageFile) and image.tile and image.tell() == 0:
        assert image.fp is not None  # it was not read yet
        with Image.open(image.fp, formats=("JPEG",)) as again:  # the same file, which stays open
            draft(again, at_least)
            return to_rgb(again)
    rgb = _convert(_upright(image))
    # a TIFF may call 0 white; Pillow turns that over where it has 8 bits
    if (
        image.mode.startswith("I;16")
        and getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    ):
        rgb = ImageChops.invert(rgb)
    if rgb is not image:
        rgb.info = {}  # what it says of turning and transparency has been done
    return rgb


def draft(image: Image.Image, at_least: int) -> None:
    """Have an opened JPEG decoded at 1/2, 1/4 or 1/8 of its size, where that leaves its shorter side so many pixels."""
    factor = at_least / min(image.size)
    if factor < 1:
        image.draft("RGB", (round(image.width * factor), round(image.height * factor)))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = None
    with suppress(Exception):  # malformed metadata says nothing against the pixels
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = image.convert("I")
        low, high = wide.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise ValueError("integer pixels outside 0..65535; save it with 8 or 16 bits a channel")
        if 0 < high < 256:  # type: ignore[operator]
            raise ValueError("16-bit pixels that are 255 at most would all be black; save it with 8 bits a channel")
        return wide.point(lambda v: v * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
