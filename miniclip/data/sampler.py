"""Which images make up a step: permutations of an epoch, weighted draws, shares of several sources.

All derives from (seed, epoch): a run that is resumed, or repeated with other processes, sees the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from miniclip.losses.matrix import shares

# one presentation of one image: (epoch, row), and its place in the epoch where a row may come several times
Draw = tuple[int, ...]


@dataclass(frozen=True)
class TrainSampler:
    """This process's share of every global batch, epoch after epoch, from first_step until steps.

    Each epoch is a new permutation of the rows; what is left over after the last whole batch is dropped. With
    draw_weights (rows,), an epoch is as many independent draws instead, each row as likely as its weight. With mixing,
    the rows are those of several sources, sizes[i] of the i-th, which gives the share mixing[i] of every batch.
    """

    rows: int
    batch_size: int
    seed: int
    steps: int
    first_step: int = 0
    rank: int = 0
    world: int = 1
    draw_weights: Tensor | None = None
    sizes: Sequence[int] = ()
    mixing: Sequence[float] = ()

    def __post_init__(self) -> None:
        rows, weights, sizes = self.rows, self.draw_weights, self.sizes
        if rows < self.batch_size:
            advice = f"use a batch of at most {rows}, or more data" if rows > 1 else "it needs at least 2"
            usable = f"the training split has {rows} usable images"
            raise ValueError(f"{usable}, data.batch_size is {self.batch_size}; {advice}")
        if weights is not None and (len(weights) != rows or not float(weights.sum()) > 0):
            raise ValueError(f"draw_weights must be {rows} numbers, and not all of them 0")
        if self.mixing and (len(sizes) != len(self.mixing) or sum(sizes) != rows or min(sizes) < 1):
            raise ValueError("mixing takes one size of at least 1 for each share, which add up to rows")

    @property
    def per_epoch(self) -> int:
        return self.rows // self.batch_size

    def __iter__(self) -> Iterator[list[Draw]]:
        counts = shares(self.batch_size, self.world)
        start = sum(counts[: self.rank])
        for batch in self._mixed() if self.mixing else self._whole():
            yield batch[start : start + counts[self.rank]]

    def _whole(self) -> Iterator[list[Draw]]:
        order = self._epochs(self.rows)
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.per_epoch)
            start = position * self.batch_size
            rows = order(epoch)[start : start + self.batch_size].tolist()
            once = self.draw_weights is None
            yield [(epoch, row) if once else (epoch, row, start + i) for i, row in enumerate(rows)]

    def _mixed(self) -> Iterator[list[Draw]]:
        firsts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        orders = [self._epochs(size, i) for i, size in enumerate(self.sizes)]
        for step in range(self.first_step, self.steps):
            batch: list[Draw] = []
            starts, stops = (apportion(s * self.batch_size, self.mixing) for s in (step, step + 1))
            for first, size, order, start, stop in zip(firsts, self.sizes, orders, starts, stops, strict=True):
                places = (divmod(place, size) for place in range(start, stop))
                batch += [(epoch, first + int(order(epoch)[position])) for epoch, position in places]
            # else the last process would have the last source alone
            shuffled = torch.randperm(len(batch), generator=self._generator(step, len(self.sizes)))
            yield [batch[i] for i in shuffled.tolist()]

    def _epochs(self, rows: int, *source: int) -> Callable[[int], Tensor]:
        """Epoch -> its rows in their order; the last one is kept."""

        def order(epoch: int) -> Tensor:
            generator = self._generator(epoch, *source)
            if self.draw_weights is None:
                return torch.randperm(rows, generator=generator)
            # not torch.multinomial, which takes no more than 2^24 rows
            cumulative = self.draw_weights.double().cumsum(0)
            draws = torch.rand(rows, generator=generator, dtype=torch.float64) * cumulative[-1]
            return torch.searchsorted(cumulative, draws, right=True)

        return lru_cache(1)(order)

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator().manual_seed(mix(self.seed, *numbers))


def apportion(total: int, mixing: Sequence[float]) -> list[int]:
    """Whole numbers that add up to total, in the proportions of mixing; none falls when total grows.

    Each in turn gets its share of what those before it have left, rounded to the nearest: at most (n - 1)/2 off for n.
    """
    exact = [Fraction(str(share)) for share in mixing]
    weight, counts = sum(exact, Fraction(0)), list[int]()
    for share in exact[:-1]:
        counts.append(int(total * share / weight + Fraction(1, 2)))
        total, weight = total - counts[-1], weight - share
    return [*counts, total]


def mix(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers."""
    return (number_of(b",".join(str(number).encode() for number in numbers)) >> 1) & (2**63 - 1)


def number_of(data: bytes) -> int:
    """A number in [-2^63, 2^63) that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)
