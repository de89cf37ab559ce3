"""Inspections of made-up pairs, for the tests of the numbers and the page."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.config import LossConfig
from miniclip.inspection.build import build
from miniclip.inspection.contents import History, Inspection
from miniclip.inspection.sample import THUMBNAIL, Sample


def embeddings(n: int, width: int = 16, seed: int = 0, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """Images and texts that belong together more or less; (n, width) float32, unit length."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, width, generator=generator)
    sides = (shared + noise * torch.randn(n, width, generator=generator) for _ in range(2))
    image, text = (F.normalize(side, dim=1) for side in sides)
    return image, text


def sample(n: int, seed: int = 0, captions: list[str] | None = None) -> Sample:
    """Images of noise over a plain colour, no two alike."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        images.append(Image.fromarray(coarse).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC))
    texts = captions or [f"caption number {k} of a made-up image" for k in range(n)]
    return Sample(images, images, texts, [f"row {k}" for k in range(n)], [])


def inspection(
    n: int = 12,
    *,
    captions: list[str] | None = None,
    loss: LossConfig | None = None,
    bias: float | None = None,
    positives: Tensor | None = None,
    history: History | None = None,
    seed: int = 0,
) -> Inspection:
    image, text = embeddings(n, seed=seed)
    if positives is None:
        positives = torch.eye(n, dtype=torch.bool)
    pairs = sample(n, seed, captions)
    about = {"data": "made up"}
    return build(pairs, image, text, positives, 14.0, bias, loss, title="a test", about=about, history=history)


def history(n: int = 6, steps: int = 4) -> History:
    image, text = embeddings(n)
    cosines = torch.stack([image @ text.T * k / steps for k in range(1, steps + 1)]).half()
    falling = torch.linspace(2, 1, steps, dtype=torch.float64)
    figures = {"loss": falling, "loss_over_chance": falling / 2, "logit_scale": 15 - falling}
    figures["r1_image_to_text"] = figures["r1_text_to_image"] = 1 - falling / 2
    numbers = [10.0 * k for k in range(1, 9)]
    training = {"step": numbers, "loss": [2 / k for k in range(1, 9)], "loss_over_chance": [1 / k for k in range(1, 9)]}
    training["logit_scale"] = [14.0 + k for k in range(8)]
    return History(
        steps=[20 * k for k in range(steps)],
        cosines=cosines,
        figures=figures,
        captions=[f"fixed {k}" for k in range(n)],
        training=training,
    )
