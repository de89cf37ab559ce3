"""The figures of a batch: what training logs of it, and what the page shows of any other.

Axes: N pairs, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miniclip.losses.energy import free_energy
from miniclip.metrics.geometry import alignment, effective_negatives, effective_rank, modality_gap, uniformity
from miniclip.metrics.retrieval import recall_at_k, retrieval_ranks

PAIRS = 512  # of a training batch that the log looks at: the rank of more takes longer than the step of a small model

_FIGURES = """\
loss | loss | nats | The loss of these pairs, mean of both directions.
loss_over_chance | loss / chance | | 1 is a model that tells nothing apart; above 1 it is confident and wrong.
training_loss_over_chance | loss / chance, training pairs | | \
The same on as many training pairs: far lower means learnt by heart.
r1_image_to_text | R@1, image to text | % | Share of images whose own text is the nearest of all.
r1_text_to_image | R@1, text to image | % | Share of texts whose own image is the nearest of all.
cosine_positive | cosine of positives | cosine | Mean over the pairs that belong together.
cosine_negative | cosine of negatives | cosine | Mean over all others; the gap between both counts.
alignment | alignment | squared distance | Mean squared distance of a pair, 0 to 4; lower is closer.
uniformity_image | uniformity, images | nats | \
Log of the mean Gaussian potential: 0 is one point, about -4 evenly spread.
uniformity_text | uniformity, texts | nats | The same of the texts.
modality_gap | modality gap | distance | Between the mean image and the mean text; 0 to 2.
rank_image | effective rank, images | directions | How many directions the embeddings use; 1 is a collapse.
rank_text | effective rank, texts | directions | The same of the texts.
effective_negatives_image_to_text | effective negatives, image to text | texts | \
How many texts push an image, by entropy: at 1 only the hardest, at N - 1 all alike.
effective_negatives_text_to_image | effective negatives, text to image | images | How many images push a text.
slope_positive | slope of the loss, positives | | \
N times d loss / d logit, mean: softmax pulls with -1 at what it gives no chance, with 0 at what it is sure of.
slope_positive_sd | spread of that slope, positives | | Standard deviation over the positives.
slope_negative | slope of the loss, negatives | | The same, mean over all others, which are pushed apart.
slope_negative_sd | spread of that slope, negatives | | Far above the mean: few of them are pushed, and hard.
free_energy_image | free energy, images | nats | \
Mean of -log sum exp(logit) over all texts; high for an image that none suits.
free_energy_text | free energy, texts | nats | The same of the texts, over all images.
unseen_duplicates | false negatives | % | \
Share of pairs with a duplicate, by text or image, that the loss counts as a negative.
logit_scale | logit scale | | The learned inverse temperature; training keeps it between 1 and 100.
best_scale | best scale | | Where the loss of these pairs would be lowest; - if it falls on to an end.
scale_clamped | steps at the clamp | % | Share of the steps in which the scale stood at 1 or at 100.
grad_norm_image | gradient norm, image encoder | | Before clipping, in the last steps.
grad_norm_text | gradient norm, text encoder | | Before clipping, in the last steps."""
# all that a log line, the JSON and the page may hold, in the page's order: name -> label, unit ("" for a plain number,
# "%" for a share), and how to read it
FIGURES = {name.strip(): [*map(str.strip, about)] for name, *about in (x.split("|") for x in _FIGURES.splitlines())}


@torch.no_grad()
def batch_figures(image: Tensor, text: Tensor, scale: float, bias: float | None, positives: Tensor) -> dict[str, float]:
    """The figures of a batch that need no loss, by their names in FIGURES.

    image, text: (N, E), at least float32, unit length, on one device. positives: (N, N) bool.
    """
    cosine = image @ text.T
    ranks = retrieval_ranks(cosine, positives)
    logits = scale * cosine + (bias or 0.0)
    by_image, by_text = effective_negatives(logits, positives)
    of_images, of_texts = free_energy(logits)
    negatives = cosine[~positives]
    return {
        "r1_image_to_text": recall_at_k(ranks.image_to_text, 1),
        "r1_text_to_image": recall_at_k(ranks.text_to_image, 1),
        "cosine_positive": float(cosine[positives].mean()),
        "cosine_negative": float(negatives.mean()) if len(negatives) else float("nan"),
        "alignment": alignment(image, text),
        "uniformity_image": uniformity(image),
        "uniformity_text": uniformity(text),
        "modality_gap": modality_gap(image, text),
        "rank_image": effective_rank(image),
        "rank_text": effective_rank(text),
        "effective_negatives_image_to_text": float(by_image.mean()),
        "effective_negatives_text_to_image": float(by_text.mean()),
        "free_energy_image": float(of_images.mean()),
        "free_energy_text": float(of_texts.mean()),
    }
