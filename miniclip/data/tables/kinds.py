"""The kinds of source. A new one is a file like those beside this one, and a word in KINDS.

accepts(source): whether a source is of it; nothing is opened. open_tables(source): split -> table. find_shards(source):
split -> shards, of a kind that can be streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miniclip.common.printing import first_few
from miniclip.data.tables import beside, csv_jsonl, hub, parquet, tars
from miniclip.data.tables.source import STREAMED, Source, near_file
from miniclip.data.tables.table import Shard, Table

# the first that accepts: a table before the tars beside it, these before text files and Parquet
KINDS = (csv_jsonl, tars, beside, parquet, hub)


def read_tables(
    source: str, name: str | None = None, revision: str | None = None, named: tuple[str, ...] = ()
) -> Mapping[str, Table]:
    """Split name -> table. A source that is not split has the one split "train", as in the `datasets` library.

    source: a CSV, TSV, JSONL or JSON file; Parquet files or tars: one, a pattern (*, **, {000..031}) or a URL; a folder
    with metadata.jsonl (or .csv, .tsv, .json), itself or in a sub-folder a split, as COCO and Flickr are handed out,
    with tars, with a text file beside each image, or with Parquet files; a Hub name. name, revision: configuration, and
    branch, tag or commit, of a Hub set. named: folders beside it into which links may lead.
    Raises FileNotFoundError if there is no such source, ValueError if it cannot be read.
    """
    asked = Source(source, name, revision, named)
    if (shards := asked.below(".tar")) and not asked.tables and beside.texts_beside(asked):
        raise ValueError(
            f"{source} holds tars ({first_few(shards)}) and images with texts beside them; name the tars as the "
            "source, or move them out of the folder"
        )
    for kind in KINDS:
        if kind.accepts(asked):
            return kind.open_tables(asked)
    raise _absent(asked)


def find_shards(
    source: str, name: str | None = None, revision: str | None = None, named: tuple[str, ...] = ()
) -> Mapping[str, list[Shard]]:
    """Split -> shards, from tars or Parquet files (one, a folder, a pattern or a URL) or a Hub name; nothing is read.

    Raises FileNotFoundError, or ValueError for what cannot be streamed.
    """
    asked = Source(source, name, revision, named)
    if asked.below(".tar") and asked.below(".parquet"):
        raise ValueError(f"{source} holds tars and Parquet files; name one kind; {STREAMED}")
    for kind in (tars, parquet, hub):
        if kind.accepts(asked):
            return kind.find_shards(asked)
    if asked.files:
        raise ValueError(f"{source} names files of the kind {asked.extension or 'without a name'}; {STREAMED}")
    raise _absent(asked)


def _absent(source: Source) -> FileNotFoundError:
    text = f"{source.text}: no such file or folder (looked from {Path.cwd()})"
    return FileNotFoundError(text + near_file(source.path))
