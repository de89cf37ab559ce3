"""The dual encoder (CLIP, arXiv:2103.00020): an image tower and a text tower into one shared space.

Axes: `B` batch, `E` embedding.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.losses.matrix import Embeddings
from miniclip.models.cut import Cut, Tower
from miniclip.models.presets import resolve, tower_of
from miniclip.models.text import TextTower, unit_length
from miniclip.models.tower import ImageTower

MAX_LOGIT_SCALE = math.log(100)  # CLIP section 2.5


class DualEncoder(TextTower):
    """CLIP. `config` may leave fields to its preset; `self.config` has all of them.

    A text tower with an image tower added, as OpenAI's weights have the text tower's parameters at the top level.
    Raises ConfigError for a config that `resolve` refuses.
    """

    logit_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        config = resolve(config)
        super().__init__(config)
        self.config = config
        self.visual = tower_of(config)(config)
        self.make_scale(config)

    def make_scale(self, config: ModelConfig) -> None:
        """logit_scale and logit_bias, where a resolved config has them start."""
        assert config.logit_scale_init is not None
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init)))
        bias = config.logit_bias_init
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.tensor(float(bias))))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """image: (B, 3, S, S) float, normalised as Preprocess does. Returns (B, E).

        S: config.image_size, or another multiple of the ResNet's stride of 32, or of the ViT's patch_size, for which
        the position embeddings are interpolated. normalize: unit length, in at least float32 even under autocast.
        Raises ValueError for another shape or dtype.
        """
        size, stride = self.config.image_size, self.visual.stride(self.config)
        square = image.ndim == 4 and image.shape[1] == 3 and 0 < image.shape[2] == image.shape[3]
        if not square or image.shape[3] % stride or not image.is_floating_point():
            raise ValueError(
                f"image has shape {tuple(image.shape)} and dtype {image.dtype}; this model takes normalised floats of "
                f"shape (B, 3, {size}, {size}), as Preprocess(image_size={size}) returns them, or of another side that "
                f"is a multiple of {stride}"
            )
        features = self.visual(image)
        return unit_length(features) if normalize else features

    @property
    def image_tower(self) -> ImageTower:
        return self.visual

    @property
    def text_tower(self) -> Tower:
        return self

    def image_from(self, x: Tensor, k: int) -> Tensor:
        return self.image_tower.upper(x, k)

    def text_from(self, x: Tensor, k: int) -> Tensor:
        return self.text_tower.upper(x, k)

    def blank(self) -> Self:
        """A model of the same kind with other weights; on the meta device, under torch.device("meta")."""
        return type(self)(self.config)

    def forward(self, image: Tensor, text: Tensor, cut: Cut = Cut()) -> Embeddings:  # noqa: B008
        """Both towers. image: (B, 3, S, S); text: (B', L), usually B' = B; see encode_image and encode_text. cut: which
        of the two are features of their tower, from which image_from and text_from go on."""
        images = self.encode_image(image) if cut.image is None else self.image_from(image, cut.image)
        texts = self.encode_text(text) if cut.text is None else self.text_from(text, cut.text)
        images, texts = unit_length(images), unit_length(texts)
        # the sums are 0-dim, of whatever shape flatten_scalars_ gave; FSDP wants no views from forward
        bias = None if self.logit_bias is None else self.logit_bias.sum()
        return Embeddings(images, texts, self.logit_scale.exp().sum(), bias)

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Bring logit_scale back into [0, ln 100]; call it after each optimiser step.

        A clamp inside `forward` would have no gradient outside the range, so the scale could never come back.
        """
        self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def flatten_scalars_(self) -> None:
        """Give logit_scale and logit_bias the shape (1,), as FSDP shards the first axis; `save_model` takes it away."""
        self.logit_scale = nn.Parameter(self.logit_scale.detach().reshape(1))
        if self.logit_bias is not None:
            self.logit_bias = nn.Parameter(self.logit_bias.detach().reshape(1))
