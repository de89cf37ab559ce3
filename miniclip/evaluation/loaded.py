"""What `miniclip.load` returns: a model with its preprocessing and tokenizer, which gives arrays of embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image

from miniclip.common.pixels import to_rgb
from miniclip.data.images import BadImage, decode_image
from miniclip.evaluation.encode import EncodeOptions, encode_images, encode_texts
from miniclip.models import load as loading
from miniclip.models.preprocess import Preprocess

ImageLike: TypeAlias = os.PathLike[str] | Image.Image
_TAKEN = "texts are strings, images are Path objects or images of PIL's"


class Loaded(NamedTuple):
    """A model in evaluation mode, its preprocessing and its tokenizer: `model, preprocess, tokenizer = loaded`.

    Axes of its arrays: N and M items, E embedding. It computes in float32, on the model's device.
    """

    model: Any
    preprocess: Preprocess
    tokenizer: Any

    def encode(
        self, images_or_texts: str | ImageLike | Iterable[str] | Iterable[ImageLike], batch_size: int = 256
    ) -> np.ndarray:
        """Images or texts -> (N, E) float32, unit length, in the order given; one by itself is N = 1.

        A string is always a text, also one that looks like a file's name; images are Path objects, decoded as they are
        needed, or images of PIL's. batch_size: items at a time. Raises TypeError for both at once and for anything
        else, FileNotFoundError for a path that is no file, before any is read, and ValueError, naming it, for an image
        that cannot be decoded.
        """
        items = _listed(images_or_texts)
        options = EncodeOptions(batch_size)
        if all(isinstance(one, str) for one in items):
            return encode_texts(self.model, self.tokenizer, items, options).numpy()
        images = _Images(items, 2 * self.preprocess.image_size)
        return encode_images(self.model, images, self.preprocess, options).numpy()

    def similarity(
        self,
        images: ImageLike | Iterable[ImageLike],
        texts: str | Iterable[str],
        batch_size: int = 256,
    ) -> np.ndarray:
        """Cosines of N images with M texts -> (N, M) float32 in [-1, 1], as encode takes them.

        They are not scaled. A model's own logits are `model.logit_scale.exp()` times them, plus `model.logit_bias` if
        it has one; their softmax over the texts is what the model finds probable of each image.
        """
        images, texts = _listed(images), _listed(texts)
        if any(isinstance(one, str) for one in images) or not all(isinstance(one, str) for one in texts):
            raise TypeError(f"similarity takes images, then texts; {_TAKEN}")
        return np.clip(self.encode(images, batch_size) @ self.encode(texts, batch_size).T, -1, 1)


def load(checkpoint: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """A model, its preprocessing and its tokenizer: `model, preprocess, tokenizer = miniclip.load("runs/shapes")`, or
    `miniclip.load("runs/shapes").encode(["a red circle"])`.

    checkpoint: a run (of one that is still training, was cut off or went on after its end, the newest checkpoint), its
    model, best or checkpoints folder, one checkpoint, a folder that `miniclip.save_model` wrote, or a name of another
    library, `open_clip:ARCH:TAG` or `hf:NAME`.
    Raises FileNotFoundError if there is none, and ValueError, naming the file, if it cannot be read.
    """
    return Loaded(*loading.load(checkpoint, device))


def _listed(items: Any) -> list[Any]:
    """One by itself is a list of one: the letters of a string are not meant."""
    return [items] if isinstance(items, str | os.PathLike | Image.Image) else list(items)


class _Images:
    """A list of images as encode_images reads it, from several threads."""

    def __init__(self, items: Sequence[Any], at_least: int) -> None:
        for k, one in enumerate(items):
            if not isinstance(one, os.PathLike | Image.Image):
                raise TypeError(f"{type(one).__name__} in place {k} among images; {_TAKEN}")
            if isinstance(one, os.PathLike) and not Path(one).is_file():
                folder = "a folder; give its files" if Path(one).is_dir() else "no file"
                raise FileNotFoundError(f"{os.fspath(one)} is {folder}")
        self._items, self._at_least, self._lock = items, at_least, Lock()

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int) -> Image.Image:
        one = self._items[index]
        if isinstance(one, os.PathLike):
            return decode_image(Path(one), os.fspath(one), at_least=self._at_least)
        try:
            with self._lock:  # pixels that are still in a file are read through it, and it may stand here twice
                return to_rgb(one, self._at_least)
        except Exception as error:
            raise BadImage(f"image {index}: cannot be decoded ({type(error).__name__}: {error})") from error
