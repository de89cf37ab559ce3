"""What of a model learns, and at which share of the learning rate: locked towers, and the optimiser's groups.

A tower is its stem, its blocks and what follows them. What the stem is, no name says in every library: it is what the
input of the first block is computed from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from miniclip.config import Config, ConfigError, ModelConfig, OptimConfig
from miniclip.models import DualEncoder
from miniclip.models.batchnorm import evaluating
from miniclip.models.cut import WHOLE, Cut, Tower
from miniclip.models.lora import adapt_, adaptable, available, chosen
from miniclip.models.start import Start
from miniclip.training.diagnostics import tower_of
from miniclip.training.dropout import check_dropped

KINDS = ("image", "text")
_HEADS = ("image_head.", "text_head.")
# the towers of this project hold what joins them themselves
_PROJECTIONS = ("visual.proj", "visual.attnpool.c_proj.", "text_projection", "textual.text_projection")
# matrices in shape alone, by what the libraries call them
_POSITIONS = ("positional_embedding", "position_embedding", "pos_embed", "relative_attention_bias")
_SPECIAL = ("cls_token", "reg_token", "dist_token")
# queries, keys and values in one parameter, as torch and timm call it
_FUSED = ("in_proj_weight", "qkv.weight")


def part_of(parameter: str) -> str:
    """Of a DualEncoder's parameter of this name: image, text, heads (what joins the towers) or scale (and bias)."""
    if parameter.startswith((*_HEADS, *_PROJECTIONS)):
        return "heads"
    return tower_of(parameter) or "scale"


def locked_cut(model: DualEncoder, config: ModelConfig) -> Cut:
    """Where the locked part of each tower ends: k of Tower.lower, WHOLE, or None for a tower that is not locked.

    Raises ConfigError for more blocks than the tower has.
    """
    return Cut(*(_cut(_tower(model, kind), kind, getattr(config, f"lock_{kind}")) for kind in KINDS))


def _cut(tower: Tower, kind: str, lock: bool | int) -> int | None:
    if lock is True:
        return WHOLE
    if not lock:
        return None
    blocks, asked = len(tower.blocks), f"model.lock_{kind}={lock}"
    if not blocks:
        raise ConfigError(f"{asked}: the blocks of this {kind} tower are not known; use true or false")
    if lock >= blocks:
        fewer = f"use at most {blocks - 1}, or " if blocks > 1 else "use true, or "
        raise ConfigError(f"{asked}: the {kind} tower has {blocks} blocks; {fewer}false, which lets all of it learn")
    return blocks - int(lock)


def check_learning(config: Config, start: Start) -> None:
    """Raise ConfigError for what of a model cannot be locked or slowed down as config asks; no data are needed."""
    asked, drop = config.model, config.train.patch_dropout
    if drop and asked.lock_image:
        still = f"leaves out patches in what model.lock_image={asked.lock_image} keeps as it is"
        raise ConfigError(f"train.patch_dropout={drop} {still}; set one of them to 0")
    ranks = asked.lora_image, asked.lora_text
    if any(ranks) and not available():
        raise ConfigError("model.lora_image and lora_text need peft: pip install 'miniclip[lora]'")
    if asked.lora_targets is not None and not any(ranks):
        raise ConfigError("model.lora_targets is for model.lora_image and lora_text; set a rank, or leave it out")
    muon, dropped = config.optim.name == "muon", config.train.dropped
    if not (asked.lock_image or asked.lock_text or any(ranks) or config.optim.layer_decay < 1 or muon or dropped):
        return
    with torch.device("meta"):
        model = start.make()
    cut = locked_cut(model, asked)
    if cut == (WHOLE, WHOLE) and not any(name.startswith(_HEADS) for name, _ in model.named_parameters()):
        raise ConfigError("model.lock_image and model.lock_text leave nothing to learn but the scale; unlock one tower")
    for kind, k, rank in zip(KINDS, cut, ranks, strict=True):
        if rank:
            _adapt(model, kind, asked, None)
        if k != WHOLE and not _tower(model, kind).blocks:
            unknown = f"the blocks of the {kind} tower are not known"
            if config.optim.layer_decay < 1:
                raise ConfigError(f"optim.layer_decay={config.optim.layer_decay}: {unknown}; use optim.lr_{kind}")
            if muon:
                raise ConfigError(f"optim.name=muon is for the matrices of the blocks, and {unknown}; use adamw")
    check_dropped(config.train, {kind: _tower(model, kind) for kind, k in zip(KINDS, cut, strict=True) if k != WHOLE})


def lock_(model: DualEncoder, config: ModelConfig) -> None:
    """Keep as they are what config locks: parameters, statistics, and what is random in training mode.

    A tower with low-rank updates keeps its parameters and BatchNorm's statistics.
    """
    for kind, k in zip(KINDS, locked_cut(model, config), strict=True):
        rank, tower = getattr(config, f"lora_{kind}"), _tower(model, kind)
        if k is None and not rank:
            continue
        if k is None or k == WHOLE:
            parameters = [p for name, p in model.named_parameters() if _belongs(name, kind)]
            modules = [m for name, m in model.named_modules() if name and _belongs(f"{name}.", kind)]
        else:
            parameters, modules = _below(model, kind, k)
        used = _below(model, kind, WHOLE)[1] if rank else []
        for parameter in parameters:
            parameter.requires_grad_(False)
        if rank:
            modules = [module for module in modules if isinstance(module, _BatchNorm)]
            # a linear layer whose weight another module reads would learn nothing
            _adapt(model, kind, config, set(map(id, used)))
        tower.still = modules
        tower.train(tower.training)


def _adapt(model: DualEncoder, kind: str, config: ModelConfig, used: set[int] | None) -> None:
    """Give a tower its low-rank updates. used: ids of the modules that it calls; None only checks config."""
    root = model.visual if kind == "image" else model.transformer if _tower(model, kind) is model else model.text_tower
    blocks = {id(m) for block in _tower(model, kind).blocks for m in block.modules()}
    within = [(name, m) for name, m in root.named_modules() if not blocks or id(m) in blocks]
    known = adaptable((name, module) for name, module in within if used is None or id(module) in used)
    asked, names = f"model.lora_{kind}", chosen(known, config.lora_targets)
    if not known:
        raise ConfigError(f"{asked}: the blocks of the {kind} tower have no linear layers; lock it, or let it learn")
    if not names:
        ends = sorted({name.rpartition(".")[2] for name in known})
        none = f"model.lora_targets={config.lora_targets} names no layer of the {kind} tower"
        raise ConfigError(f"{none}; its linear layers are called {', '.join(ends)}")
    if used is not None:
        adapt_(root, names, getattr(config, asked.removeprefix("model.")))


def _tower(model: DualEncoder, kind: str) -> Tower:
    return model.image_tower if kind == "image" else model.text_tower


def _belongs(name: str, kind: str) -> bool:
    return tower_of(name) == kind and not name.startswith(_HEADS)


def _below(model: DualEncoder, kind: str, k: int) -> tuple[list[nn.Parameter], list[nn.Module]]:
    """What Tower.lower(x, k) computes with: the parameters that may learn, and the modules."""
    tower, side = _tower(model, kind), int(model.config.image_size or 0)
    device = next(tower.parameters()).device
    images = torch.zeros(1, 3, side, side, device=device)
    x = images if kind == "image" else torch.zeros(1, 1, dtype=torch.long, device=device)
    used: list[nn.Module] = []
    with evaluating(tower), ExitStack() as hooks, torch.enable_grad():
        for module in tower.modules():
            handle = module.register_forward_pre_hook(lambda module, _: used.append(module))
            hooks.callback(handle.remove)
        lower = tower.lower(x, k)
    return list(_leaves(lower)), used


def _leaves(output: Tensor) -> Iterator[nn.Parameter]:
    """The parameters that output has a gradient for."""
    todo: list[Any] = [output.grad_fn]
    seen: set[Any] = {None}
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [before for before, _ in node.next_functions]


def parameter_groups(model: DualEncoder, optim: OptimConfig) -> list[dict[str, Any]]:
    """Matrices with decay; norms, biases, class and position embeddings and the scale without: two groups of each rate.
    With Muon the matrices of the blocks have groups of their own.

    A parameter of fewer than two axes is a norm, a bias, a class token or the scale (CLIP, section 2.5, decays "all
    weights that are not gains or biases"); the position tables are matrices only in shape. factor: of a group's rate,
    to that of the schedule. matrices: in each parameter for Muon, 0 for AdamW. places: of its parameters among all that
    learn.
    """
    rates = {part: getattr(optim, f"lr_{part}", None) or optim.lr for part in (*KINDS, "heads", "scale")}
    depths = _depths(model) if optim.layer_decay < 1 else {}
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    inner = _inner(model) if optim.name == "muon" else set[nn.Parameter]()
    found: dict[tuple[float, bool, int], list[int]] = {(1.0, True, 0): [], (1.0, False, 0): []}
    for place, (name, parameter) in enumerate(named):
        is_matrix = parameter.ndim >= 2 and not any(word in name for word in (*_POSITIONS, *_SPECIAL))
        factor = rates[part_of(name)] / optim.lr * optim.layer_decay ** depths.get(parameter, 0)
        matrices = (3 if name.endswith(_FUSED) else 1) if is_matrix and parameter in inner else 0
        found.setdefault((factor, is_matrix, matrices), []).append(place)
    return [
        {
            "params": [named[place][1] for place in places],
            "weight_decay": optim.weight_decay if is_matrix else 0.0,
            "factor": factor,
            "matrices": matrices,
            "places": places,
        }
        for (factor, is_matrix, matrices), places in found.items()
        if places
    ]


def _inner(model: DualEncoder) -> set[nn.Parameter]:
    """The parameters of the towers' blocks."""
    return {p for kind in KINDS for block in _tower(model, kind).blocks for p in block.parameters()}


def what_learns(model: DualEncoder, groups: Iterable[dict[str, Any]], lr: float) -> list[tuple[str, ...]]:
    """Of each part its name, parameters, how many of them learn, their rates, and blocks that learn. groups: of the
    optimiser."""
    factors, rows = {p: group["factor"] for group in groups for p in group["params"]}, list[tuple[str, ...]]()
    for part in (*KINDS, "heads", "scale"):
        own = [p for name, p in model.named_parameters() if part_of(name) == part]
        learning = [p for p in own if p.requires_grad]
        rates = sorted({f"{lr * factors[p]:.2g}" for p in learning}, key=float)
        blocks = _tower(model, part).blocks if part in KINDS else []
        moving = sum(any(p.requires_grad for p in block.parameters()) for block in blocks)
        row = (
            f"{part} tower" if part in KINDS else part,
            *(f"{sum(p.numel() for p in each):,}" for each in (own, learning)),
        )
        rows.append((*row, " to ".join(rates[:: len(rates) - 1 or 1]), f"{moving} of {len(blocks)}" if blocks else ""))
    return rows


def _depths(model: DualEncoder) -> dict[nn.Parameter, int]:
    """Steps from each parameter of a tower to what joins the towers, as timm counts them, too: 1 in the last block and
    in what follows it, one more for each block before, and for the stem."""
    found: dict[nn.Parameter, int] = {}
    for kind in KINDS:
        blocks = _tower(model, kind).blocks
        own = [p for name, p in model.named_parameters() if part_of(name) == kind and p.requires_grad]
        found |= dict.fromkeys(own, 1)
        found |= dict.fromkeys(_below(model, kind, 0)[0] if own else (), len(blocks) + 1)
        found |= {p: len(blocks) - i for i, block in enumerate(blocks) for p in block.parameters()}
    return found


def regrouped(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """An optimiser's saved state in its groups of now, if others had been made by other rates: a hook of
    torch.optim.Optimizer.load_state_dict. Raises ValueError if Muon moved other parameters."""
    groups = state["param_groups"]
    if _matrices(groups) != _matrices(optimizer.param_groups):
        raise ValueError("its optimiser is the one of another optim.name: set that to what the run began with")
    if _places(groups) == _places(optimizer.param_groups) or not all("places" in group for group in groups):
        return None
    at = {place: number for group in groups for place, number in zip(group["places"], group["params"], strict=True)}
    now = [{**group, "params": [at[place] for place in group["places"]]} for group in optimizer.param_groups]
    return {**state, "param_groups": now}


def _places(groups: Iterable[dict[str, Any]]) -> list[Any]:
    return [group.get("places") for group in groups]


def _matrices(groups: Iterable[dict[str, Any]]) -> dict[int, int]:
    """Of each place that Muon moves how many matrices."""
    return {place: group["matrices"] for group in groups if group.get("matrices") for place in group["places"]}
