"""How often pairs of one batch share a caption or an image, and the floor that this puts under the loss.

Axes: P images, C captions, of which first[p] to first[p + 1] are those of image p; N pairs a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def expected_collisions(
    texts: np.ndarray, first: np.ndarray, images: np.ndarray, batch_size: int, batches: int = 200
) -> dict[str, Any]:
    """What to expect of a batch as training draws it: N different images, one caption of each.

    texts: (C,) int64, equal for captions of equal tokens. first: (P + 1,) int64; every image has a caption. images:
    (P,) int64, equal for equal images. Plain values for the audit's JSON. Raises ValueError for fewer than 2 pairs.
    """
    count = len(images)
    if count < 2 or batch_size < 2:
        raise ValueError(f"{count} images in batches of {batch_size}: a batch needs at least 2 pairs")
    size, own = min(batch_size, count), np.diff(first)
    # (image, text) -> share of the image's captions that say it
    width = int(texts.max()) + 1
    keys, inverse = np.unique(np.repeat(np.arange(count), own) * width + texts, return_inverse=True)
    shares, rows, text = np.bincount(inverse, weights=np.repeat(1 / own, own)), keys // width, keys % width
    drawn = size * (size - 1) / (count * (count - 1))  # that two given images come into one batch
    caption = drawn * _products(text, shares)
    image = drawn * _products(images, np.ones(count))
    both = drawn * _products(images[rows] * width + text, shares)
    rng, floors = np.random.default_rng(0), np.empty(batches)
    for k in range(batches):
        chosen = rng.choice(count, size, replace=False)
        floors[k] = batch_floor(texts[first[chosen] + rng.integers(own[chosen])], images[chosen])
    return {
        "batch_size": size,
        # expected number of the N(N-1)/2 pairs of pairs that share it; exact
        "same_caption": caption,
        "same_picture": image,
        "either": caption + image - both,
        "chance": math.log(size),  # nats
        # the lowest softmax loss, in nats, if whatever is not on the diagonal counts as a negative: mean of drawn ones
        "floor": float(floors.mean()),
        "floor_error": float(floors.std(ddof=1)) / math.sqrt(batches),
        "batches": batches,
    }


def batch_floor(texts: np.ndarray, images: np.ndarray) -> float:
    """Lowest softmax loss of a batch, in nats, with the diagonal as its positives; texts and images: (N,) int64.

    ln N - I(text; image), of the two as the batch pairs them: no softmax loss goes below the mutual information
    (arXiv:1807.03748, section 2.3), and logits ln p(text, image) / (p(text) p(image)) reach it in both directions. With
    all images different it is the mean of ln m, m the number of times that a row's text stands in the batch.
    """
    together = images * (int(texts.max()) + 1) + texts
    return max(0.0, _mean_log(texts) + _mean_log(images) - _mean_log(together))


def _mean_log(ids: np.ndarray) -> float:
    """Mean over the entries of ln(how often the entry occurs)."""
    times = np.unique(ids, return_counts=True)[1]
    return float((times * np.log(times)).sum()) / len(ids)


def _products(keys: np.ndarray, values: np.ndarray) -> float:
    """Sum of the products of all pairs of values with equal keys."""
    inverse = np.unique(keys, return_inverse=True)[1]
    sums, squares = np.bincount(inverse, weights=values), np.bincount(inverse, weights=values**2)
    return float((sums**2 - squares).sum()) / 2
