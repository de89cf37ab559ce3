"""What the models of other libraries share in the form that evaluation takes.

What is loaded may come from anybody, so it runs no code. Axes: B batch, L tokens, S side of the image, E embedding.
"""

from __future__ import annotations

import logging
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from miniclip.common.printing import one_line
from miniclip.losses.matrix import Embeddings
from miniclip.models.text import unit_length

# The libraries' advice would undo what keeps loading safe: a word of it -> what is said instead.
_REASONS = {
    "trust_remote_code": "it brings code of its own, which is not run",
    "use_safetensors": "there is no such file, and only safetensors are read",
    "TorchScript": "it is a TorchScript archive, which may hold code; OpenAI's are the tag openai, too",
    "weights_only": "it is damaged, or holds Python objects, and only tensors are read; save it as safetensors",
}


class AdaptedConfig(NamedTuple):
    """What evaluation asks of a model. zero_padded: rows of ids end in zeros after CLIP's end token. source: the
    library's own config."""

    name: str
    image_size: int
    embed_dim: int
    context_length: int
    zero_padded: bool = False
    source: Any = None


class AdaptedModel(nn.Module, ABC):
    """Another library's model with the meaning of miniclip's: features as the towers give them, before unit length.

    encode_image: (B, 3, S, S) float, normalised -> (B, E). encode_text: (B, L) rows of the model's tokenizer -> (B, E).
    logit_scale: 0-dim, the natural logarithm of the factor on the cosines. logit_bias: 0-dim, or None.
    """

    def __init__(self, model: nn.Module, config: AdaptedConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.config = config
        for name in ("logit_scale", "logit_bias"):  # SigLIP's have the shape (1,), and open_clip has an option for it
            value = getattr(model, name, None)
            setattr(model, name, None if value is None else nn.Parameter(value.detach().reshape(())))

    @abstractmethod
    def encode_image(self, image: Tensor) -> Tensor: ...

    @abstractmethod
    def encode_text(self, text: Tensor) -> Tensor: ...

    def forward(self, image: Tensor, text: Tensor) -> Embeddings:
        """Both towers, as a DualEncoder's; see encode_image and encode_text."""
        images, texts = unit_length(self.encode_image(image)), unit_length(self.encode_text(text))
        return Embeddings(images, texts, self.logit_scale.exp(), self.logit_bias)

    @property
    def logit_scale(self) -> nn.Parameter:
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return self.model.logit_bias


def square_side(name: str, size: int | Sequence[int]) -> int:
    """S of what a config says. Raises ValueError if images are not square."""
    sides = [size] if isinstance(size, int) else list(size)
    if len(set(sides)) != 1:
        raise ValueError(f"{name} takes images of {sides} pixels; only square ones can be evaluated")
    return int(sides[0])


@contextmanager
def reading(message: Callable[[str], str]) -> Iterator[None]:
    """Anything may be raised by what anybody may have written: it becomes a ValueError, whose line message makes of the
    reason. Nothing is logged meanwhile: errors are logged before they are raised, each retry of a download too."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except Exception as error:
        reason = one_line(str(error) or type(error).__name__, 300)
        if isinstance(error, pickle.UnpicklingError):
            reason = _REASONS["weights_only"]
        reason = next((said for word, said in _REASONS.items() if word in str(error)), reason)
        raise ValueError(message(reason)) from error
    finally:
        logging.disable(before)
