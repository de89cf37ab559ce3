"""What a run begins from: a fresh model, a whole one, or towers by themselves; with its tokenizer and preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from miniclip.config import Config, ConfigError, ModelConfig
from miniclip.models import DualEncoder, architecture, create_model, resolve
from miniclip.models.foreign import open_image, open_text
from miniclip.models.joined import JoinedEncoder
from miniclip.models.load import blank_of
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import Tokenizer
from miniclip.models.whole import open_whole


class Start(NamedTuple):
    """config: resolved, with what came along. make: the model, with its first weights, on the CPU, another one at
    each call; what of them is fresh is drawn from torch's generator."""

    config: ModelConfig
    preprocess: Preprocess
    tokenizer: TextTokenizer
    make: Callable[[], DualEncoder]


def open_start(config: Config, resumed: Path | None = None) -> Start:
    """What config.model and config.data.resize ask for. resumed: a run that has checkpoints, and goes on; its first
    weights are not needed, and what it began from need not be there any more.

    Raises ConfigError, ValueError or FileNotFoundError with one line that says what to do.
    """
    config = config if config.model.init else config.with_start()
    model = config.model
    if not (model.init or model.image or model.text):
        model = resolve(model)
        assert model.image_size is not None and model.context_length is not None
        preprocess = Preprocess(model.image_size, resize=config.data.resize or "crop")
        return Start(model, preprocess, Tokenizer(model.context_length), lambda: create_model(architecture(model)))
    if resumed is None and not model.init:
        return _joined(config)
    start = _whole(config) if resumed is None else _resumed(model, resumed)
    asked, own = config.data.resize, start.preprocess.resize
    if asked not in (None, own):
        which = f"{model.init or resumed}, which was trained with {own}"
        raise ConfigError(f"data.resize={asked} contradicts {which}; set it to null")
    return start


def _resumed(model: ModelConfig, run: Path) -> Start:
    empty, preprocess, then = blank_of(run)
    merged = {k: v if v is not None else getattr(then, k) for k, v in vars(model).items()}
    return Start(ModelConfig(**merged), preprocess, empty().tokenizer, empty)


def _whole(config: Config) -> Start:
    section, model, preprocess = open_whole(config)
    return Start(section, preprocess, model.tokenizer, lambda: deepcopy(model).train())


def _joined(config: Config) -> Start:
    model = config.model
    image = open_image(model.image, model) if model.image else None
    text = open_text(model.text, model) if model.text else None
    if image is not None:
        model = replace(model, image_size=image.preprocess.image_size)
    if text is not None:
        model = replace(model, context_length=text.context_length)
    model = resolve(model)
    assert model.image_size is not None and model.context_length is not None
    preprocess = image.preprocess if image else Preprocess(model.image_size)
    if config.data.resize is not None:  # what joins the tower to the text learns what is in the corners
        preprocess = replace(preprocess, resize=config.data.resize, crop_pct=1.0, whole=False)
    tokenizer = text.tokenizer if text else Tokenizer(model.context_length)
    towers = image and image.tower, text
    return Start(model, preprocess, tokenizer, lambda: JoinedEncoder(architecture(model), *deepcopy(towers)))
