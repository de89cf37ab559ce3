"""What an inspection finds: plain values and float64 tensors, which the JSON, the picture and the page are made from.

Axes: N pairs; row i is image i, column j is text j. All tensors lie on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from PIL import Image
from torch import Tensor

Duplicate = Literal["text", "image", "both"]


@dataclass(frozen=True)
class LossView:
    """The matrix under one loss; what it was handed is `scale * cosine + bias`.

    settings: keywords of the function in miniclip.losses.LOSSES. scale, bias: 1 and None for a loss on cosines.
    trained: whether the model was trained with this loss and these settings. value: the loss, the mean of its two
    directions. chance: what it is where nothing is told apart. row_loss, column_loss: (N,), what each image and
    each text pays; the means of both, averaged, are value. pair_loss: (N, N), how that divides over the pairs; its sum
    is N times value. gradient: (N, N), d value / d entry of the matrix that the loss was handed. unit: of the values,
    "nats" or "cosine".
    targets: (N, N), what the soft loss was given beside the matrix.
    """

    settings: dict[str, Any]
    scale: float
    bias: float | None
    trained: bool
    value: float
    chance: float
    row_loss: Tensor
    column_loss: Tensor
    pair_loss: Tensor
    gradient: Tensor
    unit: Literal["nats", "cosine"]
    targets: Tensor | None = None


@dataclass(frozen=True)
class Temperature:
    """How the matrix looks at other scales. All tensors have one value a scale.

    scales: (T,), rising, among them the learned one and the best of each loss. learned: the model's scale.
    loss: (T,) for each loss, with the bias of its LossView. best: the scale of the lowest of these for each loss.
    entropy_rows, entropy_columns: mean entropy of the row and column probabilities, in nats. negatives_rows,
    negatives_columns: mean effective number of negatives. A loss on cosines does not look at the scale; it is not in
    loss and best.
    """

    scales: Tensor
    learned: float
    loss: dict[str, Tensor]
    best: dict[str, float]
    entropy_rows: Tensor
    entropy_columns: Tensor
    negatives_rows: Tensor
    negatives_columns: Tensor


class Cell(NamedTuple):
    """One entry of the matrix in a list. i: image, j: text.

    cosine: of the pair. margin: by how much it stands above (below, if negative) what it is compared with: for a
    negative the higher of the two diagonal entries beside it, for a positive the highest negative of its row and
    column. duplicate: how the other pair's text or image equals its own, if it does. positive: whether the loss counts
    it as a positive.
    """

    i: int
    j: int
    cosine: float
    margin: float
    duplicate: Duplicate | None = None
    positive: bool = False


class Figure(NamedTuple):
    """A figure that a person can act on. unit: "" for a share or a plain number. help: how to read it."""

    name: str
    label: str
    value: float | None
    unit: str
    help: str


class Verdict(NamedTuple):
    """What is wrong, in words. kind: a short name, such as collapsed. evidence, advice: sentences."""

    kind: str
    title: str
    evidence: list[str]
    advice: list[str]


@dataclass(frozen=True)
class History:
    """One fixed batch of n held-out pairs along the training, and the curves of the run.

    steps: S, rising. cosines: (S, n, n) float16. figures: name -> (S,) of the fixed batch, among them loss,
    logit_scale, r1_image_to_text and r1_text_to_image. captions: of the n pairs. training: name -> values of
    metrics.jsonl, among them step, loss, loss_over_chance and logit_scale, all of one length; NaN where a line lacks
    one.
    """

    steps: list[int]
    cosines: Tensor
    figures: dict[str, Tensor]
    captions: list[str]
    training: dict[str, list[float]]


@dataclass(frozen=True)
class Inspection:
    """All of it.

    title: what was inspected, for a heading. about: label -> value (checkpoint, data, split, seed, ...).
    captions, names: N each; the latter are files or rows. thumbnails: N RGB squares of one size. cosine: (N, N).
    positives: (N, N) bool. scale, bias: learned. loss: the name in losses that the page opens with. orders: name
    (index, loss, cluster, length) -> permutation of the N pairs. losses: all of miniclip.losses.LOSSES.
    figures, verdicts: see there. false_negatives, hardest_negatives, worst_positives: the worst first, or the first of
    them. suspects: how many there are of the first kind, less those that the loss counts as positives.
    free_energy: (N,) of the images and (N,) of the texts, in nats.
    """

    title: str
    about: dict[str, str]
    captions: list[str]
    names: list[str]
    thumbnails: list[Image.Image]
    cosine: Tensor
    positives: Tensor
    scale: float
    bias: float | None
    loss: str
    orders: dict[str, list[int]]
    losses: dict[str, LossView]
    temperature: Temperature
    figures: list[Figure]
    verdicts: list[Verdict]
    false_negatives: list[Cell]
    hardest_negatives: list[Cell]
    worst_positives: list[Cell]
    free_energy: tuple[Tensor, Tensor]
    history: History | None = None
    suspects: int = 0

    @property
    def logits(self) -> Tensor:
        """(N, N), scale * cosine + bias."""
        return self.scale * self.cosine + (self.bias or 0.0)
