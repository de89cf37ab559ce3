"""CLIP's byte-pair tokenizer (arXiv:2103.00020, section 2.4; byte-level BPE as in GPT-2, Radford et al. 2019).

The ids are those of open_clip's `SimpleTokenizer` for every string. The merge table in `bpe_merges.txt.gz` is OpenAI
CLIP's (https://github.com/openai/CLIP, MIT licence, Copyright (c) 2021 OpenAI), cut to the 48,894 merges in use.

A text is repaired (`ftfy`), unescaped (HTML), lower-cased and split at white space, which no token crosses: a bounded
cache of the ids of such chunks does most of the work. Two properties of the merge table are tested for every token: its
letters merge to that token alone, so that one dict from spelling to id holds all merges; and no token that ends a piece
would be cut in two, so that a chunk that spells one is one piece. Axes: B texts, L tokens.
"""

from __future__ import annotations

import functools
import gzip
import html
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from importlib import resources
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

START_OF_TEXT = 49406
END_OF_TEXT = 49407
VOCAB_SIZE = 49408

_SPECIALS = {b"<start_of_text>": START_OF_TEXT, b"<end_of_text>": END_OF_TEXT}
_WORD_END = b"</w>"
_NOTHING = b" "  # before and after a piece, and where a merge has taken a symbol; in no token's spelling
# What CLIP calls a piece: a special, an English contraction, a run of letters, one digit, a run of anything else.
_PIECE = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

# Ids travel as packed native uint16 (all are below 65,536): joining and padding bytes is cheaper than lists of ints.
_START = array("H", [START_OF_TEXT]).tobytes()
_END = array("H", [END_OF_TEXT]).tobytes()
_CACHED_CHUNKS = 2**16
_CACHED_LENGTH = 64  # characters; longer chunks hardly ever come twice and would let the cache grow without bound


@dataclass(frozen=True)
class Tokenizer:
    """Text -> ids. The tables are not part of it: they load on first use, once a process, so pickling costs nothing.

    context_length: L, at least 2 (start and end token). Raises TypeError if not an int, ValueError if below 2.
    """

    context_length: int = 77
    pad: ClassVar[int] = 0

    @property
    def key(self) -> int:
        return self.context_length

    def __post_init__(self) -> None:
        length = self.context_length
        if not isinstance(length, int) or isinstance(length, bool):
            raise TypeError(f"context_length must be an int, got {length!r}")
        if length < 2:
            raise ValueError(f"context_length={length} cannot hold the start and end token; use 2 or more (CLIP: 77)")

    def __call__(self, texts: str | Iterable[str]) -> Tensor:
        """A string or B strings -> (B, L) int64: start token, ids, end token, then zeros.

        A longer text is cut to L ids, the last of which is the end token. Raises TypeError if a text is not a string.
        """
        if isinstance(texts, str):
            texts = [texts]
        elif not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a string or an iterable of strings, got {type(texts).__name__}")
        lookup, width, rows = _chunks().__getitem__, 2 * self.context_length, []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}: {text!r:.80}")
            row = _START + b"".join(map(lookup, _clean(text).split())) + _END
            if len(row) > width:
                row = row[: width - 2] + _END
            rows.append(row.ljust(width, b"\0"))
        ids = np.frombuffer(b"".join(rows), dtype=np.uint16).astype(np.int64)
        return torch.from_numpy(ids).view(len(rows), self.context_length)

    def encode(self, text: str) -> list[int]:
        """All ids of one text, without start and end token and without a limit. Raises TypeError if not a string."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        packed = b"".join(map(_chunks().__getitem__, _clean(text).split()))
        return memoryview(packed).cast("H").tolist()

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """Ids (integers or a 1-D tensor) -> text with a space after each piece; bytes that are not UTF-8 give U+FFFD.

        Specials are spelt out, and the padding id 0 is also the id of "!": cut the padding off first.
        Raises TypeError if an id is not an integer, ValueError if it is outside [0, 49408).
        """
        spellings = _chunks().spellings
        wanted: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        for position, token in enumerate(wanted):
            if not isinstance(token, (int, np.integer)):
                raise TypeError(f"ids[{position}] must be an integer, got {type(token).__name__}; decode row by row")
            if not 0 <= token < VOCAB_SIZE:
                raise ValueError(f"ids[{position}]={token} is not a token id; they lie in [0, {VOCAB_SIZE})")
        # word ends become spaces only now: four tokens that spell "</w>" do so in open_clip, too
        return b"".join(spellings[token] for token in wanted).decode("utf-8", "replace").replace("</w>", " ")


def tokenize(texts: str | Iterable[str], context_length: int = 77) -> Tensor:
    """`Tokenizer(context_length)(texts)`: (B, L) int64."""
    return Tokenizer(context_length)(texts)


def caption_lengths(tokens: Tensor) -> Tensor:
    """(B, L) ids -> (B,) int64: tokens up to and with the end token, the highest id, at which the text tower pools.

    Raises ValueError if `tokens` is not a 2-D integer tensor with at least one column.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0 or tokens.is_floating_point():
        raise ValueError(f"tokens must be (B, L) integer ids, got shape {tuple(tokens.shape)} of {tokens.dtype}")
    return tokens.argmax(dim=1) + 1


def trim_padding(tokens: Tensor) -> Tensor:
    """(B, L) ids -> (B, L'), a view, L' the longest caption with its end token. Exact for a causal tower pooled there.

    On a GPU this waits for the device: trim before the copy. Raises ValueError as `caption_lengths` does.
    """
    lengths = caption_lengths(tokens)
    return tokens[:, : int(lengths.max())] if len(tokens) else tokens


def _clean(text: str) -> str:
    # ftfy and html.unescape leave printable ASCII without "&" as it is; everything else takes the slow road
    if not (text.isascii() and text.isprintable()) or "&" in text:
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


class _Chunks(dict[str, bytes]):
    """Lower-case chunk without white space -> its ids as packed uint16, worked out once and kept.

    A full cache is dropped whole: each step of that is atomic, and threads at worst work twice.
    """

    def __init__(self) -> None:
        import regex

        super().__init__()
        self.find_pieces: Any = regex.compile(_PIECE, regex.IGNORECASE).findall
        self.letters = byte_letters()
        self.vocabulary = read_vocabulary(self.letters)

    def __missing__(self, chunk: str) -> bytes:
        # ASCII that a token spells is spelt as it is, and looking it up needs neither the regex nor the letters
        whole = self.vocabulary.get(chunk.encode() + _WORD_END) if chunk.isascii() else None
        ids = [whole] if whole is not None else chain.from_iterable(map(self.piece_ids, self.find_pieces(chunk)))
        packed = array("H", ids).tobytes()
        if len(chunk) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
            self[chunk] = packed
        return packed

    def piece_ids(self, piece: str) -> list[int]:
        """Byte-pair merging: while two neighbours have a merge, the earliest learnt one is applied, leftmost first.

        Ids stand in that order, so a heap of (merged id, position) gives the next one; n log n for a long piece.
        """
        data = piece.encode()
        if data in _SPECIALS:
            return [_SPECIALS[data]]
        find = self.vocabulary.get
        symbols = [_NOTHING, *map(self.letters.__getitem__, data), _NOTHING]
        symbols[-2] += _WORD_END
        whole = find(b"".join(symbols[1:-1]))
        if whole is not None:
            return [whole]
        before = list(range(-1, len(symbols) - 1))
        after = list(range(1, len(symbols) + 1))
        heap = [(merged, at) for at, (a, b) in enumerate(pairwise(symbols)) if (merged := find(a + b)) is not None]
        heapify(heap)
        while heap:
            merged, left = heappop(heap)
            right = after[left]
            joint = symbols[left] + symbols[right]
            if find(joint) != merged:
                continue  # an earlier merge has taken one of the two
            symbols[left], symbols[right] = joint, _NOTHING  # a merged pair lives on at its left position
            after[left] = after[right]
            before[after[left]] = left
            for at in before[left], left:
                if (merged := find(symbols[at] + symbols[after[at]])) is not None:
                    heappush(heap, (merged, at))
        return [self.vocabulary[symbol] for symbol in symbols if symbol != _NOTHING]

    @functools.cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of each id."""
        byte_of = {ord(letter.decode()): byte for byte, letter in self.letters.items()}
        return [spelling.decode().translate(byte_of).encode("latin-1") for spelling in self.vocabulary]


@functools.cache
def _chunks() -> _Chunks:
    return _Chunks()


def byte_letters() -> dict[int, bytes]:
    """-> byte -> the letter, as UTF-8, by which the merge file spells it, in the order of the ids 0-255.

    First the visible Latin-1 characters, spelt as they are, then the others: chr(256), chr(257), ...
    """
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != ord(" ")]
    others = sorted(set(range(256)).difference(visible))
    letters = {byte: chr(byte).encode() for byte in visible}
    return letters | {byte: chr(256 + k).encode() for k, byte in enumerate(others)}


def read_vocabulary(letters: dict[int, bytes]) -> dict[bytes, int]:
    """-> spelling -> id, in the order of the ids: bytes, the same bytes at the end of a piece, merges, specials."""
    packed = resources.files("miniclip.models").joinpath("bpe_merges.txt.gz").read_bytes()
    merged = gzip.decompress(packed).replace(b" ", b"").split()  # a line of the file is the two that merge
    ends = [letter + _WORD_END for letter in letters.values()]
    return dict(zip([*letters.values(), *ends, *merged, *_SPECIALS], range(VOCAB_SIZE), strict=True))
