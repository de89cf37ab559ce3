"""Stronger augmentation than a crop: RandAugment and random erasing, of the square that was cut out.

Axes: S side of the square that the image encoder takes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from miniclip.data.augment import Augment

MAGNITUDE = 0.3  # of the largest: 9 of 30, as torchvision's RandAugment takes it
ERASED = (0.02, 0.33)  # smallest and largest share of the area
ASPECT = 0.3  # of the flattest rectangle; the steepest one's is 1 / ASPECT


@dataclass(frozen=True)
class StrongAugment(Augment):
    """Augment, and what is then done to the square.

    randaugment: how many of OPERATIONS, drawn anew each time, one after another (RandAugment, arXiv:1909.13719).
    erasing: probability that a rectangle becomes noise (random erasing, arXiv:1708.04896).
    """

    randaugment: int = 0
    erasing: float = 0.0

    def square(self, stored: np.ndarray, rng: random.Random) -> np.ndarray:
        square = super().square(stored, rng)
        if self.randaugment:
            image = Image.fromarray(square)
            for _ in range(self.randaugment):
                image = rng.choice(OPERATIONS)(image, rng.choice((-MAGNITUDE, MAGNITUDE)))
            square = np.asarray(image)
        return erase(square, rng) if self.erasing and rng.random() < self.erasing else square


def erase(square: np.ndarray, rng: random.Random) -> np.ndarray:
    """uint8 (S, S, 3) -> a copy in which every value of a random rectangle is drawn anew, from 0 to 255 alike."""
    side, aspect = len(square), math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
    area = rng.uniform(*ERASED) * side**2
    height, width = (min(side, max(1, round((area * ratio) ** 0.5))) for ratio in (aspect, 1 / aspect))
    top, left = rng.randint(0, side - height), rng.randint(0, side - width)
    erased = square.copy()
    noise = np.frombuffer(rng.randbytes(3 * height * width), dtype=np.uint8)
    erased[top : top + height, left : left + width] = noise.reshape(height, width, 3)
    return erased


# A square and a signed magnitude, of which 1 is the largest -> the changed square. Those without a strength, or whose
# strength has no sign, take no notice of it.
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """matrix: where in the image a pixel comes from, as Pillow has it; what lies outside is black. Between pixels the
    nearest is taken: to weigh four takes fifteen times as long."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance], image: Image.Image, m: float) -> Image.Image:
    return kind(image).enhance(1 + 0.9 * m)


# the fourteen of the paper's section 3.2, each with torchvision's largest magnitude
OPERATIONS: list[Operation] = [
    lambda image, m: image,
    lambda image, m: _affine(image, 1, 0.3 * m, 0, 0, 1, 0),  # shear
    lambda image, m: _affine(image, 1, 0, 0, 0.3 * m, 1, 0),
    lambda image, m: _affine(image, 1, 0, int(150 / 331 * m * image.width), 0, 1, 0),  # shift
    lambda image, m: _affine(image, 1, 0, 0, 0, 1, int(150 / 331 * m * image.height)),
    lambda image, m: image.rotate(30 * m, Image.Resampling.NEAREST),
    partial(_enhance, ImageEnhance.Brightness),
    partial(_enhance, ImageEnhance.Color),
    partial(_enhance, ImageEnhance.Contrast),
    partial(_enhance, ImageEnhance.Sharpness),
    lambda image, m: ImageOps.posterize(image, 8 - round(4 * abs(m))),  # bits that are kept
    lambda image, m: ImageOps.solarize(image, math.ceil(255 * (1 - abs(m)))),  # brighter values are inverted
    lambda image, m: ImageOps.autocontrast(image),
    lambda image, m: ImageOps.equalize(image),
]
