"""What evaluation and inspection ask of any model, be it of this project or of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class HasWidth(Protocol):
    @property
    def embed_dim(self) -> int | None: ...


class TwoTowers(Protocol):
    """What encodes: a DualEncoder, or another module with its own towers. Features need not have unit length."""

    @property
    def config(self) -> HasWidth: ...

    @property
    def logit_scale(self) -> nn.Parameter: ...  # 0-dim, the natural logarithm

    @property
    def logit_bias(self) -> nn.Parameter | None: ...

    def encode_image(self, image: Tensor, /) -> Tensor: ...

    def encode_text(self, text: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def eval(self) -> object: ...


class TextTokenizer(Protocol):
    """Texts -> (N, L) int64.

    One that has `pad` may have its rows cut to the longest text: what stands behind a text is 0, as in miniclip's own
    Tokenizer, or -1. Rows of any other reach the model whole.
    """

    def __call__(self, texts: list[str], /) -> Tensor: ...


def padding_of(tokenizer: TextTokenizer) -> int:
    """What stands behind a text in its rows."""
    return int(getattr(tokenizer, "pad", -1))


def key_of(tokenizer: TextTokenizer) -> object:
    """JSON that tells a tokenizer from others with other ids, or that cut elsewhere."""
    return getattr(tokenizer, "key", repr(tokenizer))
