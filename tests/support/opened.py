"""What a source holds, by the numbers of its images (see files.py)."""

from __future__ import annotations

from typing import Any

import pytest

from miniclip.config import DataConfig
from miniclip.data.captioned import PairSource, open_source
from support.files import number_of

SPLITS = ("train", "validation", "test")


def opened(source: object, split: str = "train", **config: Any) -> PairSource:
    return open_source(DataConfig(source=source if isinstance(source, list) else str(source), **config), split)


def refused(message: str, source: object, split: str = "train", error: type = ValueError, **config: Any) -> None:
    with pytest.raises(error, match=message):
        opened(source, split, **config)


def whole(source: object, **config: Any) -> PairSource:
    """A source whose only split is taken whole."""
    return opened(source, "test", train_split="x", validation_split="x", test_split="train", **config)


def numbers(source: PairSource) -> list[int]:
    return [number_of(source.image(i)) for i in range(len(source))]


def contents(source: PairSource) -> dict[int, list[str]]:
    """Number -> captions; every image is there once."""
    found = {number: source.captions(i) for i, number in enumerate(numbers(source))}
    assert len(found) == len(source)
    return found


def everything(source: object, **config: Any) -> dict[int, list[str]]:
    """All three splits of a source together, which must not overlap."""
    found: dict[int, list[str]] = {}
    for split in SPLITS:
        part = contents(opened(source, split, **config))
        assert not found.keys() & part.keys()
        found |= part
    return found


def texts(first: int, last: int) -> dict[int, list[str]]:
    return {i: [f"text {i}"] for i in range(first, last)}
