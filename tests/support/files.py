"""Images, tables, tars and folders of data for tests. An image made here tells its number by its colour."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

Sample = tuple[str, Mapping[str, bytes]]  # key, field -> bytes


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def image_of(number: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    """One colour, which tells the number (below 65,536)."""
    return Image.new("RGB", size, (number % 256, number // 256, 7))


def number_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
    return red + 256 * green


def png(number: int, size: tuple[int, int] = (4, 4)) -> bytes:
    return encoded(image_of(number, size))


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size that holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def write_image(file: Path, number: int) -> Path:
    """image_of(number), in the format that the name tells."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image_of(number).save(file)
    return file


def write_images(folder: Path, count: int, name: str = "{}.png") -> list[str]:
    """Images 0 to count - 1; returns their names."""
    names = [name.format(i) for i in range(count)]
    for i, file in enumerate(names):
        write_image(folder / file, i)
    return names


def write_classes(folder: Path, **classes: Iterable[int]) -> Path:
    """A folder for each class, with the images of these numbers."""
    for name, numbers in classes.items():
        for number in numbers:
            write_image(folder / name / f"{number}.png", number)
    return folder


def write_beside(folder: Path, first: int, last: int) -> Path:
    """Images, each with a text file that says "text <number>"."""
    for i in range(first, last):
        write_image(folder / f"{i}.png", i).with_suffix(".txt").write_text(f"text {i}\n")
    return folder


def write_csv(file: Path, rows: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """rows: the header first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return str(file)


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def write_parquet(file: Path, columns: Mapping[str, Sequence[Any]], **features: Any) -> str:
    """features: column -> type of the `datasets` library."""
    from datasets import Dataset

    file.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_dict(dict(columns))
    for name, feature in features.items():
        data = data.cast_column(name, feature)
    data.to_parquet(str(file))
    return str(file)


def cells(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Image cells of a Parquet file."""
    return [{"bytes": png(i), "path": f"{i}.png"} for i in range(first, first + count)]


def write_shard(file: Path, first: int, last: int) -> str:
    """A Parquet file with the columns image and caption, "text <number>"."""
    texts = [f"text {i}" for i in range(first, last)]
    return write_parquet(file, {"image": cells(last - first, first), "caption": texts})


def write_tar(file: Path, samples: Iterable[Sample]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, fields in samples:
            for field, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(file)


def samples(first: int, last: int, **more: Callable[[int], bytes]) -> list[tuple[str, dict[str, bytes]]]:
    """Sample i has the image png(i) and the caption "text <i>"; more: field -> what gives its bytes for i."""
    return [
        (f"{i:05d}", {"png": png(i), "txt": f"text {i}".encode(), **{f: make(i) for f, make in more.items()}})
        for i in range(first, last)
    ]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()
