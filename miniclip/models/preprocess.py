"""The fixed transform of evaluation: an image to the image encoder's tensor. Axes: height H, width W, square side S."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.common.pixels import to_rgb

# Channel statistics of CLIP's own training set (OpenAI's release; also open_clip's OPENAI_DATASET_MEAN and _STD).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB image of H x W pixels -> uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)  # h w c -> c h w


@dataclass(frozen=True)
class Preprocess:
    """The transform that evaluation uses; it is saved beside the weights.

    image_size: side S in pixels. mean, std: per RGB channel, of values in [0, 1].
    resize: "crop" scales the shorter side to S and keeps the central square (CLIP, section 2.4); "squash" scales both
    sides to S and loses the aspect ratio, but no content. crop_pct: the square's share of the shorter side, or of each
    that is scaled to S. whole: the image is scaled to whole pixels and then cut, as other libraries do it, up to half a
    pixel elsewhere.
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize: Literal["crop", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_pct: float = 1.0
    whole: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size} must be at least 1 pixel")
        if self.resize not in ("crop", "squash"):
            raise ValueError(f"resize={self.resize!r} must be 'crop' or 'squash'")
        if self.interpolation not in _METHODS or not 0 < self.crop_pct <= 1:
            known = f"interpolation must be {' or '.join(_METHODS)} and crop_pct lie in (0, 1]"
            raise ValueError(f"interpolation={self.interpolation!r} and crop_pct={self.crop_pct}: {known}")

    def to_square(self, image: Image.Image) -> Image.Image:
        """RGB image of any size -> RGB image of S x S pixels (antialiased)."""
        size, method = self.image_size, _METHODS[self.interpolation]
        shorter = min(image.size)
        squash = self.resize == "squash"
        if self.whole:
            scaled = int(size / self.crop_pct)
            width, height = (scaled if squash or n == shorter else int(scaled * n / shorter) for n in image.size)
            image = image.resize((width, height), method)
            x, y = round((width - size) / 2), round((height - size) / 2)
            return image.crop((x, y, x + size, y + size))
        kept = [(n if squash else shorter) * self.crop_pct for n in image.size]
        left, top = ((n - k) / 2 for n, k in zip(image.size, kept, strict=True))
        return image.resize((size, size), method, box=(left, top, left + kept[0], top + kept[1]))

    def to_uint8(self, image: Image.Image) -> Tensor:
        """Any image of PIL's, turned and on white as training sees it -> uint8 (3, S, S)."""
        return image_to_tensor(self.to_square(to_rgb(image, 2 * self.image_size)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """0 to 255, (..., 3, H, W) -> float32 of the same shape and device, mean 0, deviation 1 over CLIP's data."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1) * 255
        return (pixels.float() - mean) / std

    def __call__(self, image: Image.Image) -> Tensor:
        """Image -> float32 (3, S, S), normalised: what `model.encode_image` takes, less the batch axis."""
        return self.normalize(self.to_uint8(image))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fixed)
