"""Text towers of transformers and sentence-transformers, by themselves.

Encoders like BERT are pooled over their tokens (mean, cls or max), as the folder of sentence-transformers says, or
model.text_pooling; CLIP's and SigLIP's text towers pool themselves. Axes: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniclip.config import ModelConfig
from miniclip.models.cut import WHOLE
from miniclip.models.external.hf_folder import (
    PREFIX,
    check_folder,
    config_from,
    find_folder,
    from_pretrained,
    json_of,
    keep_buffers,
    plain_config,
    quiet,
)
from miniclip.models.external.hf_tokenizer import HfTokenizer, read_tokenizer, tokenizer_from
from miniclip.models.foreign import ForeignText

_BERTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "distilbert")
_CLIPS = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
_SIGLIPS = {"siglip": "SiglipTextModel", "siglip_text_model": "SiglipTextModel"}
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}  # of sentence-transformers -> ours


class HfText(ForeignText):
    """One model of transformers.

    described: config, pooling, context_length, lower; of a CLIP projection; of a SigLIP padding, its id, and masked,
    whether it is hidden, both as its tokenizer has them.
    """

    def __init__(self, model: Any, described: Mapping[str, Any], tokenizer: HfTokenizer) -> None:
        super().__init__()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # its weights would never learn, and its output is not used
        keep_buffers(model)
        self.model, self.described = model, {"module": "hf_tower", **described}
        self.tokenizer, self.files = tokenizer, tokenizer.files
        self.context_length, self.pooling = tokenizer.context_length, described["pooling"]
        config = model.config
        wide = (
            "projection_dim" if described.get("projection") else "projection_size" if self.pooling == "siglip" else ""
        )
        self.width = int(getattr(config, wide or "hidden_size"))
        self.pad_id = int(described.get("padding", getattr(config, "pad_token_id", None)) or 0)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        if self.pooling in ("clip", "siglip"):  # with a mask the last place, where it is read, would count as no token
            return [] if self.described.get("masked") else list(self._text_model.encoder.layers)
        if self.model.config.model_type in _BERTS:
            return list(self._encoder.layer)
        return []

    def forward(self, text: Tensor) -> Tensor:
        """(B, L) -> (B, width)."""
        if self.blocks:
            return self.upper(self.lower(text, 0), 0)
        ids, own = self._inputs(text)
        out = self.model(input_ids=ids, attention_mask=own.long())
        return cast(Tensor, out.pooler_output) if self.pooling == "siglip" else self._pooled(out.last_hidden_state, own)

    def lower(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return self.forward(x)
        ids, own = self._inputs(x)
        if self.pooling in ("clip", "siglip"):
            hidden = self._text_model.embeddings(input_ids=ids)
        else:
            hidden = self.model.embeddings(input_ids=ids)
            if hasattr(self.model, "embeddings_project"):  # ELECTRA's smaller ones
                hidden = self.model.embeddings_project(hidden)
        hidden = self._run(hidden, own, self.blocks[:k])
        return torch.cat([hidden, own[..., None].to(hidden.dtype)], dim=-1)

    def upper(self, x: Tensor, k: int) -> Tensor:
        if k == WHOLE:
            return x
        hidden, own = x[..., :-1], x[..., -1] > 0
        return self._pooled(self._run(hidden, own, self.blocks[k:]), own)

    def _inputs(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Ids, and which of them are tokens: (B, L) each. SigLIP reads at the row's last place, so rows are whole."""
        if self.pooling == "siglip":
            text = F.pad(text, (0, self.context_length - text.shape[1]), value=-1)
        own = text >= 0
        ids = text.masked_fill(~own, self.pad_id)
        return ids, own if self.described.get("masked", True) else torch.ones_like(own)

    def _run(self, x: Tensor, own: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """x: (B, L, D) through some of the blocks; own: (B, L)."""
        hidden, more = ~own[:, None, None], list[Tensor]()  # b l -> b heads queries l
        if self.pooling == "clip":  # what stands behind a text is never looked at
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)[None, None]
        elif self.model.config.model_type == "mpnet":  # one bias for all blocks
            more = [self.model.encoder.compute_position_bias(x)]
        # added to the scores: the one form that every implementation of attention takes
        mask = torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
        for layer in layers:
            out = layer(x, None if self.pooling == "siglip" else mask, *more)
            x = out[0] if isinstance(out, tuple) else out
        return x

    def _pooled(self, x: Tensor, own: Tensor) -> Tensor:
        """(B, L, D) -> (B, width)."""
        if self.pooling == "cls":
            return x[:, 0]
        if self.pooling == "max":
            return x.masked_fill(~own[..., None], torch.finfo(x.dtype).min).amax(dim=1)
        if self.pooling == "mean":
            return (x * own[..., None]).sum(dim=1) / own.sum(dim=1, keepdim=True)
        if self.pooling == "siglip":
            return cast(Tensor, self._text_model.head(self._text_model.final_layer_norm(x[:, -1])))
        x = x[torch.arange(x.shape[0], device=x.device), own.sum(dim=1) - 1]  # the end token
        x = self._text_model.final_layer_norm(x)
        return cast(Tensor, self.model.text_projection(x)) if self.described.get("projection") else x

    @property
    def _text_model(self) -> Any:
        return getattr(self.model, "text_model", self.model)

    @property
    def _encoder(self) -> Any:
        return self.model.transformer if self.model.config.model_type == "distilbert" else self.model.encoder


def open_text(name: str, config: ModelConfig) -> HfText:
    folder = find_folder(name)
    sentences = read_sentences(name, folder)
    values = check_folder(name, sentences.folder)
    kind = str(values.get("model_type"))
    with quiet(name, "config.json"):
        theirs, model_class, described = _described(sentences.folder, kind, values)
    described["pooling"] = _pooling(name, sentences.pooling or described.get("pooling"), config)
    length = _context_length(name, theirs, sentences.max_length, config)
    tokenizer, their_tokenizer = read_tokenizer(name, sentences.folder, length, sentences.lower)
    if described["pooling"] == "siglip":
        described["masked"] = "attention_mask" in their_tokenizer.model_input_names
        described["padding"] = their_tokenizer.pad_token_id
    if tokenizer.highest >= theirs.vocab_size:
        raise ValueError(
            f"{name}: its tokenizer has ids up to {tokenizer.highest}, and its config.json says vocab_size="
            f"{theirs.vocab_size}; put the tokenizer of this model there"
        )
    model = from_pretrained(name, sentences.folder, model_class, theirs, spare=("pooler.",))
    described |= {"context_length": length, "lower": tokenizer.lower}
    return HfText(model, described, tokenizer).eval()


class _Sentences(NamedTuple):
    """What a folder of sentence-transformers says. folder: of the model itself. Of another folder little is known."""

    folder: Path
    pooling: str | None = None
    max_length: int | None = None
    lower: bool = False


def read_sentences(name: str, folder: Path) -> _Sentences:
    """Raises ValueError for modules and poolings that are not known."""
    modules = json_of(name, folder / "modules.json", [{"type": "models.Pooling", "path": "1_Pooling"}])
    place, pooling = folder, None
    for module in modules:
        kind, path = str(module.get("type")).rpartition(".")[2], folder / str(module.get("path"))
        if kind == "Transformer":
            place = path
        elif kind == "Pooling":
            pooling = _sentence_pooling(name, json_of(name, path / "config.json", {}))
        elif kind != "Normalize":  # which the shared space does anyway
            raise ValueError(
                f"{name}: its modules.json has a {kind}, and only Transformer, Pooling and Normalize are known; name "
                f"the transformer by itself: model.text={PREFIX}{place}, with model.text_pooling"
            )
    said = json_of(name, place / "sentence_bert_config.json", {})
    return _Sentences(place, pooling, said.get("max_seq_length"), bool(said.get("do_lower_case")))


def _sentence_pooling(name: str, values: Mapping[str, Any]) -> str | None:
    modes = [key.removeprefix("pooling_mode_") for key, value in values.items() if "pooling_mode_" in key and value]
    if isinstance(mode := values.get("pooling_mode"), str):
        modes = [mode]
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in (*_POOLINGS, *_POOLINGS.values()):
        raise ValueError(
            f"{name}: it pools by {' and '.join(modes)}; known are {', '.join(_POOLINGS)}, each by itself: choose a "
            "model that has one of them"
        )
    return _POOLINGS.get(modes[0], modes[0])


def _pooling(name: str, said: str | None, config: ModelConfig) -> str:
    asked = config.text_pooling
    if said and asked and said != asked:
        raise ValueError(f"model.text_pooling={asked}: {name} was trained with {said}; leave model.text_pooling out")
    if not (said or asked):
        raise ValueError(
            f"{name}: a text model without a pooling: nothing there says how its tokens become one vector; set "
            "model.text_pooling to mean, cls or max"
        )
    return str(said or asked)


def _context_length(name: str, theirs: Any, said: int | None, config: ModelConfig) -> int:
    """Tokens of the longest caption, with special ones: what the folder says, or less if the config asks for less."""
    most = int(theirs.max_position_embeddings)
    if theirs.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        most -= int(theirs.pad_token_id or 0) + 1  # positions are counted from there
    asked = config.context_length
    if asked is not None and asked > most:
        raise ValueError(f"model.context_length={asked}: {name} has positions for {most} tokens; use at most that")
    if asked is not None and theirs.model_type.startswith("siglip") and asked != most:
        raise ValueError(f"model.context_length={asked}: {name} reads {most} tokens, padding and all; leave it out")
    return asked or min(most, said or most)


def build_text(described: Mapping[str, Any], files: Mapping[str, bytes]) -> HfText:
    described = {key: value for key, value in described.items() if key != "module"}
    tokenizer = tokenizer_from(files, int(described["context_length"]), bool(described["lower"]))
    made, theirs = _class_of(described), config_from(described["config"])
    model = made.from_config(theirs) if hasattr(made, "from_config") else made(theirs)
    return HfText(model, described, tokenizer)


def _described(folder: Path, kind: str, values: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Config and class of the text tower, and what is known of it so far."""
    from transformers import AutoConfig

    config, described = AutoConfig.from_pretrained(folder, trust_remote_code=False), dict[str, Any]()
    if kind in _CLIPS or kind in _SIGLIPS:
        described["pooling"] = "clip" if kind in _CLIPS else "siglip"
        if kind in _CLIPS:
            described["projection"] = values.get("architectures") != ["CLIPTextModel"]
        if hasattr(config, "text_config"):
            whole, config = config, config.text_config
            if kind in _CLIPS:
                config.projection_dim = whole.projection_dim
    described["config"] = plain_config(config)
    return config, _class_of(described), described


def _class_of(described: Mapping[str, Any]) -> Any:
    """What has from_pretrained, and makes an empty model of a config."""
    import transformers

    pooling = described.get("pooling")
    if pooling == "clip":
        return transformers.CLIPTextModelWithProjection if described["projection"] else transformers.CLIPTextModel
    return transformers.SiglipTextModel if pooling == "siglip" else transformers.AutoModel
