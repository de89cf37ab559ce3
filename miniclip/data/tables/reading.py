"""From what data.source says to tables: one for each split that is kept apart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from miniclip.data.tables.arrow import library_caches, load_files, load_folder, load_hub
from miniclip.data.tables.folders import caption_folders, look_into, table_files
from miniclip.data.tables.patterns import by_split, expand, is_pattern, is_url, literal_folder, near_file
from miniclip.data.tables.table import TABLE_EXTENSIONS, Table, read_file
from miniclip.data.tables.tars import read_tars

SHARD_EXTENSIONS = (".parquet", ".tar")


def read_tables(source: str, name: str | None = None, revision: str | None = None) -> Mapping[str, Table]:
    """Split name -> table. A source that is not split has the one split "train", as in the `datasets` library.

    source: a CSV, TSV or JSONL file; Parquet files or tars: one, a pattern (*, **, {000..031}) or a URL; a folder with
    metadata.jsonl (or .csv, .tsv), itself or in a sub-folder a split, with tars, with a text file beside each picture,
    or with Parquet files; a Hub name. name, revision: configuration, and branch, tag or commit, of a Hub set.
    Raises FileNotFoundError if there is no such source, ValueError if it cannot be read.
    """
    path = Path(source).expanduser()
    if not is_url(source) and path.is_dir():
        return _read_folder(path, name)
    if is_url(source) or path.is_file() or is_pattern(source):
        return _read_files(source, [str(path)] if not is_url(source) and path.is_file() else expand(source))
    if is_hub(source):
        return load_hub(source, name, revision)
    raise FileNotFoundError(f"{source}: no such file or folder (looked from {Path.cwd()}){near_file(path)}")


def is_hub(source: str) -> bool:
    """Whether a source can only be a name on the Hub, as nothing here bears it."""
    path = Path(source).expanduser()
    looks_local = source.startswith((".", "/", "~")) or path.suffix.lower() in (*TABLE_EXTENSIONS, *SHARD_EXTENSIONS)
    return not looks_local and not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) is not None


def _read_files(source: str, files: list[str]) -> Mapping[str, Table]:
    kinds = sorted({Path(file.split("?")[0] if is_url(file) else file).suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{source} fits files of several kinds ({', '.join(kinds)}); narrow it down to one")
    if kinds == [".tar"]:
        return read_tars(by_split(files, source), source)
    if kinds == [".parquet"]:
        root = os.path.realpath(Path(literal_folder(source)).expanduser())
        return load_files(by_split(files, source), source, library_caches() if is_url(source) else (root,))
    if is_url(source):
        raise ValueError(f"{source}: of what lies behind a URL, Parquet files (.parquet) and tars (.tar) can be read")
    if len(files) > 1:
        raise ValueError(
            f"{source} fits {len(files)} files ({kinds[0]}); a pattern can stand for Parquet files or tars, "
            "and data.source can be a list of tables"
        )
    return {"train": read_file(Path(files[0]))}


def _read_folder(folder: Path, name: str | None) -> Mapping[str, Table]:
    files = table_files(folder)
    if files:
        return {split: read_file(files[split]) for split in files}
    found = look_into(folder)
    if found.tars:
        return read_tars(by_split([str(folder / file) for file in found.tars], f"{folder}/*"), str(folder))
    if found.captions:
        return caption_folders(folder, found)
    if found.pictures and not found.parquet:
        raise ValueError(
            f"{folder}: {len(found.pictures)} pictures, but nothing that says what is in them; looked for "
            "metadata.jsonl (.csv, .tsv), for a text file beside each "
            f"({Path(found.pictures[0]).with_suffix('.txt')}), for tars and for Parquet files"
        )
    try:
        return load_folder(folder, name, found.parquet, bool(found.pictures))
    except ValueError as error:
        looked = "no metadata.jsonl (.csv, .tsv), no tars, no pictures with text files beside them, and "
        raise ValueError(str(error).replace(f"{folder}: ", f"{folder}: {looked}", 1)) from error
