"""Which formats of images are read, how their files are called, and what is said of files that are not used."""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from PIL import Image

log = logging.getLogger(__name__)

# Named, since Pillow's full list starts other programs on some formats (Ghostscript on EPS).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL")


class _Plugin(NamedTuple):
    """What reads a format that Pillow itself does not. module: registers it. start: of such a file's bytes."""

    package: str
    module: str
    endings: tuple[str, ...]
    start: bytes


_PLUGINS = {
    "HEIF": _Plugin(
        "pillow-heif", "pillow_heif.HeifImagePlugin", (".heic", ".heif", ".hif"), rb"....ftyp(hei|hev|mif1|msf1)"
    ),
    "AVIF": _Plugin("pillow-avif-plugin", "pillow_avif", (".avif",), rb"....ftypavi"),  # of Pillow before 11.3
    "JXL": _Plugin("pillow-jxl-plugin", "pillow_jxl", (".jxl",), rb"\xff\x0a|\x00\x00\x00\x0cJXL "),
}
_PLUGGED = tuple(ending for plugin in _PLUGINS.values() for ending in plugin.endings)


@cache
def known_formats() -> tuple[str, ...]:
    """Of FORMATS, what this Pillow reads, with its plug-ins where they are installed."""
    Image.init()
    for format, plugin in _PLUGINS.items():
        if format not in Image.OPEN:
            with suppress(ImportError):
                importlib.import_module(plugin.module)
    return tuple(f for f in FORMATS if f in Image.OPEN)


@cache
def extensions() -> tuple[str, ...]:
    """How the names of images end that are read, in lower case."""
    known = {*known_formats(), "MPO"}  # which the reader of JPEG takes
    return tuple(e for e, f in Image.registered_extensions().items() if f in known and e != ".pfm")  # of floats


def looks_like_image(name: str) -> bool:
    """Whether a name ends as an image's does, also as one that a plug-in would read."""
    return name.lower().endswith(extensions() + _PLUGGED)


def why_unknown(start: bytes) -> str:
    """What to say of a file that is none of the known formats, by its first bytes."""
    for format, plugin in _PLUGINS.items():
        if format not in known_formats() and re.match(plugin.start, start, re.DOTALL):
            return f"a {format} image; pip install {plugin.package}"
    return "not an image in any known format"


def note_left_out(where: object, files: Iterable[str]) -> None:
    """Log in one line, by their endings, the files of a folder that are not used."""
    count = Counter(os.path.splitext(file)[1].lower() for file in files)  # noqa: PTH122
    ordered = sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))
    named = ", ".join(f"{number} {ending or 'without an ending'}" for ending, number in ordered)
    helps = [plugin.package for plugin in _PLUGINS.values() if count.keys() & set(plugin.endings)]
    if count:
        advice = f": pip install {' '.join(helps)}" if helps else ""
        log.warning("%s: %s files are left out%s", where, named, advice)
