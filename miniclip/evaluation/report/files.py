"""Files of a directory that is not trusted: read only where they lie inside it, and named where they are of no use."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from miniclip.common.printing import printable
from miniclip.data.images import MAX_PIXELS

_MAX_BYTES = 256 * 2**20  # of a file; far beyond what a run writes


@dataclass(frozen=True)
class PNG:
    """A picture that was really one. name: path below the run, with slashes."""

    name: str
    caption: str
    content: bytes
    size: tuple[int, int]


class Files:
    """Reads below a directory, which is a real path. left_out: file and why, a line each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.left_out: list[str] = []

    def refuse(self, name: str, why: object) -> None:
        self.left_out.append(printable(f"{name}: {why}"))

    def is_inside(self, name: str) -> bool:
        """Whether it is there, and no link leads out."""
        path = self.directory / name
        return path.exists() and Path(os.path.realpath(path)).is_relative_to(self.directory)

    def content(self, name: str) -> bytes | None:
        """None if there is no such file, or none that may be read."""
        path = self.directory / name
        if not os.path.lexists(path):
            return None
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.directory):
            self.refuse(name, "a link leads out of the run")
        elif not real.is_file():
            self.refuse(name, "no file")
        elif real.stat().st_size > _MAX_BYTES:
            self.refuse(name, f"larger than {_MAX_BYTES >> 20} MiB")
        else:
            try:
                return real.read_bytes()
            except OSError as error:
                self.refuse(name, f"cannot be read ({error.strerror})")
        return None

    def picture(self, name: str, caption: str) -> PNG | None:
        """None if there is no such file, or none that is a PNG of at most MAX_PIXELS."""
        content = self.content(name)
        if content is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(content), formats=("PNG",))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.load()
            return PNG(name, caption, content, image.size)
        except UnidentifiedImageError:
            self.refuse(name, "no PNG")
        except Exception as error:  # Pillow's decoders fail in many ways on what is damaged
            self.refuse(name, f"cannot be decoded ({type(error).__name__}: {error})")
        return None

    def pages(self, folder: str, pattern: str = "*.html") -> list[str]:
        """Paths of what is there, to link to; nothing is read of them."""
        found = sorted((self.directory / folder).glob(pattern))
        return [folder + path.name for path in found if self.is_inside(folder + path.name)]

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder."""
        folder = self.directory / name
        if not folder.is_dir():
            return []
        if not self.is_inside(name):
            self.refuse(name, "a link leads out of the run")
            return []
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def number(value: Any) -> float | None:
    """A finite number, or None; what is beyond 1e100 is damage, and would overflow what is counted from it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


def text(value: Any) -> str:
    """Words and finite numbers on one printable line; nothing else has any."""
    return printable(str(value)) if isinstance(value, str) or number(value) is not None else ""


def parsed(content: str | bytes) -> Any:
    """None for what is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def mapping(value: Any) -> dict[str, Any]:
    """The dictionary, or an empty one for anything else."""
    return dict(value) if isinstance(value, Mapping) else {}
