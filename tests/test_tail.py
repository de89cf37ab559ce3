"""Scenes with a long tail: what is drawn, what stays as it was, and the class that weights go by."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from test_shapes import check

from miniclip.config import ConfigError, DataConfig, load_config
from miniclip.data.captioned import open_source
from miniclip.data.scenes.captions import HELD_OUT, SHAPES, Draws
from miniclip.data.scenes.source import SceneSource
from miniclip.data.scenes.tail import SHARES, draw_combos
from miniclip.data.weights import image_weights
from miniclip.training.batches import _label

EXPECTED = {
    "80-10-10": [0.8, 0.05, 0.05, 0.02, 0.02, 0.02, 0.02, 0.02],
    # 1 + 1/4 + 1/9 + 1/16 + 1/25 + 1/36 + 1/49 + 1/64 = 1.527422
    "power": [0.654698, 0.163674, 0.072744, 0.040919, 0.026188, 0.018186, 0.013361, 0.010230],
}


@pytest.mark.parametrize("tail", SHARES)
def test_each_object_has_the_share_of_its_shape(tail: str) -> None:
    """The second and the third as well as the first, although two of them are never alike."""
    n = 20_000
    for place, count in ((0, 1), (2, 3)):
        draws = Draws(place, 0, 0)
        found = Counter(draw_combos(draws, count, tail)[place][0] for _ in range(n))
        for shape, share in zip(SHAPES, EXPECTED[tail], strict=True):
            assert abs(found[shape] / n - share) < 4.5 * math.sqrt(share * (1 - share) / n), shape


@pytest.mark.parametrize("tail", SHARES)
def test_scenes_are_true_seen_and_of_their_rarest_shape(tail: str) -> None:
    source = SceneSource("train", 150, seed=5, tail=tail)
    scenes = [source.scene(k) for k in range(len(source))]
    combos = [[(thing.shape, thing.colour) for thing in scene.objects] for scene in scenes]
    assert all(len(set(own)) == len(own) and not set(own) & set(HELD_OUT) for own in combos)
    assert {len(own) for own in combos} == {1, 2, 3}
    for k in range(0, 150, 5):
        for caption in source.captions(k):
            check(caption, scenes[k])
    rarest = [next(shape for shape in reversed(SHAPES) if shape in dict(own)) for own in combos]
    assert source.column("shape") == rarest
    assert len(set(rarest)) > 4 and Counter(rarest)["circle"] > 60


def test_what_is_evaluated_and_scenes_without_a_tail_stay_as_they_are() -> None:
    for split in ("validation", "test"):
        plain, other = (open_source(DataConfig(tail=tail), split, eval_size=20) for tail in ("none", "power"))
        assert plain.fingerprint() == other.fingerprint() and plain.captions(7) == other.captions(7)
    fingerprints = {SceneSource("train", 9, tail=tail).fingerprint() for tail in ("none", *SHARES)}
    configs = [load_config(["--train.max_steps", "9", "--data.tail", tail]) for tail in ("none", *SHARES)]
    # a cache of its own for each: runs side by side would else build one another's anew
    assert len(fingerprints) == len({_label(config) for config in configs}) == 3
    assert SceneSource("train", 9).fingerprint() == "a17d413db68f26d872c6182cebe1d746"


@pytest.mark.parametrize("kind", ["inverse", "log"])
def test_weights_go_by_the_rarest_shape(kind: str) -> None:
    config = DataConfig(size=400, tail="80-10-10", weights=kind, weight_column="shape")  # type: ignore[arg-type]
    source = open_source(config, "train", seed=2)
    weights, shapes = image_weights(source, config), source.column("shape")
    assert weights is not None
    counts = Counter(shapes)
    raw = [400 / counts[shape] if kind == "inverse" else math.log(400 / counts[shape]) for shape in shapes]
    assert weights.tolist() == pytest.approx([value * 400 / sum(raw) for value in raw], rel=1e-5)
    assert counts["circle"] > 240


def test_what_a_tail_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.tail=power is for the built-in scenes; use data\.source=shapes"):
        DataConfig(source="photos", tail="power")
    with pytest.raises(ValueError, match="unknown tail 'long'; use none, 80-10-10 or power"):
        SceneSource("train", 3, tail="long")
    with pytest.raises(ConfigError, match=r"data\.tail"):
        load_config(["--data.tail", "long"])
