"""To open_clip (https://github.com/mlfoundations/open_clip): what its local-dir: loads with no network.

open_clip_config.json         architecture, and how images are prepared
open_clip_model.safetensors   weights; the names of a DualEncoder's are open_clip's own
tokenizer.json                and tokenizer_config.json, only of a tokenizer other than CLIP's
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from miniclip.common.console import write_json
from miniclip.models.clip import DualEncoder
from miniclip.models.external.hf_tokenizer import FILE
from miniclip.models.external.open_clip_tower import OpenClipImage, OpenClipText, OpenClipTokenizer
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.resnet import STRIDE

LIBRARIES = {"open_clip": "open_clip_torch"}
LOADED = 'open_clip.create_model_and_transforms("local-dir:{folder}"), and open_clip.get_tokenizer likewise'
ATOL = 1e-5


def check(model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer) -> None:
    """Raise ValueError with the reason, if open_clip cannot hold the model or cannot load it from a folder alone."""
    if type(model) is not DualEncoder:
        image, text, config = _parts(model)
        if config.projection != "none":
            raise ValueError("LayerNorms stand before its projections, and open_clip has no place for them")
        for tower, kind in ((image, OpenClipImage), (text, OpenClipText)):
            if not isinstance(tower, kind):
                raise ValueError(f"its {type(tower).__name__} is no tower of open_clip")
        vision, words = image.described["vision"], text.described["text"]
        fetched = words.get("hf_model_name"), ":" in str(vision.get("timm_model_name")) and vision["timm_model_name"]
        if named := next(filter(None, fetched), None):
            raise ValueError(f"open_clip builds it from {named}, which it looks for on the Hub and not in the folder")
    if preprocess.crop_pct != 1:
        raise ValueError(f"its images are prepared with crop_pct={preprocess.crop_pct}, which open_clip does not have")


def write(model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a model that passed check into an existing folder."""
    plain, (_, text, _) = type(model) is DualEncoder, _parts(model)
    config = model_config(model.config) if plain else _foreign(model)
    if model.logit_bias is not None:
        config["init_logit_bias"] = model.logit_bias.item()
    state = dict(model.state_dict()) if plain else _renamed(model, config)
    if isinstance(tokenizer, OpenClipTokenizer):
        config["text_cfg"] |= _with_tokenizer(tokenizer, int(text.described["pad"]), folder)
    prepared = {key: getattr(preprocess, key) for key in ("mean", "std", "interpolation")}
    prepared["resize_mode"] = {"crop": "shortest", "squash": "squash"}[preprocess.resize]
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": prepared})


def _parts(model: DualEncoder) -> tuple[Any, Any, Any]:
    """Its towers and its config."""
    return model.image_tower, model.text_tower, model.config


def model_config(c: Any) -> dict[str, Any]:
    """A DualEncoder's resolved config as open_clip says it."""
    resnet = c.image_encoder == "resnet"
    wide = STRIDE * c.image_width if resnet else c.image_width  # of what the heads divide
    vision = {"image_size": c.image_size, "layers": c.image_layers, "width": c.image_width}
    vision |= {"head_width": wide // c.image_heads, **({} if resnet else {"patch_size": c.patch_size})}
    text = {"context_length": c.context_length, "vocab_size": c.vocab_size, "width": c.text_width}
    text |= {"heads": c.text_heads, "layers": c.text_layers}
    made = {"embed_dim": c.embed_dim, "vision_cfg": vision, "text_cfg": text}
    return made | ({"quick_gelu": True} if c.activation == "quick_gelu" else {})


def _foreign(model: Any) -> dict[str, Any]:
    """The config that the towers came from. Of CoCa there are its two towers, without what writes captions."""
    image, text = model.image_tower.described, model.text_tower.described
    alone = {"output_tokens": False}  # else CoCa's give their tokens, too, which only CoCa takes
    vision, words = {**image["vision"], **alone, "timm_model_pretrained": False}, {**text["text"], **alone}
    made = {"embed_dim": image["embed_dim"], "vision_cfg": vision, "text_cfg": words, "custom_text": text["custom"]}
    return made | ({"quick_gelu": True} if image["quick_gelu"] else {})


def _renamed(model: Any, config: dict[str, Any]) -> dict[str, Tensor]:
    """Its weights under open_clip's names, without the buffers that a run keeps beside them."""
    import open_clip

    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.device("meta"):
        made = (open_clip.CustomTextCLIP if config["custom_text"] else open_clip.CLIP)(**arguments)
    towers = {"visual.": model.image_tower, "text." if config["custom_text"] else "": model.text_tower}
    state = {start + key: x for start, tower in towers.items() for key, x in tower.model.state_dict().items()}
    state |= {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
    return {key: state[key] for key in made.state_dict()}


def _with_tokenizer(tokenizer: OpenClipTokenizer, pad: int, folder: Path) -> dict[str, Any]:
    """Write the files of a tokenizer -> what text_cfg says of it."""
    from tokenizers import Tokenizer

    content = tokenizer.files[FILE]
    spell = Tokenizer.from_str(content.decode()).id_to_token
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": tokenizer.context_length}
    described["pad_token"] = spell(pad)
    asked: dict[str, Any] = {"clean": tokenizer.clean}
    if tokenizer.separator is not None:
        described["sep_token"], asked["strip_sep_token"] = spell(tokenizer.separator), True
    (folder / FILE).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    # of a folder the name only has to be there
    return {
        "hf_tokenizer_name": "in this folder",
        "tokenizer_kwargs": asked,
        "context_length": tokenizer.context_length,
    }
