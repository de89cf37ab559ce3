"""Where BatchNorm's running statistics may not move, and where nothing is random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics still, its output unchanged: a batch that runs twice must not count twice.

    Momentum 0, rather than track_running_stats=False, because checkpointing wants the same tensors saved as before.
    """
    norms = [(m, m.momentum, m.num_batches_tracked) for m in block.modules() if isinstance(m, _BatchNorm)]
    for norm, _, count in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = count if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum = momentum
            norm.num_batches_tracked = count


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
