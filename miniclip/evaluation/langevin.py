"""Langevin dynamics: noise and a slope turn any start into samples of exp(-E / temperature).

    x <- x - step / (2 temperature) M dE/dx + noise sqrt(step) A w,    M = A A',  w standard normal

With noise = 1 and small steps its stationary distribution is exp(-E / temperature) (Welling & Teh, 2011, who
also show that a slope with noise of its own, here of random views, will do). Another factor is noise² times the step at
noise² times the temperature, and 0 is gradient descent; to choose step and noise apart is usual for deep networks
(Du & Mordatch, arXiv:1903.08689; JEM, arXiv:1912.03263), whose chains are far too short to become stationary.

A constant symmetric positive definite M changes the speed of each direction but not what is sampled; here it couples
neighbouring pixels, so that broad structure moves first. Axes: B chains, S side of the square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Told = TypeVar("Told")
# (B, 3, S, S) in [0, 1] -> gradient of the energy of each, of the same shape, and anything to be passed on
Slope = Callable[[Tensor], tuple[Tensor, Told]]


@dataclass(frozen=True)
class Chain:
    """steps: how many. step: variance of the noise that one step adds to a pixel, of values in [0, 1]. noise: factor on
    its deviation. temperature: of E / temperature. smooth: deviation in pixels of the Gaussian kernel in A; 0 is M = 1.
    """

    steps: int = 250
    step: float = 2e-6
    noise: float = 1.0
    temperature: float = 1e-4
    smooth: float = 2.0


def langevin(
    slope: Slope[Told], start: Tensor, chain: Chain, draw: Callable[[], Tensor]
) -> Iterator[tuple[Tensor, Told]]:
    """The chains at 0, 1, ... steps: (B, 3, S, S), and what the slope tells of them.

    start: (B, 3, S, S), which stays as it is. draw: standard normal numbers of that shape, for every step. Pixels are
    clipped to [0, 1] after every step (projected Langevin, arXiv:1507.02564).
    """
    root = kernel(start.shape[-1], chain.smooth).to(start)
    x = start
    for _ in range(chain.steps):
        gradient, told = slope(x)
        yield x, told
        drift = chain.step / (2 * chain.temperature) * _both_ways(root @ root.T, gradient)
        x = (x - drift + chain.noise * chain.step**0.5 * _both_ways(root, draw())).clamp(0, 1)
    yield x, slope(x)[1]


def kernel(side: int, smooth: float) -> Tensor:
    """A along one axis, (S, S); an image is multiplied by it along both. A Gaussian around each pixel, of unit norm, so
    that smooth noise keeps the variance of each pixel."""
    if not smooth:
        return torch.eye(side)
    at = torch.arange(side) / smooth
    bells = torch.exp(-((at[:, None] - at) ** 2) / 2)
    return bells / bells.norm(dim=1, keepdim=True)


def _both_ways(along: Tensor, images: Tensor) -> Tensor:
    return along @ images @ along.T
