"""Muon for the matrices inside the towers, AdamW for the rest, in one optimiser.

Muon (Keller Jordan, https://kellerjordan.github.io/posts/muon/) moves a matrix by its momentum with all singular values
brought near 1: no direction is faster than another. arXiv:2502.16982, section 2.2, gives that update the size of
AdamW's, so that a rate and a decay mean the same for both.

torch.optim.Muon is the same arithmetic one matrix at a time, for parameters of two axes alone, and always in bfloat16,
which a CPU without such instructions emulates many times slower. This one multiplies in what the towers do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM, ROUNDS, EPS = 0.95, 5, 1e-7
# steepest at zero; the singular values end between 0.7 and 1.2 rather than at 1
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.AdamW):
    """AdamW but for groups with `matrices` above 0, the number of matrices that stand on each other in a parameter:
    its first axis holds so many outputs in turn, as of q, k and v; all other axes are the input, as of a convolution.

    half: multiply in bfloat16, as torch's does, rather than in float32.
    """

    def __init__(self, groups: list[dict[str, Any]], half: bool = False, **options: Any) -> None:
        super().__init__(groups, **options)
        self.half, self.defaults["matrices"] = half, 0
        # AdamW's kernel skips a step that overflows in fp16; here GradScaler has to leave out the call
        self._step_supports_amp_scaling = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            if group["matrices"]:
                self._move([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:
        return not group["matrices"] and super()._init_group(group, *lists)

    @torch.no_grad()
    def _move(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state |= {"step": torch.zeros((), device=parameter.device), "exp_avg": torch.zeros_like(parameter)}
            state["step"] += 1
            ahead = gradient.lerp(state["exp_avg"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)  # Nesterov
            stack = ahead.unflatten(0, (group["matrices"], -1)).flatten(2)  # (k o) i ... -> k o (i ...)
            stacks.setdefault(stack.shape, []).append((parameter, stack))
        for (_, out, into), members in stacks.items():
            updates = orthogonal(torch.cat([stack for _, stack in members]), self.half).split(group["matrices"])
            for (parameter, _), update in zip(members, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                # entries of a mean square of 1 / max(out, into) become those of 0.2 squared
                parameter.add_(update.reshape(parameter.shape), alpha=-0.2 * math.sqrt(max(out, into)) * group["lr"])


def orthogonal(stack: Tensor, half: bool = False) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, nearly, by Newton and Schulz's iteration.

    stack: (K, m, n). Returns the same shape: U S V^T becomes U S' V^T with S' between 0.7 and 1.2 for all but the
    smallest of S. half: multiply in bfloat16 rather than in float32.
    """
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)
    x = iterated(x.bfloat16()) if half else iterated_on_gram(x.float())
    return (x.mT if tall else x).to(stack.dtype)


def iterated(x: Tensor) -> Tensor:
    """x: (K, m, n), m <= n -> ROUNDS times A x + B (x x^T) x + C (x x^T)^2 x."""
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def iterated_on_gram(x: Tensor) -> Tensor:
    """The same with most products of (m, m): a third of the work at n = 9 m, half at n = 4 m, an eighth more at n = m.

    Every round is x -> P x with P = A + B G + C G^2 and G = x x^T, after which G is P G P: all of them commute. The
    errors of G grow by A^2 a round: nothing in float32, too much in bfloat16.
    """
    gram, whole = x @ x.mT, None
    for left in reversed(range(ROUNDS)):
        factor = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        factor.diagonal(dim1=1, dim2=2).add_(A)
        whole = factor if whole is None else factor @ whole
        gram = factor @ gram @ factor if left else gram
    assert whole is not None
    return whole @ x
