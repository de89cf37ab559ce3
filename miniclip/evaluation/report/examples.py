"""The first examples of a retrieval's page, examples.html, which the report shows again."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any, NamedTuple

from PIL import Image

from miniclip.data.images import MAX_PIXELS

_SHOWN = 4  # of a page
_READ = ("rank", "text", "cosine")  # classes of the elements whose text counts


class Caption(NamedTuple):
    """own: whether it is of the image. cosine: as it is printed."""

    own: bool
    text: str
    cosine: str


class Example(NamedTuple):
    """An image with its best captions. jpeg: the image, which really is one. rank: of its own caption, in words."""

    jpeg: bytes
    name: str
    rank: str
    captions: list[Caption]


def examples(page: str) -> list[Example]:
    """Of a page in which anything may stand. Raises ValueError, or what Pillow raises, for an image that is none."""
    reader = _Reader()
    reader.feed(page)
    return [
        Example(_jpeg(values["src"]), values["alt"], values["rank"], [Caption(**line) for line in values["captions"]])
        for values in reader.found[:_SHOWN]
    ]


def _jpeg(source: str) -> bytes:
    match = re.fullmatch(r"data:image/jpeg;base64,([\w+/]+=*)", source, re.ASCII)
    if match is None:
        raise ValueError("an image in it is no JPEG")
    content = base64.b64decode(match[1])
    whole_image(content, "JPEG")
    return content


def whole_image(content: bytes, format: str) -> Image.Image:
    """Raises ValueError, or what Pillow raises, unless it is of that format and of a sane size."""
    image = Image.open(io.BytesIO(content), formats=(format,))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    image.load()
    return image


class _Reader(HTMLParser):
    """found: what stands in each article of the class example."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []
        self._inside, self._read = False, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        classes = (known.get("class") or "").split()
        if tag == "article":
            self._inside = "example" in classes
            if self._inside:
                self.found.append({"src": "", "alt": "", "rank": "", "captions": []})
        elif self._inside and tag == "img":
            self.found[-1] |= {name: known.get(name) or "" for name in ("src", "alt")}
        elif self._inside and tag == "li":
            self.found[-1]["captions"].append({"own": "own" in classes, "text": "", "cosine": ""})
        self._read = next((name for name in _READ if self._inside and name in classes), "")

    def handle_endtag(self, tag: str) -> None:
        self._read = ""

    def handle_data(self, data: str) -> None:
        if self._read == "rank":
            self.found[-1]["rank"] += data
        elif self._read and self.found[-1]["captions"]:
            self.found[-1]["captions"][-1][self._read] += data.removeprefix("✓ ")
