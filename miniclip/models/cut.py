"""A tower in two parts: what runs once, because nothing in it learns, and what runs in each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from torch import Tensor, nn

WHOLE = -1  # in place of the number of a block: behind all of them


class Cut(NamedTuple):
    """Where the towers' inputs are features: k of Tower.upper for each tower, or None for images and token ids."""

    image: int | None = None
    text: int | None = None


class Tower(nn.Module):
    """A stack of blocks that can be cut before any of them: upper(lower(x, k), k) is forward(x) for each k.

    blocks: in their order; empty where they are not known, and then k is WHOLE. still: modules that are in evaluation
    mode at all times: what is locked counts no statistics and drops nothing.
    """

    still: Sequence[nn.Module] = ()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.still:
            module.training = False
        return self

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return []

    def lower(self, x: Tensor, k: int) -> Tensor:
        """What goes into block k, or, with WHOLE, what comes out of the tower."""
        raise NotImplementedError

    def upper(self, x: Tensor, k: int) -> Tensor:
        """The tower's output from what lower gave."""
        raise NotImplementedError
