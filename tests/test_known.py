"""The usual sets: how they are recognised, and what they say of names and templates."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.files import write_classes, write_image, write_jsonl

from miniclip.data.classes import KnownSet, find_known, known_sets
from miniclip.data.labelled import LabelledImages, open_labelled

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "River": "river",
    "SeaLake": "lake or sea",
    "Residential": "residential buildings or homes or apartments",
}


def upto(count: int, first: int = 0) -> list[str]:
    return [str(i) for i in range(first, first + count)]


def found(source: str, labels: list[str]) -> str | None:
    known = find_known(source, labels)
    return None if known is None else known.name


def said(source: str, labels: list[str]) -> list[str] | None:
    known = find_known(source, labels)
    assert known is not None
    names = known.names(labels)
    return None if names is None else [name for (name,) in names]


def test_recognised_by_its_name_and_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("uoft-cs/cifar10", "data/CIFAR-10", "~/sets/Cifar_10/test", "x/wds_cifar10", "cifar10.csv"):
        assert found(source, CIFAR10) == "cifar10", source
    others = {"ethz/food101": "food101", "timm/oxford-iiit-pet": "pets", "wds_vtab-dtd": "dtd", "fashion-mnist": None}
    others |= {"data/Stanford Cars/train": "stanford_cars", "data/flowers-102/images": "flowers102"}
    others |= {"dtd/test_images": "dtd", "Food-101/Training": "food101", "EuroSAT/seg_val/data": "eurosat"}
    others |= {"cifar10/mine": None, "cifar10_of_mine": None}
    assert {source: found(source, ["a", "b"]) for source in others} == others
    for source, labels, name in (
        ("cifar10", [*CIFAR10[:9], "hamster"], None),
        ("cifar10", CIFAR10[:4], "cifar10"),  # some of its classes
        ("cifar10", upto(10), "cifar10"),
        ("cifar10", upto(10, 1), None),
        ("cifar100", ["aquatic_mammals", "fish"], None),  # its coarse labels
        ("cifar100", ["aquarium_fish", "willow_tree"], "cifar100"),
        ("pets", ["cat", "hamster"], "pets"),
    ):
        assert found(source, labels) == name, (source, labels)
    assert said("pets", ["cat", "hamster"]) is None  # the names remain the user's
    assert KnownSet("x", ("a {}",)).fits(["anything"]) and KnownSet("x", ("a {}",)).names(["1", "2"]) is None
    (tmp_path / "dtd" / "test").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "dtd" / "test")
    assert found(".", ["banded", "dotted"]) == found("..", ["banded", "dotted"]) == "dtd"


def test_numbers_become_names() -> None:
    order = [3, 0, 9, 1, 2, 4, 5, 6, 7, 8]
    assert said("cifar10", [str(i) for i in order]) == [CIFAR10[i] for i in order]
    assert said("stl10", [f"{i:02}" for i in range(10)])[7] == "monkey"  # type: ignore[index]
    hundred = said("cifar100", upto(100))
    assert hundred is not None and hundred == sorted(hundred) and len(set(hundred)) == 100
    assert (hundred[1], hundred[47], hundred[99]) == ("aquarium fish", "maple tree", "worm")
    assert said("mnist", upto(10)) == upto(10)
    assert said("mnist", ["3", "7"]) is None  # and not 0 and 1


def test_labels_that_prompts_say_otherwise() -> None:
    assert said("eurosat", list(EUROSAT)) == list(EUROSAT.values())
    caltech = {"Faces": "off-center face", "Faces_easy": "centered face", "yin_yang": "yin and yang symbol"}
    assert said("caltech101", [*caltech, "sea_horse"]) == [*caltech.values(), "sea horse"]


def test_flowers() -> None:
    from torchvision.datasets import Flowers102

    from_one, from_zero = said("flowers102", upto(102, 1)), said("flowers", upto(102))
    assert from_one is not None and from_one == from_zero and len(set(from_one)) == 102
    other = {15: "globe flower", 59: "pink and yellow dahlia", 92: "air plant"}
    assert from_one == [other.get(i, name) for i, name in enumerate(Flowers102.classes)]
    assert (from_one[0], from_one[20], from_one[101]) == ("pink primrose", "fire lily", "blackberry lily")
    assert said("flowers", ["ball moss", "sword_lily"]) == ["air plant", "sword lily"]
    assert said("flowers", ["1", "2"]) is None and said("flowers", ["rose", "tulip"]) is None


def test_imagenet() -> None:
    import open_clip
    from timm.data import ImageNetInfo

    assert said("some/folder", ["n02012849", "n01440764", "n03126707"]) == ["crane bird", "tench", "construction crane"]
    info = ImageNetInfo()
    names = said("some/folder/val", sorted(info.label_names()))
    assert names is not None and len(set(names)) == 1000
    other = {i: names[i] for i, name in enumerate(open_clip.IMAGENET_CLASSNAMES) if names[i] != name}
    assert other == {744: "projectile", 836: "sunglass"}
    assert said("imagenet", upto(1000)) == names
    assert said("imagenetv2", sorted(upto(1000)))[1:3] == [names[1], names[10]]  # type: ignore[index]
    entries = [info.index_to_description(i) for i in range(1000)]
    assert entries[0] == "tench, Tinca tinca"
    assert said("ILSVRC/imagenet-1k", entries) == names
    assert said("ILSVRC/imagenet-1k", sorted(entries)) is None  # another order
    assert said("imagenet", ["tench", "goldfish"]) is None
    assert said("some/folder", ["n01440764", "n00000001"]) is None
    assert said("imagenet", upto(1000, 1)) is None  # the order of these is another
    assert known_sets()["imagenet"].templates == tuple(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES)


def test_templates_and_aliases() -> None:
    counts = "imagenet 80, cifar10 18, cifar100 18, stl10 2, mnist 1, flowers102 1, pets 1, food101 1, birdsnap 1, "
    counts += "fgvc_aircraft 2, stanford_cars 8, sun397 2, dtd 8, eurosat 3, resisc45 18, gtsrb 3, country211 5, "
    counts += "caltech101 34"
    known = known_sets()
    assert ", ".join(f"{name} {len(set(one.templates))}" for name, one in known.items()) == counts
    for one in known.values():
        assert all(t.count("{}") == 1 and "@" not in t and "  " not in t for t in one.templates)
    assert known["pets"].templates == ("a photo of a {}, a type of pet.",)
    assert known["mnist"].templates == ('a photo of the number: "{}".',)
    cifar = known["cifar10"].templates
    assert (cifar[1], cifar[8], cifar[9]) == ("a blurry photo of a {}.", "a photo of a big {}.", "a photo of the {}.")
    assert known["resisc45"].templates[7] == "aerial imagery of a {}."
    caltech = known["caltech101"].templates
    assert (caltech[8], caltech[25]) == ("a embroidered {}.", "the embroidered {}.")
    names = [name for one in known.values() for name in (one.name.replace("_", ""), *one.aliases)]
    assert len(set(names)) == len(names) and all(name.isalnum() and name.islower() for name in names)


def test_opened_folders_carry_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def folder(name: str, classes: Iterable[str], **options: Any) -> tuple[LabelledImages, str]:
        """The source, and what was logged when it was opened."""
        caplog.clear()
        root = write_classes(tmp_path / name, **{name: [0] for name in classes})
        source = open_labelled(root, **options)
        assert isinstance(source, LabelledImages)
        return source, caplog.text

    templates = known_sets()["eurosat"].templates
    source, log = folder("EuroSAT", EUROSAT)
    assert source.classes[2] == "brushland or shrubland" and source.templates == templates
    assert log.count("\n") == 1 and "EuroSAT is taken for eurosat: its class names, and 3 templates of it" in log
    assert "--templates simple, --classnames FILE" in log
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(10)))
    source, log = folder("EuroSAT", EUROSAT, classnames_file=tmp_path / "names.txt", classnames_by="order")
    assert source.classes[2] == "name 2" and source.templates == templates
    assert "is taken for eurosat: 3 templates of it" in log and "FILE" not in log
    source, log = folder("pets", ["Abyssinian", "american_bulldog", "hamster"])
    assert source.classes == ["Abyssinian", "american bulldog", "hamster"]
    assert source.templates == ("a photo of a {}, a type of pet.",) and "pets: 1 template of it" in log
    with caplog.at_level(logging.DEBUG):
        source, log = folder("mine", ["a", "b"])
    assert source.templates is None and source.names == [["a"], ["b"]] and not log
    called = "its classes are called 00000; 00001; a class-names file says what they are"
    assert called in folder("gtsrb", ["00000", "00001"])[1] and "are called" not in folder("mnist", ["3", "7"])[1]


def test_opened_tables_carry_it(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10"
    write_image(root / "images" / "x.png", 0)
    rows = [{"file_name": "images/x.png", "label": i} for i in range(11)]
    write_jsonl(root / "labels.jsonl", rows[:10])
    for path in (root, root / "labels.jsonl"):
        source = open_labelled(path)
        assert isinstance(source, LabelledImages)
        assert source.classes == CIFAR10 and source.templates == known_sets()["cifar10"].templates
    write_jsonl(root / "labels.jsonl", rows)
    with pytest.raises(ValueError, match="numbers without names"):
        open_labelled(root)
