"""Low-rank updates of linear layers, which learn in place of their weights (LoRA, arXiv:2106.09685), through `peft`.

A weight W with the update B A of rank r acts as W + 2 B A; B starts at zero. What leaves a training has the sum alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec

from torch import Tensor, nn

from miniclip.models.transformer import Attention

SCALING = 2
_WRAPPED, _A, _B = ".base_layer", ".lora_A.default.weight", ".lora_B.default.weight"  # peft's names
_FUSED = "in_proj_weight"  # of queries, keys and values: a parameter of the attention itself


def available() -> bool:
    return find_spec("peft") is not None


def adaptable(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Names of the weights among named modules that can have an update: of linear layers, and of attentions."""
    found = []
    for name, module in modules:
        if isinstance(module, nn.Linear):
            found.append(name)
        elif isinstance(module, Attention):
            found.append(f"{name}.{_FUSED}")
    return found


def chosen(names: Iterable[str], targets: Iterable[str] | None) -> list[str]:
    """Those that end in one of the targets; all without targets."""
    ends = None if targets is None else tuple(f".{target}" for target in targets)
    return [name for name in names if ends is None or f".{name}".endswith(ends)]


def adapt_(model: nn.Module, names: list[str], rank: int) -> None:
    """Let updates of a rank learn, and nothing else; fresh values are drawn from torch's generator.

    names: what adaptable gave of model's own modules.
    """
    from peft import LoraConfig, inject_adapter_in_model

    fused = [name for name in names if name.endswith(_FUSED)]
    linear = "|".join(re.escape(name) for name in names if name not in fused)
    options = LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=linear or [], target_parameters=fused)
    inject_adapter_in_model(options, model)


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights without updates, each update added to its weight; what has none comes back as it is."""
    if not any(name.endswith(_A) for name in state):
        return state
    found = {name.replace(_WRAPPED, ""): value for name, value in state.items() if not name.endswith((_A, _B))}
    for name, a in state.items():
        if name.endswith(_A):
            owner, b = name.removesuffix(_A), state[name.removesuffix(_A) + _B]
            plain = owner.replace(_WRAPPED, "")
            at = next(weight for weight in (f"{plain}.weight", f"{plain}.{_FUSED}") if weight in found)
            found[at] = found[at] + SCALING * (b @ a)
    return found
