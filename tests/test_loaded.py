"""Embeddings in Python: those of the towers, one item at a time, and of transformers; what is refused beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.models import save_tiny
from support.photos import PHOTOS
from test_interop import TEXTS, save_clip

import miniclip

PICTURES = [PHOTOS.image(k) for k in range(len(PHOTOS))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Among them a JPEG larger than is needed, one on its side, and a PNG that is half clear."""
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for k, image in enumerate(PICTURES):
        found.append(folder / f"{k}.{'jpg' if k % 2 else 'png'}")
        exif = Image.Exif()
        exif[0x0112] = 6 if k == 1 else 1
        image = image.resize((300, 200)) if k == 3 else image.copy()
        if k == 2:
            image.putalpha(90)
        image.save(found[-1], exif=exif)
    return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return miniclip.load(save_tiny(tmp_path_factory.mktemp("tiny")))


@torch.no_grad()
def test_the_embeddings_are_those_of_the_towers(loaded: Any, files: list[Path]) -> None:
    """Of files, of what PIL opened and of what it read, in any batches."""
    model, preprocess, tokenizer = loaded
    texts = np.concatenate([F.normalize(model.encode_text(tokenizer([one]))).numpy() for one in TEXTS])
    images = np.concatenate([F.normalize(model.encode_image(preprocess(Image.open(one))[None])) for one in files])
    for batch_size in (1, 3, 256):
        np.testing.assert_allclose(loaded.encode(TEXTS, batch_size=batch_size), texts, atol=1e-6)
        np.testing.assert_allclose(loaded.encode(files, batch_size=batch_size), images, atol=1e-6)
    opened = [Image.open(one) for one in files]
    np.testing.assert_allclose(loaded.encode([*opened, *opened]), np.concatenate([images, images]), atol=1e-6)
    np.testing.assert_allclose(loaded.similarity(files, iter(TEXTS)), images @ texts.T, atol=1e-6)
    found = loaded.encode(PICTURES)
    assert isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == (len(PICTURES), 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.abs(images[0] - images[1]).max() > 0.01 < np.abs(texts[0] - texts[3]).max()


def test_one_by_itself_is_one_row(loaded: Any, files: list[Path]) -> None:
    """And a string is a text, be it a file's name."""
    assert loaded.encode("a dog").shape == loaded.encode(files[0]).shape == loaded.encode(PICTURES[0]).shape == (1, 16)
    assert loaded.encode([]).shape == (0, 16) and loaded.similarity([], TEXTS).shape == (0, len(TEXTS))
    assert loaded.similarity(files[0], "a dog").shape == (1, 1)
    name = str(files[0])
    np.testing.assert_array_equal(loaded.encode(name), loaded.encode([name]))
    assert np.abs(loaded.encode(name) - loaded.encode(files[0])).max() > 0.01


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (["a dog", Path(__file__)], TypeError, "str in place 0 among images; texts are strings, images are Path"),
        ([np.zeros((8, 8, 3))], TypeError, "ndarray in place 0 among images"),
        ([None], TypeError, "NoneType in place 0"),
        ([Path("absent.png")], FileNotFoundError, "absent.png is no file$"),
        ([Path(__file__).parent], FileNotFoundError, "tests is a folder; give its files$"),
        ([Path(__file__)], ValueError, "test_loaded.py: "),
        ([PICTURES[0], Image.new("F", (9, 9))], ValueError, "image 1: cannot be decoded .* no agreed range"),
    ],
)
def test_what_cannot_be_encoded_is_named(loaded: Any, items: list[Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        loaded.encode(items)
    with pytest.raises(ValueError, match="batch_size=0"):
        loaded.encode(items[:0], batch_size=0)


def test_names_for_images_are_refused(loaded: Any, files: list[Path]) -> None:
    """They would be compared as texts, and nobody would see it."""
    for images, texts in ((["dog.jpg"], ["a dog"]), (["a dog"], files), (files, files), ("dog.jpg", "a dog")):
        with pytest.raises(TypeError, match="similarity takes images, then texts; texts are strings"):
            loaded.similarity(images, texts)


@torch.no_grad()
def test_a_model_of_transformers(files: list[Path], tmp_path: Path) -> None:
    """As its own classes embed, and it comes apart into three as any."""
    import transformers

    name = save_clip(tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path)
    pictures = [Image.open(one).convert("RGB") for one in files if one.stem not in "123"]
    texts = [text for text in TEXTS if len(text) < 40]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    loaded = miniclip.load(name)
    expected = (theirs(**inputs).logits_per_image / theirs.logit_scale.exp()).numpy()
    np.testing.assert_allclose(loaded.similarity(pictures, texts), expected, atol=1e-5)
    model, _, _ = loaded
    assert model is loaded.model and len(loaded) == 3
