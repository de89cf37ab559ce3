"""CLIP's tokenizer as files of the library tokenizers (https://github.com/huggingface/tokenizers) and of transformers.

Its ids are those of models/tokenizer.py but for texts that this mends first: bytes read in a wrong encoding, HTML's
&amp; and the like, curly quotes (ftfy and html.unescape do it, which those files cannot).
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, byte_letters, read_vocabulary

START, END = "<|startoftext|>", "<|endoftext|>"  # as other libraries spell them
# a run of letters, a digit, a run of anything else, and an English contraction's second half, in lower case
_PIECE = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer() -> Any:
    """A tokenizers.Tokenizer: a text -> ids, start and end among them, neither cut nor padded."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    vocabulary, merges = _tables()
    made = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    space = normalizers.Replace(Regex(r"\s+"), " ")
    made.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in (START, END)])
    ends = (END, END_OF_TEXT), (START, START_OF_TEXT)
    made.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return made


def write_tokenizer(folder: Path, context_length: int) -> None:
    """What AutoTokenizer of transformers reads; behind a text it puts the token of its end.

    Under an older name, too, for what knows only that.
    """
    vocabulary, merges = _tables()
    clip_tokenizer().save(str(folder / "tokenizer.json"))
    told: dict[str, Any] = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length}
    told |= {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def _tables() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Spelling -> id, and the merges, the earliest first."""
    spelt = {START_OF_TEXT: START, END_OF_TEXT: END}
    ids = read_vocabulary(byte_letters())
    vocabulary = {spelt.get(token, spelling.decode()): token for spelling, token in ids.items()}
    packed = resources.files("miniclip.models").joinpath("bpe_merges.txt.gz").read_bytes()
    pairs = [line.split(" ") for line in gzip.decompress(packed).decode().splitlines()]
    return vocabulary, [(left, right) for left, right in pairs]
