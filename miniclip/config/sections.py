"""The sections of a configuration: every option with its meaning, default and range.

Each checks its own ranges when it is built. Nothing here imports torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

ImageEncoderKind = Literal["resnet", "vit"]
Activation = Literal["gelu", "quick_gelu"]
Format = Literal["fp32", "bf16", "fp16"]


class ConfigError(ValueError):
    """A value that no run can use; the message names the key and says what to write instead."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def at_least(section: str, options: object, **lowest: float) -> None:
    """Raise ConfigError for an option of a section that is set, and lower."""
    for name, low in lowest.items():
        value = getattr(options, name)
        words = f"at least {low}" if low else "0 or more"
        require(value is None or value >= low, f"{section}.{name}={value} must be {words}")


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives, and how it is repeated or continued.

    Args:
        dir: run directory; metrics, checkpoints, the model and the results are written here.
        seed: every random choice derives from it.
        resume: go on from the last checkpoint in dir; without one the run starts from the beginning. auto does the
            same, and nothing if the run is finished: one command that a scheduler may repeat until it is.
        overwrite: replace the run that dir already holds, which is kept until the new one has a checkpoint.
        allow_changed_data: resume although the images or captions are no longer those that the run began with.
        checkpoint_every: steps between checkpoints; 0 writes one only at the end.
        checkpoint_minutes: minutes after which a checkpoint is written, whatever the step; 0 goes by steps alone.
        keep: how many of the newest checkpoints stay on disk.
    """

    dir: str = "runs/default"
    seed: int = 0
    resume: bool | Literal["auto"] = False
    overwrite: bool = False
    allow_changed_data: bool = False
    checkpoint_every: int = 200
    checkpoint_minutes: float = 0
    keep: int = 2

    def __post_init__(self) -> None:
        require(bool(self.dir), "run.dir is empty; name a directory, e.g. runs/first")
        require(0 <= self.seed < 2**32, f"run.seed={self.seed} must lie in [0, 2^32)")
        both = self.resume and self.overwrite
        require(not both, "run.resume and run.overwrite exclude each other; set one to false")
        at_least("run", self, checkpoint_every=0, checkpoint_minutes=0, keep=1)


@dataclass(frozen=True)
class ModelConfig:
    """The two towers: a preset, or its fields spelt out; a field that is given wins over the preset.

    Args:
        preset: a name from miniclip.models.PRESETS, e.g. ViT-B-32 or tiny-resnet.
        init: begin from a whole model: a run or model folder, open_clip:ARCH:TAG (or local-dir:DIR), or hf:NAME. What
            it is comes along: architecture, tokenizer, preprocessing and scale.
        image: begin from an image tower by itself: timm:NAME, open_clip:ARCH:TAG, hf:NAME, or a run; a folder may
            stand for the name.
        text: begin from a text tower by itself: hf:NAME (sentence-transformers too), open_clip:ARCH:TAG, or a run.
        text_pooling: how the tokens of a text tower from hf: become one, where its folder does not say.
        projection: what joins such a tower to the shared space, after a LayerNorm: one matrix, or an MLP beside it.
        lock_image: true keeps the image tower as it is; a number lets its last blocks learn, so many.
        lock_text: the same for the text tower.
        lora_image: rank of the low-rank updates that learn in place of the image tower's weights (arXiv:2106.09685); 0
            for none. The finished model has them merged.
        lora_text: the same for the text tower.
        lora_targets: names of the linear layers that get them, by their ends; all of a tower's blocks if left out.
        embed_dim: width E of the shared space.
        image_encoder: resnet (CLIP's modified ResNet with attention pooling) or vit.
        image_size: side of the square image, in pixels.
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
        logit_scale_init: natural logarithm of the first scale; if left out ln(1/0.07) as in CLIP, and ln 10 for a
            sigmoid loss.
        logit_bias_init: start of the learned bias of a sigmoid loss: a number, or balanced for -ln(N - 1), at which the
            matrix of N pairs expects N positives; if left out -10, and no bias for the other losses.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, about a third more work.
    """

    preset: str | None = None
    init: str | None = None
    image: str | None = None
    text: str | None = None
    text_pooling: Literal["mean", "cls", "max"] | None = None
    projection: Literal["linear", "mlp"] = "linear"
    lock_image: bool | int = False
    lock_text: bool | int = False
    lora_image: int = 0
    lora_text: int = 0
    lora_targets: list[str] | None = None
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
    logit_bias_init: float | Literal["balanced"] | None = None
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        at_least("model", self, embed_dim=1, image_size=1, image_width=1, image_heads=1, patch_size=1, vocab_size=1)
        at_least("model", self, text_width=1, context_length=3)
        scale, bias = self.logit_scale_init, self.logit_bias_init
        within = f"model.logit_scale_init={scale} must lie in [0, ln 100 = 4.605]; CLIP starts at ln(1/0.07) = 2.659"
        require(scale is None or 0 <= scale <= math.log(100), within)
        finite = not isinstance(bias, float) or math.isfinite(bias)
        require(finite, f"model.logit_bias_init={bias} must be finite, e.g. -10")
        parts = [f"model.{tower}" for tower in ("image", "text") if getattr(self, tower)]
        both = f"model.init is a whole model, and {' and '.join(parts)} a tower by itself; leave one of them out"
        require(not (self.init and parts), both)
        for tower in ("image", "text"):
            lock, rank = getattr(self, f"lock_{tower}"), getattr(self, f"lora_{tower}")
            at_least("model", self, **{f"lora_{tower}": 0}, **({} if lock is True else {f"lock_{tower}": 0}))
            once = f"model.lock_{tower} and model.lora_{tower} exclude each other: LoRA keeps the tower still by itself"
            require(lock is False or not rank, f"{once}; set one of them")


@dataclass(frozen=True)
class DataConfig:
    """Captioned images: the built-in scenes, or anything that the `datasets` library reads.

    Args:
        source: shapes; a Hub name (jxie/flickr8k); a Parquet file, or a folder or pattern of them; a folder of images
            with metadata.jsonl, or with a text file beside each; a CSV, TSV, JSON or JSONL file with image paths; COCO,
            Flickr8k or Flickr30k as they are handed out; WebDataset tars (shards/{000..031}.tar, here or behind a URL);
            or a list of such sources.
        name: configuration of a Hub data set that has several.
        revision: branch, tag or commit of a Hub data set.
        mixing: share of every batch that comes from each source of a list; without it they are one data set.
        streaming: read the training split in order, shard by shard, instead of an image here and there; for data that
            do not fit on the disk, or lie behind a URL. Then cache and weights do not apply.
        shuffle_buffer: pairs among which a stream is shuffled, besides the order of its shards.
        train_split: split that is trained on.
        validation_split: split that is evaluated during training.
        test_split: split of the final tables.
        image_column: column of the images; found by itself if left out.
        caption_column: one column, several, or one that holds a list; found by itself if left out.
        batch_size: pairs a step over all processes: N, the side of the loss matrix.
        workers: loader processes for each training process; 0 loads in the training process itself.
        captions_per_image: captions of each image in a batch, drawn anew each time it comes up; the matrix has that
            many columns for each row.
        captions_by: of several captions each is drawn as often (uniform), or in proportion to its tokens (length).
        word_drop: probability of each token of a caption to be left out of what the text tower reads; 0 for none. The
            special tokens stay, and one other.
        word_swap: probability of each token to change places with the next.
        weights: weight of each image: the same (none), the number in weight_column (column), or by how rare its class
            in weight_column is: N/n (inverse) or ln(N/n) (log) for n of N images.
        weight_column: column of the weights or classes.
        weights_for: the weight multiplies the image's share of the loss (loss), or how often it is drawn (sampler).
        size: number of training scenes (source shapes only).
        tail: how common each shape is in the training scenes: all alike (none), four of five objects circles and the
            last five shapes 2 % each (80-10-10), or the k-th in proportion to k^-2 (power). weight_column shape is then
            each scene's rarest.
        cache: decode every image once, shrink it and keep it in files that are mapped into memory; captions are
            tokenised once, too. Another run over the same data starts at once.
        cache_dir: folder of those files; ~/.cache/miniclip if left out, or what MINICLIP_CACHE names.
        max_bad_fraction: share of all images of a source that may be unreadable or lack a caption. Up to there they are
            skipped, counted and named; beyond, the run stops with the list. 0 stops at the first.
        resize: crop keeps the central square, squash keeps the content and loses the aspect ratio; if left out what
            the tower that the model begins from was trained with, else crop.
        augment: crop (CLIP: a random square of the resized image), resized_crop (square of random area) or none.
        crop_scale: smallest and largest share of the area that resized_crop takes.
        flip: probability of a mirror image; 0 where left and right carry meaning.
        colour_jitter: largest relative change of brightness, contrast and saturation.
        randaugment: random operations on each square, one after another (RandAugment, arXiv:1909.13719, at magnitude 9
            of 30): shears, shifts, rotations, changes of colour; 0 for none, a usual one is 2.
        erasing: probability that 2 to 33 % of a square become noise (random erasing, arXiv:1708.04896).
        views: random squares of each image of which a locked image tower's features are kept, to train on; if left
            out, features are kept where augment is none, of the image and, with flip, of its mirror image.
    """

    source: str | list[str] = "shapes"
    name: str | None = None
    revision: str | None = None
    mixing: list[float] | None = None
    streaming: bool = False
    shuffle_buffer: int = 8192
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    image_column: str | None = None
    caption_column: str | list[str] | None = None
    batch_size: int = 256
    workers: int = 0
    captions_per_image: int = 1
    captions_by: Literal["uniform", "length"] = "uniform"
    word_drop: float = 0.0
    word_swap: float = 0.0
    weights: Literal["none", "column", "inverse", "log"] = "none"
    weight_column: str | None = None
    weights_for: Literal["loss", "sampler"] = "loss"
    size: int = 20000
    tail: Literal["none", "80-10-10", "power"] = "none"
    cache: bool = True
    cache_dir: str | None = None
    max_bad_fraction: float = 0.01
    resize: Literal["crop", "squash"] | None = None
    augment: Literal["crop", "resized_crop", "none"] = "crop"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.0
    colour_jitter: float = 0.0
    randaugment: int = 0
    erasing: float = 0.0
    views: int | None = None

    def __post_init__(self) -> None:
        n, named = len(self.sources), bool(self.source) and all(self.sources)
        require(named, "data.source is empty; name shapes, a Hub data set, a folder, a CSV/JSONL file or tars")
        scenes, weighted = "shapes" in self.sources, self.weights != "none"
        alone = "data.source: the built-in scenes (shapes) stand alone; leave them out of the list"
        require(not scenes or n == 1, alone)
        drawn = f"data.tail={self.tail} is for the built-in scenes; use data.source=shapes, or leave data.tail out"
        require(scenes or self.tail == "none", drawn)
        if self.mixing is not None:
            counts = f"data.mixing has {len(self.mixing)} shares and data.source {n} sources"
            require(len(self.mixing) == n > 1, f"{counts}; give one for each of several, or leave data.mixing out")
            above = f"data.mixing={self.mixing}: every share must be above 0; leave out what you do not want"
            require(all(0 < share < math.inf for share in self.mixing), above)
            by_weight = "data.weights_for=sampler draws by weight, data.mixing by source; use one of them"
            require(self.weights_for == "loss", by_weight)
        if self.streaming:
            require(not scenes, "data.streaming has no use for the built-in scenes, which are drawn; set it to false")
            known = "data.weights needs to know all images beforehand; use data.streaming=false, or data.weights=none"
            require(not weighted, known)
        at_least("data", self, shuffle_buffer=1, workers=0, captions_per_image=1, size=1, views=1, randaugment=0)
        bad, size, column = self.max_bad_fraction, self.batch_size, self.weight_column
        require(0 <= bad <= 1, f"data.max_bad_fraction={bad} is a share of the images; use a value in [0, 1]")
        require(size >= 2, f"data.batch_size={size}: a contrastive loss needs at least 2 pairs; use e.g. 256")
        both = f"data.weights={self.weights} and data.weight_column={column} go together; set both or neither"
        require(weighted == (column is not None), both)
        need = "data.weights_for=sampler needs weights; set data.weights and data.weight_column"
        require(weighted or self.weights_for == "loss", need)
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"data.crop_scale={[low, high]} must satisfy 0 < smallest <= largest <= 1")
        for name in ("flip", "erasing", "word_swap"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"data.{name}={value} is a probability; use a value in [0, 1]")
        drop = f"data.word_drop={self.word_drop} is a probability; use 0 to below 1, e.g. 0.1"
        require(0 <= self.word_drop < 1, drop)
        require(0 <= self.colour_jitter < 1, f"data.colour_jitter={self.colour_jitter} must lie in [0, 1)")

    @property
    def sources(self) -> list[str]:
        return [self.source] if isinstance(self.source, str) else list(self.source)

    @property
    def label(self) -> str:
        """data.source in messages and titles."""
        return ", ".join(self.sources)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate.

    Args:
        name: adamw (arXiv:1711.05101); or muon, which moves the matrices of the towers' blocks by orthogonalised
            momentum of AdamW's size (arXiv:2502.16982), and all else as AdamW.
        lr: highest learning rate.
        lr_image: that of the image tower, if it is another than that of what joins it to the text, lr.
        lr_text: that of the text tower.
        lr_scale: that of the logit scale and bias.
        layer_decay: factor of the rate from each block of a tower to the one below (arXiv:2106.08254); 1 for none.
        weight_decay: of the matrices; norms, biases, embeddings of position and the logit scale have none.
        betas: decay of AdamW's two running means.
        eps: added to the root of the second mean.
        warmup_steps: linear rise from 0 to lr.
        schedule: of the steps after the warm-up.
        final_lr: share of lr that cosine and exponential end at.
        grad_clip: largest 2-norm of the whole gradient; 0 switches clipping off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    lr_image: float | None = None
    lr_text: float | None = None
    lr_scale: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant", "exponential"] = "cosine"
    final_lr: float = 0.01
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "lr_image", "lr_text", "lr_scale"):
            rate = getattr(self, name)
            require(rate is None or 0 < rate < math.inf, f"optim.{name}={rate} must be above 0 and finite")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay={self.layer_decay} must lie in (0, 1]; 1 is for none")
        require(0 <= self.weight_decay < math.inf, f"optim.weight_decay={self.weight_decay} must be 0 or more")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas={list(self.betas)} must both lie in [0, 1)")
        require(self.eps > 0, f"optim.eps={self.eps} must be above 0")
        require(0 <= self.final_lr <= 1, f"optim.final_lr={self.final_lr} is a share of lr; use a value in [0, 1]")
        unreachable = self.schedule == "exponential" and self.final_lr == 0
        require(not unreachable, "optim.final_lr=0 cannot be reached by an exponential schedule; use e.g. 0.01")
        at_least("optim", self, warmup_steps=0, grad_clip=0)


@dataclass(frozen=True)
class TrainConfig:
    """Length, number format and memory of the training.

    Args:
        max_steps: number of optimiser steps; give this or epochs.
        epochs: number of passes over the training split; give this or max_steps.
        precision: auto takes what the device computes fastest, and safely; or fp32, or mixed precision with bf16 or
            fp16 (fp16 needs a GPU). A resume with auto keeps what the run began with.
        micro_batch_size: pairs that go through the towers at a time, for each process; the loss still sees the whole
            batch (gradient caching). None takes the batch at once.
        compile: run the towers through torch.compile.
        small_vocabulary: train only the rows of the token table that the training captions use. The finished model has
            the whole table and takes any text.
        patch_dropout: share of a ViT's patches that training leaves out at random (FLIP, arXiv:2212.00794); 0 for none.
        dropout: share of the numbers that each residual branch of both towers adds that training sets to 0.
        drop_path: probability that training leaves out an image's branches in the last block of the image tower, and
            less the earlier the block (stochastic depth, arXiv:1603.09382).
        low_image_size: side, in pixels, to which the first steps' images are shrunk: most is learnt from few pixels,
            and a quarter of them costs a quarter. Null trains on model.image_size throughout.
        low_share: share of the steps that do so.
        ema: decay of a running mean of the weights, which is evaluated and kept in their place; after n steps it is at
            most (1 + n) / (10 + n). 0 for none; a usual one is 0.999.
        profile_steps: write a trace of that many steps, after a few to warm up, to trace.json in the run directory.
        cpu_threads: threads of each process when it trains on a CPU; none shares the cores among the processes.
        timeout: minutes after which a process of several that was stopped, hangs or is cut off ends the others; one
            that is long at work, as with the final evaluation, may take more.
    """

    max_steps: int | None = None
    epochs: float | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch_size: int | None = None
    compile: bool = False
    small_vocabulary: bool = False
    patch_dropout: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    low_image_size: int | None = None
    low_share: float = 0.75
    ema: float = 0.0
    profile_steps: int = 0
    cpu_threads: int | None = None
    timeout: float = 30

    def __post_init__(self) -> None:
        which = f"give train.max_steps or train.epochs{', not both' if self.max_steps else ''}"
        either = (self.max_steps is None) != (self.epochs is None)
        require(either, f"{which}; on the command line, set the other one to null")
        finite = self.epochs is None or 0 < self.epochs < math.inf
        require(finite, f"train.epochs={self.epochs} must be above 0 and finite")
        drop = self.patch_dropout
        require(0 <= drop < 1, f"train.patch_dropout={drop} is a share of the patches; use 0 to below 1, e.g. 0.5")
        for name in ("dropout", "drop_path"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"train.{name}={rate} is a probability; use 0 to below 1, e.g. 0.1")
        at_least("train", self, max_steps=1, micro_batch_size=1, low_image_size=1, profile_steps=0, cpu_threads=1)
        require(0 < self.timeout < math.inf, f"train.timeout={self.timeout} is in minutes; use a value above 0")
        require(0 <= self.ema < 1, f"train.ema={self.ema} must lie in [0, 1); a usual one is 0.999")
        require(0 < self.low_share <= 1, f"train.low_share={self.low_share} must lie in (0, 1]")

    @property
    def dropped(self) -> list[str]:
        """Which of the options that leave out parts of the blocks are set."""
        return [name for name in ("dropout", "drop_path") if getattr(self, name)]


@dataclass(frozen=True)
class LogConfig:
    """What is written down on the way.

    Args:
        every: steps between lines of metrics.jsonl.
        trackers: Accelerate's trackers, e.g. tensorboard, wandb; an empty list has none.
        project: name under which the trackers file the run.
        progress: show a progress bar.
        matrix_every: steps between images of the matrix of one fixed batch of validation pairs, which
            `eval.py matrix` shows along the training; 0 keeps none.
        matrix_size: pairs of that batch.
    """

    every: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "miniclip"
    progress: bool = True
    matrix_every: int = 0
    matrix_size: int = 64

    def __post_init__(self) -> None:
        at_least("log", self, every=1, matrix_every=0)
        require(2 <= self.matrix_size <= 1024, f"log.matrix_size={self.matrix_size} must lie in [2, 1024] pairs")
        plain = re.fullmatch(r"(?!(checkpoints|model|matrix|inspection)$)\w[\w-]*", self.project) is not None
        words = "must be a plain name of letters, digits, - and _, e.g. miniclip"
        require(plain, f"log.project={self.project!r} {words}")
