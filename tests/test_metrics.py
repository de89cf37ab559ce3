"""Metrics against brute-force loops, scikit-learn and matrices worked by hand."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from miniclip.metrics import classification
from miniclip.metrics import retrieval as metrics


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


def brute_average_precision(similarity: torch.Tensor, positives: torch.Tensor) -> list[float]:
    """Walk down every row, the own candidates last among equals, and note the precision at each own one."""
    result = []
    for scores, mine in zip(similarity.tolist(), positives.tolist(), strict=True):
        precisions, foreign = [], 0
        for j in sorted(range(len(scores)), key=lambda j: (-scores[j], mine[j])):
            foreign += not mine[j]
            if mine[j]:
                precisions.append((len(precisions) + 1) / (len(precisions) + 1 + foreign))
        result.append(sum(precisions) / len(precisions))
    return result


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
    image_to_text, text_to_image, precision = metrics.retrieval_ranks(similarity, positives)
    assert image_to_text.tolist() == [2, 3]  # 0.5 stands behind 0.9; 0.2 behind 0.3 and 0.4
    assert text_to_image.tolist() == [2, 2, 1]
    # Image 0: 0.5 is the second of all, 0.1 the third and the second own one. Image 1: its one caption is the third.
    assert precision.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1 / 3], abs=1e-15)


def test_own_captions_do_not_compete() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.85], [0.0, 0.0, 0.1]])
    ranks = metrics.retrieval_ranks(similarity, torch.tensor([[True, True, False], [False, False, True]]))
    assert ranks.image_to_text.tolist() == [1, 1]


def same(ranks: metrics.RetrievalRanks, similarity: torch.Tensor, positives: torch.Tensor) -> bool:
    expected = brute_ranks(similarity, positives)
    precision = pytest.approx(brute_average_precision(similarity, positives), abs=1e-14)
    return (
        ranks.image_to_text.tolist() == expected[0]
        and ranks.text_to_image.tolist() == expected[1]
        and ranks.image_average_precision.tolist() == precision
    )


@pytest.mark.parametrize("tile", [1, 3, 7, 13, 1024])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("levels", [3, 1000])
def test_ranks_equal_brute_force(seed: int, levels: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", tile)  # 13 rows: several tiles, the last one shorter
    n = 13
    positives = positives_of(several_captions(n, seed), n)
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(levels, positives.shape, generator=generator) / levels  # 3 levels: many ties
    before = similarity.clone()
    assert same(metrics.retrieval_ranks(similarity, positives), similarity, positives)
    assert torch.equal(similarity, before)


@pytest.mark.parametrize("tile", [2, 1024])
def test_ranks_with_several_images_a_text(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", tile)
    generator = torch.Generator().manual_seed(3)
    positives = (torch.rand(9, 9, generator=generator) < 0.3) | torch.eye(9, dtype=torch.bool)
    similarity = torch.randint(4, (9, 9), generator=generator).float()
    assert same(metrics.retrieval_ranks(similarity, positives), similarity, positives)


def small_integers(n: int, owners: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings whose products are whole numbers: exact in any arithmetic, with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-1, 2, (n, 4), generator=generator).float(),
        torch.randint(-1, 2, (len(owners), 4), generator=generator).float(),
    )


@pytest.mark.parametrize("tile", [1, 5, 16, 17, 1024])
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_from_embeddings_equal_the_matrix(tile: int, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 17
    owners = several_captions(n, 1)
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(n, 8, generator=generator), torch.randn(len(owners), 8, generator=generator)
    if ties:
        image, text = small_integers(n, owners, 1)
    monkeypatch.setattr(metrics, "_TILE", tile)
    similarity = (image.double() @ text.double().T).float()
    assert same(metrics.retrieval_ranks_from_embeddings(image, text, owners), similarity, positives_of(owners, n))


@pytest.mark.parametrize("cuts", [(0, 17), (0, 1, 17), (0, 6, 12, 17), (0, 9, 9, 17)])
def test_shares_of_the_rows_add_up(cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", 4)
    owners = several_captions(17, 4)
    image, text = small_integers(17, owners, 4)
    whole = metrics.retrieval_ranks_from_embeddings(image, text, owners)
    shares = [metrics.retrieval_counts(image, text, owners, slice(a, b)) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat([share.image_to_text for share in shares]), whole.image_to_text)
    assert torch.equal(1 + sum(share.text_to_image - 1 for share in shares), whole.text_to_image)
    precision = torch.cat([share.image_average_precision for share in shares])
    assert torch.equal(precision, whole.image_average_precision)


def test_a_share_counts_the_foreign_images_in_it() -> None:
    # Text 0 belongs to image 0; images 1 and 2 are nearer to it, image 3 is not.
    image, text = torch.tensor([[2.0], [3.0], [4.0], [1.0]]), torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    owners = torch.arange(4)
    shares = [metrics.retrieval_counts(image, text, owners, slice(a, a + 1)).text_to_image for a in range(4)]
    assert [int(share[0]) for share in shares] == [1, 2, 2, 1]


def test_own_captions_that_tie_with_foreign_ones() -> None:
    # Captions 0, 1, 2 are the image's: 0.9 alone on top; 0.5 ties with two foreign ones; 0.1 is the last of all.
    similarity = torch.tensor([[0.9, 0.5, 0.1, 0.5, 0.5, 0.2], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    positives = torch.tensor([[True, True, True, False, False, False], [False, False, False, True, True, True]])
    ranks = metrics.retrieval_ranks(similarity, positives)
    assert ranks.image_to_text.tolist() == [1, 1]
    assert ranks.image_average_precision.tolist() == pytest.approx([(1 + 2 / 4 + 3 / 6) / 3, 1], abs=1e-15)


def test_one_image_and_one_caption() -> None:
    one = metrics.retrieval_ranks_from_embeddings(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([0]))
    assert [part.tolist() for part in one] == [[1], [1], [1.0]]
    several = metrics.retrieval_ranks_from_embeddings(torch.ones(1, 3), torch.ones(4, 3), torch.zeros(4).long())
    assert [part.tolist() for part in several] == [[1], [1, 1, 1, 1], [1.0]]  # no foreign one to lose to
    none = metrics.retrieval_ranks_from_embeddings(torch.ones(0, 3), torch.ones(0, 3), torch.zeros(0).long())
    assert [part.tolist() for part in none] == [[], [], []]
    assert [part.dtype for part in one] == [part.dtype for part in none] == [torch.int64, torch.int64, torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_count_the_same(dtype: torch.dtype) -> None:
    owners = several_captions(300, 5)  # 300: more than 256, where a sum in bfloat16 stops
    similarity = torch.randint(9, (300, len(owners)), generator=torch.Generator().manual_seed(5)).float()
    expected = metrics.retrieval_ranks(similarity, positives_of(owners, 300))
    for got, wanted in zip(
        metrics.retrieval_ranks(similarity.to(dtype), positives_of(owners, 300)), expected, strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_sklearn(seed: int) -> None:
    owners = several_captions(20, seed)
    similarity = torch.rand(20, len(owners), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    positives = positives_of(owners, 20)
    ranks = metrics.retrieval_ranks(similarity, positives)
    for scores, own, precision in zip(similarity, positives, ranks.image_average_precision.tolist(), strict=True):
        assert precision == pytest.approx(average_precision_score(own, scores), abs=1e-12)
    for text in range(len(owners)):  # one own image: the average precision is 1 / rank
        expected = average_precision_score(positives[:, text], similarity[:, text])
        assert 1 / int(ranks.text_to_image[text]) == pytest.approx(expected, abs=1e-12)


def clip_benchmark_recall(scores: torch.Tensor, positives: torch.Tensor, k: int) -> float:
    """Its definition: recall@k of a row is the share of its positives among topk; a hit is a recall above 0."""
    top = scores.topk(k, dim=1).indices
    found = torch.nn.functional.one_hot(top, scores.shape[1]).sum(1).bool() & positives
    recall = found.sum(1) / positives.sum(1)
    return (recall > 0).float().mean().item()


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("seed", range(3))
def test_recall_equals_clip_benchmark_without_ties(seed: int, k: int) -> None:
    n = 40
    owners = several_captions(n, seed)
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(n, 16, generator=generator), torch.randn(len(owners), 16, generator=generator)
    image, text = (torch.nn.functional.normalize(x) for x in (image, text + 0.4 * image[owners]))
    ranks = metrics.retrieval_ranks_from_embeddings(image, text, owners)
    scores, positives = image @ text.T, positives_of(owners, n)
    to_text, to_image = clip_benchmark_recall(scores, positives, k), clip_benchmark_recall(scores.T, positives.T, k)
    assert 0 < to_text < 1 and 0 < to_image < 1
    assert metrics.recall_at_k(ranks.image_to_text, k) == pytest.approx(to_text, abs=1e-6)
    assert metrics.recall_at_k(ranks.text_to_image, k) == pytest.approx(to_image, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_with_ties_ours_is_the_pessimistic_one(seed: int) -> None:
    n = 30
    owners = several_captions(n, seed)
    positives = positives_of(owners, n)
    scores = torch.randint(4, positives.shape, generator=torch.Generator().manual_seed(seed)).float()
    ranks = metrics.retrieval_ranks(scores, positives)
    for k in (1, 5, 10):
        ours = metrics.recall_at_k(ranks.image_to_text, k), metrics.recall_at_k(ranks.text_to_image, k)
        theirs = clip_benchmark_recall(scores, positives, k), clip_benchmark_recall(scores.T, positives.T, k)
        # The worst order of equal scores is its arithmetic after own scores were lowered by less than a level.
        worst = scores - 0.5 * positives
        assert ours[0] <= theirs[0] and ours[1] <= theirs[1]
        assert ours[0] == pytest.approx(clip_benchmark_recall(worst, positives, k), abs=1e-6)
        assert ours[1] == pytest.approx(clip_benchmark_recall(worst.T, positives.T, k), abs=1e-6)


def test_cosine_matrix_is_the_product_and_ties_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_TILE", 5)
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
    assert ranks.image_average_precision.tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
    assert classification.top_k_accuracy(similarity, torch.arange(3), 1) == 0
    assert (classification.predictions(similarity, torch.arange(3)) != torch.arange(3)).all()


def test_one_score_that_is_no_number() -> None:
    nan = torch.nan
    positives = torch.tensor([[True, True, False, False], [False, False, True, True]])
    # Image 0: the own NaN comes last, behind both foreign ones. Image 1: the foreign NaN stands before both own ones.
    similarity = torch.tensor([[0.9, nan, 0.5, 0.1], [nan, 0.0, 0.8, 0.7]])
    ranks = metrics.retrieval_ranks(similarity, positives)
    assert ranks.image_to_text.tolist() == [1, 2]
    assert ranks.text_to_image.tolist() == [2, 2, 1, 1]
    expected = [(1 + 2 / 4) / 2, (1 / 2 + 2 / 3) / 2]
    assert ranks.image_average_precision.tolist() == pytest.approx(expected, abs=1e-15)
    image, text, owners = torch.eye(2), torch.tensor([[1.0, 0.0], [nan, 0.0], [0.0, 1.0], [0.0, 1.0]]), [0, 0, 1, 1]
    ranks = metrics.retrieval_ranks_from_embeddings(image, text, torch.tensor(owners))
    assert ranks.image_to_text.tolist() == [1, 2] and ranks.text_to_image.tolist() == [1, 2, 1, 1]


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


@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_sklearn(seed: int) -> None:
    scores, labels = scores_and_labels(seed)
    predicted = classification.predictions(scores, labels)
    assert torch.equal(predicted, scores.argmax(1))  # no ties here
    for k in (1, 2, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
        assert classification.top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_ties_between_classes_count_against() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 0])
    assert classification.predictions(scores, labels).tolist() == [1, 1, 0]
    assert classification.top_k_accuracy(scores, labels, 1) == pytest.approx(1 / 3)
    assert classification.top_k_accuracy(scores, labels, 2) == 1
    assert classification.class_ranks(scores, labels).tolist() == [2, 2, 1]
    # All samples of class 0, all scores equal: argmax would call it 100%.
    assert classification.top_k_accuracy(torch.zeros(5, 4), torch.zeros(5, dtype=torch.int64), 3) == 0


def test_classification_checks_its_labels() -> None:
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        classification.top_k_accuracy(torch.zeros(2, 3), torch.tensor([0, 3]), 1)
    with pytest.raises(ValueError, match="empty"):
        classification.predictions(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels \(N,\)"):
        classification.predictions(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
