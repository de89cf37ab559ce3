"""An audit on the terminal: tables, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from miniclip.common.console import new_table, open_console, plain
from miniclip.common.printing import one_line

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # entries of a list on the terminal
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
                f"{_percent(split['smaller'], images - bad)}% of the {name} images are smaller than "
                f"{found['image_size']} pixels and would be enlarged; a smaller model.image_size costs less"
            )
        if split["truncated"] > TOLERABLE * split["captions"]:
            told.append(
                f"{_percent(split['truncated'], split['captions'])}% of the {name} captions are cut at "
                f"{found['context_length']} tokens; raise model.context_length, or shorten them"
            )
    if found["collisions"] and found["collisions"]["floor"] > TOLERABLE:
        told.append(
            f"equal captions keep the softmax loss above {found['collisions']['floor']:.2f} nats while they count as "
            "negatives; set loss.positives to text or identity"
        )
    return told


def print_audit(found: dict[str, Any]) -> None:
    """Tables of what the JSON holds: images, captions, duplicates with their names, a batch; notes; advice."""
    console, splits, shared = open_console(), found["splits"], found["shared"]
    across = [pair for pair in shared if pair["first"] != pair["second"]]
    within = [pair for pair in shared if pair["first"] == pair["second"]]
    below, cut = f"below {found['image_size']} px %", f"cut at {found['context_length']} %"
    size = ("width", "height", "width / height", below, "kB (median)", "files")
    _table(
        console,
        "images: lowest / median / highest",
        ("split", "images", "unreadable", *size),
        [
            (
                *(split[key] for key in ("split", "pictures", "unreadable")),
                *(_spread(split["width"]), _spread(split["height"]), _spread(split["aspect"], 2)),
                _percent(split["smaller"], split["pictures"] - split["unreadable"]),
                f"{split['file_bytes']['median'] / 1000:.3g}" if split["file_bytes"] else "-",
                "; ".join(_kinds(split[key]) for key in ("formats", "modes") if split[key]) or "-",
            )
            for split in splits
        ],
    )
    counts = ("captions", "an image", "different", "but for case, marks")
    _table(
        console,
        "captions: lowest / median / highest",
        ("split", *counts, "tokens", "95% below", cut, "token ids used"),
        [
            (
                *(split["split"], split["captions"], _spread(split["captions_a_picture"])),
                *(split["distinct_captions"], split["distinct_bare_captions"], _spread(split["tokens"])),
                f"{split['tokens']['high']:g}" if split["tokens"] else "-",
                _percent(split["truncated"], split["captions"]),
                f"{split['tokens_used']} of {split['vocabulary']}",
            )
            for split in splits
        ],
    )
    rows = []
    for pair in shared:
        own, of = (pair["first"] == pair["second"]), f" of {pair['second']}"
        twice = [f"{pair[key]}{'' if own else of}" for key in ("second_pictures", "second_captions")]
        where = pair["first"] if own else f"{pair['first']} and {pair['second']}"
        rows.append((where, pair["identical_pairs"], pair["near_pairs"], *twice))
    columns = ("identical pairs of images", "near pairs", "images with a twin", "captions that stand twice")
    _table(console, "what stands twice", ("in", *columns), rows)
    twins: list[Sequence[Any]] = []
    for pair in across + within:
        for twin in pair["twins"][:SHOWN]:
            rms = "identical" if twin["identical"] else f"{twin['rms']:.1f}"
            twins.append((pair["second"], twin["name"], pair["first"], twin["twin_name"], rms))
        if len(pair["twins"]) > SHOWN:
            more = f"... and {pair['second_pictures'] - SHOWN} more"
            twins.append((pair["second"], more, pair["first"], "", ""))
    title = "the same image (rms: 0 to 255, of 16 x 16 pixels)"
    _table(console, title, ("", "image", "", "twin", "rms"), twins)
    echoes = [
        (pair["second"], echo["name"], pair["first"], echo["twin_name"], echo["caption"])
        for pair in across
        for echo in pair["echoes"][:3]
    ]
    _table(console, "the same caption in two splits, the longest", ("", "image", "", "twin", "caption"), echoes)
    common = [(splits[0]["split"], c["captions"], c["pictures"], c["text"]) for c in splits[0]["commonest"]]
    _table(console, "commonest captions", ("split", "times", "images", "caption"), common)
    if batch := found["collisions"]:
        pairs = f"{math.comb(batch['batch_size'], 2)} pairs of two"
        _table(
            console,
            f"what to expect of a batch of {batch['batch_size']}",
            ("", "value", "of"),
            [
                ("share a caption (its tokens)", amount(batch["same_caption"]), pairs),
                ("share an image", amount(batch["same_picture"]), pairs),
                ("share either", amount(batch["either"]), pairs),
                (
                    "floor of the softmax loss, nats",
                    f"{batch['floor']:.4f} ± {batch['floor_error']:.4f}",
                    f"chance: {batch['chance']:.3f}",
                ),
            ],
        )
    for split in splits:
        _some(console, f"{split['split']}: cannot be read", split["unreadable_named"], split["unreadable"])
    _some(console, "notes", found["notes"], len(found["notes"]))
    _some(console, "to do", found["advice"] or ["nothing stands out"], max(1, len(found["advice"])))


def _table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Nothing for no rows."""
    table = new_table(title, columns[0], columns[1:])
    for row in rows:
        table.add_row(*(plain(one_line(str(value), 60)) for value in row))
    if table.row_count:
        console.print(table)


def _some(console: Console, title: str, lines: Sequence[str], count: int) -> None:
    if not lines:
        return
    console.print(plain(title), style="bold")
    for line in lines[:SHOWN]:
        console.print(plain(line))
    if count > SHOWN:
        console.print(f"... and {count - SHOWN} more; --json has them")


def _kinds(counts: dict[str, int]) -> str:
    """The words, with their numbers where there are several."""
    return ", ".join(f"{n} {word}" if len(counts) > 1 else word for word, n in counts.items())


def amount(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _spread(spread: dict[str, float] | None, digits: int = 0) -> str:
    keys = ("lowest", "median", "highest")
    return " / ".join(f"{spread[key]:.{digits}f}" for key in keys) if spread else "-"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
