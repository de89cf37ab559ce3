"""Results -> a table for people, JSON for machines. The pictures are in `pictures`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from miniclip.console import new_table, open_console, plain
from miniclip.evaluation.retrieval import RetrievalResult
from miniclip.evaluation.zeroshot import ZeroShotResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_SHOWN_CLASSES = 20


def print_zero_shot(
    results: Mapping[str, ZeroShotResult], title: str = "zero-shot", console: Console | None = None
) -> None:
    """One row for each result; the keys name the rows (a checkpoint, a task). A single result also gets its classes."""
    console = console or open_console()
    columns = ("pictures", "classes", "top-1 %", "top-5 %", "class recall %", "chance %")
    table = new_table(title, "", columns)
    for name, r in results.items():
        figures = (r.top1, r.top5, r.mean_per_class_recall, r.chance)
        table.add_row(plain(name), str(r.n), str(len(r.classes)), *map(_percent, figures))
    console.print(table)
    for note in dict.fromkeys(note for r in results.values() for note in r.notes):
        console.print(plain(note))
    if len(results) == 1:
        (result,) = results.values()
        if result.confusion and len(result.classes) <= _SHOWN_CLASSES:
            console.print(_class_table(result))


def print_retrieval(
    results: Mapping[str, RetrievalResult], title: str = "retrieval", console: Console | None = None
) -> None:
    """Two rows for each result, one a direction; the keys name them."""
    console = console or open_console()
    columns = ("direction", "queries", "candidates", "R@1 %", "R@5 %", "R@10 %", "median rank", "chance R@10 %")
    table = new_table(title, "", columns)
    for name, r in results.items():
        recalls = (r.image_to_text_r1, r.image_to_text_r5, r.image_to_text_r10)
        median, chance = f"{r.image_to_text_median_rank:g}", _percent(r.chance_image_to_text_r10)
        sizes = (str(r.n_images), str(r.n_texts))
        table.add_row(plain(name), "image -> text", *sizes, *map(_percent, recalls), median, chance)
        recalls = (r.text_to_image_r1, r.text_to_image_r5, r.text_to_image_r10)
        median, chance = f"{r.text_to_image_median_rank:g}", _percent(r.chance_text_to_image_r10)
        table.add_row("", "text -> image", *sizes[::-1], *map(_percent, recalls), median, chance)
    console.print(table)
    shared = max(r.shared_texts for r in results.values())
    if shared:
        console.print(
            plain(f"{shared} captions stand with more than one image; the other image's copy counts as wrong")
        )


def to_json(result: ZeroShotResult | RetrievalResult) -> dict[str, Any]:
    """The fields of the result as plain values; None where there is no figure."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(result)))
    return values


def _class_table(result: ZeroShotResult) -> Table:
    table = new_table("by class", "class", ("pictures", "recall %", "most often taken for"))
    for k, (name, recall) in enumerate(zip(result.classes, result.per_class_recall or (), strict=True)):
        row = (result.confusion or ())[k]
        wrong = [count if j != k else 0 for j, count in enumerate(row)]
        rival = f"{result.classes[wrong.index(max(wrong))]} ({max(wrong)})" if max(wrong) else ""
        table.add_row(plain(name), str(sum(row)), _percent(recall), plain(rival))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
