"""Retrieval metrics: pure functions of plain tensors. Axes: N images, M texts, E embedding.

Ties count against the model everywhere: a collapsed model, which gives every candidate the same score, misses every
time instead of scoring 100%. A score that is not a number counts as a miss, too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

# Rows and columns of a tile of the similarity matrix. On a CPU its copies, some 20 MB, stay near the last cache; a GPU
# would wait for its launches at that size, and takes 1.1 GB.
_TILE = 1024
_DEVICE_TILE = 8192

# rows (indices) of image, columns (slice) of text -> their scores, a new tensor
_Tile = Callable[[Tensor, slice], Tensor]


class RetrievalRanks(NamedTuple):
    """Ranks from 1 (best), int64, and average precisions in (0, 1], float64.

    image_to_text: (N,), of the best own text. text_to_image: (M,), of the own image. image_average_precision: (N,), the
    mean over an image's own texts of i / (i + foreign texts that score at least as high) for the i-th best.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    image_average_precision: Tensor


@torch.no_grad()
def retrieval_ranks(similarity: Tensor, positives: Tensor) -> RetrievalRanks:
    """Rank of every image's and every text's best own candidate: 1 + the foreign ones that score at least as high.

    similarity: (N, M) float. positives: (N, M) bool, true where the text belongs to the image; several a row and
    several a column are allowed. Raises ValueError if an image or a text has no positive.
    """
    _require_positives(positives.any(1), "image (row)")
    _require_positives(positives.any(0), "text (column)")
    own = positives.nonzero(as_tuple=True)
    pairs = (*own, similarity[own])
    return _count(lambda rows, columns: similarity[:, columns][rows], pairs, slice(None), *similarity.shape)


@torch.no_grad()
def retrieval_ranks_from_embeddings(
    image: Tensor, text: Tensor, image_of_text: Tensor, rows: slice = slice(None)
) -> RetrievalRanks:
    """`retrieval_ranks` of image @ text.T, computed in tiles, so that the matrix never exists at once.

    image: (N, E) float, text: (M, E) float, both unit length for cosine similarity. image_of_text: (M,) int64, the row
    of image that each text belongs to. rows: a share of image, so that several processes can do the work: the result
    then counts these rows alone, and text_to_image, less 1, sums over shares. Products are taken in float64 and rounded
    to float32, so that equal embeddings tie exactly, wherever they stand in the matrix.
    Raises ValueError if an image has no text.
    """
    n, m = len(image), len(text)
    _require_positives(torch.bincount(image_of_text, minlength=n) > 0, "image (row)")
    own = [
        (image[owners].double() * part.double()).sum(1).float()
        for owners, part in zip(image_of_text.split(4096), text.split(4096), strict=True)
    ]
    pairs = image_of_text, torch.arange(m, device=text.device), torch.cat(own) if own else text.new_empty(0)
    return _count(lambda index, columns: _product(image[index], text[columns]), pairs, rows, n, m)


def cosine_matrix(image: Tensor, text: Tensor) -> Tensor:
    """(N, E) and (M, E), unit length -> (N, M) float32, products taken as in `retrieval_ranks_from_embeddings`."""
    result, size = image.new_empty(len(image), len(text), dtype=torch.float32), _tile_size(image)
    for i in range(0, len(image), size):
        for j in range(0, len(text), size):
            result[i : i + size, j : j + size] = _product(image[i : i + size], text[j : j + size])
    return result


def _product(image: Tensor, text: Tensor) -> Tensor:
    return (image.double() @ text.double().T).float()


def _tile_size(tensor: Tensor) -> int:
    return _TILE if tensor.device.type == "cpu" else _DEVICE_TILE


def _require_positives(found: Tensor, what: str) -> None:
    if not bool(found.all()):
        raise ValueError(f"{what} {int((~found).nonzero()[0])} has no positive; give every image and text at least one")


def _count(tile: _Tile, pairs: tuple[Tensor, ...], rows: slice, n: int, m: int) -> RetrievalRanks:
    """Tile by tile, count the foreign scores that are lower than an own one; all others count against it.

    pairs: (P,) each, rows and columns of the own ones, and their scores.
    "Not lower" rather than "at least as high": a foreign NaN then counts against, as does an own one, taken for -inf.
    """
    start, stop, _ = rows.indices(n)
    row, column, score = pairs
    n, device = max(0, stop - start), score.device
    score = torch.where(score.isnan(), -torch.inf, score)
    best_of_text = score.new_full((m,), -torch.inf).scatter_reduce(0, column, score, "amax")

    here = (row >= start) & (row < stop)
    row, column, score = row[here] - start, column[here], score[here]
    own_texts, own_images = torch.bincount(row, minlength=n), torch.bincount(column, minlength=m)
    # Images with many texts first: in every tile, those with an i-th own text are then the first so many rows.
    images = own_texts.argsort(descending=True, stable=True)
    order = score.argsort(descending=True, stable=True)
    order = order[images.argsort()[row[order]].argsort(stable=True)]
    column, score, own_texts = column[order], score[order], own_texts[images]
    first = own_texts.cumsum(0) - own_texts  # where the pairs of an image begin, best first
    place = torch.arange(n, device=device).repeat_interleave(own_texts)  # the image of a pair, in the new order

    lower = torch.zeros(len(score), dtype=torch.float64, device=device)
    lower_images = torch.zeros(m, dtype=torch.float64, device=device)
    size = _tile_size(score)
    for top in range(0, n, size):
        block = slice(top, top + size)
        mine = slice(int(first[top]), int(first[block][-1] + own_texts[block][-1]))
        several = [int((own_texts[block] > i).sum()) for i in range(int(own_texts[top]))]
        for left in range(0, m, size):
            columns = slice(left, left + size)
            scores = tile(images[block] + start, columns)
            inside = (column[mine] >= left) & (column[mine] < left + size)
            scores[place[mine][inside] - top, column[mine][inside] - left] = torch.inf  # own ones are never lower
            # A comparison that writes float32 and a sum of those are much faster than a bool and its sum, and exact
            # as long as a tile has fewer than 2**24 rows or columns.
            flags = torch.empty_like(scores, dtype=torch.float32)
            lower_images[columns] += torch.lt(scores, best_of_text[columns], out=flags).sum(0)
            for i, length in enumerate(several):
                at = first[top : top + length] + i
                lower[at] += torch.lt(scores[:length], score[at, None], out=flags[:length]).sum(1)

    ahead = m - own_texts[place] - lower.long()
    nth = torch.arange(len(score), device=device) - first[place] + 1
    precision = nth.double() / (nth + ahead)
    # On the CPU, where a sum has one order: equal results in every run.
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, place.cpu(), precision.cpu()).to(device)
    back = images.argsort()
    return RetrievalRanks(1 + ahead[first][back], 1 + n - own_images - lower_images.long(), (total / own_texts)[back])


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Share of the ranks (from 1) that are at most k, in [0, 1]."""
    return (ranks <= k).double().mean().item()


def chance_recall_at_k(candidates: int, own: int, k: int) -> float:
    """Probability that k of `candidates` items, drawn without replacement, hold one of the `own` items, in [0, 1].

    Hypergeometric: 1 - C(candidates - own, k) / C(candidates, k); with own = 1 it is k / candidates.
    """
    draws = comb(candidates, min(k, candidates))
    return (draws - comb(candidates - own, min(k, candidates))) / draws
