"""Folders of transformers and sentence-transformers with tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# of the built-in scenes, and some more
WORDS = ["a", "the", "red", "orange", "yellow", "green", "blue", "purple", "white", "black", "circle", "square", "star"]
WORDS += ["triangle", "heart", "cross", "ring", "crescent", "large", "small", "and", "on", "in", "above", "below"]
WORDS += ["left", "right", "of", "to", "two", "three", "dogs", "run", "an", "##s", "##ning", ",", "."]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
NAMES = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}  # a pooling -> sentence-transformers' word


def bert_folder(
    folder: Path, pooling: str | None = "mean", kind: str = "Bert", longest: int = 20, **config: Any
) -> str:
    """A model of that kind with a word tokenizer -> its name. pooling: of a folder of sentence-transformers, or None.

    longest: what such a folder says of the tokens; the model has positions for 40.
    """
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0, **SMALL, **config}
    if kind == "ModernBert":
        sizes |= dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"))
    if kind == "DistilBert":
        sizes |= {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    with torch.no_grad():  # positions and biases begin near nothing, and mistakes in them would not show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    vocabulary = {word: k for k, word in enumerate([*SPECIALS, *WORDS])}
    transformers.BertTokenizer(vocabulary).save_pretrained(folder)
    if pooling is not None:
        modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
        listed = [{"name": n, "path": path, "type": f"sentence_transformers.models.{t}"} for n, path, t in modules]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        modes = {f"pooling_mode_{one}": one == NAMES.get(pooling, pooling) for one in (*NAMES.values(), pooling)}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return f"hf:{folder}"
