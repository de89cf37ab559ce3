"""What a table of pictures and texts is, and those that lie in CSV, TSV and JSONL files.

A table knows columns, not their meaning. A column `a.b` is field b of the objects in column a.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from miniclip.common.fingerprint import digest, stamp

Kind = Literal["image", "text", "texts", "other"]

TABLE_EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
DELIMITERS = (",", "\t", ";", "|")


class Table(Protocol):
    """Rows of one split. `roots`: real paths of the folders that its picture files may lie in, the first its own."""

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


def kind_of(values: Iterable[Any]) -> Kind:
    """What a column of plain values holds: a single text among them makes it one of texts."""
    other = False
    for value in values:
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


@dataclass(frozen=True)
class FileTable:
    """A CSV, TSV or JSONL file in memory; picture paths are relative to its folder."""

    file: Path
    records: list[dict[str, Any]]
    columns: list[str]
    lines: list[int]
    roots: tuple[str, ...]

    @property
    def label(self) -> str:
        return str(self.file)

    def __len__(self) -> int:
        return len(self.records)

    def kind(self, column: str) -> Kind:
        return kind_of(self.values(column))

    def values(self, column: str) -> Iterator[Any]:
        parent, _, field = column.partition(".")
        for record in self.records:
            if column not in record and isinstance(inside := record.get(parent), dict):
                yield inside.get(field)
            else:
                yield record.get(column)

    def where(self, row: int) -> str:
        return f"{self.file.name} line {self.lines[row]}"

    def fingerprint(self) -> str:
        return digest(os.path.realpath(self.file), stamp(self.file))


def read_file(file: Path) -> FileTable:
    """Read a CSV, TSV or JSONL file (UTF-8). Raises ValueError that names the line."""
    if file.suffix.lower() not in TABLE_EXTENSIONS:
        raise ValueError(f"{file}: expected a file that ends in one of {', '.join(TABLE_EXTENSIONS)}, or a folder")
    try:
        table = _read_jsonl(file) if file.suffix.lower() in (".jsonl", ".ndjson") else _read_delimited(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
    if not table.records:
        raise ValueError(f"{file} has no rows")
    return table


def _read_jsonl(file: Path) -> FileTable:
    records, lines = [], []
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} line {number}: not JSON ({error.msg}); write one object a line") from None
            if not isinstance(record, dict):
                raise ValueError(f'{file} line {number}: expected an object, {{"file_name": …, "text": …}}')
            records.append(record)
            lines.append(number)
    return FileTable(file, records, nested_columns(records), lines, (os.path.realpath(file.parent),))


def _read_delimited(file: Path) -> FileTable:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        # Names of columns hold no delimiters, captions do: the header alone decides.
        delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        records, lines, start = [], [], 1
        columns: list[str] = []
        try:
            for fields in reader:
                line, start = start, reader.line_num + 1
                if not columns:
                    columns = [field.strip() for field in fields]
                    _check_header(file, columns)
                elif fields and len(fields) != len(columns):
                    raise ValueError(
                        f"{file} line {line}: {len(fields)} fields, but the header has {len(columns)} "
                        f"(delimiter {delimiter!r}); put quotes around text that holds the delimiter"
                    )
                elif fields:
                    records.append(dict(zip(columns, fields, strict=True)))
                    lines.append(line)
        except csv.Error as error:
            raise ValueError(
                f"{file} line {start}: {error} (delimiter {delimiter!r}); inside a quoted field, write a quote twice"
            ) from None
    return FileTable(file, records, columns, lines, (os.path.realpath(file.parent),))


def _check_header(file: Path, columns: list[str]) -> None:
    if len(columns) < 2:
        raise ValueError(
            f"{file}: the header has the one column {columns[0] if columns else ''!r}; expected at least two, "
            "separated by commas, tabs, semicolons or |"
        )
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise ValueError(f"{file}: the header names {', '.join(twice)} more than once")
