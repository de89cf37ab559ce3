"""What the loop is fed with: the training split of a configuration, as batches from any step on."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from miniclip.common.printing import first_few
from miniclip.config import Config, ConfigError
from miniclip.data.augment import Augment
from miniclip.data.bad_images import BadCount
from miniclip.data.cache.prepared import prepare
from miniclip.data.cache.store import Prepared
from miniclip.data.captioned import PairSource, open_source
from miniclip.data.images import BadImage
from miniclip.data.loader import Ahead, Batch, TrainingPairs, training_loader
from miniclip.data.sampler import TrainBatches
from miniclip.data.stream.lanes import Cursor
from miniclip.data.stream.stream import open_stream
from miniclip.data.weights import picture_weights
from miniclip.losses.matrix import shares
from miniclip.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
READ_BY: tuple[str, ...] = ("name", "revision", "train_split", "validation_split", "test_split")
READ_BY += ("image_column", "caption_column")
SEEN = 1000  # pairs of a stream, at least, before the share of bad ones among them says much


def build_augment(config: Config) -> Augment:
    """The random transform that a configuration asks for."""
    data, size = config.data, config.model.image_size
    assert size is not None
    return Augment(size, data.augment, data.crop_scale, data.flip, data.colour_jitter, data.resize)


def planned_steps(config: Config, rows: int) -> int:
    """Steps of a whole run over so many pictures."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    assert config.train.epochs is not None
    # rounded first: 1.1 epochs of 100 batches are 110 steps, not the 111 of 110.00000000000001
    return math.ceil(round(config.train.epochs * (rows // config.data.batch_size), 6))


def image_side(step: int, steps: int, config: Config) -> int:
    """Side in pixels of the pictures of step 0, 1, ..., steps - 1: train.low_image_size at first, then the model's."""
    low, full = config.train.low_image_size, config.model.image_size
    assert full is not None
    return full if low is None or step >= round(config.train.low_share * steps) else low


def phases(first: int, steps: int, config: Config) -> list[tuple[int, int]]:
    """(image side, how many) of the steps from first on, in their order."""
    sides = (image_side(step, steps, config) for step in range(first, steps))
    return [(side, len(list(group))) for side, group in groupby(sides)]


def check_enough(config: Config, pictures: int) -> None:
    """Raise ConfigError if the training split has too few pictures for a batch."""
    data = config.data
    if pictures < data.batch_size:
        raise ConfigError(
            f"{data.label} has {pictures} pictures in split {data.train_split!r}, fewer than "
            f"data.batch_size={data.batch_size}; use a batch of at most {pictures}, or more data"
        )


class MapFeed:
    """Pictures that are known beforehand, in permutations of their own for each epoch.

    rows: how many. steps: of the whole run. per_epoch: of an epoch. bad: pictures that this process could not use.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        data = config.data
        self.config, self.accelerator = config, accelerator
        source = open_source(data, "train", seed=config.run.seed, image_size=config.model.image_size or 0)
        check_enough(config, len(source))
        weights = picture_weights(source, data)
        # of a cache every process counts all, else its own part of them
        known = len(source) if data.cache else -(-len(source) // accelerator.num_processes)
        self.bad = BadCount(known, data.max_bad_fraction)
        assert config.model.context_length is not None
        augment, tokenizer = build_augment(config), Tokenizer(context_length=config.model.context_length)
        prepared = self._prepared(source, augment, tokenizer) if data.cache else None
        self.pairs = TrainingPairs(
            source,
            augment,
            tokenizer,
            seed=config.run.seed,
            prepared=prepared,
            captions=data.captions_per_image,
            weights=weights,
        )
        self.rows = len(self.pairs)
        self.steps = planned_steps(config, self.rows)
        self.batches = TrainBatches(
            self.rows,
            data.batch_size,
            seed=config.run.seed,
            steps=self.steps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            draw_weights=self.pairs.draw_weights if data.weights_for == "sampler" else None,
            sizes=_sizes(source, self.pairs) if data.mixing else (),
            mixing=data.mixing or (),
        )
        self.per_epoch: int = self.batches.per_epoch

    def _prepared(self, source: PairSource, augment: Augment, tokenizer: Tokenizer) -> Prepared:
        data, main = self.config.data, self.accelerator.is_main_process
        prepared = prepare(
            source,
            augment,
            tokenizer,
            folder=data.cache_dir,
            label=_label(self.config),
            allowed=data.max_bad_fraction,
            progress=self.config.log.progress and main,
        )
        self.bad.add(prepared.bad)
        if prepared.bad and main:
            print(f"{len(prepared.bad)} pictures cannot be read and are left out: {first_few(prepared.bad)}")
        return prepared

    def shares(self, step: int) -> list[int]:
        """Pairs of each process in a step."""
        return shares(self.config.data.batch_size, self.accelerator.num_processes)

    def describe(self) -> str:
        return f"{self.rows} pictures of {self.config.data.label} ({self.epoch(self.steps):.1f} epochs)"

    def epoch(self, step: int) -> float:
        """How many times the data have been seen after a step."""
        return step / self.per_epoch

    def vocabulary(self) -> torch.Tensor:
        """The token ids that the captions use."""
        return self.pairs.vocabulary()

    def start(self, first_step: int, state: Mapping[str, Any]) -> Generator[Batch]:
        """The batches of this process, on its device, from a step on. state: as of that step, from `state`."""
        self.batches.first_step = first_step
        device = self.accelerator.device
        loader = training_loader(self.pairs, self.batches, self.config.data, pin=device.type == "cuda")
        try:
            for batch, _ in on_device(((batch, None) for batch in loader), device):
                self.bad.add(batch.bad)
                yield batch
        except BadImage as error:
            # out of a loader process the message comes behind that process's traceback
            raise BadImage(str(error).rstrip().rsplit("BadImage: ", 1)[-1]) from error

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember besides the step: nothing."""
        return {}


class StreamFeed:
    """Pictures that are read in the order of their shards. steps, bad: as in MapFeed."""

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        if config.train.max_steps is None:
            raise ConfigError(
                f"train.epochs={config.train.epochs}: how many pictures a stream has is not known; set train.max_steps "
                "and train.epochs=null"
            )
        if config.train.small_vocabulary:
            raise ConfigError(
                "train.small_vocabulary needs to know all captions beforehand, which a stream does not; set it or "
                "data.streaming to false"
            )
        assert config.model.context_length is not None
        self.config, self.accelerator, self.steps = config, accelerator, config.train.max_steps
        self.stream = open_stream(
            config.data,
            build_augment(config),
            Tokenizer(context_length=config.model.context_length),
            seed=config.run.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            pin=accelerator.device.type == "cuda",
        )
        self.bad = BadCount(SEEN, config.data.max_bad_fraction)
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

    def start(self, first_step: int, state: Mapping[str, Any]) -> Generator[Batch]:
        """The batches of this process, on its device, from a step on. state: as of that step, from `state`."""
        cursors = None
        if first_step:
            if state.get("layout") != self.stream.layout:
                raise ConfigError(
                    f"{self.config.run.dir} stands at step {first_step} of another stream: its shards, or "
                    "data.shuffle_buffer, have changed since; go on with what it began with, or start a new run"
                )
            cursors = {int(lane): (turn, start, done) for lane, (turn, start, done) in state["cursors"].items()}
            own = range(self.accelerator.process_index, self.stream.lanes, self.accelerator.num_processes)
            self._cursors = {lane: cursors[lane] for lane in own}
        parts = self.stream.batches(first_step, self.steps, cursors)
        device = self.accelerator.device
        for batch, part in on_device(((part.batch, part) for part in parts), device):
            self._cursors, self._epoch = part.cursors, part.epoch
            # since the start or the resume, as the bad ones
            seen = part.seen - first_step * self.config.data.batch_size
            self.bad.total = max(SEEN, seen // self.accelerator.num_processes)
            self.bad.add(batch.bad)
            yield batch

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to remember besides the step; every process calls it."""
        from accelerate.utils import gather_object

        cursors = dict(gather_object(list(self._cursors.items())))
        return {"layout": self.stream.layout, "cursors": cursors}


Feed = MapFeed | StreamFeed


def open_feed(config: Config, accelerator: Accelerator) -> Feed:
    """The training split, as data.streaming says. Raises ConfigError, ValueError or FileNotFoundError with advice."""
    if config.data.batch_size < accelerator.num_processes:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} leaves some of {accelerator.num_processes} processes without a "
            "pair; raise it"
        )
    return StreamFeed(config, accelerator) if config.data.streaming else MapFeed(config, accelerator)


def on_device(batches: Iterator[tuple[Batch, T]], device: torch.device) -> Iterator[tuple[Batch, T]]:
    """The same batches on a device; on a GPU the next ones are copied while a step computes, on their own stream."""
    if device.type != "cuda":
        for batch, rest in batches:
            yield batch.to(device), rest
        return
    stream = torch.cuda.Stream(device)

    def copied() -> Iterator[tuple[Batch, T, torch.cuda.Event]]:
        torch.cuda.set_device(device)
        for batch, rest in batches:
            with torch.cuda.stream(stream):
                yield batch.to(device), rest, stream.record_event()

    ahead = Ahead(copied())
    try:
        for batch, rest, there in ahead:
            current = torch.cuda.current_stream(device)
            current.wait_event(there)
            for tensor in batch:
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(current)  # else its memory could be handed out again too early
            yield batch, rest
    finally:
        ahead.close()


def _label(config: Config) -> str:
    """What tells one cache from another, besides the files that are read."""
    data = config.data
    if data.sources == ["shapes"]:
        return f"{data.size} scenes of seed {config.run.seed}"
    places = [str(Path(one).resolve()) if Path(one).exists() else one for one in data.sources]
    return ", ".join([*places, *(f"{option}={getattr(data, option)}" for option in READ_BY)])


def _sizes(source: Any, pairs: TrainingPairs) -> list[int]:
    """Pictures of each of several sources that are left."""
    sizes, start = [], 0
    for size in source.sizes:
        sizes.append(int(((pairs.rows >= start) & (pairs.rows < start + size)).sum()))
        start += size
    return sizes
