"""Pairs to look at: duplicates, negatives that may be false, the hardest negatives and the worst positives.

Axes: N pairs; entry [i, j] of a matrix is image i with text j. `cosine` is (N, N) float, `positives` (N, N) bool with
the diagonal in it, `same_text` and `same_image` (N, N) bool and symmetric, as same_texts and same_images give them.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.duplicates import THRESHOLD, bare, small_vector
from miniclip.inspection.contents import Cell, Duplicate

KINDS: tuple[Duplicate | None, ...] = (None, "text", "image", "both")


def same_texts(captions: list[str]) -> Tensor:
    """(N, N) bool: captions that differ in nothing but case, spaces, punctuation, or how Unicode writes a letter.

    Compared are letters (with their marks) and digits, in order; captions that have neither equal each other.
    """
    texts = [bare(caption) for caption in captions]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([numbers[text] for text in texts], dtype=torch.int64)
    return ids[:, None] == ids


def same_images(thumbnails: list[Image.Image]) -> Tensor:
    """(N, N) bool: images that are equal but for how they were encoded (see small_vector); N RGB ones of one size.

    A crop, a mirror image or another frame of one scene is another image.
    """
    small = np.stack([small_vector(image) for image in thumbnails])
    x = torch.from_numpy(small).double()  # integers, so that sums are exact and the answer symmetric
    squares = x.square().sum(1)
    return squares[:, None] + squares - 2 * x @ x.T < x.shape[1] * THRESHOLD**2


def false_negatives(
    cosine: Tensor, positives: Tensor, same_text: Tensor, same_image: Tensor, limit: int = 200
) -> list[Cell]:
    """Pairs of pairs that are duplicates, or of which an entry stands above both diagonal entries beside it.

    Of (i, j) and (j, i) the one with the higher cosine. First the duplicates that the loss counts as negatives, then
    what is no duplicate and a negative, last the duplicates that count as positives already; by cosine among
    themselves: a high cosine says that the model takes the two for the same; a wide margin, often, only that one of the
    two pairs is badly embedded itself. limit cuts the end.
    """
    kinds, margins, known = _kinds(same_text, same_image), _margins(cosine), positives & positives.T
    i, j = ((kinds > 0) & _chosen(cosine) | _suspected(cosine, positives, kinds)).nonzero(as_tuple=True)
    order = cosine[i, j].argsort(descending=True, stable=True)
    place = torch.where(kinds > 0, 2 * known, 1)  # 0, 1 or 2, as they are to be read
    order = order[place[i, j][order].argsort(stable=True)][:limit]
    return _cells(i[order], j[order], cosine, margins, kinds, known)


def count_false_negatives(cosine: Tensor, positives: Tensor, same_text: Tensor, same_image: Tensor) -> int:
    """How many false_negatives lists without a limit, less the duplicates that the loss counts as positives."""
    return int(_suspected(cosine, positives, _kinds(same_text, same_image)).sum())


def hardest_negatives(
    cosine: Tensor, positives: Tensor, same_text: Tensor, same_image: Tensor, limit: int = 50
) -> list[Cell]:
    """The negatives that stand highest above (or least below) both diagonal entries beside them, duplicates marked."""
    margins = _margins(cosine)
    i, j = (~positives).nonzero(as_tuple=True)
    order = margins[i, j].argsort(descending=True, stable=True)[:limit]
    return _cells(i[order], j[order], cosine, margins, _kinds(same_text, same_image), positives)


def worst_positives(cosine: Tensor, positives: Tensor, limit: int = 50) -> list[Cell]:
    """The pairs that stand furthest below (or least above) the highest negative of their row and column.

    Pairs without any negative are left out.
    """
    negatives = cosine.masked_fill(positives, -torch.inf)
    margins = cosine.diagonal() - torch.maximum(negatives.amax(1), negatives.amax(0))
    order = margins.argsort(stable=True)[:limit].tolist()
    diagonal = cosine.diagonal().tolist()
    return [Cell(i, i, diagonal[i], m, positive=True) for i in order if (m := float(margins[i])) < torch.inf]


def unseen_duplicates(positives: Tensor, same_text: Tensor, same_image: Tensor) -> float:
    """Share of the pairs with a duplicate that the loss counts as a negative, one way at least, in [0, 1]."""
    unseen = (same_text | same_image) & ~(positives & positives.T)
    return unseen.any(1).double().mean().item()


def _suspected(cosine: Tensor, positives: Tensor, kinds: Tensor) -> Tensor:
    """(N, N) bool: what the loss counts as a negative, and is a duplicate or above both diagonal entries."""
    return _chosen(cosine) & ((kinds > 0) | (_margins(cosine) > 0)) & ~(positives & positives.T)


def _chosen(cosine: Tensor) -> Tensor:
    """One of (i, j) and (j, i), for i other than j: the higher; of equal ones, the first."""
    wins = cosine > cosine.T
    return wins | (~wins.T).triu(1)


def _margins(cosine: Tensor) -> Tensor:
    """By how much each entry stands above both diagonal entries beside it; (N, N)."""
    diagonal = cosine.diagonal()
    return cosine - torch.maximum(diagonal[:, None], diagonal)


def _kinds(same_text: Tensor, same_image: Tensor) -> Tensor:
    """(N, N) uint8, places in KINDS."""
    return same_text.to(torch.uint8) + 2 * same_image.to(torch.uint8)


def _cells(i: Tensor, j: Tensor, cosine: Tensor, margins: Tensor, kinds: Tensor, positives: Tensor) -> list[Cell]:
    values = [matrix[i, j].tolist() for matrix in (cosine, margins, kinds, positives)]
    return [
        Cell(row, column, value, margin, KINDS[kind], positive)
        for row, column, value, margin, kind, positive in zip(i.tolist(), j.tolist(), *values, strict=True)
    ]
