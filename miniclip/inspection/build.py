"""Embeddings of N pairs -> an Inspection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean

from torch import Tensor

from miniclip.config import LossConfig
from miniclip.inspection.contents import Figure, History, Inspection
from miniclip.inspection.ordering import orders
from miniclip.inspection.sample import Sample
from miniclip.inspection.suspects import same_images, same_texts, suspects, unseen_duplicates
from miniclip.inspection.verdicts import Repeats, summary, verdicts
from miniclip.inspection.views import loss_views, temperature
from miniclip.losses.energy import free_energy
from miniclip.metrics.batch import FIGURES, batch_figures
from miniclip.metrics.retrieval import cosine_matrix
from miniclip.metrics.slopes import slope_figures


def build(
    sample: Sample,
    image: Tensor,
    text: Tensor,
    positives: Tensor,
    scale: float,
    bias: float | None = None,
    loss: LossConfig | None = None,
    *,
    title: str = "",
    about: Mapping[str, str] | None = None,
    training_loss_over_chance: float | None = None,
    log: Mapping[str, list[float]] | None = None,
    history: History | None = None,
) -> Inspection:
    """Everything about the matrix of these pairs.

    image, text: (N, E), at least float32, unit length, N at least 2. positives: (N, N) bool, with the diagonal. scale,
    bias: the model's; scale is the factor, not its logarithm. loss: what the model was trained with, if that is known;
    else the figures are softmax's, or sigmoid's for a model with a bias. training_loss_over_chance: of as many pairs
    that were trained on. log: the training's, name -> values. Raises ValueError if shapes do not fit, or for
    embeddings that are not finite.
    """
    n, log = len(sample), log or {}
    if image.shape != text.shape or image.ndim != 2 or len(image) != n or positives.shape != (n, n):
        shapes = f"image {tuple(image.shape)}, text {tuple(text.shape)}, positives {tuple(positives.shape)}"
        raise ValueError(f"{n} pairs need embeddings of one shape (N, E) and positives (N, N); got {shapes}")
    if not (bool(image.isfinite().all()) and bool(text.isfinite().all()) and math.isfinite(scale)):
        raise ValueError("the model's embeddings or its scale are not finite; its weights are damaged or diverged")
    opened = loss.name if loss is not None else "softmax" if bias is None else "sigmoid"
    # rounded to float32, so that equal embeddings tie exactly
    cosine = cosine_matrix(image, text).double()
    losses = loss_views(image.double(), text.double(), cosine, positives, scale, bias, loss)
    view = losses[opened]
    curves = temperature(cosine, positives, scale, losses)
    equal_text, equal_image = same_texts(sample.captions), same_images(sample.thumbnails)
    values = {
        "loss": view.value,
        "loss_over_chance": view.value / (view.chance or 1.0),
        **batch_figures(image, text, scale, bias, positives),
        **slope_figures(n * view.gradient, positives),
        "side": sample.squares[0].width,
        "r1_chance": float(positives.double().mean()),
        "unseen_duplicates": unseen_duplicates(positives, equal_text, equal_image),
        "logit_scale": scale,
        "best_scale": curves.best.get(opened, math.nan),  # a loss on cosines has none
    }
    if training_loss_over_chance is not None:
        values["training_loss_over_chance"] = training_loss_over_chance
    values |= {name: log[name][-1] for name in ("grad_norm_image", "grad_norm_text") if log.get(name)}
    if log.get("scale_clamped"):
        values["scale_clamped"] = mean(log["scale_clamped"])  # each of as many steps, but for the last
    images, texts = Repeats.of(equal_image), Repeats.of(equal_text)
    found = verdicts(values, images, texts, log, history)
    figures = []
    for name in (name for name in FIGURES if name in values):
        label, unit, help_ = FIGURES[name]
        value = values[name] if math.isfinite(values[name]) else None
        chance = values["r1_chance"] if name.startswith("r1_") else None
        figures.append(Figure(name, label, value, view.unit if name == "loss" else unit, help_, chance))
    of_images, of_texts = free_energy(scale * cosine + (bias or 0.0))
    return Inspection(
        title=title,
        about=dict(about or {}),
        captions=sample.captions,
        names=sample.names,
        thumbnails=sample.thumbnails,
        logit_scale=scale,
        logit_bias=bias,
        loss=opened,
        figures=figures,
        verdicts=found,
        summary=summary(found, values, log, history),
        **suspects(cosine, positives, equal_text, equal_image)._asdict(),
        free_energy_of_images=of_images,
        free_energy_of_texts=of_texts,
        orders=orders(image, text, view.row_loss + view.column_loss, sample.captions),
        temperature=curves,
        losses=losses,
        cosine=cosine,
        positives=positives,
        history=history,
    )
