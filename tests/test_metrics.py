"""Metrics against brute-force loops, scikit-learn and matrices worked by hand."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from miniclip import metrics


def brute_ranks(similarity: torch.Tensor, positives: torch.Tensor) -> tuple[list[int], list[int]]:
    """Sort every row with the own candidates last among equals; the position of the first own one is the rank."""

    def ranks(rows: list[list[float]], own: list[list[bool]]) -> list[int]:
        result = []
        for scores, mine in zip(rows, own, strict=True):
            order = sorted(range(len(scores)), key=lambda j: (-scores[j], mine[j]))
            # Own candidates do not compete with each other: only foreign ones before the first own one count.
            result.append(next(place for place, j in enumerate(order, 1) if mine[j]))
        return result

    return (
        ranks(similarity.tolist(), positives.tolist()),
        ranks(similarity.T.tolist(), positives.T.tolist()),
    )


def several_captions(n: int, seed: int) -> torch.Tensor:
    """(M,) owners: every image has one to four captions, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.arange(n).repeat_interleave(torch.randint(1, 5, (n,), generator=generator))
    return owners[torch.randperm(len(owners), generator=generator)]


def positives_of(owners: torch.Tensor, n: int) -> torch.Tensor:
    return torch.arange(n)[:, None] == owners


def test_ranks_worked_by_hand() -> None:
    # Two images, three captions; captions 0 and 2 belong to image 0.
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.4]])
    positives = torch.tensor([[True, False, True], [False, True, False]])
    image_to_text, text_to_image = metrics.retrieval_ranks(similarity, positives)
    assert image_to_text.tolist() == [2, 3]  # 0.5 stands behind 0.9; 0.2 behind 0.3 and 0.4
    assert text_to_image.tolist() == [2, 2, 1]


def test_own_captions_do_not_compete() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.85], [0.0, 0.0, 0.1]])
    ranks = metrics.retrieval_ranks(similarity, torch.tensor([[True, True, False], [False, False, True]]))
    assert ranks.image_to_text.tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 1000])
def test_ranks_equal_brute_force(seed: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 100)  # several chunks, the last one shorter
    n = 13
    positives = positives_of(several_captions(n, seed), n)
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(levels, positives.shape, generator=generator) / levels  # 3 levels: many ties
    ranks = metrics.retrieval_ranks(similarity, positives)
    expected = brute_ranks(similarity, positives)
    assert ranks.image_to_text.tolist() == expected[0]
    assert ranks.text_to_image.tolist() == expected[1]


def test_ranks_with_several_images_a_text() -> None:
    generator = torch.Generator().manual_seed(3)
    positives = (torch.rand(9, 9, generator=generator) < 0.3) | torch.eye(9, dtype=torch.bool)
    similarity = torch.randint(4, (9, 9), generator=generator).float()
    ranks = metrics.retrieval_ranks(similarity, positives)
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == brute_ranks(similarity, positives)


def test_ranks_from_embeddings_equal_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 17
    owners = several_captions(n, 1)
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(n, 8, generator=generator), torch.randn(len(owners), 8, generator=generator)
    expected = metrics.retrieval_ranks((image.double() @ text.double().T).float(), positives_of(owners, n))
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 4 * len(owners))
    ranks = metrics.retrieval_ranks_from_embeddings(image, text, owners)
    assert torch.equal(ranks.image_to_text, expected.image_to_text)
    assert torch.equal(ranks.text_to_image, expected.text_to_image)


def test_cosine_matrix_is_the_product_and_ties_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", 30)
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(13, 8, generator=generator), torch.randn(7, 8, generator=generator)
    torch.testing.assert_close(metrics.cosine_matrix(image, text), image @ text.T)
    one = torch.nn.functional.normalize(torch.randn(1, 513, generator=generator), dim=1)
    assert metrics.cosine_matrix(one.repeat(99, 1), one.repeat(17, 1)).unique().numel() == 1
    assert metrics.cosine_matrix(torch.zeros(0, 8), text).shape == (0, 7)


@pytest.mark.parametrize("n", [7, 100])
def test_a_collapsed_model_never_hits(n: int) -> None:
    owners = several_captions(n, 2)
    # Several points to collapse to: whether a product in float32 would round down or up depends on them.
    for embedding in torch.nn.functional.normalize(torch.randn(20, 333, generator=torch.Generator().manual_seed(n))):
        ranks = metrics.retrieval_ranks_from_embeddings(
            embedding.repeat(n, 1), embedding.repeat(len(owners), 1), owners
        )
        assert ranks.image_to_text.tolist() == (1 + len(owners) - torch.bincount(owners)).tolist()
        assert ranks.text_to_image.tolist() == [n] * len(owners)


def test_a_score_that_is_no_number_misses() -> None:
    similarity = torch.full((3, 3), torch.nan)
    ranks = metrics.retrieval_ranks(similarity, torch.eye(3, dtype=torch.bool))
    assert ranks.image_to_text.tolist() == [3, 3, 3] and ranks.text_to_image.tolist() == [3, 3, 3]
    assert metrics.top_k_accuracy(similarity, torch.arange(3), 1) == 0
    assert (metrics.predictions(similarity, torch.arange(3)) != torch.arange(3)).all()


def test_ranks_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"image \(row\) 1 has no positive"):
        metrics.retrieval_ranks(torch.zeros(2, 2), torch.tensor([[True, True], [False, False]]))
    with pytest.raises(ValueError, match=r"text \(column\) 0 has no positive"):
        metrics.retrieval_ranks(torch.zeros(2, 2), torch.tensor([[False, True], [False, True]]))
    with pytest.raises(ValueError, match=r"image \(row\) 1 has no positive"):
        metrics.retrieval_ranks_from_embeddings(torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        metrics.retrieval_ranks_from_embeddings(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="image_of_text"):
        metrics.retrieval_ranks_from_embeddings(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 1]))


def test_recall_and_median_by_hand() -> None:
    ranks = torch.tensor([1, 2, 5, 11])
    assert [metrics.recall_at_k(ranks, k) for k in (1, 5, 10)] == [0.25, 0.75, 0.75]
    assert metrics.median_rank(ranks) == 3.5
    assert metrics.median_rank(torch.tensor([9, 1, 4])) == 4
    with pytest.raises(ValueError, match="at least one rank"):
        metrics.recall_at_k(torch.tensor([]), 1)
    with pytest.raises(ValueError, match="at least one rank"):
        metrics.median_rank(torch.tensor([]))


@pytest.mark.parametrize(("candidates", "own", "k"), [(8, 1, 3), (8, 3, 2), (8, 3, 6), (4, 4, 1), (6, 2, 9)])
def test_chance_counts_the_draws(candidates: int, own: int, k: int) -> None:
    draws = list(combinations(range(candidates), min(k, candidates)))
    hits = [min(draw) < own for draw in draws]  # the items below `own` are the own ones
    assert metrics.chance_recall_at_k(candidates, own, k) == sum(hits) / len(hits)


def test_chance_of_one_own_item_is_k_over_n() -> None:
    assert metrics.chance_recall_at_k(1000, 1, 10) == 0.01
    with pytest.raises(ValueError, match="own=0"):
        metrics.chance_recall_at_k(10, 0, 1)


def scores_and_labels(seed: int, samples: int = 300, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator).square() // classes  # uneven classes
    scores = torch.randn(samples, classes, generator=generator)
    return scores + 1.5 * torch.nn.functional.one_hot(labels, classes), labels


@pytest.mark.filterwarnings("ignore:y_pred contains classes")  # on purpose: two classes have no samples
@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_sklearn(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    predicted = metrics.predictions(scores, labels)
    assert torch.equal(predicted, scores.argmax(1))  # no ties here
    confusion = metrics.confusion_matrix(predicted, labels, 7)
    assert confusion.tolist() == sklearn_confusion(labels, predicted, labels=range(7)).tolist()
    assert metrics.mean_per_class_recall(confusion) == pytest.approx(balanced_accuracy_score(labels, predicted))
    for k in (1, 2, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
        assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_a_class_without_samples_is_left_out_of_the_mean() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    assert metrics.per_class_recall(confusion)[1].isnan()
    assert metrics.mean_per_class_recall(confusion) == (0.75 + 0.5) / 2


def test_ties_between_classes_count_against() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 0])
    assert metrics.predictions(scores, labels).tolist() == [1, 1, 0]
    assert metrics.top_k_accuracy(scores, labels, 1) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, 2) == 1
    # All samples of class 0, all scores equal: argmax would call it 100%.
    assert metrics.top_k_accuracy(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), 3) == 0


def test_classification_checks_its_labels() -> None:
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        metrics.top_k_accuracy(torch.zeros(2, 3), torch.tensor([0, 3]), 1)
    with pytest.raises(ValueError, match="empty"):
        metrics.predictions(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        metrics.predictions(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
