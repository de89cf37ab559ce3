"""An audit on the terminal: tables, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from miniclip.common.console import new_table, open_console, plain
from miniclip.common.printing import one_line

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # entries of a list on the terminal
_ELSEWHERE = ("split", "unreadable_named", "lengths", "commonest")  # in tables of their own, or in the figure
_LABELS = {
    "captions_a_picture": "captions an image",
    "distinct_bare_captions": "but for case and marks",
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
    told = []
    count = {split["split"]: split["pictures"] for split in found["splits"]}
    for pair in found["shared"]:
        first, second = pair["first"], pair["second"]
        if first != second and pair["second_pictures"]:
            told.append(
                f"{pair['second_pictures']} of {count[second]} {second} images are in {first} too: figures of {second} "
                f"would count what was seen before; remove them from {first}, or from {second}"
            )
    if not found["all_near_pairs"]:
        told.append("there are so many near images that the search stopped: their numbers are the least there are")
    for split in found["splits"]:
        name, images, bad = split["split"], split["pictures"], split["unreadable"]
        if bad:
            told.append(
                f"{bad} of {images} {name} images cannot be read; mend or remove them, or let data.max_bad_fraction "
                "allow for them"
            )
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
    told = [{key: _told(split, key) for key in split if key not in _ELSEWHERE} for split in splits]
    label = {"smaller": f"below {found['image_size']} px", "truncated": f"cut at {found['context_length']} tokens"}
    rows = [(label.get(key, _label(key)), *(split[key] for split in told)) for key in told[0]]
    _table(console, _SPREAD, ["", *(split["split"] for split in splits)], rows)
    figures = ("identical_pairs", "near_pairs", "second_pictures", "second_captions")
    rows = [(_both(pair), *(pair[key] for key in figures)) for pair in shared]
    columns = ("identical pairs of images", "near pairs", "images with a twin", "captions that stand twice")
    _table(console, "what stands twice; of two splits, in the second", ["in", *columns], rows)
    shared = sorted(shared, key=lambda pair: pair["first"] == pair["second"])  # leaks first
    rows = [
        (_both(pair), twin["name"], twin["twin_name"], "identical" if twin["identical"] else f"{twin['rms']:.1f}")
        for pair in shared
        for twin in pair["twins"][:SHOWN]
    ]
    _table(console, "the same image (rms: 0 to 255, of 16 x 16 pixels)", ["in", "image", "twin", "rms"], rows)
    rows = [
        (_both(pair), *(echo[key] for key in ("name", "twin_name", "caption")))
        for pair in shared
        for echo in pair["echoes"][:3]
        if pair["first"] != pair["second"]
    ]
    _table(console, "the same caption in two splits, the longest", ["in", "image", "twin", "caption"], rows)
    rows = [tuple(common.values()) for common in splits[0]["commonest"]]
    _table(console, f"commonest captions of {splits[0]['split']}", ["caption", "times", "images"], rows)
    if batch := found["collisions"]:
        pairs = math.comb(batch["batch_size"], 2)
        title = f"a batch of {batch['batch_size']}, of its {pairs} pairs of two"
        rows = [(_label(key), amount(value)) for key, value in batch.items() if key not in ("batch_size", "batches")]
        _table(console, title, ["", "value"], rows)
    for split in splits:
        _some(console, f"{split['split']}: cannot be read", split["unreadable_named"], split["unreadable"])
    _some(console, "notes", found["notes"], len(found["notes"]))
    _some(console, "to do", found["advice"] or ["nothing stands out"], max(1, len(found["advice"])))


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = new_table(title, columns[0], columns[1:])
    for row in rows:
        table.add_row(*(plain(one_line(str(value), 60)) for value in row))
    if rows:
        console.print(table)


def _some(console: Console, title: str, lines: Sequence[str], count: int) -> None:
    if lines:
        console.print(plain(title), style="bold")
    for line in lines[:SHOWN]:
        console.print(plain(line))
    if count > SHOWN:
        console.print(f"... and {count - SHOWN} more; --json has them")


def _both(pair: dict[str, Any]) -> str:
    return " and ".join(dict.fromkeys((pair["first"], pair["second"])))


def _label(key: str) -> str:
    return _LABELS.get(key, key.replace("_", " ").replace("picture", "image"))


def _told(split: dict[str, Any], key: str) -> str:
    """A figure of a split in a few words."""
    value = split[key]
    if key in ("smaller", "truncated"):
        whole = split["captions"] if key == "truncated" else split["pictures"] - split["unreadable"]
        return f"{value} ({_percent(value, whole)})"
    if isinstance(value, dict) and "median" in value:
        return " / ".join(amount(value[name]) for name in ("lowest", "median", "high", "highest"))
    if isinstance(value, dict):
        most = [f"{word} ({count})" for word, count in value.items()]
        return ", ".join(most[:3]) + (", …" if len(most) > 3 else "")
    return "-" if value is None else str(value)


def amount(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}%"
