"""Which pictures make up a step: permutations of an epoch, weighted draws, shares of several sources.

Everything derives from (seed, epoch), never from a worker's state: a run that is killed and resumed, or repeated with
another number of workers, sees the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor
from torch.utils.data import Sampler

from miniclip.losses.matrix import shares

# one presentation of one picture: (epoch, row), and its place in the epoch where a row may come several times
Draw = tuple[int, ...]


class TrainBatches(Sampler[list[Draw]]):
    """This process's share of every global batch, epoch after epoch, from any step on.

    Each epoch is a new permutation of the rows; what is left over after the last whole batch is dropped, since
    filling it up would repeat pairs, which are then false negatives of one another. With draw_weights (rows,), an epoch
    is as many independent draws instead, each row as likely as its weight. With mixing, the rows are those of several
    sources, sizes[i] of the i-th, which gives the share mixing[i] of every batch and has epochs of its own.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int,
        steps: int,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        draw_weights: Tensor | None = None,
        sizes: Sequence[int] = (),
        mixing: Sequence[float] = (),
    ) -> None:
        if rows < batch_size:
            advice = f"use a batch of at most {rows}, or more data" if rows > 1 else "it needs at least 2"
            raise ValueError(
                f"the training split has {rows} usable pictures, data.batch_size is {batch_size}; {advice}"
            )
        if batch_size < world:
            raise ValueError(f"data.batch_size={batch_size} leaves some of {world} processes without a pair; raise it")
        if draw_weights is not None and (len(draw_weights) != rows or not float(draw_weights.sum()) > 0):
            raise ValueError(f"draw_weights must be {rows} numbers, and not all of them 0")
        if mixing and (len(sizes) != len(mixing) or sum(sizes) != rows or min(sizes) < 1 or draw_weights is not None):
            raise ValueError("mixing takes one size of at least 1 for each share, which add up to rows, and no weights")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.steps, self.first_step, self.rank, self.world = steps, first_step, rank, world
        self.per_epoch = rows // batch_size
        self.draw_weights = draw_weights
        self.sizes, self.mixing = sizes, mixing

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[Draw]]:
        sizes = shares(self.batch_size, self.world)
        start = sum(sizes[: self.rank])
        for batch in self._mixed() if self.mixing else self._whole():
            yield batch[start : start + sizes[self.rank]]

    def _whole(self) -> Iterator[list[Draw]]:
        order, order_epoch = torch.empty(0, dtype=torch.long), -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, self.per_epoch)
            if epoch != order_epoch:
                generator = torch.Generator().manual_seed(mix(self.seed, epoch))
                order, order_epoch = self._order(generator), epoch
            start = position * self.batch_size
            rows = order[start : start + self.batch_size].tolist()
            if self.draw_weights is None:
                yield [(epoch, row) for row in rows]
            else:
                yield [(epoch, row, start + i) for i, row in enumerate(rows)]

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.draw_weights is None:
            return torch.randperm(self.rows, generator=generator)
        # not torch.multinomial, which takes no more than 2^24 rows
        cumulative = self.draw_weights.double().cumsum(0)
        draws = torch.rand(self.rows, generator=generator, dtype=torch.float64) * cumulative[-1]
        return torch.searchsorted(cumulative, draws, right=True)

    def _mixed(self) -> Iterator[list[Draw]]:
        firsts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        orders: list[tuple[int, Tensor]] = [(-1, torch.empty(0))] * len(self.sizes)
        for step in range(self.first_step, self.steps):
            batch: list[Draw] = []
            starts, stops = (apportion(s * self.batch_size, self.mixing) for s in (step, step + 1))
            for source, (start, stop) in enumerate(zip(starts, stops, strict=True)):
                for place in range(start, stop):
                    epoch, position = divmod(place, self.sizes[source])
                    if orders[source][0] != epoch:
                        generator = torch.Generator().manual_seed(mix(self.seed, epoch, source))
                        orders[source] = epoch, torch.randperm(self.sizes[source], generator=generator)
                    batch.append((epoch, firsts[source] + int(orders[source][1][position])))
            # else the last process would have the last source alone
            generator = torch.Generator().manual_seed(mix(self.seed, step, len(self.sizes)))
            yield [batch[i] for i in torch.randperm(len(batch), generator=generator).tolist()]


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
    """A seed from several numbers: equal only for equal numbers. In [0, 2^63)."""
    return (number_of(b",".join(str(number).encode() for number in numbers)) >> 1) & (2**63 - 1)


def number_of(data: bytes) -> int:
    """A number in [-2^63, 2^63) that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True)
