"""An Inspection as JSON: every number of the page, for machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from miniclip.common.console import write_json
from miniclip.inspection.contents import Cell, Inspection, LossView

WHOLE = 256  # pairs up to which the JSON holds the matrices of all losses; of more, they would be hundreds of megabytes


def write_numbers(inspection: Inspection, path: Path) -> None:
    """Write the JSON; `whole` says whether it holds the N x N matrices, whose float64 values it gives in full.

    A matrix is a list of rows, one an image. A loss was handed scale * cosine + bias, and gradient is d value / d entry
    of that.
    """
    whole = len(inspection.captions) <= WHOLE
    curves = inspection.temperature
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
        "false_negatives": _cells(inspection.false_negatives),
        "suspected_false_negatives": inspection.suspects,
        "hardest_negatives": _cells(inspection.hardest_negatives),
        "worst_positives": _cells(inspection.worst_positives),
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
    if inspection.history is not None:
        history = inspection.history
        values["history"] = {
            "steps": history.steps,
            "captions": history.captions,
            "figures": {name: _list(curve) for name, curve in history.figures.items()},
        }
    write_json(path, values, indent=None)


def _loss(view: LossView, whole: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "trained": view.trained,
        "settings": view.settings,
        "scale": view.scale,
        "bias": view.bias,
        "value": view.value,
        "chance": view.chance,
        "unit": view.unit,
        "row_loss": _list(view.row_loss),
        "column_loss": _list(view.column_loss),
    }
    if whole:
        values["pair_loss"], values["gradient"] = _list(view.pair_loss), _list(view.gradient)
        if view.targets is not None:
            values["targets"] = _list(view.targets)
    return values


def _cells(cells: list[Cell]) -> list[dict[str, Any]]:
    return [cell._asdict() for cell in cells]


def _list(values: Tensor) -> Any:
    """Nested lists; null for what is not finite, which JSON cannot say."""
    if bool(values.isfinite().all()):
        return values.tolist()
    if values.ndim > 1:
        return [_list(row) for row in values]
    return [value if math.isfinite(value) else None for value in values.tolist()]
