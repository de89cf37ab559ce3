"""The audit finds what was planted: twins, leaks, cut captions, broken pictures; and its outputs say so."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from miniclip.cli.eval import main as eval_main
from miniclip.data.audit import command, figures, report
from miniclip.data.audit.command import main

ESCAPE = "\x1b[31m\x9b31m"  # also the one-character form
LONG = "a very long caption with far more words than a context of eight tokens can hold"


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    field = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(field).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train: 10 pictures, of which copy.jpg is the file t0.jpg, half.jpg is t1.jpg shrunk and saved again, and one is
    broken. validation: v0, a copy of t2.jpg, and one that is missing. test: e0, and leak.png, which is t3.jpg as PNG at
    double size."""
    folder = tmp_path_factory.mktemp("planted")
    rows: list[tuple[str, str, str]] = []

    def add(name: str, caption: str, split: str) -> Path:
        rows.append((name, caption, split))
        return folder / name

    for i in range(7):
        picture(i).save(add(f"t{i}.jpg", f"picture number {i} of train", "train"))
    shutil.copy(folder / "t0.jpg", add("copy.jpg", "Picture number 1, of TRAIN!", "train"))
    Image.open(folder / "t1.jpg").resize((48, 32)).save(add("half.jpg", LONG, "train"), quality=75)
    add(f"bad{ESCAPE}.jpg", "\x1b[31mred [bold]words", "train").write_bytes(b"no picture")
    picture(100).save(add("v0.jpg", "validation", "validation"))
    shutil.copy(folder / "t2.jpg", add("v1.jpg", "PICTURE number 2 of train", "validation"))
    add("gone.jpg", "not there", "validation")
    picture(200).save(add("e0.jpg", "first of test", "test"))
    Image.open(folder / "t3.jpg").resize((192, 128)).save(add(f"leak{ESCAPE}.png", "second of test", "test"))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file_name", "caption", "split"), *rows])
    return folder


def found(*options: str) -> report.Audit:
    kept: list[report.Audit] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "print_audit", kept.append)
        assert main(list(options)) == 0
    return kept[0]


@pytest.fixture(scope="module")
def result(planted: Path) -> report.Audit:
    return found("--data", str(planted), "--context_length", "8", "--image_size", "60", "--batch_size", "4")


def of(audit: report.Audit, first: str, second: str) -> Any:
    return next(pair for pair in audit.shared if (pair.first, pair.second) == (first, second))


def test_pictures(result: report.Audit) -> None:
    train, validation, test = result.splits
    assert [s.split for s in result.splits] == ["train", "validation", "test"]
    assert (train.pictures, train.unreadable) == (10, 1)
    assert train.unreadable_named[0].startswith(f"bad{ESCAPE}.jpg (metadata.csv line 11): not an image")
    assert (validation.pictures, validation.unreadable) == (3, 1)
    assert "gone.jpg" in validation.unreadable_named[0]
    assert train.sizes == {"96 x 64": 8, "48 x 32": 1}
    assert train.smaller == 1
    assert train.width is not None
    assert (train.width.lowest, train.width.median, train.width.highest) == (48, 96, 96)
    assert train.width.mean == pytest.approx((8 * 96 + 48) / 9)
    assert train.aspect is not None
    assert (train.aspect.lowest, train.aspect.highest) == (1.5, 1.5)
    assert (train.formats, train.modes) == ({"JPEG": 9}, {"RGB": 9})
    assert test.formats == {"JPEG": 1, "PNG": 1}
    assert train.file_bytes is not None
    assert train.file_bytes.highest > train.file_bytes.lowest > 100


def test_captions(result: report.Audit) -> None:
    train = result.splits[0]
    assert train.captions == train.distinct_captions == 10
    assert train.distinct_bare_captions == 9  # number 1 stands there twice
    assert train.captions_a_picture is not None
    assert train.captions_a_picture.highest == 1
    # "picture number 0 of train" is five tokens and two specials; so is the escaped one once the tokenizer has taken
    # the escape sequence out; a comma and a mark make it nine
    assert {length: n for length, n in train.lengths.items() if length < 10} == {7: 8, 9: 1}
    assert sum(train.lengths.values()) == 10
    assert train.tokens is not None
    assert (train.tokens.lowest, train.tokens.median) == (7, 7)
    assert train.truncated == 2
    common = train.commonest
    assert [(c.text, c.captions, c.pictures) for c in common] == [("picture number 1 of train", 2, 2)]


def test_tokens_used(tmp_path: Path) -> None:
    """a, b, c in two captions; cut to two tokens: a, b; and start and end."""
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.jpg")
    lines = "0.jpg,a b c,train\n1.jpg,b a,train\n2.jpg,x,validation\n3.jpg,y,test\n"
    (tmp_path / "m.csv").write_text("file_name,caption,split\n" + lines)
    for length, used, cut in (("5", 5, 0), ("4", 4, 1)):
        train = found("--data", str(tmp_path / "m.csv"), "--context_length", length).splits[0]
        assert (train.tokens_used, train.truncated) == (used, cut)


def test_twins_in_train(result: report.Audit) -> None:
    train = of(result, "train", "train")
    assert (train.identical_pairs, train.near_pairs, train.second_pictures) == (1, 1, 4)
    identical, near = train.twins
    assert (identical.name, identical.twin_name) == ("copy.jpg (metadata.csv line 9)", "t0.jpg (metadata.csv line 2)")
    assert (identical.row, identical.twin_row, identical.rms, identical.identical) == (7, 0, 0, True)
    assert (near.row, near.twin_row, near.identical) == (8, 1, False)
    assert 0 < near.rms < 6
    assert train.second_captions == 2
    (echo,) = train.echoes
    assert (echo.caption, echo.row, echo.twin_row) == ("Picture number 1, of TRAIN!", 7, 1)


def test_leaks(result: report.Audit) -> None:
    validation, test = of(result, "train", "validation"), of(result, "train", "test")
    assert (validation.identical_pairs, validation.near_pairs, validation.second_pictures) == (1, 0, 1)
    (twin,) = validation.twins
    assert (twin.name, twin.twin_name) == ("v1.jpg (metadata.csv line 13)", "t2.jpg (metadata.csv line 4)")
    (echo,) = validation.echoes
    assert (echo.row, echo.twin_row, validation.second_captions) == (1, 2, 1)
    assert (test.identical_pairs, test.near_pairs, test.second_pictures) == (0, 1, 1)
    (twin,) = test.twins
    assert (twin.row, twin.twin_row, twin.identical) == (1, 3, False)
    assert test.echoes == []
    assert result.leaks == [validation, test]
    clean = [of(result, *pair) for pair in (("validation", "validation"), ("validation", "test"), ("test", "test"))]
    assert all(pair.second_pictures == pair.second_captions == 0 for pair in clean)
    assert any("1 of 2 test pictures are in train" in sentence for sentence in report.advice(result))


def test_many_copies_are_counted_by_pairs(tmp_path: Path) -> None:
    """Three copies of one picture in train and two in test, and a near one in each; each is named with its nearest
    twin, the identical first."""
    near, nearer = (picture(0).point(lambda v, step=step: min(255, v + step)) for step in (4, 1))
    names = {"train": ["a", "b", "c", "near"], "validation": ["v"], "test": ["g", "d", "e", "f"]}
    rows = [("file_name", "caption", "split")]
    for split, files in names.items():
        for name in files:
            pixels = {"near": near, "f": near, "g": nearer, "v": picture(9)}.get(name, picture(0))
            pixels.save(tmp_path / f"{name}.png")
            rows.append((f"{name}.png", "one for all", split))
    with (tmp_path / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    result = found("--data", str(tmp_path))
    train, test, both = of(result, "train", "train"), of(result, "test", "test"), of(result, "train", "test")
    assert (train.identical_pairs, train.near_pairs, train.second_pictures) == (3, 3, 4)
    assert (test.identical_pairs, test.near_pairs, test.second_pictures) == (1, 5, 4)
    assert (both.identical_pairs, both.near_pairs, both.second_pictures) == (3 * 2 + 1, 3 + 2 + 4, 4)
    places = [(t.row, t.twin_row, t.identical) for t in both.twins]
    assert places == [(1, 0, True), (2, 0, True), (3, 3, True), (0, 0, False)]
    assert [(t.row, t.twin_row, t.identical) for t in train.twins] == [(1, 0, True), (2, 0, True), (3, 0, False)]
    # f is further from g than from d and e, but both stand before it
    assert [(t.row, t.twin_row, t.identical) for t in test.twins] == [(2, 1, True), (1, 0, False), (3, 0, False)]
    assert both.second_captions == 4
    assert len(both.echoes) == 1
    assert train.second_captions == 4


def test_equal_bytes_of_another_shape_are_not_identical(tmp_path: Path) -> None:
    sizes = {"0": (20, 10), "1": (10, 20), "2": (8, 8), "3": (9, 9)}
    lines = ["file_name,caption,split"]
    for name, size in sizes.items():
        colour = "red" if name in "01" else "blue" if name == "2" else "lime"
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
        lines.append(f"{name}.png,c,{'train' if name in '01' else 'validation' if name == '2' else 'test'}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    train = of(found("--data", str(tmp_path / "m.csv")), "train", "train")
    assert (train.identical_pairs, train.near_pairs, train.twins[0].rms) == (0, 1, 0.0)


def test_the_longest_shared_captions_come_first(tmp_path: Path) -> None:
    lines = ["file_name,caption,split"]
    for i, caption in enumerate(["dog", "a dog on a hill", "a dog", "DOG", "a DOG", "A dog, on a hill", "other"]):
        picture(i).save(tmp_path / f"{i}.jpg")
        lines.append(f'{i}.jpg,"{caption}",{"train" if i < 3 else "validation" if i == 6 else "test"}')
    (tmp_path / "m.csv").write_text("\n".join(lines))
    shared = of(found("--data", str(tmp_path / "m.csv")), "train", "test")
    assert [echo.caption for echo in shared.echoes] == ["A dog, on a hill", "a DOG", "DOG"]
    assert [(echo.row, echo.twin_row) for echo in shared.echoes] == [(2, 1), (1, 2), (0, 0)]


def test_a_batch(result: report.Audit) -> None:
    """Nine readable pictures of train in batches of 4; two are one picture, in a batch together one time in six."""
    collisions = result.collisions
    assert collisions is not None
    assert (collisions.batch_size, collisions.same_caption) == (4, 0)
    assert collisions.same_picture == pytest.approx(4 * 3 / (9 * 8))
    # two of four rows then have a twin
    assert abs(collisions.floor - np.log(2) / 2 / 6) < 4 * collisions.floor_error


def test_cut_captions_collide(tmp_path: Path) -> None:
    """Equal in the six tokens that are left, so equal to the text encoder; every pair of pictures shares them."""
    for i in range(6):
        picture(i).save(tmp_path / f"{i}.jpg")
    lines = "".join(f"{i}.jpg,one two three four five six {i}\n" for i in range(6))
    (tmp_path / "m.csv").write_text("file_name,caption\n" + lines)
    for length, pairs in (("8", 3.0), ("9", 0.0)):
        collisions = found(
            "--data", str(tmp_path / "m.csv"), "--context_length", length, "--batch_size", "3"
        ).collisions
        assert collisions is not None
        assert collisions.same_caption == pytest.approx(pairs)
        assert collisions.floor == pytest.approx(np.log(3) if pairs else 0)


def encoded(image: Image.Image, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["files", "parquet", "tar", "several"])
def test_sizes_are_those_of_the_files(tmp_path: Path, kind: str) -> None:
    """A large JPEG is decoded smaller, and one from a camera on its side is turned; both are told as they lie there."""
    images = [encoded(picture(i, (800, 600)), orientation) for i, orientation in enumerate((1, 6, 1, 1))]
    data = [str(tmp_path / "data")]
    if kind == "parquet":
        rows = {"image": [{"bytes": b, "path": None} for b in images], "caption": ["a", "b", "c", "d"]}
        features = Features({"image": ImageFeature(), "caption": Value("string")})
        (tmp_path / "data").mkdir()
        Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "data" / "train.parquet"))
    elif kind == "tar":
        data = [str(tmp_path / "shard-0.tar")]
        with tarfile.open(data[0], "w") as tar:
            for i, image in enumerate(images):
                for name, content in ((f"{i}.jpg", image), (f"{i}.txt", b"words")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    else:
        for folder in ("data", "other"):
            (tmp_path / folder).mkdir()
            for i, image in enumerate(images):
                (tmp_path / folder / f"{i}.jpg").write_bytes(image)
            lines = "".join(f"{i}.jpg,words\n" for i in range(4))
            (tmp_path / folder / "metadata.csv").write_text("file_name,caption\n" + lines)
        data += [str(tmp_path / "other")] if kind == "several" else []
    result = found("--data", *data, "--image_size", "32")
    sizes: dict[str, int] = {}
    for split in result.splits:
        assert split.formats == {"JPEG": split.pictures}
        for size, count in split.sizes.items():
            sizes[size] = sizes.get(size, 0) + count
    times = 2 if kind == "several" else 1
    assert sizes == {"800 x 600": 3 * times, "600 x 800": times}
    assert result.splits[0].file_bytes is not None
    assert result.splits[0].file_bytes.lowest >= min(map(len, images))
    if kind == "several":  # every picture of the second source is one of the first
        assert sum(pair.identical_pairs for pair in result.shared) == 4


def test_what_the_readers_say_is_in_the_notes(tmp_path: Path) -> None:
    """Splits that are set aside, and a row without a caption, which stops nothing."""
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.jpg")
    (tmp_path / "m.csv").write_text("file_name,caption\n" + "".join(f"{i}.jpg,c\n" for i in range(4)) + "4.jpg,\n")
    result = found("--data", str(tmp_path / "m.csv"))
    assert [(s.split, s.pictures) for s in result.splits] == [("train", 2), ("validation", 1), ("test", 1)]
    assert any("set aside" in note for note in result.notes)
    assert any("1 of 5 rows are skipped: m.csv line 6" in note for note in result.notes)
    assert len(set(result.notes)) == len(result.notes)


def test_a_source_without_a_training_split(tmp_path: Path) -> None:
    for split in ("test", "validation"):
        (tmp_path / split).mkdir()
        for i in range(2):
            picture(i).save(tmp_path / split / f"{i}.jpg")
        (tmp_path / split / "metadata.csv").write_text("file_name,caption\n0.jpg,c\n1.jpg,d\n")
    result = found("--data", str(tmp_path))
    assert [s.split for s in result.splits] == ["validation", "test"]
    assert result.collisions is None
    assert of(result, "validation", "test").identical_pairs == 2
    assert any(note.startswith("train: ") for note in result.notes)


def test_limit(planted: Path) -> None:
    result = found("--data", str(planted), "--limit", "2")
    assert [s.pictures for s in result.splits] == [2, 2, 2]
    assert result.limit == 2


def test_blocks(planted: Path, result: report.Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "BLOCK", 3)
    again = found("--data", str(planted), "--context_length", "8", "--image_size", "60", "--batch_size", "4")
    assert again == result


# ---- the command


def test_outputs(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(planted), "--context_length", "8", "--batch_size", "4"]
    target, drawing = tmp_path / "audit.json", tmp_path / "audit.png"
    assert main([*options, "--json", str(target), "--png", str(drawing)]) == 0
    shown = capsys.readouterr()
    assert not set("\x1b\x9b") & set(shown.out + shown.err)
    assert "[bold]words" not in shown.err
    for part in (
        "leak [31m 31m.png",
        "t3.jpg (metadata.csv line 5)",
        "copy.jpg",
        "identical",
        "gone.jpg",
        "bad [31m 31m.jpg",
    ):
        assert part in shown.out, part
    text = target.read_text()
    assert text.isascii()
    assert "\x1b" not in text
    values = json.loads(text)
    assert values["version"] == 1
    assert values["data"] == [str(planted)]
    train = values["splits"][0]
    assert (train["split"], train["pictures"], train["unreadable"], train["vocabulary"]) == ("train", 10, 1, 49408)
    assert train["lengths"]["7"] == 8
    assert train["tokens"]["lowest"] == 7
    leak = next(p for p in values["shared"] if (p["first"], p["second"]) == ("train", "test"))["twins"][0]
    assert leak["name"] == f"leak{ESCAPE}.png (metadata.csv line 16)"
    assert (leak["twin_name"], leak["row"], leak["twin_row"]) == ("t3.jpg (metadata.csv line 5)", 1, 3)
    assert values["collisions"]["batch_size"] == 4
    assert values["advice"]
    with Image.open(drawing) as image:
        assert image.format == "PNG"
        assert min(image.size) > 600
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # the leaked picture is in it: so many colours are in no chart
    assert len(np.unique(pixels.reshape(-1, 3) // 8, axis=0)) > 1000


def test_eval_takes_the_same_options(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(planted), "--batch_size", "4"]
    assert main([*options, "--json", str(tmp_path / "a.json")]) == 0
    own = capsys.readouterr().out
    assert eval_main(["audit", *options, "--json", str(tmp_path / "b.json")]) == 0
    assert capsys.readouterr().out == own
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert eval_main(["audit", "--data", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--data"),
        (["--data", "{planted}", "--limit", "0"], "at least 1"),
        (["--data", "{planted}", "--context_length", "2"], "at least 3"),
        (["--data", "{planted}", "--batch_size", "1"], "at least 2"),
        (["--data", "{planted}", "--frobnicate"], "--frobnicate"),
        (["--data", "{planted}/nowhere.csv"], "no such file"),
        (["--data", "{planted}", "--test_split", "nowhere"], "no split 'nowhere'"),
        (["--data", "{planted}", "--image_column", "nowhere"], "nowhere"),
        (["--data", "{planted}", "--json", "{planted}"], "is a folder"),
        (["--data", "{planted}", "--png", "{planted}/no/such.png"], "does not exist"),
        (["--data", f"nowhere{ESCAPE}/x.csv"], "nowhere [31m 31m/x.csv"),
    ],
)
def test_bad_usage(planted: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([option.format(planted=planted) for option in options])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.startswith("audit: error: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert "\x1b" not in shown.err


def test_nothing_readable_and_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All pictures broken is a finding, no failure; and the picture is drawn."""
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n" + "".join(f"{i}.jpg,c{i}\n" for i in range(3)))
    assert main(["--data", str(tmp_path), "--png", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")]) == 0
    assert "1 of 1 train pictures cannot be read" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["collisions"] is None
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("data", "revision", "caption_column", "validation_split", "limit"))
