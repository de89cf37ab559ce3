"""Images for the tests of other libraries' models."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from support.sources import noise


class Photos:
    """Noise at several sizes, also smaller than the square."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Image.Image:
        return noise(index, self.sizes[index])


PHOTOS = Photos([(50, 37), (37, 50), (20, 91), (32, 32), (201, 200), (333, 77), (64, 64)])


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def word_tokenizer(pad: str, unknown: str, **options: Any) -> Any:
    """A tokenizer of transformers that knows a few words, ends a text with id 5 and pads with that or with id 7."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = {unknown: 0, "a": 1, "red": 2, "circle": 3, "dogs": 9, "long": 4, "</s>": 5}
    words = Tokenizer(WordLevel(ids | ({} if pad in ids else {pad: 7}), unknown))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 5)])
    names = {"unk_token": unknown, "pad_token": pad, "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names, **options)
