"""Text that comes from data, for Markdown: it stays text there."""

from __future__ import annotations

import re

from markupsafe import Markup

from miniclip.common.printing import printable


def inline(text: str, brackets: bool = False) -> str:
    """Text that Markdown takes for nothing but text, in a cell or a heading. brackets: in those of a link."""
    text = re.sub(r"([\\`*<>|~&$#])", r"\\\1", text)
    # brackets mean nothing by themselves; nor does an underscore inside a word
    text = re.sub(r"([\[\]])" if brackets else r"(\])(?=[(\[:])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def label(text: str) -> Markup:
    return Markup(inline(printable(text), brackets=True))


def line(text: str) -> Markup:
    """The same where a line begins, and a list, a rule or a definition might."""
    text = re.sub(r"^([+=\[-])", r"\\\1", inline(printable(text)))
    return Markup(re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text))
