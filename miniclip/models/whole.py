"""model.init: a whole model to begin from, of this project or of another library, with all that it is.

What it is comes along: architecture, tokenizer, preprocessing, scale. A config that says otherwise is refused, but for
the sizes of what goes in: positions can be interpolated.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from miniclip.common.arguments import at_home
from miniclip.config import Config, ConfigError, ModelConfig
from miniclip.models.clip import MAX_LOGIT_SCALE, DualEncoder
from miniclip.models.external.convert import converted
from miniclip.models.external.hf_folder import refuse_code
from miniclip.models.external.transformers_clip import TransformersPreprocess, own_preprocess
from miniclip.models.foreign import ForeignImage, ForeignText, open_image, open_text
from miniclip.models.joined import JoinedEncoder
from miniclip.models.load import load
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import ARCHITECTURE, resolve
from miniclip.models.transformer import positions_at

_SIZES = ("image_size", "context_length")
_NUMBERS = ("logit_scale_init", "logit_bias_init")
_CAME = (*ARCHITECTURE, "text_pooling", "logit_bias_init")

log = logging.getLogger(__name__)


def open_whole(config: Config) -> tuple[ModelConfig, DualEncoder, Preprocess]:
    """What config.model.init means: the model section with what came along, the model, and its preprocessing.

    A sigmoid loss gives a model that has no bias the one that a fresh model begins with; the other losses leave it out.
    Raises ConfigError with one line that says what to do.
    """
    asked, name = config.model, str(config.model.init)
    try:
        model, preprocess = opened(name, asked)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"model.init: {error}") from error
    scale, bias = model.logit_scale.item(), None if model.logit_bias is None else model.logit_bias.item()
    if scale > MAX_LOGIT_SCALE + 1e-3:
        log.warning("%s: its scale is %.4g; the first step brings it down to 100, the most", name, math.exp(scale))
    scale = min(max(scale, 0.0), MAX_LOGIT_SCALE)
    has = replace(model.config, logit_scale_init=scale, logit_bias_init=bias)
    _check_agrees(asked, has, name)
    if not config.loss.pairwise:  # a number added to every logit changes nothing there, and would not learn
        has = replace(has, logit_bias_init=None)
    section = replace(asked, **{key: getattr(has, key) for key in _CAME if getattr(asked, key) is None})
    section = replace(config, model=section).with_start().model
    own = {key: getattr(section, key) for key in (*_SIZES, *_NUMBERS, "activation_checkpointing")}
    _become_(model, resolve(replace(has, **own)), name)
    return section, model, replace(preprocess, image_size=cast(int, section.image_size))


def opened(name: str, asked: ModelConfig = ModelConfig()) -> tuple[DualEncoder, Preprocess]:  # noqa: B008
    """A model of any name, as its source has it, and its preprocessing. asked: sizes that foreign towers are to take.

    Raises ValueError or FileNotFoundError with one line that says what to do.
    """
    place = re.match("(hf:|open_clip:local-dir:)(.+)", name)
    if place is not None and (folder := Path(at_home(place[2]))).is_dir():
        refuse_code(name, folder)
    model, preprocess, tokenizer = load(name)
    if isinstance(model, DualEncoder):
        return model, preprocess
    if (same := converted(model, tokenizer)) is not None:
        if isinstance(preprocess, TransformersPreprocess):
            preprocess = own_preprocess(name, preprocess)
        return same, preprocess
    scale, bias = model.logit_scale, model.logit_bias
    del model  # its towers are read again, one by one
    image, text = open_image(name, asked), open_text(name, asked)
    config = ModelConfig(
        image=name,
        text=name,
        projection=cast(Any, "none"),
        embed_dim=image.tower.width,
        image_size=image.preprocess.image_size,
        context_length=text.context_length,
    )
    joined = JoinedEncoder(config, image.tower, text)
    joined.logit_scale, joined.logit_bias = scale, bias
    return joined, image.preprocess


def _check_agrees(asked: ModelConfig, has: ModelConfig, name: str) -> None:
    """Raise ConfigError for a value that is another than the model's. has: resolved."""
    for key in _CAME:
        value, own = getattr(asked, key), getattr(has, key)
        if key in _SIZES or value is None or (key == "logit_bias_init" and own is None):
            continue
        rounded = isinstance(value, float) and isinstance(own, float) and abs(value - own) < 1e-3
        if value != own and not rounded:
            raise ConfigError(f"model.{key}={value} contradicts model.init: {name} has {own}; leave it out")
    preset = vars(resolve(ModelConfig(preset=asked.preset))) if asked.preset else {}
    for key in ARCHITECTURE:
        if preset and key not in (*_SIZES, *_NUMBERS) and preset[key] != getattr(has, key):
            other = f"its {key} is {preset[key]}, and that of {name} {getattr(has, key)}"
            raise ConfigError(f"model.preset={asked.preset} contradicts model.init: {other}; leave it out")
    if asked.projection == "mlp" != has.projection:
        raise ConfigError(f"model.projection=mlp joins towers by themselves, and {name} is a whole model; leave it out")


def _become_(model: DualEncoder, config: ModelConfig, name: str) -> None:
    """Give a model the sizes, the bias and the recomputing of a config that is its own in all else."""
    image, text = model.image_tower, model.text_tower
    for key, tower in zip(_SIZES, (image, text), strict=True):
        before, after = getattr(model.config, key), getattr(config, key)
        if before == after:
            continue
        if isinstance(tower, ForeignImage | ForeignText):
            raise ConfigError(f"model.{key}={after}: {name} has {before}, and its tower takes no other; leave it out")
        holder: Any = getattr(tower, "attnpool", tower)
        table, how = holder.positional_embedding.detach(), "pixels (bicubic)"
        if tower is image:
            table = positions_at(table, after // image.stride(config))
        else:
            table, how = F.interpolate(table.T[None], after, mode="linear")[0].T, "tokens (linear)"  # l d -> 1 d l
        holder.positional_embedding = nn.Parameter(table.contiguous())
        log.warning("%s: its positions of %s are interpolated to %s %s", name, before, after, how)
    bias = config.logit_bias_init
    if bias is None or model.logit_bias is None:
        model.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "checkpointing"):
            module.checkpointing = config.activation_checkpointing
    model.config = config
