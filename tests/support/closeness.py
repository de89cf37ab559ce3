"""How far two trainings are apart."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def error(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Norm of the difference over the norm."""
    a, b = (torch.cat([t.flatten() for t in side]) for side in (ours, theirs))
    return 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm())


def by_parameter(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Errors of every parameter; of the attention's, of queries, keys and values apart.

    The keys' biases are left out: they change no attention, so that their gradient is rounding, of which AdamW makes
    steps.
    """
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == tensor.shape for name, tensor in theirs.items())
    a, b = _parts(ours), _parts(theirs)
    return {name: error([a[name]], [b[name]]) for name in a if not name.endswith("in_proj_bias k")}


def _parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = dict(tensors)
    for name in [name for name in tensors if "in_proj" in name]:
        parts |= {f"{name} {part}": t for part, t in zip("qkv", parts.pop(name).chunk(3), strict=True)}
    return parts
