"""The doctor's first stage: is the data what the configuration thinks it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from miniclip.common.printing import printable
from miniclip.config import Config
from miniclip.data.audit.figures import Seen, figures, look
from miniclip.data.audit.report import commonest_words
from miniclip.data.captioned import Pairs, PairSource
from miniclip.data.duplicates import SIDE
from miniclip.data.images import BadCount
from miniclip.data.subset import Subset
from miniclip.data.tables.columns import caption_columns, image_column
from miniclip.inspection.contents import Verdict
from miniclip.models.protocols import TextTokenizer

DATA_TITLE = "the data is what the configuration thinks it is"
LOOKED_AT = 512  # images that are decoded
MOST = 0.5
EMPTY = 0.05
TOLERANCE = 4  # levels of 255 in each pixel, at SIDE x SIDE, by which equal images may differ


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


def check_data(config: Config, source: PairSource, rows: Sequence[int], tokenizer: TextTokenizer) -> Stage:
    """Of the images and captions at rows of the training split, in random order. tokenizer: of the model."""
    context, side = config.model.context_length, config.model.image_size
    assert context is not None and side is not None
    looked = look("train", Subset(source, rows), context, images=LOOKED_AT, tokenizer=tokenizer)
    found = figures(looked, side, context)
    images, captions, bad = found["pictures"], found["captions"], found["unreadable"]
    texts = [looked.captions[k].lower() for k in np.unique(looked.texts, return_index=True)[1]]
    blank = np.array([not any(letter.isalnum() for letter in text) for text in texts])
    count = np.bincount(looked.texts)  # how often each text stands there
    empty, spoken = int(count[blank].sum()), np.where(blank, 0, count)
    commonest, same = spoken.max() / max(1, spoken.sum()), 0.0
    if images > bad:
        small = np.stack([seen.small for seen in looked.seen if isinstance(seen, Seen)]).astype(np.float32)
        same = float((np.abs(small - np.median(small, axis=0)).max(1) <= TOLERANCE).mean())
    in_batch = np.unique(looked.texts[looked.first[:-1][:256]], return_counts=True)[1]
    shared = in_batch[in_batch > 1].sum() / in_batch.sum()
    shown: dict[str, Any] = {
        "pictures": len(source),
        "captions_a_picture": captions / len(rows),
        "captions_looked_at": captions,
        "share_distinct_captions": len(texts) / captions,
        "tokens_mean": found["tokens"]["mean"],
        "tokens_longest": int(found["tokens"]["highest"]),
        "share_truncated": found["truncated"] / captions,
        "share_empty_captions": empty / captions,
        "share_commonest_caption": float(commonest),
        "share_shared_captions_in_256": float(shared),
        "pictures_looked_at": images,
        "share_unreadable": bad / images,
        "share_same_picture": same,
        "sizes": commonest_words(found["sizes"]),
    }
    if isinstance(source, Pairs):
        image = image_column(source.table, config.data.image_column)
        columns = caption_columns(source.table, config.data.caption_column, image)
        shown |= {"image_column": image, "caption_columns": ", ".join(columns)}
    shown["examples"] = [f"{source.name(row)}: {source.captions(row)[0]}" for row in rows[:3]]
    verdicts, notes = [], []
    allowed = BadCount.of(source, config.data.max_bad_fraction)
    if bad * len(source) > allowed.allowed * allowed.total * images:  # as many of all as of those looked at
        evidence = f"{bad} of {images} images cannot be read, e.g. {printable(found['unreadable_named'][0])}"
        advice = "Mend or remove them, or raise data.max_bad_fraction; check data.image_column if it is most of them."
        verdicts.append(Verdict("unreadable", "images cannot be read", [evidence], [advice]))
    elif images - bad > 1 and same > MOST:
        evidence = f"{same:.0%} of {images - bad} decoded images look the same at {SIDE} x {SIDE} pixels"
        verdicts.append(constant_images(same, evidence))
    if empty > EMPTY * captions:
        verdicts.append(empty_captions(f"{empty / captions:.0%} of {captions} captions have no letter and no digit"))
    elif captions > 1 and commonest > MOST:
        text, number = printable(texts[spoken.argmax()])[:80].strip(), spoken.max()
        evidence = f'"{text}" is {number} of {captions} captions ({commonest:.0%})'
        advice = "Check data.caption_column: it may be the wrong one, or its text a placeholder."
        verdicts.append(Verdict("constant_captions", "one caption stands with most images", [evidence], [advice]))
    if shown["share_truncated"] > MOST:
        notes.append(f"{shown['share_truncated']:.0%} of the captions are cut at {context} tokens.")
    if shared > 0.1:
        role = "counted as positives of each other's images"
        if config.loss.positives == "diagonal":
            role = "negatives of one another (loss.positives=diagonal)"
        notes.append(f"Of 256 captions, {shared:.0%} stand there more than once; in a batch they are {role}.")
    if bad and not verdicts:
        notes.append(f"{bad} of {images} images cannot be read and are skipped.")
    return Stage("data", DATA_TITLE, shown, verdicts, notes)


def constant_images(share: float, evidence: str) -> Verdict:
    """share: of the images that are one and the same."""
    title = "the images are all the same" if share > 0.95 else "most images are the same"
    advice = "Check data.image_column and how the images were made: nothing can be learnt from one image."
    return Verdict("constant_images", title, [evidence], [advice])


def empty_captions(evidence: str) -> Verdict:
    advice = "Check data.caption_column, and how the captions were written: the text encoder needs words."
    return Verdict("empty_captions", "captions say nothing", [evidence], [advice])
