"""Image-text retrieval with several captions an image, counted as CLIP_benchmark does.

Image to text: a hit if any own caption is among the k nearest of all captions. Text to image: every caption is a query,
a hit if its image is among the k nearest. Axes: N images, M texts, E embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.common.processes import place, total
from miniclip.data.captioned import PairSource
from miniclip.evaluation.encode import DEFAULT, EncodeOptions, encode_readable, encode_texts, model_device
from miniclip.evaluation.result import Evaluation
from miniclip.metrics.bootstrap import RESAMPLES, Share, Statistic, with_intervals
from miniclip.metrics.retrieval import (
    RetrievalRanks,
    chance_recall_at_k,
    cosine_matrix,
    retrieval_ranks_from_embeddings,
)
from miniclip.metrics.weighted import Median, mean
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers


class PairEmbeddings(NamedTuple):
    """image: (N, E), text: (M, E), float32, unit length. texts: M captions. image_of_text: (M,) int64, row of image.
    rows: the row of the source that each image is. notes: on images left out. fingerprint: of what was read."""

    image: Tensor
    text: Tensor
    texts: list[str]
    image_of_text: Tensor
    rows: Sequence[int] = ()
    notes: Sequence[str] = ()
    fingerprint: str = ""


class RankedCaption(NamedTuple):
    """A candidate caption of an image. similarity: cosine, in [-1, 1]. own: the image has this caption."""

    text: str
    similarity: float
    own: bool


def encode_pairs(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    source: PairSource,
    options: EncodeOptions = DEFAULT,
) -> PairEmbeddings:
    """All images that can be read and all their captions. Raises ValueError without any, and as `encode_readable`."""
    if len(source) == 0:
        raise ValueError("the data set holds no images")
    image = encode_readable(model, source, preprocess, options, "retrieval")
    rows = image.rows.tolist()
    captions = [source.captions(row) for row in rows]
    texts = [text for own in captions for text in own]
    image_of_text = torch.tensor([index for index, own in enumerate(captions) for _ in own])
    text = encode_texts(model, tokenizer, texts, options)
    read = digest(image.fingerprint, *texts, image_of_text.numpy().tobytes())
    return PairEmbeddings(image.values, text, texts, image_of_text, rows, image.notes, read)


def retrieval(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    source: PairSource,
    *,
    task: str = "retrieval",
    options: EncodeOptions = DEFAULT,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Encode all pairs of source and count. Raises ValueError if it is empty or an image has no caption."""
    pairs = encode_pairs(model, preprocess, tokenizer, source, options)
    return count_retrieval(pairs, task, shared=options.shared, device=model_device(model), resamples=resamples)


def count_retrieval(
    pairs: PairEmbeddings,
    task: str = "retrieval",
    *,
    shared: bool = False,
    device: str | torch.device = "cpu",
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Recall at 1, 5 and 10, median and mean rank, and mean average precision of embedded pairs, both ways.

    Ties count against. map: mean over the queries of the average precision of their own candidates. chance_*, in the
    details: recall at 1, 5 and 10 of a random order, from image to text the mean of `chance_recall_at_k`. shared_texts:
    captions that another image has word for word; its copy counts as wrong, so they keep even a perfect model below 1.
    Intervals: images are drawn anew as queries, each with its captions; the candidates stay all of them.
    shared: every process calls, and ranks a part of the images. device: where the matrix is computed.
    Raises ValueError if an image has no caption.
    """
    n, m = len(pairs.image), len(pairs.texts)
    statistic = _statistic(_ranks(pairs, shared, torch.device(device)), pairs.image_of_text.numpy())
    own = torch.bincount(pairs.image_of_text, minlength=n)
    owners = Counter(text for text, _ in set(zip(pairs.texts, pairs.image_of_text.tolist(), strict=True)))
    several = Counter(own.tolist())
    details: dict[str, Any] = {"n_images": n, "n_texts": m}
    for k in (1, 5, 10):
        details[f"chance_image_to_text_r{k}"] = sum(chance_recall_at_k(m, c, k) * i for c, i in several.items()) / n
        details[f"chance_text_to_image_r{k}"] = chance_recall_at_k(n, 1, k)
    details["shared_texts"] = sum(owners[text] > 1 for text in pairs.texts)
    notes = list(pairs.notes)
    if copies := details["shared_texts"]:
        notes.append(f"{copies} captions stand with more than one image; the other image's copy counts as wrong")
    counts = {name: n if name.startswith("image") else m for name in statistic(np.ones(n))}
    figures = with_intervals(statistic, (n,), counts, resamples=resamples)
    return Evaluation("retrieval", task, figures, details, tuple(notes), pairs.fingerprint, statistic, (n,), pairs)


def _ranks(pairs: PairEmbeddings, shared: bool, device: torch.device) -> RetrievalRanks:
    """Of all pairs, whichever process counted them, on the CPU."""
    rank, count = place() if shared else (0, 1)
    n = len(pairs.image)
    rows = slice(n * rank // count, n * (rank + 1) // count)
    # MPS has no float64, which the products are taken in
    there = torch.device("cpu") if device.type == "mps" else device
    image, text, image_of_text = (part.to(there) for part in (pairs.image, pairs.text, pairs.image_of_text))
    found = RetrievalRanks(*(part.cpu() for part in retrieval_ranks_from_embeddings(image, text, image_of_text, rows)))
    if count == 1:
        return found
    to_text, precision = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.float64)
    to_text[rows], precision[rows] = found.image_to_text, found.image_average_precision
    return RetrievalRanks(total(to_text, device), 1 + total(found.text_to_image - 1, device), total(precision, device))


def _statistic(ranks: RetrievalRanks, image_of_text: np.ndarray) -> Statistic:
    shares, ways = dict[str, Share](), []
    for way, found, precision in (
        ("image_to_text", ranks.image_to_text, ranks.image_average_precision),
        ("text_to_image", ranks.text_to_image, 1 / ranks.text_to_image.double()),  # one own image a caption
    ):
        rank, image = found.numpy(), None if way == "image_to_text" else image_of_text
        for name, values in (*((f"r{k}", rank <= k) for k in (1, 5, 10)), ("map", precision.numpy())):
            shares[f"{way}_{name}"] = Share.of(values, image)
        ways.append((way, image, rank.astype(np.float64), Median(rank)))

    def counted(weights: np.ndarray) -> dict[str, float]:
        figures: dict[str, float] = {}
        for way, image, rank, median in ways:
            own = weights if image is None else weights[image]
            figures |= {f"{way}_mean_rank": mean(rank, own), f"{way}_median_rank": median(own)}
        return figures

    return Statistic(shares, ranks=counted)


def best_captions(pairs: PairEmbeddings, images: Sequence[int], k: int = 3) -> list[list[RankedCaption]]:
    """For each of the images (rows) the k nearest of all captions, each text once; of equal cosines own ones last."""
    result = []
    for index in images:
        similarity = cosine_matrix(pairs.image[index : index + 1], pairs.text)[0]
        belongs = pairs.image_of_text == index
        own = {pairs.texts[j] for j in belongs.nonzero().flatten().tolist()}
        order = belongs.long().argsort(stable=True)
        order = order[similarity[order].argsort(descending=True, stable=True)]
        first: dict[str, int] = {}
        for j in order.tolist():
            first.setdefault(pairs.texts[j], j)
        best = islice(first.items(), k)
        result.append([RankedCaption(text, float(similarity[j]), text in own) for text, j in best])
    return result
