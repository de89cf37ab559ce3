"""Held-out pairs of a source that is streamed: few enough to lie in memory, as a PairSource."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from PIL import Image

from miniclip.common.fingerprint import digest
from miniclip.config import DataConfig
from miniclip.data.captioned import PairSource, open_source
from miniclip.data.images import BadCount, BadImage, decode_image
from miniclip.data.stream.lanes import beyond
from miniclip.data.stream.shards import split_shards
from miniclip.data.stream.stream import image_id, usable_captions
from miniclip.data.tables.table import Shard, Unordered
from miniclip.data.tables.texts import tell_lists, texts_of
from miniclip.losses.matrix import shares

log = logging.getLogger(__name__)

SEEN = 1000  # pairs of a stream, at least, before the share of bad ones among them says much


@dataclass(frozen=True)
class HeldPairs:
    """A PairSource of encoded images. at_least: as in decode_image."""

    images: list[bytes]
    texts: list[list[str]]
    names: list[str]
    at_least: int
    split: str = ""
    whole: int = SEEN

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        return decode_image(self.images[index], self.names[index], at_least=self.at_least)

    def captions(self, index: int) -> list[str]:
        return self.texts[index]

    def name(self, index: int) -> str:
        return self.names[index]

    def fingerprint(self) -> str:
        return digest(*map(str, map(image_id, self.images)), repr(self.texts), str(self.at_least))

    def column(self, name: str) -> list[Any]:
        raise ValueError(f"column {name!r} is not kept of a source that is streamed; set data.streaming to false")


def open_pairs(config: DataConfig, role: str, *, seed: int, image_size: int, eval_size: int) -> PairSource:
    """Pairs of a split to look at or evaluate on: what open_source gives, or of a stream the first eval_size."""
    if config.streaming:
        return streamed_eval_pairs(config, role, eval_size, image_size)
    return open_source(config, role, seed=seed, image_size=image_size, eval_size=eval_size)


def streamed_eval_pairs(config: DataConfig, role: str, size: int, image_size: int) -> HeldPairs:
    """At most `size` images for validation or test, in the order of the source, equal parts of several sources.

    They come from the split of that name, or from the last shard by name of the training split, which training then
    leaves out: by the hash of an image's bytes, half of it is for validation and half for test. Rows with the same
    image are one. Raises ValueError if there is neither, or no usable pair, and TooManyBad as training does.
    """
    pairs = HeldPairs([], [], [], 2 * image_size, role)
    for source, count in zip(config.sources, shares(size, len(config.sources)), strict=True):
        shards, aside = split_shards(config, source, role)
        if role in aside:
            words = source, " or ".join(aside), shards[0].name
            log.warning("%s has no split for %s: %s is set aside from training", *words)
        half = ("validation", "test").index(role) if aside == ["validation", "test"] else None
        before = len(pairs)
        lists: dict[str, list[str]] = {}
        skipped, read = _collect(shards, pairs, count, half, lists)
        BadCount(max(SEEN, read), config.max_bad_fraction, role).add(skipped)
        if len(pairs) == before:
            raise ValueError(
                f"{source}: no usable pair for {role} in {shards[0].name} ({skipped[:1] or 'it is empty'})"
            )
        if skipped:
            log.warning("%s: %d samples for %s cannot be used: %s", source, len(skipped), role, "; ".join(skipped[:5]))
        tell_lists(f"{source}, {role}", lists)
    return pairs


def _collect(
    shards: list[Shard], pairs: HeldPairs, count: int, half: int | None, lists: dict[str, list[str]]
) -> tuple[list[str], int]:
    """Add count images; returns what is wrong with others, and how many samples were looked at.

    half: 0 or 1, which half of the hashes; None for all. lists: gains where lists stand as text, see `tell_lists`.
    """
    skipped: list[str] = []
    read = 0
    where: dict[int, int] = {}
    for shard in shards:
        rows = 0
        try:
            for sample in shard.read():
                read, rows = read + 1, rows + 1
                if sample.image is None:
                    skipped.append(f"{sample.name}: holds no image")
                    continue
                key = image_id(sample.image)
                if half is not None and key % 2 != half:
                    continue
                if key not in where and len(where) == count:
                    return skipped, read
                try:
                    texts = usable_captions(sample)
                except BadImage as error:
                    skipped.append(str(error))
                    continue
                for how in {texts_of(cell).lists for cell in sample.captions} - {""}:
                    lists.setdefault(how, []).append(sample.name)
                if key not in where:
                    where[key] = len(pairs)
                    pairs.images.append(sample.image)
                    pairs.texts.append([])
                    pairs.names.append(sample.name)
                pairs.texts[where[key]].extend(texts)
        except Unordered:
            raise
        except Exception as error:
            problem = beyond(shard.name, shards, rows, error)
            if not where:
                raise ValueError(problem) from error
            skipped.append(problem)
    return skipped, read
