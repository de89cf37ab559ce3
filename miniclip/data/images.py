"""Files and bytes to RGB images, safely: what comes from a data set is untrusted.

Anything that cannot become an image raises BadImage, whose message names the row or file and the reason.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from miniclip.common.pixels import draft, to_rgb
from miniclip.common.printing import first_few
from miniclip.data.formats import known_formats, why_unknown

# 64 Mpx are 192 MB as RGB: beyond any photograph worth shrinking, and below what fills a loader's memory.
MAX_PIXELS = 64_000_000


class BadImage(ValueError):
    """An image that cannot be used: missing, corrupt, cut short, too large, or outside its folder."""


class TooManyBad(ValueError):
    """More than data.max_bad_fraction of the images cannot be used; the message counts and names them."""


class Lost(str):
    """Why several images are lost at once, among the reasons for one each.

    images: how many. of: among how many at least, where that is not known beforehand.
    """

    images: int
    of: int

    def __new__(cls, text: str, images: int = 1, of: int = 0) -> Lost:
        self = super().__new__(cls, text)
        self.images, self.of = images, of
        return self


class BadCount:
    """Names of what could not be used, each once, in the order of their failure.

    total: images among which they are counted. allowed: data.max_bad_fraction; 0 stops at the first. split: that was
    read, for the message.
    """

    def __init__(self, total: int, allowed: float, split: str = "") -> None:
        self.total, self.allowed, self.split = total, allowed, split
        self._names: dict[str, int] = {}  # -> how many images

    @classmethod
    def of(cls, source: Sized, allowed: float) -> BadCount:
        """Of one split of a source: among the images of all its splits, for a split may be so small that one bad image
        is a large part of it. What says no more of itself is all there is."""
        return cls(max(len(source), getattr(source, "whole", 0)), allowed, getattr(source, "split", ""))

    def __len__(self) -> int:
        return sum(self._names.values())

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def add(self, names: Iterable[object]) -> None:
        """Note some, each as its message (a BadImage names its row or file). Raises TooManyBad above the share."""
        for name in names:
            self._names.setdefault(str(name), name.images if isinstance(name, Lost) else 1)
            self.total = max(self.total, name.of) if isinstance(name, Lost) else self.total
        if len(self) > self.allowed * self.total:
            where = f" (split {self.split})" if self.split else ""
            raise TooManyBad(
                f"{len(self)} of {self.total} images cannot be used{where}, more than data.max_bad_fraction="
                f"{self.allowed:g} allows: {first_few(self.names)}; mend or remove them, or raise the share"
            )


def decode_image(value: bytes | str | Path, name: str, *, at_least: int | None = None) -> Image.Image:
    """Encoded bytes or a path -> RGB image, upright, on white where it was clear; of an animation the first frame.

    name: file or row, for messages. at_least: shorter side in pixels that is enough; a JPEG is then decoded at 1/2, 1/4
    or 1/8 of its size where that leaves as much. MAX_PIXELS is compared with the header before any pixel is decoded.
    info["file"] of the image has the size in pixels, format, mode and bytes of what was decoded. Raises BadImage.
    """
    try:
        if isinstance(value, bytes):
            source: Path | io.BytesIO = io.BytesIO(value)
            count = len(value)
        elif Path(value).is_file():  # a pipe or a device would block the loader
            source, count = Path(value), Path(value).stat().st_size
        else:
            raise BadImage(f"{name}: no such file: {value}")
        with Image.open(source, formats=known_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{name}: {width} x {height} pixels exceed the limit of {MAX_PIXELS:,} pixels")
            file = {"size": image.size, "format": image.format, "mode": image.mode, "bytes": count}
            if at_least is not None:
                draft(image, at_least)
            rgb = to_rgb(image)
            rgb.info["file"] = file
            return rgb
    except BadImage:
        raise
    except UnidentifiedImageError:
        start = value[:16] if isinstance(value, bytes) else Path(value).read_bytes()[:16]
        raise BadImage(f"{name}: {why_unknown(start)}") from None
    # Pillow's decoders fail on corrupt data with SyntaxError, struct.error, zlib.error, EOFError and more.
    except Exception as error:
        raise BadImage(f"{name}: cannot be decoded ({type(error).__name__}: {error})") from error


def roots_of(own: str | Path, *named: str | Path) -> tuple[str, ...]:
    """Real paths of the folders that files may lie in: a data set's own, others that the user names, and where one is
    a snapshot in a cache of the Hub (datasets--NAME/snapshots/REVISION), the blobs to which its links lead."""
    roots = [os.path.realpath(folder) for folder in (own, *named)]
    places = [place for root in roots for place in (Path(root), *Path(root).parents)]
    snapshots = [place.parents[1] for place in places if place.parent.name == "snapshots"]
    blobs = [str(cached / "blobs") for cached in snapshots if re.match("(dataset|model|space)s--", cached.name)]
    return tuple(dict.fromkeys((*roots, *blobs)))


def path_inside(roots: Sequence[str], path: str, name: str) -> str:
    """Path of a file listed in a table, absolute or relative to the first root; links are followed, and must lead into
    one of the roots, which are real paths.

    Raises BadImage.
    """
    try:
        full = os.path.realpath(Path(roots[0]) / path)
    except ValueError as error:  # a null byte
        raise BadImage(f"{name}: {path!r} is not a path ({error})") from None
    if not is_below(full, roots):
        raise BadImage(f"{name}: {path!r} leads out of {roots[0]}; keep the images inside the folder of their table")
    return full


def leaves_folder(roots: Sequence[str], path: str) -> bool:
    """Whether a path points outside all roots by '..' or as an absolute path; links in them are left to path_inside."""
    if ".." not in path and ":" not in path and path[:1] not in ("/", "\\"):
        return False  # nearly every path: millions of them are looked at when a source is opened
    full = os.path.realpath(path) if Path(path).is_absolute() else os.path.normpath(f"{roots[0]}/{path}")
    return not is_below(full, roots)


def is_below(full: str, roots: Iterable[str]) -> bool:
    """Whether a real path is one of the roots, or lies in one."""
    return any(full == root or full.startswith(root.rstrip(os.sep) + os.sep) for root in roots)
