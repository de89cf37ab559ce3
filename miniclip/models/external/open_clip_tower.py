"""Towers of open_clip by themselves, each with its projection: names as in `open_clip`.

What is plain CLIP becomes a tower of this project, with the same weights. The rest, such as SigLIP, CoCa, the trunks of
timm or the text encoders of transformers, is run by open_clip. Axes: B batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.clip import DualEncoder
from miniclip.models.cut import WHOLE
from miniclip.models.external import open_clip as library
from miniclip.models.external.adapted import AdaptedModel, reading
from miniclip.models.external.convert import converted
from miniclip.models.external.hf_folder import config_from, keep_buffers, plain_config
from miniclip.models.external.hf_tokenizer import FILE, HfTokenizer
from miniclip.models.external.own_tower import own_image, own_text
from miniclip.models.external.timm_tower import TimmImage
from miniclip.models.external.weights import completed, keep_unused
from miniclip.models.foreign import ForeignImage, ForeignText, OpenedImage
from miniclip.models.preprocess import Preprocess
from miniclip.models.presets import architecture
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import VOCAB_SIZE, Tokenizer

# of the tower that is not wanted, the smallest that open_clip builds
_NO_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 8}
_NO_IMAGE = {"width": 8, "head_width": 8, "layers": 1, "patch_size": 8, "image_size": 8}
_PROBES = ["a", "Two dogs, on a beach.", "  An  UPPER-case word & 3 numbers: 1,024!  ", "", "word " * 300]


class OpenClipImage(ForeignImage):
    """described: embed_dim, vision, quick_gelu: of open_clip's model config; side, width, unused parameters."""

    def __init__(self, visual: Any, described: Mapping[str, Any]) -> None:
        super().__init__()
        keep_unused(visual, described["unused"])
        keep_buffers(visual)
        self.model, self.described = visual, {"module": "open_clip_tower", **described}
        self.width = int(described["width"])
        # in a tuple it is no second module of the same weights
        self.trunk = (TimmImage(visual.trunk, {**described, "unused": []}),) if hasattr(visual, "trunk") else ()
        for trunk in self.trunk:
            self.memory_format = trunk.memory_format

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, S, S) -> (B, width)."""
        out = self.model(x)
        features: Tensor = out[0] if isinstance(out, tuple) else out  # CoCa's has its tokens, too
        return features

    @property
    def blocks(self) -> Sequence[nn.Module]:
        for trunk in self.trunk:
            return trunk.blocks
        known = hasattr(self.model, "_embeds") and hasattr(self.model, "_pool")
        blocks = getattr(getattr(self.model, "transformer", None), "resblocks", ())
        return list(blocks) if known and getattr(self.model.transformer, "batch_first", True) else []

    def lower(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return self.forward(x)
        for trunk in self.trunk:
            return trunk.lower(x, k)
        x = self.model._embeds(x)
        for block in self.blocks[:k]:
            x = block(x)
        return x

    def upper(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return x
        for trunk in self.trunk:
            features: Tensor = self.model.head(trunk.upper(x, k))
            return features
        for block in self.blocks[k:]:
            x = block(x)
        features = self.model._pool(x)[0]
        return features if self.model.proj is None else features @ self.model.proj


class OpenClipText(ForeignText):
    """described: embed_dim, text, custom, quick_gelu, and hf, the config of an encoder of transformers; how its tokens
    are made of a text, and what fills a row; unused parameters."""

    def __init__(self, model: Any, described: Mapping[str, Any], tokenizer: TextTokenizer) -> None:
        super().__init__()
        keep_unused(model, described["unused"])
        keep_buffers(model)
        self.model, self.described = model, {"module": "open_clip_tower", **described}
        self.width, self.context_length = int(described["embed_dim"]), int(described["context_length"])
        self.tokenizer = tokenizer
        self.files = tokenizer.files if isinstance(tokenizer, HfTokenizer) else {}

    def forward(self, text: Tensor) -> Tensor:
        """(B, L) -> (B, width). Its rows are whole, as open_clip's tokenizers make them."""
        text = F.pad(text, (0, self.context_length - text.shape[1]), value=-1)
        text = text.masked_fill(text < 0, self.described["pad"])
        out = self.model(text) if self.described["custom"] else self.model.encode_text(text)
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features

    def lower(self, x: Tensor, k: int) -> Tensor:
        return self.forward(x)

    def upper(self, x: Tensor, k: int) -> Tensor:
        return x


@dataclass(frozen=True)
class OpenClipTokenizer(HfTokenizer):
    """clean: open_clip's name of what is done to a text first. separator: id that it replaces by 0."""

    clean: str = "whitespace"
    separator: int | None = None

    @property
    def key(self) -> list[Any]:
        return [*super().key, self.clean, self.separator]

    def _cleaned(self, text: str) -> str:
        from open_clip.tokenizer import get_clean_fn

        cleaned: str = get_clean_fn(self.clean)(text)
        return cleaned

    def __call__(self, texts: Any) -> Tensor:
        rows = super().__call__(texts)
        return rows if self.separator is None else rows.masked_fill(rows == self.separator, 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "clean": self.clean, "separator": self.separator}


def open_image(name: str, config: ModelConfig) -> OpenedImage:
    """Raises ValueError with one line that says what to do."""
    model, preprocess, same = _load(name)
    if same is not None:
        return own_image(name, same, preprocess, config)
    if config.image_size not in (None, preprocess.image_size):
        had = preprocess.image_size
        raise ValueError(f"model.image_size={config.image_size}: {name} takes images of {had} pixels; leave it out")
    source = model.config.source
    described = {"embed_dim": source["embed_dim"], "vision": dict(source["vision_cfg"])}
    described["quick_gelu"] = bool(source.get("quick_gelu"))
    described = completed(name, described, preprocess.image_size, build_image)
    return OpenedImage(OpenClipImage(model.model.visual, described).eval(), preprocess)


def open_text(name: str, config: ModelConfig) -> ForeignText:
    """Raises ValueError with one line that says what to do."""
    model, _, same = _load(name)
    if same is not None:
        return own_text(name, same, config)
    length, source = model.config.context_length, model.config.source
    if config.context_length not in (None, length):
        raise ValueError(f"model.context_length={config.context_length}: {name} was trained on {length}; leave it out")
    tokenizer, pad = _tokenizer(name, length)
    inner, text = model.model, dict(source["text_cfg"])
    custom = hasattr(inner, "text")
    described = {"embed_dim": source["embed_dim"], "text": text, "custom": custom, "pad": pad, "unused": []}
    described |= {"quick_gelu": bool(source.get("quick_gelu")), "context_length": length, "hf": None}
    if isinstance(tokenizer, OpenClipTokenizer):
        described |= {"clean": tokenizer.clean, "separator": tokenizer.separator}
    if text.get("hf_model_name"):
        described["hf"] = plain_config(inner.text.config)
    part = inner.text if custom else _text_alone(inner)
    highest = tokenizer.highest if isinstance(tokenizer, HfTokenizer) else VOCAB_SIZE - 1
    if highest >= (rows := int(part.vocab_size)):
        told = f"{name}: its tokenizer has ids up to {highest}, and its token table {rows} rows"
        raise ValueError(f"{told}; put the tokenizer of this model there")
    tower = OpenClipText(part, described, tokenizer).eval()
    tower(tokenizer(["a"])).sum().backward()
    described["unused"] = [k.removeprefix("model.") for k, p in tower.named_parameters() if p.grad is None]
    tower.zero_grad()
    return OpenClipText(part, described, tokenizer).eval()


def build_image(described: Mapping[str, Any]) -> OpenClipImage:
    import open_clip

    vision = {**described["vision"], "timm_model_pretrained": False}
    made = open_clip.CustomTextCLIP(described["embed_dim"], vision, _NO_TEXT, quick_gelu=described["quick_gelu"])
    return OpenClipImage(made.visual, {key: value for key, value in described.items() if key != "module"})


def build_text(described: Mapping[str, Any], files: Mapping[str, bytes]) -> OpenClipText:
    import open_clip

    described = {key: value for key, value in described.items() if key != "module"}
    size, text, quick = described["embed_dim"], described["text"], described["quick_gelu"]
    if described["hf"] is not None:
        part = _hf_encoder(described)
    elif described["custom"]:
        part = open_clip.CustomTextCLIP(size, _NO_IMAGE, text, quick_gelu=quick).text
    else:
        part = _text_alone(open_clip.CLIP(size, _NO_IMAGE, text, quick_gelu=quick))
    tokenizer: TextTokenizer = Tokenizer(described["context_length"])
    if "clean" in described:
        if FILE not in files:
            raise ValueError(f"the tokenizer's file {FILE} is missing")
        content, length = files[FILE].decode(), described["context_length"]
        tokenizer = OpenClipTokenizer(content, length, clean=described["clean"], separator=described["separator"])
    return OpenClipText(part, described, tokenizer)


def _load(name: str) -> tuple[AdaptedModel, Preprocess, DualEncoder | None]:
    """The model, and the same as one of this project, if it is a plain CLIP."""
    model, preprocess, tokenizer = library.load(name)
    same = converted(model, tokenizer)
    if same is not None:
        same.config = architecture(same.config)
    return model, preprocess, same


def _text_alone(model: Any) -> Any:
    for part in ("visual", "logit_scale", "logit_bias"):
        delattr(model, part)
    return model


def _hf_encoder(described: Mapping[str, Any]) -> Any:
    """open_clip's encoder of transformers without its weights; by its name, its config would be fetched."""
    from open_clip.hf_model import HFTextEncoder

    text, config = described["text"], config_from(described["hf"])
    more = {"pooler_type": text.get("hf_pooler_type"), "proj_type": text.get("hf_proj_type", "mlp")}
    made: Any = HFTextEncoder("", described["embed_dim"], config, pretrained=False, **more)
    if getattr(config, "is_encoder_decoder", False):
        made.transformer = made.transformer.encoder
    elif more["pooler_type"] != "cls_pooler":
        made.transformer.pooler = None
    return made


def _tokenizer(name: str, length: int) -> tuple[TextTokenizer, int]:
    """The tokenizer in a form that lies in one file, and the id behind a text.

    Raises ValueError for one that cannot.
    """
    import open_clip
    from open_clip.tokenizer import get_clean_fn

    with reading(lambda why: f"{name}: its tokenizer cannot be loaded ({why}); name it when there is a network"):
        theirs: Any = open_clip.get_tokenizer(library._find(name).arch)
    if not hasattr(theirs, "tokenizer"):
        ours: Any = Tokenizer(length)
        pad = 0
    else:
        inner = theirs.tokenizer
        backend, pad = getattr(inner, "backend_tokenizer", None), inner.pad_token_id
        clean = [word for word in ("whitespace", "lower", "canonicalize") if get_clean_fn(word) is theirs.clean_fn]
        ours = None
        if backend is not None and clean and pad is not None:
            separator = inner.sep_token_id if theirs.strip_sep_token else None
            ours = OpenClipTokenizer(backend.to_str(), length, clean=clean[0], separator=separator)
    if ours is None or not torch.equal(ours(_PROBES).masked_fill(ours(_PROBES) < 0, pad), theirs(_PROBES).long()):
        told = f"{name}: its tokenizer, {type(theirs).__name__}, cannot be kept with a run"
        raise ValueError(f"{told}: it does more than one tokenizer.json of transformers says; use another text tower")
    return ours, int(pad)
