"""The usual sets of labelled images: how the CLIP paper prompts for them, and what their classes are called.

Templates and names, in known.json, are those released with the paper (arXiv:2103.00020, data/prompts.md in
openai/CLIP); ImageNet's are open_clip's, but for two pairs of classes that share a name there and go by WordNet's first
word here (744 and 836). A set is there only for what its labels cannot say themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from miniclip.data.classes import spoken
from miniclip.data.tables.source import FILE_EXTENSIONS, SPLIT_NAMES

_ASIDE = (*SPLIT_NAMES, "data", "images", "labels", "metadata")  # parts of a path that do not name the set
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class KnownSet:
    """What is known of one set. templates: with {} for the name of the class.

    aliases: other names of it, letters and digits only. order: its labels by number; labels that are neither these nor
    their numbers belong to another set. said: label, letters and digits only -> what a prompt says instead.
    numbers: what its numbers stand for, where labels in words may be any. wnids, entries: their WordNet numbers, and
    first words there.
    """

    name: str
    templates: tuple[str, ...]
    aliases: Sequence[str] = ()
    order: Sequence[str] = ()
    said: Mapping[str, str] = field(default_factory=dict)
    numbers: Sequence[str] = ()
    wnids: Sequence[str] = ()
    entries: Sequence[str] = ()

    def fits(self, labels: Sequence[str]) -> bool:
        """Whether these can be labels of the set, some of them left out."""
        if not self.order or _numbered(labels, len(self.order)):
            return True
        return {_squeezed(label) for label in labels} <= {_squeezed(label) for label in self.order}

    def names(self, labels: Sequence[str]) -> list[list[str]] | None:
        """All names of each label, or None where the labels say it themselves."""
        names = self.order or self.numbers
        by_wnid = dict(zip(self.wnids, names, strict=False))
        first = 1 if self.name == "flowers102" and "102" in labels else 0
        if all(label in by_wnid for label in labels):
            return [[by_wnid[label]] for label in labels]
        if names and _numbered(labels, len(names), first):
            return [[names[int(label) - first]] for label in labels]
        if self.entries and len(labels) == len(self.entries):
            pairs = zip(labels, self.entries, strict=True)
            same = sum(label.split(",")[0].lower() == entry.lower() for label, entry in pairs)
            if same >= 900:  # another order leaves a handful, another spelling of some entries nearly all
                return [[name] for name in names]
        if any(_squeezed(label) in self.said for label in labels):
            return [[self.said.get(_squeezed(label), spoken(label))] for label in labels]
        return None


@cache
def known_sets() -> dict[str, KnownSet]:
    """By name."""
    sets = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
    return {name: KnownSet(name, tuple(entry.pop("templates")), **entry) for name, entry in sets.items()}


def find_known(source: str, labels: Sequence[str]) -> KnownSet | None:
    """The usual set that a source of labelled images is, or None.

    source: folder, file or Hub name, of which the last part counts that is not the name of a split. labels: folder
    names, or what stands in the label column; numbers as text. Labels that are all WordNet numbers (n01440764) make
    it ImageNet under any name.
    """
    if labels and all(_WNID.fullmatch(label) for label in labels):
        return known_sets()["imagenet"]
    name = _last_part(source)
    found = next((known for known in known_sets().values() if name in (_squeezed(known.name), *known.aliases)), None)
    return found if found is not None and found.fits(labels) else None


def wordless(labels: Sequence[str]) -> bool:
    """Whether the labels are numbers, plain or WordNet's, which say nothing in a prompt."""
    return all(label.isdecimal() or _WNID.fullmatch(label) for label in labels)


def _last_part(source: str) -> str:
    path = Path(source).expanduser()
    path = path.resolve() if path.exists() else path
    if path.suffix.lower() in FILE_EXTENSIONS:
        path = path.with_suffix("")
    name = next((part for part in reversed(path.parts) if part.lower() not in _ASIDE and not set(part) & set("*{")), "")
    return re.sub(r"^(wds|vtab)+", "", _squeezed(name))  # as CLIP_benchmark's copies on the Hub begin


def _squeezed(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def _numbered(labels: Sequence[str], count: int, first: int = 0) -> bool:
    """Whether the labels are all the numbers from first on, in any order."""
    return (
        len(labels) == count
        and all(label.isdecimal() for label in labels)
        and {int(label) for label in labels} == set(range(first, first + count))
    )
