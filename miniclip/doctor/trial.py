"""Short trainings for the doctor: a fresh model, the configuration's loss and optimiser, and a clock."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from miniclip.config import Config
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainingPairs
from miniclip.data.subset import Subset
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, chance_loss, global_loss
from miniclip.models.preprocess import Preprocess
from miniclip.models.tokenizer import Tokenizer
from miniclip.training.batches import build_augment
from miniclip.training.diagnostics import tower_of
from miniclip.training.optim import learning_rate
from miniclip.training.step import Learner, Taken

if TYPE_CHECKING:
    from accelerate import Accelerator

WARMUP = 20  # steps at most
LONGEST = 3  # times the time, for what cannot be told before
TOO_SLOW = "Too few steps to tell. Give it more time (--seconds), or try it on a faster machine."


@dataclass(frozen=True)
class Setting:
    """What the trainings share. seconds: that each may take."""

    config: Config
    accelerator: Accelerator
    preprocess: Preprocess
    seconds: float

    def augment(self, kind: Literal["crop", "resized_crop", "none"]) -> Augment:
        if kind == "none":
            return Augment(self.preprocess.image_size, "none", resize=self.config.data.resize)
        return replace(build_augment(self.config), kind=kind)


def fixed_batch(setting: Setting, source: PairSource, rows: Sequence[int], count: int) -> Batch:
    """The first readable pairs of rows, as evaluation sees them, a caption each. Raises BadImage if there are none."""
    pairs = trial_pairs(setting, source, rows[: 2 * count], "none")
    if not len(pairs):
        raise BadImage(f"none of {len(rows)} images can be read; check data.source and data.image_column")
    return pairs.__getitems__([(0, row) for row in range(min(count, len(pairs)))])


def trial_pairs(
    setting: Setting,
    source: PairSource,
    rows: Sequence[int],
    kind: Literal["crop", "resized_crop", "none"],
    captions: int = 1,
    progress: bool = False,
) -> TrainingPairs:
    """Those rows of a source that can be read, as training takes them, decoded once."""
    chosen, length = Subset(source, rows), setting.config.model.context_length
    assert length is not None
    augment, tokenizer = setting.augment(kind), Tokenizer(length)
    with tempfile.TemporaryDirectory() as folder:  # what is mapped stays until it is let go
        store = prepare(
            chosen, augment, tokenizer, folder=folder, label="the doctor's images", allowed=1.0, progress=progress
        )
    seed = setting.config.run.seed
    return TrainingPairs(chosen, augment, tokenizer, seed=seed, prepared=store, captions=captions)


class Trial:
    """A fresh model with the configuration's loss and optimiser, at a constant rate after a short warm-up."""

    def __init__(self, setting: Setting, lr: float, vocabulary: Tensor | None = None) -> None:
        """vocabulary: the token ids whose rows alone are trained, as use_small_vocabulary_ takes them."""
        config, self.accelerator = setting.config, setting.accelerator
        optim = replace(config.optim, lr=lr, schedule="constant", warmup_steps=min(config.optim.warmup_steps, WARMUP))
        self.config = replace(config, optim=optim, train=replace(config.train, compile=False))
        self.steps = 0
        self.accelerator.free_memory()
        self.learner = Learner(self.config, self.accelerator, vocabulary)
        self.towers: dict[str, list[nn.Parameter]] = {"image": [], "text": []}
        for name, parameter in self.learner.model.named_parameters():
            if tower := tower_of(name):
                self.towers[tower].append(parameter)
        self.before = {tower: [p.detach().clone() for p in own] for tower, own in self.towers.items()}

    def loss(self, embeddings: Embeddings, image_id: Tensor, text_id: Tensor) -> Tensor:
        device, kind = embeddings.image.device, self.config.loss.positives
        known = GlobalBatch(Positives.of(kind, image_id.to(device), text_id.to(device)))
        return global_loss(embeddings, known, self.config.loss, self.steps)

    def chance(self, n: int, captions: int = 1) -> float:
        return chance_loss(self.config.loss, n, captions, self.steps) or 1

    def step(self, batch: Batch, watched: bool = False) -> Taken:
        """As in training; without the update where it would not be finite."""
        batch, rate = batch.to(self.accelerator.device), learning_rate(self.steps, 1, self.config.optim)
        taken = self.learner.step(batch, self.steps, rate, [len(batch.image)], watched=watched)
        self.steps += taken.finite
        return taken

    def change(self) -> dict[str, float]:
        """Of each tower, how far its weights are from where they started, as a share of their length then."""

        def length(tensors: list[Tensor]) -> float:
            return float(nn.utils.get_total_norm(tensors))

        return {
            tower: length([p.detach() - old for p, old in zip(own, self.before[tower], strict=True)])
            / length(self.before[tower])
            for tower, own in self.towers.items()
        }

    @torch.no_grad()
    def encode(self, batch: Batch) -> Embeddings:
        """Of all pairs of the batch, as evaluation does it."""
        model, size, batch = (
            self.learner.prepared.eval(),
            self.config.eval.batch_size,
            batch.to(self.accelerator.device),
        )
        chunks = zip(batch.image.split(size), batch.text.split(size), strict=True)
        parts = [model(self.learner.inputs(image), text) for image, text in chunks]
        model.train()
        return parts[0]._replace(image=torch.cat([p.image for p in parts]), text=torch.cat([p.text for p in parts]))


def until(setting: Setting, title: str, open_end: Callable[[], bool]) -> Iterator[tuple[Callable[[], float], Any]]:
    """(seconds since the start, progress bar), again and again until the time is up.

    open_end: whether it is too early to tell; then more time is given, for what is found should not depend on how busy
    the machine is.
    """
    from tqdm import tqdm

    start = time.perf_counter()

    def elapsed() -> float:
        return time.perf_counter() - start

    layout = f"{{desc}}: {{elapsed}} of {setting.seconds:.0f} s |{{bar:20}}| {{postfix}}"
    interval = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file gets a line now and then
    hidden = not setting.config.log.progress
    options: dict[str, Any] = {"bar_format": layout, "leave": False, "mininterval": interval, "disable": hidden}
    with tqdm(total=setting.seconds, desc=title, **options) as bar:
        while True:
            yield elapsed, bar
            over = elapsed() / setting.seconds
            if over >= LONGEST or (over >= 1 and not open_end()):
                return
            bar.update(elapsed() - bar.n)
