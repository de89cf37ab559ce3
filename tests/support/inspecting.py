"""Inspections of made-up pairs, for the tests of the numbers and the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.inspection.build import build
from miniclip.inspection.contents import History, Inspection
from miniclip.inspection.sample import THUMBNAIL, Sample


def embeddings(n: int, width: int = 16, seed: int = 0, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """Images and texts that belong together more or less; (n, width) float32, unit length."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, width, generator=generator)
    image, text = (F.normalize(shared + noise * torch.randn(n, width, generator=generator), dim=1) for _ in range(2))
    return image, text


def sample(n: int, seed: int = 0, captions: list[str] | None = None) -> Sample:
    """Images of noise over a plain colour, no two alike."""
    rng = np.random.default_rng(seed)
    coarse = (Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(n))
    images = [image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC) for image in coarse]
    texts = captions or [f"caption number {k} of a made-up image" for k in range(n)]
    return Sample(images, images, texts, [f"row {k}" for k in range(n)], [])


def inspection(
    n: int = 12, *, captions: list[str] | None = None, positives: Tensor | None = None, seed: int = 0, **given: Any
) -> Inspection:
    """given: more of what build takes."""
    if positives is None:
        positives = torch.eye(n, dtype=torch.bool)
    pairs, about = sample(n, seed, captions), {"data": "made up"}
    return build(pairs, *embeddings(n, seed=seed), positives, 14.0, title="a test", about=about, **given)


def history(n: int = 6, steps: int = 4) -> History:
    image, text = embeddings(n)
    cosines = torch.stack([image @ text.T * k / steps for k in range(1, steps + 1)]).half()
    falling = torch.linspace(2, 1, steps, dtype=torch.float64)
    figures = {"loss": falling, "loss_over_chance": falling / 2, "logit_scale": 15 - falling}
    figures["r1_image_to_text"] = figures["r1_text_to_image"] = 1 - falling / 2
    eight = range(1, 9)
    training = {"step": [10.0 * k for k in eight], "logit_scale": [13.0 + k for k in eight]}
    training |= {"loss": [2 / k for k in eight], "loss_over_chance": [1 / k for k in eight]}
    return History([20 * k for k in range(steps)], [f"fixed {k}" for k in range(n)], figures, cosines, training)
