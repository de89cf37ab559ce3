"""Pairs to look at: duplicates, negatives that may be false, the hardest negatives and the worst positives.

Axes: N pairs; entry [i, j] of a matrix is image i with text j. `cosine` is (N, N) float, `positives` (N, N) bool with
the diagonal in it, `same_text` and `same_image` (N, N) bool and symmetric, as same_texts and same_images give them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from miniclip.data.duplicates import THRESHOLD, bare, small_vector
from miniclip.inspection.contents import Cell, Duplicate

KINDS: tuple[Duplicate | None, ...] = (None, "text", "image", "both")
STRAY = 2.5  # times the spread of the pairs' leads: how far below the usual lead one may lie by chance


def same_texts(captions: list[str]) -> Tensor:
    """(N, N) bool: captions that differ in nothing but case, spaces, punctuation, or how Unicode writes a letter.

    Compared are letters (with their marks) and digits, in order; captions that have neither equal each other.
    """
    texts = [bare(caption) for caption in captions]
    last = {text: k for k, text in enumerate(texts)}
    ids = torch.tensor([last[text] for text in texts])
    return ids[:, None] == ids


def same_images(thumbnails: list[Image.Image]) -> Tensor:
    """(N, N) bool: images that are equal but for how they were encoded (see small_vector); N RGB ones of one size.

    A crop, a mirror image or another frame of one scene is another image.
    """
    small = np.stack([small_vector(image) for image in thumbnails])
    x = torch.from_numpy(small).double()  # integers, so that sums are exact and the answer symmetric
    squares = x.square().sum(1)
    return squares[:, None] + squares - 2 * x @ x.T < x.shape[1] * THRESHOLD**2


class Suspects(NamedTuple):
    """Lists of cells, the worst first.

    false_negatives: pairs of pairs that are duplicates, or that the model takes for the same (see _bar); of (i, j) and
    (j, i) the one with the higher cosine. First the duplicates that the loss counts as negatives, then what is no
    duplicate and a negative, last the duplicates that count as positives already; by cosine among themselves: a high
    cosine says that the model takes the two for the same; a wide margin, often, only that one of the two pairs is badly
    embedded itself. suspected_false_negatives: how many there are without a limit, less the duplicates that the loss
    counts as positives. suspicion: a sentence, what is suspected beside duplicates, or why nothing is.
    hardest_negatives: those that stand highest above (or least below)
    both diagonal entries beside them, duplicates marked. worst_positives: the pairs that stand furthest below (or least
    above) the highest negative of their row and column, without those that have no negative.
    """

    false_negatives: list[Cell]
    suspected_false_negatives: int
    suspicion: str
    hardest_negatives: list[Cell]
    worst_positives: list[Cell]


def suspects(
    cosine: Tensor, positives: Tensor, same_text: Tensor, same_image: Tensor, limits: tuple[int, int] = (200, 50)
) -> Suspects:
    """limits: of the list of false negatives, and of the two others."""
    diagonal, known = cosine.diagonal(), positives & positives.T
    better = torch.maximum(diagonal[:, None], diagonal)  # of the two right pairs beside each entry
    margins = cosine - better
    kinds = same_text.to(torch.uint8) + 2 * same_image.to(torch.uint8)  # places in KINDS
    above = cosine > cosine.T
    higher = above | (~above.T).triu(1)  # of (i, j) and (j, i); of equal ones, the first
    bar, suspicion = _bar(cosine, positives | (kinds > 0))
    suspected = higher & ((kinds > 0) | (cosine > better.clamp(min=diagonal.median()) + bar)) & ~known

    def cells(i: Tensor, j: Tensor, positives: Tensor) -> list[Cell]:
        each = [matrix[i, j].tolist() for matrix in (cosine, margins, kinds, positives)]
        columns = zip(i.tolist(), j.tolist(), *each, strict=True)
        return [Cell(row, column, value, margin, KINDS[k], yes) for row, column, value, margin, k, yes in columns]

    i, j = (suspected | higher & (kinds > 0)).nonzero(as_tuple=True)
    order = cosine[i, j].argsort(descending=True, stable=True)
    place = torch.where(kinds > 0, 2 * known, 1)[i, j]  # 0, 1 or 2, as they are to be read
    order = order[place[order].argsort(stable=True)][: limits[0]]
    rows, columns = (~positives).nonzero(as_tuple=True)
    hardest = margins[rows, columns].argsort(descending=True, stable=True)[: limits[1]]
    negatives = cosine.masked_fill(positives, -torch.inf)
    lead = diagonal - torch.maximum(negatives.amax(1), negatives.amax(0))
    worst = [k for k in lead.argsort(stable=True)[: limits[1]].tolist() if lead[k] < torch.inf]
    return Suspects(
        cells(i[order], j[order], known),
        int(suspected.sum()),
        suspicion,
        cells(rows[hardest], columns[hardest], positives),
        [Cell(k, k, float(diagonal[k]), float(lead[k]), positive=True) for k in worst],
    )


def _bar(cosine: Tensor, same: Tensor) -> tuple[float, str]:
    """(how far above an entry must stand, a sentence about it): above the better of the right pairs beside it, and
    above the usual cosine of a pair, the median; 0 or less, and infinite for a model that does not tell pairs apart.

    same: (N, N) bool, what is no rival. Measured on the pairs themselves: how far each leads the best of its rivals.
    Most entries stay below their right pairs by the usual lead, and by chance no less than STRAY times the spread of
    the leads nearer; what comes nearer still is suspected, if that is more than half of the way.
    """
    diagonal, rivals = cosine.diagonal(), cosine.masked_fill(same, -torch.inf)
    leads = diagonal - torch.maximum(rivals.amax(1), rivals.amax(0))
    leads = leads[leads < torch.inf]
    # the upper half, which false negatives do not reach
    usual, high = (float(leads.quantile(share)) if len(leads) else 0.0 for share in (0.5, 0.75))
    if usual <= 0:
        return math.inf, (
            "Beside duplicates nothing is suspected: this model does not tell half of these pairs apart (they stand "
            f"{0 - usual:.2f} or more below a rival), so what it takes for the same says nothing about the data."
        )
    bar = min(0.0, max(STRAY * (high - usual) - usual, -usual / 2))
    if bar < 0:
        near = f"what comes within {-bar:.2g} of both right pairs beside it; the usual rival stays {usual:.2g} below"
    else:
        near = f"what stands above both right pairs beside it, with the cosine of a usual pair, {diagonal.median():.2f}"
    return bar, f"Suspected beside duplicates: {near}."


def unseen_duplicates(positives: Tensor, same_text: Tensor, same_image: Tensor) -> float:
    """Share of the pairs with a duplicate that the loss counts as a negative, one way at least, in [0, 1]."""
    unseen = (same_text | same_image) & ~(positives & positives.T)
    return unseen.any(1).double().mean().item()
