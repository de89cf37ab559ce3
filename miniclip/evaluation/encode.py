"""Pictures and texts -> embeddings, in batches. Axes: N items, E embedding, S side of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from miniclip.data.transforms import Preprocess
from miniclip.tokenizer import Tokenizer, caption_lengths, trim_padding


class Pictures(Protocol):
    """What `encode_images` reads: every PairSource and LabelledSource is one."""

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> Image.Image: ...


class HasWidth(Protocol):
    @property
    def embed_dim(self) -> int | None: ...


class TwoTowers(Protocol):
    """What encodes: a DualEncoder, or another module with its own towers. Features need not have unit length."""

    @property
    def config(self) -> HasWidth: ...

    @property
    def logit_scale(self) -> nn.Parameter: ...  # 0-dim, the natural logarithm

    @property
    def logit_bias(self) -> nn.Parameter | None: ...

    def encode_image(self, image: Tensor, /) -> Tensor: ...

    def encode_text(self, text: Tensor, /) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> object: ...


class TextTokenizer(Protocol):
    """Texts -> (N, L) int64. Rows of miniclip's own Tokenizer reach the model trimmed, those of any other whole."""

    def __call__(self, texts: list[str], /) -> Tensor: ...


@dataclass(frozen=True)
class EncodeOptions:
    """How the towers run.

    batch_size: items at a time, at least 1; the embeddings do not depend on it beyond rounding. precision: "bf16" runs
    the towers under autocast; the embeddings get unit length in float32 either way. progress: show a bar on stderr.
    """

    batch_size: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={self.precision!r} must be 'fp32' or 'bf16'")


DEFAULT = EncodeOptions()


def encode_images(
    model: TwoTowers, images: Pictures, preprocess: Preprocess, options: EncodeOptions = DEFAULT
) -> Tensor:
    """All pictures -> (N, E) float32 on the CPU, unit length. The model stays on its device and keeps its mode.

    Raises what `images.image` raises for a picture that cannot be read.
    """
    n, size = len(images), options.batch_size
    device = _device(model)
    result = torch.empty(n, _width(model))

    def read(index: int) -> Tensor:
        return preprocess.to_uint8(images.image(index))

    # Decoding releases the interpreter lock, so threads read the next batch while the model is at work on this one.
    with ThreadPoolExecutor(4) as pool, _evaluating(model, options, n, "pictures") as advance:

        def submit(start: int) -> list[Future[Tensor]]:
            return [pool.submit(read, index) for index in range(start, min(start + size, n))]

        upcoming = submit(0)
        for start in range(0, n, size):
            current, upcoming = upcoming, submit(start + size)
            pixels = torch.stack([future.result() for future in current]).to(device)
            result[start : start + size] = _unit(model.encode_image(preprocess.normalize(pixels)))
            advance(len(current))
    return result


def encode_texts(
    model: TwoTowers, tokenizer: TextTokenizer, texts: Sequence[str], options: EncodeOptions = DEFAULT
) -> Tensor:
    """All texts -> (N, E) float32 on the CPU, unit length, in the order given. Equal texts get identical embeddings.

    Texts of miniclip's Tokenizer are sorted by length, so that every batch is trimmed to about its own length.
    """
    if not texts:
        return torch.empty(0, _width(model))
    # Each text once: it saves work, and equal texts would otherwise differ in the last bit from batch to batch.
    place = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    tokens = tokenizer(list(place))
    # Another tokenizer may pad with what is not zero, or end without the highest id.
    trims = isinstance(tokenizer, Tokenizer)
    order = caption_lengths(tokens).argsort(stable=True) if trims else torch.arange(len(tokens))
    device = _device(model)
    result = torch.empty(len(place), _width(model))
    with _evaluating(model, options, len(place), "texts") as advance:
        for rows in order.split(options.batch_size):
            batch = trim_padding(tokens[rows]) if trims else tokens[rows]
            result[rows] = _unit(model.encode_text(batch.to(device)))
            advance(len(rows))
    return result[[place[text] for text in texts]]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1).cpu()


def _device(model: TwoTowers) -> torch.device:
    return next(model.parameters()).device


def _width(model: TwoTowers) -> int:
    width = model.config.embed_dim
    assert width is not None  # a model's config is resolved
    return width


class _Advance(Protocol):
    def __call__(self, n: int, /) -> object: ...


@contextmanager
def _evaluating(model: TwoTowers, options: EncodeOptions, total: int, what: str) -> Iterator[_Advance]:
    """Evaluation mode, no gradients, the precision asked for, a progress bar; every module gets its own mode back."""
    from tqdm import tqdm

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    autocast = torch.autocast(_device(model).type, torch.bfloat16, enabled=options.precision == "bf16")
    try:
        # Not inference_mode: a mask or cast weight that is cached here would be unusable for the next training step.
        with torch.no_grad(), autocast, tqdm(total=total, desc=what, leave=False, disable=not options.progress) as bar:
            yield bar.update
    finally:
        for module, training in modes:
            module.training = training
