"""Short trainings for the doctor: what the run begins from, the configuration's loss and optimiser, and a clock."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from miniclip.config import Config
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainingPairs
from miniclip.data.recolour import shrink
from miniclip.data.sampler import TrainSampler
from miniclip.data.subset import Subset
from miniclip.data.words import ONE, Wording
from miniclip.doctor.data import Stage
from miniclip.losses.matrix import Embeddings, GlobalBatch, Positives, chance_loss, global_loss
from miniclip.models.cut import Cut
from miniclip.models.start import Start
from miniclip.training.batches import build_augment, phases
from miniclip.training.diagnostics import tower_of
from miniclip.training.features import features_cut
from miniclip.training.optim import learning_rate
from miniclip.training.precision import Precision
from miniclip.training.step import Learner, Taken
from miniclip.training.throughput import expected_time

if TYPE_CHECKING:
    from accelerate import Accelerator

WARMUP = 20  # steps at most
TIMED = 3  # steps of each image side, after one to warm up
LONGEST = 3  # times the time, for what cannot be told before
TOO_SLOW = "Too few steps to tell. Give it more time (--seconds), or try it on a faster machine."


@dataclass(frozen=True)
class Setting:
    """What the trainings share. seconds: that each may take."""

    config: Config
    start: Start
    accelerator: Accelerator
    seconds: float


def fixed_batch(setting: Setting, source: PairSource, rows: Sequence[int], count: int) -> Batch:
    """The first readable pairs of rows, as evaluation sees them, a caption each. Raises BadImage if there are none."""
    pairs = trial_pairs(setting, source, rows[: 2 * count], augmented=False)
    if not len(pairs):
        raise BadImage(f"none of {len(rows)} images can be read; check data.source and data.image_column")
    return pairs.__getitems__([(0, row) for row in range(min(count, len(pairs)))])


def trial_pairs(setting: Setting, source: PairSource, rows: Sequence[int], augmented: bool = True) -> TrainingPairs:
    """Those rows of a source that can be read, decoded once. augmented: as training takes them; else as evaluation."""
    config, chosen, tokenizer = setting.config, Subset(source, rows), setting.start.tokenizer
    augment = build_augment(config, setting.start.preprocess)
    if not augmented:
        augment = Augment(augment.image_size, "none", resize=augment.resize, preprocess=augment.preprocess)
    progress = augmented and config.log.progress
    options: dict[str, Any] = {"label": "the doctor's images", "allowed": 1.0, "progress": progress}
    with tempfile.TemporaryDirectory() as folder:  # what is mapped stays until it is let go
        store = prepare(chosen, augment, tokenizer, folder=folder, **options)
    wording = Wording.of(config.data, tokenizer) if augmented else ONE
    return TrainingPairs(chosen, augment, tokenizer, seed=config.run.seed, prepared=store, wording=wording)


class Trial:
    """The model that the run begins from, with the configuration's loss and optimiser, at a constant rate after a short
    warm-up: those of single towers and of the scale in the same proportion."""

    def __init__(self, setting: Setting, lr: float, vocabulary: Tensor | None = None) -> None:
        """vocabulary: the token ids whose rows alone are trained, as use_small_vocabulary_ takes them."""
        config, accelerator = setting.config, setting.accelerator
        share, own = lr / config.optim.lr, ("lr_image", "lr_text", "lr_scale")
        rates = {name: rate * share for name in own if (rate := getattr(config.optim, name)) is not None}
        optim = replace(config.optim, lr=lr, schedule="constant", warmup_steps=min(config.optim.warmup_steps, WARMUP))
        optim = replace(optim, **rates)
        self.setting, self.device, self.steps = setting, accelerator.device, 0
        loss = replace(config.loss, text_to_text=0.0)  # asked here is how images and captions go together
        self.config = replace(config, loss=loss, optim=optim, train=replace(config.train, compile=False, ema=0.0))
        accelerator.free_memory()
        self.learner = Learner(self.config, accelerator, setting.start, vocabulary)
        self.towers: dict[str, list[nn.Parameter]] = {"image": [], "text": []}
        for name, parameter in self.learner.model.named_parameters():
            if tower := tower_of(name):
                self.towers[tower].append(parameter)
        self.before = {tower: [p.detach().clone() for p in own] for tower, own in self.towers.items()}

    def loss(self, embeddings: Embeddings, image_id: Tensor, text_id: Tensor) -> float:
        """Over that at chance."""
        positives = Positives.of(self.config.loss.positives, image_id.to(self.device), text_id.to(self.device))
        loss = global_loss(embeddings, GlobalBatch(positives), self.config.loss, self.steps)
        return float(loss) / self.chance(len(image_id))

    def chance(self, n: int, captions: int = 1) -> float:
        return chance_loss(self.config.loss, n, captions, self.steps) or 1

    def step(self, batch: Batch, watched: bool = False) -> Taken:
        """As in training; without the update where it would not be finite."""
        batch, rate = batch.to(self.device), learning_rate(self.steps, 1, self.config.optim)
        taken = self.learner.step(batch, self.steps, rate, [len(batch.image)], watched=watched)
        self.steps += taken.finite
        return taken

    def train(
        self, title: str, batches: Iterator[Batch], early: Callable[[], bool], steps: int | None, watched: bool = False
    ) -> Iterator[tuple[Taken, float, Any]]:
        """(step, seconds since the start, progress bar), until the time is up, or a loss is no number, or after steps.

        early: whether it is too early to tell; then more time is given, for what is found should not depend on how busy
        the machine is.
        """
        from tqdm import tqdm

        seconds, start = self.setting.seconds, time.perf_counter()

        def elapsed() -> float:
            return time.perf_counter() - start

        interval = 0.1 if sys.stderr.isatty() else 20.0  # seconds; a log file gets a line now and then
        options: dict[str, Any] = {"leave": False, "mininterval": interval, "disable": not self.config.log.progress}
        layout = f"{{desc}}: {{elapsed}} of {seconds:.0f} s |{{bar:20}}| {{postfix}}"
        with tqdm(total=seconds, desc=title, bar_format=layout, **options) as bar:
            over = 0.0
            while over < 1 or (over < LONGEST and early()):
                taken = self.step(next(batches), watched)
                yield taken, elapsed(), bar
                if not taken.finite or self.steps == steps:
                    return
                over = elapsed() / seconds
                bar.update(elapsed() - bar.n)

    def change(self) -> dict[str, float]:
        """Of each tower, how far its weights are from where they started, as a share of their length then."""
        length, found = nn.utils.get_total_norm, {}
        for tower, own in self.towers.items():
            moved = [p.detach() - old for p, old in zip(own, self.before[tower], strict=True)]
            found[tower] = float(length(moved)) / float(length(self.before[tower]))
        return found

    @torch.no_grad()
    def on_features(self, batch: Batch, cut: Cut) -> Batch:
        """The batch as locked towers hand it on, from where each is cut; the next steps begin there."""
        model, size = self.learner.model.eval(), self.config.eval.batch_size
        batch, learner = batch.to(self.device), self.learner
        learner.cut = Cut()
        if (k := cut.image) is not None:
            parts = [model.image_tower.lower(learner.inputs(part), k).float() for part in batch.image.split(size)]
            batch = batch._replace(image=torch.cat(parts))
        if (k := cut.text) is not None:
            batch = batch._replace(
                text=torch.cat([model.text_tower.lower(part, k).float() for part in batch.text.split(size)])
            )
        model.train()
        learner.cut = cut
        return batch

    @torch.no_grad()
    def encode(self, batch: Batch) -> Embeddings:
        """Of all pairs of the batch, as evaluation does it."""
        batch, size, model = batch.to(self.device), self.config.eval.batch_size, self.learner.prepared.eval()
        chunks = zip(batch.image.split(size), batch.text.split(size), strict=True)
        parts = [model(self.learner.inputs(image), text) for image, text in chunks]
        model.train()
        return parts[0]._replace(image=torch.cat([p.image for p in parts]), text=torch.cat([p.text for p in parts]))


def check_speed(setting: Setting, pairs: TrainingPairs, steps: int, precision: Precision, images: int) -> Stage:
    """How long the training will take: some steps at each of its image sides, and the features that come before, if
    there are any. steps, images: of the whole run."""
    config, size, found = setting.config, min(setting.config.data.batch_size, len(pairs)), []
    trial = Trial(setting, config.optim.lr, pairs.vocabulary() if config.train.small_vocabulary else None)
    draws = iter(TrainSampler(len(pairs), size, seed=config.run.seed, steps=2**40))
    cut, each = features_cut(config, trial.learner.model), 0.0
    for side, count in phases(0, steps, config):
        times = []
        for _ in range(1 + TIMED):
            start = time.perf_counter()
            batch = pairs.__getitems__(next(draws))
            batch = batch._replace(image=shrink(batch.image, side))
            if cut != Cut():  # which the run has before its steps
                batch = trial.on_features(batch, cut)
                each, start = (time.perf_counter() - start) / size, time.perf_counter()
            trial.step(batch)
            times.append(time.perf_counter() - start)
        found.append((count, median(times[1:]) * config.data.batch_size / size))
    figures = {"training": expected_time(found), "precision": f"{precision.name}: {precision.why}"}
    if each:
        views = config.data.views or 1
        per_image = f"{1000 * each:.3g} ms for an image and its caption"
        figures["features_before_it"] = f"about {images * views * each:.0f} s: {per_image}"
    note = "Preparing the images and evaluating come on top."
    return Stage("speed", "how long the training will take here", figures, [], [note])
