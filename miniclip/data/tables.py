"""Tables of pictures and texts, as they lie on disk: CSV, TSV and JSONL files, and all that `datasets` reads.

`read_tables` gives one `Table` for each split that is kept apart on disk. A table knows columns, not their meaning.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from miniclip.data.images import EXTENSIONS

Kind = Literal["image", "text", "texts", "other"]

TABLE_EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
DELIMITERS = (",", "\t", ";", "|")
SPLIT_NAMES = ("train", "training", "validation", "val", "valid", "dev", "test", "testing", "eval")


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
        first = next((v for v in self.values(column) if v not in (None, "", [])), None)
        if first is None or isinstance(first, str):
            return "text"
        return "texts" if isinstance(first, list) and all(isinstance(v, str | None) for v in first) else "other"

    def values(self, column: str) -> Iterator[Any]:
        return (record.get(column) for record in self.records)

    def where(self, row: int) -> str:
        return f"{self.file.name} line {self.lines[row]}"


@dataclass(frozen=True)
class ArrowTable:
    """A split of a `datasets` data set: memory-mapped, and read cell by cell, so that no picture is decoded."""

    dataset: Any
    split: str
    source: str
    roots: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.source} ({self.split})"

    @property
    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def kind(self, column: str) -> Kind:
        import pyarrow.types as types

        kind = self.dataset.data.schema.field(column).type
        if types.is_struct(kind) and "bytes" in {kind.field(i).name for i in range(kind.num_fields)}:
            return "image"  # the Image feature, and the same struct in a file without the library's metadata
        if types.is_binary(kind) or types.is_large_binary(kind):
            return "image"
        if types.is_string(kind) or types.is_large_string(kind):
            return "text"
        if types.is_list(kind) or types.is_large_list(kind):
            return "texts" if types.is_string(kind.value_type) or types.is_large_string(kind.value_type) else "other"
        return "other"

    def values(self, column: str) -> Iterator[Any]:
        for chunk in self.dataset.data.column(column).chunks:
            yield from chunk.to_pylist()

    def chunks(self, column: str) -> list[Any]:
        """Arrow arrays of the column, in order; nothing is read."""
        return list(self.dataset.data.column(column).chunks)

    def cell(self, column: str, row: int) -> Any:
        return self.dataset.data.column(column)[row]

    def where(self, row: int) -> str:
        return f"{self.split} row {row}"

    def class_names(self, column: str) -> list[str] | None:
        """Names of a ClassLabel column, in the order of its numbers."""
        names = getattr(self.dataset.features[column], "names", None)
        return None if names is None else list(names)


def read_tables(source: str, name: str | None = None) -> dict[str, Table]:
    """Split name -> table. A source that is not split has the one split "train", as in the `datasets` library.

    source: a CSV, TSV or JSONL file; a folder with metadata.jsonl (or .csv, .tsv), itself or in a sub-folder a split; a
    folder of Parquet files; a Hub name. name: configuration of a Hub set.
    Raises FileNotFoundError if there is no such source, ValueError if it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": read_file(path)}
    if path.is_dir():
        files = table_files(path)
        return {split: read_file(files[split]) for split in files} or _load(str(path), name, local=True)
    looks_local = source.startswith((".", "/", "~")) or path.suffix.lower() in TABLE_EXTENSIONS
    if looks_local or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise FileNotFoundError(f"{source}: no such file or folder (looked from {Path.cwd()})")
    return _load(source, name, local=False)


def table_files(folder: Path) -> dict[str, Path]:
    """Split name -> CSV, TSV or JSONL file of a folder; empty if it has none. Raises ValueError where it is unclear."""
    own = _only_table(folder)
    if own is not None:
        return own
    below: dict[str, Path] = {}
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and p.name.lower() in SPLIT_NAMES):
        found = _only_table(child)
        if found is not None:
            below[child.name.lower()] = next(iter(found.values()))
    return below


def _only_table(folder: Path) -> dict[str, Path] | None:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLE_EXTENSIONS and p.suffix.lower() != ".txt")
    named = [p for p in files if p.stem == "metadata"] or [p for p in files if p.stem == "labels"] or files
    if not named:
        return None
    if len(named) == 1:
        return {"train": named[0]}
    by_split = {p.stem.lower(): p for p in named}
    if set(by_split) <= set(SPLIT_NAMES) and len(by_split) == len(named):
        return by_split
    raise ValueError(f"{folder} holds several tables: {', '.join(p.name for p in named)}; name one as the source")


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
    columns: dict[str, None] = {}
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
            columns.update(dict.fromkeys(record))
            records.append(record)
            lines.append(number)
    return FileTable(file, records, list(columns), lines, (os.path.realpath(file.parent),))


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


def _load(source: str, name: str | None, *, local: bool) -> dict[str, Table]:
    import datasets

    roots: tuple[str, ...]
    try:
        with _quiet() if local else nullcontext():
            files = _parquet_beside_pictures(Path(source)) if local else {}
            what = ("parquet", None) if files else (source, name)
            loaded = datasets.load_dataset(*what, data_files=files or None)
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the Hub's
        reason = " ".join(str(error).split())
        if local:
            raise ValueError(
                f"{source}: no metadata.jsonl, and nothing the `datasets` library can read ({reason})"
            ) from error
        if isinstance(error, ConnectionError):
            raise FileNotFoundError(
                f"{source}: there is no such folder here, and the Hub was not reached ({reason}); "
                "check the name and the connection, or give the path of a local copy"
            ) from error
        hint = "; data.name picks a configuration" if "onfig" in reason else ""
        raise ValueError(f"{source}: the Hub set cannot be loaded ({reason}){hint}") from error
    if local:
        roots = (os.path.realpath(source),)
    else:
        from huggingface_hub.constants import HF_HUB_CACHE

        caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
        roots = tuple(os.path.realpath(Path(p).expanduser()) for p in caches)
    return {split: ArrowTable(part, split, source, roots) for split, part in loaded.items()}


def _parquet_beside_pictures(folder: Path) -> dict[str, list[str]]:
    """Split -> Parquet files of a folder that holds picture files too; empty for other folders.

    `load_dataset` goes by the commonest kind of file, so it would take the pictures and miss the table that names them.
    """
    parquet = sorted(folder.glob("*.parquet")) + sorted(folder.glob("data/*.parquet"))
    if not parquet or not any(file.suffix.lower() in EXTENSIONS for file in folder.rglob("*")):
        return {}
    files: dict[str, list[str]] = {}
    for file in parquet:
        words = re.split(r"[^a-z]+", file.stem.lower())
        files.setdefault(next((w for w in words if w in SPLIT_NAMES), "train"), []).append(str(file))
    return files


@contextmanager
def _quiet() -> Iterator[None]:
    """A local folder is read in a moment: no progress bars."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
