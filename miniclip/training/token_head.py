"""A second task for the image tower: its embedding names the tokens of the captions (SuperCLIP, arXiv:2512.14480).

The contrastive loss asks a small batch few questions; this one asks for every word, and asks no negatives. The head
learns along with the model and leaves it at the end.

Axes: B images of this process, K captions of each, L tokens, E embedding, R tokens in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.data.loader import Batch
from miniclip.losses.matrix import Embeddings
from miniclip.models import DualEncoder


class TokenCounts(NamedTuple):
    """ids: (R,), the token ids in use, ascending. captions: (R,), in how many each stands. total: of all; int64."""

    ids: Tensor
    captions: Tensor
    total: int

    @classmethod
    def of(cls, captions: Iterable[np.ndarray]) -> TokenCounts:
        """captions: the token ids of each."""
        each = [np.unique(caption) for caption in captions]
        ids, counts = np.unique(np.concatenate(each), return_counts=True)
        return cls(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(counts.astype(np.int64)), len(each))


class TokenHead(nn.Module):
    """Embeddings -> how likely each token is in the captions: one matrix, by a softmax over the tokens in use."""

    row_of: Tensor
    weight_of: Tensor

    def __init__(self, width: int, counts: TokenCounts) -> None:
        super().__init__()
        self.rows = len(counts.ids)
        # the last one, and whatever is not in use, stands for no token
        row_of = torch.full((int(counts.ids.max()) + 2,), self.rows)
        row_of[counts.ids] = torch.arange(self.rows)
        # a token that stands in every caption, as the first and the last one do, weighs nothing
        self.linear = nn.Linear(width, self.rows)
        idf = (counts.total / counts.captions).log().float()
        self.register_buffer("row_of", row_of, persistent=False)
        self.register_buffer("weight_of", idf, persistent=False)

    def forward(self, image: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
        """Cross-entropy of each image with the tokens of its captions, each weighted by ln(captions / those with it).

        image: (B, E), unit length. text: (B K, L) ids. lengths: (B K,), how many of them are the caption's own.
        Returns (B,) in nats; 0 for an image whose tokens all weigh nothing.
        """
        own = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
        rows = self.row_of[torch.where(own, text, -1).clamp_max(len(self.row_of) - 1)].view(len(image), -1)
        target = image.new_zeros(len(image), self.rows + 1).scatter_(1, rows, 1)[:, :-1] * self.weight_of
        target = target / target.sum(1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        # the coordinates of a unit vector are about E^-1/2; the head gets about 1
        logits = self.linear(image * math.sqrt(image.shape[1]))
        return F.cross_entropy(logits.to(target.dtype), target, reduction="none")


class TokenLoss:
    """What a step adds to the contrastive loss. head: a TokenHead inside of what distributes it. weight: of the term.

    contrastive, tokens: what the two were in the last step, 0-dim; of this process.
    """

    def __init__(self, head: nn.Module, weight: float) -> None:
        self.head, self.weight, self.contrastive, self.tokens = head, weight, torch.zeros(()), torch.zeros(())

    def added(
        self, loss_of: Callable[[Embeddings], Tensor], batch: Batch, share: float
    ) -> Callable[[Embeddings], Tensor]:
        """loss_of and this term. share: of the global batch's images that are this process's, times the processes."""

        def both(embeddings: Embeddings) -> Tensor:
            lengths = torch.tensor(batch.lengths, device=batch.text.device)
            contrastive, tokens = loss_of(embeddings), share * self.head(embeddings.image, batch.text, lengths).mean()
            self.contrastive, self.tokens = contrastive.detach(), tokens.detach()
            return contrastive + self.weight * tokens

        return both


def head_of(model: DualEncoder, counts: TokenCounts, optimizer: torch.optim.Optimizer, decay: float) -> TokenHead:
    """A head for the model's embeddings, on its device, whose parameters learn in the optimiser, too."""
    assert model.config.embed_dim is not None
    head = TokenHead(model.config.embed_dim, counts).to(model.logit_scale.device)
    place = sum(len(group["params"]) for group in optimizer.param_groups)
    for i, parameter in enumerate((head.linear.weight, head.linear.bias)):
        group = {"params": [parameter], "weight_decay": 0.0 if i else decay, "factor": 1.0, "places": [place + i]}
        optimizer.add_param_group(group)
    return head
