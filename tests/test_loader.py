"""Which pairs make up a step: no repeats, every process its share, the same after a resume, bad pictures named."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.config import DataConfig
from miniclip.data.augment import Augment
from miniclip.data.cache.prepared import prepare
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainingPairs, ahead, training_loader
from miniclip.data.sampler import Draw, TrainSampler, apportion
from miniclip.models.tokenizer import Tokenizer


class Fake:
    """Pictures of one colour each, two captions each; the rows in `broken` cannot be read."""

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise BadImage(f"row {index}: cut short")
        return Image.new("RGB", (20, 16), (index, 0, 0))

    def captions(self, index: int) -> list[str]:
        return [f"picture {index}", f"the long and winding second caption of picture number {index}"]

    def name(self, index: int) -> str:
        return f"row {index}"

    def fingerprint(self) -> str:
        return f"{type(self).__qualname__} {self.size} {self.broken}"


def pairs(
    source: Fake,
    *,
    cache: bool = True,
    seed: int = 0,
    captions: int = 1,
    weights: torch.Tensor | None = None,
) -> TrainingPairs:
    return pairs_of(source, Augment(16, flip=0.5), cache, seed=seed, captions=captions, weights=weights)


def pairs_of(source: Fake, augment: Augment, cache: bool, **options: Any) -> TrainingPairs:
    prepared = None
    if cache:
        label = type(source).__name__
        prepared = prepare(source, augment, Tokenizer(), folder=None, label=label, allowed=1, progress=False)
    return TrainingPairs(source, augment, Tokenizer(), prepared=prepared, **options)


def test_an_epoch_has_every_row_at_most_once() -> None:
    batches = list(TrainSampler(23, 5, seed=1, steps=8))
    first, second = batches[:4], batches[4:]
    for epoch, part in enumerate((first, second)):
        rows = [row for batch in part for _, row in batch]
        assert len(set(rows)) == 20
        assert {e for batch in part for e, _ in batch} == {epoch}
    assert [row for b in first for _, row in b] != [row for b in second for _, row in b]
    # what one epoch drops, others bring
    seen = Counter(row for batch in TrainSampler(23, 5, seed=1, steps=400) for _, row in batch)
    assert set(seen) == set(range(23))


@pytest.mark.parametrize("first_step", [0, 3, 4, 9])
def test_resume_goes_on_where_it_was(first_step: int) -> None:
    whole = list(TrainSampler(23, 5, seed=1, steps=12))
    assert list(TrainSampler(23, 5, seed=1, steps=12, first_step=first_step)) == whole[first_step:]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(6, [2, 2, 2]), (64, [22, 21, 21]), (7, [2, 2, 2, 1]), (5, [1, 1, 1, 1, 1]), (9, [9])]
)
def test_processes_share_the_global_batch(batch_size: int, sizes: list[int], weighted: bool) -> None:
    rows, world = 2 * batch_size + 1, len(sizes)
    draw_weights = torch.arange(1.0, rows + 1) if weighted else None
    whole = list(TrainSampler(rows, batch_size, seed=2, steps=7, draw_weights=draw_weights))
    shares = [
        list(TrainSampler(rows, batch_size, seed=2, steps=7, rank=rank, world=world, draw_weights=draw_weights))
        for rank in range(world)
    ]
    assert [[len(batch) for batch in share] for share in shares] == [[size] * 7 for size in sizes]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("draw_weights", [None, torch.arange(1.0, 10)])
def test_uneven_shares_make_up_the_batch_of_one_process(draw_weights: torch.Tensor | None) -> None:
    """Of 4 pictures with 2 captions each, three processes take 2, 1 and 1: pixels, captions, identities and weights."""

    def batch(rank: int, world: int) -> Batch:
        source = pairs(Fake(9), captions=2, weights=torch.arange(9.0))
        batches = TrainSampler(9, 4, seed=3, steps=1, rank=rank, world=world, draw_weights=draw_weights)
        return next(iter(training_loader(source, batches, DataConfig(batch_size=4), pin=False)))

    whole, parts = batch(0, 1), [batch(rank, 3) for rank in range(3)]
    assert [len(part.image_id) for part in parts] == [2, 1, 1]
    for name in ("image", "image_id", "text_id", "weight"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    texts = [row[row > 0].tolist() for part in parts for row in part.text]  # each is padded to its own longest
    assert texts == [row[row > 0].tolist() for row in whole.text]


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"4 usable images, data\.batch_size is 5; use a batch of at most 4"):
        TrainSampler(4, 5, seed=0, steps=1)
    with pytest.raises(ValueError, match=r"^the training split has 1 usable .* it needs at least 2$"):
        TrainSampler(1, 2, seed=0, steps=1)
    assert len(next(iter(TrainSampler(1000, 4, seed=0, steps=1, rank=3, world=4)))) == 1


def load(
    source: TrainingPairs,
    workers: int = 0,
    steps: int = 5,
    first_step: int = 0,
    draw_weights: torch.Tensor | None = None,
) -> list[Batch]:
    batches = TrainSampler(
        len(source), 4, seed=source.seed, steps=steps, first_step=first_step, draw_weights=draw_weights
    )
    return list(training_loader(source, batches, DataConfig(batch_size=4, workers=workers), pin=False))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one[:5], two[:5], strict=True)
    )


@pytest.mark.parametrize(("captions", "draw_weights"), [(1, None), (3, None), (1, torch.arange(9.0))])
def test_batches_do_not_depend_on_cache_workers_or_resume(captions: int, draw_weights: torch.Tensor | None) -> None:
    reference = load(pairs(Fake(9), captions=captions), draw_weights=draw_weights)
    assert same(reference, load(pairs(Fake(9), captions=captions, cache=False), draw_weights=draw_weights))
    assert same(reference, load(pairs(Fake(9), captions=captions), workers=2, draw_weights=draw_weights))
    assert same(reference[3:], load(pairs(Fake(9), captions=captions), first_step=3, draw_weights=draw_weights))
    assert not same(reference, load(pairs(Fake(9), captions=captions, seed=1), draw_weights=draw_weights))


def test_batch_contents() -> None:
    drawn: Counter[bool] = Counter()
    for batch in load(pairs(Fake(9)), steps=40):
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape == (4, 3, 16, 16)
        assert batch.image[:, 0, 0, 0].tolist() == batch.image_id.tolist()
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert batch.lengths == (batch.text.argmax(1) + 1).tolist()
        assert batch.text.shape[1] == max(batch.lengths) < 77
        assert batch.look.shape == (4, 1) and set(batch.look.flatten().tolist()) <= {-1.0, 1.0}
        for row, (text,) in zip(batch.image_id.tolist(), texts_of(batch), strict=True):
            assert text in Fake(9).captions(row)
            drawn[text.startswith("the")] += 1
    assert min(drawn.values()) > 50  # both captions are drawn


def test_equal_captions_have_equal_ids() -> None:
    class Same(Fake):
        def captions(self, index: int) -> list[str]:
            return [f"caption {index % 2}"]

    (batch,) = load(pairs(Same(4)), steps=1)
    assert batch.text_id.shape == (4, 1)
    assert torch.equal(batch.text_id == batch.text_id.T, batch.image_id[:, None] % 2 == batch.image_id % 2)


def test_a_caption_may_hold_half_an_emoji() -> None:
    class Half(Fake):
        def captions(self, index: int) -> list[str]:
            return [f"picture {index} \ud83d"]

    (batch,) = load(pairs(Half(4)), steps=1)
    assert len(set(batch.text_id.flatten().tolist())) == 4


# ---- several captions a picture


class Many(Fake):
    """Five captions a picture; that a caption is of picture 12 and the third reads 'photo 12 c'."""

    def captions(self, index: int) -> list[str]:
        return [f"photo {index} {letter}" for letter in "abcde"]


def texts_of(batch: Batch) -> list[list[str]]:
    """The captions of each picture, read back from the tokens: row j belongs to picture j // K."""
    tokenizer = Tokenizer()
    texts = [tokenizer.decode([t for t in tokens if 0 < t < 49406]).strip() for tokens in batch.text.tolist()]
    captions = len(texts) // len(batch.image_id)
    return [texts[i : i + captions] for i in range(0, len(texts), captions)]


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("captions", [2, 5, 7, 12])
def test_no_caption_comes_twice_before_all_had_their_turn(captions: int, cache: bool) -> None:
    drawn: Counter[tuple[int, str]] = Counter()
    orders = set()
    for batch in load(pairs(Many(9), captions=captions, cache=cache), steps=100):
        assert batch.text.shape[0] == 4 * captions and batch.text_id.shape == (4, captions)
        assert batch.image.shape[0] == 4
        for row, texts in zip(batch.image_id.tolist(), texts_of(batch), strict=True):
            assert len(texts) == captions and set(texts) <= set(Many(9).captions(row))
            for start in range(0, captions, 5):
                part = texts[start : start + 5]
                assert len(set(part)) == len(part)
            letters = "".join(text[-1] for text in texts)
            drawn.update(enumerate(letters))
            orders.add(letters)
    # 400 draws: each of 5 letters comes 80 times at each place, give or take 8
    assert min(drawn.values()) > 40 and max(drawn.values()) < 120 and len(drawn) == 5 * captions
    assert len(orders) > 15


def test_each_caption_has_its_own_identity() -> None:
    first = load(pairs(Many(9), captions=7), steps=20)
    found: dict[str, int] = {}
    for batch in first:
        for texts, ids in zip(texts_of(batch), batch.text_id.tolist(), strict=True):
            for text, identity in zip(texts, ids, strict=True):
                assert found.setdefault(text, identity) == identity  # equal captions have equal identities
    assert len(set(found.values())) == len(found) == 9 * 5  # and different ones different


def seed_of(*numbers: int) -> int:
    """Written out once more: the upper 63 bits of BLAKE2b's first 8 bytes, of the numbers in decimal."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def test_one_caption_is_drawn_by_choice() -> None:
    """Transform, then random.choice, from a generator seeded with (seed, epoch, row): the draws of every release."""
    augment, row_of = Augment(16, flip=0.5), Many(9)
    choices = set()
    draws = TrainSampler(9, 4, seed=5, steps=6)
    for batch, wanted in zip(load(pairs(Many(9), seed=5), steps=6), draws, strict=True):
        for i, (epoch, row) in enumerate(wanted):
            rng = random.Random(seed_of(5, epoch, row))
            square = augment.square(np.asarray(augment.store(row_of.image(row))), rng)
            assert torch.equal(batch.image[i], torch.from_numpy(np.array(square)).permute(2, 0, 1))
            assert batch.look[i].tolist() == augment.look(rng)
            choices.add(text := rng.choice(row_of.captions(row)))
            assert texts_of(batch)[i] == [text]
    assert {text[-1] for text in choices} == set("abcde")


# ---- a weighted sampler


def chi_square(counts: Counter[int], expected: dict[int, float]) -> float:
    return sum((counts[row] - wanted) ** 2 / wanted for row, wanted in expected.items())


def drawn_rows(batches: TrainSampler) -> list[int]:
    return [draw[1] for batch in batches for draw in batch]


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    """20,000 draws; weights 0 to 4 by turns, so that a row of weight w is drawn 10 w times on average."""
    weights = torch.arange(1000) % 5
    rows = Counter(drawn_rows(TrainSampler(1000, 100, seed=1, steps=200, draw_weights=weights.float())))
    assert sum(rows.values()) == 20_000
    assert not [row for row in rows if row % 5 == 0]
    classes = Counter(row % 5 for row in rows.elements())
    assert chi_square(classes, {w: 2000.0 * w for w in range(1, 5)}) < 11.34  # 3 degrees of freedom, 1%
    # 799 degrees of freedom: 799 +- 40. Draws without replacement would be far below it, unfair ones far above.
    assert 680 < chi_square(rows, {row: 10.0 * (row % 5) for row in range(1000) if row % 5}) < 920


def test_weighted_draws_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights 0, 1, 0, 3, 0 divide [0, 1) at 1/4 between rows 1 and 3; the borders fall to no row of weight 0."""
    uniform = torch.tensor([0, 0.2499, 0.25, 0.6, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda size, **_: uniform[:size])
    weights = torch.tensor([0.0, 1, 0, 3, 0])
    assert drawn_rows(TrainSampler(5, 5, seed=0, steps=1, draw_weights=weights)) == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("alone", [0, 2, 5])
def test_a_row_of_weight_0_is_never_drawn(alone: int) -> None:
    weights = torch.zeros(6)
    weights[alone] = 0.3
    assert set(drawn_rows(TrainSampler(6, 3, seed=0, steps=50, draw_weights=weights))) == {alone}


def test_the_weighted_order_is_a_function_of_seed_and_epoch() -> None:
    weights = torch.tensor([1.0, 0, 3, 2, 5, 1, 1, 8, 0.5, 2, 2, 4])

    def order(batch_size: int = 4, seed: int = 1, times: float = 1) -> list[Draw]:
        batches = TrainSampler(12, batch_size, seed=seed, steps=60 // batch_size, draw_weights=times * weights)
        return [draw for batch in batches for draw in batch]

    torch.manual_seed(1)
    first = order()
    torch.manual_seed(2)
    assert order() == order(batch_size=6) == order(batch_size=12) == order(times=4) == first
    assert [(epoch, place) for epoch, _, place in first] == [(e, p) for e in range(5) for p in range(12)]
    epochs = [[row for e, row, _ in first if e == epoch] for epoch in range(5)]
    assert len(set(map(tuple, epochs))) == 5
    assert [row for _, row, _ in order(seed=2)] != [row for _, row, _ in first]
    assert any(len(set(epoch)) < 12 for epoch in epochs)  # draws with replacement


@pytest.mark.parametrize("first_step", [0, 2, 3, 7])
def test_weighted_draws_go_on_after_a_resume(first_step: int) -> None:
    weights = torch.arange(1.0, 15)
    whole = list(TrainSampler(14, 4, seed=1, steps=9, draw_weights=weights))
    assert list(TrainSampler(14, 4, seed=1, steps=9, first_step=first_step, draw_weights=weights)) == whole[first_step:]


@pytest.mark.parametrize("cache", [True, False])
def test_a_row_that_comes_twice_is_seen_in_two_ways(cache: bool) -> None:
    class Noise(Many):
        def image(self, index: int) -> Image.Image:
            return Image.frombytes("RGB", (40, 40), random.Random(index).randbytes(40 * 40 * 3))

    source = pairs_of(Noise(9), Augment(16, "resized_crop"), cache, seed=0, captions=2)
    batches = load(source, steps=10, draw_weights=torch.eye(9)[6])
    assert all(batch.image_id.tolist() == [6] * 4 for batch in batches)
    seen = Counter(picture.numpy().tobytes() for batch in batches for picture in batch.image)
    assert len(seen) == 40
    assert len({tuple(texts) for batch in batches for texts in texts_of(batch)}) > 12  # of 20 ordered pairs
    # within one epoch, too
    assert len({tuple(texts) for batch in batches[:2] for texts in texts_of(batch)}) > 2
    assert same(batches, load(source, steps=10, draw_weights=torch.eye(9)[6]))


# ---- weights of the pictures


def test_no_weights_no_weight() -> None:
    assert all(batch.weight is None for batch in load(pairs(Fake(9))))


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("broken", [(), (0,), (8,), (3, 4), (0, 1, 2, 5, 8)])
def test_weights_are_those_of_the_pictures_in_the_batch(cache: bool, broken: tuple[int, ...]) -> None:
    """Also where others are left out of the cache, or are replaced as they come up."""
    weights = torch.tensor([float(square) for square in accumulate(range(1, 18, 2))])  # 1, 4, 9, ...
    source = pairs(Fake(9, broken), cache=cache, captions=2, weights=weights)
    assert len(source) == (9 - len(broken) if cache else 9)
    seen: Counter[int] = Counter()
    batches = load(source, steps=12)
    for batch in batches:
        assert batch.weight is not None and batch.weight.dtype == torch.float32
        shown = batch.image[:, 0, 0, 0].tolist()  # the red of a picture is its row
        assert batch.image_id.tolist() == shown
        assert batch.weight.tolist() == [float((row + 1) ** 2) for row in shown]
        for row, texts in zip(shown, texts_of(batch), strict=True):
            assert all(text.endswith(f" {row}") for text in texts)
        seen.update(shown)
    assert set(seen) == set(range(9)) - set(broken)
    assert any(b.bad for b in batches) == (not cache and bool(broken))


def test_the_sampler_goes_by_the_pictures_that_are_left() -> None:
    """A picture that is left out of the cache moves the ones after it: rows says which weights remain."""
    weights = torch.tensor([0.0, 2, 9, 0, 1, 0, 0, 0, 0])
    source = pairs(Fake(9, broken=(0, 2)), weights=weights)
    batches = load(source, steps=20, draw_weights=weights[source.rows])
    drawn = Counter(row for batch in batches for row in batch.image_id.tolist())
    assert set(drawn) == {1, 4} and 40 < drawn[1] < 66  # 53.3 +- 4.2 of 80


@pytest.mark.parametrize("cache", [True, False])
def test_bad_pictures_are_named(cache: bool) -> None:
    source = pairs(Fake(9, broken=(3, 4)), cache=cache)
    batches = load(source, steps=2 * (len(source) // 4))
    assert not {3, 4} & {row for b in batches for row in b.image_id.tolist()}
    named = source.prepared.bad if source.prepared is not None else [name for b in batches for name in b.bad]
    assert set(named) == {"row 3: cut short", "row 4: cut short"}
    assert len(source) == (7 if cache else 9)


def test_all_bad() -> None:
    source = pairs(Fake(4, broken=(0, 1, 2, 3)), cache=False)
    with pytest.raises(BadImage, match="no image of the training split"):
        load(source, steps=1)


# ---- several sources


@pytest.mark.parametrize("mixing", [[1, 1], [0.7, 0.2, 0.1], [3, 2, 2, 1], [0.99, 0.01]])
def test_shares_of_sources_add_up_and_never_fall(mixing: list[float]) -> None:
    counts = np.array([apportion(total, mixing) for total in range(2000)])
    assert (counts.sum(1) == np.arange(2000)).all()
    assert (np.diff(counts, axis=0) >= 0).all()
    exact = np.outer(np.arange(2000), np.array(mixing) / sum(mixing))
    assert np.abs(counts - exact).max() <= (len(mixing) - 1) / 2 + 1e-9


def test_shares_of_sources_by_hand() -> None:
    assert [apportion(total, [3, 1]) for total in (4, 8, 100)] == [[3, 1], [6, 2], [75, 25]]
    assert [apportion(total, [1, 1]) for total in (3, 6, 9)] == [[2, 1], [3, 3], [5, 4]]  # halves go up


@pytest.mark.parametrize("world", [1, 3])
def test_each_source_has_epochs_of_its_own(world: int) -> None:
    """10 rows and 30 rows, half and half: the first source comes round three times as often."""

    def batches(first_step: int = 0) -> list[list[Draw]]:
        shares = [
            list(
                TrainSampler(
                    *(40, 8),
                    seed=3,
                    steps=15,
                    first_step=first_step,
                    rank=rank,
                    world=world,
                    sizes=[10, 30],
                    mixing=[0.5, 0.5],
                )
            )
            for rank in range(world)
        ]
        return [list(chain(*parts)) for parts in zip(*shares, strict=True)]

    drawn = batches()
    for batch in drawn:
        assert len(batch) == 8 and sum(row < 10 for _, row in batch) == 4
    seen = Counter(draw for batch in drawn for draw in batch)
    assert set(seen.values()) == {1}
    assert {draw for draw in seen if draw[1] < 10} == {(epoch, row) for epoch in range(6) for row in range(10)}
    assert {draw for draw in seen if draw[1] >= 10} == {(epoch, row) for epoch in range(2) for row in range(10, 40)}
    assert batches(first_step=7) == drawn[7:]
    # the last process does not get the last source
    assert len({tuple(row < 10 for _, row in batch) for batch in drawn}) > 5


def test_wrong_mixing() -> None:
    for sizes, mixing in (([4, 5], [1, 1]), ([10], [1, 1]), ([10, 0], [1, 1])):
        with pytest.raises(ValueError, match="mixing takes one size"):
            TrainSampler(10, 2, seed=0, steps=1, sizes=sizes, mixing=mixing)


# ---- reading ahead


def test_reading_ahead_keeps_the_order_and_brings_errors_in_their_place() -> None:
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter([1]))) == [1]

    def items() -> Iterator[int]:
        yield from (1, 2)
        raise BadImage("row 3: cut short")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(BadImage, match="row 3"):
        next(found)
    assert list(found) == []


def test_no_more_is_read_than_the_depth_and_closing_ends_the_thread() -> None:
    taken: list[int] = []
    threads = threading.active_count()
    found = ahead(taken.append(i) or i for i in range(1000))  # type: ignore[func-returns-value]
    assert next(found) == 0
    deadline = time.monotonic() + 10
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 4  # handed out, and three ahead
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
