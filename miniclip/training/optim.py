"""AdamW without decay where it does harm, or Muon, and the learning rate of a step."""

from __future__ import annotations

import math
from functools import partial

import torch

from miniclip.config import OptimConfig
from miniclip.models import DualEncoder
from miniclip.training.learning import parameter_groups, regrouped
from miniclip.training.muon import Muon


def build_optimizer(model: DualEncoder, config: OptimConfig, half: bool = False) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101), one fused kernel over all parameters, or Muon. half: whether Muon computes in bf16."""
    kind = partial(Muon, half=half) if config.name == "muon" else torch.optim.AdamW
    optimizer = kind(parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    optimizer.register_load_state_dict_pre_hook(regrouped)
    return optimizer


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
