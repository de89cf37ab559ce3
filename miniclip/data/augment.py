"""The random transform of training: squares are cut out where the data are loaded. What is done to a whole batch of
them, on the device that trains, stands in recolour.py.

Axes: B batch, H height, W width, S side of the square that the image encoder takes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from miniclip.models.preprocess import Preprocess

LONGEST = 16  # times the shorter side, of an image that is stored


@dataclass(frozen=True)
class Augment:
    """One image, one generator -> one square, and how it is to look.

    image_size: side S in pixels. kind: "crop" takes a random S x S square of the image whose shorter side is 9/8 S
    (CLIP, section 2.4); "resized_crop" scales a square of a random share of the area to S; "none" is the transform of
    evaluation. crop_scale: smallest and largest share for resized_crop. flip: probability of a mirror image.
    colour_jitter: largest relative change of brightness, contrast and saturation, each drawn on its own.
    preprocess: the transform of evaluation, if it is another than that of image_size and resize alone.
    """

    image_size: int
    kind: Literal["crop", "resized_crop", "none"] = "crop"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.0
    colour_jitter: float = 0.0
    resize: Literal["crop", "squash"] = "crop"
    preprocess: Preprocess | None = None

    @property
    def stored_side(self) -> int:
        """Shorter side, in pixels, that loses nothing that the transform would have used."""
        size = self.image_size
        return round({"crop": size * 9 / 8, "resized_crop": size / self.crop_scale[0] ** 0.5}.get(self.kind, size))

    def store(self, image: Image.Image) -> Image.Image:
        """The image with its shorter side at `stored_side`, or squashed to that square: all that `square` needs.

        Idempotent. Never enlarges for resized_crop, which scales by itself. Cuts the ends off an image longer than
        LONGEST times its shorter side.
        """
        shorter, side = min(image.size), self.stored_side
        longest = LONGEST * shorter
        if max(image.size) > longest and self.resize == "crop":
            # a line of pixels, enlarged to the side, would fill the memory
            left, top = (max(0, length - longest) // 2 for length in image.size)
            image = image.crop((left, top, image.width - left, image.height - top))
        if self.kind == "resized_crop":
            side = min(side, shorter)
        if self.resize == "squash" or self.kind == "none":
            evaluated = (self.kind == "none" and self.preprocess) or Preprocess(side, resize=self.resize)
            return evaluated.to_square(image) if image.size != (side, side) else image
        width, height = (max(side, round(length * (side / shorter))) for length in image.size)
        return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC)

    def square(self, stored: np.ndarray, rng: random.Random) -> np.ndarray:
        """A stored image, uint8 (H, W, 3) -> uint8 (S, S, 3). The same state of rng gives the same square."""
        (height, width, _), size = stored.shape, self.image_size
        if self.kind == "crop":
            left, top = rng.randint(0, width - size), rng.randint(0, height - size)
            return stored[top : top + size, left : left + size]
        if self.kind == "resized_crop":
            side = min(height, width) * rng.uniform(*self.crop_scale) ** 0.5
            x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
            box = (x, y, x + side, y + side)
            return np.asarray(Image.fromarray(stored).resize((size, size), Image.Resampling.BILINEAR, box=box))
        return stored

    def look(self, rng: random.Random) -> list[float]:
        """-1 to mirror the square, else 1; with colour_jitter also the factors of brightness, contrast, saturation."""
        mirror = -1.0 if self.flip and rng.random() < self.flip else 1.0
        changes = 3 if self.colour_jitter else 0
        return [mirror, *(1 + rng.uniform(-self.colour_jitter, self.colour_jitter) for _ in range(changes))]
