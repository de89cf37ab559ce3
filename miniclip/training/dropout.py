"""Dropout and stochastic depth on the residual branches of this project's towers, as hooks that only training sets.

Nothing is drawn in evaluation mode, nor in a block that is locked. What is drawn comes from torch's generator: the same
step draws the same, and gradient caching draws it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.config import ConfigError, TrainConfig
from miniclip.models import DualEncoder
from miniclip.models.cut import Tower
from miniclip.models.resnet import Bottleneck
from miniclip.models.transformer import Block


def drop_(model: DualEncoder, options: TrainConfig) -> None:
    """Let a fresh model leave out what options say.

    dropout: of the numbers that a branch adds, in both towers. drop_path: of an image's branches in the last block, and
    l/L as much in block l of L (arXiv:1603.09382, section 3); a text's tokens lie in one row with those of the others.
    """
    model.visual.patch_dropout = options.patch_dropout
    for tower, deepest in ((model.image_tower, options.drop_path), (model.text_tower, 0.0)):
        for number, block in enumerate(tower.blocks, start=1):
            depth = deepest * number / len(tower.blocks)
            for branch in branches(block) if options.dropout or depth else ():
                branch.register_forward_hook(partial(_dropped, block, options.dropout, depth))


def check_dropped(options: TrainConfig, learning: Mapping[str, Tower]) -> None:
    """Raise ConfigError where there is nothing to leave out. learning: towers not wholly locked, by kind."""
    for name in options.dropped:
        kinds = [kind for kind in learning if name == "dropout" or kind == "image"]
        if not kinds:
            raise ConfigError(f"train.{name} has nothing to leave out in a tower that is locked; set it to 0")
        for kind in kinds:
            if not (learning[kind].blocks and all(map(branches, learning[kind].blocks))):
                own = f"train.{name} is for the blocks of this project's own towers, and those of the {kind} tower are"
                raise ConfigError(f"{own} another library's; set it to 0")


def branches(block: nn.Module) -> list[nn.Module]:
    """The modules whose outputs a block adds to its input."""
    if isinstance(block, Block):
        return [block.attn, block.mlp]
    return [block.bn3] if isinstance(block, Bottleneck) else []


def _dropped(block: nn.Module, dropout: float, depth: float, _: nn.Module, __: object, output: Tensor) -> Tensor:
    """output: (B, ...), or with depth = 0 of any shape. What is left is scaled to keep its mean."""
    if not block.training:
        return output
    if dropout:
        output = F.dropout(output, dropout)
    if depth:
        kept = output.new_empty(len(output), *[1] * (output.ndim - 1)).bernoulli_(1 - depth)
        output = output * kept.div_(1 - depth)
    return output
