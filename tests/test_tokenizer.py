"""The oracle for ids and texts is open_clip's `SimpleTokenizer`; sizes, cuts and ids of known words are by hand."""

from __future__ import annotations

import html
import html.entities
import importlib
import itertools
import pickle
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import ftfy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.group import together

from miniclip.models import tokenizer
from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer, caption_lengths, tokenize, trim_padding

HARD = [
    "",
    " \t\n ",
    "a photo of a dog.",
    "A Dog's life, they'LL say: it's 2024's 3.14!!",
    "they're we've I'M he'd she'll 'tis 's't''re",
    "ascii\x00 bell\x07s vt\x0bff\x0cfs\x1cgs\x1dus\x1fdel\x7f \x1b[31mred\x1b[0m \x1bx",
    "cafe\u0301 caf\u00e9 na\u00efve",  # combining marks are composed by the repair
    "\u0395\u039b\u039b\u0391\u03a3 \u03a3 \u039f\u0394\u039f\u03a3\u0301.\u03a3",  # final sigma
    "\u0130stanbul I\u0307 \u0131 \u1e9e \u00df \u01c5",
    "it'\u017f \u017fo '\u017ftart <\u017ftart_of_text> \u212a 'R\u0117 \u0345\u0345a",  # fold to s, k
    "\u2167 \u24b6 \u00bd \u00b2 \u0663 \u0e51 1234567890",
    "<start_of_text>a<end_of_text> <START_OF_TEXT> !<start_of_text> x<End_Of_Text>y",
    "<|startoftext|> </w> w> </W>",
    "\u201ccurly\u201d \u2018quotes\u2019 don\u2019t \u201eund\u201f",
    "AT&amp;T &amp;amp;lt;b&amp;amp;gt; &lt;i&gt; &amp;#39; &quot &copy2024 &notit; &EACUTE; <&eacute;> <&amp;amp;",
    "&#0; &#1; &#13;&#28;x &#128; &#x1F600; &#xD83D;&#xDE00; &#x110000; &#; &;",
    "nul\x00 bell\x07 vt\x0bff\x0c fs\x1cgs\x1d us\x1f del\x7f csi\x9b nel\x85end \x1b[31mred\x1b[0m \x1bx",
    "a\u00a0b\u1680c\u2003d\u2028e\u2029f\u202fg\u205fh\u3000i\u200bj\u200dk\ufeffl\u00adm\r\nn",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd",
    "\ud83d\ude00 lone \ud800 and \udfff",
    "schÃ¶n â€œmojibakeâ€\u009d donâ€™t ðŸ˜€ Ã la mode l'Ã©tÃ© voilÃ",
    "\ufb01sh \ufb02ower \u0149 \uff26\uff35\uff2c\uff2c \uff76\uff9e \u1100\u1161 \u0132",
    "日本語のテキスト 中文 한국어 العربية हिन्दी ไทย עברית",
    "Z" + "a\u0301\u0302\u0303\u0304" * 8 + "lgo",
    "the quick brown fox " * 200,
    "abcdefghij" * 300,
    "!" * 3000,
]

FRAGMENTS = [
    "<start_of_text>", "<END_of_text>", "'s", "'\u017f", "'RE", "\u0130", "\u017f", "\u212a", "\u03a3", "\u0391\u03a3",
    "\u0345", "\u2167", "\u24b6", "\x1b[1m", "\x1c", "\x85", "\u00a0", "\u2028", "\u200d", "\ufeff", "\ufffd", "\ud83d",
    "\ude00", "e\u0301", "Ã©", "â€™", "Ã ", "ðŸ˜€", "\ufb01", "\uff26", "&", "&amp;", "&amp;amp;lt;", "&lt", "&#39;",
    "&#0;", "&#x85;", "&amp;#28;", "&EACUTE;", "<", "</w>", "\u201c", "\u2019", " ", "\n", "\r\n", "3.14", "CAT", "dog",
]  # fmt: skip
ENTITIES = st.sampled_from(sorted(html.entities.html5)).map("&".__add__)
ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=())),  # every code point, surrogates too
    st.text(st.characters(max_codepoint=0x17F)),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), ENTITIES, st.text(max_size=2)), max_size=12).map("".join),
    st.text(max_size=8).map(lambda text: html.escape(html.escape(text))),
    st.text(st.characters(min_codepoint=0xA0, max_codepoint=0x2FFF, exclude_categories=["Cs"]), max_size=6).map(
        lambda text: text.encode().decode("latin-1")
    ),
)


@cache
def peer() -> Any:
    pytest.importorskip("open_clip")
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def test_hard_texts_and_any_ids_have_open_clips() -> None:
    tok, oracle, rng = Tokenizer(), peer(), random.Random(0)
    assert list(map(tok.encode, HARD)) == list(map(oracle.encode, HARD))
    rows = [*map(tok.encode, HARD), *(rng.choices(range(tokenizer.VOCAB_SIZE), k=12) for _ in range(200))]
    rows += [rng.choices(range(520), k=12) for _ in range(200)]  # bytes that are no UTF-8
    rows.append([27, 14, 86, 29])  # the letters "<", "/", "w", ">": a word end to open_clip
    assert list(map(tok.decode, rows)) == list(map(oracle.decode, rows))
    assert tok.decode([27, 14, 86, 29]) == " "
    assert tok.decode(tok("A dog!")[0, :5]) == "<start_of_text>a dog ! <end_of_text>"


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
@example("\u0391\u03a3 \u03a3\u0391")
def test_any_text_has_open_clips_ids(text: str) -> None:
    assert Tokenizer().encode(text) == peer().encode(text)


def test_every_code_point_has_open_clips_ids() -> None:
    # inside letters: a chunk of its own would hide how the character joins with its neighbours
    for start in range(0, 0x3100, 64):
        block = "".join(f"a{chr(c)}b'{chr(c)} " for c in range(start, start + 64))
        assert Tokenizer().encode(block) == peer().encode(block), hex(start)


def test_the_letters_of_a_token_merge_to_that_token_alone() -> None:
    # what lets the tokenizer look up two neighbours by their joint spelling, and a piece as a whole
    ranks = peer().bpe_ranks
    letters: dict[str, tuple[str, ...]] = {}
    for left, right in ranks:
        word = letters[left + right] = letters.get(left, (left,)) + letters.get(right, (right,))
        while len(word) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(itertools.pairwise(word)))
            assert rank < len(ranks), word
            word = (*word[:at], word[at] + word[at + 1], *word[at + 2 :])
    for special in ("<start_of_text>", "<end_of_text>"):  # not a joint spelling of any two
        assert not any({special[:at], special[at:]} <= peer().encoder.keys() for at in range(len(special)))


def test_each_token_has_open_clips_text_and_ids() -> None:
    tok, oracle, ends = Tokenizer(), peer(), 0
    for token in range(tokenizer.VOCAB_SIZE):
        text = oracle.decode([token])
        assert tok.decode([token]) == text
        if text.endswith(" ") and "\ufffd" not in text:
            ends += 1
            ids = tok.encode(text)
            assert ids == oracle.encode(text)
            if text.isascii() and text[:-1].isprintable() and text.strip() == text.strip().lower() != "":
                assert ids == [token]
    assert ends > 30_000


def test_the_fast_road_is_the_identity_of_the_slow_one() -> None:
    printable, rng = [chr(c) for c in range(32, 127) if chr(c) != "&"], random.Random(0)
    letters = [*itertools.product(printable, repeat=2)]
    letters += [rng.choices(printable, k=rng.randint(3, 60)) for _ in range(2000)]
    for text in map("".join, letters):
        assert html.unescape(html.unescape(ftfy.fix_text(text))) == text
        assert tokenizer._clean(text) == text.lower()


@settings(max_examples=50, deadline=None)
@given(st.lists(ANY_TEXT, max_size=5), st.integers(2, 20))
def test_batches_equal_open_clips(texts: list[str], context_length: int) -> None:
    tokens = tokenize(texts, context_length)
    assert tokens.dtype == torch.int64 and tokens.shape == (len(texts), context_length)
    assert torch.equal(tokens, peer()(texts, context_length))


def test_ids_by_hand() -> None:
    tok = Tokenizer()
    for text, ids in (
        ("a !", [64 + 256, 256]),  # letter 33 + 31 of the visible bytes from "!", + 256 at the end of a piece; "!" is 0
        ("a photo of a dog", [320, 1125, 539, 320, 1929]),  # the best known line of the vocabulary
        ("<END_OF_TEXT>", [END_OF_TEXT]),
    ):
        assert tok.encode(text) == ids
    assert tok.encode("inx")[0] == 512  # the first merge of the table
    full = [START_OF_TEXT, *[320] * 6, END_OF_TEXT]
    for length in range(2, 8):
        assert Tokenizer(length)("a a a a a a").tolist() == [[*full[: length - 1], END_OF_TEXT]]
    assert Tokenizer(10)("a a a a a a").tolist() == [[*full, 0, 0]]


def test_kinds_of_batches() -> None:
    tok = Tokenizer()
    for texts, count in (("a dog", 1), ([], 0)):
        assert tok(texts).shape == (count, 77) and tok(texts).dtype == torch.int64
    assert torch.equal(tok(text for text in ("a", "b")), tok(("a", "b")))
    tok(["a"])[0, 0] = 1  # the result owns its memory
    assert tok(["a"])[0, 0] == START_OF_TEXT


def test_wrong_input_is_named() -> None:
    tok: Any = Tokenizer()
    refused: list[tuple[type[Exception], Callable[[], Any], str]] = [
        (TypeError, lambda: tok(["a", 3]), r"texts\[1\] must be a string, got int: 3"),
        (TypeError, lambda: tok(None), "texts must be a string or an iterable of strings, got NoneType"),
        (TypeError, lambda: tok(b"bytes"), r"texts\[0\] must be a string, got int"),
        (TypeError, lambda: tok.encode(["a"]), "text must be a string, got list"),
        (TypeError, lambda: tok.decode(tok(["a", "b"])), r"ids\[0\] must be an integer, got list"),
        *((ValueError, partial(tokenize, "a", n), f"context_length={n} .* use 2 or more") for n in (1, 0, -5)),
        *((TypeError, partial(tokenize, "a", n), "context_length must be an int") for n in ("77", 77.0, None, True)),
        *((ValueError, partial(tok.decode, [0, n]), rf"ids\[1\]={n} is not a token id") for n in (-1, 49408)),
    ]
    for error, call, message in refused:
        with pytest.raises(error, match=message):
            call()


def test_long_pieces_take_near_linear_time() -> None:
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
    start = time.process_time()
    ids = Tokenizer().encode(text)
    assert time.process_time() - start < 30  # half a second, or minutes where each merge scans the whole piece
    assert Tokenizer().decode(ids) == text + " "
    assert Tokenizer().encode(text[:400]) == peer().encode(text[:400])


def test_cache_is_bounded_and_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_CACHED_CHUNKS", 50)
    chunks, sizes = tokenizer._chunks(), []
    chunks.clear()
    for word in (f"word{n}" for n in range(500)):
        assert Tokenizer().encode(word) == peer().encode(word)
        sizes.append(len(chunks))
    assert max(sizes) == 50 and min(sizes[50:]) == 1
    chunks.clear()
    Tokenizer()("x" * 64 + " " + "y" * 65)
    assert list(chunks) == ["x" * 64]


def test_pickle_and_threads() -> None:
    tok = Tokenizer(11)
    blob = pickle.dumps(tok)
    assert len(blob) < 300 and pickle.loads(blob) == tok
    texts = [f"a {word} on the {n} hill" for n, word in enumerate(HARD[2:20])]
    expected = tok(texts)
    tokenizer._chunks.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(tokens, expected) for tokens in pool.map(lambda _: tok(texts), range(40)))


def without_open_clip() -> None:
    """As in a new interpreter, but that torch is there."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("miniclip", "ftfy", "regex", "open_clip", "transformers"):
            del sys.modules[name]
    sys.modules["open_clip"] = None  # type: ignore[assignment]
    fresh = importlib.import_module("miniclip.models.tokenizer")
    assert not {"ftfy", "regex"} & set(sys.modules) and fresh._chunks.cache_info().currsize == 0
    assert fresh.tokenize("a dog", 4).tolist() == [[49406, 320, 1929, 49407]] and "ftfy" not in sys.modules


def test_import_is_lazy_and_open_clip_is_not_needed() -> None:
    together(1, without_open_clip)


def test_lengths_and_trimming_by_hand() -> None:
    tokens = tokenize(["a", "", "a a a a", "a <end_of_text> a"], 10)
    # the tower pools at the first end token, so a caption that spells it out ends there
    assert caption_lengths(tokens).tolist() == [3, 2, 6, 3]
    trimmed = trim_padding(tokens)
    assert torch.equal(trimmed, tokens[:, :6]) and trimmed.data_ptr() == tokens.data_ptr()
    assert torch.equal(trim_padding(tokens[:2]), tokens[:2, :3])
    assert trim_padding(tokens[:0]).shape == (0, 10) and caption_lengths(tokens[:0]).shape == (0,)
    full = tokenize(["a " * 50], 10)
    assert torch.equal(trim_padding(full), full)
    for wrong in (tokens[0], tokens.float(), tokens[:, :0]):
        with pytest.raises(ValueError, match=r"tokens must be \(B, L\) integer ids"):
            trim_padding(wrong)
