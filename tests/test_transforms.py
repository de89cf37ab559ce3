"""The fixed and the random transform, against open_clip's and images whose pixels say where they come from."""

from __future__ import annotations

import json
import random
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from miniclip.data.augment import Augment
from miniclip.data.recolour import recolour
from miniclip.models.preprocess import CLIP_MEAN, CLIP_STD, Preprocess


def coordinates(width: int, height: int) -> Image.Image:
    """Red is the column, green the row, in pixels."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.dstack([x, y, np.zeros_like(x)]))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_equals_open_clip() -> None:
    """Theirs resizes before it cuts, so its border has seen what lies beyond; the rest is equal to one level of 255.

    The sizes are those at which theirs has no side and no corner to round to a whole pixel.
    """
    from open_clip.transform import image_transform

    for side, size, border in ((48, (120, 120), 0), (32, (150, 100), 3), (32, (100, 150), 3), (32, (200, 100), 3)):
        theirs = image_transform(side, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)(noise(*size))
        inside = (Preprocess(side)(noise(*size)) - theirs)[:, border : side - border, border : side - border]
        assert inside.abs().max() < (1.01 / 255 / min(CLIP_STD) if border else 1e-5)


def test_squash_keeps_the_edges_and_crop_the_middle() -> None:
    squashed, cropped = (Preprocess(50, resize=how).to_uint8(coordinates(200, 50)) for how in ("squash", "crop"))  # type: ignore[arg-type]
    assert squashed[0, 25].min() < 5 and squashed[0, 25].max() > 195
    assert cropped[0, 25].tolist() == list(range(75, 125)) and cropped[1, :, 7].tolist() == list(range(50))


def test_normalize_by_hand() -> None:
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1)
    expected = [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, (0.2 - 0.40821073) / 0.27577711]
    assert Preprocess(1).normalize(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_preprocess_is_kept_as_json_and_takes_any_mode_but_no_nonsense() -> None:
    one = Preprocess(96, mean=(0.1, 0.2, 0.3), resize="squash")
    assert Preprocess.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert {Preprocess(8)(Image.new(mode, (9, 9))).shape for mode in ("L", "RGBA")} == {(3, 8, 8)}
    for wrong, told in (({"image_size": 0}, "image_size=0"), ({"image_size": 8, "resize": "x"}, "resize='x'")):
        with pytest.raises(ValueError, match=told):
            Preprocess(**wrong)  # type: ignore[arg-type]


def squared(augment: Augment, image: Image.Image, seed: int) -> torch.Tensor:
    """(3, S, S) uint8."""
    square = augment.square(np.asarray(augment.store(image)), random.Random(seed))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def test_crop_is_a_window_of_the_stored_image() -> None:
    """CLIP's augmentation: the stored image's shorter side is 9/8 of the side, and every window of it occurs."""
    augment = Augment(64)
    stored = coordinates(72, 72)
    assert augment.store(stored) is stored
    whole, corners = squared(Augment(72, "none"), stored, 0), set()
    for seed in range(400):
        square = squared(augment, stored, seed)
        left, top = square[:2, 0, 0].tolist()
        assert torch.equal(square, whole[:, top : top + 64, left : left + 64]) and square.shape == (3, 64, 64)
        corners.add((left, top))
    assert {x for x, _ in corners} == set(range(9)) == {y for _, y in corners}


def test_store_is_idempotent_and_keeps_the_aspect_ratio() -> None:
    for kind, size in (("crop", (54, 36)), ("resized_crop", (96, 64)), ("none", (32, 32))):
        augment = Augment(32, kind, crop_scale=(0.25, 1.0))
        once = augment.store(noise(300, 200))
        assert augment.store(once) is once and once.size == size
    assert Augment(32, "crop", resize="squash").store(noise(300, 200)).size == (36, 36)


def test_a_line_of_pixels_does_not_fill_the_memory() -> None:
    for kind, size in product(("crop", "resized_crop", "none"), ((1, 60_000), (60_000, 1), (3, 2_000))):
        augment = Augment(32, kind)  # type: ignore[arg-type]
        assert max(augment.store(Image.new("RGB", size)).size) <= 17 * max(32 * 9 // 8, min(size))
        assert squared(augment, Image.new("RGB", size), 0).shape == (3, 32, 32)
    columns = np.asarray(Augment(4, "crop", resize="crop").store(coordinates(200, 2)))[0, :, 0]
    assert columns.min() >= 82 and columns.max() <= 117  # the middle 32 of 200


def test_squares_are_draws() -> None:
    for kind, count in (("crop", 5), ("resized_crop", 10), ("none", 1)):
        first, again = ([squared(Augment(32, kind), noise(100, 80), seed) for seed in range(10)] for _ in range(2))
        assert all(map(torch.equal, first, again)) and len({s.numpy().tobytes() for s in first}) >= count
    square = squared(Augment(50, "resized_crop", crop_scale=(0.25, 0.25)), coordinates(100, 100), 3).float()
    assert float(square[0].max() - square[0].min()) == pytest.approx(50, abs=3)  # the share that it was told


def test_looks() -> None:
    first = random.Random(0)
    assert (Augment(20).look(first), Augment(20, flip=1.0).look(first)) == ([1.0], [-1.0])
    half = [Augment(20, flip=0.5).look(random.Random(seed)) for seed in range(200)]
    assert 60 < half.count([-1.0]) < 140 and half.count([-1.0]) + half.count([1.0]) == 200
    factors = np.array([Augment(8, colour_jitter=0.2).look(random.Random(seed)) for seed in range(300)])
    assert factors.shape == (300, 4) and (factors[:, 0] == 1).all()
    assert 0.8 <= factors[:, 1:].min() < 0.81 and 1.19 < factors[:, 1:].max() <= 1.2
    assert np.abs(np.corrcoef(factors[:, 1:].T) - np.eye(3)).max() < 0.2  # each on its own


def test_colours_change_as_pillow_changes_them() -> None:
    """Pillow rounds to whole values after each of three steps, and the mean grey, too."""
    image = noise(24, 24)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    looks = [[1.0, 1, 1, 1], [1.0, 1.3, 1, 1], [1.0, 1, 0.6, 1], [1.0, 1, 1, 1.4], [-1.0, 0.7, 1.3, 0.5]]
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    found = recolour(torch.stack([pixels] * len(looks)), torch.tensor(looks))
    assert found.dtype == torch.float32 and found.min() >= 0 and found.max() <= 255
    for ours, (mirror, *factors) in zip(found, looks, strict=True):
        expected = ImageOps.mirror(image) if mirror < 0 else image
        for enhance, factor in zip(enhancers, factors, strict=True):
            expected = enhance(expected).enhance(factor)
        difference = (ours - torch.from_numpy(np.array(expected)).permute(2, 0, 1).float()).abs()
        assert difference.max() < 2.5 and difference.mean() < 1
    assert torch.equal(found[0], pixels.float())
    mirrored = recolour(torch.stack([pixels] * 2), torch.tensor([[1.0], [-1.0]]))
    assert torch.equal(mirrored, torch.stack([pixels, pixels.flip(2)]))


def test_colours_of_one_image_do_not_depend_on_the_others() -> None:
    pixels = torch.randint(256, (4, 3, 6, 6), dtype=torch.uint8)
    looks = torch.rand(4, 4) + 0.5
    whole = recolour(pixels, looks)
    for i in range(4):
        torch.testing.assert_close(recolour(pixels[i : i + 1], looks[i : i + 1])[0], whole[i], rtol=0, atol=1e-4)
