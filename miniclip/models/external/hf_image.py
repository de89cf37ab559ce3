"""Image towers of transformers, by themselves: hf:FOLDER as save_pretrained writes it, or hf:ORG/NAME of the Hub.

Their features are what the library calls pooled: CLIP's behind its projection, SigLIP's of its attention pooling, the
class token of others, or the mean of a convolutional net's cells. Axes: B batch, L tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.cut import WHOLE
from miniclip.models.external.hf_folder import (
    check_folder,
    config_from,
    find_folder,
    from_pretrained,
    keep_buffers,
    plain_config,
    quiet,
)
from miniclip.models.external.transformers_clip import own_preprocess, read_preprocess
from miniclip.models.external.weights import completed, keep_unused
from miniclip.models.foreign import ForeignImage, OpenedImage

_POOLERS = ("vit", "deit")  # whose pooler has weights, which many a file lacks: the class token then stands for it

log = logging.getLogger(__name__)


class _Family(NamedTuple):
    """What forward does in turn, as names below the model: before the blocks, the blocks, and behind them."""

    stem: tuple[str, ...]
    blocks: tuple[str, ...]  # of which the first that is there holds them: it changed between versions
    tail: str
    head: bool = False  # pools by attention, not by the class token


_CLIP = _Family(("embeddings", "pre_layrnorm"), ("encoder.layers",), "post_layernorm")  # sic
_VIT = _Family(("embeddings",), ("layers", "encoder.layer"), "layernorm")
# model_type in config.json -> its parts, where they are known
_FAMILIES = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _Family(("embeddings",), ("encoder.layers",), "post_layernorm", head=True),
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _VIT,
    "dinov2_with_registers": _VIT,
}
_WHOLE = ("clip", "siglip")  # of which the one tower is taken
_CLASSES = ("AutoModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "SiglipVisionModel")


class HfImage(ForeignImage):
    """described: config of transformers, the class, pooler of a ViT, side, width, unused parameters."""

    def __init__(self, model: Any, described: Mapping[str, Any]) -> None:
        super().__init__()
        if model.config.model_type in _POOLERS and not described["pooler"]:
            model.pooler = None
        keep_buffers(model)
        keep_unused(model, described["unused"])
        self.model, self.described = model, {"module": "hf_image", **described}
        self.width = int(described["width"])
        self.family = _FAMILIES.get(model.config.model_type)
        own = getattr(model.config, "image_size", None)
        # DINOv2 does it unasked
        asked = self.family is not None and own != described["side"] and "dinov2" not in model.config.model_type
        self.more = {"interpolate_pos_encoding": True} if asked else {}

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, width)."""
        out = self.model(pixel_values=x, **self.more)
        pooled: Tensor | None = out.image_embeds if hasattr(out, "image_embeds") else out.pooler_output
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        for name in self.family.blocks if self.family else ():
            parent, _, child = name.rpartition(".")
            if hasattr(holder := getattr(self._root, parent) if parent else self._root, child):
                return list(getattr(holder, child))
        return []

    @property
    def _root(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    def lower(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return self.forward(x)
        assert self.family is not None
        root = self._root
        x = root.embeddings(x, **self.more)
        for name in self.family.stem[1:]:
            x = getattr(root, name)(x)
        return _through(self.blocks[:k], x)

    def upper(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return x
        assert self.family is not None
        root, tail = self._root, getattr(self._root, self.family.tail)
        x = _through(self.blocks[k:], x)
        if self.family.head:
            x = root.head(tail(x))
        else:
            x = tail(x[:, 0])
            if getattr(self.model, "visual_projection", None) is not None:
                x = self.model.visual_projection(x)
            elif self.described["pooler"]:
                x = root.pooler(x[:, None])
        return x


def _through(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        out = block(x, None)
        x = out[0] if isinstance(out, tuple) else out
    return x


def open_image(name: str, config: ModelConfig) -> OpenedImage:
    """Raises ValueError with one line that says what to do."""
    folder = find_folder(name)
    values = check_folder(name, folder)
    kind = str(values.get("model_type"))
    with quiet(name, "config.json"):
        theirs, made = _class_of(folder, kind, values)
    if kind not in _WHOLE and not _takes_images(made, theirs):
        raise ValueError(f"{name}: its config.json says model_type {kind!r}, which is no model of images; name another")
    preprocess = own_preprocess(name, read_preprocess(name, str(folder)))
    own, side = preprocess.image_size, config.image_size or preprocess.image_size
    if side != own:
        log.warning("%s was trained with images of %d pixels, and gets those of %d", name, own, side)
    pooler = kind in _POOLERS and _has_pooler(folder)
    described = {"config": plain_config(theirs), "class": made.__name__, "pooler": pooler}
    described = completed(name, described, side, build_image)
    model = from_pretrained(name, folder, made, theirs, spare=() if pooler else ("pooler.",))
    return OpenedImage(HfImage(model, described).eval(), replace(preprocess, image_size=side))


def build_image(described: Mapping[str, Any]) -> HfImage:
    import transformers

    if described["class"] not in _CLASSES:
        raise ValueError(f"{described['class']!r} is no class that this version knows")
    made, theirs = getattr(transformers, described["class"]), config_from(described["config"])
    model = made.from_config(theirs) if made is transformers.AutoModel else made(theirs)
    return HfImage(model, {key: value for key, value in described.items() if key != "module"})


def _class_of(folder: Path, kind: str, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Config and class of the image tower."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if kind in _WHOLE:
        whole, config = config, config.vision_config
        if hasattr(whole, "projection_dim"):
            config.projection_dim = whole.projection_dim
    if config.model_type == "clip_vision_model":
        alone = values.get("architectures") == ["CLIPVisionModel"]
        return config, transformers.CLIPVisionModel if alone else transformers.CLIPVisionModelWithProjection
    siglip = config.model_type == "siglip_vision_model"
    return config, transformers.SiglipVisionModel if siglip else transformers.AutoModel


def _takes_images(made: Any, config: Any) -> bool:
    import transformers

    if made is transformers.AutoModel:
        made = transformers.MODEL_MAPPING.get(type(config), None)
    return getattr(made, "main_input_name", "") == "pixel_values"


def _has_pooler(folder: Path) -> bool:
    """Whether a ViT's weights have one; transformers would draw one that is not there."""
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            if any("pooler." in key for key in weights.keys()):  # noqa: SIM118
                return True
    return False
