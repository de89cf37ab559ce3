"""The tokenizer of a text tower of transformers, from one file and without that library. Axes: B texts, L tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from miniclip.models.external.hf_folder import quiet

FILE = "tokenizer.json"


@dataclass(frozen=True)
class HfTokenizer:
    """Texts -> (B, L) int64: ids with the tokenizer's special tokens, cut to L, and -1 behind.

    content: what the file holds. lower: texts are brought to lower case first.
    """

    content: str = field(repr=False)
    context_length: int
    lower: bool = False
    pad: ClassVar[int] = -1

    @property
    def key(self) -> list[Any]:
        return [hashlib.sha256(self.content.encode()).hexdigest(), self.context_length, self.lower]

    @property
    def files(self) -> dict[str, bytes]:
        return {FILE: self.content.encode()}

    def __call__(self, texts: str | Iterable[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = torch.full((len(texts), self.context_length), self.pad)
        for row, text in zip(rows, texts, strict=True):
            # one by one: the library's own threads do not survive a fork, and warn of it
            ids = self._cutting.encode(self._cleaned(text)).ids
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def encode(self, text: str) -> list[int]:
        """All ids of one text, without special tokens and without a limit."""
        ids: list[int] = self._whole.encode(self._cleaned(text), add_special_tokens=False).ids
        return ids

    @property
    def specials(self) -> int:
        """How many tokens stand around a text."""
        return int(self._whole.num_special_tokens_to_add(False))

    def _cleaned(self, text: str) -> str:
        text = text.strip()  # as sentence-transformers does
        return text.lower() if self.lower else text

    @property
    def highest(self) -> int:
        """The highest id that it may give."""
        return max(self._whole.get_vocab(with_added_tokens=True).values())

    @cached_property
    def _whole(self) -> Any:
        import tokenizers

        encoder = tokenizers.Tokenizer.from_str(self.content)
        encoder.no_padding()
        encoder.no_truncation()
        return encoder

    @cached_property
    def _cutting(self) -> Any:
        import tokenizers

        encoder = tokenizers.Tokenizer.from_str(self._whole.to_str())
        encoder.enable_truncation(self.context_length)
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "context_length": self.context_length, "lower": self.lower}


def read_tokenizer(name: str, folder: Path, context_length: int, lower: bool) -> tuple[HfTokenizer, Any]:
    """The one of a folder, and as transformers reads it.

    Raises ValueError if there is none, or none that its own file describes wholly.
    """
    from transformers import AutoTokenizer

    with quiet(name, "tokenizer"):
        theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{name}: its tokenizer, {type(theirs).__name__}, has no {FILE}; write one that has")
    ours = HfTokenizer(backend.to_str(), context_length, lower)
    if not set(theirs.get_vocab()) - set(
        theirs.all_special_tokens
    ):  # without its files, transformers makes an empty one
        raise ValueError(f"{name}: its tokenizer has no vocabulary; put the tokenizer of this model there")
    if not bool((ours("") >= 0).any()):
        raise ValueError(
            f"{name}: its tokenizer puts no token around a text, so that an empty one has none; use another"
        )
    return ours, theirs


def tokenizer_from(files: Mapping[str, bytes], context_length: int, lower: bool) -> HfTokenizer:
    """What read_tokenizer gave. Raises ValueError if its file is missing or damaged."""
    try:
        tokenizer = HfTokenizer(files[FILE].decode(), context_length, lower)
        _ = tokenizer.specials
    except Exception as error:  # theirs are of no class of their own
        raise ValueError(f"the tokenizer's file {FILE} is missing or damaged ({error})") from error
    return tokenizer
