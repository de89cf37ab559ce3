"""Orders: planted clusters lie together, scipy on the plain vectors agrees, and small or equal sets work."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor

from miniclip.inspection import ordering
from miniclip.inspection.ordering import orders


def draw(n: int, e: int, seed: int = 0) -> Tensor:
    return torch.randn(n, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cluster(image: Tensor, text: Tensor) -> list[int]:
    return orders(image, text, torch.zeros(len(image)), ["a"] * len(image))["cluster"]


def test_by_hand() -> None:
    found = orders(draw(4, 3), draw(4, 3, 1), torch.tensor([1.0, 5.0, -2.0, 5.0]), ["ccc", "dd", "a", "bb"])
    by_cluster = sorted(found.pop("cluster"))
    assert found == {"index": [0, 1, 2, 3], "loss": [1, 3, 0, 2], "length": [2, 1, 3, 0]}
    assert by_cluster == [0, 1, 2, 3]


def test_clusters_of_the_joined_vectors_lie_together() -> None:
    kinds = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0))
    # neither the images nor the texts alone tell the five apart
    image = draw(2, 8)[kinds % 2] + 0.05 * draw(40, 8, 1)
    text = draw(3, 8, 2)[kinds // 2] + 0.05 * draw(40, 8, 3)
    along = [int(kinds[i]) for i in cluster(image, text)]
    assert 1 + sum(a != b for a, b in pairwise(along)) == len(set(along)) == 5


@pytest.mark.parametrize(("n", "optimal"), [(3, True), (60, True), (60, False)])
def test_leaves_equal_scipys_on_the_vectors(n: int, optimal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "OPTIMAL_UP_TO", n if optimal else n - 1)
    image, text = 7 * draw(n, 6), draw(n, 6, 1)
    joined = [side.numpy() / np.linalg.norm(side.numpy(), axis=1, keepdims=True) for side in (image, text)]
    tree = linkage(np.concatenate(joined, axis=1), "average", "euclidean", optimal_ordering=optimal)
    assert cluster(image, text) == leaves_list(tree).tolist()


@pytest.mark.parametrize("n", [1, 2, 600])
def test_small_and_equal_sets(n: int) -> None:
    same = draw(1, 6).expand(n, 6)
    for image in (same, draw(n, 6), torch.zeros(n, 6), same.half()):
        found = orders(image, image, torch.zeros(n), [""] * n)
        assert all(sorted(order) == list(range(n)) for order in found.values())
        assert found["loss"] == found["length"] == list(range(n))
