"""What the models of other libraries share in the form that evaluation takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

from torch import nn

ModelConfig = TypeVar("ModelConfig")


class AdaptedModel(nn.Module, Generic[ModelConfig]):
    """Another library's model, and what evaluation asks of it; its scale and bias are 0-dim, as miniclip's are."""

    def __init__(self, model: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.config = config
        for name in ("logit_scale", "logit_bias"):  # SigLIP's have the shape (1,), and open_clip has an option for it
            value = getattr(model, name, None)
            setattr(model, name, None if value is None else nn.Parameter(value.detach().reshape(())))

    @property
    def logit_scale(self) -> nn.Parameter:
        """0-dim: natural logarithm of the factor on the cosines."""
        return cast(nn.Parameter, self.model.logit_scale)

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """0-dim, or None for a model without one."""
        return cast("nn.Parameter | None", self.model.logit_bias)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged meanwhile."""
    # Errors are logged before they are raised, each retry of a download too; what is raised says enough.
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
