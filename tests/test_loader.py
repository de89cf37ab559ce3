"""Which pairs make up a step: no repeats, every process its share, the same after a resume, bad pictures named."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from PIL import Image

from miniclip.config import DataConfig
from miniclip.data.images import BadImage
from miniclip.data.loader import Batch, TrainBatches, TrainingPairs, training_loader
from miniclip.data.transforms import Augment
from miniclip.tokenizer import Tokenizer


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


def pairs(source: Fake, *, cache: bool = True, on_bad: str = "stop", seed: int = 0) -> TrainingPairs:
    return TrainingPairs(source, Augment(16, flip=0.5), Tokenizer(), seed=seed, cache=cache, on_bad=on_bad)


def test_an_epoch_has_every_row_at_most_once() -> None:
    batches = list(TrainBatches(23, 5, seed=1, steps=8))
    first, second = batches[:4], batches[4:]
    for epoch, part in enumerate((first, second)):
        rows = [row for batch in part for _, row in batch]
        assert len(set(rows)) == 20
        assert {e for batch in part for e, _ in batch} == {epoch}
    assert [row for b in first for _, row in b] != [row for b in second for _, row in b]
    # what one epoch drops, others bring
    seen = Counter(row for batch in TrainBatches(23, 5, seed=1, steps=400) for _, row in batch)
    assert set(seen) == set(range(23))


@pytest.mark.parametrize("first_step", [0, 3, 4, 9])
def test_resume_goes_on_where_it_was(first_step: int) -> None:
    whole = list(TrainBatches(23, 5, seed=1, steps=12))
    rest = TrainBatches(23, 5, seed=1, steps=12, first_step=first_step)
    assert list(rest) == whole[first_step:]
    assert len(rest) == 12 - first_step


def test_processes_share_the_global_batch() -> None:
    whole = list(TrainBatches(30, 6, seed=2, steps=7))
    shares = [list(TrainBatches(30, 6, seed=2, steps=7, rank=rank, world=3)) for rank in range(3)]
    assert [a + b + c for a, b, c in zip(*shares, strict=True)] == whole


def test_errors_name_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"4 usable pictures, data\.batch_size is 5; use a batch of at most 4"):
        TrainBatches(4, 5, seed=0, steps=1)
    with pytest.raises(ValueError, match=r"data\.batch_size=250 is not divisible by 4 processes.*e\.g\. 248"):
        TrainBatches(1000, 250, seed=0, steps=1, world=4)


def load(source: TrainingPairs, workers: int = 0, steps: int = 5, first_step: int = 0) -> list[Batch]:
    batches = TrainBatches(len(source), 4, seed=source.seed, steps=steps, first_step=first_step)
    return list(training_loader(source, batches, DataConfig(batch_size=4, workers=workers), pin=False))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one[:4], two[:4], strict=True)
    )


def test_batches_do_not_depend_on_cache_workers_or_resume() -> None:
    reference = load(pairs(Fake(9)))
    assert same(reference, load(pairs(Fake(9), cache=False)))
    assert same(reference, load(pairs(Fake(9)), workers=2))
    assert same(reference[3:], load(pairs(Fake(9)), first_step=3))
    assert not same(reference, load(pairs(Fake(9), seed=1)))


def test_batch_contents() -> None:
    tokenizer = Tokenizer()
    drawn = Counter()
    for batch in load(pairs(Fake(9)), steps=40):
        assert batch.image.dtype == torch.uint8
        assert batch.image.shape == (4, 3, 16, 16)
        assert batch.image[:, 0, 0, 0].tolist() == batch.image_id.tolist()
        assert batch.text.shape[1] == int(batch.text.argmax(1).max()) + 1 < 77
        for row, tokens in zip(batch.image_id.tolist(), batch.text.tolist(), strict=True):
            text = tokenizer.decode([t for t in tokens if 0 < t < 49406]).strip()
            assert text in Fake(9).captions(row)
            drawn[text.startswith("the")] += 1
    assert min(drawn.values()) > 50  # both captions are drawn


def test_equal_captions_have_equal_ids() -> None:
    class Same(Fake):
        def captions(self, index: int) -> list[str]:
            return [f"caption {index % 2}"]

    (batch,) = load(pairs(Same(4)), steps=1)
    equal = batch.text_id[:, None] == batch.text_id
    assert torch.equal(equal, batch.image_id[:, None] % 2 == batch.image_id % 2)


def test_a_caption_may_hold_half_an_emoji() -> None:
    class Half(Fake):
        def captions(self, index: int) -> list[str]:
            return [f"picture {index} \ud83d"]

    (batch,) = load(pairs(Half(4)), steps=1)
    assert len(set(batch.text_id.tolist())) == 4


def test_a_cache_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr("miniclip.data.loader.SAMPLED", 3)
    per_picture = 18 * 23 * 3  # 16 x 20 with its shorter side at 9/8 of 16
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": per_picture * 9})())
    assert len(pairs(Fake(9))) == 9
    with pytest.raises(ValueError, match=r"10 pictures in 0\.0 GB.*data\.cache to false"):
        pairs(Fake(10))


@pytest.mark.parametrize("cache", [True, False])
def test_bad_pictures_stop_or_are_named(cache: bool) -> None:
    with pytest.raises(BadImage, match=r"row 3: cut short; .*data\.on_bad"):
        load(pairs(Fake(9, broken=(3,)), cache=cache), steps=2)
    source = pairs(Fake(9, broken=(3, 4)), cache=cache, on_bad="skip")
    batches = load(source, steps=2 * (len(source) // 4))
    assert not {3, 4} & {row for b in batches for row in b.image_id.tolist()}
    assert {*source.bad, *(name for b in batches for name in b.bad)} == {"row 3: cut short", "row 4: cut short"}
    assert len(source) == (7 if cache else 9)


def test_all_bad() -> None:
    source = pairs(Fake(4, broken=(0, 1, 2, 3)), cache=False, on_bad="skip")
    with pytest.raises(BadImage, match="no picture of the training split"):
        load(source, steps=1)
