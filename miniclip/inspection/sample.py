"""N pairs of a source, drawn by a seed: their images, captions and names, and which of them belong together."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from miniclip.common.pixels import to_rgb
from miniclip.data.captioned import PairSource
from miniclip.data.images import BadCount, BadImage
from miniclip.evaluation.encode import DEFAULT, EncodeOptions, encode_images, encode_texts
from miniclip.losses.matrix import Positives
from miniclip.models.preprocess import Preprocess
from miniclip.models.protocols import TextTokenizer, TwoTowers

THUMBNAIL = 64  # side, in pixels


class TooFewPairs(ValueError):
    """Not enough to make a matrix of."""


@dataclass(frozen=True)
class Sample:
    """Pair k is squares[k] with captions[k]."""

    squares: list[Image.Image]  # as the image encoder takes them
    thumbnails: list[Image.Image]  # of THUMBNAIL pixels
    captions: list[str]
    names: list[str]  # files or rows
    bad: list[str]  # what could not be read and was passed over

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, index: int) -> Image.Image:
        return self.squares[index]

    def positives(self, kind: str, tokenizer: TextTokenizer) -> Tensor:
        """(N, N) bool; kind as in matrix.Positives.of. Captions are equal if their tokens are."""
        own = torch.arange(len(self))
        equal = torch.unique(tokenizer(self.captions), dim=0, return_inverse=True)[1]
        return Positives.of(kind, own, equal[:, None]).of_images(slice(None))

    def encode(
        self, model: TwoTowers, preprocess: Preprocess, tokenizer: TextTokenizer, options: EncodeOptions = DEFAULT
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the images and of the texts, (N, E) float32, unit length."""
        return encode_images(model, self, preprocess, options), encode_texts(model, tokenizer, self.captions, options)


def scale_and_bias(model: TwoTowers) -> tuple[float, float | None]:
    """The factor on the cosines and what is added to them, None for a model that adds nothing."""
    bias = model.logit_bias
    return float(model.logit_scale.detach().exp()), None if bias is None else float(bias.detach())


def draw(
    source: PairSource, size: int, seed: int, preprocess: Preprocess, *, allowed: float = 0.0, progress: bool = False
) -> Sample:
    """size pairs, or all if there are fewer: rows without replacement, and one caption of each, by the seed alone.

    allowed: share of the source's images that may be unreadable; another row takes the place of each. Raises
    TooManyBad beyond, and TooFewPairs if fewer than two pairs are left, which make no matrix.
    """
    from tqdm import tqdm

    rows = list(range(len(source)))
    random.Random(f"{seed} rows").shuffle(rows)
    small = Preprocess(THUMBNAIL, resize=preprocess.resize)
    bad, sample = BadCount.of(source, allowed), Sample([], [], [], [], [])
    with tqdm(total=min(size, len(rows)), desc="reading pairs", leave=False, disable=not progress) as bar:
        for row in rows:
            if len(sample) == size:
                break
            try:
                image = to_rgb(source.image(row))
            except BadImage as error:
                bad.add([error])
                continue
            sample.squares.append(preprocess.to_square(image))
            sample.thumbnails.append(small.to_square(image))
            sample.captions.append(random.Random(f"{seed} caption {row}").choice(source.captions(row)))
            sample.names.append(source.name(row))
            bar.update()
    sample.bad.extend(bad.names)
    if len(sample) < 2:
        raise TooFewPairs(f"a matrix needs at least 2 pairs; {len(sample)} of {len(source)} images can be read")
    return sample
