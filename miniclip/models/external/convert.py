"""CLIPs of other libraries as a DualEncoder: the same network with the same weights, under this project's names.

open_clip's names are this project's. transformers' are those of its own conversion script; they are read here, and
written for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from miniclip.config import ModelConfig
from miniclip.models.clip import DualEncoder
from miniclip.models.external.adapted import AdaptedModel
from miniclip.models.external.open_clip import OpenClipModel
from miniclip.models.external.transformers_clip import LEGACY_EOS
from miniclip.models.protocols import TextTokenizer
from miniclip.models.saved import assemble
from miniclip.models.tokenizer import END_OF_TEXT, VOCAB_SIZE, Tokenizer, byte_letters, read_vocabulary

# open_clip: the options of its towers that a DualEncoder has, too, or that change nothing of what a model computes
_VISION = ("layers", "width", "head_width", "patch_size", "image_size", "patch_dropout")
_TEXT = ("context_length", "vocab_size", "width", "heads", "layers", "pad_id", "eos_id")
_CLIP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_CLIP |= {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
# transformers: ours -> theirs; of each block, and of all else
_OF_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SAME = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # sic
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu"}


def converted(model: AdaptedModel, tokenizer: TextTokenizer) -> DualEncoder | None:
    """The same CLIP, in evaluation mode; None where its network or its tokens are not what a DualEncoder has.

    Raises ValueError for a token table that is too small for them.
    """
    name, source = model.config.name, model.config.source
    theirs: dict[str, Tensor] = model.model.state_dict()
    if isinstance(model, OpenClipModel):
        config = _of_open_clip(source) if isinstance(tokenizer, Tokenizer) else None
        state = {key.removeprefix("text."): value for key, value in theirs.items()}
    else:
        config = _of_transformers(source) if _same_tokens(getattr(tokenizer, "tokenizer", None)) else None
        state = {} if config is None else _under_our_names(theirs, config)
    if config is None:
        return None
    assert config.vocab_size is not None
    if config.vocab_size < VOCAB_SIZE:
        ids = f"its tokenizer has ids up to {VOCAB_SIZE - 1}, and its token table {config.vocab_size} rows"
        raise ValueError(f"{name}: {ids}; put the tokenizer of this model there")
    return assemble(lambda: DualEncoder(config), state, "cpu")


def _of_open_clip(source: Mapping[str, Any]) -> ModelConfig | None:
    """What a model config of open_clip says, if each option that a DualEncoder lacks has its default."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision, text = CLIPVisionCfg(**source["vision_cfg"]), CLIPTextCfg(**source["text_cfg"])
    plain = (CLIPVisionCfg(), _VISION, vision), (CLIPTextCfg(), _TEXT, text)
    odd = {key for default, known, given in plain for key in _changed(default, given) if key not in known}
    if odd or not source.keys() <= _CLIP:
        return None
    resnet = not isinstance(vision.layers, int)
    bias = source.get("init_logit_bias")
    return ModelConfig(
        embed_dim=source["embed_dim"],
        image_encoder="resnet" if resnet else "vit",
        image_size=vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0],
        image_width=vision.width,
        image_layers=vision.layers if isinstance(vision.layers, int) else tuple(vision.layers),
        image_heads=vision.width * (32 if resnet else 1) // vision.head_width,
        patch_size=None if resnet else vision.patch_size,
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        text_width=text.width,
        text_heads=text.heads,
        text_layers=text.layers,
        activation="quick_gelu" if source.get("quick_gelu") else "gelu",
        logit_bias_init=None if bias is None else float(bias),
    )


def _changed(default: Any, given: Any) -> list[str]:
    return [f.name for f in fields(default) if getattr(default, f.name) != getattr(given, f.name)]


def _of_transformers(source: Any) -> ModelConfig | None:
    """What a CLIPConfig says, if its towers are CLIP's own."""
    text, vision = source.text_config, source.vision_config
    for tower in (text, vision):
        plain = tower.layer_norm_eps == 1e-5 and tower.intermediate_size == 4 * tower.hidden_size
        if not plain or tower.hidden_act != text.hidden_act or tower.attention_dropout:
            return None
    if source.model_type != "clip" or text.hidden_act not in _ACTIVATIONS or vision.num_channels != 3:
        return None
    if text.eos_token_id not in (LEGACY_EOS, END_OF_TEXT):
        return None
    return ModelConfig(
        embed_dim=source.projection_dim,
        image_encoder="vit",
        image_size=vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0],
        image_width=vision.hidden_size,
        image_layers=vision.num_hidden_layers,
        image_heads=vision.num_attention_heads,
        patch_size=vision.patch_size,
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        text_width=text.hidden_size,
        text_heads=text.num_attention_heads,
        text_layers=text.num_hidden_layers,
        activation=text.hidden_act,
    )


def _same_tokens(theirs: Any) -> bool:
    """Whether a tokenizer of transformers is CLIP's; miniclip's own also mends a text, as that of OpenAI does."""
    if not type(theirs).__name__.startswith("CLIPTokenizer"):
        return False
    own = {spelling.decode(): token for spelling, token in read_vocabulary(byte_letters()).items()}
    specials = range(END_OF_TEXT - 1, END_OF_TEXT + 1)  # which the two spell differently
    found = theirs.get_vocab()
    return {k: v for k, v in own.items() if v not in specials} == {k: v for k, v in found.items() if v not in specials}


def _under_our_names(theirs: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    same, turned, parts = _names(config)
    found = {ours: theirs[name] for ours, name in same.items()}
    found |= {ours: theirs[name].T.contiguous() for ours, name in turned.items()}
    return found | {ours: torch.cat([theirs[name] for name in names]) for ours, names in parts.items()}


def under_their_names(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a DualEncoder with a ViT and without a bias as transformers' CLIPModel has them, bit for bit."""
    same, turned, parts = _names(config)
    found = {name: ours[own] for own, name in same.items()}
    found |= {name: ours[own].T.contiguous() for own, name in turned.items()}
    cut = [zip(names, ours[own].chunk(3), strict=True) for own, names in parts.items()]
    return found | {name: part.clone() for pairs in cut for name, part in pairs}


def _names(config: ModelConfig) -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    """Ours -> theirs: those that hold the same, those that are transposed, and those that they have in three."""
    same, parts = dict(_SAME), {}
    towers: Any = (("", "text_model", config.text_layers), ("visual.", "vision_model", config.image_layers))
    for start, tower, layers in towers:
        for number in range(layers):
            ours, own = f"{start}transformer.resblocks.{number}.", f"{tower}.encoder.layers.{number}."
            for kind in ("weight", "bias"):
                parts[f"{ours}attn.in_proj_{kind}"] = [f"{own}self_attn.{part}_proj.{kind}" for part in "qkv"]
                same |= {f"{ours}{k}.{kind}": f"{own}{name}.{kind}" for k, name in _OF_BLOCK.items()}
    return same, _TURNED, parts
