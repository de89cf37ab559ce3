"""The batches of a run: the training split of a configuration, from any step on."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.common.processes import from_main, gathered
from miniclip.config import Config, ConfigError
from miniclip.config.sections import require
from miniclip.data.ahead import ahead
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.captioned import PairSource, check_enough, contents, open_source
from miniclip.data.features import FeaturePairs
from miniclip.data.images import BadCount
from miniclip.data.loader import Batch, TrainingPairs, training_loader
from miniclip.data.record import Record, changes_since, record_of, record_of_shards
from miniclip.data.sampler import TrainSampler
from miniclip.data.stream.held_out import SEEN
from miniclip.data.stream.lanes import Cursor, cut_short
from miniclip.data.stream.stream import open_stream
from miniclip.data.strong import StrongAugment
from miniclip.data.weights import image_weights
from miniclip.data.words import Wording
from miniclip.data.workers import batches_of
from miniclip.losses.matrix import shares
from miniclip.models.preprocess import Preprocess
from miniclip.models.start import Start
from miniclip.training.run_dir import newest_progress

log = logging.getLogger(__name__)

T = TypeVar("T")
READ_BY = ("name", "revision", "train_split", "validation_split", "test_split", "image_column", "caption_column")


def build_augment(config: Config, preprocess: Preprocess) -> Augment:
    """The random transform that a configuration asks for. preprocess: of the model."""
    data = config.data
    own = None if preprocess == Preprocess(preprocess.image_size, resize=preprocess.resize) else preprocess
    look = data.crop_scale, data.flip, data.colour_jitter
    strong = (data.randaugment, data.erasing) if data.randaugment or data.erasing else ()
    kind = StrongAugment if strong else Augment
    return kind(preprocess.image_size, data.augment, *look, preprocess.resize, own, *strong)


def planned_steps(config: Config, rows: int) -> int:
    """Steps of a whole run over so many images."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None
    # rounded first: 1.1 epochs of 100 batches are 110 steps, not the 111 of 110.00000000000001
    return math.ceil(round(config.train.epochs * (rows // config.data.batch_size), 6))


def image_side(step: int, steps: int, config: Config) -> int:
    """Side in pixels of the images of step 0, 1, ..., steps - 1: train.low_image_size at first, then the model's."""
    low, full = config.train.low_image_size, config.model.image_size
    assert full is not None
    return full if low is None or step >= round(config.train.low_share * steps) else low


def phases(first: int, steps: int, config: Config) -> list[tuple[int, int]]:
    """(image side, how many) of the steps from first on, in their order."""
    sides = (image_side(step, steps, config) for step in range(first, steps))
    return [(side, len(list(group))) for side, group in groupby(sides)]


class MapBatches:
    """Batches of images that are known beforehand. steps: of the whole run. bad: images that cannot be used here.
    record: of the data, for a resume to compare."""

    def __init__(self, config: Config, accelerator: Accelerator, start: Start) -> None:
        data, seed, main, world = config.data, config.run.seed, accelerator.is_main_process, accelerator.num_processes
        self.config, self.data, self.device = config, data, accelerator.device
        source = open_source(data, "train", seed=seed, image_size=config.model.image_size or 0)
        check_enough(data, len(source))
        weights = image_weights(source, data)
        # of a cache every process counts all, else its own part of them
        self.bad = BadCount.of(source, data.max_bad_fraction)
        self.bad.total = self.bad.total if data.cache else -(-self.bad.total // world)
        self.contents = contents(source)
        if weights is not None:
            self.contents["weights"] = digest(weights.numpy().tobytes())
        self.record: Record | None = None  # of the main process
        if pieces := from_main(lambda: self._look_at(source)):
            self.contents["pieces"] = pieces
        if config.run.resume and (config.train.small_vocabulary or not config.run.allow_changed_data):
            from_main(self._check_newest)
        augment, tokenizer, prepared = build_augment(config, start.preprocess), start.tokenizer, None
        wording = Wording.of(data, tokenizer)
        if data.cache:
            label, progress, allowed = _label(config), config.log.progress and main, data.max_bad_fraction
            options: dict[str, Any] = {"folder": data.cache_dir, "label": label, "allowed": allowed}
            prepared = prepare(source, augment, tokenizer, progress=progress, **options)
            self.bad.add(prepared.bad)
            if prepared.bad and main:
                named = first_few(prepared.bad)
                log.warning("%d images cannot be read and are left out: %s", len(prepared.bad), named)
        self.pairs: TrainingPairs | FeaturePairs = TrainingPairs(
            source, augment, tokenizer, seed, prepared, wording, weights
        )
        rows = self.pairs.rows
        options = {"rank": accelerator.process_index, "world": world}
        if weights is not None and data.weights_for == "sampler":
            options["draw_weights"] = weights[rows]
        if data.mixing:  # how many images of each source are left
            ends = np.searchsorted(rows, np.cumsum(source.sizes))  # type: ignore[attr-defined]
            options |= {"mixing": data.mixing, "sizes": np.diff(ends, prepend=0).tolist()}
        self.steps = planned_steps(config, len(rows))
        self.sampler = TrainSampler(len(rows), data.batch_size, seed, self.steps, **options)

    def shares(self, step: int) -> list[int]:
        """Pairs of each process in a step."""
        return shares(self.data.batch_size, self.sampler.world)

    def describe(self) -> str:
        return f"{len(self.pairs)} images of {self.data.label} ({self.epoch(self.steps):.1f} epochs)"

    def epoch(self, step: int) -> float:
        """How many times the data have been seen after a step."""
        return step / self.sampler.per_epoch

    def _look_at(self, source: PairSource) -> str | None:
        self.record = record_of(source)
        return None if self.record is None else self.record.digest()

    def _check_newest(self) -> None:
        """`check` before a cache is built of other data, or a model for other captions."""
        told = newest_progress(Path(self.config.run.dir))
        if isinstance(state := told.get("feed"), dict):
            self._compare(told.get("step", 0), state)

    def check(self, first_step: int, state: Mapping[str, Any]) -> None:
        """Raise ConfigError if the run stands at a step of other data, wherever they lay, and is not to go on with
        these. state: as of that step. Every process calls it."""
        from_main(lambda: self._compare(first_step, state))

    def _compare(self, first_step: int, state: Mapping[str, Any]) -> None:
        then, config, now = state.get("contents") or {}, self.config, self.contents
        other = [key for key in then if then[key] != now.get(key)]
        changes = changes_since(config.run.dir, self.record) if other else ""
        if not other or (other == ["pieces"] and self.record is not None and not changes):  # one could not be read now
            return
        words = "train.small_vocabulary holds the tokens of the captions that the run began with"
        require("captions" not in other or not config.train.small_vocabulary, f"{words}; bring those back")
        said = {"images": f"{then['images']} images, not {now['images']}", "files": "other image files"}
        had = ", ".join(said.get(key, f"other {key}") for key in other)
        _tell_changed(config, first_step, f"other data than {config.data.label}: {changes or f'it had {had}'}")

    def start(self, first_step: int, state: Mapping[str, Any]) -> Generator[Batch]:
        """The batches of this process, on its device, from a step on. state: as of that step, from `state`."""
        sampler, pin = replace(self.sampler, first_step=first_step), self.device.type == "cuda"
        loader = training_loader(self.pairs, sampler, self.data.workers, pin)
        for batch, _ in on_device(((batch, None) for batch in batches_of(loader)), self.device):
            self.bad.add(batch.bad)
            yield batch

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember besides the step: which data these are."""
        return {"contents": self.contents}


class StreamBatches:
    """Batches of images that are read in the order of their shards. steps, bad, record: as in MapBatches."""

    def __init__(self, config: Config, accelerator: Accelerator, start: Start) -> None:
        unknown = f"train.epochs={config.train.epochs}: how many images a stream has is not known"
        if config.train.max_steps is None:
            raise ConfigError(f"{unknown}; set train.max_steps and train.epochs=null")
        words = "train.small_vocabulary needs to know all captions beforehand, which a stream does not"
        require(not config.train.small_vocabulary, f"{words}; set it or data.streaming to false")
        self.config, self.accelerator, self.steps = config, accelerator, config.train.max_steps
        share: dict[str, Any] = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        share |= {"seed": config.run.seed, "pin": accelerator.device.type == "cuda"}
        self.stream = open_stream(config.data, build_augment(config, start.preprocess), start.tokenizer, **share)
        names = [shard.name for pool in self.stream.shards for shard in pool]
        # the size of a file here, the address of one far away
        self.record: Record | None = record_of_shards(names)
        sizes = self.record.sizes.tolist()
        self.contents = digest(*(name if size < 0 else size for name, size in zip(names, sizes, strict=True)))
        self.bad = BadCount(0, config.data.max_bad_fraction, config.data.train_split)
        for pool in self.stream.shards:
            self.bad.add(cut_short(pool))  # before the first step, since a run may not get that far
        self._cursors: dict[int, Cursor] = {}
        self._epoch = 0

    def describe(self) -> str:
        return f"a stream of {self.config.data.label}"

    def shares(self, step: int) -> list[int]:
        """Pairs of each process in a step."""
        return self.stream.shares_at(step)

    def epoch(self, step: int) -> float:
        """The epoch, from 0, that this process's last lane is in."""
        return self._epoch

    def check(self, first_step: int, state: Mapping[str, Any]) -> None:
        """As in MapBatches, for shards."""
        same = state.get("contents", self.contents) == self.contents
        if first_step and not (same and state.get("layout") == self.stream.layout):
            from_main(lambda: self._tell(first_step))

    def _tell(self, first_step: int) -> None:
        changes = changes_since(self.config.run.dir, self.record)
        other = f"its shards: {changes}" if changes else "its shards, or data.shuffle_buffer, have changed since"
        _tell_changed(self.config, first_step, f"another stream: {other}")

    def start(self, first_step: int, state: Mapping[str, Any]) -> Generator[Batch]:
        """The batches of this process, on its device, from a step on. state: as of that step, from `state`; if its
        shards are others, the stream begins anew."""
        cursors, rank, world = None, self.stream.rank, self.stream.world
        if first_step and state.get("layout") == self.stream.layout:
            cursors = {int(lane): (turn, start, done) for lane, (turn, start, done) in state["cursors"].items()}
            self._cursors = {lane: cursors[lane] for lane in range(rank, self.stream.lanes, world)}
        steps = ((step.batch, step) for step in self.stream.batches(first_step, self.steps, cursors))
        for count, (batch, step) in enumerate(on_device(steps, self.accelerator.device), 1):
            self._cursors, self._epoch = step.cursors, step.epoch
            seen = count * self.config.data.batch_size // world  # since the start or resume
            self.bad.total = max(SEEN, seen, self.bad.total)
            self.bad.add(batch.bad)
            yield batch

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember besides the step; every process calls it."""
        cursors = dict(gathered(list(self._cursors.items())))
        return {"layout": self.stream.layout, "cursors": cursors, "contents": self.contents}


TrainBatches = MapBatches | StreamBatches


def _tell_changed(config: Config, first_step: int, changed: str) -> None:
    """Log that a run goes on with other data. Raises ConfigError if it is not to do so."""
    said = f"the run in {config.run.dir} stands at step {first_step} of {changed}"
    advice = "bring them back, start another run, or go on with these: --run.allow_changed_data true"
    need = "a resume needs those that it began with, or a copy of them"
    require(config.run.allow_changed_data, f"{said}; {need}: {advice}")
    log.warning("%s; it goes on with these, as run.allow_changed_data says", said)


def open_batches(config: Config, accelerator: Accelerator, start: Start) -> TrainBatches:
    """The training split, as data.streaming says. Raises ConfigError, ValueError or FileNotFoundError with advice."""
    size, world = config.data.batch_size, accelerator.num_processes
    require(size >= world, f"data.batch_size={size} leaves some of {world} processes without a pair; raise it")
    return (StreamBatches if config.data.streaming else MapBatches)(config, accelerator, start)


def on_device(batches: Iterator[tuple[Batch, T]], device: torch.device) -> Iterator[tuple[Batch, T]]:
    """The same batches on a device; on a GPU the next ones are copied while a step computes, on their own stream."""
    if device.type != "cuda":
        yield from ((batch.to(device), rest) for batch, rest in batches)
        return
    stream = torch.cuda.Stream(device)

    def copied() -> Iterator[tuple[Batch, T, torch.cuda.Event]]:
        for batch, rest in batches:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                moved, there = batch.to(device), stream.record_event()
            yield moved, rest, there

    for batch, rest, there in ahead(copied()):
        current = torch.cuda.current_stream(device)
        current.wait_event(there)
        for tensor in batch:
            if isinstance(tensor, torch.Tensor):
                tensor.record_stream(current)  # else its memory could be handed out again too early
        yield batch, rest


def _label(config: Config) -> str:
    """What tells one cache from another, besides the files that are read."""
    data = config.data
    if data.sources == ["shapes"]:
        return f"{data.size} scenes of seed {config.run.seed}" + f", tail {data.tail}" * (data.tail != "none")
    places = [str(Path(one).resolve()) if Path(one).exists() else one for one in data.sources]
    return ", ".join([*places, *(f"{option}={getattr(data, option)}" for option in READ_BY)])
