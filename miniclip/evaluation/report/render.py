"""A report as Markdown and as one HTML file that works offline: the same blocks, two ways to write them down.

All text in a block is plain: it is escaped here, and nowhere else. No script goes into the page, and its policy lets
none run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal
from urllib.parse import quote

from PIL import Image

from miniclip.common.printing import printable
from miniclip.evaluation.report.files import PNG

_EMBEDDED = 1_500_000  # bytes; a larger PNG goes into the page as a smaller JPEG
_DENSITY = 1.5
FOLDER = "report"  # in the run, where all paths begin; the report stands in it


@dataclass(frozen=True)
class Heading:
    """level: 1 for the title, of which there is one, to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph. tone: status stands under the title; muted explains what stands beside it."""

    text: str
    tone: Literal["plain", "status", "muted"] = "plain"


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Command:
    """A command line."""

    text: str


@dataclass(frozen=True)
class Table:
    """words, last: how many columns at the left and at the right hold words; those between are figures.

    facts: two columns, a name and what it is; without a line of headings where the format allows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    last: int = 0
    facts: bool = False

    def is_figure(self, k: int) -> bool:
        """Whether column k stands at the right."""
        return self.words <= k < len(self.columns) - self.last


@dataclass(frozen=True)
class Link:
    """To a file of the run. name: its path below the run."""

    text: str
    name: str


Block = Heading | Text | Items | Command | Table | Link | PNG


def to_markdown(blocks: Sequence[Block]) -> str:
    """Markdown with the tables of GitHub's dialect; pictures are linked, as seen from RUN/report/."""
    return "\n\n".join(filter(None, map(_markdown, blocks))) + "\n"


def to_html(blocks: Sequence[Block]) -> str:
    """One file: pictures are inside, and nothing is fetched."""
    style = (files("miniclip.evaluation.report") / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "")
    parts = [(k, block) for k, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2]
    contents = " ".join(f'<a href="#part-{k}">{_escaped(block.text)}</a>' for k, block in parts)
    body = [_html(block, k) for k, block in enumerate(blocks)]
    if parts:  # after the title and what stands under it
        body.insert(parts[0][0], f'<nav aria-label="contents">{contents}</nav>')
    written = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_escaped(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{written}
</main>
</body>
</html>
"""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _address(name: str) -> str:
    """Of a file of the run, from the report; no character is left that Markdown or HTML would take for its own."""
    below = name.removeprefix(f"{FOLDER}/")
    return ("../" if below == name else "") + quote(os.fsencode(below))


def _html(block: Block, k: int) -> str:
    match block:
        case Heading(1, text):
            return f"<h1>{_escaped(text)}</h1>"
        case Heading(level, text):
            return f'<h{level} id="part-{k}">{_escaped(text)}</h{level}>'
        case Text(text, tone):
            return f'<p class="{tone}">{_escaped(text)}</p>'
        case Items(items):
            return "<ul>" + "".join(f"<li>{_escaped(item)}</li>" for item in items) + "</ul>"
        case Command(text):
            return f"<pre><code>{_escaped(text)}</code></pre>"
        case Link(text, name):
            return f'<p><a href="{html.escape(_address(name))}">{_escaped(text)}</a></p>'
        case Table():
            return _html_table(block)
        case PNG(_, caption, _, (width, height)):
            # drawn for screens with more than the usual density
            size = f' width="{round(width / _DENSITY)}" height="{round(height / _DENSITY)}"'
            shown = f'<img src="{_embedded(block)}" alt="{_escaped(caption)}"{size}>'
            return f"<figure>{shown}<figcaption>{_escaped(caption)}</figcaption></figure>"


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        shown = []
        for k, cell in enumerate(cells):
            kind = "th" if tag == "th" or k == 0 else "td"
            scope = "" if kind == "td" else ' scope="col"' if tag == "th" else ' scope="row"'
            number = ' class="number"' if table.is_figure(k) else ""
            shown.append(f"<{kind}{scope}{number}>{_cell(cell)}</{kind}>")
        return f"<tr>{''.join(shown)}</tr>"

    # above what scrolls
    title = f'<p class="title">{_escaped(table.title)}</p>' if table.title else ""
    head = "" if table.facts else f"<thead>{row(table.columns, 'th')}</thead>"
    body = "\n".join(row(cells, "td") for cells in table.rows)
    kind = ' class="facts"' if table.facts else ""
    label = _escaped(table.title or ", ".join(table.columns))
    # reachable by key, since a narrow window scrolls it
    return (
        f'{title}<div class="wide" role="region" aria-label="{label}" tabindex="0">'
        f"<table{kind}>{head}<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(text: str) -> str:
    """A narrow window breaks it after a slash and before an interval, which stays in one piece."""
    return re.sub(r" (\[[^\]]*\])$", r" <span>\1</span>", _escaped(text).replace("/", "/<wbr>"))


def _embedded(picture: PNG) -> str:
    """As a data URI."""
    content, kind = picture.content, "png"
    if len(content) > _EMBEDDED:
        content, kind = _smaller(content), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(content: bytes) -> bytes:
    image = Image.open(io.BytesIO(content), formats=("PNG",)).convert("RGBA")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    while True:
        buffer = io.BytesIO()
        flat.save(buffer, "JPEG", quality=85)
        if buffer.tell() <= _EMBEDDED:
            return buffer.getvalue()
        flat = flat.resize((max(1, flat.width * 3 // 4), max(1, flat.height * 3 // 4)), Image.Resampling.LANCZOS)


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} " + re.sub(r"(#+)$", r"\\\1", _inline(text))  # which would close the heading
        case Text(text):
            return _line(text)
        case Items(items):
            return "\n".join(f"- {_line(item)}" for item in items)
        case Command(text):
            text = printable(text)
            fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
            return f"{fence}sh\n{text}\n{fence}"
        case Link(text, name):
            return f"[{_label(text)}]({_address(name)})"
        case Table():
            return _markdown_table(block)
        case PNG(name, caption):
            return f"![{_label(caption)}]({_address(name)})"


def _markdown_table(table: Table) -> str:
    cells = [list(map(_inline, row)) for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(table.columns))]
    # the source should be readable too, but one long cell is no reason for blanks in all the others
    widths = [min(width, 40) for width in widths]
    ways: list[Callable[[str, int], str]] = [str.rjust if table.is_figure(k) else str.ljust for k in range(len(widths))]
    lines = ["| " + " | ".join(way(c, w) for c, w, way in zip(row, widths, ways, strict=True)) + " |" for row in cells]
    rule = (
        "| " + " | ".join("-" * (w - 1) + ":" if table.is_figure(k) else "-" * w for k, w in enumerate(widths)) + " |"
    )
    title = [f"**{_inline(table.title)}**", ""] if table.title else []
    return "\n".join([*title, lines[0], rule, *lines[1:]])


def _inline(text: str) -> str:
    """Text that Markdown takes for nothing but text, in a cell or a heading."""
    text = re.sub(r"([\\`*<>|~&$])", r"\\\1", printable(text))
    # brackets mean nothing by themselves; nor does an underscore inside a word
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _label(text: str) -> str:
    """The same inside the brackets of a link."""
    return re.sub(r"([\\`*_<>|~&$\[\]])", r"\\\1", printable(text))


def _line(text: str) -> str:
    """The same where a line begins, and a heading, a list, a rule or a definition might."""
    text = re.sub(r"^([#+=\[-])", r"\\\1", _inline(text))
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
