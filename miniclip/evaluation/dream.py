"""What a model takes a caption to be: images sampled from E(x | caption) = -scale · cos(f(x), g(caption)).

Two controls get the same start, noise and views. One follows the free energy of neutral captions, -log mean exp(-E),
which shows what any caption would do; the other follows nothing at all. Axes: R rows (captions, neutral, nothing), N
samples a row, C captions, M neutral ones, S side of the square, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from miniclip.evaluation.encode import encode_texts, model_device
from miniclip.evaluation.langevin import Chain, kernel, langevin
from miniclip.losses.energy import free_energy
from miniclip.models.batchnorm import evaluating
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers

NEUTRAL = ("a picture", "a photo", "an image", "a drawing")
MOMENTS = 5  # of a chain, that are kept
_SMALLEST = 0.5  # side of a view, of the image's
_START_DEVIATION = 0.05  # around middle grey


@dataclass(frozen=True)
class Dreaming:
    """chain: how it moves. samples: N. views: random squares of the image whose gradients are averaged in every step,
    each scaled back to S; 0 takes the image as it is. seed: of start, noise and views, which all rows share."""

    chain: Chain = field(default_factory=Chain)
    samples: int = 4
    views: int = 1
    seed: int = 0


class Dreamt(NamedTuple):
    """moments: steps that are kept, from 0 to the last. images: (R, N, moments, 3, S, S) in [0, 1]. energies:
    (steps + 1, R, N, C + 1), of each chain under every caption and, last, the neutral ones: means over the views.
    scale: of the cosines."""

    captions: Sequence[str]
    moments: list[int]
    images: Tensor
    energies: Tensor
    scale: float


def dream(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    captions: Sequence[str],
    options: Dreaming = Dreaming(),
    start: Tensor | None = None,
    neutral: Sequence[str] = NEUTRAL,
    advance: Callable[[], object] = lambda: None,
) -> Dreamt:
    """Chains of every caption and of both controls, on the model's device; what is returned lies on the CPU.

    start: (3, S, S) in [0, 1]; middle grey with a little smooth noise if left out. advance: called after every step.
    The weights stay as they are. Raises ValueError if no gradient reaches the pixels.
    """
    device, side, chain, n = model_device(model), preprocess.image_size, options.chain, options.samples
    generator = torch.Generator().manual_seed(options.seed)  # the processor's, so that every device gets the same
    scale = float(model.logit_scale.detach().exp())
    texts = encode_texts(model, tokenizer, [*captions, *neutral]).to(device)
    rows, own = len(captions) + 2, len(captions) + 1
    followed = torch.eye(rows, own, device=device).repeat_interleave(n, 0)  # by the last row, nothing

    def draw() -> Tensor:
        return torch.randn(n, 3, side, side, generator=generator).to(device).repeat(rows, 1, 1, 1)

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, energies = torch.zeros_like(x), torch.zeros(len(x), own, device=device)
        looks = max(1, options.views)
        for _ in range(looks):
            x = x.detach().requires_grad_()
            seen = view(x, generator) if options.views else x
            found = energies_of(model, preprocess, seen, texts, len(captions), scale)
            gradient += slope_of(found, followed, x)
            energies += found.detach()
        advance()
        return gradient / looks, energies / looks

    if start is None:
        smooth = kernel(side, chain.smooth).to(device)
        first = (0.5 + _START_DEVIATION * smooth @ draw() @ smooth.T).clamp(0, 1)
    else:
        first = start.to(device).expand(rows * n, 3, side, side)
    moments = moments_of(chain.steps)
    images, energies = list[Tensor](), list[Tensor]()
    with evaluating(model):
        for k, (x, found) in enumerate(langevin(slope, first, chain, draw)):
            images += [x.detach().cpu()] * moments.count(k)
            energies.append(found.cpu())
    kept = torch.stack(images, 1).unflatten(0, (rows, n))
    return Dreamt(captions, moments, kept, torch.stack(energies).unflatten(1, (rows, n)), scale)


def energies_of(
    model: TwoTowers, preprocess: Preprocess, x: Tensor, texts: Tensor, captions: int, scale: float
) -> Tensor:
    """(B, 3, S, S) in [0, 1], and texts (C + M, E) of unit length, the first C of them captions -> (B, C + 1): the
    energy under each caption, and the free energy of the others, which is theirs if all are alike."""
    images = F.normalize(model.encode_image(preprocess.normalize(255 * x)).to(texts.dtype), dim=-1)
    logits = scale * images @ texts.T
    neutral = free_energy(logits[:, captions:])[0] + math.log(len(texts) - captions)
    return torch.cat([-logits[:, :captions], neutral[:, None]], 1)


def slope_of(energies: Tensor, followed: Tensor, x: Tensor) -> Tensor:
    """Gradient to x of those energies that each chain follows: both (B, C + 1), the second 0 and 1."""
    nothing = "no gradient of the image tower reaches the pixels; a model that is quantised or compiled has none"
    if not energies.requires_grad:
        raise ValueError(nothing)
    (gradient,) = torch.autograd.grad((energies * followed).sum(), x, allow_unused=True)
    if gradient is None:
        raise ValueError(nothing)
    return gradient


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random square of the images, of _SMALLEST of the side at least, scaled back to it: the same of all."""
    side = x.shape[-1]
    size = int(torch.randint(round(_SMALLEST * side), side + 1, (), generator=generator))
    top, left = torch.randint(0, side - size + 1, (2,), generator=generator).tolist()
    square = x[..., top : top + size, left : left + size]
    return F.interpolate(square, (side, side), mode="bilinear", align_corners=False)


def moments_of(steps: int) -> list[int]:
    """From 0 to the last, each about twice as late as the one before."""
    return sorted({0, *(round(steps / 2**k) for k in range(MOMENTS - 1))})


def told(dreamt: Dreamt) -> dict[str, object]:
    """Energies along the chains for JSON: under each caption its own and those of both controls, steps x samples."""
    count, energies = len(dreamt.captions), dreamt.energies
    rows = [
        {
            "caption": caption,
            "energies": energies[:, k, :, k].tolist(),
            "energies_neutral": energies[:, count, :, k].tolist(),
            "energies_nothing": energies[:, count + 1, :, k].tolist(),
        }
        for k, caption in enumerate(dreamt.captions)
    ]
    return {"rows": rows, "free_energies_neutral": energies[:, count, :, count].tolist()}


def table_rows(dreamt: Dreamt) -> list[tuple[str, ...]]:
    """A caption, then mean cosines with it: at the start, at the end, and at the end of both controls."""
    cosines, count = -dreamt.energies.mean(2) / dreamt.scale, len(dreamt.captions)
    return [
        (caption, *(f"{float(cosines[at, row, k]):.3f}" for at, row in ((0, k), (-1, k), (-1, count), (-1, count + 1))))
        for k, caption in enumerate(dreamt.captions)
    ]
