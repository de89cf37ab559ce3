"""HTML as a test reads it."""

from __future__ import annotations

from html.parser import HTMLParser

_READ = ("h1", "h2", "h3", "li", "td", "th", "figcaption")


class Words(HTMLParser):
    """tables: lists of lines of cells. lines: the text of each element of a kind. images: their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open, self.lines = "", "", dict[str, list[str]]()
        self.tables: list[list[list[str]]] = []
        self.tags, self.classes, self.links = list[str](), list[str](), list[str]()
        self.images: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.tags.append(tag)
        self.classes += (known.get("class") or "").split()
        self.links += [known["href"] or ""] if "href" in known else []
        if tag == "img":
            self.images.append(known)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in _READ:
            self.open = tag
            self.lines.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = "" if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open:
            self.lines[self.open][-1] += data

    @property
    def sources(self) -> list[str]:
        return [image["src"] or "" for image in self.images]

    @property
    def headings(self) -> list[list[str]]:
        return [self.lines.get(tag, []) for tag in ("h1", "h2", "h3")]
