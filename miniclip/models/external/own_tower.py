"""Towers of a run of this project, by themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.clip import DualEncoder
from miniclip.models.cut import Tower
from miniclip.models.foreign import ForeignImage, ForeignText, OpenedImage
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import architecture, tower_of
from miniclip.models.text import TextTower
from miniclip.models.tokenizer import Tokenizer
from miniclip.models.tower import ImageTower

log = logging.getLogger(__name__)


class _Own(Tower):
    tower: Any

    @property
    def blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.tower.blocks
        return blocks

    def lower(self, x: Tensor, k: int) -> Tensor:
        features: Tensor = self.tower.lower(x, k)
        return features

    def upper(self, x: Tensor, k: int) -> Tensor:
        features: Tensor = self.tower.upper(x, k)
        return features


class OwnImage(_Own, ForeignImage):
    def __init__(self, tower: ImageTower, config: ModelConfig) -> None:
        super().__init__()
        self.tower, self.width = tower, int(config.embed_dim or 0)
        self.described = {"module": "own_tower", **asdict(config)}


class OwnText(_Own, ForeignText):
    """Its tokenizer's rows end in zeros, not in -1."""

    def __init__(self, tower: TextTower, config: ModelConfig) -> None:
        super().__init__()
        self.tower, self.width, self.context_length = tower, int(config.embed_dim or 0), tower.context_length
        self.described = {"module": "own_tower", **asdict(config)}
        self.tokenizer, self.files = Tokenizer(tower.context_length), {}

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.tower.encode_text(x)
        return features


def open_image(name: str, config: ModelConfig) -> OpenedImage:
    return own_image(name, *_load(name, "image"), config)


def open_text(name: str, config: ModelConfig) -> ForeignText:
    return own_text(name, _load(name, "text")[0], config)


def own_image(name: str, model: DualEncoder, preprocess: Preprocess, config: ModelConfig) -> OpenedImage:
    """A model's image tower; for images of another side it interpolates its positions. Raises ValueError."""
    own, side = preprocess.image_size, config.image_size or preprocess.image_size
    if side != own:
        if side % (stride := model.visual.stride(model.config)):
            raise ValueError(f"model.image_size={side}: {name} takes multiples of {stride} pixels; use one")
        log.warning("%s was trained with images of %d pixels, and gets those of %d", name, own, side)
    return OpenedImage(OwnImage(model.visual, model.config).eval(), replace(preprocess, image_size=side))


def own_text(name: str, model: DualEncoder, config: ModelConfig) -> ForeignText:
    """A model's text tower. Raises ValueError for another context length."""
    if config.context_length not in (None, model.context_length):
        had = model.context_length
        raise ValueError(f"model.context_length={config.context_length}: {name} was trained on {had}; leave it out")
    # of the model its text tower alone: the names of its parameters are the same
    tower = TextTower(model.config)
    tower.load_state_dict({k: v for k, v in model.state_dict().items() if k in tower.state_dict()})
    return OwnText(tower.eval(), model.config)


def build_image(described: Mapping[str, Any]) -> OwnImage:
    config = _config(described)
    return OwnImage(tower_of(config)(config), config)


def build_text(described: Mapping[str, Any], files: Mapping[str, bytes]) -> OwnText:
    config = _config(described)
    return OwnText(TextTower(config), config)


def _config(described: Mapping[str, Any]) -> ModelConfig:
    values: dict[str, Any] = {
        k: tuple(v) if k == "image_layers" and isinstance(v, list) else v for k, v in described.items()
    }
    values.pop("module")
    return ModelConfig(**values)


def _load(name: str, kind: str) -> tuple[DualEncoder, Any]:
    from miniclip.models.load import load

    model, preprocess, _ = load(name)
    if type(model) is not DualEncoder:
        raise ValueError(f"model.{kind}={name}: its tower is itself of another library; name that, or use model.init")
    model.config = architecture(model.config)
    return model, preprocess
