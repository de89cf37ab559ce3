"""CSV, TSV and JSONL files, or a folder that has one: a row names the file of an image."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniclip.common.fingerprint import stamp
from miniclip.data.tables.source import FILE_EXTENSIONS, TABLE_EXTENSIONS, Source, is_url
from miniclip.data.tables.table import RecordTable, nested_columns
from miniclip.data.tables.texts import read_text

DELIMITERS = (",", "\t", ";", "|")


def accepts(source: Source) -> bool:
    """Any file that is of no other kind, too, so that it can be said what would be read."""
    others = set(FILE_EXTENSIONS) - set(TABLE_EXTENSIONS)
    return bool(source.tables) or (bool(source.files) and source.extension not in others)


def open_tables(source: Source) -> Mapping[str, RecordTable]:
    if source.tables:
        return {split: read_file(file) for split, file in source.tables.items()}
    if is_url(source.text):
        raise ValueError(
            f"{source.text}: of what lies behind a URL, Parquet files (.parquet) and tars (.tar) can be read"
        )
    if len(source.files) > 1:
        raise ValueError(
            f"{source.text} fits {len(source.files)} files ({source.extension}); a pattern can stand for Parquet files "
            "or tars, and data.source can be a list of tables"
        )
    return {"train": read_file(Path(source.files[0]))}


def read_file(file: Path) -> RecordTable:
    """Read a CSV, TSV or JSONL file. Raises ValueError that names the line."""
    if file.suffix.lower() not in TABLE_EXTENSIONS:
        raise ValueError(f"{file}: expected a file that ends in one of {', '.join(TABLE_EXTENSIONS)}, or a folder")
    read = _read_jsonl if file.suffix.lower() in (".jsonl", ".ndjson") else _read_delimited
    records, columns, lines = read(file)
    if not records:
        raise ValueError(f"{file} has no rows")
    places, told = [f"{file.name} line {line}" for line in lines], (os.path.realpath(file), stamp(file))
    return RecordTable(str(file), records, columns, places, (os.path.realpath(file.parent),), told)


def _read_jsonl(file: Path) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    records, lines = [], []
    for number, text in enumerate(io.StringIO(read_text(file), newline=None), 1):
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
    return records, nested_columns(records), lines


def _read_delimited(file: Path) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    stream = io.StringIO(read_text(file), newline="")
    # Names of columns hold no delimiters, captions do: the header alone decides.
    header = stream.readline()
    delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))
    stream.seek(0)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    records, lines, line = [], [], 1
    try:
        columns = [field.strip() for field in next(reader, [])]
        if len(columns) < 2:
            raise ValueError(
                f"{file}: the header has the one column {columns[0] if columns else ''!r}; expected at least two, "
                "separated by commas, tabs, semicolons or |"
            )
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"{file}: the header names {', '.join(twice)} more than once")
        line = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(columns):
                raise ValueError(
                    f"{file} line {line}: {len(fields)} fields, but the header has {len(columns)} "
                    f"(delimiter {delimiter!r}); put quotes around text that holds the delimiter"
                )
            if fields:
                records.append(dict(zip(columns, fields, strict=True)))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file} line {line}: {error} (delimiter {delimiter!r}); inside a quoted field, write a quote twice"
        ) from None
    return records, columns, lines
