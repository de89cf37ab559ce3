"""An Inspection as plain values: matrix.json for machines, and what the page is given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from miniclip.common.console import write_json
from miniclip.inspection.contents import Inspection, LossView

WHOLE = 256  # pairs up to which the JSON holds the matrices of all losses; of more, they would be hundreds of megabytes


def write_numbers(inspection: Inspection, path: Path) -> None:
    """Write the JSON; `whole` says whether it holds the N x N matrices, whose float64 values it gives in full.

    A matrix is a list of rows, one an image. A loss was handed scale * cosine + bias, and gradient is d value / d entry
    of that.
    """
    write_json(path, numbers(inspection, len(inspection.captions) <= WHOLE), indent=None)


def numbers(inspection: Inspection, whole: bool) -> dict[str, Any]:
    """All of it but the thumbnails, ready for JSON. whole: with the N x N matrices."""
    curves = inspection.temperature
    lists = ("false_negatives", "hardest_negatives", "worst_positives")
    values: dict[str, Any] = {
        "title": inspection.title,
        "about": inspection.about,
        "pairs": [
            {"name": name, "caption": caption}
            for name, caption in zip(inspection.names, inspection.captions, strict=True)
        ],
        "logit_scale": inspection.scale,
        "logit_bias": inspection.bias,
        "loss": inspection.loss,
        "figures": {figure.name: figure.value for figure in inspection.figures},
        "verdicts": [verdict._asdict() for verdict in inspection.verdicts],
        **{name: [cell._asdict() for cell in getattr(inspection, name)] for name in lists},
        "suspected_false_negatives": inspection.suspects,
        "free_energy_of_images": _list(inspection.free_energy[0]),
        "free_energy_of_texts": _list(inspection.free_energy[1]),
        "orders": inspection.orders,
        "temperature": {
            "scales": _list(curves.scales),
            "learned": curves.learned,
            "best": curves.best,
            "loss": {name: _list(curve) for name, curve in curves.loss.items()},
            "entropy_of_rows": _list(curves.entropy_rows),
            "entropy_of_columns": _list(curves.entropy_columns),
            "effective_negatives_of_rows": _list(curves.negatives_rows),
            "effective_negatives_of_columns": _list(curves.negatives_columns),
        },
        "whole": whole,
        "losses": {name: _loss(view, whole) for name, view in inspection.losses.items()},
    }
    if whole:
        values["cosine"] = _list(inspection.cosine)
        values["positives"] = inspection.positives.tolist()
        values["row_probability"] = _list(inspection.logits.softmax(1))
        values["column_probability"] = _list(inspection.logits.softmax(0))
    if (history := inspection.history) is not None:
        figures = {name: _list(curve) for name, curve in history.figures.items()}
        values["history"] = {"steps": history.steps, "captions": history.captions, "figures": figures}
    return values


def _loss(view: LossView, whole: bool) -> dict[str, Any]:
    plain = ("trained", "settings", "scale", "bias", "unit")
    tensors = ["row_loss", "column_loss", *(["pair_loss", "gradient"] if whole else [])]
    if whole and view.targets is not None:
        tensors.append("targets")
    values = {name: getattr(view, name) for name in plain} | {name: _list(getattr(view, name)) for name in tensors}
    return values | {"value": finite(view.value), "chance": finite(view.chance)}


def _list(values: Tensor) -> Any:
    """Nested lists; null for what is not finite, which JSON cannot say."""
    if bool(values.isfinite().all()):
        return values.tolist()
    return [_list(row) if values.ndim > 1 else finite(float(row)) for row in values]


def finite(value: float | None) -> float | None:
    """The number, or None where it is not finite."""
    return value if value is not None and math.isfinite(value) else None
