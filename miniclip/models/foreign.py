"""Towers of other libraries, or of another run, and how they are found again: nothing of a library's name or folder is
needed to load a model that was trained on one.

    towers/image.json, towers/text.json   what the tower is, in plain values; its weights lie among the model's
    towers/tokenizer/                     the text tower's tokenizer

What is loaded may come from anybody, so it runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from miniclip.common.console import write_json
from miniclip.common.durable import make_folder
from miniclip.config import ModelConfig
from miniclip.models.cut import Tower
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tower import ImageTower

TOWERS = "towers"  # folder of a model or run
_TOKENIZER = "tokenizer"
# beginning of model.image, model.text -> module of external; what has none of these is a run
_LIBRARIES = {
    "image": {"timm:": "timm_tower", "open_clip:": "open_clip_tower", "hf:": "hf_image"},
    "text": {"open_clip:": "open_clip_tower", "hf:": "hf_tower"},
}
_OWN = "own_tower"


class ForeignImage(ImageTower):
    """(B, 3, S, S), normalised as its own preprocessing does -> (B, width).

    described: plain values from which its module's build_image makes another one.
    """

    width: int
    described: dict[str, Any]


class ForeignText(Tower):
    """(B, L) ids of its tokenizer, -1 behind a text that is shorter -> (B, width).

    described: plain values from which its module's build_text makes another one, with the tokenizer's files.
    """

    width: int
    context_length: int
    described: dict[str, Any]
    tokenizer: TextTokenizer
    files: Mapping[str, bytes]


class OpenedImage(NamedTuple):
    """A tower with its weights, in evaluation mode, and its preprocessing."""

    tower: ForeignImage
    preprocess: Preprocess


def open_image(name: str, config: ModelConfig) -> OpenedImage:
    """What model.image means. config: for image_size, which may be another than the tower's.

    Raises ValueError or FileNotFoundError with one line that says what to do.
    """
    opened: OpenedImage = _module(name, "image").open_image(name, config)
    return opened


def open_text(name: str, config: ModelConfig) -> ForeignText:
    """What model.text means. config: for context_length and text_pooling. Raises as open_image does."""
    tower: ForeignText = _module(name, "text").open_text(name, config)
    return tower


def save_towers(folder: Path, towers: Mapping[str, nn.Module]) -> None:
    """Write what load_tower needs of those among the two towers ("image", "text") that are foreign. Raises DiskFull."""
    for kind, tower in towers.items():
        if isinstance(tower, ForeignImage | ForeignText):
            make_folder(folder / TOWERS)
            write_json(folder / TOWERS / f"{kind}.json", tower.described)
        if isinstance(tower, ForeignText) and tower.files:
            make_folder(folder / TOWERS / _TOKENIZER)
            for name, content in tower.files.items():
                (folder / TOWERS / _TOKENIZER / name).write_bytes(content)


def load_tower(kind: str, folder: Path) -> Any:
    """A ForeignImage or ForeignText without its weights, on torch's default device. Raises ValueError or OSError."""
    from miniclip.models.saved import read_json

    described = read_json(folder / TOWERS / f"{kind}.json")
    files = {path.name: path.read_bytes() for path in sorted((folder / TOWERS / _TOKENIZER).glob("*"))}
    return build_tower(kind, described, files)


def build_tower(kind: str, described: Mapping[str, Any], files: Mapping[str, bytes]) -> Any:
    """The same of what describes it. files: of a text tower's tokenizer."""
    name = described.get("module")
    if name not in (*_LIBRARIES[kind].values(), _OWN):
        raise ValueError(f"{name!r} is no kind of tower that this version knows")
    module = import_module(f"miniclip.models.external.{name}")
    return module.build_image(described) if kind == "image" else module.build_text(described, files)


def _module(name: str, kind: str) -> Any:
    known = _LIBRARIES[kind]
    names = [module for start, module in known.items() if name.startswith(start)]
    if not names and any(name.startswith(start) for other in _LIBRARIES.values() for start in other):
        raise ValueError(f"model.{kind}={name}: that library has no {kind} towers; name {' or '.join(known)} or a run")
    return import_module(f"miniclip.models.external.{names[0] if names else _OWN}")
