"""Optimal transport between the images and the texts of a batch, with entropic regularisation (Sinkhorn).

The cost of moving image i to text j is 1 - cos(i, j), the regularisation 1/scale; since exp(-cost / regularisation) is
exp(logit) up to a factor that the marginals take out, the plan is a function of the logits alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Log of the plan that moves mass 1/N from each row to 1/M in each column (Cuturi, arXiv:1306.0895, algorithm 1).

    logits: (N, M) float, scale * cosine; any constant added to a row or a column changes nothing. An iteration projects
    the columns, then the rows; 0 iterations project the rows once, which is the softmax of each row over N.
    Returns (N, M): the rows' masses are 1/N, the columns' tend to 1/M. Differentiable through all iterations, whose
    copies of the matrix are made again for the gradient rather than kept.
    """
    n, m = logits.shape
    if iterations < 0:
        raise ValueError(f"iterations={iterations} must be 0 or more")
    columns = logits.new_zeros(1, m)
    rows = logits.new_zeros(n, 1)
    for iteration in range(iterations):
        if iteration:
            rows = -math.log(n) - _log_masses(logits, columns, 1)
        columns = -math.log(m) - _log_masses(logits, rows, 0)
    # the last projection in one step, which rounds less
    return (logits + columns).log_softmax(1) - math.log(n)


def _log_masses(logits: Tensor, others: Tensor, axis: int) -> Tensor:
    """Log of the sums along an axis of exp(logits + others), computed again for the gradient: a copy is large."""

    def masses(logits: Tensor, others: Tensor) -> Tensor:
        return (logits + others).logsumexp(axis, keepdim=True)

    return checkpoint(masses, logits, others, use_reentrant=False, preserve_rng_state=False)


def wasserstein(cosine: Tensor, scale: float | Tensor, iterations: int = 100) -> Tensor:
    """Entropic Wasserstein distance between the images and the texts: what the plan pays, sum of P * (1 - cosine).

    cosine: (N, M) float. scale: > 0, the inverse of the regularisation; the larger, the nearer to the exact (earth
    mover's) distance, and the more iterations it needs. Returns a scalar in [0, 2].
    """
    plan = sinkhorn(scale * cosine, iterations).exp()
    return torch.sum(plan * (1 - cosine))
