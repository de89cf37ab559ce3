"""What the commands show and write: tables on the terminal, JSON files that are whole."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.common.durable import whole_file
from miniclip.common.printing import printable

if TYPE_CHECKING:
    from rich.console import Console

# headings of columns of words, which stand left; figures stand right
_WORDS = {
    *("", "direction", "most often taken for", "unit", "how to read it", "image", "twin", "caption", "files", "of"),
    *("from", "when", "command", "versions", "model", "task", "data", "split", "fingerprint", "figure", "what it is"),
    *("variant", "chosen", "state", "do they part?"),
}

GAP = 2  # between columns
LONGEST = 32  # of a word that is not cut
# what is not broken: a word, and an interval
_UNIT = re.compile(r"(?:\[[^\]]{0,20}\]|\S)+")


def open_console() -> Console:
    """Rich's console for the terminal, or a wide one for a log file that no COLUMNS is given for."""
    from rich.console import Console

    console = Console(highlight=False)
    # Without a terminal rich assumes 80 columns and would break the rows of a log file.
    wide = not console.is_terminal and "COLUMNS" not in os.environ
    return Console(highlight=False, width=160) if wide else console


def show_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], style: str = "bold"
) -> None:
    """Words stand left, figures right. Cells break between words; columns that find no room follow in another table."""
    from rich import box
    from rich.table import Table

    lines = [[printable(cell) for cell in row] for row in rows]
    named = next((k for k, name in enumerate(columns) if k and not is_words(name)), 1)  # what the rows are called by
    words = [k == 0 or is_words(name) for k, name in enumerate(columns)]
    needs = [_need([name, *(line[k] for line in lines)], words[k]) for k, name in enumerate(columns)]
    labels = [max(low, min(whole, 24, console.width // 2 // named)) for low, whole in needs[:named]]
    if title:
        console.print("\n".join(_wrapped(printable(title), console.width)), style=style, markup=False)
    rest = list(range(named, len(columns)))
    while rest:
        room, shown = console.width - sum(labels) - GAP * named, list(range(named))
        while rest and (len(shown) == named or room >= needs[rest[0]][0]):
            room -= needs[rest[0]][0] + GAP
            shown.append(rest.pop(0))
        widths = {k: labels[k] if k < named else needs[k][0] for k in shown}
        left = console.width - sum(widths.values()) - GAP * (len(shown) - 1)
        for k in sorted(shown, key=lambda k: needs[k][1] - widths[k]):  # those that lack the least have it first
            more = max(0, min(left, needs[k][1] - widths[k]))
            widths[k], left = widths[k] + more, left - more
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.show_header = any(columns)
        for k in shown:
            side: Any = "left" if words[k] else "right"
            table.add_column(_cell(columns[k], widths[k]), justify=side, width=widths[k], no_wrap=True)
        for line in lines:
            table.add_row(*(_cell(line[k], widths[k]) for k in shown))
        console.print(table, "", sep="\n")


def _need(cells: Sequence[str], words: bool) -> tuple[int, int]:
    """Widths of a column: the least that breaks no word and reads well, and what keeps each cell on a line."""
    from rich.cells import cell_len

    pieces = (piece for cell in cells for unit in _UNIT.findall(cell) for piece in _pieces(unit, LONGEST))
    longest, whole = max(map(cell_len, pieces), default=0), max(map(cell_len, cells))
    return max(longest, min(whole, 16 * words)), whole


def _cell(text: str, width: int) -> Any:
    from rich.text import Text

    return Text("\n".join(_wrapped(text, width)))


def _wrapped(text: str, width: int) -> list[str]:
    from rich.cells import cell_len

    lines = [""]
    for unit in _UNIT.findall(text):
        gap = " " * bool(lines[-1])
        for piece in _pieces(unit, width):
            if lines[-1] and cell_len(lines[-1] + gap + piece) > width:
                lines.append(piece)
            else:
                lines[-1] += gap + piece
            gap = ""
    return lines


def _pieces(unit: str, width: int) -> list[str]:
    """A word; of one that is too long, such as a path, its parts; what is still too long is cut with an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    parts = [unit]
    for marks in ("/:", "_.-"):
        parts = [
            piece
            for part in parts
            for piece in ([part] if cell_len(part) <= width else re.findall(f"[^{marks}]*[{marks}]+|[^{marks}]+", part))
        ]
    return [part if cell_len(part) <= width else set_cell_size(part, width - 1) + "…" for part in parts]


def show_files(console: Console, title: str, folder: Path) -> None:
    """Every file in a folder, with its size."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [(str(path.relative_to(folder)), f"{path.stat().st_size / 1e6:,.2f}") for path in files]
    show_table(console, title, ("file", "MB"), sizes)


def is_words(column: str) -> bool:
    """Whether a column with that heading holds words rather than figures."""
    return column in _WORDS


def plain(text: str) -> Any:
    """Text that rich shows as it is: names come from data, [red] in one is no markup, and no escape passes."""
    from rich.text import Text

    return Text(printable(text))


def json_safe(value: Any) -> Any:
    """Plain values that JSON takes; None where a number is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_safe(v) for v in value]
    return value


def write_json(path: str | Path, values: Any, indent: int | None = 2) -> None:
    """Write values; as whole_file does. Raises DiskFull, and ValueError for NaN or infinity."""
    text = json.dumps(values, indent=indent, allow_nan=False) + "\n"
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
