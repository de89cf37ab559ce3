"""WebDataset tars: members with one name up to its first dot are the fields of a sample (00001.jpg, 00001.txt).

They may lie anywhere in the tar; a stream wants those of a sample side by side.

Nothing is unpacked: the places of the members are listed once, and each is read where it lies, by any thread. So one
caption that is missing or broken costs one sample, and no second copy of the images fills the disk.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import tarfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from miniclip.common.fingerprint import digest, stamp
from miniclip.common.printing import first_few
from miniclip.data.formats import looks_like_image
from miniclip.data.images import Lost
from miniclip.data.tables import table as tables
from miniclip.data.tables.short import MOST_ZEROS, compressed, lost
from miniclip.data.tables.source import Source, is_url
from miniclip.data.tables.table import Kind, RecordTable, Sample, Shard, TextLists, Unordered, base_of, inside, reason
from miniclip.data.tables.texts import decode_all, decoded, lines_of, unicode_of

log = logging.getLogger(__name__)

TEXT = ("txt", "text", "caption", "captions", "transcript")
NUMBER = ("cls", "cls2", "index", "inx", "id")
JSON = ("json", "jsn")
LOOKED_AT = 1000  # samples that tell which fields the JSON objects have; of a stream, a tenth of them
LONGEST = 1 << 20  # bytes of a text or an object
LARGEST = 1 << 28  # bytes of an image; what is larger is passed over
_SORT = "a stream wants them side by side: write the tar with tar --sort=name, or set data.streaming to false"


def accepts(source: Source) -> bool:
    return source.has(".tar")


def open_tables(source: Source) -> Mapping[str, TarTable]:
    """Tars behind a URL are fetched into the cache of the `datasets` library first.

    Raises FileNotFoundError if one cannot be fetched, ValueError if one is no tar.
    """
    splits = source.by_split(".tar")
    return {split: _join(names, _fetch(names), split, source.label) for split, names in splits.items()}


def find_shards(source: Source) -> dict[str, list[Shard]]:
    return {split: [TarShard(name) for name in names] for split, names in source.by_split(".tar").items()}


# ---- what lies in a tar


class ReadError(tarfile.ReadError):
    """at: bytes of the file that can be read; None if it is compressed."""

    def __init__(self, problem: str, tar: tarfile.TarFile) -> None:
        super().__init__(f"cut short or damaged at byte {tar.offset}: {problem}")
        self.at = tar.offset if getattr(tar.fileobj, "comptype", "tar") == "tar" else None


class _TarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive, and the rest would be lost in silence."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise ReadError(str(error), tar) from None


def _members(tar: tarfile.TarFile, called: str) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key of the sample, field and place of each plain file. Raises TarError where the tar is cut short or damaged."""
    seen, passed = set[str](), dict[str, list[str]]()
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        name = posixpath.normpath(member.name)  # ./00001.jpg
        folder, slash, base = name.rpartition("/")
        stem, dot, field = base.partition(".")
        if not stem or not dot or member.isdir():
            continue
        if not member.isreg() or member.issparse() or member.size > LARGEST:
            why = f"larger than {LARGEST >> 20} MB" if member.isreg() and not member.issparse() else "links or no files"
            passed.setdefault(why, []).append(name)
            continue
        key, field = f"{folder}{slash}{stem}", field.lower()
        if (name := f"{key}.{field}") in seen:
            raise Unordered(f"{member.name} is there twice; each sample has a name of its own")
        seen.add(name)
        yield key, field, member
    _check_end(tar)
    for why, names in passed.items():
        advice = "; pack what they lead to: tar --dereference --hard-dereference" if why.startswith("links") else ""
        log.warning("%s: %d members are %s, and left out: %s%s", called, len(names), why, first_few(names), advice)


def _check_end(tar: tarfile.TarFile) -> None:
    """What is behind the mark of the end is lost: another tar; or much of nothing, where a download was to come."""
    zeros = 0
    while data := tar.fileobj.read(1 << 16):
        zeros += len(data)
        if data.strip(b"\0"):
            raise ReadError("its end is marked here, but more follows", tar)
        if zeros > MOST_ZEROS:
            raise ReadError("zeros follow", tar)


def decode_field(field: str, text: str | None) -> Any:
    """What a member of text (of several lines, their list), a number or JSON says; None if it says nothing, or cannot
    be read."""
    if text is None:
        return None
    extension = extension_of(field)
    try:
        if extension in JSON:
            return json.loads(text)
        if extension in NUMBER:
            return int(text)
        return lines if len(lines := lines_of(text)) > 1 else text
    except (ValueError, RecursionError):
        return None


def extension_of(field: str) -> str:
    return field.rsplit(".", 1)[-1]


def is_image(field: str) -> bool:
    return field == "image" or looks_like_image(f".{field}")


def _is_format(field: str) -> bool:
    """jpg, png, …, not left.jpg."""
    return "." not in field and looks_like_image(f".{field}")


def _check_no_table(fields: Iterable[str], name: str) -> None:
    """Raise ValueError for images with a table of their captions among them, which is no WebDataset."""
    table = next((field for field in fields if field in ("csv", "tsv", "jsonl", "parquet")), None)
    if table is not None and not any(_is_text(field) or field in NUMBER for field in fields):
        told = f"{name} holds a table (.{table}) and no text beside its images"
        raise ValueError(f"{told}; unpack it, and name the folder")


# ---- as a table: the members are listed once, and read where they lie


@dataclass(frozen=True)
class TarTable:
    """Samples of some tars. names: the tars as given; files: where they lie here, the same unless that is a URL.

    shard: (rows,) int32, tar of each sample. fields: see `_Listed`, over all of them.
    """

    names: list[str]
    files: list[str]
    shard: np.ndarray
    keys: TextLists
    fields: dict[str, np.ndarray]
    split: str
    label: str
    roots: tuple[str, ...] = ()  # nothing outside is read
    lost: tuple[Lost, ...] = ()  # what tars that end early lack

    @cached_property
    def columns(self) -> list[str]:
        columns: list[str] = []
        for field in self.fields:
            records = ({field: v} for v in self.first_values(field)) if extension_of(field) in JSON else ()
            columns += tables.nested_columns(records) or [field]
        return columns

    def __len__(self) -> int:
        return len(self.shard)

    def kind(self, column: str) -> Kind:
        if column not in self.fields:
            return tables.kind_of(self.first_values(column))
        if is_image(column):
            return "image"
        return "text" if extension_of(column) in TEXT else "other"

    def values(self, column: str) -> Iterator[Any]:
        """Members that are too long are left out; texts that are not Unicode are decoded together, see `decoded`."""
        field = self._field(column)
        texts = decode_all(list(self._members(field)), self.label, self.where)
        return (inside({field: decode_field(field, text)}, column) for text in texts)

    def first_values(self, column: str) -> Iterator[Any]:
        """Some of them, to tell what the column is."""
        field = self._field(column)
        texts = decoded(list(islice(self._members(field), LOOKED_AT)))
        return (inside({field: decode_field(field, text)}, column) for text, _ in texts)

    def _field(self, column: str) -> str:
        if column in self.fields:
            return column
        return next(f for f in self.fields if column.startswith(f"{f}.") and extension_of(f) in JSON)

    def _members(self, field: str) -> Iterator[bytes | None]:
        """Each tar is opened once."""
        for number, file in enumerate(self.files):
            places = self.fields[field][self.shard == number].tolist()
            with Path(file).open("rb", buffering=0) as stream:
                for offset, size in places:
                    yield os.pread(stream.fileno(), size, offset) if 0 <= size <= LONGEST else None

    def read(self, field: str, row: int) -> bytes | None:
        """Bytes of a member; None if the sample has none. Raises OSError if the tar is gone."""
        offset, size = self.fields[field][row].tolist()
        if size < 0:
            return None
        with Path(self.files[self.shard[row]]).open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, offset)

    def where(self, row: int) -> str:
        return f"{base_of(self.names[self.shard[row]])} sample {self.keys[row][0]}"

    def fingerprint(self) -> str:
        return digest(self.split, *(f"{os.path.realpath(file)} {stamp(file)}" for file in self.files))


def _join(names: Sequence[str], files: Sequence[str], split: str, source: str) -> TarTable:
    listed = [_list(file, stamp(file), name) for name, file in zip(names, files, strict=True)]
    if not any(one.keys for one in listed):
        raise ValueError(f"{source}: no sample in {len(listed)} tars; expected members such as 00001.jpg and 00001.txt")
    fields = {
        field: np.concatenate([own.get(field, np.full((len(keys), 2), -1)) for keys, own, _ in listed])
        for field in dict.fromkeys(field for one in listed for field in one.fields)
    }
    _check_no_table(fields, names[0])
    # one column "image" of .jpg, .png, … if no sample has two of them
    formats = [field for field in fields if _is_format(field)]
    if len(formats) > 1 and (np.stack([fields[f][:, 1] >= 0 for f in formats]).sum(0) <= 1).all():
        fields["image"] = np.maximum.reduce([fields.pop(f) for f in formats])  # where absent, all is -1
    rows = np.repeat(np.arange(len(listed), dtype=np.int32), [len(one.keys) for one in listed])
    every = TextLists([key] for one in listed for key in one.keys)
    short = [
        lost(f"{name} {one.early[0]}", file, files, len(one.keys), one.early[1])
        for name, file, one in zip(names, files, listed, strict=True)
        if one.early is not None
    ]
    early = tuple(Lost(one, one.images) for one in short)  # of how many is known
    return TarTable(list(names), list(files), rows, every, fields, split, f"{source} ({split})", lost=early)


class _Listed(NamedTuple):
    """Keys of the samples; field -> (samples, 2) int64, offset and size in bytes, -1 if absent; and of a tar that ends
    early, where in words and in bytes."""

    keys: list[str]
    fields: dict[str, np.ndarray]
    early: tuple[str, int] | None


@lru_cache(256)
def _list(file: str, _: str, name: str) -> _Listed:
    """_: the file's stamp, so that one that has changed is listed anew."""
    rows: dict[str, int] = {}  # by key; the members of a sample need not lie side by side
    places: dict[str, list[tuple[int, int, int]]] = {}
    size, end, last, early = Path(file).stat().st_size, 0, "at its start", None
    try:
        with tarfile.open(file, "r:", tarinfo=_TarInfo) as tar:
            try:
                for key, field, member in _members(tar, name):
                    if member.offset_data + member.size > size:
                        continue
                    end = tar.offset
                    last = f"after sample {key}"
                    row = rows.setdefault(key, len(rows))
                    places.setdefault(field, []).append((row, member.offset_data, member.size))
            except tarfile.TarError:
                early = f"is cut short or damaged {last} (byte {end})", end
                log.warning("%s %s: what follows is lost", name, early[0])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        with Path(file).open("rb") as stream:
            packed = compressed(stream.read(6))
        hint = "; unpack it, a compressed tar cannot be read here and there" if packed else ""
        raise ValueError(f"{name} is not a tar ({error}){hint}") from None
    listed = {field: np.full((len(rows), 2), -1) for field in places}
    for field, found in places.items():
        listed[field][np.array(found)[:, 0]] = np.array(found)[:, 1:]
    return _Listed(list(rows), listed, early)


def _fetch(names: Sequence[str]) -> list[str]:
    if not is_url(names[0]):
        return list(names)
    import datasets

    try:
        return [str(file) for file in datasets.DownloadManager().download(list(names))]
    except Exception as error:  # whatever the network and the library raise
        raise FileNotFoundError(
            f"{names[0]}{' and others' if names[1:] else ''}: cannot be fetched ({reason(error)}); "
            "check the address and the connection"
        ) from error


# ---- as a stream: read from the start to the end


class TarShard(Shard):
    """A tar to be read in order, here or behind a URL."""

    def table(self, label: str) -> tables.Table:
        records, keys = list[dict[str, Any]](), list[str]()
        try:
            for key, fields in islice(self._samples(), LOOKED_AT // 10):
                texts = {f: decode_field(f, unicode_of(data)[0]) if _is_text(f) else 0 for f, data in fields.items()}
                records.append({f: data if is_image(f) else texts[f] for f, data in fields.items()})
                keys.append(key)
        except Unordered as error:
            raise ValueError(str(error)) from None
        except Exception:
            if not records:
                raise
        _check_no_table({f for record in records for f in record}, self.name)
        whole = any(any(map(is_image, record)) and any(map(_is_text, record)) for record in records)
        if len(records) > 1 and not whole and any(len(record) == 1 for record in records):
            raise ValueError(f"{self.name}: none of the first {len(records)} samples has an image and a text; {_SORT}")
        formats = {f for record in records for f in record if _is_format(f)}
        if len(formats) > 1 and all(len(formats & record.keys()) < 2 for record in records):
            records = [{"image" if f in formats else f: v for f, v in record.items()} for record in records]
        return RecordTable(label, records, tables.nested_columns(records), keys)

    def read(self) -> Generator[Sample, None, None]:
        for key, fields in self._samples():
            image = fields.get(self.image)
            if image is None and is_image(self.image):  # another format than that of the first samples
                image = next((data for f, data in fields.items() if _is_format(f)), None)
            unicode = {f: unicode_of(data)[0] for f, data in fields.items() if _is_text(f)}
            texts = {f: fields[f] if text is None else decode_field(f, text) for f, text in unicode.items()}
            yield Sample(image, [inside(texts, c) for c in self.captions], f"{base_of(self.name)} sample {key}")

    def _samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        from datasets.utils.file_utils import xopen

        options = {"block_size": 0} if is_url(self.name) else {}  # one request for the whole file
        with (
            xopen(self.name, "rb", **options) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_TarInfo) as tar,
        ):
            seen: set[str] = set()
            for key, group in groupby(self._members(tar), itemgetter(0)):
                if key in seen:
                    raise Unordered(f"{self.name}: the files of sample {key} lie apart; {_SORT}")
                seen.add(key)
                fields: dict[str, bytes] = {}
                try:
                    for _, field, member in group:
                        known = is_image(field) or field == self.image or (_is_text(field) and member.size <= LONGEST)
                        file = tar.extractfile(member) if known else None  # others are known by name alone
                        fields[field] = b"" if file is None else file.read()
                except tarfile.TarError:
                    if fields:
                        yield key, fields
                    raise
                yield key, fields

    def _members(self, tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        try:
            yield from _members(tar, self.name)
        except Unordered as error:
            raise Unordered(f"{self.name}: {error}") from None


def _is_text(field: str) -> bool:
    return extension_of(field) in (*TEXT, *JSON)
