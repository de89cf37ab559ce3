"""The shards of a source, to be read in order: which files they are, and the samples in one.

A shard is a tar or a Parquet file, here or far away. A sample is what lies in it, nothing decoded: what is wrong with
one shows when it is used, and costs that one alone.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

from miniclip.config import DataConfig
from miniclip.data.images import EXTENSIONS
from miniclip.data.splits import Part, resolve_splits
from miniclip.data.tables.arrow import ArrowTable
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.data.tables.folders import look_into
from miniclip.data.tables.patterns import by_split, expand, is_pattern, is_url, near_file
from miniclip.data.tables.reading import is_hub
from miniclip.data.tables.table import FileTable, Kind, Table, nested_columns
from miniclip.data.tables.tars import JSON, LONGEST, TEXT, base_of, decode_field, extension_of, is_field

LOOKED_AT = 100  # samples of a tar that tell which fields there are
AT_ONCE = 16  # rows of a table that are taken out of Arrow together, for speed


class Sample(NamedTuple):
    """picture: encoded, None if there is none. captions: the cells of the caption columns, whatever they hold."""

    picture: bytes | None
    captions: list[Any]
    name: str


class Shard(Protocol):
    """name: file or address. image, captions: columns, empty until they are known."""

    @property
    def name(self) -> str: ...
    def table(self, label: str) -> Table:
        """The columns, without rows."""

    def with_columns(self, image: str, captions: Sequence[str]) -> Self: ...
    def read(self) -> Generator[Sample, None, None]:
        """All samples, in order. What cannot be read further raises, whatever the library raises."""


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive, and the rest would be lost in silence."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}: {error}") from None


@dataclass(frozen=True)
class TarShard:
    """A WebDataset tar; members with one name up to its first dot are the fields of a sample."""

    name: str
    image: str = ""
    captions: tuple[str, ...] = ()

    def table(self, label: str) -> Table:
        records: list[dict[str, Any]] = []
        try:
            for _, fields in islice(self._samples(), LOOKED_AT):
                records.append({f: decode_field(f, data) if _is_text(f) else data for f, data in fields.items()})
        except Exception:
            if not records:
                raise
        formats = {f for record in records for f in record if f".{f}" in EXTENSIONS}
        if len(formats) > 1 and all(len(formats & record.keys()) < 2 for record in records):
            records = [{"image" if f in formats else f: v for f, v in record.items()} for record in records]
        return _TarColumns(Path(self.name), records, nested_columns(records), [], (), label)

    def with_columns(self, image: str, captions: Sequence[str]) -> TarShard:
        return replace(self, image=image, captions=tuple(captions))

    def read(self) -> Generator[Sample, None, None]:
        for key, fields in self._samples():
            picture = fields.get(self.image)
            if picture is None and (self.image == "image" or f".{self.image}" in EXTENSIONS):
                # another format than that of the first samples
                picture = next((data for f, data in fields.items() if f".{f}" in EXTENSIONS), None)
            yield Sample(picture, [_cell(fields, c) for c in self.captions], f"{base_of(self.name)} sample {key}")

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        from datasets.utils.file_utils import xopen

        current, fields = "", dict[str, bytes]()
        options = {"block_size": 0} if is_url(self.name) else {}  # one request for the whole file
        with (
            xopen(self.name, "rb", **options) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo) as tar,
        ):
            while True:
                try:
                    member = tar.next()
                except tarfile.TarError:
                    if fields:
                        yield current, fields
                    raise
                if member is None:
                    break
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                folder, slash, base = member.name.rpartition("/")
                stem, dot, field = base.partition(".")
                if not is_field(member) or not stem or not dot:
                    continue
                key, field = f"{folder}{slash}{stem}", field.lower()
                if fields and key != current:
                    whole, fields = fields, {}
                    yield current, whole
                if field in fields:
                    raise ValueError(f"{member.name} is there twice; each sample has a name of its own")
                current, file = key, tar.extractfile(member)
                assert file is not None
                text = _is_text(field) and member.size <= LONGEST
                # other fields are known by name alone
                fields[field] = file.read() if text or field == self.image or f".{field}" in EXTENSIONS else b""
        if fields:
            yield current, fields


@dataclass(frozen=True)
class _TarColumns(FileTable):
    source: str = ""

    @property
    def label(self) -> str:
        return self.source

    def kind(self, column: str) -> Kind:
        if column in self.columns and (column == "image" or f".{extension_of(column)}" in EXTENSIONS):
            return "image"
        return super().kind(column)


@dataclass(frozen=True)
class TableShard:
    """One of the `count` shards of a `datasets.IterableDataset`, such as a Parquet file."""

    name: str
    dataset: Any
    index: int
    count: int
    image: str = ""
    captions: tuple[str, ...] = ()

    def table(self, label: str) -> Table:
        import datasets

        if self.dataset.features is None:
            raise ValueError(f"{label}: the `datasets` library does not tell its columns; set data.streaming to false")
        return ArrowTable(datasets.Dataset(self.dataset.features.arrow_schema.empty_table()), "stream", label, ())

    def with_columns(self, image: str, captions: Sequence[str]) -> TableShard:
        return replace(self, image=image, captions=tuple(captions))

    def read(self) -> Generator[Sample, None, None]:
        import datasets

        names = self.dataset.column_names
        wanted = {c if c in names else c.partition(".")[0] for c in (self.image, *self.captions)}
        rows = self.dataset.select_columns(sorted(wanted))
        if isinstance(rows.features[self.image], datasets.Image):
            # else the library decodes, and stops at the first broken picture
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        row = 0
        # not iter(rows), which takes only some of the shards when it runs in a loader process
        for cells in rows.shard(self.count, self.index).iter(batch_size=AT_ONCE):
            for values in zip(*cells.values(), strict=True):
                named = dict(zip(cells, values, strict=True))
                picture = _cell(named, self.image)
                if isinstance(picture, dict):
                    picture = picture.get("bytes")
                data = picture if isinstance(picture, bytes) else None
                yield Sample(data, [_cell(named, c) for c in self.captions], f"{base_of(self.name)} row {row}")
                row += 1


def training_shards(config: DataConfig) -> list[list[Shard]]:
    """Of each source, the shards that are trained on.

    Raises FileNotFoundError, or ValueError that names the option to change.
    """
    return [split_shards(config, source, "train")[0] for source in config.sources]


def split_shards(config: DataConfig, source: str, role: str) -> tuple[list[Shard], list[str]]:
    """Shards of a source for train, validation or test, and the roles for which its last one by name is set aside.

    If role is one of those, the shards are that one.
    """
    splits = find_shards(source, config.name, config.revision)
    label = replace(config, source=source, mixing=None)
    name, missing = resolve_splits(cast(dict[str, Part], splits), label, role)  # it looks at the names alone
    shards = splits[name]
    if missing:
        if len(shards) < 2:
            raise ValueError(
                f"{source} has one shard and no split for {' or '.join(missing)}; name such splits "
                "(data.validation_split, data.test_split), cut the data into several shards, or set data.streaming to "
                "false"
            )
        last = max(shards, key=lambda shard: shard.name)
        shards = [s for s in shards if (s is last) == (role in missing)]
    first = shards[0]
    try:
        table = first.table(source)
    except Exception as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"{first.name}: cannot be read ({reason(error)})") from error
    image = image_column(table, config.image_column)
    if table.kind(image) != "image":
        raise ValueError(
            f"{source}: {image} holds paths, and what they name cannot be streamed; set data.streaming to false, or "
            "write the pictures themselves into Parquet files or tars"
        )
    captions = caption_columns(table, config.caption_column, image)
    return [shard.with_columns(image, captions) for shard in shards], missing


def find_shards(source: str, name: str | None = None, revision: str | None = None) -> Mapping[str, list[Shard]]:
    """Split -> shards, from tars or Parquet files (one, a folder, a pattern or a URL) or a Hub name; nothing is read.

    Raises FileNotFoundError, or ValueError for what cannot be streamed.
    """
    path = Path(source).expanduser()
    if is_hub(source) and not is_url(source) and not is_pattern(source):
        return _hub_shards(source, name, revision)
    if not is_url(source) and path.is_dir():
        found = look_into(path)
        if bool(found.tars) == bool(found.parquet):
            holds = "tars and Parquet files; name one kind" if found.tars else "neither tars nor Parquet files"
            raise ValueError(f"{source} holds {holds}; {_ADVICE}")
        files = by_split([str(path / file) for file in found.tars or found.parquet], f"{path}/*")
    elif is_url(source) or is_pattern(source) or path.is_file():
        files = by_split(expand(source), source)
    else:
        raise FileNotFoundError(f"{source}: no such file or folder (looked from {Path.cwd()}){near_file(path)}")
    return _file_shards(files, source)


_ADVICE = "data.streaming reads tars (.tar) and Parquet files (.parquet); set it to false for other data"


def _file_shards(files: Mapping[str, list[str]], source: str) -> dict[str, list[Shard]]:
    every = [file for split in files.values() for file in split]
    kinds = {Path(file.split("?")[0]).suffix.lower() for file in every}
    if kinds == {".tar"}:
        return {split: [TarShard(file) for file in names] for split, names in files.items()}
    if kinds != {".parquet"}:
        raise ValueError(f"{source} names files of the kind {', '.join(sorted(kinds)) or 'without a name'}; {_ADVICE}")
    import datasets

    try:
        loaded = datasets.load_dataset("parquet", data_files=dict(files), streaming=True, **_in_small_bites())
    except Exception as error:
        raise ValueError(f"{source}: cannot be read ({reason(error)})") from error
    return {split: _table_shards(loaded[split], names, source) for split, names in files.items()}


def _hub_shards(source: str, name: str | None, revision: str | None) -> dict[str, list[Shard]]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(source, name, revision=revision)
        files = {str(split): [str(f) for f in names] for split, names in (builder.config.data_files or {}).items()}
        if files and all(file.endswith(".tar") for names in files.values() for file in names):
            return _file_shards(files, source)
        parquet = files and all(file.endswith(".parquet") for names in files.values() for file in names)
        options = _in_small_bites() if parquet else {}
        loaded = datasets.load_dataset(source, name, revision=revision, streaming=True, **options)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"{source}: there is no such file or folder here{near_file(source)}, and the Hub was not reached "
            f"({reason(error)}); check the name and the connection"
        ) from error
    except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the Hub's
        hint = "; data.name picks a configuration" if "onfig" in str(error) else ""
        raise ValueError(f"{source}: the Hub set cannot be streamed ({reason(error)}){hint}") from error
    return {str(split): _table_shards(part, files.get(str(split), []), source) for split, part in loaded.items()}


def _in_small_bites() -> dict[str, Any]:
    """Options for Parquet files: each lane has one open, and a group of rows is often all of its file."""
    import pyarrow.dataset
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    scan = pyarrow.dataset.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=1 << 22, pre_buffer=False)
    known = hasattr(ParquetConfig, "fragment_scan_options")  # not in older versions of the library
    return {"batch_size": AT_ONCE, **({"fragment_scan_options": scan} if known else {})}


def _table_shards(dataset: Any, files: Sequence[str], source: str) -> list[Shard]:
    count = dataset.num_shards
    names = files if len(files) == count else [f"{source} shard {i:05d}" for i in range(count)]
    return [TableShard(name, dataset, index, count) for index, name in enumerate(names)]


def reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_text(field: str) -> bool:
    return extension_of(field) in (*TEXT, *JSON)


def _cell(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column; `a.b` is field b of the objects in column a, as a table has it."""
    field, inside = column, ""
    if column not in values:
        field = next((f for f in values if column.startswith(f"{f}.")), column)
        inside = column[len(field) + 1 :]
    value = values.get(field)
    if isinstance(value, bytes) and _is_text(field):
        value = decode_field(field, value)
    if inside:
        return value.get(inside) if isinstance(value, dict) else None
    return value
