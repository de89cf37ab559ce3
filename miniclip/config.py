"""The configuration: frozen dataclasses <- a YAML file <- `--section.key VALUE`, checked before any long work.

Every section checks its own ranges when it is built; `load_config` turns each failure into one line that says what to
do. Nothing here imports torch, so that `train.py --help` answers at once.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

ImageEncoderKind = Literal["resnet", "vit"]
Activation = Literal["gelu", "quick_gelu"]


class ConfigError(ValueError):
    """A value that no run can use; the message names the key and says what to write instead."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives, and how it is repeated or continued.

    Args:
        dir: run directory; metrics, checkpoints, the model and the results are written here.
        seed: every random choice derives from it.
        resume: go on from the last checkpoint in dir; without one the run starts from the beginning.
        overwrite: delete the run that dir already holds.
        checkpoint_every: steps between checkpoints; 0 writes one only at the end.
        keep: how many of the newest checkpoints stay on disk.
    """

    dir: str = "runs/default"
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    checkpoint_every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        _require(bool(self.dir), "run.dir is empty; name a directory, e.g. runs/first")
        _require(0 <= self.seed < 2**32, f"run.seed={self.seed} must lie in [0, 2^32)")
        _require(
            not (self.resume and self.overwrite), "run.resume and run.overwrite exclude each other; set one to false"
        )
        _require(self.checkpoint_every >= 0, f"run.checkpoint_every={self.checkpoint_every} must be 0 or more steps")
        _require(self.keep >= 1, f"run.keep={self.keep} must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """The two towers: a preset, or its fields spelt out; a field that is given wins over the preset.

    Args:
        preset: a name from miniclip.models.PRESETS, e.g. ViT-B-32 or tiny-resnet.
        embed_dim: width E of the shared space.
        image_encoder: resnet (CLIP's modified ResNet with attention pooling) or vit.
        image_size: side of the square picture, in pixels.
        image_width: channels of the ResNet's stem, or of the ViT's residual stream.
        image_layers: four block counts for a ResNet, one depth for a ViT.
        image_heads: heads of the ViT's attention, or of the ResNet's attention pooling.
        patch_size: side of a ViT's patch, in pixels.
        context_length: longest caption, in tokens, with its two special tokens.
        vocab_size: size of the token table.
        text_width: width of the text encoder's residual stream.
        text_heads: heads of its attention.
        text_layers: its depth.
        activation: gelu, or quick_gelu as in OpenAI's released weights.
        logit_scale_init: natural logarithm of the first scale; CLIP starts at ln(1/0.07).
        logit_bias_init: adds a learned bias with this start (for the sigmoid loss); none leaves it out.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, about a third more work.
    """

    preset: str | None = None
    embed_dim: int | None = None
    image_encoder: ImageEncoderKind | None = None
    image_size: int | None = None
    image_width: int | None = None
    image_layers: int | tuple[int, ...] | None = None
    image_heads: int | None = None
    patch_size: int | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    text_width: int | None = None
    text_heads: int | None = None
    text_layers: int | None = None
    activation: Activation | None = None
    logit_scale_init: float | None = None
    logit_bias_init: float | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("embed_dim", "image_size", "image_width", "image_heads", "patch_size", "vocab_size", "text_width"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"model.{name}={value} must be at least 1")
        if self.context_length is not None:
            _require(self.context_length >= 3, f"model.context_length={self.context_length} must be at least 3 tokens")
        scale = self.logit_scale_init
        _require(
            scale is None or 0 <= scale <= math.log(100),
            f"model.logit_scale_init={scale} must lie in [0, ln 100 = 4.605]; CLIP starts at ln(1/0.07) = 2.659",
        )


@dataclass(frozen=True)
class DataConfig:
    """Captioned pictures: the built-in scenes, or anything that the `datasets` library reads.

    Args:
        source: shapes, a Hub name (jxie/flickr8k), a folder of Parquet files or of images with metadata.jsonl, or a
            CSV or JSONL file with image paths.
        name: configuration of a Hub data set that has several.
        train_split: split that is trained on.
        validation_split: split that is evaluated during training.
        test_split: split of the final tables.
        image_column: column of the pictures; found by itself if left out.
        caption_column: one column, several, or one that holds a list; found by itself if left out.
        batch_size: pairs a step over all processes: N, the side of the loss matrix.
        workers: loader processes for each training process; 0 loads in the training process itself.
        size: number of training scenes (source shapes only).
        cache: decode every picture once, shrink it and keep it in memory.
        on_bad: a picture that cannot be read: stop, or skip it, count it and go on.
        resize: crop keeps the central square, squash keeps the content and loses the aspect ratio.
        augment: crop (CLIP: a random square of the resized picture), resized_crop (square of random area) or none.
        crop_scale: smallest and largest share of the area that resized_crop takes.
        flip: probability of a mirror image; 0 where left and right carry meaning.
        colour_jitter: largest relative change of brightness, contrast and saturation.
    """

    source: str = "shapes"
    name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    image_column: str | None = None
    caption_column: str | list[str] | None = None
    batch_size: int = 256
    workers: int = 0
    size: int = 20000
    cache: bool = True
    on_bad: Literal["stop", "skip"] = "stop"
    resize: Literal["crop", "squash"] = "crop"
    augment: Literal["crop", "resized_crop", "none"] = "crop"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.0
    colour_jitter: float = 0.0

    def __post_init__(self) -> None:
        _require(bool(self.source), "data.source is empty; name shapes, a Hub data set, a folder or a CSV/JSONL file")
        _require(
            self.batch_size >= 2,
            f"data.batch_size={self.batch_size}: a contrastive loss needs at least 2 pairs; use e.g. 256",
        )
        _require(self.workers >= 0, f"data.workers={self.workers} must be 0 or more")
        _require(self.size >= 1, f"data.size={self.size} must be at least 1 scene")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, f"data.crop_scale={[low, high]} must satisfy 0 < smallest <= largest <= 1")
        _require(0 <= self.flip <= 1, f"data.flip={self.flip} is a probability; use a value in [0, 1]")
        _require(0 <= self.colour_jitter < 1, f"data.colour_jitter={self.colour_jitter} must lie in [0, 1)")


@dataclass(frozen=True)
class LossConfig:
    """The loss over the N x N matrix.

    Args:
        name: softmax (CLIP) or sigmoid (SigLIP).
        smoothing: label smoothing of the softmax loss, in [0, 1).
    """

    name: Literal["softmax", "sigmoid"] = "softmax"
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.smoothing < 1, f"loss.smoothing={self.smoothing} must lie in [0, 1)")
        _require(
            self.smoothing == 0 or self.name == "softmax", f"loss.smoothing has no meaning for loss.name={self.name}"
        )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate.

    Args:
        lr: highest learning rate.
        weight_decay: of the matrices; norms, biases, embeddings of position and the logit scale have none.
        betas: decay of AdamW's two running means.
        eps: added to the root of the second mean.
        warmup_steps: linear rise from 0 to lr.
        schedule: of the steps after the warm-up.
        final_lr: share of lr that cosine and exponential end at.
        grad_clip: largest 2-norm of the whole gradient; 0 switches clipping off.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant", "exponential"] = "cosine"
    final_lr: float = 0.01
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        _require(0 < self.lr < math.inf, f"optim.lr={self.lr} must be above 0 and finite")
        _require(0 <= self.weight_decay < math.inf, f"optim.weight_decay={self.weight_decay} must be 0 or more")
        _require(all(0 <= b < 1 for b in self.betas), f"optim.betas={list(self.betas)} must both lie in [0, 1)")
        _require(self.eps > 0, f"optim.eps={self.eps} must be above 0")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must be 0 or more")
        _require(0 <= self.final_lr <= 1, f"optim.final_lr={self.final_lr} is a share of lr; use a value in [0, 1]")
        _require(
            self.schedule != "exponential" or self.final_lr > 0,
            "optim.final_lr=0 cannot be reached by an exponential schedule; use e.g. 0.01",
        )
        _require(self.grad_clip >= 0, f"optim.grad_clip={self.grad_clip} must be 0 or more")


@dataclass(frozen=True)
class TrainConfig:
    """Length, number format and memory of the training.

    Args:
        max_steps: number of optimiser steps; give this or epochs.
        epochs: number of passes over the training split; give this or max_steps.
        precision: fp32, or mixed precision with bf16 or fp16 (fp16 needs a GPU).
        micro_batch_size: pairs that go through the towers at a time, for each process; the loss still sees the whole
            batch (gradient caching). None takes the batch at once.
        compile: run the towers through torch.compile.
        cpu_threads: threads of each process when it trains on a CPU; none shares the cores among the processes.
    """

    max_steps: int | None = None
    epochs: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    micro_batch_size: int | None = None
    compile: bool = False
    cpu_threads: int | None = None

    def __post_init__(self) -> None:
        _require(
            (self.max_steps is None) != (self.epochs is None),
            f"give either train.max_steps or train.epochs, not {'both' if self.max_steps else 'neither'}; "
            "on the command line, set the other one to null",
        )
        _require(self.max_steps is None or self.max_steps >= 1, f"train.max_steps={self.max_steps} must be at least 1")
        _require(
            self.epochs is None or 0 < self.epochs < math.inf, f"train.epochs={self.epochs} must be above 0 and finite"
        )
        micro = self.micro_batch_size
        _require(micro is None or micro >= 1, f"train.micro_batch_size={micro} must be at least 1, or null")
        threads = self.cpu_threads
        _require(threads is None or threads >= 1, f"train.cpu_threads={threads} must be at least 1, or null")


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, and when.

    Args:
        every: steps between evaluations on the validation split; 0 evaluates only at the end, on the test split.
        tasks: retrieval, a task of the built-in scenes (shape, colour, unseen, unseen_all, count, relation), or a
            folder with one sub-folder a class; none takes retrieval, and for the scenes all of their tasks.
        batch_size: pictures encoded at a time.
        size: pictures in each built-in task, and in the scenes' validation and test splits.
    """

    every: int = 0
    tasks: list[str] | None = None
    batch_size: int = 256
    size: int = 1000

    def __post_init__(self) -> None:
        _require(self.every >= 0, f"eval.every={self.every} must be 0 or more steps")
        _require(self.batch_size >= 1, f"eval.batch_size={self.batch_size} must be at least 1")
        _require(self.size >= 1, f"eval.size={self.size} must be at least 1")


@dataclass(frozen=True)
class LogConfig:
    """What is written down on the way.

    Args:
        every: steps between lines of metrics.jsonl.
        trackers: Accelerate's trackers, e.g. tensorboard, wandb; an empty list has none.
        project: name under which the trackers file the run.
        progress: show a progress bar.
    """

    every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "miniclip"
    progress: bool = True

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"log.every={self.every} must be at least 1 step")
        _require(
            re.fullmatch(r"\w[\w-]*", self.project) is not None and self.project not in ("checkpoints", "model"),
            f"log.project={self.project!r} must be a plain name of letters, digits, - and _, e.g. miniclip",
        )


@dataclass(frozen=True)
class Config:
    """The whole of a run."""

    run: RunConfig
    model: ModelConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    log: LogConfig

    def __post_init__(self) -> None:
        start = -math.log(self.data.batch_size - 1)
        _require(
            self.loss.name != "sigmoid" or self.model.logit_bias_init is not None,
            "loss.name=sigmoid needs a learned bias, or every pair starts as a likely positive; set "
            f"model.logit_bias_init, e.g. to -ln(N - 1) = {start:.2f} for data.batch_size={self.data.batch_size}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of plain values: what YAML and trackers take."""
        return _plain(asdict(self))


SECTIONS: dict[str, type] = {f.name: globals()[str(f.type)] for f in fields(Config)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="train.py",
        description="Train a CLIP-style model on captioned images. "
        "Start with: accelerate launch train.py --config configs/shapes.yaml",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below; see configs/")
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    return parser


def load_config(arguments: Sequence[str] | None = None) -> Config:
    """Command line (default sys.argv[1:]) -> checked configuration.

    Raises ConfigError with one message that names the key: unknown (with the nearest known one), of a wrong type, out
    of range, or a file that is not there.
    """
    from jsonargparse import ArgumentError

    parser = _parser()
    try:
        parsed = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
        sections = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ConfigError(_advice(str(error))) from error
    return Config(**{name: getattr(sections, name) for name in SECTIONS})


def load_config_file(path: str | Path) -> Config:
    """The configuration that a run saved beside its results."""
    return load_config(["--config", str(path)])


def save_config(config: Config, path: str | Path) -> None:
    """Write every value, defaults included, as YAML."""
    import yaml

    Path(path).write_text(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _advice(message: str) -> str:
    """The parser's message, with the nearest known name where one was not known."""
    known = {f"{name}.{f.name}" for name, section in SECTIONS.items() for f in fields(section)}
    for pattern in (
        r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
        r"Option '(?P<key>[\w.]+)' is not accepted",
        r"unrecognized arguments: --(?P<key>[\w.]+)",
    ):
        if match := re.search(pattern, message):
            found = match.groupdict()
            key = ".".join(part for part in (found.get("group"), found["key"]) if part)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            section = key.split(".")[0]
            choices = sorted(k for k in known if k.startswith(section + "."))
            listed = f"keys of this section: {', '.join(choices)}" if choices else f"sections: {', '.join(SECTIONS)}"
            return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "") + f" ({listed})"
    return message
