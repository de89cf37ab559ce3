"""A dual encoder of which a tower or both come from elsewhere, joined to the shared space by projections.

Axes: `B` batch, `E` embedding.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.clip import DualEncoder
from miniclip.models.cut import Tower
from miniclip.models.foreign import ForeignImage, ForeignText, build_tower
from miniclip.models.presets import resolve, tower_of
from miniclip.models.protocols import TextTokenizer
from miniclip.models.text import TextTower, unit_length
from miniclip.models.tower import ImageTower


class Head(nn.Module):
    """(B, width) -> (B, E): LayerNorm, then one matrix; with mlp, an MLP with dropout beside the matrix.

    The LayerNorm brings features of any library to one length; the MLP as in ShareLock (arXiv:2410.07173, section 3).
    """

    def __init__(self, width: int, embed_dim: int, mlp: bool) -> None:
        super().__init__()
        hidden = 2 * embed_dim
        layers = (nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, embed_dim, bias=False))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, embed_dim, bias=False)
        self.mlp = nn.Sequential(*layers) if mlp else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.linear(x) if self.mlp is None else self.linear(x) + self.mlp(x)


def _head(tower: ForeignImage | ForeignText | None, config: Any) -> nn.Module:
    if tower is None or config.projection == "none":
        return nn.Identity()
    return Head(tower.width, config.embed_dim, config.projection == "mlp")


class JoinedEncoder(DualEncoder):
    """A DualEncoder in all that is done with it. image, text: the towers of config.image and config.text, else None.

    A tower that is not given is a fresh one of config, and has its own projection. With config.projection "none", which
    no file asks for, the towers are those of one model, which has joined them already.
    """

    def __init__(self, config: ModelConfig, image: ForeignImage | None, text: ForeignText | None) -> None:
        nn.Module.__init__(self)
        config = resolve(config)
        c: Any = config
        self.config = config
        self.visual = image if image is not None else tower_of(config)(config)
        self.textual: Tower = text if text is not None else TextTower(config)
        self.image_head, self.text_head = _head(image, c), _head(text, c)
        self.make_scale(config)

    @property
    def image_tower(self) -> ImageTower:
        return self.visual

    @property
    def text_tower(self) -> Tower:
        return self.textual

    @property
    def context_length(self) -> int:
        tower: Any = self.textual
        return int(tower.context_length)

    @property
    def tokenizer(self) -> TextTokenizer:
        tower: Any = self.textual
        found: TextTokenizer = tower.tokenizer
        return found

    @property
    def packs(self) -> bool:
        return isinstance(self.textual, TextTower) and self.textual.packs

    @packs.setter
    def packs(self, value: bool) -> None:
        if isinstance(self.textual, TextTower):
            self.textual.packs = value

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        if not isinstance(self.visual, ForeignImage):
            return super().encode_image(image, normalize)
        size = self.config.image_size
        if image.shape[1:] != (3, size, size) or not image.is_floating_point():
            raise ValueError(
                f"image has shape {tuple(image.shape)} and dtype {image.dtype}; this model takes normalised floats of "
                f"shape (B, 3, {size}, {size}), as its Preprocess returns them"
            )
        features = self.image_head(self.visual(image))
        return unit_length(features) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        if isinstance(self.textual, TextTower):
            return self.textual.encode_text(text, normalize)
        if text.ndim != 2 or not 1 <= text.shape[1] <= self.context_length:
            raise ValueError(
                f"text has shape {tuple(text.shape)}; give (B, L) token ids with L from 1 to {self.context_length}, as "
                "the model's tokenizer returns them"
            )
        features = self.text_head(self.textual(text))
        return unit_length(features) if normalize else features

    def image_from(self, x: Tensor, k: int) -> Tensor:
        features: Tensor = self.image_head(self.visual.upper(x, k))
        return features

    def text_from(self, x: Tensor, k: int) -> Tensor:
        features: Tensor = self.text_head(self.textual.upper(x, k))
        return features

    def blank(self) -> Self:
        image, text = self.visual, self.textual
        return type(self)(
            self.config,
            build_tower("image", image.described, {}) if isinstance(image, ForeignImage) else None,
            build_tower("text", text.described, text.files) if isinstance(text, ForeignText) else None,
        )
