"""Tables for LaTeX, in the style of booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from miniclip.common.console import is_words
from miniclip.common.printing import printable
from miniclip.compare.tables import BEST
from miniclip.evaluation.tables import Table

_MARKS = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}


def latex(tables: Sequence[Table]) -> str:
    r"""A table environment each, for \input into a document that has \usepackage{booktabs}."""
    return "% needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs}\n" + "\n".join(map(_table, tables))


def _table(table: Table) -> str:
    sides = "".join("l" if k == 0 or is_words(name) else "r" for k, name in enumerate(table.columns))
    lines = [" & ".join(map(_text, row)) + r" \\" for row in (table.columns, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *[rf"\caption{{{_text(table.title)}}}"] * bool(table.title),
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _text(cell: str) -> str:
    """Text that TeX takes for nothing but text; the best of a column in bold, and minus signs of numbers as such."""
    whole = printable(cell)
    text = "".join(_MARKS.get(c, c) for c in whole.removesuffix(BEST))
    text = re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)
    return rf"\textbf{{{text}}}" if whole.endswith(BEST) else text
