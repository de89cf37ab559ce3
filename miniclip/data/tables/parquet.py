"""Parquet files, and the Arrow tables as which the `datasets` library gives them, whole or as a stream."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from miniclip.common.fingerprint import digest
from miniclip.data.formats import extensions
from miniclip.data.tables.source import Source, is_url, literal_folder
from miniclip.data.tables.table import Kind, Sample, Shard, Table, base_of, inside, reason

AT_ONCE = 16  # rows of a stream that are taken out of Arrow together, for speed


def accepts(source: Source) -> bool:
    return source.has(".parquet")


def open_tables(source: Source) -> Mapping[str, ArrowTable]:
    """Image paths are relative to the folder. Raises ValueError if a file cannot be read."""
    # the library goes by the commonest kind of file: beside images it would miss the table that names them
    if source.is_folder and not source.below(*extensions()) and (source.name is not None or _has_card(source.path)):
        return load_local(source)
    folder = source.path if source.is_folder else Path(literal_folder(source.text)).expanduser()
    roots = library_caches() if is_url(source.text) else source.roots(folder)
    return load_local(source, "parquet", roots, data_files=_escaped(source.by_split(".parquet")))


def find_shards(source: Source) -> Mapping[str, list[Shard]]:
    """Raises ValueError if the columns cannot be read."""
    import datasets

    files = source.by_split(".parquet")
    try:
        loaded = datasets.load_dataset("parquet", data_files=_escaped(files), streaming=True, **in_small_bites())
    except Exception as error:
        raise ValueError(f"{source.text}: cannot be read ({reason(error)})") from error
    return {split: shards_of(loaded[split], names, source.text) for split, names in files.items()}


def _has_card(folder: Path) -> bool:
    """Whether a README as of the Hub says which files are which split, or what the columns are."""
    card = folder / "README.md"
    return card.is_file() and any(word in card.read_bytes() for word in (b"data_files:", b"dataset_info:"))


def _escaped(splits: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Names of files as the patterns that the `datasets` library takes them for."""
    return {split: [name if is_url(name) else glob.escape(name) for name in names] for split, names in splits.items()}


@dataclass(frozen=True)
class ArrowTable:
    """A split of a `datasets` data set: memory-mapped, and read cell by cell, so that no image is decoded."""

    dataset: Any
    split: str
    label: str
    roots: tuple[str, ...]

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Of the columns, and of the fields of their objects, as `column.field`."""
        found: dict[str, Kind] = {}
        for field in self.dataset.data.schema:
            found[field.name] = _kind(field.type)
            if found[field.name] == "other" and hasattr(field.type, "get_field_index"):
                found |= {f"{field.name}.{inner.name}": _kind(inner.type) for inner in field.type}
        return found

    @property
    def columns(self) -> list[str]:
        return list(self.kinds)

    def __len__(self) -> int:
        return len(self.dataset)

    def kind(self, column: str) -> Kind:
        return self.kinds[column]

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

    def fingerprint(self) -> str:
        # that of the library: of the data files (size and time of change, or the commit on the Hub) and the split
        return digest(self.dataset._fingerprint, self.split)


def _kind(kind: Any) -> Kind:
    """kind: an Arrow type."""
    import pyarrow.types as types

    # the Image feature, and the same struct in a file without the library's metadata
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    listed = types.is_list(kind) or types.is_large_list(kind)
    value = kind.value_type if listed else kind
    if types.is_string(value) or types.is_large_string(value) or types.is_string_view(value):
        return "texts" if listed else "text"
    return "other"


def library_caches() -> tuple[str, ...]:
    """Where the `datasets` library puts what it fetches."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return tuple(os.path.realpath(Path(p).expanduser()) for p in caches)


def load_local(
    source: Source, what: str | None = None, roots: Sequence[str] = (), *, looked: str = "", **options: Any
) -> dict[str, ArrowTable]:
    """`load` of what lies here, the folder unless `what` is a kind of file, without a progress bar.

    Raises ValueError if nothing can be read. looked: what was sought before, for its message.
    """
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if what is None:
            return load(source.label, source.roots(source.path), source.label, source.name)
        return load(source.label, roots, what, **options)
    except Exception as error:
        why = _damaged(source) or " ".join(str(error).split())
        if what is None and glob.has_magic(source.label):
            why += "; it takes [, * and ? in the name of the folder for a pattern: rename it"
        raise ValueError(f"{source.label}: {looked}nothing the `datasets` library can read ({why})") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _damaged(source: Source) -> str:
    """Which Parquet file of a source here cannot be read, and why, which the library does not say; else empty."""
    import pyarrow.parquet

    folder = f"{source.path}/" if source.is_folder else ""
    names = [folder + name for name in source.below(".parquet")] if source.is_folder else source.files
    for name in names if not is_url(source.text) and source.has(".parquet") else ():
        try:
            with pyarrow.parquet.ParquetFile(name) as file:
                for _ in file.iter_batches(AT_ONCE):
                    pass
        except Exception as error:
            return f"{name} is cut short or damaged: {reason(error)}"
    return ""


def load(source: str, roots: Sequence[str], *what: Any, **options: Any) -> dict[str, ArrowTable]:
    """Split -> table of what the `datasets` library loads. Raises whatever it raises."""
    import datasets

    loaded = datasets.load_dataset(*what, **options)
    return {split: ArrowTable(part, split, f"{source} ({split})", tuple(roots)) for split, part in loaded.items()}


@dataclass(frozen=True)
class TableShard(Shard):
    """One of the `count` shards of a `datasets.IterableDataset`, such as a Parquet file."""

    dataset: Any
    index: int
    count: int

    def table(self, label: str) -> Table:
        import datasets

        if self.dataset.features is None:
            raise ValueError(f"{label}: the `datasets` library does not tell its columns; set data.streaming to false")
        empty = datasets.Dataset(self.dataset.features.arrow_schema.empty_table())
        return ArrowTable(empty, "stream", f"{label} (stream)", ())

    def read(self) -> Generator[Sample, None, None]:
        import datasets

        names = self.dataset.column_names
        wanted = {c if c in names else c.partition(".")[0] for c in (self.image, *self.captions)}
        rows = self.dataset.select_columns(sorted(wanted))
        if isinstance(rows.features[self.image], datasets.Image):
            # else the library decodes, and stops at the first broken image
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        row = 0
        # not iter(rows), which takes only some of the shards when it runs in a loader process
        for cells in rows.shard(self.count, self.index).iter(batch_size=AT_ONCE):
            for values in zip(*cells.values(), strict=True):
                record = dict(zip(cells, values, strict=True))
                image = inside(record, self.image)
                if isinstance(image, dict):
                    image = image.get("bytes")
                data = image if isinstance(image, bytes) else None
                yield Sample(data, [inside(record, c) for c in self.captions], f"{base_of(self.name)} row {row}")
                row += 1


def in_small_bites() -> dict[str, Any]:
    """Options for Parquet files: each lane has one open, and a group of rows is often all of its file."""
    import pyarrow.dataset
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    scan = pyarrow.dataset.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 22, pre_buffer=False)
    known = hasattr(ParquetConfig, "fragment_scan_options")  # not in older versions of the library
    return {"batch_size": AT_ONCE, **({"fragment_scan_options": scan} if known else {})}


def shards_of(dataset: Any, files: Sequence[str], source: str) -> list[Shard]:
    """files: that the shards are called after, if there are as many."""
    count = dataset.num_shards
    names = files if len(files) == count else [f"{source} shard {i:05d}" for i in range(count)]
    return [TableShard(name, dataset, index, count) for index, name in enumerate(names)]
