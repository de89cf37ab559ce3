"""An Inspection as plain values: matrix.json for machines, and what the page is given."""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from miniclip.common.console import json_safe, write_json
from miniclip.inspection.contents import Inspection

WHOLE = 256  # pairs up to which the JSON holds the matrices of all losses; of more, they would be hundreds of megabytes


def write_numbers(inspection: Inspection, path: Path) -> None:
    """Write the JSON; `whole` says whether it holds the N x N matrices, whose float64 values it gives in full.

    A matrix is a list of rows, one an image. A loss was handed scale * cosine + bias, and gradient is d value / d entry
    of that.
    """
    whole = len(inspection.captions) <= WHOLE
    values = numbers(inspection, 2 if whole else 1)
    values |= {"whole": whole, "figures": {figure.name: figure.value for figure in inspection.figures}}
    if whole:
        logits = inspection.logit_scale * inspection.cosine + (inspection.logit_bias or 0.0)
        values |= {"row_probability": _plain(logits.softmax(1), 2), "column_probability": _plain(logits.softmax(0), 2)}
    if inspection.history:
        del values["history"]["training"]
    write_json(path, values, indent=None)


def numbers(inspection: Inspection, axes: int = 1) -> dict[str, Any]:
    """All of it but the thumbnails, ready for JSON: null where a number is not finite. axes: of the largest tensors."""
    found = dict(vars(inspection))
    del found["thumbnails"]
    pairs = zip(found.pop("names"), found.pop("captions"), strict=True)
    plain: dict[str, Any] = _plain(found, axes)
    return plain | {"pairs": [{"name": name, "caption": caption} for name, caption in pairs]}


def _plain(value: Any, axes: int) -> Any:
    if isinstance(value, Tensor):
        return value.tolist() if bool(value.isfinite().all()) else json_safe(value.tolist())
    if is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):  # a NamedTuple
        value = value._asdict()
    if isinstance(value, dict):
        found = {k: v for k, v in value.items() if v is not None or k not in ("targets", "history")}
        return {k: _plain(v, axes) for k, v in found.items() if not (isinstance(v, Tensor) and v.ndim > axes)}
    return [_plain(each, axes) for each in value] if isinstance(value, list) else json_safe(value)
