"""AdamW without decay where it does harm, and the learning rate of a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from miniclip.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with decay; norms, biases, class and position embeddings and the scale without.

    A parameter of fewer than two axes is a norm, a bias, a class token or the scale (CLIP, section 2.5, decays "all
    weights that are not gains or biases"); the position tables are matrices only in shape.
    """
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and not name.endswith("positional_embedding")
        (decay if is_matrix else plain).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101), one fused kernel over all parameters."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ..., total - 1: a linear warm-up, then the schedule down to final_lr * lr.

    Step warmup_steps - 1 is the first at full rate; without a warm-up that is step 0.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps))
    if config.schedule == "exponential":
        return config.lr * config.final_lr**progress
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2)
