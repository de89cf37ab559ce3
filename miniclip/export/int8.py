"""ONNX graphs with weights of 8 bits (onnxruntime's dynamic quantisation), and what that costs in recall."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from miniclip.common.console import write_json
from miniclip.evaluation.encode import EncodeOptions
from miniclip.evaluation.result import Evaluation
from miniclip.evaluation.tasks import Task
from miniclip.export.onnx import ABOUT, IMAGE, TEXT
from miniclip.models import DualEncoder
from miniclip.models.external.adapted import reading
from miniclip.models.preprocess import Preprocess
from miniclip.models.saved import read_json

# Convolutions stay float32: on a processor those of onnxruntime in 8 bits are the slower ones.
_OPERATORS = ("MatMul", "Gemm", "Gather")


class Cost(NamedTuple):
    """What the model and its graphs of 8 bits come to, and their sizes in bytes, by file, before and after."""

    before: Evaluation
    after: Evaluation
    sizes: dict[str, tuple[int, int]]


def quantize(folder: Path) -> dict[str, tuple[int, int]]:
    """Put matrices and token tables of both graphs in a folder into 8 bits -> bytes of each file before and after.

    A scale for each column: with one for a whole matrix a trained BERT loses much. Of 8 bits 7 are used, since the sums
    of a processor without VNNI overflow with all of them.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sizes = {}
    for name in (IMAGE, TEXT):
        path = folder / name
        with TemporaryDirectory(dir=folder) as place:
            kept: Any = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
            new = Path(place, name)
            with reading(partial("onnxruntime cannot put {} into 8 bits ({}); leave --quantize out".format, name)):
                quantize_dynamic(path, new, op_types_to_quantize=list(_OPERATORS), **kept)
            sizes[name] = path.stat().st_size, new.stat().st_size
            new.replace(path)
    write_json(folder / ABOUT, {**read_json(folder / ABOUT), "weights": "int8"})
    return sizes


def cost(model: DualEncoder, preprocess: Preprocess, folder: Path, task: Task, data: list[Any]) -> Cost:
    """Quantise the graphs in a folder, and evaluate the model and them on the same data."""
    options = EncodeOptions(batch_size=64)

    def found(towers: Any) -> Evaluation:
        return task.run((towers, preprocess, model.tokenizer), data, options, 0, task.label)

    before, sizes = found(model), quantize(folder)
    return Cost(before, found(_Graphs(model, folder)), sizes)


class _Graphs(nn.Module):
    """The towers of a folder, as evaluation takes them."""

    def __init__(self, model: DualEncoder, folder: Path) -> None:
        from onnxruntime import InferenceSession

        super().__init__()
        self.config, self.logit_scale, self.logit_bias = model.config, model.logit_scale, model.logit_bias
        self.ids = np.dtype(read_json(folder / ABOUT)["ids"])
        self.image, self.text = (InferenceSession(folder / name) for name in (IMAGE, TEXT))

    def encode_image(self, image: Tensor) -> Tensor:
        return torch.from_numpy(self.image.run(None, {"pixels": image.numpy()})[0])

    def encode_text(self, text: Tensor) -> Tensor:
        return torch.from_numpy(self.text.run(None, {"ids": text.numpy().astype(self.ids)})[0])
