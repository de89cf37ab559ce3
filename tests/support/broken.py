"""Files of images as the world has them: broken ones of many kinds, and good ones of odd kinds."""

from __future__ import annotations

import numpy as np
from PIL import Image

from support.files import encoded, png_header
from support.sources import noise


def bad_files() -> dict[str, bytes | None]:
    """Name -> content; None stands for something that is not a file."""
    jpeg, whole = encoded(noise(0), "JPEG"), encoded(noise(0))
    checksum = bytearray(whole)
    checksum[29] ^= 0xFF  # in the CRC of IHDR: 8 of signature, 4 of length, 4 of type, 13 of content
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "missing.jpg": None,
        "text.jpg": b"this is not an image\n" * 20,
        "checksum.png": bytes(checksum),
        "cut.png": whole[: len(whole) // 2],
        "bomb.png": png_header(9000, 9000),
        "huge.png": png_header(60000, 60000),
        "flat.png": png_header(0, 7),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "print.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n",
        "float.tif": encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
        "folder.jpg": None,
    }


def good_files() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Name -> content, and the colour at the top left of the upright image."""
    size = (24, 24)
    grey = Image.new("L", size, 77)
    palette = Image.new("P", size)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = Image.new("RGB", size, (255, 0, 0))
    turned.paste((0, 0, 255), (0, 12, 24, 24))
    return {
        "plain.png": (encoded(Image.new("RGB", size, (1, 2, 3))), (1, 2, 3)),
        "cmyk.jpg": (encoded(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        "wide.png": (encoded(Image.fromarray(np.full(size, 77 * 257, dtype=np.uint16))), (77, 77, 77)),
        "grey.png": (encoded(grey), (77, 77, 77)),
        "palette.png": (encoded(palette), (0, 0, 255)),
        "clear.png": (encoded(palette, transparency=0), (255, 255, 255)),
        "turned.png": (encoded(turned, exif=exif), (0, 0, 255)),
        "bit.png": (encoded(Image.new("1", size, 1)), (255, 255, 255)),
        "la.png": (encoded(Image.new("LA", size, (77, 0))), (255, 255, 255)),
    }
