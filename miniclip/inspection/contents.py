"""What an inspection finds: plain values and float64 tensors, under the names that the JSON and the page give them.

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

    trained: bool  # whether the model was trained with this loss and these settings
    settings: dict[str, Any]  # keywords of the function in miniclip.losses.LOSSES
    scale: float  # 1 for a loss on cosines
    bias: float | None
    unit: Literal["nats", "cosine"]  # of the values
    row_loss: Tensor  # (N,), what each image pays
    column_loss: Tensor  # (N,), what each text pays; the means of both, averaged, are value
    pair_loss: Tensor  # (N, N), how that divides over the pairs; its sum is N times value
    gradient: Tensor  # (N, N), d value / d entry of the matrix that the loss was handed
    targets: Tensor | None  # (N, N), what the soft loss was given beside the matrix
    value: float  # the mean of its two directions
    chance: float  # its value where nothing is told apart


@dataclass(frozen=True)
class Temperature:
    """How the matrix looks at other scales. All tensors have one value a scale.

    A loss on cosines does not look at the scale; it is not in loss and best.
    """

    scales: Tensor  # (T,), rising, among them the learned one and the best of each loss
    learned: float
    # the scale of the lowest loss; inf if it falls on to the last scale, -inf to the first, NaN if it stays as it is
    best: dict[str, float]
    loss: dict[str, Tensor]  # with the bias of its LossView
    entropy_of_rows: Tensor  # mean entropy of the row probabilities, in nats
    entropy_of_columns: Tensor
    effective_negatives_of_rows: Tensor  # mean
    effective_negatives_of_columns: Tensor


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
    """A figure that a person can act on. unit: "" for a plain number, "%" for a share. help: how to read it."""

    name: str
    label: str
    value: float | None
    unit: str
    help: str
    chance: float | None = None  # what it is where nothing is told apart, if that is worth a word


class Verdict(NamedTuple):
    """What is wrong, in words. kind: a short name, such as collapsed. evidence, advice: sentences."""

    kind: str
    title: str
    evidence: list[str]
    advice: list[str]


class Summary(NamedTuple):
    """All in a few words. tone: unsure is what has no verdict, but was not shown to be good."""

    tone: Literal["good", "unsure", "bad"]
    title: str
    hits: str  # R@1 and its chance
    text: str  # a sentence: what was looked at, or the first evidence


@dataclass(frozen=True)
class History:
    """One fixed batch of n held-out pairs along the training, and the curves of the run."""

    steps: list[int]  # S, rising
    captions: list[str]  # n
    figures: dict[str, Tensor]  # name -> (S,), among them loss, logit_scale, r1_image_to_text, r1_text_to_image
    cosines: Tensor  # (S, n, n) float16
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
    logit_scale: float
    logit_bias: float | None
    loss: str  # the name in losses that the page opens with
    figures: list[Figure]
    verdicts: list[Verdict]
    summary: Summary
    false_negatives: list[Cell]  # the worst first, as in the lists below
    hardest_negatives: list[Cell]
    worst_positives: list[Cell]
    suspected_false_negatives: int  # all of them, less those that the loss counts as positives
    suspicion: str  # a sentence: what is suspected beside duplicates, or why nothing is
    free_energy_of_images: Tensor  # (N,), in nats
    free_energy_of_texts: Tensor
    orders: dict[str, list[int]]  # index, loss, cluster, length -> permutation of the N pairs
    temperature: Temperature
    losses: dict[str, LossView]  # all of miniclip.losses.LOSSES
    cosine: Tensor  # (N, N)
    positives: Tensor  # (N, N) bool
    history: History | None = None
