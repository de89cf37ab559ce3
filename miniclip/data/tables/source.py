"""What data.source says: a file, a folder, a pattern, a URL or a name; the splits that names tell; near names."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from miniclip.common.printing import first_few, near_name
from miniclip.data.formats import looks_like_image
from miniclip.data.images import is_below, roots_of

log = logging.getLogger(__name__)

ALIASES = {"train": ("training",), "validation": ("val", "valid", "dev"), "test": ("testing", "eval")}
SPLIT_NAMES = tuple(name for role, others in ALIASES.items() for name in (role, *others))
TABLE_EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
OBJECT_EXTENSIONS = (".json", ".token")  # tables, too, where they are named, or named as those that are handed out
FILE_EXTENSIONS = (*TABLE_EXTENSIONS, *OBJECT_EXTENSIONS, ".parquet", ".tar")  # what ends so is no name of the Hub
STREAMED = "data.streaming reads tars (.tar) and Parquet files (.parquet); set it to false for other data"

# of COCO, Karpathy's splits, Flickr8k and Flickr30k, and JSON as metadata; of the last two also captions.txt
_HANDED_OUT = re.compile(
    rf"(captions(_\w+)?|metadata|annotations|labels|dataset(_coco|_flickr8k|_flickr30k)?|{'|'.join(SPLIT_NAMES)})\.json"
    r"|captions\.txt|(?!.*lemma).*\.token(\.txt)?"
)
HIDDEN = (".", "__MACOSX", "@eaDir")  # folders of macOS and Synology, with small copies of the images
ANNOTATIONS = ("annotations", "flickr8k_text")  # folders beside those of the images
_MOST = 1_000_000
_LISTED = 20_000  # entries of a folder among which a near name is sought


@dataclass(frozen=True)
class Source:
    """Looked at once, for all kinds to choose by. name, revision: configuration, and branch or commit, of a Hub set.
    named: folders of the sources beside it, into which its links may lead, too."""

    text: str
    name: str | None = None
    revision: str | None = None
    named: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return Path(self.text).expanduser()

    @cached_property
    def is_folder(self) -> bool:
        return not is_url(self.text) and self.path.is_dir()

    @property
    def folder(self) -> str | None:
        """The folder that the user names: itself, that of a file, or the one above a pattern; None far away."""
        if is_url(self.text):
            return None
        if self.is_folder:
            return str(self.path)
        return literal_folder(str(self.path)) or "." if self.path.is_file() or is_pattern(self.text) else None

    def roots(self, own: Path) -> tuple[str, ...]:
        """`roots_of` a table's own folder and of those that the user names."""
        return roots_of(own, *((self.path,) if self.is_folder else ()), *self.named)

    @cached_property
    def files(self) -> list[str]:
        """The file, or those of a pattern or a URL; none of a folder, nor of a name that nothing bears.

        In a pattern * and ** are looked up (sorted), braces are spelt out, and each of those has to be there; of URLs
        braces alone are spelt out. Raises FileNotFoundError, with the nearest name.
        """
        if is_url(self.text):
            return braces(self.text)
        if self.path.is_file():
            return [str(self.path)]
        path = str(self.path)
        folder = literal_folder(path)
        pattern = path.removeprefix(folder)
        if self.is_folder or not is_pattern(pattern):
            return []
        files: list[str] = []
        for end in braces(pattern):
            one, fits = folder + end, glob.has_magic(end)
            # not Path.glob, which takes hidden files too
            names = glob.glob(glob.escape(folder) + end, recursive=True) if fits else [one]  # noqa: PTH207
            found = sorted(name for name in names if Path(name).is_file())
            if not found:
                none = f"{one}: no file fits" if fits else f"{self.text}: there is no file {one}"
                raise FileNotFoundError(f"{none} (looked from {Path.cwd()}){near_file(one)}")
            files += found
        return list(dict.fromkeys(files))

    @cached_property
    def extension(self) -> str:
        """That of the files, in lower case; empty if there are none. Raises ValueError if they have several."""
        kinds = sorted({Path(f.split("?")[0] if is_url(f) else f).suffix.lower() for f in self.files})
        if len(kinds) > 1:
            raise ValueError(f"{self.text} fits files of several kinds ({', '.join(kinds)}); narrow it down to one")
        return kinds[0] if kinds else ""

    @cached_property
    def _below(self) -> list[str]:
        return files_below(self.path, roots=self.roots(self.path)) if self.is_folder else []

    def below(self, *extensions: str) -> list[str]:
        """Files of the folder, see `files_below`; none if it is no folder."""
        return [file for file in self._below if file.lower().endswith(extensions)]

    @cached_property
    def tables(self) -> dict[str, Path]:
        """Split -> CSV, TSV, JSONL or JSON file of the folder, or of its folders of splits; empty if it has none.

        Raises ValueError where it is unclear.
        """
        found, folder = dict[str, Path](), self.path if self.is_folder else None
        while folder is not None and not found:
            found = _only_table(folder) or _tables_of_splits(sub_folders(folder))
            folder = _only_folder(folder)  # unpacked into a folder of its own
        self._check_inside(found.values())
        return found

    @property
    def label(self) -> str:
        return str(self.path) if self.is_folder else self.text

    def has(self, extension: str) -> bool:
        """Whether its files, or some below the folder, are of a kind."""
        return bool(self.below(extension)) if self.is_folder else self.extension == extension

    def by_split(self, extension: str) -> dict[str, list[str]]:
        """Split -> those files."""
        if self.is_folder:
            files = [self.path / file for file in self.below(extension)]
            self._check_inside(files)
            return by_split(list(map(str, files)), f"{self.path}/*")
        return by_split(self.files, self.text)

    def _check_inside(self, files: Iterable[Path]) -> None:
        """Raise ValueError for a link out of the folder: what a data set brings along may not read other files."""
        roots = self.roots(self.path)
        for file in files:
            if not is_below(real := os.path.realpath(file), roots):
                raise ValueError(f"{file} is a link out of {self.path}; name {real} itself, or copy it there")


def folders_of(sources: Iterable[str]) -> tuple[str, ...]:
    """The folders that the user names with some sources."""
    return tuple(folder for text in sources if (folder := Source(text).folder) is not None)


def files_below(folder: Path, extensions: tuple[str, ...] = ("",), roots: Sequence[str] = ()) -> list[str]:
    """Files below a folder, as sorted paths relative to it; hidden ones are left out.

    Links to folders are followed into the roots (see `roots_of`; left out, those of the folder), but not in a circle,
    nor to one folder twice: others are named in the log.
    """
    found, out, roots = list[str](), list[str](), roots or roots_of(folder)
    followed = set[str]()  # else two links each in twenty folders lead down a million ways
    for where, below, files in os.walk(folder, followlinks=True):
        shown = sorted(d for d in below if not d.startswith(HIDDEN))
        below.clear()
        for name in shown:
            if os.path.islink(link := f"{where}/{name}"):  # noqa: PTH114
                target = os.path.realpath(link)
                again = target in followed
                followed.add(target)
                if again or not is_below(target, roots) or _is_around(target, link, folder):
                    out.append(os.path.relpath(link, folder))
                    continue
            below.append(name)
        inside = str(Path(where).relative_to(folder) / "_")[:-1]  # with its slash, if it is not the folder itself
        shown = sorted(name for name in files if name.lower().endswith(extensions) and not name.startswith("."))
        found += [inside + name for name in shown]
    if out:
        log.warning(
            "%s: left out are links to folders outside of it, in a circle, or followed already: %s",
            folder,
            first_few(out),
        )
    return found


def _is_around(target: str, link: str, folder: Path) -> bool:
    """Whether one of the folders that a link lies in, from `folder` down, really is its target."""
    return target in (os.path.realpath(place) for place in Path(link).parents if place.is_relative_to(folder))


def _only_table(folder: Path) -> dict[str, Path]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and "." in e.name and e.is_file())
    tables = [n for n in names if n.lower().endswith(TABLE_EXTENSIONS) and not n.lower().endswith(".txt")]
    stems = {name.rpartition(".")[0] for name in names if looks_like_image(name)}
    if not tables and not any(
        n.lower().endswith((".tar", ".parquet")) or (n.lower().endswith(".txt") and n[:-4] in stems) for n in names
    ):
        tables = [n for n in names if _HANDED_OUT.fullmatch(n.lower())]
    files = [folder / name for name in tables]
    named = next(
        (own for stem in ("metadata", "labels") if (own := [p for p in files if p.stem.lower() == stem])), files
    )
    splits = {told_split(p.stem) if len(named) > 1 else "train": p for p in named}
    if None not in splits and len(splits) == len(named):
        return {str(split): file for split, file in splits.items()}
    raise ValueError(f"{folder} holds several tables: {', '.join(p.name for p in named)}; name one as the source")


def _tables_of_splits(folders: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        split, inside = told_split(folder.name), dict[str, Path]()
        within = folder if split is not None or folder.name.lower() in ANNOTATIONS else None
        while within is not None and not inside:
            inside, within = _only_table(within), _only_folder(within)
        for name, table in inside.items():
            if found.setdefault(split or name, table) != table:
                raise ValueError(
                    f"{found[split or name]} and {table} are both for {split or name}; name one as the source"
                )
    return found


def _only_folder(folder: Path) -> Path | None:
    """The only folder in one that holds no images; else None."""
    inside = sub_folders(folder)
    return inside[0] if len(inside) == 1 and not any(map(looks_like_image, os.listdir(folder))) else None  # noqa: PTH208


def told_split(name: str) -> str | None:
    """The split that the name of a folder tells by its first or last word, in lower case; None if it tells none.

    "Val", "seg_train", "testing_images", "train2017", "TrainSet", "my test set" do; "contest" and "train_test" do not.
    Of a folder among classes the name alone is not enough, as of "bullet_train".
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    words = [word for word in (re.sub(r"(set|data|images)$", "", word.lower()) for word in words) if word]
    found = {word for word in (*words[:1], *words[-1:]) if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def splits_of(paths: Iterable[str], label: str) -> dict[str, str]:
    """Relative folder of each path -> the split that it tells; empty if none does.

    By the first level that tells several, so that train/test_tube/ is trained on; else by the last folder that is
    called as a split. A lone "train" among other folders may as well be a railway's, and a name such as "test_tube"
    counts only beside another split's. Raises ValueError if some paths lie in folders of splits and some do not.
    """
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(path.rpartition("/")[0], path)
    parts = {folder: folder.split("/") for folder in first}
    for level in zip(*parts.values(), strict=False):
        words = [told_split(name) for name in level]
        if len(set(words)) > 1 and None not in words:
            return {folder: str(word) for folder, word in zip(parts, words, strict=True)}
    names = {
        f: next((n for n in reversed(p) if _is_split(n)), next(filter(told_split, p), "")) for f, p in parts.items()
    }
    told = {folder: told_split(name) or "" for folder, name in names.items()}
    splits = set(told.values()) - {""}
    sure = any(map(_is_split, names.values()))
    outside = next((path for folder, path in first.items() if not told[folder]), None)
    if not (sure or len(splits) > 1) or (outside is not None and splits <= {"train", "training"}):
        return {}
    if outside is not None:
        raise ValueError(
            f"{label}: images lie in folders of splits ({', '.join(sorted(set(names.values()) - {''}))}) and outside "
            f"of them, e.g. {outside}; move those into a split, name one folder as the source, or give the table a "
            "column 'split'"
        )
    return told


def _is_split(name: str) -> bool:
    """Whether a folder is called as a split and no more, but for the year of one of COCO's."""
    return re.sub(r"\d+$", "", name.lower()) in SPLIT_NAMES


def sub_folders(root: Path) -> list[Path]:
    """Folders right below, hidden ones left out."""
    with os.scandir(root) as entries:  # a folder of many images: no look at each of them
        names = [entry.name for entry in entries if not entry.name.startswith(HIDDEN) and entry.is_dir()]
    return [root / name for name in sorted(names)]


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


def literal_folder(pattern: str) -> str:
    """Folder of a file, or the one above all files that a pattern may stand for. A folder that is there under a name
    such as "[2024] set" stands for itself."""
    literal, start = pattern, 0
    while is_pattern(pattern[start:]) and (magic := re.compile(r"[*?\[{]").search(pattern, start)):
        end = pattern.find("/", magic.end())
        if end < 0 or is_url(pattern) or not Path(pattern[:end]).expanduser().is_dir():
            literal = pattern[: magic.start()]
            break
        start = end
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
    numbered = re.fullmatch(r"(\w+)-\d{5}-of-\d{5}", stem)  # how the Hub names the files of a split, and Spark parts
    rest = numbered[1] if numbered is not None and numbered[1] != "part" else "train"
    return next((told for folder in reversed(folders) if (told := told_split(folder))), rest)


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
