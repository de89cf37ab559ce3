"""What a run is trained on, image by image (of a stream, shard by shard): small, so that a resume can say what changed.

An image is told by its name, its size in bytes, its captions, and of LOOKED_AT images by a piece of what is in it.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miniclip.common.durable import whole_file
from miniclip.common.fingerprint import digest, file_size
from miniclip.common.printing import first_few
from miniclip.data.captioned import Concat, Pairs, PairSource
from miniclip.data.tables.table import base_of

FILE = "data.parquet"  # in the directory of a run
LOOKED_AT = 10_000  # images of which a piece is read: all, or those that the hashes of their names choose


class Record(NamedTuple):
    """names: (N,). sizes: (N,) int64, -1 where it is not known. captions, pieces: (N,) uint32, checksums, 0 of none."""

    names: Sequence[str]
    sizes: np.ndarray
    captions: np.ndarray
    pieces: np.ndarray

    def digest(self) -> str:
        """Of what `contents` does not tell: the pieces of images."""
        return digest(self.pieces.tobytes())

    def save(self, run_dir: Path) -> None:
        """Write it into the directory of the run. Raises DiskFull."""
        import pyarrow as pa
        import pyarrow.parquet

        # as bytes, since names of files may hold lone surrogates
        names = pa.array([name.encode("utf-8", "surrogatepass") for name in self.names], pa.large_binary())
        columns = dict(zip(self._fields, (names, *self[1:]), strict=True))
        with whole_file(run_dir / FILE) as part:
            pyarrow.parquet.write_table(pa.table(columns), part, compression="zstd")

    @classmethod
    def load(cls, run_dir: Path) -> Record | None:
        """None if there is none, or a damaged one."""
        import pyarrow.parquet

        try:
            found = pyarrow.parquet.ParquetFile(run_dir / FILE).read()
            names = [name.decode("utf-8", "surrogatepass") for name in found["names"].to_pylist()]
            return cls(names, *(found[field].to_numpy() for field in cls._fields[1:]))
        except Exception:  # whatever the library raises; the message is the shorter for it
            return None

    def since(self, then: Record) -> list[str]:
        """What has changed, in words: images gone, added, altered or only called otherwise, or their order."""
        old, new = then._by_name(), self._by_name()
        for name in old.keys() & new.keys():
            if old[name] == new[name] or _equal(old[name], new[name]):
                del old[name], new[name]
        # in a table without names a row more moves all behind it: what is equal but for its name is no other
        moved = Counter(old.values()) & Counter(new.values())
        for side in (old, new):
            left = moved.copy()
            for name, told in list(side.items()):
                if left[told]:
                    left[told] -= 1
                    del side[name]
        kinds = {"gone": old.keys() - new.keys(), "added": new.keys() - old.keys(), "altered": old.keys() & new.keys()}
        said = [f"{len(names)} {kind} ({first_few(sorted(names))})" for kind, names in kinds.items() if names]
        said += [f"{moved.total()} under other names"] if moved else []
        return said or ["the same in another order"] * (list(self.names) != list(then.names))

    def _by_name(self) -> dict[str, tuple[int, ...]]:
        return dict(zip(self.names, zip(*(column.tolist() for column in self[1:]), strict=True), strict=True))


def _equal(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Sizes, captions and pieces; what is not known of one of them does not count."""
    return (a[0] == b[0] or min(a[0], b[0]) < 0) and a[1] == b[1] and (a[2] == b[2] or 0 in (a[2], b[2]))


def changes_since(run_dir: str, now: Record | None) -> str:
    """What has changed since the record in the directory of a run; empty if nothing, or if there is no record."""
    then = Record.load(Path(run_dir))
    return ", ".join(now.since(then)) if now and then else ""


def record_of(source: PairSource) -> Record | None:
    """Of the images that a run is trained on; None of those that are drawn."""
    if isinstance(source, Concat):
        parts = [record_of(part) for part in source.parts]
        found = [part for part in parts if part is not None]
        names = [f"source {k}: {name}" for k, part in enumerate(found, 1) for name in part.names]
        return Record(names, *(np.concatenate([part[field] for part in found]) for field in (1, 2, 3)))
    if not isinstance(source, Pairs):
        return None
    names, sizes = source.images.names(source.rows), source.images.sizes(source.rows)
    pieces = np.zeros(len(names), dtype=np.uint32)
    for i, name in enumerate(names):
        chosen = len(names) <= LOOKED_AT or _hash(name) < LOOKED_AT * 2**32 // len(names)
        if chosen and (piece := source.images.piece(int(source.rows[i]))) is not None:
            sizes[i], pieces[i] = piece[0], zlib.crc32(piece[1])
    return Record(names, sizes, source.texts.checksums(), pieces)


def record_of_shards(names: Sequence[str]) -> Record:
    """names: their files or addresses. Of what lies far away the name is all that is looked at."""
    nothing = np.zeros(len(names), dtype=np.uint32)
    return Record([base_of(name) for name in names], np.array([*map(file_size, names)]), nothing, nothing)


def _hash(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))
