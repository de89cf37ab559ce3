"""What the commands show and write: tables on the terminal, JSON files that are whole."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniclip.common.printing import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# headings of columns of words, which stand left; figures stand right
_WORDS = {
    *("", "direction", "most often taken for", "unit", "how to read it", "image", "twin", "caption", "files", "of"),
    *("from", "when", "command", "versions", "model", "task", "data", "split", "fingerprint", "figure", "what it is"),
}


def open_console() -> Console:
    """Rich's console for the terminal, or a wide one for a log file."""
    from rich.console import Console

    console = Console(highlight=False)
    # Without a terminal rich assumes 80 columns and would break the rows of a log file.
    return console if console.is_terminal else Console(highlight=False, width=160)


def new_table(title: str, columns: Sequence[str]) -> Table:
    """An empty one; columns of words, of which the first is one, stand left, those of figures right."""
    from rich import box
    from rich.table import Table

    table = Table(title=plain(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for k, name in enumerate(columns):
        words = k == 0 or is_words(name)
        table.add_column(name, justify="left" if words else "right", overflow="fold" if words else "ellipsis")
    return table


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
    """Write values; path holds either what it held before or all of it. Raises ValueError for NaN or infinity."""
    path = Path(path)
    text = json.dumps(values, indent=indent, allow_nan=False) + "\n"
    if path.exists() and not path.is_file():  # /dev/stdout, a pipe: written to, not replaced
        path.write_text(text, encoding="utf-8")
        return
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes the file private; a result is as readable as any file the user writes.
        umask = os.umask(0)
        os.umask(umask)
        Path(part).chmod(0o666 & ~umask)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read_standing(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; empty if there is no file, and {"time": None} if it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) and values else {"time": None}
