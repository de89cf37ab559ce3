"""The doctor's first stage: is the data what the configuration thinks it is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from miniclip.common.printing import printable
from miniclip.config import Config
from miniclip.data.captioned import Pairs, PairSource
from miniclip.data.images import BadImage
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.inspection.contents import Verdict
from miniclip.models.tokenizer import Tokenizer

DATA_TITLE = "the data is what the configuration thinks it is"
LOOKED_AT = 512  # pictures that are decoded
MOST = 0.5
EMPTY = 0.05
THUMBNAIL, TOLERANCE = 16, 4  # side in pixels; levels of 255 in each of them by which equal pictures may differ


class Stage(NamedTuple):
    """What one stage found. figures: name -> plain value in the order shown. runs: of its trainings.
    told: false if it could not be told whether all is well."""

    name: str
    title: str
    figures: dict[str, Any]
    verdicts: list[Verdict]
    notes: list[str]
    runs: Sequence[dict[str, Any]] = ()
    told: bool = True


def check_data(config: Config, source: PairSource, rows: Sequence[int]) -> Stage:
    """Of the pictures and captions at rows of the training split, in random order."""
    pictures = _decoded(source, rows[:LOOKED_AT])
    readable = [picture for picture in pictures if isinstance(picture, Image.Image)]
    bad = [picture for picture in pictures if isinstance(picture, BadImage)]
    texts = [source.captions(row) for row in rows]
    captions = list(itertools.chain.from_iterable(texts))
    assert config.model.context_length is not None
    tokenizer, room = Tokenizer(config.model.context_length), config.model.context_length - 2
    ids = [tokenizer.encode(caption) for caption in captions]
    lengths = [len(one) + 2 for one in ids]
    seen = Counter(tuple(one[:room]) for one in ids)
    blank = {one for one in seen if not any(letter.isalnum() for letter in tokenizer.decode(one))}
    empty = sum(seen[one] for one in blank) / len(ids)
    spoken = {one: count for one, count in seen.items() if one not in blank}
    commonest = max(spoken.values(), default=0) / max(1, sum(spoken.values()))
    same = _same_share(readable)
    in_batch = Counter(tuple(tokenizer.encode(own[0])[:room]) for own in texts[:256])
    shared = sum(count for count in in_batch.values() if count > 1) / max(1, sum(in_batch.values()))
    sizes = Counter(picture.size for picture in readable).most_common()
    figures: dict[str, Any] = {
        "pictures": len(source),
        "captions_a_picture": len(captions) / len(texts),
        "captions_looked_at": len(captions),
        "share_distinct_captions": len(seen) / len(ids),
        "tokens_mean": sum(lengths) / len(lengths),
        "tokens_longest": max(lengths),
        "share_truncated": sum(length > room + 2 for length in lengths) / len(lengths),
        "share_empty_captions": empty,
        "share_commonest_caption": commonest,
        "share_shared_captions_in_256": shared,
        "pictures_looked_at": len(pictures),
        "share_unreadable": len(bad) / len(pictures),
        "share_same_picture": same,
        # a JPEG that is far larger is decoded smaller
        "sizes": ", ".join(f"{w} x {h} ({count})" for (w, h), count in sizes[:3]) + (", …" if len(sizes) > 3 else ""),
        **_columns(config, source),
        "examples": [f"{source.name(row)}: {source.captions(row)[0]}" for row in rows[:3]],
    }
    verdicts = []
    if len(bad) > config.data.max_bad_fraction * len(pictures):
        verdicts.append(
            Verdict(
                "unreadable",
                "pictures cannot be read",
                [f"{len(bad)} of {len(pictures)} pictures cannot be read, e.g. {printable(str(bad[0]))}"],
                ["Mend or remove them, or raise data.max_bad_fraction; check data.image_column if it is most of them."],
            )
        )
    elif len(readable) > 1 and same > MOST:
        evidence = f"{same:.0%} of {len(readable)} decoded pictures look the same at {THUMBNAIL} x {THUMBNAIL} pixels"
        verdicts.append(constant_images(same, [evidence]))
    if empty > EMPTY:
        verdicts.append(empty_captions([f"{empty:.0%} of {len(ids)} captions have no letter and no digit"]))
    elif len(captions) > 1 and commonest > MOST:
        (text, count), *_ = ((tokenizer.decode(one), n) for one, n in seen.most_common(1))
        verdicts.append(
            Verdict(
                "constant_captions",
                "one caption stands with most pictures",
                [f'"{printable(text)[:80].strip()}" is {count} of {len(ids)} captions ({commonest:.0%})'],
                ["Check data.caption_column: it may be the wrong one, or its text a placeholder."],
            )
        )
    notes = []
    if figures["share_truncated"] > MOST:
        notes.append(f"{figures['share_truncated']:.0%} of the captions are cut at {room + 2} tokens.")
    if shared > 0.1:
        role = "negatives of one another (loss.positives=diagonal)"
        role = role if config.loss.positives == "diagonal" else "counted as positives of each other's pictures"
        notes.append(f"Of 256 captions, {shared:.0%} stand there more than once; in a batch they are {role}.")
    if bad and not verdicts:
        notes.append(f"{len(bad)} of {len(pictures)} pictures cannot be read and are skipped.")
    return Stage("data", DATA_TITLE, figures, verdicts, notes)


def constant_images(share: float, evidence: list[str]) -> Verdict:
    """share: of the pictures that are one and the same."""
    return Verdict(
        "constant_images",
        "the pictures are all the same" if share > 0.95 else "most pictures are the same",
        evidence,
        ["Check data.image_column and how the pictures were made: nothing can be learnt from one picture."],
    )


def empty_captions(evidence: list[str]) -> Verdict:
    return Verdict(
        "empty_captions",
        "captions say nothing",
        evidence,
        ["Check data.caption_column, and how the captions were written: the text encoder needs words."],
    )


def _decoded(source: PairSource, rows: Sequence[int]) -> list[Image.Image | BadImage]:
    def read(row: int) -> Image.Image | BadImage:
        try:
            return source.image(row)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(read, rows))


def _same_share(pictures: Sequence[Image.Image]) -> float:
    """Share of the pictures that look like the pixelwise median of all."""
    if not pictures:
        return 0.0
    side = (THUMBNAIL, THUMBNAIL)
    small = np.stack([np.asarray(p.resize(side, Image.Resampling.BOX), dtype=np.float32) for p in pictures])
    furthest = np.abs(small - np.median(small, axis=0)).max(axis=(1, 2, 3))
    return float((furthest <= TOLERANCE).mean())


def _columns(config: Config, source: PairSource) -> dict[str, Any]:
    if not isinstance(source, Pairs):
        return {}
    image = image_column(source.table, config.data.image_column)
    return {
        "image_column": image,
        "caption_columns": ", ".join(caption_columns(source.table, config.data.caption_column, image)),
    }
