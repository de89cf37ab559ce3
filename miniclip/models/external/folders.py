"""What holds for weights that another library wrote, and that may come from anybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# what torch says of a weight of another shape; each of the lists of keys stands on a line of its own
_SHAPES = re.compile(r"size mismatch for (\S+): .*?torch.Size\((\[[\d, ]*\])\).*?torch.Size\((\[[\d, ]*\])\)", re.S)
_KEYS = {"lacks {}": re.compile(r"Missing key.*?: (.*)"), "has {}, too": re.compile(r"Unexpected key.*?: (.*)")}


@contextmanager
def misfits() -> Iterator[None]:
    """Around load_state_dict: its RuntimeError of many lines becomes a ValueError of a few words, with the first weight
    of another shape, that is missing, or that has no place."""
    try:
        yield
    except RuntimeError as error:
        if found := _SHAPES.findall(str(error)):
            tensor, has, due = found[0]
            raise ValueError(f"{tensor} is {has} and should be {due}; {len(found)} such") from error
        for words, pattern in _KEYS.items():
            if keys := pattern.search(str(error)):
                names = keys[1].split(", ")
                tensor = names[0].strip('". ')
                raise ValueError(f"{words.format(tensor)}; {len(names)} such") from error
        raise
