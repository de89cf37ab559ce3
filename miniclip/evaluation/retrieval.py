"""Image-text retrieval with several captions an image, counted as CLIP_benchmark does.

Image to text: a hit if any own caption is among the k nearest of all captions. Text to image: every caption is a query,
a hit if its image is among the k nearest. Axes: N images, M texts, E embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from miniclip import metrics
from miniclip.data.transforms import Preprocess
from miniclip.evaluation.encode import (
    DEFAULT,
    EncodeOptions,
    TextTokenizer,
    TwoTowers,
    encode_images,
    encode_texts,
)

if TYPE_CHECKING:
    from miniclip.data.sources import PairSource


class PairEmbeddings(NamedTuple):
    """image: (N, E), text: (M, E), float32, unit length. texts: M captions. image_of_text: (M,) int64, row of image."""

    image: Tensor
    text: Tensor
    texts: list[str]
    image_of_text: Tensor


@dataclass(frozen=True)
class RetrievalResult:
    """Recalls lie in [0, 1]; ranks count from 1; ties count against (miniclip.metrics).

    chance_*: recall at 10 of a random order; from image to text the mean over the images of the hypergeometric
    probability that ten of the M captions hold one of the image's own. shared_texts: captions that another image has
    word for word; the other image's one counts as wrong, so they keep even a perfect model below 1.
    """

    n_images: int
    n_texts: int
    image_to_text_r1: float
    image_to_text_r5: float
    image_to_text_r10: float
    image_to_text_median_rank: float
    text_to_image_r1: float
    text_to_image_r5: float
    text_to_image_r10: float
    text_to_image_median_rank: float
    chance_image_to_text_r10: float
    chance_text_to_image_r10: float
    shared_texts: int


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
    """Embeddings of all images and of all their captions. Raises ValueError if the source is empty."""
    if len(source) == 0:
        raise ValueError("the data set holds no pictures")
    captions = [source.captions(index) for index in range(len(source))]
    texts = [text for own in captions for text in own]
    image_of_text = torch.tensor([index for index, own in enumerate(captions) for _ in own])
    image = encode_images(model, source, preprocess, options)
    return PairEmbeddings(image, encode_texts(model, tokenizer, texts, options), texts, image_of_text)


def retrieval(
    model: TwoTowers,
    preprocess: Preprocess,
    tokenizer: TextTokenizer,
    source: PairSource,
    *,
    options: EncodeOptions = DEFAULT,
) -> RetrievalResult:
    """Encode all pairs of source and count. Raises ValueError if it is empty or an image has no caption."""
    return count_retrieval(encode_pairs(model, preprocess, tokenizer, source, options))


def count_retrieval(pairs: PairEmbeddings) -> RetrievalResult:
    """Recalls and median ranks of embedded pairs. Raises ValueError if an image has no caption."""
    n, m = len(pairs.image), len(pairs.texts)
    to_text, to_image = metrics.retrieval_ranks_from_embeddings(pairs.image, pairs.text, pairs.image_of_text)
    captions_of_image = Counter(torch.bincount(pairs.image_of_text, minlength=n).tolist())
    chance = sum(metrics.chance_recall_at_k(m, own, 10) * images for own, images in captions_of_image.items()) / n
    owners = Counter(text for text, _ in set(zip(pairs.texts, pairs.image_of_text.tolist(), strict=True)))
    return RetrievalResult(
        n_images=n,
        n_texts=m,
        image_to_text_r1=metrics.recall_at_k(to_text, 1),
        image_to_text_r5=metrics.recall_at_k(to_text, 5),
        image_to_text_r10=metrics.recall_at_k(to_text, 10),
        image_to_text_median_rank=metrics.median_rank(to_text),
        text_to_image_r1=metrics.recall_at_k(to_image, 1),
        text_to_image_r5=metrics.recall_at_k(to_image, 5),
        text_to_image_r10=metrics.recall_at_k(to_image, 10),
        text_to_image_median_rank=metrics.median_rank(to_image),
        chance_image_to_text_r10=chance,
        chance_text_to_image_r10=metrics.chance_recall_at_k(n, 1, 10),
        shared_texts=sum(owners[text] > 1 for text in pairs.texts),
    )


def best_captions(pairs: PairEmbeddings, images: Sequence[int], k: int = 3) -> list[list[RankedCaption]]:
    """For each of the images (rows) the k nearest of all captions, best first; equal captions are shown once."""
    result = []
    for index in images:
        similarity = metrics.cosine_matrix(pairs.image[index : index + 1], pairs.text)[0]
        own = {pairs.texts[j] for j in (pairs.image_of_text == index).nonzero().flatten().tolist()}
        ranked: dict[str, RankedCaption] = {}
        for j in similarity.argsort(descending=True, stable=True).tolist():
            text = pairs.texts[j]
            ranked.setdefault(text, RankedCaption(text, float(similarity[j]), text in own))
            if len(ranked) == k:
                break
        result.append(list(ranked.values()))
    return result
