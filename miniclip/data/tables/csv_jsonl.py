"""CSV, TSV, JSONL and JSON files, or a folder that has one: a row names the file of an image."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniclip.common.fingerprint import stamp
from miniclip.data.formats import looks_like_image
from miniclip.data.tables.objects import parse, read_objects
from miniclip.data.tables.source import ANNOTATIONS, OBJECT_EXTENSIONS, TABLE_EXTENSIONS, Source, is_url
from miniclip.data.tables.table import RecordTable, nested_columns
from miniclip.data.tables.texts import read_text

log = logging.getLogger(__name__)

DELIMITERS = (",", "\t", ";", "|")
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tgz")
NUMBER = re.compile(r"#\d+$")  # of a caption, behind the name of its image
FLICKR8K = {"train": "train", "dev": "validation", "test": "test"}  # its lists of images -> split
FLICKR30K = ["image_name", "comment_number", "comment"]


def accepts(source: Source) -> bool:
    """Any file that is of no other kind, too, so that it can be said what would be read."""
    others = {".parquet", ".tar"}
    return bool(source.tables) or (bool(source.files) and source.extension not in others)


def open_tables(source: Source) -> Mapping[str, RecordTable]:
    if source.tables:
        return {split: read_file(file, source) for split, file in source.tables.items()}
    if is_url(source.text):
        raise ValueError(
            f"{source.text}: of what lies behind a URL, Parquet files (.parquet) and tars (.tar) can be read"
        )
    if len(source.files) > 1:
        raise ValueError(
            f"{source.text} fits {len(source.files)} files ({source.extension}); a pattern can stand for Parquet files "
            "or tars, and data.source can be a list of tables"
        )
    return {"train": read_file(Path(source.files[0]), source)}


def read_file(file: Path, source: Source | None = None) -> RecordTable:
    """Read a CSV, TSV, JSONL or JSON file of a source. Raises ValueError that names the line."""
    extension, root = file.suffix.lower(), file.parent
    if extension in PACKED:
        raise ValueError(f"{file} is compressed; unpack it, and name the file or folder that it holds")
    if extension not in (*TABLE_EXTENSIONS, *OBJECT_EXTENSIONS):
        known = ", ".join((*TABLE_EXTENSIONS, *OBJECT_EXTENSIONS))
        raise ValueError(f"{file}: expected a file that ends in one of {known}, or a folder")
    if root.name.lower() in ANNOTATIONS:
        root = root.parent
    text = read_text(file)
    whole = _whole(text, file) if extension == ".json" or text.lstrip()[:1] == "[" else None
    if whole is not None:
        records, places = read_objects(whole, file, root)
        columns = nested_columns(records)
    else:
        by_lines = _read_jsonl if extension in (".jsonl", ".ndjson", ".json") else _read_delimited
        records, columns, lines = by_lines(file, text)
        places = [f"{file.name} line {line}" for line in lines]
    if not records:
        raise ValueError(f"{file} has no rows")
    told = (os.path.realpath(file), stamp(file))
    return RecordTable(str(file), records, columns, places, (source or Source(str(root))).roots(root), told)


def _whole(text: str, file: Path) -> Any:
    """What a JSON file says as a whole; None if it is one object a line."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise ValueError(f"{file} line {error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _read_jsonl(file: Path, text: str) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    records, lines = [], []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            record = parse(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} line {number}: not JSON ({error.msg}); write one object a line") from None
        except ValueError as error:
            raise ValueError(f"{file} line {number}: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f'{file} line {number}: expected an object, {{"file_name": …, "text": …}}')
        records.append(record)
        lines.append(number)
    return records, nested_columns(records), lines


def _read_delimited(file: Path, text: str) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    stream = io.StringIO(text, newline="")
    header = stream.readline()
    stream.seek(0)
    # the lines of Flickr8k's token file are plain: image#number, tab, caption
    first, tab, _ = header.partition("\t")
    bare = tab != "" and looks_like_image(NUMBER.sub("", first))
    # Names of columns hold no delimiters, captions do: the header alone decides.
    delimiter = "\t" if bare else max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))
    reader = csv.reader(stream, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL)
    records, lines, line = [], [], 1
    try:
        columns = ["file_name", "caption"] if bare else [field.strip() for field in next(reader, [])]
        if len(columns) < 2:
            raise ValueError(
                f"{file}: the header has the one column {columns[0] if columns else ''!r}; expected at least two, "
                "separated by commas, tabs, semicolons or |"
            )
        if any(map(is_url, columns)):
            raise ValueError(f"{file} has no header, and addresses; fetch the images first, e.g. with img2dataset")
        if any(map(looks_like_image, columns)):
            raise ValueError(
                f"{file}: its first line is no header ({', '.join(columns)}); write `file_name,caption` above"
            )
        twice = sorted({c for c in columns if columns.count(c) > 1})
        if twice:
            raise ValueError(f"{file}: the header names {', '.join(twice)} more than once")
        line = reader.line_num + 1
        for fields in reader:
            if columns == FLICKR30K and len(fields) == 2:  # its file lacks one delimiter, in line 19,999
                fields[1:] = fields[1].split(maxsplit=1)
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
    if bare:
        for record in records:
            record["file_name"] = NUMBER.sub("", record["file_name"])
    return _with_lists(file, records, columns, lines)


def _with_lists(
    file: Path, records: list[dict[str, Any]], columns: list[str], lines: list[int]
) -> tuple[list[dict[str, Any]], list[str], list[int]]:
    """With a column of splits, if Flickr8k's lists of them lie beside the file; images in none of them are left out."""
    split: dict[str, str] = {}
    for name, word in FLICKR8K.items():
        listed = file.with_name(f"Flickr_8k.{name}Images.txt")
        split |= dict.fromkeys(read_text(listed).splitlines() if listed.is_file() else (), word)
    column = next((c for c in columns if split and any(r[c] in split for r in records)), None)
    if column is None:
        return records, columns, lines
    kept = [n for n, record in enumerate(records) if record[column] in split]
    if len(kept) < len(records):
        log.warning("%s: %d captions are of images in none of its lists of splits", file, len(records) - len(kept))
    return (
        [records[n] | {"split": split[records[n][column]]} for n in kept],
        [*columns, "split"],
        [lines[n] for n in kept],
    )
