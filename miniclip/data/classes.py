"""What classes are called in prompts: by a file of class names, by their labels, or as the usual sets have it.

The usual sets' templates and names, in known.json, are those released with the CLIP paper (arXiv:2103.00020,
data/prompts.md in openai/CLIP); ImageNet's are open_clip's, but for two pairs of classes that share a name there and go
by WordNet's first word here (744 and 836). A set is there only for what its labels cannot say themselves.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from miniclip.data.tables.source import FILE_EXTENSIONS, told_split
from miniclip.data.tables.texts import read_text

_ASIDE = ("data", "images", "labels", "metadata")  # parts of a path that do not name the set
_WNID = re.compile(r"n\d{8}")
_BEFORE = re.compile(r"n\d{8}[\W_]+(?=\w)")  # n02085620-Chihuahua
_NUMBER = re.compile(r"(\d+)[\W_]+(?=[^\W\d_])")  # 001.Black_footed_Albatross


class _Entry(NamedTuple):
    where: str
    key: str | None
    names: list[str]


def name_classes(keys: Sequence[str], file: str | Path | None, by: str = "name") -> list[list[str]]:
    """Folder names or labels -> all names of each for prompts, in the same order; the first is the one to show.

    file: lines `key<TAB>name` or a JSON object; or lines or a JSON list of names alone, which go by name if one of them
    is a key but for case and what is no letter or digit, or holds the words of one key alone; by number where the keys
    are the numbers from 0 or 1 on, perhaps behind one word; and else by order, with by="order" alone. A line may give
    further names after |, JSON a list of names. None: what `cleaned` makes of the keys.
    Raises FileNotFoundError, or ValueError that names the lines or classes.
    """
    if file is None:
        return [[name] for name in cleaned(keys)]
    path, entries = Path(file).expanduser(), _read(file)
    if entries[0].key is None:
        found = [None] * len(entries) if by == "order" else _by_name(path, keys, entries)
        if not any(found):
            if len(entries) != len(keys):
                raise ValueError(
                    f"{path} has {len(entries)} names for {len(keys)} classes: {_short(keys)}; write one a line, or "
                    "`folder<TAB>name`"
                )
            places = range(len(keys)) if by == "order" else _numbers(keys)
            if places is None:
                pairs = ", ".join(f"{key} -> {e.names[0]}" for key, e in zip(keys[:3], entries, strict=False))
                raise ValueError(
                    f"{path}: none of its names is that of a class ({_short(keys)}), so that nothing says whose they "
                    f"are; write `folder<TAB>name`, or say --classnames_by order if this is right: {pairs}, ..."
                )
            return [entries[place].names for place in places]
        entries = [e._replace(key=e.names[0] if key is None else key) for e, key in zip(entries, found, strict=True)]
    names = {entry.key: entry.names for entry in entries}
    missing = [key for key in keys if key not in names]
    extra = [f"{entry.key} ({entry.where})" for entry in entries if entry.key not in keys]
    if missing or extra:
        problems = [f"lacks {_short(missing)}"] * bool(missing) + [f"names {_short(extra)} without images"] * bool(
            extra
        )
        raise ValueError(f"{path} {' and '.join(problems)}; it has to name the {len(keys)} classes, each once")
    return [names[key] for key in keys]


def read_classes(file: str | Path) -> tuple[list[str], list[list[str]]]:
    """What a class-names file calls the classes, and all names of each, in its order; a name stands for itself.

    Raises FileNotFoundError, or ValueError that names the line.
    """
    entries = _read(file)
    return [entry.names[0] if entry.key is None else entry.key for entry in entries], [entry.names for entry in entries]


def _read(file: str | Path) -> list[_Entry]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"class-names file {path} does not exist")
    entries = (_read_json if path.suffix.lower() == ".json" else _read_lines)(path, read_text(path))
    _check_apart(path, entries)
    return entries


def cleaned(keys: Sequence[str]) -> list[str]:
    """Folder names or labels as prompts have them, without WordNet's number before a word, nor one that stands before
    each. Raises ValueError that names two which are then the same."""
    numbers = [found[1] for key in keys if (found := _NUMBER.match(key))]
    # not of 2-door and 4-door, where the number is all that differs
    numbered = len(set(numbers)) == len(keys) > 1 < len({_NUMBER.sub("", key, count=1) for key in keys})
    names = [spoken((_NUMBER if numbered else _BEFORE).sub("", key, count=1)) for key in keys]
    first: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        if name != spoken(key) and first.get(name, key) != key:
            raise ValueError(
                f"{first[name]!r} and {key!r} are both {name!r} without what stands before it; give a class-names file"
            )
        first.setdefault(name, key)
    return names


def spoken(key: str) -> str:
    """A folder name or label as a prompt would have it."""
    return " ".join(key.replace("_", " ").split())


def sorted_keys(keys: Collection[str]) -> list[str]:
    """In alphabetical order; numbers by value, so that class 10 does not come before class 2."""
    return sorted(keys, key=lambda k: (int(k), k)) if all(map(str.isdecimal, keys)) else sorted(keys)


def _by_name(path: Path, keys: Sequence[str], entries: Sequence[_Entry]) -> list[str | None]:
    """Of each entry the key that one of its names is; a name that is one to the letter goes before others.

    The rest go by words ("a body of water" for Water), if each then has one key, and no two the same.
    """
    owners: dict[str, list[str]] = {}
    for key, name in zip(keys, cleaned(keys), strict=True):
        for same in {_squeezed(key), _squeezed(name)} - {""}:
            owners.setdefault(same, []).append(key)
    exact = {spoken(key): key for key in keys}
    loose = {same: own[0] for same, own in owners.items() if len(own) == 1}
    found, first = [], dict[str, str]()
    for entry in entries:
        own = (exact.get(spoken(name)) or loose.get(_squeezed(name)) for name in entry.names)
        found.append(next(filter(None, own), None))
        if found[-1] is not None and first.setdefault(found[-1], entry.where) != entry.where:
            raise ValueError(f"{path}, {entry.where}: class {found[-1]!r} stands in {first[found[-1]]} already")
    left = {
        key: _words(name)
        for key, name in zip(keys, cleaned(keys), strict=True)
        if key not in first and not wordless([key])
    }
    rest = [entry for entry, key in zip(entries, found, strict=True) if key is None]
    fits = [[key for key, own in left.items() if own and _holds(entry, own)] for entry in rest]
    if all(len(fit) == 1 for fit in fits) and len({fit[0] for fit in fits}) == len(fits):
        by_words = iter(fits)
        return [next(by_words)[0] if key is None else key for key in found]
    return found


def _holds(entry: _Entry, own: set[str]) -> bool:
    """Whether its names hold these words, and are no rows `0 cat`, `cat: tabby` or `cat,tabby` of a table."""
    words = set().union(*map(_words, entry.names))
    first, *rest = re.split(r"[:;,=>]|\s-\s", entry.names[0], maxsplit=1)
    return own <= words and not re.search(r"\d", "".join(words - own)) and not (rest and _words(first) == own)


def _words(name: str) -> set[str]:
    return set(
        re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name)).casefold())
    )


def _numbers(keys: Sequence[str]) -> list[int] | None:
    """The place of each key if they are the numbers from 0 or 1 on, perhaps behind one word; else None."""
    word = keys[0].rstrip("0123456789")
    rest = [key.removeprefix(word) for key in keys]
    first = next((first for first in (0, 1) if _numbered(rest, len(rest), first)), None)
    return None if first is None else [int(number) - first for number in rest]


def _read_lines(path: Path, text: str) -> list[_Entry]:
    lines = [(f"line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty; write one class a line")
    keyed = any("\t" in line.strip() for _, line in lines)
    entries = []
    for where, line in lines:
        key, _, rest = line.partition("\t") if keyed else ("", "", line)
        names = [name.strip() for name in rest.split("|")]
        if not all(names) or (keyed and not key.strip()):
            wanted = "folder<TAB>name" if keyed else "name"
            raise ValueError(f"{path}, {where}: {line!r}; write `{wanted}`, or `{wanted} | other name`")
        entries.append(_Entry(where, key.strip() if keyed else None, names))
    return entries


def _read_json(path: Path, text: str) -> list[_Entry]:
    wanted = "expected a list of names, or an object of folder: name"
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"{path}: {wanted}")
    entries = []
    for number, item in enumerate(value, 1):
        key, names = item if isinstance(value, _Pairs) else (None, item)
        names = [names] if isinstance(names, str) else names
        if not (isinstance(names, list) and names and all(isinstance(n, str) and n.strip() for n in names)):
            raise ValueError(
                f"{path}, entry {number}: {wanted}; a name is a text or a list of texts, and this one is {names!r}"
            )
        entries.append(_Entry(f"entry {number}", key, [name.strip() for name in names]))
    return entries


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its keys as they stand, as a dict would hide one that comes twice."""


def _check_apart(path: Path, entries: Sequence[_Entry]) -> None:
    keys: dict[str, str] = {}
    names: dict[str, str] = {}
    for entry in entries:
        if entry.key is not None and keys.setdefault(entry.key, entry.where) != entry.where:
            raise ValueError(f"{path}, {entry.where}: class {entry.key!r} stands in {keys[entry.key]} already")
        own: set[str] = set()
        for name in entry.names:
            same = spoken(name).casefold()
            if names.setdefault(same, entry.where) != entry.where or same in own:
                raise ValueError(
                    f"{path}, {entry.where}: the name {name!r} stands in {names[same]} already; "
                    "prompts cannot tell classes of one name apart"
                )
            own.add(same)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


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
    names, or what stands in the label column; numbers as text. WordNet numbers (n01440764) alone are ImageNet's.
    """
    if labels and all(_WNID.fullmatch(label) for label in labels):
        return known_sets()["imagenet"]
    path = Path(source).expanduser()
    path = path.resolve() if path.exists() else path
    if path.suffix.lower() in FILE_EXTENSIONS:
        path = path.with_suffix("")
    aside = (part.lower() in _ASIDE or told_split(part) or set(part) & set("*{") for part in reversed(path.parts))
    part = next((part for part, no in zip(reversed(path.parts), aside, strict=True) if not no), "")
    name = re.sub(r"^(wds|vtab)+", "", _squeezed(part))  # as CLIP_benchmark's copies on the Hub begin
    found = next((known for known in known_sets().values() if name in (_squeezed(known.name), *known.aliases)), None)
    return found if found is not None and found.fits(labels) else None


def wordless(labels: Sequence[str]) -> bool:
    """Whether the labels are numbers, plain (also -1 and 2.0) or WordNet's, which say nothing in a prompt."""
    return all(re.fullmatch(r"[+-]?\d+([.,]\d+)?", label) or _WNID.fullmatch(label) for label in labels)


def _squeezed(text: str) -> str:
    # composed, since macOS takes names of files apart: e and an accent
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", text).casefold())


def _numbered(labels: Sequence[str], count: int, first: int = 0) -> bool:
    """Whether the labels are all the numbers from first on, in any order."""
    return (
        len(labels) == count
        and all(label.isdecimal() for label in labels)
        and {int(label) for label in labels} == set(range(first, first + count))
    )
