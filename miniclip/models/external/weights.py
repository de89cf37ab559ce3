"""What holds for the weights of every other library's towers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from miniclip.models.external.adapted import reading

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


def completed(
    name: str, described: dict[str, Any], side: int, build: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """What describes an image tower, with its side, its width, and the parameters on which no feature depends, such as
    a mask's token. build: a module's build_image. Raises ValueError for images that the tower does not take."""
    described = {**described, "side": side, "width": 0, "unused": []}
    advice = "set another model.image_size"
    with (
        reading(lambda why: f"{name} takes no images of {side} pixels ({why}); {advice}"),
        torch.device("meta"),
        torch.enable_grad(),
    ):
        blank = build(described).eval()
        features = blank(torch.empty(2, 3, side, side))
        features.sum().backward()
    if features.ndim != 2:
        raise ValueError(f"{name} makes {tuple(features.shape[1:])} of an image, not one vector; use another tower")
    unused = [key.removeprefix("model.") for key, parameter in blank.named_parameters() if parameter.grad is None]
    return {**described, "width": features.shape[1], "unused": unused}


def keep_unused(model: nn.Module, names: Sequence[str]) -> None:
    """Make buffers of parameters, which nothing then waits for: DDP wants a gradient for each that learns."""
    for name in names:
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        value = getattr(module, key).detach()
        delattr(module, key)
        module.register_buffer(key, value)
