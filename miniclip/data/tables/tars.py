"""WebDataset tars: members with one name up to its first dot are the fields of a sample (00001.jpg, 00001.txt).

Nothing is unpacked: the places of the members are listed once, and each is read where it lies, by any thread. So one
caption that is missing or broken costs one sample, and no second copy of the pictures fills the disk.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from miniclip.common.fingerprint import digest, stamp
from miniclip.data.images import EXTENSIONS
from miniclip.data.tables.patterns import is_url
from miniclip.data.tables.table import Kind, kind_of, nested_columns
from miniclip.data.tables.texts import TextLists

log = logging.getLogger(__name__)

TEXT = ("txt", "text", "caption", "captions", "transcript")
NUMBER = ("cls", "cls2", "index", "inx", "id")
JSON = ("json", "jsn")
LOOKED_AT = 1000  # samples that tell which fields the JSON objects have
LONGEST = 1 << 20  # bytes of a text or an object
LARGEST = 1 << 28  # bytes of a picture; what is larger is passed over


class Shard(NamedTuple):
    """Where the members of a tar lie. fields: name -> (samples, 2) int64, offset and size in bytes, -1 if absent."""

    keys: list[str]
    fields: dict[str, np.ndarray]


@dataclass(frozen=True)
class TarTable:
    """Samples of some tars. names: the tars as given; files: where they lie here, the same unless that is a URL.

    shard: (rows,) int32, tar of each sample. fields: as in Shard, over all of them.
    """

    names: list[str]
    files: list[str]
    shard: np.ndarray
    keys: TextLists
    fields: dict[str, np.ndarray]
    split: str
    source: str

    @cached_property
    def columns(self) -> list[str]:
        columns: list[str] = []
        for field in self.fields:
            records = ({field: v} for v in islice(self.values(field), LOOKED_AT)) if extension_of(field) in JSON else ()
            columns += nested_columns(records) or [field]
        return columns

    @property
    def label(self) -> str:
        return f"{self.source} ({self.split})"

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(os.path.realpath(Path(file).parent) for file in self.files))

    def __len__(self) -> int:
        return len(self.shard)

    def kind(self, column: str) -> Kind:
        if column not in self.fields:
            return kind_of(islice(self.values(column), LOOKED_AT))
        extension = extension_of(column)
        if column == "image" or f".{extension}" in EXTENSIONS:
            return "image"
        return "text" if extension in TEXT else "other"

    def values(self, column: str) -> Iterator[Any]:
        field, inside = column, None
        if column not in self.fields:
            field = next(f for f in self.fields if column.startswith(f"{f}.") and extension_of(f) in JSON)
            inside = column[len(field) + 1 :]
        for data in self._read_all(field):
            value = decode_field(field, data)
            yield value if inside is None else value.get(inside) if isinstance(value, dict) else None

    def _read_all(self, field: str) -> Iterator[bytes | None]:
        """Members of all samples; each tar is opened once. Those that are too long are left out."""
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
        return f"{base_of(self.names[self.shard[row]])} sample {self.key(row)}"

    def key(self, row: int) -> str:
        return self.keys[row][0]

    def fingerprint(self) -> str:
        return digest(self.split, *(f"{os.path.realpath(file)} {stamp(file)}" for file in self.files))


def read_tars(splits: dict[str, list[str]], source: str) -> dict[str, TarTable]:
    """Split -> table of its tars; those behind a URL are fetched into the cache of the `datasets` library first.

    Raises FileNotFoundError if one cannot be fetched, ValueError if one is no tar.
    """
    return {split: _join(names, _fetch(names), split, source) for split, names in splits.items()}


def _join(names: Sequence[str], files: Sequence[str], split: str, source: str) -> TarTable:
    shards = [_list(file, stamp(file), name) for name, file in zip(names, files, strict=True)]
    if not any(shard.keys for shard in shards):
        raise ValueError(f"{source}: no sample in {len(shards)} tars; expected members such as 00001.jpg and 00001.txt")
    fields: dict[str, np.ndarray] = {}
    for field in dict.fromkeys(f for shard in shards for f in shard.fields):
        absent = [np.full((len(shard.keys), 2), -1) for shard in shards]
        fields[field] = np.concatenate([s.fields.get(field, a) for s, a in zip(shards, absent, strict=True)])
    _merge_pictures(fields)
    rows = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards])
    keys = TextLists([key] for shard in shards for key in shard.keys)
    return TarTable(list(names), list(files), rows, keys, fields, split, source)


def _merge_pictures(fields: dict[str, np.ndarray]) -> None:
    """One column "image" of .jpg, .png, … if no sample has two of them."""
    formats = [field for field in fields if f".{field}" in EXTENSIONS]
    if len(formats) < 2 or (np.stack([fields[f][:, 1] >= 0 for f in formats]).sum(0) > 1).any():
        return
    fields["image"] = np.maximum.reduce([fields.pop(f) for f in formats])  # where absent, all is -1


@lru_cache(256)
def _list(file: str, _: str, name: str) -> Shard:
    """_: the file's stamp, so that one that has changed is listed anew."""
    keys: list[str] = []
    places: dict[str, list[tuple[int, int, int]]] = {}
    size, end = Path(file).stat().st_size, 0
    try:
        with tarfile.open(file, "r:") as tar:
            current, fields = "", set[str]()
            while (member := _next(tar)) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                end = tar.offset
                base = member.name.rsplit("/", 1)[-1]
                stem, dot, field = base.partition(".")
                if not is_field(member) or not stem or not dot or member.offset_data + member.size > size:
                    continue
                key, field = member.name[: len(member.name) - len(base)] + stem, field.lower()
                if key != current or not keys:
                    keys.append(key)
                    current, fields = key, set()
                if field in fields:
                    raise ValueError(f"{name}: {member.name} is there twice; each sample has a name of its own")
                fields.add(field)
                places.setdefault(field, []).append((len(keys) - 1, member.offset_data, member.size))
            cut = not _is_end(file, tar.offset)
    except (tarfile.TarError, OSError, EOFError) as error:
        hint = "; unpack it, a compressed tar cannot be read here and there" if _is_compressed(file) else ""
        raise ValueError(f"{name} is not a tar ({error}){hint}") from None
    if cut:
        last = f"after sample {keys[-1]}" if keys else "at its start"
        log.warning("%s is cut short or damaged %s (byte %d): what follows is lost", name, last, end)
    listed = {field: np.full((len(keys), 2), -1) for field in places}
    for field, found in places.items():
        rows, offsets, sizes = np.array(found).T
        listed[field][rows, 0], listed[field][rows, 1] = offsets, sizes
    return Shard(keys, listed)


def is_field(member: tarfile.TarInfo) -> bool:
    """Whether it is a plain file of a size that can be read."""
    return member.isreg() and not member.issparse() and member.size <= LARGEST


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except tarfile.ReadError:
        return None  # the end is looked at afterwards


def _is_end(file: str, offset: int) -> bool:
    with Path(file).open("rb") as stream:
        stream.seek(offset)
        return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _is_compressed(file: str) -> bool:
    with Path(file).open("rb") as stream:
        return stream.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def decode_field(field: str, data: bytes | None) -> Any:
    """What a member of text, a number or JSON says; None if it says nothing, or cannot be read."""
    if data is None:
        return None
    extension = extension_of(field)
    try:
        if extension in JSON:
            return json.loads(data)
        text = data.decode("utf-8-sig")
        return int(text) if extension in NUMBER else text
    except (ValueError, RecursionError):
        return None


def _fetch(names: Sequence[str]) -> list[str]:
    remote = [name for name in names if is_url(name)]
    if not remote:
        return list(names)
    import datasets

    try:
        fetched = dict(zip(remote, datasets.DownloadManager().download(remote), strict=True))
    except Exception as error:  # whatever the network and the library raise
        raise FileNotFoundError(
            f"{remote[0]}{' and others' if remote[1:] else ''}: cannot be fetched ({' '.join(str(error).split())}); "
            "check the address and the connection"
        ) from error
    return [str(fetched.get(name, name)) for name in names]


def extension_of(field: str) -> str:
    return field.rsplit(".", 1)[-1]


def base_of(name: str) -> str:
    return name.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
