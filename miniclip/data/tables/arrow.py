"""Tables that the `datasets` library reads: Parquet and Arrow files, folders of them, and data sets of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniclip.common.fingerprint import digest
from miniclip.data.tables.patterns import by_split, did_you_mean, near_file
from miniclip.data.tables.table import Kind


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
        import pyarrow.types as types

        columns: list[str] = []
        for name in self.dataset.column_names:
            kind = self._type(name)
            columns.append(name)
            if types.is_struct(kind) and self.kind(name) == "other":
                columns += [f"{name}.{kind.field(i).name}" for i in range(kind.num_fields)]
        return columns

    def _type(self, column: str) -> Any:
        schema = self.dataset.data.schema
        if column in schema.names:
            return schema.field(column).type
        parent, _, field = column.partition(".")
        return schema.field(parent).type.field(field).type

    def __len__(self) -> int:
        return len(self.dataset)

    def kind(self, column: str) -> Kind:
        import pyarrow.types as types

        kind = self._type(column)
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
        for chunk in self.chunks(column):
            yield from chunk.to_pylist()

    def chunks(self, column: str) -> list[Any]:
        """Arrow arrays of the column, in order; nothing is read."""
        if column in self.dataset.column_names:
            return list(self.dataset.data.column(column).chunks)
        import pyarrow.compute as compute

        parent, _, field = column.partition(".")
        # not chunk.field(field), which forgets the rows in which the struct itself is null
        return [compute.struct_field(chunk, [field]) for chunk in self.dataset.data.column(parent).chunks]

    def cell(self, column: str, row: int) -> Any:
        return self.dataset.data.column(column)[row]

    def where(self, row: int) -> str:
        return f"{self.split} row {row}"

    def class_names(self, column: str) -> list[str] | None:
        """Names of a ClassLabel column, in the order of its numbers."""
        names = getattr(self.dataset.features.get(column), "names", None)
        return None if names is None else list(names)

    def fingerprint(self) -> str:
        # that of the library: of the data files (size and time of change, or the commit on the Hub) and the split
        return digest(self.dataset._fingerprint, self.split)


def load_files(files: dict[str, list[str]], source: str, roots: tuple[str, ...]) -> dict[str, ArrowTable]:
    """Split -> table of Parquet files (paths or URLs); picture paths in them are relative to roots[0].

    Raises ValueError if one cannot be read.
    """
    return _load_local(source, roots, "parquet", data_files=files)


def load_folder(folder: Path, name: str | None, parquet: list[str], pictures: bool) -> dict[str, ArrowTable]:
    """Split -> table of a folder of data files, as the library splits them. Raises ValueError if nothing can be read.

    parquet: Parquet files in it. pictures: whether there are files of pictures too; the library goes by the commonest
    kind of file, so it would take those and miss the table that names them.
    """
    roots = (os.path.realpath(folder),)
    if parquet and pictures:
        return load_files(by_split([str(folder / file) for file in parquet], f"{folder}/*"), str(folder), roots)
    return _load_local(str(folder), roots, str(folder), name)


def library_caches() -> tuple[str, ...]:
    """Where the `datasets` library puts what it fetches."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return tuple(os.path.realpath(Path(p).expanduser()) for p in caches)


def load_hub(source: str, name: str | None, revision: str | None) -> dict[str, ArrowTable]:
    """Split -> table of a data set of the Hub. name: configuration. revision: branch, tag or commit.

    Raises FileNotFoundError if the Hub was not reached, ValueError if the set cannot be loaded.
    """
    try:
        return _load(source, library_caches(), source, name, revision=revision)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{source}: there is no such folder here{near_file(source)}, and the Hub was not reached "
            f"({_reason(error)}); check the name and the connection, or give the path of a local copy"
        ) from error
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the Hub's
        reason = _reason(error)
        hint = "; data.name picks a configuration" if "onfig" in reason else ""
        hint += did_you_mean(name, set(re.findall(r"'([\w.-]+)'", reason)) - {name}) if name and hint else ""
        hint += f" (data.revision={revision})" if revision else ""
        raise ValueError(f"{source}: the Hub set cannot be loaded ({reason}){hint}") from error


def _load_local(source: str, roots: tuple[str, ...], *what: Any, **options: Any) -> dict[str, ArrowTable]:
    try:
        with _quiet():
            return _load(source, roots, *what, **options)
    except Exception as error:
        raise ValueError(f"{source}: nothing the `datasets` library can read ({_reason(error)})") from error


def _load(source: str, roots: tuple[str, ...], *what: Any, **options: Any) -> dict[str, ArrowTable]:
    import datasets

    loaded = datasets.load_dataset(*what, **options)
    return {split: ArrowTable(part, split, source, roots) for split, part in loaded.items()}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def _quiet() -> Iterator[None]:
    """What is local is read in a moment: no progress bars."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
