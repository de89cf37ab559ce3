"""Data sets of the Hub, and folders of whatever else the `datasets` library reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from miniclip.common.printing import did_you_mean
from miniclip.data.formats import looks_like_image, note_left_out
from miniclip.data.tables import parquet, tars
from miniclip.data.tables.source import FILE_EXTENSIONS, STREAMED, Source, near_file
from miniclip.data.tables.table import Shard


def accepts(source: Source) -> bool:
    return source.is_folder or is_hub(source.text)


def is_hub(text: str) -> bool:
    """Whether a source can only be a name on the Hub, as nothing here bears it."""
    path = Source(text).path
    looks_local = text.startswith((".", "/", "~")) or path.suffix.lower() in FILE_EXTENSIONS
    return not looks_local and not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) is not None


def open_tables(source: Source) -> Mapping[str, parquet.ArrowTable]:
    """Raises FileNotFoundError if the Hub was not reached, ValueError if the set cannot be loaded."""
    if source.is_folder:
        looked = "no metadata.jsonl (.csv, .tsv, .json), no tars, no images with text files beside them, and "
        note_left_out(source.label, filter(looks_like_image, source.below("")))
        return parquet.load_local(source, looked=looked)
    with _reached(source, "loaded"):
        return parquet.load(source.text, parquet.library_caches(), source.text, source.name, revision=source.revision)


def find_shards(source: Source) -> Mapping[str, list[Shard]]:
    """Of tars or Parquet files, or whatever the library can read as a stream."""
    if source.is_folder:
        raise ValueError(f"{source.text} holds neither tars nor Parquet files; {STREAMED}")
    import datasets

    with _reached(source, "streamed"):
        builder = datasets.load_dataset_builder(source.text, source.name, revision=source.revision)
        files = {str(split): [str(f) for f in names] for split, names in (builder.config.data_files or {}).items()}
        extensions = {file.rpartition(".")[2] for names in files.values() for file in names}
        if extensions == {"tar"}:
            return {split: [tars.TarShard(name) for name in names] for split, names in files.items()}
        options = parquet.in_small_bites() if extensions == {"parquet"} else {}
        loaded = datasets.load_dataset(source.text, source.name, revision=source.revision, streaming=True, **options)
        return {str(s): parquet.shards_of(part, files.get(str(s), []), source.text) for s, part in loaded.items()}


@contextmanager
def _reached(source: Source, what: str) -> Iterator[None]:
    """The library raises its own errors, pyarrow's, fsspec's and the Hub's: what they mean, and what to do."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ConnectionError):
            raise FileNotFoundError(
                f"{source.text}: there is no such folder here{near_file(source.text)}, and the Hub was not reached "
                f"({reason}); check the name and the connection, or give the path of a local copy"
            ) from error
        hint, name = "; data.name picks a configuration" if "onfig" in reason else "", source.name
        if name and hint:
            hint += did_you_mean(name, set(re.findall(r"'([\w.-]+)'", reason)) - {name})
        if source.revision:
            hint += f" (data.revision={source.revision})"
        raise ValueError(f"{source.text}: the Hub set cannot be {what} ({reason}){hint}") from error
