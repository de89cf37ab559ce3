"""What a table of images and texts is, and one whose rows lie in memory; what a shard of a stream is.

A table knows columns, not their meaning. A column `a.b` is field b of the objects in column a.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self

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


class Sample(NamedTuple):
    """image: encoded, None if there is none. captions: the cells of the caption columns, whatever they hold."""

    image: bytes | None
    captions: list[Any]
    name: str


class Shard(Protocol):
    """A file, here or far away, that is read from its start. A sample is what lies in it, nothing decoded: what is
    wrong with one shows when it is used, and costs that one alone."""

    @property
    def name(self) -> str:
        """File or address."""

    def table(self, label: str) -> Table:
        """The columns, without rows."""

    def with_columns(self, image: str, captions: Sequence[str]) -> Self:
        """The same shard, its columns being known; to be called before `read`."""

    def read(self) -> Generator[Sample, None, None]:
        """All samples, in order. What cannot be read further raises, whatever the library raises."""


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
            fields = columns.setdefault(name, {})
            if isinstance(value, dict):
                fields.update(dict.fromkeys(f"{name}.{field}" for field in value))
    return list(dict.fromkeys(c for name, fields in columns.items() for c in (name, *fields)))


def inside(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column in a row; None if there is none."""
    if column in record:
        return record[column]
    parent = next((name for name in record if column.startswith(f"{name}.")), None)
    value = None if parent is None else record[parent]
    return value.get(column[len(str(parent)) + 1 :]) if isinstance(value, dict) else None


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
