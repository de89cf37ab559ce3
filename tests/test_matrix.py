"""Embeddings to the matrix of similarities."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from miniclip.losses.matrix import Positives, gather, shares, similarity_logits


def test_matrix_is_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(16, 64, generator=generator), dim=-1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        logits = similarity_logits(image, text, torch.tensor(100.0))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * image @ text.T, rtol=0, atol=1e-4)


def test_shares_by_hand() -> None:
    assert shares(64, 1) == [64]
    assert shares(64, 2) == [32, 32]
    assert shares(64, 3) == [22, 21, 21]
    assert shares(5, 4) == [2, 1, 1, 1]
    assert shares(2, 3) == [1, 1, 0]


@pytest.mark.parametrize("total", range(1, 20))
@pytest.mark.parametrize("world", range(1, 8))
def test_shares_add_up_and_differ_by_one_at_most(total: int, world: int) -> None:
    sizes = shares(total, world)
    assert len(sizes) == world
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_gather_of_one_process_is_its_input() -> None:
    local = torch.randn(3, 2, requires_grad=True)
    assert gather(local) is local
    assert gather(local, [3]) is local


# pictures 0 and 2 are one; picture 1 shares a caption with picture 2, and picture 3 one with nobody
IMAGE, TEXT = torch.tensor([7, 3, 7, 5]), torch.tensor([[10, 11], [12, 13], [13, 14], [15, 16]])
MASKS = {
    "diagonal": ["11......", "..11....", "....11..", "......11"],
    # the caption 13 stands under pictures 1 and 2
    "text": ["11......", "..111...", "...111..", "......11"],
    "identity": ["11..11..", "..111...", "11.111..", "......11"],
}


@pytest.mark.parametrize("kind", MASKS)
def test_positives_by_hand(kind: str) -> None:
    found = Positives.of(kind, IMAGE, TEXT)
    expected = torch.tensor([[character == "1" for character in row] for row in MASKS[kind]])
    assert found.captions == 2
    assert torch.equal(found.of_images(slice(None)), expected)
    assert torch.equal(found.of_texts(slice(None)), expected.T)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        assert torch.equal(found.of_images(rows), expected[rows])
    for rows in (slice(0, 3), slice(3, 8)):
        assert torch.equal(found.of_texts(rows), expected.T[rows])
    assert not found.only_diagonal()


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("kind", ["diagonal", "text", "identity"])
def test_positives_entry_by_entry(kind: str, captions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 8, (12,), generator=generator)
    text = torch.randint(0, 12 * captions, (12, captions), generator=generator)
    found = Positives.of(kind, image, text).of_images(slice(None))
    for i in range(12):
        for j in range(12 * captions):
            same_text = kind != "diagonal" and text.flatten()[j] in text[i]
            same_image = kind == "identity" and image[i] == image[j // captions]
            assert bool(found[i, j]) == bool(i == j // captions or same_text or same_image), (i, j)


@pytest.mark.parametrize(
    ("kind", "image", "text", "expected"),
    [
        ("identity", [1, 2, 3], [4, 5, 6], True),
        ("identity", [1, 2, 1], [4, 5, 6], False),
        ("identity", [1, 2, 3], [4, 5, 4], False),
        ("text", [1, 2, 1], [4, 5, 6], True),
        ("text", [1, 2, 3], [4, 5, 4], False),
        ("diagonal", [1, 1, 1], [4, 4, 4], True),
    ],
)
def test_only_diagonal(kind: str, image: list[int], text: list[int], expected: bool) -> None:
    found = Positives.of(kind, torch.tensor(image), torch.tensor(text)[:, None])
    assert found.only_diagonal() == expected
    assert torch.equal(found.of_images(slice(None)), torch.eye(3, dtype=torch.bool)) == expected


def test_several_captions_are_more_than_the_diagonal() -> None:
    assert not Positives.of("diagonal", torch.arange(3), torch.arange(6).view(3, 2)).only_diagonal()
