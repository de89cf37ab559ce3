"""How embeddings lie on the sphere: figures that show a collapse before the loss does.

Axes: N pairs (images in logits), M texts, E embedding. `image`, `text` and `x` are (N, E) of unit length, of any float
dtype; half precision is lifted to float32. What is not finite makes a figure NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alignment(image: Tensor, text: Tensor) -> float:
    """Mean squared distance of the two ends of a pair, in [0, 4]: the lower, the better the pairs agree.

    Source: Wang & Isola, arXiv:2005.10242, with exponent 2. It is 2 - 2 * mean cosine of the pairs.
    image, text: (N, E). Raises ValueError for other shapes or without rows.
    """
    image, text = _pairs(image, text)
    return (image - text).square().sum(1).mean().item()


def uniformity(x: Tensor) -> float:
    """Log of the mean of exp(-2 |xi - xj|^2) over all i != j: the lower, the more evenly the rows fill the sphere.

    Source: Wang & Isola, arXiv:2005.10242. In [-8, 0]; 0 means that all rows are one point. x: (N, E).
    Raises ValueError for another shape or fewer than two rows.
    """
    x = _rows(x, "x")
    n = len(x)
    if n < 2:
        raise ValueError("uniformity compares rows with each other; pass two or more")
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0).fill_diagonal_(torch.inf)
    return (-2 * distances).logsumexp((0, 1)).item() - math.log(n * (n - 1))


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance between the mean image and the mean text, in [0, 2] (Liang et al., arXiv:2203.02053).

    image, text: (N, E). Raises ValueError for other shapes or without rows.
    """
    image, text = _pairs(image, text)
    return (image.mean(0) - text.mean(0)).norm().item()


def effective_rank(x: Tensor) -> float:
    """How many dimensions the rows use: exp of the entropy of the singular values over their sum.

    From 1, all rows on one line, to min(N, E), all directions alike. Sources: Roy & Vetterli, EUSIPCO 2007; RankMe,
    arXiv:2210.02885. x: (N, E), not centred, taken in float64. Raises ValueError for another shape or without rows.
    """
    x = _rows(x, "x")
    x = (x.cpu() if x.device.type == "mps" else x).double()  # which has no float64
    if not bool(x.isfinite().all()):
        return math.nan
    values = torch.linalg.svdvals(x)
    # below this a singular value is rounding
    values = values[values > values[0] * max(x.shape) * torch.finfo(x.dtype).eps]
    return torch.special.entr(values / values.sum()).sum().exp().item()


def effective_negatives(logits: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """How many negatives each image and each text in effect competes with: (N,) and (M,).

    exp of the entropy of a row's (column's) softmax over its negatives alone: from 1, one of them has it all, to their
    number, all have the same. 0 for a row without negatives. logits: (N, M), scaled. positives: (N, M) bool. Raises
    ValueError for other shapes.
    """
    logits = _rows(logits, "logits")
    if positives.shape != logits.shape or positives.dtype != torch.bool:
        raise ValueError(
            f"positives must be bool of the shape of logits, {tuple(logits.shape)}, not {positives.dtype} "
            f"{tuple(positives.shape)}"
        )
    return _negatives_of_rows(logits, positives), _negatives_of_rows(logits.T, positives.T)


def _negatives_of_rows(logits: Tensor, positives: Tensor) -> Tensor:
    shares = logits.masked_fill(positives, -torch.inf).softmax(1)
    return torch.special.entr(shares).sum(1).exp().masked_fill(positives.all(1), 0)


def _rows(x: Tensor, name: str) -> Tensor:
    """In float32 at least, without its gradient."""
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name} must be a matrix with entries; its shape is {tuple(x.shape)}")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != text.shape:
        raise ValueError(f"image {tuple(image.shape)} and text {tuple(text.shape)} must have one shape, (N, E)")
    return _rows(image, "image"), _rows(text, "text")
