"""To transformers (https://github.com/huggingface/transformers): what CLIPModel, CLIPProcessor and AutoTokenizer load.

Its CLIP is a ViT and a causal text tower, joined by matrices, with a scale and no bias. Its tokenizer is CLIP's, but
mends no text; see tokens.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from miniclip.export.tokens import write_tokenizer
from miniclip.models import DualEncoder
from miniclip.models.external.convert import under_their_names
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer
from miniclip.models.tokenizer import END_OF_TEXT, START_OF_TEXT, VOCAB_SIZE

LIBRARIES = {"transformers": "transformers"}
LOADED = 'transformers.CLIPModel.from_pretrained("{folder}"), and CLIPProcessor likewise'
ATOL = 1e-5


def check(model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer) -> None:
    c = model.config
    if type(model) is not DualEncoder:
        raise ValueError("its CLIPModel has towers of its own, and a tower of this model comes from elsewhere")
    if c.image_encoder != "vit":
        raise ValueError(f"its CLIPModel has a ViT, and this model a {c.image_encoder}")
    if model.logit_bias is not None:
        raise ValueError("its CLIPModel has no logit bias, which this model was trained with, by a sigmoid loss")
    if c.vocab_size != VOCAB_SIZE:
        raise ValueError(f"CLIP's tokenizer has {VOCAB_SIZE} tokens, and this model's token table {c.vocab_size} rows")


def write(model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer, folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor

    CLIPConfig(**_config(model)).save_pretrained(folder)
    state = under_their_names(model.state_dict(), model.config)
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    CLIPImageProcessor(**_processor(preprocess)).save_pretrained(folder)
    write_tokenizer(folder, model.context_length)


def _config(model: DualEncoder) -> dict[str, Any]:
    c: Any = model.config

    def tower(width: int, heads: int, layers: int) -> dict[str, Any]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        act = {"hidden_act": c.activation}  # their default is QuickGELU
        return {**sizes, **act, "num_hidden_layers": layers, "projection_dim": c.embed_dim}

    text = tower(c.text_width, c.text_heads, c.text_layers)
    text |= {"vocab_size": c.vocab_size, "max_position_embeddings": c.context_length}
    # with the old end of text, 2, it would look for the highest id
    text |= {"bos_token_id": START_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT}
    image = tower(c.image_width, c.image_heads, c.image_layers)
    image |= {"image_size": c.image_size, "patch_size": c.patch_size}
    whole = {"projection_dim": c.embed_dim, "logit_scale_init_value": model.logit_scale.item()}
    return {"text_config": text, "vision_config": image, **whole, "architectures": ["CLIPModel"]}


def _processor(preprocess: Preprocess) -> dict[str, Any]:
    """What makes the same squares; of a crop that does not scale to whole pixels, up to half a pixel elsewhere."""
    side = preprocess.image_size
    scaled = int(side / preprocess.crop_pct)
    squash = preprocess.resize == "squash"
    return {
        "size": {"height": scaled, "width": scaled} if squash else {"shortest_edge": scaled},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": not squash or scaled != side,
        "resample": {"bilinear": 2, "bicubic": 3}[preprocess.interpolation],
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
