"""The text tower: a causal Transformer read at the end token (arXiv:2103.00020, section 2.4).

Axes: `B` batch, `L` tokens, `D` width, `E` embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from miniclip.models.transformer import Block, Transformer


class TextTower(nn.Module):
    """Token ids -> (B, E).

    The end token has the greatest id of the vocabulary, so `argmax` over a row finds it; what stands after it is
    padding. Causal attention never looks at that padding, hence cutting it off changes nothing.

    length_groups: captions are sorted by length and run in so many groups, each cut to its longest caption. The result
    is the same for every value; 1 takes the batch as it comes and does not cut it. On a GPU, more than 1 makes the host
    wait for the lengths.
    """

    def __init__(
        self,
        context_length: int,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        embed_dim: int,
        activation: str,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.length_groups = 1
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, heads, layers, activation, checkpointing)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))

        # OpenAI's code; the paper leaves the text tower's initialisation to it.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(width * 2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(width * 2 * layers) ** -0.5)

    @property
    def context_length(self) -> int:
        """The longest caption, in tokens, that has a position."""
        return len(self.positional_embedding)

    def text_features(self, text: Tensor) -> Tensor:
        """text: (B, L) integer ids, zero padded, L <= context_length. Returns (B, E), not normalised.

        Raises ValueError for another shape or a longer L.
        """
        if text.ndim != 2 or not 1 <= text.shape[1] <= self.context_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}; give (B, L) token ids with L from 1 to context_length="
                f"{self.context_length}, as the tokenizer returns them"
            )
        ends = text.argmax(dim=-1)
        if self.length_groups == 1 or len(text) < 2:
            return self._encode(self.token_embedding(text), ends)
        order = ends.argsort()
        groups = order.chunk(self.length_groups)
        cut = [text[rows, : int(ends[rows[-1]]) + 1] for rows in groups]
        # One look-up for all groups, since the gradient of each is as big as the whole token table.
        tokens = self.token_embedding(torch.cat([part.flatten() for part in cut]))
        parts = tokens.split([part.numel() for part in cut])
        encoded = [
            self._encode(part.view(*ids.shape, -1), ends[rows])
            for part, ids, rows in zip(parts, cut, groups, strict=True)
        ]
        return torch.cat(encoded)[order.argsort()]

    def _encode(self, tokens: Tensor, ends: Tensor) -> Tensor:
        x = tokens + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x, at=ends, causal=True)
        return self.ln_final(x) @ self.text_projection
