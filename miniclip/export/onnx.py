"""To ONNX (https://onnx.ai): image.onnx and text.onnx, which onnxruntime runs without torch, and what they need.

    image.onnx       pixels (batch, 3, S, S) float32, normalised  -> embeddings (batch, E) float32, unit length
    text.onnx        ids (batch, up to L) int64 or int32, padded  -> embeddings (batch, E) float32, unit length
    onnx.json        how pixels are made, L, what stands behind a text, the scale and bias of the logits
    tokenizer.json   for the tokenizers library (https://github.com/huggingface/tokenizers)
    example.py       all of it in a few lines

Like transformers' the tokenizer mends no text: where ftfy or HTML's unescaping change one, its ids are others.
"""

from __future__ import annotations

import math
import re
import string
from contextlib import redirect_stderr
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from miniclip.common.console import write_json
from miniclip.export.tokens import clip_tokenizer
from miniclip.models import DualEncoder
from miniclip.models.external.adapted import reading
from miniclip.models.external.hf_tokenizer import HfTokenizer
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, padding_of
from miniclip.models.tokenizer import VOCAB_SIZE, Tokenizer

LIBRARIES = dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "tokenizers"), "'miniclip[onnx]'")
LOADED = 'onnxruntime, as in python {folder}/example.py PICTURE "a dog" "a cat"'
ATOL = 1e-4

IMAGE, TEXT, ABOUT, TOKENIZER, EXAMPLE = "image.onnx", "text.onnx", "onnx.json", "tokenizer.json", "example.py"
_MOST = 2**31 - 2**20  # bytes of a file, as protobuf has it, less those of the graph

Ids = Literal["int64", "int32"]


def check(model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer) -> None:
    image = _bytes(model.image_tower)
    for name, size in (("image", image), ("text", _bytes(model) - image)):
        if size > _MOST:
            raise ValueError(f"one file of ONNX holds less than 2 GiB, and its {name} tower has {size / 2**30:.1f}")
    if isinstance(tokenizer, Tokenizer) and model.config.vocab_size not in (None, VOCAB_SIZE):
        raise ValueError(f"CLIP's tokenizer has {VOCAB_SIZE} tokens, its token table {model.config.vocab_size} rows")
    if getattr(tokenizer, "separator", None) is not None:
        raise ValueError("its tokenizer replaces what ends a text, which tokenizer.json cannot say")


def write(
    model: DualEncoder, preprocess: Preprocess, tokenizer: TextTokenizer, folder: Path, ids: Ids = "int64"
) -> None:
    side = preprocess.image_size
    # two, for what is one the exporter takes for a fixed number
    _write_graph(_Image(model), "pixels", torch.zeros(2, 3, side, side), {0: "batch"}, folder / IMAGE)
    rows = tokenizer(["a", "two dogs"])[:, :3].to(getattr(torch, ids)).clone()  # no view, whose whole would be traced
    _write_graph(_Text(model), "ids", rows, {0: "batch", 1: "tokens"}, folder / TEXT)
    about = {"preprocess": preprocess.to_dict(), "context_length": int(model.context_length), "ids": ids}
    about |= {"padding": padding_of(tokenizer), "embed_dim": model.config.embed_dim, "weights": "float32"}
    bias = 0.0 if model.logit_bias is None else model.logit_bias.item()
    write_json(folder / ABOUT, {**about, "scale": math.exp(model.logit_scale.item()), "bias": bias})
    _write_tokenizer(tokenizer, int(model.context_length), folder / TOKENIZER)
    (folder / EXAMPLE).write_bytes(resources.files("miniclip.export").joinpath("onnx_example.py").read_bytes())


class _Image(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels, normalize=True)


class _Text(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids.long(), normalize=True)


def _write_graph(module: nn.Module, name: str, example: Tensor, free: dict[int, str], path: Path) -> None:
    """free: axes of any size, and their names."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    advice = "the exporter of another version of torch may, see constraints.txt"
    quiet = redirect_stderr(StringIO())  # where the traced code is printed that cannot be exported
    with quiet, reading(lambda why: f"{path.name}: torch cannot export this tower ({why}); {advice}"), torch.no_grad():
        # by itself, as torch.onnx would turn to ways that fix the size of a batch
        any_size = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
        traced = torch.export.export(module.eval(), (example,), dynamic_shapes=(any_size,))
        named: Any = {"input_names": [name], "output_names": ["embeddings"], "dynamic_shapes": (free,)}
        made: Any = torch.onnx.export(traced, dynamo=True, external_data=False, verbose=False, **named)
        ClearMetadataAndDocStringPass()(made.model)  # lines of source, with the paths of this machine
        made.save(path, external_data=False)


def _write_tokenizer(tokenizer: Any, context_length: int, path: Path) -> None:
    """A file that makes its ids by itself, cut to L and padded, of texts in which nothing has to be mended.

    What stands behind a text is told by the attention mask; text.onnx knows it by another id, see ABOUT.
    """
    import tokenizers

    if isinstance(tokenizer, HfTokenizer):
        made: Any = tokenizers.Tokenizer.from_str(tokenizer.content)
        first = _cleaning(getattr(tokenizer, "clean", "lower" if tokenizer.lower else ""))
        made.normalizer = tokenizers.normalizers.Sequence([*first, *filter(None, [made.normalizer])])
    else:
        made = clip_tokenizer()
    made.enable_truncation(context_length)
    made.enable_padding()  # to the longest of those that come together
    made.save(str(path))


def _cleaning(clean: str) -> list[Any]:
    """What is done to a text before its tokenizer, as open_clip calls it; "": nothing but what HfTokenizer does."""
    from tokenizers import Regex, normalizers

    found: list[Any] = []
    if clean == "canonicalize":
        found += [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")]
    if clean in ("lower", "canonicalize"):
        found.append(normalizers.Lowercase())
    if clean in ("whitespace", "canonicalize"):
        found.append(normalizers.Replace(Regex(r"\s+"), " "))
    return [*found, normalizers.Strip()]


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.state_dict().values())
