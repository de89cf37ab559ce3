"""An index of images: a folder that says of each where it lies and what a model makes of it.

    images.parquet     a row an image, in the order of the source: path, hash, size, width, height, caption, embedding,
                       row and stamp (see COLUMNS); whatever reads Parquet takes it, such as pandas or Qdrant
    index.json         the model, the source, and the images that could not be read (see About)
    vectors.usearch    for a search without a look at every image, where there are very many (see vectors.py)
    parts              what is done so far, while the images are being indexed (see build.py)

Axes: N images, E embedding.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniclip.common.console import write_json
from miniclip.common.durable import whole_file
from miniclip.data.images import BadImage, decode_image
from miniclip.data.tables.hub import is_hub
from miniclip.data.tables.source import is_url
from miniclip.evaluation.encode import fingerprint
from miniclip.models.protocols import TwoTowers
from miniclip.search.pictures import Pictures, inside, open_pictures, read_file

IMAGES, ABOUT, VECTORS, PARTS = "images.parquet", "index.json", "vectors.usearch", "parts"
VERSION = 1
# name -> Arrow type; embedding, a fixed_size_list<float32>[E] of unit length, comes last
COLUMNS = {
    "path": "string",  # below the folder of the source; of what lies inside a table or a tar its name there
    "hash": "string",  # of the bytes of the image as it is stored: blake2b of 16 bytes, hexadecimal
    "size": "int64",  # bytes
    "width": "int32",  # pixels, as it is shown
    "height": "int32",
    "caption": "string",  # the first that the source has, or null
    "row": "int64",  # place in the source
    "stamp": "string",  # of the file, or of the table: while it is the same, the image is not looked at again
}

_REMOVE = "remove the folder, and index the images again"


@dataclass(frozen=True)
class About:
    """index.json. model, source: as on the command line, whole paths. fingerprint: of the model's weights. scale, bias:
    a cosine times scale plus bias is the model's logit; bias is None without one. root: that the paths start from.
    files: whether they are files. bad: path, stamp and why of each image that could not be read."""

    model: str
    fingerprint: str
    embed_dim: int
    scale: float
    bias: float | None
    source: str
    split: str | None
    root: str
    files: bool
    bad: list[list[str]] = field(default_factory=list)
    version: int = VERSION


@dataclass(frozen=True)
class Index:
    """paths, captions: (N,). embeddings: (N, E) float32, unit length. table: the other columns, as an Arrow table."""

    folder: Path
    about: About
    paths: list[str]
    captions: list[str | None]
    embeddings: np.ndarray
    table: Any

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path | None:
        """Where an image lies, links followed; None if it is not a file of its own.

        Raises BadImage if that is outside of the indexed folder, FileNotFoundError if the folder is gone.
        """
        return inside(Path(self.about.root), self.paths[row]) if self.about.files else None

    def image(self, row: int, at_least: int | None = None) -> Image.Image:
        """RGB, upright. at_least: as in `decode_image`. Any thread may call it. Raises what `file` does, and BadImage
        if it is gone, is no image any more, or its table has changed."""
        path, name = self.file(row), self.paths[row]
        if path is not None:
            return decode_image(read_file(path, name), name, at_least=at_least)
        place = self.table["row"][row].as_py()
        if place >= len(self._pictures) or self._pictures.paths[place] != name:
            raise BadImage(f"{name}: {self.about.source} has changed since it was indexed; run miniclip index again")
        return self._pictures.image(place, at_least)

    @cached_property
    def _pictures(self) -> Pictures:
        return open_pictures(self.about.source, self.about.split)


def open_index(folder: str | Path) -> Index:
    """Raises FileNotFoundError or ValueError with one line that says what to do."""
    folder = Path(folder).expanduser()
    about = read_about(folder)
    if about is None:
        made = (folder / IMAGES).exists()
        raise FileNotFoundError(
            f"{folder / ABOUT} does not exist; {'bring it back' if made else 'name a folder that miniclip index wrote'}"
        )
    if not (folder / IMAGES).is_file():
        raise FileNotFoundError(f"{folder / IMAGES} does not exist: not all is indexed; run miniclip index again")
    table = read_images(folder / IMAGES)
    embeddings = embeddings_of(table)
    if embeddings.shape[1] != about.embed_dim or not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3):
        raise ValueError(f"{folder / IMAGES} does not hold {about.embed_dim} numbers of length 1 an image; {_REMOVE}")
    rest = table.drop_columns("embedding")
    return Index(folder, about, rest["path"].to_pylist(), rest["caption"].to_pylist(), embeddings, rest)


def check_model(index: Index, model: TwoTowers) -> None:
    """Raise ValueError with one line if it is not the model that the images were encoded with."""
    check_weights(index.folder, index.about, fingerprint(model))


def check_weights(folder: Path, about: About, found: str) -> None:
    """As check_model. found: fingerprint of the model."""
    if found != about.fingerprint:
        raise ValueError(
            f"{folder} holds embeddings of {about.model} with other weights (fingerprint {about.fingerprint[:8]}, not "
            f"{found[:8]}); take that model, or index the images into another --out"
        )


def about_of(name: str, model: TwoTowers, source: str, split: str | None, pictures: Pictures) -> About:
    """Of an index to be made. name: of the model, as `load` takes it. pictures: of the split of the source."""
    scale, bias = model.logit_scale.exp().item(), None if model.logit_bias is None else model.logit_bias.item()
    return About(
        model=_absolute(name, "(?:hf:|open_clip:[^:]*:)?"),
        fingerprint=fingerprint(model),
        embed_dim=model.config.embed_dim or 0,
        scale=scale,
        bias=bias,
        source=source if is_hub(source) or is_url(source) else _absolute(source),
        split=split,
        root=str(pictures.root),
        files=pictures.files,
    )


def _absolute(name: str, library: str = "") -> str:
    """A name that holds wherever the process stands. library: how one begins that may be no path."""
    found = re.fullmatch(f"({library})(.*)", name, re.DOTALL)
    assert found is not None
    start, path = found[1], Path(found[2]).expanduser()
    return f"{start}{os.path.abspath(path)}" if not start or path.exists() else name  # noqa: PTH100, as links stay


def read_about(folder: Path) -> About | None:
    """index.json, None if there is none. Raises ValueError if it is damaged, or of another version."""
    file = folder / ABOUT
    try:
        values = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); {_REMOVE}") from None
    found = values.get("version") if isinstance(values, dict) else None
    if found != VERSION and isinstance(found, int):
        raise ValueError(f"{file} is of version {found}, and this miniclip reads {VERSION}; index into another --out")
    if not isinstance(values, dict) or values.keys() != {one.name for one in fields(About)}:
        raise ValueError(f"{file} is not what miniclip index writes; {_REMOVE}")
    return About(**values)


def write_about(folder: Path, about: About) -> None:
    write_json(folder / ABOUT, asdict(about))


def read_images(file: Path) -> Any:
    """The Arrow table of images.parquet, or of a part. Raises ValueError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, page_checksum_verification=True)
        wrong = [name for name, kind in COLUMNS.items() if str(table.schema.field(name).type) != kind]
        kind = table.schema.field("embedding").type
        if wrong or not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ValueError(f"its column {wrong[0] if wrong else 'embedding'} is of another type")
        if table["embedding"].null_count:
            raise ValueError("its column embedding has gaps")
        return table
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own are among them
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}); {_REMOVE}") from error


def embeddings_of(table: Any) -> np.ndarray:
    """(rows, E) float32, of a table of read_images."""
    column = table["embedding"]
    parts = [np.empty(0, np.float32), *(np.asarray(chunk.flatten()) for chunk in column.chunks)]
    return np.concatenate(parts).reshape(len(table), column.type.list_size)


def to_table(columns: Mapping[str, Sequence[Any]], embeddings: np.ndarray) -> Any:
    """The rows of images.parquet. columns: COLUMNS, and perhaps more. embeddings: (rows, E) float32."""
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    arrays = [pa.array(columns[name], kind) for name, kind in COLUMNS.items()]
    more = {name: pa.array(own) for name, own in columns.items() if name not in COLUMNS}
    return pa.table([*arrays, *more.values(), values], [*COLUMNS, *more, "embedding"])


def write_images(file: Path, table: Any) -> None:
    """Whole, with a checksum of every page. Raises DiskFull."""
    import pyarrow.parquet as pq

    kept = {name: "NONE" if name == "embedding" else "ZSTD" for name in table.column_names}
    texts = [name for name in table.column_names if str(table.schema.field(name).type) == "string"]
    options: dict[str, Any] = {"compression": kept, "use_dictionary": texts, "write_page_checksum": True}
    with whole_file(file) as part:
        pq.write_table(table, part, **options)
