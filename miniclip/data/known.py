"""The usual sets of labelled images: how the CLIP paper prompts for them, and what their classes are called.

Templates and names, in known.json, are those released with the paper (arXiv:2103.00020, data/prompts.md in
openai/CLIP); ImageNet's come from open_clip. A set is there only for what its labels cannot say themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from miniclip.data.tables.source import FILE_EXTENSIONS, SPLIT_NAMES

_ASIDE = (*SPLIT_NAMES, "data", "images", "labels", "metadata")  # parts of a path that do not name the set
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class KnownSet:
    """What is known of one set.

    written: its templates; empty for ImageNet, see `templates`. aliases: other names of it, letters and digits only.
    order: its labels by number; labels that are neither these nor their numbers belong to another set.
    said: label, letters and digits only -> what a prompt says instead.
    """

    name: str
    written: Sequence[str]
    aliases: Sequence[str] = ()
    order: Sequence[str] = ()
    said: Mapping[str, str] = field(default_factory=dict)

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates with {} for the name of the class."""
        return tuple(self.written) or _imagenet_templates()

    def fits(self, labels: Sequence[str]) -> bool:
        """Whether these can be labels of the set, some of them left out."""
        if not self.order or _numbered(labels, len(self.order)):
            return True
        return {_squeezed(label) for label in labels} <= {_squeezed(label) for label in self.order}

    def names(self, labels: Sequence[str]) -> list[list[str]] | None:
        """All names of each label, or None where the labels say it themselves. Raises ValueError if a package lacks."""
        if self.name == "imagenet":
            return _imagenet_names(labels)
        start = 1 if "102" in labels else 0
        if self.name == "flowers102" and _numbered(labels, 102, start):
            order = _flowers()
            labels = [order[int(label) - start] for label in labels]
        elif self.order and _numbered(labels, len(self.order)):
            labels = [self.order[int(label)] for label in labels]
        elif not any(_squeezed(label) in self.said for label in labels):
            return None
        return [[self.said.get(_squeezed(label), label.replace("_", " ").strip())] for label in labels]


@cache
def known_sets() -> dict[str, KnownSet]:
    """By name."""
    sets = json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))
    return {name: KnownSet(name, entry.pop("templates"), **entry) for name, entry in sets.items()}


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


def _flowers() -> list[str]:
    try:
        from torchvision.datasets import Flowers102  # type: ignore[import-untyped, unused-ignore]

        return list(Flowers102.classes)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "the names of Flowers102's numbers come from torchvision, and this one does not have them; "
            "update it, or give a class-names file"
        ) from error


def _imagenet_templates() -> tuple[str, ...]:
    try:
        from open_clip import OPENAI_IMAGENET_TEMPLATES
    except ImportError as error:
        raise ValueError("ImageNet's templates come from open_clip; pip install open_clip_torch") from error
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


# Two pairs of ImageNet's classes share a name in open_clip's list; WordNet's first word tells them apart.
_APART = {744: "projectile", 836: "sunglass"}


def _imagenet_names(labels: Sequence[str]) -> list[list[str]] | None:
    """Of WordNet numbers, of 0 to 999, or of the 1,000 WordNet entries ("tench, Tinca tinca") in their usual order."""
    try:
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError as error:
        raise ValueError(
            "ImageNet's class names come from open_clip and timm; pip install open_clip_torch, "
            "or give a class-names file"
        ) from error
    names = [_APART.get(number, name) for number, name in enumerate(IMAGENET_CLASSNAMES)]
    info = ImageNetInfo()
    number = {wnid: i for i, wnid in enumerate(info.label_names())}
    if all(label in number for label in labels):
        return [[names[number[label]]] for label in labels]
    if _numbered(labels, 1000):
        return [[names[int(label)]] for label in labels]
    if len(labels) == 1000:
        entries = [info.index_to_description(i).split(",")[0] for i in range(1000)]
        same = sum(label.split(",")[0].lower() == entry.lower() for label, entry in zip(labels, entries, strict=True))
        if same >= 900:  # another order leaves a handful, another spelling of some entries nearly all
            return [[name] for name in names]
    return None
