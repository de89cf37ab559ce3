"""What an inspection finds: plain values and float64 tensors, which the JSON and the page are made from.

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
    """The matrix under one loss; what it was handed is `scale * cosine + bias`."""

    settings: dict[str, Any]  # keywords of the function in miniclip.losses.LOSSES
    scale: float  # 1 for a loss on cosines
    bias: float | None
    trained: bool  # whether the model was trained with this loss and these settings
    value: float  # the mean of its two directions
    chance: float  # its value where nothing is told apart
    row_loss: Tensor  # (N,), what each image pays
    column_loss: Tensor  # (N,), what each text pays; the means of both, averaged, are value
    pair_loss: Tensor  # (N, N), how that divides over the pairs; its sum is N times value
    gradient: Tensor  # (N, N), d value / d entry of the matrix that the loss was handed
    unit: Literal["nats", "cosine"]  # of the values
    targets: Tensor | None = None  # (N, N), what the soft loss was given beside the matrix


@dataclass(frozen=True)
class Temperature:
    """How the matrix looks at other scales. All tensors have one value a scale.

    A loss on cosines does not look at the scale; it is not in loss and best.
    """

    scales: Tensor  # (T,), rising, among them the learned one and the best of each loss
    learned: float
    loss: dict[str, Tensor]  # with the bias of its LossView
    best: dict[str, float]  # the scale of the lowest loss
    entropy_rows: Tensor  # mean entropy of the row probabilities, in nats
    entropy_columns: Tensor
    negatives_rows: Tensor  # mean effective number of negatives
    negatives_columns: Tensor


class Cell(NamedTuple):
    """One entry of the matrix in a list."""

    i: int  # image
    j: int  # text
    cosine: float
    # how far a negative stands above the higher of the two diagonal entries beside it, or a positive above the highest
    # negative of its row and column
    margin: float
    duplicate: Duplicate | None = None  # how the other pair's text or image equals its own, if it does
    positive: bool = False  # whether the loss counts it as one


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
    """One fixed batch of n held-out pairs along the training, and the curves of the run."""

    steps: list[int]  # S, rising
    cosines: Tensor  # (S, n, n) float16
    figures: dict[str, Tensor]  # name -> (S,), among them loss, logit_scale, r1_image_to_text, r1_text_to_image
    captions: list[str]  # n
    # name -> values of metrics.jsonl, among them step, loss, loss_over_chance and logit_scale, all of one length; NaN
    # where a line lacks one
    training: dict[str, list[float]]


@dataclass(frozen=True)
class Inspection:
    """All of it."""

    title: str  # what was inspected, for a heading
    about: dict[str, str]  # label -> value: checkpoint, data, split, seed, ...
    captions: list[str]
    names: list[str]  # files or rows
    thumbnails: list[Image.Image]  # RGB squares of one size
    cosine: Tensor  # (N, N)
    positives: Tensor  # (N, N) bool
    scale: float
    bias: float | None
    loss: str  # the name in losses that the page opens with
    orders: dict[str, list[int]]  # index, loss, cluster, length -> permutation of the N pairs
    losses: dict[str, LossView]  # all of miniclip.losses.LOSSES
    temperature: Temperature
    figures: list[Figure]
    verdicts: list[Verdict]
    false_negatives: list[Cell]  # the worst first, as in the lists below
    hardest_negatives: list[Cell]
    worst_positives: list[Cell]
    free_energy: tuple[Tensor, Tensor]  # (N,) of the images and (N,) of the texts, in nats
    history: History | None = None
    suspects: int = 0  # all suspected false negatives, less those that the loss counts as positives

    @property
    def logits(self) -> Tensor:
        """(N, N), scale * cosine + bias."""
        return self.scale * self.cosine + (self.bias or 0.0)
