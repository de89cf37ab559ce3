"""Train only the rows of the token table that the captions use; the model stays whole for all who read it.

The gradient, the two means of AdamW and the clipping of a row that no caption uses are zeros, worked out at every step.
Without them a step is the same step. What full training does to such a row is weight decay: it shrinks by a factor that
all of them share. One of them stays among the trained rows as the witness of that factor.

Axes: `V` vocabulary, `R` trained rows, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.models.cut import Tower
from miniclip.models.text import TextTower
from miniclip.models.tokenizer import VOCAB_SIZE, Tokenizer


class SmallEmbedding(nn.Embedding):
    """Token ids -> rows of a table of which `weight` (R, D) holds the used rows, and last an unused one, the witness.

    The table outside is whole: `state_dict` has it with shape (V, D), and `load_state_dict` wants it so. In evaluation
    mode every id in [0, V) has its row. In training mode an id without a trained row raises ValueError on a CPU, and
    stops the kernel on a GPU, where looking at it would make the host wait.

    table: (V, D). used: (R - 1,) int64, sorted, without repetition; with all V rows used there is no witness.
    """

    def __init__(self, table: Tensor, used: Tensor) -> None:
        row_of = torch.full((len(table),), -1, dtype=torch.long, device=table.device)
        row_of[used] = torch.arange(len(used), device=table.device)
        unused = (row_of < 0).nonzero().flatten()
        # the longest, as a row of zeros would not show how much it shrank
        witness = unused[table[unused].norm(dim=1).argmax()].unsqueeze(0) if len(unused) else unused
        rows = torch.cat([used, witness])
        super().__init__(len(rows), table.shape[1], _weight=table[rows].clone())
        # Neither is a registered buffer, which DDP would send to all processes at each step.
        self.table, self.row_of, self.rows = table.clone(), row_of, rows

    def forward(self, input: Tensor) -> Tensor:
        """input: integer ids of any shape -> (..., D). Raises ValueError as said above, IndexError outside [0, V)."""
        row = self.row_of.index_select(0, input.flatten()).view_as(input)
        if self.training:
            if row.device.type == "cpu" and bool((row < 0).any()):
                raise ValueError(self._stranger(int(input[row < 0][0])))
            return F.embedding(row, self.weight)
        trained = F.embedding(row.clamp_min(0), self.weight)
        return torch.where((row < 0)[..., None], F.embedding(input, self.table) * self._shrunk(), trained)

    @torch.no_grad()
    def whole_table(self) -> Tensor:
        """(V, D): the trained rows, and all others as weight decay has left them."""
        table = self.table * self._shrunk()
        table[self.rows] = self.weight
        return table

    @torch.no_grad()
    def _shrunk(self) -> Tensor:
        """0-dim: what is left of an unused row, as a share of what it was."""
        if len(self.rows) == int(self.row_of.shape[0]):
            return self.weight.new_ones(())
        before, now = self.table[self.rows[-1]], self.weight[-1]
        return before @ now / (before @ before).clamp_min(torch.finfo(before.dtype).tiny)

    def _stranger(self, token: int) -> str:
        word = f" ({Tokenizer().decode([token]).strip()!r})" if len(self.row_of) == VOCAB_SIZE else ""
        known = int((self.row_of >= 0).sum())
        return (
            f"token {token}{word} is in a caption of this batch, but not among the {known} tokens that the model was "
            "told to train; collect them from all captions, or set train.small_vocabulary to false"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.table, self.row_of, self.rows = fn(self.table), fn(self.row_of), fn(self.rows)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.whole_table()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        *_, missing_keys, _, error_msgs = rest
        name = prefix + "weight"
        if name not in state_dict:
            missing_keys.append(name)
        elif state_dict[name].shape != self.table.shape:
            error_msgs.append(f"{name} has shape {tuple(state_dict[name].shape)}, this model {tuple(self.table.shape)}")
        else:
            self.table.copy_(state_dict[name])
            self.weight.copy_(self.table[self.rows])


def use_small_vocabulary_(model: Tower, ids: Tensor) -> None:
    """Let a text tower train the token rows of these ids alone, and that of the padding.

    ids: (n,) integers in [0, V), in any order; those of all captions that training will see, special tokens included.
    Call it before the optimiser is built, and in every process with the same ids. Raises ValueError for other ids, for
    a model that has been through it, and for a tower that is not of this project.
    """
    if not isinstance(model, TextTower):
        raise ValueError("a text tower from elsewhere has no small vocabulary; set train.small_vocabulary to false")
    if isinstance(model.token_embedding, SmallEmbedding):
        raise ValueError("the model has a small vocabulary already; make a new one for other ids")
    table = model.token_embedding.weight.detach()
    if ids.ndim != 1 or ids.is_floating_point() or not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= len(table):
        raise ValueError(
            f"ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; give (n,) integers in [0, {len(table)}), n > 0"
        )
    padding = torch.zeros(1, dtype=torch.long, device=table.device)
    used = torch.cat([ids.to(padding), padding]).unique()
    model.token_embedding = SmallEmbedding(table, used).train(model.training)
