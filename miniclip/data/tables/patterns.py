"""Names of files: patterns that stand for several, the split that a name tells, and the nearest name there is."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

SPLIT_NAMES = ("train", "training", "validation", "val", "valid", "dev", "test", "testing", "eval")

_MOST = 1_000_000
_LISTED = 20_000  # entries of a folder among which a near name is sought


def is_url(source: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def is_pattern(source: str) -> bool:
    """Whether a name stands for several files; in a URL only braces do."""
    return braces(source) != [source] or (not is_url(source) and glob.has_magic(source))


def braces(pattern: str) -> list[str]:
    """Names that {a,b} and {000..031} stand for, in order, as in a shell; a range keeps its leading zeros."""
    for opening in re.finditer(r"\{", pattern):
        depth, cuts = 0, [opening.start()]
        for place in range(opening.start(), len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[place], 0)
            if depth == 0 or (depth == 1 and pattern[place] == ","):
                cuts.append(place)
            if depth == 0:
                break
        if depth:
            continue  # never closed: the brace stands for itself
        inside = [pattern[first + 1 : last] for first, last in pairwise(cuts)]
        middles = _range(inside[0]) if len(inside) == 1 else [name for part in inside for name in braces(part)]
        if middles:
            rest = braces(pattern[cuts[-1] + 1 :])
            if len(middles) * len(rest) > _MOST:
                raise ValueError(f"{pattern} stands for more than {_MOST:,} names")
            return [pattern[: opening.start()] + middle + end for middle in middles for end in rest]
    return [pattern]


def _range(text: str) -> list[str]:
    """What 000..031 stands for; empty if it is no range."""
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if bounds is None:
        return []
    first, last = int(bounds[1]), int(bounds[2])
    if abs(last - first) >= _MOST:
        raise ValueError(f"{{{text}}} stands for {abs(last - first) + 1:,} names, more than {_MOST:,}")
    zeros = any(bound.startswith("0") and bound != "0" for bound in bounds.groups())
    width = max(map(len, bounds.groups())) if zeros else 0
    step = 1 if first <= last else -1
    return [str(i).zfill(width) for i in range(first, last + step, step)]


def expand(pattern: str) -> list[str]:
    """Files of a pattern; * and ** are looked up (sorted), braces are spelt out, and each of those has to be there.

    URLs are spelt out alone. Raises FileNotFoundError, with the nearest name.
    """
    if is_url(pattern):
        return braces(pattern)
    files: list[str] = []
    for one in braces(str(Path(pattern).expanduser())):
        if glob.has_magic(one):
            # not Path.glob, which takes hidden files too
            found = sorted(f for f in glob.glob(one, recursive=True) if Path(f).is_file())  # noqa: PTH207
            if not found:
                raise FileNotFoundError(f"{one}: no file fits (looked from {Path.cwd()}){near_file(one)}")
            files += found
        elif not Path(one).is_file():
            raise FileNotFoundError(f"{pattern}: there is no file {one} (looked from {Path.cwd()}){near_file(one)}")
        else:
            files.append(one)
    return list(dict.fromkeys(files))


def literal_folder(pattern: str) -> str:
    """Folder of a file, or the one above all files that a pattern may stand for."""
    literal = re.split(r"[*?\[{]", pattern, maxsplit=1)[0] if is_pattern(pattern) else pattern
    return literal.rpartition("/")[0] or ("/" if literal.startswith("/") else "")


def by_split(files: Sequence[str], pattern: str) -> dict[str, list[str]]:
    """Split -> files: a word of the file's name tells it, else a folder that the pattern leaves open, else "train"."""
    known = len(Path(literal_folder(pattern)).expanduser().parts)
    splits: dict[str, list[str]] = {}
    for file in files:
        *folders, name = Path(file).parts[known:]
        splits.setdefault(_split_of(name, folders), []).append(file)
    return splits


def _split_of(name: str, folders: Sequence[str]) -> str:
    stem = name.split(".")[0].lower()
    for word in re.split(r"[^a-z]+", stem):
        if word in SPLIT_NAMES:
            return word
    numbered = re.fullmatch(r"(\w+)-\d{5}-of-\d{5}", stem)  # how the Hub names the files of a split
    if numbered is not None:
        return numbered[1]
    return next((f.lower() for f in reversed(folders) if f.lower() in SPLIT_NAMES), "train")


def near_name(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, whatever its case; None if none is near."""
    by_case = {name.casefold(): name for name in reversed(list(names))}
    found = difflib.get_close_matches(word.casefold(), by_case, 1)
    return by_case[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """An end for a message, or nothing."""
    near = near_name(word, names)
    return f"; did you mean {near}?" if near is not None else ""


def near_file(path: str | Path) -> str:
    """An end for the message that a file is not there: the nearest name in the last folder that is, or nothing."""
    path = Path(path)
    while not path.parent.is_dir() and path.parent != path:
        path = path.parent
    if glob.has_magic(path.name):
        return ""
    try:
        names = [entry.name for entry, _ in zip(path.parent.iterdir(), range(_LISTED), strict=False)]
    except OSError:
        return ""
    near = near_name(path.name, sorted(names))
    return f"; did you mean {path.parent / near}?" if near is not None else ""
