"""The usual sets: how they are recognised, and what they say of names and templates."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from PIL import Image

from miniclip.data.known import KnownSet, find_known, known_sets
from miniclip.data.labelled import LabelledImages, open_labelled

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"]
EUROSAT += ["Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]


def found(source: str, labels: list[str]) -> str | None:
    known = find_known(source, labels)
    return None if known is None else known.name


def said(source: str, labels: list[str]) -> list[str] | None:
    known = find_known(source, labels)
    assert known is not None
    names = known.names(labels)
    if names is None:
        return None
    assert all(len(many) == 1 for many in names)
    return [name for (name,) in names]


@pytest.mark.parametrize(
    "source", ["uoft-cs/cifar10", "cifar10", "data/CIFAR-10", "~/sets/Cifar_10/test", "x/wds_cifar10", "cifar10.csv"]
)
def test_recognised_by_the_last_part_of_its_name(source: str) -> None:
    assert found(source, CIFAR10) == "cifar10"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("ethz/food101", "food101"),
        ("timm/oxford-iiit-pet", "pets"),
        ("wds_vtab-dtd", "dtd"),
        ("data/Stanford Cars/train", "stanford_cars"),
        ("data/flowers-102/images", "flowers102"),
        ("cifar10/mine", None),
        ("cifar10_of_mine", None),
        ("fashion-mnist", None),
    ],
)
def test_recognised_by_other_names(source: str, name: str | None) -> None:
    assert found(source, ["a", "b"]) == name


def test_a_folder_is_known_by_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dtd" / "test").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "dtd" / "test")
    assert found(".", ["banded", "dotted"]) == found("..", ["banded", "dotted"]) == "dtd"


def test_labels_of_another_set_are_not_taken_for_it() -> None:
    assert found("cifar10", [*CIFAR10[:9], "hamster"]) is None
    assert found("cifar10", CIFAR10[:4]) == "cifar10"  # some of its classes
    assert found("cifar10", [str(i) for i in range(10)]) == "cifar10"
    assert found("cifar10", [str(i) for i in range(1, 11)]) is None
    assert found("cifar100", ["aquatic_mammals", "fish"]) is None  # its coarse labels
    assert found("cifar100", ["aquarium_fish", "willow_tree"]) == "cifar100"
    assert found("pets", ["cat", "hamster"]) == "pets"
    assert said("pets", ["cat", "hamster"]) is None  # the names remain the user's


def test_numbers_become_names() -> None:
    order = [3, 0, 9, 1, 2, 4, 5, 6, 7, 8]
    assert said("cifar10", [str(i) for i in order]) == [CIFAR10[i] for i in order]
    assert said("stl10", [f"{i:02}" for i in range(10)])[7] == "monkey"  # type: ignore[index]
    hundred = said("cifar100", [str(i) for i in range(100)])
    assert hundred is not None and hundred == sorted(hundred) and len(set(hundred)) == 100
    assert (hundred[1], hundred[47], hundred[99]) == ("aquarium fish", "maple tree", "worm")
    assert said("mnist", [str(i) for i in range(10)]) == [str(i) for i in range(10)]
    assert said("mnist", ["3", "7"]) is None  # and not 0 and 1


def test_flowers() -> None:
    from_one, from_zero = (
        said("flowers102", [str(i) for i in range(1, 103)]),
        said("flowers", [str(i) for i in range(102)]),
    )
    assert from_one is not None and from_one == from_zero and len(set(from_one)) == 102
    assert (from_one[0], from_one[20], from_one[101]) == ("pink primrose", "fire lily", "blackberry lily")
    assert (from_one[15], from_one[59], from_one[95]) == ("globe flower", "pink and yellow dahlia", "camellia")
    assert said("flowers", ["ball moss", "sword_lily"]) == ["air plant", "sword lily"]
    assert said("flowers", ["1", "2"]) is None and said("flowers", ["rose", "tulip"]) is None


def test_flowers_without_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Flowers102

    monkeypatch.delattr(Flowers102, "classes")
    with pytest.raises(ValueError, match=r"come from torchvision.*class-names file"):
        said("flowers102", [str(i) for i in range(1, 103)])


def test_labels_that_prompts_say_otherwise() -> None:
    assert said("eurosat", EUROSAT) == [
        "annual crop land",
        "forest",
        "brushland or shrubland",
        "highway or road",
        "industrial buildings or commercial buildings",
        "pasture land",
        "permanent crop land",
        "residential buildings or homes or apartments",
        "river",
        "lake or sea",
    ]
    assert said("caltech101", ["Faces", "Faces_easy", "yin_yang", "sea_horse"]) == [
        "off-center face",
        "centered face",
        "yin and yang symbol",
        "sea horse",
    ]


def test_imagenet() -> None:
    import open_clip
    from timm.data import ImageNetInfo

    assert said("some/folder", ["n02012849", "n01440764", "n03126707"]) == ["crane bird", "tench", "construction crane"]
    info = ImageNetInfo()
    wnids = sorted(info.label_names())
    names = said("some/folder/val", wnids)
    assert names is not None and len(set(names)) == 1000
    other = [i for i, name in enumerate(open_clip.IMAGENET_CLASSNAMES) if names[i] != name]
    assert [(i, names[i]) for i in other] == [(744, "projectile"), (836, "sunglass")]
    assert said("imagenet", [str(i) for i in range(1000)]) == names
    assert said("imagenetv2", sorted(str(i) for i in range(1000)))[1:3] == [names[1], names[10]]  # type: ignore[index]
    entries = [info.index_to_description(i) for i in range(1000)]
    assert entries[0] == "tench, Tinca tinca"
    assert said("ILSVRC/imagenet-1k", entries) == names
    assert said("ILSVRC/imagenet-1k", sorted(entries)) is None  # another order
    assert said("imagenet", ["tench", "goldfish"]) is None
    assert said("some/folder", ["n01440764", "n00000001"]) is None


def test_imagenet_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    known = find_known("imagenet", ["n01440764", "n02012849"])
    assert known is not None
    with pytest.raises(ValueError, match="open_clip"):
        known.names(["n01440764", "n02012849"])
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        _ = known.templates


COUNTS = (
    "imagenet 80, cifar10 18, cifar100 18, stl10 2, mnist 1, flowers102 1, pets 1, food101 1, birdsnap 1, "
    "fgvc_aircraft 2, stanford_cars 8, sun397 2, dtd 8, eurosat 3, resisc45 18, gtsrb 3, country211 5, caltech101 34"
)


def test_templates() -> None:
    counts = [f"{name} {len(set(known.templates))}" for name, known in known_sets().items()]
    assert sorted(counts) == sorted(COUNTS.split(", "))
    for known in known_sets().values():
        assert all(t.count("{}") == 1 and "@" not in t and "  " not in t for t in known.templates)
    assert known_sets()["pets"].templates == ("a photo of a {}, a type of pet.",)
    assert known_sets()["mnist"].templates == ('a photo of the number: "{}".',)
    cifar = known_sets()["cifar10"].templates
    assert (cifar[1], cifar[8], cifar[9]) == ("a blurry photo of a {}.", "a photo of a big {}.", "a photo of the {}.")
    assert known_sets()["resisc45"].templates[7] == "aerial imagery of a {}."
    assert (known_sets()["caltech101"].templates[8], known_sets()["caltech101"].templates[25]) == (
        "a embroidered {}.",
        "the embroidered {}.",
    )


def test_no_name_leads_to_two_sets() -> None:
    names = [name for known in known_sets().values() for name in (known.name.replace("_", ""), *known.aliases)]
    assert len(set(names)) == len(names) and all(name.isalnum() and name.islower() for name in names)


def folder(root: Path, classes: list[str]) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(root / name / "x.png")
    return root


def opened(root: Path, **options: str | Path) -> LabelledImages:
    source = open_labelled(root, **options)  # type: ignore[arg-type]
    assert isinstance(source, LabelledImages)
    return source


def test_opened_folders_carry_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(folder(tmp_path / "EuroSAT", EUROSAT))
    assert source.classes[2] == "brushland or shrubland" and source.templates == known_sets()["eurosat"].templates
    assert caplog.text.count("\n") == 1
    assert "EuroSAT is taken for eurosat: its class names, and 3 templates of it" in caplog.text
    assert "--templates simple, --classnames FILE" in caplog.text
    caplog.clear()

    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(10)))
    source = opened(tmp_path / "EuroSAT", classnames_file=tmp_path / "names.txt")
    assert source.classes[2] == "name 2" and source.templates == known_sets()["eurosat"].templates
    assert "is taken for eurosat: 3 templates of it" in caplog.text and "FILE" not in caplog.text
    caplog.clear()

    source = opened(folder(tmp_path / "pets", ["Abyssinian", "american_bulldog", "hamster"]))
    assert source.classes == ["Abyssinian", "american bulldog", "hamster"]
    assert source.templates == ("a photo of a {}, a type of pet.",)
    assert "pets: 1 template of it" in caplog.text
    caplog.clear()

    with caplog.at_level(logging.DEBUG):
        source = opened(folder(tmp_path / "mine", ["a", "b"]))
    assert source.templates is None and source.names == [["a"], ["b"]] and not caplog.text


def test_opened_tables_carry_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "cifar-10", ["pictures"])
    lines = "".join(f'{{"file_name": "pictures/x.png", "label": {i}}}\n' for i in range(10))
    (root / "labels.jsonl").write_text(lines)
    for path in (root, root / "labels.jsonl"):
        source = opened(path)
        assert source.classes == CIFAR10 and source.templates == known_sets()["cifar10"].templates
    (root / "labels.jsonl").write_text(lines + '{"file_name": "pictures/x.png", "label": 10}\n')
    with pytest.raises(ValueError, match="numbers without names"):
        opened(root)


def test_wordless_classes_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(folder(tmp_path / "gtsrb", ["00000", "00001"]))
    assert "its classes are called 00000; 00001; a class-names file says what they are" in caplog.text
    caplog.clear()
    opened(folder(tmp_path / "mnist", ["3", "7"]))
    assert "are called" not in caplog.text


def test_a_set_is_plain_data() -> None:
    assert KnownSet("x", ("a {}",)).fits(["anything"]) and KnownSet("x", ("a {}",)).names(["1", "2"]) is None
