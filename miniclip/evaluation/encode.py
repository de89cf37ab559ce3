"""Images and texts -> embeddings, in batches. Axes: N items, E embedding.

Several processes can share the work: each takes every so many-th batch, whole, so the embeddings are those of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from miniclip.common.fingerprint import digest
from miniclip.common.printing import first_few
from miniclip.common.processes import gathered, place, total
from miniclip.config import DataConfig
from miniclip.data.ahead import in_order, threads
from miniclip.data.images import BadCount, BadImage
from miniclip.models.batchnorm import evaluating
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers
from miniclip.models.tokenizer import caption_lengths


class Images(Protocol):
    """What `encode_images` reads: every PairSource and LabelledSource is one."""

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class EncodeOptions:
    """How the towers run.

    batch_size: items at a time; the embeddings do not depend on it beyond rounding. precision: "bf16" runs the towers
    under autocast; unit length is float32's either way. progress: a bar on stderr. shared: every process calls, does a
    part, and gets the whole. max_bad_fraction: share of the data's images that may be unreadable and are then left out.
    between: called after every batch, as often by each process, and may raise.
    """

    batch_size: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    progress: bool = False
    shared: bool = False
    max_bad_fraction: float = DataConfig.max_bad_fraction
    between: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")


DEFAULT = EncodeOptions()


class Encoded(NamedTuple):
    """values: (n, E) float32, unit length. rows: (n,) int64, the images they belong to, ascending. bad: what is wrong
    with each of the others. fingerprint: of the images' pixels, as they were decoded."""

    values: Tensor
    rows: Tensor
    bad: list[str]
    fingerprint: str

    @property
    def notes(self) -> list[str]:
        """What a result says of those that are left out."""
        left_out = f"{len(self.bad)} images cannot be read and are left out: {first_few(self.bad)}"
        return [left_out] if self.bad else []


def encode_readable(
    model: TwoTowers, images: Images, preprocess: Preprocess, options: EncodeOptions = DEFAULT, task: str | None = None
) -> Encoded:
    """All images that can be read -> embeddings on the CPU. The model stays on its device and keeps its mode.

    Raises BadImage for the first that cannot be read if options.max_bad_fraction is 0, TooManyBad above the share, and
    if a task is named ValueError, which begins with it, if none can be read.
    """
    n, device = len(images), model_device(model)
    values, seen = torch.zeros(n, _width(model)), torch.zeros(n, dtype=torch.int64)
    bad, lost = BadCount.of(images, options.max_bad_fraction), dict[int, str]()

    def read(index: int) -> tuple[Tensor, int] | BadImage:
        try:
            image = images.image(index)
        except BadImage as error:
            if options.max_bad_fraction == 0:
                raise
            return error
        square = preprocess.to_uint8(image)  # before the whole image is read: of a large JPEG less is enough
        pixels = hashlib.blake2b(image.tobytes(), digest_size=8, salt=b"%d" % image.width).digest()
        return square, int.from_bytes(pixels, "little") >> 1 or 1  # 0 is for no image

    # Decoding releases the interpreter lock, so threads read the next batch while the model is at work on this one.
    batches = _own_batches(n, options)
    with threads(4) as pool, encoding(model, options, sum(map(len, batches)), "images") as advance:
        reading = in_order(pool, read, chain(*batches), options.batch_size)
        for rows in batches:
            found = dict(zip(rows, reading, strict=False))  # strict would take one more
            lost |= {row: str(one) for row, one in found.items() if isinstance(one, BadImage)}
            bad.add(lost.values())
            good = {row: one for row, one in found.items() if not isinstance(one, BadImage)}
            if good:
                pixels = torch.stack([image for image, _ in good.values()]).to(device)
                places = torch.tensor(list(good))
                values[places] = unit(model.encode_image(preprocess.normalize(pixels)))
                seen[places] = torch.tensor([number for _, number in good.values()])
            advance(len(rows))
    if options.shared:
        values, seen = total(values, device), total(seen, device)
        lost = dict(sorted(gathered(list(lost.items()))))
        bad.add(lost.values())
    kept = seen.nonzero().flatten()
    if len(kept) < n:
        values, seen = values[kept], seen[kept]
    if task is not None and not len(kept):
        raise ValueError(f"{task}: none of the {n} images can be read: {first_few(list(lost.values()))}")
    return Encoded(values, kept, list(lost.values()), digest(seen.numpy().tobytes()))


def encode_images(model: TwoTowers, images: Images, preprocess: Preprocess, options: EncodeOptions = DEFAULT) -> Tensor:
    """All images -> (N, E) float32 on the CPU, unit length. Raises BadImage for one that cannot be read."""
    return encode_readable(model, images, preprocess, replace(options, max_bad_fraction=0.0)).values


def encode_texts(
    model: TwoTowers, tokenizer: TextTokenizer, texts: Sequence[str], options: EncodeOptions = DEFAULT
) -> Tensor:
    """All texts -> (N, E) float32 on the CPU, unit length, in the order given. Equal texts get identical embeddings."""
    if not texts:
        return torch.empty(0, _width(model))
    # Each text once: it saves work, and equal texts would otherwise differ in the last bit from batch to batch.
    place_of = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    tokens = tokenizer(list(place_of))
    # sorted by length, so that a batch can be trimmed, if it is known how the tokenizer pads
    pad = getattr(tokenizer, "pad", None)
    lengths = caption_lengths(tokens) if pad == 0 else (tokens >= 0).sum(1) if pad == -1 else None
    order = torch.arange(len(tokens)) if lengths is None else lengths.argsort(stable=True)
    device = model_device(model)
    result = torch.zeros(len(place_of), _width(model))
    batches = _own_batches(len(order), options)
    with encoding(model, options, sum(map(len, batches)), "texts") as advance:
        for one in batches:
            if rows := order[one.start : one.stop].tolist():
                batch = tokens[rows] if lengths is None else tokens[rows, : int(lengths[rows].max())]
                result[rows] = unit(model.encode_text(batch.to(device)))
            advance(len(rows))
    if options.shared:
        result = total(result, device)
    return result[[place_of[text] for text in texts]]


def fingerprint(model: TwoTowers) -> str:
    """32 hexadecimal digits of the weights: names, shapes, number formats and every bit."""
    parts: list[object] = []
    for name, value in sorted(model.state_dict().items()):
        parts += [name, value.dtype, tuple(value.shape)]
        # hashed one by one: a second copy of all weights may not fit
        parts.append(hashlib.blake2b(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest())
    return digest(*parts)


def _own_batches(n: int, options: EncodeOptions) -> list[range]:
    """Rows of the batches that this process encodes: as many as any other has, so the last may be empty."""
    size, (rank, count) = options.batch_size, place() if options.shared else (0, 1)
    starts = (min(start + rank * size, n) for start in range(0, n, count * size))
    return [range(start, min(start + size, n)) for start in starts]


def unit(features: Tensor) -> Tensor:
    """(B, E) -> float32 of unit length, on the CPU."""
    return F.normalize(features.float(), dim=-1).cpu()


def model_device(model: TwoTowers) -> torch.device:
    """The device of its weights."""
    return next(model.parameters()).device


def _width(model: TwoTowers) -> int:
    width = model.config.embed_dim
    assert width is not None  # a model's config is resolved
    return width


@contextmanager
def encoding(model: TwoTowers, options: EncodeOptions, count: int, what: str) -> Iterator[Callable[[int], object]]:
    """Evaluation mode, no gradients, the precision asked for, a progress bar; every module gets its own mode back.

    Yields what is called after every batch, with its size.
    """
    from tqdm import tqdm

    hidden = not options.progress or (options.shared and place()[0] > 0)
    bar = tqdm(total=count, desc=what, leave=False, disable=hidden)
    autocast = torch.autocast(model_device(model).type, torch.bfloat16, enabled=options.precision == "bf16")
    # Not inference_mode: a mask or cast weight that is cached here would be unusable for the next training step.
    with evaluating(model), torch.no_grad(), autocast, bar:
        yield lambda done: (bar.update(done), options.between())
