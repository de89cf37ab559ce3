"""Which captions of an image a step reads, and with which of their words.

Axes: L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from miniclip.config import ConfigError, DataConfig
from miniclip.data.cache.store import token_rows
from miniclip.models.protocols import TextTokenizer


@dataclass(frozen=True)
class Wording:
    """The captions of one image, one generator -> those of a batch, and what is read of them.

    count: captions of each image. by: "uniform", or "length", where the chance of a caption is in proportion to its
    tokens. drop: probability of each token to be left out; of all, one stays. swap: of each that then stands to change
    places with the next, which then has had its turn. specials: how many special tokens stand before and behind the
    others, and stay where they are.
    """

    count: int = 1
    by: Literal["uniform", "length"] = "uniform"
    drop: float = 0.0
    swap: float = 0.0
    specials: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, data: DataConfig, tokenizer: TextTokenizer) -> Wording:
        """What a configuration asks for. Raises ConfigError if the special tokens cannot be told from the others."""
        plain = cls(data.captions_per_image, data.captions_by, data.word_drop, data.word_swap)
        if not (plain.drop or plain.swap):
            return plain
        try:
            return replace(plain, specials=special_tokens(tokenizer))
        except ValueError as error:
            key = "word_drop" if plain.drop else "word_swap"
            raise ConfigError(f"data.{key}={getattr(data, key)}, but {error}; set it to 0") from error

    def choose(self, captions: Sequence[np.ndarray], rng: random.Random) -> list[int]:
        """The places of count captions, none twice before all have had their turn."""
        chosen = list[int]()
        while len(chosen) < self.count:
            some = min(len(captions), self.count - len(chosen))
            if self.by == "uniform":
                chosen += rng.sample(range(len(captions)), some)
            else:
                # the first to ring of alarms at rates in proportion to the lengths: drawn by them, without replacement
                rings = [rng.expovariate(len(caption)) for caption in captions]
                chosen += sorted(range(len(captions)), key=rings.__getitem__)[:some]
        return chosen

    def read(self, captions: Sequence[np.ndarray], rng: random.Random) -> list[np.ndarray] | None:
        """Token ids (L,) each -> those that are left, some of them changed over; None if they are read as they are."""
        return [self._read(caption, rng) for caption in captions] if self.drop or self.swap else None

    def _read(self, caption: np.ndarray, rng: random.Random) -> np.ndarray:
        first, last = self.specials[0], len(caption) - self.specials[1]
        own = caption[first:last].tolist()
        kept = [token for token in own if rng.random() >= self.drop] or (own and [rng.choice(own)])
        at = 0
        while at < len(kept) - 1:
            swapped = rng.random() < self.swap
            if swapped:
                kept[at], kept[at + 1] = kept[at + 1], kept[at]
            at += 1 + swapped
        return np.concatenate([caption[:first], np.array(kept, dtype=caption.dtype), caption[last:]])


ONE = Wording()  # one caption of an image, each as often as the others, is read as it is


def special_tokens(tokenizer: TextTokenizer) -> tuple[int, int]:
    """How many special tokens it puts before and behind those of a text: what an empty text has, and every other.

    Raises ValueError if that does not tell, or if its rows are padded in a way that only the model knows.
    """
    if hasattr(tokenizer, "pad"):
        empty, *others = (row.tolist() for row in token_rows(tokenizer, ["", "dog", "the red car"]))
        both = zip(empty, others[0], strict=False)
        before = next((place for place, (own, other) in enumerate(both) if own != other), len(empty))
        behind = len(empty) - before
        around = [row[:before] + row[len(row) - behind :] for row in others]
        if all(found == empty and len(row) > len(empty) for found, row in zip(around, others, strict=True)):
            return before, behind
    raise ValueError("the text tower's tokenizer does not tell which tokens of a caption are special ones")
