"""A locked tower runs once: what it makes of the training data is kept, and the steps begin from there.

In float32, whatever the run's number format, so that runs in any of them share what is kept.
Axes: B batch, L tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.config import Config
from miniclip.config.sections import DataConfig, require
from miniclip.data.ahead import in_order, threads
from miniclip.data.cache.features import Features, worked_out
from miniclip.data.features import FeaturePairs, Views
from miniclip.data.loader import TrainingPairs
from miniclip.data.recolour import recolour
from miniclip.models import DualEncoder, architecture
from miniclip.models.batchnorm import evaluating
from miniclip.models.cut import WHOLE, Cut, Tower
from miniclip.models.protocols import padding_of
from miniclip.training.batches import MapBatches, TrainBatches
from miniclip.training.checkpoint import handed_out, whole_model
from miniclip.training.diagnostics import tower_of
from miniclip.training.learning import locked_cut
from miniclip.training.step import Learner

Make = Callable[[range, Callable[[int], object]], Tensor]


def check_views(config: Config) -> None:
    """Raise ConfigError for data.views where no features are kept, or all views are the same."""
    data = config.data
    if data.views is None:
        return
    said = f"data.views={data.views}: so many squares of each image go through a locked image tower beforehand"
    require(config.model.lock_image is not False, f"{said}; set model.lock_image, or leave data.views out")
    why = _why_not(config)["image"]
    require(not why, f"{said}, but {why}; or leave data.views out")
    same = not _drawn(data) and not data.flip and data.views > 1
    require(not same, f"{said}, and with data.augment=none they are all the same; set data.augment, or data.views=1")


def _why_not(config: Config) -> dict[str, str]:
    """What speaks against features of each tower, with advice, or nothing."""
    data, train = config.data, config.train
    none = ""
    if data.streaming:
        none = "nothing is kept of a stream; set data.streaming=false"
    elif not data.cache:
        none = "data.cache=false keeps nothing; set it to true"
    image = none
    if not image and (train.low_image_size or train.patch_dropout):
        name = "low_image_size" if train.low_image_size else "patch_dropout"
        image = f"train.{name} changes what it sees; leave that out"
    if not image and data.views is None and (drawn := _drawn(data)):
        advice = "set data.views, e.g. to 4, or data.augment=none without jitter"
        image = f"data.{drawn}={getattr(data, drawn)} draws each image anew; {advice}"
    text = none
    if not text and (data.word_drop or data.word_swap):
        text = f"data.{'word_drop' if data.word_drop else 'word_swap'} changes what it reads; set it to 0"
    return {"image": image, "text": text}


def _drawn(data: DataConfig) -> str:
    """The option that makes another square of an image each time, mirroring apart; empty if none does."""
    recipes = (name for name in ("colour_jitter", "randaugment", "erasing") if getattr(data, name))
    return "augment" if data.augment != "none" else next(recipes, "")


def features_cut(config: Config, model: DualEncoder) -> Cut:
    """Where the steps of a run begin from features, if its data can be kept."""
    hindered = _why_not(config)
    return Cut(*(None if hindered[kind] else k for kind, k in locked_cut(model, config.model)._asdict().items()))


def use_features(learner: Learner, feed: TrainBatches) -> list[str]:
    """Where a tower is locked, and features of the data can be kept, have the steps begin from those.

    Every process calls it, with the weights that the run goes on from. Returns a line for each locked tower. Raises
    DiskFull or ValueError, with advice, if the features cannot be written.
    """
    config, model, said = learner.config, learner.model, list[str]()
    cut = locked_cut(model, config.model)._asdict()
    for kind, why in _why_not(config).items():
        if cut[kind] is not None and why:
            said.append(f"the locked {kind} tower runs in every step, since {why}: then once is enough")
            cut[kind] = None
    if not isinstance(feed, MapBatches) or not any(k is not None for k in cut.values()):
        return said
    pairs, main, device = feed.pairs, learner.accelerator.is_main_process, feed.device
    assert isinstance(pairs, TrainingPairs)
    assert pairs.prepared is not None
    whole = model
    if learner.accelerator.distributed_type == "FSDP":
        whole = handed_out(whole_model(learner, main), model.blank, device)
    views, found = Views(config.data.views, config.data.flip), dict[str, Features | None](image=None, text=None)
    for kind, of_data in zip(found, pairs.prepared.digests(), strict=True):
        if (k := cut[kind]) is None:
            continue
        tower = whole.image_tower if kind == "image" else whole.text_tower
        key = [kind, k, _locked_digest(model, whole, kind, k), _described(tower, model), of_data]
        with evaluating(tower), torch.no_grad():
            if kind == "image":
                make, ends = _of_images(learner, tower, k, pairs, views), np.arange(len(pairs) + 1) * len(views)
                key += [learner.preprocess, len(views), *((pairs.augment, pairs.seed) if views.count else ())]
            else:
                make, ends = _of_captions(tower, k, pairs, device), pairs.prepared.ends
                ends = np.arange(len(ends)) if k == WHOLE else ends
            shape = make(range(1), lambda _: None).shape[1:]
            options: dict[str, Any] = {"folder": config.data.cache_dir, "label": f"features of the {kind} tower"}
            options["progress"] = config.log.progress and main
            found[kind], seconds = worked_out(make, ends, shape, key=key, **options)
        size = 4e-6 * int(ends[-1]) * math.prod(shape)
        what = f"{len(ends) - 1} captions" if kind == "text" else f"{len(pairs)} images, {len(views)} of each"
        took = f"worked out in {seconds:.0f} s" if seconds else "from the cache"
        said.append(f"features of the locked {kind} tower: {what}, {size:.0f} MB, {took}")
    feed.pairs, learner.cut = FeaturePairs(pairs, views, found["image"], found["text"]), Cut(**cut)
    return said


def _of_images(learner: Learner, tower: Any, k: int, pairs: TrainingPairs, views: Views) -> Make:
    """Images, by their places -> the features of all their views, in order."""
    at_once, device = _at_once(learner.accelerator.device), learner.accelerator.device

    def looks(at: int) -> list[tuple[np.ndarray, list[float]]]:
        return [views.look(pairs, at, view) for view in range(len(views))]

    def make(places: range, done: Callable[[int], object]) -> Tensor:
        each, parts = max(1, at_once // len(views)), list[Tensor]()
        with threads(4) as pool:
            reading = in_order(pool, looks, places, 2 * each)
            for start in range(0, len(places), each):
                few = places[start : start + each]
                squares, look = zip(*(one for _, ones in zip(few, reading, strict=False) for one in ones), strict=True)
                pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)  # b h w c -> b c h w
                pixels = recolour(pixels.to(device), torch.tensor(look, device=device))
                parts.append(tower.lower(learner.inputs(pixels), k).float().cpu())
                done(len(few))
        return torch.cat(parts)

    return make


def _of_captions(tower: Tower, k: int, pairs: TrainingPairs, device: torch.device) -> Make:
    """Captions, by their numbers among all -> (captions, D), or of all their tokens (tokens, D + 1)."""
    at_once, pad = 4 * _at_once(device), padding_of(pairs.tokenizer)

    def make(numbers: range, done: Callable[[int], object]) -> Tensor:
        assert pairs.prepared is not None
        tokens = pairs.prepared.rows_of(numbers)
        found: list[Tensor] = [torch.empty(0)] * len(tokens)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # so that there is little padding
        for few in (order[start : start + at_once] for start in range(0, len(order), at_once)):
            ids = torch.full((len(few), len(tokens[few[-1]])), pad)
            for row, i in zip(ids, few, strict=True):
                row[: len(tokens[i])] = torch.from_numpy(tokens[i].astype(np.int64))
            for i, values in zip(few, tower.lower(ids.to(device), k).float().cpu(), strict=True):
                found[i] = values[None] if k == WHOLE else values[: len(tokens[i])]
            done(len(few))
        return torch.cat(found)

    return make


def _at_once(device: torch.device) -> int:
    return 64 if device.type == "cpu" else 256


def _described(tower: Tower, model: DualEncoder) -> object:
    """What the weights do not say of a tower."""
    return getattr(tower, "described", None) or architecture(model.config)


def _locked_digest(model: DualEncoder, whole: DualEncoder, kind: str, k: int) -> str:
    """Of every bit that the features hang on. model: that learns. whole: the same with all its weights here."""
    tower = whole.image_tower if kind == "image" else whole.text_tower
    upper = {id(module) for block in tower.blocks[k:] if k != WHOLE for module in block.modules()}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts: list[object] = []
    for prefix, module in whole.named_modules():
        own = {f"{prefix}.{name}".lstrip("."): p for name, p in module.named_parameters(recurse=False)}
        moves = id(module) in upper or not learns.isdisjoint(own)
        buffers = {f"{prefix}.{name}".lstrip("."): b for name, b in module.named_buffers(recurse=False) if not moves}
        for name, value in (own | buffers).items():
            if tower_of(name) == kind and name not in learns:
                data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                parts += [name, value.dtype, tuple(value.shape), digest(data.tobytes())]
    return digest(*parts)
