"""The audit finds what was planted: twins, leaks, cut captions, broken pictures; and its outputs say so."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Image as ImageFeature
from PIL import Image
from support.files import encoded, write_csv, write_parquet, write_tar

from miniclip.cli.eval import main as eval_main
from miniclip.cli.train import train_main
from miniclip.data.audit import figures
from miniclip.data.audit.command import audit, main

ESCAPE = "\x1b[31m\x9b31m"  # also the one-character form
LONG = "a very long caption with far more words than a context of eight tokens can hold"
OPTIONS: dict[str, Any] = {"context_length": 8, "image_size": 60, "batch_size": 4}


def image(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    field = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(field).resize(size, Image.Resampling.BICUBIC)


def write_table(folder: Path, *rows: tuple[str, ...]) -> Path:
    """A table of file names, captions and splits, with an image for each name that has no file yet."""
    folder.mkdir(exist_ok=True)
    for seed, row in enumerate(rows):
        if not (folder / row[0]).exists():
            image(seed).save(folder / row[0])
    write_csv(folder / "metadata.csv", [("file_name", "caption", "split")[: len(rows[0])], *rows])
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the rows below say: copies, t1.jpg shrunk and saved again, t3.jpg as PNG at double size, no image, no file."""
    folder = tmp_path_factory.mktemp("planted")
    for seed, name in enumerate(("t0", "t1", "t2", "t3", "t4", "t5", "t6", "v0", "e0")):
        image(seed).save(folder / f"{name}.jpg")
    shutil.copy(folder / "t0.jpg", folder / "copy.jpg")
    shutil.copy(folder / "t2.jpg", folder / "v1.jpg")
    Image.open(folder / "t1.jpg").resize((48, 32)).save(folder / "half.jpg", quality=75)
    Image.open(folder / "t3.jpg").resize((192, 128)).save(folder / f"leak{ESCAPE}.png")
    (folder / f"bad{ESCAPE}.jpg").write_bytes(b"no picture")
    write_table(
        folder,
        *((f"t{i}.jpg", f"picture number {i} of train", "train") for i in range(7)),
        ("copy.jpg", "Picture number 1, of TRAIN!", "train"),
        ("half.jpg", LONG, "train"),
        (f"bad{ESCAPE}.jpg", "\x1b[31mred [bold]words", "train"),
        ("v0.jpg", "validation", "validation"),
        ("v1.jpg", "PICTURE number 2 of train", "validation"),
        ("gone.jpg", "not there", "validation"),
        ("e0.jpg", "first of test", "test"),
        (f"leak{ESCAPE}.png", "second of test", "test"),
    )
    (folder / "gone.jpg").unlink()
    return folder


def found(*data: Path, **options: Any) -> dict[str, Any]:
    """What the JSON holds."""
    with tempfile.TemporaryDirectory() as folder:
        audit([str(one) for one in data], json=f"{folder}/found.json", **options)
        values: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return values


@pytest.fixture(scope="module")
def result(planted: Path) -> dict[str, Any]:
    return found(planted, **OPTIONS)


def of(values: dict[str, Any], first: str, second: str) -> Any:
    return next(pair for pair in values["shared"] if (pair["first"], pair["second"]) == (first, second))


def told(values: dict[str, Any], names: str) -> list[Any]:
    return [values[name] for name in names.split()]


def counts(values: dict[str, Any], first: str, second: str) -> list[int]:
    return told(of(values, first, second), "identical_pairs near_pairs second_pictures second_captions")


def twins(values: dict[str, Any], first: str, second: str) -> list[list[Any]]:
    return [told(twin, "row twin_row identical") for twin in of(values, first, second)["twins"]]


def echoes(values: dict[str, Any], first: str, second: str) -> list[list[Any]]:
    return [told(echo, "caption row twin_row") for echo in of(values, first, second)["echoes"]]


def test_images_and_captions(result: dict[str, Any]) -> None:
    train, validation, test = result["splits"]
    assert [split["split"] for split in result["splits"]] == ["train", "validation", "test"]
    assert told(train, "pictures unreadable smaller sizes") == [10, 1, 1, {"96 x 64": 8, "48 x 32": 1}]
    assert train["unreadable_named"][0].startswith(f"bad{ESCAPE}.jpg (metadata.csv line 11): not an image")
    assert told(validation, "pictures unreadable") == [3, 1] and "gone.jpg" in validation["unreadable_named"][0]
    assert told(train["width"], "lowest median highest") == [48, 96, 96]
    assert train["width"]["mean"] == pytest.approx((8 * 96 + 48) / 9)
    assert told(train["aspect"], "lowest highest") == [1.5, 1.5]
    assert told(train, "formats modes") == [{"JPEG": 9}, {"RGB": 9}] and test["formats"] == {"JPEG": 1, "PNG": 1}
    assert train["file_bytes"]["highest"] > train["file_bytes"]["lowest"] > 100
    # caption 1 stands there twice but for case and marks
    assert told(train, "captions distinct_captions distinct_bare_captions truncated") == [10, 10, 9, 2]
    assert train["captions_a_picture"]["highest"] == 1
    # "picture number 0 of train" is five tokens and two specials; so is the escaped one once the tokenizer has taken
    # the escape sequence out; a comma and a mark make it nine
    assert {length: n for length, n in train["lengths"].items() if int(length) < 10} == {"7": 8, "9": 1}
    assert sum(train["lengths"].values()) == 10 and told(train["tokens"], "lowest median") == [7, 7]
    assert train["commonest"] == [{"text": "picture number 1 of train", "captions": 2, "pictures": 2}]


def test_tokens_used(tmp_path: Path) -> None:
    """a, b, c in two captions; cut to two tokens: a, b; and start and end."""
    rows = ("0.jpg", "a b c", "train"), ("1.jpg", "b a", "train"), ("2.jpg", "x", "validation"), ("3.jpg", "y", "test")
    write_table(tmp_path, *rows)
    for length, used, cut in ((5, 5, 0), (4, 4, 1)):
        train = found(tmp_path, context_length=length)["splits"][0]
        assert told(train, "tokens_used truncated vocabulary") == [used, cut, 49408]


def test_twins_and_leaks(result: dict[str, Any]) -> None:
    identical, near = of(result, "train", "train")["twins"]
    names = ["copy.jpg (metadata.csv line 9)", "t0.jpg (metadata.csv line 2)"]
    assert told(identical, "name twin_name row twin_row rms identical") == [*names, 7, 0, 0, True]
    assert told(near, "row twin_row identical") == [8, 1, False] and 0 < near["rms"] < 6
    assert echoes(result, "train", "train") == [["Picture number 1, of TRAIN!", 7, 1]]
    (twin,) = of(result, "train", "validation")["twins"]
    assert told(twin, "name twin_name") == ["v1.jpg (metadata.csv line 13)", "t2.jpg (metadata.csv line 4)"]
    assert echoes(result, "train", "validation") == [["PICTURE number 2 of train", 1, 2]]
    assert twins(result, "train", "test") == [[1, 3, False]]
    expected = {"train": [1, 1, 4, 2], "validation": [1, 0, 1, 1], "test": [0, 1, 1, 0]}
    for pair in result["shared"]:
        wanted = expected[pair["second"]] if pair["first"] == "train" else [0] * 4
        assert counts(result, pair["first"], pair["second"]) == wanted
    leaks = [sentence.split(" too")[0] for sentence in result["advice"] if "are in" in sentence]
    assert leaks == ["1 of 3 validation images are in train", "1 of 2 test images are in train"]


def test_many_copies_are_counted_by_pairs(tmp_path: Path) -> None:
    """Three copies of one image in train and two in test, and a near one in each; each is named with its nearest twin,
    the identical first."""
    near, nearer = (image(0).point(lambda v, step=step: min(255, v + step)) for step in (4, 1))
    names = {"train": ["a", "b", "c", "near"], "validation": ["v"], "test": ["g", "d", "e", "f"]}
    for name in "abcdefgv":
        {"f": near, "g": nearer, "v": image(9)}.get(name, image(0)).save(tmp_path / f"{name}.png")
    near.save(tmp_path / "near.png")
    write_table(tmp_path, *((f"{name}.png", "one for all", split) for split, files in names.items() for name in files))
    values = found(tmp_path)
    assert counts(values, "train", "train") == [3, 3, 4, 4]
    assert counts(values, "test", "test") == [1, 5, 4, 4]
    assert counts(values, "train", "test") == [3 * 2 + 1, 3 + 2 + 4, 4, 4]
    assert twins(values, "train", "test") == [[1, 0, True], [2, 0, True], [3, 3, True], [0, 0, False]]
    assert twins(values, "train", "train") == [[1, 0, True], [2, 0, True], [3, 0, False]]
    # f is further from g than from d and e, but both stand before it
    assert twins(values, "test", "test") == [[2, 1, True], [1, 0, False], [3, 0, False]]
    assert len(echoes(values, "train", "test")) == 1


def test_equal_bytes_of_another_shape_are_not_identical(tmp_path: Path) -> None:
    splits, sizes = ["train", "train", "validation", "test"], [(20, 10), (10, 20), (8, 8), (9, 9)]
    for i, colour in enumerate(("red", "red", "blue", "lime")):
        Image.new("RGB", sizes[i], colour).save(tmp_path / f"{i}.png")
    values = found(write_table(tmp_path, *((f"{i}.png", "c", splits[i]) for i in range(4))))
    assert counts(values, "train", "train")[:2] == [0, 1] and of(values, "train", "train")["twins"][0]["rms"] == 0


def test_the_longest_shared_captions_come_first(tmp_path: Path) -> None:
    captions = ["dog", "a dog on a hill", "a dog", "DOG", "a DOG", "A dog, on a hill", "other"]
    splits = ["train"] * 3 + ["test"] * 3 + ["validation"]
    values = found(write_table(tmp_path, *((f"{i}.jpg", captions[i], splits[i]) for i in range(7))))
    assert echoes(values, "train", "test") == [["A dog, on a hill", 2, 1], ["a DOG", 1, 2], ["DOG", 0, 0]]


def test_a_batch(result: dict[str, Any]) -> None:
    """Nine readable images of train in batches of 4; two are one image, in a batch together one time in six."""
    batch = result["collisions"]
    assert told(batch, "batch_size same_caption") == [4, 0]
    assert batch["same_picture"] == pytest.approx(4 * 3 / (9 * 8))
    # two of four rows then have a twin
    assert abs(batch["floor"] - np.log(2) / 2 / 6) < 4 * batch["floor_error"]


def test_cut_captions_collide(tmp_path: Path) -> None:
    """Equal in the six tokens that are left, so equal to the text encoder; every pair of images shares them."""
    write_table(tmp_path, *((f"{i}.jpg", f"one two three four five six {i}") for i in range(6)))
    for length, pairs in ((8, 3.0), (9, 0.0)):
        values = found(tmp_path, context_length=length, batch_size=3)
        assert values["collisions"]["same_caption"] == pytest.approx(pairs)
        assert values["collisions"]["floor"] == pytest.approx(np.log(3) if pairs else 0)
        assert any("equal captions keep" in sentence for sentence in values["advice"]) == (pairs > 0)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """A large JPEG is decoded smaller, and one from a camera on its side is turned; both are told as they lie there."""
    images = []
    for i, orientation in enumerate((1, 6, 1, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        images.append(encoded(image(i, (800, 600)), "JPEG", exif=exif))
    rows = {"image": [{"bytes": b, "path": None} for b in images], "caption": ["a", "b", "c", "d"]}
    write_parquet(tmp_path / "parquet" / "train.parquet", rows, image=ImageFeature())
    write_tar(tmp_path / "shard-0.tar", [(str(i), {"jpg": jpeg, "txt": b"words"}) for i, jpeg in enumerate(images)])
    for name in ("files", "other"):
        (tmp_path / name).mkdir()
        for i, jpeg in enumerate(images):
            (tmp_path / name / f"{i}.jpg").write_bytes(jpeg)
        write_table(tmp_path / name, *((f"{i}.jpg", "words") for i in range(4)))
    for data in (["files"], ["parquet"], ["shard-0.tar"], ["files", "other"]):
        values = found(*(tmp_path / name for name in data), image_size=32)
        sizes = Counter[str]()
        for split in values["splits"]:
            assert split["formats"] == {"JPEG": split["pictures"]}
            sizes += Counter(split["sizes"])
        assert sizes == {"800 x 600": 3 * len(data), "600 x 800": len(data)}, data
        assert values["splits"][0]["file_bytes"]["lowest"] >= min(map(len, images))
        # every image of the second source is one of the first
        assert sum(pair["identical_pairs"] for pair in values["shared"]) == 4 * (len(data) - 1)


def test_what_the_readers_say_is_in_the_notes(tmp_path: Path) -> None:
    """Splits that are set aside, a row without a caption, which stops nothing, and no split for training."""
    write_table(tmp_path, *((f"{i}.jpg", "c" if i < 4 else "") for i in range(5)))
    values = found(tmp_path / "metadata.csv")
    assert [told(s, "split pictures") for s in values["splits"]] == [["train", 2], ["validation", 1], ["test", 1]]
    for said in ("set aside", "1 of 5 rows are skipped: metadata.csv line 6"):
        assert any(said in note for note in values["notes"])
    assert len(set(values["notes"])) == len(values["notes"])
    (tmp_path / "held out").mkdir()
    for split in ("test", "validation"):
        write_table(tmp_path / "held out" / split, ("0.jpg", "c"), ("1.jpg", "d"))
    values = found(tmp_path / "held out")
    assert [s["split"] for s in values["splits"]] == ["validation", "test"] and values["collisions"] is None
    assert counts(values, "validation", "test")[0] == 2
    assert any("has no split 'train'" in said for said in values["refused"])


def test_limit_and_blocks(planted: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = found(planted, limit=2)
    assert [told(s, "pictures captions") for s in values["splits"]] == [[2, 2]] * 3 and values["limit"] == 2
    monkeypatch.setattr(figures, "BLOCK", 3)
    assert found(planted, **OPTIONS) == result


# ---- the command


def test_outputs(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(planted), "--context_length", "8", "--batch_size", "4"]
    target, drawing = tmp_path / "audit.json", tmp_path / "audit.png"
    assert main([*options, "--json", str(target), "--png", str(drawing)]) == 1  # training would refuse it
    shown = capsys.readouterr()
    assert not set("\x1b\x9b") & set(shown.out + shown.err)
    for part in (
        "leak [31m 31m.png",
        "t3.jpg (metadata.csv line 5)",
        "copy.jpg",
        "identical",
        "gone.jpg",
        "bad [31m 31m.jpg",
    ):
        assert part in shown.out, part
    assert "[bold]words" not in shown.err
    text = target.read_text()
    assert text.isascii() and "\x1b" not in text
    values = json.loads(text)
    assert told(values, "version data") == [1, [str(planted)]] and values["advice"]
    with Image.open(drawing) as png:
        assert png.format == "PNG" and min(png.size) > 600
        pixels = np.asarray(png.convert("RGB")).astype(int)
    # the leaked image is in it: so many colours are in no chart
    assert len(np.unique(pixels.reshape(-1, 3) // 8, axis=0)) > 1000
    assert eval_main(["audit", *options, "--json", str(target)]) == 1
    assert capsys.readouterr().out == shown.out and target.read_text() == text


def test_usage(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    shown, names = capsys.readouterr().out, ("data", "revision", "caption_column", "validation_split", "limit")
    assert stop.value.code == 0 and all(f"--{name}" in shown for name in names)
    data = ["--data", str(planted)]
    for options, said in (
        ([], "required: data"),
        ([*data, "--limit", "0"], "at least 1"),
        ([*data, "--context_length", "2"], "at least 3"),
        ([*data, "--batch_size", "1"], "at least 2"),
        ([*data, "--frobnicate"], "--frobnicate"),
        (["--data", f"{planted}/nowhere.csv"], "no such file"),
        ([*data, "--test_split", "nowhere"], "no split 'nowhere'"),
        ([*data, "--image_column", "nowhere"], "nowhere"),
        ([*data, "--json", str(planted)], "is a folder"),
        ([*data, "--png", f"{planted}/no/such.png"], "does not exist"),
        (["--data", f"nowhere{ESCAPE}/x.csv"], "nowhere [31m 31m/x.csv"),
    ):
        assert main(options) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("audit: error: ") and error.count("\n") == 1
        assert said in error and "\x1b" not in error


Rows = list[tuple[str, str, str]]  # file, caption, split


def rows_of(train: int, validation: int = 4, test: int = 4) -> Rows:
    counts = {"train": train, "validation": validation, "test": test}
    return [(f"{split}{i}.jpg", f"{split} {i}", split) for split, count in counts.items() for i in range(count)]


def broken(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def few(folder: Path) -> Rows:
    return rows_of(train=6)


def unsaid(folder: Path) -> Rows:
    return [(file, "" if file == "train3.jpg" else text, split) for file, text, split in rows_of(12)]


def bad_train(folder: Path) -> Rows:
    broken(folder, "train1.jpg", "train2.jpg")
    return rows_of(12)


def bad_test(folder: Path) -> Rows:
    broken(folder, "test2.jpg")
    return rows_of(12)


def no_test(folder: Path) -> Rows:
    broken(folder, "test0.jpg")
    return rows_of(200, 4, 1)


def nearly_few(folder: Path) -> Rows:
    broken(folder, "train0.jpg")
    return rows_of(8, 150)


def nothing_left_for_validation(folder: Path) -> Rows:
    return rows_of(1, 0, 3)


def no_train(folder: Path) -> Rows:
    return rows_of(0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (few, "has 6 images in split 'train', fewer than data.batch_size=8; use a batch of at most 6"),
        (unsaid, "1 of 20 images cannot be used (split train), more than data.max_bad_fraction=0.01 allows: "),
        (bad_train, "2 of 20 images cannot be used (split train), more than data.max_bad_fraction=0.01 allows: "),
        (bad_test, "1 of 20 images cannot be used (split test), more than data.max_bad_fraction=0.01 allows: "),
        (no_test, "none of the 1 images of split test can be read: test0.jpg"),
        (nearly_few, "the training split has 7 usable images, data.batch_size is 8; use a batch of at most 7"),
        (nothing_left_for_validation, "1 images are too few to set some aside for validation; add more"),
        (no_train, "has no split 'train', but validation, test; set data.train_split to one of them"),
    ],
)
def test_what_training_would_refuse_is_said_in_its_words(
    make: Callable[[Path], Rows], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, target = tmp_path / "data", tmp_path / "audit.json"
    data.mkdir()
    write_table(data, *make(data))
    assert main(["--data", str(data), "--batch_size", "8", "--json", str(target)]) == 1
    refused, shown = json.loads(target.read_text())["refused"], capsys.readouterr().out
    assert said in refused[0] and f"training would refuse this: {refused[0]}"[:120] in shown
    config = [*("--config", "configs/flickr8k.yaml"), "--data.source", str(data), "--data.batch_size", "8"]
    where = ["--run.dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache"), "--log.progress", "false"]
    assert train_main([*config, *where]) == 2
    assert said.lstrip("12") in capsys.readouterr().err  # it stops at the first that is too many


def test_good_data_are_refused_by_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One broken image of 208 costs no exit status, and is named."""
    (tmp_path / "data").mkdir()
    broken(tmp_path / "data", "validation3.jpg")
    data = write_table(tmp_path / "data", *rows_of(200))
    assert main(["--data", str(data), "--batch_size", "8", "--image_size", "16"]) == 0
    shown = capsys.readouterr().out
    assert "training would refuse" not in shown and "1 of 4 validation images cannot be read" in shown


def test_nothing_readable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding, no failure; and the figure is drawn."""
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    values = found(write_table(tmp_path, *((f"{i}.jpg", f"c{i}") for i in range(3))), png=str(tmp_path / "a.png"))
    assert "1 of 1 train images cannot be read" in capsys.readouterr().out
    assert values["collisions"] is None and (tmp_path / "a.png").stat().st_size > 1000
