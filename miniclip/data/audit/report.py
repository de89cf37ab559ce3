"""An audit on the terminal: tables, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from miniclip.common.console import open_console, plain, show_table
from miniclip.common.printing import one_line

SHOWN = 10  # entries of a list on the terminal
_ELSEWHERE = ("split", "unreadable_named", "lengths", "commonest")  # in tables of their own, or in the figure
_LABELS = {
    "pictures": "images",
    "captions_a_picture": "captions an image",
    "distinct_bare_captions": "but for case and marks",
}
_BATCH = {
    "same_caption": "share a caption (its tokens)",
    "same_picture": "share an image",
    "either": "share either",
    "chance": "chance, nats",
    "floor": "floor of the softmax loss, nats",
    "floor_error": "its standard error",
}
_SPREAD = "what each split holds; of many numbers: lowest / median / 95% / highest"
TOLERABLE = 0.05  # nats of floor, and share of truncated captions, that nobody needs to be told about


def advice(found: dict[str, Any]) -> list[str]:
    """What to do about it, a sentence each; empty if nothing stands out."""
    told = [f"training would refuse this: {error}" for error in found["refused"]]
    count = {split["split"]: split["pictures"] for split in found["splits"]}
    for pair in found["shared"]:
        first, second, twins = pair["first"], pair["second"], pair["second_pictures"]
        if first != second and twins:
            told.append(
                f"{twins} of {count[second]} {second} images are in {first} too: figures of {second} would count what "
                f"was seen before; remove them from {first}, or from {second}"
            )
    if not found["all_near_pairs"]:
        told.append("there are so many near images that the search stopped: their numbers are the least there are")
    for split in found["splits"]:
        name, images, bad = split["split"], split["pictures"], split["unreadable"]
        if bad:
            told.append(f"{bad} of {images} {name} images cannot be read; mend or remove them, or do without them")
        if name == "train" and split["smaller"] > images / 2:
            told.append(
                f"{_percent(split['smaller'], images - bad)} of the {name} images are smaller than "
                f"{found['image_size']} pixels and would be enlarged; a smaller model.image_size costs less"
            )
        if split["truncated"] > TOLERABLE * split["captions"]:
            told.append(
                f"{_percent(split['truncated'], split['captions'])} of the {name} captions are cut at "
                f"{found['context_length']} tokens; raise model.context_length, or shorten them"
            )
    if found["collisions"] and found["collisions"]["floor"] > TOLERABLE:
        told.append(
            f"equal captions keep the softmax loss above {found['collisions']['floor']:.2f} nats while they count as "
            "negatives; set loss.positives to text or identity"
        )
    return told


def print_audit(found: dict[str, Any]) -> None:
    """Tables of what the JSON holds: each split, duplicates with their names, a batch; notes; advice."""
    console, splits, shared = open_console(), found["splits"], found["shared"]

    def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        lines = [[one_line(str(value), 60) for value in row] for row in rows]
        if lines:
            show_table(console, title, columns, lines)

    def listed(title: str, lines: Sequence[str], count: int = 0) -> None:
        if lines:
            console.print(plain(title), style="bold")
        for line in lines[:SHOWN]:
            console.print(plain(line))
        if (count := count or len(lines)) > SHOWN:
            console.print(f"... and {count - SHOWN} more; --json has them")

    labels = {"smaller": f"below {found['image_size']} px", "truncated": f"cut at {found['context_length']} tokens"}
    labels |= _LABELS
    keys = [key for key in splits[0] if key not in _ELSEWHERE]
    rows = [(labels.get(key, key.replace("_", " ")), *(_told(split, key) for split in splits)) for key in keys]
    table(_SPREAD, ["", *(split["split"] for split in splits)], rows)
    keys = ["identical_pairs", "near_pairs", "second_pictures", "second_captions"]
    columns = ("identical pairs of images", "near pairs", "images with a twin", "captions that stand twice")
    pairs = [(" and ".join(dict.fromkeys((pair["first"], pair["second"]))), pair) for pair in shared]
    rows = [(both, *(pair[key] for key in keys)) for both, pair in pairs]
    table("what stands twice; of two splits, in the second", ["in", *columns], rows)
    pairs.sort(key=lambda one: one[1]["first"] == one[1]["second"])  # leaks first
    rows = [
        (both, twin["name"], twin["twin_name"], "identical" if twin["identical"] else f"{twin['rms']:.1f}")
        for both, pair in pairs
        for twin in pair["twins"][:SHOWN]
    ]
    table("the same image (rms: 0 to 255, of 16 x 16 pixels)", ["in", "image", "twin", "rms"], rows)
    rows = [
        (both, echo["name"], echo["twin_name"], echo["caption"])
        for both, pair in pairs
        for echo in pair["echoes"][:3]
        if pair["first"] != pair["second"]
    ]
    table("the same caption in two splits, the longest", ["in", "image", "twin", "caption"], rows)
    rows = [tuple(common.values()) for common in splits[0]["commonest"]]
    table(f"commonest captions of {splits[0]['split']}", ["caption", "times", "images"], rows)
    if batch := found["collisions"]:
        size = batch["batch_size"]
        rows = [(label, _amount(batch[key])) for key, label in _BATCH.items()]
        table(f"a batch of {size}, of its {math.comb(size, 2)} pairs of two", ["", "value"], rows)
    for split in splits:
        listed(f"{split['split']}: cannot be read", split["unreadable_named"], split["unreadable"])
    listed("notes", found["notes"])
    listed("to do", found["advice"] or ["nothing stands out"])


def _told(split: dict[str, Any], key: str) -> str:
    """A figure of a split in a few words."""
    value = split[key]
    if key in ("smaller", "truncated"):
        whole = split["captions"] if key == "truncated" else split["pictures"] - split["unreadable"]
        return f"{value} ({_percent(value, whole)})"
    if isinstance(value, dict) and "median" in value:
        return " / ".join(_amount(value[name]) for name in ("lowest", "median", "high", "highest"))
    if isinstance(value, dict):
        return commonest_words(value)
    return "-" if value is None else str(value)


def commonest_words(counts: dict[str, int]) -> str:
    """The first three, with their counts."""
    words = [f"{word} ({count})" for word, count in counts.items()]
    return ", ".join(words[:3]) + (", …" if len(words) > 3 else "")


def _amount(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
