"""An audit as tables for people and as JSON for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from miniclip.common.console import new_table, open_console, plain
from miniclip.common.printing import one_line
from miniclip.data.audit.collisions import Collisions
from miniclip.data.audit.figures import SplitFigures, Spread
from miniclip.data.audit.shared import Shared

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

VERSION = 1
SHOWN = 10  # entries of a list on the terminal
TOLERABLE = 0.05  # nats of floor, and share of truncated captions, that nobody needs to be told about


@dataclass(frozen=True)
class Audit:
    """All that was found.

    limit: pictures of each split that were looked at, None for all. splits: train, validation, test, as far as the
    source has them (or training would set them aside). shared: every split with itself and with those after it.
    all_near_pairs: false if the search for near pictures stopped early, and their numbers are the least there are.
    collisions: of the training split's readable pictures; None without a pair. notes: what the readers said.
    """

    data: list[str]
    name: str | None
    revision: str | None
    limit: int | None
    image_size: int
    context_length: int
    batch_size: int
    splits: list[SplitFigures]
    shared: list[Shared]
    all_near_pairs: bool
    collisions: Collisions | None
    notes: list[str]

    @property
    def leaks(self) -> list[Shared]:
        """Of two different splits that have pictures in common."""
        return [pair for pair in self.shared if pair.first != pair.second and pair.second_pictures]


def to_json(audit: Audit) -> dict[str, Any]:
    """The fields of Audit, SplitFigures, Shared and Collisions under their names, nested as they are, with "version",
    and "advice", a list of sentences. The keys of "lengths" are numbers as text; a figure that is missing is null;
    names and captions stand as the data has them."""
    return {"version": VERSION, **asdict(audit), "advice": advice(audit)}


def advice(audit: Audit) -> list[str]:
    """What to do about it, a sentence each; empty if nothing stands out."""
    found = []
    for pair in audit.leaks:
        total = next(split.pictures for split in audit.splits if split.split == pair.second)
        found.append(
            f"{pair.second_pictures} of {total} {pair.second} pictures are in {pair.first} too: figures of "
            f"{pair.second} would count what was seen before; remove them from {pair.first}, or from {pair.second}"
        )
    if not audit.all_near_pairs:
        found.append("there are so many near pictures that the search stopped: their numbers are the least there are")
    for split in audit.splits:
        if split.unreadable:
            found.append(
                f"{split.unreadable} of {split.pictures} {split.split} pictures cannot be read; mend or remove them, "
                "or let data.max_bad_fraction allow for them"
            )
        if split.split == "train" and split.smaller > split.pictures / 2:
            found.append(
                f"{_percent(split.smaller, split.pictures - split.unreadable)}% of the {split.split} pictures are "
                f"smaller than {audit.image_size} pixels and would be enlarged; a smaller model.image_size costs less"
            )
        if split.truncated > TOLERABLE * split.captions:
            found.append(
                f"{_percent(split.truncated, split.captions)}% of the {split.split} captions are cut at "
                f"{audit.context_length} tokens; raise model.context_length, or shorten them"
            )
    if audit.collisions and audit.collisions.floor > TOLERABLE:
        found.append(
            f"equal captions keep the softmax loss above {audit.collisions.floor:.2f} nats while they count as "
            "negatives; set loss.positives to text or identity"
        )
    return found


def print_audit(audit: Audit, console: Console | None = None) -> None:
    """Tables: pictures, captions, duplicates with their names, a batch."""
    console = console or open_console()
    for table in (_pictures(audit), _captions(audit), _shared(audit)):
        console.print(table)
    for table in (_twins(audit), _echoes(audit), _commonest(audit)):
        if table.row_count:
            console.print(table)
    if audit.collisions:
        console.print(_batch(audit.collisions))
    for split in audit.splits:
        _some(console, f"{split.split}: cannot be read", split.unreadable_named, split.unreadable)
    _some(console, "notes", audit.notes, len(audit.notes))
    told = advice(audit)
    _some(console, "to do", told or ["nothing stands out"], max(1, len(told)))


def _some(console: Console, title: str, lines: Sequence[str], count: int) -> None:
    if not lines:
        return
    console.print(plain(title), style="bold")
    for line in lines[:SHOWN]:
        console.print(plain(line))
    if count > SHOWN:
        console.print(f"... and {count - SHOWN} more; --json has them")


def _pictures(audit: Audit) -> Table:
    columns = ("pictures", "unreadable", "width", "height", "width / height", f"below {audit.image_size} px %")
    table = new_table("pictures: lowest / median / highest", "split", (*columns, "kB (median)", "files"))
    for split in audit.splits:
        size = split.file_bytes and split.file_bytes.median / 1000
        table.add_row(
            split.split,
            str(split.pictures),
            str(split.unreadable),
            _spread(split.width),
            _spread(split.height),
            _spread(split.aspect, 2),
            _percent(split.smaller, split.pictures - split.unreadable),
            "-" if size is None else f"{size:.3g}",
            plain("; ".join(filter(None, map(_kinds, (split.formats, split.modes)))) or "-"),
        )
    return table


def _captions(audit: Audit) -> Table:
    counts = ("captions", "a picture", "different", "but for case, marks")
    columns = (*counts, "tokens", "95% below", f"cut at {audit.context_length} %", "token ids used")
    table = new_table("captions: lowest / median / highest", "split", columns)
    for split in audit.splits:
        table.add_row(
            split.split,
            str(split.captions),
            _spread(split.captions_a_picture),
            str(split.distinct_captions),
            str(split.distinct_bare_captions),
            _spread(split.tokens),
            "-" if split.tokens is None else f"{split.tokens.high:g}",
            _percent(split.truncated, split.captions),
            f"{split.tokens_used} of {split.vocabulary}",
        )
    return table


def _shared(audit: Audit) -> Table:
    columns = ("identical pairs of pictures", "near pairs", "pictures with a twin", "captions that stand twice")
    table = new_table("what stands twice", "in", columns)
    for pair in audit.shared:
        same = pair.first == pair.second
        figures = (pair.identical_pairs, pair.near_pairs, pair.second_pictures, pair.second_captions)
        shown = [str(n) if same else f"{n} of {pair.second}" if i > 1 else str(n) for i, n in enumerate(figures)]
        table.add_row(pair.first if same else f"{pair.first} and {pair.second}", *shown)
    return table


def _twins(audit: Audit) -> Table:
    table = new_table("the same picture (rms: 0 to 255, of 16 x 16 pixels)", "", ("picture", "", "twin", "rms"))
    for pair in sorted(audit.shared, key=lambda pair: pair.first == pair.second):
        for twin in pair.twins[:SHOWN]:
            rms = "identical" if twin.identical else f"{twin.rms:.1f}"
            table.add_row(pair.second, plain(_cut(twin.name)), pair.first, plain(_cut(twin.twin_name)), rms)
        if len(pair.twins) > SHOWN:
            table.add_row(pair.second, f"... and {pair.second_pictures - SHOWN} more", pair.first, "", "")
    return table


def _echoes(audit: Audit) -> Table:
    table = new_table("the same caption in two splits, the longest", "", ("picture", "", "twin", "caption"))
    for pair in audit.shared:
        if pair.first != pair.second:
            for echo in pair.echoes[:3]:
                names = plain(_cut(echo.name)), pair.first, plain(_cut(echo.twin_name))
                table.add_row(pair.second, *names, plain(_cut(echo.caption)))
    return table


def _commonest(audit: Audit) -> Table:
    table = new_table("commonest captions", "split", ("times", "pictures", "caption"))
    for split in audit.splits[:1]:
        for common in split.commonest:
            table.add_row(split.split, str(common.captions), str(common.pictures), plain(_cut(common.text)))
    return table


def _batch(collisions: Collisions) -> Table:
    count = collisions.batch_size
    table = new_table(f"what to expect of a batch of {count}", "", ("value", "of"))
    pairs = f"{math.comb(count, 2)} pairs of two"
    table.add_row("share a caption (its tokens)", amount(collisions.same_caption), pairs)
    table.add_row("share a picture", amount(collisions.same_picture), pairs)
    table.add_row("share either", amount(collisions.either), pairs)
    floor = f"{collisions.floor:.4f} ± {collisions.floor_error:.4f}"
    table.add_row("floor of the softmax loss, nats", floor, f"chance: {collisions.chance:.3f}")
    return table


def _kinds(counts: dict[str, int]) -> str:
    """The words, with their numbers where there are several."""
    return ", ".join(f"{n} {word}" if len(counts) > 1 else word for word, n in counts.items())


def amount(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _cut(text: str) -> str:
    return one_line(text, 60)


def _spread(spread: Spread | None, digits: int = 0) -> str:
    if spread is None:
        return "-"
    return " / ".join(f"{value:.{digits}f}" for value in (spread.lowest, spread.median, spread.highest))


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
