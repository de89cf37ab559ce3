"""Small random data sets of all layouts: what is read is what their owner meant, or the refusal names the cause.

`python tests/test_fuzz.py 500` tries as many, and `python tests/test_fuzz.py tables:7` one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fuzz import FAMILIES, Photo, Plan, draw_plan
from support.fuzz_oracle import Group, judge
from support.fuzz_write import number_of, write

from miniclip.config import DataConfig
from miniclip.data.captioned import ImageSource, open_source
from miniclip.data.images import BadImage, decode_image
from miniclip.data.labelled import open_labelled
from miniclip.data.stream.held_out import streamed_eval_pairs
from miniclip.data.stream.shards import training_shards
from miniclip.data.stream.stream import usable_captions
from miniclip.evaluation.prompts import check_prompts
from miniclip.models.tokenizer import Tokenizer

COUNT = int(os.environ.get("MINICLIP_FUZZ", "60"))  # data sets of all families together


@dataclass
class Read:
    """One split as it was read. pairs: number -> captions. said: what is wrong with single images, or the refusal."""

    pairs: dict[int, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    listed: int = 0
    refused: bool = False


def read_split(plan: Plan, source: str, role: str) -> Read:
    """Raises whatever is no plain refusal."""
    found = Read()
    try:
        if plan.labelled:
            _read_labelled(source, role, found)
        else:
            share = DataConfig.max_bad_fraction if plan.strict else 1.0
            config = DataConfig(source=source, streaming=plan.stream, max_bad_fraction=share)
            _read_stream(config, found) if plan.stream and role == "train" else _read_pairs(config, role, found)
    except Exception as error:
        plain = type(error) in (ValueError, FileNotFoundError) or type(error).__module__.startswith("miniclip.")
        if not plain:
            raise
        found.refused, found.said = True, [str(error)]
    return found


def _read_pairs(config: DataConfig, role: str, found: Read) -> None:
    streamed = config.streaming
    source = streamed_eval_pairs(config, role, 1000, 64) if streamed else open_source(config, role)
    found.listed = len(source)
    _read_each(source, source.captions, found)


def _read_each(source: ImageSource, texts: Callable[[int], list[str]], found: Read) -> None:
    for i in range(len(source)):
        try:
            number = number_of(source.image(i))
        except BadImage as error:
            found.said.append(str(error))
            continue
        assert number not in found.pairs, f"image {number} comes twice"
        found.pairs[number] = texts(i)


def _read_stream(config: DataConfig, found: Read) -> None:
    for shard in (shard for shards in training_shards(config) for shard in shards):
        for sample in shard.read():
            try:
                texts = usable_captions(sample)
                if sample.image is None:
                    raise BadImage(f"{sample.name}: holds no image")
                found.pairs.setdefault(number_of(decode_image(sample.image, sample.name)), []).extend(texts)
            except BadImage as error:
                found.said.append(str(error))


def _read_labelled(source: str, role: str, found: Read) -> None:
    images = open_labelled(source, split=role)
    check_prompts("fuzz", images, None, Tokenizer())
    _read_each(images, lambda i: [images.classes[images.label(i)]], found)


def check(plan: Plan, group: Group, found: dict[str, Read], log: list[str]) -> None:
    """Raises AssertionError if a group is not what the oracle says."""
    parts = [found[role] for role in group.roles]
    said = [line for part in found.values() for line in part.said] + log
    some = any(not part.refused for part in parts)
    known = group.causes + ([word for words in group.left_out.values() for word in words] if some else [])
    for part in parts:
        if part.refused:
            assert _names(part.said, known), f"refused: {part.said[0]}; expected a word of {known}"
    if not some:
        return
    assert not group.refused, f"read, though {group.causes[-1]} stands against it"
    pairs: dict[int, list[str]] = {}
    for part in parts:
        twice = pairs.keys() & part.pairs.keys()
        assert not twice, f"images {twice} lie in two splits"
        pairs |= part.pairs
    got, meant = _plain(pairs, plan.labelled), _plain(group.pairs, plan.labelled)
    others = {number: (got.get(number), meant.get(number)) for number in meant | got}
    others = {number: pair for number, pair in others.items() if pair[0] != pair[1]}
    assert not others, f"{' and '.join(group.roles)} (read, meant): {others}"
    for number, words in group.left_out.items():
        assert _names(said, words), f"not a word of image {number}, which is left out; expected one of {words}"
    for role in group.roles[1:] if not plan.stream else ():
        assert found[role].refused or found[role].listed == 1, f"{role}: {found[role].listed} images set aside"
    told = [text for texts in pairs.values() for text in texts if not text.isascii()]
    usual = plan.layout == "tar" and plan.form != "one" and plan.encoding != "cp1252"  # JSON knows UTF-16
    if not usual and (plan.encoding.startswith("utf-16") or (plan.encoding == "cp1252" and told)):
        assert re.search("1252|utf.?16", " ".join(said).lower()), f"not a word of the encoding, {plan.encoding}"


def _plain(pairs: dict[int, list[str]], labelled: bool) -> dict[int, list[str]]:
    """Class names in any case, and with any spaces."""
    return {n: [" ".join(t.split()).casefold() for t in texts] if labelled else texts for n, texts in pairs.items()}


def _names(said: list[str], words: list[str]) -> bool:
    lines = " ".join(" ".join(said).split())
    return any(re.search(rf"(?<!\w){re.escape(' '.join(word.split()))}(?!\w)", lines) for word in words)


def try_one(family: str, seed: int, base: Path) -> str:
    """ "read", "refused" or "in part". Raises AssertionError, with the seed and the files."""
    plan = draw_plan(family, seed)
    source = write(plan, base)
    log: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("miniclip")
    handler.emit = lambda record: log.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    found: dict[str, Read] = {}
    try:
        groups = judge(plan)
        for role in dict.fromkeys(role for group in groups for role in group.roles):
            found[role] = read_split(plan, source, role)
        for group in groups:
            check(plan, group, found, log)
    except Exception as error:
        error.add_note(report(plan, source, base, found, log))
        raise
    finally:
        logger.removeHandler(handler)
    refused = Counter(part.refused for part in found.values())
    return "in part" if len(refused) == 2 else "refused" if refused[True] else "read"


def report(plan: Plan, source: str, base: Path, found: dict[str, Read], log: list[str]) -> str:
    lines = [f"python tests/test_fuzz.py {plan.family}:{plan.seed}", f"source: {source}"]
    lines += [f"{name}: {value}" for name, value in vars(plan).items() if name not in ("photos", "seed", "family")]
    lines += [f"  {photo}" for photo in plan.photos]
    files = [file for file in sorted(base.rglob("*")) if not file.is_dir() or file.is_symlink()]
    lines += [f"  {file.relative_to(base)}{f' -> {file.readlink()}' if file.is_symlink() else ''}" for file in files]
    lines += [f"{role}: {part}" for role, part in found.items()] + [f"log: {line}" for line in log]
    return "\n".join(lines)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(COUNT // len(FAMILIES)))
def test_what_is_read_is_what_was_meant(family: str, seed: int, tmp_path: Path) -> None:
    try_one(family, seed, tmp_path)


def test_a_pair_that_is_lost_is_seen() -> None:
    plan = Plan(**vars(draw_plan("tables", 1)) | {"photos": []})
    plan.photos += [Photo(i, f"{i}.jpg", "", [f"text {i}"], "", 0, "good" if i else "empty") for i in range(5)]
    (group,) = judge(plan)
    good = {i: [f"text {i}"] for i in range(1, 5)}
    parts = {"train": Read({1: good[1], 2: good[2]}, ["0.jpg: empty"], 3), "validation": Read({3: good[3]}, [], 1)}
    check(plan, group, parts | {"test": Read({4: good[4]}, [], 1)}, [])
    for wrong in (
        Read({}, [], 1),
        Read({4: ["text 3"]}, [], 1),
        Read({}, ["1 of 5"], 0, True),
        Read({1: good[1]}, [], 1),
    ):
        with pytest.raises(AssertionError):
            check(plan, group, parts | {"test": wrong}, [])
    parts["train"].said = ["a file is bad"]
    with pytest.raises(AssertionError, match="not a word of image 0"):
        check(plan, group, parts | {"test": Read({4: good[4]}, [], 1)}, [])


def main(what: str) -> None:
    """what: how many, or a family, or one of it, as "tables:7"."""
    family, _, seed = what.partition(":")
    every = [(f, s) for s in range(-(-int(what) // len(FAMILIES)) if what.isdecimal() else 125) for f in FAMILIES]
    every = every[: int(what)] if what.isdecimal() else [(f, s) for f, s in every if f == family]
    every = [(family, int(seed))] if seed else every
    outcomes: Counter[str] = Counter()
    for family, number in every:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as base:
            try:
                outcomes[try_one(family, number, Path(base))] += 1
            except Exception as error:
                outcomes["WRONG"] += 1
                print(
                    f"==== {family}:{number} {type(error).__name__}: {error}",
                    *getattr(error, "__notes__", []),
                    sep="\n",
                )
    print(dict(outcomes))


if __name__ == "__main__":
    import conftest  # noqa: F401  # the environment of the tests

    main(sys.argv[1] if sys.argv[1:] else "500")
