"""Which shards of a source are trained on, and which are held out."""

from __future__ import annotations

from dataclasses import replace

from miniclip.config import DataConfig
from miniclip.data.splits import resolve_splits, split_column
from miniclip.data.stream.lanes import StreamLost
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.data.tables.kinds import find_shards
from miniclip.data.tables.source import folders_of, splits_of
from miniclip.data.tables.table import RecordTable, Shard, reason


def training_shards(config: DataConfig) -> list[list[Shard]]:
    """Of each source, the shards that are trained on. Raises what split_shards does."""
    return [split_shards(config, source, "train")[0] for source in config.sources]


def split_shards(config: DataConfig, source: str, role: str) -> tuple[list[Shard], list[str]]:
    """Shards of a source for train, validation or test, and the roles for which its last one by name is set aside.

    If role is one of those, the shards are that one. Raises FileNotFoundError, or ValueError that names the option to
    change.
    """
    splits = find_shards(source, config.name, config.revision, folders_of(config.sources))
    name, missing = resolve_splits(splits, replace(config, source=source, mixing=None), role)
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
    try:
        table = shards[0].table(source)
    except Exception as error:
        if type(error) is ValueError:
            raise
        StreamLost.check(shards[0].name, error)
        raise ValueError(f"{shards[0].name}: cannot be read ({reason(error)})") from error
    image = image_column(table, config.image_column)
    if table.kind(image) != "image":
        raise ValueError(
            f"{source}: {image} holds paths, and what they name cannot be streamed; set data.streaming to false, or "
            "write the images themselves into Parquet files or tars (of addresses, img2dataset does)"
        )
    inside = split_column(table) or (isinstance(table, RecordTable) and splits_of(table.places, source))
    if inside and len(splits) == 1:
        where = f"column {inside!r} tells" if isinstance(inside, str) else "folders inside the tar tell"
        raise ValueError(
            f"{source}: {where} the splits, and a stream takes shards as a whole; set data.streaming to false, or "
            "write each split into shards of its own"
        )
    captions = tuple(caption_columns(table, config.caption_column, image))
    return [replace(shard, image=image, captions=captions) for shard in shards], missing
