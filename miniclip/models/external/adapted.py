"""What the models of other libraries share in the form that evaluation takes.

What is loaded may come from anybody, so it runs no code. Axes: B batch, L tokens, S side of the image, E embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class AdaptedConfig:
    """What evaluation asks of a model. zero_padded: rows of ids end in zeros after CLIP's end token."""

    name: str
    image_size: int
    embed_dim: int
    context_length: int
    zero_padded: bool = False


class AdaptedModel(nn.Module):
    """Another library's model with the meaning of miniclip's: features as the towers give them, before unit length.

    logit_scale: 0-dim, the natural logarithm of the factor on the cosines. logit_bias: 0-dim, or None.
    """

    def __init__(self, model: nn.Module, config: AdaptedConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.config = config
        for name in ("logit_scale", "logit_bias"):  # SigLIP's have the shape (1,), and open_clip has an option for it
            value = getattr(model, name, None)
            setattr(model, name, None if value is None else nn.Parameter(value.detach().reshape(())))

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return self.model.logit_bias

    def encode_image(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S) float, normalised. Returns (B, E)."""
        raise NotImplementedError

    def encode_text(self, text: Tensor) -> Tensor:
        """text: (B, L) rows of the model's own tokenizer. Returns (B, E)."""
        raise NotImplementedError


def square_side(name: str, size: int | Sequence[int]) -> int:
    """S of what a config says. Raises ValueError if images are not square."""
    sides = [size] if isinstance(size, int) else list(size)
    if len(set(sides)) != 1:
        raise ValueError(f"{name} takes images of {sides} pixels; only square ones can be evaluated")
    return int(sides[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged meanwhile: errors are logged before they are raised, each retry of a download too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
