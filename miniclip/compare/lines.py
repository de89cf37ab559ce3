"""What a run wrote down on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are whole, in their order; none without the file."""
    file, found = folder / "metrics.jsonl", []
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # of a run that was cut off
            continue
    return [values for values in found if isinstance(values, dict)]
