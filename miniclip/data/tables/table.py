"""What a table of images and texts is, and one whose rows lie in memory; what a shard of a stream is.

A table knows columns, not their meaning. A column `a.b` is field b of the objects in column a.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from miniclip.common.fingerprint import digest

Kind = Literal["image", "text", "texts", "other"]


class Table(Protocol):
    """Rows of one split. `roots`: real paths of the folders that its image files may lie in, the first its own."""

    @property
    def label(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def roots(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def kind(self, column: str) -> Kind: ...
    def values(self, column: str) -> Iterator[Any]: ...
    def where(self, row: int) -> str: ...
    def fingerprint(self) -> str:
        """Changes when the files of the table do; the files that it names are not looked at."""


class Unordered(ValueError):
    """A shard whose samples cannot be told apart when it is read from its start; nothing of it may be used."""


class Sample(NamedTuple):
    """image: encoded, None if there is none. captions: the cells of the caption columns, whatever they hold."""

    image: bytes | None
    captions: list[Any]
    name: str


@dataclass(frozen=True)
class Shard:
    """A file, here or far away, that is read from its start. A sample is what lies in it, nothing decoded: what is
    wrong with one shows when it is used, and costs that one alone.

    name: file or address. image, captions: columns, to be set before `read`.
    """

    name: str
    image: str = field(default="", kw_only=True)
    captions: Sequence[str] = field(default=(), kw_only=True)

    def table(self, label: str) -> Table:
        """The columns, and some of the rows or none."""
        raise NotImplementedError

    def read(self) -> Generator[Sample, None, None]:
        """All samples, in order. What cannot be read further raises, whatever the library raises."""
        raise NotImplementedError


def kind_of(values: Iterable[Any]) -> Kind:
    """What a column of plain values holds: a single text among them makes it one of texts, bytes one of images."""
    other = False
    for value in values:
        if isinstance(value, bytes):
            return "image"
        if isinstance(value, str) and value:
            return "text"
        if isinstance(value, list) and any(isinstance(v, str) for v in value):
            return "texts"
        other = other or value not in (None, "", [])
    return "other" if other else "text"


def nested_columns(records: Iterable[dict[str, Any]]) -> list[str]:
    """Names of the columns, each followed by the fields of its objects, as `column.field`."""
    columns: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items():
            fields = columns.setdefault(name, {name: None})
            if isinstance(value, dict):
                fields.update(dict.fromkeys(f"{name}.{field}" for field in value))
    return list(dict.fromkeys(c for fields in columns.values() for c in fields))


def inside(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column in a row; None if there is none."""
    if column in record:
        return record[column]
    parent = next((name for name in record if column.startswith(f"{name}.")), "")
    value = record.get(parent)
    return value.get(column[len(parent) + 1 :]) if isinstance(value, dict) else None


def base_of(name: str) -> str:
    """The last part of a path or address."""
    return name.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def reason(error: BaseException) -> str:
    """An error of a library, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@dataclass(frozen=True)
class RecordTable:
    """Rows in memory. places: what messages call each row. told: what its fingerprint is made of."""

    label: str
    records: list[dict[str, Any]]
    columns: list[str]
    places: list[str]
    roots: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def kind(self, column: str) -> Kind:
        return kind_of(self.values(column))

    def values(self, column: str) -> Iterator[Any]:
        return (inside(record, column) for record in self.records)

    def where(self, row: int) -> str:
        return self.places[row]

    def fingerprint(self) -> str:
        return digest(*self.told)


class TextLists:
    """Many short lists of texts as an Arrow array: small, and shared by forked workers without copies.

    Of bytes, since Arrow's strings hold no lone surrogates, and names of files may.
    """

    def __init__(self, lists: Iterable[Sequence[str]]) -> None:
        import pyarrow as pa

        encoded = ([text.encode("utf-8", "surrogatepass") for text in texts] for texts in lists)
        self._lists: Any = pa.array(encoded, pa.large_list(pa.large_binary()))

    def __len__(self) -> int:
        return len(self._lists)

    def __getitem__(self, index: int) -> list[str]:
        return [text.decode("utf-8", "surrogatepass") for text in self._lists[index].as_py()]

    def firsts(self) -> list[str]:
        """The first text of each list, all at once; there has to be one in each."""
        texts = self._lists.values.to_pylist()
        return [texts[i].decode("utf-8", "surrogatepass") for i in self._lists.offsets.to_pylist()[:-1]]

    def checksums(self) -> np.ndarray:
        """(lists,) uint32, of each list."""
        _, ends, blob = self._lists.values.buffers()
        places = np.frombuffer(ends, dtype=np.int64)[self._lists.offsets.to_numpy()].tolist()
        data = memoryview(blob or b"")
        return np.array([zlib.crc32(data[a:b]) for a, b in pairwise(places)], dtype=np.uint32)

    def fingerprint(self) -> str:
        _, ends, blob = self._lists.values.buffers()
        parts = (self._lists.offsets.to_numpy(), ends, blob)
        return digest(*(b"" if part is None else memoryview(part).tobytes() for part in parts))
