"""Metrics against brute-force loops, scikit-learn and matrices worked by hand."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from miniclip.metrics import retrieval as metrics
from miniclip.metrics.classification import class_ranks, predictions
from miniclip.metrics.retrieval import chance_recall_at_k, cosine_matrix, recall_at_k, retrieval_ranks
from miniclip.metrics.retrieval import retrieval_ranks_from_embeddings as from_embeddings


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute(similarity: Tensor, positives: Tensor) -> tuple[list[int], list[float]]:
    """Of every row, its own candidates last among equals: the place of the first own one, and the average precision.

    Own candidates do not compete with each other: only foreign ones before the first own one count.
    """
    ranks, precisions = [], []
    for scores, mine in zip(similarity.tolist(), positives.tolist(), strict=True):
        found, foreign = [], 0
        for j in sorted(range(len(scores)), key=lambda j: (-scores[j], mine[j])):
            foreign += not mine[j]
            if mine[j]:
                found.append((len(found) + 1) / (len(found) + 1 + foreign))
                if len(found) == 1:
                    ranks.append(1 + foreign)
        precisions.append(sum(found) / len(found))
    return ranks, precisions


def same(ranks: metrics.RetrievalRanks, similarity: Tensor, positives: Tensor) -> bool:
    (to_text, precision), (to_image, _) = brute(similarity, positives), brute(similarity.T, positives.T)
    found = (ranks.image_to_text.tolist(), ranks.text_to_image.tolist())
    return found == (to_text, to_image) and ranks.image_average_precision.tolist() == pytest.approx(
        precision, abs=1e-14
    )


def several_captions(n: int, seed: int) -> Tensor:
    """(M,) owners: every image has one to four captions, shuffled."""
    owners = torch.arange(n).repeat_interleave(torch.randint(1, 5, (n,), generator=seeded(seed)))
    return owners[torch.randperm(len(owners), generator=seeded(seed))]


def positives_of(owners: Tensor, n: int) -> Tensor:
    return torch.arange(n)[:, None] == owners


def small_integers(n: int, owners: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings whose products tie often, and exactly."""
    image = torch.randint(-2, 3, (n, 4), generator=seeded(seed)).float()
    return image, torch.randint(-2, 3, (len(owners), 4), generator=seeded(seed + 1)).float()


def test_ranks_worked_by_hand() -> None:
    # Two images, three captions; captions 0 and 2 belong to image 0.
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.4]])
    ranks = retrieval_ranks(similarity, torch.tensor([[True, False, True], [False, True, False]]))
    assert ranks.image_to_text.tolist() == [2, 3]  # 0.5 stands behind 0.9; 0.2 behind 0.3 and 0.4
    assert ranks.text_to_image.tolist() == [2, 2, 1]
    # Image 0: 0.5 is the second of all, 0.1 the third and the second own one. Image 1: its one caption is the third.
    assert ranks.image_average_precision.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 3], abs=1e-15)
    # Own captions do not compete.
    ranks = retrieval_ranks(torch.tensor([[0.9, 0.8, 0.85], [0, 0, 0.1]]), positives_of(torch.tensor([0, 0, 1]), 2))
    assert ranks.image_to_text.tolist() == [1, 1]


def test_ranks_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a matrix and of embeddings, with many ties and with few, in tiles of which the last is shorter."""
    for seed, tile in ((0, 1), (1, 3), (2, 7), (0, 13), (1, 1024)):
        monkeypatch.setattr(metrics, "_TILE", tile)
        owners = several_captions(13, seed)
        positives = positives_of(owners, 13)
        for levels in (3, 1000):
            similarity = torch.randint(levels, positives.shape, generator=seeded(seed)) / levels
            before = similarity.clone()
            assert same(retrieval_ranks(similarity, positives), similarity, positives)
            assert torch.equal(similarity, before)
        plain = torch.randn(13, 8, generator=seeded(seed)), torch.randn(len(owners), 8, generator=seeded(seed + 9))
        for image, text in (plain, small_integers(13, owners, seed)):
            similarity = (image.double() @ text.double().T).float()
            assert same(from_embeddings(image, text, owners), similarity, positives)
        # several images a text
        positives = (torch.rand(9, 9, generator=seeded(seed)) < 0.3) | torch.eye(9, dtype=torch.bool)
        similarity = torch.randint(4, (9, 9), generator=seeded(seed)).float()
        assert same(retrieval_ranks(similarity, positives), similarity, positives)


def test_shares_of_the_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", 4)
    owners = several_captions(17, 4)
    image, text = small_integers(17, owners, 4)
    whole = from_embeddings(image, text, owners)
    for cuts in ((0, 17), (0, 1, 17), (0, 6, 12, 17), (0, 9, 9, 17)):
        shares = [from_embeddings(image, text, owners, slice(a, b)) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat([share.image_to_text for share in shares]), whole.image_to_text)
        assert torch.equal(1 + sum(share.text_to_image - 1 for share in shares), whole.text_to_image)
        precision = torch.cat([share.image_average_precision for share in shares])
        assert torch.equal(precision, whole.image_average_precision)
    # Text 0 belongs to image 0; images 1 and 2 are nearer to it, image 3 is not.
    image, text = torch.tensor([[2.0], [3.0], [4.0], [1.0]]), torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    shares = [from_embeddings(image, text, torch.arange(4), slice(a, a + 1)) for a in range(4)]
    assert [int(share.text_to_image[0]) for share in shares] == [1, 2, 2, 1]


def test_little_to_rank() -> None:
    for n, m in ((1, 1), (1, 4), (0, 0)):  # no foreign one to lose to
        found = from_embeddings(torch.ones(n, 3), torch.ones(m, 3), torch.zeros(m).long())
        assert [part.tolist() for part in found] == [[1] * n, [1] * m, [1.0] * n]
        assert [part.dtype for part in found] == [torch.int64, torch.int64, torch.float64]


def test_other_floats_count_the_same() -> None:
    owners = several_captions(300, 5)  # 300: more than 256, where a sum in bfloat16 stops
    similarity = torch.randint(9, (300, len(owners)), generator=seeded(5)).float()
    expected = retrieval_ranks(similarity, positives_of(owners, 300))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = retrieval_ranks(similarity.to(dtype), positives_of(owners, 300))
        assert all(map(torch.equal, found, expected))


def test_average_precision_equals_sklearn() -> None:
    for seed in range(3):
        owners = several_captions(20, seed)
        similarity = torch.rand(20, len(owners), dtype=torch.float64, generator=seeded(seed))
        positives = positives_of(owners, 20)
        ranks = retrieval_ranks(similarity, positives)
        expected = [average_precision_score(own, row) for row, own in zip(similarity, positives, strict=True)]
        assert ranks.image_average_precision.tolist() == pytest.approx(expected, abs=1e-12)


def clip_benchmark_recall(scores: Tensor, positives: Tensor, k: int) -> float:
    """Its definition: recall@k of a row is the share of its positives among topk; a hit is a recall above 0."""
    found = one_hot(scores.topk(k, dim=1).indices, scores.shape[1]).sum(1).bool() & positives
    return (found.sum(1) / positives.sum(1) > 0).float().mean().item()


def test_recall_equals_clip_benchmark() -> None:
    for seed, k in product(range(3), (1, 5, 10)):
        owners, draws = several_captions(40, seed), seeded(seed)
        image, text = torch.randn(40, 16, generator=draws), torch.randn(len(owners), 16, generator=draws)
        image, text = normalize(image), normalize(text + 0.4 * image[owners])
        ranks, scores, positives = from_embeddings(image, text, owners), image @ text.T, positives_of(owners, 40)
        found = (ranks.image_to_text, scores, positives), (ranks.text_to_image, scores.T, positives.T)
        for ranked, rows, own in found:
            expected = clip_benchmark_recall(rows, own, k)
            assert 0 < expected < 1 and recall_at_k(ranked, k) == pytest.approx(expected, abs=1e-6)


def test_cosine_matrix_is_the_product_and_ties_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", 5)
    image, text = torch.randn(13, 8, generator=seeded(0)), torch.randn(7, 8, generator=seeded(1))
    torch.testing.assert_close(cosine_matrix(image, text), image @ text.T)
    one = normalize(torch.randn(1, 513, generator=seeded(2)), dim=1)
    assert cosine_matrix(one.repeat(99, 1), one.repeat(17, 1)).unique().numel() == 1
    assert cosine_matrix(torch.zeros(0, 8), text).shape == (0, 7)


def test_a_collapsed_model_never_hits() -> None:
    for n in (7, 100):
        owners = several_captions(n, 2)
        # Several points to collapse to: whether a product in float32 would round down or up depends on them.
        for embedding in normalize(torch.randn(20, 333, generator=seeded(n))):
            ranks = from_embeddings(embedding.repeat(n, 1), embedding.repeat(len(owners), 1), owners)
            assert ranks.image_to_text.tolist() == (1 + len(owners) - torch.bincount(owners)).tolist()
            assert ranks.text_to_image.tolist() == [n] * len(owners)


def test_a_score_that_is_no_number_misses() -> None:
    similarity, nan = torch.full((3, 3), torch.nan), torch.nan
    ranks = retrieval_ranks(similarity, torch.eye(3, dtype=torch.bool))
    assert ranks.image_to_text.tolist() == [3, 3, 3] and ranks.text_to_image.tolist() == [3, 3, 3]
    assert ranks.image_average_precision.tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
    assert class_ranks(similarity, torch.arange(3)).tolist() == [3, 3, 3]
    assert (predictions(similarity, torch.arange(3)) != torch.arange(3)).all()
    # Image 0: the own NaN comes last, behind both foreign ones. Image 1: the foreign NaN stands before both own ones.
    owners = torch.tensor([0, 0, 1, 1])
    ranks = retrieval_ranks(torch.tensor([[0.9, nan, 0.5, 0.1], [nan, 0.0, 0.8, 0.7]]), positives_of(owners, 2))
    assert ranks.image_to_text.tolist() == [1, 2] and ranks.text_to_image.tolist() == [2, 2, 1, 1]
    expected = [(1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2]
    assert ranks.image_average_precision.tolist() == pytest.approx(expected, abs=1e-15)
    text = torch.tensor([[1.0, 0.0], [nan, 0.0], [0.0, 1.0], [0.0, 1.0]])
    ranks = from_embeddings(torch.eye(2), text, owners)
    assert ranks.image_to_text.tolist() == [1, 2] and ranks.text_to_image.tolist() == [1, 2, 1, 1]


def test_ranks_say_what_is_missing() -> None:
    zeros = torch.zeros
    for call, message in (
        (lambda: retrieval_ranks(zeros(2, 2), torch.tensor([[True, True], [False, False]])), r"image \(row\) 1 has no"),
        (lambda: retrieval_ranks(zeros(2, 2), torch.tensor([[False, True]] * 2)), r"text \(column\) 0 has no positive"),
        (lambda: from_embeddings(zeros(2, 4), zeros(1, 4), torch.tensor([0])), r"image \(row\) 1 has no positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_recall_and_chance_by_counting() -> None:
    assert [recall_at_k(torch.tensor([1, 2, 5, 11]), k) for k in (1, 5, 10)] == [0.25, 0.75, 0.75]
    for candidates, own, k in ((8, 1, 3), (8, 3, 2), (8, 3, 6), (4, 4, 1), (6, 2, 9)):
        draws = list(combinations(range(candidates), min(k, candidates)))
        hits = [min(draw) < own for draw in draws]  # the items below `own` are the own ones
        assert chance_recall_at_k(candidates, own, k) == sum(hits) / len(hits)
    assert chance_recall_at_k(1000, 1, 10) == 0.01


def test_classification_equals_sklearn_and_ties_count_against() -> None:
    for seed in range(3):
        labels = torch.randint(7, (300,), generator=seeded(seed)).square() // 7  # uneven classes
        scores = torch.randn(300, 7, generator=seeded(seed)) + 1.5 * one_hot(labels, 7)
        assert torch.equal(predictions(scores, labels), scores.argmax(1))  # no ties here
        for k in (1, 2, 5):
            expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
            assert recall_at_k(class_ranks(scores, labels), k) == pytest.approx(expected)
    scores, labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 0.0, 0.0]]), torch.tensor([0, 2, 0])
    assert predictions(scores, labels).tolist() == [1, 1, 0] and class_ranks(scores, labels).tolist() == [2, 2, 1]
    # All samples of class 0, all scores equal: argmax would call it 100%.
    assert class_ranks(torch.zeros(5, 4), torch.zeros(5).long()).tolist() == [4] * 5
    assert predictions(torch.zeros(5, 1), torch.zeros(5).long()).tolist() == [0] * 5
